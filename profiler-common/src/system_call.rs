//! System calls: their names, what the programs note of a call that has begun, and what is counted of all calls exactly.

use crate::event::COMM_LEN;
use crate::histogram::HISTOGRAM_BUCKETS;
use crate::wait::Cell;

/// Names of the system calls from 0 on. Source: arch/x86/entry/syscalls/syscall_64.tbl, Linux 6.18, and what newer ones add.
const NAMES: &str = "\
    read write open close stat fstat lstat poll lseek mmap mprotect munmap brk rt_sigaction rt_sigprocmask \
    rt_sigreturn ioctl pread64 pwrite64 readv writev access pipe select sched_yield mremap msync mincore madvise \
    shmget shmat shmctl dup dup2 pause nanosleep getitimer alarm setitimer getpid sendfile socket connect accept \
    sendto recvfrom sendmsg recvmsg shutdown bind listen getsockname getpeername socketpair setsockopt getsockopt \
    clone fork vfork execve exit wait4 kill uname semget semop semctl shmdt msgget msgsnd msgrcv msgctl fcntl flock \
    fsync fdatasync truncate ftruncate getdents getcwd chdir fchdir rename mkdir rmdir creat link unlink symlink \
    readlink chmod fchmod chown fchown lchown umask gettimeofday getrlimit getrusage sysinfo times ptrace getuid \
    syslog getgid setuid setgid geteuid getegid setpgid getppid getpgrp setsid setreuid setregid getgroups setgroups \
    setresuid getresuid setresgid getresgid getpgid setfsuid setfsgid getsid capget capset rt_sigpending \
    rt_sigtimedwait rt_sigqueueinfo rt_sigsuspend sigaltstack utime mknod uselib personality ustat statfs fstatfs \
    sysfs getpriority setpriority sched_setparam sched_getparam sched_setscheduler sched_getscheduler \
    sched_get_priority_max sched_get_priority_min sched_rr_get_interval mlock munlock mlockall munlockall vhangup \
    modify_ldt pivot_root _sysctl prctl arch_prctl adjtimex setrlimit chroot sync acct settimeofday mount umount2 \
    swapon swapoff reboot sethostname setdomainname iopl ioperm create_module init_module delete_module \
    get_kernel_syms query_module quotactl nfsservctl getpmsg putpmsg afs_syscall tuxcall security gettid readahead \
    setxattr lsetxattr fsetxattr getxattr lgetxattr fgetxattr listxattr llistxattr flistxattr removexattr \
    lremovexattr fremovexattr tkill time futex sched_setaffinity sched_getaffinity set_thread_area io_setup \
    io_destroy io_getevents io_submit io_cancel get_thread_area lookup_dcookie epoll_create epoll_ctl_old \
    epoll_wait_old remap_file_pages getdents64 set_tid_address restart_syscall semtimedop fadvise64 timer_create \
    timer_settime timer_gettime timer_getoverrun timer_delete clock_settime clock_gettime clock_getres \
    clock_nanosleep exit_group epoll_wait epoll_ctl tgkill utimes vserver mbind set_mempolicy get_mempolicy mq_open \
    mq_unlink mq_timedsend mq_timedreceive mq_notify mq_getsetattr kexec_load waitid add_key request_key keyctl \
    ioprio_set ioprio_get inotify_init inotify_add_watch inotify_rm_watch migrate_pages openat mkdirat mknodat \
    fchownat futimesat newfstatat unlinkat renameat linkat symlinkat readlinkat fchmodat faccessat pselect6 ppoll \
    unshare set_robust_list get_robust_list splice tee sync_file_range vmsplice move_pages utimensat epoll_pwait \
    signalfd timerfd_create eventfd fallocate timerfd_settime timerfd_gettime accept4 signalfd4 eventfd2 \
    epoll_create1 dup3 pipe2 inotify_init1 preadv pwritev rt_tgsigqueueinfo perf_event_open recvmmsg fanotify_init \
    fanotify_mark prlimit64 name_to_handle_at open_by_handle_at clock_adjtime syncfs sendmmsg setns getcpu \
    process_vm_readv process_vm_writev kcmp finit_module sched_setattr sched_getattr renameat2 seccomp getrandom \
    memfd_create kexec_file_load bpf execveat userfaultfd membarrier mlock2 copy_file_range preadv2 pwritev2 \
    pkey_mprotect pkey_alloc pkey_free statx io_pgetevents rseq uretprobe uprobe";

/// Those from [`SECOND_PART`] on.
const NAMES_OF_SECOND_PART: &str = "\
    pidfd_send_signal io_uring_setup io_uring_enter io_uring_register open_tree move_mount fsopen fsconfig fsmount \
    fspick pidfd_open clone3 close_range openat2 pidfd_getfd faccessat2 process_madvise epoll_pwait2 mount_setattr \
    quotactl_fd landlock_create_ruleset landlock_add_rule landlock_restrict_self memfd_secret process_mrelease \
    futex_waitv set_mempolicy_home_node cachestat fchmodat2 map_shadow_stack futex_wake futex_wait futex_requeue \
    statmount listmount lsm_get_self_attr lsm_set_self_attr lsm_list_modules mseal setxattrat getxattrat listxattrat \
    removexattrat open_tree_attr file_getattr file_setattr listns";

