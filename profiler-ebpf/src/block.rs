//! Requests to block devices: noted when they are made, counted and credited when they are done.
//!
//! A request carries its own times. What it does not carry is who asked: `block_getrq` runs in the context of whoever makes a
//! request and gives its first part (a `struct bio`), by whose address the completion finds what was noted. What is written
//! back of the page cache belongs to who made the pages dirty (`block_dirty`), whoever makes the request.
//!
//! A completion interrupts anything on its CPU, but not another one. So it works on maps of its own, never on scratch space.

use aya_ebpf::EbpfContext;
use aya_ebpf::helpers::generated::bpf_ktime_get_ns;
use aya_ebpf::macros::{btf_tracepoint, raw_tracepoint};
use aya_ebpf::programs::{BtfTracePointContext, RawTracePointContext};
use profiler_common::block::{
    BlockMissed, BlockOperation, FAILED, OF_KERNEL, PASSTHROUGH, THROTTLED, UNASKED, is_write, size_class,
};
use profiler_common::number_pace::Chosen;

use crate::atomic;
use crate::block_asker::{ask, identify, weight};
use crate::block_noted::{Noted, add, find, make, missed, remove};
use crate::block_part::{READ_AGAIN_NS, credit};
use crate::block_wait;
use crate::config::config;
use crate::maps::{BLOCK_CLOCK, BLOCK_DONE, BLOCK_ENDS, BLOCK_REQUESTS, DoneRequest, NO_REQUEST};
use crate::recorded::Recorded;
use crate::structure::{address, typed};
use crate::task::{Task, kernel_number, kernel_word};

/// Parts of a request that are looked at: more than these are credited to whoever the last one is.
const MAX_PARTS: u32 = 32;

/// Notes who makes a request, or puts a new first part before one. Argument: the first part.
#[raw_tracepoint(tracepoint = "block_getrq")]
pub(crate) fn block_request(context: RawTracePointContext) -> i32 {
    let bio: *const u8 = context.arg(0);
    let running = Task::running();
    if running.is_kernel_thread()
        && block_wait::throttles(&running)
        && let Some(waiter) = block_wait::waiter_of(bio)
    {
        // It was made by him who waits for it, before the limit held it back.
        let Some(mut noted) = make(bio as u64) else { return 0 };
        let tid = kernel_number(waiter, config!(task.pid));
        if block_wait::ask_for(waiter, tid, &mut noted.request.asker) {
            noted.begin(tid, THROTTLED);
        } else {
            noted.remove();
        }
        return 0;
    }
    let Some(task) = running.in_namespace().filter(Task::is_running_wanted) else {
        if config!(block.issue_is_noted) != 0 && is_write(kernel_number(bio, config!(block.bio_flags))) {
            // Who made dirty what it writes is known when it is done.
            if let Some(mut noted) = make(bio as u64) {
                noted.begin(0, UNASKED);
            }
        } else if let Some(noted) = find(bio as u64) {
            // The address was that of another request.
            missed(BlockMissed::Ends);
            noted.remove();
        }
        return 0;
    };
    let Some(mut noted) = make(bio as u64) else { return 0 };
    noted.begin(running.tid, if running.is_kernel_thread() { OF_KERNEL } else { 0 });
    block_wait::note_request(running.tid);
    let asker = &mut noted.request.asker;
    identify(&task, asker);
    ask(&context, &task, asker, u64::from(noted.at), weight(Chosen::BlockIo));
    0
}

/// Notes when a request is given to its device. Argument: the request.
#[raw_tracepoint(tracepoint = "block_rq_issue")]
pub(crate) fn block_issue(context: RawTracePointContext) -> i32 {
    let request: *const u8 = context.arg(0);
    if let Some(Noted { request, .. }) = find(kernel_word(request, config!(block.request_bio))) {
        // SAFETY: takes no argument.
        request.issued_ns = unsafe { bpf_ktime_get_ns() };
    }
    0
}

