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
use profiler_common::event::Origin;
use profiler_common::wait::{
    Blocked, Cell, KEPT_IN_A_SLOT, LEAST_THRESHOLD_NS, Left, LockKey, LockWaits, MOST_THRESHOLD_NS, Pace, SLOT_NS,
    Threshold, Wait, recorded_waits, system_call_of, waits_for_lock,
};

use crate::aggregate::{self, Outcomes, count};
use crate::atomic;
use crate::config::config;
use crate::maps::{
    COUNTERS, LOCKS, LOCKS_MISSED, OFFCPU_PROBE_PYTHON, OFFCPU_PYTHON, PACE, PARTS, Part, Programs, SCRATCH, Scratch,
    THREADS_REFUSED, THRESHOLD, WAKES,
};
use crate::python;
use crate::recorded::Recorded;
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
    // When the thread that leaves has come.
    let came_ns = pace.switched_ns;
    // For the thread that comes, too: its wait is over at the same point of a switch that its next one begins at. Read in
    // its own context, the time that a switch takes would be added to every wait.
    // SAFETY: takes no argument.
    pace.switched_ns = unsafe { bpf_ktime_get_ns() };
    let arguments = context.as_ptr().cast::<u64>().cast_const();
    // SAFETY: every version of the tracepoint has this argument.
    pace.next = unsafe { *arguments.add(2) };
    let task = Task::running();
    if task.tid == 0 {
        return 0;
    }
    let entry = threads::find::<Wait>(task.tid);
    // Who has an entry was asked for.
    if entry.is_none() && !is_asked_for() {
        return 0;
    }
    let argument = config!(task.switch_state_argument);
    let state = if argument == 0 {
        u64::from(task.state())
    } else {
        // SAFETY: user space has seen that the tracepoint has this argument.
        unsafe { *arguments.add(argument as usize - 1) }
    };
    let state = state & state::ANY;
    let recorded = Recorded::read();
    let ran_ns = recorded.map_or(0, |recorded| recorded.length(came_ns, pace.switched_ns));
    if state & state::DEAD != 0 {
        if let Some(recorded) = recorded {
            threads::send_end(&task, entry.as_deref(), came_ns, ran_ns, recorded.clamp(pace.switched_ns));
        }
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
            let Some(entry) = add(&task, came_ns) else { return refuse() };
            entry
        }
    };
    entry.on_cpu_ns += ran_ns;
    if entry.since_ns != 0 {
        // Its coming was not seen: hooks may be held off. The wait is lost, its time is not.
        entry.off_cpu_ns += recorded.map_or(0, |recorded| recorded.length(entry.since_ns, came_ns));
    }
    entry.run_delay_ns = task.run_delay_ns();
    entry.left = left_by_state(if was_preempted { 0 } else { state }) as u32;
    entry.since_ns = pace.switched_ns;
    0
}

/// Whether the running thread was asked for.
#[inline(always)]
fn is_asked_for() -> bool {
    Task::current().is_some_and(|task| task.is_asked_for())
}

