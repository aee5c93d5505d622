//! What was found, what to do about it, and the score.

use std::io::{self, Write};

use crate::output::markdown::prose_with_code as prose;
use crate::profile::{Report, Severity};

/// Writes findings, plan and score.
pub(super) fn write(report: &Report, writer: &mut impl Write) -> io::Result<()> {
    let Some(score) = &report.score else { return Ok(()) };
    writeln!(writer, "## Findings\n")?;
    let worth = report.findings.iter().filter(|finding| finding.severity > Severity::Info).count();
    writeln!(
        writer,
        "**Score: {} of 100.** {}\n",
        score.value,
        match worth {
            0 => "Nothing was found that costs much of the wall time.".to_owned(),
            1 => "One thing is worth a look.".to_owned(),
            more => format!("{more} things are worth a look."),
        }
    )?;
    for (finding, number) in report.findings.iter().zip(1..) {
        writeln!(
            writer,
            "{number}. **{}** ({}, {}): {}confidence {:.0} %.",
            prose(&finding.title),
            finding.severity.name(),
            finding.kind.name(),
            if finding.effect > 0.0 {
                format!("{:.0} % of the wall time of the threads concerned, ", finding.effect * 100.0)
            } else {
                String::new()
            },
            finding.confidence * 100.0,
        )?;
        for evidence in &finding.evidence {
            writeln!(writer, "   - {}", prose(evidence))?;
        }
        writeln!(writer, "   - *To do:* {}", prose(&finding.recommendation))?;
    }
    if !report.findings.is_empty() {
        writeln!(writer)?;
    }
    if !report.plan.is_empty() {
        writeln!(writer, "### Plan\n")?;
        for (step, number) in report.plan.iter().zip(1..) {
            writeln!(
                writer,
                "{number}. {}{}.",
                prose(&step.action),
                if step.gain > 0.0 {
                    format!(": wins {:.0} % of the wall time at most", step.gain * 100.0)
                } else {
                    String::new()
                }
            )?;
        }
        writeln!(writer)?;
    }
    if !score.deductions.is_empty() {
        writeln!(writer, "### What the score lost\n\n| points | for |\n|--:|:--|")?;
        for deduction in &score.deductions {
            writeln!(writer, "| {} | {} |", deduction.points, prose(&deduction.reason))?;
        }
        writeln!(writer)?;
    }
    Ok(())
}
