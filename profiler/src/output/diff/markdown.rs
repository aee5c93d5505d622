//! `diff.md`.

use std::io::{self, Write};

use crate::output::markdown::{code, prose};
use crate::output::numbers::{NANOSECONDS, count, duration, float, seconds};
use crate::profile::{Change, Diff, DiffSide, Verdict};

/// Functions and stacks in each table.
const ROWS: usize = 20;

/// Writes it.
pub(super) fn write(diff: &Diff, writer: &mut impl Write) -> io::Result<()> {
    writeln!(writer, "# What has changed: {}\n", prose(&diff.origin))?;
    write_verdict(diff, writer)?;
    writeln!(writer, "\n| | target | recordings | time | {} | per |\n|:--|:--|--:|--:|--:|--:|", prose(&diff.unit))?;
    for (name, side) in [("before", &diff.before), ("after", &diff.after)] {
        let DiffSide { target, recordings, duration_ns, total, work } = side;
        let total = if diff.unit == NANOSECONDS { duration(*total) } else { count(*total) };
        let time = seconds(*duration_ns);
        writeln!(
            writer,
            "| {name} | {} | {recordings} | {time} | {total} | {work:.3} {} |",
            prose(target),
            prose(&diff.per)
        )?;
    }
    writeln!(writer)?;
    for note in &diff.notes {
        writeln!(writer, "- {}", prose(note))?;
    }
    if !diff.notes.is_empty() {
        writeln!(writer)?;
    }
    let tables = [
        ("Everything", "everything", std::slice::from_ref(&diff.total)),
        ("Functions by self (their own code)", "function", diff.functions.as_slice()),
        ("Functions by total (with all they called)", "function", diff.functions_total.as_slice()),
        ("Stacks", "stack, root first", diff.stacks.as_slice()),
    ];
    for (title, head, changes) in tables.into_iter().filter(|(_, _, changes)| !changes.is_empty()) {
        write_table(diff, title, head, changes, writer)?;
    }
    writeln!(
        writer,
        "Effects and errors are in per cent of everything before; `p` is corrected for {} hypotheses (Holm). `found from` is \
         the smallest change that would have been found four times in five.",
        diff.tested
    )
}

/// The answer, in a sentence, and what could have been found.
fn write_verdict(diff: &Diff, writer: &mut impl Write) -> io::Result<()> {
    let regressions: Vec<&Change> = diff.regressions().collect();
    let all = std::iter::once(&diff.total).chain(&diff.functions).chain(&diff.functions_total);
    let improvements = all.filter(|change| change.verdict == Verdict::Improvement).count();
    match regressions.iter().max_by(|a, b| a.effect.total_cmp(&b.effect)) {
        None => write!(writer, "**No regression found.**")?,
        Some(worst) => write!(
            writer,
            "**{} regressed**: {} by {} of everything ({} of what it was).",
            if regressions.len() == 1 { "1 value".to_owned() } else { format!("{} values", regressions.len()) },
            code(&worst.name),
            percent(worst.effect),
            worst.relative.map_or_else(|| "new".to_owned(), percent),
        )?,
    }
    if improvements > 0 {
        write!(writer, " {improvements} improved.")?;
    }
    // Of the function that has most.
    let largest = diff.functions.iter().max_by(|a, b| a.before.total_cmp(&b.before)).unwrap_or(&diff.total);
    writeln!(
        writer,
        " The smallest change that could have been found: {:.2} % of everything as a whole; of {}, which has most, {}.",
        diff.total.detectable * 100.0,
        code(&largest.name),
        detectable_of_itself(diff, largest),
    )
}

/// What could have been found of a change, as a part of its own value before.
fn detectable_of_itself(diff: &Diff, change: &Change) -> String {
    if change.before <= 0.0 {
        return format!("{:.2} % of everything", change.detectable * 100.0);
    }
    format!("{:.2} % of its own value", change.detectable * diff.total.before / change.before * 100.0)
}

fn write_table(diff: &Diff, title: &str, head: &str, changes: &[Change], writer: &mut impl Write) -> io::Result<()> {
    writeln!(writer, "## {title}\n")?;
    writeln!(writer, "| | before | after | change | effect | ± | p | found from | {head} |")?;
    writeln!(writer, "|:--|--:|--:|--:|--:|--:|--:|--:|:--|")?;
    for change in changes.iter().take(ROWS) {
        let word = match change.verdict {
            Verdict::Regression => "**worse**",
            Verdict::Improvement => "better",
            Verdict::Unchanged => "",
        };
        writeln!(
            writer,
            "| {word} | {} | {} | {} | {} | {:.2} % | {:.3} | {:.2} % | {} |",
            by_work(change.before, diff),
            by_work(change.after, diff),
            change.relative.map_or_else(|| "new".to_owned(), percent),
            percent(change.effect),
            change.standard_error * 100.0,
            change.p_value,
            change.detectable * 100.0,
            code(&change.name),
        )?;
    }
    if changes.len() > ROWS {
        writeln!(writer, "\n{} more: see diff.json.", count(float_len(changes.len() - ROWS)))?;
    }
    writeln!(writer)
}

fn float_len(length: usize) -> u64 {
    u64::try_from(length).unwrap_or(u64::MAX)
}

/// A value by unit of work.
fn by_work(value: f64, diff: &Diff) -> String {
    if diff.unit != NANOSECONDS {
        return format!("{value:.4}");
    }
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "not negative, and saturating")]
    let ns = value.round() as u64;
    if float(ns) > 1e3 { duration(ns) } else { format!("{value:.1} ns") }
}

/// A part with its sign.
fn percent(part: f64) -> String {
    format!("{:+.2} %", part * 100.0)
}
