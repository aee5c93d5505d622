//! Loads the BPF object and owns its maps and programs.

use std::fs;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use aya::maps::{Array, HashMap, MapData, PerCpuArray, RingBuf};
use aya::programs::{PerfEvent, Program, ProgramType, RawTracePoint};
use aya::sys::{BpfHelper, Stats};
use aya::{Ebpf, EbpfError, EbpfLoader};
use profiler_common::alloc::{MAX_LIVE, SizeStats};
use profiler_common::block::{
    BlockHistograms, BlockRequest, BlockTally, MAX_BLOCK_FILES, MAX_BLOCK_STATS, MAX_BLOCK_WAITS, MAX_DIRTY_FILES,
    MAX_REQUESTS, MAX_WAITERS, REQUEST_PLACES, SlowRequest, SlowWakeUp,
};
use profiler_common::config::{CONFIG_MAGIC, Config, Control, Filter, InFlight, MappingEntry, Process};
use profiler_common::counters::Counters;
use profiler_common::event::{COMM_LEN, Origin};
use profiler_common::file::{
    FileHistogram, FileId, MAX_FILE_HISTOGRAMS, MAX_FILE_REQUESTS, MAX_FILE_STATS, MAX_SEEN_FILES,
};
use profiler_common::function::{MAX_CALLERS, MAX_FUNCTION_STATS};
use profiler_common::net::{
    MAX_ESTABLISHED, MAX_NET_STATS, MAX_NET_TIMED, MAX_SOCKETS, MAX_UNIX_NAMES, NetCounts, NetTime, NetTimes,
};
use profiler_common::number_pace::{Chosen, NumberPace};
use profiler_common::python::PythonLayout;
use profiler_common::system_call::MAX_CALL_STATS;
use profiler_common::unwind::{Packed, Rule};
use profiler_common::wait::{EndedThread, LockKey, LockWaits, MAX_LOCKS, MAX_WAITS, Threshold, recorded_waits};

use super::BpfError;
use super::allocs::Allocs;
use super::blocks::{Blocks, link_casts};
use super::calls::Calls;
use super::drain::{Batch, Generation, NamedFile};
use super::files::Files;
use super::functions::Functions;
use super::kernel_types::{Offsets, read_offsets};
use super::net::Net;
use super::pythons::{PythonProgram, Pythons};
use super::runs::{Run, Runs};
use super::tables::{PlacedTable, TableParts, Tables};
use super::waits::WaitLinks;

/// The object that was built from profiler-ebpf, in memory aligned as its sections ask.
static OBJECT: &[u8] = aya::include_bytes_aligned!("../../bpf/profiler.bpf.o");

/// Environment variable that names another object file: for testing one that was just built.
const OBJECT_VARIABLE: &str = "PROFILER_BPF_OBJECT";

/// Which tasks to sample.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Selection {
    /// All of them.
    All,
    /// The processes given to [`Kernel::set_process`].
    Processes {
        /// And those they fork.
        follow_children: bool,
    },
    /// A cgroup and those below it.
    Cgroup {
        /// Its number: the inode of its directory.
        id: u64,
        /// Its depth below the root of the hierarchy.
        level: u32,
    },
    /// Processes and threads of this name, padded with zeros.
    Comm([u8; COMM_LEN]),
}

/// How much kernel memory the maps may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Records in one generation.
    pub records: u32,
    /// Ring buffer, bytes: a power of two of at least a page.
    pub ring_bytes: u32,
    /// Processes followed at once.
    pub processes: u32,
    /// Executable mappings known to the unwinder at once, of all processes.
    pub mappings: u32,
    /// Unwind tables, MiB.
    pub table_shards: usize,
    /// What waits are recorded for, a [`recorded_waits`]: 4 MB for the threads, 3 MB for locks.
    pub waits: u32,
    /// Whether page faults are recorded.
    pub faults: bool,
    /// Whether system calls are recorded: 20 MB for the threads and for what is counted exactly.
    pub calls: bool,
    /// Whether requests to block devices are recorded: 34 MB for those under way and for what is counted exactly.
    pub blocks: bool,
    /// Requests to block devices that take as long are told one by one, ns; 0 for none.
    pub slower_ns: u64,
    /// Whether operations on files are recorded: 26 MB for the threads and for how long operations took, and what files
    /// there are.
    pub files: bool,
    /// Whether sockets are recorded: 20 MB for what is counted exactly.
    pub net: bool,
    /// Whether allocations are recorded: 16 MB for the threads and for the blocks that are followed.
    pub allocs: bool,
    /// Whether calls of functions are recorded: 22 MB for the callers and for what is counted exactly.
    pub functions: bool,
}

