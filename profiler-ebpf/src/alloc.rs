//! Allocations of memory: probes on the functions of allocators that are given a size, and on those that free.
//!
//! A thread's allocations are a line of bytes, of which points are chosen as they are of a thread's time (`offcpu`): what is
//! allocated on a stack adds up, whatever the sizes, and large allocations are all kept. Of those that are kept, and of no
//! other, the return is seen too, where the kernel can do that (`alloc_session`): so the block's address is known, and whether
//! it has been freed.
//!
//! Threads may be preempted inside a program of this type. What is a thread's own is in its element, all else is counted
//! atomically, and the scratch space is claimed.

use core::ffi::c_void;

use aya_ebpf::EbpfContext;
use aya_ebpf::helpers::bpf_probe_read_user;
use aya_ebpf::helpers::generated::{
    bpf_get_attach_cookie, bpf_get_current_pid_tgid, bpf_get_func_ip, bpf_ktime_get_ns,
};
use aya_ebpf::macros::{raw_tracepoint, uprobe};
use aya_ebpf::programs::{ProbeContext, RawTracePointContext};
use profiler_common::alloc::{
    Allocating, CALLS_ANOTHER, FREES_FIRST, INNER_BYTES, KEPT_BLOCKS, LIFETIMES, LiveBlock, LiveKey, MOST_BYTES,
    MOST_WEIGHT, NOT_FOLLOWED, NULL_IS_ANOTHER, RATE_SHIFT, RETURNS_BY_FIRST, SIZE_ARGUMENT_MASK, SIZE_SHIFT,
    SizeArgument, SizeStats, WEIGHTED, sampled_weight, takes,
};
use profiler_common::counters::{Counters, Outcome};
use profiler_common::event::Origin;
use profiler_common::wait::{Cell, KEPT_IN_A_SLOT, LEAST_THRESHOLD_NS};

use crate::aggregate::{self, Outcomes, conclude, count};
use crate::atomic;
use crate::maps::{
    ALLOC_PACE, ALLOC_PYTHON, ALLOC_THRESHOLD, CONTROL, COUNTERS, LIVE, LIVE_MISSED, Programs, SCRATCH, SIZE_STATS,
};
use crate::offcpu::{EXACT, chance, part, points, threshold};
use crate::python;
use crate::stack;
use crate::task::Task;
use crate::threads;
use crate::unwind;
use crate::window::{self, Window};

const FIRST: u64 = SizeArgument::First as u64;
const FIRST_BY_SECOND: u64 = SizeArgument::FirstBySecond as u64;
const SECOND: u64 = SizeArgument::Second as u64;
const GO_FIRST: u64 = SizeArgument::GoFirst as u64;
const GO_SECOND: u64 = SizeArgument::GoSecond as u64;
const GO_THIRD: u64 = SizeArgument::GoThird as u64;

/// Takes a call of a function that allocates. Its cookie: see [`profiler_common::alloc`].
#[uprobe]
pub(crate) fn alloc_enter(context: ProbeContext) -> u32 {
    enter(&context);
    0
}

/// The same, and the return of calls that it asks for by the 0 it gives: not by aya's macro, whose programs give 0 always.
/// Where uprobes have sessions (Linux 6.13).
#[unsafe(no_mangle)]
#[unsafe(link_section = "uprobe")]
extern "C" fn alloc_session(context: *mut c_void) -> u32 {
    let context = ProbeContext::new(context);
    // SAFETY: the helper takes the program's own context; it tells where the probe is, at the return as well.
    let probe = unsafe { bpf_get_func_ip(context.as_ptr()) };
    // SAFETY: the context is the thread's registers.
    if probe != unsafe { (*context.regs).rip } {
        returned(&context);
        return 0;
    }
    u32::from(!enter(&context))
}

/// Takes a call of a function that frees its first argument, and gives 1: its return is of no interest. A session too, since these
/// cost less than the events of perf.
#[unsafe(no_mangle)]
#[unsafe(link_section = "uprobe")]
extern "C" fn alloc_free(context: *mut c_void) -> u32 {
    let context = ProbeContext::new(context);
    if taken() & takes::BLOCKS != 0 {
        freed(context.arg::<u64>(0).unwrap_or(0));
    }
    1
}

