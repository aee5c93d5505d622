//! Records: what a probe leaves for user space, and the table of probes.

use crate::block::BLOCK_OPERATIONS;
use crate::fault::FAULT_REASONS;
use crate::file::FILE_OPERATIONS;
use crate::net::NET_OPERATIONS;
use crate::python::MAX_PYTHON_FRAMES;
use crate::system_call::SYSTEM_CALLS;
use crate::unwind::{LEAF_REGISTERS, Registers};
use crate::wait::{LOCK_KINDS, WAIT_REASONS};

/// A probe. Its number is its row in [`ORIGINS`] and its index in the counters map.
#[repr(u16)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Origin {
    /// On-CPU samples.
    Cpu = 0,
    /// Time off the CPU: waits, and waiting for a CPU.
    OffCpu = 1,
    /// Page faults.
    Fault = 2,
    /// System calls.
    Syscall = 3,
    /// Waits for locks.
    Lock = 4,
    /// Who ended waits.
    Waker = 5,
    /// Requests to block devices.
    BlockIo = 6,
    /// Operations on files.
    FileIo = 7,
    /// Messages of sockets.
    Net = 8,
    /// Allocations of memory.
    Alloc = 9,
    /// What was allocated and is there still.
    Live = 10,
    /// Calls of functions that somebody named.
    Func = 11,
}

/// What an origin's values mean. One row a probe; nothing downstream of aggregation knows more of it.
#[derive(Debug)]
pub struct OriginRow {
    /// The probe.
    pub origin: Origin,
    /// Its name on the command line, in file names and in JSON.
    pub name: &'static str,
    /// Unit of the folded stacks, the flamegraph and the report.
    pub unit: &'static str,
    /// Index in `columns` of that unit.
    pub primary: usize,
    /// Columns that have a flamegraph of their own beside that of the primary one: index, and what its files are called.
    pub also: &'static [(usize, &'static str)],
    /// The value columns that are used, as pprof sample types: name and unit. The first counts events.
    pub columns: &'static [(&'static str, &'static str)],
    /// Names of the reasons that a profile's samples have, by number from 1; empty for an origin without.
    pub reasons: &'static [&'static str],
    /// Whether its samples have kernel stacks.
    pub kernel_stacks: bool,
    /// How the report calls one event: `wait`.
    pub event: &'static str,
    /// How the report goes on after the total, where that is a time: `off the CPU`.
    pub total: &'static str,
    /// Title of the report's table of reasons.
    pub reasons_title: &'static str,
}

