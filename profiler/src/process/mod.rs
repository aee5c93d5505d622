//! Processes: what a pid is, what it maps, and the objects behind its mappings, Go's own tables in them included.
//!
//! Reads /proc and executable files, all of which a target controls: every read is bounded, files are opened through
//! the target's own view and read by `pread`, and nothing is ever written.

pub(crate) mod elf;
mod function_ends;
mod go;
mod identity;
mod jit_dump;
mod mapping;
mod memory;
mod mounts;
mod named_functions;
mod object;
mod object_table;
mod perf_map;
pub(crate) mod probe_point;
mod proc_file;
pub(crate) mod symbols;
mod usage;

pub(crate) use go::{GoCode, LineTable};
pub use identity::{
    all, cgroup, children_of, command_name, descendants_of, end_of, executable_name, exists, is_running, is_thread,
    pid_namespace,
};
pub use jit_dump::open_jit_dump;
pub(crate) use mapping::backing_of;
pub use mapping::{Backing, FileKey, Mapping, Mappings, MappingsError, read_mappings};
pub use memory::{read_memory, read_memory_up_to};
pub use mounts::{Mounts, mount_namespace, working_directory};
pub use named_functions::{FunctionProbes, NamedFunctions};
pub(crate) use object::build_id;
pub use object::{ObjectError, ObjectFile, Segment};
pub use object_table::ObjectTable;
pub use perf_map::{JitProcess, open_perf_map};
pub use proc_file::{ProcFile, number, number_after};
pub use usage::{ProcessFiles, ProcessStat, Ticks, parse_stat};