/// What is recorded now: one of [`takes`].
#[inline(always)]
fn taken() -> u32 {
    let Some(control) = CONTROL.get_ptr(0) else { return takes::NOTHING };
    // SAFETY: the pointer is to a map element that user space may write at any time, hence volatile.
    unsafe { core::ptr::read_volatile(&raw const (*control).takes_allocations) }
}

/// Takes a call, and tells whether its return is to be seen.
#[inline(always)]
fn enter(context: &ProbeContext) -> bool {
    let taken = taken();
    if taken == takes::NOTHING {
        return false;
    }
    // SAFETY: the helper takes the program's own context.
    let cookie = unsafe { bpf_get_attach_cookie(context.as_ptr()) };
    let argument = |index| context.arg::<u64>(index).unwrap_or(0);
    let first = argument(0);
    if cookie & NULL_IS_ANOTHER != 0 && first == 0 {
        return false;
    }
    if cookie & FREES_FIRST != 0 && taken & takes::BLOCKS != 0 {
        freed(first);
    }
    let size = match cookie & SIZE_ARGUMENT_MASK {
        FIRST => first,
        FIRST_BY_SECOND => first.wrapping_mul(argument(1)),
        SECOND => argument(1),
        // SAFETY: the context is the thread's registers.
        GO_FIRST => unsafe { (*context.regs).rax },
        // SAFETY: as above.
        GO_SECOND => unsafe { (*context.regs).rbx },
        // SAFETY: as above.
        GO_THIRD => unsafe { (*context.regs).rcx },
        _ => argument(2),
    };
    let Some(counters) = COUNTERS.get_ptr_mut(Origin::Alloc as u32) else { return false };
    let written_at = if cookie & RETURNS_BY_FIRST != 0 { first } else { 0 };
    let size = if size > MOST_BYTES { 0 } else { size };
    let is_followed = taken & takes::BLOCKS != 0 && cookie & NOT_FOLLOWED == 0;
    let follow = is_followed.then_some(written_at);
    let weight = match (cookie & WEIGHTED, cookie >> RATE_SHIFT) {
        (0, _) => 0,
        (_, 0) => argument(2),
        // SAFETY: the helper reads user memory, and fails where there is none.
        (_, rate) => sampled_weight(size, unsafe { bpf_probe_read_user(rate as *const u64) }.unwrap_or(0)),
    };
    let weight = if cookie & WEIGHTED != 0 { weight.clamp(size, MOST_WEIGHT.max(size)) } else { 0 };
    let calls_another = cookie & CALLS_ANOTHER != 0;
    let choice = Choice { weight, is_exact: taken & takes::EXACT != 0, calls_another };
    take(context, counters, size, choice, follow, cookie & NOT_FOLLOWED == 0)
}

/// How an allocation is chosen.
struct Choice {
    /// The bytes that it stands for where the program has chosen it, else 0.
    weight: u64,
    /// Whether every one is.
    is_exact: bool,
    /// Whether the next call may be one that the function makes, which is no other allocation.
    calls_another: bool,
}

