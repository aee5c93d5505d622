//! The user chain, frame by frame: by table where the mapping has one, by frame pointer where it has none.
//!
//! Where no mapping is known, which is so for a while after code was mapped, the walk is left to user space: see
//! `remainder`.

use aya_ebpf::helpers::generated::bpf_probe_read_user;
use profiler_common::config::{MAPPING_SEARCH_STEPS, MappingEntry, ROW_INDEX_BITS, SHARD_WORDS};
use profiler_common::counters::Outcome;
use profiler_common::event::{FrameWord, MAX_USER_FRAMES, hash_word};
use profiler_common::unwind::{
    FS_BASE, LEAF_REGISTERS, MAX_STACK_SWITCHES, PAGE_SHIFT, Packed, Registers, Special, Step, find_row,
    interrupted_register, is_code_address, rule_of, step, step_frame_pointer,
};

use crate::maps::{MAPPINGS, Programs, RULES, SCRATCH, SHARDS, Scratch, Shard};
use crate::remainder;
use crate::task::thread_pointer;

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
    /// 1 when the rest is left to user space.
    pub(crate) left: u64,
    /// Times that the walk went to another stack.
    pub(crate) switches: u64,
    /// The process's run of mappings: index of the first.
    pub(crate) first_mapping: u32,
    /// And how many.
    pub(crate) mappings: u32,
    /// The mapping of the frame before.
    pub(crate) mapping: MappingEntry,
    /// Address of what is in `stack`; [`NO_STACK`] when nothing is.
    pub(crate) stack_start: u64,
    /// A piece of the user's stack. Reading 1 KiB costs little more than reading 8 bytes, and most frames are small.
    pub(crate) stack: [u64; STACK_WORDS],
}

/// Words of the stack that are read at once: a power of two, so that they never cross a page.
const STACK_WORDS: usize = 128;
const STACK_BYTES: u64 = 8 * STACK_WORDS as u64;

/// No piece of a stack begins here: all are aligned.
pub(crate) const NO_STACK: u64 = 1;

/// Walks from the registers in the scratch space of a program type to the outermost frame.
#[inline(always)]
pub(crate) fn walk(programs: Programs) {
    for _ in 0..MAX_USER_FRAMES {
        if walk_frame(programs as u32) == 0 {
            return;
        }
    }
}

/// Finds the next frame of the walk in the scratch space of a program type: 0 at the end of the walk.
///
/// Global, so that the verifier checks it once and by itself, not in every turn of the loop: with it inlined, no verifier
/// gets through 512 turns, and `bpf_loop` came with Linux 5.17 only.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn walk_frame(programs: u32) -> u32 {
    let Some(scratch) = SCRATCH.get_ptr_mut(programs) else { return 0 };
    // SAFETY: the element is this CPU's, and the program that calls has claimed it.
    let scratch = unsafe { &mut *scratch };
    let is_entered = programs == Programs::Alloc as u32 && scratch.walk.length <= 1;
    u32::from(has_room(scratch) && if is_entered { entered(scratch) } else { next(scratch) })
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
    let Some(rule) = find_rule(scratch, pc) else {
        if remainder::may_leave(scratch) {
            scratch.walk.left = 1;
            return end(scratch, Outcome::NoTable);
        }
        return by_frame_pointer(scratch, Outcome::NoTable);
    };
    let mut registers = scratch.walk.registers;
    let dictionary = |number: u32| RULES.get(number).copied();
    let walk = &raw mut scratch.walk;
    let leaf_registers = &raw mut scratch.remainder.leaf;
    let is_known = scratch.walk.exact & 1 != 0;
    let leaf = |number: u8| {
        // SAFETY: the pointer is to the scratch space, which this program alone uses.
        let register = || unsafe { (*leaf_registers)[number as usize & (LEAF_REGISTERS - 1)] };
        if number == FS_BASE { Some(thread_pointer()) } else { is_known.then(register) }
    };
    let sp = registers.sp;
    let stepped = step(&mut registers, rule, dictionary, leaf, |address, word| read_stack(walk, address, word));
    match stepped {
        Step::Switched if scratch.walk.switches >= MAX_STACK_SWITCHES => end(scratch, Outcome::BadUnwindRule),
        Step::Caller | Step::Switched | Step::Interrupted => {
            if let Step::Switched = stepped {
                scratch.walk.switches += 1;
            }
            scratch.walk.registers = registers;
            scratch.walk.exact = 0;
            if let Step::Interrupted = stepped {
                scratch.walk.exact = 1;
                let mut number = 0;
                while number < LEAF_REGISTERS {
                    let mut word = 0;
                    read_stack(walk, interrupted_register(number, sp), &mut word);
                    // SAFETY: as above.
                    unsafe { (*leaf_registers)[number] = word };
                    number += 1;
                }
            }
            push(scratch, registers.ip)
        }
        Step::NoRule => by_frame_pointer(scratch, Outcome::NoFramePointer),
        Step::Root => end(scratch, Outcome::Complete),
        Step::Stop(outcome) => end(scratch, outcome),
    }
}

