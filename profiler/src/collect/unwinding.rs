//! Brings the programs what they need to unwind: tables of objects, mappings of processes.

use std::collections::HashMap;

use profiler_common::config::MappingEntry;

use crate::bpf::{BpfError, Kernel, PlacedTable, Run, TableParts};
use crate::process::{Mapping, ObjectTable};
use crate::unwind::{Rules, compile};

/// Tables by object, runs of mappings by process.
#[derive(Default)]
pub(super) struct Unwinding {
    rules: Rules,
    tables: HashMap<u32, Option<PlacedTable>>,
    runs: HashMap<u32, Run>,
    /// Objects whose tables did not fit, by path.
    pub(super) overflowed: Vec<String>,
}

impl Unwinding {
    /// The run of mappings for what a process maps now; the one before stays valid for a while.
    ///
    /// `None` when nothing has changed, or there is no room: the process keeps what it had.
    pub(super) fn update<'a>(
        &mut self,
        kernel: &mut Kernel,
        pid: u32,
        mappings: impl Iterator<Item = &'a Mapping>,
        objects: &mut ObjectTable,
    ) -> Result<Option<Run>, BpfError> {
        let mut entries: Vec<MappingEntry> = Vec::new();
        for mapping in mappings {
            let entry = match objects.place(pid, mapping, mapping.start) {
                Some((object, address)) => match self.table(kernel, object, objects)? {
                    Some(table) => table.entry(mapping.start, mapping.end, mapping.start.wrapping_sub(address)),
                    None => continue,
                },
                None => continue,
            };
            entries.push(entry);
        }
        let Some(run) = kernel.add_mappings(&entries)? else { return Ok(None) };
        if let Some(old) = self.runs.insert(pid, run) {
            kernel.retire_mappings(old);
        }
        Ok(Some(run))
    }

    fn table(
        &mut self,
        kernel: &mut Kernel,
        object: u32,
        objects: &ObjectTable,
    ) -> Result<Option<PlacedTable>, BpfError> {
        if let Some(&table) = self.tables.get(&object) {
            return Ok(table);
        }
        let Some(file) = objects.objects().get(object as usize) else { return Ok(None) };
        // An object without a table is walked by frame pointer; `inspect` tells why it has none.
        let placed = match compile(&file.file, &mut self.rules) {
            Ok(compiled) => {
                kernel.write_rules(self.rules.rules())?;
                let table = &compiled.table;
                let pages: Vec<(u32, u16)> = table.pages.iter().map(|page| (page.first_row, page.rows)).collect();
                let placed = kernel.place_table(TableParts {
                    first_page: table.first_page,
                    pages: &pages,
                    rows: &table.rows,
                })?;
                if placed.is_none() {
                    self.overflowed.push(file.path.clone());
                }
                placed
            }
            Err(_) => None,
        };
        self.tables.insert(object, placed);
        Ok(placed)
    }

    /// Forgets a process.
    pub(super) fn forget(&mut self, kernel: &mut Kernel, pid: u32) {
        if let Some(run) = self.runs.remove(&pid) {
            kernel.retire_mappings(run);
        }
    }
}