/// Every origin, by number.
pub static ORIGINS: [OriginRow; 12] = [
    OriginRow {
        origin: Origin::Cpu,
        name: "cpu",
        unit: "samples",
        primary: 0,
        also: &[],
        columns: &[("samples", "count"), ("cpu", "nanoseconds")],
        reasons: &[],
        kernel_stacks: true,
        event: "sample",
        total: "on the CPU",
        reasons_title: "",
    },
    OriginRow {
        origin: Origin::OffCpu,
        name: "offcpu",
        unit: "ns",
        primary: 1,
        also: &[],
        // Waits that were kept; time; waits, those that the kept ones stand for included; variance of the time, by which
        // an interval can be stated.
        columns: &[("samples", "count"), ("delay", "nanoseconds"), ("contentions", "count"), ("variance", "us2")],
        reasons: &WAIT_REASONS,
        kernel_stacks: true,
        event: "wait",
        total: "off the CPU",
        reasons_title: "What was waited for",
    },
    OriginRow {
        origin: Origin::Fault,
        name: "fault",
        unit: "faults",
        primary: 1,
        also: &[],
        // Faults that were kept; faults, those that the kept ones stand for included.
        columns: &[("samples", "count"), ("faults", "count")],
        reasons: &FAULT_REASONS,
        kernel_stacks: true,
        event: "fault",
        total: "",
        reasons_title: "Kinds of fault",
    },
    OriginRow {
        origin: Origin::Syscall,
        name: "syscall",
        unit: "ns",
        primary: 1,
        also: &[],
        // Calls that were kept; time; calls and errors, those that the kept ones stand for included.
        columns: &[("samples", "count"), ("time", "nanoseconds"), ("calls", "count"), ("errors", "count")],
        reasons: &SYSTEM_CALLS,
        kernel_stacks: false,
        event: "call",
        total: "in system calls",
        reasons_title: "System calls",
    },
    OriginRow {
        origin: Origin::Lock,
        name: "lock",
        unit: "ns",
        primary: 1,
        also: &[],
        // As of `offcpu`. A span is the address of the lock.
        columns: &[("samples", "count"), ("delay", "nanoseconds"), ("contentions", "count"), ("variance", "us2")],
        reasons: &LOCK_KINDS,
        kernel_stacks: true,
        event: "wait",
        total: "of waits for locks",
        reasons_title: "What was waited for",
    },
    OriginRow {
        origin: Origin::Waker,
        name: "waker",
        unit: "ns",
        primary: 1,
        also: &[],
        // Waits that were kept and ended so, and what they had come to. A span is the waker's number, which the waits
        // that it ended have too.
        columns: &[("samples", "count"), ("delay", "nanoseconds"), ("contentions", "count")],
        reasons: &[],
        kernel_stacks: true,
        event: "wake-up",
        total: "of waits that were ended",
        reasons_title: "",
    },
    OriginRow {
        origin: Origin::BlockIo,
        name: "blockio",
        unit: "ns",
        primary: 1,
        also: &[(3, "bytes")],
        // Requests that were kept; from when a request was made until it was done; requests and bytes, those of the
        // requests that the kept ones stand for included.
        columns: &[("samples", "count"), ("latency", "nanoseconds"), ("requests", "count"), ("bytes", "bytes")],
        reasons: &BLOCK_OPERATIONS,
        kernel_stacks: true,
        event: "request",
        total: "of requests to block devices",
        reasons_title: "Kinds of request",
    },
    OriginRow {
        origin: Origin::FileIo,
        name: "fileio",
        unit: "bytes",
        primary: 1,
        also: &[(3, "time")],
        // Operations that were kept; bytes, operations and time, those that the kept ones stand for included.
        columns: &[("samples", "count"), ("bytes", "bytes"), ("operations", "count"), ("time", "nanoseconds")],
        reasons: &FILE_OPERATIONS,
        kernel_stacks: false,
        event: "operation",
        total: "in operations on files",
        reasons_title: "Kinds of operation",
    },
    OriginRow {
        origin: Origin::Net,
        name: "net",
        unit: "bytes",
        primary: 1,
        also: &[],
        // Messages that were kept; bytes and messages, those that the kept ones stand for included.
        columns: &[("samples", "count"), ("bytes", "bytes"), ("messages", "count")],
        reasons: &NET_OPERATIONS,
        kernel_stacks: false,
        event: "message",
        total: "of sockets",
        reasons_title: "Kinds of message",
    },
    OriginRow {
        origin: Origin::Alloc,
        name: "alloc",
        unit: "bytes",
        primary: 1,
        also: &[],
        // Allocations that were kept; bytes and allocations, those that the kept ones stand for included; variance of the
        // bytes.
        columns: &[("samples", "count"), ("alloc_space", "bytes"), ("alloc_objects", "count"), ("variance", "KiB2")],
        reasons: &[],
        kernel_stacks: false,
        event: "allocation",
        total: "allocated",
        reasons_title: "",
    },
    OriginRow {
        origin: Origin::Live,
        name: "live",
        unit: "bytes",
        primary: 1,
        also: &[],
        // Blocks that were kept; bytes and blocks, those that the kept ones stand for included; variance of the bytes.
        columns: &[("samples", "count"), ("inuse_space", "bytes"), ("inuse_objects", "count"), ("variance", "KiB2")],
        reasons: &[],
        kernel_stacks: false,
        event: "block",
        total: "in use",
        reasons_title: "",
    },
    OriginRow {
        origin: Origin::Func,
        name: "func",
        unit: "ns",
        primary: 1,
        also: &[],
        // Calls that were kept; time; calls, those that the kept ones stand for included; variance of the time.
        columns: &[("samples", "count"), ("time", "nanoseconds"), ("calls", "count"), ("variance", "us2")],
        reasons: &[],
        kernel_stacks: false,
        event: "call",
        total: "in calls of functions",
        reasons_title: "",
    },
];

