//! Files: what is read, written, synced and opened by which process, counted exactly by file; by stack for those operations
//! that are chosen by their number, as faults are.
//!
//! Two programs, on the tracepoints of those system calls that are for files: a call of another kind runs none of them. A
//! thread that was asked for has an element in which the entry of a call notes the time, and which file its descriptor is
//! then: when the call returns, another thread may have closed it.

use aya_ebpf::EbpfContext;
use aya_ebpf::helpers::generated::{bpf_get_prandom_u32, bpf_ktime_get_ns};
use aya_ebpf::macros::{raw_tracepoint, tracepoint};
use aya_ebpf::programs::{RawTracePointContext, TracePointContext};
use profiler_common::counters::{Counters, Outcome};
use profiler_common::event::Origin;
use profiler_common::file::{
    FileCall, FileCallKind, FileKey, FileOperation, FileRequest, FileStats, MAX_FILE_HISTOGRAMS, OPERATIONS,
    PAGE_BYTES, TIMED_OPERATIONS, UsedFile, files_missed,
};
use profiler_common::histogram::{HISTOGRAM_BUCKETS, bucket_of};
use profiler_common::number_pace::Chosen;
use profiler_common::system_call::MAX_ERROR;

use crate::aggregate::{self, Outcomes, count};
use crate::atomic;
use crate::config::config;
use crate::file_name;
use crate::maps::{
    COUNTERS, FILE_HISTOGRAMS, FILE_HISTOGRAMS_TAKEN, FILE_PYTHON, FILE_REQUESTS, FILE_STATS, FILE_STATS_NEW,
    FILES_MISSED, NUMBER_PACE, Namer, Part, Programs, SCRATCH, Scratch,
};
use crate::python;
use crate::recorded::Recorded;
use crate::stack::{self, Chain};
use crate::task::{Task, kernel_number, kernel_word};
use crate::threads;
use crate::unwind;
use crate::window::{self, Window};

/// Entries that are made where there is none. Source: `BPF_NOEXIST`, include/uapi/linux/bpf.h.
const NO_EXIST: u64 = 1;

/// Where the number of a call, its first argument and what it returns are in the records of its tracepoints. Source: the
/// `format` of any of them.
const NUMBER: usize = 8;
const FIRST_ARGUMENT: usize = 16;
const RETURNED: usize = 16;

/// What the word that has the number of a call is in an exception. Source: arch/x86/entry/entry_64.S.
const NO_CALL: u64 = u64::MAX;

/// `O_DIRECT`. Source: include/uapi/asm-generic/fcntl.h.
const DIRECT: u32 = 0o40_000;

/// Kinds of file, in `i_mode`. Source: include/uapi/linux/stat.h.
mod mode {
    pub(super) const KIND: u32 = 0o170_000;
    pub(super) const REGULAR: u32 = 0o100_000;
    pub(super) const BLOCK_DEVICE: u32 = 0o060_000;
    pub(super) const DIRECTORY: u32 = 0o040_000;
}

/// How long something took of which it is not known when it began. No time that was measured is so short.
const UNKNOWN: u64 = 0;

/// Where the parts of a call are in the scratch space: what it does to the first file, and what it writes to the second.
const FIRST: usize = 0;
const SECOND: usize = 1;

/// Notes that a thread begins a call for a file.
#[tracepoint]
pub(crate) fn file_enter(context: TracePointContext) -> u32 {
    let task = Task::running();
    let Some(call) = element(&task) else { return 0 };
    call.since_ns = 0;
    // SAFETY: the record of every call has its number and one argument.
    let (number, first) = unsafe {
        let record = context.as_ptr().cast::<u8>();
        (*record.add(NUMBER).cast::<u32>(), *record.add(FIRST_ARGUMENT).cast::<u64>())
    };
    let Some(kind) = FileCallKind::of(number) else { return 0 };
    call.kind = kind as u32;
    call.file.inode = 0;
    call.target.inode = 0;
    match kind {
        FileCallKind::Read | FileCallKind::Write => use_file(&task, first, false, &mut call.file),
        FileCallKind::Sync => use_file(&task, first, true, &mut call.file),
        FileCallKind::Send => {
            use_file(&task, stack::entry_registers(&task).second_argument, false, &mut call.file);
            use_file(&task, first, false, &mut call.target);
        }
        FileCallKind::Copy => {
            use_file(&task, first, false, &mut call.file);
            use_file(&task, stack::entry_registers(&task).third_argument, false, &mut call.target);
        }
        FileCallKind::Open | FileCallKind::Rename => {}
    }
    let is_later = matches!(kind, FileCallKind::Open | FileCallKind::Rename);
    if is_later || call.file.inode != 0 || call.target.inode != 0 {
        // SAFETY: takes no argument. Last, so that what this program takes is in no call.
        call.since_ns = unsafe { bpf_ktime_get_ns() };
    }
    0
}