/// Counts a request that is done. Arguments: the request, how it ended, its bytes.
#[btf_tracepoint(function = "block_rq_complete")]
pub(crate) fn block_complete(context: BtfTracePointContext) -> i32 {
    let Some(done) = BLOCK_DONE.get_ptr_mut(0) else { return 0 };
    // SAFETY: the element is this CPU's, and the kernel does not let a program interrupt itself.
    let done = unsafe { &mut *done };
    // SAFETY: the tracepoint has these arguments.
    let (error, bytes) = unsafe {
        let arguments = context.as_ptr().cast::<u64>();
        (*arguments.add(1) as u8, *arguments.add(2) as u32)
    };
    let request: *const u8 = context.arg(0);
    let flags = typed!(request, block.request_flags, u32);
    let length = typed!(request, block.request_length, u32);
    let first = typed!(request, block.request_bio, *const u8);
    let bio = address(&mut done.part.at, first);
    // Without a part it is the kernel's own, to flush for others.
    let operation = flags & 0xff;
    if bio == 0 || operation == PASSTHROUGH[0] || operation == PASSTHROUGH[1] {
        return 0;
    }
    // SAFETY: takes no argument.
    let now = unsafe { bpf_ktime_get_ns() };
    // One that goes on is counted when all is done, but for the bytes: the parts that are done are not there any more then.
    let goes_on = bytes < length;
    (done.noted, done.own) = (NO_REQUEST, NO_REQUEST);
    let (mut made_ns, mut issued_ns, mut done_bytes, mut flags_noted, mut tid) = (0, 0, 0, UNASKED, 0);
    if let Some(Noted { at, request }) = find(bio) {
        done.noted = u64::from(at);
        (made_ns, issued_ns, done_bytes) = (request.made_ns, request.issued_ns, u64::from(request.done_bytes));
        (flags_noted, tid) = (request.flags, request.tid);
    } else if length == 0 {
        // The flush that comes before a write or after it, and ends when that has been counted.
        return 0;
    }
    done.place = if flags_noted & UNASKED != 0 { NO_REQUEST } else { done.noted };
    let started_ns = first_of(typed!(request, block.request_start, u64), made_ns);
    if started_ns == 0 && done.noted != NO_REQUEST {
        // The device has just ceased to keep it.
        if let Some(clock) = BLOCK_CLOCK.get_ptr_mut(0) {
            // SAFETY: the pointer is to a map element that others write, hence volatile.
            unsafe { core::ptr::write_volatile(clock, 1) };
        }
        missed(BlockMissed::Stats);
    }
    let started_ns = first_of(started_ns, now);
    let issued_ns = first_of(typed!(request, block.request_issued, u64), issued_ns);
    // What was under way when the recording began has no part in it.
    if Recorded::read().is_none_or(|recorded| recorded.length(started_ns, now) != now - started_ns) {
        remove(done.noted);
        return 0;
    }
    if done.place != NO_REQUEST && !goes_on {
        let issued_ns = if issued_ns < started_ns { started_ns } else { issued_ns };
        block_wait::note_done(tid, started_ns, issued_ns, now, flags_noted & THROTTLED);
    }
    let total_ns = now.saturating_sub(started_ns);
    let queue_ns = issued_ns.saturating_sub(started_ns);
    done.times_ns = [total_ns, queue_ns, total_ns.saturating_sub(queue_ns)];
    done.failed = u64::from(error != 0 || flags_noted & FAILED != 0);
    done.counted = u64::from(goes_on);
    done.left = u64::from(if goes_on { bytes } else { length });
    done.length = done_bytes + u64::from(length);
    done.sector = typed!(request, block.request_sector, u64).wrapping_sub(done_bytes >> 9);
    done.part.end = typed!(first, block.bio_end, u64);
    done.part.private = typed!(first, block.bio_private, u64);
    done.part.size = typed!(first, block.bio_size, u32);
    done.part.index = typed!(first, block.bio_index, u32);
    address(&mut done.part.pages, typed!(first, block.bio_pages, *const u8));
    address(&mut done.part.next, typed!(first, block.bio_next, *const u8));
    if config!(block.bio_group) != 0 {
        address(&mut done.part.group, typed!(first, block.bio_group, *const u8));
    }
    if now - done.read_ns > READ_AGAIN_NS {
        done.read_ns = now;
        (done.read_group.0, done.read_super_block.0) = (0, 0);
    }
    let device = typed!(first, block.bio_device, *const u8);
    done.key.device = typed!(device, block.device_number, u32);
    done.key.operation = BlockOperation::of(flags, length) as u16;
    done.key.size = size_class(done.length as u32);
    done.sequential = u64::from(!goes_on && is_sequential(done));
    let is_one = done.part.next == 0;
    let mut parts = 0;
    let mut at = bio;
    while parts < MAX_PARTS && at != 0 && !(goes_on && done.left == 0) {
        let is_last = is_one || parts == MAX_PARTS - 1;
        if credit(at, u32::from(is_write(flags)), u32::from(is_last)) == 0 {
            break;
        }
        // A part of which some is left stays the first.
        if goes_on && done.left == 0 && done.part_left != 0 {
            break;
        }
        at = done.part.next;
        parts += 1;
    }
    remove(done.own);
    if goes_on {
        go_on(done.noted, at, bytes, error);
    } else {
        remove(done.noted);
    }
    0
}

/// Notes what was done of a request that goes on, under the part that is its first from now on.
#[inline(always)]
fn go_on(place: u64, first: u64, bytes: u32, error: u8) {
    if place == NO_REQUEST {
        return;
    }
    let Some(from) = BLOCK_REQUESTS.get_ptr_mut(place as u32) else { return };
    // SAFETY: the pointer is to a map element, and the request's own.
    unsafe {
        (*from).done_bytes += bytes;
        if error != 0 {
            (*from).flags |= FAILED;
        }
    }
    if first == 0 || find(first).is_some_and(|noted| u64::from(noted.at) == place) {
        return;
    }
    let Some(to) = find(first).or_else(|| add(first)) else { return };
    // Without room it may have got its own.
    if u64::from(to.at) != place {
        // SAFETY: both pointers are to map elements, and these are not the same one.
        unsafe { core::ptr::copy_nonoverlapping(from, to.request, 1) };
        to.request.part = first;
        remove(place);
    }
}

/// A time, or another one where it is not known.
#[inline(always)]
fn first_of(known: u64, other: u64) -> u64 {
    if known != 0 { known } else { other }
}

/// Whether a request goes on where the one before on its device ended, which it takes the place of.
#[inline(always)]
fn is_sequential(done: &DoneRequest) -> bool {
    let device = done.key.device;
    let Some(end) = BLOCK_ENDS.get_ptr_mut((device ^ (device >> 17)) & 255) else { return false };
    let sector = done.sector;
    // SAFETY: the pointer is to a map element that every CPU writes, hence atomic.
    done.length != 0 && unsafe { atomic::swap(end, sector + (done.length >> 9)) } == sector
}
