//! Requests to block devices: who asked, noted when a request is made; counted, and added to a record, when it is done.
//!
//! A request carries its own times. What it does not carry is who asked: `block_getrq` runs in the context of whoever makes a
//! request and gives its first part (a `struct bio`), by whose address the completion finds what was noted. What is written
//! back of the page cache belongs to who made the pages dirty (`block_dirty`), whoever makes the request.
//!
//! A completion interrupts anything on its CPU, but not another one. So it works on maps of its own, never on scratch space.

use aya_ebpf::EbpfContext;
use aya_ebpf::helpers::generated::{bpf_get_prandom_u32, bpf_ktime_get_ns, bpf_probe_read_kernel};
use aya_ebpf::macros::raw_tracepoint;
use aya_ebpf::programs::RawTracePointContext;
use profiler_common::block::{
    Asker, BlockFileStats, BlockMissed, BlockOperation, BlockRequest, FAILED, MAX_DIRTIERS, MAX_REQUESTS, MAX_SLOW,
    OF_KERNEL, PASSTHROUGH, REQUEST_PLACES, STRUCT_BYTES, SlowRequest, THROTTLED, UNASKED, group, is_write, place,
    size_class,
};
use profiler_common::config::{Filter, Process};
use profiler_common::counters::Outcome;
use profiler_common::event::{COLUMNS, Origin, RING_SLOW, RecordKey, RecordValue, hash_word};
use profiler_common::file::FileId;
use profiler_common::histogram::{HISTOGRAM_BUCKETS, bucket_of};
use profiler_common::number_pace::Chosen;

use crate::aggregate::{self, Outcomes, count};
use crate::atomic;
use crate::block_dirty;
use crate::block_wait;
use crate::config::config;
use crate::file_name;
use crate::maps::{
    BLOCK_DONE, BLOCK_ENDS, BLOCK_FILES, BLOCK_PARTS, BLOCK_PYTHON, BLOCK_REQUESTS, BLOCK_STATS, BLOCK_STATS_NEW,
    BLOCK_WAITERS, BLOCKS_MISSED, COUNTERS, DIRTY_FILES, DoneRequest, LAST_ASKER, NO_REQUEST, NUMBER_PACE, Namer,
    Programs, SCRATCH, Scratch,
};
use crate::python;
use crate::recorded::Recorded;
use crate::stack::{self, Chain};
use crate::task::{Task, Wanted, kernel_number, kernel_word};
use crate::unwind;
use crate::window::{self, Window};

/// Entries that are made where there is none. Source: `BPF_NOEXIST`, include/uapi/linux/bpf.h.
const NO_EXIST: u64 = 1;

/// Parts of a request that are looked at: more than these are credited to whoever the last one is.
const MAX_PARTS: u32 = 32;

/// Words of a structure of the kernel, and one of its fields.
type Words = [u64; STRUCT_BYTES / 8];

/// A field of 64 bits. `offset` is a constant of the load.
#[inline(always)]
fn word(words: &Words, offset: u32) -> u64 {
    words[(offset as usize / 8) % words.len()]
}

/// A field of 32 bits.
#[inline(always)]
fn number(words: &Words, offset: u32) -> u32 {
    (word(words, offset) >> (8 * (offset % 8))) as u32
}

/// Reads as much of a structure as has its fields; zeros where it cannot be read.
#[inline(always)]
fn read(words: &mut Words, address: *const u8) {
    // SAFETY: the helper writes as many bytes as there are, and survives any source address.
    unsafe { bpf_probe_read_kernel(words.as_mut_ptr().cast(), STRUCT_BYTES as u32, address.cast()) };
}

/// Counts what could not be noted.
#[inline(always)]
pub(crate) fn missed(what: BlockMissed) {
    if let Some(missed) = BLOCKS_MISSED.get_ptr_mut(what as u32) {
        // SAFETY: the pointer is to a map element that every CPU writes, hence atomic.
        unsafe { atomic::add(missed, 1) };
    }
}

