//! Files as a table: what the programs counted exactly by process and file, with names.

use std::collections::{BTreeMap, HashMap};

use profiler_common::event::COMM_LEN;
use profiler_common::file::{FileId, FileKey, FileOperation, FileStats};

use super::file_names::FileNames;
use super::readings::Readings;
use crate::bpf::{CountedFile, FileCounts};
use crate::profile::{Histogram, Row, Table, TableColumn};

/// Values of a row. Bytes of all kinds come first: the table is in that order.
const VALUES: [(&str, &str); 18] = [
    ("moved", "bytes"),
    ("time", "ns"),
    ("reads", "count"),
    ("read", "bytes"),
    ("read_time", "ns"),
    ("writes", "count"),
    ("written", "bytes"),
    ("write_time", "ns"),
    ("syncs", "count"),
    ("sync_time", "ns"),
    ("opens", "count"),
    ("open_time", "ns"),
    ("renames", "count"),
    ("mapped_writes", "count"),
    ("mapped_written", "bytes"),
    ("cache_hits", "count"),
    ("cache_misses", "count"),
    ("errors", "count"),
];

/// The distributions: how long reads, writes and syncs took.
const DISTRIBUTIONS: [(FileOperation, &str); 3] =
    [(FileOperation::Read, "reads"), (FileOperation::Write, "writes"), (FileOperation::Sync, "syncs")];

/// The table of what was counted since the reading before. `is_last`: there is no other one.
pub(super) fn table(
    counts: &FileCounts,
    names: &mut FileNames,
    readings: &mut Readings<FileKey>,
    is_last: bool,
) -> Table {
    let columns: Vec<TableColumn> = VALUES.iter().map(|(name, unit)| TableColumn::new(name, unit)).collect();
    let rows = counts.files.iter().filter_map(|CountedFile { key, stats, histograms }| {
        let of = |operation: FileOperation| stats.by_operation[operation as usize - 1];
        let mut file = if key.file == FileId::default() { RENAMED.to_owned() } else { names.name(&key.file) };
        if stats.is_deleted != 0 && !file.ends_with(DELETED) {
            file.push_str(DELETED);
        }
        let distributions = DISTRIBUTIONS.iter().zip(histograms).map(|(&(operation, _), histogram)| {
            histogram
                .as_ref()
                .map_or_else(Histogram::default, |histogram| Histogram::new(histogram.as_slice(), of(operation).max_ns))
        });
        let read = Row {
            labels: vec![file, name(&stats.process_comm), key.pid.to_string()],
            values: values(stats).to_vec(),
            distributions: distributions.collect(),
        };
        readings.since(*key, read, &columns, is_last)
    });
    let mut rows: Vec<Row> = rows.collect();
    name_renamed(&mut rows, &names.take_renames());
    let mut table = Table {
        title: "Files".to_owned(),
        labels: ["file", "process", "pid"].map(str::to_owned).to_vec(),
        values: columns,
        distributions: DISTRIBUTIONS.iter().map(|(_, name)| TableColumn::new(name, "ns")).collect(),
        rows,
        missing: counts.missed,
    };
    table.sort();
    table
}

/// Stands for the files that a process gives another name, where that is not known, and for attempts that failed.
const RENAMED: &str = "[renamed files]";

/// What a name ends with when the file has been deleted.
const DELETED: &str = " (deleted)";

/// Rows that a table may have: see [`Table::is_sound`].
const MAX_ROWS: usize = 1 << 16;

/// Moves renames from the row of all of a process to those of their new names, each with its share of the time.
fn name_renamed(rows: &mut Vec<Row>, renames: &BTreeMap<(u32, String), u64>) {
    let column = |name: &str| VALUES.iter().position(|(column, _)| *column == name).unwrap_or(0);
    let (time, renamed) = (column("time"), column("renames"));
    let key = |row: &Row| (row.labels[0].clone(), row.labels[2].clone());
    let mut places: HashMap<_, _> = rows.iter().enumerate().map(|(index, row)| (key(row), index)).collect();
    let new_names = renames.iter().map(|((pid, path), &count)| (pid.to_string(), path.as_str(), count));
    for (pid, path, count) in new_names {
        let Some(&all) = places.get(&(RENAMED.to_owned(), pid.clone())) else { continue };
        let is_full = rows.len() >= MAX_ROWS;
        let all = &mut rows[all];
        let count = count.min(all.values[renamed]);
        if count == 0 || is_full {
            continue;
        }
        let share = all.values[time] / all.values[renamed] * count;
        all.values[renamed] -= count;
        all.values[time] -= share;
        let process = all.labels[1].clone();
        let index = *places.entry((path.to_owned(), pid.clone())).or_insert(rows.len());
        if index == rows.len() {
            rows.push(Row {
                labels: vec![path.to_owned(), process, pid],
                values: vec![0; VALUES.len()],
                distributions: vec![Histogram::default(); DISTRIBUTIONS.len()],
            });
        }
        rows[index].values[renamed] += count;
        rows[index].values[time] += share;
    }
    rows.retain(|row| row.labels[0] != RENAMED || row.values[renamed] > 0);
}

