//! The harness of the kernel tests: builds workloads whose truth is known, runs the profiler on them for real, and
//! reads what it wrote.
//!
//! A kernel test begins with [`require_bpf`], which also keeps others of its kind from running at the same time: each
//! would be the other's load. Everything a test starts is bounded in time and ended by its pid.

mod bench;
mod bpf_objects;
mod capture;
mod daemon;
mod environment;
mod process;
mod record;
mod workload;

pub use bench::{BenchOption, Usage, count_perf_samples, draw_perf, run_bench};
pub use bpf_objects::BpfObjects;
pub use capture::{Captured, Stack, float};
pub use daemon::{Daemon, windows_in};
pub use environment::{
    Kernel, at_work, enough, find_program, is_emulated, long_tests, missing, profiler, require_bpf, scratch, tools,
};
pub use process::{Ended, Target, owned_by, wait_until};
pub use record::{Record, Recording, profiler_command, run_profiler};
pub use workload::{Language, Workload};
