//! What can go wrong between us and the kernel, with what to do about it.

use std::io;

use thiserror::Error;

/// An error of the kernel side. The text names what was tried and the remedy.
#[derive(Debug, Error)]
pub enum BpfError {
    /// Not root, and without the capabilities that would do.
    #[error(
        "not permitted to {0}: run as root, or with CAP_BPF and CAP_PERFMON (and, to name every frame, CAP_SYSLOG, \
         CAP_SYS_PTRACE, CAP_DAC_READ_SEARCH and CAP_CHECKPOINT_RESTORE); inside a container these must be granted to it"
    )]
    Permission(&'static str),
    /// The kernel publishes no types.
    #[error(
        "cannot read the kernel's types from {path}: {reason}; a kernel built with CONFIG_DEBUG_INFO_BTF=y is needed \
         (Linux 5.8 or later of any major distribution has it)"
    )]
    NoBtf {
        /// Where they were looked for.
        path: String,
        /// Why they could not be read.
        reason: String,
    },
    /// The kernel's types lack a field.
    #[error("this kernel's {structure} has no field {field}: please report it with `uname -r`")]
    NoField {
        /// The structure.
        structure: &'static str,
        /// The field.
        field: &'static str,
    },
    /// The kernel is older than the oldest that runs the programs.
    #[error(
        "this kernel has no bpf_task_pt_regs, the registers with which a task left user space: run Linux 5.15 or later"
    )]
    TooOld,
    /// Nothing shows when a thread comes back to a CPU.
    #[error(
        "this kernel has neither the tracepoint sched_exit_tp (Linux 6.15) nor kprobes (CONFIG_KPROBES=y): time off the \
         CPU cannot be recorded here; -e cpu can"
    )]
    NoWaits,
    /// Nothing shows what is sent and received.
    #[error(
        "this kernel has neither the tracepoints sock_send_length and sock_recv_length (Linux 6.3) nor the function \
         inet_sendmsg: sockets cannot be recorded here; -e syscall shows the calls"
    )]
    NoNet,
    /// The tracepoints of system calls cannot be attached to.
    #[error(
        "cannot attach to the tracepoints of system calls: {0}; that needs root, or CAP_PERFMON and a readable \
         /sys/kernel/tracing, and a kernel built with CONFIG_FTRACE_SYSCALLS=y; without them there is no -e fileio"
    )]
    NoTracepoints(io::Error),
    /// There are no probes of user space.
    #[error("this kernel has no uprobes (CONFIG_UPROBES=y): allocations cannot be recorded here; -e cpu can")]
    NoUprobes,
    /// The process that holds the probes cannot be started.
    #[error("cannot start the process that holds probes: {0}")]
    NoHolder(io::Error),
    /// It was killed.
    #[error("the process that holds the probes was killed")]
    HolderGone,
    /// A probe cannot be put in its place.
    #[error("cannot put a probe into a file of the target: {0}")]
    Probe(io::Error),
    /// A program for the returns of functions does not load.
    #[error("cannot load a BPF program for sessions of uprobes: {0}")]
    Session(String),
    /// The object does not load.
    #[error("cannot load the BPF object: {0}")]
    Load(Box<aya::EbpfError>),
    /// A program does not load or attach.
    #[error("cannot {action} BPF program {program}: {}", ending(cause))]
    Program {
        /// `load` or `attach`.
        action: &'static str,
        /// Which one.
        program: &'static str,
        /// The kernel's answer, with the verifier's log.
        cause: Box<aya::programs::ProgramError>,
    },
    /// The object lacks something that this version expects.
    #[error("the BPF object has no {0}: it belongs to another version; unset PROFILER_BPF_OBJECT or rebuild it")]
    Missing(&'static str),
    /// A map operation failed.
    #[error("cannot {action} BPF map {map}: {cause}")]
    Map {
        /// What was tried.
        action: &'static str,
        /// On which map.
        map: &'static str,
        /// The kernel's answer.
        cause: io::Error,
    },
    /// A perf event does not open.
    #[error("cannot open perf event {event} on CPU {cpu}: {cause}")]
    PerfEvent {
        /// Which one.
        event: &'static str,
        /// Where.
        cpu: u32,
        /// The kernel's answer.
        cause: io::Error,
    },
}

impl BpfError {
    /// An error of a map operation.
    pub(super) fn map(action: &'static str, map: &'static str, error: impl std::fmt::Display) -> Self {
        Self::Map { action, map, cause: io::Error::other(error.to_string()) }
    }
}

/// Lines of the verifier's log that an error shows: its verdict is at the end.
const LOG_LINES: usize = 12;

/// An error's text; of the verifier's log only the end. Long before that, nobody reads it on a terminal.
fn ending(error: &aya::programs::ProgramError) -> String {
    let text = error.to_string();
    let (said, log) = text.split_once("Verifier output: ").unwrap_or((&text, ""));
    let lines: Vec<&str> = log.lines().filter(|line| !line.trim().is_empty()).collect();
    let mut ending = said.to_owned();
    for line in &lines[lines.len().saturating_sub(LOG_LINES)..] {
        ending.push_str("\n    ");
        ending.push_str(line);
    }
    ending
}
