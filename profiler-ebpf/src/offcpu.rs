//! Time off the CPU: what a thread waited for, from the moment it was switched out to the moment it runs again.
//!
//! Two hooks. `sched_switch`, in the context of the thread that leaves its CPU, notes when and how. A hook in the context
//! of the thread that has come back decides by the length of the wait whether to keep it, and walks both chains then:
//! the thread's own memory is there, its registers are those of its entry into the kernel, and its kernel stack is still
//! that of the wait. So a switch costs two look-ups, and a walk only where a wait is kept; and a long one always is.
//!
//! The second hook is the tracepoint `sched_exit_tp` (Linux 6.15), and a kprobe of `finish_task_switch` before. Both run
//! with preemption off, so that nothing of this type comes in between.

use aya_ebpf::EbpfContext;
use aya_ebpf::helpers::generated::{bpf_get_prandom_u32, bpf_ktime_get_ns};
use aya_ebpf::macros::{kprobe, raw_tracepoint};
use aya_ebpf::maps::{Array, ProgramArray};
use aya_ebpf::programs::{ProbeContext, RawTracePointContext};
use core::ffi::c_void;
use profiler_common::counters::{Counters, Outcome};
use profiler_common::event::{Origin, RecordKey};
use profiler_common::wait::{
    Blocked, Cell, KEPT_IN_A_SLOT, LEAST_THRESHOLD_NS, Left, MOST_THRESHOLD_NS, Pace, SLOT_NS, Threshold, Wait,
    system_call_of,
};

use crate::aggregate::{self, Outcomes, count};
use crate::atomic;
use crate::config::config;
use crate::maps::{
    CONTROL, COUNTERS, OFFCPU_PROBE_PYTHON, OFFCPU_PYTHON, PACE, Part, Programs, SCRATCH, Scratch, THREADS_REFUSED,
    THRESHOLD,
};
use crate::python;
use crate::stack::{self, Chain};
use crate::task::Task;
use crate::threads;
use crate::unwind;
use crate::window::{self, Window};

/// Bits of a task's state. Source: include/linux/sched.h.
mod state {
    pub(super) const INTERRUPTIBLE: u64 = 1;
    pub(super) const STOPPED_OR_TRACED: u64 = 4 | 8;
    pub(super) const DEAD: u64 = 0x80;
    /// All that a task can sleep in.
    pub(super) const ANY: u64 = 0xffff_ffff;
}

/// `poll`, `ppoll`, `select` and `pselect6`. Source: arch/x86/entry/syscalls/syscall_64.tbl.
const POLLS: [u16; 2] = [7, 271];
const SELECTS: [u16; 2] = [23, 270];

/// Notes that a thread leaves its CPU. Arguments: whether it was preempted, the task, the next one and, since Linux
/// 5.18, the state it leaves with: its own field may be written by who wakes it by then.
#[raw_tracepoint(tracepoint = "sched_switch")]
pub(crate) fn offcpu_out(context: RawTracePointContext) -> i32 {
    let Some(pace) = PACE.get_ptr_mut(0) else { return 0 };
    // SAFETY: the element is this CPU's, and programs of this type do not interrupt each other.
    let pace = unsafe { &mut *pace };
    // For the thread that comes, too: its wait is over at the same point of a switch that its next one begins at. Read in
    // its own context, the time that a switch takes would be added to every wait.
    // SAFETY: takes no argument.
    pace.switched_ns = unsafe { bpf_ktime_get_ns() };
    let task = Task::running();
    if task.tid == 0 {
        return 0;
    }
    let entry = threads::find::<Wait>(task.tid);
    // Who has an entry was asked for.
    if entry.is_none() && !is_asked_for() {
        return 0;
    }
    let arguments = context.as_ptr().cast::<u64>().cast_const();
    let argument = config!(task.switch_state_argument);
    let state = if argument == 0 {
        u64::from(task.state())
    } else {
        // SAFETY: user space has seen that the tracepoint has this argument.
        unsafe { *arguments.add(argument as usize - 1) }
    };
    let state = state & state::ANY;
    if state & state::DEAD != 0 {
        if let Some(entry) = entry {
            threads::remove(entry);
        }
        return 0;
    }
    // SAFETY: every version of the tracepoint has this argument.
    let was_preempted = unsafe { *arguments } & 0xff != 0;
    let entry = match entry {
        Some(entry) => entry,
        None => {
            let Some(entry) = threads::add::<Wait>(task.tid) else { return refuse() };
            (entry.blocked, entry.queued) = (Cell::new(chance()), Cell::new(chance()));
            entry
        }
    };
    entry.run_delay_ns = task.run_delay_ns();
    entry.left = left_by_state(if was_preempted { 0 } else { state }) as u32;
    entry.since_ns = pace.switched_ns;
    0
}