/// The element of a request.
#[inline(always)]
fn find(bio: u64) -> Option<Noted> {
    let (parts, first) = (BLOCK_PARTS.get_ptr_mut(group(bio, MAX_REQUESTS))?, place(bio, 0, MAX_REQUESTS));
    let mut index = 0;
    while index < REQUEST_PLACES {
        // SAFETY: the pointer is into a map element, which others may claim at any time, hence volatile.
        let (part, noted) = unsafe {
            let part = parts.cast::<u64>().add(index as usize);
            (part, core::ptr::read_volatile(part))
        };
        if noted == bio {
            return Noted::new(first + index, part);
        }
        index += 1;
    }
    None
}

/// An element for a request: its own, a free one, or that of the request that was made first.
#[inline(always)]
fn add(bio: u64) -> Option<Noted> {
    if let Some(found) = find(bio) {
        return Some(found);
    }
    let (parts, first) = (BLOCK_PARTS.get_ptr_mut(group(bio, MAX_REQUESTS))?, place(bio, 0, MAX_REQUESTS));
    let mut index = 0;
    while index < REQUEST_PLACES {
        // SAFETY: the pointer is into a map element, which every CPU may claim, hence atomic.
        let (part, claimed) = unsafe {
            let part = parts.cast::<u64>().add(index as usize);
            (part, atomic::replace(part, 0, bio))
        };
        if claimed {
            return Noted::new(first + index, part);
        }
        index += 1;
    }
    missed(BlockMissed::Requests);
    let (mut oldest, mut oldest_ns) = (0, u64::MAX);
    let mut index = 0;
    while index < REQUEST_PLACES {
        let request = BLOCK_REQUESTS.get_ptr(first + index)?;
        // SAFETY: the pointer is to a map element, which others write, hence volatile.
        let made_ns = unsafe { core::ptr::read_volatile(&raw const (*request).made_ns) };
        if made_ns < oldest_ns {
            (oldest, oldest_ns) = (index, made_ns);
        }
        index += 1;
    }
    // SAFETY: as above. Whoever had it is not found any more.
    unsafe {
        let part = parts.cast::<u64>().add((oldest % REQUEST_PLACES) as usize);
        core::ptr::write_volatile(part, bio);
        Noted::new(first + oldest, part)
    }
}

/// A request that is noted.
struct Noted {
    /// Index of its element.
    at: u32,
    request: &'static mut BlockRequest,
    /// Where its first part is noted.
    part: *mut u64,
}

impl Noted {
    #[inline(always)]
    fn new(at: u32, part: *mut u64) -> Option<Self> {
        let request = BLOCK_REQUESTS.get_ptr_mut(at)?;
        // SAFETY: the pointer is to a map element, which is this request's: it is made before it is done.
        Some(Self { at, request: unsafe { &mut *request }, part })
    }

    /// Gives the element back.
    #[inline(always)]
    fn remove(self) {
        // SAFETY: the pointer is into a map element. Volatile: whoever sees it may claim the element at once.
        unsafe { core::ptr::write_volatile(self.part, 0) };
    }
}

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
        let Some(noted) = add(bio as u64) else { return 0 };
        let tid = kernel_number(waiter, config!(task.pid));
        if !block_wait::ask_for(waiter, tid, &mut noted.request.asker) {
            noted.remove();
            return 0;
        }
        // SAFETY: takes no argument.
        noted.request.made_ns = unsafe { bpf_ktime_get_ns() };
        noted.request.issued_ns = 0;
        noted.request.done_bytes = 0;
        noted.request.flags = THROTTLED;
        noted.request.tid = tid;
        return 0;
    }
    let task = running.in_namespace();
    let wanted = task.as_ref().map_or(Wanted::No, Task::wanted);
    let (Some(task), Wanted::Yes(process)) = (task, wanted) else {
        if config!(block.issue_is_noted) != 0 && is_write(kernel_number(bio, config!(block.bio_flags))) {
            note_times(bio);
        } else if let Some(noted) = find(bio as u64) {
            // The address may have been that of another request.
            noted.remove();
        }
        return 0;
    };
    let Some(Noted { at, request, .. }) = add(bio as u64) else { return 0 };
    // SAFETY: takes no argument.
    request.made_ns = unsafe { bpf_ktime_get_ns() };
    request.issued_ns = 0;
    request.done_bytes = 0;
    request.flags = if running.is_kernel_thread() { OF_KERNEL } else { 0 };
    request.tid = running.tid;
    block_wait::note_request(request.tid);
    identify(&task, &mut request.asker);
    ask(&context, &task, process, &mut request.asker, u64::from(at), weight(Chosen::BlockIo));
    0
}

