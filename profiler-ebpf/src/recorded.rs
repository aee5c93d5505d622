//! The time that is recorded: programs are attached before it begins, and stay so for a while after it has ended.

use crate::maps::{CONTROL, THREADS_REFUSED};
use crate::task::Task;

/// The time that is recorded, in ns of the monotonic clock.
#[derive(Clone, Copy)]
pub(crate) struct Recorded {
    began: u64,
    began_since_boot: u64,
    ended: u64,
}

impl Recorded {
    /// Reads it; `None` before it begins.
    #[inline(always)]
    pub(crate) fn read() -> Option<Self> {
        let control = CONTROL.get_ptr(0)?;
        // SAFETY: the pointer is to a map element, which user space may write at any time, hence volatile.
        let recorded = unsafe {
            Self {
                began: core::ptr::read_volatile(&raw const (*control).began_ns),
                began_since_boot: core::ptr::read_volatile(&raw const (*control).began_since_boot_ns),
                ended: core::ptr::read_volatile(&raw const (*control).ended_ns),
            }
        };
        (recorded.began != 0).then_some(recorded)
    }

    /// Whether a moment is past its end, or there is none yet.
    #[inline(always)]
    pub(crate) fn is_past(moment: u64) -> bool {
        let Some(control) = CONTROL.get_ptr(0) else { return true };
        // SAFETY: as in `read`.
        let ended = unsafe { core::ptr::read_volatile(&raw const (*control).ended_ns) };
        ended <= moment
    }

    /// How much of the time from one moment to another is in it, ns.
    #[inline(always)]
    pub(crate) fn length(&self, from: u64, to: u64) -> u64 {
        let from = if from > self.began { from } else { self.began };
        let to = self.clamp(to);
        to.saturating_sub(from)
    }

    /// A moment, or its end where that was before.
    #[inline(always)]
    pub(crate) fn clamp(&self, moment: u64) -> u64 {
        if moment < self.ended { moment } else { self.ended }
    }

    /// Whether every thread that was switched out since it began has an element.
    #[inline(always)]
    pub(crate) fn knows_all() -> bool {
        let Some(refused) = THREADS_REFUSED.get_ptr(0) else { return false };
        // SAFETY: the pointer is to a map element that every CPU writes, hence volatile.
        unsafe { core::ptr::read_volatile(refused) == 0 }
    }

    /// Whether a thread without an element has stood as it does since before it began.
    #[inline(always)]
    pub(crate) fn is_untouched(&self, task: &Task) -> bool {
        Self::knows_all() && task.thread_start_time_ns() < self.began_since_boot
    }
}
