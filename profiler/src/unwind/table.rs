//! Rows by page, as the programs search them.

use profiler_common::unwind::{PAGE_SHIFT, Packed, Special, find_row, row, rule_of, start_of};

/// Bytes between two functions for which no row of its own is made: alignment, where no code runs.
pub(super) const MAX_PADDING: u64 = 32;

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
///
/// Rows are made as they come. What they belong to is kept beside them: runs of code, and the pages of each.
#[derive(Clone, Debug)]
pub(super) struct TableBuilder {
    rows: Vec<u32>,
    /// Where rows of another page begin: their first, and the page, counted from `origin`.
    turns: Vec<(u32, u32)>,
    /// What was added in order and without a gap: functions that follow each other.
    runs: Vec<Run>,
    /// The run that is added to.
    run: Run,
    /// The page of the last row, and its rule.
    last: (u64, Packed),
    origin: u64,
}

/// Code without a gap.
#[derive(Clone, Copy, Debug)]
struct Run {
    start: u64,
    end: u64,
    /// Its turns: there is one where it begins.
    turns: (usize, usize),
}

/// Pages that can be counted from the first in either direction.
const REACH: u64 = 1 << 31;

impl Default for TableBuilder {
    fn default() -> Self {
        // A run that nothing follows.
        let run = Run { start: u64::MAX, end: u64::MAX, turns: (0, 0) };
        let last = (u64::MAX, Packed::special(Special::None));
        Self { rows: Vec::new(), turns: Vec::new(), runs: Vec::new(), run, last, origin: 0 }
    }
}

impl TableBuilder {
    /// Adds the rule for the code from `start` to just before `end`.
    ///
    /// All must be within 8 TiB of the first that is added; what is not is left out.
    #[inline(always)]
    pub(super) fn add(&mut self, start: u64, end: u64, rule: Packed) {
        if start >= end {
            return;
        }
        // Padding between functions has the rule of the one before it.
        let gap = start.checked_sub(self.run.end);
        let follows = gap.is_some_and(|gap| gap <= MAX_PADDING);
        if !follows && !self.begin(start) {
            return;
        }
        self.run.end = end;
        let page = start >> PAGE_SHIFT;
        // Behind padding a row is kept that says nothing new: a function added later may lie in the padding.
        if gap == Some(0) && self.last.1 == rule {
            return;
        }
        if !follows || self.last.0 != page {
            self.turns.push((self.rows.len() as u32, page.wrapping_sub(self.origin) as u32));
        }
        self.last = (page, rule);
        self.rows.push(row(start, rule));
    }

    /// Begins another run; false when it is too far away.
    #[cold]
    fn begin(&mut self, start: u64) -> bool {
        let page = start >> PAGE_SHIFT;
        if self.rows.is_empty() {
            self.origin = page.saturating_sub(REACH);
        }
        let reached = page.checked_sub(self.origin).is_some_and(|page| page < 2 * REACH);
        if reached {
            self.end_run();
            self.run = Run { start, end: start, turns: (self.turns.len(), 0) };
        }
        reached
    }

    fn end_run(&mut self) {
        self.run.turns.1 = self.turns.len();
        if self.run.end > self.run.start {
            self.runs.push(self.run);
        }
    }

    /// The rows of a turn, and the page they are in.
    fn turn(&self, index: usize) -> (u64, &[u32]) {
        let (first, page) = self.turns[index];
        let last = self.turns.get(index + 1).map_or(self.rows.len(), |&(next, _)| next as usize);
        (u64::from(page) + self.origin, &self.rows[first as usize..last])
    }

    /// Sorts, fills gaps and splits by page.
    ///
    /// Where ranges overlap, the one that begins later holds: linkers leave entries of code that was discarded.
    #[must_use]
    pub(super) fn build(mut self) -> Table {
        self.end_run();
        let mut runs = std::mem::take(&mut self.runs);
        runs.sort_unstable_by_key(|run| (run.start, run.end, run.turns));
        let Some(first) = runs.first().map(|run| run.start) else { return Table::default() };
        let end = runs.iter().map(|run| run.end).max().unwrap_or(first);
        let mut pages = Pages::new(first, end, self.rows.len() + runs.len());
        let mut rest = runs.as_slice();
        while let Some(run) = rest.first() {
            let mut end = run.end;
            let inside = rest[1..].iter().take_while(|next| {
                let overlaps = next.start < end;
                end = end.max(next.end);
                overlaps
            });
            let (group, behind) = rest.split_at(1 + inside.count());
            rest = behind;
            if let [run] = *group {
                pages.cover(run.start, run.end);
                for index in run.turns.0..run.turns.1 {
                    let (page, rows) = self.turn(index);
                    for &row in rows {
                        pages.push(page << PAGE_SHIFT | u64::from(start_of(row)), rule_of(row));
                    }
                }
            } else {
                self.overlapping(group, &mut pages);
            }
        }
        pages.finish()
    }

