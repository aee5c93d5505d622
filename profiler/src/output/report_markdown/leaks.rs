//! The sites that hold memory, with what is thought of each.

use std::io::{self, Write};

use super::super::numbers::{bytes, count, duration, float, ratio};
use super::ROWS;
use crate::output::markdown::{code, name, prose};
use crate::profile::{LeakVerdict, Live, Peak, Report};

/// Frames of a site in its cell.
const FRAMES: usize = 4;

/// Sites that are named of the peak.
const PEAK_SITES: usize = 3;

/// Writes the section, which follows that of allocations.
pub(super) fn write(report: &Report, live: Option<&Live>, writer: &mut impl Write) -> io::Result<()> {
    let leaks = &report.leaks;
    let Some(live) = live else { return Ok(()) };
    writeln!(writer, "### Memory in use, by who allocated it\n")?;
    if !live.undecided.is_empty() {
        return writeln!(writer, "It is undecided whether memory leaks: {}.\n", prose(&live.undecided));
    }
    let suspects = leaks.iter().filter(|leak| leak.verdict == LeakVerdict::Leak).count();
    write!(writer, "Of what was allocated while recording. ")?;
    match suspects {
        0 => write!(writer, "No site grows without freeing what is old: there is no leak to be seen. ")?,
        1 => write!(writer, "One site grows and frees nothing of what is old. ")?,
        _ => write!(writer, "{suspects} sites grow and free nothing of what is old. ")?,
    }
    if live.missed > 0 {
        write!(writer, "{} blocks that were chosen could not be followed and are missing. ", count(live.missed))?;
    }
    writeln!(writer, "Growth is that of the second half; its interval holds 19 times in 20.\n")?;
    if let Some(peak) = &report.peak {
        write_peak(peak, writer)?;
    }
    if leaks.is_empty() {
        return Ok(());
    }
    writeln!(writer, "| verdict | sure | in use | growth a second | interval | allocated | process | site | why |")?;
    writeln!(writer, "|:--|--:|--:|--:|:--|--:|:--|:--|:--|")?;
    for leak in leaks.iter().take(ROWS) {
        let site = leak.site.iter().take(FRAMES).map(String::as_str).collect::<Vec<_>>().join(" < ");
        writeln!(
            writer,
            "| {} | {} | {} | {} | {} to {} | {} | {} | {} | {} |",
            leak.verdict.name(),
            ratio(leak.confidence, 1.0),
            bytes(leak.live_bytes),
            signed(leak.growth_bytes_per_s),
            signed(leak.interval[0]),
            signed(leak.interval[1]),
            bytes(leak.allocated_bytes),
            code(&format!("{} ({})", name(&leak.process), leak.pid)),
            code(&site),
            leak.reason,
        )?;
    }
    if leaks.len() > ROWS {
        writeln!(writer, "\n{} more are in `report.json`.", leaks.len() - ROWS)?;
    }
    writeln!(writer)
}

/// Writes when most was in use, and who held it.
fn write_peak(peak: &Peak, writer: &mut impl Write) -> io::Result<()> {
    write!(writer, "Most was in use at {}: {}", duration(peak.at_ns), bytes(peak.bytes))?;
    for (number, site) in peak.sites.iter().take(PEAK_SITES).enumerate() {
        let share = ratio(float(site.bytes), float(peak.bytes));
        let names = site.site.iter().take(2).map(String::as_str).collect::<Vec<_>>().join(" < ");
        let before = if number == 0 { ", held by" } else { "," };
        write!(writer, "{before} {} ({}, {share})", code(&names), bytes(site.bytes))?;
    }
    writeln!(writer, ".\n")
}

/// Bytes that may be fewer than none.
fn signed(value: f64) -> String {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "not negative, and saturating")]
    let amount = bytes(value.abs().round() as u64);
    if value <= -0.5 { format!("-{amount}") } else { amount }
}
