//! The user chain, frame by frame: by table where the mapping has one, by frame pointer where it has none.

use aya_ebpf::helpers::generated::{bpf_loop, bpf_probe_read_user};
use core::ffi::c_void;
use core::mem::MaybeUninit;
use profiler_common::config::{MAPPING_SEARCH_STEPS, MappingEntry, ROW_INDEX_BITS, SHARD_WORDS};
use profiler_common::counters::Outcome;
use profiler_common::event::{FrameWord, MAX_USER_FRAMES, hash_word};
use profiler_common::unwind::{PAGE_SHIFT, Packed, Registers, Step, find_row, rule_of, step};

use crate::config::config;
use crate::maps::{MAPPINGS, RULES, SHARDS, Scratch, Shard};

/// Where a walk has got to. In the scratch space, not on the stack: what the verifier reads there it takes for any
/// number, so that one turn of the loop is like another to it.
#[repr(C)]
pub(crate) struct Walk {
    /// Registers of the frame that was found last.
    pub(crate) registers: Registers,
    /// Frames found.
    pub(crate) length: u64,
    /// Hash of them.
    pub(crate) hash: u64,
    /// How it ended: an [`Outcome`].
    pub(crate) outcome: u64,
    /// 1 when the instruction pointer is where the frame is, 0 when it is a return address.
    pub(crate) exact: u64,
    /// The process's run of mappings: index of the first.
    pub(crate) first_mapping: u32,
    /// And how many.
    pub(crate) mappings: u32,
    /// The mapping of the frame before.
    pub(crate) mapping: MappingEntry,
}

/// A frame larger than this is taken for a broken chain: twice the usual limit of a whole stack.
const MAX_FRAME_BYTES: u64 = 16 << 20;

/// Addresses below have no code: the kernel lets nobody map the first page, and no ABI uses the first 64 KiB.
const MIN_CODE_ADDRESS: u64 = 1 << 16;

/// The first address that is not user space's, with five-level paging. Source: Documentation/arch/x86/x86_64/mm.rst.
const USER_END: u64 = 1 << 56;

