//! Unwinding by table: the compact rows, and the one step from a frame to its caller that kernel and host share.
//!
//! A row is 32 bits: the low 12 bits of the address it begins at, and a rule of 20 bits that holds up to the next row.
//! Rows are grouped by page of 4 KiB, so that the low 12 bits are enough; the builder repeats the row that is carried
//! into a page. A rule that does not fit 20 bits is a number in a dictionary of [`Rule`]s.
//! The rules are those of DWARF 5, section 6.4, for x86-64 (System V ABI, AMD64 supplement, section 3.7).

mod other_stack;

use crate::counters::Outcome;
use other_stack::{step_goroutine, step_other_stack};

/// Bits of an address inside a page.
pub const PAGE_SHIFT: u32 = 12;

/// Bits of a packed rule.
const RULE_BITS: u32 = 20;
const RULE_MASK: u32 = (1 << RULE_BITS) - 1;

/// Set in a packed rule that is a code, not a plain rule.
const CODE_FLAG: u32 = 1 << 19;
/// Set in a plain rule whose frame address is relative to rbp.
const RBP_FLAG: u32 = 1 << 18;
const OFFSET_SHIFT: u32 = 7;
const OFFSET_MASK: u32 = (1 << 11) - 1;
const SLOT_MASK: u32 = (1 << 7) - 1;

/// Codes from this one on are dictionary numbers.
const FIRST_DICTIONARY_CODE: u32 = 16;

/// Rules that a dictionary may hold.
pub const MAX_RULES: usize = 4096;

/// A packed rule that stands for a situation, not for a calculation.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Special {
    /// No call-frame information here: follow the frame pointer.
    None = 0,
    /// The outermost frame.
    End = 1,
    /// A signal frame: the interrupted registers are on the stack.
    Signal = 2,
    /// A PLT entry that pushes at its 11th byte.
    Plt11 = 3,
    /// A PLT entry that pushes at its 10th byte.
    Plt10 = 4,
    /// Call-frame information that cannot be followed.
    Bad = 5,
    /// The frame pointer leads to the caller, on whichever stack that is.
    OtherStack = 6,
}

/// How the frame address (CFA) is found.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Base {
    /// rsp plus the offset.
    Rsp = 0,
    /// rbp plus the offset.
    Rbp = 1,
    /// rbx plus the offset.
    Rbx = 2,
    /// The register of [`Rule::added`] plus the offset; known in the leaf and where a signal interrupted.
    Leaf = 3,
    /// What is in memory at rbp plus the offset, and [`Rule::added`].
    AtRbp = 4,
    /// What is in memory at rsp plus the offset, and [`Rule::added`].
    AtRsp = 5,
    /// Where Go's runtime left the stack of the thread's goroutine: see [`Rule::goroutine`].
    Goroutine = 6,
}

/// Where a saved register is.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Saved {
    /// Still in the register.
    Same = 0,
    /// In memory at the frame address plus the offset.
    AtCfa = 1,
    /// In memory at rbp plus the offset.
    AtRbp = 2,
    /// Nowhere.
    Undefined = 3,
}

/// A rule at full length: 16 bytes, a value of the dictionary.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Rule {
    /// A [`Base`].
    pub base: u8,
    /// A [`Saved`], of rbp.
    pub rbp: u8,
    /// A [`Saved`], of rbx.
    pub rbx: u8,
    /// Bytes added to what was read from memory: OpenSSL's assembly saves rsp before the return address, so that its
    /// frame address is 8 above. With [`Base::Leaf`] the register's DWARF number; with [`Base::Goroutine`] 1 where the
    /// goroutine goes on at the address that was left, 0 where it returns from there; 0 for other bases.
    pub added: u8,
    /// Offset of the base, in bytes.
    pub base_offset: i32,
    /// Offset of where rbp was saved, in bytes.
    pub rbp_offset: i32,
    /// Offset of where rbx was saved, in bytes, from the frame address.
    pub rbx_offset: i16,
    /// Offset of the return address from the frame address, in bytes: -8 for everything a compiler makes. From
    /// [`RETURN_IN_REGISTER`] on, the number of a register it is in, in the leaf.
    pub return_offset: i16,
}

