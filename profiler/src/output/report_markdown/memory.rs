//! Memory of the target, and what the system's settings mean for it.

use std::io::{self, Write};

use super::super::numbers::{bytes, ratio};
use super::ROWS;
use crate::output::markdown::{code, prose_with_code as prose};
use crate::profile::{Memory, MemoryReport, MemoryShares};

/// A part of a process's memory, bytes; `None` where it was not read.
type Part = fn(&MemoryShares) -> Option<u64>;

/// Writes the section.
pub(super) fn write(memory: Option<&Memory>, report: Option<&MemoryReport>, writer: &mut impl Write) -> io::Result<()> {
    let (Some(memory), Some(report)) = (memory, report) else { return Ok(()) };
    writeln!(writer, "## Memory\n")?;
    if !memory.processes.is_empty() {
        write_shares(memory, writer)?;
    }
    if let Some(part) = report.fragmentation {
        writeln!(writer, "Of the heap, {} is in no block in use.\n", ratio(part, 1.0))?;
    }
    if report.checks.is_empty() {
        return Ok(());
    }
    writeln!(writer, "| what | value | what it means |\n|:--|:--|:--|")?;
    for check in &report.checks {
        writeln!(writer, "| {} | {} | {} |", prose(&check.name), prose(&check.value), prose(&check.meaning))?;
    }
    writeln!(writer)
}

fn write_shares(memory: &Memory, writer: &mut impl Write) -> io::Result<()> {
    let parts: [(&str, Part); 8] = [
        ("resident", |shares| Some(shares.rss_bytes)),
        ("its part of what is shared (PSS)", |shares| shares.pss_bytes),
        ("heap", |shares| Some(shares.heap_bytes)),
        ("stack", |shares| Some(shares.stack_bytes)),
        ("file", |shares| Some(shares.file_bytes)),
        ("shared", |shares| Some(shares.shared_bytes)),
        ("swapped out", |shares| Some(shares.swap_bytes)),
        ("huge pages", |shares| shares.huge_bytes),
    ];
    let shown = || memory.processes.iter().take(ROWS);
    // What no process has needs no column.
    let has = |of: Part| {
        shown().any(|process| [process.start, process.end].iter().any(|shares| of(shares).is_some_and(|part| part > 0)))
    };
    let parts: Vec<_> = parts.into_iter().filter(|(_, of)| has(*of)).collect();
    let head: Vec<_> = parts.iter().map(|(name, _)| *name).collect();
    writeln!(writer, "At the start and at the end; heap is resident anonymous memory but the first thread's stack.\n")?;
    writeln!(writer, "| process | {} |\n|:--|{}", head.join(" | "), "--:|".repeat(head.len()))?;
    for process in shown() {
        write!(writer, "| {} |", code(&format!("{} ({})", process.process, process.pid)))?;
        for (_, of) in &parts {
            let text = |shares| of(shares).map_or_else(|| "-".to_owned(), bytes);
            write!(writer, " {} → {} |", text(&process.start), text(&process.end))?;
        }
        writeln!(writer)?;
    }
    writeln!(writer)
}
