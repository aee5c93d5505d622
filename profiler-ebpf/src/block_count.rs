//! What is counted of requests to block devices that are done: by kind and by file, exactly; the record of who asked; the slow ones,
//! one by one.

use aya_ebpf::helpers::generated::bpf_ktime_get_ns;
use profiler_common::block::{
    self, Asker, BlockCounts, BlockFileKey, BlockFileStats, BlockKey, BlockMissed, BlockRow, BlockTally,
    MAX_BLOCK_STATS, MAX_SLOW, SlowRequest,
};
use profiler_common::config::Filter;
use profiler_common::counters::Outcome;
use profiler_common::event::{COMM_LEN, Origin, RING_SLOW, RecordKey, RecordValue};
use profiler_common::histogram::{HISTOGRAM_BUCKETS, bucket_of};

use crate::aggregate::{self, Outcomes, count};
use crate::atomic;
use crate::block_asker::asker;
use crate::block_noted::missed;
use crate::block_wait;
use crate::config::config;
use crate::file_name;
use crate::maps::{
    BLOCK_DONE, BLOCK_FILES, BLOCK_HISTOGRAMS, BLOCK_HISTOGRAMS_FREE, BLOCK_HISTOGRAMS_TAKEN, BLOCK_REQUESTS,
    BLOCK_STATS, BLOCK_TALLIES, BLOCK_WALKS, BLOCKS_MISSED, COUNTERS, DoneRequest, Namer,
};
use crate::window;

/// Entries that are made where there is none. Source: `BPF_NOEXIST`, include/uapi/linux/bpf.h.
const NO_EXIST: u64 = 1;

/// Credits somebody with bytes of the request that is done, and with the request where he is the first.
///
/// A global function, as `walk_frame` is: the verifier checks it once.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn credit_bytes(at: u64, bytes: u64) -> u32 {
    let Some(done) = BLOCK_DONE.get_ptr_mut(0) else { return 0 };
    // SAFETY: the element is this CPU's, and the program that calls is the only one to use it.
    let done = unsafe { &mut *done };
    let asker = asker(at);
    if asker.is_none() && config!(filter) != Filter::All as u32 {
        return 0;
    }
    let (start_time_ns, pid, exec_count) =
        asker.as_ref().map_or((0, 0, 0), |asker| (asker.start_time_ns, asker.pid, asker.exec_count));
    done.key.start_time_ns = start_time_ns;
    done.key.pid = pid;
    done.key.exec_count = exec_count;
    let is_first = done.counted == 0;
    done.counted = 1;
    add_to_tally(done, asker.as_deref(), bytes, is_first);
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
        sector: done.sector,
        times_ns: done.times_ns,
        file: done.file,
        bytes: done.length as u32,
        pid: done.key.pid,
        tid: asker.map_or(0, |asker| if asker.weight == 0 { 0 } else { asker.key.tid }),
        reserved: 0,
        process_comm: asker.map_or([0; _], |asker| asker.value.process_comm),
    };
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

/// Adds to the exact counts of a request's kind and file: those of this CPU, until it turns to others.
#[inline(always)]
fn add_to_tally(done: &DoneRequest, asker: Option<&Asker>, bytes: u64, is_first: bool) {
    let key = &done.key;
    let place = key.pid + u32::from(key.operation) + 3 * u32::from(key.size) + done.file.inode as u32;
    let Some(tally) = BLOCK_TALLIES.get_ptr_mut(place % block::BLOCK_TALLIES) else { return };
    // SAFETY: the element is this CPU's, and completions do not interrupt each other.
    let tally = unsafe { &mut *tally };
    let has_rows = tally.histograms != 0 && (tally.of_file != 0 || done.file.inode == 0);
    if !has_rows || tally.key != *key || tally.file != done.file {
        turn(tally, done, asker);
        if tally.histograms == 0 {
            missed(BlockMissed::Stats);
        }
        if done.inode != 0 && tally.of_file == 0 {
            missed(BlockMissed::Files);
        }
    }
    let counts = &mut tally.counts;
    counts.bytes += bytes;
    if !is_first {
        return;
    }
    // Counted from 1.
    if tally.of_file != 0 && (tally.of_file - 1 + counts.requests).is_multiple_of(NAMED_EVERY) {
        file_name::see(Namer::Block, key.pid, done.inode as *const u8, core::ptr::null(), &done.file);
    }
    counts.requests += 1;
    counts.errors += done.failed;
    counts.sequential += done.sequential;
    let [total_ns, queue_ns, device_ns] = done.times_ns;
    counts.total_ns += total_ns;
    counts.queue_ns += queue_ns;
    counts.max_ns[0] = larger(counts.max_ns[0], total_ns);
    counts.max_ns[1] = larger(counts.max_ns[1], queue_ns);
    counts.max_ns[2] = larger(counts.max_ns[2], device_ns);
    if tally.histograms == 0 {
        return;
    }
    let Some(histograms) = BLOCK_HISTOGRAMS.get_ptr_mut((tally.histograms - 1) as u32) else { return };
    let histograms = histograms.cast::<u32>();
    let bucket = |ns| bucket_of(ns) & (HISTOGRAM_BUCKETS - 1);
    // SAFETY: the pointers are to a map element that every CPU writes, hence atomic; the buckets are the histograms'.
    unsafe {
        if queue_ns == 0 {
            atomic::add_number(histograms.add(bucket(total_ns)), 1);
            return;
        }
        atomic::add_number(histograms.add(HISTOGRAM_BUCKETS + bucket(total_ns)), 1);
        atomic::add_number(histograms.add(2 * HISTOGRAM_BUCKETS + bucket(queue_ns)), 1);
        atomic::add_number(histograms.add(3 * HISTOGRAM_BUCKETS + bucket(device_ns)), 1);
    }
}

