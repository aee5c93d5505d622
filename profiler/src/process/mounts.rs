//! Where a process sees file systems: the mounts of its namespace.

use std::fs;
use std::os::unix::fs::MetadataExt as _;

use super::ProcFile;

/// Mounts of one namespace, in the order in which they were made.
#[derive(Debug, Default)]
pub struct Mounts(Vec<Mount>);

/// A file system, or a part of one, that is mounted somewhere.
#[derive(Debug)]
struct Mount {
    /// Device of the file system: its two numbers.
    device: (u32, u32),
    /// The part: a path in the file system, without a slash at its end.
    root: Vec<u8>,
    /// Where it is mounted, without a slash at its end.
    point: Vec<u8>,
}

/// Where a path of a process begins that does not begin with a slash: at a descriptor of it, or where the process is.
#[must_use]
pub fn working_directory(pid: u32, descriptor: i32) -> Option<std::path::PathBuf> {
    let name = if descriptor == libc::AT_FDCWD { "cwd".to_owned() } else { format!("fd/{descriptor}") };
    fs::read_link(format!("/proc/{pid}/{name}")).ok()
}

/// The mount namespace of a process; `None` when it is gone.
#[must_use]
pub fn mount_namespace(pid: u32) -> Option<u64> {
    fs::metadata(format!("/proc/{pid}/ns/mnt")).ok().map(|metadata| metadata.ino())
}

impl Mounts {
    /// Those that a process sees, as its root directory has them; `None` when it is gone. Source: proc(5),
    /// /proc/PID/mountinfo.
    #[must_use]
    pub fn of(pid: u32) -> Option<Self> {
        let mut buffer = Vec::new();
        let text = ProcFile::open(format!("/proc/{pid}/mountinfo")).ok()?.read(&mut buffer).ok()?.to_vec();
        Some(Self::parse(&text))
    }

    fn parse(text: &[u8]) -> Self {
        Self(text.split(|&byte| byte == b'\n').filter_map(Mount::parse).collect())
    }

    /// How many there are.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The path under which a file is seen, from the path in its file system; `None` where that is not mounted.
    ///
    /// Of several mounts it is the one of the smallest part that the file is in, and of those the first.
    #[must_use]
    pub fn place(&self, device: (u32, u32), path: &[u8]) -> Option<Vec<u8>> {
        let behind = |mount: &Mount| {
            let rest = path.strip_prefix(&mount.root[..])?;
            (rest.is_empty() || rest.starts_with(b"/")).then(|| rest.to_vec())
        };
        let on_device = self.0.iter().filter(|mount| mount.device == device);
        let (mount, rest) = on_device
            .filter_map(|mount| Some((mount, behind(mount)?)))
            // The first of equals: `max_by_key` would give the last.
            .min_by_key(|(mount, _)| std::cmp::Reverse(mount.root.len()))?;
        let mut placed = [&mount.point[..], &rest].concat();
        if placed.is_empty() {
            placed.push(b'/');
        }
        Some(placed)
    }
}

impl Mount {
    /// Fields: number, parent, device, root, mount point, and more that are not needed.
    fn parse(line: &[u8]) -> Option<Self> {
        let mut fields = line.split(|&byte| byte == b' ').skip(2);
        let device = std::str::from_utf8(fields.next()?).ok()?;
        let (major, minor) = device.split_once(':')?;
        let mut path = || {
            let path = unescape(fields.next()?);
            Some(path.strip_suffix(b"/").map_or(path.clone(), <[u8]>::to_vec))
        };
        Some(Self { device: (major.parse().ok()?, minor.parse().ok()?), root: path()?, point: path()? })
    }
}

/// Spaces and the like are written as a backslash and three octal digits.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&first, behind)) = rest.split_first() {
        let digits =
            behind.get(..3).filter(|digits| first == b'\\' && digits.iter().all(|digit| (b'0'..b'8').contains(digit)));
        let (byte, behind) = match digits {
            Some(digits) => {
                let value = digits.iter().fold(0_u32, |value, digit| value * 8 + u32::from(digit - b'0'));
                (u8::try_from(value).unwrap_or(b'?'), &behind[3..])
            }
            None => (first, behind),
        };
        plain.push(byte);
        rest = behind;
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_placed_where_they_are_seen() {
        let mounts = Mounts::parse(
            b"22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw\n\
              23 22 0:5 / /dev rw - devtmpfs none rw\n\
              30 22 254:0 /srv/a /data/my\\040disk rw - ext4 /dev/vda rw\n\
              31 22 254:0 / /again rw - ext4 /dev/vda rw\n\
              garbage\n",
        );
        let place = |device, path: &[u8]| mounts.place(device, path).map(|path| String::from_utf8(path).unwrap());
        assert_eq!(place((254, 0), b"/var/x"), Some("/var/x".to_owned()));
        assert_eq!(place((254, 0), b"/srv/a/b"), Some("/data/my disk/b".to_owned()));
        assert_eq!(place((254, 0), b"/srv/ab"), Some("/srv/ab".to_owned()));
        assert_eq!(place((254, 0), b""), Some("/".to_owned()));
        assert_eq!(place((0, 5), b"/null"), Some("/dev/null".to_owned()));
        assert_eq!(place((9, 9), b"/x"), None);
    }

    #[test]
    fn a_process_sees_the_file_systems_of_its_files() {
        let pid = std::process::id();
        let device = fs::metadata("/proc/self").unwrap().dev();
        let numbers = (libc::major(device), libc::minor(device));
        assert_eq!(Mounts::of(pid).unwrap().place(numbers, b"/self"), Some(b"/proc/self".to_vec()));
        assert!(mount_namespace(pid).is_some());
        assert!(Mounts::of(u32::MAX).is_none() && mount_namespace(u32::MAX).is_none());
    }
}