impl Limits {
    /// Elements of the `SCRATCH` map: as many as there are types of programs up to the last one that is loaded. Source:
    /// `Programs` in profiler-ebpf/src/maps.rs.
    const fn scratch_slots(self) -> u32 {
        if self.functions {
            10
        } else if self.allocs {
            9
        } else if self.net {
            8
        } else if self.files {
            7
        } else if self.blocks {
            6
        } else if self.waits & recorded_waits::WAKERS != 0 {
            5
        } else if self.calls {
            4
        } else if self.faults {
            3
        } else if self.waits != 0 {
            2
        } else {
            1
        }
    }
}

impl Default for Limits {
    /// About 9 MB: 8,192 records are what two busy CPUs make of 10 s at 99 Hz if no two samples are alike.
    fn default() -> Self {
        Self {
            records: 8_192,
            ring_bytes: 4 << 20,
            processes: 16_384,
            mappings: 32_768,
            table_shards: 64,
            waits: 0,
            faults: false,
            calls: false,
            blocks: false,
            slower_ns: 0,
            files: false,
            net: false,
            allocs: false,
            functions: false,
        }
    }
}

/// Lets aya pass our structures to the kernel as they are.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Shared<T>(pub(super) T);

/// Our structures that may be shared: plain numbers, `repr(C)`, no hidden padding.
trait Plain: Copy + 'static {}
impl Plain for Control {}
impl Plain for Counters {}
impl Plain for BlockHistograms {}
impl Plain for BlockRequest {}
impl Plain for BlockTally {}
impl Plain for InFlight {}
impl Plain for Process {}
impl Plain for MappingEntry {}
impl Plain for Rule {}
impl Plain for PythonLayout {}
impl Plain for Threshold {}
impl Plain for LockKey {}
impl Plain for LockWaits {}
impl Plain for NumberPace {}
impl Plain for NetTimes {}
impl Plain for NetCounts {}
impl Plain for FileHistogram {}
impl Plain for FileId {}
impl Plain for SizeStats {}

// SAFETY: `Plain` is implemented for structures of integers without padding, for which any bytes are a value.
unsafe impl<T: Plain> aya::Pod for Shared<T> {}

/// The loaded object. Everything ends when it is dropped.
pub struct Kernel {
    pub(super) ebpf: Ebpf,
    pub(super) control: Array<MapData, Shared<Control>>,
    pub(super) in_flight: PerCpuArray<MapData, Shared<InFlight>>,
    pub(super) counters: PerCpuArray<MapData, Shared<Counters>>,
    pub(super) fill: Array<MapData, [u64; 4]>,
    pub(super) ring: RingBuf<MapData>,
    pub(super) generations: [Generation; 2],
    pub(super) current: usize,
    /// What changes while the programs run, as it was written last.
    pub(super) controlled: Control,
    pub(super) threshold: Array<MapData, Shared<Threshold>>,
    /// Threads that have ended since they were last handed out.
    pub(super) ended: Vec<EndedThread>,
    /// Names of files that came since they were last handed out.
    pub(super) file_names: Vec<NamedFile>,
    /// Slow requests that came since they were last handed out.
    pub(super) slow: Vec<SlowRequest>,
    /// And of the threads that waited for them.
    pub(super) slow_wake_ups: Vec<SlowWakeUp>,
    pub(super) wait_links: WaitLinks,
    threads_refused: Array<MapData, u64>,
    ends_lost: Array<MapData, u64>,
    pub(super) locks: HashMap<MapData, Shared<LockKey>, Shared<LockWaits>>,
    pub(super) locks_missed: Array<MapData, u64>,
    pub(super) number_pace: PerCpuArray<MapData, Shared<NumberPace>>,
    pub(super) calls: Calls,
    pub(super) blocks: Blocks,
    pub(super) calls_uncounted: Array<MapData, u64>,
    pub(super) call_threshold: Array<MapData, Shared<Threshold>>,
    pub(super) net: Net,
    pub(super) files: Files,
    pub(super) allocs: Allocs,
    pub(super) functions: Functions,
    processes: HashMap<MapData, u32, Shared<Process>>,
    tables: Tables,
    runs: Runs,
    pub(super) pythons: Pythons,
    children_missed: Array<MapData, u64>,
    /// Keeps the kernel's run-time statistics on.
    _statistics: Option<OwnedFd>,
}

