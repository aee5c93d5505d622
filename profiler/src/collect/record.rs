//! One recording, from attaching to the last symbol.

use std::collections::BTreeMap;
use std::os::fd::{AsRawFd, RawFd};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result};
use profiler_common::config::{PROCESS_AWAITS_EXEC, PROCESS_TARGET, Process};
use profiler_common::counters::{Counters, Outcome};
use profiler_common::event::Origin;
use tokio::io::Interest as Readiness;
use tokio::io::unix::AsyncFd;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::MissedTickBehavior;

use super::command::{HeldCommand, RunningCommand};
use super::host::{host, own_usage, raise_file_limit};
use super::place::{MissingChains, place_window};
use super::processes::{Interest, NewGeneration, Processes};
use super::target::{RecordConfig, TargetSelection};
use crate::bpf::{Kernel, Lifecycle, Sampler, SamplingEvent, Selection, map_bytes};
use crate::process;
use crate::profile::{
    Accounting, Capture, Index, OriginSummary, Overhead, RawProfile, SCHEMA_VERSION, Target,
};
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

/// A descriptor to wait on that somebody else owns.
struct Watched(RawFd);

impl AsRawFd for Watched {
    fn as_raw_fd(&self) -> RawFd {
        self.0
    }
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
    let mut kernel = Kernel::load(&selection, config.limits, std::process::id())?;
    let program = kernel.load_sampling_program()?;
    let event = SamplingEvent::detect();
    let lifecycle = Lifecycle::start()?;
    if matches!(selection, Selection::Processes { follow_children: true }) {
        kernel.follow_processes()?;
    }
    let mut targets = Targets::find(config, &mut kernel)?;
    let target = config.target.describe(targets.held.as_ref().map(|held| held.pid));
    let sampler = Sampler::start(event, config.rate_hz, program)?;
    let (started, started_at) = (Instant::now(), SystemTime::now());
    let command = targets.held.take().map(HeldCommand::release).transpose()?;
    let mut session = Session {
        kernel,
        lifecycle,
        sampler,
        processes: targets.processes,
        roots: targets.roots,
        profile: RawProfile::new(Origin::Cpu),
        missing: MissingChains::default(),
        unsettled: 0,
        warnings: Vec::new(),
        command,
        ends_with_target: matches!(
            config.target,
            TargetSelection::Processes { .. } | TargetSelection::Command(_)
        ),
    };
    let interrupted = session.run(config.duration, started, &mut stop, progress).await?;
    let duration = started.elapsed();
    progress(Progress { elapsed: duration, samples: session.profile.events(), stage: Some("naming frames") });
    let facts = Facts { target, event, rate_hz: config.rate_hz, duration, started_at };
    session.finish(facts, interrupted)
}

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
                    kernel.set_process(pid, Process { generation: 0, flags: PROCESS_TARGET })?;
                }
                if *children {
                    for pid in pids.iter().flat_map(|&pid| process::descendants_of(pid)) {
                        kernel.set_process(pid, Process { generation: 0, flags: PROCESS_TARGET })?;
                        targets.processes.add(pid)?;
                    }
                }
                for &pid in pids {
                    targets.processes.add(pid)?;
                }
            }
            TargetSelection::Command(arguments) => {
                let held = HeldCommand::start(arguments)?;
                let flags = PROCESS_TARGET | PROCESS_AWAITS_EXEC;
                kernel.set_process(held.pid, Process { generation: 0, flags })?;
                targets.processes.add(held.pid)?;
                targets.roots.push(held.pid);
                targets.held = Some(held);
            }
            TargetSelection::Cgroup(_) | TargetSelection::Comm(_) | TargetSelection::Host => {}
        }
        Ok(targets)
    }
}

/// A recording that runs.
struct Session {
    kernel: Kernel,
    lifecycle: Lifecycle,
    sampler: Sampler,
    processes: Processes,
    roots: Vec<u32>,
    profile: RawProfile,
    missing: MissingChains,
    /// Windows in which programs were still writing when they were drained.
    unsettled: u64,
    warnings: Vec<String>,
    command: Option<RunningCommand>,
    ends_with_target: bool,
}

/// Why the loop woke up.
enum Wake {
    Window,
    Ring,
    Lifecycle,
    Deadline,
    Signal,
}

