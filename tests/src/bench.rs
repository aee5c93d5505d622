//! What benchmarks share: their command line, what a process used, and the peers that they are compared with.

use std::fmt::Display;
use std::fs::File;
use std::io::{self, BufReader, BufWriter};
use std::ops::RangeInclusive;
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{Child, Command, ExitCode, ExitStatus, Stdio};

use inferno::collapse::Collapse as _;
use inferno::collapse::perf::{Folder, Options};

use crate::capture::float;

/// The argument that makes a benchmark collapse and draw what `perf script` prints.
const COLLAPSE: &str = "collapse";

/// A number that a benchmark takes as `--NAME N`: its name, what it is otherwise, and what it may be.
pub type BenchOption = (&'static str, u32, RangeInclusive<u32>);

/// The whole of a benchmark's `main`: `run` gets the options' values in their order.
///
/// Exit code: 0; 1 when `run` says that something is not as it should be; 2, and why, when it could not measure.
#[expect(clippy::print_stdout, reason = "a benchmark prints what it found")]
pub fn run_bench<const N: usize, E: Display>(
    options: [BenchOption; N],
    run: impl FnOnce([u32; N]) -> Result<bool, E>,
) -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let result = match arguments.as_slice() {
        [collapse, svg] if collapse == COLLAPSE => {
            collapse_perf(Path::new(svg)).map(|()| true).map_err(|error| error.to_string())
        }
        _ => values(options, &arguments).and_then(|values| run(values).map_err(|error| format!("{error:#}"))),
    };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => {
            println!("error: {error}");
            ExitCode::from(2)
        }
    }
}

fn values<const N: usize>(options: [BenchOption; N], arguments: &[String]) -> Result<[u32; N], String> {
    let mut values = options.clone().map(|(_, value, _)| value);
    let mut arguments = arguments.iter();
    while let Some(argument) = arguments.next() {
        // Cargo says this to every benchmark.
        if argument == "--bench" {
            continue;
        }
        let known = options.iter().position(|(name, ..)| argument.strip_prefix("--") == Some(name));
        let number = known.ok_or_else(|| {
            let names: Vec<String> = options.iter().map(|(name, ..)| format!("--{name} N")).collect();
            format!("unknown argument {argument:?}: {}", names.join(", "))
        })?;
        let bounds = &options[number].2;
        let value = arguments.next().and_then(|value| value.parse().ok()).filter(|value| bounds.contains(value));
        values[number] = value.ok_or_else(|| format!("{argument} is {} to {}", bounds.start(), bounds.end()))?;
    }
    Ok(values)
}

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

/// `perf script --no-inline` of a recording into `inferno-collapse-perf | inferno-flamegraph`, as two processes; what
/// each used. Inlined calls would take perf hours.
///
/// # Errors
///
/// When one of them fails.
pub fn draw_perf(perf: &Path, data: &Path, svg: &Path) -> io::Result<[Usage; 2]> {
    let mut script = Command::new(perf);
    script.args(["script", "--no-inline", "-i"]).arg(data).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut script = script.spawn()?;
    let mut collapse = Command::new(std::env::current_exe()?);
    collapse.arg(COLLAPSE).arg(svg).stdin(script.stdout.take().ok_or(io::ErrorKind::BrokenPipe)?);
    let collapsed = Usage::wait(&collapse.spawn()?)?;
    Ok([Usage::wait(&script)?, collapsed])
}

/// Samples of a recording of perf's.
///
/// # Errors
///
/// When perf cannot be started.
pub fn count_perf_samples(perf: &Path, data: &Path) -> io::Result<u64> {
    // A line for each.
    let list = Command::new(perf).args(["script", "-F", "tid", "-i"]).arg(data).stderr(Stdio::null()).output()?;
    Ok(list.stdout.split(|&byte| byte == b'\n').filter(|line| !line.is_empty()).count() as u64)
}

/// What `inferno-collapse-perf | inferno-flamegraph` do: from standard input to `svg`.
fn collapse_perf(svg: &Path) -> io::Result<()> {
    let mut folded = Vec::new();
    Folder::from(Options::default()).collapse(BufReader::new(io::stdin().lock()), &mut folded)?;
    let text = String::from_utf8(folded).map_err(io::Error::other)?;
    let mut options = inferno::flamegraph::Options::default();
    inferno::flamegraph::from_lines(&mut options, text.lines(), BufWriter::new(File::create(svg)?))
}
