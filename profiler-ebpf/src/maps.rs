//! Every map: key, value, who writes, who reads. User space sets the capacities before the load.

use aya_ebpf::btf_maps;
use aya_ebpf::macros::{btf_map, map};
use aya_ebpf::maps::{Array, HashMap, LruHashMap, PerCpuArray, ProgramArray, Queue, RingBuf};
use profiler_common::alloc::{Allocating, LiveBlock, LiveKey, SIZE_CLASSES, SizeStats};
use profiler_common::block::{
    self, BLOCK_TIMES, BlockFileKey, BlockFileStats, BlockHistograms, BlockKey, BlockMissed, BlockRequest, BlockRow,
    BlockTally, BlockWaitKey, BlockWaitStats, BlockWaiter, DirtyFile, REQUEST_PLACES, STRUCT_BYTES, SlowRequest,
};
use profiler_common::config::{Control, InFlight, MAX_SHARDS, MappingEntry, Process, SHARD_FLAGS, SHARD_WORDS};
use profiler_common::counters::Counters;
use profiler_common::event::{
    COLUMNS, COMM_LEN, MAX_KERNEL_FRAMES, ORIGINS, RecordKey, RecordValue, RemainderRecord, StackRecord,
};
use profiler_common::file::{
    FileCall, FileHistogram, FileId, FileKey, FileNameRecord, FileRequest, FileStats, files_missed,
};
use profiler_common::function::{Caller, CallerKey, FunctionKey, FunctionMissed, FunctionStats};
use profiler_common::net::{NetCounts, NetKey, NetStats, NetTimes, Socket, UnixName};
use profiler_common::number_pace::{Chosen, NumberPace};
use profiler_common::python::{MAX_PYTHON_LAYOUTS, PythonLayout};
use profiler_common::system_call::{Call, CallKey, CallStats};
use profiler_common::unwind::{MAX_RULES, Rule};
use profiler_common::wait::{LockKey, LockWaits, Pace, Threshold, Wait, WaitingRecord};

use crate::python::PythonWalk;
use crate::socket::SocketWork;
use crate::unwind::Walk;

/// Which generation is written. Written by user space, read by every program.
#[map]
pub(crate) static CONTROL: Array<Control> = Array::with_max_entries(1, 0);

/// Programs inside a generation, by CPU. Written by every program, read by the drain.
#[map]
pub(crate) static IN_FLIGHT: PerCpuArray<InFlight> = PerCpuArray::with_max_entries(1, 0);

/// Exact accounting by origin and CPU. Written by every probe, read by user space, never reset.
#[map]
pub(crate) static COUNTERS: PerCpuArray<Counters> = PerCpuArray::with_max_entries(ORIGINS.len() as u32, 0);

/// Records of generation 0. Written by `aggregate`, drained by user space.
#[map]
pub(crate) static RECORDS_0: HashMap<RecordKey, RecordValue> = HashMap::with_max_entries(1, 0);

/// Records of generation 1.
#[map]
pub(crate) static RECORDS_1: HashMap<RecordKey, RecordValue> = HashMap::with_max_entries(1, 0);

/// Hashes of the chains that user space has been sent in generation 0. Written by `aggregate`, cleared by the drain.
#[map]
pub(crate) static SENT_0: HashMap<u64, u8> = HashMap::with_max_entries(1, 0);

/// Hashes of the chains that user space has been sent in generation 1.
#[map]
pub(crate) static SENT_1: HashMap<u64, u8> = HashMap::with_max_entries(1, 0);

/// How full a generation is. Written by `aggregate`, reset by the drain.
#[map]
pub(crate) static FILL: Array<Fill> = Array::with_max_entries(2, 0);

/// Chains on their way to user space, and requests to drain early.
#[map]
pub(crate) static RING: RingBuf = RingBuf::with_byte_size(4096, 0);

/// Processes by pid. Written by user space and by `process`, read by every probe.
#[map]
pub(crate) static PROCESSES: HashMap<u32, Process> = HashMap::with_max_entries(1, 0);

/// Executable mappings, a run of them for each process. Written by user space, read by `unwind`.
#[map]
pub(crate) static MAPPINGS: Array<MappingEntry> = Array::with_max_entries(1, 0);

/// Rules that do not fit a row. Written by user space, read by `unwind`.
#[map]
pub(crate) static RULES: Array<Rule> = Array::with_max_entries(MAX_RULES as u32, 0);

