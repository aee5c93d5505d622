//! Counters of a capture by name: what values are divided by, and what budgets and rules look at.
//!
//! `second`; `ORIGIN.COLUMN`, the total of a column as pprof calls it (`syscall.calls`); `TABLE.VALUE`, the total of a value of
//! a table; a column of the timeline that is a sum (`host_context_switches`).

use std::collections::BTreeMap;

use crate::profile::{Capture, Column, Fold};

/// A counter's value, in its own unit; time in seconds. `None`: there is no such counter.
#[must_use]
pub fn work(capture: &Capture, name: &str) -> Option<f64> {
    if name == "second" {
        return Some(float(capture.index.duration_ns) / 1e9);
    }
    all(capture).get(name).map(|&value| float(value))
}

/// Names of the counters that a capture has, in the order of their text.
#[must_use]
pub fn counters(capture: &Capture) -> Vec<String> {
    std::iter::once("second".to_owned()).chain(all(capture).into_keys()).collect()
}

fn all(capture: &Capture) -> BTreeMap<String, u64> {
    let mut counters = BTreeMap::new();
    for column in Column::ALL.into_iter().filter(|column| column.fold() == Fold::Sum) {
        if let Some(figures) = capture.index.timeline.column(column) {
            let sum = figures.iter().flatten().fold(0, |sum: u64, &figure| sum.saturating_add(figure));
            counters.insert(column.name().to_owned(), sum);
        }
    }
    for (name, table) in &capture.index.tables {
        for (index, value) in table.values.iter().enumerate() {
            counters.insert(format!("{name}.{}", value.field()), table.total(index));
        }
    }
    for profile in &capture.profiles {
        let row = profile.origin.row();
        for (&(column, _), total) in row.columns.iter().zip(profile.totals()) {
            counters.insert(format!("{}.{column}", row.name), total);
        }
    }
    counters
}

#[expect(clippy::cast_precision_loss, reason = "a divisor, of which few digits matter")]
const fn float(value: u64) -> f64 {
    value as f64
}
