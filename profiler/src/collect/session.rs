//! A recording that runs: the loop that takes windows, events and signals in.

use std::collections::{HashMap, HashSet};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use anyhow::Result;
use profiler_common::block::SlowRequest;
use profiler_common::config::{PROCESS_TARGET, Process, UNKNOWN_EXEC_COUNT};
use profiler_common::event::Origin;
use tokio::io::Interest as Readiness;
use tokio::io::unix::AsyncFd;
use tokio::time::MissedTickBehavior;

use super::allocations::Allocations;
use super::command::RunningCommand;
use super::disks::Disks;
use super::events::Events;
use super::file_names::FileNames;
use super::functions::Functions;
use super::gathered::Gathered;
use super::latencies::Latencies;
use super::lock_times::LockTimes;
use super::memory::MemoryWatch;
use super::place::place_window;
use super::processes::{Interest, Processes};
use super::pythons::Pythons;
use super::record::Progress;
use super::remainder::Finisher;
use super::sliced::SlicedStacks;
use super::tables::Counted;
use super::target::{AllocConfig, RecordConfig, TargetSelection};
use super::thread_times::ThreadTimes;
use super::timeline::Slices;
use super::unwinding::Unwinding;
use super::watch::Watch;
use crate::bpf::{Drained, Kernel, Lifecycle};
use crate::process::{self, JitProcess};
use crate::profile::{RawFrame, RawProfile};
use crate::symbolize::InterpretedFrame;

/// When the first window of a new Python process ends: its functions have names only if they are read while it lives.
const EARLY_WINDOW: Duration = Duration::from_millis(200);

/// How often the maps are emptied where nobody says otherwise.
pub const DRAIN_EVERY: Duration = Duration::from_secs(1);

/// Objects that may be new before it is looked for those that nobody maps, besides a quarter of those that there were; and for
/// how long one that has been deleted may take its place on the disk.
const NEW_OBJECTS: usize = 64;
const SWEEP_EVERY: Duration = Duration::from_secs(600);

/// A process that is sampled.
pub(super) const TARGET_PROCESS: Process = Process {
    generation: 0,
    flags: PROCESS_TARGET,
    first_exec_count: UNKNOWN_EXEC_COUNT,
    first_mapping: 0,
    mappings: 0,
    python_layout: 0,
    python_runtime: 0,
};

/// Why the loop has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// The moment has come.
    Deadline,
    /// There is nothing left to record.
    Target,
}

/// A recording that runs.
pub(super) struct Session {
    pub(super) kernel: Kernel,
    pub(super) lifecycle: Lifecycle,
    pub(super) processes: Processes,
    pub(super) unwinding: Unwinding,
    pub(super) pythons: Pythons,
    pub(super) file_names: FileNames,
    pub(super) slow: Vec<SlowRequest>,
    /// How long the threads that waited for them took to be back, by number of the request, ns.
    pub(super) slow_wake_ups: HashMap<u64, u64>,
    pub(super) latencies: Latencies,
    /// What the devices had counted when the recording began, where requests to them are recorded.
    pub(super) disks: Disks,
    /// Where allocations are recorded, if they are.
    pub(super) allocations: Option<Allocations>,
    /// Where calls of functions are recorded, if they are.
    pub(super) functions: Option<Functions>,
    /// The processes whose end ends the recording.
    pub(super) roots: Vec<u32>,
    pub(super) gathered: Gathered,
    pub(super) times: ThreadTimes,
    pub(super) locks: LockTimes,
    /// Windows in which programs were still writing when they were drained.
    pub(super) unsettled: u64,
    /// What was counted exactly when it was last told.
    pub(super) counted: Counted,
    /// When the recording began, and since then the window that goes on.
    pub(super) started: Instant,
    pub(super) window_began: Duration,
    /// What a record can lag behind, and how often the maps are emptied.
    pub(super) drain_every: Duration,
    /// How many objects there were when it was last looked for those that nobody maps, and when that was.
    swept: (usize, Instant),
    pub(super) command: Option<RunningCommand>,
    pub(super) slices: Slices,
    /// What was told of it to whoever watches.
    pub(super) watch: Option<Watch>,
    pub(super) memory: MemoryWatch,
    ends_with_target: bool,
    /// Whether requests to block devices are recorded.
    has_blocks: bool,
}

