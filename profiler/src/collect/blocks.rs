//! Requests to block devices as tables: what the programs counted exactly, with names.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use profiler_common::block::{
    BLOCK_OPERATIONS, BLOCK_TIMES, BlockCounts, BlockFileKey, BlockFileStats, BlockKey, BlockMissed, BlockStats,
    BlockWaitKey, BlockWaitStats, MAX_SLOW, SIZE_NAMES, WAIT_PARTS,
};

use super::file_names::FileNames;
use super::place::comm;
use super::session::Session;
use crate::profile::{Histogram, Row, SlowRequest, SlowRequests, Table, TableColumn};

/// From when requests were made until they were done; requests; bytes; requests that failed; those that go on where the one
/// before on their device ended; the two parts of their time.
const VALUES: [(&str, &str); 7] = [
    ("time", "ns"),
    ("requests", "count"),
    ("bytes", "bytes"),
    ("errors", "count"),
    ("sequential", "count"),
    ("queue", "ns"),
    ("device", "ns"),
];

/// Name of the table of files.
pub(super) const FILES: &str = "blockio_files";

/// The same of files, and the longest request.
const FILE_VALUES: [(&str, &str); 4] = [("bytes", "bytes"), ("requests", "count"), ("time", "ns"), ("longest", "ns")];

/// Name of the table of waits.
pub(super) const WAITS: &str = "blockio_waits";

/// What a reader must know of requests that were seen to be made, and not to be done.
pub(super) fn unseen(requests: u64) -> String {
    format!(
        "the end of {requests} requests to block devices was not seen, and they are not counted: some kernels run no BPF \
         program while they work for a process that they protect"
    )
}

/// Who asked, where nobody knows.
const UNKNOWN: &str = "[unknown]";

/// Directories that are looked at for the names of cgroups.
const MAX_CGROUPS: usize = 16_384;

fn columns(columns: &[(&str, &str)]) -> Vec<TableColumn> {
    columns.iter().map(|(name, unit)| TableColumn::new(name, unit)).collect()
}

/// The table of what was counted. `uncounted`: requests that found no room.
pub(super) fn table(stats: &[(BlockKey, BlockStats)], uncounted: u64) -> Table {
    let cgroups = cgroups(&stats.iter().map(|(key, _)| key.cgroup).collect());
    let mut rows: BTreeMap<Vec<String>, Row> = BTreeMap::new();
    for (key, stats) in stats {
        let (process, pid) = asker(key.pid, &stats.process_comm);
        let labels = vec![
            device(key.device),
            operation(key.operation),
            SIZE_NAMES.get(usize::from(key.size)).copied().unwrap_or_default().to_owned(),
            process,
            pid,
            cgroups.get(&key.cgroup).cloned().unwrap_or_else(|| format!("[cgroup {}]", key.cgroup)),
        ];
        let row = rows.entry(labels.clone()).or_insert_with(|| Row {
            labels,
            values: vec![0; VALUES.len()],
            distributions: vec![Histogram::default(); BLOCK_TIMES.len()],
        });
        let BlockCounts { requests, bytes, errors, sequential, total_ns: total, queue_ns: queue, max_ns } =
            stats.counts;
        let device = total.saturating_sub(queue);
        let values = [total, requests, bytes, errors, sequential, queue, device];
        row.values.iter_mut().zip(values).for_each(|(sum, value)| *sum += value);
        for (distribution, (counts, &max)) in row.distributions.iter_mut().zip(stats.counts().iter().zip(&max_ns)) {
            distribution.add(&Histogram::new(counts, max));
        }
    }
    let mut table = Table {
        title: "Requests to block devices".to_owned(),
        labels: ["device", "operation", "size", "process", "pid", "cgroup"].map(str::to_owned).to_vec(),
        values: columns(&VALUES),
        distributions: columns(&BLOCK_TIMES.map(|time| (time, "ns"))),
        rows: rows.into_values().collect(),
        missing: uncounted,
    };
    table.sort();
    table
}

/// The table of files. `uncounted`: requests that found no room.
pub(super) fn files(stats: &[(BlockFileKey, BlockFileStats)], names: &FileNames, uncounted: u64) -> Table {
    let mut rows: BTreeMap<Vec<String>, Row> = BTreeMap::new();
    for (key, stats) in stats {
        let (process, pid) = asker(key.pid, &stats.process_comm);
        let labels = vec![names.name(&key.file), operation(key.operation), process, pid];
        let row = rows.entry(labels.clone()).or_insert_with(|| Row {
            labels,
            values: vec![0; FILE_VALUES.len()],
            distributions: Vec::new(),
        });
        let sums = [stats.bytes, stats.requests, stats.total_ns];
        row.values.iter_mut().zip(sums).for_each(|(sum, value)| *sum += value);
        row.values[3] = row.values[3].max(stats.max_ns);
    }
    let mut table = Table {
        title: "Files on block devices".to_owned(),
        labels: ["file", "operation", "process", "pid"].map(str::to_owned).to_vec(),
        values: columns(&FILE_VALUES),
        distributions: Vec::new(),
        rows: rows.into_values().collect(),
        missing: uncounted,
    };
    table.sort();
    table
}

