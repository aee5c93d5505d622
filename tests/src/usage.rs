//! What a process used, for the benchmarks; and the peers that they are compared with.

use std::fs::File;
use std::io::{self, BufReader, BufWriter};
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{Child, ExitStatus};

use inferno::collapse::Collapse as _;
use inferno::collapse::perf::{Folder, Options};

use crate::capture::float;

/// What a process used, with the children it waited for.
#[derive(Clone, Copy, Debug)]
pub struct Usage {
    /// User and kernel time, s.
    pub cpu_s: f64,
    /// Most resident memory, MB.
    pub peak_mb: f64,
}

impl Usage {
    /// Waits for a child. One that we interrupted may end by that signal, as perf does.
    ///
    /// # Errors
    ///
    /// When it fails, or cannot be waited for.
    pub fn wait(child: &Child) -> io::Result<Self> {
        let mut status = 0;
        // SAFETY: all zeros is a value of this structure of integers.
        let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
        // SAFETY: both pointers are to live variables.
        let waited = unsafe { libc::wait4(child.id().cast_signed(), &raw mut status, 0, &raw mut usage) };
        if waited != child.id().cast_signed() {
            return Err(io::Error::last_os_error());
        }
        let status = ExitStatus::from_raw(status);
        if !status.success() && status.signal() != Some(libc::SIGINT) {
            return Err(io::Error::other(format!("a tool failed: {status}")));
        }
        let number = |number: i64| float(number.unsigned_abs());
        let seconds = |time: libc::timeval| number(time.tv_sec) + number(time.tv_usec) / 1e6;
        Ok(Self {
            cpu_s: seconds(usage.ru_utime) + seconds(usage.ru_stime),
            peak_mb: number(usage.ru_maxrss) * 1024.0 / 1e6,
        })
    }
}

/// What `inferno-collapse-perf | inferno-flamegraph` do: from standard input to `svg`.
///
/// # Errors
///
/// When the input is not what `perf script` prints, or the file cannot be written.
pub fn collapse_perf(svg: &Path) -> io::Result<()> {
    let mut folded = Vec::new();
    Folder::from(Options::default()).collapse(BufReader::new(io::stdin().lock()), &mut folded)?;
    let text = String::from_utf8(folded).map_err(io::Error::other)?;
    let mut options = inferno::flamegraph::Options::default();
    inferno::flamegraph::from_lines(&mut options, text.lines(), BufWriter::new(File::create(svg)?))
}
