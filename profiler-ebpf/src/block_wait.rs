//! Threads that wait for a block device: what of a wait was the limit of a cgroup, the queue, the device and the way back to a
//! CPU.
//!
//! A thread that the kernel counts as waiting for a device has an element from when it leaves its CPU until it is back. The
//! completion of its request leaves the request's times there. A request that a cgroup's limit holds back is not made yet: a
//! worker makes it later, and finds who waits for it by its first part.

use aya_ebpf::helpers::generated::bpf_ktime_get_ns;
use aya_ebpf::macros::raw_tracepoint;
use aya_ebpf::programs::RawTracePointContext;
use profiler_common::block::{
    Asker, BlockMissed, BlockWaitKey, BlockWaiter, MAX_WAITERS, REQUEST_PLACES, SlowWakeUp, WAIT_PARTS, group, place,
};
use profiler_common::config::{Filter, PROCESS_TARGET};
use profiler_common::counters::Outcome;
use profiler_common::event::{Origin, RING_SLOW_WAKE_UP, RecordKey};
use profiler_common::histogram::{HISTOGRAM_BUCKETS, bucket_of};

use crate::aggregate;
use crate::atomic;
use crate::block_asker::{WAITERS_AT, ask_ahead, identify, without_chains};
use crate::block_noted::missed;
use crate::config::config;
use crate::maps::{BLOCK_WAITERS, BLOCK_WAITING, BLOCK_WAITS, BLOCK_WAITS_NEW, LAST_ASKER, PROCESSES};
use crate::recorded::Recorded;
use crate::task::{Task, comm_of, is_asked, kernel_number, kernel_word};

/// Entries that are made where there is none. Source: `BPF_NOEXIST`, include/uapi/linux/bpf.h.
const NO_EXIST: u64 = 1;

/// A thread that waits.
struct Waiting {
    waiter: &'static mut BlockWaiter,
    /// Where its number is noted.
    number: *mut u64,
}

impl Waiting {
    /// Gives the element back.
    #[inline(always)]
    fn remove(self) {
        // SAFETY: the pointer is into a map element. Volatile: whoever sees it may claim the element at once.
        unsafe { core::ptr::write_volatile(self.number, 0) };
    }
}

/// The element of a thread that waits.
#[inline(always)]
fn find(tid: u32) -> Option<Waiting> {
    let tid = u64::from(tid);
    let numbers = BLOCK_WAITING.get_ptr_mut(group(tid, MAX_WAITERS))?;
    let mut index = 0;
    while index < REQUEST_PLACES {
        // SAFETY: the pointer is into a map element, which others may claim at any time, hence volatile.
        let (number, noted) = unsafe {
            let number = numbers.cast::<u64>().add(index as usize);
            (number, core::ptr::read_volatile(number))
        };
        if noted == tid {
            let waiter = BLOCK_WAITERS.get_ptr_mut(place(tid, index, MAX_WAITERS))?;
            // SAFETY: the element is this thread's, which sleeps; but for its request's times nobody else writes it.
            return Some(Waiting { waiter: unsafe { &mut *waiter }, number });
        }
        index += 1;
    }
    None
}

/// Notes that a thread has made a request: what it waits for next is not held back.
#[inline(always)]
pub(crate) fn note_request(tid: u32) {
    if let Some(last) = LAST_ASKER.get_ptr_mut(0) {
        // SAFETY: the element is this CPU's.
        unsafe { (*last).asked_tid = u64::from(tid) };
    }
}

/// Notes that a request of a thread is done, which may wait for it.
#[inline(always)]
pub(crate) fn note_done(tid: u32, made_ns: u64, issued_ns: u64, done_ns: u64, throttled: u32) {
    let Some(Waiting { waiter, .. }) = find(tid) else { return };
    waiter.made_ns = made_ns;
    waiter.issued_ns = issued_ns;
    waiter.done_ns = done_ns;
    waiter.throttled = u64::from(throttled);
    waiter.slow = 0;
}

/// Notes the number of a thread's slow request, which it may wait for.
#[inline(always)]
pub(crate) fn note_slow(tid: u32, number: u64) {
    if let Some(Waiting { waiter, .. }) = find(tid) {
        waiter.slow = number;
    }
}

/// Whether a kernel thread makes requests that a cgroup's limit has held back.
#[inline(always)]
pub(crate) fn throttles(task: &Task) -> bool {
    let throttler = config!(block.throttler);
    if throttler == 0 {
        return false;
    }
    let thread = kernel_word(task.pointer(), config!(block.task_worker)) as *const u8;
    let worker = kernel_word(thread, config!(block.kthread_data)) as *const u8;
    kernel_word(worker, config!(block.worker_function)) == throttler
}