/// Notes when a request is made by somebody who was not asked for: who made dirty what it writes is known when it is done.
#[inline(always)]
fn note_times(bio: *const u8) {
    let Some(Noted { request, .. }) = add(bio as u64) else { return };
    // SAFETY: takes no argument.
    request.made_ns = unsafe { bpf_ktime_get_ns() };
    request.issued_ns = 0;
    request.done_bytes = 0;
    request.flags = UNASKED;
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

/// Notes who asks.
#[inline(always)]
pub(crate) fn identify(task: &Task, asker: &mut Asker) {
    asker.lost = 0;
    asker.weight = 0;
    asker.key.pid = task.pid;
    asker.key.exec_count = task.exec_count();
    let Some(last) = LAST_ASKER.get_ptr_mut(0) else { return };
    // SAFETY: the element is this CPU's, and nobody is identified where that could interrupt another.
    let last = unsafe { &mut *last };
    let (pointer, thread_start_ns) = (task.pointer() as u64, task.thread_start_time_ns());
    let exec_count = u64::from(asker.key.exec_count);
    if last.task != pointer || last.thread_start_ns != thread_start_ns || last.exec_count != exec_count {
        last.task = pointer;
        last.thread_start_ns = thread_start_ns;
        last.exec_count = exec_count;
        last.start_time_ns = task.start_time_ns();
        last.process = process_of(last.start_time_ns, task.pid);
        last.process_comm = task.process_comm();
    }
    asker.key.start_time_ns = last.start_time_ns;
    asker.process = last.process;
    asker.value.process_comm = last.process_comm;
}

/// Notes the chains of one whose requests are yet to be made, or are held back: of how many bytes they will be does not follow
/// from how often he is seen, so he counts for himself, and without chains where there are too many to walk. `at`: as for
/// [`ask`].
#[inline(always)]
pub(crate) fn ask_ahead(
    context: &RawTracePointContext,
    task: &Task,
    process: Option<&'static Process>,
    asker: &mut Asker,
    at: u64,
) {
    if weight(Chosen::BlockOthers) == 0 {
        without_chains(task, process, asker);
    } else {
        ask(context, task, process, asker, at, 1);
    }
}

/// Notes that the chains of who asks are not known; his requests are in the profile without them.
#[inline(always)]
pub(crate) fn without_chains(task: &Task, process: Option<&Process>, asker: &mut Asker) {
    asker.weight = 1;
    asker.key.tid = task.tid;
    asker.key.generation = process.map_or(0, |process| process.generation);
    asker.key.origin = Origin::BlockIo as u16;
    asker.key.user_stack = Outcome::StackMissing as u64;
    asker.key.kernel_stack = 0;
    asker.value.thread_comm = task.thread_comm();
    asker.value.user_outcome = Outcome::StackMissing as u8;
    asker.value.kernel_outcome = Outcome::Complete as u8;
}

/// Notes his chains, if they are chosen. `at`: where, for [`asker`]; `weight`: how many requests this one counts for.
#[inline(always)]
fn ask(
    context: &RawTracePointContext,
    task: &Task,
    process: Option<&'static Process>,
    asker: &mut Asker,
    at: u64,
    weight: u64,
) {
    asker.weight = weight;
    if weight == 0 {
        return;
    }
    let Some(window) = window::enter() else {
        asker.lost = Outcome::MapBusy as u64;
        return;
    };
    let Some(scratch) = aggregate::claim(Programs::Block) else {
        asker.lost = Outcome::ScratchBusy as u64;
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
fn weight(chosen: Chosen) -> u64 {
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
        asker.lost = if outcomes.record == Outcome::Complete as u64 { 0 } else { outcomes.record };
    }
    scratch.claimed = 0;
}

/// Who asked: he who made a request, by its element, from [`DIRTIERS_AT`] on he who made pages dirty, or from [`WAITERS_AT`] on
/// he who waits.
#[inline(always)]
fn asker(at: u64) -> Option<&'static mut Asker> {
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

/// Where dirtiers begin: see [`asker`].
pub(crate) const DIRTIERS_AT: u64 = 1 << 32;

/// Where those who wait begin.
pub(crate) const WAITERS_AT: u64 = 1 << 33;

/// Counts a request that is done. Arguments: the request, how it ended, its bytes.
#[raw_tracepoint(tracepoint = "block_rq_complete")]
pub(crate) fn block_complete(context: RawTracePointContext) -> i32 {
    let Some(done) = BLOCK_DONE.get_ptr_mut(0) else { return 0 };
    // SAFETY: the element is this CPU's, and the kernel does not let a program interrupt itself.
    let done = unsafe { &mut *done };
    // SAFETY: the tracepoint has these arguments.
    let (error, bytes) = unsafe {
        let arguments = context.as_ptr().cast::<u64>();
        (*arguments.add(1) as u8, *arguments.add(2) as u32)
    };
    read(&mut done.request, context.arg(0));
    let request = &done.request;
    let flags = number(request, config!(block.request_flags));
    let length = number(request, config!(block.request_length));
    let bio = word(request, config!(block.request_bio));
    // Without a part it is the kernel's own, to flush for others.
    let operation = flags & 0xff;
    if bio == 0 || operation == PASSTHROUGH[0] || operation == PASSTHROUGH[1] {
        return 0;
    }
    // SAFETY: takes no argument.
    let now = unsafe { bpf_ktime_get_ns() };
    // One that goes on is counted when all is done, but for the bytes: the parts that are done are not there any more then.
    let goes_on = bytes < length;
    let found = find(bio);
    let (done_bytes, failed) = match &found {
        Some(Noted { request, .. }) => (request.done_bytes, u64::from(request.flags & FAILED != 0)),
        None => (0, 0),
    };
    let (made_ns, noted_ns) = match &found {
        Some(Noted { at, request, .. }) => {
            done.place = if request.flags & UNASKED != 0 { NO_REQUEST } else { u64::from(*at) };
            (request.made_ns, request.issued_ns)
        }
        // The flush that comes before a write or after it, and ends when that has been counted.
        None if length == 0 => return 0,
        None => {
            done.place = NO_REQUEST;
            (now, 0)
        }
    };
    let started_ns = first_of(word(request, config!(block.request_start)), made_ns);
    let issued_ns = first_of(word(request, config!(block.request_issued)), noted_ns);
    // What was under way when the recording began has no part in it.
    if Recorded::read().is_none_or(|recorded| recorded.length(started_ns, now) != now - started_ns) {
        return 0;
    }
    if let Some(Noted { request, .. }) = &found
        && !goes_on
        && request.flags & UNASKED == 0
    {
        let issued_ns = if issued_ns < started_ns { started_ns } else { issued_ns };
        block_wait::note_done(request.tid, started_ns, issued_ns, now, request.flags & THROTTLED);
    }
    let total_ns = now.saturating_sub(started_ns);
    let queue_ns = issued_ns.saturating_sub(started_ns);
    done.times_ns = [total_ns, queue_ns, total_ns.saturating_sub(queue_ns)];
    done.failed = u64::from(error != 0) | failed;
    done.counted = u64::from(goes_on);
    done.left = u64::from(if goes_on { bytes } else { length });
    done.done_bytes = done_bytes;
    done.length = done_bytes + u64::from(length);
    read(&mut done.bio, bio as *const u8);
    done.part = bio;
    if now - done.read_ns > READ_AGAIN_NS {
        done.read_ns = now;
        (done.read_device.0, done.read_group.0, done.read_super_block.0) = (0, 0, 0);
    }
    let device = word(&done.bio, config!(block.bio_device));
    if done.read_device.0 != device {
        let number = kernel_number(device as *const u8, config!(block.device_number));
        done.read_device = (device, u64::from(number));
    }
    done.key.device = done.read_device.1 as u32;
    done.key.operation = BlockOperation::of(flags, length) as u16;
    done.key.size = size_class(done.length as u32);
    done.sequential = u64::from(!goes_on && is_sequential(done));
    let is_one = bio == word(&done.request, config!(block.request_last_bio));
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
        at = word(&done.bio, config!(block.bio_next));
        parts += 1;
    }
    let Some(noted) = found else { return 0 };
    if goes_on {
        go_on(noted, at, bytes, error);
    } else {
        noted.remove();
    }
    0
}

/// Notes what was done of a request that goes on, under the part that is its first from now on.
#[inline(always)]
fn go_on(noted: Noted, first: u64, bytes: u32, error: u8) {
    noted.request.done_bytes += u64::from(bytes);
    if error != 0 {
        noted.request.flags |= FAILED;
    }
    // SAFETY: the pointer is into a map element, and the request's own.
    if first == 0 || unsafe { core::ptr::read_volatile(noted.part) } == first {
        return;
    }
    let (Some(to), Some(from)) = (add(first), BLOCK_REQUESTS.get_ptr(noted.at)) else { return };
    // Without room it may have got its own.
    if to.at != noted.at {
        // SAFETY: both pointers are to map elements, and these are not the same one.
        unsafe { core::ptr::copy_nonoverlapping(from, to.request, 1) };
        noted.remove();
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
    let sector = first_sector(done);
    // SAFETY: the pointer is to a map element that every CPU writes, hence atomic.
    done.length != 0 && unsafe { atomic::swap(end, sector + (done.length >> 9)) } == sector
}

/// Where a request begins, with what was done of it before.
#[inline(always)]
fn first_sector(done: &DoneRequest) -> u64 {
    word(&done.request, config!(block.request_sector)).wrapping_sub(done.done_bytes >> 9)
}

/// Credits whoever asked for a part of the request that is done; returns whether there is another.
///
/// A global function, as `walk_frame` is: the verifier checks it once.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn credit(bio: u64, writes: u32, is_last: u32) -> u32 {
    let Some(done) = BLOCK_DONE.get_ptr_mut(0) else { return 0 };
    // SAFETY: the element is this CPU's, and the program that calls is the only one to use it.
    let done = unsafe { &mut *done };
    if done.part != bio {
        read(&mut done.bio, bio as *const u8);
        done.part = bio;
        // It was the first part of a request until another one came before it.
        if let Some(noted) = find(bio) {
            noted.remove();
        }
    }
    let size = u64::from(number(&done.bio, config!(block.bio_size)));
    // The last part has all that is left, so that no byte is missing where there are more parts than are looked at.
    let mut left = if is_last != 0 || size > done.left { done.left } else { size };
    done.left -= left;
    done.part_left = size.saturating_sub(left);
    done.key.cgroup = cgroup(done);
    done.inode = inode(&done.bio);
    if done.inode != 0 {
        identify_file(done);
    }
    let is_written_back = writes != 0 && done.inode != 0 && !is_direct(&done.bio);
    if is_written_back
        && let Some((index, file)) = block_dirty::find(done.inode)
        && file.number == done.file.file.inode
        && file.generation == u64::from(done.file.file.generation)
    {
        let who = asker(done.place).map_or(0, |asker| asker.process);
        let mut turns = 0;
        while turns < MAX_DIRTIERS && left > 0 {
            let Some((dirtier, part)) = block_dirty::take(file, left) else { break };
            // Who writes back what he wrote himself is known with the stack on which he does.
            let at = if file.dirtiers[dirtier].asker.process == who {
                done.place
            } else {
                DIRTIERS_AT + u64::from(index) * MAX_DIRTIERS as u64 + dirtier as u64
            };
            turns += 1;
            if part > 0 {
                credit_bytes(at, part);
                left -= part;
            }
        }
        // Nor is the rest that of who wrote to another page of the file.
        if left > 0 {
            credit_bytes(NO_REQUEST, left);
        }
        return u32::from(is_last == 0);
    }
    // What was dirty before the recording began is nobody's that is known, and not the kernel's who writes it back.
    let of_kernel = BLOCK_REQUESTS.get(done.place as u32).is_some_and(|request| request.flags & OF_KERNEL != 0);
    credit_bytes(if is_written_back && of_kernel { NO_REQUEST } else { done.place }, left);
    u32::from(is_last == 0)
}

/// Credits somebody with bytes of the request that is done, and with the request where he is the first.
///
/// A global function too.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn credit_bytes(at: u64, bytes: u64) -> u32 {
    let Some(done) = BLOCK_DONE.get_ptr_mut(0) else { return 0 };
    // SAFETY: as in `credit`.
    let done = unsafe { &mut *done };
    let asker = asker(at);
    if asker.is_none() && config!(filter) != Filter::All as u32 {
        return 0;
    }
    let (start_time_ns, pid, exec_count) =
        asker.as_ref().map_or((0, 0, 0), |asker| (asker.key.start_time_ns, asker.key.pid, asker.key.exec_count));
    done.key.start_time_ns = start_time_ns;
    done.key.pid = pid;
    done.key.exec_count = exec_count;
    let is_first = done.counted == 0;
    done.counted = 1;
    add_to_stats(done, asker.as_deref(), bytes, is_first);
    if done.inode != 0 {
        done.file.start_time_ns = start_time_ns;
        done.file.pid = pid;
        done.file.operation = done.key.operation;
        if add_to_file(done, asker.as_deref(), bytes, is_first).is_multiple_of(NAMED_EVERY) {
            file_name::see(Namer::Block, pid, done.inode as *const u8, core::ptr::null(), &done.file.file);
        }
    }
    let number = if is_first && config!(slower_ns) != 0 && done.times_ns[TOTAL] >= config!(slower_ns) {
        tell(done, asker.as_deref())
    } else {
        0
    };
    add_to_record(done, asker.as_deref(), bytes, is_first, number);
    0
}

