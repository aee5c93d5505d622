//! System calls: how long each took and whether it failed, counted exactly by process and call; by stack for those that are
//! chosen by their length, as waits are.
//!
//! Two hooks, at the entry and at the exit of every call of the host. A thread that was asked for has an element in which
//! its entry notes the time; others find none, and leave. The calls run with preemption off, so that programs of this type
//! do not interrupt each other.

use aya_ebpf::EbpfContext;
use aya_ebpf::helpers::generated::bpf_ktime_get_ns;
use aya_ebpf::macros::raw_tracepoint;
use aya_ebpf::programs::RawTracePointContext;
use profiler_common::counters::{Counters, Outcome};
use profiler_common::event::Origin;
use profiler_common::histogram::{HISTOGRAM_BUCKETS, bucket_of};
use profiler_common::system_call::{Call, CallKey, MAX_ERROR, OTHER_CALL, RT_SIGRETURN, reason_of};
use profiler_common::wait::{Cell, KEPT_IN_A_SLOT};

use crate::aggregate::{self, Outcomes, count};
use crate::atomic;
use crate::maps::{
    CALL_PACE, CALL_STATS, CALL_STATS_NEW, CALL_THRESHOLD, CALLS_UNCOUNTED, COUNTERS, Programs, SCRATCH, SYSCALL_PYTHON,
};
use crate::offcpu::{chance, part, points, threshold};
use crate::python;
use crate::stack;
use crate::task::Task;
use crate::threads;
use crate::unwind;
use crate::window::{self, Window};

/// Entries that are made where there is none. Source: `BPF_NOEXIST`, include/uapi/linux/bpf.h.
const NO_EXIST: u64 = 1;

/// Notes that a thread begins a call. Arguments: its registers, the number of the call.
#[raw_tracepoint(tracepoint = "sys_enter")]
pub(crate) fn syscall_enter(context: RawTracePointContext) -> i32 {
    let task = Task::running();
    // Who has an element was asked for.
    let call = match threads::find::<Call>(task.tid) {
        Some(call) => call,
        None => match admit(&task) {
            Some(call) => call,
            None => return 0,
        },
    };
    // SAFETY: the tracepoint has this argument.
    let number = unsafe { *context.as_ptr().cast::<u64>().add(1) };
    let is_known = number < u64::from(OTHER_CALL) && !stack::is_compat(&task);
    call.number = if is_known { number as u32 } else { u32::from(OTHER_CALL) };
    // SAFETY: takes no argument. Last, so that what this program takes is in no call.
    call.since_ns = unsafe { bpf_ktime_get_ns() };
    0
}

/// An element for the running thread, if it was asked for.
#[inline(always)]
fn admit(running: &Task) -> Option<&'static mut Call> {
    let task = running.in_namespace()?;
    if !task.is_wanted() {
        return None;
    }
    let Some(call) = threads::add::<Call>(running.tid) else {
        if let Some(counters) = COUNTERS.get_ptr_mut(Origin::Syscall as u32) {
            // SAFETY: the element is this CPU's, and programs of this type do not interrupt each other.
            let counters = unsafe { &mut *counters };
            counters.hits += 1;
            count(counters, Outcomes::lost(Outcome::ThreadsFull));
        }
        return None;
    };
    call.start_time_ns = task.start_time_ns();
    call.pid = task.pid;
    call.cell = Cell::new(chance());
    Some(call)
}

/// Forgets a thread that ends.
#[raw_tracepoint(tracepoint = "sched_process_exit")]
pub(crate) fn syscall_end(_context: RawTracePointContext) -> i32 {
    if let Some(call) = threads::find::<Call>(Task::running().tid) {
        threads::remove(call);
    }
    0
}

/// Counts a call that has returned. Arguments: the thread's registers, what the call returned.
#[raw_tracepoint(tracepoint = "sys_exit")]
pub(crate) fn syscall_exit(context: RawTracePointContext) -> i32 {
    let task = Task::running();
    let Some(call) = threads::find::<Call>(task.tid) else { return 0 };
    // SAFETY: takes no argument.
    let now = unsafe { bpf_ktime_get_ns() };
    let since = call.since_ns;
    // A call that began before the recording did, or the child's half of a fork.
    if since == 0 {
        return 0;
    }
    call.since_ns = 0;
    let (elapsed, number) = (now - since, call.number as u16);
    // SAFETY: the tracepoint has this argument.
    let returned = unsafe { *context.as_ptr().cast::<i64>().add(1) };
    let failed = number != RT_SIGRETURN && (-MAX_ERROR..0).contains(&returned);
    let key = CallKey {
        start_time_ns: call.start_time_ns,
        pid: call.pid,
        exec_count: task.exec_count(),
        number,
        failed: u16::from(failed),
        reserved: 0,
    };
    add_to_stats(&task, &key, elapsed);
    let Some(counters) = COUNTERS.get_ptr_mut(Origin::Syscall as u32) else { return 0 };
    // SAFETY: the element is this CPU's, and programs of this type do not interrupt each other.
    let counters = unsafe { &mut *counters };
    counters.hits += 1;
    counters.period_sum += elapsed;
    choose(&context, &task, call, counters, elapsed, failed, now);
    0
}

