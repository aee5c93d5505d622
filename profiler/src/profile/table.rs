//! What is counted rather than sampled: labels to values, and to distributions.
//!
//! One table for each thing that is counted exactly, whatever it is: system calls by process and call, requests by device.
//! `collect` fills it, `capture.json` holds it whole, reports show percentiles of its distributions.

use std::collections::BTreeMap;

use profiler_common::histogram::{HISTOGRAM_BUCKETS, bucket_range};
use serde::{Deserialize, Serialize};

/// Rows of labels with values and distributions.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Table {
    /// What the rows are, for a person: `System calls`.
    pub title: String,
    /// Names of the labels that tell the rows apart.
    pub labels: Vec<String>,
    /// The values of each row. The rows are in the order of the first one, most first.
    pub values: Vec<TableColumn>,
    /// The distributions of each row.
    pub distributions: Vec<TableColumn>,
    /// The rows.
    pub rows: Vec<Row>,
    /// Events that are in no row, for want of room.
    pub missing: u64,
}

/// What a value is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableColumn {
    /// Its name.
    pub name: String,
    /// Its unit: `ns`, `bytes`, `count`.
    pub unit: String,
}

/// One row: as many of each as the table names.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Row {
    /// By [`Table::labels`].
    pub labels: Vec<String>,
    /// By [`Table::values`].
    pub values: Vec<u64>,
    /// By [`Table::distributions`].
    pub distributions: Vec<Histogram>,
}

/// How many events had which value, each known to within a sixteenth; the greatest exactly.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Histogram {
    /// The greatest value.
    pub max: u64,
    /// Events by bucket of [`profiler_common::histogram`], those without any left out.
    pub buckets: BTreeMap<u16, u64>,
}

/// The percentiles that are shown of a distribution, in thousandths. The greatest value comes after them.
pub const PERCENTILES: [(&str, u32); 3] = [("p50", 500), ("p90", 900), ("p99", 990)];

/// The rank, from 1, of the least of `count` values that `per_mille` of a thousand do not exceed; 1 when there are none.
#[must_use]
pub fn rank(count: u64, per_mille: u32) -> u64 {
    let rank = (u128::from(count) * u128::from(per_mille)).div_ceil(1000);
    u64::try_from(rank).unwrap_or(u64::MAX).clamp(1, count.max(1))
}

/// Greatest count that a table may hold, and greatest sum of a value over all rows: keeps sums from a hostile file within 64
/// bits.
const MAX_COUNT: u64 = 1 << 53;
const MAX_SUM: u64 = u64::MAX >> 3;
/// Most rows of a table that is read.
const MAX_ROWS: usize = 1 << 16;

impl TableColumn {
    /// A column of that name and unit.
    #[must_use]
    pub fn new(name: &str, unit: &str) -> Self {
        Self { name: name.to_owned(), unit: unit.to_owned() }
    }

    /// Its name with its unit, as fields in JSON are called: `time_ns`; a count is called as it is, as are `bytes`.
    #[must_use]
    pub fn field(&self) -> String {
        if self.unit == "count" || self.unit == self.name {
            self.name.clone()
        } else {
            format!("{}_{}", self.name, self.unit)
        }
    }
}

impl Table {
    /// Sorts the rows: most of the first value first, equals by their labels.
    pub fn sort(&mut self) {
        self.rows.sort_by(|a, b| b.values.first().cmp(&a.values.first()).then_with(|| a.labels.cmp(&b.labels)));
    }

    /// Sum of a value over all rows.
    #[must_use]
    pub fn total(&self, value: usize) -> u64 {
        self.rows.iter().filter_map(|row| row.values.get(value)).sum()
    }

    /// Whether every row has what the table names, and every number is one that can be.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        let shape = (self.labels.len(), self.values.len(), self.distributions.len());
        self.rows.len() <= MAX_ROWS
            && self.missing < MAX_COUNT
            && self.rows.iter().all(|row| {
                (row.labels.len(), row.values.len(), row.distributions.len()) == shape
                    && row.distributions.iter().all(Histogram::is_sound)
            })
            && (0..self.values.len()).all(|value| {
                let values = self.rows.iter().map(|row| row.values[value]);
                values.into_iter().try_fold(0_u64, u64::checked_add).is_some_and(|sum| sum <= MAX_SUM)
            })
    }
}

