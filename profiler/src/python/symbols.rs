//! A few symbols of an ELF file, and the bytes at an address of it.

use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::FileExt;

use object::elf;
use object::endian::LittleEndian as LE;
use object::read::elf::{FileHeader, SectionHeader};

/// Largest table that is read. CPython's are below 1 MiB; those of a program it is built into may be larger.
const MAX_TABLE_BYTES: u64 = 64 << 20;

type Section = elf::SectionHeader64<LE>;

/// An ELF file's sections, by which it is read.
pub(super) struct Sections<'a> {
    file: &'a File,
    headers: Vec<Section>,
}

/// Where a symbol is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Symbol {
    pub(super) address: u64,
    pub(super) size: u64,
}

impl<'a> Sections<'a> {
    /// Reads the section headers; `None` where there are none.
    pub(super) fn read(file: &'a File) -> Option<Self> {
        let mut bytes = [0; size_of::<elf::FileHeader64<LE>>()];
        file.read_exact_at(&mut bytes, 0).ok()?;
        let header = elf::FileHeader64::<LE>::parse(bytes.as_slice()).ok()?;
        if usize::from(header.e_shentsize(LE)) != size_of::<Section>() {
            return None;
        }
        let count = usize::from(header.e_shnum(LE));
        let mut table = vec![0; count * size_of::<Section>()];
        file.read_exact_at(&mut table, header.e_shoff(LE)).ok()?;
        let (headers, _) = object::pod::slice_from_bytes::<Section>(&table, count).ok()?;
        Some(Self { file, headers: headers.to_vec() })
    }

    fn content(&self, section: &Section) -> Option<Vec<u8>> {
        let size = section.sh_size(LE);
        if section.sh_type(LE) == elf::SHT_NOBITS || size > MAX_TABLE_BYTES {
            return None;
        }
        let mut bytes = vec![0; usize::try_from(size).ok()?];
        self.file.read_exact_at(&mut bytes, section.sh_offset(LE)).ok()?;
        Some(bytes)
    }

    /// The symbols of these names that the file defines, in either table.
    pub(super) fn symbols<'n>(&self, names: &[&'n str]) -> HashMap<&'n str, Symbol> {
        let mut found = HashMap::new();
        for table in &self.headers {
            if table.sh_type(LE) != elf::SHT_DYNSYM && table.sh_type(LE) != elf::SHT_SYMTAB {
                continue;
            }
            let strings = self.headers.get(table.sh_link(LE) as usize).and_then(|section| self.content(section));
            let (Some(symbols), Some(strings)) = (self.content(table), strings) else { continue };
            let count = symbols.len() / size_of::<elf::Sym64<LE>>();
            let Ok((symbols, _)) = object::pod::slice_from_bytes::<elf::Sym64<LE>>(&symbols, count) else { continue };
            for symbol in symbols.iter().filter(|symbol| symbol.st_shndx.get(LE) != elf::SHN_UNDEF) {
                let Some(text) = strings.get(symbol.st_name.get(LE) as usize..) else { continue };
                for name in names {
                    if text.strip_prefix(name.as_bytes()).is_some_and(|rest| rest.first() == Some(&0)) {
                        let (address, size) = (symbol.st_value.get(LE), symbol.st_size.get(LE));
                        found.insert(*name, Symbol { address, size });
                    }
                }
            }
        }
        found
    }

    /// The bytes that the file has at a virtual address.
    pub(super) fn bytes_at(&self, address: u64, size: usize) -> Option<Vec<u8>> {
        let section = self.headers.iter().find(|section| {
            let start = section.sh_addr(LE);
            section.sh_type(LE) != elf::SHT_NOBITS
                && start != 0
                && (start..start.saturating_add(section.sh_size(LE))).contains(&address)
        })?;
        let mut bytes = vec![0; size];
        let offset = section.sh_offset(LE).checked_add(address - section.sh_addr(LE))?;
        self.file.read_exact_at(&mut bytes, offset).ok()?;
        Some(bytes)
    }
}
