//! An ELF file as its program would see itself in memory: read by address, pointers relocated.
//!
//! Reads by `pread`, in blocks of which it keeps a bounded number. The file is its target's: every offset and count is
//! checked, and what a search may read has a bound.

use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::FileExt;

use object::elf;
use object::endian::LittleEndian;
use object::read::elf::{Dyn, FileHeader, ProgramHeader, Rela, SectionHeader};

use crate::process::elf::programs;

/// Section headers that are read.
const MAX_SECTIONS: usize = 65_536;
/// Bytes of section names that are read.
const MAX_NAMES: u64 = 1 << 20;
/// Entries of the dynamic section that are read: linkers write some 30.
const MAX_DYNAMIC: u64 = 1024;
/// Bytes of relocations that are read: a program of 100 MB has about 20 MB.
const MAX_RELOCATION_BYTES: u64 = 256 << 20;
/// Bytes that a search goes through.
const MAX_SEARCH_BYTES: u64 = 512 << 20;
/// Bytes read at once in a search.
const PIECE_BYTES: usize = 1 << 20;
/// Bytes read at once elsewhere, and kept.
const BLOCK_BYTES: u64 = 16 * 1024;
/// Blocks that are kept: 64 MiB of them.
const MAX_BLOCKS: usize = 4096;

type Header = elf::FileHeader64<LittleEndian>;
type Section = elf::SectionHeader64<LittleEndian>;
type Dynamic = elf::Dyn64<LittleEndian>;
type Relocation = elf::Rela64<LittleEndian>;

/// A loadable segment, with what of it is in the file.
#[derive(Clone, Copy)]
struct Segment {
    address: u64,
    file_offset: u64,
    size: u64,
    executable: bool,
}

/// A 64-bit little-endian ELF file, read by address.
pub(super) struct Image<'f> {
    file: &'f File,
    segments: Vec<Segment>,
    /// Addresses and names of the sections that Go's linker names after itself, and whether there are sections at all.
    sections: Sections,
    /// Whether addresses are not known before the program runs: pointers are in relocations then.
    relocatable: bool,
    /// Where relocations are: file offset and bytes.
    relocations: Option<(u64, u64)>,
    blocks: HashMap<u64, Box<[u8]>>,
}

/// What the section headers tell.
#[derive(Default)]
struct Sections {
    /// Whether there are any with names.
    known: bool,
    /// Whether one of them says that Go's linker was here.
    go: bool,
    /// Address of the line table.
    line_table: Option<u64>,
}

impl<'f> Image<'f> {
    /// Reads the headers; `None` for a file that is none of ours.
    pub(super) fn open(file: &'f File) -> Option<Self> {
        let endian = LittleEndian;
        let (header, programs) = programs(file)?;
        let mut segments = Vec::new();
        let mut dynamic = None;
        for program in &programs {
            if program.p_type(endian) == elf::PT_LOAD {
                segments.push(Segment {
                    address: program.p_vaddr(endian),
                    file_offset: program.p_offset(endian),
                    size: program.p_filesz(endian),
                    executable: program.p_flags(endian).0 & elf::PF_X.0 != 0,
                });
            } else if program.p_type(endian) == elf::PT_DYNAMIC {
                dynamic = Some((program.p_offset(endian), program.p_filesz(endian)));
            }
        }
        let mut image = Self {
            file,
            segments,
            sections: sections(file, &header).unwrap_or_default(),
            relocatable: header.e_type(endian) == elf::ET_DYN,
            relocations: None,
            blocks: HashMap::new(),
        };
        image.relocations = dynamic.and_then(|(offset, bytes)| image.relocation_table(offset, bytes));
        Some(image)
    }

    /// Where the line table may be, by section, or by what it begins with.
    ///
    /// `is_start`: whether a table may begin with this word. A file with section headers that do not speak of Go is
    /// not searched.
    pub(super) fn line_tables(&self, is_start: impl Fn(u64) -> bool) -> Vec<u64> {
        if let Some(address) = self.sections.line_table {
            return vec![address];
        }
        if self.sections.known && !self.sections.go {
            return Vec::new();
        }
        self.search(is_start)
    }

    /// Addresses of pointers to `target`, relocated ones and others.
    pub(super) fn pointers_to(&self, target: u64) -> Vec<u64> {
        let mut found = Vec::new();
        if self.relocatable {
            self.each_relocation(|at, value| {
                if value == target && found.len() < MAX_FOUND {
                    found.push(at);
                }
            });
        }
        if found.is_empty() {
            found = self.search(|word| word == target);
        }
        found
    }

