//! Unwind tables in the shards: where each is, which are in use, and which make room for others.
//!
//! A table is in use while a run of mappings refers to it, see `runs`. When there is no room for another, tables that
//! have been out of use for longest are evicted; by then no program can still be reading them.

use std::collections::HashMap;

use aya::maps::{Array, Map, MapData};
use profiler_common::config::{MAX_SHARDS, MappingEntry, ROW_INDEX_BITS, SHARD_WORDS};
use profiler_common::unwind::{PAGE_SHIFT, Packed, Rule, find_row, rule_of};

use super::BpfError;
use super::load::Shared;
use super::shards::Shards;
use super::space::{Piece, Space};

/// An unwind table as it is placed.
#[derive(Clone, Copy, Debug)]
pub struct TableParts<'a> {
    /// Number of its first page.
    pub first_page: u64,
    /// For each page the index of its first row and how many it has.
    pub pages: &'a [(u32, u16)],
    /// The rows of all pages.
    pub rows: &'a [u32],
}

/// Where an object's table is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PlacedTable {
    /// No two tables of a load have the same, evicted ones neither.
    pub number: u64,
    first_page: u32,
    pages: u32,
    shard: u32,
    pages_at: u32,
}

impl PlacedTable {
    /// The entry of a mapping from `start` to `end` of an object that is loaded `bias` above its own addresses.
    #[must_use]
    pub fn entry(self, start: u64, end: u64, bias: u64) -> MappingEntry {
        let Self { first_page, pages, shard, pages_at, .. } = self;
        MappingEntry { start, end, bias, first_page, pages, shard, pages_at }
    }
}

/// Windows a table stays out of use before it may be evicted: it is placed a moment before it is used.
const IDLE_WINDOWS: u64 = 2;

/// Free words below which the next shard is made aside: a quarter of one.
const PREPARE_WORDS: u64 = (SHARD_WORDS / 4) as u64;

/// The tables.
pub(super) struct Tables {
    shards: Shards,
    space: Space,
    tables: HashMap<u64, Placed>,
    next_number: u64,
    window: u64,
    rules: Array<MapData, Shared<Rule>>,
    rules_written: usize,
}

/// A table and its use.
struct Placed {
    pieces: Vec<Piece>,
    /// Runs that refer to it.
    users: u32,
    /// The window in which it was last placed or given up.
    last_used: u64,
}

impl Tables {
    pub(super) fn new(outer: Map, rules: Array<MapData, Shared<Rule>>, most_shards: usize) -> Result<Self, BpfError> {
        let Map::ArrayOfMaps(outer) = outer else { return Err(BpfError::Missing("SHARDS")) };
        Ok(Self {
            shards: Shards::new(outer, most_shards.min(MAX_SHARDS)),
            space: Space::default(),
            tables: HashMap::new(),
            next_number: 0,
            window: 0,
            rules,
            rules_written: 0,
        })
    }

    /// Places a table; `None` when there is no room for it, even without those that are out of use.
    pub(super) fn place(&mut self, table: TableParts<'_>) -> Result<Option<PlacedTable>, BpfError> {
        let (Ok(first_page), Ok(pages)) = (u32::try_from(table.first_page), u32::try_from(table.pages.len())) else {
            return Ok(None);
        };
        if pages == 0 || 2 * table.pages.len() > SHARD_WORDS {
            return Ok(None);
        }
        let mut pieces = Vec::new();
        let Some(pages_piece) = self.write(table, &mut pieces)? else {
            for piece in pieces {
                self.space.give(piece);
            }
            return Ok(None);
        };
        if self.space.words() < PREPARE_WORDS {
            self.shards.prepare();
        }
        self.next_number += 1;
        let number = self.next_number;
        self.tables.insert(number, Placed { pieces, users: 0, last_used: self.window });
        let (shard, pages_at) = (pages_piece.shard_number(), pages_piece.index());
        Ok(Some(PlacedTable { number, first_page, pages, shard, pages_at }))
    }

    /// Writes a table to pieces that it takes; returns the one that has the pages.
    fn write(&mut self, table: TableParts<'_>, pieces: &mut Vec<Piece>) -> Result<Option<Piece>, BpfError> {
        let length = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
        let page_words = length(2 * table.pages.len());
        let Some(pages) = self.take(page_words, page_words)? else { return Ok(None) };
        pieces.push(pages);
        let mut words = Vec::with_capacity(2 * table.pages.len());
        let mut left = table.rows.len();
        let mut piece = Piece { start: 0, length: 0 };
        for &(first_row, count) in table.pages {
            let Some(rows) = table.rows.get(first_row as usize..).and_then(|rows| rows.get(..usize::from(count)))
            else {
                return Ok(None);
            };
            if piece.length < u32::from(count) {
                self.space.give(piece);
                if let Some(last) = pieces.last_mut().filter(|_| piece.length > 0) {
                    last.length -= piece.length;
                }
                let Some(taken) = self.take(u32::from(count), length(left))? else { return Ok(None) };
                pieces.push(taken);
                piece = taken;
            }
            words.push((piece.shard_number() << ROW_INDEX_BITS) | piece.index());
            words.push(u32::from(count));
            self.copy(piece, rows);
            piece = Piece { start: piece.start + u32::from(count), length: piece.length - u32::from(count) };
            left = left.saturating_sub(rows.len());
        }
        self.copy(pages, &words);
        Ok(Some(pages))
    }

