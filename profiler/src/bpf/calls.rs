//! System calls: loads and attaches what records them, and reads what was counted exactly.

use aya::programs::RawTracePoint;
use aya::programs::raw_trace_point::RawTracePointLinkId;
use profiler_common::system_call::{CallKey, CallStats};

use super::BpfError;
use super::drain::Batch;
use super::load::{Kernel, program_error};
use super::pythons::PythonProgram;

/// The programs and their tracepoints: the exit first, so that every entry that is seen has its exit.
const HOOKS: [(&str, &str); 3] =
    [("syscall_exit", "sys_exit"), ("syscall_end", "sched_process_exit"), ("syscall_enter", "sys_enter")];

/// What is held of system calls.
pub(super) struct Calls {
    pub(super) stats: Batch<CallKey, CallStats>,
    /// The programs that are attached.
    pub(super) links: Vec<(&'static str, RawTracePointLinkId)>,
}

impl Kernel {
    /// Name of the hooks in reports.
    pub const CALL_HOOKS: &str = "sys_enter, sys_exit";

    /// Loads the programs that record system calls.
    ///
    /// # Errors
    ///
    /// When the verifier refuses one.
    pub(super) fn load_call_programs(&mut self) -> Result<(), BpfError> {
        self.pythons.expect(PythonProgram::SYSCALL);
        for (name, _) in HOOKS {
            let program: &mut RawTracePoint = self.program(name)?;
            program.load().map_err(|cause| program_error("load", name, cause))?;
        }
        Ok(())
    }

    /// Attaches what [`Kernel::load_call_programs`] has loaded.
    ///
    /// # Errors
    ///
    /// When the kernel has nothing to attach it to.
    pub(super) fn begin_calls(&mut self) -> Result<(), BpfError> {
        for (name, tracepoint) in HOOKS {
            let program: &mut RawTracePoint = self.program(name)?;
            let link = program.attach(tracepoint).map_err(|cause| program_error("attach", name, cause))?;
            self.calls.links.push((name, link));
        }
        Ok(())
    }

    /// Detaches it again: calls that end from now on are not counted.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub(super) fn end_calls(&mut self) -> Result<(), BpfError> {
        for (name, link) in std::mem::take(&mut self.calls.links) {
            let program: &mut RawTracePoint = self.program(name)?;
            program.detach(link).map_err(|cause| program_error("detach", name, cause))?;
        }
        Ok(())
    }

    /// What was counted so far of the calls of each kind.
    ///
    /// # Errors
    ///
    /// When the map cannot be read.
    pub fn call_stats(&self) -> Result<Vec<(CallKey, CallStats)>, BpfError> {
        self.calls.stats.read_all()
    }

    /// Forgets what was counted of calls that cannot come again.
    pub fn forget_call_stats(&self, key: &CallKey) {
        self.calls.stats.remove(key);
    }

    /// Calls that are in none of [`Kernel::call_stats`], for want of room.
    #[must_use]
    pub fn calls_uncounted(&self) -> u64 {
        self.calls_uncounted.get(&0, 0).unwrap_or(0)
    }

    /// The highest threshold there has been, ns: no call that took as long has been left out.
    #[must_use]
    pub fn highest_call_threshold_ns(&self) -> u64 {
        self.call_threshold.get(&0, 0).map_or(0, |threshold| threshold.0.highest_ns)
    }
}