impl Kernel {
    /// Creates the maps; loads no program yet.
    ///
    /// `has_fixed_period`: whether the sampling event has; `self_pid`: the process that is never sampled.
    ///
    /// # Errors
    ///
    /// Without the permission, the kernel's types, or on a kernel that lacks one of the maps (before Linux 5.8).
    pub fn load(
        selection: &Selection,
        limits: Limits,
        has_fixed_period: bool,
        self_pid: u32,
    ) -> Result<Self, BpfError> {
        raise_locked_memory_limit();
        let config = config(selection, limits, has_fixed_period, self_pid, read_offsets(limits)?);
        let replacement = std::env::var_os(OBJECT_VARIABLE).map(fs::read).transpose();
        let replacement = replacement.map_err(|error| BpfError::map("read", OBJECT_VARIABLE, error))?;
        let mut loader = EbpfLoader::new();
        // SAFETY: the structure is made of integers and has no padding.
        let bytes = unsafe { std::slice::from_raw_parts((&raw const config).cast::<u8>(), size_of::<Config>()) };
        loader
            .btf(None)
            .override_global("CONFIG", bytes, true)
            .map_max_entries("RECORDS_0", limits.records)
            .map_max_entries("RECORDS_1", limits.records)
            .map_max_entries("SENT_0", limits.records)
            .map_max_entries("SENT_1", limits.records)
            .map_max_entries("RING", limits.ring_bytes)
            .map_max_entries("MAPPINGS", limits.mappings)
            .map_max_entries("PROCESSES", limits.processes)
            .map_max_entries("WAITS", if limits.waits == 0 { 1 } else { MAX_WAITS })
            .map_max_entries("WAKES", if limits.waits & recorded_waits::WAKERS == 0 { 1 } else { MAX_WAITS })
            .map_max_entries("LOCKS", if limits.waits & recorded_waits::LOCKS == 0 { 1 } else { MAX_LOCKS })
            .map_max_entries("CALLS", if limits.calls { MAX_WAITS } else { 1 })
            .map_max_entries("CALL_STATS", if limits.calls { MAX_CALL_STATS } else { 1 })
            .map_max_entries("ALLOCATING", if limits.allocs { MAX_WAITS } else { 1 })
            .map_max_entries("LIVE", if limits.allocs { MAX_LIVE } else { 1 })
            .map_max_entries("CALLERS", if limits.functions { MAX_CALLERS } else { 1 })
            .map_max_entries("FUNCTION_STATS", if limits.functions { MAX_FUNCTION_STATS } else { 1 })
            .map_max_entries("FILES_SEEN", if limits.files || limits.blocks { MAX_SEEN_FILES } else { 1 })
            .map_max_entries("NET_STATS", if limits.net { MAX_NET_STATS } else { 1 })
            .map_max_entries("NET_TIMES", if limits.net { MAX_NET_TIMED * NetTime::COUNT } else { 1 })
            .map_max_entries("SOCKETS", if limits.net { MAX_SOCKETS } else { 1 })
            .map_max_entries("ESTABLISHED", if limits.net { MAX_ESTABLISHED } else { 1 })
            .map_max_entries("UNIX_NAMES", if limits.net { MAX_UNIX_NAMES } else { 1 })
            .map_max_entries("FILE_CALLS", if limits.files { MAX_WAITS } else { 1 })
            .map_max_entries("FILE_STATS", if limits.files { MAX_FILE_STATS } else { 1 })
            .map_max_entries("FILE_HISTOGRAMS", if limits.files { MAX_FILE_HISTOGRAMS } else { 1 })
            .map_max_entries("FILE_REQUESTS", if limits.files { MAX_FILE_REQUESTS } else { 1 })
            .map_max_entries("BLOCK_REQUESTS", if limits.blocks { MAX_REQUESTS } else { 1 })
            .map_max_entries("DIRTY_FILES", if limits.blocks { MAX_DIRTY_FILES } else { 1 })
            .map_max_entries("BLOCK_STATS", if limits.blocks { MAX_BLOCK_STATS } else { 1 })
            .map_max_entries("BLOCK_HISTOGRAMS", if limits.blocks { MAX_BLOCK_STATS } else { 1 })
            .map_max_entries("BLOCK_HISTOGRAMS_FREE", if limits.blocks { MAX_BLOCK_STATS } else { 1 })
            .map_max_entries("BLOCK_FILES", if limits.blocks { MAX_BLOCK_FILES } else { 1 })
            .map_max_entries("BLOCK_WAITING", if limits.blocks { MAX_WAITERS / REQUEST_PLACES } else { 1 })
            .map_max_entries("BLOCK_WAITERS", if limits.blocks { MAX_WAITERS } else { 1 })
            .map_max_entries("BLOCK_WAITS", if limits.blocks { MAX_BLOCK_WAITS } else { 1 })
            .map_max_entries("SCRATCH", limits.scratch_slots());
        let mut object = replacement;
        if limits.blocks {
            link_casts(object.get_or_insert_with(|| OBJECT.to_vec()))?;
        }
        let object = object.as_deref().unwrap_or(OBJECT);
        let mut ebpf = loader.load(object).map_err(load_error)?;
        let allocs = Allocs::new(&mut ebpf, limits.allocs.then_some(object))?;
        let statistics = aya::sys::enable_stats(Stats::RunTime).ok();
        let generations = [
            Generation::new(take(&mut ebpf, "RECORDS_0")?, take(&mut ebpf, "SENT_0")?)?,
            Generation::new(take(&mut ebpf, "RECORDS_1")?, take(&mut ebpf, "SENT_1")?)?,
        ];
        let tables = Tables::new(take(&mut ebpf, "SHARDS")?, typed(&mut ebpf, "RULES")?, limits.table_shards)?;
        Ok(Self {
            control: typed(&mut ebpf, "CONTROL")?,
            in_flight: typed(&mut ebpf, "IN_FLIGHT")?,
            counters: typed(&mut ebpf, "COUNTERS")?,
            fill: typed(&mut ebpf, "FILL")?,
            ring: typed(&mut ebpf, "RING")?,
            processes: typed(&mut ebpf, "PROCESSES")?,
            tables,
            runs: Runs::new(typed(&mut ebpf, "MAPPINGS")?),
            pythons: Pythons::new(&mut ebpf)?,
            children_missed: typed(&mut ebpf, "CHILDREN_MISSED")?,
            generations,
            current: 0,
            controlled: Control::default(),
            threshold: typed(&mut ebpf, "THRESHOLD")?,
            ended: Vec::new(),
            file_names: Vec::new(),
            slow: Vec::new(),
            slow_wake_ups: Vec::new(),
            wait_links: WaitLinks::default(),
            threads_refused: typed(&mut ebpf, "THREADS_REFUSED")?,
            ends_lost: typed(&mut ebpf, "ENDS_LOST")?,
            locks: typed(&mut ebpf, "LOCKS")?,
            locks_missed: typed(&mut ebpf, "LOCKS_MISSED")?,
            number_pace: typed(&mut ebpf, "NUMBER_PACE")?,
            calls: Calls { stats: Batch::new(take(&mut ebpf, "CALL_STATS")?, "CALL_STATS")?, links: Vec::new() },
            blocks: Blocks {
                stats: Batch::new(take(&mut ebpf, "BLOCK_STATS")?, "BLOCK_STATS")?,
                files: Batch::new(take(&mut ebpf, "BLOCK_FILES")?, "BLOCK_FILES")?,
                waits: Batch::new(take(&mut ebpf, "BLOCK_WAITS")?, "BLOCK_WAITS")?,
                histograms: typed(&mut ebpf, "BLOCK_HISTOGRAMS")?,
                tallies: typed(&mut ebpf, "BLOCK_TALLIES")?,
                missed: typed(&mut ebpf, "BLOCKS_MISSED")?,
                requests: typed(&mut ebpf, "BLOCK_REQUESTS")?,
                clock: typed(&mut ebpf, "BLOCK_CLOCK")?,
                free: typed(&mut ebpf, "BLOCK_HISTOGRAMS_FREE")?,
                given_up: Vec::new(),
                complete: None,
                links: Vec::new(),
            },
            calls_uncounted: typed(&mut ebpf, "CALLS_UNCOUNTED")?,
            call_threshold: typed(&mut ebpf, "CALL_THRESHOLD")?,
            net: Net {
                stats: Batch::new(take(&mut ebpf, "NET_STATS")?, "NET_STATS")?,
                names: Batch::new(take(&mut ebpf, "UNIX_NAMES")?, "UNIX_NAMES")?,
                times: typed(&mut ebpf, "NET_TIMES")?,
                counts: typed(&mut ebpf, "NET_COUNTS")?,
                hook: None,
                links: Vec::new(),
                exits: Vec::new(),
                accepts: Vec::new(),
                unseen: Vec::new(),
            },
            files: Files::new(&mut ebpf, &config.file)?,
            allocs,
            functions: Functions::new(&mut ebpf)?,
            ebpf,
            _statistics: statistics,
        })
    }