/// Tells of a slow request; returns its number, 0 when there were too many.
#[inline(always)]
fn tell(done: &mut DoneRequest, asker: Option<&Asker>) -> u64 {
    let Some(slow) = BLOCKS_MISSED.get_ptr_mut(BlockMissed::Slow as u32) else { return 0 };
    // SAFETY: the pointer is to a map element that every CPU writes, hence atomic; the helper takes no argument.
    let (before, now) = unsafe { (atomic::add(slow, 1), bpf_ktime_get_ns()) };
    if before >= MAX_SLOW {
        return 0;
    }
    done.slow = SlowRequest {
        kind: RING_SLOW,
        operation: done.key.operation,
        device: done.key.device,
        number: before + 1,
        done_ns: now,
        sector: first_sector(done),
        times_ns: done.times_ns,
        file: done.file.file,
        bytes: done.length as u32,
        pid: done.key.pid,
        tid: asker.map_or(0, |asker| if asker.weight == 0 { 0 } else { asker.key.tid }),
        reserved: 0,
        process_comm: asker.map_or([0; _], |asker| asker.value.process_comm),
    };
    if done.inode == 0 {
        done.slow.file.inode = 0;
    }
    if let Some(request) = BLOCK_REQUESTS.get(done.place as u32) {
        block_wait::note_slow(request.tid, before + 1);
    }
    if !aggregate::send(&done.slow, size_of::<SlowRequest>()) {
        missed(BlockMissed::SlowLost);
    }
    before + 1
}

