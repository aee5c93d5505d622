//! CPython: which of a process's objects is an interpreter, where its version keeps things, and what a code object says.
//!
//! Input: ELF files held open, and the memory of processes, both of which a target controls: every read is bounded, no
//! pointer is trusted. Output: layouts for the programs, functions with their lines. Changes nothing of a target.

mod code;
mod layout;
mod lines;
mod merge;
mod runtime;

pub use code::{Function, read_function, was_replaced};
pub use merge::{Chain, merge};
pub use runtime::{Interpreter, RuntimeError, find_interpreter};
