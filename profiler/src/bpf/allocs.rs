//! Allocations: loads what records them, and asks for probes on functions of processes.

use std::fs;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};

use aya::Ebpf;
use aya::maps::{Array, MapData, PerCpuArray};
use aya::programs::{RawTracePoint, UProbe};
use profiler_common::alloc::{LiveBlock, LiveKey, SIZE_CLASSES, SIZE_SHIFT, SizeStats};
use profiler_common::config::Control;
use profiler_common::wait::Threshold;

use super::BpfError;
use super::drain::Batch;
use super::holder::{HolderError, ProbeHolder, Program, UPROBES, Work};
use super::kernel_types::with_types;
use super::load::{Kernel, Shared, program_error, take, typed};
use super::pythons::PythonProgram;
use super::session::{SessionObject, map_descriptors};

/// The program that sees calls, the one that sees their returns too, and the one that sees blocks freed.
const ENTER: &str = "alloc_enter";
const SESSION: &str = "alloc_session";
const FREE: &str = "alloc_free";

/// What sizes are held against at first, bytes: a program that starts allocates thousands of small blocks, all on stacks that
/// are not known yet. It falls where there are few.
const FIRST_THRESHOLD: u64 = 1024;

/// The program that sees threads end, and its tracepoint.
const END: (&str, &str) = ("alloc_end", "sched_process_exit");

/// Functions of a file that are to have probes.
#[derive(Clone, Copy, Debug)]
pub struct Probes<'a> {
    /// The file.
    pub file: BorrowedFd<'a>,
    /// The process in which they run; 0 for every one.
    pub pid: u32,
    /// Functions that allocate: offsets of instructions in the file, and what the program is told at each.
    pub enters: &'a [(u64, u64)],
    /// Functions that free, likewise; none where blocks are not followed.
    pub frees: &'a [(u64, u64)],
}

/// Probes that are there, until they are given to [`Kernel::detach_probes`] or the kernel side is dropped.
#[derive(Debug)]
pub struct AttachedProbes(Vec<u64>);

/// What belongs to allocations.
pub(super) struct Allocs {
    threshold: Array<MapData, Shared<Threshold>>,
    live: Batch<LiveKey, LiveBlock>,
    missed: Array<MapData, u64>,
    sizes: PerCpuArray<MapData, Shared<SizeStats>>,
    /// Who holds the probes.
    pub(super) holder: Option<ProbeHolder>,
    /// Where sessions are to be had, what they run is loaded from this.
    session: Option<SessionObject>,
    /// Programs of sessions, which aya does not know.
    programs: Vec<OwnedFd>,
}

impl Allocs {
    /// Takes the maps out of an object; `bytes`: the object, where allocations are recorded.
    pub(super) fn new(ebpf: &mut Ebpf, bytes: Option<&[u8]>) -> Result<Self, BpfError> {
        let has_sessions = bytes.is_some() && has_sessions();
        let bytes = bytes.filter(|_| has_sessions);
        let session = bytes.map(|bytes| SessionObject::new(bytes, map_descriptors(ebpf))).transpose()?;
        Ok(Self {
            threshold: typed(ebpf, "ALLOC_THRESHOLD")?,
            live: Batch::new(take(ebpf, "LIVE")?, "LIVE")?,
            missed: typed(ebpf, "LIVE_MISSED")?,
            sizes: typed(ebpf, "SIZE_STATS")?,
            holder: None,
            session,
            programs: Vec::new(),
        })
    }

    /// Time inside programs that aya does not know, ns, and how often they ran.
    pub(super) fn run_time(&self) -> (u64, u64) {
        let mut sum = (0, 0);
        for program in &self.programs {
            let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", program.as_raw_fd())).unwrap_or_default();
            let field = |name: &str| {
                info.lines().find_map(|line| line.strip_prefix(name)?.trim().parse::<u64>().ok()).unwrap_or(0)
            };
            sum = (sum.0 + field("run_time_ns:"), sum.1 + field("run_cnt:"));
        }
        sum
    }
}

