//! The threads that are there when the recording ends: an iterator over all tasks, which user space reads once.
//!
//! A thread that is asleep has its registers and its kernel stack for anybody to see. What it takes from the walk in its
//! own context is its memory, which is not ours here: user space walks the user chain.

use aya_ebpf::bindings::seq_file;
use aya_ebpf::helpers::generated::{bpf_get_task_stack, bpf_ktime_get_ns, bpf_seq_write};
use core::ffi::c_void;
use profiler_common::config::{Filter, PROCESS_TARGET};
use profiler_common::event::MAX_KERNEL_FRAMES;
use profiler_common::wait::{Blocked, Left, Wait, WaitingRecord};

use crate::atomic;
use crate::config::config;
use crate::maps::{WAITING, Waiting};
use crate::offcpu::{self, Call};
use crate::recorded::Recorded;
use crate::stack;
use crate::task::Task;
use crate::threads;

/// What the iterator calls a program with. Source: `struct bpf_iter__task`, kernel/bpf/task_iter.c.
#[repr(C)]
struct Context {
    /// `struct bpf_iter_meta`, whose first member is the file.
    meta: *const *mut seq_file,
    /// The task; null at the end.
    task: *const u8,
}

/// Writes what is known of a thread and, if it waits, takes its wait: it is not counted again when the thread comes back.
// SAFETY: no other program has this name.
#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/task")]
extern "C" fn offcpu_waiting(context: *mut c_void) -> i32 {
    // SAFETY: the kernel calls with this.
    let (meta, pointer) = unsafe { ((*context.cast::<Context>()).meta, (*context.cast::<Context>()).task) };
    if pointer.is_null() {
        return 0;
    }
    let task = Task::other(pointer);
    if task.is_kernel_thread() || task.is_dead() || task.pid == config!(self_pid) {
        return 0;
    }
    let entry = threads::find::<Wait>(task.tid);
    let (since, left, waits) = match &entry {
        Some(entry) => {
            // SAFETY: the thread may come back at the same time.
            let since = unsafe { atomic::swap((&raw const entry.since_ns).cast_mut(), 0) };
            (since, entry.left, since != 0)
        }
        None => {
            let Some(recorded) = Recorded::read() else { return 0 };
            if !may_be_asked_for(&task) {
                return 0;
            }
            let waits = task.state() != 0 || !task.is_on_cpu();
            // One that is new and waits has not run yet, or found no room.
            if !Recorded::knows_all() || (waits && !recorded.is_untouched(&task)) {
                return 0;
            }
            (0, left_by_state(&task), waits)
        }
    };
    // SAFETY: the first member of what the pointer is to, which the verifier knows.
    let seq = unsafe { *meta };
    if write(seq, &task, entry.as_deref(), since, left, waits) {
        if entry.is_none() {
            // No matter when there is no room: the recording has ended, and what is counted is next to nothing.
            let _ = threads::add::<Wait>(task.tid);
        }
    } else if let Some(entry) = entry {
        // The file had no room: the kernel calls again for the same task.
        // SAFETY: the thread may have come and gone meanwhile.
        unsafe { atomic::restore(&raw mut entry.since_ns, since) };
    }
    0
}

/// How a task sleeps; a number of [`Left`].
#[inline(always)]
fn left_by_state(task: &Task) -> u32 {
    offcpu::left_by_state(u64::from(task.state())) as u32
}

/// Whether a thread may have been asked for: which cgroup it is in is for user space to see.
#[inline(always)]
fn may_be_asked_for(task: &Task) -> bool {
    let filter = config!(filter);
    if filter == Filter::Processes as u32 {
        return task.process().is_some_and(|process| process.flags & PROCESS_TARGET != 0);
    }
    filter != Filter::Comm as u32 || task.has_asked_comm()
}

/// Writes a record and the kernel chain; false when there is no room.
#[inline(always)]
fn write(seq: *mut seq_file, task: &Task, entry: Option<&Wait>, since_ns: u64, left: u32, waits: bool) -> bool {
    const SIZE: u32 = (MAX_KERNEL_FRAMES * size_of::<u64>()) as u32;
    let Some(waiting) = WAITING.get_ptr_mut(0) else { return false };
    // SAFETY: the element is this CPU's, and the only program of this type runs once, on one CPU.
    let Waiting { record, kernel } = unsafe { &mut *waiting };
    let bytes = if waits {
        // SAFETY: the helper writes at most `SIZE` bytes, and takes a task pointer that the verifier knows.
        unsafe { bpf_get_task_stack(task.pointer().cast_mut().cast(), kernel.as_mut_ptr().cast(), SIZE, 0) }
    } else {
        0
    };
    let bytes = if bytes < 0 { 0 } else { bytes as u32 };
    let bytes = if bytes > SIZE { SIZE } else { bytes };
    let Call { number: system_call, polls_nothing, waits_for_lock, first_argument } = offcpu::system_call(task);
    let blocked = Blocked { left: Left::Unknown, system_call, io_wait: task.is_in_io_wait(), polls_nothing };
    record.waits_for_lock = u32::from(waits_for_lock);
    record.argument = first_argument;
    record.since_ns = since_ns;
    // SAFETY: takes no argument.
    record.now_ns = unsafe { bpf_ktime_get_ns() };
    (record.from_ns, record.on_cpu_ns, record.off_cpu_ns) =
        entry.map_or((0, 0, 0), |entry| (entry.from_ns, entry.on_cpu_ns, entry.off_cpu_ns));
    record.thread_start_time_ns = task.thread_start_time_ns();
    record.waits = u32::from(waits);
    record.start_time_ns = task.start_time_ns();
    record.switches = task.switches();
    record.pid = task.pid;
    record.tid = task.tid;
    record.exec_count = task.exec_count();
    record.generation = task.process().map_or(0, |process| process.generation);
    record.blocked = u32::from(blocked.to_word() | Blocked::left_bits(left as u16));
    record.kernel_frames = bytes / 8;
    record.thread_comm = task.thread_comm();
    record.process_comm = task.process_comm();
    record.segment = stack::read_registers(task, &mut record.ip, &mut record.registers);
    if !task.has_memory() {
        record.segment = 0;
    }
    // SAFETY: the helper reads as many bytes as are stated.
    unsafe {
        bpf_seq_write(seq, (&raw const *record).cast(), size_of::<WaitingRecord>() as u32) == 0
            && bpf_seq_write(seq, kernel.as_ptr().cast(), bytes) == 0
    }
}
