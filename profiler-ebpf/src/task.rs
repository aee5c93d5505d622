//! Who is running, and whether he was asked for.

use aya_ebpf::bindings::bpf_pidns_info;
use aya_ebpf::helpers::generated::{
    bpf_get_current_ancestor_cgroup_id, bpf_get_current_pid_tgid, bpf_get_current_task_btf,
    bpf_get_ns_current_pid_tgid, bpf_probe_read_kernel,
};
use core::mem::MaybeUninit;
use profiler_common::config::{Filter, PROCESS_AWAITS_EXEC, PROCESS_TARGET, Process};
use profiler_common::event::COMM_LEN;

use crate::config::config;
use crate::maps::PROCESSES;

/// `PF_KTHREAD`. Source: include/linux/sched.h.
const KERNEL_THREAD: u32 = 0x0020_0000;

/// `PF_IO_WORKER`. Source: include/linux/sched.h.
const IO_WORKER: u32 = 0x10;

/// `TASK_DEAD`. Source: include/linux/sched.h.
const DEAD: u32 = 0x80;

/// The running task. Fields are read through a pointer the verifier knows, at offsets from the kernel's BTF.
#[derive(Clone, Copy)]
pub(crate) struct Task {
    pointer: *const u8,
    /// Process.
    pub(crate) pid: u32,
    /// Thread.
    pub(crate) tid: u32,
}

/// What a hit on the running task is for the accounting.
pub(crate) enum Wanted {
    /// A sample; with what is known of the process.
    Yes(Option<&'static Process>),
    /// Not asked for.
    No,
    /// The idle task.
    Idle,
}

/// Reads a number from the running task, through the pointer that the verifier knows the type of.
macro_rules! field {
    ($pointer:expr, $($offset:ident).+, $type:ty) => {
        // SAFETY: the offset is of this field in the running kernel.
        unsafe { *$pointer.add(config!($($offset).+) as usize).cast::<$type>() }
    };
}

/// Reads a word of the kernel; 0 where it cannot be read.
///
/// For pointers, and for what is behind them: loading a pointer through a typed one makes the verifier search all of
/// the kernel's types by name, 5 ms each time.
#[inline(always)]
pub(crate) fn kernel_word(base: *const u8, offset: u32) -> u64 {
    let mut word = 0_u64;
    // SAFETY: the helper writes 8 bytes to `word` and survives any source address.
    unsafe {
        bpf_probe_read_kernel((&raw mut word).cast(), 8, base.wrapping_add(offset as usize).cast());
    }
    word
}

/// Reads a number of 32 bits of the kernel; 0 where it cannot be read.
#[inline(always)]
pub(crate) fn kernel_number(base: *const u8, offset: u32) -> u32 {
    let mut number = 0_u32;
    // SAFETY: the helper writes 4 bytes to `number` and survives any source address.
    unsafe {
        bpf_probe_read_kernel((&raw mut number).cast(), 4, base.wrapping_add(offset as usize).cast());
    }
    number
}

/// Where the running thread's own storage is (System V ABI for thread-local storage, variant II).
#[inline(always)]
pub(crate) fn thread_pointer() -> u64 {
    // SAFETY: takes no argument.
    let task = unsafe { bpf_get_current_task_btf() }.cast::<u8>().cast_const();
    kernel_word(task, config!(task.thread_pointer))
}

impl Task {
    /// The running task, numbered as the profiler's pid namespace does; `None` when it is not in that namespace.
    #[inline(always)]
    pub(crate) fn current() -> Option<Self> {
        let inode = config!(pid_namespace_inode);
        let (pid, tid) = if inode == 0 {
            // SAFETY: takes no argument.
            let both = unsafe { bpf_get_current_pid_tgid() };
            ((both >> 32) as u32, both as u32)
        } else {
            let mut numbers = bpf_pidns_info { pid: 0, tgid: 0 };
            let size = size_of::<bpf_pidns_info>() as u32;
            // SAFETY: the helper writes `size` bytes to `numbers`.
            let result =
                unsafe { bpf_get_ns_current_pid_tgid(config!(pid_namespace_device), inode, &raw mut numbers, size) };
            if result != 0 {
                return None;
            }
            (numbers.tgid, numbers.pid)
        };
        // SAFETY: takes no argument.
        let pointer = unsafe { bpf_get_current_task_btf() }.cast::<u8>().cast_const();
        Some(Self { pointer, pid, tid })
    }

