//! Page faults: two software events on every CPU, of faults without input or output and of those with.
//!
//! A program runs at every fault, once the kernel is done with it, in the context of the thread; where there are very many, at
//! one in as many as the event's period. Stacks are walked of all of them while they are few, and by chance once there are
//! more.

use aya_ebpf::EbpfContext;
use aya_ebpf::helpers::generated::{bpf_get_prandom_u32, bpf_ktime_get_ns};
use aya_ebpf::macros::perf_event;
use aya_ebpf::programs::PerfEventContext;
use profiler_common::counters::{Counters, Outcome};
use profiler_common::event::Origin;
use profiler_common::fault::Fault;

use crate::aggregate::{self, Outcomes, count};
use crate::cpu::period;
use crate::maps::{COUNTERS, FAULT_PYTHON, NUMBER_PACE, Part, Programs, SCRATCH, Scratch};
use crate::python;
use crate::stack::{self, Chain};
use crate::task::{Task, Wanted};
use crate::unwind;
use crate::window::{self, Window};

/// Takes a fault without input or output.
#[perf_event]
pub(crate) fn fault_minor(context: PerfEventContext) -> u32 {
    take(&context, Fault::Minor)
}

/// Takes a fault that was served by a device.
#[perf_event]
pub(crate) fn fault_major(context: PerfEventContext) -> u32 {
    take(&context, Fault::Major)
}

/// Goes on with the Python chain, once the native one is walked.
#[perf_event]
pub(crate) fn fault_python(context: PerfEventContext) -> u32 {
    let scratch = SCRATCH.get_ptr_mut(Programs::Fault as u32);
    let (Some(scratch), Some(counters)) = (scratch, COUNTERS.get_ptr_mut(Origin::Fault as u32)) else { return 0 };
    // SAFETY: both elements are this CPU's, and the program before this one has claimed the first.
    let (scratch, counters) = unsafe { (&mut *scratch, &mut *counters) };
    python::walk(Programs::Fault);
    if let (Some(task), Some(window)) = (Task::current(), Window::resume(scratch.user.window)) {
        conclude::<true>(&context, &window, &task, counters, scratch, None);
        window.leave();
    }
    0
}

#[inline(always)]
fn take(context: &PerfEventContext, kind: Fault) -> u32 {
    if let Some(counters) = COUNTERS.get_ptr_mut(Origin::Fault as u32) {
        // SAFETY: the element is this CPU's, and programs of this type do not interrupt each other.
        hit(context, kind, unsafe { &mut *counters });
    }
    0
}

#[inline(always)]
fn hit(context: &PerfEventContext, kind: Fault, counters: &mut Counters) {
    let period = period(context);
    counters.hits += period;
    let Some(task) = Task::current() else {
        counters.filtered += period;
        return;
    };
    let Wanted::Yes(process) = task.wanted() else {
        counters.filtered += period;
        return;
    };
    let weight = weight(kind, period);
    if weight == 0 {
        counters.sampled_out += period;
        return;
    }
    // It counts for those that the event passed over.
    counters.sampled_out += period - 1;
    let Some(window) = window::enter() else {
        return count(counters, Outcomes::lost(Outcome::MapBusy));
    };
    let Some(scratch) = aggregate::claim(Programs::Fault) else {
        window.leave();
        return count(counters, Outcomes::lost(Outcome::ScratchBusy));
    };
    aggregate::begin(scratch, &window, &task, process, Origin::Fault);
    scratch.key.reason = kind as u16;
    scratch.parts[0] = Part { columns: [1, weight, 0, 0] };
    let user = stack::begin(&task, process, scratch);
    if user.is_none() {
        unwind::walk(Programs::Fault);
        // SAFETY: the map holds programs of this type. The call returns where there is none, which is so without Python.
        unsafe { FAULT_PYTHON.tail_call(context, python::slot(scratch)) };
    }
    conclude::<false>(context, &window, &task, counters, scratch, user);
    window.leave();
}

/// How many faults this one counts for; 0 when it is left out.
#[inline(always)]
fn weight(kind: Fault, period: u64) -> u64 {
    let Some(pace) = NUMBER_PACE.get_ptr_mut(kind as u32 - 1) else { return 0 };
    // SAFETY: the element is this CPU's, and programs of this type do not interrupt each other; the helpers take no argument.
    unsafe { (*pace).step(period, || bpf_get_prandom_u32(), || bpf_ktime_get_ns()) }
}

/// Adds the fault whose user chain is in the scratch space, or is `user`, and gives the scratch space back.
///
/// `PYTHON`: whether the chain has a Python part.
#[inline(always)]
fn conclude<const PYTHON: bool>(
    context: &PerfEventContext,
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
    // Faults happen in the kernel too, where it reads and writes what a system call was given.
    let kernel = if stack::in_user_mode(context.as_ptr().cast::<u8>().cast_const()) {
        Chain::EMPTY
    } else {
        stack::kernel(context.as_ptr(), &mut scratch.kernel)
    };
    let columns = scratch.parts[0].columns;
    let outcomes = aggregate::add(window, task, columns, scratch, user, kernel);
    scratch.claimed = 0;
    count(counters, outcomes);
}
