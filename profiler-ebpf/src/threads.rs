//! The threads that were asked for: an element of `WAITS` each, from when they are first switched out until they end.

use profiler_common::wait::{WAIT_PLACES, Wait};

use crate::atomic;
use crate::maps::WAITS;

/// A thread's element.
#[inline(always)]
pub(crate) fn find(tid: u32) -> Option<&'static mut Wait> {
    let mut place = 0;
    while place < WAIT_PLACES {
        let element = WAITS.get_ptr_mut(Wait::place(tid, place))?;
        // SAFETY: the pointer is to a map element, which others may claim at any time, hence volatile.
        if unsafe { core::ptr::read_volatile(&raw const (*element).tid) } == tid {
            // SAFETY: the element is this thread's, and only its own switches write it, but for `since_ns`.
            return Some(unsafe { &mut *element });
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
