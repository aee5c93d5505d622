//! Who asks for requests to block devices: his identity and, of those that are chosen, his chains.

use aya_ebpf::EbpfContext;
use aya_ebpf::helpers::generated::{bpf_get_prandom_u32, bpf_ktime_get_ns};
use aya_ebpf::macros::raw_tracepoint;
use aya_ebpf::programs::RawTracePointContext;
use profiler_common::block::{Asker, MAX_DIRTIERS};
use profiler_common::counters::Outcome;
use profiler_common::event::{COLUMNS, Origin, hash_word};
use profiler_common::number_pace::Chosen;

use crate::aggregate;
use crate::atomic;
use crate::maps::{
    BLOCK_PYTHON, BLOCK_REQUESTS, BLOCK_WAITERS, BLOCK_WALKS, DIRTY_FILES, LAST_ASKER, NO_REQUEST, NUMBER_PACE,
    Programs, SCRATCH, Scratch,
};
use crate::python;
use crate::stack::{self, Chain};
use crate::task::Task;
use crate::unwind;
use crate::window::{self, Window};

/// Where dirtiers begin: see [`asker`].
pub(crate) const DIRTIERS_AT: u64 = 1 << 32;

/// Where those who wait begin.
pub(crate) const WAITERS_AT: u64 = 1 << 33;

/// Who asked: he who made a request, by its element, from [`DIRTIERS_AT`] on he who made pages dirty, or from [`WAITERS_AT`] on
/// he who waits.
#[inline(always)]
pub(crate) fn asker(at: u64) -> Option<&'static mut Asker> {
    if at >= WAITERS_AT {
        let waiter = BLOCK_WAITERS.get_ptr_mut(at as u32)?;
        // SAFETY: the pointer is to a map element.
        return (at != NO_REQUEST).then(|| unsafe { &mut (*waiter).asker });
    }
    if at < DIRTIERS_AT {
        let request = BLOCK_REQUESTS.get_ptr_mut(at as u32)?;
        // SAFETY: the pointer is to a map element; one that was overwritten tells of its new owner.
        return Some(unsafe { &mut (*request).asker });
    }
    let at = at - DIRTIERS_AT;
    let file = DIRTY_FILES.get_ptr_mut((at / MAX_DIRTIERS as u64) as u32)?;
    // SAFETY: as above.
    Some(unsafe { &mut (*file).dirtiers[at as usize % MAX_DIRTIERS].asker })
}

/// Notes who asks.
#[inline(always)]
pub(crate) fn identify(task: &Task, asker: &mut Asker) {
    asker.lost = 0;
    asker.weight = 0;
    let Some(last) = LAST_ASKER.get_ptr_mut(0) else { return };
    // SAFETY: the element is this CPU's, and nobody is identified where that could interrupt another.
    let last = unsafe { &mut *last };
    let (pointer, thread_start_ns) = (task.pointer() as u64, task.thread_start_time_ns());
    let exec_count = u64::from(task.exec_count());
    if last.task != pointer || last.thread_start_ns != thread_start_ns || last.exec_count != exec_count {
        last.task = pointer;
        last.thread_start_ns = thread_start_ns;
        last.exec_count = exec_count;
        last.start_time_ns = task.start_time_ns();
        last.process_comm = task.process_comm();
    }
    // What is noted of who had the element before is often the same.
    if asker.start_time_ns == last.start_time_ns && asker.pid == task.pid && u64::from(asker.exec_count) == exec_count {
        return;
    }
    asker.start_time_ns = last.start_time_ns;
    asker.pid = task.pid;
    asker.exec_count = exec_count as u32;
    asker.value.process_comm = last.process_comm;
}

/// Notes the chains of one whose requests are yet to be made, or are held back: of how many bytes they will be does not follow
/// from how often he is seen, so he counts for himself, and without chains where there are too many to walk. `at`: as for
/// [`ask`].
#[inline(always)]
pub(crate) fn ask_ahead(context: &RawTracePointContext, task: &Task, asker: &mut Asker, at: u64) {
    if weight(Chosen::BlockOthers) == 0 {
        without_chains(task, asker);
    } else {
        ask(context, task, asker, at, 1);
    }
}

/// Notes that the chains of who asks are not known; his requests are in the profile without them.
#[inline(always)]
pub(crate) fn without_chains(task: &Task, asker: &mut Asker) {
    asker.weight = 1;
    asker.key.start_time_ns = asker.start_time_ns;
    asker.key.pid = asker.pid;
    asker.key.exec_count = asker.exec_count;
    asker.key.tid = task.tid;
    asker.key.generation = task.process().map_or(0, |process| process.generation);
    asker.key.origin = Origin::BlockIo as u16;
    asker.key.user_stack = Outcome::StackMissing as u64;
    asker.key.kernel_stack = 0;
    asker.value.thread_comm = task.thread_comm();
    asker.value.user_outcome = Outcome::StackMissing as u8;
    asker.value.kernel_outcome = Outcome::Complete as u8;
}