/// Whether the kernel has sessions of uprobes: what came with them is among its types. Source: include/linux/uprobes.h of
/// Linux 6.13.
fn has_sessions() -> bool {
    with_types(|types| Ok(types.find_struct("return_consumer").is_some())).unwrap_or(false)
}

impl Kernel {
    /// Loads the programs that record allocations, and starts the process that holds their probes.
    ///
    /// # Errors
    ///
    /// When the kernel has no probes of user space, or the verifier refuses a program.
    pub fn load_alloc_programs(&mut self) -> Result<(), BpfError> {
        if !fs::exists(UPROBES).unwrap_or(false) {
            return Err(BpfError::NoUprobes);
        }
        self.pythons.expect(PythonProgram::ALLOC);
        let first = Threshold { now_ns: FIRST_THRESHOLD << SIZE_SHIFT, ..Threshold::default() };
        let written = self.allocs.threshold.set(0, Shared(first), 0);
        written.map_err(|error| BpfError::map("write", "ALLOC_THRESHOLD", error))?;
        let mut holder = ProbeHolder::start().map_err(BpfError::NoHolder)?;
        if self.allocs.session.is_some() {
            let program = self.load_session_program(SESSION)?;
            holder.keep(Program::Session, program)?;
            let program = self.load_session_program(FREE)?;
            holder.keep(Program::Free, program)?;
        } else {
            let program = self.load_probe_program(ENTER)?;
            holder.keep(Program::Enter, program)?;
        }
        self.allocs.holder = Some(holder);
        let (name, tracepoint) = END;
        let program: &mut RawTracePoint = self.program(name)?;
        program.load().map_err(|cause| program_error("load", name, cause))?;
        program.attach(tracepoint).map(drop).map_err(|cause| program_error("attach", name, cause))
    }

    fn load_probe_program(&mut self, name: &'static str) -> Result<OwnedFd, BpfError> {
        let program: &mut UProbe = self.program(name)?;
        program.load().map_err(|cause| program_error("load", name, cause))?;
        let descriptor = program.fd().map_err(|cause| program_error("load", name, cause))?;
        descriptor.as_fd().try_clone_to_owned().map_err(BpfError::NoHolder)
    }

    /// Loads a program that sessions run; what continues such a program is one as well.
    pub(super) fn load_session_program(&mut self, name: &'static str) -> Result<OwnedFd, BpfError> {
        let session = self.allocs.session.as_ref().ok_or(BpfError::Missing(name))?;
        let program = session.load(name)?;
        self.allocs.programs.push(program.try_clone().map_err(BpfError::NoHolder)?);
        Ok(program)
    }

    /// Whether the kernel can show what becomes of the blocks that are allocated.
    #[must_use]
    pub const fn follows_blocks(&self) -> bool {
        self.allocs.session.is_some()
    }

    /// Puts probes in their places.
    ///
    /// # Errors
    ///
    /// When the kernel refuses, as for a process that is gone, or [`BpfError::HolderGone`].
    pub fn attach_probes(&mut self, probes: Probes<'_>) -> Result<AttachedProbes, BpfError> {
        let Probes { file, pid, enters, frees } = probes;
        let enter = if self.allocs.session.is_some() { Program::Session } else { Program::Enter };
        let holder = self.allocs.holder.as_mut().ok_or(BpfError::HolderGone)?;
        let mut attached = AttachedProbes(Vec::new());
        // Those that free come first: no block is followed whose end cannot be seen.
        for (program, points) in [(Program::Free, frees), (enter, enters)] {
            if points.is_empty() {
                continue;
            }
            match holder.attach(Work { program, file, pid, points }) {
                Ok(number) => attached.0.push(number),
                Err(error) => {
                    for &number in &attached.0 {
                        let _ = holder.detach(number);
                    }
                    return Err(error.into());
                }
            }
        }
        Ok(attached)
    }

