//! Kernel tests: the profiler on real programs, whose truth is known, on the running kernel.
//!
//! One binary, since each costs a link; one module for each part of the product. They need root and BTF, and say why
//! when they skip themselves.

#![expect(clippy::print_stdout, reason = "libtest shows what a test measured when it fails, or with --nocapture")]

mod bpf_tables;
mod commands;
mod daemon;
mod daemon_budget;
mod daemon_http;
mod findings;
mod leaves_nothing;
mod record_alloc;
mod record_alloc_killed;
mod record_allocators;
mod record_blockio;
mod record_cpu;
mod record_errors;
mod record_fault;
mod record_fileio;
mod record_fixtures;
mod record_function;
mod record_go;
mod record_go_servers;
mod record_lasting;
mod record_leaks;
mod record_ledger;
mod record_locks;
mod record_names;
mod record_net;
mod record_node;
mod record_offcpu;
mod record_python;
mod record_symbols;
mod record_syscall;
mod record_targets;
mod record_timeline;
mod record_unwinding;
mod saved;
mod servers;
mod top;
mod workloads;
