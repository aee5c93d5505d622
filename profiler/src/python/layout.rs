//! Where each version keeps what is read of it.
//!
//! The figures are `offsetof` of the headers of each version (Include/internal/pycore_*.h, Include/cpython/code.h) on
//! x86-64; they have not changed within a minor version. 3.13 says its own, in `_Py_DebugOffsets`.

use profiler_common::python::{PYTHON_ENTRY_FRAMES, PYTHON_FRAME_OBJECTS, PYTHON_HAS_CFRAME, PythonLayout};

use super::lines::LineFormat;

/// What user space reads of a version's objects. Offsets in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct CodeLayout {
    /// `co_firstlineno`.
    pub(super) first_line: usize,
    /// `co_filename`.
    pub(super) file: usize,
    /// `co_qualname`, or `co_name` before 3.11.
    pub(super) name: usize,
    /// `co_linetable`, or `co_lnotab` before 3.10.
    pub(super) lines: usize,
    /// How that is coded.
    pub(super) line_format: LineFormat,
    /// Bytes before the characters of a string that is ASCII.
    pub(super) ascii_header: u64,
    /// Bytes before those of another.
    pub(super) text_header: u64,
}

/// Both parts of a version's layout.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Layout {
    pub(super) walk: PythonLayout,
    pub(super) code: CodeLayout,
}

/// Frames as objects: 3.8 to 3.10.
const FRAME_OBJECTS: PythonLayout = PythonLayout {
    interpreters_head: 32,
    interpreter_next: 0,
    threads_head: 8,
    thread_next: 8,
    thread_id: 176,
    thread_frame: 24,
    cframe_current: 0,
    frame_bytes: 112,
    frame_code: 32,
    frame_previous: 24,
    frame_instruction: 104,
    frame_entry: 0,
    code_start: 0,
    instruction_shift: 1,
    flags: PYTHON_FRAME_OBJECTS,
    reserved: 0,
};

const CODE_TO_3_10: CodeLayout = CodeLayout {
    first_line: 40,
    file: 104,
    name: 112,
    lines: 120,
    line_format: LineFormat::Pairs,
    ascii_header: 48,
    text_header: 72,
};

const CODE_FROM_3_11: CodeLayout =
    CodeLayout { first_line: 72, file: 112, name: 128, lines: 136, line_format: LineFormat::Locations, ..CODE_TO_3_10 };

const CODE_FROM_3_12: CodeLayout = CodeLayout { first_line: 68, ascii_header: 40, text_header: 56, ..CODE_FROM_3_11 };

/// The layout of a version, for those that do not say it themselves.
pub(super) fn of_version(version: (u32, u32)) -> Option<Layout> {
    Some(match version {
        (3, 8 | 9) => Layout { walk: FRAME_OBJECTS, code: CODE_TO_3_10 },
        (3, 10) => Layout {
            // The number of the instruction counts code units here, bytes before.
            walk: PythonLayout { frame_instruction: 96, instruction_shift: 0, ..FRAME_OBJECTS },
            code: CodeLayout { line_format: LineFormat::Ranges, ..CODE_TO_3_10 },
        },
        (3, 11) => Layout {
            walk: PythonLayout {
                interpreters_head: 40,
                interpreter_next: 0,
                threads_head: 16,
                thread_next: 8,
                thread_id: 152,
                thread_frame: 56,
                cframe_current: 8,
                frame_bytes: 72,
                frame_code: 32,
                frame_previous: 48,
                frame_instruction: 56,
                frame_entry: 68,
                code_start: 184,
                instruction_shift: 0,
                flags: PYTHON_HAS_CFRAME,
                reserved: 0,
            },
            code: CODE_FROM_3_11,
        },
        (3, 12) => Layout {
            walk: PythonLayout {
                interpreters_head: 40,
                interpreter_next: 0,
                threads_head: 72,
                thread_next: 8,
                thread_id: 136,
                thread_frame: 56,
                cframe_current: 0,
                frame_bytes: 72,
                frame_code: 0,
                frame_previous: 8,
                frame_instruction: 56,
                frame_entry: 70,
                code_start: 192,
                instruction_shift: 0,
                flags: PYTHON_HAS_CFRAME | PYTHON_ENTRY_FRAMES,
                reserved: 0,
            },
            code: CODE_FROM_3_12,
        },
        _ => return None,
    })
}

/// Bytes of `_Py_DebugOffsets` that are read.
pub(super) const DEBUG_OFFSETS_BYTES: usize = 352;

/// The layout that 3.13 states; `None` for anything else, and for a build without a global lock.
///
/// Source: `_Py_DebugOffsets`, Include/internal/pycore_runtime.h, 3.13.
pub(super) fn of_debug_offsets(bytes: &[u8]) -> Option<Layout> {
    let word = |at: usize| Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?));
    // No structure of 3.13 is larger than a few hundred KiB: a figure beyond is damaged.
    let offset = |at: usize| word(at).and_then(|word| u32::try_from(word).ok()).filter(|&offset| offset < 1 << 24);
    let small = |at: usize| offset(at).filter(|&offset| offset < 1 << 12);
    if bytes.get(..8)? != b"xdebugpy" || word(8)? >> 16 != 0x030d || word(16)? != 0 {
        return None;
    }
    let owner = small(264)?;
    let index = |at: usize| small(at).map(|offset| offset as usize);
    Some(Layout {
        walk: PythonLayout {
            interpreters_head: offset(40)?,
            interpreter_next: offset(64)?,
            threads_head: offset(72)?,
            thread_next: offset(168)?,
            thread_id: offset(192)?,
            thread_frame: offset(184)?,
            cframe_current: 0,
            frame_bytes: (owner | 7) + 1,
            frame_code: small(240)?,
            frame_previous: small(232)?,
            frame_instruction: small(248)?,
            frame_entry: owner,
            code_start: small(344)?,
            instruction_shift: 0,
            flags: PYTHON_ENTRY_FRAMES,
            reserved: 0,
        },
        code: CodeLayout {
            first_line: index(312)?,
            file: index(280)?,
            name: index(296)?,
            lines: index(304)?,
            ..CODE_FROM_3_12
        },
    })
}
