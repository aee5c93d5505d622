//! Many captures as one: what the windows of a range of time came to.
//!
//! A pure function of the captures, one after the other, so that there is never more than one of them beside the sum. Values,
//! counts and times are added; what there was at the end is that of the last; distributions are added bucket by bucket.
//! Merging the windows of a recording gives its totals.

mod counts;
mod series;
mod stacks;

use std::cmp::Reverse;
use std::collections::BTreeMap;

use profiler_common::event::Origin;

use super::{
    Capture, CgroupMemory, Index, MAX_MEMORY_CGROUPS, MAX_MEMORY_PROCESSES, MAX_SLICES, Memory, Overhead, Profile,
    SCHEMA_VERSION, SlowRequests,
};
use counts::{LockTimes, Objects, Origins, Tables, ThreadTimes, add_accounting, add_reasons};
use series::{Functions, Warnings};
use stacks::Stacks;

/// Time between two captures from which on it is said that nothing was recorded in it, ns.
const LEAST_GAP_NS: u64 = 10_000_000;
/// Most slow requests that are listed, as in a recording.
const MAX_SLOW_REQUESTS: usize = 10_000;

/// The sum of captures.
#[derive(Default)]
pub struct Merge {
    /// Of the first capture, with what is simply added; the rest is below.
    index: Option<Index>,
    profiles: BTreeMap<Origin, Stacks>,
    /// Blocks in use, as they were at the end of the last capture that has them.
    live: Option<Profile>,
    origins: BTreeMap<String, Origins>,
    tables: BTreeMap<String, Tables>,
    threads: ThreadTimes,
    locks: LockTimes,
    objects: Objects,
    functions: BTreeMap<String, Functions>,
    warnings: Warnings,
    /// Samples that the programs' time was spent on.
    samples: f64,
    /// End of the last capture, ns since the Unix epoch.
    end_ns: u64,
    captures: u64,
    gaps: u64,
    gap_ns: u64,
    /// Tables that are missing, since their columns were not the same.
    left_out: u64,
    slow_requests: u64,
}

/// Merges captures into one. `None` of none. They must be in the order of their starts, as for [`Merge::add`].
#[must_use]
pub fn merge(captures: impl IntoIterator<Item = Capture>) -> Option<Capture> {
    let mut sum = Merge::default();
    captures.into_iter().for_each(|capture| sum.add(capture));
    sum.finish(MAX_SLICES)
}

impl Merge {
    /// Adds a capture that started after all that were added before. One whose clock says otherwise counts as if it had
    /// followed.
    pub fn add(&mut self, capture: Capture) {
        let Capture { mut index, profiles } = capture;
        self.captures += 1;
        let start = index.started_at_ns.max(self.end_ns);
        let offset_ns = self.index.as_ref().map_or(0, |first| start.saturating_sub(first.started_at_ns));
        if self.index.is_some() && start - self.end_ns >= LEAST_GAP_NS {
            self.gaps += 1;
            self.gap_ns += start - self.end_ns;
        }
        self.end_ns = start.saturating_add(index.duration_ns);
        for (name, summary) in std::mem::take(&mut index.origins) {
            let sum = self.origins.entry(name.clone()).or_insert_with(|| Origins::new(&summary));
            if name == Origin::Live.row().name {
                // What there is at the end is no sum.
                *sum = Origins::new(&summary);
            }
            sum.add(&summary, index.duration_ns);
        }
        for (name, table) in std::mem::take(&mut index.tables) {
            let sum = self.tables.entry(name).or_insert_with(|| Tables::new(&table));
            self.left_out += u64::from(!sum.add(table, index.duration_ns));
        }
        self.threads.add(std::mem::take(&mut index.thread_times));
        self.locks.add(std::mem::take(&mut index.lock_times));
        self.objects.add(std::mem::take(&mut index.objects));
        for (name, slices) in std::mem::take(&mut index.function_slices) {
            self.functions.entry(name).or_default().add(slices);
        }
        self.warnings.add(std::mem::take(&mut index.warnings));
        if index.overhead.bpf_ns_per_sample > 0.0 {
            self.samples += float(index.overhead.bpf_ns) / index.overhead.bpf_ns_per_sample;
        }
        let spans = self.slow_spans(&mut index.slow_requests, offset_ns);
        for profile in profiles {
            match profile.origin {
                Origin::Live => self.live = Some(profile),
                origin => {
                    let sum = self.profiles.entry(origin).or_insert_with(|| Stacks::new(origin));
                    // A lock's address and a waker's digest are the same in every capture; numbers of requests are not.
                    let number =
                        |span| if origin == Origin::BlockIo { spans.get(&span).copied().unwrap_or(0) } else { span };
                    sum.add(profile, number);
                }
            }
        }
        match &mut self.index {
            None => {
                // With the offset and the order that those to come have.
                let slices = std::mem::take(&mut index.timeline);
                series::add_timeline(&mut index.timeline, slices, 0);
                self.index = Some(index);
            }
            Some(sum) => add_index(sum, index, offset_ns),
        }
    }

