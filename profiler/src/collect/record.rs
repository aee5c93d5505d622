//! One recording, from attaching to the last symbol.

use std::time::{Duration, Instant, SystemTime};

use anyhow::Result;
use profiler_common::config::{PROCESS_AWAITS_EXEC, PROCESS_TARGET, Process};
use profiler_common::event::Origin;
use profiler_common::wait::recorded_waits;
use tokio::signal::unix::{SignalKind, signal};

use super::command::{HeldCommand, RunningCommand};
use super::disks::Disks;
use super::events::LoadedEvents;
use super::host::raise_file_limit;
use super::memory::MemoryWatch;
use super::processes::{Interest, Processes};
use super::session::{Session, Stop, TARGET_PROCESS};
use super::summary::{Facts, summarize};
use super::target::{Caches, NamingConfig, RecordConfig, TargetSelection};
use super::timeline::Slices;
use super::unwinding::Unwinding;
use super::watch::Watch;
use crate::bpf::{Kernel, Lifecycle, Limits, SamplingEvent};
use crate::process;
use crate::profile::Capture;
use crate::symbolize::Options;

/// How a recording gets on.
#[derive(Clone, Copy, Debug)]
pub struct Progress {
    /// Time since sampling began.
    pub elapsed: Duration,
    /// Samples so far.
    pub samples: u64,
    /// What is being done, once sampling has ended.
    pub stage: Option<&'static str>,
}

/// What a recording leaves.
#[derive(Debug)]
pub struct Recording {
    /// The capture.
    pub capture: Capture,
    /// The command that was started, which may still run.
    pub command: Option<RunningCommand>,
    /// Whether a signal ended the recording.
    pub interrupted: bool,
}

/// Records until the duration has passed, the target has ended or a signal comes.
///
/// # Errors
///
/// When the target is not there, something cannot be attached, or the command cannot be started.
pub async fn record(config: &RecordConfig, progress: &mut dyn FnMut(Progress)) -> Result<Recording> {
    let selection = config.target.selection()?;
    raise_file_limit();
    // From here on a signal ends the recording in good order.
    let mut stop = Stop { interrupt: signal(SignalKind::interrupt())?, terminate: signal(SignalKind::terminate())? };
    let asked_for = |origin| config.origins.contains(&origin);
    let event = asked_for(Origin::Cpu).then(SamplingEvent::detect);
    let period_ns = event.map_or(0, |event| event.period_ns(config.rate_hz));
    let Caches { tables, names } = config.cache.open()?;
    let unwinding = Unwinding::new(tables);
    let (of_waits, of_locks) = (asked_for(Origin::OffCpu), asked_for(Origin::Lock));
    // A lock is held by who gives it back.
    let wakers = of_locks || (of_waits && config.wakers);
    let flags = [(of_waits, recorded_waits::ALL), (of_locks, recorded_waits::LOCKS), (wakers, recorded_waits::WAKERS)];
    let waits = flags.into_iter().filter(|(is_asked, _)| *is_asked).fold(0, |waits, (_, flag)| waits | flag);
    let limits = Limits {
        waits,
        faults: asked_for(Origin::Fault),
        calls: asked_for(Origin::Syscall),
        files: asked_for(Origin::FileIo),
        net: asked_for(Origin::Net),
        blocks: asked_for(Origin::BlockIo),
        slower_ns: config.slower_ns,
        allocs: asked_for(Origin::Alloc),
        functions: asked_for(Origin::Func),
        ..config.limits
    };
    let mut kernel = Kernel::load(&selection, limits, period_ns, std::process::id())?;
    let events = LoadedEvents::load(&mut kernel, config, event)?;
    let hook = (waits != 0).then(|| kernel.record_waits(wakers)).transpose()?;
    kernel.load_counted(limits)?;
    limits.allocs.then(|| kernel.load_alloc_programs()).transpose()?;
    limits.functions.then(|| kernel.begin_functions()).transpose()?;
    let lifecycle = Lifecycle::start()?;
    kernel.follow_processes()?;
    let mut targets = Targets::find(config, &mut kernel)?;
    let target = config.target.describe(targets.held.as_ref().map(|held| held.pid));
    let ends_with_target = matches!(config.target, TargetSelection::Processes { .. } | TargetSelection::Command(_));
    let origins: Vec<Origin> = config.origins.iter().copied().chain(wakers.then_some(Origin::Waker)).collect();
    let mut session =
        Session::new(kernel, lifecycle, targets.processes, targets.roots, ends_with_target, unwinding, &origins)?;
    let mut events = events.start(config.rate_hz)?;
    if let Some(hook) = hook {
        session.kernel.begin_waits(hook, wakers)?;
    }
    session.kernel.begin_counted(limits)?;
    session.disks = Disks::read();
    session.watch = config.watch.clone().map(Watch::new);
    limits.allocs.then(|| session.begin_allocations(config.alloc_budget)).transpose()?;
    limits.functions.then(|| session.begin_functions(config)).transpose()?;
    let (started, started_at) = (Instant::now(), SystemTime::now());
    session.slices = Slices::begin(&config.target, &session.processes);
    session.memory = MemoryWatch::begin(&config.target, session.slices.members());
    session.command = targets.held.take().map(HeldCommand::release).transpose()?;
    let interrupted = session.run(&mut events, config.duration, started, &mut stop, progress).await?;
    let duration = started.elapsed();
    session.slices.end_slice(duration, &session.processes);
    session.memory.end(session.slices.members());
    progress(Progress { elapsed: duration, samples: session.gathered.events(), stage: Some("naming frames") });
    let sampled = event.map(|event| (event, config.rate_hz));
    let cgroup = match &config.target {
        TargetSelection::Cgroup(path) => Some(path.clone()),
        _ => None,
    };
    let facts = Facts { target, cgroup, sampled, hook, duration, started_at, limits };
    let NamingConfig { debug_directories, debuginfod, shorten } = config.naming.clone();
    let naming = Options { debug_directories, debuginfod, shorten, cache: names };
    summarize(session, facts, events, &naming, interrupted)
}

