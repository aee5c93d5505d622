//! Requests to block devices: who asked, noted when a request is made; counted, and added to a record, when it is done.
//!
//! A request carries its own times. What it does not carry is who asked: `block_getrq` runs in the context of whoever makes a
//! request and gives its first part (a `struct bio`), by whose address the completion finds what was noted. What is written
//! back of the page cache belongs to who made the pages dirty (`block_dirty`), whoever makes the request.
//!
//! A completion interrupts anything on its CPU, but not another one. So it works on maps of its own, never on scratch space.

use aya_ebpf::EbpfContext;
use aya_ebpf::helpers::generated::{bpf_get_prandom_u32, bpf_jiffies64, bpf_ktime_get_ns, bpf_probe_read_kernel};
use aya_ebpf::macros::{btf_tracepoint, raw_tracepoint};
use aya_ebpf::programs::{BtfTracePointContext, RawTracePointContext};
use profiler_common::block::{
    self, Asker, BlockMissed, BlockOperation, BlockRequest, FAILED, MAX_DIRTIERS, MAX_REQUESTS, OF_KERNEL, PASSTHROUGH,
    REQUEST_PLACES, STRUCT_BYTES, THROTTLED, UNASKED, is_write, place, size_class,
};
use profiler_common::counters::Outcome;
use profiler_common::event::{COLUMNS, Origin, hash_word};
use profiler_common::file::FileId;
use profiler_common::number_pace::Chosen;

use crate::aggregate;
use crate::atomic;
use crate::block_count::credit_bytes;
use crate::block_dirty;
use crate::block_wait;
use crate::config::config;
use crate::maps::{
    BLOCK_CLOCK, BLOCK_DONE, BLOCK_ENDS, BLOCK_PYTHON, BLOCK_REQUESTS, BLOCK_WAITERS, BLOCK_WALKS, BLOCKS_MISSED,
    DIRTY_FILES, DoneRequest, LAST_ASKER, NO_REQUEST, NUMBER_PACE, Programs, RequestPart, SCRATCH, Scratch,
};
use crate::python;
use crate::recorded::Recorded;
use crate::stack::{self, Chain};
use crate::task::{Task, kernel_number, kernel_word};
use crate::unwind;
use crate::window::{self, Window};

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
    let first = place(bio, 0, MAX_REQUESTS);
    let mut index = 0;
    while index < REQUEST_PLACES {
        let request = BLOCK_REQUESTS.get_ptr_mut(first + index)?;
        // SAFETY: the pointer is to a map element, which others may claim at any time, hence volatile.
        if unsafe { core::ptr::read_volatile(&raw const (*request).part) } == bio {
            return Some(Noted::new(first + index, request));
        }
        index += 1;
    }
    None
}

/// An element for a request that is made.
#[inline(always)]
fn make(bio: u64) -> Option<Noted> {
    // The address was that of another request.
    if let Some(noted) = find(bio) {
        if noted.request.flags & UNASKED == 0 {
            missed(BlockMissed::Ends);
        }
        return Some(noted);
    }
    add(bio)
}

/// An element for a request that has none: a free one, or that of the request that was made first.
#[inline(always)]
fn add(bio: u64) -> Option<Noted> {
    let first = place(bio, 0, MAX_REQUESTS);
    let mut index = 0;
    while index < REQUEST_PLACES {
        let request = BLOCK_REQUESTS.get_ptr_mut(first + index)?;
        // SAFETY: the pointer is to a map element, which every CPU may claim, hence volatile and atomic.
        let claimed = unsafe {
            let part = &raw mut (*request).part;
            core::ptr::read_volatile(part) == 0 && atomic::replace(part, 0, bio)
        };
        if claimed {
            return Some(Noted::new(first + index, request));
        }
        index += 1;
    }
    missed(BlockMissed::Requests);
    let now = ticks();
    let (mut oldest, mut oldest_age) = (0, 0);
    let mut index = 0;
    while index < REQUEST_PLACES {
        let request = BLOCK_REQUESTS.get_ptr(first + index)?;
        // SAFETY: the pointer is to a map element, which others write, hence volatile.
        let age = now.wrapping_sub(unsafe { core::ptr::read_volatile(&raw const (*request).made_ticks) });
        if age > oldest_age {
            (oldest, oldest_age) = (index, age);
        }
        index += 1;
    }
    let request = BLOCK_REQUESTS.get_ptr_mut(first + oldest)?;
    // SAFETY: as above. Whoever had it is not found any more.
    unsafe { core::ptr::write_volatile(&raw mut (*request).part, bio) };
    Some(Noted::new(first + oldest, request))
}