    fn copy(&mut self, piece: Piece, words: &[u32]) {
        let target = self.shards.words_mut(piece.shard_number());
        if let Some(target) = target.and_then(|shard| shard.get_mut(piece.index() as usize..)?.get_mut(..words.len())) {
            target.copy_from_slice(words);
        }
    }

    /// Takes a piece, from a new shard if need be, or from tables that are out of use.
    fn take(&mut self, least: u32, most: u32) -> Result<Option<Piece>, BpfError> {
        loop {
            if let Some(piece) = self.space.take(least, most) {
                return Ok(Some(piece));
            }
            if self.shards.may_grow() {
                match self.shards.add() {
                    Ok(number) => self.space.give(Piece::shard(number)),
                    // A host that has no more memory is no reason to end: there is no room, and a warning says so.
                    Err(_) if self.shards.len() > 0 => self.shards.stop_growing(),
                    Err(error) => return Err(BpfError::map("add a shard to", "SHARDS", error)),
                }
            } else if !self.evict() {
                return Ok(None);
            }
        }
    }

    /// Evicts the table that has been out of use for longest; false when there is none.
    fn evict(&mut self) -> bool {
        let idle = self.tables.iter().filter(|(_, table)| self.is_idle(table));
        let Some(number) = idle.min_by_key(|(_, table)| table.last_used).map(|(&number, _)| number) else {
            return false;
        };
        for piece in self.tables.remove(&number).map(|table| table.pieces).unwrap_or_default() {
            self.space.give(piece);
        }
        true
    }

    const fn is_idle(&self, table: &Placed) -> bool {
        table.users == 0 && table.last_used + IDLE_WINDOWS <= self.window
    }

    /// Whether a table was not evicted.
    pub(super) fn has(&self, table: PlacedTable) -> bool {
        self.tables.contains_key(&table.number)
    }

    /// Words that a table could have now.
    pub(super) fn room(&self) -> u64 {
        let idle = self.tables.values().filter(|table| self.is_idle(table)).flat_map(|table| &table.pieces);
        let growth = if self.shards.may_grow() { SHARD_WORDS as u64 } else { 0 };
        self.space.words() + idle.map(|piece| u64::from(piece.length)).sum::<u64>() + growth
    }

    /// Notes that a run refers to a table.
    pub(super) fn use_table(&mut self, number: u64) {
        if let Some(table) = self.tables.get_mut(&number) {
            table.users += 1;
        }
    }

    /// Notes that a run refers to a table no more.
    pub(super) fn leave_table(&mut self, number: u64) {
        if let Some(table) = self.tables.get_mut(&number) {
            table.users = table.users.saturating_sub(1);
            table.last_used = self.window;
        }
    }

    /// Ends a window.
    pub(super) const fn end_window(&mut self) {
        self.window += 1;
    }

    /// The rule for an address in an object's own terms, as the programs find it.
    pub(super) fn rule(&self, table: PlacedTable, address: u64) -> Option<Packed> {
        let page = (address >> PAGE_SHIFT).checked_sub(u64::from(table.first_page))?;
        let page = u32::try_from(page).ok().filter(|&page| page < table.pages)?;
        let at = table.pages_at as usize + 2 * page as usize;
        let [first, count] = *self.shards.words(table.shard)?.get(at..)?.first_chunk()?;
        let rows = self.shards.words(first >> ROW_INDEX_BITS)?.get(first as usize % SHARD_WORDS..)?;
        let low = u32::try_from(address & 0xfff).unwrap_or(0);
        find_row(count, low, |index| rows.get(index as usize).copied()).map(rule_of)
    }

    /// Writes rules of the dictionary that are new.
    pub(super) fn write_rules(&mut self, rules: &[Rule]) -> Result<(), BpfError> {
        for (number, rule) in rules.iter().enumerate().skip(self.rules_written) {
            let number = u32::try_from(number).unwrap_or(u32::MAX);
            self.rules.set(number, Shared(*rule), 0).map_err(|error| BpfError::map("write", "RULES", error))?;
        }
        self.rules_written = rules.len();
        Ok(())
    }
}
