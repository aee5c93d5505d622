//! What is counted in captures, added up: tables, times of threads and locks, accounting, how well objects are named.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use hashbrown::HashMap;

use crate::profile::{
    Accounting, ChainAccounting, Histogram, LockTime, ObjectSummary, OriginSummary, Row, Table, TableColumn, ThreadTime,
};

/// Most rows of a list or table; what is in others is added up in one.
const MAX_ROWS: usize = 10_000;
/// What labels say of a row that is many.
const OTHERS: &str = "(others)";

/// How the values of a column come together.
enum Adding {
    /// They are added.
    Sum,
    /// The greatest counts.
    Greatest,
    /// They are of a second: each counts as long as its capture took.
    Average,
}

fn adding(column: &TableColumn) -> Adding {
    match (column.name.as_str(), column.unit.as_str()) {
        ("longest", _) => Adding::Greatest,
        (_, "per_s" | "per_mille" | "thousandths") => Adding::Average,
        _ => Adding::Sum,
    }
}

/// Tables of one name, added up row by row.
pub(super) struct Tables {
    /// The first one, without its rows.
    head: Table,
    /// By labels. Averages are multiplied by their time.
    rows: HashMap<Vec<String>, (Vec<u128>, Vec<Histogram>)>,
}

impl Tables {
    pub(super) fn new(table: &Table) -> Self {
        Self { head: Table { rows: Vec::new(), missing: 0, ..table.clone() }, rows: HashMap::new() }
    }

    /// Adds the table of a capture that took `duration_ns`. One whose columns are not the same, as that of another version,
    /// is not added: returns whether it was.
    pub(super) fn add(&mut self, table: Table, duration_ns: u64) -> bool {
        let head = &mut self.head;
        if (&table.labels, &table.values, &table.distributions) != (&head.labels, &head.values, &head.distributions) {
            return false;
        }
        head.missing = head.missing.saturating_add(table.missing);
        for row in table.rows {
            let (values, distributions) = self
                .rows
                .entry(row.labels)
                .or_insert_with(|| (vec![0; head.values.len()], vec![Histogram::default(); head.distributions.len()]));
            for ((sum, value), column) in values.iter_mut().zip(&row.values).zip(&head.values) {
                let value = u128::from(*value);
                match adding(column) {
                    Adding::Sum => *sum = sum.saturating_add(value),
                    Adding::Greatest => *sum = (*sum).max(value),
                    Adding::Average => *sum = sum.saturating_add(value.saturating_mul(duration_ns.into())),
                }
            }
            distributions.iter_mut().zip(&row.distributions).for_each(|(sum, histogram)| sum.add(histogram));
        }
        true
    }

    /// The sum. `duration_ns`: of all captures.
    pub(super) fn finish(self, duration_ns: u64) -> Table {
        let Self { head: mut table, rows } = self;
        let time = u128::from(duration_ns.max(1));
        table.rows = rows
            .into_iter()
            .map(|(labels, (values, distributions))| {
                let values = values.into_iter().zip(&table.values).map(|(sum, column)| {
                    let value = if matches!(adding(column), Adding::Average) { sum / time } else { sum };
                    u64::try_from(value).unwrap_or(u64::MAX)
                });
                Row { labels, values: values.collect(), distributions }
            })
            .collect();
        table.sort();
        if table.rows.len() > MAX_ROWS {
            let rest = table.rows.split_off(MAX_ROWS - 1);
            let mut others = Row {
                labels: vec![OTHERS.to_owned(); table.labels.len()],
                values: vec![0; table.values.len()],
                distributions: vec![Histogram::default(); table.distributions.len()],
            };
            for row in rest {
                for ((sum, value), column) in others.values.iter_mut().zip(row.values).zip(&table.values) {
                    let greatest = matches!(adding(column), Adding::Greatest);
                    *sum = if greatest { value.max(*sum) } else { sum.saturating_add(value) };
                }
                others.distributions.iter_mut().zip(&row.distributions).for_each(|(sum, found)| sum.add(found));
            }
            table.rows.push(others);
        }
        table
    }
}

/// Times of threads, added up by thread.
#[derive(Default)]
pub(super) struct ThreadTimes(BTreeMap<(u32, u64, u32), ThreadTime>);

