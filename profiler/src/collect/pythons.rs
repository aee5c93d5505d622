//! Python processes: which there are, where their interpreters are, and the names of their frames, which are read from
//! their memory at the end of each window, while they live.

use std::collections::HashMap;
use std::sync::Arc;

use profiler_common::event::{FrameWord, RecordKey};
use profiler_common::python::PythonFrame;

use super::processes::Processes;
use crate::bpf::{BpfError, Kernel};
use crate::process::{Backing, is_running, read_memory};
use crate::profile::{Interner, RawFrame, RawProfile};
use crate::python::{Chain, Function, Interpreter, find_interpreter, read_function, was_replaced};
use crate::symbolize::InterpretedFrame;

/// Functions that are kept of all processes; a large application has some ten thousand.
const MAX_FUNCTIONS: usize = 1 << 18;

/// Windows after which a function that was not seen again is forgotten.
const KEPT_WINDOWS: u64 = 60;

/// Warnings that are kept, one for each interpreter that cannot be walked.
const MAX_WARNINGS: usize = 8;

/// The Python processes, and the frames that were found in them.
#[derive(Default)]
pub(super) struct Pythons {
    /// By object.
    interpreters: HashMap<u32, Option<Arc<Interpreter>>>,
    /// By pid.
    processes: HashMap<u32, Attached>,
    functions: HashMap<CodeKey, Known>,
    frames: Interner<InterpretedFrame>,
    warnings: Vec<String>,
    window: u64,
    /// Whether a process was found since somebody asked.
    found: bool,
}

/// An interpreter in a process.
#[derive(Clone)]
struct Attached {
    interpreter: Arc<Interpreter>,
    /// What to add to the interpreter's addresses.
    bias: u64,
}

/// A code object of an image of a process.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct CodeKey {
    pid: u32,
    start_time_ns: u64,
    exec_count: u32,
    code: u64,
}

struct Known {
    /// `None` when it could not be read.
    function: Option<Function>,
    interpreter: Arc<Interpreter>,
    /// The window in which it was last found to be there.
    window: u64,
    /// Frames by instruction.
    frames: HashMap<u64, u32>,
}

impl Pythons {
    /// Looks for an interpreter in what a process maps now; number of its layout and address of its runtime, zeros where
    /// there is none.
    pub(super) fn attach(
        &mut self,
        kernel: &mut Kernel,
        pid: u32,
        processes: &mut Processes,
    ) -> Result<(u32, u64), BpfError> {
        let known = self.processes.remove(&pid);
        let Some((mappings, objects)) = processes.mappings(pid) else { return Ok((0, 0)) };
        for mapping in mappings.iter() {
            let Backing::File(_, path) = &mapping.backing else { continue };
            if !path.rsplit('/').next().unwrap_or_default().contains("python") {
                continue;
            }
            let Some((number, address)) = objects.place(pid, mapping, mapping.start) else { continue };
            let warnings = &mut self.warnings;
            let interpreter = self.interpreters.entry(number).or_insert_with(|| {
                let found = find_interpreter(&objects.objects()[number as usize]);
                found.map(|found| found.map(Arc::new)).unwrap_or_else(|error| {
                    warnings.push(error.to_string());
                    None
                })
            });
            let Some(interpreter) = interpreter else { continue };
            let bias = mapping.start.wrapping_sub(address);
            let Some(layout) = kernel.python_layout(interpreter.walk)? else { continue };
            let runtime = interpreter.runtime.wrapping_add(bias);
            self.found |= known.is_none();
            self.processes.insert(pid, Attached { interpreter: Arc::clone(interpreter), bias });
            return Ok((layout, runtime));
        }
        Ok((0, 0))
    }

    /// Whether a process was found since the last call.
    pub(super) fn take_new(&mut self) -> bool {
        std::mem::take(&mut self.found)
    }

    /// Whether a frame is one of the function that evaluates Python frames.
    pub(super) fn evaluates(&self, frame: RawFrame) -> bool {
        let RawFrame::Object { object, address } = frame else { return false };
        self.interpreters.get(&object).is_some_and(|found| found.as_ref().is_some_and(|found| found.evaluates(address)))
    }

