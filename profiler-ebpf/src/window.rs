//! Which generation of the maps a program writes, and the proof that it has left it.
//!
//! A program announces itself before it reads which generation is current and reads again after: user space, which
//! flips first and then looks for announcements, either sees it or is seen by it. The two need a full barrier between
//! the store and the load: the atomic add is one.

use profiler_common::config::InFlight;

use crate::atomic;
use crate::maps::{CONTROL, IN_FLIGHT};

/// A generation of the maps, entered and not yet left.
pub(crate) struct Window {
    /// 0 or 1.
    pub(crate) index: usize,
    in_flight: *mut InFlight,
}

/// Enters the current generation. `None` only when user space flipped twice within these few instructions.
#[inline(always)]
pub(crate) fn enter() -> Option<Window> {
    let in_flight = IN_FLIGHT.get_ptr_mut(0)?;
    let control = CONTROL.get_ptr(0)?;
    // A second turn is needed only when user space flips between the two reads; it does so about once a second.
    for _ in 0..2 {
        // SAFETY: the pointer is to a map element; user space may write it at any time, hence volatile.
        let seen = unsafe { core::ptr::read_volatile(&raw const (*control).window) };
        let index = (seen & 1) as usize;
        count(in_flight, true, index);
        // SAFETY: as above.
        if unsafe { core::ptr::read_volatile(&raw const (*control).window) } & 1 == seen & 1 {
            return Some(Window { index, in_flight });
        }
        count(in_flight, false, index);
    }
    None
}

impl Window {
    /// The generation that the program entered which this one goes on for.
    #[inline(always)]
    pub(crate) fn resume(index: u16) -> Option<Self> {
        Some(Self { index: (index & 1) as usize, in_flight: IN_FLIGHT.get_ptr_mut(0)? })
    }

    /// Leaves the generation: nothing of it may be written any more.
    #[inline(always)]
    pub(crate) fn leave(self) {
        count(self.in_flight, false, self.index);
    }
}

/// Counts an entry or an exit. Atomic, since a program of another type may interrupt this one on its CPU.
#[inline(always)]
fn count(in_flight: *mut InFlight, entry: bool, index: usize) {
    // SAFETY: the pointer is to this CPU's map element, and `index` is 0 or 1.
    unsafe {
        let counters = if entry { &raw mut (*in_flight).entered } else { &raw mut (*in_flight).left };
        atomic::add(counters.cast::<u64>().add(index & 1), 1);
    }
}