impl ThreadTimes {
    pub(super) fn add(&mut self, times: Vec<ThreadTime>) {
        for time in times {
            let key = (time.pid, time.start_time_ns, time.tid);
            match self.0.get_mut(&key) {
                Some(sum) => add_time(sum, &time),
                None => drop(self.0.insert(key, time)),
            }
        }
    }

    /// By process and number. Where there are too many, threads that were there for the shortest time are added up by process,
    /// then processes.
    pub(super) fn finish(self) -> Vec<ThreadTime> {
        let mut rows = self.0;
        if rows.len() > MAX_ROWS {
            rows = folded(rows, |time| (time.pid, time.start_time_ns));
        }
        if rows.len() > 2 * MAX_ROWS {
            rows = folded(rows, |_| (0, 0));
        }
        rows.into_values().collect()
    }
}

/// The rows that have most time, and one of the others for each `process`.
fn folded(
    rows: BTreeMap<(u32, u64, u32), ThreadTime>,
    process: impl Fn(&ThreadTime) -> (u32, u64),
) -> BTreeMap<(u32, u64, u32), ThreadTime> {
    let mut order: Vec<((u32, u64, u32), ThreadTime)> = rows.into_iter().collect();
    order.sort_by_key(|(key, time)| (Reverse(time.wall_ns), *key));
    let rest = order.split_off(MAX_ROWS.min(order.len()));
    let mut rows: BTreeMap<_, _> = order.into_iter().collect();
    for (_, time) in rest {
        let (pid, start_time_ns) = process(&time);
        let row = rows.entry((pid, start_time_ns, 0)).or_insert_with(|| ThreadTime {
            pid,
            start_time_ns,
            process: if pid == 0 { OTHERS.to_owned() } else { time.process.clone() },
            ..ThreadTime::default()
        });
        // Several threads, of which each was counted once.
        let threads = row.threads + time.threads;
        add_time(row, &time);
        row.threads = threads;
    }
    rows
}

fn add_time(sum: &mut ThreadTime, time: &ThreadTime) {
    // The same threads, seen again.
    sum.threads = sum.threads.max(time.threads);
    sum.wall_ns = sum.wall_ns.saturating_add(time.wall_ns);
    sum.on_cpu_ns = sum.on_cpu_ns.saturating_add(time.on_cpu_ns);
    sum.off_cpu_ns = sum.off_cpu_ns.saturating_add(time.off_cpu_ns);
    // A thread may have changed its name: the last counts.
    sum.process.clone_from(&time.process);
    sum.thread.clone_from(&time.thread);
}

/// Times of waits for locks, added up by lock and waker.
#[derive(Default)]
pub(super) struct LockTimes(HashMap<(u32, u64, String, String), LockTime>);

impl LockTimes {
    pub(super) fn add(&mut self, times: Vec<LockTime>) {
        for time in times {
            let key = (time.pid, time.start_time_ns, time.address.clone(), time.waker.clone());
            match self.0.get_mut(&key) {
                Some(sum) => {
                    sum.waits = sum.waits.saturating_add(time.waits);
                    sum.delay_ns = sum.delay_ns.saturating_add(time.delay_ns);
                    sum.longest_ns = sum.longest_ns.max(time.longest_ns);
                }
                None => drop(self.0.insert(key, time)),
            }
        }
    }

    /// Most time first, and the time of those that found no room, ns.
    pub(super) fn finish(self) -> (Vec<LockTime>, u64) {
        let mut rows: Vec<_> = self.0.into_iter().collect();
        rows.sort_by(|(a, one), (b, other)| other.delay_ns.cmp(&one.delay_ns).then_with(|| a.cmp(b)));
        let rest = rows.drain(MAX_ROWS.min(rows.len())..).map(|(_, time)| time.delay_ns).sum();
        (rows.into_iter().map(|(_, time)| time).collect(), rest)
    }
}

/// Adds the accounting of another capture.
pub(super) fn add_accounting(sum: &mut Accounting, other: Accounting) {
    sum.expected += other.expected;
    sum.hits = sum.hits.saturating_add(other.hits);
    sum.filtered = sum.filtered.saturating_add(other.filtered);
    sum.idle = sum.idle.saturating_add(other.idle);
    sum.sampled_out = sum.sampled_out.saturating_add(other.sampled_out);
    sum.complete = sum.complete.saturating_add(other.complete);
    add_reasons(&mut sum.truncated, other.truncated);
    add_reasons(&mut sum.lost, other.lost);
    sum.not_delivered += other.not_delivered;
    sum.periods = sum.periods.saturating_add(other.periods);
    sum.idle_periods = sum.idle_periods.saturating_add(other.idle_periods);
    add_chain(&mut sum.user, other.user);
    add_chain(&mut sum.kernel, other.kernel);
}

