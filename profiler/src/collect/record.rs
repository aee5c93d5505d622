//! One recording, from attaching to the last symbol.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::Result;
use profiler_common::config::{PROCESS_AWAITS_EXEC, PROCESS_TARGET, Process, UNKNOWN_EXEC_COUNT};
use profiler_common::counters::{Counters, Outcome};
use profiler_common::event::Origin;
use tokio::io::Interest as Readiness;
use tokio::io::unix::AsyncFd;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::MissedTickBehavior;

use super::command::{CommandEnd, HeldCommand, RunningCommand};
use super::host::{host, own_usage, raise_file_limit};
use super::place::{MissingChains, place_window};
use super::processes::{Change, Interest, Processes};
use super::target::{RecordConfig, TargetSelection};
use super::unwinding::Unwinding;
use crate::bpf::{Counts, Kernel, Lifecycle, Limits, Sampler, SamplingEvent, Selection, map_bytes};
use crate::process;
use crate::profile::{Accounting, Capture, Index, OriginSummary, Overhead, RawProfile, SCHEMA_VERSION, Target};
use crate::symbolize::{Sources, Symbolized, symbolize};

/// Length of a window: what a record can lag behind, and how often the maps are emptied.
const WINDOW: Duration = Duration::from_secs(1);

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
    let event = SamplingEvent::detect();
    let period_ns = event.period_ns(config.rate_hz);
    let mut kernel = Kernel::load(&selection, config.limits, period_ns, std::process::id())?;
    let program = kernel.load_sampling_program()?;
    let lifecycle = Lifecycle::start()?;
    if matches!(selection, Selection::Processes { follow_children: true }) {
        kernel.follow_processes()?;
    }
    let mut targets = Targets::find(config, &mut kernel)?;
    let target = config.target.describe(targets.held.as_ref().map(|held| held.pid));
    let mut session = Session {
        kernel,
        lifecycle,
        limits: config.limits,
        processes: targets.processes,
        unwinding: Unwinding::default(),
        roots: targets.roots,
        profile: RawProfile::new(Origin::Cpu),
        missing: MissingChains::default(),
        unsettled: 0,
        command: None,
        ends_with_target: matches!(config.target, TargetSelection::Processes { .. } | TargetSelection::Command(_)),
    };
    session.publish_added()?;
    let mut sampler = Sampler::start(event, config.rate_hz, program)?;
    let (started, started_at) = (Instant::now(), SystemTime::now());
    session.command = targets.held.take().map(HeldCommand::release).transpose()?;
    let interrupted = session.run(&mut sampler, config.duration, started, &mut stop, progress).await?;
    let duration = started.elapsed();
    progress(Progress { elapsed: duration, samples: session.profile.events(), stage: Some("naming frames") });
    let facts = Facts { target, event, rate_hz: config.rate_hz, duration, started_at };
    session.finish(facts, sampler, interrupted)
}

/// A process that is sampled.
const TARGET_PROCESS: Process = Process {
    generation: 0,
    flags: PROCESS_TARGET,
    first_exec_count: UNKNOWN_EXEC_COUNT,
    first_mapping: 0,
    mappings: 0,
    reserved: 0,
};

/// A process of which only the generation matters.
const UNLISTED_PROCESS: Process = Process { flags: 0, ..TARGET_PROCESS };

/// The signals that end a recording.
struct Stop {
    interrupt: Signal,
    terminate: Signal,
}

