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
    Asker, BLOCK_TIMES, BlockFileStats, BlockMissed, BlockOperation, BlockRequest, MAX_DIRTIERS, MAX_REQUESTS,
    PASSTHROUGH, REQUEST_PLACES, STRUCT_BYTES, is_write, place, size_class,
};
use profiler_common::config::{Filter, Process};
use profiler_common::counters::Outcome;
use profiler_common::event::{COLUMNS, Origin, RecordKey, RecordValue, hash_word};
use profiler_common::histogram::{HISTOGRAM_BUCKETS, bucket_of};
use profiler_common::number_pace::Chosen;

use crate::aggregate::{self, Outcomes, count};
use crate::atomic;
use crate::block_dirty;
use crate::block_wait;
use crate::config::config;
use crate::file_name;
use crate::maps::{
    BLOCK_DONE, BLOCK_ENDS, BLOCK_FILES, BLOCK_PYTHON, BLOCK_REQUESTS, BLOCK_STATS, BLOCK_STATS_NEW, BLOCK_WAITERS,
    BLOCKS_MISSED, COUNTERS, DIRTY_FILES, DoneRequest, NO_REQUEST, NUMBER_PACE, Namer, Programs, SCRATCH, Scratch,
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
fn find(bio: u64) -> Option<(u32, &'static mut BlockRequest)> {
    let mut index = 0;
    while index < REQUEST_PLACES {
        let at = place(bio, index, MAX_REQUESTS);
        let request = BLOCK_REQUESTS.get_ptr_mut(at)?;
        // SAFETY: the pointer is to a map element, which others may claim at any time, hence volatile.
        if unsafe { core::ptr::read_volatile(&raw const (*request).bio) } == bio {
            // SAFETY: the element is this request's, which is made before it is done.
            return Some((at, unsafe { &mut *request }));
        }
        index += 1;
    }
    None
}

/// An element for a request: its own, a free one, or that of the request that was made first.
#[inline(always)]
fn add(bio: u64) -> Option<(u32, &'static mut BlockRequest)> {
    if let Some(found) = find(bio) {
        return Some(found);
    }
    let (mut oldest, mut oldest_ns) = (0, u64::MAX);
    let mut index = 0;
    while index < REQUEST_PLACES {
        let at = place(bio, index, MAX_REQUESTS);
        let request = BLOCK_REQUESTS.get_ptr_mut(at)?;
        // SAFETY: the pointer is to a map element, which every CPU may claim, hence atomic.
        unsafe {
            if atomic::replace(&raw mut (*request).bio, 0, bio) {
                return Some((at, &mut *request));
            }
            let made_ns = core::ptr::read_volatile(&raw const (*request).made_ns);
            if made_ns < oldest_ns {
                (oldest, oldest_ns) = (at, made_ns);
            }
        }
        index += 1;
    }
    missed(BlockMissed::Requests);
    let request = BLOCK_REQUESTS.get_ptr_mut(oldest)?;
    // SAFETY: as above. Whoever had it is not found any more.
    unsafe {
        core::ptr::write_volatile(&raw mut (*request).bio, bio);
        Some((oldest, &mut *request))
    }
}

/// Gives an element back.
#[inline(always)]
fn remove(request: &mut BlockRequest) {
    // SAFETY: a reference is valid and aligned. Volatile: whoever sees it may claim the element at once.
    unsafe { core::ptr::write_volatile(&raw mut request.bio, 0) };
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
        if let Some((_, request)) = add(bio as u64) {
            // SAFETY: takes no argument.
            request.made_ns = unsafe { bpf_ktime_get_ns() };
            request.issued_ns = 0;
            request.throttled = 1;
            request.tid = waiter.tid as u32;
            request.asker = waiter.asker;
        }
        return 0;
    }
    let task = running.in_namespace();
    let wanted = task.as_ref().map_or(Wanted::No, Task::wanted);
    let (Some(task), Wanted::Yes(process)) = (task, wanted) else {
        // The address may have been that of another request.
        if let Some((_, request)) = find(bio as u64) {
            remove(request);
        }
        return 0;
    };
    let Some((at, request)) = add(bio as u64) else { return 0 };
    // SAFETY: takes no argument.
    request.made_ns = unsafe { bpf_ktime_get_ns() };
    request.issued_ns = 0;
    request.throttled = 0;
    request.tid = running.tid;
    block_wait::note_request(request.tid);
    identify(&task, &mut request.asker);
    ask(&context, &task, process, &mut request.asker, u64::from(at));
    0
}