fn add_chain(sum: &mut ChainAccounting, other: ChainAccounting) {
    sum.complete = sum.complete.saturating_add(other.complete);
    add_reasons(&mut sum.truncated, other.truncated);
    add_reasons(&mut sum.lost, other.lost);
}

/// Adds counts by name.
pub(super) fn add_reasons(sums: &mut BTreeMap<String, u64>, counts: BTreeMap<String, u64>) {
    for (reason, count) in counts {
        let sum = sums.entry(reason).or_default();
        *sum = sum.saturating_add(count);
    }
}

/// Origins of one name, added up.
pub(super) struct Origins {
    sum: OriginSummary,
    /// Seconds of CPUs that the samples stand for, where they were taken by time.
    seconds: f64,
    /// Probes on allocators were there for so long, ns.
    probed_ns: f64,
}

impl Origins {
    pub(super) fn new(summary: &OriginSummary) -> Self {
        let sum = OriginSummary {
            total: 0,
            n: 0,
            by_length: summary.by_length.map(|by| crate::profile::ByLength {
                measured_ns: 0,
                standard_error_ns: 0.0,
                ..by
            }),
            by_number: summary.by_number.map(|by| crate::profile::ByNumber { measured: 0, ..by }),
            by_size: summary.by_size.map(|by| crate::profile::BySize {
                measured_bytes: 0,
                standard_error_bytes: 0.0,
                ..by
            }),
            ..summary.clone()
        };
        Self { sum, seconds: 0.0, probed_ns: 0.0 }
    }

    pub(super) fn add(&mut self, other: &OriginSummary, duration_ns: u64) {
        let sum = &mut self.sum;
        sum.total = sum.total.saturating_add(other.total);
        sum.n = sum.n.saturating_add(other.n);
        if !sum.event.split(", ").any(|event| event == other.event) {
            sum.event = format!("{}, {}", sum.event, other.event);
        }
        if other.rate_hz > 0 {
            self.seconds += float(other.n) / float(other.rate_hz);
            sum.rate_hz = sum.rate_hz.max(other.rate_hz);
        }
        // Errors of independent estimates.
        let error = |one: f64, other: f64| one.hypot(other);
        if let (Some(sum), Some(other)) = (&mut sum.by_length, &other.by_length) {
            sum.threshold_ns = sum.threshold_ns.max(other.threshold_ns);
            sum.measured_ns = sum.measured_ns.saturating_add(other.measured_ns);
            sum.standard_error_ns = error(sum.standard_error_ns, other.standard_error_ns);
        }
        if let (Some(sum), Some(other)) = (&mut sum.by_number, &other.by_number) {
            sum.measured = sum.measured.saturating_add(other.measured);
            sum.weight = sum.weight.max(other.weight);
            sum.period = sum.period.max(other.period);
        }
        if let (Some(sum), Some(other)) = (&mut sum.by_size, &other.by_size) {
            sum.threshold_bytes = sum.threshold_bytes.max(other.threshold_bytes);
            sum.measured_bytes = sum.measured_bytes.saturating_add(other.measured_bytes);
            sum.standard_error_bytes = error(sum.standard_error_bytes, other.standard_error_bytes);
            self.probed_ns += other.share_of_time * float(duration_ns);
        }
    }

    /// The sum. A rate that was not the same all the time becomes the one that gives the time that the samples stand for.
    pub(super) fn finish(self, duration_ns: u64) -> OriginSummary {
        let mut sum = self.sum;
        if self.seconds > 0.0 {
            let rate = (float(sum.n) / self.seconds).round().max(1.0);
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "between 1 and the highest rate"
            )]
            let rate = rate as u64;
            sum.rate_hz = rate;
        }
        if let Some(by_size) = &mut sum.by_size {
            by_size.share_of_time = self.probed_ns / float(duration_ns.max(1));
        }
        sum
    }
}

/// How well objects are named, added up by object.
#[derive(Default)]
pub(super) struct Objects(BTreeMap<(String, String), ObjectSummary>);

