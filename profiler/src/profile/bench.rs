//! Runs of a command that were timed: filled by `analyze`, written by `output`.

use serde::{Deserialize, Serialize};

use super::Check;

/// One run of a command.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Run {
    /// From before it was started to when its end was known, ns.
    pub wall_ns: u64,
    /// CPU time in user space of the command and of those it waited for, ns.
    pub user_ns: u64,
    /// The same in the kernel, ns.
    pub system_ns: u64,
}

/// What the runs of a command come to.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Bench {
    /// The command, words joined by spaces.
    pub command: String,
    /// Runs before those that were measured.
    pub warm_ups: u64,
    /// Runs that were measured.
    pub runs: u64,
    /// Whether a profile was recorded meanwhile.
    pub profiled: bool,
    /// Mean of their times, ns.
    pub mean_ns: f64,
    /// Where the mean of more and more such runs would be, 19 times in 20, ns.
    pub interval_ns: [f64; 2],
    /// Half of the interval as a part of the mean, 0 to 1; absent of a single run.
    pub precision: Option<f64>,
    /// The precision that was asked for.
    pub precision_wanted: f64,
    /// Standard deviation of a run, ns.
    pub deviation_ns: f64,
    /// The shortest run, ns.
    pub min_ns: u64,
    /// The time that half of the runs do not exceed, ns.
    pub p50_ns: u64,
    /// The same of 90 in 100.
    pub p90_ns: u64,
    /// The same of 95 in 100.
    pub p95_ns: u64,
    /// The same of 99 in 100; the longest of fewer than 100 runs.
    pub p99_ns: u64,
    /// The longest run, ns.
    pub max_ns: u64,
    /// Mean CPU time in user space, ns.
    pub user_ns: f64,
    /// Mean CPU time in the kernel, ns.
    pub system_ns: f64,
    /// Every run, ns, in their order.
    pub times_ns: Vec<u64>,
    /// What a reader must know before he believes it.
    pub notes: Vec<String>,
    /// The budgets.
    pub checks: Vec<Check>,
}

/// A figure of a [`Bench`] that can have a budget.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BenchFigure {
    /// The mean of the times.
    Mean,
    /// The shortest.
    Min,
    /// The time that half of the runs do not exceed.
    P50,
    /// That of 90 in 100.
    P90,
    /// That of 95 in 100.
    P95,
    /// That of 99 in 100.
    P99,
    /// The longest.
    Max,
    /// Mean CPU time, in user space and in the kernel.
    Cpu,
}

impl BenchFigure {
    /// All of them.
    pub const ALL: [Self; 8] =
        [Self::Mean, Self::Min, Self::P50, Self::P90, Self::P95, Self::P99, Self::Max, Self::Cpu];

    /// As budgets name it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Mean => "mean",
            Self::Min => "min",
            Self::P50 => "p50",
            Self::P90 => "p90",
            Self::P95 => "p95",
            Self::P99 => "p99",
            Self::Max => "max",
            Self::Cpu => "cpu",
        }
    }
}
