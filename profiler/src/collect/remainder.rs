//! Finishes the walks that a program left to us, because it came to code whose mapping it did not know yet.
//!
//! Input: the registers and the piece of the stack that it sent. Output: the rest of the chain, found by the same step
//! and the same tables. Reads nothing of the process's memory: it may have ended.

use profiler_common::counters::Outcome;
use profiler_common::event::{FrameWord, MAX_REMAINDER_BYTES, MAX_USER_FRAMES, RecordKey};
use profiler_common::unwind::{
    MAX_STACK_SWITCHES, Step, interrupted_register, is_code_address, step, step_frame_pointer,
};

use super::processes::Processes;
use super::unwinding::Unwinding;
use crate::bpf::{Kernel, Remainder};

/// A stack that was copied up to less than this before the limit was cut by the limit: the copy goes by pages.
const PAGE: usize = 4096;

/// What is needed to finish a walk.
pub(super) struct Finisher<'a> {
    pub(super) kernel: &'a mut Kernel,
    pub(super) unwinding: &'a mut Unwinding,
    pub(super) processes: &'a mut Processes,
}

impl Finisher<'_> {
    /// The frames that are missing, leaf-most first, and how the chain ends.
    ///
    /// `found`: frames that were found before.
    pub(super) fn finish(&mut self, key: &RecordKey, remainder: &Remainder, found: usize) -> (Vec<u64>, Outcome) {
        let (mut registers, mut exact, stack) = (remainder.registers, remainder.exact, &remainder.stack);
        let read = |address: u64, word: &mut u64| {
            let at = address.checked_sub(remainder.stack_start).and_then(|at| usize::try_from(at).ok());
            let bytes = at.and_then(|at| stack.get(at..)?.first_chunk());
            bytes.map(|bytes| *word = u64::from_ne_bytes(*bytes)).is_some()
        };
        let mut leaf_registers = remainder.leaf;
        let (mut words, mut switches) = (Vec::new(), 0);
        loop {
            if found + words.len() >= MAX_USER_FRAMES {
                return (words, Outcome::DepthLimit);
            }
            let pc = registers.ip.wrapping_sub(u64::from(!exact));
            let Some(rule) = self.unwinding.rule(self.kernel, self.processes, key, pc) else {
                return (words, Outcome::NoTable);
            };
            let is_leaf = found + words.len() <= 1;
            let leaf = |number: u8| leaf_registers.get(usize::from(number)).copied().filter(|_| exact);
            let sp = registers.sp;
            let mut stepped = step(&mut registers, rule, |number| self.unwinding.dictionary(number), leaf, read);
            if stepped == Step::NoRule {
                stepped = step_frame_pointer(&mut registers, is_leaf, read);
            }
            match stepped {
                Step::Switched if switches >= MAX_STACK_SWITCHES => return (words, Outcome::BadUnwindRule),
                Step::Caller | Step::Switched | Step::Interrupted if is_code_address(registers.ip) => {
                    switches += u64::from(stepped == Step::Switched);
                    words.push(FrameWord::Native(registers.ip).to_word());
                    exact = stepped == Step::Interrupted;
                    if exact {
                        for (number, register) in leaf_registers.iter_mut().enumerate() {
                            read(interrupted_register(number, sp), register);
                        }
                    }
                }
                Step::Root => return (words, Outcome::Complete),
                // The program's copy ended, not the stack.
                Step::Stop(Outcome::UnreadableStack) if stack.len() + PAGE > MAX_REMAINDER_BYTES => {
                    return (words, Outcome::NoTable);
                }
                Step::Stop(outcome) => return (words, outcome),
                Step::Caller | Step::Switched | Step::Interrupted | Step::NoRule => {
                    return (words, Outcome::BadUnwindRule);
                }
            }
        }
    }
}
