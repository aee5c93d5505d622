//! Calls of functions that somebody named: what is noted of those that have begun, and what is counted of all.
//!
//! A call is one more on the stack of its caller: of a thread, or of a goroutine, which may go on on another thread. It is
//! known by where its return address is, which no other call on that stack has at the same time. Of a goroutine that is
//! measured from the stack's upper end, since Go's runtime moves stacks.

use crate::event::COMM_LEN;
use crate::histogram::HISTOGRAM_BUCKETS;
use crate::wait::Cell;

/// Functions that can have probes in one recording: their number is in the low bits of a probe's cookie.
pub const MAX_FUNCTIONS: usize = 64;

/// The bits of a cookie with the number of the function.
pub const FUNCTION_MASK: u64 = 0xffff;

/// The bit of a cookie that says that callers are goroutines, which Go's code has in r14. Source: the Go internal ABI, amd64.
pub const OF_GOROUTINES: u64 = 1 << 16;

/// Calls that a caller may be in at once. Deeper ones are not seen, and counted.
pub const MAX_DEPTH: usize = 16;

/// Callers that are known at once: 5 MB.
pub const MAX_CALLERS: u32 = 8192;

/// Rows of processes and functions: 17 MB.
pub const MAX_FUNCTION_STATS: u32 = 4096;

/// Who calls: the key of `CALLERS`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct CallerKey {
    /// The thread, as the initial pid namespace numbers it, or the address of the goroutine.
    pub id: u64,
    /// The process of a goroutine, as the initial pid namespace numbers it; 0 of a thread.
    pub pid: u32,
    /// Zero.
    pub reserved: u32,
}

/// A call that has begun.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InCall {
    /// Where its return address is: an address, or of a goroutine the distance to the stack's end, below zero.
    pub position: u64,
    /// When it began, ns of the monotonic clock.
    pub since_ns: u64,
    /// How long its caller had been off the CPU inside calls then, ns.
    pub off_cpu_ns: u64,
    /// The number of the function.
    pub function: u32,
    /// Zero.
    pub reserved: u32,
}

/// A caller, from its first call on: a value of `CALLERS`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Caller {
    /// Where it is in its cell: see [`Cell`].
    pub cell: Cell,
    /// The calls that it is in, outermost first.
    pub calls: [InCall; MAX_DEPTH],
    /// How many these are.
    pub depth: u32,
    /// Zero.
    pub reserved: u32,
    /// How long it has been off the CPU inside calls, ns; 0 of a goroutine.
    pub off_cpu_ns: u64,
    /// When it was switched out inside one, ns; 0 while it runs.
    pub left_ns: u64,
}

/// Calls that are counted together: a key of `FUNCTION_STATS`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FunctionKey {
    /// Start of the process since boot, ns: tells a reused pid apart.
    pub start_time_ns: u64,
    /// The process, as the profiler's pid namespace numbers it.
    pub pid: u32,
    /// Programs that it had executed.
    pub exec_count: u32,
    /// The number of the function.
    pub function: u32,
    /// Zero.
    pub reserved: u32,
}

/// What was counted of them.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FunctionStats {
    /// Calls that have ended.
    pub calls: u64,
    /// Those of them that were made inside another call of the same function, by the same caller.
    pub nested: u64,
    /// Time in all of them, ns: what is nested counts again.
    pub sum_ns: u64,
    /// Time in those that were not nested, ns.
    pub total_ns: u64,
    /// The part of it that the caller was off the CPU, ns.
    pub off_cpu_ns: u64,
    /// The longest, ns.
    pub max_ns: u64,
    /// The process's name when the first one ended.
    pub process_comm: [u8; COMM_LEN],
    /// How many took how long: see [`crate::histogram`].
    pub histogram: [u64; HISTOGRAM_BUCKETS],
}

/// What is not known of calls, by its place in `FUNCTIONS_MISSED`.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FunctionMissed {
    /// No room for their caller.
    Callers = 0,
    /// More than [`MAX_DEPTH`] deep.
    Deep = 1,
    /// No room for their row.
    Stats = 2,
    /// They have no end that was seen: an exception, a panic or `longjmp` has left them.
    Unended = 3,
}

impl FunctionMissed {
    /// How many there are.
    pub const COUNT: u32 = 4;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layouts_have_no_hidden_padding() {
        assert_eq!(size_of::<CallerKey>(), 16);
        assert_eq!(size_of::<InCall>(), 32);
        assert_eq!(size_of::<Caller>(), 8 + 32 * MAX_DEPTH + 8 + 16);
        assert_eq!(size_of::<FunctionKey>(), 24);
        assert_eq!(size_of::<FunctionStats>(), 6 * 8 + COMM_LEN + 8 * HISTOGRAM_BUCKETS);
        assert!(MAX_FUNCTIONS as u64 <= FUNCTION_MASK && OF_GOROUTINES & FUNCTION_MASK == 0);
    }
}
