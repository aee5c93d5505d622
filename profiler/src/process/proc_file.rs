//! A file of /proc or of a cgroup that is read again and again: opened once, bounded each time.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

/// Most bytes of such a file: /proc/stat has a line for each CPU and a word for each interrupt.
const MAX_BYTES: usize = 1 << 20;

/// Bytes of the first read: most files are shorter.
const FIRST_BYTES: usize = 4 << 10;

/// A file whose content the kernel makes anew for each reading from its start.
#[derive(Debug)]
pub struct ProcFile(File);

impl ProcFile {
    /// Opens it.
    ///
    /// # Errors
    ///
    /// When it is not there or may not be read.
    pub fn open(path: impl AsRef<Path>) -> io::Result<Self> {
        File::open(path).map(Self)
    }

    /// Reads it into `buffer`, whose capacity is used again, and returns what it says, at most 1 MiB.
    ///
    /// # Errors
    ///
    /// When it cannot be read, as that of a process that is gone (`ESRCH`), or is no text.
    pub fn read<'a>(&self, buffer: &'a mut Vec<u8>) -> io::Result<&'a [u8]> {
        buffer.resize(FIRST_BYTES, 0);
        let mut filled = 0;
        loop {
            let offset = u64::try_from(filled).map_err(io::Error::other)?;
            let read = match self.0.read_at(&mut buffer[filled..], offset) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                read => read?,
            };
            filled += read;
            // A file of /proc gives less than was asked for only at its end, or at the end of a page of its text.
            if read == 0 || filled >= MAX_BYTES {
                break;
            }
            if filled == buffer.len() {
                buffer.resize((buffer.len() * 4).min(MAX_BYTES), 0);
            } else if filled < FIRST_BYTES / 2 {
                break;
            }
        }
        Ok(&buffer[..filled])
    }
}

/// The number after a word at the start of a line: `MemFree:  123 kB`, `ctxt 5`, `usage_usec 7`.
#[must_use]
pub fn number_after(text: &[u8], word: &[u8]) -> Option<u64> {
    let rest = text.split(|&byte| byte == b'\n').find_map(|line| line.strip_prefix(word))?;
    number(rest.split(|byte| byte.is_ascii_whitespace()).find(|word| !word.is_empty())?)
}

/// A number in decimal digits.
#[must_use]
pub fn number(word: &[u8]) -> Option<u64> {
    std::str::from_utf8(word).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_read_again_from_its_start() {
        let file = ProcFile::open("/proc/self/stat").unwrap();
        let mut buffer = Vec::new();
        let first = file.read(&mut buffer).unwrap().to_owned();
        assert!(first.starts_with(std::process::id().to_string().as_bytes()));
        assert!(file.read(&mut buffer).unwrap().starts_with(&first[..4]));
        let stat = ProcFile::open("/proc/stat").unwrap();
        assert!(number_after(stat.read(&mut buffer).unwrap(), b"procs_running ").unwrap() > 0);
    }

    #[test]
    fn a_long_file_is_cut() {
        let mut long = tempfile::NamedTempFile::new().unwrap();
        io::Write::write_all(&mut long, &vec![b'x'; MAX_BYTES + 5000]).unwrap();
        let mut buffer = Vec::new();
        assert_eq!(ProcFile::open(long.path()).unwrap().read(&mut buffer).unwrap().len(), MAX_BYTES);
    }

    #[test]
    fn numbers_follow_their_words() {
        let text = b"MemTotal:  100 kB\nMemFree:\t  12 kB\nBad: -1\nEmpty:\nsome_usec 7";
        assert_eq!(number_after(text, b"MemFree:"), Some(12));
        assert_eq!(number_after(text, b"some_usec "), Some(7));
        for missing in [b"Bad:".as_slice(), b"Empty:", b"Free:", b"Absent:"] {
            assert_eq!(number_after(text, missing), None);
        }
    }
}