    /// Loads the sampling program and returns it, to be attached by [`super::Sampler`].
    ///
    /// # Errors
    ///
    /// When the verifier refuses it; the error carries its log.
    pub fn load_sampling_program(&mut self) -> Result<OwnedFd, BpfError> {
        const NAME: &str = "cpu_sample";
        let program: &mut PerfEvent = self.program(NAME)?;
        let failed = |cause| program_error("load", NAME, cause);
        // An older verifier may stumble over something else first.
        program.load().map_err(|cause| if lacks_registers() { BpfError::TooOld } else { failed(cause) })?;
        let fd = program.fd().map_err(failed)?.as_fd().try_clone_to_owned();
        self.pythons.expect(PythonProgram::CPU);
        fd.map_err(|error| BpfError::map("duplicate", NAME, error))
    }

    /// Loads and attaches the programs that follow forks and execs.
    ///
    /// # Errors
    ///
    /// As for [`Kernel::load_sampling_program`].
    pub fn follow_processes(&mut self) -> Result<(), BpfError> {
        for (name, tracepoint) in [("process_fork", "sched_process_fork"), ("process_exec", "sched_process_exec")] {
            let program: &mut RawTracePoint = self.program(name)?;
            program.load().map_err(|cause| program_error("load", name, cause))?;
            program.attach(tracepoint).map_err(|cause| program_error("attach", name, cause))?;
        }
        Ok(())
    }