/// A file's name is sent with its first request, and again with each of so many, should it have found no room.
const NAMED_EVERY: u64 = 256;

/// Adds to the exact counts of a request's kind.
#[inline(always)]
fn add_to_stats(done: &DoneRequest, asker: Option<&Asker>, bytes: u64, is_first: bool) {
    let key = &done.key;
    let stats = match BLOCK_STATS.get_ptr_mut(key) {
        Some(stats) => stats,
        None => {
            if let Some(new) = BLOCK_STATS_NEW.get(0) {
                let _ = BLOCK_STATS.insert(key, new, NO_EXIST);
            }
            let Some(stats) = BLOCK_STATS.get_ptr_mut(key) else { return missed(BlockMissed::Stats) };
            if let Some(asker) = asker {
                // SAFETY: the pointer is to a map value, whose name nobody else writes.
                unsafe { (*stats).process_comm = asker.value.process_comm };
            }
            stats
        }
    };
    // SAFETY: the pointers are to map values that every CPU writes, hence atomic; the buckets are the histograms'.
    unsafe {
        atomic::add(&raw mut (*stats).bytes, bytes);
        if !is_first {
            return;
        }
        atomic::add(&raw mut (*stats).requests, 1);
        if done.failed != 0 {
            atomic::add(&raw mut (*stats).errors, 1);
        }
        if done.sequential != 0 {
            atomic::add(&raw mut (*stats).sequential, 1);
        }
        let [total_ns, queue_ns, device_ns] = done.times_ns;
        atomic::add(&raw mut (*stats).total_ns, total_ns);
        let max = (&raw mut (*stats).max_ns).cast::<u64>();
        atomic::raise(max, total_ns);
        atomic::raise(max.add(2), device_ns);
        let histograms = (&raw mut (*stats).histograms).cast::<u32>();
        let bucket = |ns| bucket_of(ns) & (HISTOGRAM_BUCKETS - 1);
        if queue_ns == 0 {
            atomic::add_number(histograms.add(bucket(total_ns)), 1);
            return;
        }
        atomic::add(&raw mut (*stats).queue_ns, queue_ns);
        atomic::raise(max.add(1), queue_ns);
        atomic::add_number(histograms.add(HISTOGRAM_BUCKETS + bucket(total_ns)), 1);
        atomic::add_number(histograms.add(2 * HISTOGRAM_BUCKETS + bucket(queue_ns)), 1);
        atomic::add_number(histograms.add(3 * HISTOGRAM_BUCKETS + bucket(device_ns)), 1);
    }
}