/// [`Rule::return_offset`] for a return address in register 0: vfork(2) in the C library keeps it in rdi, since the
/// child would overwrite it on the stack.
pub const RETURN_IN_REGISTER: i16 = i16::MIN;

/// The DWARF number of the FS segment's base, a thread's pointer to its own storage.
/// Source: System V ABI, AMD64 supplement, figure 3.36.
pub const FS_BASE: u8 = 58;

/// Times that a walk may go to another stack. Go's does so twice at most: from a call of the vDSO on the system's stack,
/// and from there to the goroutine's.
pub const MAX_STACK_SWITCHES: u64 = 4;

/// Registers that a rule may name by their DWARF number: rax, rdx, rcx, rbx, rsi, rdi, rbp, rsp, r8 to r15.
/// Source: System V ABI, AMD64 supplement, figure 3.36.
pub const LEAF_REGISTERS: usize = 16;

/// A packed rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Packed(pub u32);

/// A packed rule, read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unpacked {
    /// Base rsp or rbp, rbp unchanged or saved below the frame address.
    Plain(Rule),
    /// A number in the dictionary.
    Dictionary(u32),
    /// No calculation: a [`Special`] by its number, which may be unknown to this version.
    Special(u32),
}

impl Rule {
    /// A rule with rbp and rbx unchanged and the return address just below the frame address.
    #[must_use]
    pub const fn new(base: Base, base_offset: i32) -> Self {
        Self {
            base: base as u8,
            rbp: Saved::Same as u8,
            rbx: Saved::Same as u8,
            added: 0,
            base_offset,
            rbp_offset: 0,
            rbx_offset: 0,
            return_offset: -8,
        }
    }

    /// The rule for code on the system's stack that Go's runtime left a goroutine for.
    ///
    /// `thread_offset`: of the pointer to the goroutine that runs (`g`), from the thread's pointer; `current_offset`: of
    /// the thread's own goroutine (`curg`) in `m`; `frame_pointer_offset`: of the saved frame pointer (`sched.bp`) in `g`;
    /// `resumes`: whether what was left goes on at `sched.pc`, else it returns by what `sched.sp` points to.
    #[must_use]
    pub const fn goroutine(thread_offset: i32, current_offset: i32, frame_pointer_offset: i16, resumes: bool) -> Self {
        let mut rule = Self::new(Base::Goroutine, thread_offset);
        rule.rbp_offset = current_offset;
        rule.rbx_offset = frame_pointer_offset;
        rule.added = resumes as u8;
        rule
    }

    /// The rule in 20 bits, if it fits.
    #[must_use]
    pub fn pack(&self) -> Option<Packed> {
        let base = match self.base {
            base if base == Base::Rsp as u8 => 0,
            base if base == Base::Rbp as u8 => RBP_FLAG,
            _ => return None,
        };
        let offset = u32::try_from(self.base_offset).ok().filter(|offset| offset % 8 == 0)? / 8;
        let slot = match self.rbp {
            saved if saved == Saved::Same as u8 => 0,
            saved if saved == Saved::AtCfa as u8 => {
                u32::try_from(self.rbp_offset.checked_neg()?).ok().filter(|slot| slot % 8 == 0 && *slot > 0)? / 8
            }
            _ => return None,
        };
        let fits = offset <= OFFSET_MASK && slot <= SLOT_MASK;
        let plain = self.rbx == Saved::Same as u8 && self.return_offset == -8;
        (fits && plain).then_some(Packed(base | (offset << OFFSET_SHIFT) | slot))
    }
}

impl Packed {
    /// A special situation.
    #[must_use]
    pub const fn special(special: Special) -> Self {
        Self(CODE_FLAG | special as u32)
    }

    /// A number in the dictionary, if it is not too large.
    #[must_use]
    pub fn dictionary(number: usize) -> Option<Self> {
        let number = u32::try_from(number).ok().filter(|&number| (number as usize) < MAX_RULES)?;
        Some(Self(CODE_FLAG | (FIRST_DICTIONARY_CODE + number)))
    }

