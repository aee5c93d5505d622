//! What the eBPF programs and user space share: record layouts, the origin table, the configuration and the list of
//! reasons a sample can be incomplete for.
//!
//! Every type here is `repr(C)`, has no padding that is not named, and is written by one side and read by the other.
//! Nothing here allocates, reads the clock or makes a system call.

#![no_std]

pub mod alloc;
pub mod block;
pub mod config;
pub mod counters;
pub mod event;
pub mod fault;
pub mod file;
pub mod function;
pub mod histogram;
pub mod net;
pub mod number_pace;
pub mod python;
pub mod system_call;
pub mod unwind;
pub mod wait;
