//! `report.md`: what an operator reads first.

mod findings;
mod leaks;
mod ledger;
mod locks;
mod memory;
mod phases;
mod slow_requests;
mod table;
mod timeline;

use std::io::{self, Write};

use profiler_common::counters::Outcome;
use profiler_common::event::{Origin, OriginRow};

use super::markdown::{code, name, prose};
use super::numbers::{NANOSECONDS, bytes, count, duration, float, percent, ratio, seconds, tenths, timestamp, value};
use crate::profile::{Accounting, Breakdown, BySize, Hotspot, Index, OriginSummary, Report};

/// Functions in each table.
const HOTSPOTS: usize = 10;
/// Calls, threads, processes and objects in their tables.
const ROWS: usize = 15;

/// Writes the report of a capture.
///
/// # Errors
///
/// When `writer` fails.
pub fn write(index: &Index, report: &Report, writer: &mut impl Write) -> io::Result<()> {
    write_header(index, writer)?;
    findings::write(report, writer)?;
    if let Some(ledger) = &report.ledger {
        ledger::write(ledger, writer)?;
    }
    for (origin, summary) in &index.origins {
        let breakdown = report.breakdowns.get(origin).cloned().unwrap_or_default();
        let row = Origin::from_name(origin).unwrap_or(Origin::Cpu).row();
        let section = Section { origin, row, summary, breakdown: &breakdown, index, report };
        section.write_summary(writer)?;
        match index.tables.get(origin) {
            Some(table) => table::write(table, row.origin == Origin::Func, writer)?,
            None => section.write_reasons(writer)?,
        }
        section.write_locks(writer)?;
        section.write_slow_requests(writer)?;
        if row.origin == Origin::Alloc {
            leaks::write(report, index.live.as_ref(), writer)?;
        }
        phases::write(origin, row.unit, breakdown.total, report, writer)?;
        section.write_hotspots(writer)?;
        section.write_edges(writer)?;
        section.write_threads(writer)?;
        section.write_objects(writer)?;
        if let Some(accounting) = index.accounting.get(origin) {
            write_accounting(accounting, summary.rate_hz > 0, writer)?;
        }
    }
    memory::write(index.memory.as_ref(), report.memory.as_ref(), writer)?;
    timeline::write(&index.timeline, writer)?;
    for (_, table) in index.tables.iter().filter(|(name, _)| !index.origins.contains_key(*name)) {
        table::write(table, false, writer)?;
    }
    write_overhead(index, writer)
}

fn write_header(index: &Index, writer: &mut impl Write) -> io::Result<()> {
    let host = &index.host;
    writeln!(writer, "# Profile of {}\n", prose(&index.target.description))?;
    write!(
        writer,
        "{}, recorded for {} on {} (Linux {}, {}, {} CPUs) by profiler {}",
        timestamp(index.started_at_ns),
        seconds(index.duration_ns),
        prose(&host.name),
        prose(&host.kernel),
        prose(&host.architecture),
        host.cpus,
        prose(&index.profiler_version),
    )?;
    match index.target.exit_code {
        Some(exit_code) => writeln!(writer, "; the command exited with {exit_code}.\n")?,
        None => writeln!(writer, ".\n")?,
    }
    if !index.warnings.is_empty() {
        writeln!(writer, "**Before you read on:**\n")?;
        for warning in &index.warnings {
            writeln!(writer, "- {}", prose(warning))?;
        }
        writeln!(writer)?;
    }
    Ok(())
}

/// One origin's part of the report.
struct Section<'a> {
    origin: &'a str,
    row: &'static OriginRow,
    summary: &'a OriginSummary,
    breakdown: &'a Breakdown,
    index: &'a Index,
    report: &'a Report,
}

