//! Allocators: which functions of an object allocate, and where each is given the size.
//!
//! Reads object files, which a target controls: every read is bounded. Makes no decision on what is attached.

mod functions;

pub use functions::{AllocProbe, Allocator, GoChooser, find_allocator};
