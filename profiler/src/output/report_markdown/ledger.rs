//! The wall-time ledger as tables.

use std::io::{self, Write};

use super::super::numbers::{count, duration, float, percent, ratio};
use super::ROWS;
use crate::output::markdown::code;
use crate::profile::{Ledger, LedgerRow};

/// A kind of time must have one in so many parts of all wall time for a column of its own.
const LEAST_PART: u64 = 2_000;

/// A kind of time.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind<'a> {
    Cpu,
    User,
    Kernel,
    Wait(&'a str),
    Unknown,
}

impl<'a> Kind<'a> {
    const fn name(self) -> &'a str {
        match self {
            Self::Cpu => "CPU",
            Self::User => "user",
            Self::Kernel => "kernel",
            Self::Wait(reason) => reason,
            Self::Unknown => "unknown",
        }
    }

    fn meaning(self) -> &'static str {
        match self {
            Self::Cpu => "on the CPU",
            Self::User => "on the CPU, in user space (by the share of samples)",
            Self::Kernel => "on the CPU, in the kernel (by the share of samples)",
            Self::Wait(reason) => meaning(reason),
            Self::Unknown => "off the CPU, for a reason that is not known",
        }
    }

    fn time(self, row: &LedgerRow) -> u64 {
        let time = match self {
            Self::Cpu => Some(row.cpu_ns),
            Self::User => row.cpu_user_ns,
            Self::Kernel => row.cpu_kernel_ns,
            Self::Wait(reason) => row.waits.get(reason).copied(),
            Self::Unknown => Some(row.unknown_ns),
        };
        time.unwrap_or(0)
    }
}

/// The kinds of time that there are, in the order of the tables.
fn kinds(total: &LedgerRow) -> Vec<Kind<'_>> {
    let cpu = if total.cpu_user_ns.is_some() { &[Kind::User, Kind::Kernel][..] } else { &[Kind::Cpu] };
    let mut reasons: Vec<_> = total.waits.iter().collect();
    // The map is in the order of the names, and this keeps the order of equals.
    reasons.sort_by_key(|&(_, &time)| std::cmp::Reverse(time));
    let waits = reasons.into_iter().map(|(reason, _)| Kind::Wait(reason));
    cpu.iter().copied().chain(waits).chain([Kind::Unknown]).collect()
}

fn meaning(reason: &str) -> &'static str {
    match reason {
        "disk" => "waited for a block device",
        "file" => "waited in a file system, not for a device",
        "lock" => "waited for a lock or a condition (futex, semaphore, file lock)",
        "network" => "waited for a socket",
        "pipe" => "waited for a pipe or a local socket",
        "poll" => "waited for any of several descriptors",
        "sleep" => "waited for time to pass, or a signal",
        "fault" => "waited for a page of its own memory",
        "stopped" => "was stopped by a signal or a debugger",
        "child" => "waited for another process",
        "preempted" => "could run, but had to leave the CPU to others",
        "run queue" => "could run, but waited for a CPU since it was woken",
        _ => "waited for something else",
    }
}

/// Writes the section.
pub(super) fn write(ledger: &Ledger, writer: &mut impl Write) -> io::Result<()> {
    let total = &ledger.total;
    writeln!(writer, "## Where the wall time went\n")?;
    writeln!(
        writer,
        "{} {} there for {} in all. Every thread's time from switch to switch, exactly; waits by their reason.\n",
        count(total.threads),
        if total.threads == 1 { "thread was" } else { "threads were" },
        duration(total.wall_ns),
    )?;
    let kinds = kinds(total);
    writeln!(writer, "| time | % | | what |\n|--:|--:|:--|:--|")?;
    for &kind in &kinds {
        let time = kind.time(total);
        if time > 0 || kind == Kind::Unknown {
            let (name, meaning) = (kind.name(), kind.meaning());
            writeln!(writer, "| {} | {} | {name} | {meaning} |", duration(time), percent(time, total.wall_ns))?;
        }
    }
    let residual = total.residual_ns;
    let sign = if residual < 0 { "-" } else { "" };
    writeln!(
        writer,
        "| {sign}{} | {} | residual | what is left of the wall time |\n",
        duration(residual.unsigned_abs()),
        ratio(float(residual.unsigned_abs()) * if residual < 0 { -1.0 } else { 1.0 }, float(total.wall_ns)),
    )?;
    let is_shown = |time: u64| time > 0 && time >= total.wall_ns / LEAST_PART;
    let shown: Vec<_> = kinds.into_iter().filter(|kind| is_shown(kind.time(total))).collect();
    if ledger.processes.len() > 1 {
        write_rows("Processes", &ledger.processes, &shown, |row| count(row.threads), "threads", writer)?;
    }
    if total.threads > 1 {
        write_rows("Threads", &ledger.threads, &shown, |row| code(&row.thread), "thread", writer)?;
    }
    Ok(())
}

/// A table with a row each, its time in per cent of its own wall time.
fn write_rows(
    title: &str,
    rows: &[LedgerRow],
    kinds: &[Kind<'_>],
    last: impl Fn(&LedgerRow) -> String,
    last_name: &str,
    writer: &mut impl Write,
) -> io::Result<()> {
    let (heads, lines): (String, String) =
        kinds.iter().map(|kind| (format!(" {} |", kind.name()), "--:|".to_owned())).unzip();
    writeln!(writer, "### Wall time: {}\n", title.to_lowercase())?;
    writeln!(writer, "| wall |{heads} pid | tid | process | {last_name} |\n|--:|{lines}--:|--:|:--|:--|")?;
    for row in rows.iter().take(ROWS) {
        write!(writer, "| {} |", duration(row.wall_ns))?;
        for kind in kinds {
            write!(writer, " {} |", percent(kind.time(row), row.wall_ns))?;
        }
        let number = |number: u32| if number == 0 { String::new() } else { number.to_string() };
        writeln!(writer, " {} | {} | {} | {} |", number(row.pid), number(row.tid), code(&row.process), last(row))?;
    }
    if rows.len() > ROWS {
        writeln!(writer, "\nMore: see report.json.")?;
    }
    writeln!(writer)
}
