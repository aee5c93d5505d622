//! The sampling events: one on every CPU that is online, whatever comes and goes.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use profiler_common::counters::Counters;

use super::BpfError;
use super::perf::{Attributes, Event, HARDWARE_CYCLES, SOFTWARE_CPU_CLOCK, TYPE_HARDWARE, TYPE_SOFTWARE, flag};

const NS_PER_SECOND: u64 = 1_000_000_000;

/// What is counted to time the samples.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SamplingEvent {
    /// Hardware cycles, at a frequency the kernel keeps.
    Cycles,
    /// The CPU clock, where the machine has no PMU.
    CpuClock,
}

impl SamplingEvent {
    /// Its name in reports, which is perf's.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Cycles => "cycles",
            Self::CpuClock => "cpu-clock",
        }
    }

    /// The best one this machine has.
    #[must_use]
    pub fn detect() -> Self {
        let cpu = online_cpus().ok().and_then(|cpus| cpus.first().copied()).unwrap_or(0);
        match Event::open(Self::Cycles.attributes(99), cpu) {
            Ok(_) => Self::Cycles,
            Err(_) => Self::CpuClock,
        }
    }

    /// Its period in ns at a rate; 0 when the kernel varies it.
    #[must_use]
    pub fn period_ns(self, rate_hz: u64) -> u64 {
        match self {
            Self::Cycles => 0,
            Self::CpuClock => NS_PER_SECOND / rate_hz.max(1),
        }
    }

    fn attributes(self, rate_hz: u64) -> Attributes {
        let flags = flag::DISABLED | flag::EXCLUDE_GUEST;
        match self {
            Self::Cycles => Attributes {
                kind: TYPE_HARDWARE,
                config: HARDWARE_CYCLES,
                sample_period_or_frequency: rate_hz,
                flags: flags | flag::FREQUENCY,
                ..Attributes::default()
            },
            Self::CpuClock => Attributes {
                kind: TYPE_SOFTWARE,
                config: SOFTWARE_CPU_CLOCK,
                sample_period_or_frequency: self.period_ns(rate_hz),
                // Its timer goes on when a CPU is idle: this keeps the program, and throttling, out of it.
                flags: flags | flag::EXCLUDE_IDLE,
                ..Attributes::default()
            },
        }
    }
}

/// Running sampling events.
#[derive(Debug)]
pub struct Sampler {
    event: SamplingEvent,
    rate_hz: u64,
    program: OwnedFd,
    events: BTreeMap<u32, Event>,
    /// Counts of the events of CPUs that have gone, by the same rule as [`Sampler::stop`].
    gone: Counted,
    /// What was told of the counts before.
    told: Counted,
    /// Idle time of all CPUs when sampling began, or when it was told last.
    idle_before_ns: u64,
    /// CPUs that came or went while sampling.
    pub cpus_changed: u32,
}

/// What the events counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Counted {
    /// In the event's unit.
    total: u64,
    /// Whole periods, with a fixed period.
    periods: u64,
}

impl Sampler {
    /// Opens and starts an event on every online CPU.
    ///
    /// # Errors
    ///
    /// When no event can be opened on any CPU, or not the program attached.
    pub fn start(event: SamplingEvent, rate_hz: u64, program: OwnedFd) -> Result<Self, BpfError> {
        let mut sampler = Self {
            event,
            rate_hz,
            program,
            events: BTreeMap::new(),
            gone: Counted::default(),
            told: Counted::default(),
            idle_before_ns: 0,
            cpus_changed: 0,
        };
        let cpus = online_cpus().map_err(|cause| sampler.failed(0, cause))?;
        for cpu in cpus {
            sampler.open(cpu)?;
        }
        sampler.idle_before_ns = settled_idle_ns();
        Ok(sampler)
    }

    fn failed(&self, cpu: u32, cause: io::Error) -> BpfError {
        match cause.raw_os_error() {
            Some(libc::EPERM | libc::EACCES) => BpfError::Permission("open perf events on every CPU"),
            _ => BpfError::PerfEvent { event: self.event.name(), cpu, cause },
        }
    }

