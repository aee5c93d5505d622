//! Options that commands which record have alike: whom to look at, and what to record.
//!
//! Two groups of arguments, flattened into each command: [`TargetArgs`] and [`RecordingArgs`]. The second makes the
//! configuration of a recording, once what clap cannot check is checked.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::bail;
use clap::{ArgGroup, Args};
use profiler_common::event::Origin;

use super::args::parse_duration;
use crate::bpf::{Limits, max_sample_rate};
use crate::collect::{
    AllocConfig, CacheDirectory, DRAIN_EVERY, FunctionPattern, NamingConfig, RecordConfig, TargetSelection,
};
use crate::process;
use crate::symbolize::DEBUG_DIRECTORY;

/// Who is looked at. One way of the group `target` at most; a command that can start its target puts that in, too.
#[derive(Clone, Debug, Args)]
#[command(group(ArgGroup::new("target").args(["pids", "cgroup", "comm", "all_cpus"])))]
pub(super) struct TargetArgs {
    /// This process, all its threads; may be given more than once
    #[arg(short, long = "pid", value_name = "PID")]
    pids: Vec<u32>,
    /// With -p: also the processes below, those that run and those to come
    #[arg(long, requires = "pids", conflicts_with_all = ["cgroup", "comm", "all_cpus"])]
    children: bool,
    /// The processes of this cgroup (version 2) and those below it
    #[arg(long, value_name = "PATH")]
    cgroup: Option<PathBuf>,
    /// The processes and threads of this name (at most 15 bytes)
    #[arg(long, value_name = "NAME")]
    comm: Option<String>,
    /// The whole host
    #[arg(short = 'a', long = "all-cpus")]
    all_cpus: bool,
}

impl TargetArgs {
    /// The target, and what a capture of it is called: the command if there is one, the host when nothing is named.
    pub(super) fn selection(&self, command: &[OsString]) -> (TargetSelection, String) {
        if let Some(program) = command.first() {
            let program = program.to_string_lossy();
            let name = program.rsplit('/').next().unwrap_or_default().to_owned();
            (TargetSelection::Command(command.to_vec()), name)
        } else if let Some(path) = &self.cgroup {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            (TargetSelection::Cgroup(path.clone()), name)
        } else if let Some(comm) = &self.comm {
            (TargetSelection::Comm(comm.clone()), comm.clone())
        } else if let Some(first) = self.pids.first() {
            let name =
                process::command_name(*first).map_or_else(|| first.to_string(), |name| format!("{name}-{first}"));
            (TargetSelection::Processes { pids: self.pids.clone(), children: self.children }, name)
        } else {
            (TargetSelection::Host, "host".to_owned())
        }
    }
}

/// What is recorded, how often, with how much memory, and how it is named.
#[derive(Clone, Debug, Args)]
pub(super) struct RecordingArgs {
    /// What to record, separated by commas: cpu, the stacks on the CPUs; offcpu, what threads waited for; lock, the locks
    /// they waited for, and who held them; fault, page faults; syscall, system calls; blockio, requests to block devices;
    /// fileio, reads, writes, syncs and opens of files; net, messages of sockets; alloc, memory that is allocated
    /// [default: cpu; of top cpu,offcpu]
    #[arg(
        short = 'e',
        long = "events",
        value_name = "ORIGIN",
        value_enum,
        hide_possible_values = true,
        value_delimiter = ','
    )]
    events: Vec<Event>,
    /// Record everything that a production host bears: cpu, offcpu, lock, blockio, fileio, net and, unless it is of the whole
    /// host, alloc, on one clock
    #[arg(long, conflicts_with = "events")]
    all: bool,
    /// With -e offcpu: also who ends waits, with the stack that did
    #[arg(long)]
    wakers: bool,
    /// Also record the calls of functions: the file's path or name, and a glob of names, up to 64 functions in all; may be given
    /// more than once. How often, how long, on and off the CPU, and stacks
    #[arg(long = "func", value_name = "FILE:PATTERN", value_parser = parse_function)]
    functions: Vec<FunctionPattern>,
    /// With -e blockio: list every request that takes at least so long, up to 10,000: 10ms, 500us. With --func: keep stacks of
    /// such calls alone
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    slower: Option<Duration>,
    /// With -e alloc: how much of the target's CPU time it may take, percent; where more is needed for every call, it is
    /// recorded in windows [with --exact: 25]
    #[arg(
        long,
        value_name = "PERCENT",
        default_value_t = 2.0,
        default_value_if("exact", "true", "25"),
        value_parser = parse_percent
    )]
    alloc_budget: f64,
    /// With -e alloc: record every allocation, none for others; ends by itself when it takes more than the budget
    #[arg(long)]
    exact: bool,
    /// Samples a second on each CPU, up to kernel.perf_event_max_sample_rate
    #[arg(short = 'F', long = "frequency", value_name = "HZ", default_value_t = 99)]
    rate_hz: u64,
    /// Distinct records one window can hold; raise it on `lost: map_full`
    #[arg(long, value_name = "N", default_value_t = 8_192, value_parser = clap::value_parser!(u32).range(64..=4_194_304))]
    map_entries: u32,
    /// Size of the stack buffer, a power of two; raise it on `truncated: ring_full`
    #[arg(long, value_name = "MB", default_value_t = 4, value_parser = parse_buffer)]
    buffer_mb: u32,
    /// Most memory for unwind tables
    #[arg(long, value_name = "MB", default_value_t = 64, value_parser = clap::value_parser!(u16).range(1..=1024))]
    table_mb: u16,
    /// Keep unwind tables and names in this directory, for the next recording; /var/cache/profiler for root
    #[arg(long, value_name = "DIR", conflicts_with = "no_cache")]
    cache_dir: Option<PathBuf>,
    /// Keep no unwind tables and no names on disk
    #[arg(long)]
    no_cache: bool,
    /// Look for debug files here before /usr/lib/debug, by build ID and by path; may be given more than once
    #[arg(long = "debug-dir", value_name = "DIR")]
    debug_directories: Vec<PathBuf>,
    /// Fetch missing debug files from the servers in DEBUGINFOD_URLS, by debuginfod-find
    #[arg(long)]
    debuginfod: bool,
    /// Leave the arguments of generics and templates out of names
    #[arg(long)]
    short_names: bool,
}

