//! V8's builtins in a program or library that was stripped: machine code that V8 was built with, which has neither symbols
//! nor call-frame information then. That is a hole of more than a megabyte in what the call-frame information describes,
//! and nothing else has one.
//!
//! Input: an open ELF file, and the names that were found in it. Output: a label for what is in the hole. Reads by
//! `pread`, and a bounded part of what the file says.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use object::elf;
use object::endian::LittleEndian;
use object::read::elf::ProgramHeader;

use super::names::{Found, Names};
use crate::process::elf::{Program, programs};
use crate::profile::V8_BUILTIN;

/// What the names of V8's own functions begin with.
const NAMESPACE: &str = "v8::";

/// Least size of the hole: builtins are 1.3 MB and more, pieces of assembly without such information some 10 KB.
const MIN_BYTES: u64 = 512 << 10;

/// Functions of the search table that are read: ten times what V8 has.
const MAX_FUNCTIONS: usize = 1 << 20;

/// How linkers write the search table: a pointer relative to its own place, a count, and pairs relative to the table.
/// Source: Linux Standard Base, section 10.6.2.
const ENCODINGS: [u8; 4] = [1, 0x1b, 0x03, 0x3b];
const TABLE_HEAD: u64 = 12;

/// Labels what has no name among `addresses` and is a builtin.
pub(super) fn label_builtins(file: &File, addresses: &[u64], names: &mut Names) {
    let is_v8 = names.values().flatten().any(|found| found.name.starts_with(NAMESPACE));
    if !is_v8 || addresses.iter().all(|address| names.contains_key(address)) {
        return;
    }
    let Some(functions) = Functions::read(file) else { return };
    for &address in addresses {
        let hole = functions.hole(address);
        if !names.contains_key(&address) && hole.is_some_and(|hole| hole.end - hole.start >= MIN_BYTES) {
            names.insert(address, vec![Found { name: V8_BUILTIN.into(), file: "".into(), line: 0 }]);
        }
    }
}

/// Where the functions that call-frame information describes are.
struct Functions<'f> {
    file: &'f File,
    /// Address, offset in the file and size of the segments.
    segments: Vec<[u64; 3]>,
    /// Start of each function, and the address of its entry; ascending.
    table: Vec<(u64, u64)>,
}

impl<'f> Functions<'f> {
    fn read(file: &'f File) -> Option<Self> {
        let endian = LittleEndian;
        let (_, programs) = programs(file)?;
        let place = |program: &Program| [program.p_vaddr(endian), program.p_offset(endian), program.p_filesz(endian)];
        let of = |kind| programs.iter().filter(move |program| program.p_type(endian) == kind).map(place);
        let segments = of(elf::PT_LOAD).collect();
        let [address, offset, size] = of(elf::PT_GNU_EH_FRAME).next()?;
        let head = read_at(file, offset, 12)?;
        if head[..4] != ENCODINGS {
            return None;
        }
        let count = u32::from_le_bytes(*head[8..].first_chunk()?) as usize;
        if count > MAX_FUNCTIONS || TABLE_HEAD + 8 * count as u64 > size {
            return None;
        }
        let bytes = read_at(file, offset.checked_add(TABLE_HEAD)?, 8 * count)?;
        let absolute = |half: [u8; 4]| address.wrapping_add_signed(i64::from(i32::from_le_bytes(half)));
        let pairs = bytes.as_chunks::<4>().0.as_chunks::<2>().0;
        let table = pairs.iter().map(|&[start, entry]| (absolute(start), absolute(entry))).collect();
        Some(Self { file, segments, table })
    }

    /// The hole between two functions that an address is in; `None` when it is in a function, or this cannot be told.
    fn hole(&self, address: u64) -> Option<Range<u64>> {
        let behind = self.table.partition_point(|&(start, _)| start <= address);
        let (start, entry) = *self.table.get(behind.checked_sub(1)?)?;
        let next = self.table.get(behind)?.0;
        let [at, offset, size] = *self.segments.iter().find(|[at, _, size]| entry.wrapping_sub(*at) < *size)?;
        // Length, common entry, start relative to its own place, size.
        let inside = (entry - at).checked_add(16).filter(|&end| end <= size)? - 16;
        let bytes = read_at(self.file, offset.checked_add(inside)?, 16)?;
        let half = |at: usize| Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?));
        let described = entry.wrapping_add(8).wrapping_add_signed(i64::from(half(8)?.cast_signed()));
        let end = start.checked_add(u64::from(half(12)?))?;
        (described == start && (end..next).contains(&address)).then_some(end..next)
    }
}

