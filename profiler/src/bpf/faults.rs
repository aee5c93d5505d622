//! The events of page faults: two on every CPU that is online, of faults without and with input or output.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use aya::programs::PerfEvent;
use profiler_common::fault::Fault;

use super::BpfError;
use super::load::{Kernel, Shared, program_error};
use super::perf::{Attributes, Event, SOFTWARE_PAGE_FAULTS_MAJ, SOFTWARE_PAGE_FAULTS_MIN, TYPE_SOFTWARE, flag};
use super::pythons::PythonProgram;
use super::sampler::online_cpus;

/// Name of the events in reports, which is perf's.
const EVENTS: &str = "minor-faults, major-faults";

/// The kinds of fault, the event that each has, and the program that takes it.
const KINDS: [(Fault, u64, &str); 2] =
    [(Fault::Minor, SOFTWARE_PAGE_FAULTS_MIN, "fault_minor"), (Fault::Major, SOFTWARE_PAGE_FAULTS_MAJ, "fault_major")];

/// The programs that take faults, by kind.
#[derive(Debug)]
pub struct FaultPrograms([OwnedFd; KINDS.len()]);

impl Kernel {
    /// Loads the programs that take page faults and returns them, to be attached by [`Faults::start`].
    ///
    /// # Errors
    ///
    /// When the verifier refuses one.
    pub fn load_fault_programs(&mut self) -> Result<FaultPrograms, BpfError> {
        let mut load = |name| {
            let program: &mut PerfEvent = self.program(name)?;
            let failed = |cause| program_error("load", name, cause);
            program.load().map_err(failed)?;
            let fd = program.fd().map_err(failed)?.as_fd().try_clone_to_owned();
            fd.map_err(|error| BpfError::map("duplicate", name, error))
        };
        let programs = FaultPrograms([load(KINDS[0].2)?, load(KINDS[1].2)?]);
        self.pythons.expect(PythonProgram::FAULT);
        Ok(programs)
    }

    /// The most faults that one in the profile counts for: 1 when all of them are in it.
    ///
    /// # Errors
    ///
    /// When the map cannot be read.
    pub fn highest_fault_weight(&self) -> Result<u64, BpfError> {
        let mut highest = 1;
        for (kind, ..) in KINDS {
            let by_cpu = self.fault_pace.get(&(u32::from(kind as u16) - 1), 0);
            let by_cpu = by_cpu.map_err(|error| BpfError::map("read", "FAULT_PACE", error))?;
            highest = by_cpu.iter().map(|Shared(pace)| pace.highest_weight).fold(highest, u64::max);
        }
        Ok(highest)
    }
}

/// Running events.
#[derive(Debug)]
pub struct Faults {
    programs: FaultPrograms,
    events: BTreeMap<u32, [Event; KINDS.len()]>,
    /// Faults on CPUs that have gone.
    gone: u64,
}

impl Faults {
    /// Name of the events in reports.
    #[must_use]
    pub const fn name() -> &'static str {
        EVENTS
    }

    /// Opens and starts the events on every online CPU.
    ///
    /// # Errors
    ///
    /// When one cannot be opened, or not the program attached.
    pub fn start(programs: FaultPrograms) -> Result<Self, BpfError> {
        let mut faults = Self { programs, events: BTreeMap::new(), gone: 0 };
        for cpu in online_cpus().map_err(|cause| failed(0, cause))? {
            faults.open(cpu)?;
        }
        Ok(faults)
    }

    fn open(&mut self, cpu: u32) -> Result<(), BpfError> {
        let start = |kind: usize| -> io::Result<Event> {
            let event = Event::open(attributes(KINDS[kind].1), cpu)?;
            event.set_program(self.programs.0[kind].as_fd())?;
            event.enable()?;
            Ok(event)
        };
        match start(0).and_then(|minor| Ok([minor, start(1)?])) {
            Ok(events) => drop(self.events.insert(cpu, events)),
            // The CPU went offline between the list and the call.
            Err(error) if error.raw_os_error() == Some(libc::ENODEV) => {}
            Err(error) => return Err(failed(cpu, error)),
        }
        Ok(())
    }

    /// Follows CPUs that were plugged or unplugged. Call it once a window.
    ///
    /// # Errors
    ///
    /// When a new CPU's events cannot be opened.
    pub fn follow_cpus(&mut self) -> Result<(), BpfError> {
        let online = online_cpus().map_err(|cause| failed(0, cause))?;
        let known: Vec<u32> = self.events.keys().copied().collect();
        for cpu in known.into_iter().filter(|cpu| !online.contains(cpu)) {
            self.gone += self.events.remove(&cpu).as_ref().map_or(0, count);
        }
        for cpu in online {
            if !self.events.contains_key(&cpu) {
                self.open(cpu)?;
            }
        }
        Ok(())
    }

    /// Stops the events and returns how many faults there were by their own count, of whatever task.
    #[must_use]
    pub fn stop(self) -> u64 {
        for event in self.events.values().flatten() {
            // An event that cannot be stopped ends when it is closed, just below.
            let _ = event.disable();
        }
        self.gone + self.events.values().map(count).sum::<u64>()
    }
}

/// Each fault runs the program: which of them are kept is decided there, so that all are counted.
fn attributes(config: u64) -> Attributes {
    Attributes {
        kind: TYPE_SOFTWARE,
        config,
        sample_period_or_frequency: 1,
        flags: flag::DISABLED | flag::EXCLUDE_GUEST,
        ..Attributes::default()
    }
}

fn count(events: &[Event; KINDS.len()]) -> u64 {
    events.iter().map(|event| event.count().unwrap_or(0)).sum()
}

fn failed(cpu: u32, cause: io::Error) -> BpfError {
    match cause.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => BpfError::Permission("open perf events on every CPU"),
        _ => BpfError::PerfEvent { event: EVENTS, cpu, cause },
    }
}
