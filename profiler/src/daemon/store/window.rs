//! A window of the history: how its directory is called, and what is known of it without reading its profiles.

use std::collections::BTreeMap;

use jiff::Timestamp;
use profiler_common::event::Origin;
use serde::{Deserialize, Serialize};

use crate::profile::{Capture, Column};

/// What tells windows apart: start, length and the run of the daemon that recorded it. Windows of one run do not overlap
/// but where one is made of others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct WindowKey {
    /// Start, ns since the Unix epoch.
    pub started_at_ns: u64,
    /// Length, ns.
    pub duration_ns: u64,
    /// A number of the run by chance: a clock that is set back makes no two windows one.
    pub run: u32,
}

/// How a directory's name shows the start: sorted by name is sorted by time.
const TIME_FORMAT: &str = "%Y%m%dT%H%M%S";

impl WindowKey {
    /// End, ns since the Unix epoch.
    #[must_use]
    pub const fn end_ns(&self) -> u64 {
        self.started_at_ns.saturating_add(self.duration_ns)
    }

    /// Whether a window has everything that another has.
    #[must_use]
    pub const fn covers(&self, other: &Self) -> bool {
        self.run == other.run
            && self.started_at_ns <= other.started_at_ns
            && self.end_ns() >= other.end_ns()
            && self.duration_ns > other.duration_ns
    }

    /// Name of the directory: `20261122T140500.123456789Z-10000000000-1a2b3c4d`, start, length in ns and run.
    #[must_use]
    pub fn name(&self) -> String {
        let second = i64::try_from(self.started_at_ns / 1_000_000_000).unwrap_or(0);
        let time = Timestamp::from_second(second).unwrap_or(Timestamp::UNIX_EPOCH);
        let ns = self.started_at_ns % 1_000_000_000;
        format!("{}.{ns:09}Z-{}-{:08x}", time.strftime(TIME_FORMAT), self.duration_ns, self.run)
    }

    /// The key of a directory's name; `None` for what is no window.
    #[must_use]
    pub fn of_name(name: &str) -> Option<Self> {
        let mut parts = name.split('-');
        let (time, duration, run) = (parts.next()?, parts.next()?, parts.next()?);
        let (second, ns) = time.strip_suffix('Z')?.split_once('.')?;
        if parts.next().is_some() || ns.len() != 9 || run.len() != 8 {
            return None;
        }
        let second = jiff::civil::DateTime::strptime(TIME_FORMAT, second).ok()?;
        let second = second.to_zoned(jiff::tz::TimeZone::UTC).ok()?.timestamp().as_second();
        let second = u64::try_from(second).ok()?;
        let key = Self {
            started_at_ns: second.checked_mul(1_000_000_000)?.checked_add(ns.parse().ok()?)?,
            duration_ns: duration.parse().ok()?,
            run: u32::from_str_radix(run, 16).ok()?,
        };
        // One name for each key.
        (key.name() == name).then_some(key)
    }
}

/// What is known of a window without reading it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct WindowInfo {
    /// What tells it apart.
    #[serde(flatten)]
    pub key: WindowKey,
    /// Bytes that it takes on disk.
    pub bytes: u64,
    /// Whether it stays when the oldest windows make room.
    #[serde(default)]
    pub kept: bool,
    /// What was recorded, for a person.
    pub target: String,
    /// Totals by origin.
    pub origins: BTreeMap<String, OriginInfo>,
    /// The processes that have most on-CPU samples, most first; of another origin where there are none.
    pub processes: Vec<ProcessInfo>,
    /// Sums of the timeline's columns that are sums, the greatest figure of others, of those that a timeline of windows
    /// shows.
    pub figures: BTreeMap<String, u64>,
    /// What the recording cost: time of its programs, of traps, and of the profiler itself, ns.
    pub cost_ns: u64,
}

/// What a window has of an origin.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OriginInfo {
    /// Unit of `total`.
    pub unit: String,
    /// Sum of the values.
    pub total: u64,
    /// Events.
    pub n: u64,
    /// Events that were lost.
    pub lost: u64,
}

/// A process that has values in a window.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessInfo {
    /// Its number.
    pub pid: u32,
    /// Its name.
    pub process: String,
    /// Its cgroup; empty when that is the root.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub cgroup: String,
    /// Its values.
    pub value: u64,
}

