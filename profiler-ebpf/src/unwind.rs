//! The user chain, frame by frame.
//!
//! Here by frame pointer alone; a table of unwind rows takes precedence where a mapping has one.

use aya_ebpf::helpers::generated::{bpf_loop, bpf_probe_read_user};
use core::ffi::c_void;
use core::mem::MaybeUninit;
use profiler_common::counters::Outcome;
use profiler_common::event::{FrameWord, MAX_USER_FRAMES, hash_word};

use crate::config::config;
use crate::maps::Scratch;

/// Where a walk has got to. In the scratch space, not on the stack: what the verifier reads there it takes for any
/// number, so that one turn of the loop is like another to it.
#[repr(C)]
pub(crate) struct Walk {
    /// Stack pointer: no caller's frame lies below it.
    pub(crate) sp: u64,
    /// Frame pointer.
    pub(crate) fp: u64,
    /// Frames found.
    pub(crate) length: u64,
    /// Hash of them.
    pub(crate) hash: u64,
    /// How it ended: an [`Outcome`].
    pub(crate) outcome: u64,
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
pub(crate) fn by_frame_pointer(scratch: &mut Scratch) {
    scratch.walk.outcome = Outcome::DepthLimit as u64;
    if config!(has_loop) == 0 {
        // The verifier goes round this loop frame by frame, which takes it a tenth of a second.
        for _ in 0..MAX_USER_FRAMES {
            if !step(scratch) {
                return;
            }
        }
    } else {
        let mut context: *mut Scratch = scratch;
        // SAFETY: the callback takes what is passed to it, and the helper returns before `context` goes.
        unsafe {
            bpf_loop(MAX_USER_FRAMES as u32, callback as *mut c_void, (&raw mut context).cast(), 0);
        }
    }
}

/// One turn of `bpf_loop`: 0 goes on, 1 stops.
extern "C" fn callback(_index: u32, context: *mut *mut Scratch) -> i64 {
    // SAFETY: `by_frame_pointer` passes this.
    let scratch = unsafe { &mut **context };
    i64::from(!step(scratch))
}

/// Finds the caller's frame; false at the end of the walk, whose outcome is set then.
#[inline(always)]
fn step(scratch: &mut Scratch) -> bool {
    let Scratch { walk, user, .. } = scratch;
    let length = walk.length as usize;
    if length >= MAX_USER_FRAMES {
        return false;
    }
    let fp = walk.fp;
    if fp == 0 {
        walk.outcome = if length > 1 { Outcome::Complete } else { Outcome::NoFramePointer } as u64;
        return false;
    }
    if fp & 7 != 0 || fp < walk.sp || fp - walk.sp > MAX_FRAME_BYTES {
        walk.outcome = Outcome::NoFramePointer as u64;
        return false;
    }
    let mut saved = MaybeUninit::<[u64; 2]>::uninit();
    // SAFETY: the helper writes 16 bytes to `saved`, zeros when it fails, and survives any source address.
    let result = unsafe { bpf_probe_read_user(saved.as_mut_ptr().cast(), 16, fp as *const _) };
    if result != 0 {
        walk.outcome = Outcome::UnreadableStack as u64;
        return false;
    }
    // SAFETY: the helper has written it.
    let [next, return_address] = unsafe { saved.assume_init() };
    if !(MIN_CODE_ADDRESS..USER_END).contains(&return_address) {
        walk.outcome = Outcome::NoFramePointer as u64;
        return false;
    }
    let word = FrameWord::Native(return_address).to_word();
    user.words[length] = word;
    walk.sp = fp + 16;
    walk.fp = next;
    walk.length = length as u64 + 1;
    walk.hash = hash_word(walk.hash, word);
    true
}
