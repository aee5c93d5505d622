//! Files: what is read, written, synced and opened by which process. Here the system calls; requests of `io_uring` are in
//! [`file_requests`](crate::file_requests), pages in [`file_pages`](crate::file_pages), what is counted exactly in
//! [`file_count`](crate::file_count), and the way to a record in [`file_keep`](crate::file_keep).
//!
//! Two programs, on the tracepoints of those system calls that are for files: a call of another kind runs none of them. A
//! thread that was asked for has an element in which the entry of a call notes the time, and which file its descriptor is
//! then: when the call returns, another thread may have closed it.

use aya_ebpf::EbpfContext;
use aya_ebpf::helpers::generated::bpf_ktime_get_ns;
use aya_ebpf::macros::{raw_tracepoint, tracepoint};
use aya_ebpf::programs::{RawTracePointContext, TracePointContext};
use profiler_common::counters::Outcome;
use profiler_common::file::{FileCall, FileCallKind, FileOperation, UsedFile};
use profiler_common::system_call::MAX_ERROR;

use crate::aggregate::{Outcomes, count};
use crate::config::config;
use crate::file_count::{self, Which};
use crate::file_keep::{self, FIRST, SECOND};
use crate::file_name;
use crate::maps::{FILE_PYTHON, Namer, Part};
use crate::python;
use crate::recorded::Recorded;
use crate::stack;
use crate::task::{Task, kernel_number, kernel_word};
use crate::threads;

/// Where the number of a call, its first argument and what it returns are in the records of its tracepoints. Source: the
/// `format` of any of them.
const NUMBER: usize = 8;
const FIRST_ARGUMENT: usize = 16;
const RETURNED: usize = 16;

/// Number of `rename`. Source: arch/x86/entry/syscalls/syscall_64.tbl.
const RENAME: u64 = 82;

/// `AT_FDCWD`. Source: include/uapi/linux/fcntl.h.
const WORKING_DIRECTORY: i32 = -100;

/// Kinds of file, in `i_mode`. Source: include/uapi/linux/stat.h.
mod mode {
    pub(super) const KIND: u32 = 0o170_000;
    pub(super) const REGULAR: u32 = 0o100_000;
    pub(super) const BLOCK_DEVICE: u32 = 0o060_000;
    pub(super) const DIRECTORY: u32 = 0o040_000;
}

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
pub(crate) fn element(task: &Task) -> Option<&'static mut FileCall> {
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
        if let Some(counters) = file_keep::counters() {
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

/// Sends the path that the running task's call has given a file as its new name: the kernel has just read it.
#[inline(always)]
fn send_new_name(task: &Task, pid: u32) {
    let registers = stack::entry_registers(task);
    // rename has two paths, the others two descriptors of directories too.
    let (directory, path) = if registers.number == RENAME {
        (WORKING_DIRECTORY, registers.second_argument)
    } else {
        (registers.third_argument as i32, registers.fourth_argument)
    };
    file_name::see_renamed(Namer::File, pid, directory, path);
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
pub(crate) fn note_file(file: u64, directories: bool, used: &mut UsedFile) {
    used.file = file;
    note_inode(kernel_word(file as *const u8, config!(file.file_inode)), directories, used);
}

/// Notes the file of an inode, unless it is a socket or the like.
#[inline(always)]
pub(crate) fn note_inode(inode: u64, directories: bool, used: &mut UsedFile) {
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
        kind if kind == FileCallKind::Rename as u32 => (FileOperation::Rename, false),
        _ => (FileOperation::Read, true),
    };
    let bytes = if failed || !moves_bytes { 0 } else { returned as u64 };
    let mut parts = [Part::NONE; 2];
    let is_rename = matches!(operation, FileOperation::Rename);
    if is_rename {
        // Which file it is of is not known: a call has paths for arguments, and no tracepoint has what they lead to.
        call.file = UsedFile::default();
        if !failed {
            send_new_name(&task, call.pid);
        }
    }
    if is_rename || call.file.inode != 0 {
        file_count::add(Which::File, operation, bytes, elapsed, failed);
        parts[FIRST] = Part { columns: [1, bytes, 1, elapsed] };
    }
    if call.target.inode != 0 {
        file_count::add(Which::Target, FileOperation::Write, bytes, elapsed, failed);
        parts[SECOND] = Part { columns: [1, bytes, 1, elapsed] };
    }
    // What was opened may be no file.
    if parts[FIRST].columns[0] + parts[SECOND].columns[0] == 0 {
        return 0;
    }
    file_keep::keep(operation, &parts, |scratch| {
        // SAFETY: the map holds programs of this type. The call returns where there is none, which is so without Python.
        unsafe { FILE_PYTHON.tail_call(&context, python::slot(scratch)) };
    });
    0
}