impl Origin {
    /// This origin's row.
    #[must_use]
    pub fn row(self) -> &'static OriginRow {
        &ORIGINS[self as usize]
    }

    /// The origin of that number, if there is one.
    #[must_use]
    pub fn from_code(code: u16) -> Option<Self> {
        ORIGINS.get(usize::from(code)).map(|row| row.origin)
    }

    /// The name of a sample's reason; `None` where it has none.
    #[must_use]
    pub fn reason_name(self, reason: u16) -> Option<&'static str> {
        self.row().reasons.get(usize::from(reason).checked_sub(1)?).copied()
    }

    /// The number of the reason of that name, if there is one.
    #[must_use]
    pub fn reason_of_name(self, name: &str) -> Option<u16> {
        let index = self.row().reasons.iter().position(|&reason| reason == name)?;
        u16::try_from(index + 1).ok()
    }

    /// The origin of that name, if there is one.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        ORIGINS.iter().find(|row| row.name == name).map(|row| row.origin)
    }
}

/// Value columns a record has room for.
pub const COLUMNS: usize = 4;

/// Length of a command name, with its terminating zero. Source: `TASK_COMM_LEN` in include/linux/sched.h.
pub const COMM_LEN: usize = 16;

/// What is counted together: one entry of the aggregation map.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RecordKey {
    /// Start of the process (its thread-group leader) since boot, in ns: tells a reused pid apart.
    pub start_time_ns: u64,
    /// The kernel chain: a [stack reference](StackRef).
    pub kernel_stack: u64,
    /// The user chain: a [stack reference](StackRef).
    pub user_stack: u64,
    /// A call's or block's number; 0 outside one.
    pub span: u64,
    /// The process, as the profiler's pid namespace numbers it.
    pub pid: u32,
    /// The thread.
    pub tid: u32,
    /// How often the process has executed a program: tells its images apart.
    pub exec_count: u32,
    /// The mapping generation user space had published when the record was made.
    pub generation: u32,
    /// [`Origin`].
    pub origin: u16,
    /// The probe's own reason; 0 where it has none. Of a wait a [`crate::wait::Blocked`], which user space makes the
    /// number of a reason of.
    pub reason: u16,
    /// Zero.
    pub reserved: u32,
}

/// What is known of a [`RecordKey`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RecordValue {
    /// The origin's value columns; column 0 counts events.
    pub columns: [u64; COLUMNS],
    /// The thread's name when the record was first made.
    pub thread_comm: [u8; COMM_LEN],
    /// The process's name (its leader's) when the record was first made.
    pub process_comm: [u8; COMM_LEN],
    /// How the user chain ended: [`crate::counters::Outcome`].
    pub user_outcome: u8,
    /// How the kernel chain ended.
    pub kernel_outcome: u8,
    /// Zero.
    pub reserved: [u8; 6],
}

/// A reference to a chain in a [`RecordKey`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StackRef {
    /// There is nothing to walk.
    Empty,
    /// The chain was lost: the code of an [`crate::counters::Outcome`].
    Lost(u64),
    /// The hash of the chain's words.
    Hash(u64),
}

impl StackRef {
    /// Reads a key's word.
    #[must_use]
    pub const fn from_word(word: u64) -> Self {
        match word {
            0 => Self::Empty,
            code if code < MIN_HASH => Self::Lost(code),
            hash => Self::Hash(hash),
        }
    }
}

/// No stack hash is smaller: smaller words in a key are outcome codes.
pub const MIN_HASH: u64 = 256;

/// The hash of a chain before its first word. Any odd number does; this is the golden ratio's.
pub const HASH_SEED: u64 = 0x9e37_79b9_7f4a_7c15;

/// Adds one word to a chain's hash: a multiply-xorshift step (the constant is from `SplitMix64`, by S. Vigna).
#[inline(always)]
#[must_use]
pub const fn hash_word(hash: u64, word: u64) -> u64 {
    let mixed = (hash ^ word).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed ^ (mixed >> 29)
}