/// Whether the running thread was asked for. Kernel threads wait for work by design and are not.
#[inline(always)]
fn is_asked_for() -> bool {
    Task::current().is_some_and(|task| task.is_wanted() && !task.is_kernel_thread())
}

/// Any number.
#[inline(always)]
pub(crate) fn chance() -> u32 {
    // SAFETY: takes no argument.
    unsafe { bpf_get_prandom_u32() }
}

/// How a task has left that is in this state.
#[inline(always)]
pub(crate) fn left_by_state(state: u64) -> Left {
    if state == 0 {
        Left::Runnable
    } else if state & state::STOPPED_OR_TRACED != 0 {
        Left::Stopped
    } else if state & state::INTERRUPTIBLE != 0 {
        Left::Interruptible
    } else {
        Left::Uninterruptible
    }
}

/// Counts a wait of a thread that there is no room for.
#[inline(always)]
fn refuse() -> i32 {
    if let Some(refused) = THREADS_REFUSED.get_ptr_mut(0) {
        // SAFETY: the pointer is to a map element that every CPU writes, hence atomic.
        unsafe { atomic::add(refused, 1) };
    }
    if let Some(counters) = COUNTERS.get_ptr_mut(Origin::OffCpu as u32) {
        // SAFETY: the element is this CPU's, and programs of this type do not interrupt each other.
        let counters = unsafe { &mut *counters };
        counters.hits += 1;
        count(counters, Outcomes::lost(Outcome::ThreadsFull));
    }
    0
}

/// Looks at the wait of the thread that has come back. Argument: whether another one ran before it.
#[raw_tracepoint(tracepoint = "sched_exit_tp")]
pub(crate) fn offcpu_in(context: RawTracePointContext) -> i32 {
    // SAFETY: the tracepoint has this argument.
    if unsafe { *context.as_ptr().cast::<u64>() } & 0xff != 0 {
        switched_in(&context, &OFFCPU_PYTHON);
    }
    0
}

/// The same, at the beginning of `finish_task_switch`.
#[kprobe]
pub(crate) fn offcpu_in_probe(context: ProbeContext) -> u32 {
    switched_in(&context, &OFFCPU_PROBE_PYTHON);
    0
}

/// Goes on with the Python chain, once the native one is walked.
#[raw_tracepoint(tracepoint = "sched_exit_tp")]
pub(crate) fn offcpu_python(context: RawTracePointContext) -> i32 {
    python_walked(&context);
    0
}

/// The same, for the kprobe.
#[kprobe]
pub(crate) fn offcpu_python_probe(context: ProbeContext) -> u32 {
    python_walked(&context);
    0
}

#[inline(always)]
fn switched_in<C: EbpfContext>(context: &C, pythons: &ProgramArray) {
    let task = Task::running();
    if task.tid == 0 {
        return;
    }
    let (Some(pace), Some(counters)) = (PACE.get_ptr_mut(0), COUNTERS.get_ptr_mut(Origin::OffCpu as u32)) else {
        return;
    };
    // SAFETY: the elements are this CPU's, and programs of this type do not interrupt each other.
    let (pace, counters) = unsafe { (&mut *pace, &mut *counters) };
    let began = began();
    let entry = threads::find::<Wait>(task.tid);
    let (waited, queued, left, now) = if let Some(entry) = &entry {
        // SAFETY: user space's iterator may take the wait at the same time.
        let since = unsafe { atomic::swap((&raw const entry.since_ns).cast_mut(), 0) };
        // Nor one that ended before the recording began.
        if since == 0 || began == 0 || pace.switched_ns < began {
            return;
        }
        let now = pace.switched_ns;
        let waited = now - if since > began { since } else { began };
        let queued = task.run_delay_ns() - entry.run_delay_ns;
        (waited, if queued < waited { queued } else { waited }, entry.left, now)
    } else {
        if began == 0 {
            return;
        }
        if !has_waited(&task) || !is_asked_for() {
            counters.hits += 1;
            counters.filtered += 1;
            return;
        }
        let now = pace.switched_ns;
        if now < began {
            return;
        }
        (now - began, 0, Left::Unknown as u32, now)
    };
    // A thread that was ready to run all the time has not been blocked at all.
    let (blocked, queued) = if left == Left::Runnable as u32 { (waited, 0) } else { (waited - queued, queued) };
    counters.hits += u64::from(blocked > 0) + u64::from(queued > 0);
    counters.period_sum += waited;
    let threshold = threshold(&THRESHOLD, pace, now);
    let parts = match entry {
        Some(entry) => (points(&mut entry.blocked, blocked, threshold), points(&mut entry.queued, queued, threshold)),
        None => (EXACT, 0),
    };
    let kept = u64::from(parts.0 > 0) + u64::from(parts.1 > 0);
    counters.sampled_out += u64::from(blocked > 0) + u64::from(queued > 0) - kept;
    if kept == 0 {
        return;
    }
    pace.kept += 1;
    let (Some(task), Some(window)) = (Task::current(), window::enter()) else {
        return lose(counters, kept, Outcome::MapBusy);
    };
    let Some(scratch) = aggregate::claim(Programs::Scheduler) else {
        window.leave();
        return lose(counters, kept, Outcome::ScratchBusy);
    };
    scratch.parts[0] = part(blocked, parts.0, threshold);
    scratch.parts[1] = part(queued, parts.1, threshold);
    keep(context, &window, &task, counters, scratch, left, pythons);
    window.leave();
}