    /// The pointers at ascending addresses of some range, each relocated where the program would.
    pub(super) fn pointers<const N: usize>(&mut self, addresses: [u64; N]) -> Option<[u64; N]> {
        let mut values = [0; N];
        for (value, address) in values.iter_mut().zip(addresses) {
            *value = self.u64(address)?;
        }
        if self.relocatable {
            self.each_relocation(|at, value| {
                if let Some(index) = addresses.iter().position(|&address| address == at) {
                    values[index] = value;
                }
            });
        }
        Some(values)
    }

    /// Whether code may be at an address.
    pub(super) fn is_code(&self, address: u64) -> bool {
        self.segments.iter().any(|segment| segment.executable && segment.contains(address))
    }

    /// Whether the file has something for an address.
    pub(super) fn has(&self, address: u64) -> bool {
        self.segments.iter().any(|segment| segment.contains(address))
    }

    pub(super) fn u8(&mut self, address: u64) -> Option<u8> {
        let mut bytes = [0];
        self.read(address, &mut bytes)?;
        Some(bytes[0])
    }

    pub(super) fn u32(&mut self, address: u64) -> Option<u32> {
        let mut bytes = [0; 4];
        self.read(address, &mut bytes)?;
        Some(u32::from_le_bytes(bytes))
    }

    pub(super) fn u64(&mut self, address: u64) -> Option<u64> {
        let mut bytes = [0; 8];
        self.read(address, &mut bytes)?;
        Some(u64::from_le_bytes(bytes))
    }

