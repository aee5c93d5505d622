//! What the kernel counts of block devices itself, for everybody: how busy they were while the recording ran.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::time::Duration;

use super::blocks::device;
use crate::profile::{Row, Table, TableColumn};

/// Name of the table.
pub(super) const DEVICES: &str = "blockio_devices";

/// Its values: sums, and what they come to on average.
const VALUES: [(&str, &str); 9] = [
    ("bytes", "bytes"),
    ("requests", "count"),
    ("merged", "count"),
    ("busy", "ns"),
    ("in_flight", "ns"),
    ("requests", "per_s"),
    ("bytes", "per_s"),
    ("utilisation", "per_mille"),
    ("queue_depth", "thousandths"),
];

/// Counts of all devices at a moment, by number as the kernel writes it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Disks(BTreeMap<u32, Counts>);

/// Counts of a device since it came.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Counts {
    requests: u64,
    merged: u64,
    sectors: u64,
    busy_ms: u64,
    in_flight_ms: u64,
    in_flight: u64,
}

impl Disks {
    /// Reads them; nothing where the kernel does not tell.
    pub(super) fn read() -> Self {
        Self::parse(&fs::read_to_string("/proc/diskstats").unwrap_or_default())
    }

    /// Source: Documentation/admin-guide/iostats.rst.
    fn parse(text: &str) -> Self {
        let counts = text.lines().filter_map(|line| {
            let mut fields = line.split_ascii_whitespace();
            let (major, minor): (u32, u32) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
            let numbers: Vec<u64> = fields.skip(1).map_while(|field| field.parse().ok()).collect();
            let number = |index: usize| numbers.get(index).copied().unwrap_or(0);
            // Of reads, writes, discards (Linux 4.18) and flushes (5.5).
            let counts = Counts {
                requests: number(0) + number(4) + number(11) + number(15),
                merged: number(1) + number(5) + number(12),
                sectors: number(2) + number(6) + number(13),
                busy_ms: number(9),
                in_flight_ms: number(10),
                in_flight: number(8),
            };
            Some((major << 20 | minor & 0xf_ffff, counts))
        });
        Self(counts.collect())
    }

    /// Requests that are under way at this moment.
    pub(super) fn in_flight(&self) -> u64 {
        self.0.values().map(|counts| counts.in_flight).sum()
    }

    /// What has come since `before` of the devices that are `wanted`, in so much time.
    pub(super) fn since(&self, before: &Self, wanted: &BTreeSet<u32>, duration: Duration) -> Table {
        const SECTOR_BYTES: u64 = 512;
        let elapsed_ms = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX).max(1);
        let rows = self.0.iter().filter(|(number, _)| wanted.contains(number)).map(|(number, now)| {
            let was = before.0.get(number).copied().unwrap_or_default();
            let bytes = now.sectors.saturating_sub(was.sectors).saturating_mul(SECTOR_BYTES);
            let requests = now.requests.saturating_sub(was.requests);
            let (busy_ms, in_flight_ms) =
                (now.busy_ms.saturating_sub(was.busy_ms), now.in_flight_ms.saturating_sub(was.in_flight_ms));
            let by_time = |sum: u64| sum.saturating_mul(1_000) / elapsed_ms;
            Row {
                labels: vec![device(*number)],
                values: vec![
                    bytes,
                    requests,
                    now.merged.saturating_sub(was.merged),
                    busy_ms.saturating_mul(1_000_000),
                    in_flight_ms.saturating_mul(1_000_000),
                    by_time(requests),
                    by_time(bytes),
                    by_time(busy_ms).min(1_000),
                    by_time(in_flight_ms),
                ],
                distributions: Vec::new(),
            }
        });
        let mut table = Table {
            title: "Block devices, as the kernel counts them for everybody".to_owned(),
            labels: vec!["device".to_owned()],
            values: VALUES.map(|(name, unit)| TableColumn::new(name, unit)).to_vec(),
            distributions: Vec::new(),
            rows: rows.collect(),
            missing: 0,
        };
        table.sort();
        table
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn averages_are_those_of_the_time_between() {
        let before = Disks::parse(" 254 0 vda 10 0 80 5 0 0 0 0 0 100 200 0 0 0 0 0 0\n");
        let after = Disks::parse(
            " 254 0 vda 110 3 8080 5 50 2 400 0 0 600 2200 0 0 0 0 7 0\n 254 1 vda1 1 0 8 0 0 0 0 0 0 0 0 0 0 0 0\n",
        );
        let table = after.since(&before, &[254 << 20].into(), Duration::from_secs(1));
        assert!(table.is_sound());
        let [row] = &table.rows[..] else { panic!("{table:?}") };
        assert_eq!(row.values, [8_400 * 512, 157, 5, 500_000_000, 2_000_000_000, 157, 8_400 * 512, 500, 2_000]);
    }
}