/// Adds a call to the exact counts of its kind.
#[inline(always)]
fn add_to_stats(task: &Task, key: &CallKey, elapsed: u64) {
    if CALL_STATS.get_ptr_mut(key).is_none()
        && let Some(new) = CALL_STATS_NEW.get(0)
        && CALL_STATS.insert(key, new, NO_EXIST).is_ok()
        && let Some(stats) = CALL_STATS.get_ptr_mut(key)
    {
        // SAFETY: the pointer is to a map value, whose name nobody else writes.
        unsafe { (*stats).process_comm = task.process_comm() };
    }
    // SAFETY: the pointers are to map values that every CPU writes, hence atomic; the bucket is one of the histogram's.
    unsafe {
        let Some(stats) = CALL_STATS.get_ptr_mut(key) else {
            if let Some(uncounted) = CALLS_UNCOUNTED.get_ptr_mut(0) {
                atomic::add(uncounted, 1);
            }
            return;
        };
        atomic::add(&raw mut (*stats).calls, 1);
        atomic::add(&raw mut (*stats).total_ns, elapsed);
        atomic::raise(&raw mut (*stats).max_ns, elapsed);
        let bucket = bucket_of(elapsed) & (HISTOGRAM_BUCKETS - 1);
        atomic::add((&raw mut (*stats).histogram).cast::<u64>().add(bucket), 1);
    }
}

/// Keeps a call with its stack, if its length or chance says so.
#[inline(always)]
fn choose(
    context: &RawTracePointContext,
    task: &Task,
    call: &mut Call,
    counters: &mut Counters,
    elapsed: u64,
    failed: bool,
    now: u64,
) {
    let Some(pace) = CALL_PACE.get_ptr_mut(0) else { return };
    // SAFETY: the element is this CPU's, and programs of this type do not interrupt each other.
    let pace = unsafe { &mut *pace };
    let threshold = threshold(&CALL_THRESHOLD, pace, now, KEPT_IN_A_SLOT);
    let points = points(&mut call.cell, elapsed, threshold);
    if points == 0 {
        counters.sampled_out += 1;
        return;
    }
    pace.kept += 1;
    let Some(window) = window::enter() else {
        return count(counters, Outcomes::lost(Outcome::MapBusy));
    };
    let Some(scratch) = aggregate::claim(Programs::Call) else {
        window.leave();
        return count(counters, Outcomes::lost(Outcome::ScratchBusy));
    };
    scratch.parts[0] = part(elapsed, points, threshold);
    let columns = &mut scratch.parts[0].columns;
    counters.variance_us2 += columns[3];
    columns[3] = if failed { columns[2] } else { 0 };
    let Some(task) = task.in_namespace() else {
        scratch.claimed = 0;
        window.leave();
        return count(counters, Outcomes::lost(Outcome::MapBusy));
    };
    let process = task.process();
    aggregate::begin(scratch, &window, &task, process, Origin::Syscall);
    scratch.key.reason = reason_of(call.number as u16);
    let user = stack::begin(&task, process, scratch);
    if user.is_none() {
        unwind::walk(Programs::Call);
        // SAFETY: the map holds programs of this type. The call returns where there is none, which is so without Python.
        unsafe { SYSCALL_PYTHON.tail_call(context, python::slot(scratch)) };
    }
    aggregate::conclude::<false>(&window, &task, counters, scratch, user);
    window.leave();
}

/// Goes on with the Python chain, once the native one is walked.
#[raw_tracepoint(tracepoint = "sys_exit")]
pub(crate) fn syscall_python(_context: RawTracePointContext) -> i32 {
    let scratch = SCRATCH.get_ptr_mut(Programs::Call as u32);
    let (Some(scratch), Some(counters)) = (scratch, COUNTERS.get_ptr_mut(Origin::Syscall as u32)) else { return 0 };
    // SAFETY: both elements are this CPU's, and the program before this one has claimed the first.
    let (scratch, counters) = unsafe { (&mut *scratch, &mut *counters) };
    python::walk(Programs::Call);
    if let (Some(task), Some(window)) = (Task::current(), Window::resume(scratch.user.window)) {
        aggregate::conclude::<true>(&window, &task, counters, scratch, None);
        window.leave();
    }
    0
}
