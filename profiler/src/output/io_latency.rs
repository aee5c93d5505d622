//! Latencies of requests to block devices, slice by slice: `iolatency.csv` with percentiles by device and operation, and
//! `iolatency.svg`, a heat map of all of them.
//!
//! Input: the table that `collect` makes of them. The heat map has a cell for each slice and each third of a power of two; the
//! darker, the more requests, by their logarithm.

use std::collections::BTreeMap;
use std::io::{self, Write};

use profiler_common::histogram::bucket_range;

use super::flamegraph::{escape, target};
use super::numbers::{count, duration, float, seconds};
use crate::profile::{Index, Table};

/// Names of the files.
pub(super) const CSV_FILE: &str = "iolatency.csv";
/// See [`CSV_FILE`].
pub(super) const SVG_FILE: &str = "iolatency.svg";

/// Percentiles in the CSV file: name and per mille.
const PERCENTILES: [(&str, u32); 3] = [("p50", 500), ("p90", 900), ("p99", 990)];

/// Writes a line for each slice, device and operation.
///
/// # Errors
///
/// When `writer` fails.
pub(super) fn write_csv(table: &Table, writer: &mut impl Write) -> io::Result<()> {
    write!(writer, "{},requests", table.labels.join(","))?;
    for column in &table.distributions {
        for name in PERCENTILES.map(|(name, _)| name).into_iter().chain(["max"]) {
            write!(writer, ",{}_{name}_{}", column.name, column.unit)?;
        }
    }
    writeln!(writer)?;
    for row in &table.rows {
        // Names of devices are the kernel's, or what a damaged capture says.
        let labels = row.labels.iter().map(|label| label.replace([',', '"', '\n', '\r'], "_")).collect::<Vec<_>>();
        write!(writer, "{},{}", labels.join(","), row.values.first().copied().unwrap_or(0))?;
        for histogram in &row.distributions {
            for (_, per_mille) in PERCENTILES {
                write!(writer, ",{}", histogram.percentile(per_mille).unwrap_or(0))?;
            }
            write!(writer, ",{}", histogram.max)?;
        }
        writeln!(writer)?;
    }
    Ok(())
}

const WIDTH: f64 = 1200.0;
/// Where the cells begin and end.
const LEFT: f64 = 88.0;
const RIGHT: f64 = 1170.0;
const TOP: f64 = 62.0;
/// Height of a cell.
const CELL: f64 = 9.0;
/// Cells for a power of two.
const CELLS: f64 = 3.0;
/// Shades, from few requests to most.
const SHADES: u32 = 9;

/// Colours: one hue, by opacity, so that it reads on white and on black.
const STYLE: &str = "\
text{font-family:system-ui,'DejaVu Sans',sans-serif;font-size:12px;fill:#222}.back{fill:#fff}\
.title{font-size:16px;font-weight:600}.axis{fill:#555;font-size:11px}.cell{fill:#0072b2}.frame{stroke:#999;fill:none}\
@media (prefers-color-scheme:dark){text{fill:#ddd}.back{fill:#16181c}.axis{fill:#aaa}.cell{fill:#56b4e9}}";

