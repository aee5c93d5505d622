//! The part of the report that is a table of what was counted.

use std::io::{self, Write};

use super::rest;
use crate::output::markdown::{code, prose};
use crate::output::numbers::{count, value};
use crate::profile::{PERCENTILES, Table, TableColumn};

/// Rows that are shown.
const ROWS: usize = 25;
/// And of the distributions behind the first.
const OTHER_ROWS: usize = 10;

/// What is a time in all: it needs no name.
const TIME: &str = "time";

/// What a column is called: with its unit, where nothing in a cell tells it.
fn heading(column: &TableColumn) -> String {
    let name = column.name.replace('_', " ");
    match column.unit.as_str() {
        "ns" | "count" => name,
        unit if name.ends_with(unit) => name,
        unit => format!("{name} {}", unit.replace('_', " ")),
    }
}

/// Whether a sum over all rows says something: not of rates and means.
fn is_sum(column: &TableColumn) -> bool {
    ["ns", "bytes", "count"].contains(&column.unit.as_str())
}

/// A table: its values, percentiles of its first distribution, its labels; then the other distributions.
///
/// `has_spread`: also mean and deviation of the first distribution.
pub(super) fn write(table: &Table, has_spread: bool, writer: &mut impl Write) -> io::Result<()> {
    writeln!(writer, "### {}\n", prose(&table.title))?;
    // A value that is zero in all rows is left out, but the one that the rows are in the order of.
    let shown: Vec<usize> = (0..table.values.len()).filter(|&number| number == 0 || table.total(number) > 0).collect();
    let totals = shown.iter().filter(|&&number| is_sum(&table.values[number])).map(|&number| {
        let column = &table.values[number];
        let total = value(table.total(number), &column.unit);
        if column.name == TIME { total } else { format!("{total} {}", prose(&heading(column))) }
    });
    write!(writer, "Counted exactly: {}.", totals.collect::<Vec<_>>().join(", "))?;
    if table.missing > 0 {
        write!(writer, " **{} more had no room** and are in no row.", count(table.missing))?;
    }
    if let Some(first) = table.distributions.first() {
        write!(writer, " Percentiles and maximum: {}.", prose(&first.name))?;
    }
    writeln!(writer, "\n")?;
    if table.rows.is_empty() {
        return Ok(());
    }
    let spread = ["mean", "deviation"].into_iter().filter(|_| has_spread);
    let percentiles = PERCENTILES.iter().map(|(name, _)| *name).chain(["max"]);
    let percentiles = spread.chain(percentiles).filter(|_| !table.distributions.is_empty());
    let values = shown.iter().map(|&number| heading(&table.values[number]));
    let values = values.chain(percentiles.map(str::to_owned));
    let head: Vec<_> = values.map(|name| prose(&name).to_string()).collect();
    let labels: Vec<_> = table.labels.iter().map(|label| prose(label).to_string()).collect();
    writeln!(writer, "| {} | {} |", head.join(" | "), labels.join(" | "))?;
    writeln!(writer, "|{}{}", "--:|".repeat(head.len()), ":--|".repeat(labels.len()))?;
    for row in table.rows.iter().take(ROWS) {
        let mut cells: Vec<_> =
            shown.iter().map(|&number| value(row.values[number], &table.values[number].unit)).collect();
        if let (Some(column), Some(histogram)) = (table.distributions.first(), row.distributions.first()) {
            let max = (histogram.count() > 0).then_some(histogram.max);
            let (mean, deviation) = histogram.mean_and_deviation().unzip();
            let spread = [mean, deviation].into_iter().filter(|_| has_spread);
            let found = PERCENTILES.map(|(_, per_mille)| histogram.percentile(per_mille));
            let found = spread.chain(found).chain([max]);
            cells.extend(found.map(|found| found.map_or("-".to_owned(), |number| value(number, &column.unit))));
        }
        cells.extend(row.labels.iter().map(|label| code(label).to_string()));
        writeln!(writer, "| {} |", cells.join(" | "))?;
    }
    rest(table.rows.len() as u64, table.rows.len().min(ROWS), writer)?;
    write_others(table, writer)
}

/// The distributions behind the first one, of the rows that have some.
fn write_others(table: &Table, writer: &mut impl Write) -> io::Result<()> {
    let labels: Vec<_> = table.labels.iter().map(|label| prose(label).to_string()).collect();
    for (number, column) in table.distributions.iter().enumerate().skip(1) {
        let rows = table.rows.iter().filter_map(|row| Some((row, row.distributions.get(number)?)));
        let rows: Vec<_> = rows.filter(|(_, histogram)| histogram.count() > 0).collect();
        if rows.is_empty() {
            continue;
        }
        writeln!(writer, "{}:\n", prose(&column.name))?;
        writeln!(writer, "| count | p50 | p90 | p99 | max | {} |", labels.join(" | "))?;
        writeln!(writer, "|{}{}", "--:|".repeat(5), ":--|".repeat(labels.len()))?;
        for (row, histogram) in rows.iter().take(OTHER_ROWS) {
            let found = PERCENTILES.map(|(_, per_mille)| histogram.percentile(per_mille));
            let found = found.into_iter().flatten().chain([histogram.max]).map(|number| value(number, &column.unit));
            let labels = row.labels.iter().map(|label| code(label).to_string());
            let cells: Vec<_> = found.chain(labels).collect();
            writeln!(writer, "| {} | {} |", count(histogram.count()), cells.join(" | "))?;
        }
        rest(rows.len() as u64, rows.len().min(OTHER_ROWS), writer)?;
    }
    Ok(())
}
