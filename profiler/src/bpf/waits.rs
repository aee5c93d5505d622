//! Time off the CPU: loads and attaches what records waits, and reads the threads that wait when a recording ends.

use std::fs;
use std::io::Read;
use std::ops::Range;

use aya::programs::kprobe::KProbeLinkId;
use aya::programs::raw_trace_point::RawTracePointLinkId;
use aya::programs::{Iter, KProbe, RawTracePoint};
use aya::{Btf, Endianness};
use profiler_common::config::Control;
use profiler_common::unwind::LEAF_REGISTERS;
use profiler_common::wait::{LockKey, LockWaits, WaitingRecord};

use super::BpfError;
use super::kernel_types::{WaitHooks, read_wait_hooks};
use super::load::{Kernel, Shared, program_error};
use super::pythons::PythonProgram;

/// A thread that is there when a recording has ended.
#[derive(Clone, Debug)]
pub struct Waiting {
    /// What is known of it.
    pub record: WaitingRecord,
    /// Its kernel chain, leaf first; empty when it runs.
    pub kernel: Vec<u64>,
}

/// The program that sees a thread that has come back by a probe.
const PROBE: &str = "offcpu_in_probe";

/// The programs that record waits, as they are attached.
#[derive(Default)]
pub(super) struct WaitLinks {
    tracepoints: Vec<(&'static str, RawTracePointLinkId)>,
    probe: Option<KProbeLinkId>,
}

/// What sees a thread that has come back to a CPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WaitHook {
    /// A tracepoint of the scheduler.
    Tracepoint,
    /// A probe of a function of it, before Linux 6.15.
    Probe,
}

impl WaitHook {
    /// Its name in reports.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tracepoint => "sched_switch, sched_exit_tp",
            Self::Probe => "sched_switch, finish_task_switch",
        }
    }

    /// The best one of this kernel.
    ///
    /// # Errors
    ///
    /// When it publishes no types, or has neither the tracepoint nor probes.
    pub fn detect() -> Result<Self, BpfError> {
        if read_wait_hooks()?.exit_tracepoint {
            return Ok(Self::Tracepoint);
        }
        // Source: kernel/events/core.c, the directory of the PMU that aya attaches kprobes with.
        if fs::exists("/sys/bus/event_source/devices/kprobe").unwrap_or(false) {
            Ok(Self::Probe)
        } else {
            Err(BpfError::NoWaits)
        }
    }
}

impl Kernel {
    /// Loads the programs that record waits, and who ends them.
    ///
    /// # Errors
    ///
    /// When the verifier refuses one, or the kernel has nothing to attach it to.
    pub fn record_waits(&mut self, wakers: bool) -> Result<WaitHook, BpfError> {
        let hook = WaitHook::detect()?;
        match hook {
            WaitHook::Tracepoint => {
                self.pythons.expect(PythonProgram::OFF_CPU);
                self.load_tracepoint("offcpu_in")?;
            }
            WaitHook::Probe => {
                self.pythons.expect(PythonProgram::OFF_CPU_PROBE);
                let program: &mut KProbe = self.program(PROBE)?;
                program.load().map_err(|cause| program_error("load", PROBE, cause))?;
            }
        }
        self.load_tracepoint("offcpu_out")?;
        if wakers {
            self.load_tracepoint("offcpu_wake")?;
        }
        Ok(hook)
    }

    fn load_tracepoint(&mut self, name: &'static str) -> Result<(), BpfError> {
        let program: &mut RawTracePoint = self.program(name)?;
        program.load().map_err(|cause| program_error("load", name, cause))
    }

    /// Attaches what [`Kernel::record_waits`] has loaded, and begins.
    ///
    /// # Errors
    ///
    /// When the kernel has nothing to attach it to.
    pub fn begin_waits(&mut self, hook: WaitHook, wakers: bool) -> Result<(), BpfError> {
        if wakers {
            self.attach_tracepoint("offcpu_wake", "sched_waking")?;
        }
        self.attach_tracepoint("offcpu_out", "sched_switch")?;
        match hook {
            WaitHook::Tracepoint => self.attach_tracepoint("offcpu_in", "sched_exit_tp")?,
            WaitHook::Probe => self.attach_probe()?,
        }
        self.begin_recorded()
    }

    /// Begins the time that is recorded.
    pub(super) fn begin_recorded(&mut self) -> Result<(), BpfError> {
        let control = Control {
            began_ns: clock_ns(libc::CLOCK_MONOTONIC),
            began_since_boot_ns: clock_ns(libc::CLOCK_BOOTTIME),
            ended_ns: u64::MAX,
            ..self.controlled
        };
        self.write_control(control)
    }