/// Ends a chain's hash, so that it is never an outcome code.
#[inline(always)]
#[must_use]
pub const fn finish_hash(hash: u64) -> u64 {
    if hash < MIN_HASH { hash + MIN_HASH } else { hash }
}

/// Most frames of a user chain.
pub const MAX_USER_FRAMES: usize = 512;

/// Most frames of a kernel chain. Source: `PERF_MAX_STACK_DEPTH`, the default of kernel.perf_event_max_stack.
pub const MAX_KERNEL_FRAMES: usize = 127;

/// Words of a chain in a [`StackRecord`]: native frames and, when that chain was cut, one marker; then interpreted frames
/// and a marker of theirs.
pub const MAX_STACK_WORDS: usize = MAX_USER_FRAMES + 1 + MAX_PYTHON_FRAMES + 1;

/// A chain on its way to user space, sent at its own length: `16 + 8 * length` bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct StackRecord {
    /// [`RING_STACK`].
    pub kind: u16,
    /// The generation of the maps it belongs to, 0 or 1.
    pub window: u16,
    /// Words used.
    pub length: u32,
    /// The chain's hash.
    pub hash: u64,
    /// Frame words, leaf first.
    pub words: [u64; MAX_STACK_WORDS],
}

/// Bytes of the stack that a [`RemainderRecord`] holds at most: deep enough for programs that have just begun, and small
/// enough for a per-CPU map, whose values the kernel limits to 32 KiB.
pub const MAX_REMAINDER_BYTES: usize = 16 * 1024;

/// Bytes below the stack pointer that a function may use, and where registers it has just taken back still are.
/// Source: System V ABI, AMD64 supplement, section 3.2.2.
pub const RED_ZONE_BYTES: u64 = 128;

/// What a walk left undone where there was no table: user space goes on from here once there is one.
///
/// Sent at its own length: the header and `bytes` of the stack.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct RemainderRecord {
    /// [`RING_REMAINDER`].
    pub kind: u16,
    /// The generation of the maps it belongs to, 0 or 1.
    pub window: u16,
    /// Bytes of `stack` used.
    pub bytes: u32,
    /// Hash of the chain that was found, whose marker it replaces.
    pub hash: u64,
    /// Registers of the frame that was found last.
    pub registers: Registers,
    /// 1 when the instruction pointer is where that frame is, 0 when it is a return address.
    pub exact: u64,
    /// Registers of that frame by their DWARF number, where `exact` is 1.
    pub leaf: [u64; LEAF_REGISTERS],
    /// Address of what `stack` holds: [`RED_ZONE_BYTES`] below the stack pointer, or the page after where that page is
    /// not there yet.
    pub stack_start: u64,
    /// The stack.
    pub stack: [u8; MAX_REMAINDER_BYTES],
}

/// A ring-buffer record that carries a chain: [`StackRecord`].
pub const RING_STACK: u16 = 1;

/// A ring-buffer record that asks for an early drain; 8 bytes, of which only the kind means something.
pub const RING_DRAIN: u16 = 2;

/// A ring-buffer record that carries what a walk left undone: [`RemainderRecord`].
pub const RING_REMAINDER: u16 = 3;

/// A ring-buffer record of a thread that has ended: [`crate::wait::EndedThread`].
pub const RING_THREAD: u16 = 4;

/// A ring-buffer record of a file's name: [`crate::file::FileNameRecord`].
pub const RING_FILE_NAME: u16 = 5;

/// A ring-buffer record of a request to a block device that took long: [`crate::block::SlowRequest`].
pub const RING_SLOW: u16 = 6;

/// A ring-buffer record of the thread that waited for one: [`crate::block::SlowWakeUp`].
pub const RING_SLOW_WAKE_UP: u16 = 7;

/// What a frame word is. The tag is in the top four bits.
///
/// A kernel address has them all set already, a native address none, so both are stored as they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum FrameWord {
    /// An address in a file the process maps, or in memory nobody knows.
    Native(u64),
    /// An address in code made at run time.
    Jit(u64),
    /// A frame of an interpreter, called by one of the same interpreter: [`crate::python::PythonFrame`].
    Interpreted(u64),
    /// The same, called by native code: the outermost of those that one native frame of the interpreter stands for.
    InterpretedEntry(u64),
    /// Not a frame: why the chain ends here (the code of an [`crate::counters::Outcome`]).
    Marker(u64),
    /// A kernel address.
    Kernel(u64),
}