    /// Loads a program that is run by hand only, for a benchmark, and returns it.
    ///
    /// # Errors
    ///
    /// As for [`Kernel::load_sampling_program`].
    pub fn load_bench_program(&mut self, name: &'static str) -> Result<OwnedFd, BpfError> {
        let program: &mut RawTracePoint = self.program(name)?;
        let failed = |cause| program_error("load", name, cause);
        program.load().map_err(failed)?;
        let fd = program.fd().map_err(failed)?.as_fd().try_clone_to_owned();
        fd.map_err(|error| BpfError::map("duplicate", name, error))
    }

    pub(super) fn program<'a, P>(&'a mut self, name: &'static str) -> Result<&'a mut P, BpfError>
    where
        &'a mut P: TryFrom<&'a mut aya::programs::Program, Error = aya::programs::ProgramError>,
    {
        let program = self.ebpf.program_mut(name).ok_or(BpfError::Missing(name))?;
        program.try_into().map_err(|cause| program_error("load", name, cause))
    }

    /// Makes a process known to the programs, or changes what they know of it.
    ///
    /// # Errors
    ///
    /// When there are too many.
    pub fn set_process(&mut self, pid: u32, process: Process) -> Result<(), BpfError> {
        self.processes.insert(pid, Shared(process), 0).map_err(|error| BpfError::map("add to", "PROCESSES", error))
    }