impl Section<'_> {
    fn write_summary(&self, writer: &mut impl Write) -> io::Result<()> {
        let Self { origin, row, summary, breakdown, .. } = self;
        writeln!(writer, "## Summary: {origin}\n")?;
        if summary.unit == NANOSECONDS {
            write!(writer, "{} {}, in {} samples", duration(summary.total), row.total, count(summary.n))?;
        } else {
            write!(writer, "{} {}", count(summary.total), prose(&summary.unit))?;
        }
        if summary.rate_hz > 0 {
            write!(writer, " of {} at {} Hz a CPU", code(&summary.event), count(summary.rate_hz))?;
        }
        write!(writer, ", on {} of {}", plural(breakdown.threads, "thread"), plural(breakdown.processes, "process"))?;
        if let Some(cpus) = super::cpus(self.index, origin) {
            write!(writer, ": **{cpus:.2} CPUs** in use on average, of {}", self.index.host.cpus)?;
        }
        writeln!(writer, ".")?;
        if let Some(by_length) = &summary.by_length {
            writeln!(
                writer,
                "Every {} of {} or more is in it with its own length; shorter ones are there by chance, others counting \
                 for them. In all it was {}; the standard error of the estimate is at most {}.",
                row.event,
                duration(by_length.threshold_ns),
                duration(by_length.measured_ns),
                duration(nanoseconds(by_length.standard_error_ns)),
            )?;
        }
        if let Some(by_number) = &summary.by_number {
            let measured = count(by_number.measured);
            if by_number.weight <= 1 {
                writeln!(writer, "Every {} is in it: {measured}.", row.event)?;
            } else {
                let exact = if by_number.period <= 1 { "exactly" } else { "about" };
                write!(
                    writer,
                    "There were {exact} {measured}. While they came too fast to keep all, some are there by chance, each \
                     counting for up to {}",
                    count(by_number.weight)
                )?;
                match by_number.period {
                    0 | 1 => writeln!(writer, ".")?,
                    period => writeln!(writer, "; one in up to {} was looked at.", count(period))?,
                }
            }
        }
        if let Some(by_size) = &summary.by_size {
            self.write_choice_by_size(by_size, writer)?;
        }
        let total = breakdown.total;
        if total == 0 {
            return writeln!(writer, "There are no samples: the target may have been idle.\n");
        }
        // Where there are no kernel stacks, all would seem to be user code.
        let lead = if row.kernel_stacks {
            self.write_kinds(writer)?;
            "; the"
        } else {
            "The"
        };
        match self.hotspots(|hotspot| hotspot.self_value).first() {
            Some(top) => writeln!(
                writer,
                "{lead} top function is {} in {} with {} of its own.\n",
                code(&top.function),
                code(name(&top.object)),
                percent(top.self_value, total)
            ),
            None => writeln!(writer, ".\n"),
        }
    }

    /// What kinds of code the leaves are.
    fn write_kinds(&self, writer: &mut impl Write) -> io::Result<()> {
        let total = self.breakdown.total;
        let of = |kind: &str| self.breakdown.self_by_kind.get(kind).copied().unwrap_or(0);
        let user = of("native") + of("jit") + of("interpreted");
        write!(writer, "{} in user code", percent(user, total))?;
        for (kind, text) in [("jit", "compiled at run time"), ("interpreted", "interpreted")] {
            if of(kind) > 0 {
                write!(writer, " ({} {text})", percent(of(kind), total))?;
            }
        }
        write!(writer, ", {} in the kernel", percent(of("kernel"), total))?;
        if of("marker") + of("none") > 0 {
            write!(writer, ", {} without a stack", percent(of("marker") + of("none"), total))?;
        }
        Ok(())
    }

    fn write_reasons(&self, writer: &mut impl Write) -> io::Result<()> {
        if self.breakdown.reasons.is_empty() {
            return Ok(());
        }
        let mut reasons: Vec<_> = self.breakdown.reasons.iter().collect();
        // The map is in the order of the names, and this keeps the order of equals.
        reasons.sort_by_key(|&(_, &value)| std::cmp::Reverse(value));
        let head = if self.summary.unit == NANOSECONDS { "time" } else { self.row.unit };
        writeln!(writer, "### {}\n\n| {head} | % | reason |\n|--:|--:|:--|", self.row.reasons_title)?;
        for (reason, &value) in reasons {
            let share = percent(value, self.breakdown.total);
            writeln!(writer, "| {} | {share} | {} |", self.value(value), prose(reason))?;
        }
        writeln!(writer)
    }

    fn write_locks(&self, writer: &mut impl Write) -> io::Result<()> {
        if self.origin != Origin::Lock.row().name || self.report.locks.is_empty() {
            return Ok(());
        }
        locks::write(&self.report.locks, self.summary.total, writer)
    }

    fn write_choice_by_size(&self, by_size: &BySize, writer: &mut impl Write) -> io::Result<()> {
        let (threshold, measured) = (bytes(by_size.threshold_bytes), bytes(by_size.measured_bytes));
        if by_size.exact {
            if let Some(after_ns) = by_size.stopped_after_ns {
                let after = duration(after_ns);
                write!(writer, "Recording ended after {after} by itself, since it took more than its budget. ")?;
            }
            return writeln!(writer, "Every allocation is in it, through {}.", code(&self.summary.event));
        }
        if by_size.share_of_time < 1.0 {
            write!(
                writer,
                "Probes were there in windows, {} of the time, so that the target does not slow down; what was allocated \
                 then, {measured}, stands for all. ",
                ratio(by_size.share_of_time, 1.0)
            )?;
        } else {
            write!(writer, "In all it was {measured}, through {}. ", code(&self.summary.event))?;
        }
        writeln!(
            writer,
            "Every allocation of {threshold} or more is in it with its own size; smaller ones are there by chance, others \
             counting for them. The standard error of the estimate by that is at most {}.",
            bytes(nanoseconds(by_size.standard_error_bytes))
        )
    }

    fn write_slow_requests(&self, writer: &mut impl Write) -> io::Result<()> {
        if self.origin != Origin::BlockIo.row().name {
            return Ok(());
        }
        slow_requests::write(&self.index.slow_requests, &self.report.slow_requests, writer)
    }

    /// A value as its unit is written.
    fn value(&self, number: u64) -> String {
        value(number, &self.summary.unit)
    }

    /// The leading functions by `value`, those without any left out.
    fn hotspots(&self, value: impl Fn(&Hotspot) -> u64) -> Vec<&Hotspot> {
        let mine = self.report.hotspots.iter().filter(|hotspot| hotspot.origin == self.origin);
        let mut hotspots: Vec<_> = mine.filter(|hotspot| hotspot.kind != "marker" && value(hotspot) > 0).collect();
        // The list is in order of self, and this keeps the order of equals.
        hotspots.sort_by_key(|hotspot| std::cmp::Reverse(value(hotspot)));
        hotspots.truncate(HOTSPOTS);
        hotspots
    }

    fn write_hotspots(&self, writer: &mut impl Write) -> io::Result<()> {
        let tables = [
            ("by self", "its own code", self.hotspots(|hotspot| hotspot.self_value)),
            ("by total", "it and all it called", self.hotspots(|hotspot| hotspot.total_value)),
        ];
        for (order, meaning, hotspots) in tables {
            if hotspots.is_empty() {
                continue;
            }
            writeln!(writer, "### Hotspots {order} ({meaning})\n")?;
            writeln!(writer, "| # | self | self % | total | total % | function | object |")?;
            writeln!(writer, "|--:|--:|--:|--:|--:|:--|:--|")?;
            for (rank, hotspot) in (1..).zip(hotspots) {
                writeln!(
                    writer,
                    "| {rank} | {} | {} | {} | {} | {} | {} |",
                    self.value(hotspot.self_value),
                    percent(hotspot.self_value, self.breakdown.total),
                    self.value(hotspot.total_value),
                    percent(hotspot.total_value, self.breakdown.total),
                    code(&hotspot.function),
                    code(name(&hotspot.object)),
                )?;
            }
            writeln!(writer)?;
        }
        Ok(())
    }

    fn write_edges(&self, writer: &mut impl Write) -> io::Result<()> {
        let mut edges = self.report.callgraph.edges.iter().filter(|edge| edge.origin == self.origin).peekable();
        if edges.peek().is_none() {
            return Ok(());
        }
        writeln!(writer, "### Call graph: the heaviest calls\n")?;
        writeln!(writer, "| {} | % | caller | callee |\n|--:|--:|:--|:--|", prose(&self.summary.unit))?;
        for edge in edges.take(ROWS) {
            writeln!(
                writer,
                "| {} | {} | {} | {} |",
                self.value(edge.value),
                percent(edge.value, self.breakdown.total),
                code(&edge.caller),
                code(&edge.callee)
            )?;
        }
        writeln!(writer)
    }

    fn write_threads(&self, writer: &mut impl Write) -> io::Result<()> {
        let unit = prose(&self.summary.unit);
        let total = self.breakdown.total;
        let processes: Vec<_> =
            self.report.processes.iter().filter(|process| process.origin == self.origin).take(ROWS).collect();
        if processes.len() > 1 {
            writeln!(writer, "### Processes\n")?;
            // Most hosts have no containers, and then no column for them.
            let contained = processes.iter().any(|process| !process.container.is_empty());
            let (head, line) = if contained { (" container |", ":--|") } else { ("", "") };
            writeln!(writer, "| {unit} | % | pid | process | threads |{head}\n|--:|--:|--:|:--|--:|{line}")?;
            for process in &processes {
                let (value, share) = (self.value(process.value), percent(process.value, total));
                let (pid, threads) = (process.pid, count(process.threads));
                write!(writer, "| {value} | {share} | {pid} | {} | {threads} |", code(&process.process))?;
                if contained {
                    let container = &process.container;
                    write!(writer, " {} |", if container.is_empty() { String::new() } else { code(container) })?;
                }
                writeln!(writer)?;
            }
            rest(self.breakdown.processes, processes.len(), writer)?;
        }
        let threads: Vec<_> =
            self.report.threads.iter().filter(|thread| thread.origin == self.origin).take(ROWS).collect();
        if !threads.is_empty() {
            writeln!(writer, "### Threads\n")?;
            writeln!(writer, "| {unit} | % | pid | tid | process | thread |\n|--:|--:|--:|--:|:--|:--|")?;
            for thread in &threads {
                let (value, share) = (self.value(thread.value), percent(thread.value, total));
                let (pid, tid) = (thread.pid, thread.tid);
                let (process, thread) = (code(&thread.process), code(&thread.thread));
                writeln!(writer, "| {value} | {share} | {pid} | {tid} | {process} | {thread} |")?;
            }
            rest(self.breakdown.threads, threads.len(), writer)?;
        }
        Ok(())
    }

    fn write_objects(&self, writer: &mut impl Write) -> io::Result<()> {
        let objects: Vec<_> =
            self.report.objects.iter().filter(|object| object.origin == self.origin).take(ROWS).collect();
        if objects.is_empty() {
            return Ok(());
        }
        writeln!(writer, "### Objects, and how many of their frames have names\n")?;
        writeln!(writer, "| self % | frames | named | object | what would name the rest |")?;
        writeln!(writer, "|--:|--:|--:|:--|:--|")?;
        for object in objects {
            writeln!(
                writer,
                "| {} | {} | {} | {} | {} |",
                percent(object.self_value, self.breakdown.total),
                count(object.frames),
                percent(object.named, object.frames),
                code(&object.path),
                prose(&object.advice)
            )?;
        }
        writeln!(writer)
    }
}