/// A piece of the unwind tables: pages of two words each and rows of one.
///
/// An array and not a structure: Linux 5.15 to 6.2 take a map whose values are a structure by BTF, and one that was made
/// without BTF, as user space makes shards, for maps of two kinds, and refuse the shard (`timer_off` in
/// `bpf_map_meta_equal`, kernel/bpf/map_in_map.c).
pub(crate) type Shard = [u32; SHARD_WORDS];

/// The unwind tables. Shards are added by user space as they are needed, and none is taken away while programs run.
#[btf_map]
pub(crate) static SHARDS: btf_maps::ArrayOfMaps<btf_maps::Array<Shard, 1, SHARD_FLAGS>, MAX_SHARDS> =
    btf_maps::ArrayOfMaps::new();

/// Children of a target that found [`PROCESSES`] full. Written by `process`, read by user space.
#[map]
pub(crate) static CHILDREN_MISSED: Array<u64> = Array::with_max_entries(1, 0);

/// The last hit of the sampling event, by CPU. Written and read by `cpu`.
#[map]
pub(crate) static LAST_HIT: PerCpuArray<LastHit> = PerCpuArray::with_max_entries(1, 0);

/// Threads that were asked for, from when they are first switched out until they end. Written by `offcpu` and `waiting`.
/// One element where time off the CPU is not recorded.
#[map]
pub(crate) static WAITS: Array<Wait> = Array::with_max_entries(1, 0);

/// What waits are held against. Written and read by `offcpu`, read by user space.
#[map]
pub(crate) static THRESHOLD: Array<Threshold> = Array::with_max_entries(1, 0);

/// What is known of a CPU's switches. Written and read by `offcpu`.
#[map]
pub(crate) static PACE: PerCpuArray<Pace> = PerCpuArray::with_max_entries(1, 0);

/// What `waiting` works on.
#[map]
pub(crate) static WAITING: PerCpuArray<Waiting> = PerCpuArray::with_max_entries(1, 0);

/// Waits of threads for which [`WAITS`] had no room. Written and read by `offcpu`.
#[map]
pub(crate) static THREADS_REFUSED: Array<u64> = Array::with_max_entries(1, 0);

/// The number of who woke a thread last, at the thread's place in [`WAITS`]; 0 when that is not known. Written by `wakers`,
/// read by `offcpu`. One element where nobody asks.
#[map]
pub(crate) static WAKES: Array<u64> = Array::with_max_entries(1, 0);

/// Locks that were waited for. Written by `offcpu`, read by user space when the recording has ended. Allocated at once: the
/// scheduler is no place to ask for memory.
#[map]
pub(crate) static LOCKS: HashMap<LockKey, LockWaits> = HashMap::with_max_entries(1, 0);

/// Waits for locks for which [`LOCKS`] had no room. Written by `offcpu`, read by user space.
#[map]
pub(crate) static LOCKS_MISSED: Array<u64> = Array::with_max_entries(1, 0);

/// Threads whose end found no room in [`RING`]. Written by `threads`, read by user space.
#[map]
pub(crate) static ENDS_LOST: Array<u64> = Array::with_max_entries(1, 0);

/// How events are chosen by number, by kind ([`Chosen`]) and CPU. Written and read by their programs, read by user space.
#[map]
pub(crate) static NUMBER_PACE: PerCpuArray<NumberPace> = PerCpuArray::with_max_entries(Chosen::COUNT as u32, 0);

/// Threads that were asked for, from their first system call until they end. Written by `syscall`. One element where system
/// calls are not recorded, as of the next three.
#[map]
pub(crate) static CALLS: Array<Call> = Array::with_max_entries(1, 0);

/// Exact counts of system calls by process, call and whether they failed. Written by `syscall`, read by user space.
#[map]
pub(crate) static CALL_STATS: HashMap<CallKey, CallStats> = HashMap::with_max_entries(1, 0);

/// What a value of [`CALL_STATS`] begins as: too large for the stack. Written by nobody.
#[map]
pub(crate) static CALL_STATS_NEW: Array<CallStats> = Array::with_max_entries(1, 0);

/// Calls for which [`CALL_STATS`] had no room. Written by `syscall`, read by user space.
#[map]
pub(crate) static CALLS_UNCOUNTED: Array<u64> = Array::with_max_entries(1, 0);

