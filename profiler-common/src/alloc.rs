//! Allocations: how the programs are told where a call has its size, and what is known of a thread that allocates.

use crate::wait::Cell;

/// Where a function of an allocator is given the size, as its probe's cookie says. Registers are those of the System V ABI.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum SizeArgument {
    /// The first argument: `malloc`.
    First = 0,
    /// The first argument times the second: `calloc`.
    FirstBySecond = 1,
    /// The second argument: `realloc`, `aligned_alloc`.
    Second = 2,
    /// The third argument: `posix_memalign`.
    Third = 3,
}

/// The bits of a cookie that hold a [`SizeArgument`].
pub const SIZE_ARGUMENT_MASK: u64 = 3;

/// A call whose first argument is null is not counted: it goes on to a function that has a probe.
pub const NULL_IS_ANOTHER: u64 = 1 << 2;

/// What sizes are shifted by to be held against a threshold, whose least and greatest values are those of times: one byte
/// in 64ths.
pub const SIZE_SHIFT: u32 = 6;

/// No size is taken for larger: more cannot be had.
pub const MOST_BYTES: u64 = 1 << 48;

/// A thread that allocates: an element of the `ALLOCATING` map, which is an array as `WAITS` is.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Allocating {
    /// Where the thread is in its cell, along the bytes that it allocates.
    pub cell: Cell,
    /// The thread, as the initial pid namespace numbers it; 0 in an element that is free.
    pub tid: u32,
    /// Zero.
    pub reserved: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_layout_has_no_hidden_padding() {
        assert_eq!(size_of::<Allocating>(), 16);
        assert_eq!(SizeArgument::Third as u64 & !SIZE_ARGUMENT_MASK, 0);
    }
}
