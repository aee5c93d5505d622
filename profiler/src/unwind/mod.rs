//! Unwind tables: an object's call-frame information, compiled to the rows that the programs search.
//!
//! Input: an open ELF file. Output: a [`Table`]. Reads by `pread`, bounded; a damaged file costs an error, never a
//! panic. Writes nothing, but to a [`Cache`] that it is given. Source of the rules: DWARF 5, section 6.4; Linux Standard
//! Base 5, "Exception Frames".

mod cache;
mod compile;
mod cursor;
mod frames;
mod go;
mod program;
mod reference;
mod rules;
mod sections;
mod table;

pub use cache::Cache;
pub use compile::{Compiled, UnwindError, compile, load_or_compile};
pub use cursor::FrameError;
pub use rules::{Refusal, Rules};
pub use table::{Page, Table};
