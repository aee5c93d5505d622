//! Walks that came to code of which no mapping is known, because it was mapped just now: registers and a piece of the
//! stack go to user space, which finishes them with the same step once it knows the mapping.

use aya_ebpf::helpers::generated::{bpf_ktime_get_ns, bpf_probe_read_user};
use profiler_common::event::{MAX_REMAINDER_BYTES, RED_ZONE_BYTES, RING_REMAINDER, RemainderRecord, hash_word};

use crate::aggregate;
use crate::atomic;
use crate::config::config;
use crate::maps::{FILL, Scratch};

/// Size of a page on x86-64.
const PAGE: u64 = 4096;

/// Whether one more walk of this window may be left to user space.
///
/// Code that user space never gets to know, such as that of a process it may not look into, must not keep it busy.
#[inline(always)]
pub(crate) fn may_leave(scratch: &Scratch) -> bool {
    let Some(fill) = FILL.get_ptr(u32::from(scratch.user.window)) else { return false };
    // SAFETY: the pointer is to a map element that every CPU writes, hence volatile.
    let left = unsafe { core::ptr::read_volatile(&raw const (*fill).remainder_bytes) };
    left < u64::from(config!(remainder_bytes))
}

/// Sends what is left of a walk; returns the hash that its chain has to have, which no other chain has.
#[inline(always)]
pub(crate) fn send(scratch: &mut Scratch, tid: u32) -> u64 {
    // SAFETY: takes no argument.
    let now = unsafe { bpf_ktime_get_ns() };
    let hash = hash_word(hash_word(scratch.walk.hash, now), u64::from(tid));
    let hash = profiler_common::event::finish_hash(hash);
    let record = &mut scratch.remainder;
    record.stack_start = scratch.walk.registers.sp - RED_ZONE_BYTES;
    let mut bytes = copy_stack(record);
    if bytes == 0 {
        // A frame that is just being made reaches into a page that is not there yet.
        record.stack_start = (record.stack_start | (PAGE - 1)) + 1;
        bytes = copy_stack(record);
    }
    record.kind = RING_REMAINDER;
    record.window = scratch.user.window;
    record.bytes = bytes as u32;
    record.hash = hash;
    record.registers = scratch.walk.registers;
    record.exact = scratch.walk.exact;
    if let Some(fill) = FILL.get_ptr_mut(u32::from(record.window)) {
        // SAFETY: the pointer is to a map element that every CPU writes, hence atomic.
        unsafe { atomic::add(&raw mut (*fill).remainder_bytes, bytes as u64) };
    }
    // When the ring has no room, the chain keeps its marker.
    aggregate::send(record, core::mem::offset_of!(RemainderRecord, stack) + bytes);
    hash
}

/// Copies the stack from its start on, as far as it can be read and there is room; returns how much.
///
/// By pages: the first up to the end of its page, which the verifier sees to be 1 to 4,096 bytes.
#[inline(always)]
fn copy_stack(record: &mut RemainderRecord) -> usize {
    let start = record.stack_start;
    let first = (((start & (PAGE - 1)) ^ (PAGE - 1)) + 1) as usize;
    if !copy(record.stack.as_mut_ptr(), first, start) {
        return 0;
    }
    let mut pages = 0;
    while pages < MAX_REMAINDER_BYTES / PAGE as usize - 1 {
        let copied = first + pages * PAGE as usize;
        // Inside the record: the first piece is at most a page as well.
        let target = record.stack.as_mut_ptr().wrapping_add(copied);
        if !copy(target, PAGE as usize, start.wrapping_add(copied as u64)) {
            break;
        }
        pages += 1;
    }
    first + pages * PAGE as usize
}

#[inline(always)]
fn copy(target: *mut u8, size: usize, source: u64) -> bool {
    // SAFETY: the caller has room for `size` bytes, and the helper survives any source address.
    unsafe { bpf_probe_read_user(target.cast(), size as u32, source as *const _) == 0 }
}
