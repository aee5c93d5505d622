//! Latencies of requests to block devices: how many took how long in each second.
//!
//! Input: what the programs have counted so far, each second. Output: the slices that `iolatency.csv` and the heatmap show.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::Duration;

use profiler_common::block::{BLOCK_TIMES, BlockKey, BlockStats};
use profiler_common::histogram::{HISTOGRAM_BUCKETS, bucket_range};

use super::blocks::{device, operation};
use crate::profile::{Histogram, IoCell, IoLatency};

/// What had been counted of requests of a kind when the last slice ended.
#[derive(Debug)]
struct Counted {
    requests: u64,
    bytes: u64,
    counts: [[u64; HISTOGRAM_BUCKETS]; BLOCK_TIMES.len()],
}

/// What was counted in each slice, by device and operation.
#[derive(Debug, Default)]
pub(super) struct Latencies {
    before: HashMap<BlockKey, Box<Counted>>,
    slices: IoLatency,
    /// When the last slice ended, and the window of the first, ns since the start of the recording.
    ended_ns: u64,
    began_ns: u64,
}

impl Latencies {
    /// Takes in what was counted until `elapsed`.
    pub(super) fn end_slice(&mut self, elapsed: Duration, stats: &[(BlockKey, BlockStats)]) {
        let mut cells: BTreeMap<(u32, u16), IoCell> = BTreeMap::new();
        for (key, stats) in stats {
            let none = || Box::new(Counted { requests: 0, bytes: 0, counts: [[0; _]; _] });
            let before = self.before.entry(*key).or_insert_with(none);
            if (before.requests, before.bytes) == (stats.counts.requests, stats.counts.bytes) {
                continue;
            }
            let cell = cells.entry((key.device, key.operation)).or_default();
            cell.requests += stats.counts.requests.saturating_sub(before.requests);
            cell.bytes += stats.counts.bytes.saturating_sub(before.bytes);
            let counts = stats.counts();
            for (time, (now, before)) in counts.iter().zip(&before.counts).enumerate() {
                let counts: Vec<u64> =
                    now.iter().zip(before).map(|(&now, &before)| now.saturating_sub(before)).collect();
                let highest = counts.iter().rposition(|&count| count > 0).unwrap_or(0);
                // The greatest of all time may not be of this slice: nothing is known of it but its bucket.
                let max = (bucket_range(highest).1 - 1).min(stats.counts.max_ns[time]);
                let histogram = [&mut cell.total, &mut cell.queue, &mut cell.on_device].into_iter().nth(time);
                if let Some(histogram) = histogram {
                    histogram.add(&Histogram::new(&counts, max));
                }
            }
            **before = Counted { requests: stats.counts.requests, bytes: stats.counts.bytes, counts };
        }
        let now_ns = u64::try_from(elapsed.as_nanos()).unwrap_or(u64::MAX);
        let cells = cells.into_iter().map(|((number, kind), cell)| IoCell {
            device: device(number),
            operation: operation(kind),
            ..cell
        });
        self.slices.push(self.ended_ns - self.began_ns, now_ns.saturating_sub(self.ended_ns), cells);
        self.ended_ns = now_ns;
    }

    /// The slices since the last call, by the time since then. `stats`: what was counted until the last of them ended.
    pub(super) fn take_slices(&mut self, stats: &[(BlockKey, BlockStats)]) -> IoLatency {
        let known: HashSet<&BlockKey> = stats.iter().map(|(key, _)| key).collect();
        self.before.retain(|key, _| known.contains(key));
        self.began_ns = self.ended_ns;
        std::mem::take(&mut self.slices)
    }
}

#[cfg(test)]
mod tests {
    use profiler_common::block::BlockCounts;
    use profiler_common::histogram::bucket_of;

    use super::*;

    fn counted(requests: u32, ns: u64) -> (BlockKey, BlockStats) {
        let mut histograms = [[0; _]; _];
        histograms[0][bucket_of(ns)] = requests;
        let counts = BlockCounts {
            requests: u64::from(requests),
            bytes: u64::from(requests) * 4096,
            max_ns: [ns, 0, ns],
            ..BlockCounts::default()
        };
        let stats = BlockStats { counts, process_comm: [0; _], histograms };
        (BlockKey { device: 7 << 20, operation: 1, ..BlockKey::default() }, stats)
    }

    #[test]
    fn a_slice_has_what_came_in_it() {
        let mut latencies = Latencies::default();
        latencies.end_slice(Duration::from_secs(1), &[counted(10, 5_000)]);
        latencies.end_slice(Duration::from_secs(2), &[counted(10, 5_000)]);
        latencies.end_slice(Duration::from_secs(3), &[counted(14, 5_000)]);
        let slices = latencies.take_slices(&[]);
        assert!(slices.is_sound());
        let found: Vec<_> = slices.cells.iter().map(|cell| (cell.slice, cell.requests, cell.bytes)).collect();
        assert_eq!(found, [(0, 10, 40_960), (2, 4, 4 * 4096)]);
        let IoCell { total, queue, on_device, .. } = &slices.cells[1];
        assert_eq!([total, queue, on_device].map(Histogram::count), [4; 3]);
        assert!(total.percentile(500).unwrap().abs_diff(5_000) < 5_000 / 16, "{total:?}");
        assert_eq!(queue.percentile(990), Some(0));
    }
}
