//! What a window of a recording came to: taken out of it without stopping it, as a value that another thread can name.
//!
//! Input: a session that has just drained its maps. Output: a [`Cut`]. What programs count is never emptied, so the last reading
//! is kept and taken off ([`Before`]); frames, stacks and threads are numbered anew in each window, so that nothing grows with
//! the time a recording takes. Looks no name up.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use profiler_common::counters::Counters;
use profiler_common::event::Origin;
use profiler_common::wait::{LockKey, LockWaits};

use super::allocations::Allocations;
use super::blocks;
use super::choice::Choice;
use super::events::EventCounts;
use super::gathered::OfOrigin;
use super::host::{anonymous_bytes, own_usage};
use super::live::outcomes;
use super::session::Session;
use super::sliced::SlicedStacks;
use super::tables::{Tables, tables};
use super::warnings::{Losses, warnings};
use crate::bpf::{BpfError, Limits, SamplingEvent, WaitHook, map_bytes};
use crate::process::{JitProcess, ObjectFile};
use crate::profile::{Live, LockTime, Memory, RawProfile, SlowRequests, Target, ThreadTime, Timeline};
use crate::symbolize::InterpretedFrame;

/// What is known before the recording begins.
#[derive(Clone, Debug)]
pub(super) struct Facts {
    pub(super) target: Target,
    /// The cgroup that was asked for, if it was one.
    pub(super) cgroup: Option<PathBuf>,
    /// What samples are taken by, and how many a second.
    pub(super) sampled: Option<(SamplingEvent, u64)>,
    /// What waits are seen by.
    pub(super) hook: Option<WaitHook>,
    pub(super) limits: Limits,
    /// Whether there is no end at which threads that wait would be looked at.
    pub(super) continuous: bool,
}

/// When a window was.
#[derive(Clone, Copy, Debug)]
pub(super) struct Span {
    /// Its start by the wall clock, ns since the Unix epoch.
    pub(super) started_at_ns: u64,
    /// How long it took.
    pub(super) duration: Duration,
    /// Its end since the start of the recording.
    pub(super) end: Duration,
}

/// How a window ends.
pub(super) enum End {
    /// With the next one.
    Next,
    /// With the recording. Its programs are detached; what the threads that waited then were not counted for, and why that is
    /// missing.
    Last(BTreeMap<Origin, Counters>, Option<String>),
}

/// What had been counted when the window before ended.
#[derive(Debug, Default)]
pub(super) struct Before {
    counters: BTreeMap<Origin, Counters>,
    losses: Losses,
    locks: HashMap<LockKey, LockWaits>,
    locks_missed: u64,
    run_time: (u64, u64),
    of_waits_ns: u64,
    of_blocks_ns: u64,
    trap_ns: u64,
    agent_cpu: Duration,
}

impl Before {
    /// Of a recording that has just begun, and whose beginning is in no window.
    pub(super) fn begun() -> Self {
        Self { agent_cpu: own_usage().0, ..Self::default() }
    }
}

/// A window of a recording, before its frames have names.
#[derive(Debug)]
pub struct Cut {
    pub(super) facts: Facts,
    pub(super) span: Span,
    pub(super) choice: Choice,
    /// A profile of each origin, and the values of its stacks by slice.
    pub(super) raw: Vec<RawProfile>,
    pub(super) sliced: Vec<SlicedStacks>,
    pub(super) counters: BTreeMap<Origin, Counters>,
    pub(super) counts: EventCounts,
    pub(super) made: Tables,
    pub(super) thread_times: Vec<ThreadTime>,
    pub(super) lock_times: Vec<LockTime>,
    pub(super) slow_requests: SlowRequests,
    pub(super) timeline: Timeline,
    pub(super) memory: Memory,
    pub(super) live: Option<Live>,
    /// The functions that allocations were seen by.
    pub(super) allocators: String,
    pub(super) bpf_ns: u64,
    pub(super) bpf_runs: u64,
    pub(super) trap_ns: u64,
    /// CPU time of this profiler; of a recording that has ended it is not known before everything has names.
    pub(super) agent_cpu: Option<Duration>,
    /// Of `bpf_ns`, in the programs of waits, and of requests to block devices.
    pub(super) of_waits_ns: u64,
    pub(super) of_blocks_ns: u64,
    pub(super) bpf_map_bytes: u64,
    pub(super) warnings: Vec<String>,
    /// What frames can be named by.
    pub(super) objects: Vec<Arc<ObjectFile>>,
    pub(super) jit: Vec<JitProcess>,
    pub(super) interpreted: Vec<InterpretedFrame>,
}

