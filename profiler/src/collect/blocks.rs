//! Requests to block devices as tables: what the programs counted exactly, with names.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use profiler_common::block::{
    BLOCK_OPERATIONS, BLOCK_TIMES, BlockCounts, BlockFileKey, BlockFileStats, BlockKey, BlockMissed, BlockStats,
    BlockWaitKey, BlockWaitStats, MAX_SLOW, SIZE_NAMES, WAIT_PARTS,
};

use super::cut::nanoseconds;
use super::file_names::FileNames;
use super::place::comm;
use super::readings::Readings;
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

/// Which of them is the longest request.
const LONGEST: usize = 3;

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

/// The table of what was counted since the reading before. `uncounted`: requests that found no room; `is_last`: there is no
/// other reading.
pub(super) fn table(
    stats: &[(BlockKey, BlockStats)],
    uncounted: u64,
    cgroups: &mut Cgroups,
    readings: &mut Readings<BlockKey>,
    is_last: bool,
) -> Table {
    let columns_of_values = columns(&VALUES);
    cgroups.learn(&stats.iter().map(|(key, _)| key.cgroup).collect());
    let mut rows: BTreeMap<Vec<String>, Row> = BTreeMap::new();
    for (key, stats) in stats {
        let (process, pid) = asker(key.pid, &stats.process_comm);
        let labels = vec![
            device(key.device),
            operation(key.operation),
            SIZE_NAMES.get(usize::from(key.size)).copied().unwrap_or_default().to_owned(),
            process,
            pid,
            cgroups.name(key.cgroup),
        ];
        let BlockCounts { requests, bytes, errors, sequential, total_ns: total, queue_ns: queue, max_ns } =
            stats.counts;
        let device = total.saturating_sub(queue);
        let counts = stats.counts();
        let distributions = counts.iter().zip(&max_ns).map(|(counts, &max)| Histogram::new(counts, max));
        let values = vec![total, requests, bytes, errors, sequential, queue, device];
        let read = Row { labels: labels.clone(), values, distributions: distributions.collect() };
        if let Some(come) = readings.since(*key, read, &columns_of_values, is_last) {
            add(&mut rows, labels, come);
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

/// Adds a row to that of its labels.
fn add(rows: &mut BTreeMap<Vec<String>, Row>, labels: Vec<String>, come: Row) {
    match rows.entry(labels) {
        Entry::Vacant(entry) => drop(entry.insert(come)),
        Entry::Occupied(mut entry) => entry.get_mut().add(&come),
    }
}

/// The table of files, as [`table`].
pub(super) fn files(
    stats: &[(BlockFileKey, BlockFileStats)],
    names: &FileNames,
    uncounted: u64,
    readings: &mut Readings<BlockFileKey>,
    is_last: bool,
) -> Table {
    let columns_of_values = columns(&FILE_VALUES);
    let mut rows: BTreeMap<Vec<String>, Row> = BTreeMap::new();
    for (key, stats) in stats {
        let (process, pid) = asker(key.pid, &stats.process_comm);
        let labels = vec![names.name(&key.file), operation(key.operation), process, pid];
        let values = vec![stats.bytes, stats.requests, stats.total_ns, stats.max_ns];
        let read = Row { labels: labels.clone(), values, distributions: Vec::new() };
        let Some(come) = readings.since(*key, read, &columns_of_values, is_last) else { continue };
        let longest = rows.get(&labels).map_or(0, |row| row.values[LONGEST]).max(come.values[LONGEST]);
        add(&mut rows, labels.clone(), come);
        if let Some(row) = rows.get_mut(&labels) {
            row.values[LONGEST] = longest;
        }
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

/// The table of what threads waited for, as [`table`].
pub(super) fn waits(
    stats: &[(BlockWaitKey, BlockWaitStats)],
    uncounted: u64,
    readings: &mut Readings<BlockWaitKey>,
    is_last: bool,
) -> Table {
    let parts = columns(&WAIT_PARTS.map(|part| (part, "ns")));
    let counts = columns(&[("waits", "count"), ("throttled_waits", "count")]);
    let columns_of_values: Vec<TableColumn> = parts.iter().cloned().chain(counts).collect();
    let mut rows: BTreeMap<Vec<String>, Row> = BTreeMap::new();
    for (key, stats) in stats {
        let (process, pid) = asker(key.pid, &stats.process_comm);
        let labels = vec![process, pid];
        let values = stats.sums_ns.into_iter().chain([stats.waits, stats.throttled]);
        let histograms = stats.histograms.iter().zip(&stats.max_ns);
        let distributions = histograms.map(|(counts, &max)| Histogram::new(&counts.map(u64::from), max));
        let read = Row { labels: labels.clone(), values: values.collect(), distributions: distributions.collect() };
        if let Some(come) = readings.since(*key, read, &columns_of_values, is_last) {
            add(&mut rows, labels, come);
        }
    }
    let mut table = Table {
        title: "Waits for block devices".to_owned(),
        labels: ["process", "pid"].map(str::to_owned).to_vec(),
        values: columns_of_values,
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
    let began_ns = session.kernel.recorded().start + nanoseconds(session.window_began);
    let wake_ups = std::mem::take(&mut session.slow_wake_ups);
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
                wakeup_ns: wake_ups.get(&told.number).copied(),
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

/// Names of cgroups that were looked up, of which a few are there at once.
#[derive(Debug, Default)]
pub(super) struct Cgroups(BTreeMap<u64, Option<String>>);

impl Cgroups {
    /// Looks up those that are new, and forgets those that are wanted no more. One that is not found is not looked for again.
    fn learn(&mut self, wanted: &BTreeSet<u64>) {
        self.0.retain(|number, _| wanted.contains(number));
        let new: BTreeSet<u64> = wanted.iter().filter(|number| !self.0.contains_key(number)).copied().collect();
        if !new.is_empty() {
            let mut found = cgroups(&new);
            self.0.extend(new.into_iter().map(|number| (number, found.remove(&number))));
        }
    }

    fn name(&self, number: u64) -> String {
        let known = self.0.get(&number).cloned().flatten();
        known.unwrap_or_else(|| format!("[cgroup {number}]"))
    }
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