/// Counts intervals of which there is no record.
#[inline(always)]
fn lose(counters: &mut Counters, intervals: u64, outcome: Outcome) {
    count(counters, Outcomes::lost(outcome));
    if intervals > 1 {
        count(counters, Outcomes::lost(outcome));
    }
}

/// When the recording began; 0 before, and once it ends.
#[inline(always)]
fn began() -> u64 {
    let Some(control) = CONTROL.get_ptr(0) else { return 0 };
    // SAFETY: the pointer is to a map element, which user space may write at any time, hence volatile.
    unsafe { core::ptr::read_volatile(&raw const (*control).began_ns) }
}

/// Whether a thread without an entry has waited since before the recording began.
#[inline(always)]
fn has_waited(task: &Task) -> bool {
    let (Some(control), Some(refused)) = (CONTROL.get_ptr(0), THREADS_REFUSED.get_ptr(0)) else { return false };
    // SAFETY: as above.
    let (since_boot, refused) = unsafe {
        let since_boot = core::ptr::read_volatile(&raw const (*control).began_since_boot_ns);
        (since_boot, core::ptr::read_volatile(refused))
    };
    // Once a thread found no room, one without an entry may have been switched out since.
    refused == 0 && task.thread_start_time_ns() < since_boot
}

/// The threshold that an interval is held against: raised as soon as a CPU keeps more intervals than it should, and
/// lowered when no CPU has kept about as many for a while.
#[inline(always)]
pub(crate) fn threshold(shared: &Array<Threshold>, pace: &mut Pace, now: u64) -> u64 {
    let Some(shared) = shared.get_ptr_mut(0) else { return MOST_THRESHOLD_NS };
    // SAFETY: the pointers are to a map element that every CPU writes, hence volatile: a change that is overwritten by that
    // of another CPU is made again a slot later.
    unsafe {
        let before = core::ptr::read_volatile(&raw const (*shared).now_ns);
        let mut threshold = before;
        let elapsed = now - pace.slot_ns;
        if elapsed >= SLOT_NS || pace.kept >= 2 * KEPT_IN_A_SLOT {
            let changed_at = core::ptr::read_volatile(&raw const (*shared).changed_at_ns);
            let needed_at = core::ptr::read_volatile(&raw const (*shared).needed_at_ns);
            if pace.kept > KEPT_IN_A_SLOT - KEPT_IN_A_SLOT / 4 {
                core::ptr::write_volatile(&raw mut (*shared).needed_at_ns, now);
            }
            if changed_at > pace.slot_ns {
                // What was kept says nothing of it yet.
            } else if pace.kept >= 2 * KEPT_IN_A_SLOT {
                threshold *= 2;
            } else if pace.kept > KEPT_IN_A_SLOT + KEPT_IN_A_SLOT / 8 {
                threshold += threshold / 4;
            } else if now - needed_at > 16 * SLOT_NS {
                threshold >>= 4;
            } else if now - needed_at > 2 * SLOT_NS {
                threshold -= threshold / 8;
            }
            pace.slot_ns = now;
            pace.kept = 0;
        }
        threshold = if threshold < LEAST_THRESHOLD_NS { LEAST_THRESHOLD_NS } else { threshold };
        threshold = if threshold > MOST_THRESHOLD_NS { MOST_THRESHOLD_NS } else { threshold };
        if threshold != before {
            core::ptr::write_volatile(&raw mut (*shared).now_ns, threshold);
            core::ptr::write_volatile(&raw mut (*shared).changed_at_ns, now);
            if threshold > core::ptr::read_volatile(&raw const (*shared).highest_ns) {
                core::ptr::write_volatile(&raw mut (*shared).highest_ns, threshold);
            }
        }
        threshold
    }
}

/// What stands for an interval that is kept with its own length.
const EXACT: u64 = u64::MAX;

