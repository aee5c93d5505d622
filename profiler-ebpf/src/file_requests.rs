//! Requests of `io_uring` to files: how many, how much and how long from submission to completion. Their stack is that of the
//! thread that completes them, which is in the call that waits for them or submits them; where a thread of the kernel's own
//! making does it for the process, there is none.

use aya_ebpf::EbpfContext;
use aya_ebpf::helpers::generated::bpf_ktime_get_ns;
use aya_ebpf::macros::raw_tracepoint;
use aya_ebpf::programs::RawTracePointContext;
use profiler_common::file::{FileOperation, FileRequest};

use crate::config::config;
use crate::file::{element, note_file};
use crate::file_count::{self, UNKNOWN, Which};
use crate::file_keep;
use crate::maps::{FILE_REQUESTS, Part};
use crate::recorded::Recorded;
use crate::task::{Task, kernel_number, kernel_word};

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
    call.other.inode = 0;
    note_file(file, is_sync, &mut call.other);
    if call.other.inode == 0 || Recorded::is_past(now) {
        return 0;
    }
    let result = kernel_number(request as *const u8, config!(file.request_result)) as i32;
    let bytes = if is_sync || result < 0 { 0 } else { result as u64 };
    let since = since_of(request);
    let elapsed = if since == 0 { UNKNOWN } else { now.saturating_sub(since) };
    file_count::add(Which::Other, operation, bytes, elapsed, result < 0);
    let parts = [Part { columns: [1, bytes, 1, elapsed] }, Part::NONE];
    file_keep::keep(operation, &parts, |_| {});
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
