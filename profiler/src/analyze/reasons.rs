//! Reasons: a leaf frame for each, and of waits what they were for, from how the thread left the CPU, the system call and the
//! functions of its kernel stack.
//!
//! Input: a profile as the programs filled it. Output: the same with the number of a reason in each sample and that reason
//! as the leaf frame; of waits, whose samples carry a [`Blocked`] each, without the scheduler's own frames.

use std::collections::HashMap;

use profiler_common::event::{COLUMNS, Origin};
use profiler_common::system_call::{named_call, reason_of};
use profiler_common::wait::{Blocked, Left, NO_SYSTEM_CALL, Reason};

use super::locks;
use crate::profile::{FrameKind, Function, Interner, Line, Location, Profile, Sample};

/// Replaces what the programs knew of each event by its reason, and puts that on the stack.
pub fn classify(profile: &mut Profile) {
    let origin = profile.origin;
    if origin.row().reasons.is_empty() {
        return;
    }
    let names: Vec<Option<&str>> =
        profile.locations.iter().map(|location| kernel_function(profile, location)).collect();
    let mut stacks: Interner<Vec<u32>> = Interner::default();
    let mut leaves: HashMap<u16, u32> = HashMap::new();
    let first_leaf = profile.locations.len();
    let mut samples: HashMap<(u32, u32, u16, u64), [u64; COLUMNS]> = HashMap::new();
    for sample in &profile.samples {
        let stack = &profile.stacks[sample.stack as usize][..];
        let (stack, reason) = match origin {
            Origin::OffCpu => wait(sample.reason, stack, &names),
            Origin::Lock => (without_scheduler(stack, &names), locks::kind(profile, sample) as u16),
            Origin::Syscall => (stack, reason_of(named_call(sample.reason.saturating_sub(1)))),
            Origin::BlockIo => (without_scheduler(without_tracing(stack, &names), &names), sample.reason),
            Origin::Cpu
            | Origin::Fault
            | Origin::Waker
            | Origin::FileIo
            | Origin::Net
            | Origin::Alloc
            | Origin::Live
            | Origin::Func => (stack, sample.reason),
        };
        let next = u32::try_from(first_leaf + leaves.len()).unwrap_or(u32::MAX);
        let leaf = *leaves.entry(reason).or_insert(next);
        let stack = stacks.intern([leaf].into_iter().chain(stack.iter().copied()).collect());
        let values = samples.entry((stack, sample.thread, reason, sample.span)).or_default();
        for (sum, value) in values.iter_mut().zip(sample.values) {
            *sum += value;
        }
    }
    let mut leaves: Vec<_> = leaves.into_iter().collect();
    leaves.sort_unstable_by_key(|&(_, location)| location);
    for (reason, _) in leaves {
        let function = u32::try_from(profile.functions.len()).unwrap_or(u32::MAX);
        let name = origin.reason_name(reason).unwrap_or_default();
        profile.functions.push(Function { name: format!("[{name}]"), file: String::new() });
        let lines = vec![Line { function, line: 0 }];
        profile.locations.push(Location { kind: FrameKind::Reason, object: None, address: 0, lines });
    }
    profile.stacks = stacks.into_values();
    let samples = samples.into_iter();
    profile.samples =
        samples.map(|((stack, thread, reason, span), values)| Sample { stack, thread, reason, span, values }).collect();
}

/// The stack of a wait from where the thread waited, and the number of its reason. `word`: what the programs knew of it.
fn wait<'a>(word: u16, stack: &'a [u32], names: &[Option<&str>]) -> (&'a [u32], u16) {
    let stack = without_scheduler(stack, names);
    let functions = stack.iter().map_while(|&location| names[location as usize]);
    (stack, reason(Blocked::from_word(word), functions) as u16)
}

/// The name of a kernel function without what a compiler has added to it; empty for one without a name, `None` for a
/// frame that is not the kernel's.
fn kernel_function<'a>(profile: &'a Profile, location: &Location) -> Option<&'a str> {
    if location.kind != FrameKind::Kernel {
        return None;
    }
    let name = location.lines.last().map_or("", |line| profile.functions[line.function as usize].name.as_str());
    Some(name.split('.').next().unwrap_or_default())
}

