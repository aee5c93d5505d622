//! The maps of the unwinder: shards of tables, runs of mappings, the dictionary.
//!
//! Shards are added as they are needed and never taken away while programs run: freeing a map inside a map under a
//! running program has crashed kernels (CVE-2023-52447). A run of mappings is written aside and then switched to by one
//! write to the process's entry; what it replaces is used again two windows later.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

use aya::maps::{Array, Map, MapData};
use profiler_common::config::{MAX_SHARDS, MappingEntry, ROW_INDEX_BITS, SHARD_WORDS};
use profiler_common::unwind::Rule;

use super::BpfError;
use super::load::Shared;
use super::syscall::bpf;

const MAP_CREATE: libc::c_long = 0;
const MAP_UPDATE: libc::c_long = 2;
const TYPE_ARRAY: u32 = 2;

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
    first_page: u32,
    pages: u32,
    shard: u32,
    pages_at: u32,
}

impl PlacedTable {
    /// The entry of a mapping from `start` to `end` of an object that is loaded `bias` above its own addresses.
    #[must_use]
    pub fn entry(self, start: u64, end: u64, bias: u64) -> MappingEntry {
        let Self { first_page, pages, shard, pages_at } = self;
        MappingEntry { start, end, bias, first_page, pages, shard, pages_at }
    }
}

/// A run of mappings in use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Run {
    /// Index of the first.
    pub first: u32,
    /// How many.
    pub length: u32,
}

/// The unwinder's maps.
pub(super) struct TableMaps {
    outer: MapData,
    shards: Vec<OwnedFd>,
    max_shards: usize,
    /// Content of the last shard, and how many words of it are used.
    last: Vec<u32>,
    used: usize,
    mappings: Array<MapData, Shared<MappingEntry>>,
    capacity: u32,
    /// Runs in use and runs that programs may still read, by their first index: lengths.
    runs: BTreeMap<u32, u32>,
    retired: [Vec<Run>; 2],
    rules: Array<MapData, Shared<Rule>>,
    rules_written: usize,
}

/// An array of one element that is a shard. Source: `union bpf_attr`, `BPF_MAP_CREATE`.
#[repr(C)]
struct CreateAttributes {
    map_type: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    flags: u32,
}

/// Source: `union bpf_attr`, `BPF_MAP_UPDATE_ELEM`.
#[repr(C)]
struct UpdateAttributes {
    map: u32,
    padding: u32,
    key: u64,
    value: u64,
    flags: u64,
}

fn update<V>(map: i32, key: u32, value: *const V) -> io::Result<()> {
    let mut attributes = UpdateAttributes {
        map: map.unsigned_abs(),
        padding: 0,
        key: (&raw const key) as u64,
        value: value as u64,
        flags: 0,
    };
    bpf(MAP_UPDATE, &mut attributes).map(drop)
}

impl TableMaps {
    pub(super) fn new(
        outer: Map,
        mappings: Array<MapData, Shared<MappingEntry>>,
        rules: Array<MapData, Shared<Rule>>,
        max_shards: usize,
    ) -> Result<Self, BpfError> {
        let Map::ArrayOfMaps(outer) = outer else { return Err(BpfError::Missing("SHARDS")) };
        Ok(Self {
            outer,
            shards: Vec::new(),
            max_shards: max_shards.min(MAX_SHARDS),
            last: vec![0; SHARD_WORDS],
            used: SHARD_WORDS,
            capacity: mappings.len(),
            mappings,
            runs: BTreeMap::new(),
            retired: [Vec::new(), Vec::new()],
            rules,
            rules_written: 0,
        })
    }

    /// Adds a shard, and writes the one before it.
    fn add_shard(&mut self) -> Result<bool, BpfError> {
        if self.shards.len() >= self.max_shards {
            return Ok(false);
        }
        self.write_last()?;
        let failed = |error| BpfError::map("add a shard to", "SHARDS", error);
        let mut attributes = CreateAttributes {
            map_type: TYPE_ARRAY,
            key_size: 4,
            value_size: u32::try_from(4 * SHARD_WORDS).unwrap_or(0),
            max_entries: 1,
            flags: 0,
        };
        let fd = bpf(MAP_CREATE, &mut attributes).map_err(failed)?;
        // SAFETY: the descriptor was just made, and nobody else has it.
        let shard = unsafe { OwnedFd::from_raw_fd(fd) };
        let number = u32::try_from(self.shards.len()).unwrap_or(u32::MAX);
        update(self.outer.fd().as_fd().as_raw_fd(), number, &raw const fd).map_err(failed)?;
        self.shards.push(shard);
        self.last.fill(0);
        self.used = 0;
        Ok(true)
    }

