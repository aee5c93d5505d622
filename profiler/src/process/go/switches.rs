//! Functions of Go's runtime that go on on another stack: at which of their instructions, and where the caller is then.
//!
//! Input: the machine code of these functions, which are few and written in assembly. Output: ranges in which the line
//! table's depth does not lead to the caller, and what does. Knows what Go 1.19 to 1.27 look like, by the instructions
//! that write the stack pointer; code that looks different is refused as a whole.
//!
//! Source: src/runtime/asm_amd64.s, src/runtime/sys_linux_amd64.s, src/cmd/internal/obj/x86/obj6.go.

use std::ops::Range;

use super::GoCode;

/// Functions with a frame of their own on the stack they leave, since Go 1.21 all but `runtime.morestack`: rbp leads to it.
/// The first ones call the vDSO on the system's stack.
const FRAMED: [&str; 6] = [
    "runtime.nanotime1",
    "runtime.walltime",
    "runtime.walltime1",
    "time.now",
    "runtime.systemstack",
    "runtime.asmcgocall",
];

/// Bytes of such a function: they have up to 200.
pub(super) const MAX_BYTES: u64 = 4096;

/// Whether a function may be one of these.
pub(super) fn is_one(name: &str) -> bool {
    FRAMED.contains(&name) || ["runtime.mcall", "runtime.morestack"].contains(&name)
}

/// What was read from the functions before, which come in this order: `mcall`, `systemstack`, the others.
#[derive(Default)]
pub(super) struct Switches {
    /// Of the pointer to `g`, from the thread's pointer, and of `m.curg`.
    thread: Option<(i32, i32)>,
    /// Of `g.sched.bp`.
    frame_pointer: Option<i16>,
}

impl Switches {
    /// The ranges of a function, by offset and ascending, in which its caller is found otherwise than by depth; `None`
    /// when the function is not understood.
    pub(super) fn of(&mut self, name: &str, code: &[u8]) -> Option<Vec<(Range<usize>, GoCode)>> {
        if let "runtime.mcall" | "runtime.morestack" = name {
            self.frame_pointer = saved_frame_pointer(code);
        }
        if name == "runtime.systemstack" {
            // mov g_m(%rax),%rbx: where that is, the walk takes for granted.
            let has_thread = !all(code, &[0x48, 0x8b, 0x58, 0x30]).is_empty();
            self.thread = thread_offset(code).zip(current_offset(code)).filter(|_| has_thread);
        }
        if FRAMED.contains(&name)
            && let Some(ranges) = framed(code)
        {
            return Some(ranges);
        }
        match name {
            "runtime.systemstack" => {
                let from = only(code, &[&[0x48, 0x89, 0xdc], &[0x48, 0x8b, 0x62, SP]])?;
                let to = only(code, &[&[0x48, 0x8b, 0x60, SP]]).filter(|&to| to > from)?;
                Some(vec![(from..to, self.goroutine(false)?)])
            }
            "runtime.asmcgocall" => {
                // Where it is on the system's stack already, it goes another way.
                const ALIGN: [u8; 8] = [0x48, 0x83, 0xec, 0x40, 0x48, 0x83, 0xe4, 0xf0];
                const RETURN: [u8; 8] = [0x48, 0x89, 0xf4, 0x89, 0x44, 0x24, 0x18, 0xc3];
                let from = only(code, &[&[0x48, 0x8b, 0x66, SP]])?;
                let [first, second] = all(code, &ALIGN)[..] else { return None };
                let to = *all(code, &RETURN).first().filter(|&&to| first > from && to < second)?;
                // The last five bytes of it are behind the switch back.
                Some(vec![(from..to - 5, self.goroutine(false)?), (to..code.len(), GoCode::Root)])
            }
            "runtime.morestack" => {
                let from = only(code, &[&[0x48, 0x8b, 0x63, SP]])?;
                Some(vec![(from..code.len(), self.goroutine(true)?)])
            }
            _ => None,
        }
    }

    fn goroutine(&self, resumes: bool) -> Option<GoCode> {
        let ((thread, current), frame_pointer) = (self.thread?, self.frame_pointer?);
        Some(GoCode::Goroutine { thread, current, frame_pointer, resumes })
    }
}

/// Visits a range in which the depth is known, with what holds in parts of it instead: `ranges`, by offset from `start`.
pub(super) fn split(
    whole: Range<u64>,
    depth: GoCode,
    start: u64,
    ranges: &[(Range<usize>, GoCode)],
    mut visit: impl FnMut(u64, u64, GoCode),
) {
    let mut from = whole.start;
    for (range, code) in ranges {
        let part = (start + range.start as u64).max(from)..(start + range.end as u64).min(whole.end);
        if part.is_empty() {
            continue;
        }
        if from < part.start {
            visit(from, part.start, depth);
        }
        visit(part.start, part.end, *code);
        from = part.end;
    }
    if from < whole.end {
        visit(from, whole.end, depth);
    }
}

