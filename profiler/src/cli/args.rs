//! The command line.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args as ClapArgs, Parser, Subcommand};

use super::bench::{BenchArgs, RunsArgs};
use super::check::{BaselineArgs, CheckArgs, TrendArgs};
use super::daemon::{ConfigCommandArgs, DaemonArgs};
use super::diff::DiffArgs;
use super::export::{ExportArgs, ImportArgs};
use super::options::{RecordingArgs, TargetArgs};
use super::query::QueryArgs;
use super::top::TopArgs;

/// A kernel-level profiler for production Linux hosts.
#[derive(Debug, Parser)]
#[command(version, about, max_term_width = 100)]
pub(super) struct Args {
    #[command(subcommand)]
    pub(super) command: Command,
}

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Sample a process, a command, a cgroup or the host, and write flamegraph, pprof profile and report
    Record(Box<RecordArgs>),
    /// Show what runs now, second by second, in the terminal
    Top(Box<TopArgs>),
    /// Make the flamegraph and the report of a capture again, from capture.json and its profiles
    Report(ReportArgs),
    /// Say which functions and stacks have changed from one capture to another, beyond chance
    Diff(DiffArgs),
    /// Hold a capture against budgets and a baseline: a gate by its exit code
    Check(CheckArgs),
    /// Keep captures to compare with
    Baseline(BaselineArgs),
    /// Say where a metric goes over many captures
    Trend(TrendArgs),
    /// Record all the time, within a budget, into a history
    Daemon(DaemonArgs),
    /// Show, export or import the daemon's configuration
    Config(ConfigCommandArgs),
    /// Say what the history of a daemon has of a range of time
    Query(Box<QueryArgs>),
    /// Write a capture's profiles in the formats of other programs
    Export(ExportArgs),
    /// Make a capture of a profile of pprof or the text of perf script, to report, compare and export it
    Import(ImportArgs),
    /// Run a command again and again until its time is known, and record the runs
    Bench(Box<BenchArgs>),
    /// Make the runs of `bench`, in the process that is recorded
    #[command(name = "make-runs", hide = true)]
    MakeRuns(Box<RunsArgs>),
    /// Say what this kernel and user can do, and what to change
    Doctor(DoctorArgs),
    /// Say how an ELF file is unwound: its table's rows and size, and which functions cannot be followed
    Inspect(InspectArgs),
    /// Hold probes for another profiler, which starts this one with a socket for its standard input
    #[command(hide = true)]
    HoldProbes,
}

/// What to record. Without a target there is nothing to do, so one of them is asked for.
#[derive(Debug, ClapArgs)]
#[command(
    mut_group("target", |group| group.required(true)),
    override_usage = "profiler record [OPTIONS] <-p PID... | --cgroup PATH | --comm NAME | -a | -- COMMAND ARG...>",
    after_help = "Examples: profiler record -d 10 -p 1234 · profiler record -F 499 -- ls -lR (the command after --)\n\n\
                  Exit code: 0; 2 when it could not run. With -- COMMAND the command's own, 128+n when signal n ended it, \
                  125 when the profiler failed, 126 or 127 when the command could not be executed."
)]
pub(super) struct RecordArgs {
    #[command(flatten)]
    pub(super) target: TargetArgs,
    #[command(flatten)]
    pub(super) recording: RecordingArgs,
    /// How long: 5, 5s, 500ms, 2m [default: until Ctrl-C or the target's end]
    #[arg(short, long, value_name = "DURATION", value_parser = parse_duration)]
    pub(super) duration: Option<Duration>,
    /// Directory to write to, made when missing [default: profile-TARGET-TIME]
    #[arg(short, long, value_name = "DIR")]
    pub(super) output: Option<PathBuf>,
    /// Leave arguments, paths, peers and the host's name out, so that the files can be shared
    #[arg(long)]
    pub(super) redact: bool,
    /// Print what was recorded as JSON: the directory, the samples, the accounting
    #[arg(long)]
    pub(super) json: bool,
    /// Run this command and sample it with its children, from its first instruction
    #[arg(last = true, value_name = "COMMAND", group = "target", conflicts_with = "children")]
    pub(super) command: Vec<OsString>,
}

#[derive(Debug, ClapArgs)]
pub(super) struct ReportArgs {
    /// Directory of the capture
    pub(super) directory: PathBuf,
    /// Directory to write to [default: the capture's own]
    #[arg(short, long, value_name = "DIR")]
    pub(super) output: Option<PathBuf>,
    /// Write a whole capture without arguments, paths, peers and the host's name, which can be shared
    #[arg(long, requires = "output")]
    pub(super) redact: bool,
    /// Patterns and thresholds of findings: a TOML file, before those that are built in
    #[arg(long, value_name = "FILE")]
    pub(super) rules: Option<PathBuf>,
    /// Print report.json
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Debug, ClapArgs)]
pub(super) struct DoctorArgs {
    /// Print the checks as JSON
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Debug, ClapArgs)]
pub(super) struct InspectArgs {
    /// Program or shared library
    pub(super) elf: PathBuf,
    /// Print it as JSON, with every function that cannot be followed
    #[arg(long)]
    pub(super) json: bool,
}

/// `5`, `5s`, `1.5m`, `500ms`, `10us`, `2h`.
pub(super) fn parse_duration(text: &str) -> Result<Duration, String> {
    let digits = text.find(|character: char| !character.is_ascii_digit() && character != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let seconds = match unit {
        "" | "s" => 1.0,
        "us" => 1e-6,
        "ms" => 1e-3,
        "m" => 60.0,
        "h" => 3600.0,
        _ => return Err(format!("unknown unit {unit:?}: use us, ms, s, m or h, as in 30s or 2m")),
    };
    let number: f64 = number.parse().map_err(|_| "not a duration: use for instance 5, 5s or 2m".to_owned())?;
    match Duration::try_from_secs_f64(number * seconds) {
        Ok(duration) if !duration.is_zero() && duration <= Duration::from_secs(366 * 24 * 3600) => Ok(duration),
        _ => Err("must be more than nothing and at most a year".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory;
        Args::command().debug_assert();
    }

    #[test]
    fn durations_have_units() {
        assert_eq!(parse_duration("5"), Ok(Duration::from_secs(5)));
        assert_eq!(parse_duration("2m"), Ok(Duration::from_secs(120)));
        assert_eq!(parse_duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(parse_duration("0.5s"), Ok(Duration::from_millis(500)));
        for wrong in ["", "s", "5x", "-1", "0", "1e9h", "5 s", "..", "99999999999999999999"] {
            assert!(parse_duration(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn targets_exclude_each_other() {
        let parse = |line: &str| Args::try_parse_from(line.split(' ')).is_ok();
        assert!(parse("profiler record -p 1 -p 2 --children"));
        assert!(parse("profiler record -d 5 -- sleep 1"));
        assert!(!parse("profiler record"));
        assert!(!parse("profiler record -p 1 -- sleep 1"));
        assert!(!parse("profiler record -a --comm x"));
        assert!(!parse("profiler record -a --children"));
        assert!(!parse("profiler record --children -- sleep 1"));
        assert!(parse("profiler top") && parse("profiler top -- sleep 1"));
        assert!(!parse("profiler top -a -- sleep 1"));
        assert!(!parse("profiler bench --no-profile -F 99 -- sleep 1"));
        assert!(!parse("profiler bench --no-profile -e cpu -- sleep 1"));
        assert!(parse("profiler bench --no-profile -- sleep 1"));
    }
}