    /// The text that begins at an address and ends with a zero, `max` bytes of it at most.
    pub(super) fn text(&mut self, address: u64, max: usize) -> Option<String> {
        let mut bytes = Vec::new();
        while bytes.len() < max {
            match self.u8(address.checked_add(bytes.len() as u64)?)? {
                0 => break,
                byte => bytes.push(byte),
            }
        }
        Some(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// Reads bytes at an address, all of which must be in the file.
    pub(super) fn read(&mut self, address: u64, bytes: &mut [u8]) -> Option<()> {
        let segment = self.segments.iter().find(|segment| segment.contains(address))?;
        let inside = address - segment.address;
        if segment.size - inside < bytes.len() as u64 {
            return None;
        }
        let mut offset = segment.file_offset.checked_add(inside)?;
        let mut rest = bytes;
        while !rest.is_empty() {
            let block = self.block(offset / BLOCK_BYTES)?;
            let from = block.get(usize::try_from(offset % BLOCK_BYTES).ok()?..).filter(|from| !from.is_empty())?;
            let count = from.len().min(rest.len());
            let (now, later) = rest.split_at_mut(count);
            now.copy_from_slice(&from[..count]);
            rest = later;
            offset += count as u64;
        }
        Some(())
    }

    /// A block of the file, shorter at its end.
    fn block(&mut self, number: u64) -> Option<&[u8]> {
        if self.blocks.len() >= MAX_BLOCKS && !self.blocks.contains_key(&number) {
            self.blocks.clear();
        }
        match self.blocks.entry(number) {
            std::collections::hash_map::Entry::Occupied(entry) => Some(entry.into_mut()),
            std::collections::hash_map::Entry::Vacant(entry) => {
                let bytes = read_up_to(self.file, number.checked_mul(BLOCK_BYTES)?, usize::try_from(BLOCK_BYTES).ok()?);
                Some(entry.insert(bytes.into_boxed_slice()))
            }
        }
    }

    /// Addresses of words that `wanted` accepts, at multiples of 8 in the data, a few of them at most.
    fn search(&self, wanted: impl Fn(u64) -> bool) -> Vec<u64> {
        let mut found = Vec::new();
        let mut left = MAX_SEARCH_BYTES;
        for segment in self.segments.iter().filter(|segment| !segment.executable) {
            let size = segment.size.min(left);
            left -= size;
            let mut at = segment.address.next_multiple_of(8).wrapping_sub(segment.address);
            while at < size {
                let Some(offset) = segment.file_offset.checked_add(at) else { break };
                let bytes = read_up_to(self.file, offset, PIECE_BYTES.min(usize::try_from(size - at).unwrap_or(0)));
                let (words, _) = bytes.as_chunks::<8>();
                for (index, word) in words.iter().enumerate() {
                    if wanted(u64::from_le_bytes(*word)) {
                        found.push(segment.address.wrapping_add(at).wrapping_add(8 * index as u64));
                        if found.len() >= MAX_FOUND {
                            return found;
                        }
                    }
                }
                if words.is_empty() {
                    break;
                }
                at += 8 * words.len() as u64;
            }
        }
        found
    }

    /// Calls `visit` with the address and the value of each pointer that the loader writes.
    fn each_relocation(&self, mut visit: impl FnMut(u64, u64)) {
        let endian = LittleEndian;
        let Some((start, bytes)) = self.relocations else { return };
        let piece = PIECE_BYTES / size_of::<Relocation>() * size_of::<Relocation>();
        let mut at = 0;
        while at < bytes.min(MAX_RELOCATION_BYTES) {
            let Some(offset) = start.checked_add(at) else { return };
            let read = read_up_to(self.file, offset, piece.min(usize::try_from(bytes - at).unwrap_or(0)));
            let count = read.len() / size_of::<Relocation>();
            let Ok((relocations, _)) = object::pod::slice_from_bytes::<Relocation>(&read, count) else { return };
            for relocation in relocations {
                if relocation.r_type(endian, false) == elf::R_X86_64_RELATIVE {
                    visit(relocation.r_offset(endian), relocation.r_addend(endian).cast_unsigned());
                }
            }
            if count == 0 {
                return;
            }
            at += (count * size_of::<Relocation>()) as u64;
        }
    }

    /// Finds the relocations by the dynamic section.
    fn relocation_table(&self, offset: u64, bytes: u64) -> Option<(u64, u64)> {
        let endian = LittleEndian;
        let count = usize::try_from((bytes / size_of::<Dynamic>() as u64).min(MAX_DYNAMIC)).ok()?;
        let table = read_at(self.file, offset, count * size_of::<Dynamic>())?;
        let (entries, _) = object::pod::slice_from_bytes::<Dynamic>(&table, count).ok()?;
        let value = |tag| entries.iter().find(|entry| entry.d_tag(endian) == tag).map(|entry| entry.d_val(endian));
        let (address, size) = (value(elf::DT_RELA)?, value(elf::DT_RELASZ)?);
        let segment = self.segments.iter().find(|segment| segment.contains(address))?;
        Some((segment.file_offset.checked_add(address - segment.address)?, size))
    }
}

/// Places that a search returns: a program has one or two of what is searched.
const MAX_FOUND: usize = 64;

impl Segment {
    fn contains(&self, address: u64) -> bool {
        address.checked_sub(self.address).is_some_and(|inside| inside < self.size)
    }
}

/// Reads what the section headers tell of Go; `None` where there are none that can be read.
fn sections(file: &File, header: &Header) -> Option<Sections> {
    let endian = LittleEndian;
    let count = usize::from(header.e_shnum(endian));
    if count == 0 || count > MAX_SECTIONS || usize::from(header.e_shentsize(endian)) != size_of::<Section>() {
        return None;
    }
    let table = read_at(file, header.e_shoff(endian), count * size_of::<Section>())?;
    let (headers, _) = object::pod::slice_from_bytes::<Section>(&table, count).ok()?;
    let names = headers.get(usize::from(header.e_shstrndx(endian).0))?;
    let size = usize::try_from(names.sh_size(endian)).ok().filter(|&size| size as u64 <= MAX_NAMES)?;
    let names = read_at(file, names.sh_offset(endian), size)?;
    let mut sections = Sections { known: true, ..Sections::default() };
    for section in headers {
        let name = names.get(section.sh_name(endian) as usize..).unwrap_or_default();
        if name.starts_with(b".gopclntab\0") || name.starts_with(b".data.rel.ro.gopclntab\0") {
            sections.line_table.get_or_insert(section.sh_addr(endian));
        }
        sections.go |= name.starts_with(b".go.buildinfo\0") || name.starts_with(b".note.go.buildid\0");
    }
    Some(sections)
}

fn read_at(file: &File, offset: u64, size: usize) -> Option<Vec<u8>> {
    let mut bytes = vec![0; size];
    file.read_exact_at(&mut bytes, offset).ok()?;
    Some(bytes)
}

/// Reads so many bytes, or those that there are.
fn read_up_to(file: &File, offset: u64, size: usize) -> Vec<u8> {
    let mut bytes = vec![0; size];
    let mut filled = 0;
    while filled < size {
        match file.read_at(&mut bytes[filled..], offset.saturating_add(filled as u64)) {
            Ok(count) if count > 0 => filled += count,
            _ => break,
        }
    }
    bytes.truncate(filled);
    bytes
}