impl Session {
    /// The loop; returns whether a signal ended it.
    async fn run(
        &mut self,
        duration: Option<Duration>,
        started: Instant,
        stop: &mut Stop,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<bool> {
        let watch = |fd: RawFd| AsyncFd::with_interest(Watched(fd), Readiness::READABLE);
        let ring = watch(self.kernel.ring_descriptor())?;
        let lifecycle: Vec<_> = self.lifecycle.descriptors().map(watch).collect::<std::io::Result<_>>()?;
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
                ready = ring.readable() => { ready?.clear_ready(); Wake::Ring }
            };
            match wake {
                Wake::Signal => return Ok(true),
                Wake::Deadline => return Ok(false),
                Wake::Lifecycle => {
                    let changed = self.read_lifecycle();
                    if changed && self.ended() {
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
                    self.sampler.follow_cpus()?;
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
    fn read_lifecycle(&mut self) -> bool {
        let events = self.lifecycle.read();
        let some = !events.is_empty();
        let changed = self.processes.apply(events);
        self.publish(changed);
        some
    }

    /// Tells the programs of new mapping generations.
    fn publish(&mut self, changed: Vec<NewGeneration>) {
        for (pid, generation) in changed {
            let flags = self.kernel.process(pid).map_or(0, |process| process.flags);
            // A process that does not fit keeps generation 0: its addresses are looked up in what is known of it.
            let _ = self.kernel.set_process(pid, Process { generation, flags });
        }
    }

    /// Whether there is nothing left to wait for.
    fn ended(&mut self) -> bool {
        if let Some(command) = &mut self.command {
            return command.try_wait().is_some();
        }
        self.ends_with_target
            && self.roots.iter().all(|&pid| !process::exists(pid))
            && self.processes.alive().all(|pid| !process::exists(pid))
    }

    fn end_window(&mut self) -> Result<()> {
        let drained = self.kernel.drain()?;
        self.read_lifecycle();
        self.unsettled += u64::from(drained.unsettled);
        let missing = place_window(&drained, &mut self.processes, &mut self.profile);
        self.missing.merge(&missing);
        for pid in self.processes.end_window() {
            self.kernel.remove_process(pid);
        }
        Ok(())
    }

    /// Stops sampling, empties the maps for the last time and names what was found.
    fn finish(mut self, facts: Facts, interrupted: bool) -> Result<Recording> {
        let cpus_changed = self.sampler.cpus_changed;
        let Self { sampler, .. } = self;
        let expected = sampler.stop();
        let mut session = FinishedSession {
            kernel: self.kernel,
            lifecycle: self.lifecycle,
            processes: self.processes,
            profile: self.profile,
            missing: self.missing,
        };
        // Twice: what was written late is in the other generation.
        session.end_window()?;
        session.end_window()?;
        let counters = session.counters()?;
        let expected = expected(counters.hits, counters.period_sum);
        let (bpf_ns, bpf_runs) = session.kernel.run_time();
        let bpf_map_bytes = map_bytes();
        let FinishedSession { kernel, processes, profile, .. } = session;
        let children_missed = kernel.children_missed();
        drop(kernel);
        let sources = Sources { objects: processes.objects.objects(), perf_maps: &processes.perf_maps };
        let Symbolized { profile, objects, warnings } = symbolize(profile, &sources);
        self.warnings.extend(warnings);
        self.warn(&processes, children_missed, cpus_changed);
        let accounting = Accounting::new(&counters, expected);
        let totals = profile.totals();
        let row = Origin::Cpu.row();
        let summary = OriginSummary {
            unit: row.unit.to_owned(),
            total: totals[row.primary],
            n: totals[0],
            event: facts.event.name().to_owned(),
            rate_hz: facts.rate_hz,
        };
        let (agent_cpu, peak_rss_bytes) = own_usage();
        #[expect(clippy::cast_precision_loss, reason = "a mean, shown to four digits")]
        let bpf_ns_per_sample = if totals[0] == 0 { 0.0 } else { bpf_ns as f64 / totals[0] as f64 };
        let nanoseconds = |duration: Duration| u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        let mut target = facts.target;
        target.exit_code =
            self.command.as_mut().and_then(RunningCommand::try_wait).map(super::command::CommandEnd::exit_code);
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
            warnings: self.warnings,
        };
        let capture = Capture { index, profiles: vec![profile] };
        Ok(Recording { capture, command: self.command, interrupted })
    }
}