    /// Places an unwind table; `None` when there is no room for it.
    ///
    /// # Errors
    ///
    /// When a map cannot be made or written.
    pub fn place_table(&mut self, table: TableParts<'_>) -> Result<Option<PlacedTable>, BpfError> {
        self.tables.place(table)
    }

    /// Writes the dictionary's new rules, before any table that refers to them.
    ///
    /// # Errors
    ///
    /// When the map cannot be written.
    pub fn write_rules(&mut self, rules: &[Rule]) -> Result<(), BpfError> {
        self.tables.write_rules(rules)
    }

    /// Whether a table is still where it was placed.
    #[must_use]
    pub fn has_table(&self, table: PlacedTable) -> bool {
        self.tables.has(table)
    }

    /// Whether there may be room for a table of so many words now.
    #[must_use]
    pub fn has_table_room(&self, words: u64) -> bool {
        self.tables.room() >= words
    }

    /// The rule of a placed table for an address in the object's own terms, as the programs find it.
    #[must_use]
    pub fn rule(&self, table: PlacedTable, address: u64) -> Option<Packed> {
        self.tables.rule(table, address)
    }

    /// The run of a process that maps `entries`, ascending, of objects with the tables `numbers`; `None` when there is
    /// no room for it.
    ///
    /// # Errors
    ///
    /// When the map cannot be written.
    pub fn acquire_run(&mut self, entries: Vec<MappingEntry>, numbers: Vec<u64>) -> Result<Option<Run>, BpfError> {
        self.runs.acquire(entries, numbers, &mut self.tables)
    }

    /// Gives a run back that a process's entry refers to no more.
    pub fn release_run(&mut self, run: Run) {
        self.runs.release(run);
    }

    /// Ends a window of the unwinder's maps: what was given back a while ago may be used again.
    pub fn end_table_window(&mut self) {
        self.tables.end_window();
        self.runs.end_window(&mut self.tables);
    }

    /// What the programs know of a process.
    #[must_use]
    pub fn process(&self, pid: u32) -> Option<Process> {
        self.processes.get(&pid, 0).ok().map(|process| process.0)
    }

    /// Pids of the processes that the programs know.
    #[must_use]
    pub fn known_processes(&self) -> Vec<u32> {
        self.processes.keys().filter_map(Result::ok).collect()
    }

    /// Forgets a process; one that is not there is no error.
    pub fn remove_process(&mut self, pid: u32) {
        let _ = self.processes.remove(&pid);
    }

    /// Children of targets that could not be followed, because [`Limits::processes`] was reached.
    #[must_use]
    pub fn children_missed(&self) -> u64 {
        self.children_missed.get(&0, 0).unwrap_or(0)
    }

    /// What is not known of threads' times: waits of threads that there was no room for, and threads whose end was lost.
    #[must_use]
    pub fn threads_missed(&self) -> (u64, u64) {
        (self.threads_refused.get(&0, 0).unwrap_or(0), self.ends_lost.get(&0, 0).unwrap_or(0))
    }

