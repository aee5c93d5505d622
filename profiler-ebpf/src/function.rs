//! Calls of functions that somebody named: how long each took, counted exactly, and by stack for those that are chosen by
//! their length, as waits are.
//!
//! Probes are on a function's entry and on the instructions that it is left by. None is ever put on the return address: Go's
//! runtime would not bear it, and stacks stay what they are. What is left otherwise, by an exception or `longjmp`, is noticed
//! by the next call on the same stack, which is where no call could be inside the one that was left.
//!
//! Threads may be preempted inside these programs. What is a caller's own is in its element, which nobody else writes but for
//! the switch that takes the thread off its CPU; all else is counted atomically, and the scratch space is claimed.

use aya_ebpf::EbpfContext;
use aya_ebpf::helpers::bpf_probe_read_user;
use aya_ebpf::helpers::generated::{bpf_get_attach_cookie, bpf_get_current_pid_tgid, bpf_ktime_get_ns};
use aya_ebpf::macros::{raw_tracepoint, uprobe};
use aya_ebpf::programs::{ProbeContext, RawTracePointContext};
use profiler_common::counters::{Counters, Outcome};
use profiler_common::event::Origin;
use profiler_common::function::{
    Caller, CallerKey, FUNCTION_MASK, FunctionKey, FunctionMissed, InCall, MAX_DEPTH, OF_GOROUTINES,
};
use profiler_common::histogram::{HISTOGRAM_BUCKETS, bucket_of};
use profiler_common::wait::{Cell, KEPT_IN_A_SLOT};

use crate::aggregate::{self, Outcomes, conclude, count};
use crate::atomic;
use crate::config::config;
use crate::maps::{
    CALLERS, CALLERS_NEW, COUNTERS, FUNCTION_PACE, FUNCTION_PYTHON, FUNCTION_STATS, FUNCTION_STATS_NEW,
    FUNCTION_THRESHOLD, FUNCTIONS_MISSED, Programs, SCRATCH,
};
use crate::offcpu::{chance, part, points, threshold};
use crate::python;
use crate::stack;
use crate::task::{Task, kernel_number};
use crate::unwind;
use crate::window::{self, Window};

/// Entries that are made where there is none. Source: `BPF_NOEXIST`, include/uapi/linux/bpf.h.
const NO_EXIST: u64 = 1;

/// Where a goroutine has the upper end of its stack. Source: `g` in Go's src/runtime/runtime2.go, which assembly relies on.
const STACK_END: u64 = 8;

/// Takes the beginning of a call. Its cookie: see [`profiler_common::function`].
#[uprobe]
pub(crate) fn function_enter(context: ProbeContext) -> u32 {
    begin(&context);
    0
}

/// Takes the end of a call. The same cookie.
#[uprobe]
pub(crate) fn function_end(context: ProbeContext) -> u32 {
    end(&context);
    0
}

/// A call's caller, where its return address is, and the cookie.
#[inline(always)]
fn caller_of(context: &ProbeContext) -> Option<(CallerKey, u64, u64)> {
    // SAFETY: the helper takes the program's own context.
    let cookie = unsafe { bpf_get_attach_cookie(context.as_ptr()) };
    // SAFETY: the context is the thread's registers; the other takes no argument.
    let (sp, goroutine, running) = unsafe { ((*context.regs).rsp, (*context.regs).r14, bpf_get_current_pid_tgid()) };
    if cookie & OF_GOROUTINES == 0 {
        return Some((CallerKey { id: running & 0xffff_ffff, pid: 0, reserved: 0 }, sp, cookie));
    }
    // SAFETY: the helper reads user memory, and fails where there is none.
    let end = unsafe { bpf_probe_read_user(goroutine.wrapping_add(STACK_END) as *const u64) }.ok()?;
    let key = CallerKey { id: goroutine, pid: (running >> 32) as u32, reserved: 0 };
    Some((key, sp.wrapping_sub(end), cookie))
}

#[inline(always)]
fn begin(context: &ProbeContext) -> Option<()> {
    let task = Task::running().in_namespace()?;
    if !task.is_wanted() {
        return None;
    }
    let (key, position, cookie) = caller_of(context)?;
    if CALLERS.get_ptr_mut(key).is_none() {
        let new = CALLERS_NEW.get(0)?;
        if CALLERS.insert(key, new, NO_EXIST).is_err() {
            missed(FunctionMissed::Callers);
            return None;
        }
        // SAFETY: the pointer is to a map value, which is this caller's.
        unsafe { (*CALLERS.get_ptr_mut(key)?).cell = Cell::new(chance()) };
    }
    let function = (cookie & FUNCTION_MASK) as u32;
    // SAFETY: as above; a caller is in one place at a time.
    let caller = unsafe { &mut *CALLERS.get_ptr_mut(key)? };
    let mut index = 0;
    while index < MAX_DEPTH {
        // The stack grows downwards: a call that is still there has its return address above.
        let Some(top) = top(caller) else { break };
        if top.position > position {
            break;
        }
        caller.depth -= 1;
        // Go's functions begin anew when their stack has been made larger.
        let is_anew = cookie & OF_GOROUTINES != 0 && top.position == position && top.function == function;
        if !is_anew {
            missed(FunctionMissed::Unended);
        }
        index += 1;
    }
    let depth = caller.depth as usize;
    let off_cpu_ns = caller.off_cpu_ns;
    let Some(call) = caller.calls.get_mut(depth) else {
        missed(FunctionMissed::Deep);
        return None;
    };
    caller.depth += 1;
    // SAFETY: takes no argument. Last, so that what this program takes is in no call.
    let since_ns = unsafe { bpf_ktime_get_ns() };
    *call = InCall { position, since_ns, off_cpu_ns, function, reserved: 0 };
    Some(())
}

