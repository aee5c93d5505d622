//! A recording that goes on: what it is attached to, and the windows that are cut from it.
//!
//! `record` cuts once, at its end; the daemon every few seconds, and each of its windows begins when the one before ended, by one
//! clock. A wait belongs to the window in which it ends: one that has not ended when the recording does belongs to the last, or
//! to none where windows were cut before.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::Result;
use profiler_common::config::{PROCESS_AWAITS_EXEC, PROCESS_TARGET, Process};
use profiler_common::event::Origin;
use profiler_common::wait::recorded_waits;

use super::command::{HeldCommand, RunningCommand};
use super::cut::{Before, Cut, End, Facts, Span, cut, nanoseconds};
use super::disks::Disks;
use super::events::{Events, LoadedEvents};
use super::host::raise_file_limit;
use super::memory::MemoryWatch;
use super::processes::{Interest, Processes};
use super::record::Progress;
use super::session::{Ended, Session, TARGET_PROCESS};
use super::target::{Caches, NamingConfig, RecordConfig, TargetSelection};
use super::timeline::Slices;
use super::unwinding::Unwinding;
use super::waiting::take_waiting;
use super::watch::Watch;
use crate::bpf::{Kernel, Lifecycle, Limits, SamplingEvent};
use crate::process;
use crate::symbolize::Options;

/// A recording that goes on.
pub struct Recorder {
    session: Session,
    events: Events,
    facts: Facts,
    before: Before,
    labels: Labels,
    /// Whether waits, who ends them, and requests to block devices are recorded at the moment.
    has_waits: bool,
    has_wakers: bool,
    has_blocks: bool,
}

impl Recorder {
    /// Attaches what is to be recorded, and begins; also how the frames of what is cut are to be named.
    ///
    /// # Errors
    ///
    /// When the target is not there, something cannot be attached, or the command cannot be started.
    pub fn start(config: &RecordConfig) -> Result<(Self, Options)> {
        let selection = config.target.selection()?;
        raise_file_limit();
        let asked_for = |origin| config.origins.contains(&origin);
        let event = asked_for(Origin::Cpu).then(SamplingEvent::detect);
        let has_fixed_period = event.is_some_and(|event| event.period_ns(config.rate_hz) > 0);
        let Caches { tables, names } = config.cache.open()?;
        let unwinding = Unwinding::new(tables);
        let (of_waits, of_locks) = (asked_for(Origin::OffCpu), asked_for(Origin::Lock));
        // A lock is held by who gives it back.
        let wakers = of_locks || (of_waits && config.wakers);
        let flags =
            [(of_waits, recorded_waits::ALL), (of_locks, recorded_waits::LOCKS), (wakers, recorded_waits::WAKERS)];
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
        let mut kernel = Kernel::load(&selection, limits, has_fixed_period, std::process::id())?;
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
        session.drain_every = config.drain_every;
        let events = events.start(config.rate_hz)?;
        if let Some(hook) = hook {
            session.kernel.begin_waits(hook, wakers)?;
        }
        session.kernel.begin_counted(limits)?;
        session.disks = Disks::read();
        session.watch = config.watch.clone().map(Watch::new);
        limits.allocs.then(|| session.begin_allocations(config.alloc, !config.continuous)).transpose()?;
        limits.functions.then(|| session.begin_functions(config)).transpose()?;
        session.started = Instant::now();
        let labels = Labels::new(SystemTime::now());
        session.slices = Slices::begin(&config.target, &session.processes);
        session.memory = MemoryWatch::begin(&config.target, session.slices.members());
        session.command = targets.held.take().map(HeldCommand::release).transpose()?;
        let sampled = event.map(|event| (event, config.rate_hz));
        let cgroup = match &config.target {
            TargetSelection::Cgroup(path) => Some(path.clone()),
            _ => None,
        };
        let facts = Facts { target, cgroup, sampled, hook, limits, continuous: config.continuous };
        let NamingConfig { debug_directories, debuginfod, shorten } = config.naming.clone();
        let naming = Options { debug_directories, debuginfod, shorten, cache: names, known: None };
        let recorder = Self {
            session,
            events,
            facts,
            // What it takes to begin is part of a recording, and of no window of one that goes on for ever.
            before: if config.continuous { Before::begun() } else { Before::default() },
            labels,
            has_waits: hook.is_some(),
            has_wakers: wakers,
            has_blocks: limits.blocks,
        };
        Ok((recorder, naming))
    }

    /// Records until a moment, or until there is nothing left to record. When it is dropped before, nothing is lost: call it again.
    ///
    /// # Errors
    ///
    /// When a map cannot be read or an event not be opened.
    pub async fn run(&mut self, until: Instant, progress: &mut dyn FnMut(Progress)) -> Result<Ended> {
        self.session.run(&mut self.events, until, progress).await
    }

    /// Since the recording began.
    #[must_use]
    pub fn elapsed(&self) -> Duration {
        self.session.started.elapsed()
    }

    /// What is recorded, for a person.
    #[must_use]
    pub fn target(&self) -> &str {
        &self.facts.target.description
    }

    /// Events of the window so far.
    #[must_use]
    pub fn samples(&self) -> u64 {
        self.session.gathered.events()
    }

    /// Takes as many samples a second from now on, where there are any. Call it when a window has just begun.
    ///
    /// # Errors
    ///
    /// When an event cannot be opened.
    pub fn set_rate(&mut self, rate_hz: u64) -> Result<()> {
        if let Some((_, sampled_hz)) = &mut self.facts.sampled {
            *sampled_hz = rate_hz;
        }
        Ok(self.events.set_rate(rate_hz)?)
    }

