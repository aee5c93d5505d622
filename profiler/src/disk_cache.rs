//! A directory of what was worked out before, by name: unwind tables, function names.
//!
//! The directory must be ours, closed to others and no link; else there is no cache. A file is whole under its name or
//! not there. What cannot be read is worked out again, without an error; what cannot be written is not kept. What was not
//! used for the longest time makes room. Contents are checked by who wrote them.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{DirBuilderExt as _, FileExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use sha2::{Digest as _, Sha256};

/// Name of an entry: a SHA-256 digest of all that its content was made of.
///
/// So a file can spoil no other file's entry, whatever it says of itself. Weaker names were considered: a build ID is a
/// claim of the file's; device, inode and times are claims of the file system's, and a user may have one of his own
/// mounted (FUSE, a loop device) and leave its device number to the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Key(pub(crate) [u8; 32]);

impl Key {
    /// The digest of what was put into `digest`.
    pub(crate) fn of(digest: Sha256) -> Self {
        Self(digest.finalize().into())
    }

    fn name(&self) -> String {
        self.0.iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

/// A directory of entries.
#[derive(Debug)]
pub(crate) struct DiskCache {
    /// Held open: what is checked is what is used.
    directory: File,
    max_bytes: u64,
}

/// The directory that is used when none is named: the system's for root, else the user's; `None` when he has none.
#[must_use]
pub(crate) fn default_directory() -> Option<PathBuf> {
    if our_user() == 0 {
        return Some(PathBuf::from("/var/cache/profiler"));
    }
    let user = std::env::var_os("XDG_CACHE_HOME").filter(|path| Path::new(path).is_absolute());
    let home = || std::env::var_os("HOME").map(|home| Path::new(&home).join(".cache"));
    Some(user.map(PathBuf::from).or_else(home)?.join("profiler"))
}

impl DiskCache {
    /// Opens a directory, and makes it when it is missing. `max_bytes`: of all entries together.
    ///
    /// # Errors
    ///
    /// When it cannot be made or opened, is a link, belongs to somebody else or is open to others.
    pub(crate) fn open(path: &Path, max_bytes: u64) -> io::Result<Self> {
        DirBuilder::new().recursive(true).mode(0o700).create(path)?;
        let directory = OpenOptions::new().read(true).custom_flags(libc::O_DIRECTORY | libc::O_NOFOLLOW).open(path)?;
        let metadata = directory.metadata()?;
        if !is_ours(&metadata) || metadata.mode() & 0o077 != 0 {
            let reason = format!("{} is not ours alone: it must be our own, with mode 0700", path.display());
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, reason));
        }
        Ok(Self { directory, max_bytes })
    }

    /// A file of the directory that is open, wherever that is by now.
    fn path(&self, name: &str) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}/{name}", self.directory.as_raw_fd()))
    }

    /// An entry's content; `None` when there is none that can be read.
    pub(crate) fn load(&self, key: &Key) -> Option<Vec<u8>> {
        let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
        let file = OpenOptions::new().read(true).custom_flags(flags).open(self.path(&key.name())).ok()?;
        let metadata = file.metadata().ok()?;
        if !metadata.is_file() || !is_ours(&metadata) || metadata.len() > self.max_bytes {
            return None;
        }
        let mut bytes = vec![0; usize::try_from(metadata.len()).ok()?];
        file.read_exact_at(&mut bytes, 0).ok()?;
        // When it was used last. Not more than a hint.
        let _ = file.set_modified(SystemTime::now());
        Some(bytes)
    }

    /// Keeps an entry; a full disk, or a directory that has gone, means that it is not kept.
    pub(crate) fn store(&self, key: &Key, bytes: &[u8]) {
        let _ = self.try_store(key, bytes);
    }

    fn try_store(&self, key: &Key, bytes: &[u8]) -> io::Result<()> {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let temporary = self.path(&format!("{}.{}-{number}.tmp", key.name(), std::process::id()));
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .custom_flags(libc::O_NOFOLLOW)
            .mode(0o600)
            .open(&temporary)?;
        let written = file.write_all(bytes).and_then(|()| fs::rename(&temporary, self.path(&key.name())));
        if written.is_err() {
            let _ = fs::remove_file(&temporary);
        }
        written.and_then(|()| self.sweep())
    }

    /// Removes entries that were not used for the longest time, until the rest is small enough.
    fn sweep(&self) -> io::Result<()> {
        let mut files = Vec::new();
        for entry in fs::read_dir(self.path("."))?.flatten() {
            let name = entry.file_name();
            // Nothing but what we wrote.
            let ours = name.to_str().is_some_and(|name| name.get(..64).is_some_and(is_hexadecimal));
            if let Some(metadata) = entry.metadata().ok().filter(|metadata| ours && metadata.is_file()) {
                files.push((metadata.modified()?, metadata.len(), entry.path()));
            }
        }
        let mut bytes: u64 = files.iter().map(|(_, size, _)| size).sum();
        files.sort();
        for (_, size, path) in files {
            if bytes <= self.max_bytes {
                break;
            }
            fs::remove_file(path)?;
            bytes -= size;
        }
        Ok(())
    }
}

fn is_hexadecimal(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
}

fn our_user() -> u32 {
    // SAFETY: it reads the process's user ID and cannot fail.
    unsafe { libc::geteuid() }
}

fn is_ours(metadata: &fs::Metadata) -> bool {
    metadata.uid() == our_user()
}

/// Magic, version of the content, checksum of what follows it, key.
pub(crate) const HEAD_BYTES: usize = 8 + 4 + 4 + 32;

