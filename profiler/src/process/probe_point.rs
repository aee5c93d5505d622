//! The instruction of a function that a probe is cheapest at.
//!
//! A probe replaces an instruction by a trap. Where the kernel can emulate the instruction, that is all; another one is
//! executed out of line, in single steps, which costs some ten times as much. Functions begin with pushes as a rule, which
//! are emulated, but not always: so the first instructions are gone through until one is, as long as all calls come by it
//! and the arguments are still where they were. Source: arch/x86/kernel/uprobes.c, `branch_setup_xol_ops`,
//! `push_setup_xol_ops`.

use iced_x86::{Decoder, DecoderOptions, FlowControl, InstructionInfoFactory, OpAccess, Register};

/// Instructions that are gone through.
const MAX_INSTRUCTIONS: usize = 16;

/// Where a probe goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ProbePoint {
    /// Bytes from the function's first.
    pub(crate) offset: u64,
    pub(crate) is_emulated: bool,
}

/// The best place in a function: the first instruction that the kernel emulates, else the function's first. `None` when there
/// is no instruction.
///
/// `code`: the function's bytes, or as many as are known; `address`: of the first; `needed`: registers that must not have been
/// changed on the way, in full.
pub(crate) fn probe_point(code: &[u8], address: u64, needed: &[Register]) -> Option<ProbePoint> {
    let mut decoder = Decoder::with_ip(64, code, address, DecoderOptions::NONE);
    let mut info = InstructionInfoFactory::new();
    let mut at_entry = None;
    for _ in 0..MAX_INSTRUCTIONS {
        let instruction =
            decoder.can_decode().then(|| decoder.decode()).filter(|instruction| !instruction.is_invalid());
        let Some(instruction) = instruction else { break };
        let offset = instruction.ip() - address;
        let bytes = code.get(usize::try_from(offset).ok()?..)?.get(..instruction.len())?;
        let point = ProbePoint { offset, is_emulated: is_emulated(bytes) };
        at_entry.get_or_insert(point);
        if point.is_emulated && !is_jumped_to(code, address, offset) {
            return Some(point);
        }
        if instruction.flow_control() != FlowControl::Next {
            break;
        }
        let writes = |access| {
            matches!(access, OpAccess::Write | OpAccess::CondWrite | OpAccess::ReadWrite | OpAccess::ReadCondWrite)
        };
        let used = info.info(&instruction).used_registers().iter();
        let mut changed = used.filter(|used| writes(used.access())).map(|used| used.register().full_register());
        if changed.any(|register| needed.contains(&register)) {
            break;
        }
    }
    at_entry.map(|point| ProbePoint { offset: 0, is_emulated: point.is_emulated && point.offset == 0 })
}

/// Whether the kernel emulates an instruction: pushes of a register, jumps, calls and conditional jumps that are relative,
/// and the shortest nop. None with a prefix but the one of the upper registers.
fn is_emulated(instruction: &[u8]) -> bool {
    matches!(
        instruction,
        [0x50..=0x57]
            | [0x41, 0x50..=0x57]
            | [0x90]
            | [0x70..=0x7f | 0xeb, _]
            | [0xe8 | 0xe9, ..]
            | [0x0f, 0x80..=0x8f, ..]
    )
}

/// Whether the function jumps back to an offset, or to before it: then a probe there sees more than its calls. Far calls to
/// the function's own beginning are calls.
fn is_jumped_to(code: &[u8], address: u64, offset: u64) -> bool {
    let jumps = |instruction: &iced_x86::Instruction| {
        matches!(instruction.flow_control(), FlowControl::ConditionalBranch | FlowControl::UnconditionalBranch)
    };
    // The beginning itself may be gone back to as if it were called anew.
    let range = address + 1..=address + offset;
    let mut decoder = Decoder::with_ip(64, code, address, DecoderOptions::NONE);
    decoder.iter().filter(jumps).any(|instruction| range.contains(&instruction.near_branch_target()))
}

/// Whether code calls one of these addresses, or jumps there, directly.
pub(crate) fn goes_to(code: &[u8], address: u64, targets: &[u64]) -> bool {
    let goes = |instruction: &iced_x86::Instruction| {
        matches!(
            instruction.flow_control(),
            FlowControl::Call | FlowControl::ConditionalBranch | FlowControl::UnconditionalBranch
        )
    };
    let mut decoder = Decoder::with_ip(64, code, address, DecoderOptions::NONE);
    decoder.iter().filter(goes).any(|instruction| targets.contains(&instruction.near_branch_target()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIRST: &[Register] = &[Register::RSP, Register::RDI];
    const THIRD: &[Register] = &[Register::RSP, Register::RDI, Register::RDX];

    fn point(code: &[u8], needed: &[Register]) -> Option<(u64, bool)> {
        probe_point(code, 0x1000, needed).map(|point| (point.offset, point.is_emulated))
    }

    #[test]
    fn the_first_instruction_that_is_emulated_is_taken() {
        // push rbp; mov rbp, rsp
        assert_eq!(point(&[0x55, 0x48, 0x89, 0xe5], FIRST), Some((0, true)));
        // endbr64; push r12
        assert_eq!(point(&[0xf3, 0x0f, 0x1e, 0xfa, 0x41, 0x54], FIRST), Some((4, true)));
        // test rdi, rdi; je +2; ret; ret; ret
        assert_eq!(point(&[0x48, 0x85, 0xff, 0x74, 0x02, 0xc3, 0xc3, 0xc3], FIRST), Some((3, true)));
        // sub rsp, 8; mov rax, rdi; ret
        assert_eq!(point(&[0x48, 0x83, 0xec, 0x08, 0x48, 0x89, 0xf8, 0xc3], FIRST), Some((0, false)));
        assert_eq!(point(&[], FIRST), None);
    }

    #[test]
    fn not_behind_a_change_of_what_is_read() {
        // mov ecx, esi; push rbp
        let code = [0x89, 0xf1, 0x55];
        assert_eq!(point(&code, FIRST), Some((2, true)));
        // mov edi, esi; push rbp
        let code = [0x89, 0xf7, 0x55];
        assert_eq!(point(&code, FIRST), Some((0, false)));
        assert_eq!(point(&code, THIRD), Some((0, false)));
        // sub rsp, 8; push rbp: the return address is not where the stack pointer is.
        let code = [0x48, 0x83, 0xec, 0x08, 0x55];
        assert_eq!(point(&code, FIRST), Some((0, false)));
    }

    #[test]
    fn not_where_a_loop_comes_back_to() {
        // test rcx, rcx; push rbp; dec rcx; jne to the push
        let code = [0x48, 0x85, 0xc9, 0x55, 0x48, 0xff, 0xc9, 0x75, 0xfa];
        assert_eq!(point(&code, THIRD), Some((0, false)));
        // The same to behind it.
        let code = [0x48, 0x85, 0xc9, 0x55, 0x48, 0xff, 0xc9, 0x75, 0xfb];
        assert_eq!(point(&code, THIRD), Some((3, true)));
    }
}
