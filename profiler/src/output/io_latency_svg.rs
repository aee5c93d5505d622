//! `iolatency.svg`: how many requests took how long, over time: a heatmap for each operation. No script, light and dark.

use std::collections::BTreeMap;
use std::io::{self, Write};

use profiler_common::histogram::{bucket_of, bucket_range};

use super::chart::{self, LEFT, RIGHT, Time, width};
use super::flamegraph::{escape, target};
use super::folded::clean;
use super::numbers::{count, duration, float, seconds};
use crate::profile::{Index, IoLatency};

/// Its name.
pub const FILE: &str = "iolatency.svg";

/// Height of the title above all panels.
const HEAD: f64 = 62.0;
/// Height of a panel: its title, a row of cells, the space below.
const PANEL_HEAD: f64 = 26.0;
const ROW: f64 = 5.0;
const GAP: f64 = 16.0;
/// Height of the axis of time below all panels.
const FOOT: f64 = 34.0;
/// More slices than this are narrower than can be told apart.
const MAX_COLUMNS: usize = 300;
/// Buckets of a distribution in a row: four rows for each power of two.
const BUCKETS_IN_A_ROW: u16 = 4;
/// Least rows that are drawn: below, a scale says nothing.
const MIN_ROWS: u16 = 12;

/// Requests of one operation by row and slice.
type Cells = BTreeMap<(u16, u32), u64>;

/// Draws the latencies.
///
/// # Errors
///
/// When `writer` fails.
pub fn write(index: &Index, writer: &mut impl Write) -> io::Result<()> {
    let mut drawn = index.io_latency.clone();
    while drawn.start_ns.len() > MAX_COLUMNS {
        drawn.merge_neighbours();
    }
    let panels = panels(&drawn);
    let used = panels.values().flat_map(|cells| cells.keys().map(|&(row, _)| row));
    let (mut first, mut last) = used.fold((u16::MAX, 0), |(first, last), row| (first.min(row), last.max(row)));
    // Some room on both sides, and all panels alike.
    first = first.min(last).saturating_sub(1);
    last = (last + 1).max(first + MIN_ROWS);
    let rows = Rows { first, last };
    let panel = PANEL_HEAD + rows.height() + GAP;
    let height = HEAD + float(panels.len() as u64) * panel + FOOT;
    let title = format!("Latency of requests to block devices: {} · {}", target(index), seconds(index.duration_ns));
    chart::begin(&title, &subtitle(&drawn), height, writer)?;
    let time = Time::new(&drawn.start_ns, &drawn.length_ns);
    let mut top = HEAD;
    for (operation, cells) in &panels {
        write_panel(operation, cells, &drawn, &time, rows, top, writer)?;
        top += panel;
    }
    chart::end(&time, top, writer)
}

/// The cells of each operation, of all devices.
fn panels(latency: &IoLatency) -> BTreeMap<&str, Cells> {
    let mut panels: BTreeMap<&str, Cells> = BTreeMap::new();
    for cell in &latency.cells {
        let cells = panels.entry(&cell.operation).or_default();
        for (&bucket, &requests) in &cell.total.buckets {
            let sum: &mut u64 = cells.entry((bucket / BUCKETS_IN_A_ROW, cell.slice)).or_default();
            *sum = sum.saturating_add(requests);
        }
    }
    panels
}

/// What is drawn: the devices, and how long a column is.
fn subtitle(latency: &IoLatency) -> String {
    let mut devices: Vec<&str> = latency.cells.iter().map(|cell| cell.device.as_str()).collect();
    devices.sort_unstable();
    devices.dedup();
    let more = devices.len().saturating_sub(8);
    devices.truncate(8);
    let devices = clean(&devices.join(", ")).into_owned();
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    let longest = latency.length_ns.iter().copied().max().unwrap_or(0);
    format!("{devices}{more}; a column is up to {}, the stronger its colour the more requests", seconds(longest))
}

/// The rows that are drawn.
#[derive(Clone, Copy)]
struct Rows {
    first: u16,
    last: u16,
}

impl Rows {
    fn height(self) -> f64 {
        f64::from(self.last - self.first + 1) * ROW
    }

    /// The latencies of a row: the least, and the first that is above it, ns.
    fn range(row: u16) -> (u64, u64) {
        let bucket = usize::from(row * BUCKETS_IN_A_ROW);
        (bucket_range(bucket).0, bucket_range(bucket + usize::from(BUCKETS_IN_A_ROW) - 1).1)
    }