/// The thread that is to wait for a request, by its first part: its structure.
#[inline(always)]
pub(crate) fn waiter_of(bio: *const u8) -> Option<*const u8> {
    let (end, private) =
        (kernel_word(bio, config!(block.bio_end)), kernel_word(bio, config!(block.bio_private)) as *const u8);
    let task = if end == config!(block.direct_end) {
        kernel_word(private, config!(block.direct_waiter))
    } else if end == config!(block.task_end) {
        private as u64
    } else if end == config!(block.awaited_end) {
        let link = kernel_word(private, config!(block.completion_first)) as *const u8;
        kernel_word(link.wrapping_sub(config!(block.waiter_link) as usize), config!(block.waiter_task))
    } else {
        return None;
    };
    (task != 0).then_some(task as *const u8)
}

/// Notes a thread as who asked for a request that was held back; false when it was not asked for. With its chains where it
/// waits already: one that was preempted before has none.
#[inline(always)]
pub(crate) fn ask_for(task: *const u8, tid: u32, asker: &mut Asker) -> bool {
    if let Some(Waiting { waiter, .. }) = find(tid) {
        *asker = waiter.asker;
        return true;
    }
    let pid = kernel_number(task, config!(task.tgid));
    let filter = config!(filter);
    // SAFETY: an entry is replaced as a whole, and the old one stays until this program has ended.
    let process = unsafe { PROCESSES.get(pid) };
    let is_listed = process.is_some_and(|process| process.flags & PROCESS_TARGET != 0);
    // Neither its number in another namespace nor its cgroup can be told from here.
    if config!(pid_namespace_inode) != 0 || filter == Filter::Cgroup as u32 {
        missed(BlockMissed::Requests);
        return false;
    }
    let leader = kernel_word(task, config!(task.group_leader)) as *const u8;
    if pid == config!(self_pid)
        || (filter == Filter::Processes as u32 && !is_listed)
        || (filter == Filter::Comm as u32 && !is_asked(&comm_of(task)) && !is_asked(&comm_of(leader)))
    {
        return false;
    }
    asker.lost = 0;
    asker.weight = 1;
    asker.start_time_ns = kernel_word(leader, config!(task.start_time));
    asker.pid = pid;
    asker.exec_count = kernel_number(task, config!(task.exec_count));
    asker.key = RecordKey {
        start_time_ns: asker.start_time_ns,
        kernel_stack: 0,
        user_stack: Outcome::StackMissing as u64,
        span: 0,
        pid,
        tid,
        exec_count: asker.exec_count,
        generation: process.map_or(0, |process| process.generation),
        origin: Origin::BlockIo as u16,
        reason: 0,
        reserved: 0,
    };
    asker.value.process_comm = comm_of(leader);
    asker.value.thread_comm = asker.value.process_comm;
    asker.value.user_outcome = Outcome::StackMissing as u8;
    asker.value.kernel_outcome = Outcome::Complete as u8;
    true
}

/// Whether the kernel counts a task as waiting for a block device.
#[inline(always)]
fn waits(task: *const u8) -> bool {
    kernel_word(task, config!(task.in_iowait)) & u64::from(config!(task.in_iowait_mask)) != 0
}

/// Follows a switch between tasks. Arguments: whether it is a preemption, the task that leaves, the one that comes.
#[raw_tracepoint(tracepoint = "sched_switch")]
pub(crate) fn block_switch(context: RawTracePointContext) -> i32 {
    let (previous, next): (*const u8, *const u8) = (context.arg(1), context.arg(2));
    if waits(next)
        && let Some(waiting) = find(kernel_number(next, config!(task.pid)))
    {
        end(waiting);
    }
    if waits(previous) {
        begin(&context);
    }
    0
}

