//! What is counted exactly of files: by process and file, with a histogram of how long reads, writes and syncs took.

use profiler_common::file::{
    FileCall, FileKey, FileOperation, FileStats, MAX_FILE_HISTOGRAMS, OPERATIONS, OperationStats, PAGE_BYTES,
    TIMED_OPERATIONS, UsedFile, files_missed,
};
use profiler_common::histogram::{HISTOGRAM_BUCKETS, bucket_of};

use crate::atomic;
use crate::config::config;
use crate::file_name;
use crate::maps::{FILE_HISTOGRAMS, FILE_HISTOGRAMS_TAKEN, FILE_STATS, FILE_STATS_NEW, FILES_MISSED, Namer};
use crate::task::{Task, kernel_number, kernel_word};
use crate::threads;

/// Entries that are made where there is none. Source: `BPF_NOEXIST`, include/uapi/linux/bpf.h.
const NO_EXIST: u64 = 1;

/// `O_DIRECT`. Source: include/uapi/asm-generic/fcntl.h.
const DIRECT: u32 = 0o40_000;

/// How long something took of which it is not known when it began. No time that was measured is so short.
pub(crate) const UNKNOWN: u64 = 0;

/// A file in the element of the running thread.
#[repr(u32)]
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Which {
    /// What its call reads, writes, syncs or opens.
    File = 0,
    /// What its call writes that reads another file.
    Target = 1,
    /// That of a request or of a page.
    Other = 2,
}

/// What came to the page cache.
#[repr(u32)]
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pages {
    /// For a call that reads.
    Added = 0,
    /// For a fault.
    Faulted = 1,
}

/// Adds an operation of the running thread. `elapsed`: how long it took, or [`UNKNOWN`].
#[inline(always)]
pub(crate) fn add(which: Which, operation: FileOperation, bytes: u64, elapsed: u64, failed: bool) {
    file_count(which as u32, operation as u32, bytes, elapsed, u32::from(failed));
}

/// Adds pages that came to the page cache for the running thread.
#[inline(always)]
pub(crate) fn add_pages(which: Which, what: Pages, pages: u64) {
    file_count_pages(which as u32, what as u32, pages);
}

/// The element of the running thread, and the file in it that is meant.
#[inline(always)]
fn used(task: &Task, which: u32) -> Option<(&'static FileCall, &'static UsedFile)> {
    let call: &'static FileCall = threads::find::<FileCall>(task.tid)?;
    let used = if which == Which::File as u32 {
        &call.file
    } else if which == Which::Target as u32 {
        &call.target
    } else {
        &call.other
    };
    Some((call, used))
}

/// [`add`], as a global function: the verifier checks it once and by itself, not on each of the many ways that lead here.
/// Returns 1 when there was room.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn file_count(which: u32, operation: u32, bytes: u64, elapsed: u64, failed: u32) -> u32 {
    let task = Task::running();
    let Some((call, used)) = used(&task, which) else { return 0 };
    let Some(stats) = stats_of(&task, call, used) else {
        miss(files_missed::OPERATIONS);
        return 0;
    };
    let index = operation as usize - 1;
    // SAFETY: the pointers are to a map value that every CPU writes, hence atomic; there is room for so many operations.
    unsafe {
        let sum = (&raw mut (*stats).by_operation).cast::<OperationStats>().add(index & (OPERATIONS - 1));
        atomic::add(&raw mut (*sum).operations, 1);
        atomic::add(&raw mut (*sum).bytes, bytes);
        atomic::add(&raw mut (*sum).total_ns, elapsed);
        atomic::raise(&raw mut (*sum).max_ns, elapsed);
        if failed != 0 {
            atomic::add(&raw mut (*sum).errors, 1);
        }
        if used.is_deleted != 0 {
            (*stats).is_deleted = 1;
        }
    }
    if operation == FileOperation::Read as u32 && which != Which::Other as u32 {
        count_pages(stats, used, bytes);
    }
    if index < TIMED_OPERATIONS {
        if elapsed == UNKNOWN { miss(files_missed::TIMES) } else { add_to_histogram(stats, index, elapsed) }
    }
    1
}