/// Why the loop woke up.
enum Wake {
    Window,
    Ring,
    Allocations,
    Lifecycle,
    End,
    Deadline,
}

impl Session {
    /// Makes what is known of `processes` known to the programs.
    pub(super) fn new(
        kernel: Kernel,
        lifecycle: Lifecycle,
        processes: Processes,
        roots: Vec<u32>,
        ends_with_target: bool,
        unwinding: Unwinding,
        origins: &[Origin],
    ) -> Result<Self> {
        let mut session = Self {
            kernel,
            lifecycle,
            processes,
            unwinding,
            pythons: Pythons::default(),
            file_names: FileNames::default(),
            slow: Vec::new(),
            slow_wake_ups: HashMap::new(),
            latencies: Latencies::default(),
            disks: Disks::default(),
            allocations: None,
            functions: None,
            roots,
            gathered: Gathered::new(origins),
            times: ThreadTimes::default(),
            locks: LockTimes::default(),
            unsettled: 0,
            counted: Counted::default(),
            started: Instant::now(),
            window_began: Duration::ZERO,
            drain_every: DRAIN_EVERY,
            swept: (0, Instant::now()),
            command: None,
            slices: Slices::default(),
            watch: None,
            memory: MemoryWatch::default(),
            ends_with_target,
            has_blocks: origins.contains(&Origin::BlockIo),
        };
        session.publish_added()?;
        Ok(session)
    }