/// What calls are held against. Written and read by `syscall`, read by user space.
#[map]
pub(crate) static CALL_THRESHOLD: Array<Threshold> = Array::with_max_entries(1, 0);

/// What is known of a CPU's calls. Written and read by `syscall`.
#[map]
pub(crate) static CALL_PACE: PerCpuArray<Pace> = PerCpuArray::with_max_entries(1, 0);

/// Threads that allocate. Written by `alloc`. One element where allocations are not recorded.
#[map]
pub(crate) static ALLOCATING: Array<Allocating> = Array::with_max_entries(1, 0);

/// What sizes are held against. Written and read by `alloc`, read by user space.
#[map]
pub(crate) static ALLOC_THRESHOLD: Array<Threshold> = Array::with_max_entries(1, 0);

/// What is known of a CPU's allocations. Written and read by `alloc`.
#[map]
pub(crate) static ALLOC_PACE: PerCpuArray<Pace> = PerCpuArray::with_max_entries(1, 0);

/// Blocks that were kept and have not been freed. Written by `alloc`, read by user space, which removes those of processes
/// that have ended. One element where allocations are not recorded.
#[map]
pub(crate) static LIVE: HashMap<LiveKey, LiveBlock> = HashMap::with_max_entries(1, 0);

/// Blocks that were kept and are not in `LIVE`: there is no room, or a signal came between.
#[map]
pub(crate) static LIVE_MISSED: Array<u64> = Array::with_max_entries(1, 0);

/// What is counted of blocks by their size. Written by `alloc`, read by user space.
#[map]
pub(crate) static SIZE_STATS: PerCpuArray<SizeStats> = PerCpuArray::with_max_entries(SIZE_CLASSES, 0);

/// Threads and goroutines that call functions with probes: threads until they end, goroutines until they are in no call.
/// Written by `function`. One entry where no function has a probe, as of the next.
#[map]
pub(crate) static CALLERS: HashMap<CallerKey, Caller> = HashMap::with_max_entries(1, 0);

/// Exact counts of calls by process and function. Written by `function`, read by user space.
#[map]
pub(crate) static FUNCTION_STATS: HashMap<FunctionKey, FunctionStats> = HashMap::with_max_entries(1, 0);

/// What values of [`CALLERS`] and [`FUNCTION_STATS`] begin as: too large for the stack. Written by nobody.
#[map]
pub(crate) static CALLERS_NEW: Array<Caller> = Array::with_max_entries(1, 0);
#[map]
pub(crate) static FUNCTION_STATS_NEW: Array<FunctionStats> = Array::with_max_entries(1, 0);

/// What is not known of calls, by [`FunctionMissed`]. Written by `function`, read by user space.
#[map]
pub(crate) static FUNCTIONS_MISSED: Array<u64> = Array::with_max_entries(FunctionMissed::COUNT, 0);

/// What calls of functions are held against. Written and read by `function`, read by user space.
#[map]
pub(crate) static FUNCTION_THRESHOLD: Array<Threshold> = Array::with_max_entries(1, 0);

/// What is known of a CPU's calls of functions. Written and read by `function`.
#[map]
pub(crate) static FUNCTION_PACE: PerCpuArray<Pace> = PerCpuArray::with_max_entries(1, 0);

/// Files whose names were sent. Written and read by `file_name`. One element where nobody asks for files.
#[map]
pub(crate) static FILES_SEEN: LruHashMap<FileId, u8> = LruHashMap::with_max_entries(1, 0);

/// What `file_name` works on, by [`Namer`].
#[map]
pub(crate) static FILE_NAME: PerCpuArray<FileName> = PerCpuArray::with_max_entries(Namer::COUNT as u32, 0);
/// Exact counts of what sockets were used for, by process and ends. Written by `socket`, read by user space. One element where
/// sockets are not recorded, as of the next six.
#[map]
pub(crate) static NET_STATS: HashMap<NetKey, NetStats> = HashMap::with_max_entries(1, 0);

/// Distributions of times, three for each row of [`NET_STATS`] that has some. Written by `socket`, read by user space.
#[map]
pub(crate) static NET_TIMES: Array<NetTimes> = Array::with_max_entries(1, 0);

