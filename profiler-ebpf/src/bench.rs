//! Walks of the caller's own stack, for `cargo xtask bench unwind` to run with `BPF_PROG_TEST_RUN`. Nothing attaches
//! them, and a recording does not load them.
//!
//! Written out where aya-ebpf's macro would return 0 whatever they return. Each returns the frames it found in the low
//! 16 bits and an [`Outcome`] above, all ones where it could not begin.

use aya_ebpf::helpers::generated::bpf_get_stack;
use core::ffi::c_void;
use profiler_common::counters::Outcome;
use profiler_common::event::{MAX_USER_FRAMES, Origin};

use crate::aggregate;
use crate::maps::{Programs, Scratch};
use crate::stack;
use crate::task::{Task, Wanted};
use crate::unwind;
use crate::window;

/// `BPF_F_USER_STACK`. Source: include/uapi/linux/bpf.h.
const USER_STACK: u64 = 1 << 8;

/// Walks by table, as a sample does.
// SAFETY: no other program has this name.
#[unsafe(no_mangle)]
#[unsafe(link_section = "raw_tracepoint/sys_enter")]
extern "C" fn bench_walk(_context: *mut c_void) -> i32 {
    in_scratch(|scratch| {
        let task = Task::current()?;
        let Wanted::Yes(process) = task.wanted() else { return None };
        let window = window::enter()?;
        aggregate::begin(scratch, &window, &task, process, Origin::Cpu);
        let chain = match stack::begin(&task, process, scratch) {
            Some(chain) => chain,
            None => {
                unwind::walk(Programs::PerfEvent);
                stack::end::<false>(&task, scratch)
            }
        };
        window.leave();
        Some(((chain.outcome as i32) << 16) | scratch.walk.length as i32)
    })
}

/// Lets the kernel walk by frame pointer.
// SAFETY: no other program has this name.
#[unsafe(no_mangle)]
#[unsafe(link_section = "raw_tracepoint/sys_enter")]
extern "C" fn bench_kernel_walk(context: *mut c_void) -> i32 {
    const SIZE: u32 = (MAX_USER_FRAMES * size_of::<u64>()) as u32;
    in_scratch(|scratch| {
        // SAFETY: the helper writes at most `SIZE` bytes, for which the record has room.
        let bytes = unsafe { bpf_get_stack(context, scratch.user.words.as_mut_ptr().cast(), SIZE, USER_STACK) };
        let outcome = if bytes > 0 { Outcome::Complete } else { Outcome::NoFramePointer };
        Some(((outcome as i32) << 16) | (bytes / 8) as i32)
    })
}

/// Does all that the two have in common.
// SAFETY: no other program has this name.
#[unsafe(no_mangle)]
#[unsafe(link_section = "raw_tracepoint/sys_enter")]
extern "C" fn bench_nothing(_context: *mut c_void) -> i32 {
    in_scratch(|_| Some(0))
}

#[inline(always)]
fn in_scratch(walk: impl FnOnce(&mut Scratch) -> Option<i32>) -> i32 {
    let Some(scratch) = aggregate::claim(Programs::PerfEvent) else { return -1 };
    let result = walk(scratch);
    scratch.claimed = 0;
    result.unwrap_or(-1)
}