/// The line after a table that shows `shown` of `all`.
fn rest(all: u64, shown: usize, writer: &mut impl Write) -> io::Result<()> {
    match all.saturating_sub(shown as u64) {
        0 => writeln!(writer),
        more => writeln!(writer, "\n{} more: see report.json.\n", count(more)),
    }
}

/// `by_time`: whether samples are taken by time, so that some may not have been delivered.
fn write_accounting(accounting: &Accounting, by_time: bool, writer: &mut impl Write) -> io::Result<()> {
    let (truncated, lost) = (accounting.truncated.values().sum::<u64>(), accounting.samples_lost());
    let samples = accounting.samples() + lost;
    writeln!(writer, "### How complete\n")?;
    writeln!(writer, "| what became of a sample | count | % | meaning |\n|:--|--:|--:|:--|")?;
    let mut rows = vec![("complete".to_owned(), accounting.complete, Outcome::Complete.text())];
    for (what, reasons) in [("truncated", &accounting.truncated), ("lost", &accounting.lost)] {
        for (reason, &number) in reasons {
            rows.push((format!("{what}: {reason}"), number, Outcome::from_name(reason).map_or("", Outcome::text)));
        }
    }
    for (what, number, text) in rows {
        writeln!(writer, "| {} | {} | {} | {} |", code(&what), count(number), percent(number, samples), prose(text))?;
    }
    writeln!(writer)?;
    writeln!(
        writer,
        "hits {} {} filtered {} + idle {}{} + complete {} + truncated {} + lost {}{}",
        count(accounting.hits),
        if accounting.adds_up() { "=" } else { "≠" },
        count(accounting.filtered),
        count(accounting.idle),
        if accounting.sampled_out > 0 {
            format!(" + sampled out {}", count(accounting.sampled_out))
        } else {
            String::new()
        },
        count(accounting.complete),
        count(truncated),
        count(lost),
        if by_time { "  " } else { "\n" }
    )?;
    if by_time {
        write_delivery(accounting, writer)?;
    }
    writeln!(writer, "| stacks | complete | truncated | lost |\n|:--|--:|--:|--:|")?;
    for (name, chain) in [("user", &accounting.user), ("kernel", &accounting.kernel)] {
        let (truncated, lost) = (chain.truncated.values().sum(), chain.lost.values().sum());
        writeln!(writer, "| {name} | {} | {} | {} |", count(chain.complete), count(truncated), count(lost))?;
    }
    writeln!(writer)
}

