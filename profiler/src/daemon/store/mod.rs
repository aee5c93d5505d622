//! The history on disk: windows by time, within a limit, older ones longer.
//!
//! [`Store`] is what the daemon writes by, alone; [`History`] is what anybody reads by, at the same time. A window is a
//! capture like any other, in a directory of its own (see `files`), so that other programs read its profiles too.
//! What cannot be written is counted and forgotten: the history never keeps the daemon from recording.

mod files;
mod history;
mod index;
mod levels;
mod window;

use std::collections::BTreeMap;
use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher as _, Hasher as _};
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

pub use history::{History, HistoryError, Range};
pub use levels::{LEVELS, Level};
pub use window::{OriginInfo, ProcessInfo, WindowInfo, WindowKey};

use crate::output::capture;
use crate::profile::{Capture, Merge};
use files::{Files, size};
use index::Index;

/// How much of the history is kept, and in which form.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreConfig {
    /// Most bytes on disk.
    pub max_bytes: u64,
    /// When windows become longer.
    pub levels: Vec<Level>,
}

impl Default for StoreConfig {
    fn default() -> Self {
        Self { max_bytes: 1 << 30, levels: LEVELS.to_vec() }
    }
}

/// What the history has done since it was opened, for metrics and warnings.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StoreState {
    /// Windows that there are.
    pub windows: u64,
    /// Bytes that they take, the index included.
    pub bytes: u64,
    /// Windows that were written.
    pub written: u64,
    /// Windows that were lost, since they could not be written.
    pub lost: u64,
    /// Windows that were removed, to make room.
    pub removed: u64,
    /// Windows that were made of others.
    pub merged: u64,
    /// Windows that could not be read.
    pub unreadable: u64,
    /// Times that the index could not be used.
    pub index_failures: u64,
    /// Whether the last window was lost.
    pub losing: bool,
    /// What failed last; empty when nothing has.
    pub last_error: String,
}

/// Slices of a window that is made of others: every 6 s of an hour.
const MERGED_SLICES: usize = 600;
/// Times that the oldest window makes room for one that cannot be written, on a disk that others have filled.
const MAX_RETRIES: usize = 8;

/// The history, to write it.
pub struct Store {
    config: StoreConfig,
    files: Files,
    index: Index,
    windows: BTreeMap<WindowKey, WindowInfo>,
    run: u32,
    state: StoreState,
    /// What others see of `state`.
    shown: Arc<Mutex<StoreState>>,
}

impl Store {
    /// Opens the history in a state directory, or begins it.
    ///
    /// # Errors
    ///
    /// When the directory cannot be made or read, is not ours alone, or another daemon has it.
    pub fn open(directory: &Path, config: StoreConfig) -> io::Result<Self> {
        let files = Files::create(directory)?;
        let index = Index::open(directory);
        // By chance, as the keys of hash maps are.
        let run = RandomState::new().build_hasher().finish().to_le_bytes();
        let mut store = Self {
            config,
            files,
            index,
            windows: BTreeMap::new(),
            run: u32::from_le_bytes([run[0], run[1], run[2], run[3]]),
            state: StoreState::default(),
            shown: Arc::default(),
        };
        store.reconcile()?;
        store.make_room(0);
        store.show();
        Ok(store)
    }

    /// Finds out what there is: the directory decides, the index saves reading.
    fn reconcile(&mut self) -> io::Result<()> {
        let mut known = self.index.windows();
        let keys = self.files.keys()?;
        let mut came = Vec::new();
        for key in &keys {
            // Killed after windows were merged and before the parts were removed.
            if keys.iter().any(|other| other.covers(key)) {
                self.files.remove(key)?;
                continue;
            }
            if let Some(info) = known.remove(key) {
                self.windows.insert(*key, WindowInfo { kept: self.files.is_kept(key), ..info });
            } else {
                match self.files.info(key) {
                    Ok(info) => {
                        came.push(info.clone());
                        self.windows.insert(*key, info);
                    }
                    Err(_) => {
                        // A power failure has left it without what makes it a window.
                        self.state.unreadable += 1;
                        self.files.remove(key)?;
                    }
                }
            }
        }
        let gone: Vec<WindowKey> = known.into_keys().collect();
        if !came.is_empty() || !gone.is_empty() {
            self.index.change(&came.iter().collect::<Vec<_>>(), &gone);
        }
        Ok(())
    }

    /// What it has done, as others may look at it at any time.
    #[must_use]
    pub fn shown(&self) -> Arc<Mutex<StoreState>> {
        Arc::clone(&self.shown)
    }

    /// What is known of the windows, by key.
    #[must_use]
    pub const fn windows(&self) -> &BTreeMap<WindowKey, WindowInfo> {
        &self.windows
    }

