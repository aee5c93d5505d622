//! What is noted of threads that were asked for: an element each, from when they are first seen until they end.
//!
//! The maps are arrays: a look-up in a hash map is a call, which costs as much as all the rest.

use aya_ebpf::maps::Array;
use profiler_common::alloc::Allocating;
use profiler_common::event::RING_THREAD;
use profiler_common::file::FileCall;
use profiler_common::system_call::Call;
use profiler_common::wait::{EndedThread, WAIT_PLACES, Wait};

use crate::aggregate;
use crate::atomic;
use crate::config::config;
use crate::maps::{ALLOCATING, CALLS, ENDS_LOST, FILE_CALLS, PACE, WAITS};
use crate::recorded::Recorded;
use crate::task::Task;

/// An element of a map of threads.
pub(crate) trait OfThread: Sized + 'static {
    /// The map: its elements are placed as those of `WAITS`.
    fn map() -> &'static Array<Self>;

    /// Where an element has the thread it belongs to.
    fn tid(element: *mut Self) -> *mut u32;

    /// Forgets what its next owner must not see.
    fn clear(&mut self);
}

/// Makes a structure with the field `tid` an element of a map; what follows are the fields that its next owner must not see.
macro_rules! of_thread {
    ($element:ty, $map:ident, $($forgotten:ident),*) => {
        impl OfThread for $element {
            #[inline(always)]
            fn map() -> &'static Array<Self> {
                &$map
            }

            #[inline(always)]
            fn tid(element: *mut Self) -> *mut u32 {
                // SAFETY: the pointer is to a map element.
                unsafe { &raw mut (*element).tid }
            }

            #[inline(always)]
            fn clear(&mut self) {
                $(self.$forgotten = 0;)*
            }
        }
    };
}

of_thread!(Wait, WAITS, since_ns);
of_thread!(Call, CALLS, since_ns);
of_thread!(FileCall, FILE_CALLS, since_ns);
of_thread!(Allocating, ALLOCATING, return_at, outer_at);

/// A thread's element.
#[inline(always)]
pub(crate) fn find<T: OfThread>(tid: u32) -> Option<&'static mut T> {
    place(tid).map(|(_, element)| element)
}

/// A thread's element, and which it is.
#[inline(always)]
pub(crate) fn place<T: OfThread>(tid: u32) -> Option<(u32, &'static mut T)> {
    let mut place = 0;
    while place < WAIT_PLACES {
        let index = Wait::place(tid, place);
        let element = T::map().get_ptr_mut(index)?;
        // SAFETY: the pointer is to a map element, which others may claim at any time, hence volatile.
        if unsafe { core::ptr::read_volatile(T::tid(element)) } == tid {
            // SAFETY: the element is this thread's, and only programs that run for it write it, but for the time since when
            // it waits.
            return Some((index, unsafe { &mut *element }));
        }
        place += 1;
    }
    None
}

/// An element for a thread that has none; `None` when others have all that it may have.
#[inline(always)]
pub(crate) fn add<T: OfThread>(tid: u32) -> Option<&'static mut T> {
    let mut place = 0;
    while place < WAIT_PLACES {
        let element = T::map().get_ptr_mut(Wait::place(tid, place))?;
        // SAFETY: the pointer is to a map element, which every CPU may claim, hence atomic.
        if unsafe { atomic::claim(T::tid(element), tid) } {
            // SAFETY: as in `find`.
            return Some(unsafe { &mut *element });
        }
        place += 1;
    }
    None
}

/// Gives a thread's element back.
#[inline(always)]
pub(crate) fn remove<T: OfThread>(element: &mut T) {
    element.clear();
    // SAFETY: a reference is valid and aligned. Volatile: whoever sees it may claim the element at once.
    unsafe { core::ptr::write_volatile(T::tid(element), 0) };
}

/// Gives the elements back that the running thread has under a number which is not its own any more.
#[inline(always)]
pub(crate) fn leave(task: &Task, old_tid: u32) {
    if let Some(wait) = find::<Wait>(old_tid) {
        if let (Some(recorded), Some(pace)) = (Recorded::read(), PACE.get_ptr(0)) {
            // SAFETY: the element is this CPU's. Since then its time is counted under the new number.
            let came_ns = recorded.clamp(unsafe { (*pace).switched_ns });
            send_end(&task.numbered(old_tid), Some(wait), came_ns, 0, came_ns);
        }
        remove(wait);
    }
    if let Some(call) = find::<Call>(old_tid) {
        remove(call);
    }
    if let Some(call) = find::<FileCall>(old_tid) {
        remove(call);
    }
    if let Some(allocating) = find::<Allocating>(old_tid) {
        remove(allocating);
    }
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
