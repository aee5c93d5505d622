//! The only place that knows eBPF and perf events: loading, attaching, maps, what the kernel can do.
//!
//! Everything is held by descriptors of this process and nothing is pinned, so that nothing outlives it; probes in the code of
//! targets are held by another process, which outlives it only to take them away (`holder`).

mod allocs;
mod blocks;
mod btf;
mod calls;
mod counted;
mod drain;
mod error;
mod faults;
mod files;
mod functions;
mod holder;
mod kernel_types;
mod lifecycle;
mod load;
mod net;
mod perf;
mod probe;
mod pythons;
mod runs;
mod sampler;
mod session;
mod shards;
mod space;
mod syscall;
mod tables;
mod trap_cost;
mod waits;

pub use allocs::{AttachedProbes, Probes};
pub use drain::{Drained, NamedFile, Remainder, Stacks};
pub use error::BpfError;
pub use faults::{FaultPrograms, Faults};
pub use files::{CountedFile, FileCounts};
pub use functions::FunctionRuns;
pub use holder::hold_probes;
pub use kernel_types::read_task_offsets;
pub use lifecycle::{Lifecycle, LifecycleEvent};
pub use load::{Kernel, Limits, Selection, map_bytes};
pub use net::{NetCounted, NetHook};
pub use probe::{Check, Verdict, checks};
pub use runs::Run;
pub use sampler::{Counts, Sampler, SamplingEvent, max_sample_rate, online_cpus};
pub use tables::{PlacedTable, TableParts};
pub use trap_cost::TrapCosts;
pub use waits::{WaitHook, Waiting, monotonic_ns};