/// The values of a row, as in [`VALUES`].
///
/// A page that was read and had not to be brought in first is a hit; one that was brought in is a miss, also where that was
/// done ahead of the read.
fn values(stats: &FileStats) -> [u64; VALUES.len()] {
    let by_operation = &stats.by_operation;
    let of = |operation: FileOperation| by_operation[operation as usize - 1];
    let [read, write, sync, open, rename, mapped] = [
        FileOperation::Read,
        FileOperation::Write,
        FileOperation::Sync,
        FileOperation::Open,
        FileOperation::Rename,
        FileOperation::MappedWrite,
    ]
    .map(of);
    [
        by_operation.iter().map(|sum| sum.bytes).sum(),
        by_operation.iter().map(|sum| sum.total_ns).sum(),
        read.operations,
        read.bytes,
        read.total_ns,
        write.operations,
        write.bytes,
        write.total_ns,
        sync.operations,
        sync.total_ns,
        open.operations,
        open.total_ns,
        rename.operations,
        mapped.operations,
        mapped.bytes,
        stats.pages_read.saturating_sub(stats.pages_added),
        stats.pages_added + stats.pages_faulted,
        by_operation.iter().map(|sum| sum.errors).sum(),
    ]
}

/// What a reader must know of what is missing.
pub(super) fn warnings(counts: &FileCounts) -> Vec<String> {
    let mut warnings = Vec::new();
    if !counts.has_rings {
        warnings.push("this kernel does not show requests of io_uring: they are not among the files".to_owned());
    }
    if counts.untimed > 0 {
        let untimed = counts.untimed;
        warnings.push(format!("{untimed} operations are in no distribution of times: there are too many files"));
    }
    warnings
}

fn name(bytes: &[u8; COMM_LEN]) -> String {
    let end = bytes.iter().position(|&byte| byte == 0).unwrap_or(COMM_LEN);
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

#[cfg(test)]
mod tests {
    use profiler_common::file::{OPERATIONS, OperationStats, TIMED_OPERATIONS};
    use profiler_common::histogram::{HISTOGRAM_BUCKETS, bucket_of};

    use super::*;
    use crate::bpf::NamedFile;

    fn counted(inode: u64, operation: FileOperation, sum: OperationStats) -> (FileKey, FileStats) {
        let device = if inode == 0 { 0 } else { 254 << 20 };
        let file = FileId { inode, device, generation: 0 };
        let mut stats = FileStats {
            by_operation: [OperationStats::default(); OPERATIONS],
            histograms: [0; TIMED_OPERATIONS + 1],
            process_comm: [0; COMM_LEN],
            pages_read: 0,
            pages_added: 0,
            pages_faulted: 0,
            is_deleted: 0,
        };
        stats.by_operation[operation as usize - 1] = sum;
        stats.process_comm[..3].copy_from_slice(b"cat");
        (FileKey { start_time_ns: 5, pid: 7, exec_count: 1, file }, stats)
    }

    #[test]
    fn rows_have_what_was_counted_and_renames_their_names() {
        let mut histogram = Box::new([0; HISTOGRAM_BUCKETS]);
        histogram[bucket_of(500)] = 10;
        let reads = OperationStats { operations: 10, errors: 1, bytes: 4_000, total_ns: 5_000, max_ns: 501 };
        let (key, mut stats) = counted(9, FileOperation::Read, reads);
        (stats.pages_read, stats.pages_added, stats.pages_faulted, stats.is_deleted) = (10, 4, 2, 1);
        let (renamed_key, renamed) =
            counted(0, FileOperation::Rename, OperationStats { operations: 3, total_ns: 300, ..Default::default() });
        let counts = FileCounts {
            files: vec![
                CountedFile { key, stats, histograms: [Some(histogram), None, None] },
                CountedFile { key: renamed_key, stats: renamed, histograms: [None, None, None] },
            ],
            missed: 2,
            untimed: 1,
            has_rings: true,
        };
        let mut names = FileNames::default();
        let new = |path: &[u8]| NamedFile {
            id: FileId::default(),
            pid: 7,
            path: path.to_vec(),
            is_deleted: false,
            is_cut: false,
            renamed_in: Some(-100),
        };
        names.add(&[new(b"/new"), new(b"/new")]);
        let table = table(&counts, &mut names, &mut Readings::default(), true);
        assert!(table.is_sound(), "{table:?}");
        assert_eq!(table.missing, 2);
        let value = |row: &Row, name: &str| row.values[VALUES.iter().position(|(column, _)| *column == name).unwrap()];
        let [read, new, all] = &table.rows[..] else { panic!("{table:?}") };
        assert_eq!(read.labels, ["[inode 9 on 254:0] (deleted)", "cat", "7"]);
        assert_eq!((value(read, "moved"), value(read, "reads"), value(read, "errors")), (4_000, 10, 1));
        assert_eq!((value(read, "cache_hits"), value(read, "cache_misses")), (6, 6));
        assert_eq!((read.distributions[0].count(), read.distributions[0].max), (10, 501));
        assert_eq!((all.labels[0].as_str(), value(all, "renames"), value(all, "time")), (RENAMED, 1, 100));
        assert_eq!((new.labels[0].as_str(), value(new, "renames"), value(new, "time")), ("/new", 2, 200));
        assert_eq!(warnings(&counts).len(), 1);
    }
}