fn read_at(file: &File, offset: u64, size: usize) -> Option<Vec<u8>> {
    let mut bytes = vec![0; size];
    file.read_exact_at(&mut bytes, offset).ok().map(|()| bytes)
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    const BASE: u64 = 0x40_0000;
    const TABLE: u64 = 0x200;
    const ENTRIES: u64 = 0x300;

    /// A file with a function of 0x10 bytes at each of these addresses.
    fn file_of(starts: &[u64]) -> Vec<u8> {
        let mut file = vec![0; 0x1000];
        let mut put = |at: u64, bytes: &[u8]| {
            let at = usize::try_from(at).unwrap();
            file[at..at + bytes.len()].copy_from_slice(bytes);
        };
        put(0, b"\x7fELF\x02\x01\x01");
        put(16, &[3, 0, 62, 0, 1]);
        put(32, &[64]);
        put(52, &[64, 0, 56, 0, 2, 0, 64, 0]);
        for (number, (kind, offset)) in [(1_u32, 0), (0x6474_e550, TABLE)].into_iter().enumerate() {
            let at = 64 + 56 * number as u64;
            put(at, &kind.to_le_bytes());
            for (index, word) in [offset, BASE + offset, 0, 0x1000 - offset].into_iter().enumerate() {
                put(at + 8 + 8 * index as u64, &word.to_le_bytes());
            }
        }
        let half = |number: u64| u32::try_from(number & 0xffff_ffff).unwrap().to_le_bytes();
        put(TABLE, &ENCODINGS);
        put(TABLE + 8, &half(starts.len() as u64));
        for (index, start) in starts.iter().enumerate() {
            let entry = ENTRIES + 16 * index as u64;
            put(TABLE + 12 + 8 * index as u64, &half(start.wrapping_sub(BASE + TABLE)));
            put(TABLE + 16 + 8 * index as u64, &half(entry - TABLE));
            put(entry + 8, &half(start.wrapping_sub(BASE + entry + 8)));
            put(entry + 12, &half(0x10));
        }
        file
    }

    fn labelled(bytes: &[u8], named: &str, addresses: &[u64]) -> Vec<u64> {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        let found = Found { name: named.into(), file: "".into(), line: 0 };
        let mut names = Names::from([(1, vec![found])]);
        label_builtins(&file, addresses, &mut names);
        let mut labelled: Vec<u64> =
            names.into_iter().filter(|(_, found)| &*found[0].name == V8_BUILTIN).map(|(at, _)| at).collect();
        labelled.sort_unstable();
        labelled
    }

    #[test]
    fn only_what_is_in_a_large_hole_of_v8_is_labelled() {
        let hole = 0x50_0010;
        let starts = [0x50_0000, hole + MIN_BYTES, hole + MIN_BYTES + 0x100];
        let addresses = [
            1,
            0x4f_ffff,
            0x50_0008,
            hole,
            hole + 0x1000,
            hole + MIN_BYTES - 1,
            hole + MIN_BYTES,
            hole + MIN_BYTES + 0x20,
            hole + MIN_BYTES + 0x200,
        ];
        let bytes = file_of(&starts);
        assert_eq!(labelled(&bytes, "v8::Function::Call()", &addresses), [hole, hole + 0x1000, hole + MIN_BYTES - 1]);
        assert!(labelled(&bytes, "v80::f()", &addresses).is_empty());
        let smaller = file_of(&[0x50_0000, hole + MIN_BYTES - 8]);
        assert!(labelled(&smaller, "v8::f()", &addresses).is_empty());
        for length in (0..bytes.len()).step_by(7) {
            labelled(&bytes[..length], "v8::f()", &addresses);
        }
        for at in 0..0x340 {
            let mut damaged = bytes.clone();
            damaged[at] ^= 0xff;
            labelled(&damaged, "v8::f()", &addresses);
        }
    }
}