/// Takes the window that ends now out of a session whose maps were just drained.
pub(super) fn cut(
    session: &mut Session,
    before: &mut Before,
    facts: &Facts,
    span: Span,
    counts: EventCounts,
    end: End,
) -> Result<Cut> {
    let is_last = matches!(end, End::Last(..));
    let (uncounted, of_lasting) = match end {
        End::Next => (BTreeMap::new(), None),
        End::Last(uncounted, of_lasting) => (uncounted, of_lasting),
    };
    let mut counters: BTreeMap<Origin, Counters> = BTreeMap::new();
    for OfOrigin { profile, corrections, .. } in session.gathered.origins() {
        let read = session.kernel.settled_counters(profile.origin)?;
        let mut counted = read.since(&before.counters.insert(profile.origin, read).unwrap_or_default());
        if let Some(uncounted) = uncounted.get(&profile.origin) {
            counted.add(uncounted);
        }
        corrections.correct(&mut counted);
        counters.insert(profile.origin, counted);
    }
    let has = |origin: Origin| session.gathered.profile(origin).is_some();
    let (has_waits, has_locks) = (has(Origin::OffCpu), has(Origin::Lock));
    let missed_locks = if has_locks { take_locks(session, before)? } else { 0 };
    let (times, locks) = (std::mem::take(&mut session.times), std::mem::take(&mut session.locks));
    // Threads that go on have theirs when the recording ends.
    let thread_times = if has_waits && is_last && !facts.continuous { times.into_rows() } else { Vec::new() };
    let (lock_times, locks_left_out_ns) = if has_locks { locks.into_rows() } else { (Vec::new(), 0) };
    let made = tables(session, facts.limits, span.end, span.duration, is_last)?;
    let allocators = session.allocations.as_ref().map_or_else(Vec::new, Allocations::names).join(", ");
    let alloc_share = session.allocations.as_mut().map_or(1.0, Allocations::take_share);
    let choice = Choice::read(session, &counts, alloc_share, facts.limits.slower_ns)?;
    let slow_requests = blocks::slow_requests(session, facts.limits.slower_ns);
    let sampled = counts.sampled.as_ref().zip(counters.get(&Origin::Cpu));
    let losses = Losses::read(session);
    let of_window = losses.since(&std::mem::replace(&mut before.losses, losses));
    let mut warnings = warnings(session, facts, span.duration, &of_window, sampled, counts.cpus_changed);
    warnings.extend(of_lasting);
    warnings.extend(made.warnings.iter().cloned());
    if locks_left_out_ns > 0 {
        let seconds = Duration::from_nanos(locks_left_out_ns).as_secs_f64();
        warnings.push(format!("{seconds:.3} s of waits for the least of the locks are not in the table of locks"));
    }
    if missed_locks > 0 {
        warnings.push(format!("{missed_locks} waits are in no lock of the table: there are too many locks"));
    }
    let (live_profile, live) = if is_last { live_blocks(session)?.unzip() } else { (None, None) };
    let live_profile = live_profile.filter(|profile: &RawProfile| profile.events() > 0);
    counters.extend(live_profile.as_ref().map(|profile| (Origin::Live, outcomes(profile))));
    let (run_time, trap_ns) = (session.kernel.run_time(), trap_ns(session));
    let (of_waits_ns, of_blocks_ns) = (run_ns(session, "offcpu_"), run_ns(session, "block_"));
    let of_waits_before = std::mem::replace(&mut before.of_waits_ns, of_waits_ns);
    let of_blocks_before = std::mem::replace(&mut before.of_blocks_ns, of_blocks_ns);
    let run_time_before = std::mem::replace(&mut before.run_time, run_time);
    let trap_ns_before = std::mem::replace(&mut before.trap_ns, trap_ns);
    let (agent_cpu, _) = own_usage();
    let agent_cpu_before = std::mem::replace(&mut before.agent_cpu, agent_cpu);
    let memory = {
        let Session { memory, slices, .. } = session;
        if is_last { memory.end(slices.members()) } else { memory.end_window(slices.members()) }
    };
    let objects = session.processes.objects.objects().to_vec();
    let (raw, sliced, jit, interpreted) = session.take_records();
    Ok(Cut {
        facts: facts.clone(),
        span,
        choice,
        raw: raw.into_iter().chain(live_profile).collect(),
        sliced,
        counters,
        counts,
        made,
        thread_times,
        lock_times,
        slow_requests,
        timeline: session.slices.take_timeline(),
        memory,
        live,
        allocators,
        bpf_ns: run_time.0.saturating_sub(run_time_before.0),
        bpf_runs: run_time.1.saturating_sub(run_time_before.1),
        trap_ns: trap_ns.saturating_sub(trap_ns_before),
        agent_cpu: (!is_last || !agent_cpu_before.is_zero()).then(|| agent_cpu.saturating_sub(agent_cpu_before)),
        of_waits_ns: of_waits_ns.saturating_sub(of_waits_before),
        of_blocks_ns: of_blocks_ns.saturating_sub(of_blocks_before),
        bpf_map_bytes: map_bytes(),
        warnings,
        objects,
        jit,
        interpreted,
    })
}