/// Most processes of a window that are listed.
const MAX_PROCESSES: usize = 16;
/// Columns of the timeline that are summed up: the CPU, memory, storage.
const FIGURES: [Column; 10] = [
    Column::TargetCpuUser,
    Column::TargetCpuSystem,
    Column::TargetRss,
    Column::TargetRead,
    Column::TargetWritten,
    Column::HostCpuUser,
    Column::HostCpuSystem,
    Column::HostCpuIrq,
    Column::HostCpuIdle,
    Column::HostMemoryAvailable,
];

impl WindowInfo {
    /// What a capture says of itself. `bytes` and `kept` are set by who writes it.
    #[must_use]
    pub fn new(capture: &Capture, run: u32) -> Self {
        let index = &capture.index;
        let lost = |name: &String| index.accounting.get(name).map_or(0, crate::profile::Accounting::samples_lost);
        let origins = index.origins.iter().map(|(name, summary)| {
            let (unit, total, n) = (summary.unit.clone(), summary.total, summary.n);
            (name.clone(), OriginInfo { unit, total, n, lost: lost(name) })
        });
        let figures = FIGURES.into_iter().filter_map(|column| {
            let known = index.timeline.column(column)?.iter().flatten().copied();
            Some((column.name().to_owned(), fold(column, known)?))
        });
        let overhead = &index.overhead;
        Self {
            key: WindowKey { started_at_ns: index.started_at_ns, duration_ns: index.duration_ns, run },
            bytes: 0,
            kept: false,
            target: index.target.description.clone(),
            origins: origins.collect(),
            processes: processes(capture),
            figures: figures.collect(),
            cost_ns: overhead.bpf_ns.saturating_add(overhead.trap_ns).saturating_add(overhead.agent_cpu_ns),
        }
    }
}

fn fold(column: Column, figures: impl Iterator<Item = u64>) -> Option<u64> {
    use crate::profile::Fold;
    figures.reduce(|one, other| match column.fold() {
        Fold::Sum => one.saturating_add(other),
        Fold::Maximum => one.max(other),
        Fold::Minimum => one.min(other),
    })
}

fn processes(capture: &Capture) -> Vec<ProcessInfo> {
    let cpu = capture.profiles.iter().find(|profile| profile.origin == Origin::Cpu);
    let Some(profile) = cpu.or_else(|| capture.profiles.first()) else { return Vec::new() };
    let mut sums: BTreeMap<(u32, u64), ProcessInfo> = BTreeMap::new();
    for sample in &profile.samples {
        let thread = &profile.threads[sample.thread as usize];
        let sum = sums.entry((thread.pid, thread.start_time_ns)).or_insert_with(|| ProcessInfo {
            pid: thread.pid,
            process: thread.process_name.clone(),
            cgroup: thread.cgroup.clone(),
            value: 0,
        });
        sum.value = sum.value.saturating_add(sample.values[profile.origin.row().primary]);
    }
    let mut processes: Vec<ProcessInfo> = sums.into_values().collect();
    processes.sort_by(|one, other| (other.value, one.pid).cmp(&(one.value, other.pid)));
    processes.truncate(MAX_PROCESSES);
    processes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_tells_the_window() {
        let key = WindowKey { started_at_ns: 1_795_356_300_123_456_789, duration_ns: 10_000_000_001, run: 0x1a2b };
        assert_eq!(key.name(), "20261122T140500.123456789Z-10000000001-00001a2b");
        assert_eq!(WindowKey::of_name(&key.name()), Some(key));
        for wrong in [
            "",
            ".new-20261122T140500.123456789Z-10000000001-00001a2b",
            "20261122T140500.123456789Z-10000000001-00001A2B",
            "20261122T140500.123456789Z-+10000000001-00001a2b",
            "20261122T140500.123456789Z-10000000001-00001a2b-",
            "20261322T140500.123456789Z-10000000001-00001a2b",
            "20261122T140500.12345678Z-10000000001-00001a2b",
            "99999999999999999999",
        ] {
            assert_eq!(WindowKey::of_name(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn only_a_longer_window_of_the_same_run_covers_another() {
        let key = |started_at_ns, duration_ns, run| WindowKey { started_at_ns, duration_ns, run };
        let minute = key(100, 60, 1);
        assert!(minute.covers(&key(100, 10, 1)) && minute.covers(&key(150, 10, 1)));
        assert!(!minute.covers(&key(155, 10, 1)) && !minute.covers(&key(110, 10, 2)) && !minute.covers(&minute));
    }
}
