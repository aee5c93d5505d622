//! Threads and processes.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use super::Weighted;
use crate::profile::{ProcessShare, Report, Thread, ThreadShare, container_of};

/// Threads and processes of the report, each: `Breakdown` says how many there are.
const MAX_ROWS: usize = 500;

/// A process under one name in one cgroup.
type ProcessKey<'a> = (u32, u64, &'a str, &'a str);

fn process(thread: &Thread) -> ProcessKey<'_> {
    (thread.pid, thread.start_time_ns, &thread.process_name, &thread.cgroup)
}

/// Adds one origin's threads and processes.
pub(super) fn add(weighted: &Weighted<'_>, report: &mut Report) {
    let values = values(weighted);
    let mut threads: Vec<_> = values.iter().map(|(&thread, &value)| (Reverse(value), thread)).collect();
    threads.sort_unstable();
    report.threads.extend(threads.into_iter().take(MAX_ROWS).map(|(Reverse(value), (process, tid, name))| {
        ThreadShare {
            origin: weighted.origin.to_owned(),
            pid: process.0,
            tid,
            process: process.2.to_owned(),
            thread: name.to_owned(),
            value,
            share: weighted.share(value),
        }
    }));
    let mut processes: BTreeMap<ProcessKey<'_>, (u64, BTreeSet<u32>)> = BTreeMap::new();
    for (&(process, tid, _), value) in &values {
        let (sum, tids) = processes.entry(process).or_default();
        *sum += value;
        tids.insert(tid);
    }
    let mut processes: Vec<_> =
        processes.into_iter().map(|(process, (value, tids))| (Reverse(value), process, tids.len())).collect();
    processes.sort_unstable();
    report.processes.extend(processes.into_iter().take(MAX_ROWS).map(|(Reverse(value), process, threads)| {
        ProcessShare {
            origin: weighted.origin.to_owned(),
            pid: process.0,
            process: process.2.to_owned(),
            cgroup: process.3.to_owned(),
            container: container_of(process.3).unwrap_or_default().to_owned(),
            threads: threads as u64,
            value,
            share: weighted.share(value),
        }
    }));
}

/// Threads that have values.
pub(super) fn count(weighted: &Weighted<'_>) -> u64 {
    values(weighted).keys().map(|&((pid, start, ..), tid, _)| (pid, start, tid)).collect::<BTreeSet<_>>().len() as u64
}

/// Processes that have values.
pub(super) fn count_processes(weighted: &Weighted<'_>) -> u64 {
    values(weighted).keys().map(|&((pid, start, ..), _, _)| (pid, start)).collect::<BTreeSet<_>>().len() as u64
}

/// Values by process, thread and the thread's name.
fn values<'a>(weighted: &Weighted<'a>) -> BTreeMap<(ProcessKey<'a>, u32, &'a str), u64> {
    let mut values = BTreeMap::new();
    for sample in &weighted.profile.samples {
        let value = sample.values[weighted.column];
        if value > 0 {
            let thread = &weighted.profile.threads[sample.thread as usize];
            *values.entry((process(thread), thread.tid, thread.thread_name.as_str())).or_default() += value;
        }
    }
    values
}
