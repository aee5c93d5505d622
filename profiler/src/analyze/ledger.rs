//! Where the wall time went: the exact times of threads, divided by what was sampled on the CPU and recorded off it.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};

use profiler_common::event::Origin;

use crate::profile::{Capture, FrameKind, Ledger, LedgerRow, Profile, Thread, ThreadTime};

/// Threads and processes of the report, each.
const MAX_ROWS: usize = 500;

/// The ledger of a capture; `None` where waits were not recorded.
pub(super) fn ledger(capture: &Capture) -> Option<Ledger> {
    let times = &capture.index.thread_times;
    if times.is_empty() {
        return None;
    }
    let profile = |origin: Origin| capture.profiles.iter().find(|profile| profile.origin == origin);
    let rows = Rows::new(times);
    let waits = profile(Origin::OffCpu).map(|profile| waits(profile, &rows)).unwrap_or_default();
    let samples = profile(Origin::Cpu).map(|profile| Samples::new(profile, &rows, times));
    let mut ledger = Ledger::default();
    let mut processes: BTreeMap<(u32, u64), LedgerRow> = BTreeMap::new();
    for (index, time) in times.iter().enumerate() {
        let row = row(time, waits.get(&index), samples.as_ref().map(|samples| samples.split(index, time)));
        let process = processes.entry((time.pid, time.start_time_ns)).or_default();
        (process.pid, process.process) = (time.pid, time.process.clone());
        process.add(&row);
        ledger.total.add(&row);
        ledger.threads.push(row);
    }
    ledger.processes = processes.into_values().collect();
    for rows in [&mut ledger.processes, &mut ledger.threads] {
        // The rows are in the order of their numbers, and this keeps the order of equals.
        rows.sort_by_key(|row| Reverse((row.wall_ns, row.cpu_ns)));
        rows.truncate(MAX_ROWS);
    }
    Some(ledger)
}

/// Which row a thread's values belong to.
struct Rows(HashMap<(u32, u64, u32), usize>);

impl Rows {
    fn new(times: &[ThreadTime]) -> Self {
        let key = |time: &ThreadTime| (time.pid, time.start_time_ns, time.tid);
        Self(times.iter().enumerate().map(|(index, time)| (key(time), index)).collect())
    }

    /// Its own, or that of several threads of its process, or that of what is left of many.
    fn of(&self, thread: &Thread) -> Option<usize> {
        let keys = [(thread.pid, thread.start_time_ns, thread.tid), (thread.pid, thread.start_time_ns, 0), (0, 0, 0)];
        keys.iter().find_map(|key| self.0.get(key).copied())
    }
}

/// Time off the CPU by row and reason, ns.
fn waits(profile: &Profile, rows: &Rows) -> HashMap<usize, BTreeMap<String, u64>> {
    let rows: Vec<Option<usize>> = profile.threads.iter().map(|thread| rows.of(thread)).collect();
    let mut waits: HashMap<usize, BTreeMap<String, u64>> = HashMap::new();
    for sample in &profile.samples {
        let reason = profile.origin.reason_name(sample.reason).unwrap_or("other");
        if let Some(row) = rows[sample.thread as usize] {
            let time = sample.values[profile.origin.row().primary];
            *waits.entry(row).or_default().entry(reason.to_owned()).or_default() += time;
        }
    }
    waits
}

/// Samples in user space and in the kernel.
#[derive(Clone, Copy, Default)]
struct Split {
    user: u64,
    kernel: u64,
}

impl Split {
    fn add(&mut self, other: Self) {
        self.user += other.user;
        self.kernel += other.kernel;
    }

    /// The part of a time that was in user space; `None` without samples.
    fn user_part(self, time: u64) -> Option<u64> {
        let part = u128::from(time) * u128::from(self.user);
        part.checked_div(u128::from(self.user + self.kernel)).and_then(|part| u64::try_from(part).ok())
    }
}

/// Samples by row, by process and in all.
struct Samples {
    rows: HashMap<usize, Split>,
    processes: HashMap<(u32, u64), Split>,
    total: Split,
}

impl Samples {
    fn new(profile: &Profile, rows: &Rows, times: &[ThreadTime]) -> Self {
        let is_kernel: Vec<bool> = profile
            .stacks
            .iter()
            // A stack of no frames is that of a task without user space.
            .map(|stack| stack.first().is_none_or(|&leaf| profile.locations[leaf as usize].kind == FrameKind::Kernel))
            .collect();
        let mut samples = Self { rows: HashMap::new(), processes: HashMap::new(), total: Split::default() };
        for sample in &profile.samples {
            let value = sample.values[profile.origin.row().primary];
            let kernel = is_kernel[sample.stack as usize];
            let split = if kernel { Split { user: 0, kernel: value } } else { Split { user: value, kernel: 0 } };
            if let Some(row) = rows.of(&profile.threads[sample.thread as usize]) {
                samples.rows.entry(row).or_default().add(split);
                samples.processes.entry((times[row].pid, times[row].start_time_ns)).or_default().add(split);
                samples.total.add(split);
            }
        }
        samples
    }

    /// User and kernel time of a row, ns: by its own samples, or by those of its process, or by all.
    fn split(&self, row: usize, time: &ThreadTime) -> (u64, u64) {
        let splits = [self.rows.get(&row), self.processes.get(&(time.pid, time.start_time_ns)), Some(&self.total)];
        let user = splits.into_iter().flatten().find_map(|split| split.user_part(time.on_cpu_ns));
        let user = user.unwrap_or(time.on_cpu_ns);
        (user, time.on_cpu_ns - user)
    }
}

fn row(time: &ThreadTime, waits: Option<&BTreeMap<String, u64>>, split: Option<(u64, u64)>) -> LedgerRow {
    let waits = waits.cloned().unwrap_or_default();
    let waited: u64 = waits.values().sum();
    let unknown_ns = time.off_cpu_ns.saturating_sub(waited);
    LedgerRow {
        pid: time.pid,
        tid: time.tid,
        process: time.process.clone(),
        thread: time.thread.clone(),
        threads: time.threads,
        wall_ns: time.wall_ns,
        cpu_ns: time.on_cpu_ns,
        cpu_user_ns: split.map(|(user, _)| user),
        cpu_kernel_ns: split.map(|(_, kernel)| kernel),
        waits,
        unknown_ns,
        residual_ns: time.wall_ns.cast_signed() - (time.on_cpu_ns + waited + unknown_ns).cast_signed(),
    }
}