/// A stack without what runs between the moment a thread has come back and its own code: our program and what calls it,
/// up to the scheduler's entry points. A stack that a sleeping thread had when it was looked at begins behind them.
fn without_scheduler<'a>(stack: &'a [u32], names: &[Option<&str>]) -> &'a [u32] {
    const ENTRIES: [&str; 7] = [
        "schedule",
        "schedule_preempt_disabled",
        "preempt_schedule",
        "preempt_schedule_common",
        "preempt_schedule_irq",
        "preempt_schedule_notrace",
        "schedule_idle",
    ];
    let name = |index: usize| stack.get(index).and_then(|&location| names[location as usize]);
    let Some(first) =
        (0..stack.len()).take_while(|&index| name(index).is_some()).find(|&index| name(index) == Some("__schedule"))
    else {
        return stack;
    };
    let entries = (first + 1..).take_while(|&index| name(index).is_some_and(|name| ENTRIES.contains(&name))).count();
    &stack[first + 1 + entries..]
}

/// A stack without what runs when a tracepoint is hit: our program, and what calls it.
fn without_tracing<'a>(stack: &'a [u32], names: &[Option<&str>]) -> &'a [u32] {
    const CALLERS: [&str; 3] = ["bpf_trace_run", "__bpf_trace_", "__traceiter_"];
    let calls_us = |location: u32| {
        names[location as usize].is_some_and(|name| CALLERS.iter().any(|caller| name.starts_with(caller)))
    };
    let last = stack.iter().take(MAX_TRACING_FRAMES).rposition(|&location| calls_us(location));
    last.map_or(stack, |last| &stack[last + 1..])
}

/// Frames of our program and of what calls it, at most.
const MAX_TRACING_FRAMES: usize = 6;

/// What a wait was for.
///
/// `functions`: those of the kernel stack, leaf first.
fn reason<'a>(blocked: Blocked, functions: impl Iterator<Item = &'a str>) -> Reason {
    match blocked.left {
        Left::Woken => return Reason::RunQueue,
        Left::Stopped => return Reason::Stopped,
        Left::Runnable if blocked.system_call == SCHED_YIELD => return Reason::RunQueue,
        Left::Runnable => return Reason::Preempted,
        Left::Unknown | Left::Interruptible | Left::Uninterruptible => {}
    }
    let mut found = None;
    for function in functions {
        // Whatever it takes to bring a page, it is the page that is waited for.
        if FAULTS.contains(&function) {
            return Reason::Fault;
        }
        if found.is_none() {
            found = by_function(function);
        }
    }
    if blocked.io_wait {
        return Reason::Disk;
    }
    if blocked.polls_nothing {
        return Reason::Sleep;
    }
    found.or_else(|| by_system_call(blocked.system_call)).unwrap_or(Reason::Other)
}

const SCHED_YIELD: u16 = 24;

/// Functions under which a thread waits for a page of its own.
const FAULTS: [&str; 5] =
    ["handle_mm_fault", "do_user_addr_fault", "exc_page_fault", "asm_exc_page_fault", "handle_userfault"];