/// Counts an allocation, and keeps it if its size or chance says so; tells whether it is kept and to be followed.
///
/// `follow`: where its function writes the block's address, if the block is to be followed; `may_return`: whether the return
/// may be seen at all, as the program for Python asks for.
#[inline(always)]
fn take(
    context: &ProbeContext,
    counters: *mut Counters,
    size: u64,
    Choice { weight, is_exact, calls_another }: Choice,
    follow: Option<u64>,
    may_return: bool,
) -> bool {
    let running = Task::running();
    let Some(task) = running.in_namespace() else { return false };
    if !task.is_wanted() {
        return false;
    }
    let known = threads::find::<Allocating>(running.tid);
    // SAFETY: the context is the thread's registers.
    let sp = unsafe { (*context.regs).rsp };
    let mut outer_at = 0;
    let known = known.map(|known| {
        outer_at = known.outer_at;
        known.outer_at = if calls_another { sp } else { 0 };
        known
    });
    if sp < outer_at && outer_at - sp <= INNER_BYTES {
        return false;
    }
    // SAFETY: the pointers are to this CPU's element, in which threads may be preempted, hence atomic.
    unsafe {
        atomic::add(&raw mut (*counters).hits, 1);
        atomic::add(&raw mut (*counters).period_sum, size.max(weight));
    }
    // SAFETY: as above; a reference is made for the outcomes alone, which are counted atomically.
    let outcomes = unsafe { &mut *counters };
    let allocating = match known {
        Some(allocating) => allocating,
        None => {
            let Some(new) = threads::add::<Allocating>(running.tid) else {
                count(outcomes, Outcomes::lost(Outcome::ThreadsFull));
                return false;
            };
            new.cell = Cell::new(chance());
            new.outer_at = if calls_another { sp } else { 0 };
            new
        }
    };
    let Some(pace) = ALLOC_PACE.get_ptr_mut(0) else { return false };
    // SAFETY: the element is this CPU's. A thread that is preempted between reading and writing it makes a count of what was
    // kept wrong by one, which changes the next threshold by as little.
    let pace = unsafe { &mut *pace };
    // SAFETY: takes no argument.
    let now = unsafe { bpf_ktime_get_ns() };
    let kept = if follow.is_some() { KEPT_BLOCKS } else { KEPT_IN_A_SLOT };
    let is_kept = is_exact || weight > 0;
    let threshold = if is_kept { LEAST_THRESHOLD_NS } else { threshold(&ALLOC_THRESHOLD, pace, now, kept) };
    let length = size << SIZE_SHIFT;
    let points = if is_kept { EXACT } else { points(&mut allocating.cell, length, threshold) };
    if points == 0 {
        // SAFETY: as above.
        unsafe { atomic::add(&raw mut (*counters).sampled_out, 1) };
        return false;
    }
    pace.kept += 1;
    let Some(window) = window::enter() else {
        count(outcomes, Outcomes::lost(Outcome::MapBusy));
        return false;
    };
    let Some(scratch) = aggregate::claim(Programs::Alloc) else {
        window.leave();
        count(outcomes, Outcomes::lost(Outcome::ScratchBusy));
        return false;
    };
    scratch.parts[0] = part(length, points, threshold);
    let columns = &mut scratch.parts[0].columns;
    columns[1] >>= SIZE_SHIFT;
    // From millions of squares of 64ths of a byte to squares of 1,024 bytes.
    columns[3] = (columns[3] * 1_000_000) >> (2 * SIZE_SHIFT + 20);
    if weight > 0 {
        // As many of its size, chosen one by one.
        columns[1] = weight;
        columns[2] = if size > 0 { weight / size } else { 1 };
        columns[3] = (weight >> 10).wrapping_mul((weight - size) >> 10);
    }
    let (bytes, objects) = (columns[1], columns[2]);
    let process = task.process();
    aggregate::begin(scratch, &window, &task, process, Origin::Alloc);
    if let Some(written_at) = follow {
        allocating.return_at = sp;
        allocating.written_at = written_at;
        let key = &scratch.key;
        allocating.block = LiveBlock {
            born_ns: now,
            bytes,
            objects,
            size,
            stack: 0,
            start_time_ns: key.start_time_ns,
            pid: key.pid,
            exec_count: key.exec_count,
            generation: key.generation,
            reserved: 0,
        };
        if let Some(stats) = SIZE_STATS.get_ptr_mut(SizeStats::class(size)) {
            // SAFETY: the pointer is to this CPU's element, in which threads may be preempted, hence atomic.
            unsafe {
                atomic::add(&raw mut (*stats).objects, objects);
                atomic::add(&raw mut (*stats).bytes, bytes);
            }
        }
    }
    let user = stack::begin(&task, process, scratch);
    if user.is_none() {
        unwind::walk(Programs::Alloc);
        if may_return {
            // SAFETY: the map holds programs of this type. The call returns where there is none, which is so without Python.
            unsafe { ALLOC_PYTHON.tail_call(context, python::slot(scratch)) };
        }
    }
    allocating.block.stack = conclude::<false>(&window, &task, outcomes, scratch, user);
    window.leave();
    follow.is_some()
}