    /// The accounting of an origin, summed over CPUs, from the load until now.
    ///
    /// # Errors
    ///
    /// When the map cannot be read.
    pub fn counters(&self, origin: Origin) -> Result<Counters, BpfError> {
        let mut sum = Counters::default();
        let by_cpu =
            self.counters.get(&(origin as u32), 0).map_err(|error| BpfError::map("read", "COUNTERS", error))?;
        for counters in by_cpu.iter() {
            sum.add(&counters.0);
        }
        Ok(sum)
    }

    /// The same at a moment at which no hit is under way, so that what comes between two of them adds up. Programs that are
    /// never done at once are given up on.
    ///
    /// # Errors
    ///
    /// When the map cannot be read.
    pub fn settled_counters(&self, origin: Origin) -> Result<Counters, BpfError> {
        const MOST_TRIES: u32 = 200;
        let mut counters = self.counters(origin)?;
        for _ in 0..MOST_TRIES {
            if counters.is_settled() {
                break;
            }
            std::thread::yield_now();
            counters = self.counters(origin)?;
        }
        Ok(counters)
    }

    /// The most events of a kind that one in the profile counts for: 1 when all of them are in it.
    ///
    /// # Errors
    ///
    /// When the map cannot be read.
    pub fn highest_weight(&self, chosen: Chosen) -> Result<u64, BpfError> {
        let by_cpu = self.number_pace.get(&(chosen as u32), 0);
        let by_cpu = by_cpu.map_err(|error| BpfError::map("read", "NUMBER_PACE", error))?;
        Ok(by_cpu.iter().map(|Shared(pace)| pace.highest_weight).fold(1, u64::max))
    }

    /// Time inside our programs in ns, and how often they ran; zeros where the kernel keeps no statistics.
    #[must_use]
    pub fn run_time(&self) -> (u64, u64) {
        let (known, own) = (self.run_time_of(|_| true), self.allocs.run_time());
        (known.0 + own.0, known.1 + own.1)
    }

    /// The same of the programs whose names are `wanted`.
    #[must_use]
    pub fn run_time_of(&self, wanted: impl Fn(&str) -> bool) -> (u64, u64) {
        let mut sum = (0, 0);
        for (_, program) in self.ebpf.programs().filter(|(name, _)| wanted(name)) {
            if let Ok(info) = program.info() {
                sum.0 += u64::try_from(info.run_time().as_nanos()).unwrap_or(u64::MAX);
                sum.1 += info.run_count();
            }
        }
        sum
    }

    /// Runs that the kernel has left out of the programs whose names are `wanted`, since another one ran on the same CPU; 0
    /// where it does not say (before Linux 5.12). Source: `bpf_prog_show_fdinfo`, kernel/bpf/syscall.c.
    #[must_use]
    pub fn runs_left_out(&self, wanted: impl Fn(&str) -> bool) -> u64 {
        let misses = |program: &Program| {
            let descriptor = program.fd().ok()?.as_fd().as_raw_fd();
            let info = fs::read_to_string(format!("/proc/self/fdinfo/{descriptor}")).ok()?;
            info.lines().find_map(|line| line.strip_prefix("recursion_misses:")?.trim().parse::<u64>().ok())
        };
        let programs = self.ebpf.programs().filter(|(name, _)| wanted(name));
        programs.filter_map(|(_, program)| misses(program)).sum()
    }

    /// A descriptor that becomes readable when the ring wants to be read, for the caller to keep.
    ///
    /// # Errors
    ///
    /// When there can be no more descriptors.
    pub fn ring_descriptor(&self) -> std::io::Result<OwnedFd> {
        // SAFETY: the ring owns the descriptor and outlives this call.
        unsafe { BorrowedFd::borrow_raw(self.ring.as_raw_fd()) }.try_clone_to_owned()
    }
}