    /// Writes the last shard. What programs read there already is written again as it is.
    fn write_last(&mut self) -> Result<(), BpfError> {
        let Some(shard) = self.shards.last() else { return Ok(()) };
        update(shard.as_raw_fd(), 0, self.last.as_ptr()).map_err(|error| BpfError::map("write", "SHARDS", error))
    }

    /// Places a table; `None` when there is no room for it.
    pub(super) fn place(&mut self, table: TableParts<'_>) -> Result<Option<PlacedTable>, BpfError> {
        let page_words = 2 * table.pages.len();
        let (Ok(first_page), Ok(pages)) = (u32::try_from(table.first_page), u32::try_from(table.pages.len())) else {
            return Ok(None);
        };
        if page_words == 0 || page_words > SHARD_WORDS {
            return Ok(None);
        }
        if SHARD_WORDS - self.used < page_words && !self.add_shard()? {
            return Ok(None);
        }
        let pages_shard = self.shards.len() - 1;
        let pages_at = self.used;
        self.used += page_words;
        let mut words = Vec::with_capacity(page_words);
        for &(first_row, count) in table.pages {
            let rows = &table.rows[first_row as usize..][..usize::from(count)];
            if SHARD_WORDS - self.used < rows.len() && !self.add_shard()? {
                return Ok(None);
            }
            let shard = u32::try_from(self.shards.len() - 1).unwrap_or(0);
            words.push((shard << ROW_INDEX_BITS) | u32::try_from(self.used).unwrap_or(0));
            words.push(u32::from(count));
            self.last[self.used..][..rows.len()].copy_from_slice(rows);
            self.used += rows.len();
        }
        if pages_shard + 1 == self.shards.len() {
            self.last[pages_at..][..page_words].copy_from_slice(&words);
        } else {
            self.write_pages(pages_shard, pages_at, &words)?;
        }
        self.write_last()?;
        let shard = u32::try_from(pages_shard).unwrap_or(0);
        let pages_at = u32::try_from(pages_at).unwrap_or(0);
        Ok(Some(PlacedTable { first_page, pages, shard, pages_at }))
    }

    /// Writes page words to a shard that is full and was written before.
    fn write_pages(&mut self, shard: usize, at: usize, words: &[u32]) -> Result<(), BpfError> {
        let failed = |error| BpfError::map("write", "SHARDS", error);
        let fd = self.shards[shard].as_raw_fd();
        let mut content = vec![0_u32; SHARD_WORDS];
        let mut attributes = UpdateAttributes {
            map: fd.unsigned_abs(),
            padding: 0,
            key: (&raw const FIRST) as u64,
            value: content.as_mut_ptr() as u64,
            flags: 0,
        };
        bpf(MAP_LOOKUP, &mut attributes).map_err(failed)?;
        content[at..][..words.len()].copy_from_slice(words);
        update(fd, 0, content.as_ptr()).map_err(failed)
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

    /// Writes a run of mappings aside; `None` when there is no room for it.
    pub(super) fn add_run(&mut self, entries: &[MappingEntry]) -> Result<Option<Run>, BpfError> {
        let length = u32::try_from(entries.len()).unwrap_or(u32::MAX);
        if length == 0 {
            return Ok(Some(Run::default()));
        }
        let mut first = 0;
        for (&start, &length_of_used) in &self.runs {
            if start - first >= length {
                break;
            }
            first = start + length_of_used;
        }
        if first.checked_add(length).is_none_or(|end| end > self.capacity) {
            return Ok(None);
        }
        for (index, entry) in (first..).zip(entries) {
            self.mappings.set(index, Shared(*entry), 0).map_err(|error| BpfError::map("write", "MAPPINGS", error))?;
        }
        self.runs.insert(first, length);
        Ok(Some(Run { first, length }))
    }

    /// Gives a run back, once nobody can read it any more.
    pub(super) fn retire(&mut self, run: Run) {
        if run.length > 0 {
            self.retired[0].push(run);
        }
    }

    /// Ends a window: runs that were given back in the window before are free now.
    pub(super) fn end_window(&mut self) {
        for run in self.retired[1].drain(..) {
            self.runs.remove(&run.first);
        }
        self.retired.swap(0, 1);
    }
}

const MAP_LOOKUP: libc::c_long = 1;
static FIRST: u32 = 0;
