//! The instructions that a function is left by: its returns, and its jumps to other functions.
//!
//! A function's code is gone through from its first instruction to its last, as compilers lay it out; parts that they put
//! elsewhere, as gcc does with what is seldom run, are given along. The code is a target's: everything is bounded.

use std::ops::Range;

use iced_x86::{Decoder, DecoderOptions, FlowControl, Instruction, Mnemonic, OpKind, Register};

/// Instructions by which one function may be left.
pub(crate) const MAX_ENDS: usize = 64;

/// Instructions before an indirect jump among which that of a jump table adds the table's address.
const TABLE_DISTANCE: usize = 4;

/// Why it is not known where a function ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NoEnds {
    /// It neither returns nor goes on elsewhere.
    None,
    /// More than [`MAX_ENDS`].
    TooMany,
}

/// A piece of a function: its code, and the address of the first byte.
pub(crate) type Piece<'a> = (&'a [u8], u64);

/// Addresses of the instructions that a function is left by.
///
/// `pieces`: the function's own code first, then what belongs to it elsewhere. A jump to elsewhere on a condition is none: it
/// leads to a part that is seldom run and whose symbol is gone, as a rule, and comes back. Where it does not, calls that take it
/// have no end that is seen, which is counted.
pub(crate) fn function_ends(pieces: &[Piece<'_>]) -> Result<Vec<u64>, NoEnds> {
    let ranges: Vec<Range<u64>> =
        pieces.iter().map(|(code, address)| *address..address.saturating_add(code.len() as u64)).collect();
    let is_inside = |address: u64| ranges.iter().any(|range| range.contains(&address));
    let mut ends = Vec::new();
    for (code, address) in pieces {
        let mut before: Vec<Instruction> = Vec::new();
        for instruction in &mut Decoder::with_ip(64, code, *address, DecoderOptions::NONE) {
            let leaves = match instruction.flow_control() {
                FlowControl::Return => true,
                FlowControl::UnconditionalBranch => !is_inside(instruction.near_branch_target()),
                FlowControl::IndirectBranch => !is_table_jump(&instruction, &before),
                _ => false,
            };
            if leaves {
                ends.push(instruction.ip());
            }
            if ends.len() > MAX_ENDS {
                return Err(NoEnds::TooMany);
            }
            before.push(instruction);
        }
    }
    if ends.is_empty() { Err(NoEnds::None) } else { Ok(ends) }
}

/// Whether an indirect jump is one of a jump table: by an index, or to an address that was computed just before.
fn is_table_jump(jump: &Instruction, before: &[Instruction]) -> bool {
    if jump.op0_kind() == OpKind::Memory {
        return jump.memory_index() != Register::None;
    }
    let register = jump.op0_register();
    let near = before.iter().rev().take(TABLE_DISTANCE);
    near.into_iter().any(|instruction| {
        let adds = instruction.mnemonic() == Mnemonic::Add && instruction.op0_register() == register;
        let loads = instruction.mnemonic() == Mnemonic::Mov && instruction.op0_register() == register;
        adds || (loads && instruction.memory_index() != Register::None)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(code: &[u8], expected: Result<&[u64], NoEnds>) {
        assert_eq!(function_ends(&[(code, 0x1000)]), expected.map(<[u64]>::to_vec), "{code:x?}");
    }

    #[test]
    fn returns_and_jumps_to_elsewhere_are_ends() {
        // push rbp; pop rbp; ret; ret 8
        check(&[0x55, 0x5d, 0xc3, 0xc2, 0x08, 0x00], Ok(&[0x1002, 0x1003]));
        // je +1; ret; ret
        check(&[0x74, 0x01, 0xc3, 0xc3], Ok(&[0x1002, 0x1003]));
        // jmp +0x100
        check(&[0xe9, 0x00, 0x01, 0x00, 0x00], Ok(&[0x1000]));
        // jmp to itself
        check(&[0xeb, 0xfe], Err(NoEnds::None));
        // je +0x100; ret
        check(&[0x0f, 0x84, 0x00, 0x01, 0x00, 0x00, 0xc3], Ok(&[0x1006]));
        check(&[0xc3; MAX_ENDS + 1], Err(NoEnds::TooMany));
        check(&[], Err(NoEnds::None));
    }

    #[test]
    fn a_jump_table_is_no_end() {
        // jmp [rax*8 + 0x10]; ret
        check(&[0xff, 0x24, 0xc5, 0x10, 0x00, 0x00, 0x00, 0xc3], Ok(&[0x1007]));
        // movsxd rax, [rdx + rax*4]; add rax, rdx; notrack jmp rax; ret
        let code = [0x48, 0x63, 0x04, 0x82, 0x48, 0x01, 0xd0, 0x3e, 0xff, 0xe0, 0xc3];
        check(&code, Ok(&[0x100a]));
        // mov rax, [rdi]; jmp [rax + 0x10]: a virtual function.
        check(&[0x48, 0x8b, 0x07, 0xff, 0x60, 0x10], Ok(&[0x1003]));
        // mov rax, [rdi]; jmp rax
        check(&[0x48, 0x8b, 0x07, 0xff, 0xe0], Ok(&[0x1003]));
    }

    #[test]
    fn a_part_that_is_elsewhere_belongs_to_the_function() {
        // jmp to the other; ret, and there: jmp back; ret
        let (near, far) = ([0xe9, 0xfb, 0x0f, 0x00, 0x00, 0xc3], [0xe9, 0x00, 0xf0, 0xff, 0xff, 0xc3]);
        assert_eq!(function_ends(&[(&near, 0x1000), (&far, 0x2000)]), Ok(vec![0x1005, 0x2005]));
        assert_eq!(function_ends(&[(&near, 0x1000)]), Ok(vec![0x1000, 0x1005]));
    }
}
