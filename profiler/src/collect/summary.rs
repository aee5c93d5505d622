//! What a recording leaves: the last window, names, the accounting added up, and what a reader must know.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Result;
use profiler_common::alloc::SIZE_SHIFT;
use profiler_common::counters::{Counters, Outcome};
use profiler_common::event::Origin;
use profiler_common::number_pace::Chosen;

use super::allocations::{Allocations, scale};
use super::blocks;
use super::command::{CommandEnd, RunningCommand};
use super::events::{EventCounts, Events};
use super::gathered::OfOrigin;
use super::host::{host, own_usage};
use super::record::Recording;
use super::session::Session;
use super::tables::tables;
use super::waiting::take_waiting;
use super::warnings::{doubts, warnings};
use crate::analyze::{attribute, classify, function_slices};
use crate::bpf::{Faults, Kernel, Limits, NetHook, SamplingEvent, WaitHook, map_bytes};
use crate::profile::{
    Accounting, ByLength, ByNumber, BySize, Capture, Index, Live, OriginSummary, Overhead, Profile, RawProfile,
    SCHEMA_VERSION, Target,
};
use crate::symbolize::{Options, Sources, Symbolized, symbolize};

/// What is known before the recording begins, and how long it took.
pub(super) struct Facts {
    pub(super) target: Target,
    /// The cgroup that was asked for, if it was one.
    pub(super) cgroup: Option<PathBuf>,
    /// What samples were taken by, and how many a second.
    pub(super) sampled: Option<(SamplingEvent, u64)>,
    /// What waits were seen by.
    pub(super) hook: Option<WaitHook>,
    pub(super) duration: Duration,
    pub(super) started_at: SystemTime,
    pub(super) limits: Limits,
}

