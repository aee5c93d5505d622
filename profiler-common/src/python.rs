//! What the programs know of CPython: where a version keeps its threads and frames, and how a frame is told.
//!
//! A frame is one word: the address of its code object and the instruction it is at. What that means, names and lines,
//! user space reads from the process's memory.

/// Where one version of CPython keeps what the walk needs: a value of the `PYTHON_LAYOUTS` map. Offsets in bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct PythonLayout {
    /// `_PyRuntimeState.interpreters.head`.
    pub interpreters_head: u32,
    /// `PyInterpreterState.next`.
    pub interpreter_next: u32,
    /// `PyInterpreterState.threads.head`, or `.tstate_head`.
    pub threads_head: u32,
    /// `PyThreadState.next`.
    pub thread_next: u32,
    /// `PyThreadState.thread_id`.
    pub thread_id: u32,
    /// `PyThreadState.frame`, `.cframe` or `.current_frame`.
    pub thread_frame: u32,
    /// With [`PYTHON_HAS_CFRAME`]: `_PyCFrame.current_frame`.
    pub cframe_current: u32,
    /// Bytes of a frame that are read: those that every frame has.
    pub frame_bytes: u32,
    /// `_PyInterpreterFrame.f_code`, `.f_executable`, or `PyFrameObject.f_code`.
    pub frame_code: u32,
    /// `_PyInterpreterFrame.previous`, or `PyFrameObject.f_back`.
    pub frame_previous: u32,
    /// `_PyInterpreterFrame.prev_instr`, `.instr_ptr`, or `PyFrameObject.f_lasti`.
    pub frame_instruction: u32,
    /// `_PyInterpreterFrame.is_entry` or `.owner`; of no meaning with [`PYTHON_FRAME_OBJECTS`].
    pub frame_entry: u32,
    /// `PyCodeObject.co_code_adaptive`; of no meaning with [`PYTHON_FRAME_OBJECTS`].
    pub code_start: u32,
    /// Bits that an instruction's number in a frame object is shifted by to count code units.
    pub instruction_shift: u32,
    /// [`PYTHON_FRAME_OBJECTS`] and the like.
    pub flags: u32,
    /// Zero.
    pub reserved: u32,
}

/// Frames are objects, each evaluated by a C function of its own (to 3.10).
pub const PYTHON_FRAME_OBJECTS: u32 = 1;

/// The thread's frame is behind a structure on the C stack (3.11, 3.12).
pub const PYTHON_HAS_CFRAME: u32 = 2;

/// A frame that C code entered is followed by one on the C stack that stands for it (from 3.12 on); otherwise it has a
/// flag.
pub const PYTHON_ENTRY_FRAMES: u32 = 4;

/// Layouts at most: one a version, and one for each build of 3.13 that differs.
pub const MAX_PYTHON_LAYOUTS: usize = 32;

/// `FRAME_OWNED_BY_CSTACK`. Source: `enum _frameowner`, Include/internal/pycore_frame.h, 3.12 and 3.13.
pub const PYTHON_OWNED_BY_CSTACK: u64 = 3;

/// Python frames of a chain at most. The interpreter's own limit is 1,000 unless it is raised; more do not fit the
/// scratch space.
pub const MAX_PYTHON_FRAMES: usize = 256;

/// Threads that are looked at to find the one that runs.
pub const MAX_PYTHON_THREADS: usize = 256;

/// Bits of an instruction's number.
const INSTRUCTION_BITS: u32 = 16;

/// The number of an instruction that is too far from the function's beginning to be told, which takes 128 KiB.
pub const UNKNOWN_INSTRUCTION: u64 = (1 << INSTRUCTION_BITS) - 1;

/// The first address that no process has. A frame word has room for 44 bits of an address, and objects are aligned to 8:
/// with five-level paging, memory above is given only to those who ask for it.
const ADDRESS_END: u64 = 1 << 47;

/// Why a Python chain ends before its root. In the word of a frame, in place of the instruction, where there is no code.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum PythonCut {
    /// More frames than the walk may take.
    DepthLimit = 1,
    /// The interpreter's memory could not be read, or makes no sense.
    Unreadable = 2,
    /// More threads than the walk looks at.
    TooManyThreads = 3,
}

impl PythonCut {
    /// The name in `[python: NAME]` frames.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::DepthLimit => "depth_limit",
            Self::Unreadable => "unreadable",
            Self::TooManyThreads => "too_many_threads",
        }
    }
}

/// What the payload of an interpreted frame's word says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum PythonFrame {
    /// A function: address of its code object, and the instruction it is at, in code units of two bytes.
    Code(u64, u64),
    /// The chain ends here.
    Cut(PythonCut),
}

impl PythonFrame {
    /// Reads a payload; `None` for one that nobody writes.
    #[must_use]
    pub const fn from_payload(payload: u64) -> Option<Self> {
        let (code, low) = (payload >> INSTRUCTION_BITS, payload & UNKNOWN_INSTRUCTION);
        if code != 0 {
            return Some(Self::Code(code << 3, low));
        }
        match low {
            1 => Some(Self::Cut(PythonCut::DepthLimit)),
            2 => Some(Self::Cut(PythonCut::Unreadable)),
            3 => Some(Self::Cut(PythonCut::TooManyThreads)),
            _ => None,
        }
    }
}

/// Whether a code object can be there.
#[inline(always)]
#[must_use]
pub const fn is_code_object(address: u64) -> bool {
    address != 0 && address & 7 == 0 && address < ADDRESS_END
}

/// The payload of a frame: a code object for which [`is_code_object`] holds, and its instruction.
#[inline(always)]
#[must_use]
pub const fn python_payload(code: u64, instruction: u64) -> u64 {
    let instruction = if instruction < UNKNOWN_INSTRUCTION { instruction } else { UNKNOWN_INSTRUCTION };
    ((code >> 3) << INSTRUCTION_BITS) | instruction
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn payloads_survive_storage() {
        let code = 0x7fff_ffff_fff8;
        assert!(is_code_object(code) && !is_code_object(code + 8) && !is_code_object(12) && !is_code_object(0));
        for (instruction, kept) in [(0, 0), (65_534, 65_534), (65_535, 65_535), (1 << 40, 65_535)] {
            let payload = python_payload(code, instruction);
            assert!(payload < 1 << 60);
            assert_eq!(PythonFrame::from_payload(payload), Some(PythonFrame::Code(code, kept)));
        }
        for cut in [PythonCut::DepthLimit, PythonCut::Unreadable, PythonCut::TooManyThreads] {
            assert_eq!(PythonFrame::from_payload(cut as u64), Some(PythonFrame::Cut(cut)));
        }
        assert_eq!(PythonFrame::from_payload(0), None);
    }
}
