//! Budgets and baselines: what must hold of a capture.

use serde::{Deserialize, Serialize};

use super::counters::work;
use super::metrics::{Metric, metric};
use super::significance::{ASSUMED_DISPERSION, Part, error_of_difference, rate, two_sided};
use crate::profile::{Capture, Change, Check, Diff, Report, Severity};

/// A file of budgets.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Budgets {
    /// The budgets.
    #[serde(default)]
    pub budget: Vec<Budget>,
}

/// A limit of a metric.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Budget {
    /// Name of the metric; see [`metric`].
    pub metric: String,
    /// Most it may be.
    #[serde(default)]
    pub max: Option<f64>,
    /// Least it may be.
    #[serde(default)]
    pub min: Option<f64>,
    /// Unit of the limit: `%`, `ns`, `us`, `ms`, `s`, `bytes`, `KiB`, `MiB`, `GiB`, or none.
    #[serde(default)]
    pub unit: String,
    /// How much it matters; a gate lets one of the severity "info" pass.
    #[serde(default = "high")]
    pub severity: Severity,
}

const fn high() -> Severity {
    Severity::High
}

/// What a unit is of, and how many of the plain unit it has.
fn unit(name: &str) -> Option<(&'static str, f64)> {
    Some(match name {
        "" => ("", 1.0),
        "%" => ("share", 0.01),
        "ns" => ("ns", 1.0),
        "us" => ("ns", 1e3),
        "ms" => ("ns", 1e6),
        "s" => ("ns", 1e9),
        "bytes" => ("bytes", 1.0),
        "KiB" => ("bytes", 1024.0),
        "MiB" => ("bytes", 1_048_576.0),
        "GiB" => ("bytes", 1_073_741_824.0),
        _ => return None,
    })
}

impl Budgets {
    /// Reads a file.
    ///
    /// # Errors
    ///
    /// When it is no TOML, or a budget has no limit or a unit that is not known; the text says which.
    pub fn read(text: &str) -> Result<Self, String> {
        let budgets: Self = toml::from_str(text).map_err(|error| error.to_string())?;
        if budgets.budget.is_empty() {
            return Err("it has no [[budget]]".to_owned());
        }
        for budget in &budgets.budget {
            let limits = [budget.max, budget.min];
            if limits.iter().flatten().count() == 0 || limits.iter().flatten().any(|limit| !limit.is_finite()) {
                return Err(format!("the budget of {:?} needs max or min, a number", budget.metric));
            }
            if unit(&budget.unit).is_none() {
                return Err(format!(
                    "the budget of {:?} has the unit {:?}; known are %, ns, us, ms, s, bytes, KiB, MiB, GiB",
                    budget.metric, budget.unit
                ));
            }
        }
        Ok(budgets)
    }

    /// Holds a capture against them.
    ///
    /// # Errors
    ///
    /// When a metric is not in the capture, or is of another unit: a budget that cannot be checked must not pass.
    pub fn check(&self, capture: &Capture, report: &Report) -> Result<Vec<Check>, String> {
        self.budget.iter().map(|budget| budget.check(capture, report)).collect()
    }
}

impl Budget {
    fn check(&self, capture: &Capture, report: &Report) -> Result<Check, String> {
        let Metric { value, unit: found } = metric(capture, report, &self.metric).ok_or_else(|| {
            format!("the capture has no metric {:?}: record what it is of (-e), or mend its name", self.metric)
        })?;
        let (wanted, scale) = unit(&self.unit).unwrap_or(("", 1.0));
        // A share may be given as one, without a unit.
        if wanted != found && !wanted.is_empty() {
            let found = if found.is_empty() { "a plain number" } else { found };
            return Err(format!("{:?} is {found}, and its budget is in {}", self.metric, self.unit));
        }
        let value = value / scale;
        let above = self.max.filter(|max| value > *max);
        let below = self.min.filter(|min| value < *min);
        let unit = if self.unit.is_empty() { String::new() } else { format!(" {}", self.unit) };
        let limit = |what: &str, limit: Option<f64>| limit.map(|limit| format!("{what} {limit}{unit}"));
        let limits: Vec<String> =
            [limit("at most", self.max), limit("at least", self.min)].into_iter().flatten().collect();
        Ok(Check {
            name: self.metric.clone(),
            group: "budget".to_owned(),
            severity: self.severity,
            passed: above.is_none() && below.is_none(),
            message: format!("{} is {value:.4}{unit}; its budget is {}", self.metric, limits.join(" and ")),
        })
    }
}