    /// Reads it.
    #[inline(always)]
    #[must_use]
    pub const fn unpack(self) -> Unpacked {
        if self.0 & CODE_FLAG != 0 {
            let code = self.0 & (CODE_FLAG - 1);
            return if code >= FIRST_DICTIONARY_CODE {
                Unpacked::Dictionary(code - FIRST_DICTIONARY_CODE)
            } else {
                Unpacked::Special(code)
            };
        }
        let base = if self.0 & RBP_FLAG != 0 { Base::Rbp } else { Base::Rsp };
        let mut rule = Rule::new(base, (((self.0 >> OFFSET_SHIFT) & OFFSET_MASK) * 8) as i32);
        let slot = self.0 & SLOT_MASK;
        if slot != 0 {
            rule.rbp = Saved::AtCfa as u8;
            rule.rbp_offset = -8 * slot as i32;
        }
        Unpacked::Plain(rule)
    }
}

/// A row: where in its page it begins, and its rule.
#[must_use]
pub const fn row(address: u64, rule: Packed) -> u32 {
    ((address as u32 & 0xfff) << RULE_BITS) | (rule.0 & RULE_MASK)
}

/// The rule of a row.
#[inline(always)]
#[must_use]
pub const fn rule_of(row: u32) -> Packed {
    Packed(row & RULE_MASK)
}

/// Where in its page a row begins.
#[inline(always)]
#[must_use]
pub const fn start_of(row: u32) -> u32 {
    row >> RULE_BITS
}

/// Search steps that find any row of a page: a page has at most 4,096 rows.
pub const SEARCH_STEPS: usize = 13;

/// Finds the row that covers an address: the last one that begins at or before it.
///
/// `rows`: reads row `index` of the page, ascending by start; `count`: how many there are; `low`: the low 12 bits of
/// the address. `None` when the first row begins after it, or `rows` cannot read.
#[inline(always)]
pub fn find_row(count: u32, low: u32, mut rows: impl FnMut(u32) -> Option<u32>) -> Option<u32> {
    let (mut first, mut end) = (0, count);
    let mut found = None;
    for _ in 0..SEARCH_STEPS {
        if first >= end {
            break;
        }
        let middle = u32::midpoint(first, end);
        let row = rows(middle)?;
        if start_of(row) <= low {
            found = Some(row);
            first = middle + 1;
        } else {
            end = middle;
        }
    }
    found
}

/// The registers of a frame that unwinding needs.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Registers {
    /// Instruction pointer.
    pub ip: u64,
    /// Stack pointer.
    pub sp: u64,
    /// Frame pointer, rbp.
    pub fp: u64,
    /// rbx.
    pub bx: u64,
}

/// What a step found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// The caller's registers.
    Caller,
    /// The caller's registers, on another stack: a walk may do this [`MAX_STACK_SWITCHES`] times.
    Switched,
    /// The registers that a signal interrupted: their ip is no return address.
    Interrupted,
    /// The outermost frame.
    Root,
    /// No rule here: follow the frame pointer.
    NoRule,
    /// The walk ends here for this reason.
    Stop(Outcome),
}

/// Where the kernel leaves the interrupted registers, from the stack pointer in its signal trampoline.
/// Source: `struct rt_sigframe` and `struct sigcontext`, arch/x86/include/asm/sigframe.h.
mod signal_frame {
    pub(super) const RBP: u64 = 120;
    pub(super) const RBX: u64 = 128;
    pub(super) const RSP: u64 = 160;
    pub(super) const RIP: u64 = 168;
    /// By DWARF number, as for [`super::LEAF_REGISTERS`].
    pub(super) const BY_NUMBER: [u64; super::LEAF_REGISTERS] =
        [144, 136, 152, RBX, 112, 104, RBP, RSP, 40, 48, 56, 64, 72, 80, 88, 96];
}