/// An element for a thread that is known since `from_ns`.
#[inline(always)]
fn add(task: &Task, from_ns: u64) -> Option<&'static mut Wait> {
    let entry = threads::add::<Wait>(task.tid)?;
    (entry.blocked, entry.queued) = (Cell::new(chance()), Cell::new(chance()));
    (entry.since_ns, entry.from_ns, entry.on_cpu_ns, entry.off_cpu_ns) = (0, from_ns, 0, 0);
    Some(entry)
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
    if pace.next != task.pointer() as u64 {
        // The kernel has not shown who left: there are processes that it shows to no program.
        pace.next = task.pointer() as u64;
        // SAFETY: takes no argument.
        pace.switched_ns = unsafe { bpf_ktime_get_ns() };
    }
    let waits = config!(waits);
    let (place, now) = (threads::place::<Wait>(task.tid), pace.switched_ns);
    // Those that ended before the recording began do not count, nor those that began after it.
    let (place, waited, queued, left) = if let Some((index, entry)) = place {
        // SAFETY: user space's iterator may take the wait at the same time.
        let since = unsafe { atomic::swap(&raw mut entry.since_ns, 0) };
        let waited = Recorded::read().map_or(0, |recorded| recorded.length(since, now));
        if since == 0 || waited == 0 {
            return;
        }
        entry.off_cpu_ns += waited;
        let queued = task.run_delay_ns() - entry.run_delay_ns;
        let left = entry.left;
        (Some((index, entry)), waited, if queued < waited { queued } else { waited }, left)
    } else {
        let Some(recorded) = Recorded::read() else { return };
        if !recorded.is_untouched(&task) || !is_asked_for() {
            counters.hits += 1;
            counters.filtered += 1;
            return;
        }
        let waited = recorded.length(0, now);
        if waited == 0 {
            return;
        }
        if let Some(entry) = add(&task, 0) {
            entry.off_cpu_ns = waited;
        }
        // No element for what follows: there is nothing to choose by.
        (None, waited, 0, Left::Unknown as u32)
    };
    // A thread that was ready to run all the time has not been blocked at all.
    let (blocked, queued) = if left == Left::Runnable as u32 { (waited, 0) } else { (waited - queued, queued) };
    let may_be_lock = waits & recorded_waits::LOCKS != 0 && blocked > 0 && left != Left::Runnable as u32;
    let lock = if may_be_lock { lock_of(&task) } else { None };
    let all = waits & recorded_waits::ALL != 0;
    if !all && lock.is_none() {
        return;
    }
    let (queued, intervals) = if all { (queued, u64::from(blocked > 0) + u64::from(queued > 0)) } else { (0, 0) };
    counters.hits += intervals;
    counters.period_sum += if all { waited } else { 0 };
    let threshold = threshold(&THRESHOLD, pace, now, KEPT_IN_A_SLOT);
    let mut waker = 0;
    let points = match place {
        Some((index, entry)) => {
            if waits & recorded_waits::WAKERS != 0 {
                waker = take_waker(index);
            }
            (points(&mut entry.blocked, blocked, threshold), points(&mut entry.queued, queued, threshold))
        }
        None => (EXACT, 0),
    };
    let kept = if all { u64::from(points.0 > 0) + u64::from(points.1 > 0) } else { 0 };
    counters.sampled_out += intervals - kept;
    let lock = match lock {
        Some(lock) => keep_lock(lock, blocked, points.0 > 0),
        None => None,
    };
    if kept == 0 && lock.is_none() {
        return;
    }
    pace.kept += 1;
    let (Some(task), Some(window)) = (Task::current(), window::enter()) else {
        return lose(counters, kept, lock.is_some(), Outcome::MapBusy);
    };
    let Some(scratch) = aggregate::claim(Programs::Scheduler) else {
        window.leave();
        return lose(counters, kept, lock.is_some(), Outcome::ScratchBusy);
    };
    let part_blocked = part(blocked, points.0, threshold);
    scratch.parts[BLOCKED] = if all { part_blocked } else { Part::NONE };
    scratch.parts[QUEUED] = part(queued, points.1, threshold);
    scratch.parts[LOCK] = Part::NONE;
    scratch.waker = waker;
    if let Some(address) = lock {
        scratch.parts[LOCK] = part_blocked;
        scratch.lock = LockKey { start_time_ns: task.start_time_ns(), address, waker, pid: task.pid, reserved: 0 };
        let [_, delay_ns, intervals, _] = part_blocked.columns;
        scratch.lock_waits = LockWaits { waits: intervals, delay_ns, longest_ns: blocked };
    }
    keep(context, &window, &task, counters, scratch, left, pythons);
    window.leave();
}

/// Where the parts of a wait are in the scratch space.
const BLOCKED: usize = 0;
const QUEUED: usize = 1;
const LOCK: usize = 2;

/// The address of the lock that a task waits for; `None` when it waits for something else.
#[inline(always)]
fn lock_of(task: &Task) -> Option<u64> {
    let call = system_call(task);
    if call.waits_for_lock { Some(call.first_argument) } else { None }
}

/// Counts a wait for a lock; returns its address when the wait is kept.
#[inline(always)]
fn keep_lock(address: u64, blocked: u64, is_kept: bool) -> Option<u64> {
    let counters = COUNTERS.get_ptr_mut(Origin::Lock as u32)?;
    // SAFETY: the element is this CPU's, and programs of this type do not interrupt each other.
    let counters = unsafe { &mut *counters };
    counters.hits += 1;
    counters.period_sum += blocked;
    counters.sampled_out += u64::from(!is_kept);
    is_kept.then_some(address)
}

/// The number of who woke the thread at a place, once.
#[inline(always)]
fn take_waker(place: u32) -> u64 {
    let Some(wake) = WAKES.get_ptr_mut(place) else { return 0 };
    // SAFETY: the pointer is to a map element, and the thread runs: nobody wakes it now.
    unsafe { core::mem::replace(&mut *wake, 0) }
}

/// Counts intervals of which there is no record.
#[inline(always)]
fn lose(counters: &mut Counters, intervals: u64, is_lock: bool, outcome: Outcome) {
    if intervals > 0 {
        count(counters, Outcomes::lost(outcome));
    }
    if intervals > 1 {
        count(counters, Outcomes::lost(outcome));
    }
    if let (true, Some(counters)) = (is_lock, COUNTERS.get_ptr_mut(Origin::Lock as u32)) {
        // SAFETY: as above.
        count(unsafe { &mut *counters }, Outcomes::lost(outcome));
    }
}

