//! The threads that were asked for: an element of `WAITS` each, from when they are first switched out until they end.

use profiler_common::event::RING_THREAD;
use profiler_common::wait::{EndedThread, WAIT_PLACES, Wait};

use crate::aggregate;
use crate::atomic;
use crate::config::config;
use crate::maps::{ENDS_LOST, WAITS};
use crate::task::Task;

/// A thread's element.
#[inline(always)]
pub(crate) fn find(tid: u32) -> Option<&'static mut Wait> {
    place(tid).map(|(_, wait)| wait)
}

/// A thread's element, and which it is.
#[inline(always)]
pub(crate) fn place(tid: u32) -> Option<(u32, &'static mut Wait)> {
    let mut place = 0;
    while place < WAIT_PLACES {
        let index = Wait::place(tid, place);
        let element = WAITS.get_ptr_mut(index)?;
        // SAFETY: the pointer is to a map element, which others may claim at any time, hence volatile.
        if unsafe { core::ptr::read_volatile(&raw const (*element).tid) } == tid {
            // SAFETY: the element is this thread's, and only its own switches write it, but for `since_ns`.
            return Some((index, unsafe { &mut *element }));
        }
        place += 1;
    }
    None
}

/// An element for a thread that has none; `None` when others have all that it may have.
#[inline(always)]
pub(crate) fn add(tid: u32) -> Option<&'static mut Wait> {
    let mut place = 0;
    while place < WAIT_PLACES {
        let element = WAITS.get_ptr_mut(Wait::place(tid, place))?;
        // SAFETY: the pointer is to a map element, which every CPU may claim, hence atomic.
        if unsafe { atomic::claim(&raw mut (*element).tid, tid) } {
            // SAFETY: as in `find`.
            return Some(unsafe { &mut *element });
        }
        place += 1;
    }
    None
}

/// Gives a thread's element back.
#[inline(always)]
pub(crate) fn remove(wait: &mut Wait) {
    wait.since_ns = 0;
    // SAFETY: a reference is valid and aligned. Volatile: whoever sees it may claim the element at once.
    unsafe { core::ptr::write_volatile(&raw mut wait.tid, 0) };
}

/// Tells user space of a thread that ends, which was asked for: it has an element, or it ends before its first switch.
///
/// `came_ns`: when it came to its CPU last; `ran_ns`: how long of the recorded time it has been there since.
#[inline(always)]
pub(crate) fn send_end(task: &Task, entry: Option<&Wait>, came_ns: u64, ran_ns: u64, ended_ns: u64) {
    // Inside a pid namespace it has no number any more.
    if config!(pid_namespace_inode) != 0 || (entry.is_none() && !task.is_asked_for()) {
        return;
    }
    let (from_ns, on_cpu_ns, off_cpu_ns) =
        entry.map_or((came_ns, 0, 0), |entry| (entry.from_ns, entry.on_cpu_ns, entry.off_cpu_ns));
    let record = EndedThread {
        kind: RING_THREAD,
        reserved: 0,
        tid: task.tid,
        pid: task.pid,
        exec_count: task.exec_count(),
        start_time_ns: task.start_time_ns(),
        ended_ns,
        from_ns,
        on_cpu_ns: on_cpu_ns + ran_ns,
        off_cpu_ns,
        thread_comm: task.thread_comm(),
        process_comm: task.process_comm(),
    };
    if !aggregate::send(&record, size_of::<EndedThread>())
        && let Some(lost) = ENDS_LOST.get_ptr_mut(0)
    {
        // SAFETY: the pointer is to a map element that every CPU writes, hence atomic.
        unsafe { atomic::add(lost, 1) };
    }
}
