//! The history, to read it, while a daemon may write it.

use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;

use super::files::Files;
use super::window::{WindowInfo, WindowKey};
use crate::output::capture::{self, CaptureError};
use crate::profile::{Capture, MAX_SLICES, Merge, Selection};

/// A range of time: from a moment to another, which is not in it. Ns since the Unix epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// First moment.
    pub from_ns: u64,
    /// One past the last.
    pub to_ns: u64,
}

impl Range {
    /// Whether something of a window is in it.
    #[must_use]
    pub const fn overlaps(&self, key: &WindowKey) -> bool {
        key.started_at_ns < self.to_ns && key.end_ns() > self.from_ns
    }
}

/// Why a range cannot be read.
#[derive(Debug, Error)]
pub enum HistoryError {
    /// There is no history.
    #[error("cannot read the history in {0}: {1}")]
    Directory(PathBuf, io::Error),
    /// Nothing was recorded then.
    #[error("there is no window in that time: {0}")]
    Nothing(String),
    /// There is more than may be read.
    #[error("there are {bytes} bytes of windows in that time, and at most {most} are read: choose a shorter range")]
    TooMuch {
        /// Bytes on disk.
        bytes: u64,
        /// How many may be read.
        most: u64,
    },
    /// A window cannot be read.
    #[error("reading {0}: {1}")]
    Window(String, WindowError),
    /// Windows come and go faster than they are read.
    #[error("the windows of that time were replaced again and again while they were read: try again")]
    Changing,
}

/// Why a window cannot be read.
#[derive(Debug, Error)]
pub enum WindowError {
    /// A file could not be had.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// The files are no capture.
    #[error("{0}")]
    Capture(#[from] CaptureError),
}

/// Times that a range is read anew, since windows were merged or removed meanwhile.
const MAX_ATTEMPTS: usize = 4;

/// The windows of a state directory.
#[derive(Debug)]
pub struct History {
    files: Files,
}

impl History {
    /// Opens the history in a state directory.
    ///
    /// # Errors
    ///
    /// When there is none.
    pub fn open(state: &Path) -> Result<Self, HistoryError> {
        let files = Files::open(state).map_err(|error| HistoryError::Directory(state.to_owned(), error))?;
        Ok(Self { files })
    }

    /// The windows that there are, ascending by start; those that a longer one has are left out.
    ///
    /// # Errors
    ///
    /// When the directory cannot be read.
    pub fn keys(&self) -> Result<Vec<WindowKey>, HistoryError> {
        let failed = |error| HistoryError::Directory(self.files.path().to_owned(), error);
        let keys = self.files.keys().map_err(failed)?;
        // Ascending by start: what covers a window starts before it, or with it and is longer.
        let mut longest: Vec<WindowKey> = Vec::new();
        let mut found: Vec<WindowKey> = Vec::with_capacity(keys.len());
        for key in &keys {
            longest.retain(|other| other.end_ns() > key.started_at_ns);
            let starts_alike = keys[keys.partition_point(|other| other.started_at_ns < key.started_at_ns)..]
                .iter()
                .take_while(|other| other.started_at_ns == key.started_at_ns);
            if !longest.iter().chain(starts_alike).any(|other| other.covers(key)) {
                found.push(*key);
            }
            longest.push(*key);
        }
        Ok(found)
    }

    /// What is known of the windows of a time, ascending by start. One that has gone meanwhile is left out.
    ///
    /// # Errors
    ///
    /// When the directory cannot be read.
    pub fn windows(&self, range: Range) -> Result<Vec<WindowInfo>, HistoryError> {
        let keys = self.keys()?.into_iter().filter(|key| range.overlaps(key));
        Ok(keys.filter_map(|key| self.files.info(&key).ok()).collect())
    }

    /// What the windows of a time came to, of the threads that are meant. Whole windows: the ends of the range are those of
    /// the first and of the last. `most_bytes`: of the windows on disk.
    ///
    /// # Errors
    ///
    /// When there is none, there are too many, or one cannot be read.
    pub fn read(&self, range: Range, selection: &Selection, most_bytes: u64) -> Result<Capture, HistoryError> {
        for _ in 0..MAX_ATTEMPTS {
            let windows = self.windows(range)?;
            let bytes = windows.iter().map(|info| info.bytes).sum();
            if bytes > most_bytes {
                return Err(HistoryError::TooMuch { bytes, most: most_bytes });
            }
            let mut sum = Merge::default();
            let mut is_gone = false;
            for WindowInfo { key, .. } in &windows {
                match read_window(&self.files, key) {
                    Ok(capture) => sum.add(capture.selected(selection)),
                    Err(_) if !self.files.window(key).exists() => {
                        is_gone = true;
                        break;
                    }
                    Err(error) => return Err(HistoryError::Window(key.name(), error)),
                }
            }
            if !is_gone {
                return sum.finish(MAX_SLICES).ok_or_else(|| HistoryError::Nothing(self.extent()));
            }
        }
        Err(HistoryError::Changing)
    }

    /// The time that there is something of, for a person.
    fn extent(&self) -> String {
        let keys = self.keys().unwrap_or_default();
        let time = |ns: u64| {
            jiff::Timestamp::from_nanosecond(i128::from(ns))
                .map_or_else(|_| ns.to_string(), |time| format!("{time:.0}"))
        };
        match (keys.first(), keys.iter().map(WindowKey::end_ns).max()) {
            (Some(first), Some(end)) => format!("the history goes from {} to {}", time(first.started_at_ns), time(end)),
            _ => "the history is empty".to_owned(),
        }
    }

    /// Where a window is: a directory as `record` writes it.
    #[must_use]
    pub fn path(&self, key: &WindowKey) -> PathBuf {
        self.files.window(key)
    }
}

/// Reads a window.
pub(super) fn read_window(files: &Files, key: &WindowKey) -> Result<Capture, WindowError> {
    let index = files.read(key, capture::COMPRESSED_INDEX_FILE)?;
    Ok(capture::read(&index, |name| files.read(key, name))?)
}
