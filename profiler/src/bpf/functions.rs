//! Calls of functions: loads what records them, asks for probes, and reads what was counted exactly.

use std::fs;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use aya::Ebpf;
use aya::maps::{Array, MapData};
use aya::programs::{RawTracePoint, UProbe};
use profiler_common::function::{FunctionKey, FunctionMissed, FunctionStats};
use profiler_common::wait::Threshold;

use super::BpfError;
use super::drain::Batch;
use super::holder::{MAX_POINTS, ProbeHolder, Program, UPROBES, Work};
use super::load::{Kernel, Shared, program_error, take, typed};
use super::pythons::PythonProgram;

/// The programs that see beginnings and ends.
const ENTER: &str = "function_enter";
const END: &str = "function_end";

/// The programs on tracepoints: who is switched, and which threads end.
const HOOKS: [(&str, &str); 2] = [("function_switch", "sched_switch"), ("function_thread_end", "sched_process_exit")];

/// What belongs to calls of functions.
pub(super) struct Functions {
    stats: Batch<FunctionKey, FunctionStats>,
    threshold: Array<MapData, Shared<Threshold>>,
    missed: Array<MapData, u64>,
    /// Who holds the probes.
    pub(super) holder: Option<ProbeHolder>,
}

impl Functions {
    /// Takes the maps out of an object.
    pub(super) fn new(ebpf: &mut Ebpf) -> Result<Self, BpfError> {
        Ok(Self {
            stats: Batch::new(take(ebpf, "FUNCTION_STATS")?, "FUNCTION_STATS")?,
            threshold: typed(ebpf, "FUNCTION_THRESHOLD")?,
            missed: typed(ebpf, "FUNCTIONS_MISSED")?,
            holder: None,
        })
    }
}

/// How often probes of functions ran.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FunctionRuns {
    /// Time in the programs, ns.
    pub bpf_ns: u64,
    /// Beginnings.
    pub entries: u64,
    /// Ends.
    pub ends: u64,
}

impl Kernel {
    /// Name of the hooks in reports.
    pub const FUNCTION_HOOKS: &str = "probes of entries and returns";

    /// Loads and attaches the programs that record calls of functions, and starts the process that holds their probes.
    ///
    /// # Errors
    ///
    /// When the kernel has no probes of user space, or the verifier refuses a program.
    pub fn begin_functions(&mut self) -> Result<(), BpfError> {
        if !fs::exists(UPROBES).unwrap_or(false) {
            return Err(BpfError::NoUprobes);
        }
        self.pythons.expect(PythonProgram::FUNCTION);
        let mut holder = ProbeHolder::start().map_err(BpfError::NoHolder)?;
        for (program, name) in [(Program::FunctionEnter, ENTER), (Program::FunctionEnd, END)] {
            holder.keep(program, self.load_function_program(name)?)?;
        }
        self.functions.holder = Some(holder);
        for (name, tracepoint) in HOOKS {
            let program: &mut RawTracePoint = self.program(name)?;
            program.load().map_err(|cause| program_error("load", name, cause))?;
            program.attach(tracepoint).map(drop).map_err(|cause| program_error("attach", name, cause))?;
        }
        Ok(())
    }

    fn load_function_program(&mut self, name: &'static str) -> Result<OwnedFd, BpfError> {
        let program: &mut UProbe = self.program(name)?;
        program.load().map_err(|cause| program_error("load", name, cause))?;
        let descriptor = program.fd().map_err(|cause| program_error("load", name, cause))?;
        descriptor.as_fd().try_clone_to_owned().map_err(BpfError::NoHolder)
    }

    /// Puts probes on functions of a file, in a process, or in every one where `pid` is 0; returns the numbers under which they
    /// are taken away. `entries`, `ends`: offsets of instructions in the file, and what the program is told at each.
    ///
    /// # Errors
    ///
    /// When the kernel refuses, as for a process that is gone, or [`BpfError::HolderGone`].
    pub fn attach_functions(
        &mut self,
        file: BorrowedFd<'_>,
        pid: u32,
        entries: &[(u64, u64)],
        ends: &[(u64, u64)],
    ) -> Result<Vec<u64>, BpfError> {
        let holder = self.functions.holder.as_mut().ok_or(BpfError::HolderGone)?;
        let mut attached = Vec::new();
        // Ends first: every call whose beginning is seen has one.
        for (program, points) in [(Program::FunctionEnd, ends), (Program::FunctionEnter, entries)] {
            for points in points.chunks(MAX_POINTS) {
                match holder.attach(Work { program, file, pid, points }) {
                    Ok(number) => attached.push(number),
                    Err(error) => {
                        for &number in &attached {
                            let _ = holder.detach(number);
                        }
                        return Err(error.into());
                    }
                }
            }
        }
        Ok(attached)
    }

    /// Takes probes of functions away, without waiting for it.
    ///
    /// # Errors
    ///
    /// [`BpfError::HolderGone`].
    pub fn detach_functions(&mut self, numbers: &[u64]) -> Result<(), BpfError> {
        let holder = self.functions.holder.as_mut().ok_or(BpfError::HolderGone)?;
        numbers.iter().try_for_each(|&number| holder.detach(number)).map_err(BpfError::from)
    }

    /// Whether the process that holds these probes has been killed.
    pub fn has_lost_functions(&mut self) -> bool {
        self.functions.holder.as_mut().is_some_and(|holder| !holder.is_there())
    }

    /// Starts another one in its place: without probes, which are to be put there anew.
    ///
    /// # Errors
    ///
    /// When there can be no process.
    pub fn restart_functions(&mut self) -> Result<(), BpfError> {
        self.functions.holder.as_mut().map_or(Ok(()), ProbeHolder::restart).map_err(BpfError::from)
    }

    /// Waits until all these probes are gone.
    pub fn end_functions(&mut self) {
        self.functions.holder = None;
    }

    /// How often the probes ran, and for how long.
    #[must_use]
    pub fn function_runs(&self) -> FunctionRuns {
        let [enter, end] = [ENTER, END].map(|wanted| self.run_time_of(|name| name == wanted));
        FunctionRuns { bpf_ns: enter.0 + end.0, entries: enter.1, ends: end.1 }
    }

    /// What was counted of the calls of each function, so far.
    ///
    /// # Errors
    ///
    /// When the map cannot be read.
    pub fn function_stats(&self) -> Result<Vec<(FunctionKey, FunctionStats)>, BpfError> {
        self.functions.stats.read_all()
    }

    /// Forgets what was counted of calls that cannot come again.
    pub fn forget_function_stats(&self, key: &FunctionKey) {
        self.functions.stats.remove(key);
    }

    /// Calls of which something is not known.
    #[must_use]
    pub fn functions_missed(&self, what: FunctionMissed) -> u64 {
        self.functions.missed.get(&(what as u32), 0).unwrap_or(0)
    }

    /// The highest threshold there has been, ns: no call that took as long has been left out.
    #[must_use]
    pub fn highest_function_threshold_ns(&self) -> u64 {
        self.functions.threshold.get(&0, 0).map_or(0, |threshold| threshold.0.highest_ns)
    }
}
