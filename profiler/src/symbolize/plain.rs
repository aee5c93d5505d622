//! An ELF file rewritten so that it can be parsed without decompressing anything: what names are made of, in plain.
//!
//! Input: a file with compressed sections, or with the compressed symbol table that Fedora and others leave in stripped
//! programs (`.gnu_debugdata`). Output: a file in memory with the same section numbers, where only sections that names
//! come from have a content. It is made here because a section states how large it is: who believes that can be made to
//! take all memory.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::{FromRawFd as _, OwnedFd};
use std::sync::{Mutex, PoisonError};

use object::elf;
use object::endian::{LittleEndian as LE, U32, U64};
use object::read::elf::SectionHeader;
use thiserror::Error;

use crate::process::elf::{Section, SectionError, Sections, has_content, is_compressed};

/// Bytes of all sections of one file: debug information of the largest programs known is some 4 GB, that of what is
/// compressed in their own files a fraction.
const MAX_BYTES: u64 = 1 << 30;
/// Bytes of a symbol table that was compressed: that of a program of 100 MB has about 10 MB.
const MAX_DEBUGDATA_BYTES: u64 = 128 << 20;
/// Memory that the decompressor may take: packages are compressed with dictionaries of at most 64 MiB.
const MAX_XZ_MEMORY_KB: u32 = 128 << 10;

/// Sections with symbols, by name.
const TABLES: [&str; 4] = [".symtab", ".strtab", ".dynsym", ".dynstr"];

/// Sections that name other files, which blazesym would open whatever they are.
const LINKS: [&str; 3] = [".gnu_debuglink", ".gnu_debugaltlink", ".debug_sup"];

/// Sections that may fail before the rest is given up: each has been read, and perhaps expanded, for nothing.
const MAX_FAILURES: usize = 16;

/// Where a stripped program's symbols are. Source: GDB manual, "MiniDebugInfo".
const DEBUGDATA: &str = ".gnu_debugdata";

/// Why a file could not be rewritten, or a part of it.
#[derive(Debug, Error)]
pub(super) enum PlainError {
    #[error("{0}")]
    Section(#[from] SectionError),
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("its compressed symbol table is damaged or too large")]
    Debugdata,
}

/// A file that was rewritten.
#[derive(Debug)]
pub(super) struct Plain {
    pub(super) file: File,
    /// What of all memory for such files is its own.
    _room: Room,
    /// Why a section is missing in it.
    pub(super) problem: Option<PlainError>,
}

/// What names come from: symbols, their strings, debug information, and where the rest of it is.
pub(super) fn makes_names(section: &Section, name: &[u8]) -> bool {
    let kind = section.sh_type(LE);
    let starts = |prefix: &[u8]| name.starts_with(prefix);
    kind == elf::SHT_SYMTAB
        || kind == elf::SHT_DYNSYM
        || kind == elf::SHT_STRTAB
        // blazesym goes by the names alone.
        || TABLES.iter().any(|table| name == table.as_bytes())
        || starts(b".debug_")
        || starts(b".zdebug_")
        || starts(b".gnu_debug")
}

/// Whether a file has to be rewritten before it is parsed. `trusted`: it is in a directory of debug files, and may name
/// another one there.
pub(super) fn is_needed(sections: &Sections<'_>, trusted: bool) -> bool {
    let links = !trusted && LINKS.iter().any(|link| sections.find(link).is_some());
    let compressed = sections.headers.iter().any(|section| is_compressed(section, sections.name(section)));
    links || compressed || debugdata(sections).is_some()
}

/// The compressed symbol table, where there is no other one.
fn debugdata<'a>(sections: &'a Sections<'_>) -> Option<&'a Section> {
    let has_symbols = sections.headers.iter().any(|section| section.sh_type(LE) == elf::SHT_SYMTAB);
    sections.find(DEBUGDATA).filter(|_| !has_symbols)
}

