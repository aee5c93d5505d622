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
    /// The register that Go passes its first argument in, rax: `runtime.mallocgc`. Source: the Go internal ABI, amd64.
    GoFirst = 4,
    /// The register of Go's second argument, rbx: `runtime.mProf_Malloc` up to Go 1.22.
    GoSecond = 5,
    /// The register of Go's third argument, rcx: the same since Go 1.23.
    GoThird = 6,
}

/// The bits of a cookie that hold a [`SizeArgument`].
pub const SIZE_ARGUMENT_MASK: u64 = 7;

/// A call whose first argument is null is not counted: it goes on to a function that has a probe.
pub const NULL_IS_ANOTHER: u64 = 1 << 3;

/// The function writes the address to where its first argument points, and returns 0: `posix_memalign`.
pub const RETURNS_BY_FIRST: u64 = 1 << 4;

/// The first argument is a block that the call frees: `realloc`.
pub const FREES_FIRST: u64 = 1 << 5;

/// What becomes of the block cannot be seen: a collector frees it. Nor may the return be seen: Go's runtime moves stacks, and
/// knows no other return addresses than its own.
pub const NOT_FOLLOWED: u64 = 1 << 6;

/// The call was chosen by the program itself: its first argument is the block, its third the bytes that it stands for. Source: the
/// probe points `otel_memory:alloc(ptr, size, weight)`.
pub const WEIGHTED: u64 = 1 << 7;

/// The function may do its work by calling another one that has a probe, which is not to count it once more: `calloc` of musl.
pub const CALLS_ANOTHER: u64 = 1 << 8;

/// A call that is so close below one of a function with [`CALLS_ANOTHER`], and comes next, is that function's: bytes of stack.
pub const INNER_BYTES: u64 = 512;

/// What a cookie is shifted by to get the address at which the program has the mean distance of what it chooses, bytes; 0 where
/// the call itself says what it stands for.
pub const RATE_SHIFT: u32 = 16;

/// The bytes that an allocation stands for which was chosen because it has a point on the line of bytes that are allocated, where
/// points are `rate` apart on average: `size / (1 - exp(-size / rate))`, within a thousandth, by whole numbers.
///
/// Source: D. G. Horvitz and D. J. Thompson, "A generalization of sampling without replacement", 1952.
#[inline(always)]
#[must_use]
pub const fn sampled_weight(size: u64, rate: u64) -> u64 {
    // Sizes of which nothing overflows; the ratio is all that counts.
    let shift = (u64::BITS - size.leading_zeros()).saturating_sub(30);
    let (short, distance) = (size >> shift, rate >> shift);
    if distance < 2 || by(short, distance) >= 20 {
        return size;
    }
    if short <= distance {
        // The series of x / (1 - exp(-x)): 1 + x / 2 + x^2 / 12 - x^4 / 720, in 1,024ths.
        let square = by((short * short) << 4, distance) << 6;
        let fourth = by((square >> 10) * (square >> 10), distance) << 10;
        return (((distance << 10) + (short << 9) + square / 12 - fourth / 720) >> 10) << shift;
    }
    // exp(-x) is 2^-whole * exp(-rest), in 2^-24.
    let by_log2 = (by(short << 24, distance) * 24_204_406) >> 24;
    let (whole, part) = (by_log2 >> 24, by_log2 & 0xff_ffff);
    let rest = (part * 11_629_080) >> 24;
    let mut power = 1 << 24;
    // The Taylor series, from its seventh term inwards: 1 - rest (1 - rest / 2 (1 - rest / 3 ...)).
    let mut term = 7;
    while term > 0 {
        power = (1 << 24) - by((rest * power) >> 24, term);
        term -= 1;
    }
    by(short << 24, (1 << 24) - (power >> (whole & 63))) << shift
}

/// A quotient, with no way to a panic, which no program may have; 0 for no quotient.
#[inline(always)]
const fn by(number: u64, divisor: u64) -> u64 {
    match number.checked_div(divisor) {
        Some(quotient) => quotient,
        None => 0,
    }
}

/// No call stands for more: its square stays within 64 bits when it is shifted by 20.
pub const MOST_WEIGHT: u64 = 1 << 41;

/// Values of [`Control::takes_allocations`](crate::config::Control::takes_allocations).
pub mod takes {
    /// Nothing.
    pub const NOTHING: u32 = 0;
    /// Allocations.
    pub const ALLOCATIONS: u32 = 1;
    /// Also what becomes of them.
    pub const BLOCKS: u32 = 2;
    /// Added to either: every allocation, none for others.
    pub const EXACT: u32 = 4;
}

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
    /// Where the return address of a call is that was kept, and whose block is not known yet; 0 when there is none.
    pub return_at: u64,
    /// Where its function writes the address of the block; 0 for one that returns it.
    pub written_at: u64,
    /// Where the return address of a call is whose function may call another one; 0 when the last call was none.
    pub outer_at: u64,
    /// What is known of the block.
    pub block: LiveBlock,
}