const TAG_SHIFT: u32 = 60;
const TAG_JIT: u64 = 1;
const TAG_INTERPRETED: u64 = 2;
const TAG_MARKER: u64 = 3;
const TAG_INTERPRETED_ENTRY: u64 = 4;
const TAG_KERNEL: u64 = 15;
const TAG_PAYLOAD: u64 = (1 << TAG_SHIFT) - 1;

impl FrameWord {
    /// The word as it is stored.
    #[inline(always)]
    #[must_use]
    pub const fn to_word(self) -> u64 {
        match self {
            Self::Native(address) => address & TAG_PAYLOAD,
            Self::Jit(address) => (TAG_JIT << TAG_SHIFT) | (address & TAG_PAYLOAD),
            Self::Interpreted(number) => (TAG_INTERPRETED << TAG_SHIFT) | (number & TAG_PAYLOAD),
            Self::InterpretedEntry(number) => (TAG_INTERPRETED_ENTRY << TAG_SHIFT) | (number & TAG_PAYLOAD),
            Self::Marker(code) => (TAG_MARKER << TAG_SHIFT) | (code & TAG_PAYLOAD),
            Self::Kernel(address) => (TAG_KERNEL << TAG_SHIFT) | (address & TAG_PAYLOAD),
        }
    }

    /// Reads a stored word; `None` for a tag nobody writes.
    #[must_use]
    pub const fn from_word(word: u64) -> Option<Self> {
        let payload = word & TAG_PAYLOAD;
        match word >> TAG_SHIFT {
            0 => Some(Self::Native(payload)),
            TAG_JIT => Some(Self::Jit(payload)),
            TAG_INTERPRETED => Some(Self::Interpreted(payload)),
            TAG_INTERPRETED_ENTRY => Some(Self::InterpretedEntry(payload)),
            TAG_MARKER => Some(Self::Marker(payload)),
            TAG_KERNEL => Some(Self::Kernel(word)),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frame_words_survive_storage() {
        for word in [
            FrameWord::Native(0x7fff_ffff_f000),
            FrameWord::Jit(0x7f00_0000_1000),
            FrameWord::Interpreted(42),
            FrameWord::InterpretedEntry(42),
            FrameWord::Marker(3),
            FrameWord::Kernel(0xffff_ffff_8100_0000),
        ] {
            assert_eq!(FrameWord::from_word(word.to_word()), Some(word));
        }
        assert_eq!(FrameWord::from_word(7 << TAG_SHIFT), None);
    }

    #[test]
    fn a_hash_is_never_an_outcome_code() {
        assert_eq!(finish_hash(3), 3 + MIN_HASH);
        assert_eq!(StackRef::from_word(finish_hash(0)), StackRef::Hash(MIN_HASH));
        assert_eq!(StackRef::from_word(0), StackRef::Empty);
        assert_eq!(StackRef::from_word(9), StackRef::Lost(9));
    }

    #[test]
    fn origins_are_numbered_as_listed() {
        for (index, row) in ORIGINS.iter().enumerate() {
            assert_eq!(row.origin as usize, index);
            assert!(row.primary < row.columns.len() && row.columns.len() <= COLUMNS);
            // The first column counts events.
            assert_eq!(row.columns[0].1, "count");
        }
    }

    #[test]
    fn layouts_have_no_hidden_padding() {
        assert_eq!(size_of::<RecordKey>(), 4 * 8 + 4 * 4 + 8);
        assert_eq!(size_of::<RecordValue>(), 8 * COLUMNS + 2 * COMM_LEN + 8);
        assert_eq!(size_of::<StackRecord>(), 16 + 8 * MAX_STACK_WORDS);
        assert_eq!(
            size_of::<RemainderRecord>(),
            16 + size_of::<Registers>() + 16 + 8 * LEAF_REGISTERS + MAX_REMAINDER_BYTES
        );
    }
}
