//! The index of the history: what is known of each window, in one file, so that a start need not read thousands.
//!
//! Nothing depends on it: whatever it lacks is read from the windows, and a file that cannot be used is made anew. So it is
//! written to disk only now and then.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use redb::backends::FileBackend;
use redb::{Database, Durability, ReadableDatabase as _, ReadableTable as _, TableDefinition};

use super::window::{WindowInfo, WindowKey};

/// Windows by the name of their directory, as JSON.
const WINDOWS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("windows");
/// Name of the file.
pub(super) const FILE: &str = "index.redb";
/// Memory for pages: it is read once, at the start.
const CACHE_BYTES: usize = 1 << 20;
/// Changes between two times that it is written to disk for good: 10 minutes of windows of 10 s.
const CHANGES_PER_SYNC: u32 = 60;

/// The index; without a database when that cannot be had.
pub(super) struct Index {
    path: PathBuf,
    database: Option<Database>,
    changes: u32,
    /// Times that the file could not be used.
    pub(super) failures: u64,
}

impl Index {
    /// Opens the index in a directory; one that is damaged is made anew.
    pub(super) fn open(directory: &Path) -> Self {
        let path = directory.join(FILE);
        let mut index = Self { path, database: None, changes: 0, failures: 0 };
        index.database = index.open_file().or_else(|| {
            index.failures += 1;
            std::fs::remove_file(&index.path).ok()?;
            index.open_file()
        });
        index
    }

    fn open_file(&self) -> Option<Database> {
        let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
        let mut options = OpenOptions::new();
        let file = options.read(true).write(true).create(true).truncate(false).mode(0o600).custom_flags(flags);
        let file = file.open(&self.path).ok()?;
        if !file.metadata().ok()?.is_file() {
            return None;
        }
        let backend = FileBackend::new(file).ok()?;
        let database = redb::Builder::new().set_cache_size(CACHE_BYTES).create_with_backend(backend).ok()?;
        // Read once: what cannot be read is no index.
        read(&database)?;
        Some(database)
    }

    /// What is known, by key.
    pub(super) fn windows(&self) -> BTreeMap<WindowKey, WindowInfo> {
        self.database.as_ref().and_then(read).unwrap_or_default()
    }

    /// Notes windows that came and windows that went.
    pub(super) fn change(&mut self, came: &[&WindowInfo], gone: &[WindowKey]) {
        let Some(database) = &self.database else { return };
        self.changes += 1;
        let sync = self.changes.is_multiple_of(CHANGES_PER_SYNC);
        if write(database, came, gone, sync).is_err() {
            // A full disk, most likely: without it until the next start.
            self.failures += 1;
            self.database = None;
        }
    }

    /// Bytes that the file takes.
    pub(super) fn bytes(&self) -> u64 {
        std::fs::metadata(&self.path).map_or(0, |metadata| metadata.len())
    }
}

fn read(database: &Database) -> Option<BTreeMap<WindowKey, WindowInfo>> {
    let transaction = database.begin_read().ok()?;
    let table = match transaction.open_table(WINDOWS) {
        Ok(table) => table,
        Err(redb::TableError::TableDoesNotExist(_)) => return Some(BTreeMap::new()),
        Err(_) => return None,
    };
    let mut windows = BTreeMap::new();
    for entry in table.iter().ok()? {
        let (_, value) = entry.ok()?;
        // One of another version is read from the window.
        if let Ok(info) = serde_json::from_slice::<WindowInfo>(value.value()) {
            windows.insert(info.key, info);
        }
    }
    Some(windows)
}

fn write(database: &Database, came: &[&WindowInfo], gone: &[WindowKey], sync: bool) -> Result<(), redb::Error> {
    let mut transaction = database.begin_write()?;
    transaction.set_durability(if sync { Durability::Immediate } else { Durability::None })?;
    {
        let mut table = transaction.open_table(WINDOWS)?;
        for key in gone {
            table.remove(key.name().as_str())?;
        }
        for info in came {
            let value = serde_json::to_vec(info).unwrap_or_default();
            table.insert(info.key.name().as_str(), value.as_slice())?;
        }
    }
    transaction.commit()?;
    Ok(())
}
