//! System calls as a table: what the programs counted exactly, with names.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use profiler_common::event::COMM_LEN;
use profiler_common::system_call::{CallKey, CallStats, SYSTEM_CALLS, named_call};

use super::readings::Readings;
use crate::profile::{Histogram, Row, Table, TableColumn};

/// Time in the calls, calls, and those of them that failed.
const VALUES: [(&str, &str); 3] = [("time", "ns"), ("calls", "count"), ("errors", "count")];

/// The distributions: of the time that calls took which succeeded, and of those that failed.
const DISTRIBUTIONS: [(&str, &str); 2] = [("succeeded", "ns"), ("failed", "ns")];

/// The table of what was counted since the reading before. `uncounted`: calls that found no room; `is_last`: there is no other
/// reading.
pub(super) fn table(
    stats: &[(CallKey, CallStats)],
    uncounted: u64,
    readings: &mut Readings<CallKey>,
    is_last: bool,
) -> Table {
    let columns = |columns: &[(&str, &str)]| -> Vec<TableColumn> {
        columns.iter().map(|(name, unit)| TableColumn::new(name, unit)).collect()
    };
    let mut rows: BTreeMap<CallKey, Row> = BTreeMap::new();
    for (key, stats) in stats {
        let number = named_call(key.number);
        let errors = if key.failed == 0 { 0 } else { stats.calls };
        let mut read = Row {
            labels: vec![SYSTEM_CALLS[usize::from(number)].to_owned(), name(&stats.process_comm), key.pid.to_string()],
            values: vec![stats.total_ns, stats.calls, errors],
            distributions: vec![Histogram::default(); DISTRIBUTIONS.len()],
        };
        read.distributions[usize::from(key.failed != 0)] = Histogram::new(&stats.histogram, stats.max_ns);
        let Some(come) = readings.since(*key, read, &columns(&VALUES), is_last) else { continue };
        // Calls without a name are one row, as are those that failed and those that did not.
        match rows.entry(CallKey { number, failed: 0, ..*key }) {
            Entry::Vacant(entry) => drop(entry.insert(come)),
            Entry::Occupied(mut entry) => entry.get_mut().add(&come),
        }
    }
    let mut table = Table {
        title: "System calls".to_owned(),
        labels: ["call", "process", "pid"].map(str::to_owned).to_vec(),
        values: columns(&VALUES),
        distributions: columns(&DISTRIBUTIONS),
        rows: rows.into_values().collect(),
        missing: uncounted,
    };
    table.sort();
    table
}

fn name(bytes: &[u8; COMM_LEN]) -> String {
    let end = bytes.iter().position(|&byte| byte == 0).unwrap_or(COMM_LEN);
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

#[cfg(test)]
mod tests {
    use profiler_common::histogram::{HISTOGRAM_BUCKETS, bucket_of};
    use profiler_common::system_call::OTHER_CALL;

    use super::*;

    fn counted(number: u16, failed: u16, calls: u64, ns: u64) -> (CallKey, CallStats) {
        let mut histogram = [0; HISTOGRAM_BUCKETS];
        histogram[bucket_of(ns)] = calls;
        let key = CallKey { start_time_ns: 5, pid: 7, exec_count: 1, number, failed, reserved: 0 };
        let mut process_comm = [0; COMM_LEN];
        process_comm[..3].copy_from_slice(b"cat");
        (key, CallStats { calls, total_ns: calls * ns, max_ns: ns, process_comm, histogram })
    }

    #[test]
    fn a_call_is_one_row_whether_it_failed_or_not() {
        let table = table(
            &[counted(0, 0, 10, 500), counted(0, 1, 3, 100), counted(400, 0, 1, 9), counted(OTHER_CALL, 0, 1, 9)],
            2,
            &mut Readings::default(),
            true,
        );
        assert!(table.is_sound());
        assert_eq!(table.missing, 2);
        let [read, other] = &table.rows[..] else { panic!("{table:?}") };
        assert_eq!(
            (&read.labels[..], &read.values[..]),
            (&["read", "cat", "7"].map(str::to_owned)[..], &[5_300, 13, 3][..])
        );
        assert_eq!(
            read.distributions.iter().map(|one| (one.max, one.count())).collect::<Vec<_>>(),
            [(500, 10), (100, 3)]
        );
        assert_eq!((other.labels[0].as_str(), other.values[1]), ("other", 2));
    }
}
