//! What the programs count without ever being emptied, told window by window: the difference of two readings.

use std::collections::HashMap;
use std::hash::Hash;

use crate::profile::{Row, TableColumn};

/// The rows of a map of the programs, by its keys, as they were read when a window ended.
#[derive(Debug)]
pub(super) struct Readings<K> {
    before: HashMap<K, Row>,
    now: HashMap<K, Row>,
    /// Rows to which nothing came.
    idle: Vec<K>,
}

impl<K> Default for Readings<K> {
    fn default() -> Self {
        Self { before: HashMap::new(), now: HashMap::new(), idle: Vec::new() }
    }
}

impl<K: Copy + Eq + Hash> Readings<K> {
    /// What has come to a row since the reading before; nothing when nothing has. `is_last`: there will be no other one.
    pub(super) fn since(&mut self, key: K, row: Row, columns: &[TableColumn], is_last: bool) -> Option<Row> {
        let come = match self.before.get(&key) {
            Some(before) => row.since(before, columns),
            None if is_last => return Some(row),
            None => Some(row.clone()),
        };
        if come.is_none() {
            self.idle.push(key);
        }
        if !is_last {
            self.now.insert(key, row);
        }
        come
    }

    /// Ends a reading; returns the rows to which nothing came, which may be forgotten once nothing can come any more.
    pub(super) fn end(&mut self) -> Vec<K> {
        self.before = std::mem::take(&mut self.now);
        std::mem::take(&mut self.idle)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_add_up_to_the_last_reading_and_idle_rows_are_told() {
        let columns = [TableColumn::new("requests", "count"), TableColumn::new("longest", "ns")];
        let row = |requests, longest| Row { values: vec![requests, longest], ..Row::default() };
        let mut readings = Readings::default();
        let mut sum = 0;
        let mut idle = Vec::new();
        for (requests, longest) in [(5, 100), (5, 100), (9, 120)] {
            let come = readings.since(7, row(requests, longest), &columns, false);
            sum += come.as_ref().map_or(0, |row| row.values[0]);
            idle.push(readings.end());
        }
        assert_eq!((sum, idle), (9, vec![vec![], vec![7], vec![]]));
        // One that was forgotten and came again begins anew.
        readings.end();
        assert_eq!(readings.since(7, row(2, 50), &columns, true).map(|row| row.values), Some(vec![2, 50]));
    }
}
