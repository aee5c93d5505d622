//! Unwind tables and runs of mappings in the kernel's maps: placed, shared, evicted.

use profiler::bpf::{Kernel, Limits, PlacedTable, Selection, TableParts};
use profiler_common::unwind::{Packed, row};
use profiler_tests::require_bpf;

/// Rows on each page of the tables, and pages: two tables fit a shard of 262,144 words, three do not.
const ROWS: u16 = 1000;
const PAGES: u16 = 100;

fn kernel(table_shards: usize) -> Kernel {
    let limits = Limits { table_shards, mappings: 64, ..Limits::default() };
    Kernel::load(&Selection::All, limits, false, std::process::id()).expect("maps can be made")
}

/// Places a table whose rules are all `rule`, from page `first` on.
fn place(kernel: &mut Kernel, first: u64, rule: usize) -> Option<PlacedTable> {
    let packed = Packed::dictionary(rule).expect("a small number");
    let pages: Vec<_> = (0..PAGES).map(|page| (u32::from(page) * u32::from(ROWS), ROWS)).collect();
    let rows: Vec<_> = (0..PAGES).flat_map(|_| (0..ROWS).map(|index| row(u64::from(index) * 4, packed))).collect();
    kernel.place_table(TableParts { first_page: first, pages: &pages, rows: &rows }).expect("maps can be written")
}

/// The rule at the end of each page, if they are all the same.
fn rule(kernel: &Kernel, table: PlacedTable, first: u64) -> Option<Packed> {
    let rules: Vec<_> = (0..u64::from(PAGES)).map(|page| kernel.rule(table, ((first + page) << 12) + 0xfff)).collect();
    assert_eq!(kernel.rule(table, (first << 12) - 1), None);
    assert_eq!(kernel.rule(table, (first + u64::from(PAGES)) << 12), None);
    rules.iter().all(|rule| *rule == rules[0]).then(|| rules[0]).flatten()
}

#[test]
fn tables_that_are_out_of_use_make_room_for_others() {
    let Some(_kernel) = require_bpf() else { return };
    let mut kernel = kernel(1);
    let used = place(&mut kernel, 16, 1).expect("room for one");
    let unused = place(&mut kernel, 500, 2).expect("room for two");
    assert_eq!(rule(&kernel, used, 16), Packed::dictionary(1));
    assert_eq!(rule(&kernel, unused, 500), Packed::dictionary(2));
    assert!(place(&mut kernel, 16, 3).is_none(), "a table that was just placed was evicted");
    let run = kernel.acquire_run(vec![used.entry(0x1000, 0x2000, 0)], vec![used.number]).unwrap().expect("room");
    for _ in 0..3 {
        kernel.end_table_window();
    }
    let next = place(&mut kernel, 7, 3).expect("room where the unused table was");
    assert!(kernel.has_table(used) && !kernel.has_table(unused));
    assert_eq!(rule(&kernel, used, 16), Packed::dictionary(1), "a table in use was written over");
    assert_eq!(rule(&kernel, next, 7), Packed::dictionary(3));
    kernel.release_run(run);
    kernel.end_table_window();
    assert!(place(&mut kernel, 9, 4).is_none(), "a program may still be reading the table of a run that was just left");
    for _ in 0..4 {
        kernel.end_table_window();
    }
    assert!(place(&mut kernel, 9, 4).is_some() && place(&mut kernel, 9, 5).is_some());
    assert!(!kernel.has_table(used) && !kernel.has_table(next));
}

#[test]
fn a_table_larger_than_a_shard_is_found_whole() {
    let Some(_kernel) = require_bpf() else { return };
    let mut kernel = kernel(8);
    let tables: Vec<_> =
        (0..9).map(|rule| place(&mut kernel, 16, rule).expect("room in shards that are added")).collect();
    for (number, table) in tables.iter().enumerate() {
        assert_eq!(rule(&kernel, *table, 16), Packed::dictionary(number));
    }
}

#[test]
fn processes_that_map_the_same_share_a_run() {
    let Some(_kernel) = require_bpf() else { return };
    let mut kernel = kernel(1);
    let table = place(&mut kernel, 16, 1).expect("room");
    let entries = |start: u64| vec![table.entry(start, start + 0x1000, 0); 30];
    let acquire = |kernel: &mut Kernel, start| kernel.acquire_run(entries(start), vec![table.number]).unwrap();
    let parent = acquire(&mut kernel, 0x1000).expect("room for one");
    let child = acquire(&mut kernel, 0x1000);
    assert_eq!(child, Some(parent));
    let other = acquire(&mut kernel, 0x9000).expect("room for two");
    assert_ne!(other, parent);
    assert_eq!(acquire(&mut kernel, 0x5000), None, "64 entries have room for two runs of 30");
    kernel.release_run(parent);
    for _ in 0..4 {
        kernel.end_table_window();
    }
    assert_eq!(acquire(&mut kernel, 0x5000), None, "the child still has it");
    kernel.release_run(parent);
    kernel.end_table_window();
    // Taken again within the grace time, it stays.
    assert_eq!(acquire(&mut kernel, 0x1000), Some(parent));
    for _ in 0..4 {
        kernel.end_table_window();
    }
    assert_eq!(acquire(&mut kernel, 0x5000), None);
    kernel.release_run(parent);
    for _ in 0..3 {
        kernel.end_table_window();
    }
    assert_eq!(acquire(&mut kernel, 0x5000), Some(parent), "its place is free");
}