    /// Gives the slow requests of a capture numbers and times of their own in the sum. Returns the new span of each old one.
    fn slow_spans(&mut self, slow: &mut SlowRequests, offset_ns: u64) -> BTreeMap<u64, u64> {
        let mut spans = BTreeMap::new();
        for request in &mut slow.requests {
            request.start_ns = request.start_ns.saturating_add(offset_ns);
            let old = request.span.strip_prefix("0x").and_then(|digits| u64::from_str_radix(digits, 16).ok());
            if let Some(old) = old.filter(|&span| span != 0) {
                self.slow_requests += 1;
                spans.insert(old, self.slow_requests);
                request.span = format!("{:#x}", self.slow_requests);
            }
        }
        spans
    }

    /// The sum. `most_slices`: of what there is slice by slice, at least 1. `None` when nothing was added.
    #[must_use]
    pub fn finish(self, most_slices: usize) -> Option<Capture> {
        let mut index = self.index?;
        let mut warnings = self.warnings.finish();
        let profiles = self.profiles.into_values();
        let mut coarse = false;
        let profiles = profiles.map(|stacks| {
            coarse |= stacks.is_coarse();
            stacks.finish()
        });
        let mut profiles: Vec<Profile> = profiles.chain(self.live).collect();
        profiles.sort_by_key(|profile| profile.origin);
        if coarse {
            warnings.push(
                "there were so many threads that they are told apart by name and cgroup alone: choose a shorter range"
                    .to_owned(),
            );
        }
        if self.gaps > 0 {
            let seconds = float(self.gap_ns) / 1e9;
            warnings
                .push(format!("{} times nothing was recorded between two windows, {seconds:.3} s in all", self.gaps));
        }
        if self.left_out > 0 {
            warnings.push(format!("{} tables of another version have other columns and are left out", self.left_out));
        }
        index.origins = self.origins.into_iter().map(|(name, sum)| (name, sum.finish(index.duration_ns))).collect();
        index.tables = self.tables.into_iter().map(|(name, sum)| (name, sum.finish(index.duration_ns))).collect();
        index.thread_times = self.threads.finish();
        let (lock_times, rest_ns) = self.locks.finish();
        index.lock_times = lock_times;
        if rest_ns > 0 {
            let seconds = float(rest_ns) / 1e9;
            warnings.push(format!("the locks of {seconds:.3} s of waits are missing: there were too many"));
        }
        index.objects = self.objects.finish();
        index.function_slices = self.functions.into_iter().map(|(name, sum)| (name, sum.finish())).collect();
        if self.samples > 0.0 {
            index.overhead.bpf_ns_per_sample = float(index.overhead.bpf_ns) / self.samples;
        }
        series::shorten_timeline(&mut index.timeline, most_slices);
        series::shorten_latency(&mut index.io_latency, most_slices);
        index.warnings = warnings;
        Some(Capture { index, profiles })
    }

    /// Captures that were added.
    #[must_use]
    pub const fn captures(&self) -> u64 {
        self.captures
    }
}

