//! The file in which a process writes the code that it makes at run time: `jit-PID.dump`, which it maps executable to be
//! found. Opened here, read by `symbolize`.
//!
//! Source: tools/perf/Documentation/jitdump-specification.txt.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;

use super::mapping::{Backing, Mapping};
use super::object::open_backing;
use super::perf_map::inner_pid;

/// Opens the dump behind a mapping; `None` when it is none, or not of the process that maps it.
///
/// Only what belongs to the process's user or to root: others could put names there.
#[must_use]
pub fn open_jit_dump(pid: u32, mapping: &Mapping) -> Option<File> {
    let Backing::File(key, path) = &mapping.backing else { return None };
    if pid_of(path)? != inner_pid(pid)? {
        return None;
    }
    let owner = fs::metadata(format!("/proc/{pid}")).ok()?.uid();
    let file = open_backing(pid, mapping.start, mapping.end, *key, path).ok()?;
    let metadata = file.metadata().ok()?;
    (metadata.uid() == owner || metadata.uid() == 0).then_some(file)
}

/// The pid that a dump of this path is of; `None` when it is another file's.
pub(super) fn pid_of(path: &str) -> Option<u32> {
    let name = path.rsplit('/').next()?;
    let name = name.strip_suffix(" (deleted)").unwrap_or(name);
    name.strip_prefix("jit-")?.strip_suffix(".dump")?.parse().ok()
}