/// Steps from a frame to its caller.
///
/// `rule`: the rule that covers the frame's ip; `dictionary`: reads a rule by number; `leaf`: a register by its DWARF
/// number, where it is known, which is in the leaf and where a signal interrupted, and [`FS_BASE`] everywhere or nowhere;
/// `read`: reads a word of memory into its second argument, false where it cannot. `registers` become the caller's.
/// Errors come as [`Step::Stop`].
///
/// Reads give no `Option`: LLVM leaves the word of a `None` undefined and copies it all the same, which verifiers refuse.
#[inline(always)]
pub fn step(
    registers: &mut Registers,
    rule: Packed,
    dictionary: impl FnOnce(u32) -> Option<Rule>,
    leaf: impl Fn(u8) -> Option<u64>,
    mut read: impl FnMut(u64, &mut u64) -> bool,
) -> Step {
    let rule = match rule.unpack() {
        Unpacked::Plain(rule) => rule,
        Unpacked::Dictionary(number) => match dictionary(number) {
            Some(rule) => rule,
            None => return Step::Stop(Outcome::BadUnwindRule),
        },
        Unpacked::Special(code) => match code {
            code if code == Special::None as u32 => return Step::NoRule,
            code if code == Special::End as u32 => return Step::Root,
            code if code == Special::Signal as u32 => return step_signal(registers, read),
            code if code == Special::OtherStack as u32 => return step_other_stack(registers, read),
            code if code == Special::Plt11 as u32 => Rule::new(Base::Rsp, plt_offset(registers.ip, 11)),
            code if code == Special::Plt10 as u32 => Rule::new(Base::Rsp, plt_offset(registers.ip, 10)),
            _ => return Step::Stop(Outcome::BadUnwindRule),
        },
    };
    if rule.base == Base::Goroutine as u8 {
        return step_goroutine(registers, &rule, leaf(FS_BASE), read);
    }
    let offset = rule.base_offset as i64 as u64;
    let base = match rule.base {
        base if base == Base::Rsp as u8 => registers.sp,
        base if base == Base::Rbp as u8 || base == Base::AtRbp as u8 => registers.fp,
        base if base == Base::AtRsp as u8 => registers.sp,
        base if base == Base::Rbx as u8 => registers.bx,
        base if base == Base::Leaf as u8 => match leaf(rule.added) {
            Some(register) => register,
            None => return Step::Stop(Outcome::BadUnwindRule),
        },
        _ => return Step::Stop(Outcome::BadUnwindRule),
    };
    let mut cfa = base.wrapping_add(offset);
    if rule.base == Base::AtRbp as u8 || rule.base == Base::AtRsp as u8 {
        let mut word = 0;
        if !read(cfa, &mut word) {
            return Step::Stop(Outcome::UnreadableStack);
        }
        cfa = word.wrapping_add(rule.added as u64);
    }
    // The stack grows down: a caller's frame that does not lie above is a broken chain, and could go round for ever.
    // A return address that was taken off the stack leaves it as it is in the caller.
    let in_register = rule.return_offset.wrapping_sub(RETURN_IN_REGISTER) as u16;
    let is_in_register = (in_register as usize) < LEAF_REGISTERS;
    if cfa < registers.sp || (cfa == registers.sp && !is_in_register) {
        return Step::Stop(Outcome::BadUnwindRule);
    }
    let mut ip = 0;
    if is_in_register {
        match leaf(in_register as u8) {
            Some(address) => ip = address,
            None => return Step::Stop(Outcome::BadUnwindRule),
        }
    } else if !read(cfa.wrapping_add(rule.return_offset as i64 as u64), &mut ip) {
        return Step::Stop(Outcome::UnreadableStack);
    }
    let (mut fp, mut bx) = (registers.fp, registers.bx);
    let (at_cfa, at_rbp) = (rule.rbp == Saved::AtCfa as u8, rule.rbp == Saved::AtRbp as u8);
    if at_cfa || at_rbp {
        let slot = if at_cfa { cfa } else { fp }.wrapping_add(rule.rbp_offset as i64 as u64);
        // gcc leaves the second rule after `leave`, when rbp is the caller's already and points beyond this frame.
        let is_gone = at_rbp && !(slot >= registers.sp && slot < cfa);
        if !is_gone && !read(slot, &mut fp) {
            return Step::Stop(Outcome::UnreadableStack);
        }
    } else if rule.rbp == Saved::Undefined as u8 {
        fp = 0;
    }
    if rule.rbx == Saved::AtCfa as u8 && !read(cfa.wrapping_add(rule.rbx_offset as i64 as u64), &mut bx) {
        return Step::Stop(Outcome::UnreadableStack);
    }
    *registers = Registers { ip, sp: cfa, fp, bx };
    if ip == 0 { Step::Root } else { Step::Caller }
}

