//! A few symbols of an ELF file, and the bytes at an address of it.

use std::collections::HashMap;
use std::os::unix::fs::FileExt;

use object::elf;
use object::endian::LittleEndian as LE;
use object::read::elf::SectionHeader;

use super::elf::{Sections, has_content};

/// Largest table that is read. CPython's are below 1 MiB; those of a program it is built into may be larger.
const MAX_TABLE_BYTES: u64 = 64 << 20;

/// Where a symbol is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Symbol {
    pub(crate) address: u64,
    pub(crate) size: u64,
}

/// The symbols of these names that the file defines, in either table.
pub(crate) fn symbols<'n>(sections: &Sections<'_>, names: &[&'n str]) -> HashMap<&'n str, Symbol> {
    let mut found = HashMap::new();
    let wanted: HashMap<&[u8], &'n str> = names.iter().map(|name| (name.as_bytes(), *name)).collect();
    let longest = names.iter().map(|name| name.len()).max().unwrap_or(0);
    each_symbol(sections, MAX_TABLE_BYTES, longest + 1, |name, _, symbol| {
        if let Some(name) = wanted.get(name) {
            found.insert(*name, symbol);
        }
    });
    found
}

/// Calls `take` with every symbol that the file defines, in either table: its name, its type (`st_type`) and where it is.
/// `most`: bytes of the largest table that is read; `longest`: of the longest name that is looked at, with the zero behind it.
pub(super) fn each_symbol(sections: &Sections<'_>, most: u64, longest: usize, mut take: impl FnMut(&[u8], u8, Symbol)) {
    let content = |section| sections.content(section, most).ok();
    for table in &sections.headers {
        if table.sh_type(LE) != elf::SHT_DYNSYM && table.sh_type(LE) != elf::SHT_SYMTAB {
            continue;
        }
        let strings = sections.headers.get(table.sh_link(LE) as usize).filter(|section| has_content(section));
        let (Some(symbols), Some(strings)) = (content(table), strings.and_then(content)) else { continue };
        let count = symbols.len() / size_of::<elf::Sym64<LE>>();
        let Ok((symbols, _)) = object::pod::slice_from_bytes::<elf::Sym64<LE>>(&symbols, count) else { continue };
        for symbol in symbols.iter().filter(|symbol| symbol.st_shndx.get(LE) != elf::SHN_UNDEF) {
            let start = symbol.st_name.get(LE) as usize;
            let Some(text) = strings.get(start..strings.len().min(start + longest)) else { continue };
            let Some(end) = memchr::memchr(0, text) else { continue };
            let (address, size) = (symbol.st_value.get(LE), symbol.st_size.get(LE));
            take(&text[..end], symbol.st_info.0 & 0xf, Symbol { address, size });
        }
    }
}

/// The bytes that the file has at a virtual address.
pub(crate) fn bytes_at(sections: &Sections<'_>, address: u64, size: usize) -> Option<Vec<u8>> {
    let section = sections.headers.iter().find(|section| {
        let start = section.sh_addr(LE);
        has_content(section) && start != 0 && (start..start.saturating_add(section.sh_size(LE))).contains(&address)
    })?;
    let mut bytes = vec![0; size];
    let offset = section.sh_offset(LE).checked_add(address - section.sh_addr(LE))?;
    sections.file.read_exact_at(&mut bytes, offset).ok()?;
    Some(bytes)
}