/// Notes when a request is given to its device. Argument: the request.
#[raw_tracepoint(tracepoint = "block_rq_issue")]
pub(crate) fn block_issue(context: RawTracePointContext) -> i32 {
    let request: *const u8 = context.arg(0);
    if let Some((_, request)) = find(kernel_word(request, config!(block.request_bio))) {
        // SAFETY: takes no argument.
        request.issued_ns = unsafe { bpf_ktime_get_ns() };
    }
    0
}

/// Notes who asks.
#[inline(always)]
pub(crate) fn identify(task: &Task, asker: &mut Asker) {
    asker.key.start_time_ns = task.start_time_ns();
    asker.key.pid = task.pid;
    asker.key.exec_count = task.exec_count();
    asker.process = process_of(asker.key.start_time_ns, task.pid);
    asker.value.process_comm = task.process_comm();
    asker.lost = 0;
    asker.weight = 0;
}

/// Notes his chains, if they are chosen. `at`: where, for [`asker`].
#[inline(always)]
pub(crate) fn ask(
    context: &RawTracePointContext,
    task: &Task,
    process: Option<&'static Process>,
    asker: &mut Asker,
    at: u64,
) {
    asker.weight = weight();
    if asker.weight == 0 {
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

/// How many requests this one counts for; 0 when it is left out of the profile.
#[inline(always)]
fn weight() -> u64 {
    let Some(pace) = NUMBER_PACE.get_ptr_mut(Chosen::BlockIo as u32) else { return 0 };
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
    // Without a part it is the kernel's own, to flush for others. One that goes on is counted when it is done.
    let operation = flags & 0xff;
    if bio == 0 || bytes < length || operation == PASSTHROUGH[0] || operation == PASSTHROUGH[1] {
        return 0;
    }
    // SAFETY: takes no argument.
    let now = unsafe { bpf_ktime_get_ns() };
    let found = find(bio);
    let (made_ns, noted_ns) = match &found {
        Some((at, request)) => {
            done.place = u64::from(*at);
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
    if let Some((_, request)) = &found {
        let issued_ns = if issued_ns < started_ns { started_ns } else { issued_ns };
        block_wait::note_done(request.tid, started_ns, issued_ns, now, request.throttled);
    }
    let total_ns = now.saturating_sub(started_ns);
    let queue_ns = issued_ns.saturating_sub(started_ns);
    done.times_ns = [total_ns, queue_ns, total_ns.saturating_sub(queue_ns)];
    done.failed = u64::from(error != 0);
    done.counted = 0;
    done.left = u64::from(length);
    read(&mut done.bio, bio as *const u8);
    done.key.device =
        kernel_number(word(&done.bio, config!(block.bio_device)) as *const u8, config!(block.device_number));
    done.key.operation = BlockOperation::of(flags, length) as u16;
    done.key.size = size_class(length);
    done.sequential = u64::from(is_sequential(done, length));
    let is_one = bio == word(&done.request, config!(block.request_last_bio));
    let mut parts = 0;
    let mut at = bio;
    while parts < MAX_PARTS && at != 0 {
        let is_last = is_one || parts == MAX_PARTS - 1;
        if credit(at, u32::from(is_write(flags)), u32::from(is_last)) == 0 {
            break;
        }
        at = word(&done.bio, config!(block.bio_next));
        parts += 1;
    }
    if let Some((_, request)) = found {
        remove(request);
    }
    0
}

/// A time, or another one where it is not known.
#[inline(always)]
fn first_of(known: u64, other: u64) -> u64 {
    if known != 0 { known } else { other }
}

/// Whether a request goes on where the one before on its device ended, which it takes the place of.
#[inline(always)]
fn is_sequential(done: &DoneRequest, length: u32) -> bool {
    let device = done.key.device;
    let Some(end) = BLOCK_ENDS.get_ptr_mut((device ^ (device >> 17)) & 255) else { return false };
    let sector = word(&done.request, config!(block.request_sector));
    // SAFETY: the pointer is to a map element that every CPU writes, hence atomic.
    length != 0 && unsafe { atomic::swap(end, sector + u64::from(length >> 9)) } == sector
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
    read(&mut done.bio, bio as *const u8);
    let size = u64::from(number(&done.bio, config!(block.bio_size)));
    // The last part has all that is left, so that no byte is missing where there are more parts than are looked at.
    let mut left = if is_last != 0 || size > done.left { done.left } else { size };
    done.left -= left;
    done.key.cgroup = cgroup(&done.bio);
    done.inode = inode(&done.bio);
    if done.inode != 0 {
        done.file.file = file_name::id_of(done.inode as *const u8);
    }
    if writes != 0
        && done.inode != 0
        && let Some((index, file)) = block_dirty::find(done.inode)
    {
        let who = asker(done.place).map_or(0, |asker| asker.process);
        let mut turns = 0;
        while turns < MAX_DIRTIERS && left > 0 {
            let Some((dirtier, part)) = block_dirty::take(file, left, turns == MAX_DIRTIERS - 1) else { break };
            // Who writes back what he wrote himself is known with the stack on which he does.
            let at = if file.dirtiers[dirtier].asker.process == who {
                done.place
            } else {
                DIRTIERS_AT + u64::from(index) * MAX_DIRTIERS as u64 + dirtier as u64
            };
            credit_bytes(at, part);
            left -= part;
            turns += 1;
        }
        if turns > 0 {
            return u32::from(is_last == 0);
        }
    }
    credit_bytes(done.place, left);
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
        add_to_file(done, asker.as_deref(), bytes, is_first);
        file_name::see(Namer::Block, pid, done.inode as *const u8, core::ptr::null(), &done.file.file);
    }
    add_to_record(done, asker.as_deref(), bytes, is_first);
    0
}

/// Adds to the exact counts of a request's kind.
#[inline(always)]
fn add_to_stats(done: &DoneRequest, asker: Option<&Asker>, bytes: u64, is_first: bool) {
    if BLOCK_STATS.get_ptr_mut(&done.key).is_none()
        && let Some(new) = BLOCK_STATS_NEW.get(0)
        && BLOCK_STATS.insert(&done.key, new, NO_EXIST).is_ok()
        && let (Some(stats), Some(asker)) = (BLOCK_STATS.get_ptr_mut(&done.key), asker)
    {
        // SAFETY: the pointer is to a map value, whose name nobody else writes.
        unsafe { (*stats).process_comm = asker.value.process_comm };
    }
    let Some(stats) = BLOCK_STATS.get_ptr_mut(&done.key) else { return missed(BlockMissed::Stats) };
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
        let mut time = 0;
        while time < BLOCK_TIMES.len() {
            let ns = done.times_ns[time];
            atomic::add((&raw mut (*stats).sums_ns).cast::<u64>().add(time), ns);
            atomic::raise((&raw mut (*stats).max_ns).cast::<u64>().add(time), ns);
            let bucket = bucket_of(ns) & (HISTOGRAM_BUCKETS - 1);
            let histograms = (&raw mut (*stats).histograms).cast::<u32>();
            atomic::add_number(histograms.add(time * HISTOGRAM_BUCKETS + bucket), 1);
            time += 1;
        }
    }
}

/// Adds to the exact counts of a file.
#[inline(always)]
fn add_to_file(done: &DoneRequest, asker: Option<&Asker>, bytes: u64, is_first: bool) {
    if BLOCK_FILES.get_ptr_mut(&done.file).is_none() {
        let process_comm = asker.map_or([0; _], |asker| asker.value.process_comm);
        let new = BlockFileStats { process_comm, requests: 0, bytes: 0, total_ns: 0, max_ns: 0 };
        let _ = BLOCK_FILES.insert(&done.file, &new, NO_EXIST);
    }
    let Some(stats) = BLOCK_FILES.get_ptr_mut(&done.file) else { return missed(BlockMissed::Files) };
    // SAFETY: the pointers are to map values that every CPU writes, hence atomic.
    unsafe {
        atomic::add(&raw mut (*stats).bytes, bytes);
        if is_first {
            atomic::add(&raw mut (*stats).requests, 1);
            atomic::add(&raw mut (*stats).total_ns, done.times_ns[TOTAL]);
            atomic::raise(&raw mut (*stats).max_ns, done.times_ns[TOTAL]);
        }
    }
}

/// The time that is both others together: an index of [`BLOCK_TIMES`].
const TOTAL: usize = 0;

/// Adds to the record of who asked, where his request was chosen.
#[inline(always)]
fn add_to_record(done: &DoneRequest, asker: Option<&Asker>, bytes: u64, is_first: bool) {
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
        let key = RecordKey { reason: done.key.operation, ..asker.key };
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

/// Number of the cgroup that a part is charged to; 0 where there is none.
#[inline(always)]
fn cgroup(bio: &Words) -> u64 {
    if config!(block.bio_group) == 0 {
        return 0;
    }
    let group = word(bio, config!(block.bio_group)) as *const u8;
    if group.is_null() {
        return 0;
    }
    let owner = kernel_word(group, config!(block.group_owner)) as *const u8;
    let cgroup = kernel_word(owner, config!(block.owner_cgroup)) as *const u8;
    kernel_word(kernel_word(cgroup, config!(block.cgroup_node)) as *const u8, config!(block.node_id))
}

/// Address of the inode whose pages a part reads or writes, or which is read and written past the page cache; 0 where there is
/// none.
#[inline(always)]
fn inode(bio: &Words) -> u64 {
    if config!(block.direct_end) != 0 && word(bio, config!(block.bio_end)) == config!(block.direct_end) {
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
