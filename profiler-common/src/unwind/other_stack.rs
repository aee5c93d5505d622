//! Steps from one stack to another, which Go's runtime does some of its work on.
//!
//! They take what the program itself keeps for the way back. Where that does not fit together, the walk ends with what
//! ran on the stack it is on, and never guesses.

use super::{Registers, Rule, Step, is_code_address};

/// Steps to the caller of code that went to another stack and kept its own frame's address in rbp.
///
/// Where that cannot be read, what ran on this stack is all that can be told: the outermost frame of it.
#[inline(always)]
pub(super) fn step_other_stack(registers: &mut Registers, mut read: impl FnMut(u64, &mut u64) -> bool) -> Step {
    let (mut fp, mut ip) = (0, 0);
    if registers.fp & 7 != 0 || !read(registers.fp, &mut fp) || !read(registers.fp.wrapping_add(8), &mut ip) {
        return Step::Root;
    }
    if !is_code_address(ip) {
        return Step::Root;
    }
    *registers = Registers { ip, sp: registers.fp.wrapping_add(16), fp, bx: registers.bx };
    Step::Switched
}

/// Where Go's runtime keeps what is read of a goroutine and its thread; the same since Go 1.16, other than what a
/// [`Rule::goroutine`] has. Source: the structures `g` and `gobuf`, src/runtime/runtime2.go.
mod goroutine {
    /// `g.m`: the thread's structure.
    pub(super) const THREAD: u64 = 0x30;
    /// `g.sched.sp` and `g.sched.pc`.
    pub(super) const SP: u64 = 0x38;
    pub(super) const PC: u64 = 0x40;
}

/// The first byte of a call of a function at a fixed distance, which four bytes tell.
const CALL: u64 = 0xe8;

/// How far from a place in `runtime.morestack` it begins at most, and `runtime.morestack_noctxt` behind it.
const MORESTACK_BYTES: u64 = 512;

/// Steps from the system's stack to that of the goroutine which Go's runtime left for it.
///
/// As the runtime's own traceback does it, by what it saved of the goroutine (src/runtime/traceback.go, "jump over system
/// stack transitions"). Between a thread's leaving one goroutine and going on with another, that would be the wrong one:
/// so it is believed only if the saved frame pointer is what this walk has come to, or, where a goroutine asks for a
/// larger stack, if the saved address is behind a call that does so. Otherwise what ran on the system's stack is all that
/// can be told.
#[inline(always)]
pub(super) fn step_goroutine(
    registers: &mut Registers,
    rule: &Rule,
    thread: Option<u64>,
    mut read: impl FnMut(u64, &mut u64) -> bool,
) -> Step {
    let Some(thread) = thread else { return Step::Root };
    let (mut running, mut machine, mut left, mut owner) = (0, 0, 0, 0);
    let (mut sp, mut ip, mut fp) = (0, 0, 0);
    if !read(thread.wrapping_add(rule.base_offset as i64 as u64), &mut running)
        || !read(running.wrapping_add(goroutine::THREAD), &mut machine)
        || !read(machine.wrapping_add(rule.rbp_offset as i64 as u64), &mut left)
        || !read(left.wrapping_add(goroutine::THREAD), &mut owner)
        || !read(left.wrapping_add(goroutine::SP), &mut sp)
        || !read(left.wrapping_add(rule.rbx_offset as i64 as u64), &mut fp)
    {
        return Step::Root;
    }
    let resumes = rule.added != 0;
    let at = if resumes { left.wrapping_add(goroutine::PC) } else { sp };
    if owner != machine || sp & 7 != 0 || !read(at, &mut ip) || !is_code_address(ip) {
        return Step::Root;
    }
    if resumes {
        let mut before = 0;
        // The call is the last five of the eight bytes before.
        if !read(ip.wrapping_sub(8), &mut before) || (before >> 24) & 0xff != CALL {
            return Step::Root;
        }
        let called = ip.wrapping_add(((before >> 32) as i32) as i64 as u64);
        if called.wrapping_sub(registers.ip.wrapping_sub(MORESTACK_BYTES)) > 2 * MORESTACK_BYTES {
            return Step::Root;
        }
        *registers = Registers { ip, sp, fp, bx: registers.bx };
    } else {
        if fp != registers.fp {
            return Step::Root;
        }
        *registers = Registers { ip, sp: sp.wrapping_add(8), fp, bx: registers.bx };
    }
    Step::Switched
}

