//! The system's settings and limits of memory: what is to be done about them.

use super::scene::Scene;
use crate::profile::{Finding, FindingKind};

/// How likely it is that a figure of the system means what is said of it.
const CONFIDENCE: f64 = 0.8;

pub(super) fn rules(scene: &Scene<'_>, findings: &mut Vec<Finding>) {
    for check in scene.report.memory.iter().flat_map(|memory| &memory.checks) {
        let Some(severity) = check.severity else { continue };
        let evidence = vec![format!("{}: {}", check.name, check.value)];
        let title = check.meaning.clone();
        // What it costs in time is not known from a figure.
        let finding = scene.finding(FindingKind::System, title, 0.0, CONFIDENCE, evidence, check.advice.clone());
        findings.push(Finding { severity, ..finding });
    }
}