    fn open(&mut self, cpu: u32) -> Result<(), BpfError> {
        let start = || -> io::Result<Event> {
            let event = Event::open(self.event.attributes(self.rate_hz), cpu)?;
            event.set_program(self.program.as_fd())?;
            event.enable()?;
            Ok(event)
        };
        match start() {
            Ok(event) => drop(self.events.insert(cpu, event)),
            // The CPU went offline between the list and the call.
            Err(error) if error.raw_os_error() == Some(libc::ENODEV) => self.cpus_changed += 1,
            Err(error) => return Err(self.failed(cpu, error)),
        }
        Ok(())
    }

    /// Follows CPUs that were plugged or unplugged. Call it once a window.
    ///
    /// # Errors
    ///
    /// As for [`Sampler::start`].
    pub fn follow_cpus(&mut self) -> Result<(), BpfError> {
        let Ok(online) = online_cpus() else { return Ok(()) };
        let gone: Vec<u32> = self.events.keys().filter(|cpu| !online.contains(cpu)).copied().collect();
        for cpu in gone {
            if let Some(event) = self.events.remove(&cpu) {
                self.gone.add(self.counted(&event));
                self.cpus_changed += 1;
            }
        }
        for cpu in online {
            if !self.events.contains_key(&cpu) {
                self.open(cpu)?;
                self.cpus_changed += 1;
            }
        }
        Ok(())
    }

    fn counted(&self, event: &Event) -> Counted {
        let total = event.count().unwrap_or(0);
        Counted { total, periods: total / self.period_ns() }
    }

    fn period_ns(&self) -> u64 {
        (NS_PER_SECOND / self.rate_hz.max(1)).max(1)
    }

    /// Samples so often from now on.
    ///
    /// # Errors
    ///
    /// As for [`Sampler::start`].
    pub fn set_rate(&mut self, rate_hz: u64) -> Result<(), BpfError> {
        if rate_hz == self.rate_hz {
            return Ok(());
        }
        for (_, event) in std::mem::take(&mut self.events) {
            let _ = event.disable();
            self.gone.add(self.counted(&event));
        }
        self.rate_hz = rate_hz;
        let cpus = online_cpus().map_err(|cause| self.failed(0, cause))?;
        cpus.into_iter().try_for_each(|cpu| self.open(cpu))
    }

    /// What the events' own counts say there was since the last call, or the start; they go on.
    pub fn since_last(&mut self) -> Counts {
        self.counts(idle_ns())
    }

    /// Stops sampling and returns what the events' own counts say there was since [`Sampler::since_last`].
    pub fn stop(mut self) -> Counts {
        for event in self.events.values() {
            // An event that cannot be stopped ends when it is closed, just below.
            let _ = event.disable();
        }
        self.counts(settled_idle_ns())
    }

    fn counts(&mut self, idle_now_ns: u64) -> Counts {
        let mut counted = self.gone;
        for event in self.events.values() {
            counted.add(self.counted(event));
        }
        let idle_ns = idle_now_ns.saturating_sub(self.idle_before_ns);
        let since = Counted {
            total: counted.total.saturating_sub(self.told.total),
            periods: counted.periods.saturating_sub(self.told.periods),
        };
        (self.told, self.idle_before_ns) = (counted, idle_now_ns);
        Counts { event: self.event, counted: since, idle_periods: idle_ns / self.period_ns() }
    }
}

/// What the sampling events of a recording counted.
#[derive(Clone, Copy, Debug)]
pub struct Counts {
    event: SamplingEvent,
    counted: Counted,
    /// Periods of the CPU clock that passed on idle CPUs.
    idle_periods: u64,
}

impl Counts {
    /// How many times the program should have run.
    ///
    /// The CPU clock has a fixed period and goes on counting on an idle CPU, where no samples are taken. What is
    /// missing between two hits on a task that ran all the time was not delivered; what is missing otherwise was idle
    /// time. Cycles do not count on an idle CPU, but have a period that the kernel varies: their count is divided by
    /// the mean period of the samples that came.
    #[expect(clippy::cast_precision_loss, reason = "a ratio of counts, shown to four digits")]
    #[must_use]
    pub fn expected(&self, counters: &Counters) -> f64 {
        match self.event {
            SamplingEvent::CpuClock => counters.hits as f64 + counters.missed as f64,
            SamplingEvent::Cycles if counters.period_sum > 0 => {
                self.counted.total as f64 / (counters.period_sum as f64 / counters.hits as f64)
            }
            SamplingEvent::Cycles => 0.0,
        }
    }