/// `g.sched.sp`.
const SP: u8 = 0x38;

/// The ranges of a function that begins and ends as the assembler does it where there is a frame.
fn framed(code: &[u8]) -> Option<Vec<(Range<usize>, GoCode)>> {
    let begin = match *code {
        // push %rbp; mov %rsp,%rbp
        [0x55, 0x48, 0x89, 0xe5, ..] => 4,
        // sub $size,%rsp; mov %rbp,at(%rsp); lea at(%rsp),%rbp
        [0x48, 0x83, 0xec, size, 0x48, 0x89, 0x6c, 0x24, at, 0x48, 0x8d, 0x6c, 0x24, again, ..]
            if at == again && size == at.wrapping_add(8) =>
        {
            14
        }
        _ => return None,
    };
    let mut ranges = Vec::new();
    let mut from = begin;
    for at in begin..code.len() {
        // Where rbp is the caller's again, and where that ends.
        let (restored, end) = match code[at..] {
            // pop %rbp; ret
            [0x5d, 0xc3, ..] => (at + 1, at + 2),
            // pop %rbp; jmp *%rdi
            [0x5d, 0xff, 0xe7, ..] => (at + 1, at + 3),
            // mov at(%rsp),%rbp; add $size,%rsp; ret
            [0x48, 0x8b, 0x6c, 0x24, slot, 0x48, 0x83, 0xc4, size, 0xc3, ..] if size == slot.wrapping_add(8) => {
                (at + 5, at + 10)
            }
            _ => continue,
        };
        ranges.push((from..restored, GoCode::OtherStack));
        from = end;
    }
    if ranges.is_empty() {
        return None;
    }
    ranges.push((from..code.len(), GoCode::OtherStack));
    Some(ranges)
}

/// `mov %fs:offset,%rax`, or `mov $offset,%rcx; mov %fs:(%rcx),%rax` as linkers make it for programs that are moved.
fn thread_offset(code: &[u8]) -> Option<i32> {
    const FROM_RCX: [u8; 4] = [0x64, 0x48, 0x8b, 0x01];
    let fixed = all(code, &[0x64, 0x48, 0x8b, 0x04, 0x25]);
    let mut moved = all(code, &[0x48, 0xc7, 0xc1]);
    moved.retain(|&at| code[at..].get(4..8) == Some(&FROM_RCX));
    same(fixed.into_iter().chain(moved).map(|at| number(code, at)))
}

/// `cmp m_curg(%rbx),%rax`.
fn current_offset(code: &[u8]) -> Option<i32> {
    number(code, only(code, &[&[0x48, 0x3b, 0x83]])?)
}

/// `mov %rbp,g_sched_bp(register)`.
fn saved_frame_pointer(code: &[u8]) -> Option<i16> {
    same(code.windows(4).filter_map(|window| match *window {
        [0x48 | 0x49, 0x89, 0x68..=0x6b | 0x6d..=0x6f, offset] => Some(Some(i16::from(offset))),
        _ => None,
    }))
}

/// Where the bytes behind a pattern begin, at every place it is found.
fn all(code: &[u8], pattern: &[u8]) -> Vec<usize> {
    let found = code.windows(pattern.len()).enumerate().filter(|(_, window)| *window == pattern);
    found.map(|(at, _)| at + pattern.len()).collect()
}

/// Where the bytes behind the only one of some patterns begin.
fn only(code: &[u8], patterns: &[&[u8]]) -> Option<usize> {
    let mut found = patterns.iter().flat_map(|pattern| all(code, pattern));
    found.next().filter(|_| found.next().is_none())
}

/// What all of them are.
fn same<T: Copy + PartialEq>(mut values: impl Iterator<Item = Option<T>>) -> Option<T> {
    let first = values.next()??;
    values.all(|value| value == Some(first)).then_some(first)
}