/// Adds what an index has that is not added up apart.
fn add_index(sum: &mut Index, other: Index, offset_ns: u64) {
    sum.schema_version = SCHEMA_VERSION;
    sum.profiler_version = other.profiler_version;
    sum.duration_ns = sum.duration_ns.saturating_add(other.duration_ns);
    if sum.target.description != other.target.description {
        let known = |description: &str| sum.target.description.split("; ").any(|one| one == description);
        if !known(&other.target.description) && sum.target.description.len() < 1000 {
            sum.target.description = format!("{}; {}", sum.target.description, other.target.description);
        }
    }
    sum.target.pids.extend(other.target.pids);
    sum.target.pids.sort_unstable();
    sum.target.pids.dedup();
    sum.target.exit_code = other.target.exit_code;
    for (name, accounting) in other.accounting {
        match sum.accounting.get_mut(&name) {
            Some(sum) => add_accounting(sum, accounting),
            None => drop(sum.accounting.insert(name, accounting)),
        }
    }
    add_overhead(&mut sum.overhead, &other.overhead);
    series::add_timeline(&mut sum.timeline, other.timeline, offset_ns);
    series::add_latency(&mut sum.io_latency, other.io_latency, offset_ns);
    add_slow_requests(&mut sum.slow_requests, other.slow_requests);
    if let Some(mut live) = other.live {
        let times = live.at_ns.iter_mut().chain(live.peak.as_mut().map(|peak| &mut peak.at_ns));
        times.for_each(|time| *time = time.saturating_add(offset_ns));
        sum.live = Some(live);
    }
    match (&mut sum.memory, other.memory) {
        (Some(sum), Some(other)) => add_memory(sum, other),
        (None, other) => sum.memory = other,
        (Some(_), None) => {}
    }
}

fn add_overhead(sum: &mut Overhead, other: &Overhead) {
    sum.bpf_ns = sum.bpf_ns.saturating_add(other.bpf_ns);
    sum.bpf_runs = sum.bpf_runs.saturating_add(other.bpf_runs);
    sum.trap_ns = sum.trap_ns.saturating_add(other.trap_ns);
    sum.agent_cpu_ns = sum.agent_cpu_ns.saturating_add(other.agent_cpu_ns);
    sum.peak_rss_bytes = sum.peak_rss_bytes.max(other.peak_rss_bytes);
    sum.bpf_map_bytes = sum.bpf_map_bytes.max(other.bpf_map_bytes);
}

/// Those as long as the longer threshold, the first of them.
fn add_slow_requests(sum: &mut SlowRequests, other: SlowRequests) {
    sum.threshold_ns = sum.threshold_ns.max(other.threshold_ns);
    sum.requests.extend(other.requests);
    sum.requests.retain(|request| request.total_ns() >= sum.threshold_ns);
    let more = sum.requests.len().saturating_sub(MAX_SLOW_REQUESTS);
    sum.requests.truncate(MAX_SLOW_REQUESTS);
    sum.missing = sum.missing.saturating_add(other.missing).saturating_add(more as u64);
}

/// Processes from when they were first seen to when they were last; cgroups and the system as they were last.
fn add_memory(sum: &mut Memory, other: Memory) {
    for process in other.processes {
        let same = |known: &&mut super::ProcessMemory| (known.pid, &known.process) == (process.pid, &process.process);
        match sum.processes.iter_mut().find(same) {
            Some(known) => *known = super::ProcessMemory { start: known.start, ..process },
            None => sum.processes.push(process),
        }
    }
    sum.processes.sort_by_key(|process| Reverse(process.end.rss_bytes));
    sum.processes.truncate(MAX_MEMORY_PROCESSES);
    for cgroup in other.cgroups {
        match sum.cgroups.iter_mut().find(|known| known.path == cgroup.path) {
            Some(known) => {
                let mut events = std::mem::take(&mut known.events);
                add_reasons(&mut events, cgroup.events);
                *known = CgroupMemory { events, ..cgroup };
            }
            None => sum.cgroups.push(cgroup),
        }
    }
    sum.cgroups.truncate(MAX_MEMORY_CGROUPS);
    let kills = (sum.system.oom_kills, other.system.oom_kills);
    sum.system = other.system;
    sum.system.oom_kills = match kills {
        (None, None) => None,
        (one, other) => Some(one.unwrap_or(0).saturating_add(other.unwrap_or(0))),
    };
}

#[expect(clippy::cast_precision_loss, reason = "shown with few digits")]
const fn float(value: u64) -> f64 {
    value as f64
}