    /// Writes a window, when the oldest ones have made room for it, and makes longer windows of old ones, one at a time.
    ///
    /// # Errors
    ///
    /// When it could not be written: it is lost then, and counted.
    pub fn put(&mut self, capture: &Capture) -> io::Result<WindowKey> {
        let put = self.write(capture, false);
        match &put {
            Ok(_) => {
                self.state.written += 1;
                self.state.losing = false;
                self.merge_one();
            }
            Err(error) => {
                self.state.lost += 1;
                self.state.losing = true;
                self.state.last_error = error.to_string();
            }
        }
        self.show();
        put
    }

    fn write(&mut self, capture: &Capture, sync: bool) -> io::Result<WindowKey> {
        let mut info = WindowInfo::new(capture, self.run);
        if sync {
            // Made of windows of a run, which may be an earlier one.
            info.key.run = self.run_of(&info.key);
        }
        let files = capture::write_compressed(capture)?;
        info.bytes = size(&files);
        if info.bytes.saturating_add(self.index.bytes()) > self.config.max_bytes {
            return Err(io::Error::new(
                io::ErrorKind::StorageFull,
                format!("a window of {} bytes is more than the history may have: raise [store] max_mib", info.bytes),
            ));
        }
        self.make_room(info.bytes);
        let mut written = self.files.write(&info, &files, sync);
        for _ in 0..MAX_RETRIES {
            let is_full =
                |error: &io::Error| matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded);
            if !written.as_ref().is_err_and(is_full) || !self.remove_oldest() {
                break;
            }
            written = self.files.write(&info, &files, sync);
        }
        written?;
        let key = info.key;
        self.index.change(&[&info], &[]);
        self.windows.insert(key, info);
        Ok(key)
    }

    /// The run of the window that starts when another does.
    fn run_of(&self, key: &WindowKey) -> u32 {
        let from = WindowKey { duration_ns: 0, run: 0, ..*key };
        let starts = self.windows.range(from..).take_while(|(found, _)| found.started_at_ns == key.started_at_ns);
        starts.map(|(found, _)| found.run).next().unwrap_or(self.run)
    }

    fn bytes(&self) -> u64 {
        self.windows.values().map(|info| info.bytes).sum::<u64>() + self.index.bytes()
    }

    /// Removes the oldest windows until so many bytes more are within the limit.
    fn make_room(&mut self, bytes: u64) {
        while self.bytes().saturating_add(bytes) > self.config.max_bytes && self.remove_oldest() {}
    }

    /// Removes the oldest window that need not stay; where those that must take more than half of the room, the oldest of all.
    fn remove_oldest(&mut self) -> bool {
        let kept: u64 = self.windows.values().filter(|info| info.kept).map(|info| info.bytes).sum();
        let free = self.windows.values().find(|info| !info.kept || kept > self.config.max_bytes / 2);
        let Some(key) = free.or_else(|| self.windows.values().next()).map(|info| info.key) else { return false };
        self.state.removed += 1;
        self.forget(&[key]);
        true
    }

    /// Removes windows; one that cannot be removed is no longer ours.
    fn forget(&mut self, keys: &[WindowKey]) {
        for key in keys {
            self.windows.remove(key);
            if let Err(error) = self.files.remove(key) {
                self.state.last_error = format!("cannot remove {}: {error}", key.name());
            }
        }
        self.index.change(&[], keys);
    }

    /// Makes one window of several that are old enough.
    fn merge_one(&mut self) {
        let windows: Vec<&WindowInfo> = self.windows.values().collect();
        let Some(group) = levels::next_merge(&windows, &self.config.levels) else { return };
        let mut sum = Merge::default();
        for key in &group {
            match history::read_window(&self.files, key) {
                Ok(capture) => sum.add(capture),
                Err(_) => {
                    // Damaged: without it the others are no longer one behind the other, and stay as they are.
                    self.state.unreadable += 1;
                    self.forget(&[*key]);
                    return;
                }
            }
        }
        let Some(capture) = sum.finish(MERGED_SLICES) else { return };
        // The parts go when the whole is on the disk for good, whatever happens meanwhile.
        match self.write(&capture, true) {
            Ok(_) => {
                self.state.merged += 1;
                let parts: Vec<WindowKey> = group.into_iter().filter(|key| self.windows.contains_key(key)).collect();
                self.forget(&parts);
            }
            Err(error) => self.state.last_error = error.to_string(),
        }
    }

    /// Marks the windows of a time as ones that stay, as long as others can make room. Returns how many there are.
    ///
    /// # Errors
    ///
    /// When a mark cannot be written.
    pub fn keep(&mut self, range: Range) -> io::Result<usize> {
        let meant = self.windows.values_mut().filter(|info| range.overlaps(&info.key) && !info.kept);
        let mut kept = Vec::new();
        for info in meant {
            self.files.keep(&info.key, true)?;
            info.kept = true;
            kept.push(info.clone());
        }
        self.index.change(&kept.iter().collect::<Vec<_>>(), &[]);
        Ok(kept.len())
    }

    fn show(&mut self) {
        self.state.windows = self.windows.len() as u64;
        self.state.bytes = self.bytes();
        self.state.index_failures = self.index.failures;
        self.shown.lock().unwrap_or_else(PoisonError::into_inner).clone_from(&self.state);
    }
}