/// Draws the heat map.
///
/// # Errors
///
/// When `writer` fails.
pub(super) fn write_svg(table: &Table, index: &Index, writer: &mut impl Write) -> io::Result<()> {
    let mut cells: BTreeMap<(u64, i32), u64> = BTreeMap::new();
    let mut length_s = 1;
    for row in &table.rows {
        let number = |label: usize| row.labels.get(label).and_then(|text| text.parse::<u64>().ok());
        let (Some(start), Some(length), Some(histogram)) = (number(0), number(1), row.distributions.first()) else {
            continue;
        };
        length_s = length.max(1);
        for (&bucket, &requests) in &histogram.buckets {
            let (from, to) = bucket_range(usize::from(bucket));
            *cells.entry((start / length_s, level(from + (to - from) / 2))).or_default() += requests;
        }
    }
    let lowest = cells.keys().map(|&(_, level)| level).min().unwrap_or(0);
    let highest = cells.keys().map(|&(_, level)| level).max().unwrap_or(0);
    let most = cells.values().copied().max().unwrap_or(1);
    let slices = index.duration_ns.div_ceil(1_000_000_000).div_ceil(length_s).max(1);
    let slices = slices.max(cells.keys().map(|&(slice, _)| slice + 1).max().unwrap_or(1));
    let (width, bottom) = ((RIGHT - LEFT) / float(slices), TOP + f64::from(highest - lowest + 1) * CELL);
    let height = bottom + 34.0;
    let title = format!("Latency of requests to block devices: {} · {}", target(index), seconds(index.duration_ns));
    let title = escape(&title);
    writeln!(
        writer,
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" \
         height=\"{height}\" viewBox=\"0 0 {WIDTH} {height}\" role=\"img\">\n<title>{title}</title>\n\
         <style>{STYLE}</style>\n<rect class=\"back\" width=\"{WIDTH}\" height=\"{height}\"/>\n\
         <text class=\"title\" x=\"12\" y=\"26\">{title}</text>\n<text class=\"axis\" x=\"12\" y=\"46\">\
         from when a request was made until it was done; the darkest cell has {} requests</text>",
        count(most)
    )?;
    for (&(slice, level), &requests) in &cells {
        let (x, y) = (LEFT + float(slice) * width, bottom - f64::from(level - lowest + 1) * CELL);
        let shade = 1.0 + (f64::from(SHADES - 1) * float(requests).ln() / float(most.max(2)).ln()).round();
        writeln!(
            writer,
            "<rect class=\"cell\" x=\"{x:.1}\" y=\"{y:.1}\" width=\"{:.1}\" height=\"{CELL}\" fill-opacity=\"{:.2}\">\
             <title>{} s, {} and more: {} requests</title></rect>",
            width.max(1.0),
            shade / f64::from(SHADES),
            slice * length_s,
            duration(start_of(level)),
            count(requests)
        )?;
    }
    writeln!(
        writer,
        "<rect class=\"frame\" x=\"{LEFT}\" y=\"{TOP}\" width=\"{:.1}\" height=\"{:.1}\"/>",
        RIGHT - LEFT,
        bottom - TOP
    )?;
    for level in (lowest..=highest + 1).filter(|level| level.rem_euclid(6) == 0) {
        let y = bottom - f64::from(level - lowest) * CELL;
        let text = duration(start_of(level));
        writeln!(
            writer,
            "<text class=\"axis\" x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{text}</text>",
            LEFT - 6.0,
            y + 4.0
        )?;
    }
    for tick in 0..=4_u64 {
        let x = LEFT + (RIGHT - LEFT) * float(tick) / 4.0;
        let at = slices * length_s * tick / 4;
        let y = bottom + 18.0;
        writeln!(writer, "<text class=\"axis\" x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"middle\">{at} s</text>")?;
    }
    writeln!(writer, "</svg>")
}

/// The third of a power of two that a time is in.
fn level(ns: u64) -> i32 {
    // Times have at most 2^37 ns.
    #[expect(clippy::cast_possible_truncation, reason = "a logarithm of 64 bits")]
    let level = (float(ns.max(1)).log2() * CELLS).floor() as i32;
    level
}

/// Where it begins, ns.
fn start_of(level: i32) -> u64 {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "positive, and below 2^38")]
    let ns = (f64::from(level) / CELLS).exp2().round() as u64;
    ns
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::profile::{Histogram, Row, TableColumn};

    #[test]
    fn a_slice_is_a_line_with_its_percentiles() {
        let mut counts = [0; 512];
        counts[profiler_common::histogram::bucket_of(1_000_000)] = 10;
        let histogram = Histogram::new(&counts, 1_000_000);
        let table = Table {
            labels: ["start_s", "length_s", "device", "operation"].map(str::to_owned).to_vec(),
            values: vec![TableColumn::new("requests", "count")],
            distributions: vec![TableColumn::new("total", "ns")],
            rows: vec![Row {
                labels: ["3", "1", "v,da", "read"].map(str::to_owned).to_vec(),
                values: vec![10],
                distributions: vec![histogram],
            }],
            ..Table::default()
        };
        let mut bytes = Vec::new();
        write_csv(&table, &mut bytes).unwrap();
        let text = String::from_utf8(bytes).unwrap();
        let head = "start_s,length_s,device,operation,requests,total_p50_ns,total_p90_ns,total_p99_ns,total_max_ns";
        assert_eq!(text.lines().next(), Some(head));
        let line = text.lines().nth(1).unwrap();
        assert!(line.starts_with("3,1,v_da,read,10,") && line.ends_with(",1000000"), "{line}");
    }

    #[test]
    fn levels_are_thirds_of_powers_of_two() {
        assert_eq!((level(1024), start_of(level(1024))), (30, 1024));
        assert_eq!(level(2047), 32);
        assert_eq!(level(0), 0);
    }
}