    /// The Python chain of a record.
    pub(super) fn place(&mut self, words: &[u64], key: &RecordKey, profile: &mut RawProfile) -> Chain {
        let mut chain = Chain::default();
        let mut run = Vec::new();
        for &word in words {
            let (payload, is_entry) = match FrameWord::from_word(word) {
                Some(FrameWord::Interpreted(payload)) => (payload, false),
                Some(FrameWord::InterpretedEntry(payload)) => (payload, true),
                _ => continue,
            };
            let number = match PythonFrame::from_payload(payload) {
                Some(PythonFrame::Code(code, instruction)) => self.frame(key, code, instruction),
                Some(PythonFrame::Cut(cut)) => {
                    chain.is_cut = true;
                    self.bracketed(cut.name())
                }
                None => continue,
            };
            run.push(profile.frames.intern(RawFrame::Interpreted(number)));
            if is_entry {
                chain.runs.push(std::mem::take(&mut run));
            }
        }
        if !run.is_empty() {
            chain.runs.push(run);
        }
        chain
    }

    /// Number of a frame that says something of itself.
    fn bracketed(&mut self, what: &str) -> u32 {
        self.frames.intern(InterpretedFrame { name: format!("[python: {what}]"), file: String::new(), line: 0 })
    }

    /// Number of the frame of a code object at an instruction.
    fn frame(&mut self, key: &RecordKey, code: u64, instruction: u64) -> u32 {
        let RecordKey { pid, start_time_ns, exec_count, .. } = *key;
        let code_key = CodeKey { pid, start_time_ns, exec_count, code };
        if self.functions.get(&code_key).is_none_or(|known| known.window != self.window) {
            self.look_at(code_key);
        }
        let Some(known) = self.functions.get_mut(&code_key) else { return self.bracketed("too_many_functions") };
        if let Some(&number) = known.frames.get(&instruction) {
            return number;
        }
        let Some(function) = &known.function else {
            return self.bracketed(if is_running(pid) { "function_gone" } else { "process_ended" });
        };
        let line = function.line(&known.interpreter, instruction);
        let number =
            self.frames.intern(InterpretedFrame { name: function.name.clone(), file: function.file.clone(), line });
        known.frames.insert(instruction, number);
        number
    }

    /// Reads a code object, or makes sure that no other one is in its place since.
    ///
    /// What was read before is believed of a process that has ended, and where the process has let go of the object:
    /// an interpreter that ends frees its modules before its memory goes.
    fn look_at(&mut self, key: CodeKey) {
        let Some(Attached { interpreter, bias }) = self.processes.get(&key.pid).cloned() else {
            if let Some(known) = self.functions.get_mut(&key) {
                known.window = self.window;
            }
            return;
        };
        let read = |address: u64, buffer: &mut [u8]| read_memory(key.pid, address, buffer).is_ok();
        if let Some(known) = self.functions.get_mut(&key) {
            known.window = self.window;
            let is_known = known.function.as_ref();
            if is_known.is_none_or(|function| !was_replaced(function, &read, &interpreter, bias, key.code)) {
                return;
            }
        } else if self.functions.len() >= MAX_FUNCTIONS {
            return;
        }
        let function = read_function(&read, &interpreter, bias, key.code);
        let known = Known { function, interpreter, window: self.window, frames: HashMap::new() };
        self.functions.insert(key, known);
    }

    /// Forgets a process.
    pub(super) fn forget(&mut self, pid: u32) {
        self.processes.remove(&pid);
        self.functions.retain(|key, _| key.pid != pid);
    }

    /// Ends a window.
    pub(super) fn end_window(&mut self) {
        self.window += 1;
        let window = self.window;
        // What could not be read may be there the next time, at the same address.
        self.functions.retain(|_, known| known.function.is_some() && known.window + KEPT_WINDOWS >= window);
    }

    /// Hands out the frames by number, and begins to number anew.
    pub(super) fn take_frames(&mut self) -> Vec<InterpretedFrame> {
        self.functions.values_mut().for_each(|known| known.frames.clear());
        std::mem::take(&mut self.frames).into_values()
    }

    /// The number of a frame that was handed out and is needed on.
    pub(super) fn keep_frame(&mut self, frame: InterpretedFrame) -> u32 {
        self.frames.intern(frame)
    }

    /// Forgets what is known of objects whose numbers others will have.
    pub(super) fn forget_objects(&mut self, numbers: &[u32]) {
        numbers.iter().for_each(|number| drop(self.interpreters.remove(number)));
    }

    /// The frames by number.
    pub(super) fn frames(&self) -> &[InterpretedFrame] {
        self.frames.values()
    }

    /// What a reader must know.
    pub(super) fn warnings(&self) -> impl Iterator<Item = String> {
        self.warnings.iter().take(MAX_WARNINGS).cloned()
    }
}
