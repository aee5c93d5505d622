//! Allocations: loads what records them, and asks for probes on functions of processes.

use std::fs;
use std::os::fd::{AsFd as _, BorrowedFd};

use aya::programs::{RawTracePoint, UProbe};
use profiler_common::config::Control;

use super::BpfError;
use super::holder::{HolderError, ProbeHolder, Program, UPROBES, Work};
use super::load::{Kernel, program_error};
use super::pythons::PythonProgram;

/// The program that sees calls.
const ENTER: &str = "alloc_enter";

/// The program that sees threads end, and its tracepoint.
const END: (&str, &str) = ("alloc_end", "sched_process_exit");

/// Functions of a file that are to have probes.
#[derive(Clone, Copy, Debug)]
pub struct Probes<'a> {
    /// The file.
    pub file: BorrowedFd<'a>,
    /// The process in which they run; 0 for every one.
    pub pid: u32,
    /// Offsets of instructions in the file, and what the program is told at each.
    pub enters: &'a [(u64, u64)],
}

/// Probes that are there, until they are given to [`Kernel::detach_probes`] or the kernel side is dropped.
#[derive(Debug)]
pub struct AttachedProbes(Vec<u64>);

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
        let mut holder = ProbeHolder::start().map_err(BpfError::NoHolder)?;
        let program: &mut UProbe = self.program(ENTER)?;
        program.load().map_err(|cause| program_error("load", ENTER, cause))?;
        let enter = program.fd().map_err(|cause| program_error("load", ENTER, cause))?.as_fd().try_clone_to_owned();
        holder.keep(Program::Enter, enter.map_err(BpfError::NoHolder)?)?;
        self.holder = Some(holder);
        let (name, tracepoint) = END;
        let program: &mut RawTracePoint = self.program(name)?;
        program.load().map_err(|cause| program_error("load", name, cause))?;
        program.attach(tracepoint).map(drop).map_err(|cause| program_error("attach", name, cause))
    }

    /// Puts probes in their places.
    ///
    /// # Errors
    ///
    /// When the kernel refuses, as for a process that is gone, or [`BpfError::HolderGone`].
    pub fn attach_probes(&mut self, probes: Probes<'_>) -> Result<AttachedProbes, BpfError> {
        let Probes { file, pid, enters } = probes;
        let holder = self.holder.as_mut().ok_or(BpfError::HolderGone)?;
        let number = holder.attach(Work { program: Program::Enter, file, pid, points: enters })?;
        Ok(AttachedProbes(vec![number]))
    }

    /// Takes probes away, without waiting for it.
    ///
    /// # Errors
    ///
    /// [`BpfError::HolderGone`].
    pub fn detach_probes(&mut self, probes: &AttachedProbes) -> Result<(), BpfError> {
        let holder = self.holder.as_mut().ok_or(BpfError::HolderGone)?;
        probes.0.iter().try_for_each(|&number| holder.detach(number)).map_err(BpfError::from)
    }

    /// Whether the process that holds the probes has been killed.
    pub fn has_lost_probes(&mut self) -> bool {
        self.holder.as_mut().is_some_and(|holder| !holder.is_there())
    }

    /// Starts another one in its place: without probes, which are to be put there anew, so that what the first one has left
    /// in the targets goes with them.
    ///
    /// # Errors
    ///
    /// When there can be no process.
    pub fn restart_holder(&mut self) -> Result<(), BpfError> {
        self.holder.as_mut().map_or(Ok(()), ProbeHolder::restart).map_err(BpfError::from)
    }

    /// Waits until all probes are gone that were to be taken away, and those that are left.
    pub fn end_probes(&mut self) {
        self.holder = None;
    }

    /// Records allocations from now on, or not any more, whatever probes there are.
    ///
    /// # Errors
    ///
    /// When the map cannot be written.
    pub fn take_allocations(&mut self, takes: bool) -> Result<(), BpfError> {
        self.write_control(Control { takes_allocations: u32::from(takes), ..self.controlled })
    }

    /// Time inside the program that sees calls, ns, and how often it ran; zeros where the kernel keeps no statistics.
    #[must_use]
    pub fn alloc_run_time(&self) -> (u64, u64) {
        self.run_time_of(|name| name == ENTER)
    }

    /// The highest threshold there has been, in 64ths of a byte: no allocation of as many has been left out.
    #[must_use]
    pub fn highest_alloc_threshold(&self) -> u64 {
        self.alloc_threshold.get(&0, 0).map_or(0, |threshold| threshold.0.highest_ns)
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