/// The running thread's element; `None` when it was not asked for.
#[inline(always)]
fn element(task: &Task) -> Option<&'static mut FileCall> {
    match threads::find::<FileCall>(task.tid) {
        // Who has an element was asked for.
        Some(call) => Some(call),
        None => admit(task),
    }
}

/// An element for the running thread, if it was asked for.
#[inline(always)]
fn admit(running: &Task) -> Option<&'static mut FileCall> {
    let task = running.in_namespace()?;
    if !task.is_wanted() {
        return None;
    }
    let Some(call) = threads::add::<FileCall>(running.tid) else {
        if let Some(counters) = counters() {
            counters.hits += 1;
            count(counters, Outcomes::lost(Outcome::ThreadsFull));
        }
        return None;
    };
    call.start_time_ns = task.start_time_ns();
    call.pid = task.pid;
    Some(call)
}

/// Forgets a thread that ends.
#[raw_tracepoint(tracepoint = "sched_process_exit")]
pub(crate) fn file_end(_context: RawTracePointContext) -> i32 {
    if let Some(call) = threads::find::<FileCall>(Task::running().tid) {
        threads::remove(call);
    }
    0
}

/// The accounting of operations on files.
#[inline(always)]
fn counters() -> Option<&'static mut Counters> {
    // SAFETY: the element is this CPU's, and programs of this type do not interrupt each other.
    COUNTERS.get_ptr_mut(Origin::FileIo as u32).map(|counters| unsafe { &mut *counters })
}

/// Notes the file that a descriptor of the running task is for; nothing when it is for a socket or the like.
#[inline(always)]
fn use_file(task: &Task, descriptor: u64, directories: bool, used: &mut UsedFile) {
    let files = kernel_word(task.pointer(), config!(file.task_files)) as *const u8;
    let table = kernel_word(files, config!(file.files_table)) as *const u8;
    let descriptor = descriptor as u32;
    if descriptor >= kernel_number(table, config!(file.table_size)) {
        return;
    }
    let entries = kernel_word(table, config!(file.table_files)) as *const u8;
    let file = kernel_word(entries.wrapping_add(descriptor as usize * size_of::<u64>()), 0);
    if file != 0 {
        note_file(file, directories, used);
    }
}

/// Notes an open file, unless it is a socket or the like.
#[inline(always)]
fn note_file(file: u64, directories: bool, used: &mut UsedFile) {
    used.file = file;
    note_inode(kernel_word(file as *const u8, config!(file.file_inode)), directories, used);
}

/// Notes the file of an inode, unless it is a socket or the like.
#[inline(always)]
fn note_inode(inode: u64, directories: bool, used: &mut UsedFile) {
    let pointer = inode as *const u8;
    let kind = kernel_number(pointer, config!(file.inode_mode)) & mode::KIND;
    if kind == mode::REGULAR || kind == mode::BLOCK_DEVICE || (directories && kind == mode::DIRECTORY) {
        used.inode = inode;
        used.id = file_name::id_of(pointer);
        used.is_deleted = u32::from(kernel_number(pointer, config!(file.inode_links)) == 0);
    }
}

/// Counts a call for a file that has returned.
#[tracepoint]
pub(crate) fn file_exit(context: TracePointContext) -> u32 {
    let task = Task::running();
    let Some(call) = threads::find::<FileCall>(task.tid) else { return 0 };
    // SAFETY: takes no argument.
    let now = unsafe { bpf_ktime_get_ns() };
    let since = call.since_ns;
    // A call that is for no file, or began before the recording did.
    if since == 0 {
        return 0;
    }
    call.since_ns = 0;
    if Recorded::is_past(now) {
        return 0;
    }
    let elapsed = now - since;
    // SAFETY: the record of every call has what it returned.
    let returned = unsafe { *context.as_ptr().cast::<u8>().add(RETURNED).cast::<i64>() };
    let failed = (-MAX_ERROR..0).contains(&returned);
    let (operation, moves_bytes) = match call.kind {
        kind if kind == FileCallKind::Write as u32 => (FileOperation::Write, true),
        kind if kind == FileCallKind::Sync as u32 => (FileOperation::Sync, false),
        kind if kind == FileCallKind::Open as u32 => {
            // There is no file where none was opened.
            if failed {
                return 0;
            }
            use_file(&task, returned as u64, true, &mut call.file);
            (FileOperation::Open, false)
        }
        kind if kind == FileCallKind::Rename as u32 => return 0,
        _ => (FileOperation::Read, true),
    };
    let bytes = if failed || !moves_bytes { 0 } else { returned as u64 };
    let mut parts = [Part::NONE; 2];
    if call.file.inode != 0 {
        let stats = add_to_stats(&task, call, &call.file, operation, bytes, failed, elapsed);
        if let (Some(stats), FileOperation::Read) = (stats, operation) {
            count_pages(stats, &call.file, bytes);
        }
        parts[FIRST] = Part { columns: [1, bytes, 1, elapsed] };
    }
    if call.target.inode != 0 {
        add_to_stats(&task, call, &call.target, FileOperation::Write, bytes, failed, elapsed);
        parts[SECOND] = Part { columns: [1, bytes, 1, elapsed] };
    }
    let Some(counters) = counters() else { return 0 };
    keep(&task, counters, operation, &parts, |scratch| {
        // SAFETY: the map holds programs of this type. The call returns where there is none, which is so without Python.
        unsafe { FILE_PYTHON.tail_call(&context, python::slot(scratch)) };
    });
    0
}