    /// Adds runs of which some begin inside others: range by range.
    fn overlapping(&self, group: &[Run], pages: &mut Pages) {
        let mut ranges: Vec<(u64, u64, usize, Packed)> = Vec::new();
        for run in group {
            let first = ranges.len();
            for index in run.turns.0..run.turns.1 {
                let (page, rows) = self.turn(index);
                for (place, &row) in rows.iter().enumerate() {
                    let start = page << PAGE_SHIFT | u64::from(start_of(row));
                    if let Some(before) = ranges.get_mut(first..).and_then(<[_]>::last_mut) {
                        before.1 = start;
                    }
                    ranges.push((start, run.end, self.turns[index].0 as usize + place, rule_of(row)));
                }
            }
        }
        ranges.sort_unstable_by_key(|&(start, end, index, _)| (start, end, index));
        for (start, end, _, rule) in ranges {
            pages.cover(start, end);
            pages.push(start, rule);
        }
    }
}

/// Splits rules by page as they come, in order, and repeats the one that is carried into a page.
struct Pages {
    table: Table,
    /// Where the last row begins, and its rule: at first nowhere, and one that no row has.
    last: (u64, Packed),
    /// The page that rows are added to: one before the first until there is one.
    page: u64,
    first_row: usize,
    /// Up to where code is described.
    covered: u64,
}

impl Pages {
    /// For code from an address to another, of so many rules.
    fn new(first: u64, end: u64, rules: usize) -> Self {
        let first_page = first >> PAGE_SHIFT;
        let count = usize::try_from((end >> PAGE_SHIFT) - first_page + 1).unwrap_or_default();
        let table = Table { first_page, pages: Vec::with_capacity(count), rows: Vec::with_capacity(rules + count) };
        Self {
            table,
            last: (u64::MAX, Packed(u32::MAX)),
            page: first_page.wrapping_sub(1),
            first_row: 0,
            covered: first,
        }
    }

    /// Says that the code from `start` to `end` is described; that what is before it is not, by a row of its own.
    fn cover(&mut self, start: u64, end: u64) {
        if start > self.covered && start - self.covered > MAX_PADDING {
            self.push(self.covered, Packed::special(Special::None));
        }
        self.covered = end.max(self.covered);
    }

    /// Adds a rule from an address on, unless it says what holds already.
    #[inline(always)]
    fn push(&mut self, address: u64, rule: Packed) {
        if address == self.last.0 {
            self.table.rows.pop();
        } else if rule == self.last.1 {
            return;
        } else if address >> PAGE_SHIFT != self.page {
            self.turn(address);
        }
        self.table.rows.push(row(address, rule));
        self.last = (address, rule);
    }

    /// Ends pages up to the one of an address.
    fn turn(&mut self, address: u64) {
        while self.page != address >> PAGE_SHIFT {
            self.end_page();
            self.page = self.page.wrapping_add(1);
            self.first_row = self.table.rows.len();
            let start = self.page << PAGE_SHIFT;
            if start != address {
                let first = self.table.rows.is_empty();
                let carried = if first { Packed::special(Special::None) } else { self.last.1 };
                self.table.rows.push(row(start, carried));
            }
        }
    }

    fn end_page(&mut self) {
        if self.page.wrapping_add(1) != self.table.first_page {
            let rows = u16::try_from(self.table.rows.len() - self.first_row).unwrap_or(u16::MAX);
            let first_row = u32::try_from(self.first_row).unwrap_or(u32::MAX);
            self.table.pages.push(Page { first_row, rows });
        }
    }

    fn finish(mut self) -> Table {
        self.push(self.covered, Packed::special(Special::None));
        // Nothing may begin in the last page.
        self.turn(self.covered);
        self.end_page();
        self.table
    }
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