/// Walks from the registers in the scratch space to the outermost frame.
#[inline(always)]
pub(crate) fn walk(scratch: &mut Scratch) {
    scratch.walk.outcome = Outcome::DepthLimit as u64;
    if config!(has_loop) == 0 {
        // The verifier goes round this loop frame by frame: by frame pointer alone it can.
        for _ in 0..MAX_USER_FRAMES {
            if !(has_room(scratch) && by_frame_pointer(scratch)) {
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
    // SAFETY: `walk` passes this.
    let scratch = unsafe { &mut **context };
    i64::from(!(has_room(scratch) && next(scratch)))
}

/// Whether one more frame may be found.
#[inline(always)]
fn has_room(scratch: &Scratch) -> bool {
    scratch.walk.length < MAX_USER_FRAMES as u64
}

/// Finds the caller's frame; false at the end of the walk, whose outcome is set then.
#[inline(always)]
fn next(scratch: &mut Scratch) -> bool {
    let pc = scratch.walk.registers.ip - (1 - (scratch.walk.exact & 1));
    let Some(rule) = find_rule(scratch, pc) else { return by_frame_pointer(scratch) };
    let mut registers = scratch.walk.registers;
    let dictionary = |number: u32| RULES.get(number).copied();
    let stepped = step(&mut registers, rule, dictionary, read_user);
    match stepped {
        Step::Caller | Step::Interrupted => {
            scratch.walk.registers = registers;
            scratch.walk.exact = if let Step::Interrupted = stepped { 1 } else { 0 };
            push(scratch, registers.ip)
        }
        Step::NoRule => by_frame_pointer(scratch),
        Step::Root => end(scratch, Outcome::Complete),
        Step::Stop(outcome) => end(scratch, outcome),
    }
}

#[inline(always)]
fn end(scratch: &mut Scratch, outcome: Outcome) -> bool {
    scratch.walk.outcome = outcome as u64;
    false
}

/// Adds a frame to the chain; false when it cannot be one.
#[inline(always)]
fn push(scratch: &mut Scratch, address: u64) -> bool {
    let length = scratch.walk.length as usize;
    if length >= MAX_USER_FRAMES {
        return false;
    }
    if !(MIN_CODE_ADDRESS..USER_END).contains(&address) {
        return end(scratch, Outcome::BadUnwindRule);
    }
    let word = FrameWord::Native(address).to_word();
    scratch.user.words[length] = word;
    scratch.walk.length = length as u64 + 1;
    scratch.walk.hash = hash_word(scratch.walk.hash, word);
    true
}

/// A word of the user's memory.
#[inline(always)]
fn read_user(address: u64) -> Option<u64> {
    let mut word = MaybeUninit::<u64>::uninit();
    // SAFETY: the helper writes 8 bytes to `word`, zeros when it fails, and survives any source address.
    let result = unsafe { bpf_probe_read_user(word.as_mut_ptr().cast(), 8, address as *const _) };
    // SAFETY: the helper has written it.
    (result == 0).then(|| unsafe { word.assume_init() })
}

/// The rule for an address; `None` where there is no table.
#[inline(always)]
fn find_rule(scratch: &mut Scratch, pc: u64) -> Option<Packed> {
    let cached = (scratch.walk.mapping.start..scratch.walk.mapping.end).contains(&pc);
    if !cached && !find_mapping(scratch, pc) {
        return None;
    }
    let MappingEntry { bias, first_page, pages, shard, pages_at, .. } = scratch.walk.mapping;
    let address = pc - bias;
    let page = (address >> PAGE_SHIFT).wrapping_sub(u64::from(first_page));
    if page >= u64::from(pages) {
        return None;
    }
    let at = pages_at as usize + 2 * page as usize;
    let page_shard: &Shard = SHARDS.get_value(shard, &0)?;
    let first = page_shard[at & (SHARD_WORDS - 1)];
    let count = page_shard[(at + 1) & (SHARD_WORDS - 1)];
    let row_shard: &Shard = SHARDS.get_value(first >> ROW_INDEX_BITS, &0)?;
    let first = (first as usize) & (SHARD_WORDS - 1);
    let low = (address & 0xfff) as u32;
    // The mask shows the verifier that the index stays inside.
    let row = |index: u32| Some(row_shard[(first + index as usize) & (SHARD_WORDS - 1)]);
    find_row(count, low, row).map(rule_of)
}

/// Finds the mapping an address is in, and keeps it for the next frame.
#[inline(always)]
fn find_mapping(scratch: &mut Scratch, pc: u64) -> bool {
    let first = scratch.walk.first_mapping;
    let (mut from, mut to) = (0_u32, scratch.walk.mappings);
    for _ in 0..MAPPING_SEARCH_STEPS {
        if from >= to {
            return false;
        }
        let middle = (from + to) >> 1;
        let Some(entry) = MAPPINGS.get(first + middle) else { return false };
        if pc < entry.start {
            to = middle;
        } else if pc >= entry.end {
            from = middle + 1;
        } else {
            scratch.walk.mapping = *entry;
            return true;
        }
    }
    false
}

/// Follows a saved frame pointer: it points at the caller's, with the return address above it.
///
/// The chain ends well where the frame pointer is zero, as the ABI asks of a process's or thread's first frame. Not so
/// in the leaf: a register that is zero there was no frame pointer.
/// Source: System V ABI, AMD64 supplement, sections 3.2.2 and 3.4.1.
#[inline(always)]
fn by_frame_pointer(scratch: &mut Scratch) -> bool {
    let Registers { sp, fp, bx, .. } = scratch.walk.registers;
    if fp == 0 {
        let outcome = if scratch.walk.length > 1 { Outcome::Complete } else { Outcome::NoFramePointer };
        return end(scratch, outcome);
    }
    if fp & 7 != 0 || fp < sp || fp - sp > MAX_FRAME_BYTES {
        return end(scratch, Outcome::NoFramePointer);
    }
    let mut saved = MaybeUninit::<[u64; 2]>::uninit();
    // SAFETY: the helper writes 16 bytes to `saved`, zeros when it fails, and survives any source address.
    let result = unsafe { bpf_probe_read_user(saved.as_mut_ptr().cast(), 16, fp as *const _) };
    if result != 0 {
        return end(scratch, Outcome::UnreadableStack);
    }
    // SAFETY: the helper has written it.
    let [next, return_address] = unsafe { saved.assume_init() };
    if !(MIN_CODE_ADDRESS..USER_END).contains(&return_address) {
        return end(scratch, Outcome::NoFramePointer);
    }
    scratch.walk.registers = Registers { ip: return_address, sp: fp + 16, fp: next, bx, r10: 0 };
    scratch.walk.exact = 0;
    push(scratch, return_address)
}
