//! The file in which a process that makes code at run time says what it made: opened here, read by `symbolize`.

use std::fs::{self, File};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::sync::Arc;

/// A process that makes code at run time.
#[derive(Clone, Debug, Default)]
pub struct JitProcess {
    /// The file name of its executable, by which its runtime is known; empty when it could not be read.
    pub executable: String,
    /// What it says it made, where it does.
    pub perf_map: Option<Arc<File>>,
    /// The same with lines, where it dumps what it made.
    pub jit_dump: Option<Arc<File>>,
}

/// Opens `/tmp/perf-PID.map` as the process sees it.
///
/// Only a regular file, no link, that belongs to the process's user or to root: others could put names there.
/// Source: tools/perf/Documentation/jit-interface.txt.
#[must_use]
pub fn open_perf_map(pid: u32) -> Option<File> {
    let owner = fs::metadata(format!("/proc/{pid}")).ok()?.uid();
    let inner = inner_pid(pid)?;
    let file = File::options()
        .read(true)
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_NOCTTY)
        .open(format!("/proc/{pid}/root/tmp/perf-{inner}.map"))
        .ok()?;
    let metadata = file.metadata().ok()?;
    (metadata.is_file() && (metadata.uid() == owner || metadata.uid() == 0)).then_some(file)
}

/// The pid of a process as it knows itself.
pub(super) fn inner_pid(pid: u32) -> Option<u32> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("NSpid:"))?;
    line.split_ascii_whitespace().next_back()?.parse().ok()
}
