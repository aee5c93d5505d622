//! Pages of files: those that come to the page cache because they are read, and those that become dirty because a process
//! writes to memory that they are mapped to.

use aya_ebpf::EbpfContext;
use aya_ebpf::helpers::generated::bpf_ktime_get_ns;
use aya_ebpf::macros::raw_tracepoint;
use aya_ebpf::programs::RawTracePointContext;
use profiler_common::file::{FileCall, FileCallKind, FileOperation, PAGE_BYTES};

use crate::config::config;
use crate::file::{element, note_inode};
use crate::file_count::{self, Pages, UNKNOWN, Which};
use crate::file_keep;
use crate::maps::Part;
use crate::recorded::Recorded;
use crate::stack;
use crate::task::{Task, kernel_number, kernel_word};

/// What the word that has the number of a call is in an exception. Source: arch/x86/entry/entry_64.S.
const NO_CALL: u64 = u64::MAX;

/// Counts pages that come to the page cache to be read. Argument: the folio.
#[raw_tracepoint(tracepoint = "mm_filemap_add_to_page_cache")]
pub(crate) fn file_page_added(context: RawTracePointContext) -> i32 {
    let task = Task::running();
    let Some(call) = element(&task) else { return 0 };
    // SAFETY: takes no argument.
    if Recorded::is_past(unsafe { bpf_ktime_get_ns() }) {
        return 0;
    }
    // SAFETY: the tracepoint has this argument.
    let folio = unsafe { *context.as_ptr().cast::<u64>() } as *const u8;
    let mapping = kernel_word(folio, config!(file.folio_mapping));
    let pages = pages_of(folio);
    if is_read_from(call, mapping) {
        file_count::add_pages(Which::File, Pages::Added, pages);
    } else if is_in_fault(&task) {
        call.other.inode = 0;
        note_inode(kernel_word(mapping as *const u8, config!(file.mapping_host)), false, &mut call.other);
        if call.other.inode != 0 {
            file_count::add_pages(Which::Other, Pages::Faulted, pages);
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
    call.other.inode = 0;
    note_inode(kernel_word(mapping as *const u8, config!(file.mapping_host)), false, &mut call.other);
    // SAFETY: takes no argument.
    if call.other.inode == 0 || Recorded::is_past(unsafe { bpf_ktime_get_ns() }) {
        return 0;
    }
    let bytes = pages_of(folio) * PAGE_BYTES;
    file_count::add(Which::Other, FileOperation::MappedWrite, bytes, UNKNOWN, false);
    let parts = [Part { columns: [1, bytes, 1, UNKNOWN] }, Part::NONE];
    file_keep::keep(FileOperation::MappedWrite, &parts, |_| {});
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
