//! How the events of an origin were chosen where not all are kept, and what the origin recorded in all.

use std::time::Duration;

use anyhow::Result;
use profiler_common::alloc::SIZE_SHIFT;
use profiler_common::counters::Counters;
use profiler_common::event::Origin;
use profiler_common::number_pace::Chosen;

use super::allocations::Allocations;
use super::cut::{Facts, nanoseconds};
use super::events::EventCounts;
use super::session::Session;
use crate::bpf::{Faults, Kernel, NetHook, WaitHook};
use crate::profile::{ByLength, ByNumber, BySize, OriginSummary, Profile};

/// How events were chosen where not all are kept, as the programs have left it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Choice {
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
    /// The part of the window in which allocations were seen.
    pub(super) alloc_share: f64,
    /// Whether every allocation was recorded, and when that ended by itself.
    pub(super) alloc_exact: bool,
    alloc_stopped_after: Option<Duration>,
}

impl Choice {
    /// Reads it. `counts`: of the events; `alloc_share`: the part of the window in which allocations were seen; `slower_ns`: what
    /// calls of functions were to take at least.
    pub(super) fn read(session: &Session, counts: &EventCounts, alloc_share: f64, slower_ns: u64) -> Result<Self> {
        let kernel = &session.kernel;
        let highest = |chosen| kernel.highest_weight(chosen);
        Ok(Self {
            wait_threshold_ns: kernel.highest_threshold_ns(),
            call_threshold_ns: kernel.highest_call_threshold_ns(),
            function_threshold_ns: kernel.highest_function_threshold_ns().max(slower_ns),
            fault_weight: highest(Chosen::MinorFaults)?.max(highest(Chosen::MajorFaults)?),
            block_weight: highest(Chosen::BlockIo)?,
            fault_period: counts.fault_period,
            net_weight: highest(Chosen::Net)?,
            file_weight: highest(Chosen::FileIo)?,
            net_hook: kernel.net_hook(),
            alloc_threshold: kernel
                .highest_alloc_threshold()
                .max(session.allocations.as_ref().map_or(0, Allocations::sampled_bytes) << SIZE_SHIFT),
            alloc_share,
            alloc_exact: session.allocations.as_ref().is_some_and(Allocations::is_exact),
            alloc_stopped_after: session.allocations.as_ref().and_then(Allocations::stopped_after),
        })
    }
}

/// What one origin recorded, in all.
pub(super) fn origin_summary(profile: &Profile, facts: &Facts, counters: &Counters, choice: Choice) -> OriginSummary {
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
                exact: choice.alloc_exact,
                stopped_after_ns: choice.alloc_stopped_after.map(nanoseconds),
            });
        }
    }
    summary
}

/// Column of the variance in the row of waits.
const VARIANCE_COLUMN: usize = 3;