    /// The loop, until a moment. When it is dropped before, nothing is lost.
    pub(super) async fn run(
        &mut self,
        events: &mut Events,
        until: Instant,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Ended> {
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
        let mut windows = tokio::time::interval_at(tokio::time::Instant::now() + self.drain_every, self.drain_every);
        windows.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let deadline = tokio::time::sleep_until(until.into());
        tokio::pin!(deadline);
        let mut early: Option<Instant> = None;
        loop {
            // Once a window at most, so that a host full of them does not put the end of windows off.
            if self.pythons.take_new() && early.is_none_or(|early| early.elapsed() > self.drain_every) {
                early = Some(Instant::now());
                windows.reset_after(EARLY_WINDOW.min(self.drain_every));
            }
            let look = self.allocations.as_ref().map(Allocations::next);
            let wake = tokio::select! {
                biased;
                () = &mut deadline => Wake::Deadline,
                _ = windows.tick() => Wake::Window,
                ready = any_readable(&lifecycle) => { ready?; Wake::Lifecycle }
                ready = any_readable(&ends) => { ready?; Wake::End }
                ready = ring.readable() => { ready?.clear_ready(); Wake::Ring }
                () = wait_until(look) => Wake::Allocations
            };
            match wake {
                Wake::Deadline => return Ok(Ended::Deadline),
                Wake::Lifecycle => {
                    let changed = self.read_lifecycle()?;
                    if changed && self.ended() {
                        return Ok(Ended::Target);
                    }
                }
                Wake::End => {
                    if self.ended() {
                        return Ok(Ended::Target);
                    }
                }
                Wake::Allocations => {
                    if let Some(allocations) = &mut self.allocations {
                        allocations.look(&mut self.kernel, &self.processes)?;
                    }
                }
                Wake::Ring => {
                    if self.kernel.read_ring() {
                        self.end_window()?;
                    }
                }
                Wake::Window => {
                    self.end_window()?;
                    let elapsed = self.started.elapsed();
                    self.gathered.end_window(elapsed.saturating_sub(self.window_began));
                    self.tell_slice();
                    self.slices.end_window(elapsed, &self.processes);
                    self.memory.look(self.slices.members());
                    if self.has_blocks {
                        self.latencies.end_slice(elapsed, &self.kernel.block_stats()?);
                    }
                    events.follow()?;
                    progress(Progress { elapsed, samples: self.gathered.events(), stage: None });
                    if let Some(mut watch) = self.watch.take() {
                        watch.end_window(self, elapsed)?;
                        self.watch = Some(watch);
                    }
                    if self.ended() {
                        return Ok(Ended::Target);
                    }
                }
            }
        }
    }

    /// Tells the slice of the timeline that ends now what was allocated.
    pub(super) fn tell_slice(&mut self) {
        let Self { slices, allocations, gathered, .. } = self;
        if let Some(allocations) = allocations {
            slices.tell(allocations.figures(gathered.profile(Origin::Alloc)));
        }
    }

    /// Takes lifecycle events in; returns whether there were any.
    fn read_lifecycle(&mut self) -> Result<bool> {
        let events = self.lifecycle.read();
        let some = !events.is_empty();
        for pid in self.processes.apply(events) {
            self.publish(pid)?;
        }
        if self.processes.take_rescan_all() {
            self.reconcile()?;
        }
        Ok(some)
    }

    /// Tells the programs of processes whose mappings were read from /proc.
    fn publish_added(&mut self) -> Result<()> {
        for pid in self.processes.take_added() {
            self.publish(pid)?;
        }
        Ok(())
    }

    /// Tells the programs what a process maps, and learns from them what they know better.
    fn publish(&mut self, pid: u32) -> Result<()> {
        self.learn_exec_count(pid);
        let run = self.unwinding.update(&mut self.kernel, pid, &mut self.processes)?;
        let (python_layout, python_runtime) = self.pythons.attach(&mut self.kernel, pid, &mut self.processes)?;
        let flags = if self.processes.is_bystander(pid) { 0 } else { PROCESS_TARGET };
        // Read only now: the programs may have changed it while the tables were made.
        let known = self.kernel.process(pid);
        let published = Process {
            generation: self.processes.generation(pid),
            first_mapping: run.first,
            mappings: run.length,
            python_layout,
            python_runtime,
            // What wakes a target must not become one.
            ..known.unwrap_or(Process { flags, ..TARGET_PROCESS })
        };
        if known != Some(published) {
            // One that does not fit is walked by frame pointer, and its addresses looked up in what is known of it.
            let _ = self.kernel.set_process(pid, published);
        }
        // Only once its stacks can be walked.
        if let Some(allocations) = &mut self.allocations
            && !self.processes.is_bystander(pid)
        {
            allocations.update(&mut self.kernel, pid, &mut self.processes);
        }
        if let Some(functions) = &mut self.functions
            && !self.processes.is_bystander(pid)
        {
            functions.update(&mut self.kernel, pid, &mut self.processes)?;
        }
        Ok(())
    }

    /// After events were lost: lists the processes that we do not know, and forgets those that have ended.
    fn reconcile(&mut self) -> Result<()> {
        for pid in self.kernel.known_processes() {
            if self.processes.knows(pid) {
                continue;
            }
            if process::is_running(pid) && self.processes.interest() != Interest::Named {
                self.processes.add(pid);
            } else {
                self.kernel.remove_process(pid);
            }
        }
        self.publish_added()
    }

    /// Learns the exec count that a process began with, which the programs saw.
    fn learn_exec_count(&mut self, pid: u32) {
        if let Some(process) = self.kernel.process(pid)
            && process.first_exec_count != UNKNOWN_EXEC_COUNT
        {
            self.processes.set_first_exec_count(pid, process.first_exec_count);
        }
    }

    /// Puts probes on the allocators of every process that is known.
    ///
    /// `config`: which ones are recorded, and what that may cost; `follows`: whether to find out what becomes of the blocks.
    pub(super) fn begin_allocations(&mut self, config: AllocConfig, follows: bool) -> Result<()> {
        let mut allocations = Allocations::new(self.processes.interest(), config);
        let alive: Vec<u32> = self.processes.alive().filter(|&pid| !self.processes.is_bystander(pid)).collect();
        for pid in alive {
            allocations.update(&mut self.kernel, pid, &mut self.processes);
        }
        allocations.begin(&mut self.kernel, follows)?;
        self.allocations = Some(allocations);
        Ok(())
    }

    /// Puts probes on the functions that were named, in every process that is known.
    pub(super) fn begin_functions(&mut self, config: &RecordConfig) -> Result<()> {
        let patterns = config.functions.clone();
        let mut functions = Functions::new(self.processes.interest(), patterns, &mut self.kernel);
        let alive: Vec<u32> = self.processes.alive().filter(|&pid| !self.processes.is_bystander(pid)).collect();
        for pid in alive {
            functions.update(&mut self.kernel, pid, &mut self.processes)?;
        }
        let is_there = matches!(config.target, TargetSelection::Processes { .. });
        functions.begin(&self.kernel, is_there)?;
        self.functions = Some(functions);
        Ok(())
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

    /// Adds records to what there is.
    pub(super) fn place(&mut self, drained: &Drained) {
        let Self { kernel, unwinding, processes, pythons, gathered, times, file_names, slow, slow_wake_ups, .. } = self;
        slow.extend(&drained.slow);
        slow_wake_ups.extend(drained.slow_wake_ups.iter().map(|told| (told.number, told.wake_up_ns)));
        file_names.add(&drained.file_names);
        for ended in &drained.ended {
            times.add_ended(ended, &kernel.recorded());
        }
        place_window(drained, &mut Finisher { kernel, unwinding, processes }, pythons, gathered);
    }

    /// Hands out the profiles, the values by slice, and what their frames are numbered by; everything is numbered anew from
    /// now on.
    pub(super) fn take_records(
        &mut self,
    ) -> (Vec<RawProfile>, Vec<SlicedStacks>, Vec<JitProcess>, Vec<InterpretedFrame>) {
        let (jit, renumbered) = self.processes.take_jit();
        let interpreted = self.pythons.take_frames();
        let pythons = &mut self.pythons;
        let (raw, sliced) = self.gathered.take(|frame| match frame {
            RawFrame::Jit { process, address } => {
                renumbered.get(&process).map(|&process| RawFrame::Jit { process, address })
            }
            RawFrame::Interpreted(number) => {
                let frame = interpreted.get(number as usize)?;
                Some(RawFrame::Interpreted(pythons.keep_frame(frame.clone())))
            }
            other => Some(other),
        });
        (raw, sliced, jit, interpreted)
    }

    /// Forgets what a recording without an end must not keep: files that nobody maps, and names of files when there are many.
    pub(super) fn forget_unused(&mut self) -> Result<()> {
        let (before, at) = self.swept;
        if self.processes.objects.len() > before + (before / 4).max(NEW_OBJECTS) || at.elapsed() > SWEEP_EVERY {
            let late = self.gathered.late_frames().filter_map(|frame| match frame {
                RawFrame::Object { object, .. } => Some(object),
                _ => None,
            });
            let late: HashSet<u32> = late.collect();
            let forgotten = self.processes.forget_objects(&late);
            self.unwinding.forget_objects(&forgotten);
            self.pythons.forget_objects(&forgotten);
            if let Some(allocations) = &mut self.allocations {
                allocations.forget_objects(&forgotten);
            }
            if let Some(functions) = &mut self.functions {
                functions.forget_objects(&forgotten);
            }
            self.swept = (self.processes.objects.len(), Instant::now());
        }
        if self.file_names.is_nearly_full() {
            self.file_names.forget();
            self.kernel.forget_named_files()?;
        }
        Ok(())
    }

    /// Takes in what the programs have counted since the last call.
    pub(super) fn end_window(&mut self) -> Result<()> {
        let drained = self.kernel.drain()?;
        self.read_lifecycle()?;
        for pid in self.roots.clone() {
            self.learn_exec_count(pid);
        }
        self.unsettled += u64::from(drained.unsettled);
        self.place(&drained);
        self.publish_added()?;
        for pid in self.processes.end_window() {
            self.kernel.remove_process(pid);
            self.unwinding.forget(&mut self.kernel, pid);
            self.pythons.forget(pid);
            if let Some(allocations) = &mut self.allocations {
                allocations.forget(&mut self.kernel, pid, &self.processes);
            }
            if let Some(functions) = &mut self.functions {
                functions.forget(&mut self.kernel, pid, &self.processes);
            }
        }
        if let Some(functions) = &mut self.functions {
            functions.end_window(&mut self.kernel, &self.processes);
        }
        self.pythons.end_window();
        self.kernel.end_table_window();
        Ok(())
    }
}

/// Waits until a moment; for ever where there is none.
async fn wait_until(moment: Option<Instant>) {
    match moment {
        Some(moment) => tokio::time::sleep_until(moment.into()).await,
        None => std::future::pending().await,
    }
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
