//! From an operation on a file to its record: those that are chosen by their number, as faults are, with the user stack.

use aya_ebpf::helpers::generated::{bpf_get_prandom_u32, bpf_ktime_get_ns};
use aya_ebpf::macros::tracepoint;
use aya_ebpf::programs::TracePointContext;
use profiler_common::counters::{Counters, Outcome};
use profiler_common::event::Origin;
use profiler_common::file::FileOperation;
use profiler_common::number_pace::Chosen;

use crate::aggregate::{self, Outcomes, count};
use crate::maps::{COUNTERS, NUMBER_PACE, Part, Programs, SCRATCH, Scratch};
use crate::python;
use crate::stack::{self, Chain};
use crate::task::Task;
use crate::unwind;
use crate::window::{self, Window};

/// Where the parts of a call are in the scratch space: what it does to the first file, and what it writes to the second.
pub(crate) const FIRST: usize = 0;
pub(crate) const SECOND: usize = 1;

/// The accounting of operations on files.
#[inline(always)]
pub(crate) fn counters() -> Option<&'static mut Counters> {
    // SAFETY: the element is this CPU's, and programs of this type do not interrupt each other.
    COUNTERS.get_ptr_mut(Origin::FileIo as u32).map(|counters| unsafe { &mut *counters })
}

/// Keeps the operations of a call with their stack, if the pace says so. `go_on`: leaves for the program that walks the Python
/// chain, where there is one.
#[inline(always)]
pub(crate) fn keep(operation: FileOperation, parts: &[Part; 2], go_on: impl FnOnce(&Scratch)) {
    let Some(counters) = counters() else { return };
    let operations = parts[FIRST].columns[0] + parts[SECOND].columns[0];
    counters.hits += operations;
    let weight = weight();
    if weight == 0 {
        counters.sampled_out += operations;
        return;
    }
    let Some(scratch) = aggregate::claim(Programs::File) else { return lose(counters, parts, Outcome::ScratchBusy) };
    let mut index = 0;
    while index < parts.len() {
        let [kept, bytes, operations, elapsed] = parts[index].columns;
        scratch.parts[index].columns = [kept, bytes * weight, operations * weight, elapsed * weight];
        index += 1;
    }
    if file_walk(operation as u32) != 0 {
        go_on(scratch);
        file_conclude();
    }
}

/// How many operations this one counts for; 0 when it is left out.
#[inline(always)]
fn weight() -> u64 {
    let Some(pace) = NUMBER_PACE.get_ptr_mut(Chosen::FileIo as u32) else { return 0 };
    // SAFETY: the element is this CPU's, and programs of this type do not interrupt each other; the helpers take no argument.
    unsafe { (*pace).step(1, || bpf_get_prandom_u32(), || bpf_ktime_get_ns()) }
}

/// Counts the operations of a call that are lost.
#[inline(always)]
fn lose(counters: &mut Counters, parts: &[Part], outcome: Outcome) {
    let mut index = FIRST;
    while index <= SECOND {
        if parts[index].columns[0] != 0 {
            count(counters, Outcomes::lost(outcome));
        }
        index += 1;
    }
}

/// The scratch space, which the program that calls has claimed.
#[inline(always)]
fn claimed() -> Option<&'static mut Scratch> {
    // SAFETY: the element is this CPU's, and whoever has claimed it is the only one to use it.
    SCRATCH.get_ptr_mut(Programs::File as u32).map(|scratch| unsafe { &mut *scratch })
}

/// Walks the user chain of the call in the scratch space. Returns 1 when it is to be gone on with, and 0 when there is nothing
/// to walk: the call has been added then.
///
/// Global, as are the next two: the verifier checks each once and by itself, not on each of the many ways that lead here.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn file_walk(operation: u32) -> u32 {
    let (Some(scratch), Some(counters)) = (claimed(), counters()) else { return 0 };
    let Some(task) = Task::current() else { return give_up(scratch, counters) };
    let Some(window) = window::enter() else { return give_up(scratch, counters) };
    let process = task.process();
    aggregate::begin(scratch, &window, &task, process, Origin::FileIo);
    scratch.key.reason = operation as u16;
    let Some(user) = stack::begin(&task, process, scratch) else {
        unwind::walk(Programs::File);
        return 1;
    };
    add(scratch, user);
    window.leave();
    0
}

/// Counts the call in the scratch space as lost, and gives that back.
#[inline(always)]
fn give_up(scratch: &mut Scratch, counters: &mut Counters) -> u32 {
    lose(counters, &scratch.parts, Outcome::MapBusy);
    scratch.claimed = 0;
    0
}

/// Adds the call in the scratch space, once its chain is walked.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn file_conclude() -> u32 {
    conclude::<false>()
}

/// Goes on with the Python chain, once the native one is walked.
#[tracepoint]
pub(crate) fn file_python(_context: TracePointContext) -> u32 {
    python::walk(Programs::File);
    conclude::<true>()
}

/// Adds the call in the scratch space, once its chain is walked. The kernel's own chain has been left by then.
///
/// `PYTHON`: whether the chain has a Python part.
#[inline(always)]
fn conclude<const PYTHON: bool>() -> u32 {
    let Some(scratch) = claimed() else { return 0 };
    let Some(window) = Window::resume(scratch.user.window) else { return 0 };
    match Task::current() {
        Some(task) => {
            let user = stack::end::<PYTHON>(&task, scratch);
            add(scratch, user);
        }
        None => scratch.claimed = 0,
    }
    window.leave();
    0
}

/// Adds the parts of the call in the scratch space, and gives that back.
#[inline(always)]
fn add(scratch: &mut Scratch, user: Chain) {
    file_part(FIRST as u32, user.reference, user.outcome);
    file_part(SECOND as u32, user.reference, user.outcome);
    scratch.claimed = 0;
}

/// Adds one part of it, whose user chain is given. Returns 1 when there is that part.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn file_part(index: u32, reference: u64, outcome: u64) -> u32 {
    let (Some(scratch), Some(counters)) = (claimed(), counters()) else { return 0 };
    let Some(window) = Window::resume(scratch.user.window) else { return 0 };
    let Some(task) = Task::current() else { return 0 };
    let is_second = index == SECOND as u32;
    let columns = if is_second { scratch.parts[SECOND].columns } else { scratch.parts[FIRST].columns };
    if columns[0] == 0 {
        return 0;
    }
    if is_second {
        scratch.key.reason = FileOperation::Write as u16;
    }
    let outcomes = aggregate::add(&window, &task, columns, scratch, Chain { reference, outcome }, Chain::EMPTY);
    count(counters, outcomes);
    1
}