/// A request that is noted.
struct Noted {
    /// Index of its element.
    at: u32,
    request: &'static mut BlockRequest,
}

impl Noted {
    #[inline(always)]
    fn new(at: u32, request: *mut BlockRequest) -> Self {
        // SAFETY: the pointer is to a map element, which is this request's: it is made before it is done.
        Self { at, request: unsafe { &mut *request } }
    }

    /// Notes when it is made.
    #[inline(always)]
    fn begin(&mut self, tid: u32, flags: u32) {
        let request = &mut *self.request;
        request.made_ticks = ticks();
        request.made_ns = 0;
        if let Some(clock) = BLOCK_CLOCK.get_ptr(0) {
            // SAFETY: the pointer is to a map element that others write, hence volatile; the helper takes no argument.
            unsafe {
                if core::ptr::read_volatile(clock) != 0 {
                    request.made_ns = bpf_ktime_get_ns();
                }
            }
        }
        request.issued_ns = 0;
        request.done_bytes = 0;
        request.tid = tid;
        request.flags = flags;
    }

    /// Gives the element back.
    #[inline(always)]
    fn remove(self) {
        // SAFETY: a reference is valid and aligned. Volatile: whoever sees it may claim the element at once.
        unsafe { core::ptr::write_volatile(&raw mut self.request.part, 0) };
    }
}

/// Gives a request's element back, if it has one.
#[inline(always)]
fn remove(place: u64) {
    if place != NO_REQUEST
        && let Some(request) = BLOCK_REQUESTS.get_ptr_mut(place as u32)
    {
        Noted::new(place as u32, request).remove();
    }
}