    /// The running task, numbered as the initial pid namespace does. Without the calls that other namespaces need.
    #[inline(always)]
    pub(crate) fn running() -> Self {
        // SAFETY: takes no argument.
        Self::other(unsafe { bpf_get_current_task_btf() }.cast::<u8>().cast_const())
    }

    /// The running task as [`Task::current`], from what [`Task::running`] returned: without a call where there is nothing to
    /// renumber.
    #[inline(always)]
    pub(crate) fn in_namespace(self) -> Option<Self> {
        if config!(pid_namespace_inode) == 0 { Some(self) } else { Self::current() }
    }

    /// A task that does not run: `pointer` is known to the verifier. Numbered as the initial pid namespace does.
    #[inline(always)]
    pub(crate) fn other(pointer: *const u8) -> Self {
        Self { pointer, pid: field!(pointer, task.tgid, u32), tid: field!(pointer, task.pid, u32) }
    }

    /// The same task under another number.
    #[inline(always)]
    pub(crate) fn numbered(&self, tid: u32) -> Self {
        Self { tid, ..*self }
    }

    /// Whether to sample it.
    #[inline(always)]
    pub(crate) fn wanted(&self) -> Wanted {
        // The idle tasks are 0 in the initial namespace, and in no other.
        if self.tid == 0 {
            return Wanted::Idle;
        }
        if self.pid == config!(self_pid) {
            return Wanted::No;
        }
        let filter = config!(filter);
        if filter == Filter::Cgroup as u32 {
            // SAFETY: takes a number.
            let ancestor = unsafe { bpf_get_current_ancestor_cgroup_id(config!(cgroup_level) as i32) };
            if ancestor != config!(cgroup_id) {
                return Wanted::No;
            }
        } else if filter == Filter::Comm as u32 && !self.has_asked_comm() {
            return Wanted::No;
        }
        // SAFETY: user space replaces an entry as a whole, and the old one stays until this program has ended. Not copied:
        // LLVM would copy the words of a `None` too, which are undefined, and verifiers refuse that.
        let process = unsafe { PROCESSES.get(self.pid) };
        if filter == Filter::Processes as u32 {
            return match process {
                Some(process) if process.flags & (PROCESS_TARGET | PROCESS_AWAITS_EXEC) == PROCESS_TARGET => {
                    Wanted::Yes(Some(process))
                }
                _ => Wanted::No,
            };
        }
        Wanted::Yes(process)
    }

    /// Whether it was asked for, and is none of the idle tasks. As [`Task::wanted`], without what is known of its process.
    #[inline(always)]
    pub(crate) fn is_wanted(&self) -> bool {
        if config!(filter) == Filter::All as u32 {
            return self.pid != config!(self_pid);
        }
        matches!(self.wanted(), Wanted::Yes(_))
    }

    /// Whether the running task was asked for, as [`Task::wanted`]: without what is known of its process where that does not
    /// tell, and with its names read only where the thread's is another one.
    #[inline(always)]
    pub(crate) fn is_running_wanted(&self) -> bool {
        let filter = config!(filter);
        if self.tid == 0 || self.pid == config!(self_pid) {
            return false;
        }
        if filter == Filter::Comm as u32 {
            let asked = config!(comm);
            // SAFETY: an array of bytes is two words, wherever it is.
            let asked = unsafe { core::mem::transmute::<[u8; COMM_LEN], [u64; 2]>(asked) };
            let comm = config!(task.comm) as usize;
            // SAFETY: the offsets are in this field of the running kernel.
            let words = unsafe {
                let words = self.pointer.add(comm).cast::<u64>();
                [core::ptr::read_volatile(words), core::ptr::read_volatile(words.add(1))]
            };
            return words == asked || self.has_asked_comm();
        }
        filter == Filter::All as u32 || matches!(self.wanted(), Wanted::Yes(_))
    }

    /// Whether it was asked for, and is no kernel thread: those wait for work by design.
    #[inline(always)]
    pub(crate) fn is_asked_for(&self) -> bool {
        self.is_wanted() && !self.is_kernel_thread()
    }

    /// What is known of its process.
    #[inline(always)]
    pub(crate) fn process(&self) -> Option<&'static Process> {
        // SAFETY: as in `wanted`.
        unsafe { PROCESSES.get(self.pid) }
    }

    /// Whether the thread or its process has the name asked for.
    #[inline(always)]
    pub(crate) fn has_asked_comm(&self) -> bool {
        is_asked(&self.thread_comm()) || is_asked(&self.process_comm())
    }

    /// The task's structure, for helpers that take it.
    #[inline(always)]
    pub(crate) fn pointer(&self) -> *const u8 {
        self.pointer
    }