/// Adds to the exact counts of a file; returns how many requests there were before.
#[inline(always)]
fn add_to_file(done: &DoneRequest, asker: Option<&Asker>, bytes: u64, is_first: bool) -> u64 {
    let key = &done.file;
    let stats = match BLOCK_FILES.get_ptr_mut(key) {
        Some(stats) => stats,
        None => {
            let process_comm = asker.map_or([0; _], |asker| asker.value.process_comm);
            let new = BlockFileStats { process_comm, requests: 0, bytes: 0, total_ns: 0, max_ns: 0 };
            let _ = BLOCK_FILES.insert(key, new, NO_EXIST);
            let Some(stats) = BLOCK_FILES.get_ptr_mut(key) else {
                missed(BlockMissed::Files);
                return 1;
            };
            stats
        }
    };
    // SAFETY: the pointers are to map values that every CPU writes, hence atomic.
    unsafe {
        atomic::add(&raw mut (*stats).bytes, bytes);
        if !is_first {
            return core::ptr::read_volatile(&raw const (*stats).requests);
        }
        atomic::add(&raw mut (*stats).total_ns, done.times_ns[TOTAL]);
        atomic::raise(&raw mut (*stats).max_ns, done.times_ns[TOTAL]);
        atomic::add(&raw mut (*stats).requests, 1)
    }
}

