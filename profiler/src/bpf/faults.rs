//! The events of page faults: two on every CPU that is online, of faults without and with input or output.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Instant;

use aya::programs::PerfEvent;
use profiler_common::fault::Fault;

use super::BpfError;
use super::load::{Kernel, program_error};
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
}

/// Running events.
#[derive(Debug)]
pub struct Faults {
    programs: FaultPrograms,
    /// By CPU and kind.
    events: BTreeMap<(u32, usize), Running>,
    /// Faults that were counted by events that are closed.
    gone: u64,
    highest_period: u64,
}

/// An event that runs.
#[derive(Debug)]
struct Running {
    event: Event,
    /// Of as many faults it passes one on.
    period: u64,
    /// What it had counted when it was last looked at, and when that was.
    seen: (u64, Instant),
}

/// Hits of an event that a CPU can take in a second: each takes some 0.7 us, most of it before our program runs.
const HITS_A_SECOND: u64 = 25_000;

/// Periods to choose from: primes, so that faults that follow each other in a pattern are not passed over for ever.
const PERIODS: [u64; 9] = [1, 3, 7, 13, 31, 61, 127, 251, 509];

/// The highest period that leaves as many hits as a CPU can take, of faults that come at a rate.
fn period_for(faults_a_second: u64) -> u64 {
    let fitting = faults_a_second / HITS_A_SECOND;
    PERIODS.into_iter().rfind(|&period| period <= fitting).unwrap_or(1)
}

impl Faults {
    /// Name of the events in reports.
    #[must_use]
    pub const fn name() -> &'static str {
        EVENTS
    }

    /// Opens an event of each kind, and closes it again.
    ///
    /// # Errors
    ///
    /// When one cannot be opened.
    pub fn try_open() -> Result<(), BpfError> {
        let cpu = online_cpus().ok().and_then(|cpus| cpus.first().copied()).unwrap_or(0);
        let open =
            |(_, config, _)| Event::open(attributes(config, 1), cpu).map(drop).map_err(|cause| failed(cpu, cause));
        KINDS.into_iter().try_for_each(open)
    }

    /// Opens and starts the events on every online CPU.
    ///
    /// # Errors
    ///
    /// When one cannot be opened, or not the program attached.
    pub fn start(programs: FaultPrograms) -> Result<Self, BpfError> {
        let mut faults = Self { programs, events: BTreeMap::new(), gone: 0, highest_period: 1 };
        faults.open_missing()?;
        Ok(faults)
    }

    /// Opens events on CPUs that have none.
    fn open_missing(&mut self) -> Result<(), BpfError> {
        for cpu in online_cpus().map_err(|cause| failed(0, cause))? {
            for kind in 0..KINDS.len() {
                if !self.events.contains_key(&(cpu, kind)) {
                    self.open(cpu, kind, 1)?;
                }
            }
        }
        Ok(())
    }

    /// Opens an event, in the place of the one that there may be.
    fn open(&mut self, cpu: u32, kind: usize, period: u64) -> Result<(), BpfError> {
        let start = || -> io::Result<Event> {
            let event = Event::open(attributes(KINDS[kind].1, period), cpu)?;
            event.set_program(self.programs.0[kind].as_fd())?;
            Ok(event)
        };
        match start() {
            Ok(event) => {
                // A fault that both see would be counted twice.
                self.gone += self.events.remove(&(cpu, kind)).map_or(0, Running::end);
                event.enable().map_err(|error| failed(cpu, error))?;
                self.events.insert((cpu, kind), Running { event, period, seen: (0, Instant::now()) });
                self.highest_period = self.highest_period.max(period);
                Ok(())
            }
            // The CPU went offline between the list and the call.
            Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Ok(()),
            Err(error) => Err(failed(cpu, error)),
        }
    }

    /// Follows CPUs that were plugged or unplugged, and how many faults there are. Call it once a window.
    ///
    /// # Errors
    ///
    /// When an event cannot be opened.
    pub fn follow(&mut self) -> Result<(), BpfError> {
        let online = online_cpus().map_err(|cause| failed(0, cause))?;
        let gone: Vec<_> = self.events.keys().filter(|(cpu, _)| !online.contains(cpu)).copied().collect();
        self.gone += gone.iter().filter_map(|at| self.events.remove(at)).map(Running::end).sum::<u64>();
        self.open_missing()?;
        let mut changes = Vec::new();
        for (&(cpu, kind), running) in &mut self.events {
            let (period, fitting) = (running.period, period_for(running.rate()));
            if fitting != period {
                changes.push((cpu, kind, fitting));
            }
        }
        changes.into_iter().try_for_each(|(cpu, kind, period)| self.open(cpu, kind, period))
    }

    /// The highest period there has been.
    #[must_use]
    pub const fn highest_period(&self) -> u64 {
        self.highest_period
    }

    /// How many faults there have been by the events' own count, of whatever task.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.gone + self.events.values().map(|running| running.event.count().unwrap_or(0)).sum::<u64>()
    }

    /// Stops the events and returns how many faults there were by their own count, of whatever task.
    #[must_use]
    pub fn stop(self) -> u64 {
        self.gone + self.events.into_values().map(Running::end).sum::<u64>()
    }
}

impl Running {
    /// Faults a second since it was last looked at.
    fn rate(&mut self) -> u64 {
        let (count, now) = (self.event.count().unwrap_or(0), Instant::now());
        let (before, then) = std::mem::replace(&mut self.seen, (count, now));
        let elapsed_ns = now.duration_since(then).as_nanos().max(1);
        let rate = u128::from(count.saturating_sub(before)) * 1_000_000_000 / elapsed_ns;
        u64::try_from(rate).unwrap_or(u64::MAX)
    }

    /// Ends it; returns how many faults it has counted.
    fn end(self) -> u64 {
        // An event that cannot be stopped ends when it is closed, just below.
        let _ = self.event.disable();
        self.event.count().unwrap_or(0)
    }
}

fn attributes(config: u64, period: u64) -> Attributes {
    Attributes {
        kind: TYPE_SOFTWARE,
        config,
        sample_period_or_frequency: period,
        flags: flag::DISABLED | flag::EXCLUDE_GUEST,
        ..Attributes::default()
    }
}

fn failed(cpu: u32, cause: io::Error) -> BpfError {
    match cause.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => BpfError::Permission("open perf events on every CPU"),
        _ => BpfError::PerfEvent { event: EVENTS, cpu, cause },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_period_leaves_as_many_hits_as_a_cpu_can_take() {
        for (rate, period) in [(0, 1), (74_999, 1), (75_000, 3), (1_000_000, 31), (u64::MAX, 509)] {
            assert_eq!(period_for(rate), period, "{rate}");
        }
    }
}
