//! Latencies of requests to block devices, slice by slice: how many took how long in each second.
//!
//! Input: what the programs have counted so far, each second. Output: a table, of which the CSV file and the heat map are made.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use profiler_common::block::{BLOCK_OPERATIONS, BLOCK_TIMES, BlockKey, BlockStats};
use profiler_common::histogram::{HISTOGRAM_BUCKETS, bucket_range};

use super::blocks::device;
use crate::profile::{Histogram, Row, Table, TableColumn};

/// Most slices: beyond, each takes in its neighbour. As many as the timeline may have would make a table that is too long.
const MAX_SLICES: u64 = 900;

/// A slice may end so much late, ms.
const LATE_MS: u128 = 200;

/// Histograms of the times of a request.
type Counts = [[u64; HISTOGRAM_BUCKETS]; BLOCK_TIMES.len()];

/// What was counted in each slice, by device and operation.
#[derive(Debug, Default)]
pub(super) struct Latencies {
    /// What had been counted when the last slice ended.
    before: HashMap<BlockKey, Box<Counts>>,
    /// By slice, device and operation.
    slices: BTreeMap<(u64, u32, u16), Vec<Histogram>>,
    /// Seconds that a slice has, less those of the first doubling: 0 is one.
    doublings: u32,
}

impl Latencies {
    /// Takes in what was counted until `elapsed`.
    pub(super) fn end_slice(&mut self, elapsed: Duration, stats: &[(BlockKey, BlockStats)]) {
        // What was counted until a second has passed was in the slice before; a window ends a little late.
        let second = elapsed.as_millis().saturating_sub(LATE_MS) / 1000;
        let slice = u64::try_from(second).unwrap_or(u64::MAX) >> self.doublings;
        for (key, stats) in stats {
            let before = self.before.entry(*key).or_insert_with(|| Box::new([[0; _]; _]));
            let now = stats.counts();
            if **before == now {
                continue;
            }
            let times = self.slices.entry((slice, key.device, key.operation)).or_default();
            times.resize(BLOCK_TIMES.len(), Histogram::default());
            for (time, (now, before)) in now.iter().zip(&**before).enumerate() {
                // A number of 32 bits may begin anew.
                let counts: Vec<u64> =
                    now.iter().zip(before).map(|(&now, &before)| now.saturating_sub(before)).collect();
                let highest = counts.iter().rposition(|&count| count > 0).unwrap_or(0);
                // The greatest of all time may not be of this slice: no bucket says more than its end.
                let max = (bucket_range(highest).1 - 1).min(stats.max_ns[time]);
                times[time].add(&Histogram::new(&counts, max));
            }
            **before = now;
        }
        if slice >= MAX_SLICES {
            self.fold();
        }
    }

    /// Makes one of every two slices.
    fn fold(&mut self) {
        self.doublings += 1;
        for ((slice, device, operation), times) in std::mem::take(&mut self.slices) {
            let folded = self.slices.entry((slice / 2, device, operation)).or_default();
            folded.resize(BLOCK_TIMES.len(), Histogram::default());
            folded.iter_mut().zip(&times).for_each(|(folded, time)| folded.add(time));
        }
    }

    /// The table: a row for each slice, device and operation, in the order of time.
    pub(super) fn into_table(self) -> Table {
        let second = 1_u64 << self.doublings;
        let rows = self.slices.into_iter().map(|((slice, number, operation), distributions)| {
            let index = usize::from(operation).saturating_sub(1);
            let operation = BLOCK_OPERATIONS.get(index).copied().unwrap_or("other").to_owned();
            let requests = distributions[0].count();
            Row {
                labels: vec![(slice * second).to_string(), second.to_string(), device(number), operation],
                values: vec![requests],
                distributions,
            }
        });
        Table {
            title: "Latency of requests to block devices".to_owned(),
            labels: ["start_s", "length_s", "device", "operation"].map(str::to_owned).to_vec(),
            values: vec![TableColumn::new("requests", "count")],
            distributions: BLOCK_TIMES.map(|time| TableColumn::new(time, "ns")).to_vec(),
            rows: rows.collect(),
            missing: 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use profiler_common::histogram::bucket_of;

    use super::*;

    fn counted(requests: u32, ns: u64) -> (BlockKey, BlockStats) {
        let mut histograms = [[0; _]; _];
        histograms[0][bucket_of(ns)] = requests;
        let stats = BlockStats {
            requests: u64::from(requests),
            bytes: 0,
            errors: 0,
            sequential: 0,
            total_ns: 0,
            queue_ns: 0,
            max_ns: [ns; _],
            process_comm: [0; _],
            histograms,
        };
        (BlockKey { device: 7 << 20, operation: 1, ..BlockKey::default() }, stats)
    }

    #[test]
    fn a_slice_has_what_came_in_it() {
        let mut latencies = Latencies::default();
        latencies.end_slice(Duration::from_secs(1), &[counted(10, 5_000)]);
        latencies.end_slice(Duration::from_secs(2), &[counted(10, 5_000)]);
        latencies.end_slice(Duration::from_millis(3_201), &[counted(14, 5_000)]);
        let table = latencies.into_table();
        assert!(table.is_sound());
        let found: Vec<_> = table.rows.iter().map(|row| (row.labels[0].as_str(), row.values[0])).collect();
        assert_eq!(found, [("0", 10), ("3", 4)]);
        let p50 = table.rows[1].distributions[0].percentile(500).unwrap();
        assert!(p50.abs_diff(5_000) < 5_000 / 16, "{p50}");
    }

    #[test]
    fn many_slices_are_folded() {
        let mut latencies = Latencies::default();
        for second in 1..=3_000_u32 {
            latencies.end_slice(Duration::from_secs(second.into()), &[counted(second, 5_000)]);
        }
        let table = latencies.into_table();
        assert!(table.rows.len() <= 901, "{}", table.rows.len());
        assert_eq!(table.total(0), 3_000);
        assert_eq!(table.rows[1].labels[..2], ["4", "4"].map(str::to_owned));
    }
}
