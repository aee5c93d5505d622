//! The Python chain of the running thread, from the interpreter's own structures: thread by thread until the one that
//! runs is found, then frame by frame. Its words follow those of the native chain; user space merges the two.
//!
//! Everything is read by helpers that survive any address. A thread that is not the interpreter's has no frames here.

use aya_ebpf::helpers::generated::bpf_probe_read_user;
use core::ffi::c_void;
use profiler_common::config::Process;
use profiler_common::counters::Outcome;
use profiler_common::event::{FrameWord, HASH_SEED, MAX_STACK_WORDS, MAX_USER_FRAMES, hash_word};
use profiler_common::python::{
    MAX_PYTHON_FRAMES, MAX_PYTHON_THREADS, PYTHON_ENTRY_FRAMES, PYTHON_FRAME_OBJECTS, PYTHON_HAS_CFRAME,
    PYTHON_OWNED_BY_CSTACK, PythonCut, PythonLayout, is_code_object, python_payload,
};

use crate::maps::{PYTHON_LAYOUTS, Programs, SCRATCH, Scratch};
use crate::task::thread_pointer;

/// Where a Python walk has got to. In the scratch space for the same reason as [`crate::unwind::Walk`].
#[repr(C)]
pub(crate) struct PythonWalk {
    /// Number of the layout, from 1; 0 where there is nothing to walk.
    layout_number: u64,
    /// Address of `_PyRuntime`.
    runtime: u64,
    /// `pthread_t` of the thread that runs.
    thread_pointer: u64,
    /// A `Stage`.
    stage: u64,
    /// Address of the interpreter, while its threads are looked at.
    interpreter: u64,
    /// Address of the thread state or frame that is looked at next.
    next: u64,
    /// The frame that was found last, not yet in the chain: a payload, and 0 for none.
    pending: u64,
    /// Threads looked at.
    threads: u64,
    /// Words found.
    pub(crate) length: u64,
    /// Hash of them.
    pub(crate) hash: u64,
    /// Where the version keeps things.
    layout: PythonLayout,
    /// A frame.
    frame: [u64; FRAME_WORDS],
}

/// Words of a frame that are read at most: a power of two that every layout's `frame_bytes` is below.
const FRAME_WORDS: usize = 16;

/// What a turn looks at.
mod stage {
    /// The runtime: not begun yet.
    pub(super) const RUNTIME: u64 = 0;
    /// A thread state.
    pub(super) const THREAD: u64 = 1;
    /// A frame.
    pub(super) const FRAME: u64 = 2;
}

/// Turns of a walk at most: one for the runtime, the threads, and the frames with one in between for each, which is
/// what there is where every frame was entered from C.
const MAX_TURNS: usize = 1 + MAX_PYTHON_THREADS + 2 * MAX_PYTHON_FRAMES + 1;

/// Notes whether there is a Python chain to walk. No more than that: every process's sample pays for it.
#[inline(always)]
pub(crate) fn prepare(process: Option<&Process>, walk: &mut PythonWalk) {
    walk.layout_number = u64::from(process.map_or(0, |process| process.python_layout));
    walk.runtime = process.map_or(0, |process| process.python_runtime);
    walk.stage = stage::RUNTIME;
    walk.length = 0;
}

/// The slot of `CPU_PYTHON` to go on with: none is so high where there is no Python chain to walk, and the call returns.
///
/// No branch: the verifier would follow all that comes after twice.
#[inline(always)]
pub(crate) fn slot(scratch: &Scratch) -> u32 {
    (scratch.python.layout_number as u32).wrapping_sub(1)
}

/// Walks the whole chain, in the scratch space of a program type.
#[inline(always)]
pub(crate) fn walk(programs: Programs) {
    for _ in 0..MAX_TURNS {
        if walk_python(programs as u32) == 0 {
            return;
        }
    }
}

