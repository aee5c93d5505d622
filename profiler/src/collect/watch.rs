//! What each window of a recording came to, for whoever watches it while it goes on.
//!
//! Sent are differences to what was sent before: new frames, stacks and threads once, and the values of one window. Names are
//! looked up by whoever receives it ([`super::View`]), so that the recording does not wait for that.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::time::Duration;

use profiler_common::counters::{Class, Outcome};
use profiler_common::event::Origin;

use super::gathered::OfOrigin;
use super::host::own_usage;
use super::session::Session;
use crate::bpf::BpfError;
use crate::process::{JitProcess, ObjectFile};
use crate::profile::{Figures, RawFrame, StackId, Thread, ThreadId};
use crate::symbolize::InterpretedFrame;

/// A window of a recording.
#[derive(Debug)]
pub struct Window {
    /// Since the start of the recording.
    pub elapsed: Duration,
    /// Since the window before.
    pub length: Duration,
    /// What each origin recorded.
    pub origins: Vec<OriginWindow>,
    /// What the target and the host used in the last slice of the timeline.
    pub figures: Figures,
    /// Length of that slice.
    pub slice: Duration,
    /// Time inside the BPF programs, ns.
    pub bpf_ns: u64,
    /// CPU time of this profiler.
    pub agent_cpu: Duration,
    /// Objects that [`RawFrame::Object`] can name from now on, after those that were sent.
    pub new_objects: Vec<Arc<ObjectFile>>,
    /// The same for [`RawFrame::Interpreted`].
    pub new_interpreted: Vec<InterpretedFrame>,
    /// All processes that [`RawFrame::Jit`] can name; empty where no new frame does.
    pub jit: Vec<JitProcess>,
}

/// What an origin recorded in a window.
#[derive(Debug)]
pub struct OriginWindow {
    /// The probe.
    pub origin: Origin,
    /// Frames after those that were sent.
    pub new_frames: Vec<RawFrame>,
    /// Stacks after those that were sent, leaf first.
    pub new_stacks: Vec<Box<[u32]>>,
    /// Threads after those that were sent.
    pub new_threads: Vec<Thread>,
    /// The primary column by stack and thread.
    pub values: Vec<(StackId, ThreadId, u64)>,
    /// Samples of which nothing is missing.
    pub complete: u64,
    /// Samples with a chain that was cut or lost.
    pub truncated: u64,
    /// Samples that were lost.
    pub lost: u64,
}

/// What was sent of a recording.
#[derive(Debug)]
pub(super) struct Watch {
    to: Sender<Window>,
    origins: HashMap<Origin, Sent>,
    elapsed: Duration,
    bpf_ns: u64,
    agent_cpu: Duration,
    objects: usize,
    interpreted: usize,
}

/// What was sent of an origin.
#[derive(Debug, Default)]
struct Sent {
    frames: usize,
    stacks: usize,
    threads: usize,
    /// Values by stack and thread, since the start of the recording.
    values: HashMap<(StackId, ThreadId), u64>,
    /// Complete, truncated and lost samples since then.
    outcomes: [u64; 3],
}

impl Watch {
    /// Sends to whoever has the other end.
    pub(super) fn new(to: Sender<Window>) -> Self {
        Self {
            to,
            origins: HashMap::new(),
            elapsed: Duration::ZERO,
            bpf_ns: 0,
            agent_cpu: Duration::ZERO,
            objects: 0,
            interpreted: 0,
        }
    }

    /// Sends what has come since the last call. `elapsed`: since the start of the recording.
    pub(super) fn end_window(&mut self, session: &Session, elapsed: Duration) -> Result<(), BpfError> {
        let mut origins = Vec::new();
        for gathered in session.gathered.origins() {
            let origin = gathered.profile.origin;
            let whole = session.kernel.counters(origin)?.whole;
            origins.push(self.origins.entry(origin).or_default().end_window(gathered, &whole));
        }
        let mut new = origins.iter().flat_map(|origin: &OriginWindow| &origin.new_frames);
        let has_jit = new.any(|frame| matches!(frame, RawFrame::Jit { .. }));
        let objects = session.processes.objects.objects();
        let interpreted = session.pythons.frames();
        let (bpf_ns, _) = session.kernel.run_time();
        let (agent_cpu, _) = own_usage();
        let (figures, slice) = session.slices.last();
        let window = Window {
            elapsed,
            length: elapsed.saturating_sub(self.elapsed),
            origins,
            figures,
            slice,
            bpf_ns: bpf_ns.saturating_sub(self.bpf_ns),
            agent_cpu: agent_cpu.saturating_sub(self.agent_cpu),
            new_objects: objects[self.objects..].to_vec(),
            new_interpreted: interpreted[self.interpreted..].to_vec(),
            jit: if has_jit { session.processes.jit.clone() } else { Vec::new() },
        };
        (self.elapsed, self.bpf_ns, self.agent_cpu) = (elapsed, bpf_ns, agent_cpu);
        (self.objects, self.interpreted) = (objects.len(), interpreted.len());
        // Nobody may look any more.
        let _ = self.to.send(window);
        Ok(())
    }
}

impl Sent {
    fn end_window(&mut self, gathered: &OfOrigin, whole: &[u64; Outcome::COUNT]) -> OriginWindow {
        let profile = &gathered.profile;
        let column = profile.origin.row().primary;
        let mut now: HashMap<(StackId, ThreadId), u64> = HashMap::new();
        for (&(stack, thread, ..), values) in &profile.samples {
            *now.entry((stack, thread)).or_default() += values[column];
        }
        let new = |(&(stack, thread), &value): (&(StackId, ThreadId), &u64)| {
            let before = self.values.get(&(stack, thread)).copied().unwrap_or(0);
            (value > before).then_some((stack, thread, value - before))
        };
        let values = now.iter().filter_map(new).collect();
        let mut outcomes = [0; 3];
        for (outcome, &count) in Outcome::ALL.into_iter().zip(whole) {
            let class = match outcome.class() {
                Class::Complete => 0,
                Class::Truncated => 1,
                // A sample that lost a chain alone is in the profile.
                Class::Lost => 1 + usize::from(outcome.loses_record()),
            };
            outcomes[class] += count;
        }
        let [complete, truncated, lost] = [0, 1, 2].map(|class| outcomes[class].saturating_sub(self.outcomes[class]));
        let (frames, stacks, threads) = (profile.frames.values(), profile.stacks.values(), profile.threads.values());
        let window = OriginWindow {
            origin: profile.origin,
            new_frames: frames[self.frames..].to_vec(),
            new_stacks: stacks[self.stacks..].to_vec(),
            new_threads: threads[self.threads..].to_vec(),
            values,
            complete,
            truncated,
            lost,
        };
        *self = Self { frames: frames.len(), stacks: stacks.len(), threads: threads.len(), values: now, outcomes };
        window
    }
}
