//! The executable mappings of a process: which file, or what else, an address belongs to.

use std::fs::File;
use std::io::{self, BufRead, BufReader};

use thiserror::Error;

/// Executable mappings kept of one process. A process may have 65,530 mappings by the kernel's default
/// (vm.max_map_count), and the worst case is all of them executable.
const MAX_MAPPINGS: usize = 65_536;

/// Longest line of /proc/PID/maps that is read: a path of 4,096 bytes, each of which may be escaped as four.
const MAX_LINE_BYTES: u64 = 32 * 1024;

/// A file, whatever it is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FileKey {
    /// Major and minor number of the device, as /proc/PID/maps shows them.
    pub device: (u32, u32),
    /// Inode.
    pub inode: u64,
}

/// What is behind a mapping.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Backing {
    /// A file: who it is, and its path as the process sees it.
    File(FileKey, String),
    /// The kernel's code for user space.
    Vdso,
    /// Memory filled at run time: anonymous, shared or `memfd`.
    Anonymous(String),
}

/// An executable range of addresses of a process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mapping {
    /// First address.
    pub start: u64,
    /// Address past the last.
    pub end: u64,
    /// Offset of `start` in the file.
    pub file_offset: u64,
    /// What is behind it.
    pub backing: Backing,
}

/// The executable mappings of a process, by address; they do not overlap.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mappings {
    ranges: Vec<Mapping>,
    /// Mappings that were more than 65,536.
    pub left_out: usize,
}

/// Why the mappings of a process could not be read.
#[derive(Debug, Error)]
pub enum MappingsError {
    /// The process is gone.
    #[error("process {0} has exited")]
    Exited(u32),
    /// Something else.
    #[error("cannot read /proc/{0}/maps: {1}")]
    Read(u32, io::Error),
}

impl Mappings {
    /// The mapping that `address` is in.
    #[must_use]
    pub fn find(&self, address: u64) -> Option<&Mapping> {
        let index = self.ranges.partition_point(|mapping| mapping.end <= address);
        self.ranges.get(index).filter(|mapping| mapping.start <= address)
    }