/// Rewrites a file. A section that cannot be decompressed is left out, and what names other files of one that is not
/// trusted.
pub(super) fn rewrite(sections: &Sections<'_>, trusted: bool) -> Result<Plain, PlainError> {
    let room = Room::take();
    let mut output = Output { file: memory_file()?, at: size_of::<elf::FileHeader64<LE>>() as u64, left: room.0 };
    output.file.write_all(&[0; size_of::<elf::FileHeader64<LE>>()])?;
    let mut headers = sections.headers.clone();
    let (mut names, mut problem, mut failures) = (vec![0], None, 0);
    // Symbols first: debug information may need all the room there is.
    let is_debug = |section: &Section| {
        [b".debug_".as_slice(), b".zdebug_"].iter().any(|start| sections.name(section).starts_with(start))
    };
    let mut order: Vec<usize> = (0..headers.len()).collect();
    order.sort_by_key(|&number| is_debug(&sections.headers[number]));
    for number in order {
        let (header, section) = (&mut headers[number], &sections.headers[number]);
        let name = sections.name(section);
        // A name's own section is written anew, with the names that are left.
        let kept = has_content(section)
            && makes_names(section, name)
            && name != DEBUGDATA.as_bytes()
            && failures < MAX_FAILURES
            && (trusted || LINKS.iter().all(|link| name != link.as_bytes()));
        header.sh_name.set(LE, 0);
        header.sh_flags.set(LE, elf::SectionFlags(section.sh_flags(LE).0 & !elf::SHF_COMPRESSED.0));
        let content = if kept { sections.content(section, output.left).map(Some) } else { Ok(None) };
        let content = content.unwrap_or_else(|error| {
            problem.get_or_insert(PlainError::from(error));
            failures += 1;
            None
        });
        let Some(content) = content else {
            if has_content(section) && section.sh_type(LE) != elf::SHT_NULL {
                header.sh_type.set(LE, elf::SHT_NOBITS);
            }
            continue;
        };
        let plain = name.strip_prefix(b".z").map_or_else(|| name.to_vec(), |rest| [b".", rest].concat());
        output.add(header, &content)?;
        header.sh_name.set(LE, u32::try_from(names.len()).unwrap_or(0));
        names.extend(plain);
        names.push(0);
    }
    if let Some(section) = debugdata(sections)
        && let Err(error) = add_symbols(sections, section, &mut output, &mut headers, &mut names)
    {
        problem.get_or_insert(error);
    }
    let mut strings = no_header();
    strings.sh_type.set(LE, elf::SHT_STRTAB);
    output.add(&mut strings, &names)?;
    headers.push(strings);
    let written = room.0 - output.left;
    let file = output.finish(sections, &headers)?;
    Ok(Plain { file, _room: room.keep(written), problem })
}

/// Adds the symbols of the small ELF file that is compressed in a section.
fn add_symbols(
    sections: &Sections<'_>,
    section: &Section,
    output: &mut Output,
    headers: &mut Vec<Section>,
    names: &mut Vec<u8>,
) -> Result<(), PlainError> {
    let packed = sections.content(section, MAX_DEBUGDATA_BYTES)?;
    let mut small = memory_file()?;
    let reader = lzma_rust2::XzReader::new_mem_limit(packed.as_slice(), false, MAX_XZ_MEMORY_KB);
    let copied = io::copy(&mut reader.take(MAX_DEBUGDATA_BYTES + 1), &mut small).map_err(|_| PlainError::Debugdata)?;
    let inner = Sections::read(&small).filter(|_| copied <= MAX_DEBUGDATA_BYTES).ok_or(PlainError::Debugdata)?;
    let table = inner.headers.iter().find(|header| header.sh_type(LE) == elf::SHT_SYMTAB);
    let strings = table.and_then(|table| inner.headers.get(table.sh_link(LE) as usize));
    let (Some(table), Some(strings)) = (table, strings) else { return Err(PlainError::Debugdata) };
    let mut add = |section: &Section, name: &[u8], link: u32| -> Result<(), PlainError> {
        let mut header = *section;
        output.add(&mut header, &inner.content(section, output.left)?)?;
        header.sh_name.set(LE, u32::try_from(names.len()).unwrap_or(0));
        header.sh_link.set(LE, link);
        names.extend(name);
        headers.push(header);
        Ok(())
    };
    let link = u32::try_from(sections.headers.len()).map_err(|_| PlainError::Debugdata)?;
    add(strings, b".strtab\0", 0)?;
    add(table, b".symtab\0", link)
}