/// When something is a regression against a baseline.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BaselineRules {
    /// A rate below this part of the baseline's.
    pub rate: f64,
    /// Memory above this part of the baseline's.
    pub memory: f64,
    /// Chance of a regression that is none.
    pub significance: f64,
}

impl Default for BaselineRules {
    fn default() -> Self {
        Self { rate: 0.9, memory: 1.2, significance: 0.01 }
    }
}

/// What a comparison with a baseline says: the functions, the whole.
#[must_use]
pub fn check_diff(diff: &Diff) -> Vec<Check> {
    let all = std::iter::once(&diff.total).chain(&diff.functions).chain(&diff.functions_total);
    let check = |change: &Change, passed| Check {
        name: change.name.clone(),
        group: "baseline".to_owned(),
        severity: Severity::High,
        passed,
        message: format!(
            "`{}` changed by {:+.2} % of everything per {} (p {:.3}); from {:.2} % on it would have been found",
            change.name,
            change.effect * 100.0,
            diff.per,
            change.p_value,
            change.detectable * 100.0
        ),
    };
    let worse = all.filter(|change| change.verdict == crate::profile::Verdict::Regression);
    let mut checks: Vec<Check> = worse.map(|change| check(change, false)).collect();
    if !checks.iter().any(|found| found.name == diff.total.name) {
        checks.insert(0, check(&diff.total, true));
    }
    checks
}

/// Whether a counter comes as fast as in the baseline.
///
/// # Errors
///
/// When a capture does not have it.
pub fn check_rate(
    counter: &str,
    baseline: &[Capture],
    captures: &[Capture],
    rules: &BaselineRules,
) -> Result<Check, String> {
    let side = |captures: &[Capture]| -> Result<_, String> {
        let parts: Option<Vec<Part>> = captures
            .iter()
            .map(|capture| {
                let value = work(capture, counter)?;
                let seconds = work(capture, "second")?;
                Some(Part { value, variance: None, least: value * ASSUMED_DISPERSION, event: 1.0, work: seconds })
            })
            .collect();
        Ok(rate(&parts.ok_or_else(|| format!("a capture has no counter {counter:?}"))?, |_| 0.0))
    };
    let (before, after) = (side(baseline)?, side(captures)?);
    let (error, freedom) = error_of_difference(before, after);
    let difference = after.mean - before.mean;
    let p_value = if error > 0.0 { two_sided(difference / error, freedom) } else { 1.0 };
    let part = if before.mean > 0.0 { after.mean / before.mean } else { 1.0 };
    Ok(Check {
        name: counter.to_owned(),
        group: "baseline".to_owned(),
        severity: Severity::High,
        passed: part >= rules.rate || p_value >= rules.significance,
        message: format!(
            "{counter}: {:.3} a second, {:.3} in the baseline ({part:.3} of it, p {p_value:.3}); at least {} of it is asked for",
            after.mean, before.mean, rules.rate
        ),
    })
}

/// Whether the target needs no more memory than in the baseline; `None` where that is not known.
#[must_use]
pub fn check_memory(baseline: &[Capture], captures: &[Capture], rules: &BaselineRules) -> Option<Check> {
    let peaks = |captures: &[Capture]| -> Option<Vec<f64>> {
        captures.iter().map(|capture| Some(metric(capture, &Report::default(), "peak_rss")?.value)).collect()
    };
    let (before, after) = (peaks(baseline)?, peaks(captures)?);
    let part = |value: f64| Part { value, variance: Some((0.0, 1.0)), least: 0.0, event: 1.0, work: 1.0 };
    // With three recordings or more how far they differ is measured; peaks of fewer are taken as they are.
    let side = |peaks: &[f64]| rate(&peaks.iter().map(|&peak| part(peak)).collect::<Vec<_>>(), |_| 0.0);
    let (before, after) = (side(&before), side(&after));
    let (error, freedom) = error_of_difference(before, after);
    let p_value = if error > 0.0 { two_sided((after.mean - before.mean) / error, freedom) } else { 0.0 };
    let times = if before.mean > 0.0 { after.mean / before.mean } else { 1.0 };
    Some(Check {
        name: "peak_rss".to_owned(),
        group: "baseline".to_owned(),
        severity: Severity::Medium,
        passed: times <= rules.memory || p_value >= rules.significance,
        message: format!(
            "peak memory: {:.1} MiB, {:.1} MiB in the baseline ({times:.3} of it); at most {} of it is asked for",
            after.mean / 1_048_576.0,
            before.mean / 1_048_576.0,
            rules.memory
        ),
    })
}