    /// The mappings, by address.
    pub fn iter(&self) -> impl Iterator<Item = &Mapping> {
        self.ranges.iter()
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.ranges.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// Adds a mapping over whatever was there, as `mmap` with `MAP_FIXED` does.
    ///
    /// Returns whether an address has changed its meaning: another file, or another place in it.
    pub fn insert(&mut self, mapping: Mapping) -> bool {
        if mapping.start >= mapping.end {
            return false;
        }
        let first = self.ranges.partition_point(|old| old.end <= mapping.start);
        let last = first + self.ranges[first..].partition_point(|old| old.start < mapping.end);
        let mut changed = false;
        let mut pieces = Vec::with_capacity(3);
        for old in &self.ranges[first..last] {
            changed |= !same_meaning(old, &mapping);
            if old.start < mapping.start {
                pieces.push(Mapping { end: mapping.start, ..old.clone() });
            }
        }
        let tail = self.ranges[first..last].last().filter(|old| old.end > mapping.end).map(|old| Mapping {
            start: mapping.end,
            file_offset: old.file_offset + (mapping.end - old.start),
            ..old.clone()
        });
        if self.ranges.len() + 2 > MAX_MAPPINGS + (last - first) {
            self.left_out += 1;
            return false;
        }
        pieces.push(mapping);
        pieces.extend(tail);
        self.ranges.splice(first..last, pieces);
        changed
    }
}

/// Whether an address that both cover is the same place of the same thing in both.
fn same_meaning(left: &Mapping, right: &Mapping) -> bool {
    match (&left.backing, &right.backing) {
        (Backing::File(left_key, _), Backing::File(right_key, _)) => {
            left_key == right_key
                && left.file_offset.wrapping_sub(left.start) == right.file_offset.wrapping_sub(right.start)
        }
        (left, right) => left == right,
    }
}

/// Reads the executable mappings of a process.
///
/// # Errors
///
/// [`MappingsError::Exited`] when it is gone.
pub fn read_mappings(pid: u32) -> Result<Mappings, MappingsError> {
    let explain = |error: io::Error| match error.raw_os_error() {
        Some(libc::ENOENT | libc::ESRCH) => MappingsError::Exited(pid),
        _ => MappingsError::Read(pid, error),
    };
    let file = File::open(format!("/proc/{pid}/maps")).map_err(explain)?;
    let mut reader = BufReader::with_capacity(64 * 1024, file);
    let mut mappings = Mappings::default();
    let mut line = Vec::new();
    loop {
        line.clear();
        let read = io::Read::take(&mut reader, MAX_LINE_BYTES).read_until(b'\n', &mut line).map_err(explain)?;
        if read == 0 {
            return Ok(mappings);
        }
        if let Some(mapping) = parse_line(&line) {
            if mappings.ranges.len() >= MAX_MAPPINGS {
                mappings.left_out += 1;
            } else if mappings.ranges.last().is_none_or(|last| last.end <= mapping.start) {
                mappings.ranges.push(mapping);
            } else {
                // The file is read in pieces, and the process may map something between two of them.
                mappings.insert(mapping);
            }
        }
    }
}

/// `start-end perms offset major:minor inode path`; `None` for a mapping that is not executable.
/// Source: Documentation/filesystems/proc.rst, section 1.1.
fn parse_line(line: &[u8]) -> Option<Mapping> {
    let line = line.strip_suffix(b"\n").unwrap_or(line);
    let mut rest = line;
    let mut word = || {
        let end = rest.iter().position(|&byte| byte == b' ').unwrap_or(rest.len());
        let (word, tail) = rest.split_at(end);
        rest = tail.strip_prefix(b" ").unwrap_or(tail);
        std::str::from_utf8(word).ok()
    };
    let hex = |text: &str| u64::from_str_radix(text, 16).ok();
    let (start, end) = word()?.split_once('-')?;
    let permissions = word()?;
    if permissions.as_bytes().get(2) != Some(&b'x') {
        return None;
    }
    let file_offset = hex(word()?)?;
    let (major, minor) = word()?.split_once(':')?;
    let device = (u32::from_str_radix(major, 16).ok()?, u32::from_str_radix(minor, 16).ok()?);
    let inode = word()?.parse().ok()?;
    let path = String::from_utf8_lossy(rest.trim_ascii_start()).replace("\\012", "\n");
    Some(Mapping { start: hex(start)?, end: hex(end)?, file_offset, backing: backing_of(device, inode, path) })
}

/// What a mapping with these properties is of.
#[must_use]
pub(crate) fn backing_of(device: (u32, u32), inode: u64, path: String) -> Backing {
    let made_at_run_time = ["//anon", "/memfd:", "/dev/zero", "/SYSV", "anon_inode:", "/anon_hugepage"];
    if path == "[vdso]" {
        Backing::Vdso
    } else if inode == 0 || path.starts_with('[') || made_at_run_time.iter().any(|prefix| path.starts_with(prefix)) {
        Backing::Anonymous(path)
    } else {
        Backing::File(FileKey { device, inode }, path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn anonymous(start: u64, end: u64, name: &str) -> Mapping {
        Mapping { start, end, file_offset: start, backing: Backing::Anonymous(name.to_owned()) }
    }

    #[test]
    fn a_line_of_maps_is_read_whole() {
        let line = b"7f00-7fff r-xp 00001000 fe:01 123  /usr/lib/a b.so (deleted)\n";
        let mapping = parse_line(line).unwrap();
        assert_eq!((mapping.start, mapping.end, mapping.file_offset), (0x7f00, 0x7fff, 0x1000));
        let key = FileKey { device: (0xfe, 1), inode: 123 };
        assert_eq!(mapping.backing, Backing::File(key, "/usr/lib/a b.so (deleted)".to_owned()));
        assert_eq!(parse_line(b"7f00-7fff rw-p 00001000 fe:01 123  /usr/lib/a\n"), None);
        assert_eq!(parse_line(b"7f00-7fff r-xp"), None);
        assert_eq!(parse_line(b"\xff\xfe"), None);
    }

    #[test]
    fn a_new_mapping_cuts_the_old_ones() {
        let mut mappings = Mappings::default();
        assert!(!mappings.insert(anonymous(0x1000, 0x5000, "old")));
        assert!(mappings.insert(anonymous(0x2000, 0x3000, "new")));
        let ranges: Vec<_> = mappings.iter().map(|mapping| (mapping.start, mapping.end, mapping.file_offset)).collect();
        assert_eq!(ranges, [(0x1000, 0x2000, 0x1000), (0x2000, 0x3000, 0x2000), (0x3000, 0x5000, 0x3000)]);
        assert_eq!(mappings.find(0x2fff).unwrap().backing, Backing::Anonymous("new".to_owned()));
        assert_eq!(mappings.find(0x5000), None);
        assert_eq!(mappings.find(0xfff), None);
        assert!(!mappings.insert(anonymous(0x2000, 0x3000, "new")));
    }

    #[test]
    fn our_own_mappings_hold_our_own_code() {
        let mappings = read_mappings(std::process::id()).unwrap();
        let code = our_own_mappings_hold_our_own_code as fn() as usize as u64;
        assert!(matches!(mappings.find(code).unwrap().backing, Backing::File(..)));
        assert!(mappings.iter().any(|mapping| mapping.backing == Backing::Vdso));
        assert!(matches!(read_mappings(u32::MAX), Err(MappingsError::Exited(_))));
    }
}
