//! Captures read back from their directories.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, anyhow, bail};

use crate::output::capture;
use crate::profile::Capture;

/// Largest file that is read.
const MAX_FILE_BYTES: u64 = 1 << 30;

/// Reads the capture in a directory.
pub(super) fn capture(directory: &Path) -> Result<Capture> {
    let read = |name: &str| bounded(&directory.join(name));
    let found = read(capture::INDEX_FILE).or_else(|error| match error.kind() {
        // A window of a history.
        io::ErrorKind::NotFound => read(capture::COMPRESSED_INDEX_FILE).map_err(|_| error),
        _ => Err(error),
    });
    let index = found.map_err(|error| {
        anyhow!(
            "cannot read {} in {}: {error}; name a directory that `record` wrote",
            capture::INDEX_FILE,
            directory.display()
        )
    })?;
    capture::read(&index, read).with_context(|| format!("cannot use {}", directory.display()))
}

/// Most captures that a directory may have.
const MAX_CAPTURES: usize = 1000;

/// Reads the capture in a directory, or those in the directories in it, in the order of their names.
pub(super) fn captures(directory: &Path) -> Result<Vec<Capture>> {
    let paths = capture_paths(directory)?;
    paths.iter().map(|path| capture(path)).collect()
}

/// Where these captures are.
pub(super) fn capture_paths(directory: &Path) -> Result<Vec<PathBuf>> {
    let is_capture = |path: &Path| {
        [capture::INDEX_FILE, capture::COMPRESSED_INDEX_FILE].into_iter().any(|name| path.join(name).exists())
    };
    if is_capture(directory) {
        return Ok(vec![directory.to_owned()]);
    }
    let entries = std::fs::read_dir(directory)
        .with_context(|| format!("cannot read {}: name a directory that `record` wrote", directory.display()))?;
    let mut paths: Vec<PathBuf> =
        entries.filter_map(|entry| Some(entry.ok()?.path())).filter(|path| is_capture(path)).collect();
    paths.sort();
    if paths.is_empty() || paths.len() > MAX_CAPTURES {
        bail!(
            "{} has no {} and {} directories with one: name a directory that `record` wrote, or one with up to \
             {MAX_CAPTURES} of them",
            directory.display(),
            capture::INDEX_FILE,
            paths.len()
        );
    }
    Ok(paths)
}

/// Reads a file that is no larger than any that is honest.
pub(super) fn bounded(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let read = File::open(path)?.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes)?;
    if read as u64 > MAX_FILE_BYTES {
        return Err(io::Error::other("larger than 1 GiB, which no capture is"));
    }
    Ok(bytes)
}