/// Empties the maps for the last time, names what was found and adds everything up.
pub(super) fn summarize(
    mut session: Session,
    facts: Facts,
    events: Events,
    naming: &Options,
    interrupted: bool,
) -> Result<Recording> {
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
    let mut uncounted = BTreeMap::new();
    let mut of_lasting = None;
    if facts.hook.is_some() {
        match take_waiting(&mut session, facts.cgroup.as_deref()) {
            Ok(counters) => uncounted = counters,
            Err(error) => of_lasting = Some(format!("the threads that waited at the end are missing: {error}")),
        }
    }
    // Twice: what was written late is in the other generation.
    session.end_window()?;
    session.end_window()?;
    let mut counters: BTreeMap<Origin, Counters> = BTreeMap::new();
    for OfOrigin { profile, corrections, .. } in session.gathered.origins() {
        let mut counted = session.kernel.counters(profile.origin)?;
        if let Some(uncounted) = uncounted.get(&profile.origin) {
            counted.add(uncounted);
        }
        corrections.correct(&mut counted);
        counters.insert(profile.origin, counted);
    }
    let has = |origin: Origin| session.gathered.profile(origin).is_some();
    let (has_waits, has_locks) = (has(Origin::OffCpu), has(Origin::Lock));
    let mut missed_locks = 0;
    if has_locks {
        let (locks, missed) = session.kernel.locks()?;
        missed_locks = missed;
        for (key, waits) in locks {
            session.locks.add(key, waits);
        }
    }
    let (times, locks) = (std::mem::take(&mut session.times), std::mem::take(&mut session.locks));
    let thread_times = if has_waits { times.into_rows() } else { Vec::new() };
    let (lock_times, locks_left_out_ns) = if has_locks { locks.into_rows() } else { (Vec::new(), 0) };
    let (tables, of_tables) = tables(&mut session, facts.limits, facts.duration)?;
    let highest = |chosen| session.kernel.highest_weight(chosen);
    let allocators = session.allocations.as_ref().map_or_else(Vec::new, Allocations::names).join(", ");
    let trap_ns = session.allocations.as_ref().map_or(0, |allocations| allocations.trap_ns(&session.kernel))
        + session.functions.as_ref().map_or(0, |functions| functions.trap_ns(&session.kernel));
    let choice = Choice {
        wait_threshold_ns: session.kernel.highest_threshold_ns(),
        call_threshold_ns: session.kernel.highest_call_threshold_ns(),
        function_threshold_ns: session.kernel.highest_function_threshold_ns().max(facts.limits.slower_ns),
        fault_weight: highest(Chosen::MinorFaults)?.max(highest(Chosen::MajorFaults)?),
        block_weight: highest(Chosen::BlockIo)?,
        fault_period: counts.fault_period,
        net_weight: highest(Chosen::Net)?,
        file_weight: highest(Chosen::FileIo)?,
        net_hook: session.kernel.net_hook(),
        alloc_threshold: session.kernel.highest_alloc_threshold(),
        alloc_share: session.allocations.as_ref().map_or(1.0, Allocations::share),
    };
    let slow_requests = blocks::slow_requests(&mut session, facts.limits.slower_ns);
    let (bpf_ns, bpf_runs) = session.kernel.run_time();
    let bpf_map_bytes = map_bytes();
    let sampled = counts.sampled.as_ref().zip(counters.get(&Origin::Cpu));
    let mut warnings = warnings(&session, &facts, sampled, counts.cpus_changed);
    warnings.extend(of_lasting);
    warnings.extend(of_tables);
    if locks_left_out_ns > 0 {
        let seconds = Duration::from_nanos(locks_left_out_ns).as_secs_f64();
        warnings.push(format!("{seconds:.3} s of waits for the least of the locks are not in the table of locks"));
    }
    if missed_locks > 0 {
        warnings.push(format!("{missed_locks} waits are in no lock of the table: there are too many locks"));
    }
    let (live_profile, live) = live_blocks(&mut session)?.unzip();
    let live_profile = live_profile.filter(|profile: &RawProfile| profile.events() > 0);
    // Nothing stays attached while names are looked up, which may take a while.
    drop((session.kernel, session.lifecycle));
    let sources = Sources {
        objects: session.processes.objects.objects(),
        jit: &session.processes.jit,
        interpreted: session.pythons.frames(),
    };
    let gathered = session.gathered.into_origins().into_iter();
    let (mut raw, sliced): (Vec<_>, Vec<_>) = gathered.map(|of_origin| (of_origin.profile, of_origin.sliced)).unzip();
    raw.extend(live_profile);
    let Symbolized { mut profiles, objects, completed, warnings: of_symbols } = symbolize(raw, &sources, naming);
    warnings.extend(of_symbols);
    let (mut origins, mut accountings) = (BTreeMap::new(), BTreeMap::new());
    // Before reasons give the stacks other numbers. Wakers have their values only once waits are attributed to them.
    let function_slices = profiles
        .iter()
        .zip(sliced)
        .filter(|(profile, _)| profile.origin != Origin::Waker)
        .map(|(profile, sliced)| {
            let (lengths_ns, values) = sliced.finish(facts.duration);
            (profile.origin.row().name.to_owned(), function_slices(profile, lengths_ns, values))
        })
        .collect();
    profiles.iter_mut().for_each(classify);
    for profile in profiles.iter_mut().filter(|profile| profile.origin == Origin::Alloc) {
        scale(profile, choice.alloc_share.recip());
    }
    let mended = attribute(&mut profiles, &lock_times);
    if let Some(counters) = counters.get_mut(&Origin::Waker) {
        mend(counters, &mended);
    }
    for (profile, completed) in profiles.iter().zip(&completed) {
        let counted = counters.entry(profile.origin).or_default();
        if profile.origin == Origin::Live {
            // Every block that was followed is in it, with the chain that its allocation had.
            let blocks = profile.totals()[0];
            for outcomes in [&mut counted.user, &mut counted.kernel, &mut counted.whole] {
                outcomes[Outcome::Complete as usize] = blocks;
            }
            counted.hits = blocks;
        }
        complete(counted, completed);
        let accounting = accounting(profile, counted, &counts);
        warnings.extend(doubts(&accounting));
        let name = profile.origin.row().name.to_owned();
        let mut summary = origin_summary(profile, &facts, counted, choice);
        if profile.origin == Origin::Alloc {
            summary.event.clone_from(&allocators);
        }
        origins.insert(name.clone(), summary);
        accountings.insert(name, accounting);
    }
    let samples: u64 = profiles.iter().map(|profile| profile.totals()[0]).sum();
    if bpf_runs == 0 && counters.values().any(|counters| counters.hits > 0) {
        warnings.push("the time inside the BPF programs was not measured: that needs CAP_SYS_ADMIN".to_owned());
    }
    let mut target = facts.target;
    target.exit_code = session.command.as_mut().and_then(RunningCommand::try_wait).map(CommandEnd::exit_code);
    let (agent_cpu, peak_rss_bytes) = own_usage();
    #[expect(clippy::cast_precision_loss, reason = "a mean, shown to four digits")]
    let bpf_ns_per_sample = if samples == 0 { 0.0 } else { bpf_ns as f64 / samples as f64 };
    let index = Index {
        schema_version: SCHEMA_VERSION,
        profiler_version: env!("CARGO_PKG_VERSION").to_owned(),
        started_at_ns: nanoseconds(facts.started_at.duration_since(UNIX_EPOCH).unwrap_or_default()),
        duration_ns: nanoseconds(facts.duration),
        target,
        host: host(),
        origins,
        tables,
        accounting: accountings,
        overhead: Overhead {
            bpf_ns,
            bpf_runs,
            bpf_ns_per_sample,
            trap_ns,
            agent_cpu_ns: nanoseconds(agent_cpu),
            peak_rss_bytes,
            bpf_map_bytes,
        },
        objects,
        thread_times,
        lock_times,
        warnings,
        timeline: session.slices.into_timeline(),
        io_latency: session.latencies.into_slices(),
        slow_requests,
        live,
        memory: Some(session.memory.into_memory()),
        runs: Vec::new(),
        function_slices,
    };
    let capture = Capture { index, profiles };
    Ok(Recording { capture, command: session.command, interrupted })
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

/// The accounting of one origin. `counts`: what the events counted themselves, which samples and faults are held against.
fn accounting(profile: &Profile, counters: &Counters, counts: &EventCounts) -> Accounting {
    if let (Origin::Cpu, Some(counts)) = (profile.origin, &counts.sampled) {
        return Accounting {
            periods: counts.periods(),
            idle_periods: counts.idle_periods(),
            ..Accounting::new(counters, counts.expected(counters))
        };
    }
    let counted = counts.faults.filter(|_| profile.origin == Origin::Fault);
    #[expect(clippy::cast_precision_loss, reason = "counts of events are far below 2^53")]
    Accounting::new(counters, counted.unwrap_or(counters.hits) as f64)
}

/// How events were chosen where not all are kept, as the programs have left it.
#[derive(Clone, Copy)]
struct Choice {
    /// The highest threshold that waits were held against.
    wait_threshold_ns: u64,
    /// The same of system calls.
    call_threshold_ns: u64,
    /// The same of calls of functions, or the least that they were to take.
    function_threshold_ns: u64,
    /// The most faults that one of them counts for.
    fault_weight: u64,
    /// The most requests to block devices that one of them counts for.
    block_weight: u64,
    /// The highest period of the events of faults.
    fault_period: u64,
    /// What messages of sockets were seen by.
    net_hook: Option<NetHook>,
    /// The most messages of sockets that one of them counts for.
    net_weight: u64,
    /// The most operations on files that one of them counts for.
    file_weight: u64,
    /// The highest threshold that sizes were held against, in 64ths of a byte.
    alloc_threshold: u64,
    /// The part of the recording in which allocations were seen.
    alloc_share: f64,
}

/// What one origin recorded, in all.
fn origin_summary(profile: &Profile, facts: &Facts, counters: &Counters, choice: Choice) -> OriginSummary {
    let row = profile.origin.row();
    let totals = profile.totals();
    let mut summary = OriginSummary {
        unit: row.unit.to_owned(),
        total: totals[row.primary],
        n: totals[0],
        event: String::new(),
        rate_hz: 0,
        by_length: None,
        by_number: None,
        by_size: None,
    };
    match profile.origin {
        Origin::Cpu => {
            if let Some((event, rate_hz)) = facts.sampled {
                (summary.event, summary.rate_hz) = (event.name().to_owned(), rate_hz);
            }
        }
        Origin::Waker => "sched_waking".clone_into(&mut summary.event),
        Origin::OffCpu | Origin::Lock | Origin::Func => {
            let is_func = profile.origin == Origin::Func;
            let hook = if is_func { Kernel::FUNCTION_HOOKS } else { facts.hook.map_or("", WaitHook::name) };
            hook.clone_into(&mut summary.event);
            #[expect(clippy::cast_precision_loss, reason = "a standard error, of which few digits say something")]
            let variance_us2 = totals[VARIANCE_COLUMN] as f64;
            summary.by_length = Some(ByLength {
                threshold_ns: if is_func { choice.function_threshold_ns } else { choice.wait_threshold_ns },
                measured_ns: counters.period_sum,
                standard_error_ns: variance_us2.sqrt() * 1e3,
            });
        }
        Origin::Syscall => {
            summary.event = Kernel::CALL_HOOKS.to_owned();
            #[expect(clippy::cast_precision_loss, reason = "a standard error, of which few digits say something")]
            let variance_us2 = counters.variance_us2 as f64;
            summary.by_length = Some(ByLength {
                threshold_ns: choice.call_threshold_ns,
                measured_ns: counters.period_sum,
                standard_error_ns: variance_us2.sqrt() * 1e3,
            });
        }
        Origin::Fault => {
            summary.event = Faults::name().to_owned();
            let measured = counters.hits.saturating_sub(counters.filtered + counters.idle);
            summary.by_number = Some(ByNumber { measured, weight: choice.fault_weight, period: choice.fault_period });
        }
        Origin::Net => {
            summary.event = choice.net_hook.map_or("", NetHook::name).to_owned();
            summary.by_number = Some(ByNumber { measured: counters.hits, weight: choice.net_weight, period: 1 });
        }
        Origin::FileIo => {
            summary.event = Kernel::FILE_HOOKS.to_owned();
            summary.by_number = Some(ByNumber { measured: counters.hits, weight: choice.file_weight, period: 1 });
        }
        Origin::BlockIo => {
            summary.event = Kernel::BLOCK_HOOKS.to_owned();
            let measured = counters.hits.saturating_sub(counters.filtered + counters.idle);
            summary.by_number = Some(ByNumber { measured, weight: choice.block_weight, period: 1 });
        }
        Origin::Live => "blocks followed to their end".clone_into(&mut summary.event),
        Origin::Alloc => {
            #[expect(clippy::cast_precision_loss, reason = "estimates, of which few digits say something")]
            let variance_kib2 = totals[VARIANCE_COLUMN] as f64;
            summary.by_size = Some(BySize {
                threshold_bytes: choice.alloc_threshold >> SIZE_SHIFT,
                measured_bytes: counters.period_sum,
                standard_error_bytes: variance_kib2.sqrt() * 1024.0,
                share_of_time: choice.alloc_share,
            });
        }
    }
    summary
}

/// Column of the variance in the row of waits.
const VARIANCE_COLUMN: usize = 3;

/// Counts user chains as complete whose outcome says nothing of them.
fn mend(counters: &mut Counters, mended: &BTreeMap<Outcome, u64>) {
    for (&outcome, &events) in mended {
        for outcomes in [&mut counters.user, &mut counters.whole] {
            let moved = events.min(outcomes[outcome as usize]);
            outcomes[outcome as usize] -= moved;
            outcomes[Outcome::Complete as usize] += moved;
        }
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

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