    fn attach_tracepoint(&mut self, name: &'static str, tracepoint: &str) -> Result<(), BpfError> {
        let program: &mut RawTracePoint = self.program(name)?;
        let link = program.attach(tracepoint).map_err(|cause| program_error("attach", name, cause))?;
        self.wait_links.tracepoints.push((name, link));
        Ok(())
    }

    /// Detaches what [`Kernel::begin_waits`] has attached, which may be called again: a wait that goes on then counts from that
    /// moment on.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub fn pause_waits(&mut self) -> Result<(), BpfError> {
        let WaitLinks { tracepoints, probe } = std::mem::take(&mut self.wait_links);
        if let Some(link) = probe {
            let program: &mut KProbe = self.program(PROBE)?;
            program.detach(link).map_err(|cause| program_error("detach", PROBE, cause))?;
        }
        for (name, link) in tracepoints.into_iter().rev() {
            let program: &mut RawTracePoint = self.program(name)?;
            program.detach(link).map_err(|cause| program_error("detach", name, cause))?;
        }
        Ok(())
    }

    /// Attaches the kprobe under the function's name, which compilers add to: `finish_task_switch.isra.0`.
    fn attach_probe(&mut self) -> Result<(), BpfError> {
        const FUNCTION: &str = "finish_task_switch";
        let program: &mut KProbe = self.program(PROBE)?;
        let mut attached = program.attach(FUNCTION, 0);
        if attached.is_err() {
            let symbols = fs::read_to_string("/proc/kallsyms").unwrap_or_default();
            let names = symbols.lines().filter_map(|line| line.split_ascii_whitespace().nth(2));
            let mut longer = names.filter(|name| name.strip_prefix(FUNCTION).is_some_and(|rest| rest.starts_with('.')));
            if let Some(link) = longer.find_map(|name| program.attach(name, 0).ok()) {
                attached = Ok(link);
            }
        }
        self.wait_links.probe = Some(attached.map_err(|cause| program_error("attach", PROBE, cause))?);
        Ok(())
    }

    /// The threads that are there and were asked for. Those that wait may do so since before the recording began. Each
    /// wait is given out once: it is not counted when the thread comes back.
    ///
    /// # Errors
    ///
    /// When the kernel's iterator cannot be loaded or read.
    pub fn take_waiting(&mut self) -> Result<Vec<Waiting>, BpfError> {
        const NAME: &str = "offcpu_waiting";
        let WaitHooks { task_iterator, .. } = read_wait_hooks()?;
        let number = task_iterator.ok_or(BpfError::NoField { structure: "bpf_iter_task", field: "(itself)" })?;
        let types = types_with(number, "bpf_iter_task").map_err(|cause| program_error("load", NAME, cause.into()))?;
        let program: &mut Iter = self.program(NAME)?;
        program.load("task", &types).map_err(|cause| program_error("load", NAME, cause))?;
        let link = program.attach().and_then(|id| program.take_link(id));
        let link = link.map_err(|cause| program_error("attach", NAME, cause))?;
        let mut file = link.into_file().map_err(|cause| BpfError::map("open", NAME, cause))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).map_err(|error| BpfError::map("read", NAME, error))?;
        Ok(parse(&bytes))
    }

    /// The locks that were waited for, with who ended the waits; and the waits that there was no room for.
    ///
    /// # Errors
    ///
    /// When the map cannot be read.
    pub fn locks(&self) -> Result<(Vec<(LockKey, LockWaits)>, u64), BpfError> {
        let locks = self.locks.iter().map(|entry| entry.map(|(key, waits)| (key.0, waits.0)));
        let locks = locks.collect::<Result<_, _>>().map_err(|error| BpfError::map("read", "LOCKS", error))?;
        Ok((locks, self.locks_missed.get(&0, 0).unwrap_or(0)))
    }

    /// Forgets a lock of a process that has ended.
    pub fn forget_lock(&mut self, key: &LockKey) {
        let _ = self.locks.remove(&Shared(*key));
    }

    /// When waits were recorded, by the monotonic clock, ns.
    #[must_use]
    pub const fn recorded(&self) -> Range<u64> {
        self.controlled.began_ns..self.controlled.ended_ns
    }

    /// The monotonic time of a moment since boot, ns; they differ by the time for which the host was suspended.
    #[must_use]
    pub const fn monotonic(&self, since_boot_ns: u64) -> u64 {
        let Control { began_ns, began_since_boot_ns, .. } = self.controlled;
        (since_boot_ns + began_ns).saturating_sub(began_since_boot_ns)
    }

    /// Ends the recording of waits: time that passes from now on is not counted.
    ///
    /// # Errors
    ///
    /// When a map cannot be written.
    pub fn end_waits(&mut self) -> Result<(), BpfError> {
        self.write_control(Control { ended_ns: clock_ns(libc::CLOCK_MONOTONIC), ..self.controlled })
    }

    pub(super) fn write_control(&mut self, control: Control) -> Result<(), BpfError> {
        self.controlled = control;
        self.control.set(0, Shared(control), 0).map_err(|error| BpfError::map("write", "CONTROL", error))
    }

    /// The highest threshold there has been, ns: no wait that was as long has been left out.
    #[must_use]
    pub fn highest_threshold_ns(&self) -> u64 {
        self.threshold.get(&0, 0).map_or(0, |Shared(threshold)| threshold.highest_ns)
    }
}

