//! What a gate says: filled by `analyze`, written by `output`.

use serde::{Deserialize, Serialize};

use super::Severity;

/// One thing that was checked.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Check {
    /// What was checked: a metric, a function.
    pub name: String,
    /// What it belongs to: `budget`, `baseline`.
    pub group: String,
    /// How much it matters when it fails; one of the severity "info" fails nothing.
    pub severity: Severity,
    /// Whether it holds.
    pub passed: bool,
    /// In a sentence, with the figures.
    pub message: String,
}

impl Check {
    /// Whether a gate must not let this pass.
    #[must_use]
    pub fn fails(&self) -> bool {
        !self.passed && self.severity > Severity::Info
    }
}

/// Where a metric goes over many captures.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Direction {
    /// It gets better.
    Improving,
    /// It gets worse.
    Degrading,
    /// It stays, as far as can be told.
    Stable,
    /// There are too few captures to tell.
    Insufficient,
}

/// A metric over many captures.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Trend {
    /// The metric.
    pub metric: String,
    /// Its unit.
    pub unit: String,
    /// Start of each capture, ns since the Unix epoch, and its value; oldest first.
    pub points: Vec<(u64, f64)>,
    /// Change from the first to the last point on the line that fits best, as a part of the mean.
    pub change: f64,
    /// The chance of such a slope where there is none.
    pub p_value: f64,
    /// What it comes to.
    pub direction: Direction,
}