/// What functions wait for, by how their names begin. The first one that is found from the leaf on decides.
///
/// Source: the sources of Linux 5.15 to 6.18, by directory: block, fs, kernel/futex, kernel/locking, net.
const BY_FUNCTION: [(&str, Reason); 62] = [
    ("hrtimer_nanosleep", Reason::Sleep),
    ("do_nanosleep", Reason::Sleep),
    ("do_sigtimedwait", Reason::Sleep),
    ("sigsuspend", Reason::Sleep),
    ("__do_sys_pause", Reason::Sleep),
    ("futex_", Reason::Lock),
    ("__futex_", Reason::Lock),
    ("do_futex", Reason::Lock),
    ("rt_mutex_", Reason::Lock),
    ("__rt_mutex", Reason::Lock),
    ("mutex_lock", Reason::Lock),
    ("__mutex_lock", Reason::Lock),
    ("rwsem_", Reason::Lock),
    ("down_read", Reason::Lock),
    ("down_write", Reason::Lock),
    ("__down", Reason::Lock),
    ("locks_lock_inode_wait", Reason::Lock),
    ("flock_lock_inode_wait", Reason::Lock),
    ("posix_lock_inode_wait", Reason::Lock),
    ("do_lock_file_wait", Reason::Lock),
    ("fcntl_setlk", Reason::Lock),
    ("do_semtimedop", Reason::Lock),
    ("__do_semtimedop", Reason::Lock),
    ("pipe_", Reason::Pipe),
    ("anon_pipe_", Reason::Pipe),
    ("fifo_open", Reason::Pipe),
    ("wait_for_partner", Reason::Pipe),
    ("unix_", Reason::Pipe),
    ("do_msgrcv", Reason::Pipe),
    ("do_msgsnd", Reason::Pipe),
    ("n_tty_", Reason::Pipe),
    ("eventfd_", Reason::Pipe),
    ("do_sys_poll", Reason::Poll),
    ("do_poll", Reason::Poll),
    ("poll_schedule_timeout", Reason::Poll),
    ("do_select", Reason::Poll),
    ("ep_poll", Reason::Poll),
    ("do_epoll_", Reason::Poll),
    ("tcp_", Reason::Network),
    ("udp_", Reason::Network),
    ("inet_", Reason::Network),
    ("inet6_", Reason::Network),
    ("sk_wait_", Reason::Network),
    ("sk_stream_", Reason::Network),
    ("netlink_", Reason::Network),
    ("packet_", Reason::Network),
    ("vsock_", Reason::Network),
    ("do_wait", Reason::Child),
    ("kernel_wait", Reason::Child),
    ("wait_for_vfork_done", Reason::Child),
    ("ptrace_stop", Reason::Stopped),
    ("do_signal_stop", Reason::Stopped),
    ("do_jobctl_trap", Reason::Stopped),
    // Whose switch was not seen, and who had no reason to wait.
    ("irqentry_exit", Reason::Preempted),
    ("exit_to_user_mode", Reason::Preempted),
    ("io_schedule", Reason::Disk),
    ("submit_bio_wait", Reason::Disk),
    ("blkdev_", Reason::Disk),
    ("__blkdev_", Reason::Disk),
    ("read_events", Reason::Disk),
    ("folio_wait_", Reason::Disk),
    ("jbd2_", Reason::File),
];

/// File systems and what all of them share, by how the names of their functions begin.
const FILE_SYSTEMS: [&str; 12] =
    ["vfs_", "ext4_", "xfs_", "btrfs_", "f2fs_", "nfs_", "fuse_", "overlayfs_", "ovl_", "p9_", "v9fs_", "iomap_"];

fn by_function(function: &str) -> Option<Reason> {
    let known = BY_FUNCTION.iter().find(|(prefix, _)| function.starts_with(prefix)).map(|&(_, reason)| reason);
    known.or_else(|| FILE_SYSTEMS.iter().any(|prefix| function.starts_with(prefix)).then_some(Reason::File))
}

