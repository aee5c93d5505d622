//! Allocators: which functions of an object allocate, where each is given the size, and the instruction that a probe is
//! cheapest at.
//!
//! Reads object files, which a target controls: every read is bounded. Makes no decision on what is attached.

mod functions;
mod probe_point;

pub use functions::{AllocProbe, Allocator, GoChooser, find_allocator};