/// The innermost call of a caller.
#[inline(always)]
fn top(caller: &Caller) -> Option<InCall> {
    caller.calls.get((caller.depth as usize).wrapping_sub(1)).copied()
}

#[inline(always)]
fn end(context: &ProbeContext) -> Option<()> {
    // SAFETY: takes no argument.
    let now = unsafe { bpf_ktime_get_ns() };
    let (key, position, cookie) = caller_of(context)?;
    // SAFETY: as in `begin`.
    let caller = unsafe { &mut *CALLERS.get_ptr_mut(key)? };
    let function = (cookie & FUNCTION_MASK) as u32;
    let mut ended = None;
    let mut index = 0;
    while index < MAX_DEPTH {
        let Some(top) = top(caller) else { break };
        // The end of a call whose beginning was not seen.
        if top.position > position {
            break;
        }
        caller.depth -= 1;
        if top.position == position && top.function == function {
            ended = Some(top);
            break;
        }
        missed(FunctionMissed::Unended);
        index += 1;
    }
    let call = ended?;
    let is_nested = is_in(caller, function);
    let (elapsed, off_cpu) = (now.saturating_sub(call.since_ns), caller.off_cpu_ns.saturating_sub(call.off_cpu_ns));
    let task = Task::running().in_namespace()?;
    add_to_stats(&task, function, elapsed, off_cpu, is_nested);
    if !is_nested {
        choose(context, &task, caller, elapsed, now);
    }
    // A goroutine's end is not seen.
    if cookie & OF_GOROUTINES != 0 && caller.depth == 0 {
        let _ = CALLERS.remove(key);
    }
    Some(())
}

/// Whether a caller is in a call of a function.
#[inline(always)]
fn is_in(caller: &Caller, function: u32) -> bool {
    let mut index = 0;
    let mut found = false;
    while index < MAX_DEPTH {
        found |= (index as u32) < caller.depth && caller.calls[index].function == function;
        index += 1;
    }
    found
}

/// Counts what is not known of a call.
#[inline(always)]
fn missed(what: FunctionMissed) {
    if let Some(counter) = FUNCTIONS_MISSED.get_ptr_mut(what as u32) {
        // SAFETY: the pointer is to a map element that every CPU writes, hence atomic.
        unsafe { atomic::add(counter, 1) };
    }
}

/// Adds a call to the exact counts of its function.
#[inline(always)]
fn add_to_stats(task: &Task, function: u32, elapsed: u64, off_cpu: u64, is_nested: bool) {
    let key = FunctionKey {
        start_time_ns: task.start_time_ns(),
        pid: task.pid,
        exec_count: task.exec_count(),
        function,
        reserved: 0,
    };
    if FUNCTION_STATS.get_ptr_mut(key).is_none()
        && let Some(new) = FUNCTION_STATS_NEW.get(0)
        && FUNCTION_STATS.insert(key, new, NO_EXIST).is_ok()
        && let Some(stats) = FUNCTION_STATS.get_ptr_mut(key)
    {
        // SAFETY: the pointer is to a map value, whose name nobody else writes.
        unsafe { (*stats).process_comm = task.process_comm() };
    }
    let Some(stats) = FUNCTION_STATS.get_ptr_mut(key) else { return missed(FunctionMissed::Stats) };
    // SAFETY: the pointers are to map values that every CPU writes, hence atomic; the bucket is one of the histogram's.
    unsafe {
        atomic::add(&raw mut (*stats).calls, 1);
        atomic::add(&raw mut (*stats).sum_ns, elapsed);
        if is_nested {
            atomic::add(&raw mut (*stats).nested, 1);
        } else {
            atomic::add(&raw mut (*stats).total_ns, elapsed);
            atomic::add(&raw mut (*stats).off_cpu_ns, off_cpu);
        }
        atomic::raise(&raw mut (*stats).max_ns, elapsed);
        let bucket = bucket_of(elapsed) & (HISTOGRAM_BUCKETS - 1);
        atomic::add((&raw mut (*stats).histogram).cast::<u64>().add(bucket), 1);
    }
}

