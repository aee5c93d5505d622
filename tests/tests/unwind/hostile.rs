//! Damaged and hostile ELF files: an error or a table, never a panic, and never more work than a sound file of its size.

use std::fs::{self, File};
use std::io::{Seek as _, Write as _};

use profiler::unwind::{Rules, UnwindError, compile};
use profiler_tests::Workload;

/// Copies with changed bytes that are tried.
const MUTATIONS: u64 = 6_000;

/// Bytes of a table beyond which a file of a few kilobytes has been believed too much: a span of 4 GiB costs 8 MiB.
const MAX_TABLE_BYTES: usize = 16 << 20;

/// A number that looks random, the same in every run.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(self.0 >> 33).expect("31 bits") % limit
    }
}

fn check(bytes: &[u8]) -> Result<(), UnwindError> {
    let mut file: File = tempfile::tempfile().expect("create a temporary file");
    file.write_all(bytes).expect("write a temporary file");
    file.rewind().expect("rewind a temporary file");
    let compiled = compile(&file, &mut Rules::default())?;
    assert!(compiled.table.bytes() <= MAX_TABLE_BYTES, "{} bytes of table", compiled.table.bytes());
    for address in [0, 1, 0x1000, 0x1fff, 1 << 32, u64::MAX] {
        let _ = compiled.table.find(address);
    }
    Ok(())
}

/// Where a section is in the file: offset and size, by the section headers.
fn sections(bytes: &[u8]) -> Vec<(usize, usize)> {
    let number = |at: usize, size: usize| {
        let bytes = bytes[at..at + size].iter().rev();
        bytes.fold(0_usize, |number, &byte| number << 8 | usize::from(byte))
    };
    // Elf64_Ehdr: e_shoff at 40, e_shnum at 60. Elf64_Shdr: 64 bytes, sh_offset at 24, sh_size at 32.
    let (table, count) = (number(40, 8), number(60, 2));
    let headers = (0..count).map(|index| table + 64 * index);
    headers.map(|at| (number(at + 24, 8), number(at + 32, 8))).collect()
}

#[test]
fn damaged_files_cost_an_error_and_no_more() {
    let sound = fs::read(Workload::c("split").called("split-hostile").flag("-s").build()).expect("read a program");
    check(&sound).expect("a sound file");
    for size in (0..sound.len()).step_by(61) {
        let _ = check(&sound[..size]);
    }
    // Where damage does most: the headers, the section headers, and call-frame information, which has a "zR" early on.
    let all = sections(&sound);
    let mark = sound.windows(4).position(|bytes| bytes == b"\x01zR\0").expect("call-frame information");
    let frames = *all.iter().find(|&&(at, size)| (at..at + size).contains(&mark)).expect("its section");
    let headers = [(0, 64 + 13 * 56), (sound.len() - 64 * all.len(), 64 * all.len())];
    let mut places = vec![frames; 6];
    places.extend([headers, headers].concat());
    places.push((0, sound.len()));
    let mut random = Random(1);
    let mut failed = 0;
    for _ in 0..MUTATIONS {
        let mut bytes = sound.clone();
        for _ in 0..=random.below(3) {
            let (at, size) = places[random.below(places.len())];
            let byte = &mut bytes[at + random.below(size)];
            *byte = match random.below(4) {
                0 => 0xff,
                1 => 0x7f,
                2 => *byte ^ (1 << random.below(8)),
                _ => u8::try_from(random.below(256)).expect("a byte"),
            };
        }
        failed += u32::from(check(&bytes).is_err());
    }
    println!("{failed} of {MUTATIONS} damaged copies are refused as a whole");
}

#[test]
fn files_that_are_no_programs_of_ours_say_what_they_are() {
    let sound = fs::read(Workload::c("split").called("split-hostile").flag("-s").build()).expect("read a program");
    assert!(matches!(check(b""), Err(UnwindError::NoElf)));
    assert!(matches!(check(&[0x7f; 4096]), Err(UnwindError::NoElf)));
    // Elf64_Ehdr: e_ident[EI_CLASS] at 4, e_machine at 18, e_shnum at 60.
    let changed = |at: usize, byte: u8| {
        let mut bytes = sound.clone();
        bytes[at] = byte;
        check(&bytes)
    };
    assert!(matches!(changed(4, 1), Err(UnwindError::NoElf)));
    assert!(matches!(changed(18, 183), Err(UnwindError::Machine(183))));
    // Without section headers, what the program header says is taken.
    assert!(matches!(changed(60, 0), Ok(())));
}