/// Finds the caller of a function that has just been entered: its return address is where the stack pointer points, whether there
/// is a table or not. Probes on allocators are put where that holds.
#[inline(always)]
fn entered(scratch: &mut Scratch) -> bool {
    let walk = &raw mut scratch.walk;
    let (sp, mut ip) = (scratch.walk.registers.sp, 0);
    if !read_stack(walk, sp, &mut ip) {
        return end(scratch, Outcome::UnreadableStack);
    }
    (scratch.walk.registers.ip, scratch.walk.registers.sp, scratch.walk.exact) = (ip, sp.wrapping_add(8), 0);
    push(scratch, ip)
}

/// Follows a saved frame pointer; `broken`: what the outcome is where there is none.
#[inline(always)]
fn by_frame_pointer(scratch: &mut Scratch, broken: Outcome) -> bool {
    let mut registers = scratch.walk.registers;
    let walk = &raw mut scratch.walk;
    let is_leaf = scratch.walk.length <= 1;
    match step_frame_pointer(&mut registers, is_leaf, |address, word| read_stack(walk, address, word)) {
        Step::Root => end(scratch, Outcome::Complete),
        Step::Stop(Outcome::UnreadableStack) => end(scratch, Outcome::UnreadableStack),
        Step::Stop(_) => end(scratch, broken),
        _ => {
            scratch.walk.registers = registers;
            scratch.walk.exact = 0;
            push(scratch, registers.ip)
        }
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
    if !is_code_address(address) {
        return end(scratch, Outcome::BadUnwindRule);
    }
    let word = FrameWord::Native(address).to_word();
    scratch.user.words[length] = word;
    scratch.walk.length = length as u64 + 1;
    scratch.walk.hash = hash_word(scratch.walk.hash, word);
    true
}

/// Reads a word of the user's stack, from the piece that was read last where it is in there.
#[inline(always)]
fn read_stack(walk: *mut Walk, address: u64, word: &mut u64) -> bool {
    // SAFETY: the pointer is to the scratch space, which this program alone uses.
    let walk = unsafe { &mut *walk };
    if address & 7 != 0 {
        // SAFETY: the helper writes 8 bytes to `word`, zeros when it fails, and survives any source address.
        return unsafe { bpf_probe_read_user((&raw mut *word).cast(), 8, address as *const _) == 0 };
    }
    let start = address & !(STACK_BYTES - 1);
    if walk.stack_start != start && !read_piece(walk, start) {
        return false;
    }
    *word = walk.stack[(address >> 3) as usize & (STACK_WORDS - 1)];
    true
}

/// Reads a piece of the stack. Not inlined: it is called from everywhere, and the verifier follows every copy.
#[inline(never)]
fn read_piece(walk: &mut Walk, start: u64) -> bool {
    // SAFETY: the helper writes the whole of `stack`, zeros when it fails, and survives any source address.
    let result = unsafe { bpf_probe_read_user(walk.stack.as_mut_ptr().cast(), STACK_BYTES as u32, start as *const _) };
    walk.stack_start = if result == 0 { start } else { NO_STACK };
    result == 0
}

/// The rule for an address: [`Special::None`] in a mapping without a table, `None` where no mapping is known.
#[inline(always)]
fn find_rule(scratch: &mut Scratch, pc: u64) -> Option<Packed> {
    let none = Some(Packed::special(Special::None));
    let cached = (scratch.walk.mapping.start..scratch.walk.mapping.end).contains(&pc);
    if !cached && !find_mapping(scratch, pc) {
        return None;
    }
    let MappingEntry { bias, first_page, pages, shard, pages_at, .. } = scratch.walk.mapping;
    let address = pc - bias;
    let page = (address >> PAGE_SHIFT).wrapping_sub(u64::from(first_page));
    if page >= u64::from(pages) {
        return none;
    }
    let at = pages_at as usize + 2 * page as usize;
    let Some(page_shard): Option<&Shard> = SHARDS.get_value(shard, &0) else { return none };
    let first = page_shard[at & (SHARD_WORDS - 1)];
    let count = page_shard[(at + 1) & (SHARD_WORDS - 1)];
    let Some(row_shard): Option<&Shard> = SHARDS.get_value(first >> ROW_INDEX_BITS, &0) else { return none };
    let first = (first as usize) & (SHARD_WORDS - 1);
    let low = (address & 0xfff) as u32;
    // The mask shows the verifier that the index stays inside.
    let row = |index: u32| Some(row_shard[(first + index as usize) & (SHARD_WORDS - 1)]);
    match find_row(count, low, row) {
        Some(row) => Some(rule_of(row)),
        None => none,
    }
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