impl Objects {
    pub(super) fn add(&mut self, objects: Vec<ObjectSummary>) {
        for object in objects {
            match self.0.get_mut(&(object.path.clone(), object.build_id.clone())) {
                Some(sum) => {
                    sum.frames = sum.frames.saturating_add(object.frames);
                    sum.named = sum.named.saturating_add(object.named);
                    if !object.advice.is_empty() {
                        sum.advice = object.advice;
                    }
                }
                None => drop(self.0.insert((object.path.clone(), object.build_id.clone()), object)),
            }
        }
    }

    /// Most frames first.
    pub(super) fn finish(self) -> Vec<ObjectSummary> {
        let mut objects: Vec<ObjectSummary> = self.0.into_values().collect();
        objects.sort_by_key(|object| Reverse(object.frames));
        objects.truncate(MAX_ROWS);
        objects
    }
}

#[expect(clippy::cast_precision_loss, reason = "rates and shares, of which few digits matter")]
const fn float(value: u64) -> f64 {
    value as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(rows: &[(&str, [u64; 3])]) -> Table {
        let row = |(label, values): &(&str, [u64; 3])| Row {
            labels: vec![(*label).to_owned()],
            values: values.to_vec(),
            distributions: vec![],
        };
        let column = TableColumn::new;
        Table {
            labels: vec!["file".to_owned()],
            values: vec![column("bytes", "bytes"), column("longest", "ns"), column("requests", "per_s")],
            rows: rows.iter().map(row).collect(),
            missing: 1,
            ..Table::default()
        }
    }

    #[test]
    fn sums_maxima_and_averages_of_a_table() {
        let first = table(&[("a", [10, 5, 100]), ("b", [1, 1, 1])]);
        let mut sum = Tables::new(&first);
        assert!(sum.add(first, 1_000));
        assert!(sum.add(table(&[("a", [5, 9, 40])]), 3_000));
        assert!(!sum.add(Table { values: vec![], ..table(&[]) }, 1));
        let sum = sum.finish(4_000);
        let rows: Vec<_> = sum.rows.iter().map(|row| (row.labels[0].as_str(), row.values.clone())).collect();
        assert_eq!(rows, [("a", vec![15, 9, 55]), ("b", vec![1, 1, 0])]);
        assert_eq!(sum.missing, 2);
    }

    #[test]
    fn rows_without_room_keep_their_values() {
        let labels: Vec<String> = (0..MAX_ROWS + 50).map(|row| row.to_string()).collect();
        let rows: Vec<(&str, [u64; 3])> = labels.iter().map(|label| (label.as_str(), [2, 7, 1])).collect();
        let whole = table(&rows);
        let mut sum = Tables::new(&whole);
        sum.add(whole.clone(), 1);
        let sum = sum.finish(1);
        assert_eq!((sum.rows.len(), sum.total(0)), (MAX_ROWS, whole.total(0)));
        assert_eq!(sum.rows.last().map(|row| (row.labels[0].as_str(), row.values[1])), Some((OTHERS, 7)));
    }

    #[test]
    fn times_of_threads_are_kept_however_many_there_are() {
        let time = |pid, tid, wall_ns| ThreadTime { pid, tid, threads: 1, wall_ns, ..ThreadTime::default() };
        let mut times = ThreadTimes::default();
        times.add((1..=30_000).map(|number| time(number, number, 10)).collect());
        times.add((1..=30_000).map(|number| time(number, number, 5)).collect());
        times.add((1..=1000).map(|number| time(7, 40_000 + number, 1)).collect());
        let rows = times.finish();
        assert!(rows.len() <= 2 * MAX_ROWS + 1, "{}", rows.len());
        let sum = |value: fn(&ThreadTime) -> u64| rows.iter().map(value).sum::<u64>();
        assert_eq!((sum(|row| row.threads), sum(|row| row.wall_ns)), (31_000, 30_000 * 15 + 1000));
    }

    #[test]
    fn a_rate_that_changed_gives_the_right_time() {
        let summary = |n, rate_hz| OriginSummary {
            unit: "samples".to_owned(),
            total: n,
            n,
            event: "cpu-clock".to_owned(),
            rate_hz,
            by_length: None,
            by_number: None,
            by_size: None,
        };
        let mut sum = Origins::new(&summary(0, 100));
        sum.add(&summary(1000, 100), 10);
        sum.add(&summary(500, 50), 10);
        let sum = sum.finish(20);
        // 20 s in 1,500 samples.
        assert_eq!((sum.n, sum.rate_hz, sum.event.as_str()), (1500, 75, "cpu-clock"));
    }
}
