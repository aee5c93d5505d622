//! Samples the allocations of a program: by bytes, at a cost of some nanoseconds each, for whoever watches the probe points
//! `otel_memory:alloc(ptr, size, weight)` and `otel_memory:free(ptr)`.
//!
//! On the line of bytes that a thread allocates, points are chosen by chance, 512 KiB apart on
//! average (a Poisson process). An allocation that has a point is announced, with the bytes that it stands for; all others cost a
//! subtraction and a comparison. A block that was announced begins at a page, which few others do: so a free looks at its
//! address, and only then at the set of announced blocks. Every block that was announced with an address is announced when it is
//! freed, and no other.
//!
//! Two ways to have it, of which a program uses one:
//!
//! - `LD_PRELOAD=libprofiler_alloc.so PROGRAM`, of any program that takes `malloc` from a library, built with the feature
//!   `preload`;
//! - in Rust, a global allocator: [`Sampled`].
//!
//! Never allocates, locks, waits, or writes to anything but its own memory.

mod blocks;
mod global;
mod points;
#[cfg(feature = "preload")]
mod preload;
mod sampler;

pub use global::Sampled;
pub use points::{otel_memory_alloc, otel_memory_free};

/// Blocks that are announced begin at an address that this divides: the size of a page. Of a larger one the cost of a block
/// would be more, of a smaller one more other blocks would have to be looked up.
pub(crate) const MARK: usize = 4096;

/// Whether a block may be one that was announced.
#[inline(always)]
pub(crate) fn is_marked(block: *const u8) -> bool {
    block.addr().is_multiple_of(MARK)
}