/// Rows that have asked for a place in [`NET_TIMES`], and what found no room. Written by `socket`, read by user space.
#[map]
pub(crate) static NET_COUNTS: Array<NetCounts> = Array::with_max_entries(1, 0);

/// TCP sockets of processes that were asked for, by address, until they are destroyed. Written by `socket` and `connections`.
#[map]
pub(crate) static SOCKETS: HashMap<u64, Socket> = HashMap::with_max_entries(1, 0);

/// When connections were there that wait to be accepted, by the address of the socket. Written and read by `connections`.
#[map]
pub(crate) static ESTABLISHED: LruHashMap<u64, u64> = LruHashMap::with_max_entries(1, 0);

/// What `socket` works on, by place.
#[map]
pub(crate) static SOCKET_WORK: PerCpuArray<SocketWork> = PerCpuArray::with_max_entries(2, 0);

/// Names of Unix sockets by their hash. Written by `socket`, read by user space.
#[map]
pub(crate) static UNIX_NAMES: HashMap<u64, UnixName> = HashMap::with_max_entries(1, 0);

/// Threads that were asked for, from their first call for a file until they end. Written by `file`. One element where files
/// are not recorded, as of the next two.
#[map]
pub(crate) static FILE_CALLS: Array<FileCall> = Array::with_max_entries(1, 0);

/// Exact counts by process and file. Written by `file`, read by user space.
#[map]
pub(crate) static FILE_STATS: HashMap<FileKey, FileStats> = HashMap::with_max_entries(1, 0);

/// How long operations took, of the entries of [`FILE_STATS`] that refer to it. Written by `file`, read by user space.
#[map]
pub(crate) static FILE_HISTOGRAMS: Array<FileHistogram> = Array::with_max_entries(1, 0);

/// Elements of [`FILE_HISTOGRAMS`] that were asked for. Written by `file`.
#[map]
pub(crate) static FILE_HISTOGRAMS_TAKEN: Array<u64> = Array::with_max_entries(1, 0);

/// Requests of `io_uring` that were submitted, by a hash of their address. Written and read by `file`.
#[map]
pub(crate) static FILE_REQUESTS: Array<FileRequest> = Array::with_max_entries(1, 0);

/// What a value of [`FILE_STATS`] begins as: too large for the stack. Written by nobody.
#[map]
pub(crate) static FILE_STATS_NEW: Array<FileStats> = Array::with_max_entries(1, 0);

/// Operations for which there was no room, by [`files_missed`]. Written by `file`, read by user space.
#[map]
pub(crate) static FILES_MISSED: Array<u64> = Array::with_max_entries(files_missed::COUNT, 0);

/// Elements begin at a page, as those must that user space may map. Source: `BPF_F_MMAPABLE`, include/uapi/linux/bpf.h.
const PAGE_ALIGNED: u32 = 1 << 10;

/// Requests to block devices that are under way, each at the beginning of a cache line. Written by `block`, read by user space.
/// One element where they are not recorded, as of the next nine.
#[map]
pub(crate) static BLOCK_REQUESTS: Array<BlockRequest> = Array::with_max_entries(1, PAGE_ALIGNED);

/// Files with pages that were written to, and by whom. Written by `block_dirty`, read by `block`.
#[map]
pub(crate) static DIRTY_FILES: Array<DirtyFile> = Array::with_max_entries(1, 0);

/// Exact counts of requests. Written by `block`, read by user space while they are.
#[map]
pub(crate) static BLOCK_STATS: HashMap<BlockKey, BlockRow> = HashMap::with_max_entries(1, 0);

/// How many requests took how long, of the rows of [`BLOCK_STATS`] that refer to it. Written by `block`, read by user space.
#[map]
pub(crate) static BLOCK_HISTOGRAMS: Array<BlockHistograms> = Array::with_max_entries(1, 0);

/// Elements of [`BLOCK_HISTOGRAMS`] that were asked for. Written by `block`.
#[map]
pub(crate) static BLOCK_HISTOGRAMS_TAKEN: Array<u64> = Array::with_max_entries(1, 0);

/// Elements of `BLOCK_HISTOGRAMS` that were given back: user space adds them, programs take them.
#[map]
pub(crate) static BLOCK_HISTOGRAMS_FREE: Queue<u64> = Queue::with_max_entries(1, 0);

