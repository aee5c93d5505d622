//! Allocations: loads what records them, and puts probes on functions of processes and takes them away again.

use std::fs;
use std::num::NonZeroU32;
use std::os::fd::{AsRawFd, BorrowedFd};

use aya::programs::uprobe::{UProbeAttachLocation, UProbeAttachPoint, UProbeLink, UProbeScope};
use aya::programs::{RawTracePoint, UProbe};

use profiler_common::config::Control;

use super::BpfError;
use super::load::{Kernel, program_error};
use super::pythons::PythonProgram;

/// The program that sees calls.
const ENTER: &str = "alloc_enter";

/// The program that sees threads end, and its tracepoint.
const END: (&str, &str) = ("alloc_end", "sched_process_exit");

/// A place in a file at which the program runs.
#[derive(Clone, Copy, Debug)]
pub struct Probe<'a> {
    /// The file.
    pub file: BorrowedFd<'a>,
    /// The process in which it runs; 0 for every one.
    pub pid: u32,
    /// Offset of an instruction in the file.
    pub offset: u64,
    /// What the program is told.
    pub cookie: u64,
}

/// A probe that is there, until it is dropped: that takes up to a tenth of a second.
#[derive(Debug)]
pub struct AttachedProbe(#[expect(dead_code, reason = "held for what its drop does")] UProbeLink);

impl Kernel {
    /// Loads the programs that record allocations.
    ///
    /// # Errors
    ///
    /// When the kernel has no probes of user space, or the verifier refuses a program.
    pub fn load_alloc_programs(&mut self) -> Result<(), BpfError> {
        // Source: kernel/events/core.c, the directory of the PMU that aya attaches uprobes with.
        if !fs::exists("/sys/bus/event_source/devices/uprobe").unwrap_or(false) {
            return Err(BpfError::NoUprobes);
        }
        self.pythons.expect(PythonProgram::ALLOC);
        let program: &mut UProbe = self.program(ENTER)?;
        program.load().map_err(|cause| program_error("load", ENTER, cause))?;
        let (name, tracepoint) = END;
        let program: &mut RawTracePoint = self.program(name)?;
        program.load().map_err(|cause| program_error("load", name, cause))?;
        program.attach(tracepoint).map(drop).map_err(|cause| program_error("attach", name, cause))
    }

    /// Puts a probe in its place.
    ///
    /// # Errors
    ///
    /// When the kernel refuses, as for a process that is gone.
    pub fn attach_probe_at(&mut self, probe: Probe<'_>) -> Result<AttachedProbe, BpfError> {
        let program: &mut UProbe = self.program(ENTER)?;
        let point = UProbeAttachPoint {
            location: UProbeAttachLocation::AbsoluteOffset(probe.offset),
            cookie: Some(probe.cookie),
        };
        let scope = NonZeroU32::new(probe.pid).map_or(UProbeScope::AllProcesses, UProbeScope::OneProcess);
        // The file that is held open, whatever is at its path now.
        let path = format!("/proc/self/fd/{}", probe.file.as_raw_fd());
        let link = program.attach(point, path, scope).map_err(|cause| program_error("attach", ENTER, cause))?;
        let link = program.take_link(link).map_err(|cause| program_error("attach", ENTER, cause))?;
        Ok(AttachedProbe(link))
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

impl AttachedProbe {
    /// Takes probes away, all at once and without waiting for it.
    pub fn remove(probes: Vec<Self>) {
        // The kernel waits for all CPUs before it lets go of each.
        let each = probes.len().div_ceil(REMOVERS).max(1);
        let mut probes = probes.into_iter();
        loop {
            let part: Vec<Self> = probes.by_ref().take(each).collect();
            if part.is_empty() {
                return;
            }
            // Where there can be no thread, the drop is done here.
            let _ = std::thread::Builder::new().name("probes".to_owned()).spawn(move || drop(part));
        }
    }
}

/// Threads that take probes away.
const REMOVERS: usize = 8;