    /// Whether it has no user space of its own.
    #[inline(always)]
    pub(crate) fn is_kernel_thread(&self) -> bool {
        field!(self.pointer, task.flags, u32) & KERNEL_THREAD != 0
    }

    /// Whether it is a thread of a process that the kernel has made for `io_uring`: it has no registers of its own.
    #[inline(always)]
    pub(crate) fn is_io_worker(&self) -> bool {
        field!(self.pointer, task.flags, u32) & IO_WORKER != 0
    }

    /// Whether its memory is still there.
    #[inline(always)]
    pub(crate) fn has_memory(&self) -> bool {
        kernel_word(self.pointer, config!(task.mm)) != 0
    }

    /// Whether it is inside execve(2), where the registers may still be those of a program whose memory is gone.
    #[inline(always)]
    pub(crate) fn is_executing(&self) -> bool {
        kernel_word(self.pointer, config!(task.in_execve)) & u64::from(config!(task.in_execve_mask)) != 0
    }

    /// How often it was switched out.
    #[inline(always)]
    pub(crate) fn switches(&self) -> u64 {
        field!(self.pointer, task.voluntary_switches, u64) + field!(self.pointer, task.involuntary_switches, u64)
    }

    /// Whether it runs, and what it sleeps in where it does not.
    #[inline(always)]
    pub(crate) fn state(&self) -> u32 {
        field!(self.pointer, task.state, u32)
    }

    /// Whether it has ended, and is there only until somebody asks how.
    #[inline(always)]
    pub(crate) fn is_dead(&self) -> bool {
        self.state() & DEAD != 0
    }

    /// Whether a CPU runs it now; as far as is known.
    #[inline(always)]
    pub(crate) fn is_on_cpu(&self) -> bool {
        config!(task.on_cpu) == 0 || field!(self.pointer, task.on_cpu, u32) != 0
    }

    /// How long it has waited for a CPU, by the kernel's own account; 0 where the kernel keeps none.
    #[inline(always)]
    pub(crate) fn run_delay_ns(&self) -> u64 {
        if config!(task.run_delay) == 0 {
            return 0;
        }
        field!(self.pointer, task.run_delay, u64)
    }

    /// Whether the kernel counts it as waiting for a block device.
    #[inline(always)]
    pub(crate) fn is_in_io_wait(&self) -> bool {
        kernel_word(self.pointer, config!(task.in_iowait)) & u64::from(config!(task.in_iowait_mask)) != 0
    }

    /// Start of the thread since boot, in ns.
    #[inline(always)]
    pub(crate) fn thread_start_time_ns(&self) -> u64 {
        field!(self.pointer, task.start_time, u64)
    }

    /// Start of the process since boot, in ns.
    #[inline(always)]
    pub(crate) fn start_time_ns(&self) -> u64 {
        kernel_word(self.leader(), config!(task.start_time))
    }

    /// Programs the process has executed.
    #[inline(always)]
    pub(crate) fn exec_count(&self) -> u32 {
        field!(self.pointer, task.exec_count, u32)
    }

    /// The thread's name.
    #[inline(always)]
    pub(crate) fn thread_comm(&self) -> [u8; COMM_LEN] {
        comm_of(self.pointer)
    }

    /// The process's name.
    #[inline(always)]
    pub(crate) fn process_comm(&self) -> [u8; COMM_LEN] {
        comm_of(self.leader())
    }

    #[inline(always)]
    fn leader(&self) -> *const u8 {
        kernel_word(self.pointer, config!(task.group_leader)) as *const u8
    }
}

/// A task's name: zeros where it cannot be read.
#[inline(always)]
pub(crate) fn comm_of(task: *const u8) -> [u8; COMM_LEN] {
    let mut comm = MaybeUninit::<[u8; COMM_LEN]>::uninit();
    // SAFETY: the helper writes `COMM_LEN` bytes to `comm`, zeros when it fails, and survives any source address.
    unsafe {
        let source = task.wrapping_add(config!(task.comm) as usize);
        bpf_probe_read_kernel(comm.as_mut_ptr().cast(), COMM_LEN as u32, source.cast());
        comm.assume_init()
    }
}

/// Whether a name is the one asked for.
#[inline(always)]
pub(crate) fn is_asked(comm: &[u8; COMM_LEN]) -> bool {
    let asked = config!(comm);
    let mut index = 0;
    while index < COMM_LEN {
        if comm[index] != asked[index] {
            return false;
        }
        if asked[index] == 0 {
            return true;
        }
        index += 1;
    }
    true
}
