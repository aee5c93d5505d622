//! A kernel-level profiler for production Linux hosts, on eBPF.
//!
//! See ARCHITECTURE.md for the picture. This library is what the `profiler` command and its tests share.

pub mod alloc;
pub mod analyze;
pub mod bpf;
pub mod cli;
pub mod collect;
pub mod daemon;
mod disk_cache;
pub mod output;
pub mod process;
pub mod profile;
pub mod python;
pub mod symbolize;
pub mod unwind;