impl Row {
    /// Adds another row's values and distributions, which the table has as one; of a value that is no sum see [`Row::since`].
    pub fn add(&mut self, other: &Self) {
        self.values.iter_mut().zip(&other.values).for_each(|(sum, value)| *sum = sum.saturating_add(*value));
        self.distributions.iter_mut().zip(&other.distributions).for_each(|(sum, other)| sum.add(other));
    }

    /// What has come since `before`, which was read of the same row earlier; nothing when nothing has.
    ///
    /// A value that is called `longest` is no sum: it stays as it is, the greatest of all time.
    #[must_use]
    pub fn since(&self, before: &Self, columns: &[TableColumn]) -> Option<Self> {
        let values = self
            .values
            .iter()
            .zip(&before.values)
            .zip(columns)
            .map(|((&now, &before), column)| if column.name == LONGEST { now } else { now.saturating_sub(before) });
        let distributions = self.distributions.iter().zip(&before.distributions).map(|(now, before)| now.since(before));
        let has_come = self.values != before.values || self.distributions != before.distributions;
        has_come.then(|| Self {
            labels: self.labels.clone(),
            values: values.collect(),
            distributions: distributions.collect(),
        })
    }
}

/// Name of a value that is the greatest of what was counted, not a sum.
const LONGEST: &str = "longest";

impl Histogram {
    /// From what was counted by bucket. `max`: the greatest value, where that is known.
    #[must_use]
    pub fn new(counts: &[u64], max: u64) -> Self {
        let counts = (0..).zip(counts).filter(|&(_, &count)| count > 0);
        Self { max, buckets: counts.map(|(bucket, &count)| (bucket, count)).collect() }
    }

    /// Events in it.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.buckets.values().sum()
    }

    /// The value that `per_mille` of a thousand events do not exceed; `None` when there are no events.
    ///
    /// Values are taken to be even in their bucket; none is above the greatest.
    #[must_use]
    pub fn percentile(&self, per_mille: u32) -> Option<u64> {
        let rank = u128::from(rank(self.count(), per_mille));
        let mut before = 0;
        for (&bucket, &here) in &self.buckets {
            let here = u128::from(here);
            if before + here >= rank {
                let (start, end) = bucket_range(usize::from(bucket));
                let into = u128::from(end - start) * (2 * (rank - before) - 1) / (2 * here);
                return Some((start + u64::try_from(into).unwrap_or(0)).min(self.max));
            }
            before += here;
        }
        None
    }

    /// Mean and standard deviation of the values, each taken to be in the middle of its bucket; `None` when there are none.
    #[must_use]
    pub fn mean_and_deviation(&self) -> Option<(u64, u64)> {
        #[expect(clippy::cast_precision_loss, reason = "of a mean few digits say something")]
        let float = |number: u64| number as f64;
        let middles = self.buckets.iter().map(|(&bucket, &count)| {
            let (start, end) = bucket_range(usize::from(bucket));
            (float((start + (end - start) / 2).min(self.max)), float(count))
        });
        let count = float(self.count());
        let mean = middles.clone().map(|(middle, count)| middle * count).sum::<f64>() / count;
        let squares = middles.map(|(middle, count)| count * (middle - mean).powi(2)).sum::<f64>();
        let deviation = (squares / (count - 1.0).max(1.0)).sqrt();
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "not above the greatest value")]
        let found = (mean.round() as u64, deviation.round() as u64);
        (count > 0.0).then_some(found)
    }

    /// Adds what another one has counted.
    pub fn add(&mut self, other: &Self) {
        self.max = self.max.max(other.max);
        for (&bucket, &count) in &other.buckets {
            let sum = self.buckets.entry(bucket).or_default();
            *sum = sum.saturating_add(count);
        }
    }

    /// What has come since `before`, which was read of the same events earlier.
    ///
    /// The greatest value of all time may not be among them: nothing is known of theirs but the end of its bucket.
    #[must_use]
    pub fn since(&self, before: &Self) -> Self {
        let come = self.buckets.iter().filter_map(|(&bucket, &count)| {
            let come = count.saturating_sub(before.buckets.get(&bucket).copied().unwrap_or(0));
            (come > 0).then_some((bucket, come))
        });
        let buckets: BTreeMap<u16, u64> = come.collect();
        let highest = buckets.keys().next_back().map_or(0, |&bucket| bucket_range(usize::from(bucket)).1 - 1);
        let max = if self.max > before.max { self.max } else { highest.min(self.max) };
        Self { max, buckets }
    }

    /// Whether every number is one that can be.
    pub(super) fn is_sound(&self) -> bool {
        self.max < MAX_COUNT
            && self
                .buckets
                .iter()
                .all(|(&bucket, &count)| usize::from(bucket) < HISTOGRAM_BUCKETS && count < MAX_COUNT / 1024)
    }
}

