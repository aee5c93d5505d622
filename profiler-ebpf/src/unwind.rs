//! The user chain, frame by frame.
//!
//! Here by frame pointer alone; a table of unwind rows takes precedence where a mapping has one.

use aya_ebpf::helpers::generated::bpf_probe_read_user;
use profiler_common::counters::Outcome;
use profiler_common::event::{FrameWord, MAX_USER_FRAMES, StackRecord, hash_word};

/// Where a walk has got to.
#[derive(Clone, Copy)]
pub(crate) struct Walk {
    /// Stack pointer: no caller's frame lies below it.
    pub(crate) sp: u64,
    /// Frame pointer.
    pub(crate) fp: u64,
    /// Frames found.
    pub(crate) length: usize,
    /// Hash of them.
    pub(crate) hash: u64,
}

/// A frame larger than this is taken for a broken chain: twice the usual limit of a whole stack.
const MAX_FRAME_BYTES: u64 = 16 << 20;

/// Addresses below have no code: the kernel lets nobody map the first page, and no ABI uses the first 64 KiB.
const MIN_CODE_ADDRESS: u64 = 1 << 16;

/// The first address that is not user space's, with five-level paging. Source: Documentation/arch/x86/x86_64/mm.rst.
const USER_END: u64 = 1 << 56;

/// Follows saved frame pointers: each points at the caller's, with the return address above it.
///
/// The chain ends well where the frame pointer is zero, as the ABI asks of a process's or thread's first frame. Not so
/// in the leaf: a register that is zero there was no frame pointer.
/// Source: System V ABI, AMD64 supplement, sections 3.2.2 and 3.4.1.
#[inline(always)]
pub(crate) fn by_frame_pointer(mut walk: Walk, record: &mut StackRecord) -> (Walk, Outcome) {
    while walk.length < MAX_USER_FRAMES {
        if walk.fp == 0 {
            return (walk, if walk.length > 1 { Outcome::Complete } else { Outcome::NoFramePointer });
        }
        if walk.fp & 7 != 0 || walk.fp < walk.sp || walk.fp - walk.sp > MAX_FRAME_BYTES {
            return (walk, Outcome::NoFramePointer);
        }
        let mut saved = [0_u64; 2];
        // SAFETY: the helper writes 16 bytes to `saved` and survives any source address.
        let result = unsafe { bpf_probe_read_user(saved.as_mut_ptr().cast(), 16, walk.fp as *const _) };
        if result != 0 {
            return (walk, Outcome::UnreadableStack);
        }
        let [next, return_address] = saved;
        if !(MIN_CODE_ADDRESS..USER_END).contains(&return_address) {
            return (walk, Outcome::NoFramePointer);
        }
        let word = FrameWord::Native(return_address).to_word();
        record.words[walk.length] = word;
        walk = Walk { sp: walk.fp + 16, fp: next, length: walk.length + 1, hash: hash_word(walk.hash, word) };
    }
    (walk, Outcome::DepthLimit)
}