impl RecordingArgs {
    /// Whether everything was asked for, and what it stands for leaves something out.
    pub(super) fn leaves_out(&self, config: &RecordConfig) -> Option<&'static str> {
        (self.all && !config.origins.contains(&Origin::Alloc)).then_some(
            "--all records no allocations of the whole host, where every process would have probes: for some, name their \
             processes",
        )
    }

    /// The configuration of a recording, which checks what clap cannot.
    ///
    /// `usual`: what is recorded where nobody says what.
    ///
    /// Errors: the kernel does not let us sample so often, or an option is for what is not recorded.
    pub(super) fn config(
        &self,
        target: TargetSelection,
        duration: Option<Duration>,
        usual: &[Event],
    ) -> anyhow::Result<RecordConfig> {
        check_rate(self.rate_hz)?;
        let mut origins = origins(match &self.events[..] {
            _ if self.all && target == TargetSelection::Host => &Event::ALL[..Event::ALL.len() - 1],
            _ if self.all => &Event::ALL,
            [] => usual,
            events => events,
        });
        origins.extend((!self.functions.is_empty()).then_some(Origin::Func));
        if self.wakers && !origins.iter().any(|origin| matches!(origin, Origin::OffCpu | Origin::Lock)) {
            bail!("--wakers says who ends waits, which are not recorded: add -e offcpu, or -e cpu,offcpu");
        }
        let slower_ns = self.slower.map_or(0, |slower| u64::try_from(slower.as_nanos()).unwrap_or(u64::MAX));
        if slower_ns > 0 && !origins.iter().any(|origin| matches!(origin, Origin::BlockIo | Origin::Func)) {
            bail!(
                "--slower lists requests to block devices or calls of functions, which are not recorded: add -e blockio, or \
                 -e cpu,blockio, or --func"
            );
        }
        if self.exact && !origins.contains(&Origin::Alloc) {
            bail!("--exact records every allocation, and allocations are not recorded: add -e alloc");
        }
        let limits = Limits {
            records: self.map_entries,
            ring_bytes: self.buffer_mb << 20,
            table_shards: usize::from(self.table_mb),
            ..Limits::default()
        };
        let cache = match &self.cache_dir {
            Some(path) => CacheDirectory::Directory(path.clone()),
            None if self.no_cache => CacheDirectory::None,
            None => CacheDirectory::Usual,
        };
        let naming = NamingConfig {
            debug_directories: self.debug_directories.iter().cloned().chain([DEBUG_DIRECTORY.into()]).collect(),
            debuginfod: self.debuginfod,
            shorten: self.short_names,
        };
        if self.exact && !origins.contains(&Origin::Alloc) {
            bail!("--exact records every allocation, and allocations are not recorded: add -e alloc");
        }
        Ok(RecordConfig {
            target,
            hushes_command: false,
            origins,
            alloc: AllocConfig { budget: self.alloc_budget / 100.0, is_exact: self.exact },
            wakers: self.wakers,
            slower_ns,
            functions: self.functions.clone(),
            rate_hz: self.rate_hz,
            duration,
            limits,
            cache,
            naming,
            drain_every: DRAIN_EVERY,
            continuous: false,
            watch: None,
        })
    }
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
    /// What `--all` stands for. Page faults and all system calls can come a million times a second. On the whole host
    /// allocations, which come last, would put probes into every process.
    const ALL: [Self; 7] = [Self::Cpu, Self::Offcpu, Self::Lock, Self::Blockio, Self::Fileio, Self::Net, Self::Alloc];

    /// Its origin.
    const fn origin(self) -> Origin {
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

/// The origins of events, each once, in the order of their numbers.
fn origins(events: &[Event]) -> Vec<Origin> {
    let mut origins: Vec<Origin> = events.iter().map(|event| event.origin()).collect();
    origins.sort_unstable();
    origins.dedup();
    origins
}

/// Checks that the kernel lets us sample so often.
fn check_rate(rate_hz: u64) -> anyhow::Result<()> {
    let highest = max_sample_rate();
    if rate_hz == 0 || rate_hz > highest {
        bail!(
            "cannot sample at {rate_hz} Hz: the kernel allows 1 to {highest} Hz; lower -F, or raise it with \
             `sysctl kernel.perf_event_max_sample_rate=N`"
        );
    }
    Ok(())
}

/// A part of something, in percent: more than nothing, and as much as ten times all of it.
fn parse_percent(text: &str) -> Result<f64, String> {
    let number: f64 = text.parse().map_err(|_| "not a number: use for instance 2 or 0.5".to_owned())?;
    if number > 0.0 && number <= 1_000.0 { Ok(number) } else { Err("must be more than 0 and at most 1000".to_owned()) }
}

/// `redis-server:lookupKey*`, `/usr/bin/reth:*::execute*`: a file and a glob.
fn parse_function(text: &str) -> Result<FunctionPattern, String> {
    match text.split_once(':') {
        Some((binary, name)) if !binary.is_empty() && !name.is_empty() => {
            Ok(FunctionPattern { binary: binary.to_owned(), name: name.to_owned() })
        }
        _ => Err("must be a file and a pattern of functions, as in redis-server:lookupKey*".to_owned()),
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
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        target: TargetArgs,
        #[command(flatten)]
        recording: RecordingArgs,
    }

    fn config(line: &str) -> anyhow::Result<RecordConfig> {
        let line = Line::try_parse_from(["x"].into_iter().chain(line.split_whitespace()))?;
        let (target, _) = line.target.selection(&[]);
        line.recording.config(target, None, &[Event::Cpu, Event::Offcpu])
    }

    #[test]
    fn what_is_recorded_is_what_was_asked_for_or_the_usual() {
        let origins = |line: &str| config(line).unwrap().origins;
        assert_eq!(origins(""), [Origin::Cpu, Origin::OffCpu]);
        assert_eq!(origins("-e net,lock -e cpu,net"), {
            let mut wanted = vec![Origin::Net, Origin::Lock, Origin::Cpu];
            wanted.sort_unstable();
            wanted
        });
        assert_eq!(origins("--all -p 1").len(), Event::ALL.len());
        assert!(origins("--all -p 1").contains(&Origin::Alloc));
        assert!(origins("--all -a").len() == Event::ALL.len() - 1 && !origins("--all -a").contains(&Origin::Alloc));
        assert!(config("--all -e cpu").is_err());
    }

    #[test]
    fn an_option_for_what_is_not_recorded_is_refused() {
        assert!(config("--wakers").unwrap().wakers);
        assert!(config("--wakers -e cpu").unwrap_err().to_string().contains("-e cpu,offcpu"));
        assert!(config("--slower 1ms").unwrap_err().to_string().contains("-e cpu,blockio"));
        assert_eq!(config("--slower 1ms -e blockio").unwrap().slower_ns, 1_000_000);
        assert!(config("-F 0").unwrap_err().to_string().contains("the kernel allows 1 to"));
    }

    #[test]
    fn functions_are_recorded_beside_the_rest() {
        let config = config("-e cpu --func a:b::*c --func /x:y --slower 1ms").unwrap();
        assert_eq!(config.origins, [Origin::Cpu, Origin::Func]);
        let pattern = |binary: &str, name: &str| FunctionPattern { binary: binary.to_owned(), name: name.to_owned() };
        assert_eq!(config.functions, [pattern("a", "b::*c"), pattern("/x", "y")]);
        for wrong in ["", "a", ":a", "a:"] {
            assert!(parse_function(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_target_is_one_of_several() {
        assert_eq!(config("").unwrap().target, TargetSelection::Host);
        assert_eq!(config("--comm x").unwrap().target, TargetSelection::Comm("x".to_owned()));
        let children = TargetSelection::Processes { pids: vec![7, 8], children: true };
        assert_eq!(config("-p 7 -p 8 --children").unwrap().target, children);
        for wrong in ["-a --comm x", "--children", "-a --children", "-p 1 --cgroup /x"] {
            assert!(config(wrong).is_err(), "{wrong}");
        }
    }
}