    /// Records waits from now on, or does not, where they were asked for.
    ///
    /// # Errors
    ///
    /// When something cannot be attached or detached.
    pub fn set_waits(&mut self, is_on: bool) -> Result<()> {
        let (Some(hook), true) = (self.facts.hook, is_on != self.has_waits) else { return Ok(()) };
        let kernel = &mut self.session.kernel;
        if is_on {
            kernel.begin_waits(hook, self.has_wakers)?
        } else {
            kernel.pause_waits()?
        }
        self.has_waits = is_on;
        Ok(())
    }

    /// The same of requests to block devices.
    ///
    /// # Errors
    ///
    /// As of [`Recorder::set_waits`].
    pub fn set_blocks(&mut self, is_on: bool) -> Result<()> {
        if !self.facts.limits.blocks || is_on == self.has_blocks {
            return Ok(());
        }
        let kernel = &mut self.session.kernel;
        if is_on {
            kernel.begin_blocks()?
        } else {
            kernel.end_blocks()?
        }
        self.has_blocks = is_on;
        Ok(())
    }

    /// Ends the window that goes on and begins the next, without a gap.
    ///
    /// # Errors
    ///
    /// When a map cannot be read.
    pub fn cut(&mut self) -> Result<Cut> {
        let span = self.end_span();
        self.session.tell_slice();
        self.session.slices.end_slice(span.end, &self.session.processes);
        self.session.end_window()?;
        let counts = self.events.since_last();
        let cut = cut(&mut self.session, &mut self.before, &self.facts, span, counts, End::Next)?;
        self.session.forget_unused()?;
        Ok(cut)
    }

    /// Detaches everything and takes the last window out; also the command that was started, which may still run.
    ///
    /// # Errors
    ///
    /// When something cannot be detached, or a map not be read.
    pub fn finish(mut self) -> Result<(Cut, Option<RunningCommand>)> {
        let span = self.end_span();
        let Self { mut session, mut facts, mut before, events, .. } = self;
        session.tell_slice();
        session.slices.end_slice(span.end, &session.processes);
        if facts.hook.is_some() {
            session.kernel.end_waits()?;
        }
        let counts = events.stop();
        session.kernel.end_counted(facts.limits)?;
        if let Some(allocations) = &mut session.allocations {
            allocations.end(&mut session.kernel, &session.processes)?;
        }
        if let Some(functions) = &mut session.functions {
            functions.end(&mut session.kernel);
        }
        let (mut uncounted, mut of_lasting) = Default::default();
        // They would bring the time since it began.
        if facts.hook.is_some() && !facts.continuous {
            match take_waiting(&mut session, facts.cgroup.as_deref()) {
                Ok(counters) => uncounted = counters,
                Err(error) => of_lasting = Some(format!("the threads that waited at the end are missing: {error}")),
            }
        }
        // Twice: what was written late is in the other generation.
        session.end_window()?;
        session.end_window()?;
        if let Some(command) = &mut session.command {
            facts.target.exit_code = command.try_wait().map(super::command::CommandEnd::exit_code);
        }
        let cut = cut(&mut session, &mut before, &facts, span, counts, End::Last(uncounted, of_lasting))?;
        // Nothing stays attached while names are looked up, which may take a while.
        Ok((cut, session.command))
    }

    /// Ends the time of the window that goes on; the next one begins at the same moment.
    fn end_span(&mut self) -> Span {
        let end = self.elapsed();
        let began = std::mem::replace(&mut self.session.window_began, end);
        let started_at_ns = self.labels.label(began, end, SystemTime::now());
        Span { started_at_ns, duration: end - began, end }
    }
}

/// What windows are called: when they began by the wall clock. Their lengths are by the monotonic clock, so that they follow each
/// other without a gap; only when the wall clock was set, or the host suspended, the next label goes along.
#[derive(Clone, Copy, Debug)]
struct Labels {
    /// What the wall clock said, or would have said, when the recording began.
    began_at: SystemTime,
}

impl Labels {
    /// How far the clocks may come apart before the wall clock was set: the monotonic clock follows its corrections.
    const SET: Duration = Duration::from_secs(1);

    const fn new(began_at: SystemTime) -> Self {
        Self { began_at }
    }

    /// The label of a window, ns since the Unix epoch. `began` and `end`: since the start of the recording; `now`: the wall clock
    /// when it ended.
    fn label(&mut self, began: Duration, end: Duration, now: SystemTime) -> u64 {
        let label = self.began_at + began;
        let expected = self.began_at + end;
        let apart = now.duration_since(expected).unwrap_or_else(|earlier| earlier.duration());
        if apart > Self::SET {
            self.began_at = now.checked_sub(end).unwrap_or(self.began_at);
        }
        nanoseconds(label.duration_since(UNIX_EPOCH).unwrap_or_default())
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_follow_each_other_and_go_along_when_the_clock_is_set() {
        let second = |number| Duration::from_secs(number);
        let at = |number| UNIX_EPOCH + second(number);
        let mut labels = Labels::new(at(1_000));
        // Small differences are none.
        let ms = Duration::from_millis(200);
        assert_eq!(labels.label(second(0), second(10), at(1_010) + ms), 1_000_000_000_000);
        assert_eq!(labels.label(second(10), second(20), at(1_020) - ms), 1_010_000_000_000);
        // Set back by an hour of 500 s, and forth again: the window keeps its label, the next one has the new time.
        assert_eq!(labels.label(second(20), second(30), at(530)), 1_020_000_000_000);
        assert_eq!(labels.label(second(30), second(40), at(540)), 530_000_000_000);
        assert_eq!(labels.label(second(40), second(50), at(1_050)), 540_000_000_000);
        assert_eq!(labels.label(second(50), second(60), at(1_060)), 1_050_000_000_000);
    }
}