    /// Distance of a latency from the bottom.
    fn above(self, ns: u64) -> f64 {
        let row = u16::try_from(bucket_of(ns)).unwrap_or(0) / BUCKETS_IN_A_ROW;
        let (start, end) = Self::range(row);
        let part = float(ns.saturating_sub(start)) / float(end - start);
        (f64::from(row) - f64::from(self.first) + part.min(1.0)) * ROW
    }
}

fn write_panel(
    operation: &str,
    cells: &Cells,
    latency: &IoLatency,
    time: &Time,
    rows: Rows,
    top: f64,
    writer: &mut impl Write,
) -> io::Result<()> {
    let requests = cells.values().fold(0, |sum: u64, &requests| sum.saturating_add(requests));
    let most = cells.values().copied().max().unwrap_or(1).max(1);
    let name = clean(operation);
    writeln!(writer, "<text class=\"panel\" x=\"12\" y=\"{:.1}\">{}</text>", top + 13.0, escape(&name))?;
    let noun = if requests == 1 { "request" } else { "requests" };
    let text = format!("{} {noun}, at most {} in a cell", count(requests), count(most));
    let x = 12.0 + 20.0 + width(&name) * 1.1;
    writeln!(writer, "<text class=\"axis\" x=\"{x:.1}\" y=\"{:.1}\">{text}</text>", top + 13.0)?;
    let (plot_top, bottom) = (top + PANEL_HEAD, top + PANEL_HEAD + rows.height());
    for power in 0..12 {
        let ns = 10_u64.pow(power);
        let above = rows.above(ns);
        if above < 0.0 || above > rows.height() {
            continue;
        }
        let y = bottom - above;
        writeln!(
            writer,
            "<path class=\"grid\" d=\"M{LEFT} {y:.1}H{RIGHT}\"/><text class=\"axis\" text-anchor=\"end\" x=\"{:.1}\" \
             y=\"{:.1}\">{}</text>",
            LEFT - 6.0,
            y + 4.0,
            power_of_ten(power)
        )?;
    }
    writeln!(writer, "<path class=\"frame\" d=\"M{LEFT} {bottom:.1}H{RIGHT}\"/>")?;
    for (x, _) in time.ticks() {
        writeln!(writer, "<path class=\"grid\" d=\"M{x:.1} {plot_top:.1}V{bottom:.1}\"/>")?;
    }
    for (&(row, slice), &requests) in cells {
        let at = |of: &[u64]| of.get(slice as usize).copied().unwrap_or(0);
        let (start, end) = (at(&latency.start_ns), at(&latency.start_ns).saturating_add(at(&latency.length_ns)));
        let (left, right) = (time.x(start), time.x(end));
        let y = bottom - f64::from(row + 1 - rows.first) * ROW;
        // A single request is to be seen, and thousands more than hundreds.
        let share = float(requests).ln_1p() / float(most).ln_1p();
        let (least, above) = Rows::range(row);
        writeln!(
            writer,
            "<rect class=\"f0\" fill-opacity=\"{:.2}\" x=\"{left:.1}\" y=\"{y:.1}\" width=\"{:.1}\" \
             height=\"{ROW}\"><title>{} of {} to {}, from {}</title></rect>",
            0.15 + 0.85 * share,
            (right - left).max(0.5),
            count(requests),
            duration(least),
            duration(above),
            seconds(start)
        )?;
    }
    Ok(())
}

/// `1 us`, `10 us`, `100 ms`, from nanoseconds.
fn power_of_ten(power: u32) -> String {
    let unit = ["ns", "us", "ms", "s"][(power as usize / 3).min(3)];
    format!("{} {unit}", 10_u64.pow(power.saturating_sub((power / 3).min(3) * 3)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn latencies_have_their_places() {
        assert_eq!([0, 3, 4, 8, 9, 10].map(power_of_ten), ["1 ns", "1 us", "10 us", "100 ms", "1 s", "10 s"]);
        let rows = Rows { first: 0, last: 100 };
        let mut before = -1.0;
        for ns in [0, 5, 900, 1_000, 1_001, 65_000, 1_000_000, 5_000_000_000] {
            let above = rows.above(ns);
            assert!(above > before, "{ns}: {above}");
            before = above;
        }
        assert_eq!(Rows::range(0), (0, 16));
        assert_eq!(Rows::range(1).0, 16);
        let (start, end) = Rows::range(50);
        assert!((rows.above(start) - 50.0 * ROW).abs() < 1e-9 && rows.above(end - 1) < 51.0 * ROW);
    }
}