/// What is known before sampling begins.
struct Facts {
    target: Target,
    event: SamplingEvent,
    rate_hz: u64,
    duration: Duration,
    started_at: SystemTime,
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
                let held = HeldCommand::start(arguments)?;
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

/// A recording that runs.
struct Session {
    kernel: Kernel,
    lifecycle: Lifecycle,
    limits: Limits,
    processes: Processes,
    unwinding: Unwinding,
    roots: Vec<u32>,
    profile: RawProfile,
    missing: MissingChains,
    /// Windows in which programs were still writing when they were drained.
    unsettled: u64,
    command: Option<RunningCommand>,
    ends_with_target: bool,
}

/// Why the loop woke up.
enum Wake {
    Window,
    Ring,
    Lifecycle,
    End,
    Deadline,
    Signal,
}

impl Session {
    /// The loop; returns whether a signal ended it.
    async fn run(
        &mut self,
        sampler: &mut Sampler,
        duration: Option<Duration>,
        started: Instant,
        stop: &mut Stop,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<bool> {
        let watch = |fd: std::io::Result<OwnedFd>| {
            // SAFETY: an owned descriptor stays open and the same until `AsyncFd` is dropped.
            unsafe { AsyncFd::register_with_interest(fd?, Readiness::READABLE) }.map_err(std::io::Error::from)
        };
        let ring = watch(self.kernel.ring_descriptor())?;
        let lifecycle: Vec<_> = self.lifecycle.descriptors().map(watch).collect::<std::io::Result<_>>()?;
        // The event of an exit comes before the process can be waited for: only this tells that it has ended.
        let ends = self.roots.iter().filter_map(|&pid| process::end_of(pid));
        let ends: Vec<_> = ends.map(|end| watch(Ok(end))).collect::<std::io::Result<_>>()?;
        // What came before the descriptors were watched wakes nobody.
        self.read_lifecycle()?;
        let mut windows = tokio::time::interval_at(tokio::time::Instant::now() + WINDOW, WINDOW);
        windows.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // Without a limit, a deadline that no recording reaches.
        let limit = duration.unwrap_or(Duration::from_secs(u64::from(u32::MAX)));
        let deadline = tokio::time::sleep_until((started + limit).into());
        tokio::pin!(deadline);
        loop {
            let wake = tokio::select! {
                biased;
                _ = stop.interrupt.recv() => Wake::Signal,
                _ = stop.terminate.recv() => Wake::Signal,
                () = &mut deadline => Wake::Deadline,
                _ = windows.tick() => Wake::Window,
                ready = any_readable(&lifecycle) => { ready?; Wake::Lifecycle }
                ready = any_readable(&ends) => { ready?; Wake::End }
                ready = ring.readable() => { ready?.clear_ready(); Wake::Ring }
            };
            match wake {
                Wake::Signal => return Ok(true),
                Wake::Deadline => return Ok(false),
                Wake::Lifecycle => {
                    let changed = self.read_lifecycle()?;
                    if changed && self.ended() {
                        return Ok(false);
                    }
                }
                Wake::End => {
                    if self.ended() {
                        return Ok(false);
                    }
                }
                Wake::Ring => {
                    if self.kernel.read_ring() {
                        self.end_window()?;
                    }
                }
                Wake::Window => {
                    self.end_window()?;
                    sampler.follow_cpus()?;
                    let (elapsed, samples) = (started.elapsed(), self.profile.events());
                    progress(Progress { elapsed, samples, stage: None });
                    if self.ended() {
                        return Ok(false);
                    }
                }
            }
        }
    }

    /// Takes lifecycle events in; returns whether there were any.
    fn read_lifecycle(&mut self) -> Result<bool> {
        let events = self.lifecycle.read();
        let some = !events.is_empty();
        let changed = self.processes.apply(events);
        self.publish(changed)?;
        Ok(some)
    }

    /// Tells the programs what changed, and learns from them what they know better.
    fn publish(&mut self, changes: Vec<Change>) -> Result<()> {
        for change in changes {
            let (Change::Generation(pid, _) | Change::Forked(pid) | Change::Mapped(pid)) = change;
            let known = self.kernel.process(pid);
            self.learn_exec_count(pid);
            match change {
                Change::Generation(_, generation) => {
                    self.set_process(pid, Process { generation, ..known.unwrap_or(UNLISTED_PROCESS) });
                }
                // Inside a pid namespace the programs cannot list it themselves.
                Change::Forked(_) if known.is_none() => self.set_process(pid, TARGET_PROCESS),
                Change::Forked(_) => {}
                Change::Mapped(_) => self.publish_mappings(pid)?,
            }
        }
        Ok(())
    }

    /// Gives the programs the mappings of processes that were there before we looked.
    fn publish_added(&mut self) -> Result<()> {
        for pid in self.processes.take_added() {
            self.publish_mappings(pid)?;
        }
        Ok(())
    }

    /// Gives the programs a process's mappings, with the tables of their objects.
    fn publish_mappings(&mut self, pid: u32) -> Result<()> {
        let Some((mappings, objects)) = self.processes.mappings(pid) else { return Ok(()) };
        let run = self.unwinding.update(&mut self.kernel, pid, mappings.iter(), objects)?;
        if let Some(run) = run {
            // Read only now: the programs may have changed it while the tables were made.
            let known = self.kernel.process(pid).unwrap_or(UNLISTED_PROCESS);
            self.set_process(pid, Process { first_mapping: run.first, mappings: run.length, ..known });
        }
        Ok(())
    }

    fn set_process(&mut self, pid: u32, process: Process) {
        // A process that does not fit is walked by frame pointer, and its addresses looked up in what is known of it.
        let _ = self.kernel.set_process(pid, process);
    }

    /// Learns the exec count that a process began with, which the programs saw.
    fn learn_exec_count(&mut self, pid: u32) {
        if let Some(process) = self.kernel.process(pid)
            && process.first_exec_count != UNKNOWN_EXEC_COUNT
        {
            self.processes.set_first_exec_count(pid, process.first_exec_count);
        }
    }

    /// Whether there is nothing left to wait for.
    fn ended(&mut self) -> bool {
        if let Some(command) = &mut self.command {
            return command.try_wait().is_some();
        }
        self.ends_with_target
            && self.roots.iter().all(|&pid| !process::is_running(pid))
            && self.processes.alive().all(|pid| !process::is_running(pid))
    }

    fn end_window(&mut self) -> Result<()> {
        let drained = self.kernel.drain()?;
        self.read_lifecycle()?;
        for pid in self.roots.clone() {
            self.learn_exec_count(pid);
        }
        self.unsettled += u64::from(drained.unsettled);
        let missing = place_window(&drained, &mut self.processes, &mut self.profile);
        self.missing.merge(&missing);
        self.publish_added()?;
        for pid in self.processes.end_window() {
            self.kernel.remove_process(pid);
            self.unwinding.forget(&mut self.kernel, pid);
        }
        self.kernel.end_table_window();
        Ok(())
    }

    /// Empties the maps for the last time, names what was found and adds everything up.
    fn finish(mut self, facts: Facts, sampler: Sampler, interrupted: bool) -> Result<Recording> {
        let cpus_changed = sampler.cpus_changed;
        let counts = sampler.stop();
        // Twice: what was written late is in the other generation.
        self.end_window()?;
        self.end_window()?;
        let mut counters = self.kernel.counters(Origin::Cpu)?;
        self.missing.correct(&mut counters);
        let (bpf_ns, bpf_runs) = self.kernel.run_time();
        let bpf_map_bytes = map_bytes();
        let mut warnings = self.warnings(&facts, &counters, &counts, cpus_changed);
        // Nothing stays attached while names are looked up, which may take a while.
        drop((self.kernel, self.lifecycle));
        let sources = Sources { objects: self.processes.objects.objects(), perf_maps: &self.processes.perf_maps };
        let Symbolized { profile, objects, completed, warnings: of_symbols } = symbolize(self.profile, &sources);
        warnings.extend(of_symbols);
        complete(&mut counters, &completed);
        let accounting = Accounting {
            periods: counts.periods(),
            idle_periods: counts.idle_periods(),
            ..Accounting::new(&counters, counts.expected(&counters))
        };
        warnings.extend(doubts(&accounting));
        if bpf_runs == 0 && counters.hits > 0 {
            warnings.push("the time inside the BPF programs was not measured: that needs CAP_SYS_ADMIN".to_owned());
        }
        let totals = profile.totals();
        let row = Origin::Cpu.row();
        let summary = OriginSummary {
            unit: row.unit.to_owned(),
            total: totals[row.primary],
            n: totals[0],
            event: facts.event.name().to_owned(),
            rate_hz: facts.rate_hz,
        };
        let mut target = facts.target;
        target.exit_code = self.command.as_mut().and_then(RunningCommand::try_wait).map(CommandEnd::exit_code);
        let (agent_cpu, peak_rss_bytes) = own_usage();
        #[expect(clippy::cast_precision_loss, reason = "a mean, shown to four digits")]
        let bpf_ns_per_sample = if totals[0] == 0 { 0.0 } else { bpf_ns as f64 / totals[0] as f64 };
        let index = Index {
            schema_version: SCHEMA_VERSION,
            profiler_version: env!("CARGO_PKG_VERSION").to_owned(),
            started_at_ns: nanoseconds(facts.started_at.duration_since(UNIX_EPOCH).unwrap_or_default()),
            duration_ns: nanoseconds(facts.duration),
            target,
            host: host(),
            origins: BTreeMap::from([(row.name.to_owned(), summary)]),
            accounting: BTreeMap::from([(row.name.to_owned(), accounting)]),
            overhead: Overhead {
                bpf_ns,
                bpf_runs,
                bpf_ns_per_sample,
                trap_ns: 0,
                agent_cpu_ns: nanoseconds(agent_cpu),
                peak_rss_bytes,
                bpf_map_bytes,
            },
            objects,
            warnings,
        };
        let capture = Capture { index, profiles: vec![profile] };
        Ok(Recording { capture, command: self.command, interrupted })
    }

    /// Whether the named processes hardly ran, and have children that were not asked for.
    fn supervises(&self, facts: &Facts) -> bool {
        #[expect(clippy::cast_precision_loss, reason = "a ratio that is compared with a rough limit")]
        let cpus = self.profile.events() as f64 / (facts.rate_hz as f64 * facts.duration.as_secs_f64());
        self.processes.interest() == Interest::Named
            && cpus < MAX_SUPERVISOR_CPUS
            && self.roots.iter().any(|&pid| !process::children_of(pid).is_empty())
    }

    /// What a reader must know before he believes the figures.
    fn warnings(&self, facts: &Facts, counters: &Counters, counts: &Counts, cpus_changed: u32) -> Vec<String> {
        let mut warnings = Vec::new();
        let mut warn = |count: u64, text: String| {
            if count > 0 {
                warnings.push(text);
            }
        };
        let (lost, missed, unsettled) = (self.processes.events_lost, self.kernel.children_missed(), self.unsettled);
        let left_out = self.processes.mappings_left_out;
        warn(lost, format!("{lost} process events were lost: frames of code mapped at that time may have no name"));
        warn(missed, format!("{missed} children could not be followed: more than {} processes", self.limits.processes));
        warn(unsettled, format!("{unsettled} windows were drained while a program still wrote: a sample may be late"));
        warn(u64::from(cpus_changed), format!("{cpus_changed} CPUs came or went: samples of the moment are missing"));
        warn(left_out as u64, format!("{left_out} executable mappings were left out: a process has more than 65,536"));
        for path in &self.unwinding.overflowed {
            warnings.push(format!("no room for the unwind table of {path}: raise --table-mb; its frames are cut"));
        }
        if let [first, rest @ ..] = self.processes.unreadable.as_slice() {
            let more = if rest.is_empty() { String::new() } else { format!(", and of {} more processes", rest.len()) };
            warnings.push(format!(
                "{first}{more}: user frames have no names; that needs CAP_SYS_PTRACE and no security module against it"
            ));
        }
        for failure in self.processes.objects.failures.iter().take(MAX_FAILURES_SHOWN) {
            warnings.push(failure.to_string());
        }
        let more = self.processes.objects.failures.len().saturating_sub(MAX_FAILURES_SHOWN);
        if more > 0 {
            warnings.push(format!("{more} more files could not be read"));
        }
        let unsampled = counts.periods().saturating_sub(counters.hits);
        let explained = counts.idle_periods() + u64::try_from(counters.missed).unwrap_or(0);
        if unsampled > explained + counts.periods() / MAX_UNEXPLAINED {
            warnings.push(format!(
                "{} of {} periods have no sample, but CPUs were idle for about {explained} of them only: samples were \
                 lost in a way that could not be seen one by one",
                unsampled,
                counts.periods()
            ));
        }
        if self.supervises(facts) {
            warnings
                .push("the target was nearly idle and has children that work: --children samples them too".to_owned());
        }
        warnings
    }
}

/// Counts user chains as complete that the programs counted as cut for want of a frame pointer.
fn complete(counters: &mut Counters, completed: &[u64; Outcome::COUNT]) {
    let events: u64 = completed.iter().sum();
    for outcomes in [&mut counters.user, &mut counters.whole] {
        let cut = &mut outcomes[Outcome::NoFramePointer as usize];
        *cut = cut.saturating_sub(events);
    }
    counters.user[Outcome::Complete as usize] += events;
    for (outcome, events) in counters.whole.iter_mut().zip(completed) {
        *outcome += events;
    }
}

/// What is wrong with the accounting itself.
fn doubts(accounting: &Accounting) -> Vec<String> {
    let mut doubts = Vec::new();
    if !accounting.adds_up() {
        doubts.push("the accounting does not add up: please report this".to_owned());
    }
    if accounting.not_delivered > accounting.expected * MAX_NOT_DELIVERED {
        doubts.push(format!(
            "{:.1} % of the samples were not delivered: the machine was stopped, or overloaded, or the rate is too high",
            100.0 * accounting.not_delivered / accounting.expected
        ));
    }
    doubts
}

/// Files that could not be read, named one by one.
const MAX_FAILURES_SHOWN: usize = 10;

/// One in this many periods may pass without a sample that idle time does not explain: idle time is measured where
/// the CPU sleeps, and sampled by chance.
const MAX_UNEXPLAINED: u64 = 5;

/// CPUs below which a process with children is taken for their supervisor.
const MAX_SUPERVISOR_CPUS: f64 = 0.02;

/// Share of samples not delivered above which the report warns: twice what an unloaded machine shows.
const MAX_NOT_DELIVERED: f64 = 0.01;

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// Waits until one of several descriptors is readable.
async fn any_readable(watched: &[AsyncFd<OwnedFd>]) -> std::io::Result<()> {
    let mut waits: Vec<_> = watched.iter().map(|one| Box::pin(one.readable())).collect();
    std::future::poll_fn(|context| {
        for wait in &mut waits {
            if let std::task::Poll::Ready(ready) = wait.as_mut().poll(context) {
                return std::task::Poll::Ready(ready.map(|mut guard| guard.clear_ready()));
            }
        }
        std::task::Poll::Pending
    })
    .await
}
