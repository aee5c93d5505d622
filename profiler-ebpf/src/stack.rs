//! Both chains of the running task, into the scratch space, with the hash each is known by.

use aya_ebpf::helpers::generated::{bpf_get_stack, bpf_task_pt_regs};
use profiler_common::config::Process;
use profiler_common::counters::Outcome;
use profiler_common::event::{
    FrameWord, HASH_SEED, MAX_KERNEL_FRAMES, MAX_STACK_WORDS, MAX_USER_FRAMES, StackRecord, finish_hash, hash_word,
};
use profiler_common::unwind::{LEAF_REGISTERS, Registers};

use crate::maps::Scratch;
use crate::python;
use crate::remainder;
use crate::task::Task;
use crate::unwind::NO_STACK;

/// Registers of a task at its entry into the kernel. Source: `struct pt_regs`, arch/x86/include/asm/ptrace.h.
mod offset {
    pub(super) const RIP: usize = 128;
    pub(super) const CS: usize = 136;
    pub(super) const RSP: usize = 152;
    /// Those of rax, rdx, rcx, rbx, rsi, rdi, rbp, rsp and r8 to r15, which is their order in DWARF.
    pub(super) const BY_NUMBER: [usize; super::LEAF_REGISTERS] =
        [80, 96, 88, 40, 104, 112, RBP, RSP, 72, 64, 56, 48, 24, 16, 8, 0];
    pub(super) const RBP: usize = 32;
    pub(super) const RBX: usize = 40;
    pub(super) const R10: usize = 56;
    pub(super) const RDX: usize = 96;
    pub(super) const RSI: usize = 104;
    pub(super) const RDI: usize = 112;
    pub(super) const ORIG_RAX: usize = 120;
}

/// Privilege level of user mode, in the code segment.
const USER_MODE: u64 = 3;
/// `__USER32_CS`. Source: arch/x86/include/asm/segment.h.
const COMPAT_CODE_SEGMENT: u64 = 0x23;

/// What a task entered the kernel with.
pub(crate) struct EntryRegisters {
    /// The word that holds the number of a system call.
    pub(crate) number: u64,
    pub(crate) first_argument: u64,
    pub(crate) second_argument: u64,
    pub(crate) third_argument: u64,
    pub(crate) fourth_argument: u64,
}

/// What the running task entered the kernel with.
#[inline(always)]
pub(crate) fn entry_registers(task: &Task) -> EntryRegisters {
    // SAFETY: the helper takes a task pointer the verifier knows.
    let registers = unsafe { bpf_task_pt_regs(task.pointer().cast_mut().cast()) } as *const u8;
    macro_rules! register {
        ($offset:expr) => {
            // SAFETY: the verifier knows the pointer as one to `struct pt_regs`.
            unsafe { *registers.add($offset).cast::<u64>() }
        };
    }
    EntryRegisters {
        number: register!(offset::ORIG_RAX),
        first_argument: register!(offset::RDI),
        second_argument: register!(offset::RSI),
        third_argument: register!(offset::RDX),
        fourth_argument: register!(offset::R10),
    }
}

/// Reads what a task entered the kernel with: instruction pointer and registers by their DWARF number; returns the code
/// segment.
#[inline(always)]
pub(crate) fn read_registers(task: &Task, ip: &mut u64, by_number: &mut [u64; LEAF_REGISTERS]) -> u64 {
    // SAFETY: the helper takes a task pointer the verifier knows.
    let registers = unsafe { bpf_task_pt_regs(task.pointer().cast_mut().cast()) } as *const u8;
    macro_rules! register {
        ($offset:expr) => {
            // SAFETY: the verifier knows the pointer as one to `struct pt_regs`.
            unsafe { *registers.add($offset).cast::<u64>() }
        };
    }
    let mut number = 0;
    while number < LEAF_REGISTERS {
        by_number[number] = register!(offset::BY_NUMBER[number]);
        number += 1;
    }
    *ip = register!(offset::RIP);
    register!(offset::CS)
}

/// Whether a task entered the kernel from 32-bit code.
#[inline(always)]
pub(crate) fn is_compat(task: &Task) -> bool {
    // SAFETY: the helper takes a task pointer the verifier knows.
    let registers = unsafe { bpf_task_pt_regs(task.pointer().cast_mut().cast()) } as *const u8;
    // SAFETY: the verifier knows the pointer as one to `struct pt_regs`.
    unsafe { *registers.add(offset::CS).cast::<u64>() == COMPAT_CODE_SEGMENT }
}

/// A chain that was walked.
#[derive(Clone, Copy)]
pub(crate) struct Chain {
    /// Its reference in a record's key.
    pub(crate) reference: u64,
    /// How it ended: an [`Outcome`].
    pub(crate) outcome: u64,
}

impl Chain {
    /// A chain of no frames, since there is nothing to walk.
    pub(crate) const EMPTY: Self = Self { reference: 0, outcome: Outcome::Complete as u64 };

    /// A chain that was lost.
    #[inline(always)]
    pub(crate) const fn lost(outcome: Outcome) -> Self {
        Self { reference: outcome as u64, outcome: outcome as u64 }
    }
}

/// Whether the registers at `registers` are those of user mode.
///
/// `registers`: the program's context.
#[inline(always)]
pub(crate) fn in_user_mode(registers: *const u8) -> bool {
    // SAFETY: the context holds the interrupted registers.
    let segment = unsafe { *registers.add(offset::CS).cast::<u64>() };
    segment & USER_MODE == USER_MODE
}

