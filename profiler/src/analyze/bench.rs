//! What timed runs of a command come to, when there are enough of them, and whether they keep to budgets.

use profiler_common::histogram::{HISTOGRAM_BUCKETS, bucket_of};

use super::significance::{half_width, total, variance_of_sum};
use crate::profile::{Bench, BenchFigure, Check, Histogram, Row, Run, Severity, Table, TableColumn, rank};

/// What a figure may be at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BenchBudget {
    /// Which figure.
    pub figure: BenchFigure,
    /// The most it may be, ns.
    pub limit_ns: u64,
}

/// Name of the table that a capture has of runs.
pub const BENCH_TABLE: &str = "bench";

/// Half of the interval of the runs' mean as a part of the mean, 0 to 1. `None`: fewer than two runs, or none took time.
#[must_use]
pub fn precision(runs: &[Run]) -> Option<f64> {
    let times: Vec<u64> = runs.iter().map(|run| run.wall_ns).collect();
    let sum = total(&times);
    if times.len() < 2 || sum <= 0.0 {
        return None;
    }
    // Runs that follow each other are alike, where the machine is now faster and now slower: so it is measured in blocks.
    let (variance, freedom) = variance_of_sum(&times, &vec![1; times.len()])
        .unwrap_or_else(|| (float(times.len()) * variance(&times), float(times.len()) - 1.0));
    Some(half_width(variance, freedom) / sum)
}

/// What the runs of a command come to. `None` without any.
///
/// `wanted`: the precision that was asked for, as a part of the mean.
#[must_use]
pub fn bench(command: &str, warm_ups: u64, wanted: f64, runs: &[Run]) -> Option<Bench> {
    if runs.is_empty() {
        return None;
    }
    let times_ns: Vec<u64> = runs.iter().map(|run| run.wall_ns).collect();
    let mean_of = |of: fn(&Run) -> u64| runs.iter().map(|run| float_of(of(run))).sum::<f64>() / float(runs.len());
    let mean_ns = mean_of(|run| run.wall_ns);
    let precision = precision(runs);
    let half = mean_ns * precision.unwrap_or(0.0);
    let mut sorted = times_ns.clone();
    sorted.sort_unstable();
    let percentile = |per_mille| {
        let place = usize::try_from(rank(sorted.len() as u64, per_mille) - 1).unwrap_or(usize::MAX);
        sorted.get(place).copied().unwrap_or(0)
    };
    let mut notes = Vec::new();
    match precision {
        None => notes.push("one run tells nothing of how far runs differ".to_owned()),
        Some(found) if found > wanted => notes.push(format!(
            "the mean is known to {:.2} %, where {:.2} % was asked for: give it more time and runs with -d and --max-runs, or a \
             quieter machine",
            found * 100.0,
            wanted * 100.0
        )),
        Some(_) => {}
    }
    Some(Bench {
        command: command.to_owned(),
        warm_ups,
        runs: runs.len() as u64,
        profiled: false,
        mean_ns,
        interval_ns: [(mean_ns - half).max(0.0), mean_ns + half],
        precision,
        precision_wanted: wanted,
        deviation_ns: variance(&times_ns).sqrt(),
        min_ns: percentile(0),
        p50_ns: percentile(500),
        p90_ns: percentile(900),
        p95_ns: percentile(950),
        p99_ns: percentile(990),
        max_ns: percentile(1000),
        user_ns: mean_of(|run| run.user_ns),
        system_ns: mean_of(|run| run.system_ns),
        times_ns,
        notes,
        checks: Vec::new(),
    })
}

/// Holds runs against budgets.
#[must_use]
pub fn check_bench(bench: &Bench, budgets: &[BenchBudget]) -> Vec<Check> {
    let check = |budget: &BenchBudget| {
        let (found, limit) = (figure(bench, budget.figure), float_of(budget.limit_ns));
        let name = budget.figure.name();
        let [from, to] = bench.interval_ns;
        let is_close = budget.figure == BenchFigure::Mean && (from..to).contains(&limit);
        let doubt = if is_close { "; the budget is within the interval of the mean" } else { "" };
        let message = format!("{name} is {:.3} ms, and may be {:.3} ms{doubt}", found / 1e6, limit / 1e6);
        let (name, group) = (name.to_owned(), BENCH_TABLE.to_owned());
        Check { name, group, severity: Severity::High, passed: found <= limit, message }
    };
    budgets.iter().map(check).collect()
}

/// A figure, ns.
fn figure(bench: &Bench, figure: BenchFigure) -> f64 {
    match figure {
        BenchFigure::Mean => bench.mean_ns,
        BenchFigure::Min => float_of(bench.min_ns),
        BenchFigure::P50 => float_of(bench.p50_ns),
        BenchFigure::P90 => float_of(bench.p90_ns),
        BenchFigure::P95 => float_of(bench.p95_ns),
        BenchFigure::P99 => float_of(bench.p99_ns),
        BenchFigure::Max => float_of(bench.max_ns),
        BenchFigure::Cpu => bench.user_ns + bench.system_ns,
    }
}