/// The table of what threads waited for. `uncounted`: waits that found no room.
pub(super) fn waits(stats: &[(BlockWaitKey, BlockWaitStats)], uncounted: u64) -> Table {
    let parts = columns(&WAIT_PARTS.map(|part| (part, "ns")));
    let counts = columns(&[("waits", "count"), ("throttled_waits", "count")]);
    let mut rows: BTreeMap<Vec<String>, Row> = BTreeMap::new();
    for (key, stats) in stats {
        let (process, pid) = asker(key.pid, &stats.process_comm);
        let labels = vec![process, pid];
        let row = rows.entry(labels.clone()).or_insert_with(|| Row {
            labels,
            values: vec![0; parts.len() + 2],
            distributions: vec![Histogram::default(); parts.len()],
        });
        let values = stats.sums_ns.into_iter().chain([stats.waits, stats.throttled]);
        row.values.iter_mut().zip(values).for_each(|(sum, value)| *sum += value);
        for (distribution, (counts, &max)) in
            row.distributions.iter_mut().zip(stats.histograms.iter().zip(&stats.max_ns))
        {
            distribution.add(&Histogram::new(&counts.map(u64::from), max));
        }
    }
    let mut table = Table {
        title: "Waits for block devices".to_owned(),
        labels: ["process", "pid"].map(str::to_owned).to_vec(),
        values: parts.iter().cloned().chain(counts).collect(),
        distributions: parts,
        rows: rows.into_values().collect(),
        missing: uncounted,
    };
    table.sort();
    table
}

/// The slow requests that were told, with names; `threshold_ns` is what made them slow.
pub(super) fn slow_requests(session: &mut Session, threshold_ns: u64) -> SlowRequests {
    let (found, lost) =
        (session.kernel.blocks_missed(BlockMissed::Slow), session.kernel.blocks_missed(BlockMissed::SlowLost));
    let began_ns = session.kernel.recorded().start;
    let mut requests: Vec<_> = std::mem::take(&mut session.slow)
        .iter()
        .map(|told| {
            let [total_ns, queue_ns, device_ns] = told.times_ns;
            let (process, _) = asker(told.pid, &told.process_comm);
            SlowRequest {
                start_ns: told.done_ns.saturating_sub(began_ns + total_ns),
                device: device(told.device),
                sector: told.sector,
                bytes: told.bytes.into(),
                operation: operation(told.operation),
                file: if told.file.inode == 0 { String::new() } else { session.file_names.name(&told.file) },
                process,
                pid: told.pid,
                tid: told.tid,
                queue_ns,
                device_ns,
                wakeup_ns: session.slow_wake_ups.get(&told.number).copied(),
                span: format!("{:#x}", told.number),
            }
        })
        .collect();
    requests.sort_by_key(|request| request.start_ns);
    SlowRequests { threshold_ns, requests, missing: found.saturating_sub(MAX_SLOW) + lost }
}

/// Name and number of who asked.
fn asker(pid: u32, name: &[u8; profiler_common::event::COMM_LEN]) -> (String, String) {
    if pid == 0 { (UNKNOWN.to_owned(), String::new()) } else { (comm(name), pid.to_string()) }
}

pub(super) fn operation(number: u16) -> String {
    let index = usize::from(number).checked_sub(1);
    index.and_then(|index| BLOCK_OPERATIONS.get(index)).copied().unwrap_or("other").to_owned()
}

/// Name of a device, or its numbers when it is gone.
pub(super) fn device(device: u32) -> String {
    let numbers = format!("{}:{}", device >> 20, device & 0xf_ffff);
    let link = fs::read_link(Path::new("/sys/dev/block").join(&numbers)).ok();
    link.and_then(|link| Some(link.file_name()?.to_string_lossy().into_owned())).unwrap_or(numbers)
}

/// Names of cgroups, by the numbers that the kernel has for them: paths below the hierarchy's mount.
fn cgroups(wanted: &BTreeSet<u64>) -> BTreeMap<u64, String> {
    let mut names = BTreeMap::new();
    let roots = ["/sys/fs/cgroup/blkio", "/sys/fs/cgroup", "/sys/fs/cgroup/unified"].map(Path::new);
    let mut looked_at = 0;
    for root in roots.into_iter().filter(|root| root.join("cgroup.procs").exists()) {
        let mut directories = vec![PathBuf::from(root)];
        while let Some(directory) = directories.pop() {
            looked_at += 1;
            if looked_at > MAX_CGROUPS || names.len() >= wanted.len() {
                return names;
            }
            let Ok(found) = fs::symlink_metadata(&directory) else { continue };
            if wanted.contains(&found.ino()) {
                let path = directory.strip_prefix(root).unwrap_or(&directory);
                names.entry(found.ino()).or_insert_with(|| format!("/{}", path.display()));
            }
            let below = fs::read_dir(&directory).ok().into_iter().flatten().flatten();
            directories.extend(
                below.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).map(|entry| entry.path()),
            );
        }
    }
    names
}