/// Notes when a request of `io_uring` was submitted. Argument: the request.
#[raw_tracepoint(tracepoint = "io_uring_submit_req")]
pub(crate) fn file_submitted(context: RawTracePointContext) -> i32 {
    let task = Task::running();
    if element(&task).is_none() {
        return 0;
    }
    // SAFETY: the tracepoint has this argument.
    let request = unsafe { *context.as_ptr().cast::<u64>() };
    if operation_of(request).is_none() {
        return 0;
    }
    if let Some(place) = FILE_REQUESTS.get_ptr_mut(FileRequest::place(request)) {
        // SAFETY: the pointer is to a map element; takes no argument. Last, so that what this program takes is in no request.
        unsafe { *place = FileRequest { address: request, since_ns: bpf_ktime_get_ns() } };
    }
    0
}

/// What a request of `io_uring` does to its file, if that is recorded.
#[inline(always)]
fn operation_of(request: u64) -> Option<FileOperation> {
    FileOperation::of_request(kernel_number(request as *const u8, config!(file.request_operation)) & 0xff)
}

/// Counts a request of `io_uring` that is done, in the context of a thread of the process that has submitted it. Arguments:
/// the ring, the request.
#[raw_tracepoint(tracepoint = "io_uring_complete")]
pub(crate) fn file_completed(context: RawTracePointContext) -> i32 {
    let task = Task::running();
    let Some(call) = element(&task) else { return 0 };
    // SAFETY: the tracepoint has this argument.
    let request = unsafe { *context.as_ptr().cast::<u64>().add(1) };
    let Some(operation) = operation_of(request) else { return 0 };
    // SAFETY: takes no argument.
    let now = unsafe { bpf_ktime_get_ns() };
    let file = kernel_word(request as *const u8, config!(file.request_file));
    let is_sync = matches!(operation, FileOperation::Sync);
    let mut used = UsedFile::default();
    note_file(file, is_sync, &mut used);
    if used.inode == 0 || Recorded::is_past(now) {
        return 0;
    }
    let result = kernel_number(request as *const u8, config!(file.request_result)) as i32;
    let bytes = if is_sync || result < 0 { 0 } else { result as u64 };
    let since = since_of(request);
    let elapsed = if since == 0 { UNKNOWN } else { now - since };
    add_to_stats(&task, call, &used, operation, bytes, result < 0, elapsed);
    let Some(counters) = counters() else { return 0 };
    let parts = [Part { columns: [1, bytes, 1, elapsed] }, Part::NONE];
    keep(&task, counters, operation, &parts, |_| {});
    0
}

/// When a request was submitted; 0 when another one has taken its place since.
#[inline(always)]
fn since_of(request: u64) -> u64 {
    let Some(place) = FILE_REQUESTS.get_ptr_mut(FileRequest::place(request)) else { return 0 };
    // SAFETY: the pointer is to a map element.
    let place = unsafe { &mut *place };
    if place.address != request {
        return 0;
    }
    place.address = 0;
    place.since_ns
}

