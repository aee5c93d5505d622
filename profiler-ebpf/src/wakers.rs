//! Who wakes a thread that waits, and on which stack: for locks that is who gave the lock back.
//!
//! `sched_waking`, in the context of the waker, looks the sleeper up. Whether its wait will be kept is decided when it is
//! back on a CPU; here it is only asked whether that is possible, so that hardly any waker is walked in vain. An interrupt
//! wakes in the context of whoever it interrupts: user space tells by the kernel chain.

use aya_ebpf::EbpfContext;
use aya_ebpf::helpers::generated::bpf_ktime_get_ns;
use aya_ebpf::macros::raw_tracepoint;
use aya_ebpf::programs::RawTracePointContext;
use profiler_common::counters::{Counters, Outcome};
use profiler_common::event::{HASH_SEED, Origin, finish_hash, hash_word};
use profiler_common::wait::{Left, MOST_THRESHOLD_NS, Wait};

use crate::aggregate::{self, Outcomes, count};
use crate::config::config;
use crate::maps::{COUNTERS, Programs, THRESHOLD, WAKES};
use crate::recorded::Recorded;
use crate::stack;
use crate::task::{Task, kernel_number};
use crate::threads;
use crate::unwind;
use crate::window::{self, Window};

/// Notes who wakes a thread. Argument: the thread.
#[raw_tracepoint(tracepoint = "sched_waking")]
pub(crate) fn offcpu_wake(context: RawTracePointContext) -> i32 {
    let woken: *const u8 = context.arg(0);
    let tid = kernel_number(woken, config!(task.pid));
    let Some((place, entry)) = threads::place::<Wait>(tid) else { return 0 };
    let Some(wake) = WAKES.get_ptr_mut(place) else { return 0 };
    // SAFETY: the pointer is to a map element; the thread that it belongs to is asleep, and a second waker is as good.
    let wake = unsafe { &mut *wake };
    *wake = 0;
    let Some(recorded) = Recorded::read() else { return 0 };
    // SAFETY: takes no argument.
    let now = unsafe { bpf_ktime_get_ns() };
    // SAFETY: a reference is valid and aligned. Volatile: the thread's own switches write it.
    let since = unsafe { core::ptr::read_volatile(&raw const entry.since_ns) };
    let length = recorded.length(since, now);
    if since == 0 || length == 0 || entry.left == Left::Runnable as u32 {
        return 0;
    }
    if !entry.blocked.may_have_point(length, threshold()) {
        return 0;
    }
    let (Some(task), Some(window)) = (Task::current(), window::enter()) else { return 0 };
    if let Some(counters) = COUNTERS.get_ptr_mut(Origin::Waker as u32) {
        // SAFETY: the element is this CPU's, and programs of this type do not interrupt each other.
        *wake = record(&context, &window, &task, unsafe { &mut *counters });
    }
    window.leave();
    0
}

/// The threshold that waits are held against now.
#[inline(always)]
fn threshold() -> u64 {
    let Some(shared) = THRESHOLD.get_ptr(0) else { return MOST_THRESHOLD_NS };
    // SAFETY: the pointer is to a map element that every CPU writes, hence volatile.
    unsafe { core::ptr::read_volatile(&raw const (*shared).now_ns) }
}

/// Adds a record of the waker; returns its number, 0 when it was lost.
#[inline(always)]
fn record(context: &RawTracePointContext, window: &Window, task: &Task, counters: &mut Counters) -> u64 {
    counters.hits += 1;
    let Some(scratch) = aggregate::claim(Programs::Wake) else {
        count(counters, Outcomes::lost(Outcome::ScratchBusy));
        return 0;
    };
    let process = task.process();
    aggregate::begin(scratch, window, task, process, Origin::Waker);
    scratch.walk.left = 0;
    let user = match stack::begin(task, process, scratch) {
        Some(chain) => chain,
        None => {
            unwind::walk(Programs::Wake);
            stack::end::<false>(task, scratch)
        }
    };
    let kernel = stack::kernel(context.as_ptr(), &mut scratch.kernel);
    // The same thread on the same stack has the same number.
    let who = hash_word(hash_word(HASH_SEED, scratch.key.start_time_ns), u64::from(task.tid));
    // What is left to user space has a hash of its own each time, as it must.
    let user_hash = if scratch.walk.left == 0 { user.reference } else { scratch.walk.hash };
    let number = finish_hash(hash_word(hash_word(who, user_hash), kernel.reference));
    scratch.key.span = number;
    let outcomes = aggregate::add(window, task, [1, 0, 0, 0], scratch, user, kernel);
    scratch.claimed = 0;
    count(counters, outcomes);
    if outcomes.record == Outcome::Complete as u64 { number } else { 0 }
}
