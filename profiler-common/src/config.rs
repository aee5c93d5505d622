//! What user space tells the programs: constants fixed at load, and the little that changes while they run.

use crate::block::BlockOffsets;
use crate::event::COMM_LEN;
use crate::file::FileOffsets;
use crate::net::NetOffsets;

/// Which tasks are sampled.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Filter {
    /// Every task of the host.
    All = 0,
    /// The processes listed in the `PROCESSES` map.
    Processes = 1,
    /// Tasks in one cgroup or below it.
    Cgroup = 2,
    /// Processes or threads of one name.
    Comm = 3,
}

/// Byte offsets of kernel fields, from the running kernel's BTF.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TaskOffsets {
    /// `task_struct.tgid`.
    pub tgid: u32,
    /// `task_struct.pid`.
    pub pid: u32,
    /// `task_struct.group_leader`.
    pub group_leader: u32,
    /// `task_struct.start_boottime` (`real_start_time` before Linux 5.5).
    pub start_time: u32,
    /// `task_struct.self_exec_id`.
    pub exec_count: u32,
    /// `task_struct.comm`.
    pub comm: u32,
    /// `task_struct.mm`.
    pub mm: u32,
    /// `task_struct.flags`.
    pub flags: u32,
    /// `task_struct.nvcsw`.
    pub voluntary_switches: u32,
    /// `task_struct.nivcsw`.
    pub involuntary_switches: u32,
    /// The byte of `task_struct.in_execve`.
    pub in_execve: u32,
    /// The bit of `task_struct.in_execve` in that byte; 0 where the kernel has none.
    pub in_execve_mask: u32,
    /// `task_struct.thread.fsbase`: a thread's pointer to its own storage, which is its `pthread_t`.
    pub thread_pointer: u32,
    /// `task_struct.__state` (`state` before Linux 5.14).
    pub state: u32,
    /// `task_struct.sched_info.run_delay`; 0 where the kernel does not keep it.
    pub run_delay: u32,
    /// The byte of `task_struct.in_iowait`.
    pub in_iowait: u32,
    /// The bit of `task_struct.in_iowait` in that byte.
    pub in_iowait_mask: u32,
    /// Which argument of the tracepoint `sched_switch` is the state that the task leaves with, from 1; 0 where it has
    /// none (before Linux 5.18).
    pub switch_state_argument: u32,
    /// `task_struct.on_cpu`; 0 where the kernel has none.
    pub on_cpu: u32,
    /// Zero.
    pub reserved: u32,
}

/// Constants of one load, in frozen read-only memory, so that the verifier sees them as constants.
///
/// One structure with a magic number: LLVM may merge a plain zero static with another constant, and overriding the one
/// would change the other.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// [`CONFIG_MAGIC`].
    pub magic: u64,
    /// With [`Filter::Cgroup`]: the cgroup's number (the inode of its directory).
    pub cgroup_id: u64,
    /// Device of the profiler's pid namespace, when it is not the initial one.
    pub pid_namespace_device: u64,
    /// Inode of that namespace; 0 for the initial one.
    pub pid_namespace_inode: u64,
    /// 1 when the sampling event has a fixed period, in ns.
    pub has_fixed_period: u64,
    /// Requests to block devices that take as long are told one by one, ns; 0 for none.
    pub slower_ns: u64,
    /// A [`Filter`].
    pub filter: u32,
    /// With [`Filter::Cgroup`]: its depth below the root of the hierarchy.
    pub cgroup_level: u32,
    /// The profiler's own process, which is never sampled.
    pub self_pid: u32,
    /// 1 when the children of listed processes are listed as they are forked.
    pub follow_children: u32,
    /// What waits are recorded for: [`crate::wait::recorded_waits`].
    pub waits: u32,
    /// Bytes of stack that walks of one window may leave to user space.
    pub remainder_bytes: u32,
    /// Entries of one aggregation map at which user space is asked to drain early.
    pub drain_at_entries: u32,
    /// Bytes in the ring buffer at which user space is woken.
    pub wake_at_bytes: u32,
    /// With [`Filter::Comm`]: the name, padded with zeros.
    pub comm: [u8; COMM_LEN],
    /// Where the kernel keeps what is read of a task.
    pub task: TaskOffsets,
    /// And of requests to block devices.
    pub block: BlockOffsets,
    /// And of files.
    pub file: FileOffsets,
    /// And of sockets.
    pub net: NetOffsets,
}

/// Marks [`Config`] as what it is ("profiler" in ASCII).
pub const CONFIG_MAGIC: u64 = 0x7072_6f66_696c_6572;