/// Adds an operation to what is counted exactly of its file, and returns that. `elapsed`: how long it took, or [`UNKNOWN`].
#[inline(always)]
fn add_to_stats(
    task: &Task,
    call: &FileCall,
    used: &UsedFile,
    operation: FileOperation,
    bytes: u64,
    failed: bool,
    elapsed: u64,
) -> Option<*mut FileStats> {
    let Some(stats) = stats_of(task, call, used) else {
        miss(files_missed::OPERATIONS);
        return None;
    };
    let operation = operation as usize - 1;
    // SAFETY: the pointers are to a map value that every CPU writes, hence atomic; there is room for so many operations.
    unsafe {
        let sum = (&raw mut (*stats).by_operation).cast::<profiler_common::file::OperationStats>();
        let sum = sum.add(operation & (OPERATIONS - 1));
        atomic::add(&raw mut (*sum).operations, 1);
        atomic::add(&raw mut (*sum).bytes, bytes);
        atomic::add(&raw mut (*sum).total_ns, elapsed);
        atomic::raise(&raw mut (*sum).max_ns, elapsed);
        if failed {
            atomic::add(&raw mut (*sum).errors, 1);
        }
        if used.is_deleted != 0 {
            (*stats).is_deleted = 1;
        }
    }
    if operation < TIMED_OPERATIONS {
        if elapsed == UNKNOWN { miss(files_missed::TIMES) } else { add_to_histogram(stats, operation, elapsed) }
    }
    Some(stats)
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

/// Counts pages that come to the page cache to be read. Argument: the folio.
#[raw_tracepoint(tracepoint = "mm_filemap_add_to_page_cache")]
pub(crate) fn file_page_added(context: RawTracePointContext) -> i32 {
    let task = Task::running();
    let Some(call) = element(&task) else { return 0 };
    // SAFETY: the tracepoint has this argument.
    let folio = unsafe { *context.as_ptr().cast::<u64>() } as *const u8;
    let mapping = kernel_word(folio, config!(file.folio_mapping));
    let pages = pages_of(folio);
    if is_read_from(call, mapping) {
        if let Some(stats) = stats_of(&task, call, &call.file) {
            // SAFETY: the pointer is to a map value that every CPU writes, hence atomic.
            unsafe { atomic::add(&raw mut (*stats).pages_added, pages) };
        }
    } else if is_in_fault(&task) {
        let mut used = UsedFile::default();
        note_inode(kernel_word(mapping as *const u8, config!(file.mapping_host)), false, &mut used);
        if used.inode != 0
            && let Some(stats) = stats_of(&task, call, &used)
        {
            // SAFETY: as above.
            unsafe { atomic::add(&raw mut (*stats).pages_faulted, pages) };
        }
    }
    0
}

/// Counts pages that become dirty because a process writes to memory that they are mapped to. Arguments: the folio, the
/// pages of its file.
#[raw_tracepoint(tracepoint = "writeback_dirty_folio")]
pub(crate) fn file_dirtied(context: RawTracePointContext) -> i32 {
    let task = Task::running();
    let Some(call) = element(&task) else { return 0 };
    // SAFETY: the tracepoint has these arguments.
    let (folio, mapping) = unsafe {
        let arguments = context.as_ptr().cast::<u64>();
        (*arguments as *const u8, *arguments.add(1))
    };
    // A read may write to mapped memory too, of another file.
    if !is_in_fault(&task) && (call.since_ns == 0 || !reads(call) || is_read_from(call, mapping)) {
        return 0;
    }
    let mut used = UsedFile::default();
    note_inode(kernel_word(mapping as *const u8, config!(file.mapping_host)), false, &mut used);
    // SAFETY: takes no argument.
    if used.inode == 0 || Recorded::is_past(unsafe { bpf_ktime_get_ns() }) {
        return 0;
    }
    let bytes = pages_of(folio) * PAGE_BYTES;
    add_to_stats(&task, call, &used, FileOperation::MappedWrite, bytes, false, UNKNOWN);
    let Some(counters) = counters() else { return 0 };
    let parts = [Part { columns: [1, bytes, 1, UNKNOWN] }, Part::NONE];
    keep(&task, counters, FileOperation::MappedWrite, &parts, |_| {});
    0
}

/// Whether a thread's call reads.
#[inline(always)]
fn reads(call: &FileCall) -> bool {
    call.kind == FileCallKind::Read as u32
        || call.kind == FileCallKind::Send as u32
        || call.kind == FileCallKind::Copy as u32
}

/// Whether a thread is in a call that reads the file whose pages these are.
#[inline(always)]
fn is_read_from(call: &FileCall, mapping: u64) -> bool {
    call.since_ns != 0
        && reads(call)
        && call.file.inode != 0
        && kernel_word(call.file.file as *const u8, config!(file.file_mapping)) == mapping
}

/// Whether the running thread has entered the kernel by an exception: a page fault, where pages of files are concerned.
#[inline(always)]
fn is_in_fault(task: &Task) -> bool {
    !task.is_kernel_thread() && stack::entry_registers(task).number == NO_CALL
}

/// Pages of a folio.
#[inline(always)]
fn pages_of(folio: *const u8) -> u64 {
    if config!(file.folio_pages) == 0
        || kernel_number(folio, config!(file.folio_flags)) & config!(file.folio_large_mask) == 0
    {
        return 1;
    }
    u64::from(kernel_number(folio, config!(file.folio_pages)))
}

/// What is counted of a file that a process uses; made when it does so for the first time.
#[inline(always)]
fn stats_of(task: &Task, call: &FileCall, used: &UsedFile) -> Option<*mut FileStats> {
    let key =
        FileKey { start_time_ns: call.start_time_ns, pid: call.pid, exec_count: task.exec_count(), file: used.id };
    if let Some(stats) = FILE_STATS.get_ptr_mut(&key) {
        return Some(stats);
    }
    let made = FILE_STATS.insert(&key, FILE_STATS_NEW.get(0)?, NO_EXIST).is_ok();
    let stats = FILE_STATS.get_ptr_mut(&key)?;
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
    if file_name::id_of(inode) == used.id {
        file_name::see(Namer::File, pid, inode, dentry, &used.id);
    }
}

/// Keeps the operations of a call with their stack, if the pace says so. `go_on`: leaves for the program that walks the Python
/// chain, where there is one.
#[inline(always)]
fn keep(
    task: &Task,
    counters: &mut Counters,
    operation: FileOperation,
    parts: &[Part; 2],
    go_on: impl FnOnce(&Scratch),
) {
    let operations = parts[FIRST].columns[0] + parts[SECOND].columns[0];
    counters.hits += operations;
    let weight = weight();
    if weight == 0 {
        counters.sampled_out += operations;
        return;
    }
    let Some(window) = window::enter() else { return lose(counters, operations, Outcome::MapBusy) };
    let Some(scratch) = aggregate::claim(Programs::File) else {
        window.leave();
        return lose(counters, operations, Outcome::ScratchBusy);
    };
    let Some(task) = task.in_namespace() else {
        scratch.claimed = 0;
        window.leave();
        return lose(counters, operations, Outcome::MapBusy);
    };
    let process = task.process();
    aggregate::begin(scratch, &window, &task, process, Origin::FileIo);
    scratch.key.reason = operation as u16;
    let mut index = 0;
    while index < parts.len() {
        let [kept, bytes, operations, elapsed] = parts[index].columns;
        scratch.parts[index].columns = [kept, bytes * weight, operations * weight, elapsed * weight];
        index += 1;
    }
    let user = if task.is_io_worker() { Some(Chain::EMPTY) } else { stack::begin(&task, process, scratch) };
    if user.is_none() {
        unwind::walk(Programs::File);
        go_on(scratch);
    }
    conclude::<false>(&window, &task, counters, scratch, user);
    window.leave();
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
fn lose(counters: &mut Counters, operations: u64, outcome: Outcome) {
    count(counters, Outcomes::lost(outcome));
    if operations > 1 {
        count(counters, Outcomes::lost(outcome));
    }
}

/// Goes on with the Python chain, once the native one is walked.
#[tracepoint]
pub(crate) fn file_python(_context: TracePointContext) -> u32 {
    let (Some(scratch), Some(counters)) = (SCRATCH.get_ptr_mut(Programs::File as u32), counters()) else { return 0 };
    // SAFETY: the element is this CPU's, and the program before this one has claimed it.
    let scratch = unsafe { &mut *scratch };
    python::walk(Programs::File);
    if let (Some(task), Some(window)) = (Task::current(), Window::resume(scratch.user.window)) {
        conclude::<true>(&window, &task, counters, scratch, None);
        window.leave();
    }
    0
}

/// Adds the operations whose user chain is in the scratch space, or is `user`, and gives the scratch space back. The kernel's
/// own chain has been left by then.
///
/// `PYTHON`: whether the chain has a Python part.
#[inline(always)]
fn conclude<const PYTHON: bool>(
    window: &Window,
    task: &Task,
    counters: &mut Counters,
    scratch: &mut Scratch,
    user: Option<Chain>,
) {
    let user = match user {
        Some(chain) => chain,
        None => stack::end::<PYTHON>(task, scratch),
    };
    let mut index = FIRST;
    while index <= SECOND {
        let columns = scratch.parts[index].columns;
        if columns[0] != 0 {
            if index == SECOND {
                scratch.key.reason = FileOperation::Write as u16;
            }
            let outcomes = aggregate::add(window, task, columns, scratch, user, Chain::EMPTY);
            count(counters, outcomes);
        }
        index += 1;
    }
    scratch.claimed = 0;
}