/// How many points an interval has in its thread's cells; [`EXACT`] when it is not below the threshold.
#[inline(always)]
pub(crate) fn points(cell: &mut Cell, length: u64, threshold: u64) -> u64 {
    if length >= threshold {
        return EXACT;
    }
    if length == 0 {
        return 0;
    }
    cell.step(length, threshold, chance)
}

/// What an interval counts for.
///
/// One with a point stands for `threshold / length` intervals, which is rounded up or down without favour. The variance is
/// what Horvitz and Thompson estimate for intervals that have a chance each; with cells it is less.
#[inline(always)]
pub(crate) fn part(length: u64, points: u64, threshold: u64) -> Part {
    if points == 0 {
        return Part { columns: [0; 4] };
    }
    if points == EXACT {
        return Part { columns: [1, length, 1, 0] };
    }
    let variance = threshold * (threshold - length) / 1_000_000;
    let rounding = (u64::from(chance()) * length) >> 32;
    // Checked, so that no panic gets into the program.
    let intervals = (threshold * points + rounding).checked_div(length).unwrap_or(0);
    Part { columns: [1, threshold * points, intervals, variance * points] }
}

/// Adds the parts in the scratch space, with the chains of the thread.
#[inline(always)]
fn keep<C: EbpfContext>(
    context: &C,
    window: &Window,
    task: &Task,
    counters: &mut Counters,
    scratch: &mut Scratch,
    left: u32,
    pythons: &ProgramArray,
) {
    let process = task.process();
    aggregate::prepare(scratch, window);
    scratch.key = RecordKey {
        start_time_ns: task.start_time_ns(),
        kernel_stack: 0,
        user_stack: 0,
        span: 0,
        pid: task.pid,
        tid: task.tid,
        exec_count: task.exec_count(),
        generation: process.map_or(0, |process| process.generation),
        origin: Origin::OffCpu as u16,
        reason: 0,
        reserved: 0,
    };
    let (system_call, polls_nothing) = system_call(task);
    // The numbers of `Left` are those of its bits in the word.
    let blocked = Blocked { left: Left::Unknown, system_call, io_wait: task.is_in_io_wait(), polls_nothing };
    scratch.blocked = u64::from(blocked.to_word() | Blocked::left_bits(left as u16));
    let user = stack::begin(task, process, scratch);
    if user.is_none() {
        unwind::walk(Programs::Scheduler);
        // SAFETY: the map holds programs of this type. The call returns where there is none, which is so without Python.
        unsafe { pythons.tail_call(context, python::slot(scratch)) };
    }
    conclude::<false>(context.as_ptr(), window, task, counters, scratch, user);
}

/// The system call that a task is in, and whether it is a poll of no descriptors.
#[inline(always)]
pub(crate) fn system_call(task: &Task) -> (u16, bool) {
    let registers = stack::entry_registers(task);
    let number = system_call_of(registers.number);
    let is_poll = (number == POLLS[0] || number == POLLS[1]) && registers.second_argument == 0;
    let is_select = (number == SELECTS[0] || number == SELECTS[1]) && registers.first_argument == 0;
    (number, is_poll || is_select)
}

#[inline(always)]
fn python_walked<C: EbpfContext>(context: &C) {
    let scratch = SCRATCH.get_ptr_mut(Programs::Scheduler as u32);
    let (Some(scratch), Some(counters)) = (scratch, COUNTERS.get_ptr_mut(Origin::OffCpu as u32)) else { return };
    // SAFETY: both elements are this CPU's, and the program before this one has claimed the first.
    let (scratch, counters) = unsafe { (&mut *scratch, &mut *counters) };
    python::walk(Programs::Scheduler);
    if let (Some(task), Some(window)) = (Task::current(), Window::resume(scratch.user.window)) {
        conclude::<true>(context.as_ptr(), &window, &task, counters, scratch, None);
        window.leave();
    }
}

/// Adds what was kept, and gives the scratch space back.
///
/// `PYTHON`: whether the user chain has a Python part.
#[inline(always)]
fn conclude<const PYTHON: bool>(
    context: *mut c_void,
    window: &Window,
    task: &Task,
    counters: &mut Counters,
    scratch: &mut Scratch,
    user: Option<Chain>,
) {
    let user = match user {
        Some(chain) => chain,
        None => stack::end::<PYTHON>(task, scratch),
    };
    let kernel = stack::kernel(context, &mut scratch.kernel);
    let mut index = 0;
    while index < 2 {
        let columns = scratch.parts[index].columns;
        if columns[0] != 0 {
            let blocked = scratch.blocked as u16;
            scratch.key.reason = if index == 0 { blocked } else { Blocked::woken(blocked) };
            let outcomes = aggregate::add(window, task, columns, scratch, user, kernel);
            count(counters, outcomes);
        }
        index += 1;
    }
    scratch.claimed = 0;
}
