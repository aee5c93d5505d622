//! The runs themselves: one at a time, timed, until there are enough; in the process of `bench` or in one of its own.

use std::ffi::OsString;
use std::fmt::Write as _;
use std::fs::OpenOptions;
use std::io::{self, Write as _};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use clap::Args as ClapArgs;

use crate::analyze::precision;
use crate::cli::args::parse_duration;
use crate::cli::{CommandResult, load};
use crate::profile::Run;

/// The command that makes runs for `bench`, which nobody else gives.
const COMMAND: &str = "make-runs";

/// How a command is repeated.
#[derive(Clone, Debug, ClapArgs)]
pub(super) struct RepeatArgs {
    /// Stop when the mean is known to so much of it on either side, 19 times in 20
    #[arg(long, value_name = "PERCENT", default_value_t = 2.0, value_parser = parse_interval)]
    interval: f64,
    /// Runs before that counts
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u64).range(2..=100_000))]
    min_runs: u64,
    /// Runs at most
    #[arg(long, value_name = "N", default_value_t = 10_000, value_parser = clap::value_parser!(u64).range(2..=100_000))]
    max_runs: u64,
    /// Start no run after so long, but for the second: 30s, 5m
    #[arg(short, long, value_name = "DURATION", default_value = "60s", value_parser = parse_duration)]
    duration: Duration,
    /// Count runs that fail, too
    #[arg(long)]
    ignore_failure: bool,
    /// Show what the command prints, which is thrown away otherwise
    #[arg(long)]
    pub(super) show_output: bool,
    /// The command to run
    #[arg(last = true, required = true, value_name = "COMMAND")]
    pub(super) command: Vec<OsString>,
}

/// Arguments of the process that makes runs for `bench`.
#[derive(Debug, ClapArgs)]
pub(in crate::cli) struct RunsArgs {
    /// File to add the times to, which is there
    #[arg(long)]
    times: PathBuf,
    #[command(flatten)]
    repeat: RepeatArgs,
}

impl RepeatArgs {
    /// The precision that is asked for, as a part of the mean.
    pub(super) fn precision(&self) -> f64 {
        self.interval / 100.0
    }

    /// Whether there are enough runs.
    fn enough(&self, runs: &[Run], elapsed: Duration) -> bool {
        let made = runs.len() as u64;
        let precise = || made >= self.min_runs && precision(runs).is_some_and(|found| found <= self.precision());
        made >= self.max_runs || (made >= 2 && elapsed >= self.duration) || precise()
    }
}

/// Runs in this process, one after another, until there are enough. `each`: is told of every one.
pub(super) fn repeat(args: &RepeatArgs, each: &mut dyn FnMut(Run) -> io::Result<()>) -> Result<Vec<Run>> {
    let started = Instant::now();
    let mut runs = Vec::new();
    while !args.enough(&runs, started.elapsed()) {
        let run = run_once(args).with_context(|| format!("run {} failed", runs.len() + 1))?;
        each(run).context("cannot write a time")?;
        runs.push(run);
    }
    Ok(runs)
}

/// The process that makes runs for `bench`.
pub(in crate::cli) fn run_runs(args: &RunsArgs) -> CommandResult {
    let mut file = OpenOptions::new().append(true).open(&args.times).context("cannot write times")?;
    repeat(&args.repeat, &mut |run| {
        // In one piece: whoever reads it may read it when we were killed.
        file.write_all(format!("{} {} {}\n", run.wall_ns, run.user_ns, run.system_ns).as_bytes())
    })?;
    Ok(0)
}

/// What that process is started by.
pub(super) fn command(args: &RepeatArgs, times: &Path) -> Result<Vec<OsString>> {
    let program = std::env::current_exe().context("cannot tell which program this is")?;
    let mut options = String::new();
    let (interval, seconds) = (args.interval, args.duration.as_secs_f64());
    write!(options, "--interval {interval} --min-runs {} --max-runs {}", args.min_runs, args.max_runs)?;
    write!(options, " --duration {seconds}s")?;
    for (flag, is_set) in [("ignore-failure", args.ignore_failure), ("show-output", args.show_output)] {
        if is_set {
            write!(options, " --{flag}")?;
        }
    }
    let mut words: Vec<OsString> = vec![program.into(), COMMAND.into(), "--times".into(), times.into()];
    words.extend(options.split(' ').map(OsString::from));
    words.push("--".into());
    words.extend(args.command.iter().cloned());
    Ok(words)
}

/// The runs that such a process has written.
pub(super) fn read(times: &Path) -> Result<Vec<Run>> {
    let bytes = load::bounded(times).context("cannot read times")?;
    Ok(parse(&String::from_utf8_lossy(&bytes)))
}

/// Lines of three numbers; what follows the last whole line is left out.
fn parse(text: &str) -> Vec<Run> {
    let run = |line: &str| {
        let mut numbers = line.strip_suffix('\n')?.split(' ').map(|number| number.parse().ok());
        Some(Run { wall_ns: numbers.next()??, user_ns: numbers.next()??, system_ns: numbers.next()?? })
    };
    text.split_inclusive('\n').map_while(run).collect()
}

