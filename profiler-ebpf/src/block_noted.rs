//! What is noted of a request to a block device from when it is made until it is done, by the address of its first part.

use aya_ebpf::helpers::generated::{bpf_jiffies64, bpf_ktime_get_ns};
use profiler_common::block::{BlockMissed, BlockRequest, MAX_REQUESTS, REQUEST_PLACES, UNASKED, place};

use crate::atomic;
use crate::maps::{BLOCK_CLOCK, BLOCK_REQUESTS, BLOCKS_MISSED, NO_REQUEST};

/// A request that is noted.
pub(crate) struct Noted {
    /// Index of its element.
    pub(crate) at: u32,
    pub(crate) request: &'static mut BlockRequest,
}

impl Noted {
    #[inline(always)]
    fn new(at: u32, request: *mut BlockRequest) -> Self {
        // SAFETY: the pointer is to a map element, which is this request's: it is made before it is done.
        Self { at, request: unsafe { &mut *request } }
    }

    /// Notes when it is made.
    #[inline(always)]
    pub(crate) fn begin(&mut self, tid: u32, flags: u32) {
        let request = &mut *self.request;
        request.made_ticks = ticks();
        request.made_ns = 0;
        if let Some(clock) = BLOCK_CLOCK.get_ptr(0) {
            // SAFETY: the pointer is to a map element that others write, hence volatile; the helper takes no argument.
            unsafe {
                if core::ptr::read_volatile(clock) != 0 {
                    request.made_ns = bpf_ktime_get_ns();
                }
            }
        }
        request.issued_ns = 0;
        request.done_bytes = 0;
        request.tid = tid;
        request.flags = flags;
    }

    /// Gives the element back.
    #[inline(always)]
    pub(crate) fn remove(self) {
        // SAFETY: a reference is valid and aligned. Volatile: whoever sees it may claim the element at once.
        unsafe { core::ptr::write_volatile(&raw mut self.request.part, 0) };
    }
}

/// The element of a request.
#[inline(always)]
pub(crate) fn find(bio: u64) -> Option<Noted> {
    let first = place(bio, 0, MAX_REQUESTS);
    let mut index = 0;
    while index < REQUEST_PLACES {
        let request = BLOCK_REQUESTS.get_ptr_mut(first + index)?;
        // SAFETY: the pointer is to a map element, which others may claim at any time, hence volatile.
        if unsafe { core::ptr::read_volatile(&raw const (*request).part) } == bio {
            return Some(Noted::new(first + index, request));
        }
        index += 1;
    }
    None
}

/// An element for a request that is made.
#[inline(always)]
pub(crate) fn make(bio: u64) -> Option<Noted> {
    // The address was that of another request.
    if let Some(noted) = find(bio) {
        if noted.request.flags & UNASKED == 0 {
            missed(BlockMissed::Ends);
        }
        return Some(noted);
    }
    add(bio)
}

/// An element for a request that has none: a free one, or that of the request that was made first.
#[inline(always)]
pub(crate) fn add(bio: u64) -> Option<Noted> {
    let first = place(bio, 0, MAX_REQUESTS);
    let mut index = 0;
    while index < REQUEST_PLACES {
        let request = BLOCK_REQUESTS.get_ptr_mut(first + index)?;
        // SAFETY: the pointer is to a map element, which every CPU may claim, hence volatile and atomic.
        let claimed = unsafe {
            let part = &raw mut (*request).part;
            core::ptr::read_volatile(part) == 0 && atomic::replace(part, 0, bio)
        };
        if claimed {
            return Some(Noted::new(first + index, request));
        }
        index += 1;
    }
    missed(BlockMissed::Requests);
    let now = ticks();
    let (mut oldest, mut oldest_age) = (0, 0);
    let mut index = 0;
    while index < REQUEST_PLACES {
        let request = BLOCK_REQUESTS.get_ptr(first + index)?;
        // SAFETY: the pointer is to a map element, which others write, hence volatile.
        let age = now.wrapping_sub(unsafe { core::ptr::read_volatile(&raw const (*request).made_ticks) });
        if age > oldest_age {
            (oldest, oldest_age) = (index, age);
        }
        index += 1;
    }
    let request = BLOCK_REQUESTS.get_ptr_mut(first + oldest)?;
    // SAFETY: as above. Whoever had it is not found any more.
    unsafe { core::ptr::write_volatile(&raw mut (*request).part, bio) };
    Some(Noted::new(first + oldest, request))
}

/// Gives a request's element back, if it has one.
#[inline(always)]
pub(crate) fn remove(place: u64) {
    if place != NO_REQUEST
        && let Some(request) = BLOCK_REQUESTS.get_ptr_mut(place as u32)
    {
        Noted::new(place as u32, request).remove();
    }
}

/// Counts what could not be noted.
#[inline(always)]
pub(crate) fn missed(what: BlockMissed) {
    if let Some(missed) = BLOCKS_MISSED.get_ptr_mut(what as u32) {
        // SAFETY: the pointer is to a map element that every CPU writes, hence atomic.
        unsafe { atomic::add(missed, 1) };
    }
}

/// The kernel's clock, in its ticks.
#[inline(always)]
fn ticks() -> u32 {
    // SAFETY: takes no argument, and is no call: the verifier puts the variable there.
    unsafe { bpf_jiffies64() as u32 }
}