/// What a CPU has counted of the kinds of requests that it saw last, and is not in [`BLOCK_STATS`] and [`BLOCK_FILES`] yet. Written by `block`, read
/// by user space.
#[map]
pub(crate) static BLOCK_TALLIES: PerCpuArray<BlockTally> = PerCpuArray::with_max_entries(block::BLOCK_TALLIES, 0);

/// What the records of requests have cost that were chosen: time, ns, and how many stacks were walked. Written by `block`, read
/// by the benchmark.
#[map]
pub(crate) static BLOCK_WALKS: PerCpuArray<BlockWalks> = PerCpuArray::with_max_entries(1, 0);

/// Exact counts of requests by file. Written by `block`, read by user space.
#[map]
pub(crate) static BLOCK_FILES: HashMap<BlockFileKey, BlockFileStats> = HashMap::with_max_entries(1, 0);

/// 1 when a device does not keep when its requests were made: the clock is read then. Written by user space and by `block`.
#[map]
pub(crate) static BLOCK_CLOCK: Array<u64> = Array::with_max_entries(1, 0);

/// Where the request before ended, by device. Written and read by `block`.
#[map]
pub(crate) static BLOCK_ENDS: Array<u64> = Array::with_max_entries(256, 0);

/// What could not be noted or counted, by [`BlockMissed`]. Written by `block` and `block_dirty`, read by user space.
#[map]
pub(crate) static BLOCKS_MISSED: Array<u64> = Array::with_max_entries(BlockMissed::COUNT as u32, 0);

/// Whose the elements of [`BLOCK_WAITERS`] are, by group: numbers of threads. Written by `block_wait`.
#[map]
pub(crate) static BLOCK_WAITING: Array<[u64; REQUEST_PLACES as usize]> = Array::with_max_entries(1, 0);

/// Threads that wait for a block device. Written by `block_wait`, and by `block` when their requests are done.
#[map]
pub(crate) static BLOCK_WAITERS: Array<BlockWaiter> = Array::with_max_entries(1, 0);

/// Exact counts of these waits. Written by `block_wait`, read by user space.
#[map]
pub(crate) static BLOCK_WAITS: HashMap<BlockWaitKey, BlockWaitStats> = HashMap::with_max_entries(1, 0);

/// What a value of [`BLOCK_WAITS`] begins as. Written by nobody.
#[map]
pub(crate) static BLOCK_WAITS_NEW: Array<BlockWaitStats> = Array::with_max_entries(1, 0);

/// Who asked last on a CPU. Written and read by `block` and `block_wait`.
#[map]
pub(crate) static LAST_ASKER: PerCpuArray<LastAsker> = PerCpuArray::with_max_entries(1, 0);

/// The request that is done, while it is counted. Written and read by `block`.
#[map]
pub(crate) static BLOCK_DONE: PerCpuArray<DoneRequest> = PerCpuArray::with_max_entries(1, 0);

/// Scratch space by type of program, claimed by its flag. User space makes room for the types that are loaded.
#[map]
pub(crate) static SCRATCH: PerCpuArray<Scratch> = PerCpuArray::with_max_entries(1, 0);

/// The program that walks the Python chain of a sample of `cpu`, in the slot of each layout that is known. Written by user
/// space.
#[map]
pub(crate) static CPU_PYTHON: ProgramArray = ProgramArray::with_max_entries(MAX_PYTHON_LAYOUTS as u32, 0);

/// The same for waits.
#[map]
pub(crate) static OFFCPU_PYTHON: ProgramArray = ProgramArray::with_max_entries(MAX_PYTHON_LAYOUTS as u32, 0);

/// The same for waits that a kprobe sees: all programs of such a map are of one type.
#[map]
pub(crate) static OFFCPU_PROBE_PYTHON: ProgramArray = ProgramArray::with_max_entries(MAX_PYTHON_LAYOUTS as u32, 0);

/// The same for faults.
#[map]
pub(crate) static FAULT_PYTHON: ProgramArray = ProgramArray::with_max_entries(MAX_PYTHON_LAYOUTS as u32, 0);

/// The same for system calls.
#[map]
pub(crate) static SYSCALL_PYTHON: ProgramArray = ProgramArray::with_max_entries(MAX_PYTHON_LAYOUTS as u32, 0);

