//! Processes as they are forked and as they execute programs, so that the children of a target are sampled from
//! their first instruction. What they map is user space's business.
//!
//! Raw tracepoints: they need no BTF at load, and exist on every kernel the rest works on.

use aya_ebpf::helpers::generated::bpf_probe_read_kernel;
use aya_ebpf::macros::raw_tracepoint;
use aya_ebpf::programs::RawTracePointContext;
use profiler_common::config::{PROCESS_AWAITS_EXEC, PROCESS_TARGET};

use crate::atomic;
use crate::config::config;
use crate::maps::{CHILDREN_MISSED, PROCESSES};

/// Lists the child of a listed process. Arguments: parent, child (include/trace/events/sched.h).
#[raw_tracepoint(tracepoint = "sched_process_fork")]
pub(crate) fn process_fork(context: RawTracePointContext) -> i32 {
    let (parent, child) = (pid_of(context.arg(0)), pid_of(context.arg(1)));
    if parent == child || config!(follow_children) == 0 {
        return 0;
    }
    // SAFETY: the entry is copied at once.
    let Some(process) = unsafe { PROCESSES.get(parent) }.copied() else { return 0 };
    if process.flags & PROCESS_TARGET == 0 {
        return 0;
    }
    if PROCESSES.insert(child, process, 0).is_err()
        && let Some(missed) = CHILDREN_MISSED.get_ptr_mut(0)
    {
        // SAFETY: the pointer is to a map element that every CPU writes, hence atomic.
        unsafe { atomic::add(missed, 1) };
    }
    0
}

/// Begins to sample a command that the profiler started. Arguments: task, old pid, program.
#[raw_tracepoint(tracepoint = "sched_process_exec")]
pub(crate) fn process_exec(context: RawTracePointContext) -> i32 {
    if let Some(process) = PROCESSES.get_ptr_mut(pid_of(context.arg(0))) {
        // SAFETY: the pointer is to a map value; no other CPU changes this process's flags while it executes.
        unsafe { (*process).flags &= !PROCESS_AWAITS_EXEC };
    }
    0
}

/// The process a task belongs to; 0 where it cannot be read.
#[inline(always)]
fn pid_of(task: *const u8) -> u32 {
    let mut pid = 0_u32;
    // SAFETY: the helper writes 4 bytes to `pid` and survives any source address.
    unsafe {
        let source = task.add(config!(task.tgid) as usize);
        bpf_probe_read_kernel((&raw mut pid).cast(), 4, source.cast());
    }
    pid
}