fn write_delivery(accounting: &Accounting, writer: &mut impl Write) -> io::Result<()> {
    writeln!(
        writer,
        "not delivered by the kernel: {} of {} expected ({}){}",
        tenths(accounting.not_delivered),
        tenths(accounting.expected),
        ratio(accounting.not_delivered, accounting.expected),
        if accounting.periods > 0 { "  " } else { "\n" }
    )?;
    if accounting.periods > 0 {
        writeln!(
            writer,
            "the kernel counted {} periods on all CPUs, about {} of them on idle ones, where no samples are taken\n",
            count(accounting.periods),
            count(accounting.idle_periods)
        )?;
    }
    Ok(())
}

/// An estimate in whole ns: saturating, and never below zero.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "shown with a few digits")]
fn nanoseconds(value: f64) -> u64 {
    value as u64
}

fn write_overhead(index: &Index, writer: &mut impl Write) -> io::Result<()> {
    let overhead = &index.overhead;
    writeln!(writer, "## What the recording cost\n")?;
    writeln!(writer, "| what | how much | |\n|:--|--:|:--|")?;
    writeln!(
        writer,
        "| BPF programs | {} ns a sample | {} runs, {:.3} s in all, {} of one CPU |",
        tenths(overhead.bpf_ns_per_sample),
        count(overhead.bpf_runs),
        float(overhead.bpf_ns) / 1e9,
        percent(overhead.bpf_ns, index.duration_ns)
    )?;
    if overhead.trap_ns > 0 {
        let (trap, share) = (float(overhead.trap_ns) / 1e9, percent(overhead.trap_ns, index.duration_ns));
        writeln!(writer, "| traps of the probes | {trap:.3} s | {share} of one CPU |")?;
    }
    let (agent, share) = (float(overhead.agent_cpu_ns) / 1e9, percent(overhead.agent_cpu_ns, index.duration_ns));
    writeln!(writer, "| profiler, CPU | {agent:.3} s | {share} of one CPU |")?;
    writeln!(writer, "| profiler, most resident memory | {} | |", bytes(overhead.peak_rss_bytes))?;
    writeln!(writer, "| BPF maps, kernel memory | {} | |", bytes(overhead.bpf_map_bytes))
}

fn plural(number: u64, noun: &str) -> String {
    match (number, noun.ends_with('s')) {
        (1, _) => format!("1 {noun}"),
        (_, true) => format!("{} {noun}es", count(number)),
        (_, false) => format!("{} {noun}s", count(number)),
    }
}