/// The same for messages of sockets.
#[map]
pub(crate) static NET_PYTHON: ProgramArray = ProgramArray::with_max_entries(MAX_PYTHON_LAYOUTS as u32, 0);
/// The same for operations on files.
#[map]
pub(crate) static FILE_PYTHON: ProgramArray = ProgramArray::with_max_entries(MAX_PYTHON_LAYOUTS as u32, 0);
/// The same for requests to block devices, and for pages that become dirty.
#[map]
pub(crate) static BLOCK_PYTHON: ProgramArray = ProgramArray::with_max_entries(MAX_PYTHON_LAYOUTS as u32, 0);
/// The same for allocations.
#[map]
pub(crate) static ALLOC_PYTHON: ProgramArray = ProgramArray::with_max_entries(MAX_PYTHON_LAYOUTS as u32, 0);
/// The same for calls of functions.
#[map]
pub(crate) static FUNCTION_PYTHON: ProgramArray = ProgramArray::with_max_entries(MAX_PYTHON_LAYOUTS as u32, 0);

/// Where versions of Python keep what is walked. Written by user space, read by `python`.
#[map]
pub(crate) static PYTHON_LAYOUTS: Array<PythonLayout> = Array::with_max_entries(MAX_PYTHON_LAYOUTS as u32, 0);

/// Types of programs, by what interrupts what: programs of one type never run inside each other.
#[repr(u32)]
#[derive(Clone, Copy)]
pub(crate) enum Programs {
    /// Of perf events.
    PerfEvent = 0,
    /// Of switches between tasks.
    Scheduler = 1,
    /// Of page faults: perf events too, which sampling interrupts.
    Fault = 2,
    /// Of system calls.
    Call = 3,
    /// Of wake-ups, which interrupts bring about, too.
    Wake = 4,
    /// Of requests to block devices.
    Block = 5,
    /// Of operations on files.
    File = 6,
    /// Of sockets.
    Net = 7,
    /// Of allocations: threads that run such a program may be preempted.
    Alloc = 8,
    /// Of calls of functions, likewise.
    Function = 9,
}

/// Who asks for names of files: programs of one kind do not run inside each other.
#[repr(u32)]
#[derive(Clone, Copy)]
pub(crate) enum Namer {
    /// Requests to block devices.
    Block = 0,
    /// Operations on files.
    File = 1,
}

impl Namer {
    /// How many there are.
    pub(crate) const COUNT: usize = 2;
}

/// A file's name on its way.
#[repr(C)]
pub(crate) struct FileName {
    /// 1 while a program uses it.
    pub(crate) claimed: u64,
    /// What is sent.
    pub(crate) record: FileNameRecord,
}

/// A request that is done.
#[repr(C)]
pub(crate) struct DoneRequest {
    /// Where it begins, in sectors, and its bytes.
    pub(crate) sector: u64,
    pub(crate) length: u64,
    /// The part of it that is looked at.
    pub(crate) part: RequestPart,
    /// Another one, as the kernel has it.
    pub(crate) bio: [u64; STRUCT_BYTES / 8],
    /// The inode that it is of, as the kernel has it.
    pub(crate) bio_inode: [u64; STRUCT_BYTES / 8],
    /// What it is counted by, but for the process.
    pub(crate) key: BlockKey,
    /// And the file that it is of.
    pub(crate) file: FileId,
    /// Address of the inode; 0 where it has none.
    pub(crate) inode: u64,
    /// Its element in [`BLOCK_REQUESTS`]; [`NO_REQUEST`] when it has none.
    pub(crate) noted: u64,
    /// And that of the part that is looked at, where it is not the first.
    pub(crate) own: u64,
    /// The one that tells who asked.
    pub(crate) place: u64,
    /// 1 when it failed.
    pub(crate) failed: u64,
    /// 1 when it goes on where the one before ended.
    pub(crate) sequential: u64,
    /// What is sent of it when it is slow.
    pub(crate) slow: SlowRequest,
    /// Its times.
    pub(crate) times_ns: [u64; BLOCK_TIMES.len()],
    /// Bytes that nobody has been credited with yet.
    pub(crate) left: u64,
    /// And of the part that was looked at last, bytes that are not done.
    pub(crate) part_left: u64,
    /// What was read last, and when: it need not be read again for each request of a process.
    pub(crate) read_ns: u64,
    pub(crate) read_group: (u64, u64),
    pub(crate) read_super_block: (u64, u64),
    /// 1 once somebody was credited with it: others have bytes of it only.
    pub(crate) counted: u64,
    /// Where an address becomes a number.
    pub(crate) address: u64,
}