/// The time that is both others together: an index of [`BLOCK_TIMES`].
const TOTAL: usize = 0;

/// Adds to the record of who asked, where his request was chosen. `span`: the number of a slow one.
#[inline(always)]
fn add_to_record(done: &DoneRequest, asker: Option<&Asker>, bytes: u64, is_first: bool, span: u64) {
    let Some(counters) = COUNTERS.get_ptr_mut(Origin::BlockIo as u32) else { return };
    // SAFETY: the element is this CPU's, and only completions write it, which do not interrupt each other.
    let counters = unsafe { &mut *counters };
    if is_first {
        counters.hits += 1;
        counters.period_sum += done.times_ns[TOTAL];
    }
    let Some(asker) = asker else {
        if is_first {
            count(counters, Outcomes::lost(Outcome::AskerUnknown));
        }
        return;
    };
    let (weight, lost) = (asker.weight, asker.lost);
    if weight == 0 {
        counters.sampled_out += u64::from(is_first);
        return;
    }
    let mut outcomes = Outcomes {
        user: u64::from(asker.value.user_outcome),
        kernel: u64::from(asker.value.kernel_outcome),
        record: lost,
    };
    if lost == Outcome::Complete as u64 {
        let key = RecordKey { reason: done.key.operation, span, ..asker.key };
        let requests = u64::from(is_first);
        let columns = [requests, requests * weight * done.times_ns[TOTAL], requests * weight, weight * bytes];
        let value = RecordValue { columns, ..asker.value };
        outcomes.record = match window::enter() {
            Some(window) => {
                let record = aggregate::add_late(&window, &key, &value);
                window.leave();
                record
            }
            None => Outcome::MapBusy as u64,
        };
    }
    if is_first {
        count(counters, outcomes);
    }
}