/// The threshold that an interval is held against: raised as soon as a CPU keeps more intervals than it should, and
/// lowered when no CPU has kept about as many for a while.
///
/// `kept_in_a_slot`: how many a CPU should keep in [`SLOT_NS`].
#[inline(always)]
pub(crate) fn threshold(shared: &Array<Threshold>, pace: &mut Pace, now: u64, kept_in_a_slot: u64) -> u64 {
    let Some(shared) = shared.get_ptr_mut(0) else { return MOST_THRESHOLD_NS };
    // SAFETY: the pointers are to a map element that every CPU writes, hence volatile: a change that is overwritten by that
    // of another CPU is made again a slot later.
    unsafe {
        let before = core::ptr::read_volatile(&raw const (*shared).now_ns);
        let mut threshold = before;
        let elapsed = now.saturating_sub(pace.slot_ns);
        if elapsed >= SLOT_NS || pace.kept >= 2 * kept_in_a_slot {
            let changed_at = core::ptr::read_volatile(&raw const (*shared).changed_at_ns);
            let needed_at = core::ptr::read_volatile(&raw const (*shared).needed_at_ns);
            if pace.kept > kept_in_a_slot - kept_in_a_slot / 4 {
                core::ptr::write_volatile(&raw mut (*shared).needed_at_ns, now);
            }
            if changed_at > pace.slot_ns {
                // What was kept says nothing of it yet.
            } else if pace.kept >= 2 * kept_in_a_slot {
                threshold *= 2;
            } else if pace.kept > kept_in_a_slot + kept_in_a_slot / 8 {
                threshold += threshold / 4;
            } else if now.saturating_sub(needed_at) > 16 * SLOT_NS {
                threshold >>= 4;
            } else if now.saturating_sub(needed_at) > 2 * SLOT_NS {
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
pub(crate) const EXACT: u64 = u64::MAX;

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
        return Part::NONE;
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
    aggregate::begin(scratch, window, task, process, Origin::OffCpu);
    let Call { number: system_call, polls_nothing, .. } = system_call(task);
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

/// The system call that a task is in.
#[derive(Clone, Copy)]
pub(crate) struct Call {
    pub(crate) number: u16,
    /// Whether it is a poll of no descriptors.
    pub(crate) polls_nothing: bool,
    pub(crate) waits_for_lock: bool,
    pub(crate) first_argument: u64,
}

/// The system call that a task is in.
#[inline(always)]
pub(crate) fn system_call(task: &Task) -> Call {
    let registers = stack::entry_registers(task);
    let number = system_call_of(registers.number);
    let is_poll = (number == POLLS[0] || number == POLLS[1]) && registers.second_argument == 0;
    let is_select = (number == SELECTS[0] || number == SELECTS[1]) && registers.first_argument == 0;
    Call {
        number,
        polls_nothing: is_poll || is_select,
        waits_for_lock: waits_for_lock(number, registers.second_argument),
        first_argument: registers.first_argument,
    }
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
    while index < PARTS {
        let columns = scratch.parts[index].columns;
        if columns[0] != 0 {
            let blocked = scratch.blocked as u16;
            scratch.key.reason = if index == QUEUED { Blocked::woken(blocked) } else { blocked };
            scratch.key.origin = if index == LOCK { Origin::Lock as u16 } else { Origin::OffCpu as u16 };
            scratch.key.span = match index {
                BLOCKED => scratch.waker,
                LOCK => scratch.lock.address,
                _ => 0,
            };
            let outcomes = aggregate::add(window, task, columns, scratch, user, kernel);
            if index != LOCK {
                count(counters, outcomes);
            } else if let Some(counters) = COUNTERS.get_ptr_mut(Origin::Lock as u32) {
                // SAFETY: the element is this CPU's, and programs of this type do not interrupt each other.
                count(unsafe { &mut *counters }, outcomes);
                add_to_lock(scratch);
            }
        }
        index += 1;
    }
    scratch.claimed = 0;
}

/// Adds the wait in the scratch space to its lock.
#[inline(always)]
fn add_to_lock(scratch: &Scratch) {
    const NO_EXIST: u64 = 1;
    let (key, waits) = (&scratch.lock, &scratch.lock_waits);
    if LOCKS.get_ptr(key).is_none() && LOCKS.insert(key, waits, NO_EXIST).is_ok() {
        return;
    }
    let Some(sum) = LOCKS.get_ptr_mut(key) else {
        if let Some(missed) = LOCKS_MISSED.get_ptr_mut(0) {
            // SAFETY: the pointer is to a map element that every CPU writes, hence atomic.
            unsafe { atomic::add(missed, waits.waits) };
        }
        return;
    };
    // SAFETY: the pointer is to a map value that every CPU writes, hence atomic.
    unsafe {
        atomic::add(&raw mut (*sum).waits, waits.waits);
        atomic::add(&raw mut (*sum).delay_ns, waits.delay_ns);
        atomic::raise(&raw mut (*sum).longest_ns, waits.longest_ns);
    }
}
