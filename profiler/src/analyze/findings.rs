//! Findings: rules over everything captured, each with its evidence, its effect on wall time, and what to do.
//!
//! A rule that passes its threshold makes a finding of the severity "info"; only an estimated effect on wall time raises it.

mod cpu;
mod files;
mod memory;
mod patterns;
mod scene;
mod score;
mod system;
mod thresholds;
mod waits;

pub use patterns::{Pattern, RuleFile, fits};
use scene::Scene;
pub use thresholds::Thresholds;

use super::phases::{self, Phase};
use crate::profile::{Capture, Finding, PlanStep, Report, Severity};

/// Findings of a report: more than that nobody reads.
const MAX_FINDINGS: usize = 30;
/// Steps of the plan.
const MAX_STEPS: usize = 5;

/// What findings are made by.
#[derive(Clone, Debug)]
pub struct Rules {
    /// What functions are; the first that fits first. Their names are in lower case.
    pub patterns: Vec<Pattern>,
    /// What phase functions belong to, likewise.
    pub phases: Vec<Phase>,
    /// Limits.
    pub thresholds: Thresholds,
}

impl Default for Rules {
    fn default() -> Self {
        Self { patterns: patterns::built_in(), phases: phases::built_in(), thresholds: Thresholds::default() }
    }
}

impl Rules {
    /// Rules with those of a file in front of what is built in.
    ///
    /// # Errors
    ///
    /// When the text is no TOML, or has what rules do not know.
    pub fn with_file(text: &str) -> Result<Self, toml::de::Error> {
        let file: RuleFile = toml::from_str(text)?;
        let patterns = patterns::lower_case(file.pattern).into_iter().chain(patterns::built_in()).collect();
        let phases = phases::lower_case(file.phase).into_iter().chain(phases::built_in()).collect();
        Ok(Self { patterns, phases, thresholds: file.thresholds })
    }
}

/// Adds findings, plan and score to a report.
pub(super) fn add(capture: &Capture, rules: &Rules, report: &mut Report) {
    let scene = Scene::new(capture, report, rules);
    let mut findings = Vec::new();
    for rule in [cpu::rules, files::rules, waits::rules, memory::rules, system::rules] {
        rule(&scene, &mut findings);
    }
    sort(&mut findings);
    findings.truncate(MAX_FINDINGS);
    report.score = Some(score::score(&findings, &capture.index));
    report.plan = plan(&findings);
    report.findings = findings;
}

/// Most severe first, then what costs most and is surest.
fn sort(findings: &mut [Finding]) {
    let weight = |finding: &Finding| finding.effect * finding.confidence;
    findings.sort_by(|a, b| {
        let by_effect = weight(b).total_cmp(&weight(a));
        b.severity.cmp(&a.severity).then(by_effect).then_with(|| a.title.cmp(&b.title))
    });
}

/// What to do first: the findings that cost something, in their order.
fn plan(findings: &[Finding]) -> Vec<PlanStep> {
    let worth = findings.iter().filter(|finding| finding.severity > Severity::Info);
    worth
        .take(MAX_STEPS)
        .map(|finding| PlanStep { action: finding.recommendation.clone(), gain: finding.effect })
        .collect()
}