/// What is read of a device, a cgroup or a file system is read again after so long: its structure may be another's by then.
const READ_AGAIN_NS: u64 = 50_000_000;

/// Number of the cgroup that a part is charged to; 0 where there is none.
#[inline(always)]
fn cgroup(done: &mut DoneRequest) -> u64 {
    if config!(block.bio_group) == 0 {
        return 0;
    }
    let group = word(&done.bio, config!(block.bio_group));
    if group == 0 {
        return 0;
    }
    if done.read_group.0 != group {
        let owner = kernel_word(group as *const u8, config!(block.group_owner)) as *const u8;
        let cgroup = kernel_word(owner, config!(block.owner_cgroup)) as *const u8;
        let node = kernel_word(cgroup, config!(block.cgroup_node)) as *const u8;
        done.read_group = (group, kernel_word(node, config!(block.node_id)));
    }
    done.read_group.1
}

/// Notes which file a part is of: as `file_name::id_of`, with fewer reads.
#[inline(always)]
fn identify_file(done: &mut DoneRequest) {
    read(&mut done.bio_inode, done.inode as *const u8);
    let super_block = word(&done.bio_inode, config!(file.inode_super_block));
    if done.read_super_block.0 != super_block {
        let device = kernel_number(super_block as *const u8, config!(file.super_block_device));
        done.read_super_block = (super_block, u64::from(device));
    }
    done.file.file = FileId {
        inode: word(&done.bio_inode, config!(file.inode_number)),
        device: done.read_super_block.1 as u32,
        generation: generation(done),
    };
}

/// What tells a file from an earlier one of the same number: far behind the rest before Linux 6.12.
#[inline(always)]
fn generation(done: &DoneRequest) -> u32 {
    let offset = config!(file.inode_generation);
    if offset as usize + 8 <= STRUCT_BYTES {
        number(&done.bio_inode, offset)
    } else {
        kernel_number(done.inode as *const u8, offset)
    }
}

/// Whether a part is read or written past the page cache of a file.
#[inline(always)]
fn is_direct(bio: &Words) -> bool {
    config!(block.direct_end) != 0 && word(bio, config!(block.bio_end)) == config!(block.direct_end)
}

/// Address of the inode whose pages a part reads or writes, or which is read and written past the page cache; 0 where there is
/// none.
#[inline(always)]
fn inode(bio: &Words) -> u64 {
    if is_direct(bio) {
        let direct = word(bio, config!(block.bio_private)) as *const u8;
        let call = kernel_word(direct, config!(block.direct_call)) as *const u8;
        let file = kernel_word(call, config!(block.call_file)) as *const u8;
        return kernel_word(file, config!(block.file_inode));
    }
    let vectors = word(bio, config!(block.bio_pages)) as *const u8;
    let index = number(bio, config!(block.bio_index));
    if vectors.is_null() || number(bio, config!(block.bio_size)) == 0 {
        return 0;
    }
    let page = kernel_word(vectors, index * config!(block.vector_size) + config!(block.vector_page)) as *const u8;
    let head = kernel_word(page, config!(block.page_head));
    let page = if head & 1 != 0 { (head - 1) as *const u8 } else { page };
    let mapping = kernel_word(page, config!(block.page_mapping));
    if mapping == 0 || mapping & NO_FILE != 0 {
        return 0;
    }
    kernel_word(mapping as *const u8, config!(block.mapping_host))
}

/// Bits of a page's mapping that is none of a file. Source: `PAGE_MAPPING_FLAGS` (`FOLIO_MAPPING_FLAGS` since Linux 6.17),
/// include/linux/page-flags.h.
const NO_FILE: u64 = 3;