fn number(code: &[u8], at: usize) -> Option<i32> {
    Some(i32::from_le_bytes(*code.get(at..)?.first_chunk()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code(text: &str) -> Vec<u8> {
        let bytes = text.split_ascii_whitespace().map(|byte| u8::from_str_radix(byte, 16).unwrap());
        bytes.collect()
    }

    /// As Go 1.19 makes them, by `objdump -d`.
    const MCALL: &str = "48 89 c2 48 8b 1c 24 49 89 5e 40 48 8d 5c 24 08 49 89 5e 38 49 89 6e 68 49 8b 5e 30 48 8b 33 4c 39 \
         f6 75 05 e9 57 47 00 00 4c 89 f0 49 89 f6 64 4c 89 34 25 f8 ff ff ff 49 8b 66 38 50 4c 8b 22 41 ff d4 58 e9 77 \
         47 00 00 c3";
    const SYSTEMSTACK: &str = "48 8b 7c 24 08 64 48 8b 04 25 f8 ff ff ff 48 8b 58 30 48 3b 43 50 74 5b 48 8b 13 48 39 d0 74 53 \
         48 3b 83 c0 00 00 00 75 52 e8 d2 f1 ff ff 64 48 89 14 25 f8 ff ff ff 49 89 d6 48 8b 5a 38 48 89 dc 48 89 fa 48 8b \
         3f ff d7 64 48 8b 04 25 f8 ff ff ff 48 8b 58 30 48 8b 83 c0 00 00 00 64 48 89 04 25 f8 ff ff ff 48 8b 60 38 48 c7 \
         40 38 00 00 00 00 c3 48 89 fa 48 8b 3f ff e7 48 8d 05 be 48 00 00 ff d0 cd 03";
    /// The same where the program is moved.
    const SYSTEMSTACK_MOVED: &str = "48 8b 7c 24 08 48 c7 c1 f0 ff ff ff 64 48 8b 01 48 8b 58 30 48 3b 43 50 74 53 48 8b 13 48 \
         39 d0 74 4b 48 3b 83 c0 00 00 00 75 4a e8 d0 f1 ff ff 64 48 89 11 49 89 d6 48 8b 5a 38 48 89 dc 48 89 fa 48 8b 3f \
         ff d7 48 c7 c1 f0 ff ff ff 64 48 8b 01 48 8b 58 30 48 8b 83 c0 00 00 00 64 48 89 01 48 8b 60 38 48 c7 40 38 00 00 \
         00 00 c3 48 89 fa 48 8b 3f ff e7 48 8d 05 44 47 00 00 ff d0 cd 03";
    const ASMCGOCALL: &str = "48 8b 44 24 08 48 8b 5c 24 10 48 89 e2 64 48 8b 3c 25 f8 ff ff ff 48 83 ff 00 74 67 4c 8b 47 30 49 \
         8b 70 50 48 39 f7 74 5a 49 8b 30 48 39 f7 74 52 e8 6a d3 ff ff 64 48 89 34 25 f8 ff ff ff 48 8b 66 38 48 83 ec 40 \
         48 83 e4 f0 48 89 7c 24 30 48 8b 7f 08 48 29 d7 48 89 7c 24 28 48 89 df 48 89 d9 ff d0 48 8b 7c 24 30 48 8b 77 08 \
         48 2b 74 24 28 64 48 89 3c 25 f8 ff ff ff 48 89 f4 89 44 24 18 c3 48 83 ec 40 48 83 e4 f0 48 c7 44 24 30 00 00 00 \
         00 48 89 54 24 28 48 89 df 48 89 d9 ff d0 48 8b 74 24 28 48 89 f4 89 44 24 18 c3";
    const MORESTACK: &str = "48 8b 44 24 08 48 89 43 10 48 8d 44 24 10 48 89 43 08 48 89 73 18 48 8b 04 24 48 89 46 40 48 8d 44 \
         24 08 48 89 46 38 48 89 6e 68 48 89 56 50 48 8b 1b 64 48 89 1c 25 f8 ff ff ff 48 8b 63 38 e8 d5 47 00 00 e8 30 1f \
         00 00 c3";
    const NANOTIME: &str = "48 83 ec 18 48 89 6c 24 10 48 8d 6c 24 10 49 89 e4 48 8b 62 38 ff d0 4c 89 e4 48 89 44 24 20 48 8b 6c \
         24 10 48 83 c4 18 c3 48 c7 c0 e4 00 00 00 0f 05 eb b9";
    /// As Go 1.24 makes it.
    const SYSTEMSTACK_FRAMED: &str = "55 48 89 e5 48 8b 7c 24 10 64 48 8b 04 25 f8 ff ff ff 48 8b 62 38 48 89 fa 48 8b 3f ff d7 48 8b \
         60 38 48 8b 68 68 48 c7 40 38 00 00 00 00 48 c7 40 68 00 00 00 00 5d c3 48 89 fa 48 8b 3f 5d ff e7 48 8d 05 2f 4a 00 \
         00 ff d0 cd 03";

    fn of(switches: &mut Switches, name: &str, text: &str) -> Option<Vec<(Range<usize>, GoCode)>> {
        switches.of(name, &code(text))
    }

    /// Where a piece of code is, and behind it.
    fn place(text: &str, piece: &str) -> Range<usize> {
        let (text, piece) = (code(text), code(piece));
        let at = only(&text, &[&piece]).unwrap();
        at - piece.len()..at
    }

    #[test]
    fn the_system_stack_is_left_between_the_two_writes_of_rsp() {
        for (text, thread) in [(SYSTEMSTACK, -8), (SYSTEMSTACK_MOVED, -16)] {
            let mut switches = Switches::default();
            assert_eq!(of(&mut switches, "runtime.mcall", MCALL), None);
            let code = |resumes| GoCode::Goroutine { thread, current: 0xc0, frame_pointer: 0x68, resumes };
            let range = place(text, "48 89 dc").end..place(text, "48 8b 60 38").end;
            assert_eq!(of(&mut switches, "runtime.systemstack", text), Some(vec![(range, code(false))]));
            let range = place(MORESTACK, "48 8b 63 38").end..MORESTACK.split_ascii_whitespace().count();
            assert_eq!(of(&mut switches, "runtime.morestack", MORESTACK), Some(vec![(range, code(true))]));
            let from = place(ASMCGOCALL, "48 8b 66 38").end;
            let to = place(ASMCGOCALL, "ff ff ff 48 89 f4").end;
            let end = ASMCGOCALL.split_ascii_whitespace().count();
            let ranges = vec![(from..to, code(false)), (to + 5..end, GoCode::Root)];
            assert_eq!(of(&mut switches, "runtime.asmcgocall", ASMCGOCALL), Some(ranges));
        }
    }

    #[test]
    fn depths_hold_where_nothing_else_does() {
        let ranges = [(2..4, GoCode::OtherStack), (6..9, GoCode::Root)];
        let split = |whole: Range<u64>| {
            let mut found = Vec::new();
            split(whole, GoCode::Depth(1), 100, &ranges, |from, to, code| found.push((from, to, code)));
            found
        };
        let (depth, other) = (GoCode::Depth(1), GoCode::OtherStack);
        assert_eq!(
            split(100..107),
            [(100, 102, depth), (102, 104, other), (104, 106, depth), (106, 107, GoCode::Root)]
        );
        assert_eq!(split(103..105), [(103, 104, other), (104, 105, depth)]);
        assert_eq!(split(109..112), [(109, 112, depth)]);
        assert_eq!(split(102..104), [(102, 104, other)]);
    }

    #[test]
    fn a_function_with_a_frame_is_left_by_rbp_but_for_its_ends() {
        let mut switches = Switches::default();
        let end = NANOTIME.split_ascii_whitespace().count();
        let last = place(NANOTIME, "48 8b 6c 24 10");
        let other = GoCode::OtherStack;
        let ranges = vec![(14..last.end, other), (last.end + 5..end, other)];
        assert_eq!(of(&mut switches, "runtime.nanotime1", NANOTIME), Some(ranges));
        let end = SYSTEMSTACK_FRAMED.split_ascii_whitespace().count();
        let (first, second) = (place(SYSTEMSTACK_FRAMED, "5d c3"), place(SYSTEMSTACK_FRAMED, "5d ff e7"));
        let ranges = vec![(4..first.start + 1, other), (first.end..second.start + 1, other), (second.end..end, other)];
        assert_eq!(of(&mut switches, "runtime.systemstack", SYSTEMSTACK_FRAMED), Some(ranges));
    }

    #[test]
    fn code_that_looks_different_is_refused() {
        let mut known = Switches::default();
        of(&mut known, "runtime.mcall", MCALL);
        for (name, text, piece) in [
            ("runtime.systemstack", SYSTEMSTACK, "48 89 dc"),
            ("runtime.systemstack", SYSTEMSTACK, "48 8b 60 38"),
            ("runtime.systemstack", SYSTEMSTACK, "48 3b 83"),
            ("runtime.nanotime1", NANOTIME, "48 8d 6c 24 10"),
            ("runtime.nanotime1", NANOTIME, "48 83 c4 18"),
        ] {
            let mut damaged = code(text);
            damaged[place(text, piece).start] ^= 1;
            assert_eq!(known.of(name, &damaged), None, "{name} without {piece}");
        }
        // Twice is not once.
        let twice = [code(SYSTEMSTACK), code("48 89 dc")].concat();
        assert_eq!(known.of("runtime.systemstack", &twice), None);
        // Nothing is known of the thread.
        assert_eq!(of(&mut Switches::default(), "runtime.morestack", MORESTACK), None);
        assert_eq!(known.of("runtime.gogo", &code(SYSTEMSTACK)), None);
        for length in 0..code(NANOTIME).len() - 14 {
            known.of("runtime.nanotime1", &code(NANOTIME)[..length]);
            known.of("runtime.systemstack", &code(SYSTEMSTACK)[..length]);
            known.of("runtime.asmcgocall", &code(ASMCGOCALL)[..length]);
        }
    }
}
