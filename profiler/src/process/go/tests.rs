//! Tables that are made here, whole and damaged, and those of programs on request.

use std::io::Write as _;
use std::time::{Duration, Instant};

use super::*;

/// Where the data and the code of the file below are.
const DATA: u64 = 0x40_0000;
const CODE: u64 = 0x50_0000;

/// Parts of the file, by offset.
const TABLE: usize = 0x200;
const MODULE: usize = 0x800;
const TREES: usize = 0xa00;

struct Bytes(Vec<u8>);

impl Bytes {
    fn put(&mut self, at: usize, bytes: &[u8]) {
        self.0[at..at + bytes.len()].copy_from_slice(bytes);
    }

    fn words(&mut self, at: usize, words: &[u64]) {
        for (index, word) in words.iter().enumerate() {
            self.put(at + 8 * index, &word.to_le_bytes());
        }
    }

    fn halves(&mut self, at: usize, halves: &[u32]) {
        for (index, half) in halves.iter().enumerate() {
            self.put(at + 4 * index, &half.to_le_bytes());
        }
    }
}

/// A program of two functions without section headers: `main.main` from 0 to 0x40, with `main.inner` inlined from 0x10
/// to 0x20, and `main.last` to 0x80.
fn program(version: Version) -> Vec<u8> {
    let mut file = Bytes(vec![0; 0x1000]);
    file.put(0, &headers());
    let magic = match version {
        Version::Go116 => MAGIC_1_16,
        Version::Go118 => MAGIC_1_18,
        Version::Go120 => MAGIC_1_20,
    };
    file.words(TABLE, &[START ^ magic, 2, 1]);
    let (names, units, files, programs, functions) = (0x60, 0x90, 0xa0, 0xb0, 0x100);
    let parts = [names, units, files, programs, functions];
    if version == Version::Go116 {
        file.words(TABLE + 24, &parts);
    } else {
        file.words(TABLE + 24, &[CODE]);
        file.words(TABLE + 32, &parts);
    }
    file.put(TABLE + 0x60, b"\0main.main\0main.inner\0main.last\0");
    file.halves(TABLE + 0x90, &[1]);
    file.put(TABLE + 0xa0, b"\0main.go\0");
    // Line 9 to 0x10, 20 to 0x20, 10 to 0x40; file 0; the first inlined call from 0x10 to 0x20.
    file.put(TABLE + 0xb0, &[0, 20, 0x10, 22, 0x10, 19, 0x20, 0]);
    file.put(TABLE + 0xb0 + 8, &[2, 0x40, 0]);
    file.put(TABLE + 0xb0 + 16, &[0, 0x10, 2, 0x10, 1, 0x20, 0]);
    // A frame of 24 bytes from 4 to 0x34.
    file.put(TABLE + 0xb0 + 24, &[2, 4, 48, 0x30, 47, 0x0c, 0]);
    let (first, second) = (0x60, 0xd0);
    if version == Version::Go116 {
        file.words(TABLE + 0x100, &[CODE, first, CODE + 0x40, second, CODE + 0x80]);
    } else {
        file.halves(TABLE + 0x100, &[0, 0x60, 0x40, 0xd0, 0x80]);
    }
    for (at, name, entry) in [(first, 1, 0), (second, 22, 0x40)] {
        let mut at = TABLE + 0x100 + usize::try_from(at).unwrap();
        if version == Version::Go116 {
            file.words(at, &[CODE + entry]);
            at += 4;
        }
        let programs = if entry == 0 { 3 } else { 0 };
        file.halves(at + 4, &[name, 0, 0, 24, 8, 1, programs, 0]);
        let size = if version == Version::Go120 { 44 } else { 40 };
        file.put(at + size - 1, &[if entry == 0 { 4 } else { 0 }]);
        if entry == 0 {
            file.halves(at + size, &[0, 0, 16]);
            if version == Version::Go116 {
                let pointers = (at + size + 12).next_multiple_of(8);
                file.words(pointers + 24, &[DATA + TREES as u64]);
            } else {
                file.halves(at + size + 12, &[u32::MAX, u32::MAX, u32::MAX, 0]);
            }
        }
    }
    file.words(MODULE, &[DATA + TABLE as u64, DATA + TABLE as u64 + 0x60]);
    file.words(MODULE + 176, &[CODE]);
    file.words(MODULE + 296, &[DATA, DATA + 8, DATA, DATA]);
    if version == Version::Go120 {
        file.words(MODULE + 320, &[DATA + TREES as u64]);
        file.halves(TREES, &[0, 11, 4, 19]);
    } else {
        file.words(MODULE + 304, &[DATA + TREES as u64]);
        file.halves(TREES, &[0xffff, 0, 9, 11, 4]);
    }
    file.0
}

/// The headers of a program whose whole file is its data, and a page of it code.
fn headers() -> Vec<u8> {
    let mut file = Bytes(vec![0; 64 + 2 * 56]);
    file.put(0, b"\x7fELF\x02\x01\x01");
    file.put(16, &[2, 0, 62, 0, 1]);
    file.words(24, &[CODE, 64, 0]);
    file.put(52, &[64, 0, 56, 0, 2, 0, 64, 0]);
    for (number, (flags, address)) in [(4_u32, DATA), (5, CODE)].into_iter().enumerate() {
        let at = 64 + 56 * number;
        file.halves(at, &[1, flags]);
        file.words(at + 8, &[0, address, address, 0x1000, 0x1000, 0x1000]);
    }
    file.0
}