/// What system calls wait for, where no function tells: kernel symbols may not be shown.
///
/// Source: arch/x86/entry/syscalls/syscall_64.tbl.
fn by_system_call(number: u16) -> Option<Reason> {
    Some(match number {
        NO_SYSTEM_CALL => return None,
        // nanosleep, clock_nanosleep, pause, rt_sigtimedwait, rt_sigsuspend
        35 | 230 | 34 | 128 | 130 => Reason::Sleep,
        // futex, futex_waitv, futex_wait, flock, semop, semtimedop
        202 | 449 | 455 | 73 | 65 | 220 => Reason::Lock,
        // poll, select, pselect6, ppoll, epoll_wait, epoll_pwait, epoll_pwait2
        7 | 23 | 270 | 271 | 232 | 281 | 441 => Reason::Poll,
        // connect, accept, sendto, recvfrom, sendmsg, recvmsg, accept4, recvmmsg, sendmmsg
        42..=47 | 288 | 299 | 307 => Reason::Network,
        // vfork, wait4, waitid
        58 | 61 | 247 => Reason::Child,
        // msgsnd, msgrcv
        69 | 70 => Reason::Pipe,
        // io_getevents, io_pgetevents, io_uring_enter
        208 | 333 | 426 => Reason::Disk,
        // read, write, open, stat, fstat, lstat, pread64, pwrite64, readv, writev, fsync, fdatasync, truncate, ftruncate,
        // getdents64, openat, sync_file_range, preadv, pwritev, syncfs, renameat2, copy_file_range, statx
        0..=2 | 4..=6 | 17..=20 | 74..=77 | 217 | 257 | 277 | 295 | 296 | 306 | 316 | 326 | 332 => Reason::File,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn blocked(left: Left, system_call: u16) -> Blocked {
        Blocked { left, system_call, io_wait: false, polls_nothing: false }
    }

    #[test]
    fn a_wait_is_for_what_its_functions_wait_for() {
        for (functions, expected) in [
            (&["futex_wait_queue", "__futex_wait", "futex_wait", "do_futex"][..], Reason::Lock),
            (&["anon_pipe_read", "vfs_read", "ksys_read"], Reason::Pipe),
            (&["io_schedule", "folio_wait_bit_common", "filemap_fault", "handle_mm_fault"], Reason::Fault),
            (&["schedule_timeout", "tcp_recvmsg_locked", "tcp_recvmsg", "sock_recvmsg"], Reason::Network),
            (&["schedule_timeout", "unix_stream_read_generic", "sock_recvmsg"], Reason::Pipe),
            (&["jbd2_log_wait_commit", "ext4_sync_file", "vfs_fsync_range"], Reason::File),
            (&["rwsem_down_write_slowpath", "down_write", "ext4_buffered_write_iter"], Reason::Lock),
            (&["something_new"], Reason::Other),
        ] {
            let found = reason(blocked(Left::Interruptible, NO_SYSTEM_CALL), functions.iter().copied());
            assert_eq!(found, expected, "{functions:?}");
        }
    }

    #[test]
    fn without_symbols_the_system_call_decides() {
        let found = |call| reason(blocked(Left::Interruptible, call), std::iter::repeat_n("", 5));
        assert_eq!(found(202), Reason::Lock);
        assert_eq!(found(232), Reason::Poll);
        assert_eq!(found(35), Reason::Sleep);
        assert_eq!(found(NO_SYSTEM_CALL), Reason::Other);
        let io_wait = Blocked { io_wait: true, ..blocked(Left::Uninterruptible, 17) };
        assert_eq!(reason(io_wait, std::iter::empty()), Reason::Disk);
        let nothing = Blocked { polls_nothing: true, ..blocked(Left::Interruptible, 7) };
        assert_eq!(reason(nothing, ["do_sys_poll"].into_iter()), Reason::Sleep);
    }

    #[test]
    fn a_thread_that_could_run_waits_for_a_cpu() {
        let functions = || ["exit_to_user_mode_loop", "handle_mm_fault"].into_iter();
        assert_eq!(reason(blocked(Left::Runnable, NO_SYSTEM_CALL), functions()), Reason::Preempted);
        assert_eq!(reason(blocked(Left::Runnable, SCHED_YIELD), functions()), Reason::RunQueue);
        assert_eq!(reason(blocked(Left::Woken, 202), functions()), Reason::RunQueue);
    }

    #[test]
    fn the_scheduler_and_what_is_above_it_is_left_out() {
        let names = [Some("bpf_trace_run1"), Some("__schedule"), Some("schedule"), Some("do_nanosleep"), None];
        assert_eq!(without_scheduler(&[0, 1, 2, 3, 4], &names), [3, 4]);
        assert_eq!(without_scheduler(&[3, 4], &names), [3, 4]);
        // Behind a frame of user space there is no scheduler.
        assert_eq!(without_scheduler(&[4, 1], &names), [4, 1]);
    }
}