/// Kernel memory of every BPF map this process holds, bytes, as the kernel itself counts it.
///
/// Source: `bpf_map_show_fdinfo`, kernel/bpf/syscall.c.
#[must_use]
pub fn map_bytes() -> u64 {
    let Ok(descriptors) = fs::read_dir("/proc/self/fdinfo") else { return 0 };
    let mut sum = 0;
    for descriptor in descriptors.flatten() {
        let info = fs::read_to_string(descriptor.path()).unwrap_or_default();
        if info.contains("\nmap_id:") {
            let bytes = info.lines().find_map(|line| line.strip_prefix("memlock:")?.trim().parse::<u64>().ok());
            sum += bytes.unwrap_or(0);
        }
    }
    sum
}

/// Bytes of stack that one window may leave to user space: some two thousand of processes that have just begun.
const REMAINDER_BYTES: u32 = 12 << 20;

fn config(selection: &Selection, limits: Limits, has_fixed_period: bool, self_pid: u32, offsets: Offsets) -> Config {
    let (pid_namespace_device, pid_namespace_inode) = crate::process::pid_namespace().unwrap_or((0, 0));
    let mut config = Config {
        magic: CONFIG_MAGIC,
        pid_namespace_device,
        pid_namespace_inode,
        has_fixed_period: u64::from(has_fixed_period),
        self_pid,
        drain_at_entries: limits.records / 4 * 3,
        remainder_bytes: REMAINDER_BYTES,
        wake_at_bytes: limits.ring_bytes / 4,
        waits: limits.waits,
        slower_ns: limits.slower_ns,
        task: offsets.task,
        block: offsets.block,
        file: offsets.file,
        net: offsets.net,
        ..Config::UNSET
    };
    config.filter = match *selection {
        Selection::All => Filter::All,
        Selection::Processes { follow_children } => {
            config.follow_children = u32::from(follow_children);
            Filter::Processes
        }
        Selection::Cgroup { id, level } => {
            config.cgroup_id = id;
            config.cgroup_level = level;
            Filter::Cgroup
        }
        Selection::Comm(comm) => {
            config.comm = comm;
            Filter::Comm
        }
    } as u32;
    config
}

/// Whether the kernel is known not to have the one helper that nothing can replace.
fn lacks_registers() -> bool {
    let supported = aya::sys::is_helper_supported(ProgramType::PerfEvent, BpfHelper::BPF_FUNC_task_pt_regs);
    supported.is_ok_and(|supported| !supported)
}

pub(super) fn take(ebpf: &mut Ebpf, name: &'static str) -> Result<aya::maps::Map, BpfError> {
    ebpf.take_map(name).ok_or(BpfError::Missing(name))
}

pub(super) fn typed<T>(ebpf: &mut Ebpf, name: &'static str) -> Result<T, BpfError>
where
    T: TryFrom<aya::maps::Map, Error = aya::maps::MapError>,
{
    T::try_from(take(ebpf, name)?).map_err(|error| BpfError::map("open", name, error))
}

fn is_permission(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(io) = error.downcast_ref::<std::io::Error>()
            && matches!(io.raw_os_error(), Some(libc::EPERM | libc::EACCES))
        {
            return true;
        }
        next = error.source();
    }
    false
}

fn load_error(error: EbpfError) -> BpfError {
    if is_permission(&error) { BpfError::Permission("create BPF maps") } else { BpfError::Load(Box::new(error)) }
}

pub(super) fn program_error(
    action: &'static str,
    program: &'static str,
    cause: aya::programs::ProgramError,
) -> BpfError {
    BpfError::Program { action, program, cause: Box::new(cause) }
}

/// Before Linux 5.11 the maps count as locked memory of the user.
fn raise_locked_memory_limit() {
    let limit = libc::rlimit { rlim_cur: libc::RLIM_INFINITY, rlim_max: libc::RLIM_INFINITY };
    // SAFETY: the structure is initialised. Failure shows when the maps are created.
    unsafe { libc::setrlimit(libc::RLIMIT_MEMLOCK, &raw const limit) };
}