#[cfg(test)]
mod tests {
    use profiler_common::histogram::bucket_of;

    use super::*;

    fn histogram(values: impl Iterator<Item = u64>) -> Histogram {
        let (mut counts, mut max) = ([0; HISTOGRAM_BUCKETS], 0);
        for value in values {
            counts[bucket_of(value)] += 1;
            max = max.max(value);
        }
        Histogram::new(&counts, max)
    }

    #[test]
    fn percentiles_are_those_of_the_values() {
        let even = histogram((1..=100_000).map(|value| value * 100));
        for (per_mille, expected) in [(500, 5_000_000_u64), (900, 9_000_000), (990, 9_900_000), (1000, 10_000_000)] {
            let found = even.percentile(per_mille).unwrap();
            assert!(found.abs_diff(expected) < expected / 100, "{per_mille}: {found}");
        }
        // All alike: in the middle of a bucket, or the greatest where that is less.
        let alike = histogram(std::iter::repeat_n(10_100_000, 50));
        assert!(alike.percentile(500).unwrap().abs_diff(10_100_000) < 10_100_000 / 32);
        assert_eq!(histogram([7].into_iter()).percentile(990), Some(6));
        // Longer than any bucket.
        assert!(histogram([1 << 40].into_iter()).percentile(500).unwrap() < 1 << 37);
        assert_eq!(Histogram::default().percentile(500), None);
        // Of 1 to n: n / sqrt(12).
        let (mean, deviation) = even.mean_and_deviation().unwrap();
        assert!(mean.abs_diff(5_000_050) < 30_000 && deviation.abs_diff(2_886_750) < 30_000, "{mean} {deviation}");
        let (mean, deviation) = alike.mean_and_deviation().unwrap();
        assert!(mean.abs_diff(10_100_000) < 10_100_000 / 32 && deviation == 0, "{mean} {deviation}");
        assert_eq!(Histogram::default().mean_and_deviation(), None);
    }

    #[test]
    fn a_rank_is_that_of_a_value() {
        assert_eq!([0, 500, 501, 990, 1000].map(|per_mille| rank(100, per_mille)), [1, 50, 51, 99, 100]);
        assert_eq!((rank(0, 500), rank(1, 990), rank(u64::MAX, 1000)), (1, 1, u64::MAX));
    }

    #[test]
    fn rows_must_have_what_the_table_names() {
        let row = Row { labels: vec!["read".to_owned()], values: vec![1], distributions: vec![] };
        let mut table = Table {
            labels: vec!["call".to_owned()],
            values: vec![TableColumn::new("calls", "count")],
            ..Table::default()
        };
        table.rows.push(row.clone());
        assert!(table.is_sound());
        table.rows.push(Row { values: vec![], ..row.clone() });
        assert!(!table.is_sound());
        table.rows[1] = Row { values: vec![u64::MAX], ..row };
        assert!(!table.is_sound());
        assert!(!Histogram { max: 1, buckets: [(512, 1)].into() }.is_sound());
    }
}