/// Puts the head before an entry's content. `bytes`: room for the head, then the content.
///
/// A checksum finds damage; who could forge it could write the directory, and is ourselves.
pub(crate) fn seal(bytes: &mut [u8], magic: [u8; 8], version: u32, key: &Key) {
    bytes[..8].copy_from_slice(&magic);
    bytes[8..12].copy_from_slice(&version.to_le_bytes());
    bytes[16..HEAD_BYTES].copy_from_slice(&key.0);
    let checksum = checksum(&bytes[16..]);
    bytes[12..16].copy_from_slice(&checksum.to_le_bytes());
}

/// The content behind a head; `None`: it is not what was written.
pub(crate) fn unseal<'a>(bytes: &'a [u8], magic: [u8; 8], version: u32, key: &Key) -> Option<&'a [u8]> {
    let (head, content) = bytes.split_at_checked(HEAD_BYTES)?;
    let is_right = head[..8] == magic
        && head[8..12] == version.to_le_bytes()
        && head[12..16] == checksum(&bytes[16..]).to_le_bytes()
        && head[16..] == key.0;
    is_right.then_some(content)
}

fn checksum(bytes: &[u8]) -> u32 {
    let mut checksum = flate2::Crc::new();
    checksum.update(bytes);
    checksum.sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAX_BYTES: u64 = 1 << 20;
    const MAGIC: [u8; 8] = *b"testtest";

    fn open(path: &Path) -> DiskCache {
        fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
        DiskCache::open(path, MAX_BYTES).unwrap()
    }

    fn key(text: &str) -> Key {
        let mut digest = Sha256::new();
        digest.update(text);
        Key::of(digest)
    }

    #[test]
    fn what_was_stored_is_loaded_and_nobody_elses() {
        let directory = tempfile::tempdir().unwrap();
        let cache = open(directory.path());
        assert_eq!(cache.load(&key("a")), None);
        cache.store(&key("a"), b"content");
        assert_eq!(cache.load(&key("a")).as_deref(), Some(b"content".as_slice()));
        assert_eq!(cache.load(&key("b")), None);
        let path = directory.path().join(key("a").name());
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        // A link where a file should be.
        fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink("/dev/zero", &path).unwrap();
        assert_eq!(cache.load(&key("a")), None);
        cache.store(&key("a"), b"again");
        assert_eq!(cache.load(&key("a")).as_deref(), Some(b"again".as_slice()));
    }

    #[test]
    fn damage_is_no_content() {
        let mut sound = vec![0; HEAD_BYTES];
        sound.extend(b"content");
        seal(&mut sound, MAGIC, 3, &key("a"));
        assert_eq!(unseal(&sound, MAGIC, 3, &key("a")), Some(b"content".as_slice()));
        assert_eq!(unseal(&sound, MAGIC, 4, &key("a")), None);
        assert_eq!(unseal(&sound, *b"othermag", 3, &key("a")), None);
        assert_eq!(unseal(&sound, MAGIC, 3, &key("b")), None);
        for place in 0..sound.len() {
            let mut bytes = sound.clone();
            bytes[place] ^= 4;
            assert_eq!(unseal(&bytes, MAGIC, 3, &key("a")), None, "{place}");
            assert_eq!(unseal(&sound[..place], MAGIC, 3, &key("a")), None, "{place}");
        }
    }

    #[test]
    fn a_directory_that_others_could_write_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let inside = |name: &str| directory.path().join(name);
        let opens = |name: &str| DiskCache::open(&inside(name), MAX_BYTES).is_ok();
        assert!(opens("new/deep"));
        assert_eq!(fs::metadata(inside("new/deep")).unwrap().mode() & 0o777, 0o700);
        std::os::unix::fs::symlink(inside("new"), inside("link")).unwrap();
        assert!(!opens("link"));
        fs::write(inside("file"), "").unwrap();
        assert!(!opens("file"));
        fs::set_permissions(inside("new"), std::os::unix::fs::PermissionsExt::from_mode(0o770)).unwrap();
        assert!(!opens("new"));
        fs::set_permissions(inside("new"), std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
        assert!(opens("new"));
        // Only root can give a directory away.
        if std::os::unix::fs::chown(inside("new"), Some(65_534), None).is_ok() {
            assert!(!opens("new"));
        }
    }

    #[test]
    fn what_cannot_be_written_is_not_kept() {
        let directory = tempfile::tempdir().unwrap();
        let cache = open(directory.path());
        directory.close().unwrap();
        cache.store(&key("a"), b"content");
        assert_eq!(cache.load(&key("a")), None);
    }

    #[test]
    fn the_oldest_entries_make_room() {
        let directory = tempfile::tempdir().unwrap();
        let cache = DiskCache { max_bytes: 2500, ..open(directory.path()) };
        let name = |number: u32| directory.path().join(format!("{number:064}"));
        for number in 0..4 {
            fs::write(name(number), [0; 1000]).unwrap();
            let used = SystemTime::now() - std::time::Duration::from_secs(u64::from(100 * (number % 2) + number));
            File::open(name(number)).unwrap().set_modified(used).unwrap();
        }
        fs::write(directory.path().join("of somebody else"), [0; 5000]).unwrap();
        cache.sweep().unwrap();
        let left = (0..4).filter(|&number| name(number).exists());
        assert_eq!(left.collect::<Vec<_>>(), [0, 2]);
        assert!(directory.path().join("of somebody else").exists());
    }
}
