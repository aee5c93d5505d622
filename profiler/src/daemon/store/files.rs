//! The files of the history: a directory of windows, each a directory whose name appears when it is complete.
//!
//! `capture.json.gz`, a plain pprof profile an origin, and `window.json`, what is known of the window. New files only, mode
//! 0600, never through a link. A window is written beside the others under another name and renamed: it is whole or not there,
//! also when the daemon is killed. What it recorded is not forced to the disk, which would make every other program's
//! writes wait: a power failure may cost the windows of the last half minute, and a file that it left damaged is found by its
//! checksum. What others are replaced by is forced to the disk before they go.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use super::window::{WindowInfo, WindowKey};
use crate::output::OutputFile;

/// Name of what is known of a window.
pub(super) const INFO_FILE: &str = "window.json";
/// Name of the mark of a window that stays when the oldest make room.
const KEPT_FILE: &str = "kept";
/// The windows' directory in the state directory.
const DIRECTORY: &str = "windows";
/// How the name of a window begins that is not complete.
const NEW: &str = ".new-";
/// Largest file that is read.
const MAX_FILE_BYTES: u64 = 1 << 30;
/// What a file takes is a multiple of this on most file systems; so does a directory.
const BLOCK_BYTES: u64 = 4096;

/// A directory of windows.
#[derive(Debug)]
pub(super) struct Files {
    path: PathBuf,
    /// Held open and locked while the daemon runs.
    lock: Option<File>,
}

impl Files {
    /// Opens the history of a state directory, to read it.
    pub(super) fn open(state: &Path) -> io::Result<Self> {
        let path = state.join(DIRECTORY);
        fs::read_dir(&path)?;
        Ok(Self { path, lock: None })
    }

    /// Opens it to write it, makes it when it is missing, and takes away what was not complete.
    ///
    /// Errors: it belongs to somebody else, others may write it, or another daemon has it.
    pub(super) fn create(state: &Path) -> io::Result<Self> {
        let path = state.join(DIRECTORY);
        DirBuilder::new().recursive(true).mode(0o700).create(&path)?;
        let directory = OpenOptions::new().read(true).custom_flags(libc::O_DIRECTORY | libc::O_NOFOLLOW).open(&path)?;
        let metadata = directory.metadata()?;
        // SAFETY: it reads the process's user ID and cannot fail.
        let own = unsafe { libc::geteuid() };
        if metadata.uid() != own || metadata.mode() & 0o022 != 0 {
            return Err(io::Error::new(
                io::ErrorKind::PermissionDenied,
                "it must be our own, and nobody else may write it",
            ));
        }
        // SAFETY: the descriptor is open for as long as the call takes.
        if unsafe { libc::flock(directory.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) } != 0 {
            return Err(io::Error::new(io::ErrorKind::WouldBlock, "another daemon writes it"));
        }
        for entry in fs::read_dir(&path)?.flatten() {
            if entry.file_name().to_str().is_some_and(|name| name.starts_with(NEW)) {
                fs::remove_dir_all(entry.path())?;
            }
        }
        Ok(Self { path, lock: Some(directory) })
    }

    /// Where the windows are.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Where a window is.
    pub(super) fn window(&self, key: &WindowKey) -> PathBuf {
        self.path.join(key.name())
    }

    /// The windows that there are, ascending.
    pub(super) fn keys(&self) -> io::Result<Vec<WindowKey>> {
        let entries = fs::read_dir(&self.path)?.flatten();
        let mut keys: Vec<WindowKey> =
            entries.filter_map(|entry| WindowKey::of_name(entry.file_name().to_str()?)).collect();
        keys.sort_unstable();
        Ok(keys)
    }

    /// Writes a window. `sync`: to the disk for good.
    pub(super) fn write(&self, info: &WindowInfo, files: &[OutputFile], sync: bool) -> io::Result<()> {
        let new = self.path.join(format!("{NEW}{}", info.key.name()));
        let written = self.write_new(&new, info, files, sync);
        if written.is_err() {
            // What is left of it would take the room that is missing.
            let _ = fs::remove_dir_all(&new);
        }
        written
    }

    fn write_new(&self, new: &Path, info: &WindowInfo, files: &[OutputFile], sync: bool) -> io::Result<()> {
        DirBuilder::new().mode(0o700).create(new)?;
        let info_bytes = serde_json::to_vec(info)?;
        let all = files.iter().map(|file| (file.name.as_str(), file.bytes.as_slice()));
        for (name, bytes) in all.chain([(INFO_FILE, info_bytes.as_slice())]) {
            let mut file = new_file(&new.join(name))?;
            file.write_all(bytes)?;
            if sync {
                file.sync_all()?;
            }
        }
        if sync {
            File::open(new)?.sync_all()?;
        }
        fs::rename(new, self.window(&info.key))?;
        match &self.lock {
            Some(directory) if sync => directory.sync_all(),
            _ => Ok(()),
        }
    }

    /// Removes a window. It is gone for readers at once, in whatever order its files go.
    pub(super) fn remove(&self, key: &WindowKey) -> io::Result<()> {
        let old = self.path.join(format!("{NEW}{}-old", key.name()));
        fs::rename(self.window(key), &old)?;
        fs::remove_dir_all(old)
    }

    /// Marks a window as one that stays, or takes the mark away.
    pub(super) fn keep(&self, key: &WindowKey, kept: bool) -> io::Result<()> {
        let mark = self.window(key).join(KEPT_FILE);
        match (kept, mark.exists()) {
            (true, false) => new_file(&mark).map(drop),
            (false, true) => fs::remove_file(mark),
            _ => Ok(()),
        }
    }

    /// What is known of a window, from its directory.
    pub(super) fn info(&self, key: &WindowKey) -> io::Result<WindowInfo> {
        let mut info: WindowInfo = serde_json::from_slice(&self.read(key, INFO_FILE)?)?;
        info.key = *key;
        info.kept = self.is_kept(key);
        Ok(info)
    }

    /// Whether a window stays.
    pub(super) fn is_kept(&self, key: &WindowKey) -> bool {
        self.window(key).join(KEPT_FILE).exists()
    }

    /// Reads a file of a window.
    pub(super) fn read(&self, key: &WindowKey, name: &str) -> io::Result<Vec<u8>> {
        let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
        let file = OpenOptions::new().read(true).custom_flags(flags).open(self.window(key).join(name))?;
        let mut bytes = Vec::new();
        let read = file.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes)?;
        if read as u64 > MAX_FILE_BYTES {
            return Err(io::Error::other("larger than 1 GiB, which no file of a window is"));
        }
        Ok(bytes)
    }
}

/// Bytes that files take as a window, directory and `window.json` included.
pub(super) fn size(files: &[OutputFile]) -> u64 {
    let blocks = |bytes: u64| bytes.div_ceil(BLOCK_BYTES) * BLOCK_BYTES;
    // The directory, `window.json`, and the mark of a window that stays.
    files.iter().map(|file| blocks(file.bytes.len() as u64)).sum::<u64>() + 3 * BLOCK_BYTES
}

fn new_file(path: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).create_new(true).custom_flags(libc::O_NOFOLLOW).mode(0o600).open(path)
}