/// Offset of the frame address in a PLT entry of 16 bytes: 8, and 8 more once it has pushed its number.
/// Source: the expression that linkers write for .plt; psABI, section 5.2.
#[inline(always)]
const fn plt_offset(ip: u64, push_ends: u64) -> i32 {
    if ip & 15 >= push_ends { 16 } else { 8 }
}

/// A frame larger than this is taken for a broken chain: twice the usual limit of a whole stack.
const MAX_FRAME_BYTES: u64 = 16 << 20;

/// Addresses below have no code: the kernel lets nobody map the first page, and no ABI uses the first 64 KiB.
const MIN_CODE_ADDRESS: u64 = 1 << 16;

/// The first address that is not user space's, with five-level paging. Source: Documentation/arch/x86/x86_64/mm.rst.
const USER_END: u64 = 1 << 56;

/// Whether user code can be at an address.
#[inline(always)]
#[must_use]
pub const fn is_code_address(address: u64) -> bool {
    address >= MIN_CODE_ADDRESS && address < USER_END
}

/// Steps to the caller by the saved frame pointer: it points at the caller's, with the return address above it.
///
/// `is_leaf`: whether no frame was found before. The chain ends well where the frame pointer is zero, as the ABI asks
/// of a process's or thread's first frame. Not so in the leaf: a register that is zero there was no frame pointer.
/// Source: System V ABI, AMD64 supplement, sections 3.2.2 and 3.4.1.
#[inline(always)]
pub fn step_frame_pointer(
    registers: &mut Registers,
    is_leaf: bool,
    mut read: impl FnMut(u64, &mut u64) -> bool,
) -> Step {
    let Registers { sp, fp, bx, .. } = *registers;
    if fp == 0 {
        return if is_leaf { Step::Stop(Outcome::NoFramePointer) } else { Step::Root };
    }
    if fp & 7 != 0 || fp < sp || fp - sp > MAX_FRAME_BYTES {
        return Step::Stop(Outcome::NoFramePointer);
    }
    let (mut next, mut return_address) = (0, 0);
    if !read(fp, &mut next) || !read(fp + 8, &mut return_address) {
        return Step::Stop(Outcome::UnreadableStack);
    }
    if !is_code_address(return_address) {
        return Step::Stop(Outcome::NoFramePointer);
    }
    *registers = Registers { ip: return_address, sp: fp + 16, fp: next, bx };
    Step::Caller
}

/// Where the kernel leaves an interrupted register: its DWARF number, and the stack pointer in the signal trampoline.
#[inline(always)]
#[must_use]
pub const fn interrupted_register(number: usize, sp: u64) -> u64 {
    sp.wrapping_add(signal_frame::BY_NUMBER[number % LEAF_REGISTERS])
}

/// Steps out of a signal handler's trampoline.
#[inline(always)]
fn step_signal(registers: &mut Registers, mut read: impl FnMut(u64, &mut u64) -> bool) -> Step {
    let mut word = |offset: u64, to: &mut u64| read(registers.sp.wrapping_add(offset), to);
    let (mut ip, mut sp, mut fp, mut bx) = (0, 0, 0, 0);
    if !word(signal_frame::RIP, &mut ip)
        || !word(signal_frame::RSP, &mut sp)
        || !word(signal_frame::RBP, &mut fp)
        || !word(signal_frame::RBX, &mut bx)
    {
        return Step::Stop(Outcome::UnreadableStack);
    }
    // A handler may run on a stack of its own, above or below: only the words themselves can be checked.
    *registers = Registers { ip, sp, fp, bx };
    Step::Interrupted
}

#[cfg(test)]
mod tests;