/// Bytes that one file may have of those that all of them share.
#[derive(Debug)]
struct Room(u64);

/// Bytes that all files of the moment may have together.
static LEFT: Mutex<u64> = Mutex::new(4 * MAX_BYTES);

impl Room {
    fn take() -> Self {
        let mut left = LEFT.lock().unwrap_or_else(PoisonError::into_inner);
        let room = MAX_BYTES.min(*left);
        *left -= room;
        Self(room)
    }

    /// Gives back what is more than `bytes`.
    fn keep(mut self, bytes: u64) -> Self {
        let more = self.0.saturating_sub(bytes);
        self.0 -= more;
        *LEFT.lock().unwrap_or_else(PoisonError::into_inner) += more;
        self
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        *LEFT.lock().unwrap_or_else(PoisonError::into_inner) += self.0;
    }
}

/// A file that is written.
struct Output {
    file: File,
    at: u64,
    /// Bytes that may still be written.
    left: u64,
}

impl Output {
    /// Writes a section's content, and tells its header where it is.
    fn add(&mut self, header: &mut Section, bytes: &[u8]) -> io::Result<()> {
        let padding = self.at.next_multiple_of(16) - self.at;
        self.file.write_all(&[0; 16][..usize::try_from(padding).unwrap_or(0)])?;
        self.file.write_all(bytes)?;
        header.sh_offset.set(LE, self.at + padding);
        header.sh_size.set(LE, bytes.len() as u64);
        self.at += padding + bytes.len() as u64;
        self.left = self.left.saturating_sub(bytes.len() as u64);
        Ok(())
    }

    /// Writes the headers; the last section is that of the names.
    fn finish(mut self, sections: &Sections<'_>, headers: &[Section]) -> Result<File, PlainError> {
        let mut table = no_header();
        self.add(&mut table, object::pod::bytes_of_slice(headers))?;
        let count = u16::try_from(headers.len()).map_err(|_| PlainError::Debugdata)?;
        let mut header = sections.header;
        header.e_shoff.set(LE, table.sh_offset(LE));
        header.e_shnum.set(LE, count);
        header.e_shstrndx.set(LE, elf::SymbolSection(count - 1));
        header.e_phoff.set(LE, 0);
        header.e_phnum.set(LE, 0);
        std::os::unix::fs::FileExt::write_all_at(&self.file, object::pod::bytes_of(&header), 0)?;
        Ok(self.file)
    }
}

fn no_header() -> Section {
    let (none, zero) = (U32::new(LE, 0), U64::new(LE, 0));
    Section {
        sh_name: none,
        sh_type: U32::new(LE, elf::SHT_NULL),
        sh_flags: U64::new(LE, elf::SectionFlags(0)),
        sh_addr: zero,
        sh_offset: zero,
        sh_size: zero,
        sh_link: none,
        sh_info: none,
        sh_addralign: zero,
        sh_entsize: zero,
    }
}

/// An empty file in memory.
fn memory_file() -> io::Result<File> {
    // SAFETY: the name is a C string; a descriptor that is returned is ours.
    unsafe {
        let fd = libc::memfd_create(c"names".as_ptr(), libc::MFD_CLOEXEC);
        if fd < 0 { Err(io::Error::last_os_error()) } else { Ok(File::from(OwnedFd::from_raw_fd(fd))) }
    }
}