/// Walks the kernel chain, by the kernel's own unwinder.
#[inline(always)]
pub(crate) fn kernel(context: *mut core::ffi::c_void, record: &mut StackRecord) -> Chain {
    const SIZE: u32 = (MAX_KERNEL_FRAMES * size_of::<u64>()) as u32;
    // SAFETY: the helper writes at most `SIZE` bytes, and the record has room for more.
    let bytes = unsafe { bpf_get_stack(context, record.words.as_mut_ptr().cast(), SIZE, 0) };
    if bytes <= 0 {
        return Chain::lost(Outcome::KernelStack);
    }
    let frames = (bytes as usize) / size_of::<u64>();
    let mut hash = HASH_SEED;
    let mut length = 0;
    while length < MAX_KERNEL_FRAMES && length < frames {
        hash = hash_word(hash, record.words[length]);
        length += 1;
    }
    let outcome = if length == MAX_KERNEL_FRAMES { Outcome::DepthLimit } else { Outcome::Complete };
    finish(record, length, hash, outcome as u64)
}

/// Begins the user chain, at the registers the task entered the kernel with; the chain where there is nothing to walk.
#[inline(always)]
pub(crate) fn begin(task: &Task, process: Option<&Process>, scratch: &mut Scratch) -> Option<Chain> {
    // A worker of `io_uring` has its process's memory, and has never been there.
    if task.is_kernel_thread() || task.is_io_worker() {
        return Some(Chain::EMPTY);
    }
    if !task.has_memory() {
        return Some(Chain::lost(Outcome::Exiting));
    }
    // SAFETY: the helper takes a task pointer the verifier knows.
    let registers = unsafe { bpf_task_pt_regs(task.pointer().cast_mut().cast()) } as *const u8;
    macro_rules! register {
        ($offset:expr) => {
            // SAFETY: the verifier knows the pointer as one to `struct pt_regs`.
            unsafe { *registers.add($offset).cast::<u64>() }
        };
    }
    let segment = register!(offset::CS);
    if segment & USER_MODE != USER_MODE {
        // A task that has not been to user space yet, such as one between fork and its first return.
        return Some(Chain::EMPTY);
    }
    let ip = register!(offset::RIP);
    let leaf = FrameWord::Native(ip).to_word();
    scratch.user.words[0] = leaf;
    let walk = &mut scratch.walk;
    let (sp, fp, bx) = (register!(offset::RSP), register!(offset::RBP), register!(offset::RBX));
    walk.registers = Registers { ip, sp, fp, bx };
    let mut number = 0;
    while number < LEAF_REGISTERS {
        scratch.remainder.leaf[number] = register!(offset::BY_NUMBER[number]);
        number += 1;
    }
    python::prepare(process, &mut scratch.python);
    let walk = &mut scratch.walk;
    walk.length = 1;
    walk.hash = hash_word(HASH_SEED, leaf);
    walk.outcome = Outcome::DepthLimit as u64;
    walk.exact = 1;
    walk.left = 0;
    walk.switches = 0;
    walk.stack_start = NO_STACK;
    walk.first_mapping = process.map_or(0, |process| process.first_mapping);
    walk.mappings = process.map_or(0, |process| process.mappings);
    // No address is in it: the first frame looks its mapping up.
    walk.mapping.start = 1;
    walk.mapping.end = 0;
    if segment == COMPAT_CODE_SEGMENT {
        let hash = scratch.walk.hash;
        return Some(finish(&mut scratch.user, 1, hash, Outcome::CompatCode as u64));
    }
    None
}

/// Ends the user chain that [`begin`] began and `unwind` walked.
///
/// `PYTHON`: whether `python` went on with it. A constant, so that the verifier has nothing to follow where it did not.
#[inline(always)]
pub(crate) fn end<const PYTHON: bool>(task: &Task, scratch: &mut Scratch) -> Chain {
    let (length, hash, outcome) = (scratch.walk.length, scratch.walk.hash, scratch.walk.outcome);
    if outcome != Outcome::Complete as u64 && task.is_executing() {
        return Chain::lost(Outcome::Executing);
    }
    let mut chain = finish(&mut scratch.user, length as usize, hash, outcome);
    if PYTHON {
        // Its words are behind the marker already.
        chain.reference = finish_hash(hash_word(chain.reference, scratch.python.hash));
        scratch.user.hash = chain.reference;
        scratch.user.length += scratch.python.length as u32;
    }
    if scratch.walk.left != 0 {
        chain.reference = remainder::send(scratch, task.tid);
        scratch.user.hash = chain.reference;
    }
    chain
}

/// Ends a chain: a marker when it was cut, its length and its hash.
#[inline(always)]
fn finish(record: &mut StackRecord, length: usize, mut hash: u64, outcome: u64) -> Chain {
    let mut length = if length > MAX_USER_FRAMES { MAX_USER_FRAMES } else { length };
    if outcome != Outcome::Complete as u64 {
        let marker = FrameWord::Marker(outcome).to_word();
        record.words[length % MAX_STACK_WORDS] = marker;
        hash = hash_word(hash, marker);
        length += 1;
    }
    record.length = length as u32;
    record.hash = finish_hash(hash);
    Chain { reference: record.hash, outcome }
}