/// From here on numbers are the same on all architectures; x86-64 has none between its own and these.
const SECOND_PART: usize = 424;

/// Number of the last call that has a name.
const LAST: usize = 470;

/// Stands for all calls without a name, and for those of 32-bit code, which have other numbers.
pub const OTHER_CALL: u16 = LAST as u16 + 1;

/// Names by number; empty for a number that no call has.
pub const SYSTEM_CALLS: [&str; LAST + 2] = names();

/// Number of `rt_sigreturn`, which returns what was in a register, not whether it failed.
pub const RT_SIGRETURN: u16 = 15;

/// Most that a call returns as the number of an error, below zero. Source: `MAX_ERRNO`, include/linux/err.h.
pub const MAX_ERROR: i64 = 4095;

const fn names() -> [&'static str; LAST + 2] {
    let mut names = [""; LAST + 2];
    fill(&mut names, 0, NAMES);
    fill(&mut names, SECOND_PART, NAMES_OF_SECOND_PART);
    names[OTHER_CALL as usize] = "other";
    names
}

/// Puts the words of `text` into `names`, from `index` on.
const fn fill(names: &mut [&'static str], mut index: usize, text: &'static str) {
    let mut rest = text;
    loop {
        let mut end = 0;
        while end < rest.len() && rest.as_bytes()[end] != b' ' {
            end += 1;
        }
        let (name, behind) = rest.split_at(end);
        names[index] = name;
        index += 1;
        if behind.is_empty() {
            return;
        }
        rest = behind.split_at(1).1;
    }
}

/// The number that stands for a call: its own, or [`OTHER_CALL`] where it has no name.
#[must_use]
pub fn named_call(number: u16) -> u16 {
    match SYSTEM_CALLS.get(usize::from(number)) {
        Some(name) if !name.is_empty() => number,
        _ => OTHER_CALL,
    }
}

/// The reason of the calls of a number: reasons are counted from 1.
#[inline(always)]
#[must_use]
pub const fn reason_of(number: u16) -> u16 {
    number + 1
}

/// A thread that was asked for, since its first system call: an element of the `CALLS` map, which is an array as `WAITS` is.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Call {
    /// When it began its call, in ns of the monotonic clock; 0 outside one.
    pub since_ns: u64,
    /// Start of its process since boot, ns.
    pub start_time_ns: u64,
    /// Where the thread is in its cell: see [`Cell`].
    pub cell: Cell,
    /// The thread, as the initial pid namespace numbers it; 0 in an element that is free.
    pub tid: u32,
    /// Its process, as the profiler's pid namespace numbers it.
    pub pid: u32,
    /// Number of the call: at most [`OTHER_CALL`].
    pub number: u32,
    /// Zero.
    pub reserved: u32,
}

/// Calls that are counted together: a key of the `CALL_STATS` map.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CallKey {
    /// Start of the process since boot, ns: tells a reused pid apart.
    pub start_time_ns: u64,
    /// The process, as the profiler's pid namespace numbers it.
    pub pid: u32,
    /// Programs that it had executed.
    pub exec_count: u32,
    /// Number of the call: at most [`OTHER_CALL`].
    pub number: u16,
    /// 1 for calls that returned an error.
    pub failed: u16,
    /// Zero.
    pub reserved: u32,
}

/// What was counted of them.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CallStats {
    /// Calls that have returned.
    pub calls: u64,
    /// Time in them, ns.
    pub total_ns: u64,
    /// The longest, ns.
    pub max_ns: u64,
    /// The process's name when the first one returned.
    pub process_comm: [u8; COMM_LEN],
    /// How many took how long: see [`crate::histogram`].
    pub histogram: [u64; HISTOGRAM_BUCKETS],
}

/// Entries of the `CALL_STATS` map: 17 MB.
pub const MAX_CALL_STATS: u32 = 4096;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_have_the_names_of_their_numbers() {
        for (number, name) in [
            (0, "read"),
            (202, "futex"),
            (257, "openat"),
            (334, "rseq"),
            (SECOND_PART, "pidfd_send_signal"),
            (449, "futex_waitv"),
            (469, "file_setattr"),
            (LAST + 1, "other"),
        ] {
            assert_eq!(SYSTEM_CALLS[number], name);
        }
        assert_eq!(named_call(202), 202);
        for number in [400, OTHER_CALL, u16::MAX] {
            assert_eq!(named_call(number), OTHER_CALL);
        }
    }

    #[test]
    fn layouts_have_no_hidden_padding() {
        assert_eq!(size_of::<Call>(), 40);
        assert_eq!(size_of::<CallKey>(), 24);
        assert_eq!(size_of::<CallStats>(), 3 * 8 + COMM_LEN + 8 * HISTOGRAM_BUCKETS);
    }
}