/// One turn of the walk in the scratch space of a program type: 0 at the end of the walk. Global, as
/// [`crate::unwind::walk`] says of its own.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn walk_python(programs: u32) -> u32 {
    let Some(scratch) = SCRATCH.get_ptr_mut(programs) else { return 0 };
    // SAFETY: the element is this CPU's, and the program that calls has claimed it.
    u32::from(turn(unsafe { &mut *scratch }))
}

/// Looks at one thing; false at the end of the walk.
#[inline(always)]
fn turn(scratch: &mut Scratch) -> bool {
    match scratch.python.stage {
        stage::RUNTIME => begin(scratch),
        stage::THREAD => look_at_thread(scratch),
        _ => look_at_frame(scratch),
    }
}

/// Finds the first interpreter's first thread.
#[inline(always)]
fn begin(scratch: &mut Scratch) -> bool {
    let Some(layout) = PYTHON_LAYOUTS.get(slot(scratch)) else { return false };
    scratch.python.layout = *layout;
    // Its `pthread_t`: glibc and musl have their thread at the start of its storage.
    scratch.python.thread_pointer = thread_pointer();
    scratch.python.pending = 0;
    scratch.python.threads = 0;
    scratch.python.hash = HASH_SEED;
    let mut interpreter = 0;
    if !read(scratch.python.runtime, layout.interpreters_head, &mut interpreter) {
        return cut(scratch, PythonCut::Unreadable);
    }
    enter_interpreter(scratch, interpreter)
}

/// Goes on with the threads of an interpreter; there is none when the thread that runs is not one of Python's.
#[inline(always)]
fn enter_interpreter(scratch: &mut Scratch, interpreter: u64) -> bool {
    if interpreter == 0 {
        return false;
    }
    let mut thread = 0;
    if !read(interpreter, scratch.python.layout.threads_head, &mut thread) {
        return cut(scratch, PythonCut::Unreadable);
    }
    scratch.python.interpreter = interpreter;
    scratch.python.next = thread;
    scratch.python.stage = stage::THREAD;
    true
}

/// Goes on with the frames of the thread when it is the one that runs, else with the next thread.
#[inline(always)]
fn look_at_thread(scratch: &mut Scratch) -> bool {
    let layout = scratch.python.layout;
    let thread = scratch.python.next;
    scratch.python.threads += 1;
    if scratch.python.threads > MAX_PYTHON_THREADS as u64 {
        return cut(scratch, PythonCut::TooManyThreads);
    }
    let mut word = 0;
    if thread == 0 {
        let interpreter = scratch.python.interpreter;
        return match read(interpreter, layout.interpreter_next, &mut word) {
            true => enter_interpreter(scratch, word),
            false => cut(scratch, PythonCut::Unreadable),
        };
    }
    if !read(thread, layout.thread_id, &mut word) {
        return cut(scratch, PythonCut::Unreadable);
    }
    let is_running = word == scratch.python.thread_pointer;
    let field = if is_running { layout.thread_frame } else { layout.thread_next };
    if !read(thread, field, &mut word) {
        return cut(scratch, PythonCut::Unreadable);
    }
    scratch.python.next = word;
    if is_running {
        scratch.python.stage = stage::FRAME;
        if layout.flags & PYTHON_HAS_CFRAME != 0 {
            let mut frame = 0;
            // A thread that is just being made has none.
            if word == 0 || !read(word, layout.cframe_current, &mut frame) {
                return false;
            }
            scratch.python.next = frame;
        }
    }
    true
}