/// The processes to begin with.
struct Targets {
    processes: Processes,
    /// The processes whose end ends the recording.
    roots: Vec<u32>,
    held: Option<HeldCommand>,
}

impl Targets {
    fn find(config: &RecordConfig, kernel: &mut Kernel) -> Result<Self> {
        let interest = match &config.target {
            TargetSelection::Processes { children: false, .. } => Interest::Named,
            TargetSelection::Processes { .. } | TargetSelection::Command(_) => Interest::Tree,
            TargetSelection::Cgroup(_) | TargetSelection::Comm(_) | TargetSelection::Host => Interest::Everybody,
        };
        let mut targets = Self { processes: Processes::new(interest), roots: Vec::new(), held: None };
        match &config.target {
            TargetSelection::Processes { pids, children } => {
                targets.roots.clone_from(pids);
                // A child that is forked while the tree is read is listed by the program, for its parent is listed.
                for &pid in pids {
                    kernel.set_process(pid, TARGET_PROCESS)?;
                }
                if *children {
                    for pid in pids.iter().flat_map(|&pid| process::descendants_of(pid)) {
                        kernel.set_process(pid, TARGET_PROCESS)?;
                        targets.processes.add(pid);
                    }
                }
                for &pid in pids {
                    targets.processes.add(pid);
                }
            }
            TargetSelection::Command(arguments) => {
                let held = HeldCommand::start(arguments, config.hushes_command)?;
                let flags = PROCESS_TARGET | PROCESS_AWAITS_EXEC;
                kernel.set_process(held.pid, Process { flags, ..TARGET_PROCESS })?;
                targets.processes.add(held.pid);
                targets.roots.push(held.pid);
                targets.held = Some(held);
            }
            TargetSelection::Cgroup(_) | TargetSelection::Comm(_) | TargetSelection::Host => {
                for pid in process::all() {
                    targets.processes.add(pid);
                }
            }
        }
        Ok(targets)
    }
}
