//! Runs of mappings: what a process maps, as the programs search it.
//!
//! A run is written aside and then switched to by one write to the process's entry. Processes that map the same, such
//! as a parent and the child it forked, share one. A run that nobody refers to any more is used again two windows later.

use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;

use aya::maps::{Array, MapData};
use profiler_common::config::MappingEntry;

use super::BpfError;
use super::load::Shared;
use super::tables::Tables;

/// A run of mappings in use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Run {
    /// Index of the first.
    pub first: u32,
    /// How many.
    pub length: u32,
}

/// The runs.
pub(super) struct Runs {
    mappings: Array<MapData, Shared<MappingEntry>>,
    capacity: u32,
    /// By first index; those that programs may still read as well.
    runs: BTreeMap<u32, Written>,
    by_content: HashMap<Rc<[MappingEntry]>, u32>,
    /// Runs that have lost their last process, by first index.
    left: Vec<u32>,
    window: u64,
}

struct Written {
    entries: Rc<[MappingEntry]>,
    /// Numbers of the tables it refers to.
    tables: Vec<u64>,
    processes: u32,
    /// The window in which the last process left.
    left_in: u64,
}

/// Windows after which no program can still be reading a run that was left.
const GRACE_WINDOWS: u64 = 2;

impl Runs {
    pub(super) fn new(mappings: Array<MapData, Shared<MappingEntry>>) -> Self {
        let capacity = mappings.len();
        let (runs, by_content, left) = (BTreeMap::new(), HashMap::new(), Vec::new());
        Self { mappings, capacity, runs, by_content, left, window: 0 }
    }

    /// The run for a process that maps `entries`, of objects with `tables`; `None` when there is no room for it.
    pub(super) fn acquire(
        &mut self,
        entries: Vec<MappingEntry>,
        numbers: Vec<u64>,
        tables: &mut Tables,
    ) -> Result<Option<Run>, BpfError> {
        let length = u32::try_from(entries.len()).unwrap_or(u32::MAX);
        if length == 0 {
            return Ok(Some(Run::default()));
        }
        if let Some(&first) = self.by_content.get(entries.as_slice())
            && let Some(run) = self.runs.get_mut(&first)
        {
            run.processes += 1;
            return Ok(Some(Run { first, length }));
        }
        let mut first = 0;
        for (&start, used) in &self.runs {
            if start - first >= length {
                break;
            }
            first = start + u32::try_from(used.entries.len()).unwrap_or(u32::MAX);
        }
        if first.checked_add(length).is_none_or(|end| end > self.capacity) {
            return Ok(None);
        }
        for (index, entry) in (first..).zip(&entries) {
            self.mappings.set(index, Shared(*entry), 0).map_err(|error| BpfError::map("write", "MAPPINGS", error))?;
        }
        for &number in &numbers {
            tables.use_table(number);
        }
        let entries: Rc<[MappingEntry]> = entries.into();
        self.by_content.insert(Rc::clone(&entries), first);
        self.runs.insert(first, Written { entries, tables: numbers, processes: 1, left_in: 0 });
        Ok(Some(Run { first, length }))
    }

    /// Gives a process's run back.
    pub(super) fn release(&mut self, run: Run) {
        if let Some(written) = self.runs.get_mut(&run.first).filter(|_| run.length > 0) {
            written.processes = written.processes.saturating_sub(1);
            if written.processes == 0 {
                written.left_in = self.window;
                self.left.push(run.first);
            }
        }
    }

    /// Ends a window: runs that nobody has had for a while are free now.
    pub(super) fn end_window(&mut self, tables: &mut Tables) {
        self.window += 1;
        for first in std::mem::take(&mut self.left) {
            let Some(run) = self.runs.get(&first).filter(|run| run.processes == 0) else { continue };
            if run.left_in + GRACE_WINDOWS > self.window {
                self.left.push(first);
            } else if let Some(run) = self.runs.remove(&first) {
                self.by_content.remove(&run.entries);
                for number in run.tables {
                    tables.leave_table(number);
                }
            }
        }
    }
}
