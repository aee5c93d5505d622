//! A profile before its frames have names: what `collect` gathers and `symbolize` turns into a [`super::Profile`].

use hashbrown::HashMap;
use profiler_common::counters::Outcome;
use profiler_common::event::{COLUMNS, Origin};

use super::{Interner, StackId, Thread, ThreadId};

/// A frame that was placed in what it belongs to, so that its name can be found after the process has gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum RawFrame {
    /// A kernel address.
    Kernel(u64),
    /// An address in an object, in the object's own terms.
    Object {
        /// Number of the object, by whoever placed the frame.
        object: u32,
        /// Virtual address as the file states it.
        address: u64,
    },
    /// An address in code made at run time.
    Jit {
        /// Number of the process, by whoever placed the frame.
        process: u32,
        /// Address in that process.
        address: u64,
    },
    /// A function of an interpreter, named already.
    Interpreted(
        /// Number of the frame, by whoever placed it.
        u32,
    ),
    /// An address in no known mapping.
    Unknown(u64),
    /// Why the chain ends here.
    Marker(Outcome),
}

/// Stacks of unnamed frames and the values found on them.
#[derive(Clone, Debug)]
pub struct RawProfile {
    /// The probe.
    pub origin: Origin,
    /// Frames by number.
    pub frames: Interner<RawFrame>,
    /// Stacks by number, each of frame numbers, leaf first.
    pub stacks: Interner<Box<[u32]>>,
    /// Threads by number.
    pub threads: Interner<Thread>,
    /// Values by stack, thread, reason and span.
    pub samples: HashMap<(StackId, ThreadId, u16, u64), [u64; COLUMNS]>,
}

impl RawProfile {
    /// A profile with nothing in it.
    #[must_use]
    pub fn new(origin: Origin) -> Self {
        Self {
            origin,
            frames: Interner::default(),
            stacks: Interner::default(),
            threads: Interner::default(),
            samples: HashMap::new(),
        }
    }

    /// Adds values to a stack of a thread.
    pub fn add(&mut self, stack: StackId, thread: ThreadId, reason: u16, span: u64, values: &[u64; COLUMNS]) {
        let sums = self.samples.entry((stack, thread, reason, span)).or_default();
        for (sum, value) in sums.iter_mut().zip(values) {
            *sum += value;
        }
    }

    /// Events in it.
    #[must_use]
    pub fn events(&self) -> u64 {
        self.samples.values().map(|values| values[0]).sum()
    }
}