/// Now, ns, by the clock that the programs take times from.
#[must_use]
pub fn monotonic_ns() -> u64 {
    clock_ns(libc::CLOCK_MONOTONIC)
}

/// Now, by one of the kernel's clocks.
pub(super) fn clock_ns(clock: libc::clockid_t) -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the call fills the structure; these clocks are always there.
    unsafe { libc::clock_gettime(clock, &raw mut time) };
    time.tv_sec.unsigned_abs() * 1_000_000_000 + time.tv_nsec.unsigned_abs()
}

/// Types in which a function has this number: aya takes it from there, and reading all of the kernel's own, which it
/// offers, takes 30 MB.
///
/// The types before it are pointers to nothing. Source: Documentation/bpf/btf.rst, section 2.
fn types_with(number: u32, function: &str) -> Result<Btf, aya::BtfError> {
    const HEADER_BYTES: u32 = 24;
    const POINTER: [u32; 3] = [0, 2 << 24, 0];
    // Its name is the string at 1; the type it has does not matter.
    const FUNCTION: [u32; 3] = [1, 12 << 24, 0];
    let types: Vec<u8> = std::iter::repeat_n(POINTER, number.saturating_sub(1) as usize)
        .chain([FUNCTION])
        .flatten()
        .flat_map(u32::to_le_bytes)
        .collect();
    let strings = [b"\0", function.as_bytes(), b"\0"].concat();
    let length = |bytes: &[u8]| u32::try_from(bytes.len()).unwrap_or(u32::MAX);
    let header = [HEADER_BYTES, 0, length(&types), length(&types), length(&strings)];
    let mut bytes = vec![0x9f, 0xeb, 1, 0];
    bytes.extend(header.into_iter().flat_map(u32::to_le_bytes));
    bytes.extend(types);
    bytes.extend(strings);
    Btf::parse(&bytes, Endianness::default())
}

/// Reads the records one after another; what is cut off is left out.
fn parse(mut bytes: &[u8]) -> Vec<Waiting> {
    let mut all = Vec::new();
    while let Some(record) = bytes.get(..size_of::<WaitingRecord>()) {
        // SAFETY: the structure is made of integers, and there are as many bytes.
        let record: WaitingRecord = unsafe { record.as_ptr().cast::<WaitingRecord>().read_unaligned() };
        bytes = &bytes[size_of::<WaitingRecord>()..];
        let Some(words) = bytes.get(..8 * record.kernel_frames as usize) else { break };
        bytes = &bytes[words.len()..];
        let kernel = words.as_chunks::<8>().0.iter().map(|word| u64::from_ne_bytes(*word)).collect();
        all.push(Waiting { record, kernel });
    }
    all
}

impl Waiting {
    /// Its registers by their DWARF number.
    #[must_use]
    pub const fn registers(&self) -> &[u64; LEAF_REGISTERS] {
        &self.record.registers
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_type_comes_after_as_many_as_its_number_asks_for() {
        for number in [1, 2, 64_247] {
            let types = types_with(number, "bpf_iter_task").unwrap();
            assert_eq!(types.to_bytes().len(), 24 + 12 * number as usize + "-bpf_iter_task-".len());
        }
    }

    #[test]
    fn records_follow_each_other() {
        let record = WaitingRecord { tid: 7, kernel_frames: 2, ..WaitingRecord::default() };
        // SAFETY: the structure is made of integers and has no padding.
        let one: [u8; size_of::<WaitingRecord>()] = unsafe { std::mem::transmute(record) };
        let mut bytes = one.to_vec();
        bytes.extend([5_u64, 6].into_iter().flat_map(u64::to_ne_bytes));
        let first = bytes.clone();
        bytes.extend(first.iter());
        let found = parse(&bytes);
        assert_eq!((found.len(), found[1].record.tid, &found[1].kernel[..]), (2, 7, &[5, 6][..]));
        assert_eq!(parse(&bytes[..bytes.len() - 1]).len(), 1);
    }
}
