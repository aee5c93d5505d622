//! Rows by page, as the programs search them.

use profiler_common::unwind::{PAGE_SHIFT, Packed, Special, find_row, row, rule_of};

/// Bytes between two functions for which no row of its own is made: alignment, where no code runs.
const MAX_PADDING: u64 = 32;

/// The rows of one page of code.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Page {
    /// Index of its first row.
    pub first_row: u32,
    /// How many it has: at most 4,096.
    pub rows: u16,
}

/// The unwind table of an object.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Table {
    /// Number of the first page: its address shifted right by 12.
    pub first_page: u64,
    /// Pages, in order and without a gap.
    pub pages: Vec<Page>,
    /// Rows of all pages.
    pub rows: Vec<u32>,
}

/// Puts ranges of code and their rules together.
#[derive(Clone, Debug, Default)]
pub struct TableBuilder {
    ranges: Vec<(u64, u64, Packed)>,
    /// Start and end of what was added in order and without a gap, a function at best, and its first range.
    runs: Vec<(u64, u64, usize)>,
}

impl TableBuilder {
    /// Adds the rule for the code from `start` to just before `end`.
    pub fn add(&mut self, start: u64, end: u64, rule: Packed) {
        if start >= end {
            return;
        }
        if let (Some(last), Some(run)) = (self.ranges.last_mut(), self.runs.last_mut())
            && last.1 == start
        {
            run.1 = end;
            if last.2 == rule {
                last.1 = end;
                return;
            }
        } else {
            self.runs.push((start, end, self.ranges.len()));
        }
        self.ranges.push((start, end, rule));
    }

    /// Sorts, fills gaps and splits by page.
    ///
    /// Where ranges overlap, the one that begins later holds: linkers leave entries of code that was discarded.
    #[must_use]
    pub fn build(mut self) -> Table {
        self.sort();
        let mut starts: Vec<(u64, Packed)> = Vec::with_capacity(self.ranges.len());
        let mut covered = 0;
        for (start, end, rule) in self.ranges {
            if !starts.is_empty() && start > covered && start - covered > MAX_PADDING {
                push(&mut starts, covered, Packed::special(Special::None));
            }
            push(&mut starts, start, rule);
            covered = end.max(covered);
        }
        let Some(&(first, _)) = starts.first() else { return Table::default() };
        push(&mut starts, covered, Packed::special(Special::None));
        split(first >> PAGE_SHIFT, (covered >> PAGE_SHIFT) + 1, &starts)
    }
}

impl TableBuilder {
    /// Sorts by address: by whole runs, which are few, unless some overlap.
    fn sort(&mut self) {
        let ends = self.runs.iter().skip(1).map(|run| run.2).chain([self.ranges.len()]);
        let mut runs: Vec<_> = self.runs.iter().copied().zip(ends).collect();
        runs.sort_unstable_by_key(|&((start, end, first), _)| (start, end, first));
        if runs.windows(2).any(|pair| pair[0].0.1 > pair[1].0.0) {
            self.ranges.sort_by_key(|&(start, end, _)| (start, end));
        } else {
            self.ranges = runs.iter().flat_map(|&((_, _, first), end)| &self.ranges[first..end]).copied().collect();
        }
    }
}

/// Adds a rule from an address on, unless it says what holds already.
fn push(starts: &mut Vec<(u64, Packed)>, address: u64, rule: Packed) {
    match starts.last_mut() {
        Some((last, last_rule)) if *last == address => *last_rule = rule,
        Some((_, last_rule)) if *last_rule == rule => {}
        _ => starts.push((address, rule)),
    }
}

/// Splits rules by page, and repeats the one that is carried into a page.
fn split(first_page: u64, end_page: u64, starts: &[(u64, Packed)]) -> Table {
    let mut table = Table { first_page, ..Table::default() };
    let mut next = 0;
    let mut carried = Packed::special(Special::None);
    for page in first_page..end_page {
        let first_row = table.rows.len();
        let address = page << PAGE_SHIFT;
        let end = next + starts[next..].partition_point(|&(start, _)| start >> PAGE_SHIFT == page);
        if starts.get(next).is_none_or(|&(start, _)| start > address) {
            table.rows.push(row(address, carried));
        }
        for &(start, rule) in &starts[next..end] {
            table.rows.push(row(start, rule));
            carried = rule;
        }
        next = end;
        let rows = u16::try_from(table.rows.len() - first_row).unwrap_or(u16::MAX);
        table.pages.push(Page { first_row: u32::try_from(first_row).unwrap_or(u32::MAX), rows });
    }
    table
}

impl Table {
    /// The rule that covers an address; `None` outside the table.
    #[must_use]
    pub fn find(&self, address: u64) -> Option<Packed> {
        let page = usize::try_from((address >> PAGE_SHIFT).checked_sub(self.first_page)?).ok()?;
        let Page { first_row, rows } = *self.pages.get(page)?;
        let low = u32::try_from(address & 0xfff).ok()?;
        let row = find_row(u32::from(rows), low, |index| self.rows.get((first_row + index) as usize).copied())?;
        Some(rule_of(row))
    }

    /// Bytes the programs need for it: 4 a row, 8 a page.
    #[must_use]
    pub fn bytes(&self) -> usize {
        4 * self.rows.len() + 8 * self.pages.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_found_wherever_its_rule_began() {
        let rule = |number| Packed::dictionary(number).unwrap();
        let mut builder = TableBuilder::default();
        builder.add(0x5000, 0x5010, rule(2));
        builder.add(0x1ff0, 0x4100, rule(1));
        builder.add(0x5020, 0x5030, rule(3));
        builder.add(0x6000, 0x6000, rule(4));
        // An entry of discarded code, inside another function.
        let mut overlapping = builder.clone();
        overlapping.add(0x3000, 0x3010, rule(5));
        assert_eq!(overlapping.build().find(0x3008), Some(rule(5)));
        let table = builder.build();
        let none = Some(Packed::special(Special::None));
        assert_eq!(table.find(0x1fef), none);
        assert_eq!(table.find(0x1ff0), Some(rule(1)));
        assert_eq!(table.find(0x3abc), Some(rule(1)));
        assert_eq!(table.find(0x40ff), Some(rule(1)));
        assert_eq!(table.find(0x4100), none);
        assert_eq!(table.find(0x4fff), none);
        assert_eq!(table.find(0x5000), Some(rule(2)));
        assert_eq!(table.find(0x5015), Some(rule(2)), "padding has no row of its own");
        assert_eq!(table.find(0x502f), Some(rule(3)));
        assert_eq!(table.find(0x5030), none);
        assert_eq!(table.find(0x6000), None);
        assert_eq!(table.find(0), None);
        assert_eq!(table.pages.len(), 5);
        assert_eq!(TableBuilder::default().build(), Table::default());
    }
}
