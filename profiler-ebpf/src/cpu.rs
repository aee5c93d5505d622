//! On-CPU samples: a perf event on every CPU, of cycles or of the CPU clock.

use aya_ebpf::EbpfContext;
use aya_ebpf::helpers::generated::bpf_ktime_get_ns;
use aya_ebpf::macros::perf_event;
use aya_ebpf::programs::PerfEventContext;
use profiler_common::counters::{Counters, Outcome};
use profiler_common::event::Origin;

use crate::aggregate::{self, Outcomes, count};
use crate::config::config;
use crate::maps::{COUNTERS, CPU_PYTHON, LAST_HIT, LastHit, Programs, SCRATCH, Scratch};
use crate::python;
use crate::stack::{self, Chain};
use crate::task::{Task, Wanted};
use crate::unwind;
use crate::window::{self, Window};

/// Offset of `sample_period` in the context. Source: `struct bpf_perf_event_data`, include/uapi/linux/bpf_perf_event.h.
const SAMPLE_PERIOD: usize = 168;

/// The period of the event: how many it stands for.
#[inline(always)]
pub(crate) fn period(context: &PerfEventContext) -> u64 {
    // SAFETY: the context holds it.
    unsafe { *context.as_ptr().cast::<u8>().add(SAMPLE_PERIOD).cast::<u64>() }
}

/// Takes one sample.
#[perf_event]
pub(crate) fn cpu_sample(context: PerfEventContext) -> u32 {
    if let (Some(window), Some(counters)) = (window::enter(), COUNTERS.get_ptr_mut(Origin::Cpu as u32)) {
        // SAFETY: the element is this CPU's, and only this program, which does not interrupt itself, writes it.
        hit(&context, &window, unsafe { &mut *counters });
        window.leave();
    }
    0
}

#[inline(always)]
fn hit(context: &PerfEventContext, window: &Window, counters: &mut Counters) {
    counters.hits += 1;
    counters.period_sum += period(context);
    let Some(task) = Task::current() else {
        counters.filtered += 1;
        return;
    };
    counters.missed += missed(context, &task);
    let process = match task.wanted() {
        Wanted::Yes(process) => process,
        Wanted::No => {
            counters.filtered += 1;
            return;
        }
        Wanted::Idle => {
            counters.idle += 1;
            return;
        }
    };
    let Some(scratch) = aggregate::claim(Programs::PerfEvent) else {
        count(counters, Outcomes::lost(Outcome::ScratchBusy));
        return;
    };
    aggregate::begin(scratch, window, &task, process, Origin::Cpu);
    let user = stack::begin(&task, process, scratch);
    if user.is_none() {
        unwind::walk(Programs::PerfEvent);
        // SAFETY: the map holds programs of this type. The call returns where there is none, which is so without Python.
        unsafe { CPU_PYTHON.tail_call(context, python::slot(scratch)) };
    }
    conclude::<false>(context, window, &task, counters, scratch, user);
}

/// Goes on with the Python chain, once the native one is walked.
#[perf_event]
pub(crate) fn cpu_python(context: PerfEventContext) -> u32 {
    let scratch = SCRATCH.get_ptr_mut(Programs::PerfEvent as u32);
    let (Some(scratch), Some(counters)) = (scratch, COUNTERS.get_ptr_mut(Origin::Cpu as u32)) else { return 0 };
    // SAFETY: both elements are this CPU's, and the program before this one has claimed the first.
    let (scratch, counters) = unsafe { (&mut *scratch, &mut *counters) };
    python::walk(Programs::PerfEvent);
    if let (Some(task), Some(window)) = (Task::current(), Window::resume(scratch.user.window)) {
        conclude::<true>(&context, &window, &task, counters, scratch, None);
        window.leave();
    }
    0
}

/// Periods without a hit between the last one on this CPU and this one, when the same task ran all the time.
///
/// Otherwise 0: the CPU may have been idle in between, where no samples are taken. Rounded, so that a late hit counts
/// one too many and the next, which is early then, one too few.
#[inline(always)]
fn missed(context: &PerfEventContext, task: &Task) -> i64 {
    let Some(last) = LAST_HIT.get_ptr_mut(0) else { return 0 };
    // Not a constant: the rate may change while the programs run.
    let period = period(context);
    if config!(has_fixed_period) == 0 || period == 0 {
        return 0;
    }
    // SAFETY: takes no argument.
    let now = unsafe { bpf_ktime_get_ns() };
    let running = (u64::from(task.pid) << 32) | u64::from(task.tid);
    let switches = task.switches();
    // SAFETY: the element is this CPU's, and only this program, which does not interrupt itself, uses it.
    let last = unsafe { core::ptr::replace(last, LastHit { time_ns: now, task: running, switches }) };
    if last.task != running || last.switches != switches {
        return 0;
    }
    ((now - last.time_ns + period / 2) / period) as i64 - 1
}

/// Adds the sample whose user chain is in the scratch space, or is `user`, and gives the scratch space back.
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
    let registers = context.as_ptr().cast::<u8>().cast_const();
    let user = match user {
        Some(chain) => chain,
        None => stack::end::<PYTHON>(task, scratch),
    };
    let kernel = if stack::in_user_mode(registers) {
        Chain::EMPTY
    } else {
        stack::kernel(context.as_ptr(), &mut scratch.kernel)
    };
    let outcomes = aggregate::add(window, task, [1, period(context), 0, 0], scratch, user, kernel);
    scratch.claimed = 0;
    count(counters, outcomes);
}
