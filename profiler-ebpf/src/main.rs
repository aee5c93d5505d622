//! The profiler's eBPF programs.
//!
//! One object; only the programs that were asked for are loaded. Each probe is one module, everything else is shared:
//! [`task`] who runs and whether he was asked for, [`stack`] and [`unwind`] where, [`aggregate`] the one way a record
//! reaches user space, [`window`] which generation of the maps is written, [`maps`] every map.
//!
//! Programs are safe in NMI context: no spinning, no allocation, preallocated maps, per-CPU scratch.

#![no_std]
#![no_main]
#![expect(internal_features, reason = "the BPF target has no other way to an atomic add")]
#![feature(core_intrinsics)]

mod aggregate;
mod alloc;
mod atomic;
mod bench;
mod block;
mod block_asker;
mod block_count;
mod block_dirty;
mod block_noted;
mod block_part;
mod block_wait;
mod config;
mod connections;
mod cpu;
mod fault;
mod file;
mod file_count;
mod file_keep;
mod file_name;
mod file_pages;
mod file_requests;
mod function;
mod maps;
mod net;
mod net_exits;
mod offcpu;
mod process;
mod python;
mod recorded;
mod remainder;
mod socket;
mod stack;
mod structure;
mod syscall;
mod task;
mod threads;
mod unwind;
mod waiting;
mod wakers;
mod window;

#[cfg(not(test))]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
