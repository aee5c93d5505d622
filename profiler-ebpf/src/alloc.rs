//! Allocations of memory: a probe on the functions of allocators that are given a size.
//!
//! A thread's allocations are a line of bytes, of which points are chosen as they are of a thread's time (`offcpu`): what is
//! allocated on a stack adds up, whatever the sizes, and large allocations are all kept.
//!
//! Threads may be preempted inside a program of this type. What is a thread's own is in its element, all else is counted
//! atomically, and the scratch space is claimed.

use aya_ebpf::EbpfContext;
use aya_ebpf::helpers::generated::{bpf_get_attach_cookie, bpf_ktime_get_ns};
use aya_ebpf::macros::{raw_tracepoint, uprobe};
use aya_ebpf::programs::{ProbeContext, RawTracePointContext};
use profiler_common::alloc::{Allocating, MOST_BYTES, NULL_IS_ANOTHER, SIZE_ARGUMENT_MASK, SIZE_SHIFT, SizeArgument};
use profiler_common::counters::{Counters, Outcome};
use profiler_common::event::Origin;
use profiler_common::wait::Cell;

use crate::aggregate::{self, Outcomes, count};
use crate::atomic;
use crate::maps::{ALLOC_PACE, ALLOC_PYTHON, ALLOC_THRESHOLD, CONTROL, COUNTERS, Programs, SCRATCH, Scratch};
use crate::offcpu::{chance, part, points, threshold};
use crate::python;
use crate::stack::{self, Chain};
use crate::task::Task;
use crate::threads;
use crate::unwind;
use crate::window::{self, Window};

const FIRST: u64 = SizeArgument::First as u64;
const FIRST_BY_SECOND: u64 = SizeArgument::FirstBySecond as u64;
const SECOND: u64 = SizeArgument::Second as u64;

/// Takes a call of a function that allocates. Its cookie: a [`SizeArgument`], [`NULL_IS_ANOTHER`].
#[uprobe]
pub(crate) fn alloc_enter(context: ProbeContext) -> u32 {
    if !is_on() {
        return 0;
    }
    // SAFETY: the helper takes the program's own context.
    let cookie = unsafe { bpf_get_attach_cookie(context.as_ptr()) };
    let argument = |index| context.arg::<u64>(index).unwrap_or(0);
    let first = argument(0);
    if cookie & NULL_IS_ANOTHER != 0 && first == 0 {
        return 0;
    }
    let size = match cookie & SIZE_ARGUMENT_MASK {
        FIRST => first,
        FIRST_BY_SECOND => first.wrapping_mul(argument(1)),
        SECOND => argument(1),
        _ => argument(2),
    };
    if let Some(counters) = COUNTERS.get_ptr_mut(Origin::Alloc as u32) {
        take(&context, counters, if size > MOST_BYTES { 0 } else { size });
    }
    0
}

/// Whether allocations are recorded now.
#[inline(always)]
fn is_on() -> bool {
    let Some(control) = CONTROL.get_ptr(0) else { return false };
    // SAFETY: the pointer is to a map element that user space may write at any time, hence volatile.
    unsafe { core::ptr::read_volatile(&raw const (*control).takes_allocations) != 0 }
}

/// Counts an allocation, and keeps it if its size or chance says so.
#[inline(always)]
fn take(context: &ProbeContext, counters: *mut Counters, size: u64) {
    let running = Task::running();
    let Some(task) = running.in_namespace() else { return };
    if !task.is_wanted() {
        return;
    }
    // SAFETY: the pointers are to this CPU's element, in which threads may be preempted, hence atomic.
    unsafe {
        atomic::add(&raw mut (*counters).hits, 1);
        atomic::add(&raw mut (*counters).period_sum, size);
    }
    // SAFETY: as above; a reference is made for the outcomes alone, which are counted atomically.
    let outcomes = unsafe { &mut *counters };
    let allocating = match threads::find::<Allocating>(running.tid) {
        Some(allocating) => allocating,
        None => {
            let Some(new) = threads::add::<Allocating>(running.tid) else {
                return count(outcomes, Outcomes::lost(Outcome::ThreadsFull));
            };
            new.cell = Cell::new(chance());
            new
        }
    };
    let Some(pace) = ALLOC_PACE.get_ptr_mut(0) else { return };
    // SAFETY: the element is this CPU's. A thread that is preempted between reading and writing it makes a count of what was
    // kept wrong by one, which changes the next threshold by as little.
    let pace = unsafe { &mut *pace };
    // SAFETY: takes no argument.
    let threshold = threshold(&ALLOC_THRESHOLD, pace, unsafe { bpf_ktime_get_ns() });
    let length = size << SIZE_SHIFT;
    let points = points(&mut allocating.cell, length, threshold);
    if points == 0 {
        // SAFETY: as above.
        unsafe { atomic::add(&raw mut (*counters).sampled_out, 1) };
        return;
    }
    pace.kept += 1;
    let Some(window) = window::enter() else {
        return count(outcomes, Outcomes::lost(Outcome::MapBusy));
    };
    let Some(scratch) = aggregate::claim(Programs::Alloc) else {
        window.leave();
        return count(outcomes, Outcomes::lost(Outcome::ScratchBusy));
    };
    scratch.parts[0] = part(length, points, threshold);
    let columns = &mut scratch.parts[0].columns;
    columns[1] >>= SIZE_SHIFT;
    // From millions of squares of 64ths of a byte to squares of 1,024 bytes.
    columns[3] = (columns[3] * 1_000_000) >> (2 * SIZE_SHIFT + 20);
    let process = task.process();
    aggregate::begin(scratch, &window, &task, process, Origin::Alloc);
    let user = stack::begin(&task, process, scratch);
    if user.is_none() {
        unwind::walk(Programs::Alloc);
        // SAFETY: the map holds programs of this type. The call returns where there is none, which is so without Python.
        unsafe { ALLOC_PYTHON.tail_call(context, python::slot(scratch)) };
    }
    conclude::<false>(&window, &task, outcomes, scratch, user);
    window.leave();
}

/// Goes on with the Python chain, once the native one is walked.
#[uprobe]
pub(crate) fn alloc_python(_context: ProbeContext) -> u32 {
    let scratch = SCRATCH.get_ptr_mut(Programs::Alloc as u32);
    let (Some(scratch), Some(counters)) = (scratch, COUNTERS.get_ptr_mut(Origin::Alloc as u32)) else { return 0 };
    // SAFETY: the program before this one has claimed the first element; outcomes are counted atomically.
    let (scratch, counters) = unsafe { (&mut *scratch, &mut *counters) };
    python::walk(Programs::Alloc);
    if let (Some(task), Some(window)) = (Task::current(), Window::resume(scratch.user.window)) {
        conclude::<true>(&window, &task, counters, scratch, None);
        window.leave();
    }
    0
}

/// Forgets a thread that ends.
#[raw_tracepoint(tracepoint = "sched_process_exit")]
pub(crate) fn alloc_end(_context: RawTracePointContext) -> i32 {
    if let Some(allocating) = threads::find::<Allocating>(Task::running().tid) {
        threads::remove(allocating);
    }
    0
}

/// Adds the allocation whose user chain is in the scratch space, or is `user`, and gives the scratch space back.
///
/// `PYTHON`: whether the chain has a Python part.
#[inline(always)]
fn conclude<const PYTHON: bool>(
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
    let columns = scratch.parts[0].columns;
    let outcomes = aggregate::add(window, task, columns, scratch, user, Chain::EMPTY);
    count(counters, outcomes);
    scratch.claimed = 0;
}
