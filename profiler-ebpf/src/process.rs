//! Processes as they are forked and as they execute programs, so that the children of a target are sampled from
//! their first instruction, and unwound by what their parents map. What they map anew is user space's business.
//!
//! Raw tracepoints: they need no BTF at load, and exist on every kernel the rest works on.

use aya_ebpf::macros::raw_tracepoint;
use aya_ebpf::programs::RawTracePointContext;
use profiler_common::config::{Filter, PROCESS_AWAITS_EXEC, PROCESS_TARGET};

use crate::atomic;
use crate::config::config;
use crate::maps::{CHILDREN_MISSED, PROCESSES};
use crate::task::{Task, kernel_word};
use crate::threads;

/// Lists the child of a listed process, with what it maps, which is what its parent does. Arguments: parent, child
/// (include/trace/events/sched.h).
///
/// Not inside a pid namespace, in which the child's number is not known here: there user space lists it.
#[raw_tracepoint(tracepoint = "sched_process_fork")]
pub(crate) fn process_fork(context: RawTracePointContext) -> i32 {
    let child: *const u8 = context.arg(1);
    let (parent_pid, child_pid) = (pid_of(context.arg(0)), pid_of(child));
    if parent_pid == child_pid || config!(pid_namespace_inode) != 0 {
        return 0;
    }
    // SAFETY: the entry is copied at once.
    let Some(mut process) = unsafe { PROCESSES.get(parent_pid) }.copied() else { return 0 };
    let followed = config!(follow_children) != 0 && process.flags & PROCESS_TARGET != 0;
    if config!(filter) == Filter::Processes as u32 && !followed {
        return 0;
    }
    process.first_exec_count = exec_count_of(child);
    if PROCESSES.insert(child_pid, process, 0).is_err()
        && let Some(missed) = CHILDREN_MISSED.get_ptr_mut(0)
    {
        // SAFETY: the pointer is to a map element that every CPU writes, hence atomic.
        unsafe { atomic::add(missed, 1) };
    }
    0
}

/// Forgets what a process had mapped, and begins to sample a command that the profiler started. Arguments: task, old
/// pid, program.
#[raw_tracepoint(tracepoint = "sched_process_exec")]
pub(crate) fn process_exec(context: RawTracePointContext) -> i32 {
    // The task that executes is the one that runs.
    let Some(task) = Task::current() else { return 0 };
    // Another thread than the first takes over that one's number.
    let old_tid = context.arg::<i32>(1) as u32;
    let running = Task::running();
    if old_tid != running.tid {
        threads::leave(&running, old_tid);
    }
    if let Some(process) = PROCESSES.get_ptr_mut(task.pid) {
        // SAFETY: the pointer is to a map value; no other CPU changes these while the process executes.
        let process = unsafe { &mut *process };
        process.mappings = 0;
        process.python_layout = 0;
        if process.flags & PROCESS_AWAITS_EXEC != 0 {
            process.flags &= !PROCESS_AWAITS_EXEC;
            process.first_exec_count = exec_count_of(context.arg(0)).wrapping_sub(1);
        }
    }
    0
}

/// The process a task belongs to; 0 where it cannot be read.
#[inline(always)]
fn pid_of(task: *const u8) -> u32 {
    kernel_word(task, config!(task.tgid)) as u32
}

/// Programs a task has executed. The kernel keeps 64 bits since Linux 5.7, of which the low half is enough.
#[inline(always)]
fn exec_count_of(task: *const u8) -> u32 {
    kernel_word(task, config!(task.exec_count)) as u32
}
