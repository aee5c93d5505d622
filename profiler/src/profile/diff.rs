//! What has changed from one recording to another: filled by `analyze`, written by `output`.

use serde::{Deserialize, Serialize};

/// What two sides are compared by, and when a change counts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DiffRules {
    /// The chance, in all, that a regression is reported where there is none; it is as much for an improvement.
    pub significance: f64,
    /// Least change that counts, as part of all values before, 0 to 1.
    pub least_effect: f64,
    /// How far two recordings of the same program are taken to differ beyond what their slices tell, as a part of the
    /// value, 0 to 1: a machine is not the same from minute to minute. Measured where a side has three recordings or more.
    pub run_noise: f64,
}

impl Default for DiffRules {
    fn default() -> Self {
        Self { significance: 0.01, least_effect: 0.005, run_noise: 0.01 }
    }
}

/// How a value has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// It grew by more than chance explains.
    Regression,
    /// It shrank by more than chance explains.
    Improvement,
    /// Chance explains it, or it is less than counts.
    Unchanged,
}

/// Two sides of one origin, compared.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Diff {
    /// Origin name.
    pub origin: String,
    /// Unit of the values.
    pub unit: String,
    /// What a value is divided by: `second`, or what the user named.
    pub per: String,
    /// What was compared.
    pub before: DiffSide,
    /// With what.
    pub after: DiffSide,
    /// When a change counts.
    pub rules: DiffRules,
    /// Hypotheses that the significance was corrected for.
    pub tested: usize,
    /// What a reader must know before he believes it.
    pub notes: Vec<String>,
    /// Everything together.
    pub total: Change,
    /// Functions by their own code, largest change first.
    pub functions: Vec<Change>,
    /// Functions with all they called, largest change first.
    pub functions_total: Vec<Change>,
    /// Stacks, largest change first. They are corrected for apart from the functions and are no regression by themselves.
    pub stacks: Vec<Change>,
}

/// One side.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct DiffSide {
    /// The target's description, of the first recording.
    pub target: String,
    /// Recordings.
    pub recordings: usize,
    /// Their time, ns.
    pub duration_ns: u64,
    /// Their values.
    pub total: u64,
    /// What these are divided by.
    pub work: f64,
}

/// A value before and after, and what is to be made of the difference.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Change {
    /// Function, or frames of a stack joined by `;`, root first.
    pub name: String,
    /// Object of the function; empty for a stack and where it is not known.
    pub object: String,
    /// Value by unit of work before.
    pub before: f64,
    /// Value by unit of work after.
    pub after: f64,
    /// `after - before` as part of everything before.
    pub effect: f64,
    /// `after - before` as part of `before`; absent where that was nothing.
    pub relative: Option<f64>,
    /// Standard error of `after - before`, as part of everything before.
    pub standard_error: f64,
    /// The chance of such a difference, on its side, where there is none, corrected for the number of hypotheses.
    pub p_value: f64,
    /// The smallest change that would have been found four times in five, as part of everything before.
    pub detectable: f64,
    /// What it comes to.
    pub verdict: Verdict,
}

impl Diff {
    /// Everything that was tested and is a regression.
    pub fn regressions(&self) -> impl Iterator<Item = &Change> {
        let all = std::iter::once(&self.total).chain(&self.functions).chain(&self.functions_total);
        all.filter(|change| change.verdict == Verdict::Regression)
    }
}