/// Runs the command once.
pub(super) fn run_once(args: &RepeatArgs) -> Result<Run> {
    let output = || if args.show_output { Stdio::inherit() } else { Stdio::null() };
    let program = args.command.first().map(|word| word.to_string_lossy()).unwrap_or_default();
    let mut command = Command::new(args.command.first().map(OsString::as_os_str).unwrap_or_default());
    command.args(args.command.iter().skip(1)).stdin(Stdio::null()).stdout(output()).stderr(output());
    let started = Instant::now();
    let child = command.spawn().with_context(|| format!("cannot run {program}"))?;
    let (status, usage) = wait(&child).with_context(|| format!("cannot wait for {program}"))?;
    let wall = started.elapsed();
    if !status.success() && !args.ignore_failure {
        bail!("{program} ended with {status}: see why with --show-output, or count it with --ignore-failure");
    }
    let nanoseconds = |time: libc::timeval| {
        let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
        seconds.saturating_mul(1_000_000_000).saturating_add(u64::try_from(time.tv_usec).unwrap_or(0) * 1_000)
    };
    Ok(Run {
        wall_ns: u64::try_from(wall.as_nanos()).unwrap_or(u64::MAX),
        user_ns: nanoseconds(usage.ru_utime),
        system_ns: nanoseconds(usage.ru_stime),
    })
}

/// Waits for a child's end; what it used, and those it waited for itself.
fn wait(child: &Child) -> io::Result<(ExitStatus, libc::rusage)> {
    let pid = libc::pid_t::try_from(child.id()).map_err(io::Error::other)?;
    let mut status = 0;
    loop {
        // SAFETY: an all-zero structure is a valid one; both pointers are to variables that outlive the call.
        let (ended, usage) = unsafe {
            let mut usage: libc::rusage = std::mem::zeroed();
            (libc::wait4(pid, &raw mut status, 0, &raw mut usage), usage)
        };
        if ended == pid {
            return Ok((ExitStatus::from_raw(status), usage));
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

/// Per cent of the mean.
fn parse_interval(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(percent) if percent > 0.0 && percent <= 100.0 => Ok(percent),
        _ => Err("must be per cent of the mean, more than 0 and at most 100, as in 2".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(script: &str) -> RepeatArgs {
        RepeatArgs {
            interval: 100.0,
            min_runs: 3,
            max_runs: 5,
            duration: Duration::from_secs(60),
            ignore_failure: false,
            show_output: false,
            command: ["sh", "-c", script].map(OsString::from).to_vec(),
        }
    }

    #[test]
    fn there_are_enough_runs_when_the_mean_is_known() {
        let args = args("");
        let run = |wall_ns| Run { wall_ns, ..Run::default() };
        let (alike, apart) = ([run(100); 3], [run(1), run(1_000_000), run(1)]);
        assert!(args.enough(&alike, Duration::ZERO) && !args.enough(&alike[..2], Duration::ZERO));
        assert!(!args.enough(&apart, Duration::ZERO), "their mean is not known");
        assert!(args.enough(&apart, args.duration) && !args.enough(&apart[..1], args.duration));
        assert!(args.enough(&[run(1), run(1_000_000), run(1), run(1_000_000), run(1)], Duration::ZERO));
    }

    #[test]
    fn runs_are_timed_and_a_failure_is_told() {
        let mut told = 0;
        let runs = repeat(&args("i=0; while [ $i -lt 2000 ]; do i=$((i + 1)); done"), &mut |_| {
            told += 1;
            Ok(())
        })
        .unwrap();
        assert_eq!(runs.len(), told);
        assert!((3..=5).contains(&told), "{told}");
        assert!(runs.iter().all(|run| run.wall_ns > 0));
        let failed = args("exit 7");
        let error = format!("{:#}", repeat(&failed, &mut |_| Ok(())).unwrap_err());
        assert!(error.contains("run 1 failed") && error.contains('7'), "{error}");
        assert!(run_once(&RepeatArgs { ignore_failure: true, ..failed.clone() }).is_ok());
        let missing = RepeatArgs { command: vec!["/no/such/program".into()], ..failed };
        assert!(format!("{:#}", run_once(&missing).unwrap_err()).contains("cannot run /no/such/program"));
    }

    #[test]
    fn a_line_that_was_cut_is_left_out() {
        let first = Run { wall_ns: 5, user_ns: 2, system_ns: 1 };
        assert_eq!(parse("5 2 1\n7 3 2"), [first]);
        assert_eq!(parse("5 2 1\nx\n5 2 1\n"), [first]);
        assert!(parse("").is_empty());
    }

    #[test]
    fn the_process_that_makes_runs_understands_how_it_is_started() {
        use clap::Parser as _;
        let asked = RepeatArgs { interval: 0.5, show_output: true, ..args("exit 0") };
        let words = command(&asked, Path::new("times")).unwrap();
        let parsed = crate::cli::args::Args::try_parse_from(words).unwrap();
        let crate::cli::args::Command::MakeRuns(parsed) = parsed.command else { panic!("{parsed:?}") };
        assert_eq!(format!("{:?}", parsed.repeat), format!("{asked:?}"));
        assert_eq!(parsed.times, Path::new("times"));
    }
}