/// [`add_pages`], as a global function. Returns 1 when there was room.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn file_count_pages(which: u32, what: u32, pages: u64) -> u32 {
    let task = Task::running();
    let Some((call, used)) = used(&task, which) else { return 0 };
    let Some(stats) = stats_of(&task, call, used) else { return 0 };
    // SAFETY: the pointer is to a map value that every CPU writes, hence atomic.
    unsafe {
        let sum =
            if what == Pages::Added as u32 { &raw mut (*stats).pages_added } else { &raw mut (*stats).pages_faulted };
        atomic::add(sum, pages);
    }
    1
}

/// Counts the pages that a read took from the page cache, if it did.
#[inline(always)]
fn count_pages(stats: *mut FileStats, used: &UsedFile, bytes: u64) {
    let file = used.file as *const u8;
    let mapping = kernel_word(file, config!(file.file_mapping)) as *const u8;
    if kernel_number(file, config!(file.file_flags)) & DIRECT == 0
        && kernel_word(mapping, config!(file.mapping_pages)) != 0
    {
        // SAFETY: the pointer is to a map value that every CPU writes, hence atomic.
        unsafe { atomic::add(&raw mut (*stats).pages_read, bytes.div_ceil(PAGE_BYTES)) };
    }
}

/// What is counted of a file that a process uses; made when it does so for the first time.
#[inline(always)]
fn stats_of(task: &Task, call: &FileCall, used: &UsedFile) -> Option<*mut FileStats> {
    let key =
        &FileKey { start_time_ns: call.start_time_ns, pid: call.pid, exec_count: task.exec_count(), file: used.id };
    if let Some(stats) = FILE_STATS.get_ptr_mut(key) {
        return Some(stats);
    }
    let made = FILE_STATS.insert(key, FILE_STATS_NEW.get(0)?, NO_EXIST).is_ok();
    let stats = FILE_STATS.get_ptr_mut(key)?;
    if made {
        // SAFETY: the pointer is to a map value, whose name nobody else writes.
        unsafe { (*stats).process_comm = task.process_comm() };
        send_name(call.pid, used);
    }
    Some(stats)
}

/// Counts an operation that found no room.
#[inline(always)]
fn miss(what: u32) {
    if let Some(missed) = FILES_MISSED.get_ptr_mut(what) {
        // SAFETY: the pointer is to a map element that every CPU writes, hence atomic.
        unsafe { atomic::add(missed, 1) };
    }
}

/// Adds how long an operation took to its histogram, which its first one takes.
#[inline(always)]
fn add_to_histogram(stats: *mut FileStats, operation: usize, elapsed: u64) {
    // SAFETY: the pointer is to a map value, which has room for so many.
    let place = unsafe { (&raw mut (*stats).histograms).cast::<u32>().add(operation & TIMED_OPERATIONS) };
    // SAFETY: as above; others may write it at any time, hence volatile.
    if unsafe { core::ptr::read_volatile(place) } == 0
        && let Some(taken) = FILE_HISTOGRAMS_TAKEN.get_ptr_mut(0)
    {
        // SAFETY: the pointers are to map values that every CPU writes, hence atomic. Where another CPU was first, what this
        // one has taken stays empty.
        unsafe {
            if core::ptr::read_volatile(taken) < u64::from(MAX_FILE_HISTOGRAMS) {
                atomic::claim(place, atomic::add(taken, 1) as u32 + 1);
            }
        }
    }
    // SAFETY: as above.
    let number = unsafe { core::ptr::read_volatile(place) };
    match FILE_HISTOGRAMS.get_ptr_mut(number.wrapping_sub(1)) {
        // SAFETY: the pointer is to a map value that every CPU writes, hence atomic; the bucket is one of the histogram's.
        Some(histogram) => unsafe {
            atomic::add(histogram.cast::<u64>().add(bucket_of(elapsed) & (HISTOGRAM_BUCKETS - 1)), 1);
        },
        None => miss(files_missed::TIMES),
    }
}

/// Sends the name that a process has opened a file by, where that is known; else any that it has.
#[inline(always)]
fn send_name(pid: u32, used: &UsedFile) {
    let (file, inode) = (used.file as *const u8, used.inode as *const u8);
    let dentry = if kernel_word(file, config!(file.file_inode)) == used.inode {
        kernel_word(file, config!(file.file_dentry)) as *const u8
    } else {
        core::ptr::null()
    };
    // Where it was closed in the meantime, the structures may be another file's by now.
    if !inode.is_null() && file_name::id_of(inode) == used.id {
        file_name::see(Namer::File, pid, inode, dentry, &used.id);
    }
}