/// Goes on with the Python chain, once the native one is walked. Its return is that of the program that called it: 0, so that
/// the return of the allocation is seen.
#[uprobe]
pub(crate) fn alloc_python(_context: ProbeContext) -> u32 {
    let scratch = SCRATCH.get_ptr_mut(Programs::Alloc as u32);
    let (Some(scratch), Some(counters)) = (scratch, COUNTERS.get_ptr_mut(Origin::Alloc as u32)) else { return 0 };
    // SAFETY: the program before this one has claimed the first element; outcomes are counted atomically.
    let (scratch, counters) = unsafe { (&mut *scratch, &mut *counters) };
    python::walk(Programs::Alloc);
    if let (Some(task), Some(window)) = (Task::current(), Window::resume(scratch.user.window)) {
        let stack = conclude::<true>(&window, &task, counters, scratch, None);
        window.leave();
        if let Some(allocating) = threads::find::<Allocating>(Task::running().tid) {
            allocating.block.stack = stack;
        }
    }
    0
}

/// Follows the block of a kept call, which returns.
#[inline(always)]
fn returned(context: &ProbeContext) {
    let Some(allocating) = threads::find::<Allocating>(Task::running().tid) else { return };
    // SAFETY: the context is the thread's registers.
    let (result, sp) = unsafe { ((*context.regs).rax, (*context.regs).rsp) };
    if allocating.return_at == 0 {
        return;
    }
    // The return has taken its address from the stack. Otherwise a signal's allocations came between.
    if allocating.return_at.wrapping_add(8) != sp {
        return missed();
    }
    allocating.return_at = 0;
    let mut address = result;
    if allocating.written_at != 0 {
        // SAFETY: the helper reads user memory, and fails where there is none.
        let written = unsafe { bpf_probe_read_user(allocating.written_at as *const u64) };
        address = if result == 0 { written.unwrap_or(0) } else { 0 };
    }
    if address != 0 && LIVE.insert(key_of(address), allocating.block, 0).is_err() {
        missed();
    }
}

/// Counts a block that is not followed.
#[inline(always)]
fn missed() {
    if let Some(counter) = LIVE_MISSED.get_ptr_mut(0) {
        // SAFETY: the pointer is to a map element.
        unsafe { atomic::add(counter, 1) };
    }
}

#[inline(always)]
fn key_of(address: u64) -> LiveKey {
    // SAFETY: takes no argument.
    let pid = unsafe { bpf_get_current_pid_tgid() } >> 32;
    LiveKey { address, pid: pid as u32, reserved: 0 }
}

/// Follows a block no more, and counts how long it was there.
#[inline(always)]
fn freed(address: u64) {
    if address == 0 {
        return;
    }
    let key = key_of(address);
    let Some(block) = LIVE.get_ptr(key) else { return };
    // SAFETY: the pointer is to a map element. Only who frees the block removes it.
    let (born_ns, objects, size) = unsafe { ((*block).born_ns, (*block).objects, (*block).size) };
    if LIVE.remove(key).is_err() {
        return;
    }
    // SAFETY: takes no argument.
    let lived_us = unsafe { bpf_ktime_get_ns() }.saturating_sub(born_ns) / 1_000;
    let Some(stats) = SIZE_STATS.get_ptr_mut(SizeStats::class(size)) else { return };
    // The verifier cannot follow how a logarithm is computed, nor may LLVM know that the mask changes nothing.
    let bucket = core::hint::black_box(SizeStats::bucket(lived_us)) & (LIFETIMES - 1);
    // SAFETY: as in `take`; the bucket is one of the array.
    unsafe {
        atomic::add(&raw mut (*stats).freed, objects);
        atomic::add(&raw mut (*stats).lived_us, lived_us.wrapping_mul(objects));
        atomic::add((&raw mut (*stats).lifetimes).cast::<u64>().add(bucket), objects);
    }
}

/// Forgets a thread that ends.
#[raw_tracepoint(tracepoint = "sched_process_exit")]
pub(crate) fn alloc_end(_context: RawTracePointContext) -> i32 {
    if let Some(allocating) = threads::find::<Allocating>(Task::running().tid) {
        threads::remove(allocating);
    }
    0
}
