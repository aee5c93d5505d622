//! The command line.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgGroup, Args as ClapArgs, Parser, Subcommand};
use profiler_common::event::Origin;

use super::bench::{BenchArgs, RunsArgs};
use super::check::{BaselineArgs, CheckArgs, TrendArgs};
use super::daemon::{ConfigCommandArgs, DaemonArgs};
use super::diff::DiffArgs;
use super::export::{ExportArgs, ImportArgs};
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
    Top(TopArgs),
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
    group(ArgGroup::new("target").required(true).args(["pids", "cgroup", "comm", "all_cpus", "command"])),
    override_usage = "profiler record [OPTIONS] <-p PID... | --cgroup PATH | --comm NAME | -a | -- COMMAND ARG...>",
    after_help = "Examples: profiler record -d 10 -p 1234 · profiler record -F 499 -- ls -lR (the command after --)\n\n\
                  Exit code: 0; 2 when it could not run. With -- COMMAND the command's own, 128+n when signal n ended it, \
                  125 when the profiler failed, 126 or 127 when the command could not be executed."
)]
pub(super) struct RecordArgs {
    /// Sample this process, all its threads; may be given more than once
    #[arg(short, long = "pid", value_name = "PID")]
    pub(super) pids: Vec<u32>,
    /// With -p: also the processes below, those that run and those to come
    #[arg(long, requires = "pids", conflicts_with_all = ["cgroup", "comm", "all_cpus", "command"])]
    pub(super) children: bool,
    /// Sample the processes of this cgroup (version 2) and those below it
    #[arg(long, value_name = "PATH")]
    pub(super) cgroup: Option<PathBuf>,
    /// Sample the processes and threads of this name (at most 15 bytes)
    #[arg(long, value_name = "NAME")]
    pub(super) comm: Option<String>,
    /// Sample the whole host
    #[arg(short = 'a', long = "all-cpus")]
    pub(super) all_cpus: bool,
    /// What to record, separated by commas: cpu, the stacks on the CPUs; offcpu, what threads waited for; lock, the locks
    /// they waited for, and who held them; fault, page faults; syscall, system calls; blockio, requests to block devices;
    /// fileio, reads, writes, syncs and opens of files; net, messages of sockets; alloc, memory that is allocated
    #[arg(
        short = 'e',
        long = "events",
        value_name = "ORIGIN",
        value_enum,
        hide_possible_values = true,
        value_delimiter = ',',
        default_value = "cpu"
    )]
    pub(super) events: Vec<Event>,
    /// Record everything that a production host bears: cpu, offcpu, lock, blockio, fileio and net, on one clock
    #[arg(long, conflicts_with = "events")]
    pub(super) all: bool,
    /// With -e offcpu: also who ends waits, with the stack that did
    #[arg(long)]
    pub(super) wakers: bool,
    /// With -e blockio: list every request that takes at least so long, up to 10,000: 10ms, 500us
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    pub(super) slower: Option<Duration>,
    /// With -e alloc: how much of the target's CPU time it may take, percent; where more is needed for every call, it is
    /// recorded in windows
    #[arg(long, value_name = "PERCENT", default_value_t = 2.0, value_parser = parse_percent)]
    pub(super) alloc_budget: f64,
    /// How long: 5, 5s, 500ms, 2m [default: until Ctrl-C or the target's end]
    #[arg(short, long, value_name = "DURATION", value_parser = parse_duration)]
    pub(super) duration: Option<Duration>,
    /// Samples a second on each CPU, up to kernel.perf_event_max_sample_rate
    #[arg(short = 'F', long = "frequency", value_name = "HZ", default_value_t = 99)]
    pub(super) rate_hz: u64,
    /// Directory to write to, made when missing [default: profile-TARGET-TIME]
    #[arg(short, long, value_name = "DIR")]
    pub(super) output: Option<PathBuf>,
    /// Distinct records one window can hold; raise it on `lost: map_full`
    #[arg(long, value_name = "N", default_value_t = 8_192, value_parser = clap::value_parser!(u32).range(64..=4_194_304))]
    pub(super) map_entries: u32,
    /// Size of the stack buffer, a power of two; raise it on `truncated: ring_full`
    #[arg(long, value_name = "MB", default_value_t = 4, value_parser = parse_buffer)]
    pub(super) buffer_mb: u32,
    /// Most memory for unwind tables
    #[arg(long, value_name = "MB", default_value_t = 64, value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub(super) table_mb: u16,
    /// Keep unwind tables and names in this directory, for the next recording; /var/cache/profiler for root
    #[arg(long, value_name = "DIR", conflicts_with = "no_cache")]
    pub(super) cache_dir: Option<PathBuf>,
    /// Keep no unwind tables and no names on disk
    #[arg(long)]
    pub(super) no_cache: bool,
    /// Look for debug files here before /usr/lib/debug, by build ID and by path; may be given more than once
    #[arg(long = "debug-dir", value_name = "DIR")]
    pub(super) debug_directories: Vec<PathBuf>,
    /// Fetch missing debug files from the servers in DEBUGINFOD_URLS, by debuginfod-find
    #[arg(long)]
    pub(super) debuginfod: bool,
    /// Leave the arguments of generics and templates out of names
    #[arg(long)]
    pub(super) short_names: bool,
    /// Leave arguments, paths, peers and the host's name out, so that the files can be shared
    #[arg(long)]
    pub(super) redact: bool,
    /// Print what was recorded as JSON: the directory, the samples, the accounting
    #[arg(long)]
    pub(super) json: bool,
    /// Run this command and sample it with its children, from its first instruction
    #[arg(last = true, value_name = "COMMAND")]
    pub(super) command: Vec<OsString>,
}

/// What can be recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Event {
    /// On-CPU stacks
    Cpu,
    /// Waits, and waiting for a CPU
    Offcpu,
    /// Waits for locks
    Lock,
    /// Page faults
    Fault,
    /// System calls
    Syscall,
    /// Messages of sockets
    Net,
    /// Operations on files
    Fileio,
    /// Requests to block devices
    Blockio,
    /// Allocations of memory
    Alloc,
}

impl Event {
    /// What `--all` stands for. Page faults and all system calls can come a million times a second.
    pub(super) const ALL: [Self; 6] = [Self::Cpu, Self::Offcpu, Self::Lock, Self::Blockio, Self::Fileio, Self::Net];

    /// Its origin.
    pub(super) const fn origin(self) -> Origin {
        match self {
            Self::Cpu => Origin::Cpu,
            Self::Offcpu => Origin::OffCpu,
            Self::Lock => Origin::Lock,
            Self::Fault => Origin::Fault,
            Self::Syscall => Origin::Syscall,
            Self::Net => Origin::Net,
            Self::Fileio => Origin::FileIo,
            Self::Blockio => Origin::BlockIo,
            Self::Alloc => Origin::Alloc,
        }
    }
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

/// A part of something, in percent: more than nothing, and as much as ten times all of it.
fn parse_percent(text: &str) -> Result<f64, String> {
    let number: f64 = text.parse().map_err(|_| "not a number: use for instance 2 or 0.5".to_owned())?;
    if number > 0.0 && number <= 1_000.0 { Ok(number) } else { Err("must be more than 0 and at most 1000".to_owned()) }
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

/// Size of the ring buffer in MiB, which the kernel wants to be a power of two.
fn parse_buffer(text: &str) -> Result<u32, String> {
    match text.parse::<u32>() {
        Ok(size) if size.is_power_of_two() && size <= 1024 => Ok(size),
        _ => Err("must be a power of two from 1 to 1024".to_owned()),
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
    }
}
