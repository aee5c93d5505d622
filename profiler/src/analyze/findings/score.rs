//! The score: 100, less what each finding costs, and what is lost of the evidence itself.

use crate::profile::{Deduction, Finding, Index, Score, Severity};

/// Points that findings of the severity "info" cost together, at most.
const MOST_FOR_INFO: u32 = 5;
/// Part of the samples that may be lost without a deduction.
const TOLERATED_LOSS: f64 = 0.05;

/// The score of what was found.
pub(super) fn score(findings: &[Finding], index: &Index) -> Score {
    let mut deductions = Vec::new();
    for finding in findings.iter().filter(|finding| finding.severity > Severity::Info) {
        let base = if finding.severity == Severity::High { 10.0 } else { 5.0 };
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "from 5 to 50")]
        let points = (base + 40.0 * finding.effect * finding.confidence).round() as u32;
        deductions.push(Deduction { points, reason: finding.title.clone() });
    }
    let told = findings.iter().filter(|finding| finding.severity == Severity::Info).count();
    if told > 0 {
        let points = u32::try_from(told).unwrap_or(u32::MAX).min(MOST_FOR_INFO);
        deductions.push(Deduction { points, reason: format!("{told} thresholds passed without a known effect") });
    }
    for (name, accounting) in &index.accounting {
        let (lost, kept) = (accounting.samples_lost(), accounting.samples());
        #[expect(clippy::cast_precision_loss, reason = "a share")]
        let share = lost as f64 / (lost + kept).max(1) as f64;
        if share > TOLERATED_LOSS {
            deductions.push(Deduction {
                points: 5,
                reason: format!("{:.1} % of the samples of {name} are lost", share * 100.0),
            });
        }
    }
    deductions.sort_by(|a, b| b.points.cmp(&a.points).then_with(|| a.reason.cmp(&b.reason)));
    let sum: u32 = deductions.iter().map(|deduction| deduction.points).sum();
    Score { value: 100_u32.saturating_sub(sum), deductions }
}