/// What is read of a part of a request.
#[repr(C)]
pub(crate) struct RequestPart {
    /// Its address, and that of the next one.
    pub(crate) at: u64,
    pub(crate) next: u64,
    /// Its group of block I/O, and its pages.
    pub(crate) group: u64,
    pub(crate) pages: u64,
    /// What ends it, and for whom.
    pub(crate) end: u64,
    pub(crate) private: u64,
    /// Its bytes, and the first of its pages.
    pub(crate) size: u32,
    pub(crate) index: u32,
}

/// What the records of requests have cost.
#[repr(C)]
pub(crate) struct BlockWalks {
    pub(crate) ns: u64,
    pub(crate) walks: u64,
    /// When the one that is under way began.
    pub(crate) began_ns: u64,
}

/// Who asked for block I/O last.
#[repr(C)]
pub(crate) struct LastAsker {
    /// The thread that made the last request, until one waits.
    pub(crate) asked_tid: u64,
    /// The task that was identified last, what tells it from another one at the same address, and what was found.
    pub(crate) task: u64,
    pub(crate) thread_start_ns: u64,
    pub(crate) exec_count: u64,
    pub(crate) start_time_ns: u64,
    pub(crate) process_comm: [u8; COMM_LEN],
}

/// No element of [`BLOCK_REQUESTS`].
pub(crate) const NO_REQUEST: u64 = u64::MAX;

/// How full a generation of the maps is.
#[repr(C)]
pub(crate) struct Fill {
    /// Records made.
    pub(crate) entries: u64,
    /// 1 once user space was asked to drain early.
    pub(crate) asked: u64,
    /// Bytes of stack that were left to user space.
    pub(crate) remainder_bytes: u64,
    /// Names of files that were sent.
    pub(crate) file_names: u64,
}

/// A hit of the sampling event.
#[repr(C)]
pub(crate) struct LastHit {
    /// When, in ns of the monotonic clock.
    pub(crate) time_ns: u64,
    /// The task: its process and thread.
    pub(crate) task: u64,
    /// How often that task had been switched out.
    pub(crate) switches: u64,
}

/// What a program works on that does not fit its 512 bytes of stack.
#[repr(C)]
pub(crate) struct Scratch {
    /// 1 while a program uses it.
    pub(crate) claimed: u64,
    /// The walk of the user chain.
    pub(crate) walk: Walk,
    /// The walk of the Python chain.
    pub(crate) python: PythonWalk,
    /// The user chain.
    pub(crate) user: StackRecord,
    /// The kernel chain.
    pub(crate) kernel: StackRecord,
    /// What is left of the walk, where user space has to finish it.
    pub(crate) remainder: RemainderRecord,
    /// The record's key and, when it is new, its value. Here, since the walk's callback shares the 512 bytes of stack, of
    /// which verifiers before Linux 6.8 round each function's part up to 32.
    pub(crate) key: RecordKey,
    pub(crate) value: RecordValue,
    /// Of a wait: the part in which the thread was blocked, the part in which it waited for a CPU, and the first one again
    /// where it was for a lock. Of another event the first alone.
    pub(crate) parts: [Part; PARTS],
    /// And what it waited for: a [`profiler_common::wait::Blocked`].
    pub(crate) blocked: u64,
    /// And who ended it.
    pub(crate) waker: u64,
    /// And the address of the lock.
    pub(crate) lock: LockKey,
    /// What the wait for it comes to.
    pub(crate) lock_waits: LockWaits,
    /// Who asked for block I/O: a place of `block`.
    pub(crate) asker: u64,
}

/// Parts of a wait.
pub(crate) const PARTS: usize = 3;

/// A thread that waits, as it is written to user space.
#[repr(C)]
pub(crate) struct Waiting {
    /// What is known of it.
    pub(crate) record: WaitingRecord,
    /// Its kernel chain, leaf first.
    pub(crate) kernel: [u64; MAX_KERNEL_FRAMES],
}

/// What an event, or a part of a wait, counts for.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Part {
    /// Its value columns; all zero when it is left out.
    pub(crate) columns: [u64; COLUMNS],
}

impl Part {
    /// One that is left out.
    pub(crate) const NONE: Self = Self { columns: [0; COLUMNS] };
}
