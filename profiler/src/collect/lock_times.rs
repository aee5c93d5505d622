//! What waits for locks have come to, by lock and who ended them.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use profiler_common::wait::{LockKey, LockWaits, WaitingRecord};

use crate::profile::LockTime;

/// Rows of a capture: those with most time.
const MAX_ROWS: usize = 4_096;

/// What waits for locks have come to.
#[derive(Debug, Default)]
pub(super) struct LockTimes(BTreeMap<LockKey, LockWaits>);

impl LockTimes {
    /// Adds what the programs have counted.
    pub(super) fn add(&mut self, key: LockKey, waits: LockWaits) {
        let sum = self.0.entry(key).or_default();
        sum.waits += waits.waits;
        sum.delay_ns += waits.delay_ns;
        sum.longest_ns = sum.longest_ns.max(waits.longest_ns);
    }

    /// Adds a wait that has not ended.
    pub(super) fn add_lasting(&mut self, record: &WaitingRecord, waited_ns: u64) {
        let WaitingRecord { start_time_ns, argument: address, pid, .. } = *record;
        let key = LockKey { start_time_ns, address, waker: 0, pid, reserved: 0 };
        self.add(key, LockWaits { waits: 1, delay_ns: waited_ns, longest_ns: waited_ns });
    }

    /// Rows, most time first, and the time of those that there is no room for, ns. Where there are too many, a lock's least
    /// wakers are left out first.
    pub(super) fn into_rows(self) -> (Vec<LockTime>, u64) {
        let by_time = |locks: Self| {
            let mut rows: Vec<_> = locks.0.into_iter().collect();
            // The map is in the order of the keys, and this keeps the order of equals.
            rows.sort_by_key(|(_, waits)| Reverse(waits.delay_ns));
            rows
        };
        let mut rows = by_time(self);
        if rows.len() > MAX_ROWS {
            let mut folded = Self::default();
            for (index, (key, waits)) in rows.into_iter().enumerate() {
                let waker = if index < MAX_ROWS / 2 { key.waker } else { 0 };
                folded.add(LockKey { waker, ..key }, waits);
            }
            rows = by_time(folded);
        }
        let left_out = rows.drain(MAX_ROWS.min(rows.len())..).map(|(_, waits)| waits.delay_ns).sum();
        let row = |(key, waits): (LockKey, LockWaits)| LockTime {
            pid: key.pid,
            start_time_ns: key.start_time_ns,
            address: format!("{:#x}", key.address),
            waker: format!("{:#x}", key.waker),
            waits: waits.waits,
            delay_ns: waits.delay_ns,
            longest_ns: waits.longest_ns,
        };
        (rows.into_iter().map(row).collect(), left_out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_time_is_forgotten_however_many_wakers_there_are() {
        let mut locks = LockTimes::default();
        for waker in 1..=3 * MAX_ROWS as u64 {
            let key = LockKey { address: waker % 7, waker, pid: 1, ..LockKey::default() };
            locks.add(key, LockWaits { waits: 1, delay_ns: waker, longest_ns: waker });
        }
        let wakers = 3 * MAX_ROWS as u64;
        let (rows, left_out) = locks.into_rows();
        assert_eq!((rows.len(), left_out), (MAX_ROWS / 2 + 7, 0));
        assert_eq!(rows.iter().map(|row| row.delay_ns).sum::<u64>(), wakers * (wakers + 1) / 2);
    }
}
