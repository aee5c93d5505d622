//! How long requests to block devices took, slice by slice.
//!
//! Filled by `collect`, written by `output` as a table and as a heatmap.

use serde::{Deserialize, Serialize};

use super::{Histogram, MAX_SLICES};

/// Latencies by slices of about a second, or longer ones in a long recording.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct IoLatency {
    /// Start of each slice, ns since the start of the recording, by the monotonic clock.
    pub start_ns: Vec<u64>,
    /// Length of each slice, ns.
    pub length_ns: Vec<u64>,
    /// By slice, device and operation, ascending; where there were no requests, there is nothing.
    pub cells: Vec<IoCell>,
}

/// Requests of one kind to one device, in one slice.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct IoCell {
    /// Number of the slice.
    pub slice: u32,
    /// Name of the device: `nvme0n1`.
    pub device: String,
    /// What they did: `sync write`.
    pub operation: String,
    /// How many were done.
    pub requests: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Time until the device was asked, ns.
    pub queue: Histogram,
    /// Time until it had answered, ns.
    pub on_device: Histogram,
    /// Both, ns.
    pub total: Histogram,
}

impl IoCell {
    /// What tells cells apart, in their order.
    fn key(&self) -> (u32, &str, &str) {
        (self.slice, &self.device, &self.operation)
    }

    fn add(&mut self, other: &Self) {
        self.requests = self.requests.saturating_add(other.requests);
        self.bytes = self.bytes.saturating_add(other.bytes);
        self.queue.add(&other.queue);
        self.on_device.add(&other.on_device);
        self.total.add(&other.total);
    }
}

impl IoLatency {
    /// Whether there are no requests.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.cells.is_empty()
    }

    /// Adds a slice with what was done in it; the number of the slice in `cells` is not looked at.
    pub fn push(&mut self, start_ns: u64, length_ns: u64, cells: impl IntoIterator<Item = IoCell>) {
        if self.start_ns.len() >= MAX_SLICES {
            self.merge_neighbours();
        }
        let slice = u32::try_from(self.start_ns.len()).unwrap_or(u32::MAX);
        self.start_ns.push(start_ns);
        self.length_ns.push(length_ns);
        self.cells.extend(cells.into_iter().map(|cell| IoCell { slice, ..cell }));
        self.sum_up();
    }

    /// Makes one slice of every two neighbours, from the first on.
    pub fn merge_neighbours(&mut self) {
        self.start_ns = self.start_ns.chunks(2).map(|pair| pair[0]).collect();
        let length = |pair: &[u64]| pair.iter().fold(0, |sum: u64, &length| sum.saturating_add(length));
        self.length_ns = self.length_ns.chunks(2).map(length).collect();
        self.cells.iter_mut().for_each(|cell| cell.slice /= 2);
        self.sum_up();
    }

    /// Makes one cell of all with one key.
    pub(super) fn sum_up(&mut self) {
        self.cells.sort_by(|a, b| a.key().cmp(&b.key()));
        self.cells.dedup_by(|next, kept| {
            let equal = next.key() == kept.key();
            if equal {
                kept.add(next);
            }
            equal
        });
    }

    /// Whether cells are of slices that there are and every number is one that can be, which in a damaged file they may not.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        self.length_ns.len() == self.start_ns.len()
            && self.cells.iter().all(|cell| {
                (cell.slice as usize) < self.start_ns.len()
                    && [&cell.queue, &cell.on_device, &cell.total].into_iter().all(Histogram::is_sound)
            })
    }
}

#[cfg(test)]
mod tests {
    use profiler_common::histogram::{HISTOGRAM_BUCKETS, bucket_of};

    use super::*;

    fn histogram(ns: u64, count: u64) -> Histogram {
        let mut counts = [0; HISTOGRAM_BUCKETS];
        counts[bucket_of(ns)] = count;
        Histogram::new(&counts, ns)
    }

    fn cell(device: &str, operation: &str, requests: u64, ns: u64) -> IoCell {
        IoCell {
            device: device.to_owned(),
            operation: operation.to_owned(),
            requests,
            bytes: requests * 4096,
            total: histogram(ns, requests),
            ..IoCell::default()
        }
    }

    #[test]
    fn neighbours_and_equal_cells_become_one() {
        let mut latency = IoLatency::default();
        latency.push(0, 10, [cell("vdb", "read", 1, 100), cell("vda", "read", 2, 900), cell("vdb", "read", 4, 7_000)]);
        latency.push(10, 10, []);
        latency.push(20, 10, [cell("vda", "read", 3, 50)]);
        assert!(latency.is_sound());
        let requests = |latency: &IoLatency| -> Vec<(u32, String, u64, u64)> {
            latency.cells.iter().map(|cell| (cell.slice, cell.device.clone(), cell.requests, cell.total.max)).collect()
        };
        let (vda, vdb) = ("vda".to_owned(), "vdb".to_owned());
        assert_eq!(requests(&latency), [(0, vda.clone(), 2, 900), (0, vdb.clone(), 5, 7_000), (2, vda.clone(), 3, 50)]);
        latency.merge_neighbours();
        latency.merge_neighbours();
        assert_eq!(requests(&latency), [(0, vda, 5, 900), (0, vdb, 5, 7_000)]);
        assert_eq!((&latency.start_ns[..], &latency.length_ns[..]), (&[0][..], &[30][..]));
        assert_eq!(latency.cells[0].total.count(), 5);
        latency.cells[0].slice = 1;
        assert!(!latency.is_sound());
    }
}
