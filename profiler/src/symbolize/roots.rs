//! Chains that reached the start of their process or thread although the frame pointer ended before it.
//!
//! The C library calls `main` from a function that has no frame pointer, on distributions that build it so: the walk
//! ends there for want of a frame pointer, and nothing is missing. Go's runtime does some of its work on a stack of the
//! system's: where the walk did not follow it to the goroutine's, such a chain ends there.

use profiler_common::counters::Outcome;

use crate::profile::{RawFrame, RawProfile};

/// Functions that nobody calls, or only the likes of them.
const START_FUNCTIONS: [&str; 18] = [
    "_start",
    "__libc_start_call_main",
    "__libc_start_main",
    "__libc_start_main@@GLIBC_2.34",
    "__libc_start_main_impl",
    "start_thread",
    "clone",
    "__clone",
    "clone3",
    "__clone3",
    "__GI___clone3",
    "runtime.goexit",
    "runtime.rt0_go",
    "runtime.mstart",
    "runtime.mstart0",
    "runtime.mstart1",
    "crosscall_amd64",
    "crosscall1",
];

/// Functions of the Go runtime that go on, on a stack of the system, with work of its own. What they run there was
/// called by nobody else on that stack: the goroutine's own, in which it may end, is another one.
///
/// Source: src/runtime/asm_amd64.s.
const STACK_SWITCHES: [&str; 10] = [
    "runtime.systemstack",
    "runtime.mcall",
    "runtime.morestack",
    "runtime.asmcgocall",
    "runtime.cgocallback",
    "runtime.sigtramp",
    "runtime.sigreturn",
    // These call the vDSO there.
    "runtime.nanotime1",
    "runtime.walltime",
    "time.now",
];

/// The function that a start function calls: whoever is called by it has been reached, and the caller has no name.
const FIRST_FUNCTION: &str = "main";

/// Removes the marker from chains that reached a start function.
///
/// `name`: the outermost function at a frame, by its number. Returns the events of the chains that are whole now, by
/// the outcome that their samples still have: that of the kernel chain.
pub(super) fn complete<'a>(raw: &mut RawProfile, name: impl Fn(u32) -> Option<&'a str>) -> [u64; Outcome::COUNT] {
    let mut completed = [0; Outcome::COUNT];
    let outcome_of = |raw: &RawProfile, frame: u32| match raw.frames.values().get(frame as usize) {
        Some(RawFrame::Marker(outcome)) => Some(*outcome),
        _ => None,
    };
    for ((stack, thread, reason, span), values) in std::mem::take(&mut raw.samples) {
        let frames = &raw.stacks.values()[stack as usize];
        let whole: Option<Box<[u32]>> = match frames.split_last() {
            Some((&marker, rest)) if outcome_of(raw, marker) == Some(Outcome::NoFramePointer) => {
                let mut rootward = rest.iter().rev().map(|&frame| name(frame));
                let (last, before) = (rootward.next().flatten(), rootward.next().flatten());
                let started = last.is_some_and(|last| {
                    START_FUNCTIONS.contains(&last) || STACK_SWITCHES.contains(&last) || last == FIRST_FUNCTION
                });
                (started || before == Some(FIRST_FUNCTION)).then(|| Box::from(rest))
            }
            _ => None,
        };
        let stack = match whole {
            Some(whole) => {
                let cut = whole.iter().find_map(|&frame| outcome_of(raw, frame));
                completed[cut.unwrap_or(Outcome::Complete) as usize] += values[0];
                raw.stacks.intern(whole)
            }
            None => stack,
        };
        raw.add(stack, thread, reason, span, &values);
    }
    completed
}

#[cfg(test)]
mod tests {
    use profiler_common::event::Origin;

    use super::*;
    use crate::profile::Thread;

    #[test]
    fn a_chain_that_reached_main_is_whole() {
        let mut raw = RawProfile::new(Origin::Cpu);
        let names = ["hot", "main", "start_thread", "[nameless]", "runtime.systemstack"];
        let frames: Vec<u32> = (0..5).map(|address| raw.frames.intern(RawFrame::Unknown(address))).collect();
        let marker = raw.frames.intern(RawFrame::Marker(Outcome::NoFramePointer));
        let thread = raw.threads.intern(Thread {
            pid: 1,
            tid: 1,
            start_time_ns: 0,
            exec_count: 0,
            process_name: String::new(),
            thread_name: String::new(),
            cgroup: String::new(),
        });
        let stacks = [
            vec![frames[0], frames[1], frames[3], marker],
            vec![frames[0], frames[1], frames[3]],
            vec![frames[0], frames[2], marker],
            vec![frames[0], frames[4], marker],
            vec![frames[4], frames[0], marker],
            vec![frames[0], frames[3], marker],
        ];
        for stack in &stacks {
            let stack = raw.stacks.intern(stack.clone().into_boxed_slice());
            raw.add(stack, thread, 0, 0, &[1, 0, 0, 0]);
        }
        let completed = complete(&mut raw, |frame| names.get(frame as usize).copied());
        assert_eq!(completed[Outcome::Complete as usize], 3);
        assert_eq!(raw.events(), 6);
        assert_eq!(raw.samples.len(), 5, "two stacks have become equal");
    }
}