/// Notes his chains, if they are chosen. `at`: where, for [`asker`]; `weight`: how many requests this one counts for.
#[inline(always)]
pub(crate) fn ask(context: &RawTracePointContext, task: &Task, asker: &mut Asker, at: u64, weight: u64) {
    asker.weight = weight as u32;
    if weight == 0 {
        return;
    }
    asker.key.tid = task.tid;
    if let Some(walks) = BLOCK_WALKS.get_ptr_mut(0) {
        // SAFETY: the element is this CPU's; the helper takes no argument.
        unsafe { (*walks).began_ns = bpf_ktime_get_ns() };
    }
    let process = task.process();
    let Some(window) = window::enter() else {
        asker.lost = Outcome::MapBusy as u32;
        return;
    };
    let Some(scratch) = aggregate::claim(Programs::Block) else {
        asker.lost = Outcome::ScratchBusy as u32;
        window.leave();
        return;
    };
    aggregate::begin(scratch, &window, task, process, Origin::BlockIo);
    scratch.asker = at;
    let user = stack::begin(task, process, scratch);
    if user.is_none() {
        unwind::walk(Programs::Block);
        // SAFETY: the map holds programs of this type. The call returns where there is none, which is so without Python.
        unsafe { BLOCK_PYTHON.tail_call(context, python::slot(scratch)) };
    }
    conclude::<false>(context, &window, task, scratch, user);
    window.leave();
}

/// Tells a process from any other. Never 0.
#[inline(always)]
pub(crate) fn process_of(start_time_ns: u64, pid: u32) -> u64 {
    hash_word(start_time_ns, u64::from(pid)) | 1
}

/// How many requests this one counts for; 0 when it is left out of the profile. Of others whether to walk.
#[inline(always)]
pub(crate) fn weight(chosen: Chosen) -> u64 {
    let Some(pace) = NUMBER_PACE.get_ptr_mut(chosen as u32) else { return 0 };
    // SAFETY: the element is this CPU's, and requests are made with preemption off; the helpers take no argument.
    unsafe { (*pace).step(1, || bpf_get_prandom_u32(), || bpf_ktime_get_ns()) }
}

/// Goes on with the Python chain, once the native one is walked.
#[raw_tracepoint(tracepoint = "block_getrq")]
pub(crate) fn block_python(context: RawTracePointContext) -> i32 {
    let Some(scratch) = SCRATCH.get_ptr_mut(Programs::Block as u32) else { return 0 };
    // SAFETY: the element is this CPU's, and the program before this one has claimed it.
    let scratch = unsafe { &mut *scratch };
    python::walk(Programs::Block);
    if let (Some(task), Some(window)) = (Task::current(), Window::resume(scratch.user.window)) {
        conclude::<true>(&context, &window, &task, scratch, None);
        window.leave();
    }
    0
}

/// Sends the chains of who asks and notes the record that his request is to be added to.
///
/// `PYTHON`: whether the chain has a Python part.
#[inline(always)]
fn conclude<const PYTHON: bool>(
    context: &RawTracePointContext,
    window: &Window,
    task: &Task,
    scratch: &mut Scratch,
    user: Option<Chain>,
) {
    let user = match user {
        Some(chain) => chain,
        None => stack::end::<PYTHON>(task, scratch),
    };
    let kernel = stack::kernel(context.as_ptr(), &mut scratch.kernel);
    // Without values: user space learns where the chains belong while the process is still there.
    let outcomes = aggregate::add(window, task, [0; COLUMNS], scratch, user, kernel);
    if let Some(asker) = asker(scratch.asker) {
        asker.key = scratch.key;
        asker.value.thread_comm = task.thread_comm();
        asker.value.user_outcome = outcomes.user as u8;
        asker.value.kernel_outcome = outcomes.kernel as u8;
        asker.lost = if outcomes.record == Outcome::Complete as u64 { 0 } else { outcomes.record as u32 };
    }
    scratch.claimed = 0;
    if let Some(walks) = BLOCK_WALKS.get_ptr_mut(0) {
        // SAFETY: as in `ask`.
        unsafe {
            atomic::add(&raw mut (*walks).ns, bpf_ktime_get_ns() - (*walks).began_ns);
            (*walks).walks += 1;
        }
    }
}