/// Adds a frame.
#[inline(always)]
fn look_at_frame(scratch: &mut Scratch) -> bool {
    let address = scratch.python.next;
    if address == 0 {
        // Whoever called the outermost frame is not Python.
        flush(scratch, true);
        return false;
    }
    let size = scratch.python.layout.frame_bytes & (8 * FRAME_WORDS as u32 - 1);
    let frame = scratch.python.frame.as_mut_ptr();
    // SAFETY: the helper writes at most as much as `frame` has, and survives any source address.
    if unsafe { bpf_probe_read_user(frame.cast(), size, address as *const c_void) } != 0 {
        return cut(scratch, PythonCut::Unreadable);
    }
    let flags = scratch.python.layout.flags;
    let entry_at = scratch.python.layout.frame_entry;
    let entry = (word_of(scratch, entry_at) >> (8 * (entry_at & 7))) & 0xff;
    let code = word_of(scratch, scratch.python.layout.frame_code);
    let instruction = word_of(scratch, scratch.python.layout.frame_instruction);
    scratch.python.next = word_of(scratch, scratch.python.layout.frame_previous);
    if flags & PYTHON_ENTRY_FRAMES != 0 && entry == PYTHON_OWNED_BY_CSTACK {
        return flush(scratch, true);
    }
    if !flush(scratch, false) {
        return false;
    }
    if !is_code_object(code) {
        return cut(scratch, PythonCut::Unreadable);
    }
    let instruction = if flags & PYTHON_FRAME_OBJECTS != 0 {
        let at = entry_half(instruction, scratch.python.layout.frame_instruction);
        at >> (scratch.python.layout.instruction_shift & 31)
    } else {
        let start = code + u64::from(scratch.python.layout.code_start);
        (instruction.wrapping_sub(start) as i64 >> 1) as i32
    };
    // A frame that has not begun is before its first instruction.
    let instruction = if instruction < 0 { 0 } else { instruction as u64 };
    scratch.python.pending = python_payload(code, instruction);
    let is_entered = flags & PYTHON_FRAME_OBJECTS != 0 || (flags & PYTHON_ENTRY_FRAMES == 0 && entry != 0);
    if is_entered {
        return flush(scratch, true);
    }
    true
}

/// A field of 32 bits, which is in one half of its word.
#[inline(always)]
const fn entry_half(word: u64, at: u32) -> i32 {
    (word >> (8 * (at & 4))) as i32
}

/// A word of the frame that was read.
#[inline(always)]
fn word_of(scratch: &Scratch, at: u32) -> u64 {
    scratch.python.frame[(at >> 3) as usize & (FRAME_WORDS - 1)]
}

/// Adds the frame that was found last, now that it is known who called it; false when there is no room.
#[inline(always)]
fn flush(scratch: &mut Scratch, is_entry: bool) -> bool {
    let payload = scratch.python.pending;
    if payload == 0 {
        return true;
    }
    scratch.python.pending = 0;
    if scratch.python.length >= MAX_PYTHON_FRAMES as u64 {
        return cut(scratch, PythonCut::DepthLimit);
    }
    let word = if is_entry {
        FrameWord::InterpretedEntry(payload).to_word()
    } else {
        FrameWord::Interpreted(payload).to_word()
    };
    push(scratch, word)
}

/// Ends the chain before its root.
#[inline(always)]
fn cut(scratch: &mut Scratch, reason: PythonCut) -> bool {
    let pending = scratch.python.pending;
    if pending != 0 && scratch.python.length < MAX_PYTHON_FRAMES as u64 {
        scratch.python.pending = 0;
        push(scratch, FrameWord::Interpreted(pending).to_word());
    }
    push(scratch, FrameWord::Interpreted(reason as u64).to_word());
    false
}

/// Adds a word, behind the native chain and its marker.
#[inline(always)]
fn push(scratch: &mut Scratch, word: u64) -> bool {
    let native = scratch.walk.length + u64::from(scratch.walk.outcome != Outcome::Complete as u64);
    let at = native + scratch.python.length;
    if native > MAX_USER_FRAMES as u64 + 1 || at >= MAX_STACK_WORDS as u64 {
        return false;
    }
    scratch.user.words[at as usize] = word;
    scratch.python.length += 1;
    scratch.python.hash = hash_word(scratch.python.hash, word);
    true
}

/// Reads a word of the interpreter's memory.
#[inline(always)]
fn read(base: u64, offset: u32, word: &mut u64) -> bool {
    let address = base.wrapping_add(u64::from(offset));
    // SAFETY: the helper writes 8 bytes to `word`, zeros when it fails, and survives any source address.
    unsafe { bpf_probe_read_user((&raw mut *word).cast(), 8, address as *const c_void) == 0 }
}