#[cfg(test)]
mod tests {
    use super::super::{FS_BASE, Packed, Special, step};
    use super::*;

    #[test]
    fn a_step_to_another_stack_is_taken_only_where_both_ends_agree() {
        // The thread, its goroutine of the system's stack (g0), its own (curg) and that one's stack.
        let memory = [
            (0x7ff8_u64, 0x10_000_u64),
            (0x10_030, 0x20_000),
            (0x20_0c0, 0x30_000),
            (0x30_030, 0x20_000),
            (0x30_038, 0x40_000),
            (0x30_040, 0x11_1111),
            (0x30_068, 0x40_100),
            (0x40_000, 0x22_2222),
            (0x40_100, 0x40_200),
            (0x40_108, 0x33_3333),
            // Before the address that was left: a call of 0x11_1f11.
            (0x11_1109, 0xe00_e890_9090),
        ];
        let step = |rule: Rule, before: Registers, changed: &[(u64, u64)]| {
            let mut registers = before;
            let read = |address, to: &mut u64| {
                let found = changed.iter().chain(&memory).find(|(at, _)| *at == address);
                found.map(|(_, word)| *to = *word).is_some()
            };
            let thread = |number| (number == FS_BASE).then_some(0x8000);
            let step = step(&mut registers, Packed::dictionary(0).unwrap(), |_| Some(rule), thread, read);
            assert!(step == Step::Switched || registers == before);
            (step, registers)
        };
        let rule = |resumes| Rule::goroutine(-8, 0xc0, 0x68, resumes);
        let before = Registers { ip: 0x11_2000, sp: 0x70_000, fp: 0x40_100, bx: 9 };
        let caller = Registers { ip: 0x22_2222, sp: 0x40_008, ..before };
        assert_eq!(step(rule(false), before, &[]), (Step::Switched, caller));
        assert_eq!(step(rule(false), Registers { fp: 0, ..before }, &[]).0, Step::Root);
        // What asks for a stack was called with a frame pointer that the runtime has changed since.
        let resumed = Registers { ip: 0x11_1111, sp: 0x40_000, ..before };
        assert_eq!(step(rule(true), Registers { fp: 7, ..before }, &[]), (Step::Switched, resumed));
        assert_eq!(step(rule(true), Registers { ip: 0x11_3000, ..before }, &[]).0, Step::Root, "another function");
        assert_eq!(step(rule(true), before, &[(0x11_1109, u64::MAX)]).0, Step::Root, "no call");
        // No goroutine, one of another thread, no stack, no code.
        for changed in [(0x20_0c0, 0), (0x30_030, 0x21_000), (0x30_038, 4), (0x40_000, 7)] {
            assert_eq!(step(rule(false), before, &[changed]).0, Step::Root, "{changed:x?}");
        }

        let by_frame = |fp: u64| {
            let mut registers = Registers { fp, ..before };
            let read = |address, to: &mut u64| {
                memory.iter().find(|(at, _)| *at == address).map(|(_, word)| *to = *word).is_some()
            };
            let packed = Packed::special(Special::OtherStack);
            (super::super::step(&mut registers, packed, |_| None, |_| None, read), registers)
        };
        let caller = Registers { ip: 0x33_3333, sp: 0x40_110, fp: 0x40_200, bx: 9 };
        assert_eq!(by_frame(0x40_100), (Step::Switched, caller));
        for refused in [0, 0x40_101, 0x40_200] {
            assert_eq!(by_frame(refused), (Step::Root, Registers { fp: refused, ..before }));
        }
    }
}