#[inline(always)]
fn larger(first: u64, second: u64) -> u64 {
    if first > second { first } else { second }
}

/// Adds what a CPU has counted to its rows, and turns to those of the request that is done, which it makes where there are none.
#[inline(always)]
fn turn(tally: &mut BlockTally, done: &DoneRequest, asker: Option<&Asker>) {
    if tally.histograms != 0
        && let Some(row) = BLOCK_STATS.get_ptr_mut(tally.key)
    {
        let counts = &tally.counts;
        // SAFETY: the pointers are to map values that every CPU writes, hence atomic.
        unsafe {
            let row = &raw mut (*row).counts;
            atomic::add(&raw mut (*row).requests, counts.requests);
            atomic::add(&raw mut (*row).bytes, counts.bytes);
            atomic::add(&raw mut (*row).errors, counts.errors);
            atomic::add(&raw mut (*row).sequential, counts.sequential);
            atomic::add(&raw mut (*row).total_ns, counts.total_ns);
            atomic::add(&raw mut (*row).queue_ns, counts.queue_ns);
            let max = (&raw mut (*row).max_ns).cast::<u64>();
            atomic::raise(max, counts.max_ns[0]);
            atomic::raise(max.add(1), counts.max_ns[1]);
            atomic::raise(max.add(2), counts.max_ns[2]);
        }
    }
    if tally.of_file != 0
        && let Some(row) = BLOCK_FILES.get_ptr_mut(tally.file_key())
    {
        // SAFETY: as above.
        unsafe {
            atomic::add(&raw mut (*row).requests, tally.counts.requests);
            atomic::add(&raw mut (*row).bytes, tally.counts.bytes);
            atomic::add(&raw mut (*row).total_ns, tally.counts.total_ns);
            atomic::raise(&raw mut (*row).max_ns, tally.counts.max_ns[0]);
        }
    }
    tally.counts = NOTHING;
    tally.key = done.key;
    tally.file = done.file;
    let process_comm = asker.map_or([0; _], |asker| asker.value.process_comm);
    tally.histograms = row(&tally.key, process_comm);
    tally.of_file = if done.inode == 0 { 0 } else { file_row(&tally.file_key(), process_comm) };
}

/// Counts of nothing.
const NOTHING: BlockCounts =
    BlockCounts { requests: 0, bytes: 0, errors: 0, sequential: 0, total_ns: 0, queue_ns: 0, max_ns: [0; 3] };

/// Where the distributions of a kind of requests are, plus 1; makes a row where there is none. 0 when there is no room.
#[inline(always)]
fn row(key: &BlockKey, process_comm: [u8; COMM_LEN]) -> u64 {
    if BLOCK_STATS.get_ptr(key).is_none() {
        let Some(histograms) = histograms() else { return 0 };
        // Another CPU may have made it meanwhile, or there is no room.
        if BLOCK_STATS.insert(key, BlockRow { counts: NOTHING, histograms, process_comm }, NO_EXIST).is_err() {
            let _ = BLOCK_HISTOGRAMS_FREE.push(histograms, 0);
        }
    }
    // SAFETY: the pointer is to a map value, and this is never written again.
    BLOCK_STATS.get_ptr(key).map_or(0, |row| unsafe { (*row).histograms } + 1)
}

/// An element for distributions: one that was given back, or the next of those that nobody has had.
#[inline(always)]
fn histograms() -> Option<u64> {
    if let Ok(Some(free)) = BLOCK_HISTOGRAMS_FREE.pop() {
        return (free < u64::from(MAX_BLOCK_STATS)).then_some(free);
    }
    let taken = BLOCK_HISTOGRAMS_TAKEN.get_ptr_mut(0)?;
    // SAFETY: the pointer is to a map element that every CPU writes, hence atomic.
    unsafe {
        if core::ptr::read_volatile(taken) >= u64::from(MAX_BLOCK_STATS) {
            return None;
        }
        let next = atomic::add(taken, 1);
        (next < u64::from(MAX_BLOCK_STATS)).then_some(next)
    }
}

/// Requests of a file that are in its row, plus 1; makes one where there is none. 0 when there is no room.
#[inline(always)]
fn file_row(key: &BlockFileKey, process_comm: [u8; COMM_LEN]) -> u64 {
    if BLOCK_FILES.get_ptr(key).is_none() {
        let new = BlockFileStats { process_comm, requests: 0, bytes: 0, total_ns: 0, max_ns: 0 };
        let _ = BLOCK_FILES.insert(key, new, NO_EXIST);
    }
    // SAFETY: the pointer is to a map value that every CPU writes, hence volatile.
    BLOCK_FILES.get_ptr(key).map_or(0, |row| unsafe { core::ptr::read_volatile(&raw const (*row).requests) } + 1)
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
    let (weight, lost) = (u64::from(asker.weight), u64::from(asker.lost));
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
        // SAFETY: takes no argument.
        let began_ns = unsafe { bpf_ktime_get_ns() };
        outcomes.record = match window::enter() {
            Some(window) => {
                let record = aggregate::add_late(&window, &key, &value);
                window.leave();
                record
            }
            None => Outcome::MapBusy as u64,
        };
        if let Some(walks) = BLOCK_WALKS.get_ptr_mut(0) {
            // SAFETY: the element is this CPU's; atomic, since this may have interrupted a walk. The helper takes no argument.
            unsafe { atomic::add(&raw mut (*walks).ns, bpf_ktime_get_ns() - began_ns) };
        }
    }
    if is_first {
        count(counters, outcomes);
    }
}