/// Keeps a call with its stack, if it is slow enough, and its length or chance says so.
#[inline(always)]
fn choose(context: &ProbeContext, task: &Task, caller: &mut Caller, elapsed: u64, now: u64) -> Option<()> {
    let counters: *mut Counters = COUNTERS.get_ptr_mut(Origin::Func as u32)?;
    let slower_ns = config!(slower_ns);
    // SAFETY: the pointers are to this CPU's element, in which threads may be preempted, hence atomic.
    unsafe {
        atomic::add(&raw mut (*counters).hits, 1);
        if elapsed < slower_ns {
            atomic::add(&raw mut (*counters).sampled_out, 1);
            return None;
        }
        atomic::add(&raw mut (*counters).period_sum, elapsed);
    }
    // SAFETY: as above; a reference is made for the outcomes alone, which are counted atomically.
    let outcomes = unsafe { &mut *counters };
    // SAFETY: the element is this CPU's. A thread that is preempted between reading and writing it makes a count of what was
    // kept wrong by one, which changes the next threshold by as little.
    let pace = unsafe { &mut *FUNCTION_PACE.get_ptr_mut(0)? };
    let threshold = threshold(&FUNCTION_THRESHOLD, pace, now, KEPT_IN_A_SLOT);
    let points = points(&mut caller.cell, elapsed, threshold);
    if points == 0 {
        // SAFETY: as above.
        unsafe { atomic::add(&raw mut (*counters).sampled_out, 1) };
        return None;
    }
    pace.kept += 1;
    let Some(window) = window::enter() else {
        count(outcomes, Outcomes::lost(Outcome::MapBusy));
        return None;
    };
    let Some(scratch) = aggregate::claim(Programs::Function) else {
        window.leave();
        count(outcomes, Outcomes::lost(Outcome::ScratchBusy));
        return None;
    };
    scratch.parts[0] = part(elapsed, points, threshold);
    let process = task.process();
    aggregate::begin(scratch, &window, task, process, Origin::Func);
    let user = stack::begin(task, process, scratch);
    if user.is_none() {
        unwind::walk(Programs::Function);
        // SAFETY: the map holds programs of this type. The call returns where there is none, which is so without Python.
        unsafe { FUNCTION_PYTHON.tail_call(context, python::slot(scratch)) };
    }
    conclude::<false>(&window, task, outcomes, scratch, user);
    window.leave();
    Some(())
}

/// Goes on with the Python chain, once the native one is walked.
#[uprobe]
pub(crate) fn function_python(_context: ProbeContext) -> u32 {
    let scratch = SCRATCH.get_ptr_mut(Programs::Function as u32);
    let (Some(scratch), Some(counters)) = (scratch, COUNTERS.get_ptr_mut(Origin::Func as u32)) else { return 0 };
    // SAFETY: the program before this one has claimed the first element; outcomes are counted atomically.
    let (scratch, counters) = unsafe { (&mut *scratch, &mut *counters) };
    python::walk(Programs::Function);
    if let (Some(task), Some(window)) = (Task::current(), Window::resume(scratch.user.window)) {
        conclude::<true>(&window, &task, counters, scratch, None);
        window.leave();
    }
    0
}

/// Counts how long threads are off the CPU inside calls. Arguments: whether it was preempted, who leaves, who comes.
#[raw_tracepoint(tracepoint = "sched_switch")]
pub(crate) fn function_switch(context: RawTracePointContext) -> i32 {
    // SAFETY: takes no argument.
    let now = unsafe { bpf_ktime_get_ns() };
    // SAFETY: every version of the tracepoint has this argument, which is a task.
    let next = unsafe { *context.as_ptr().cast::<u64>().add(2) } as *const u8;
    let next_tid = kernel_number(next, config!(task.pid));
    if let Some(leaves) = CALLERS.get_ptr_mut(thread(Task::running().tid)) {
        // SAFETY: the pointer is to a map value, whose thread is being switched out.
        unsafe { (*leaves).left_ns = now };
    }
    if let Some(comes) = CALLERS.get_ptr_mut(thread(next_tid)) {
        // SAFETY: the pointer is to a map value, whose thread does not run yet.
        unsafe {
            if (*comes).left_ns != 0 {
                (*comes).off_cpu_ns += now.saturating_sub((*comes).left_ns);
                (*comes).left_ns = 0;
            }
        }
    }
    0
}

/// Forgets a thread that ends.
#[raw_tracepoint(tracepoint = "sched_process_exit")]
pub(crate) fn function_thread_end(_context: RawTracePointContext) -> i32 {
    let _ = CALLERS.remove(thread(Task::running().tid));
    0
}

#[inline(always)]
fn thread(tid: u32) -> CallerKey {
    CallerKey { id: u64::from(tid), pid: 0, reserved: 0 }
}