impl Cut {
    /// What it cost to record it, and what the recording has of memory.
    #[must_use]
    pub fn cost(&self) -> Cost {
        Cost {
            duration: self.span.duration,
            agent_cpu: self.agent_cpu.unwrap_or_default(),
            bpf_ns: self.bpf_ns,
            of_waits_ns: self.of_waits_ns,
            of_blocks_ns: self.of_blocks_ns,
            trap_ns: self.trap_ns,
            bpf_map_bytes: self.bpf_map_bytes,
            anonymous_bytes: anonymous_bytes(),
        }
    }

    /// Adds what a reader must know.
    pub fn warn(&mut self, warning: String) {
        self.warnings.push(warning);
    }
}

/// What a window has cost.
#[derive(Clone, Copy, Debug)]
pub struct Cost {
    /// Its length.
    pub duration: Duration,
    /// CPU time of this profiler.
    pub agent_cpu: Duration,
    /// Time inside the BPF programs, ns.
    pub bpf_ns: u64,
    /// Of it those of waits.
    pub of_waits_ns: u64,
    /// And those of requests to block devices.
    pub of_blocks_ns: u64,
    /// Time in the traps of probes, ns.
    pub trap_ns: u64,
    /// Kernel memory of the maps, bytes.
    pub bpf_map_bytes: u64,
    /// Memory of our own, but for files, bytes.
    pub anonymous_bytes: u64,
}

/// Time inside the programs whose names begin so, ns.
fn run_ns(session: &Session, prefix: &str) -> u64 {
    session.kernel.run_time_of(|name| name.starts_with(prefix)).0
}

/// Adds what waits for locks have come to since the window before; returns those that there was no room for.
fn take_locks(session: &mut Session, before: &mut Before) -> Result<u64, BpfError> {
    let (locks, missed) = session.kernel.locks()?;
    let mut read = HashMap::with_capacity(locks.len());
    for (key, waits) in locks {
        let then = before.locks.get(&key).copied().unwrap_or_default();
        if waits != then {
            session.locks.add(
                key,
                LockWaits {
                    waits: waits.waits.saturating_sub(then.waits),
                    delay_ns: waits.delay_ns.saturating_sub(then.delay_ns),
                    // The longest of all time, where none of this window was longer.
                    longest_ns: waits.longest_ns,
                },
            );
        } else if !session.processes.knows(key.pid) {
            session.kernel.forget_lock(&key);
            continue;
        }
        read.insert(key, waits);
    }
    before.locks = read;
    Ok(missed.saturating_sub(std::mem::replace(&mut before.locks_missed, missed)))
}

/// What became of the blocks that were allocated, if allocations were recorded.
fn live_blocks(session: &mut Session) -> Result<Option<(RawProfile, Live)>> {
    let allocated = session.gathered.origins().iter().find(|gathered| gathered.profile.origin == Origin::Alloc);
    match (&mut session.allocations, allocated) {
        (Some(allocations), Some(OfOrigin { profile, sites, .. })) => {
            Ok(allocations.finish_blocks(&session.kernel, profile, sites)?)
        }
        _ => Ok(None),
    }
}

/// Time in the traps of probes so far, ns.
fn trap_ns(session: &Session) -> u64 {
    let kernel = &session.kernel;
    let of_allocations = session.allocations.as_ref().map_or(0, |allocations| allocations.trap_ns(kernel));
    of_allocations + session.functions.as_ref().map_or(0, |functions| functions.trap_ns(kernel))
}

pub(super) fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