/// The runs as a table of their capture: `bench.runs` is what values can be divided by, `bench.run_ns.p99` a metric.
///
/// `program`: without its arguments, which are not to be shared.
#[must_use]
pub fn bench_table(program: &str, runs: &[Run]) -> Table {
    let sum = |of: fn(&Run) -> u64| runs.iter().map(of).fold(0, u64::saturating_add);
    let mut counts = [0; HISTOGRAM_BUCKETS];
    for run in runs {
        counts[bucket_of(run.wall_ns)] += 1;
    }
    let longest = runs.iter().map(|run| run.wall_ns).max().unwrap_or(0);
    Table {
        title: "Runs".to_owned(),
        labels: vec!["program".to_owned()],
        values: vec![
            TableColumn::new("runs", "count"),
            TableColumn::new("time", "ns"),
            TableColumn::new("user", "ns"),
            TableColumn::new("system", "ns"),
        ],
        distributions: vec![TableColumn::new("run", "ns")],
        rows: vec![Row {
            labels: vec![program.to_owned()],
            values: vec![runs.len() as u64, sum(|run| run.wall_ns), sum(|run| run.user_ns), sum(|run| run.system_ns)],
            distributions: vec![Histogram::new(&counts, longest)],
        }],
        missing: 0,
    }
}

/// Variance of a value, from all of them; 0 of fewer than two.
fn variance(values: &[u64]) -> f64 {
    let count = float(values.len());
    let mean = total(values) / count.max(1.0);
    let squares: f64 = values.iter().map(|&value| (float_of(value) - mean).powi(2)).sum();
    squares / (count - 1.0).max(1.0)
}

#[expect(clippy::cast_precision_loss, reason = "numbers of runs")]
const fn float(number: usize) -> f64 {
    number as f64
}

#[expect(clippy::cast_precision_loss, reason = "times, of which few digits matter")]
const fn float_of(value: u64) -> f64 {
    value as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn runs(times: impl IntoIterator<Item = u64>) -> Vec<Run> {
        times.into_iter().map(|wall_ns| Run { wall_ns, user_ns: wall_ns / 2, system_ns: wall_ns / 4 }).collect()
    }

    #[test]
    fn figures_are_those_of_the_runs() {
        let found = bench("a b", 1, 0.02, &runs((1..=100).rev())).unwrap();
        assert_eq!((found.runs, found.warm_ups, found.mean_ns), (100, 1, 50.5));
        assert_eq!((found.min_ns, found.p50_ns, found.p90_ns), (1, 50, 90));
        assert_eq!((found.p95_ns, found.p99_ns, found.max_ns), (95, 99, 100));
        // Of 1 to n: n (n + 1) / 12.
        assert!((found.deviation_ns.powi(2) - 100.0 * 101.0 / 12.0).abs() < 1e-6, "{}", found.deviation_ns);
        assert!(found.interval_ns[0] < 50.5 && found.interval_ns[1] > 50.5);
        assert_eq!(found.times_ns[0], 100);
        assert_eq!(found.notes.len(), 1);
        assert_eq!(bench("a", 0, 0.02, &[]), None);
    }

    #[test]
    fn the_interval_is_that_of_students_distribution() {
        // Four runs that deviate by 2: 3.182 standard errors on either side.
        let few = precision(&runs([100, 104, 100, 104])).unwrap();
        let error = (16.0_f64 / 3.0).sqrt() / 2.0;
        assert!((few - 3.182 * error / 102.0).abs() < 1e-4, "{few}");
        assert_eq!(precision(&runs([5])), None);
        assert_eq!(precision(&runs([0, 0])), None);
        assert_eq!(precision(&runs([7; 20])), Some(0.0));
        assert!(bench("a", 0, 0.02, &runs([7; 20])).unwrap().notes.is_empty());
    }

    #[test]
    fn a_machine_that_changes_makes_the_interval_wider() {
        let in_turn = precision(&runs((0..64).map(|run| 100 + run % 2))).unwrap();
        let in_phases = precision(&runs((0..64).map(|run| 100 + run / 8 % 2))).unwrap();
        assert!(in_phases > 1.5 * in_turn, "{in_turn} {in_phases}");
    }

    #[test]
    fn budgets_are_held_against_their_figure() {
        let found = bench("a", 0, 0.02, &runs([10_000_000, 11_000_000, 12_000_000, 19_000_000])).unwrap();
        let budget = |figure, limit_ns| BenchBudget { figure, limit_ns };
        let budgets = [
            budget(BenchFigure::Mean, 13_000_000),
            budget(BenchFigure::Max, 18_999_999),
            budget(BenchFigure::Cpu, 9_750_000),
        ];
        let checks = check_bench(&found, &budgets);
        let passed: Vec<bool> = checks.iter().map(|check| check.passed).collect();
        assert_eq!(passed, [true, false, true]);
        assert!(checks[0].message.contains("within the interval"), "{}", checks[0].message);
        assert!(checks[1].fails() && checks[1].message.starts_with("max is 19.000 ms"), "{}", checks[1].message);
    }

    #[test]
    fn a_table_of_runs_is_sound() {
        let table = bench_table("a", &runs([1_000, 3_000]));
        assert!(table.is_sound());
        assert_eq!((table.total(0), table.total(1), table.total(2)), (2, 4_000, 2_000));
        assert_eq!(table.rows[0].distributions[0].max, 3_000);
    }
}