/// Notes that the running thread begins to wait.
#[inline(always)]
fn begin(context: &RawTracePointContext) {
    let running = Task::running();
    let Some(task) = running.in_namespace() else { return };
    if !task.is_running_wanted() {
        return;
    }
    // SAFETY: takes no argument.
    let now = unsafe { bpf_ktime_get_ns() };
    if let Some(waiting) = find(running.tid) {
        // Its end was not seen.
        missed(BlockMissed::Waits);
        waiting.remove();
    }
    let tid = u64::from(running.tid);
    let Some(numbers) = BLOCK_WAITING.get_ptr_mut(group(tid, MAX_WAITERS)) else { return };
    let mut index = 0;
    while index < REQUEST_PLACES {
        // SAFETY: the pointer is into a map element, which every CPU may claim, hence atomic.
        if unsafe { atomic::replace(numbers.cast::<u64>().add(index as usize), 0, tid) } {
            let at = place(tid, index, MAX_WAITERS);
            let Some(waiter) = BLOCK_WAITERS.get_ptr_mut(at) else { return };
            // SAFETY: it is this thread's now.
            let waiter = unsafe { &mut *waiter };
            waiter.tid = tid;
            waiter.done_ns = 0;
            waiter.slow = 0;
            waiter.since_ns = now;
            identify(&task, &mut waiter.asker);
            let Some(last) = LAST_ASKER.get_ptr_mut(0) else { return };
            // SAFETY: the element is this CPU's.
            let has_asked = unsafe { core::mem::replace(&mut (*last).asked_tid, 0) } == tid;
            // Only what is held back beyond the request that it could make would have its chains.
            if has_asked {
                without_chains(&task, &mut waiter.asker);
            } else {
                ask_ahead(context, &task, &mut waiter.asker, WAITERS_AT + u64::from(at));
            }
            return;
        }
        index += 1;
    }
    missed(BlockMissed::Waits);
}

/// Counts a wait, of a thread that comes back to a CPU, and gives its element back.
#[inline(always)]
fn end(waiting: Waiting) {
    let waiter = &*waiting.waiter;
    // SAFETY: takes no argument.
    let now = unsafe { bpf_ktime_get_ns() };
    if let Some(recorded) = Recorded::read() {
        let since = waiter.since_ns;
        let total = recorded.length(since, now);
        if total == now.saturating_sub(since) {
            count(waiter, total, now);
        }
        if waiter.slow != 0 {
            let wake_up_ns = now.saturating_sub(waiter.done_ns);
            let told = SlowWakeUp { kind: RING_SLOW_WAKE_UP, reserved: [0; 3], number: waiter.slow, wake_up_ns };
            // Without room for it, all else is known of the request.
            let _ = aggregate::send(&told, size_of::<SlowWakeUp>());
        }
    }
    waiting.remove();
}

/// Adds a wait to the counts of its process.
#[inline(always)]
fn count(waiter: &BlockWaiter, total: u64, now: u64) {
    let key = &BlockWaitKey {
        start_time_ns: waiter.asker.start_time_ns,
        pid: waiter.asker.pid,
        exec_count: waiter.asker.exec_count,
    };
    if BLOCK_WAITS.get_ptr_mut(key).is_none()
        && let Some(new) = BLOCK_WAITS_NEW.get(0)
        && BLOCK_WAITS.insert(key, new, NO_EXIST).is_ok()
        && let Some(stats) = BLOCK_WAITS.get_ptr_mut(key)
    {
        // SAFETY: the pointer is to a map value, whose name nobody else writes.
        unsafe { (*stats).process_comm = waiter.asker.value.process_comm };
    }
    let Some(stats) = BLOCK_WAITS.get_ptr_mut(key) else { return missed(BlockMissed::Waits) };
    let since = waiter.since_ns;
    // Each part begins where the one before ends, and none before the wait.
    let (made, issued, done) = if waiter.done_ns < since {
        (now, now, now)
    } else {
        (later(since, waiter.made_ns), later(since, waiter.issued_ns), waiter.done_ns)
    };
    let held = made - since;
    let throttled = waiter.throttled != 0 && waiter.done_ns >= since;
    let parts = [
        total,
        if throttled { held } else { 0 },
        if throttled { 0 } else { held },
        issued.saturating_sub(made),
        done.saturating_sub(issued),
        now.saturating_sub(done),
    ];
    // SAFETY: the pointers are to map values that every CPU writes, hence atomic; the buckets are the histograms'.
    unsafe {
        atomic::add(&raw mut (*stats).waits, 1);
        atomic::add(&raw mut (*stats).throttled, u64::from(throttled));
        let mut part = 0;
        while part < WAIT_PARTS.len() {
            let ns = parts[part];
            if ns != 0 {
                atomic::add((&raw mut (*stats).sums_ns).cast::<u64>().add(part), ns);
                atomic::raise((&raw mut (*stats).max_ns).cast::<u64>().add(part), ns);
                let bucket = bucket_of(ns) & (HISTOGRAM_BUCKETS - 1);
                let histograms = (&raw mut (*stats).histograms).cast::<u32>();
                atomic::add_number(histograms.add(part * HISTOGRAM_BUCKETS + bucket), 1);
            }
            part += 1;
        }
    }
}

#[inline(always)]
fn later(first: u64, second: u64) -> u64 {
    if first > second { first } else { second }
}
