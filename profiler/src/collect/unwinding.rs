//! Brings the programs what they need to unwind: tables of objects, mappings of processes.

use std::collections::HashMap;

use profiler_common::config::MappingEntry;
use profiler_common::event::RecordKey;
use profiler_common::unwind::{Packed, Rule, Special};

use super::processes::Processes;
use crate::bpf::{BpfError, Kernel, PlacedTable, Run, TableParts};
use crate::process::ObjectTable;
use crate::profile::RawFrame;
use crate::unwind::{Cache, Rules, load_or_compile};

/// Tables by object, runs of mappings by process.
#[derive(Default)]
pub(super) struct Unwinding {
    /// Where tables are kept from one start to the next.
    cache: Option<Cache>,
    rules: Rules,
    tables: HashMap<u32, Slot>,
    runs: HashMap<u32, Run>,
    /// Objects whose tables did not fit, by path.
    pub(super) overflowed: Vec<String>,
    /// Times a process's mappings did not fit.
    pub(super) unplaced: u64,
}

/// What became of an object's table.
#[derive(Clone, Copy)]
enum Slot {
    Placed(PlacedTable),
    /// There is none: frame pointers are followed. `inspect` tells why.
    None,
    /// There was no room for so many words.
    Overflowed(u64),
}

/// Walked by frame pointer.
const NO_RULE: Packed = Packed::special(Special::None);

impl Unwinding {
    /// `cache`: where tables are kept from one start to the next, if they are.
    pub(super) fn new(cache: Option<Cache>) -> Self {
        Self { cache, ..Self::default() }
    }

    /// The run of mappings for what a process maps now; the one before stays valid for a while.
    ///
    /// An empty one when there is no room.
    pub(super) fn update(&mut self, kernel: &mut Kernel, pid: u32, processes: &mut Processes) -> Result<Run, BpfError> {
        let mut entries: Vec<MappingEntry> = Vec::new();
        let mut numbers = Vec::new();
        if let Some((mappings, objects)) = processes.mappings(pid) {
            for mapping in mappings.iter() {
                let (start, end) = (mapping.start, mapping.end);
                let table = match objects.place(pid, mapping, start) {
                    Some((object, address)) => self.table(kernel, object, objects)?.map(|table| (table, address)),
                    None => None,
                };
                entries.push(match table {
                    Some((table, address)) => {
                        numbers.push(table.number);
                        table.entry(start, end, start.wrapping_sub(address))
                    }
                    None => MappingEntry { start, end, ..MappingEntry::default() },
                });
            }
        }
        numbers.sort_unstable();
        numbers.dedup();
        let acquired = kernel.acquire_run(entries, numbers)?;
        self.unplaced += u64::from(acquired.is_none());
        let run = acquired.unwrap_or_default();
        if let Some(old) = self.runs.insert(pid, run) {
            kernel.release_run(old);
        }
        Ok(run)
    }

    /// The rule for an address of a record's process; `None` where no mapping is known.
    pub(super) fn rule(
        &mut self,
        kernel: &mut Kernel,
        processes: &mut Processes,
        key: &RecordKey,
        address: u64,
    ) -> Option<Packed> {
        match processes.place(key, address) {
            RawFrame::Object { object, address } => {
                // A table that cannot be placed now is like none.
                let table = self.table(kernel, object, &processes.objects).ok().flatten();
                Some(table.and_then(|table| kernel.rule(table, address)).unwrap_or(NO_RULE))
            }
            RawFrame::Jit { .. } => Some(NO_RULE),
            _ => None,
        }
    }

    /// A rule of the dictionary.
    pub(super) fn dictionary(&self, number: u32) -> Option<Rule> {
        self.rules.rules().get(number as usize).copied()
    }

    fn table(
        &mut self,
        kernel: &mut Kernel,
        object: u32,
        objects: &ObjectTable,
    ) -> Result<Option<PlacedTable>, BpfError> {
        match self.tables.get(&object) {
            Some(&Slot::Placed(table)) if kernel.has_table(table) => return Ok(Some(table)),
            Some(Slot::None) => return Ok(None),
            Some(&Slot::Overflowed(words)) if !kernel.has_table_room(words) => return Ok(None),
            _ => {}
        }
        let Some(file) = objects.objects().get(object as usize) else { return Ok(None) };
        let Ok(compiled) = load_or_compile(self.cache.as_ref(), &file.file, &mut self.rules) else {
            self.tables.insert(object, Slot::None);
            return Ok(None);
        };
        kernel.write_rules(self.rules.rules())?;
        let table = &compiled.table;
        let pages: Vec<(u32, u16)> = table.pages.iter().map(|page| (page.first_row, page.rows)).collect();
        let parts = TableParts { first_page: table.first_page, pages: &pages, rows: &table.rows };
        let placed = kernel.place_table(parts)?;
        let slot = match placed {
            Some(placed) => Slot::Placed(placed),
            None => {
                if !self.overflowed.contains(&file.path) {
                    self.overflowed.push(file.path.clone());
                }
                Slot::Overflowed(table.bytes() as u64 / 4)
            }
        };
        self.tables.insert(object, slot);
        Ok(placed)
    }

    /// Forgets objects whose numbers others will have. Where their tables are is free once there is need of it.
    pub(super) fn forget_objects(&mut self, numbers: &[u32]) {
        self.tables.retain(|number, _| !numbers.contains(number));
    }

    /// Forgets a process.
    pub(super) fn forget(&mut self, kernel: &mut Kernel, pid: u32) {
        if let Some(run) = self.runs.remove(&pid) {
            kernel.release_run(run);
        }
    }
}