impl Config {
    /// The value the object carries before user space replaces it.
    pub const UNSET: Self = Self {
        magic: CONFIG_MAGIC,
        cgroup_id: 0,
        pid_namespace_device: 0,
        pid_namespace_inode: 0,
        has_fixed_period: 0,
        slower_ns: 0,
        filter: 0,
        cgroup_level: 0,
        self_pid: 0,
        follow_children: 0,
        waits: 0,
        remainder_bytes: 0,
        drain_at_entries: 0,
        wake_at_bytes: 0,
        comm: [0; COMM_LEN],
        task: TaskOffsets {
            tgid: 0,
            pid: 0,
            group_leader: 0,
            start_time: 0,
            exec_count: 0,
            comm: 0,
            mm: 0,
            flags: 0,
            voluntary_switches: 0,
            involuntary_switches: 0,
            in_execve: 0,
            in_execve_mask: 0,
            thread_pointer: 0,
            state: 0,
            run_delay: 0,
            in_iowait: 0,
            in_iowait_mask: 0,
            switch_state_argument: 0,
            on_cpu: 0,
            reserved: 0,
        },
        block: BlockOffsets::UNSET,
        file: FileOffsets::UNSET,
        net: NetOffsets::UNSET,
    };
}

/// What changes while the programs run: the one element of the `CONTROL` map.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Control {
    /// Which of the two generations of maps is written, 0 or 1.
    pub window: u32,
    /// What is taken of allocations, an [`alloc::takes`](crate::alloc::takes): their probes come and go one by one, and are
    /// to be on and off at once.
    pub takes_allocations: u32,
    /// When the recording began, in ns of the monotonic clock: a thread that is switched in for the first time has
    /// waited since then. 0 while there is none.
    pub began_ns: u64,
    /// The same since boot: a thread that started later has not waited.
    pub began_since_boot_ns: u64,
    /// When it ended: what comes later is not counted. The largest number before.
    pub ended_ns: u64,
}

/// Entries into and exits from a program's use of a generation of maps, on one CPU.
///
/// The drain of a window waits until both are equal on every CPU.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct InFlight {
    /// Times a program began to write to generation 0 and 1.
    pub entered: [u64; 2],
    /// Times it ended.
    pub left: [u64; 2],
}

/// A process as the programs know it: a value of the `PROCESSES` map.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Process {
    /// Its mapping generation, counted by user space.
    pub generation: u32,
    /// [`PROCESS_TARGET`] and the like.
    pub flags: u32,
    /// Programs it had executed when it was forked; [`UNKNOWN_EXEC_COUNT`] when it was not forked while we looked.
    pub first_exec_count: u32,
    /// Index of its first entry in the `MAPPINGS` map.
    pub first_mapping: u32,
    /// Entries it has there.
    pub mappings: u32,
    /// Number of its [`PythonLayout`](crate::python::PythonLayout), from 1; 0 when it runs no Python.
    pub python_layout: u32,
    /// Address of its `_PyRuntime`.
    pub python_runtime: u64,
}

/// An executable mapping as the walk needs it: an entry of the `MAPPINGS` map. Those of a process are a run, ascending.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct MappingEntry {
    /// First address.
    pub start: u64,
    /// Address past the last.
    pub end: u64,
    /// What to take off an address to get the virtual address that the object's table is made for.
    pub bias: u64,
    /// Number of the table's first page.
    pub first_page: u32,
    /// Pages of the table; 0 for a mapping without one, in which frame pointers are followed.
    pub pages: u32,
    /// The shard that the table's pages are in.
    pub shard: u32,
    /// Index of the first of these pages' words there.
    pub pages_at: u32,
}

/// Flags of a shard's map: `BPF_F_MMAPABLE`, so that user space writes and reads it as memory (Linux 5.5).
pub const SHARD_FLAGS: usize = 1 << 10;

/// Words in a shard: 1 MiB.
pub const SHARD_WORDS: usize = 1 << 18;

/// Shards at most: 1 GiB.
pub const MAX_SHARDS: usize = 1024;

/// Bits of a row's index in a page's first word; the shard it is in is above them.
pub const ROW_INDEX_BITS: u32 = 18;

/// Steps that find any mapping of a process: up to 65,536 of them.
pub const MAPPING_SEARCH_STEPS: usize = 17;

/// No process has executed so many programs.
pub const UNKNOWN_EXEC_COUNT: u32 = u32::MAX;

/// The process was asked for.
pub const PROCESS_TARGET: u32 = 1;

/// The process is sampled from its next exec on.
pub const PROCESS_AWAITS_EXEC: u32 = 2;