/// The kernel's clock, in its ticks.
#[inline(always)]
fn ticks() -> u32 {
    // SAFETY: takes no argument, and is no call: the verifier puts the variable there.
    unsafe { bpf_jiffies64() as u32 }
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
fn ask(context: &RawTracePointContext, task: &Task, asker: &mut Asker, at: u64, weight: u64) {
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

/// Where dirtiers begin: see [`asker`].
pub(crate) const DIRTIERS_AT: u64 = 1 << 32;

/// Where those who wait begin.
pub(crate) const WAITERS_AT: u64 = 1 << 33;

/// Reads a field through a pointer that the verifier knows the type of: no call, and 0 where it cannot be read.
macro_rules! typed {
    ($pointer:expr, $($offset:ident).+, $type:ty) => {
        // SAFETY: the offset is of this field in the running kernel. Volatile: in one piece, as the verifier wants it.
        unsafe { core::ptr::read_volatile($pointer.wrapping_add(config!($($offset).+) as usize).cast::<$type>()) }
    };
}

/// An address as a pointer to a structure of the kernel's that the verifier knows the type of. `kind`: the type's number, a
/// constant of the load, never 0.
#[inline(always)]
fn cast(address: u64, kind: u32) -> *const u8 {
    // SAFETY: a call by number, as of helpers: user space has put the one of `bpf_rdonly_cast` there.
    let cast =
        unsafe { core::mem::transmute::<usize, unsafe extern "C" fn(u64, u32) -> *const u8>(block::CAST as usize) };
    // SAFETY: takes any address; what is read through what it returns is 0 where it cannot be read.
    unsafe { cast(address, kind) }
}

/// A pointer that the verifier knows the type of as a number, with which one may calculate.
#[inline(always)]
fn address(cell: &mut u64, pointer: *const u8) -> u64 {
    let cell = &raw mut *cell;
    // SAFETY: the cell is in a map element: what is read of one is a number for the verifier. Volatile, so that it is read.
    unsafe {
        core::ptr::write_volatile(cell.cast::<*const u8>(), pointer);
        core::ptr::read_volatile(cell)
    }
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

/// Reads a part behind the first.
#[inline(always)]
fn read_part(done: &mut DoneRequest, bio: u64) {
    read(&mut done.bio, bio as *const u8);
    let words = &done.bio;
    done.part = RequestPart {
        at: bio,
        next: word(words, config!(block.bio_next)),
        group: if config!(block.bio_group) == 0 { 0 } else { word(words, config!(block.bio_group)) },
        pages: word(words, config!(block.bio_pages)),
        end: word(words, config!(block.bio_end)),
        private: word(words, config!(block.bio_private)),
        size: number(words, config!(block.bio_size)),
        index: number(words, config!(block.bio_index)),
    };
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

/// Credits whoever asked for a part of the request that is done; returns whether there is another.
///
/// A global function, as `walk_frame` is: the verifier checks it once.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn credit(bio: u64, writes: u32, is_last: u32) -> u32 {
    let Some(done) = BLOCK_DONE.get_ptr_mut(0) else { return 0 };
    // SAFETY: the element is this CPU's, and the program that calls is the only one to use it.
    let done = unsafe { &mut *done };
    if done.part.at != bio {
        read_part(done, bio);
        // It was the first part of a request until another one came before it: who asked for it is known.
        remove(done.own);
        done.own = NO_REQUEST;
        if let Some(noted) = find(bio) {
            done.own = u64::from(noted.at);
            done.place = if noted.request.flags & UNASKED == 0 { done.own } else { NO_REQUEST };
        }
    }
    let size = u64::from(done.part.size);
    // The last part has all that is left, so that no byte is missing where there are more parts than are looked at.
    let mut left = if is_last != 0 || size > done.left { done.left } else { size };
    done.left -= left;
    done.part_left = size.saturating_sub(left);
    done.key.cgroup = cgroup(done);
    let found = inode(&done.part, &mut done.address);
    done.inode = found;
    if done.inode == 0 {
        done.file = FileId { inode: 0, device: 0, generation: 0 };
    } else {
        identify_file(done);
    }
    let is_written_back = writes != 0 && done.inode != 0 && !is_direct(&done.part);
    if is_written_back
        && let Some((index, file)) = block_dirty::find(done.inode)
        && file.number == done.file.inode
        && file.generation == u64::from(done.file.generation)
    {
        let who = asker(done.place).map_or(0, |asker| process_of(asker.start_time_ns, asker.pid));
        let mut turns = 0;
        while turns < MAX_DIRTIERS && left > 0 {
            let Some((dirtier, part)) = block_dirty::take(file, left) else { break };
            // Who writes back what he wrote himself is known with the stack on which he does.
            let at = if file.dirtiers[dirtier].process == who {
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

/// What is read of a device, a cgroup or a file system is read again after so long: its structure may be another's by then.
const READ_AGAIN_NS: u64 = 50_000_000;

/// Number of the cgroup that a part is charged to; 0 where there is none.
#[inline(always)]
fn cgroup(done: &mut DoneRequest) -> u64 {
    if config!(block.bio_group) == 0 {
        return 0;
    }
    let group = done.part.group;
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
    if config!(block.inode_type) != 0 {
        let inode = cast(done.inode, config!(block.inode_type));
        let super_block = typed!(inode, file.inode_super_block, *const u8);
        done.file = FileId {
            inode: typed!(inode, file.inode_number, u64),
            device: typed!(super_block, file.super_block_device, u32),
            generation: typed!(inode, file.inode_generation, u32),
        };
        return;
    }
    read(&mut done.bio_inode, done.inode as *const u8);
    let super_block = word(&done.bio_inode, config!(file.inode_super_block));
    if done.read_super_block.0 != super_block {
        let device = kernel_number(super_block as *const u8, config!(file.super_block_device));
        done.read_super_block = (super_block, u64::from(device));
    }
    done.file = FileId {
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
fn is_direct(part: &RequestPart) -> bool {
    config!(block.direct_end) != 0 && part.end == config!(block.direct_end)
}

/// Address of the inode whose pages a part reads or writes, or which is read and written past the page cache; 0 where there is
/// none. `cell`: for [`address`].
#[inline(always)]
fn inode(part: &RequestPart, cell: &mut u64) -> u64 {
    if is_direct(part) {
        if config!(block.direct_type) != 0 {
            let direct = cast(part.private, config!(block.direct_type));
            let call = typed!(direct, block.direct_call, *const u8);
            let file = typed!(call, block.call_file, *const u8);
            return address(cell, typed!(file, block.file_inode, *const u8));
        }
        let direct = part.private as *const u8;
        let call = kernel_word(direct, config!(block.direct_call)) as *const u8;
        let file = kernel_word(call, config!(block.call_file)) as *const u8;
        return kernel_word(file, config!(block.file_inode));
    }
    let (vectors, index) = (part.pages as *const u8, part.index);
    if vectors.is_null() || part.size == 0 {
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