fn file_of(bytes: &[u8]) -> File {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    file
}

fn described(table: &mut LineTable<'_>, offset: u64) -> Option<String> {
    let found = table.look_up(CODE + offset)?;
    let list: Vec<String> = found.iter().map(|f| format!("{} {}:{}", f.name, f.file, f.line)).collect();
    Some(list.join(" < "))
}

#[test]
fn functions_lines_and_inlined_calls_are_read_in_every_version() {
    for version in [Version::Go116, Version::Go118, Version::Go120] {
        let file = file_of(&program(version));
        let mut table = LineTable::find(&file).unwrap_or_else(|| panic!("no table for {version:?}"));
        assert!(table.knows_inlined());
        let mut check = |offset, expected: Option<&str>| {
            assert_eq!(described(&mut table, offset).as_deref(), expected, "{version:?} {offset:#x}");
        };
        check(0, Some("main.main main.go:9"));
        check(0xf, Some("main.main main.go:9"));
        check(0x10, Some("main.inner main.go:20 < main.main main.go:9"));
        check(0x20, Some("main.main main.go:10"));
        check(0x40, Some("main.last main.go:9"));
        check(0x80, None);
        check(u64::MAX - CODE, None);
    }
}

#[test]
fn the_depth_of_the_stack_is_told_for_every_address() {
    for version in [Version::Go116, Version::Go118, Version::Go120] {
        let file = file_of(&program(version));
        let mut table = LineTable::find(&file).unwrap();
        assert_eq!(table.code(), Some(CODE..CODE + 0x80));
        let mut found = Vec::new();
        table.each_frame(|start, end, code| found.push((start - CODE, end - CODE, code))).unwrap();
        let (none, some) = (GoCode::Depth(0), GoCode::Depth(24));
        let expected = [
            (0, 4, none),
            (4, 0x34, some),
            (0x34, 0x40, none),
            (0x40, 0x44, none),
            (0x44, 0x74, some),
            (0x74, 0x80, none),
        ];
        assert_eq!(found, expected, "{version:?}");
    }
}

#[test]
fn a_damaged_table_costs_names_and_a_bounded_time() {
    let begun = Instant::now();
    for version in [Version::Go116, Version::Go118, Version::Go120] {
        let whole = program(version);
        let look_up_all = |bytes: &[u8]| {
            let file = file_of(bytes);
            if let Some(mut table) = LineTable::find(&file) {
                for offset in (0..0x90).step_by(8) {
                    let _ = table.look_up(CODE + offset);
                }
                let _ = table.each_frame(|start, end, _| assert!(start < end));
            }
        };
        for at in TABLE..TREES + 0x20 {
            for change in [0x01, 0x80, 0xff] {
                let mut bytes = whole.clone();
                bytes[at] ^= change;
                look_up_all(&bytes);
            }
        }
        for at in 0..176 {
            let mut bytes = whole.clone();
            bytes[at] ^= 0xff;
            look_up_all(&bytes);
        }
        for length in (0..whole.len()).step_by(16) {
            look_up_all(&whole[..length]);
        }
    }
    assert!(begun.elapsed() < Duration::from_secs(60), "{:?}", begun.elapsed());
}

/// `PROFILER_GO_OBJECTS=PATH:PATH` names Go programs. A table may have a few entries without lines. What the runtime does
/// on other stacks must be understood in all of them.
#[test]
fn every_function_of_the_programs_named_is_told() {
    let Some(paths) = std::env::var_os("PROFILER_GO_OBJECTS") else { return };
    for path in std::env::split_paths(&paths) {
        let file = File::open(&path).unwrap();
        let begun = Instant::now();
        let mut table = LineTable::find(&file).unwrap_or_else(|| panic!("no table in {}", path.display()));
        let (mut named, mut inlined) = (0, 0);
        for number in 0..table.parts.function_count {
            let (start, end) = (table.entry(number).unwrap(), table.entry(number + 1).unwrap());
            let found = table.look_up(start.midpoint(end));
            named += u64::from(found.is_some());
            inlined += u64::from(found.is_some_and(|found| found.len() > 1));
        }
        let all = table.parts.function_count;
        let (version, took) = (table.parts.version, begun.elapsed());
        let path = path.display();
        let told =
            format!("{path}: {version:?}, {named} of {all} functions named, {inlined} in inlined calls, {took:?}");
        assert!(named * 100 >= all * 99 && table.knows_inlined() && inlined * 20 > all, "{told}");
        let mut switched = Vec::new();
        let whole = table.each_frame(|start, _, code| {
            if matches!(code, GoCode::OtherStack | GoCode::Goroutine { .. }) {
                switched.push(start);
            }
        });
        assert!(whole.is_some());
        let mut names: Vec<_> = switched.iter().filter_map(|&at| Some(table.look_up(at)?.pop()?.name)).collect();
        names.dedup();
        for name in ["runtime.systemstack", "runtime.morestack", "runtime.asmcgocall", "runtime.nanotime1"] {
            assert!(names.iter().any(|found| found == name), "{told}; on other stacks only {names:?}");
        }
    }
}