    /// Periods by the kernel's own count, on busy and idle CPUs; 0 for an event without a fixed period.
    #[must_use]
    pub fn periods(&self) -> u64 {
        if self.event == SamplingEvent::CpuClock { self.counted.periods } else { 0 }
    }

    /// Periods that passed while CPUs were idle, by the idle time the kernel keeps.
    #[must_use]
    pub fn idle_periods(&self) -> u64 {
        self.idle_periods
    }
}

impl Counted {
    fn add(&mut self, other: Self) {
        self.total += other.total;
        self.periods += other.periods;
    }
}

/// [`idle_ns`], just after every CPU was interrupted to open or stop its event.
///
/// A CPU counts its idle time when it wakes up, which takes some us after the interrupt. What is idle in the ms that
/// is waited here is less than one sample.
fn settled_idle_ns() -> u64 {
    std::thread::sleep(Duration::from_millis(1));
    idle_ns()
}

/// Time all CPUs together have been idle since boot, in ns.
///
/// cpuidle's own figures where they are kept, in us: they count the interrupts that come in an idle state as idle, and
/// our own timer is one. Otherwise those of /proc/stat, in 10 ms, which do not.
/// Source: Documentation/admin-guide/pm/cpuidle.rst; Documentation/filesystems/proc.rst, section 1.7.
fn idle_ns() -> u64 {
    let by_state = online_cpus().unwrap_or_default().into_iter().flat_map(|cpu| {
        let directory = format!("/sys/devices/system/cpu/cpu{cpu}/cpuidle");
        fs::read_dir(directory).into_iter().flatten().flatten()
    });
    let times = by_state.filter_map(|state| fs::read_to_string(state.path().join("time")).ok()?.trim().parse().ok());
    let sum: Option<u64> = times.map(|us: u64| us.saturating_mul(1_000)).reduce(u64::saturating_add);
    sum.unwrap_or_else(idle_ns_of_stat)
}

fn idle_ns_of_stat() -> u64 {
    let text = fs::read_to_string("/proc/stat").unwrap_or_default();
    let mut ticks = text.lines().next().unwrap_or_default().split_ascii_whitespace().skip(4);
    let mut next = || ticks.next().and_then(|word| word.parse::<u64>().ok()).unwrap_or(0);
    // SAFETY: takes a number.
    let hz = u64::try_from(unsafe { libc::sysconf(libc::_SC_CLK_TCK) }).unwrap_or(100).max(1);
    (next() + next()).saturating_mul(NS_PER_SECOND / hz)
}

/// The CPUs that are online.
///
/// # Errors
///
/// When /sys is not mounted.
pub fn online_cpus() -> io::Result<Vec<u32>> {
    let list = fs::read_to_string("/sys/devices/system/cpu/online")?;
    parse_cpu_list(&list).ok_or_else(|| io::Error::other(format!("unreadable CPU list {list:?}")))
}

/// `0-3,8,10-11`. Source: Documentation/admin-guide/cputopology.rst.
fn parse_cpu_list(list: &str) -> Option<Vec<u32>> {
    let mut cpus = Vec::new();
    for part in list.trim().split(',').filter(|part| !part.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        cpus.extend(first.parse::<u32>().ok()?..=last.parse().ok()?);
    }
    Some(cpus)
}

/// The highest sampling rate the kernel allows, Hz.
#[must_use]
pub fn max_sample_rate() -> u64 {
    let setting = fs::read_to_string("/proc/sys/kernel/perf_event_max_sample_rate");
    // The kernel's own default, where the setting cannot be read.
    setting.ok().and_then(|text| text.trim().parse().ok()).unwrap_or(100_000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_lists_are_read() {
        assert_eq!(parse_cpu_list("0-2,5\n"), Some(vec![0, 1, 2, 5]));
        assert_eq!(parse_cpu_list("\n"), Some(vec![]));
        assert_eq!(parse_cpu_list("a-b"), None);
    }
}