    /// Takes probes away, without waiting for it.
    ///
    /// # Errors
    ///
    /// [`BpfError::HolderGone`].
    pub fn detach_probes(&mut self, probes: &AttachedProbes) -> Result<(), BpfError> {
        let holder = self.allocs.holder.as_mut().ok_or(BpfError::HolderGone)?;
        probes.0.iter().try_for_each(|&number| holder.detach(number)).map_err(BpfError::from)
    }

    /// Whether the process that holds the probes has been killed.
    pub fn has_lost_probes(&mut self) -> bool {
        self.allocs.holder.as_mut().is_some_and(|holder| !holder.is_there())
    }

    /// Starts another one in its place: without probes, which are to be put there anew, so that what the first one has left
    /// in the targets goes with them.
    ///
    /// # Errors
    ///
    /// When there can be no process.
    pub fn restart_holder(&mut self) -> Result<(), BpfError> {
        self.allocs.holder.as_mut().map_or(Ok(()), ProbeHolder::restart).map_err(BpfError::from)
    }

    /// Waits until all probes are gone that were to be taken away, and those that are left.
    pub fn end_probes(&mut self) {
        self.allocs.holder = None;
    }

    /// Records allocations from now on, or not any more, whatever probes there are: one of [`takes`](profiler_common::alloc::takes).
    ///
    /// # Errors
    ///
    /// When the map cannot be written.
    pub fn take_allocations(&mut self, takes_allocations: u32) -> Result<(), BpfError> {
        self.write_control(Control { takes_allocations, ..self.controlled })
    }

    /// Time inside the programs of allocations, ns, and how often they ran; zeros where the kernel keeps no statistics.
    #[must_use]
    pub fn alloc_run_time(&self) -> (u64, u64) {
        let (known, own) = (self.run_time_of(|name| name == ENTER), self.allocs.run_time());
        (known.0 + own.0, known.1 + own.1)
    }

    /// The highest threshold there has been, in 64ths of a byte: no allocation of as many has been left out.
    #[must_use]
    pub fn highest_alloc_threshold(&self) -> u64 {
        self.allocs.threshold.get(&0, 0).map_or(0, |threshold| threshold.0.highest_ns)
    }

    /// The blocks that were kept and have not been freed.
    ///
    /// # Errors
    ///
    /// When the map cannot be read.
    pub fn live_blocks(&self) -> Result<Vec<(LiveKey, LiveBlock)>, BpfError> {
        self.allocs.live.read_all()
    }

    /// Forgets all of them.
    ///
    /// # Errors
    ///
    /// When the map cannot be read.
    pub fn forget_live_blocks(&mut self) -> Result<(), BpfError> {
        self.allocs.live.take_all().map(drop)
    }

    /// Forgets some of them.
    pub fn forget_blocks(&mut self, keys: &[LiveKey]) {
        keys.iter().for_each(|key| self.allocs.live.remove(key));
    }

    /// Blocks that were kept and could not be followed.
    #[must_use]
    pub fn live_blocks_missed(&self) -> u64 {
        self.allocs.missed.get(&0, 0).unwrap_or(0)
    }

    /// What was counted of blocks by their size, the class of each first; those without any left out.
    ///
    /// # Errors
    ///
    /// When the map cannot be read.
    pub fn size_stats(&self) -> Result<Vec<(u32, SizeStats)>, BpfError> {
        let mut all = Vec::new();
        for class in 0..SIZE_CLASSES {
            let by_cpu = self.allocs.sizes.get(&class, 0);
            let by_cpu = by_cpu.map_err(|error| BpfError::map("read", "SIZE_STATS", error))?;
            let mut sum = SizeStats::NONE;
            by_cpu.iter().for_each(|Shared(stats)| sum.add(stats));
            if sum.objects > 0 {
                all.push((class, sum));
            }
        }
        Ok(all)
    }
}

impl From<HolderError> for BpfError {
    fn from(error: HolderError) -> Self {
        match error {
            HolderError::Gone => Self::HolderGone,
            HolderError::Refused(cause) => Self::Probe(cause),
        }
    }
}