/// A block of memory: the key of `LIVE`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct LiveKey {
    /// Its address.
    pub address: u64,
    /// The process, as the initial pid namespace numbers it.
    pub pid: u32,
    /// Zero.
    pub reserved: u32,
}

/// A block that was kept and has not been freed: the value of `LIVE`. Process and stack are those of its record.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LiveBlock {
    /// When it was allocated, ns of the monotonic clock.
    pub born_ns: u64,
    /// Bytes that it stands for.
    pub bytes: u64,
    /// Blocks that it stands for.
    pub objects: u64,
    /// Its own size, bytes.
    pub size: u64,
    /// Reference of its user stack.
    pub stack: u64,
    /// Start time of the process, ns.
    pub start_time_ns: u64,
    /// The process.
    pub pid: u32,
    /// Its exec count.
    pub exec_count: u32,
    /// Generation of its mappings.
    pub generation: u32,
    /// Zero.
    pub reserved: u32,
}

/// How many allocations a CPU should keep in [`SLOT_NS`](crate::wait::SLOT_NS) while blocks are followed: probes are there all
/// the time then, and each that is kept costs 5 us and the trap at its return.
pub const KEPT_BLOCKS: u64 = 60;

/// Blocks that are followed at once: 10 MB. Of allocations some thousands a second are kept.
pub const MAX_LIVE: u32 = 1 << 16;

/// Classes of sizes: powers of two, by the highest.
pub const SIZE_CLASSES: u32 = 48;

/// Buckets of lifetimes: powers of two of microseconds, by the highest; the last is 36 minutes.
pub const LIFETIMES: usize = 32;

/// What was counted of the blocks of a class of sizes that were kept, by what they stand for: an element of `SIZE_STATS`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SizeStats {
    /// Allocations.
    pub objects: u64,
    /// And their bytes.
    pub bytes: u64,
    /// Blocks that were freed.
    pub freed: u64,
    /// How long they were there, microseconds in all.
    pub lived_us: u64,
    /// How many of them lived how long.
    pub lifetimes: [u64; LIFETIMES],
}

impl SizeStats {
    /// Nothing.
    pub const NONE: Self = Self { objects: 0, bytes: 0, freed: 0, lived_us: 0, lifetimes: [0; LIFETIMES] };

    /// Adds what another CPU has counted.
    pub fn add(&mut self, other: &Self) {
        self.objects += other.objects;
        self.bytes += other.bytes;
        self.freed += other.freed;
        self.lived_us = self.lived_us.saturating_add(other.lived_us);
        for (sum, lived) in self.lifetimes.iter_mut().zip(other.lifetimes) {
            *sum += lived;
        }
    }

    /// The class of a size: the greatest has `1 << class` bytes, and more than half of it.
    #[inline(always)]
    #[must_use]
    pub const fn class(size: u64) -> u32 {
        let class = u64::BITS - size.saturating_sub(1).leading_zeros();
        if class < SIZE_CLASSES { class } else { SIZE_CLASSES - 1 }
    }

    /// The bucket of a lifetime in microseconds: less than `1 << bucket`, and at least half of it.
    #[inline(always)]
    #[must_use]
    pub const fn bucket(lived_us: u64) -> usize {
        let bucket = (u64::BITS - lived_us.leading_zeros()) as usize;
        if bucket < LIFETIMES { bucket } else { LIFETIMES - 1 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_layout_has_no_hidden_padding() {
        assert_eq!(size_of::<LiveBlock>(), 64);
        assert_eq!(size_of::<Allocating>(), 40 + 64);
        assert_eq!(size_of::<LiveKey>(), 16);
        assert_eq!(SizeArgument::GoThird as u64 & !SIZE_ARGUMENT_MASK, 0);
    }

    #[test]
    fn a_weight_is_the_size_by_the_chance_to_be_chosen() {
        for rate in [2, 1_000, 4_096, 65_536, 524_288, 1 << 30] {
            for size in
                [1, 16, 100, 1_000, 4_096, 65_536, 100_000, 524_288, 600_000, 1 << 20, 1 << 24, 1 << 33, 1 << 40]
            {
                let weight = sampled_weight(size, rate) as f64;
                let expected = size as f64 / -(-(size as f64) / rate as f64).exp_m1();
                assert!(
                    (weight / expected - 1.0).abs() < 2e-3 || (weight - expected).abs() <= 1.0,
                    "{size} {rate}: {weight} {expected}"
                );
                assert!(weight >= size as f64);
            }
        }
        assert_eq!([sampled_weight(0, 512), sampled_weight(100, 0), sampled_weight(100, 1)], [512, 100, 100]);
    }

    #[test]
    fn a_class_ends_with_its_power_of_two() {
        let classes = [(0, 0), (1, 0), (2, 1), (3, 2), (4, 2), (5, 3), (4096, 12), (4097, 13), (u64::MAX, 47)];
        for (size, class) in classes {
            assert_eq!(SizeStats::class(size), class, "{size}");
        }
        assert_eq!([0, 1, 2, 3, 1 << 40].map(SizeStats::bucket), [0, 1, 2, 2, 31]);
    }
}
