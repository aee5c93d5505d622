//! Starts `stepper` and reads its records.

use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};

use profiler_common::unwind::{LEAF_REGISTERS, Registers};
use profiler_tests::{Workload, missing, owned_by};

/// Bytes below the stack pointer that a function may use. The stepper saves them too.
const RED_ZONE: u64 = 128;

/// The stepper, built; `None` where elfutils' library is not installed, which has been printed.
pub(crate) fn build() -> Option<PathBuf> {
    if !Path::new("/usr/include/elfutils/libdwfl.h").exists() {
        missing("libdw-dev is not installed");
        return None;
    }
    Some(Workload::c("stepper").flag("-Wl,--no-as-needed").flag("-ldw").flag("-lelf").build())
}

/// What elfutils found at a stop, and what it found it from.
pub(crate) struct Stop {
    pub(crate) registers: Registers,
    /// All of them, by their DWARF number.
    pub(crate) leaf: [u64; LEAF_REGISTERS],
    /// ip, sp and bp of each frame, the leaf first.
    pub(crate) frames: Vec<[u64; 3]>,
    /// Whether elfutils reached the outermost frame.
    pub(crate) whole: bool,
    stack: Vec<u8>,
}

impl Stop {
    /// A register of the leaf.
    pub(crate) fn register(&self, number: u8) -> Option<u64> {
        self.leaf.get(usize::from(number)).copied()
    }

    /// Reads a word of the stack.
    pub(crate) fn read(&self, address: u64) -> Option<u64> {
        let at = usize::try_from(address.checked_sub(self.registers.sp - RED_ZONE)?).ok()?;
        let bytes = self.stack.get(at..at.checked_add(8)?)?;
        Some(u64::from_le_bytes(bytes.try_into().ok()?))
    }
}

/// A record.
pub(crate) enum Record {
    /// The process's mappings.
    Mappings(String),
    /// A stop.
    Stop(Stop),
    /// The end, and the instructions executed.
    End(u64),
}

/// A stepper that runs; killed when it is dropped.
pub(crate) struct Stepper {
    child: Child,
    output: BufReader<ChildStdout>,
}

impl Stepper {
    pub(crate) fn start(arguments: &[&str]) -> Option<Self> {
        let mut command = Command::new(build()?);
        command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped());
        owned_by(&mut command);
        let mut child = command.spawn().expect("start the stepper");
        let output = BufReader::with_capacity(1 << 18, child.stdout.take().expect("its output is a pipe"));
        Some(Self { child, output })
    }

    /// The next words of its output; `None` at the end.
    pub(crate) fn words<const N: usize>(&mut self) -> Option<[u64; N]> {
        let mut words = [0; N];
        for word in &mut words {
            let mut bytes = [0; 8];
            self.output.read_exact(&mut bytes).ok()?;
            *word = u64::from_le_bytes(bytes);
        }
        Some(words)
    }

    fn bytes(&mut self, size: u64) -> Vec<u8> {
        let mut bytes = vec![0; usize::try_from(size).expect("a size")];
        self.output.read_exact(&mut bytes).expect("the rest of a record");
        bytes
    }

    /// The next record.
    pub(crate) fn record(&mut self) -> Record {
        let [head] = self.words().expect("the stepper's records end with one that says so");
        let size = head >> 32;
        match u8::try_from(head & 0xff).map(char::from) {
            Ok('M') => Record::Mappings(String::from_utf8(self.bytes(size)).expect("UTF-8")),
            Ok('S') => {
                let [ip, count, bytes, result] = self.words().expect("a stop");
                let leaf: [u64; LEAF_REGISTERS] = self.words().expect("a stop's registers");
                let frames = (0..count).map(|_| self.words().expect("a frame")).collect();
                let registers = Registers { ip, sp: leaf[7], fp: leaf[6], bx: leaf[3] };
                Record::Stop(Stop { registers, leaf, frames, whole: result == 0, stack: self.bytes(bytes) })
            }
            Ok('E') => Record::End(self.words::<1>().expect("a count")[0]),
            other => panic!("unknown record {other:?}"),
        }
    }
}

impl Drop for Stepper {
    fn drop(&mut self) {
        // It may have ended by itself. The kernel ends what it traces with it.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
