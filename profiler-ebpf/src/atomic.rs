//! Atomic operations on map values. The BPF target has no `AtomicU64::fetch_add`, but the instruction is there.

use core::intrinsics::{AtomicOrdering, atomic_cxchg, atomic_xadd, atomic_xchg};

/// Adds to `*counter` with a full barrier and returns what was there.
///
/// # Safety
///
/// `counter` is a valid, aligned pointer into a map value.
#[inline(always)]
pub(crate) unsafe fn add(counter: *mut u64, value: u64) -> u64 {
    // SAFETY: the caller's promise. Sequentially consistent: LLVM miscompiles a relaxed one whose result is used.
    unsafe { atomic_xadd::<u64, u64, { AtomicOrdering::SeqCst }>(counter, value) }
}

/// Stores `value` with a full barrier and returns what was there.
///
/// # Safety
///
/// As for [`add`].
#[inline(always)]
pub(crate) unsafe fn swap(cell: *mut u64, value: u64) -> u64 {
    // SAFETY: the caller's promise.
    unsafe { atomic_xchg::<u64, { AtomicOrdering::SeqCst }>(cell, value) }
}

/// Raises `*cell` to `value`, unless others raise it time and again at the same time.
///
/// # Safety
///
/// As for [`add`].
#[inline(always)]
pub(crate) unsafe fn raise(cell: *mut u64, value: u64) {
    for _ in 0..4 {
        // SAFETY: the caller's promise.
        let before = unsafe { core::ptr::read_volatile(cell) };
        if before >= value {
            return;
        }
        // SAFETY: as above.
        let raised =
            unsafe { atomic_cxchg::<u64, { AtomicOrdering::SeqCst }, { AtomicOrdering::SeqCst }>(cell, before, value) };
        if raised.1 {
            return;
        }
    }
}

/// Takes up to `value` of `*cell`; returns how much. 0 where there is nothing, or others take time and again at the same time.
///
/// # Safety
///
/// As for [`add`].
#[inline(always)]
pub(crate) unsafe fn take(cell: *mut u64, value: u64) -> u64 {
    for _ in 0..4 {
        // SAFETY: the caller's promise.
        let before = unsafe { core::ptr::read_volatile(cell) };
        let part = if before < value { before } else { value };
        if part == 0 {
            return 0;
        }
        // SAFETY: as above.
        if unsafe { replace(cell, before, before - part) } {
            return part;
        }
    }
    0
}

/// Stores `value` where there is 0, with a full barrier; false where there is not.
///
/// # Safety
///
/// As for [`add`].
#[inline(always)]
pub(crate) unsafe fn claim(cell: *mut u32, value: u32) -> bool {
    // SAFETY: the caller's promise.
    unsafe { atomic_cxchg::<u32, { AtomicOrdering::SeqCst }, { AtomicOrdering::SeqCst }>(cell, 0, value).1 }
}

/// Stores `value` where there is 0.
///
/// # Safety
///
/// As for [`add`].
#[inline(always)]
pub(crate) unsafe fn restore(cell: *mut u64, value: u64) {
    // SAFETY: the caller's promise.
    unsafe { atomic_cxchg::<u64, { AtomicOrdering::SeqCst }, { AtomicOrdering::SeqCst }>(cell, 0, value) };
}

/// Stores `value` where there is `expected`, with a full barrier; false where there is not.
///
/// # Safety
///
/// As for [`add`].
#[inline(always)]
pub(crate) unsafe fn replace(cell: *mut u64, expected: u64, value: u64) -> bool {
    // SAFETY: the caller's promise.
    unsafe { atomic_cxchg::<u64, { AtomicOrdering::SeqCst }, { AtomicOrdering::SeqCst }>(cell, expected, value).1 }
}

/// Adds to a number of 32 bits, as [`add`].
///
/// # Safety
///
/// As for [`add`].
#[inline(always)]
pub(crate) unsafe fn add_number(counter: *mut u32, value: u32) -> u32 {
    // SAFETY: the caller's promise.
    unsafe { atomic_xadd::<u32, u32, { AtomicOrdering::SeqCst }>(counter, value) }
}
