//! The sections of an ELF file that unwinding reads.

use std::fs::File;
use std::io::{self, Read as _};
use std::ops::Range;
use std::os::unix::fs::FileExt;

use object::elf;
use object::endian::LittleEndian;
use object::read::elf::{FileHeader, ProgramHeader, SectionHeader};

use super::UnwindError;
use super::cursor::{Bases, Cursor};

/// Section headers that are read: more than any linker writes for a program (one a function, at the worst).
const MAX_SECTIONS: usize = 65_536;
/// Program headers that are read: far more than any linker writes.
const MAX_PROGRAM_HEADERS: usize = 512;
/// Bytes of section names that are read.
const MAX_NAMES: u64 = 16 << 20;
/// Bytes read at once of a section whose size is not known.
const PIECE_BYTES: usize = 1 << 20;
/// Bytes that compression may make of one: call-frame information expands to some five times.
const MAX_EXPANSION: u64 = 64;
/// Largest section of call-frame information that is read: that of the largest programs known is about 100 MB.
const MAX_SECTION_BYTES: u64 = 256 << 20;

type Header = elf::FileHeader64<LittleEndian>;
type Section = elf::SectionHeader64<LittleEndian>;
type Program = elf::ProgramHeader64<LittleEndian>;

/// A section's content and where it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct SectionData {
    /// Virtual address, as the file states it.
    pub(super) address: u64,
    /// Content.
    pub(super) bytes: Vec<u8>,
}

/// What unwinding reads.
#[derive(Debug)]
pub(super) struct Sections<'f> {
    pub(super) eh_frame: Option<SectionData>,
    /// Virtual addresses of the executable segments: code is nowhere else.
    pub(super) code: Vec<Range<u64>>,
    /// Virtual address of the code, against which some pointers are relative.
    pub(super) text_address: Option<u64>,
    /// Virtual address of the global offset table, likewise.
    pub(super) got_address: Option<u64>,
    debug_frame: Option<Section>,
    file: &'f File,
}

fn read_at(file: &File, offset: u64, size: usize) -> Result<Vec<u8>, UnwindError> {
    let mut bytes = vec![0; size];
    file.read_exact_at(&mut bytes, offset).map_err(UnwindError::Read)?;
    Ok(bytes)
}

/// A size that is checked against a bound.
fn bounded(size: u64, bound: u64) -> Result<usize, UnwindError> {
    usize::try_from(size).ok().filter(|_| size <= bound).ok_or(UnwindError::TooLarge(size))
}

/// Finds the sections and reads `.eh_frame`; those that are not there are `None`.
pub(super) fn read(file: &File) -> Result<Sections<'_>, UnwindError> {
    let endian = LittleEndian;
    let header_bytes = read_at(file, 0, size_of::<Header>()).map_err(|error| match error {
        UnwindError::Read(error) if error.kind() == io::ErrorKind::UnexpectedEof => UnwindError::NoElf,
        error => error,
    })?;
    let header = Header::parse(header_bytes.as_slice()).map_err(|_| UnwindError::NoElf)?;
    if header.e_machine(endian) != elf::EM_X86_64 {
        return Err(UnwindError::Machine(header.e_machine(endian).0));
    }
    let count = usize::from(header.e_phnum(endian));
    if count > MAX_PROGRAM_HEADERS || (count > 0 && usize::from(header.e_phentsize(endian)) != size_of::<Program>()) {
        return Err(UnwindError::NoElf);
    }
    let table = read_at(file, header.e_phoff(endian), count * size_of::<Program>())?;
    let (programs, _) = object::pod::slice_from_bytes::<Program>(&table, count).map_err(|()| UnwindError::NoElf)?;
    let executable =
        |program: &&Program| program.p_type(endian) == elf::PT_LOAD && program.p_flags(endian).0 & elf::PF_X.0 != 0;
    let range = |program: &Program| {
        let start = program.p_vaddr(endian);
        start..start.saturating_add(program.p_memsz(endian))
    };
    let code = programs.iter().filter(executable).map(range).collect();
    let mut sections =
        Sections { eh_frame: None, code, text_address: None, got_address: None, debug_frame: None, file };
    sections.find(header)?;
    if sections.eh_frame.is_none() {
        sections.eh_frame = from_segments(file, programs)?;
    }
    Ok(sections)
}

impl Sections<'_> {
    /// Finds what the section headers name. A file may have none.
    fn find(&mut self, header: &Header) -> Result<(), UnwindError> {
        let endian = LittleEndian;
        let count = usize::from(header.e_shnum(endian));
        if count == 0 || usize::from(header.e_shentsize(endian)) != size_of::<Section>() || count > MAX_SECTIONS {
            return Ok(());
        }
        let table = read_at(self.file, header.e_shoff(endian), count * size_of::<Section>())?;
        let (headers, _) = object::pod::slice_from_bytes::<Section>(&table, count).map_err(|()| UnwindError::NoElf)?;
        let Some(names) = headers.get(usize::from(header.e_shstrndx(endian).0)) else { return Ok(()) };
        let Ok(size) = bounded(names.sh_size(endian), MAX_NAMES) else { return Ok(()) };
        let names = read_at(self.file, names.sh_offset(endian), size)?;
        for section in headers {
            // Compared from the start: a name without an end costs no search for it in every header.
            let rest = names.get(section.sh_name(endian) as usize..).unwrap_or_default();
            let compressed = section.sh_flags(endian).0 & elf::SHF_COMPRESSED.0 != 0;
            let has_bytes = section.sh_type(endian) != elf::SHT_NOBITS;
            // Of two with one name the first counts, so that many cost no more than one.
            if rest.starts_with(b".eh_frame\0") {
                if has_bytes && !compressed && self.eh_frame.is_none() {
                    let size = bounded(section.sh_size(endian), MAX_SECTION_BYTES)?;
                    let bytes = read_at(self.file, section.sh_offset(endian), size)?;
                    self.eh_frame = Some(SectionData { address: section.sh_addr(endian), bytes });
                }
            } else if rest.starts_with(b".debug_frame\0") {
                if has_bytes {
                    self.debug_frame.get_or_insert(*section);
                }
            } else if rest.starts_with(b".text\0") {
                self.text_address = Some(section.sh_addr(endian));
            } else if rest.starts_with(b".got\0") {
                self.got_address = Some(section.sh_addr(endian));
            }
        }
        Ok(())
    }

    /// Reads `.debug_frame`, and decompresses it.
    pub(super) fn debug_frame(&self) -> Result<Option<SectionData>, UnwindError> {
        let endian = LittleEndian;
        let Some(section) = &self.debug_frame else { return Ok(None) };
        let size = bounded(section.sh_size(endian), MAX_SECTION_BYTES)?;
        let mut bytes = read_at(self.file, section.sh_offset(endian), size)?;
        if section.sh_flags(endian).0 & elf::SHF_COMPRESSED.0 != 0 {
            bytes = decompress(&bytes)?;
        }
        Ok(Some(SectionData { address: section.sh_addr(endian), bytes }))
    }
}

/// Decompresses a section. Source: System V ABI, chapter 4, "Section Compression".
fn decompress(bytes: &[u8]) -> Result<Vec<u8>, UnwindError> {
    let endian = LittleEndian;
    let (header, packed) = object::pod::from_bytes::<elf::CompressionHeader64<LittleEndian>>(bytes)
        .map_err(|()| UnwindError::Compressed("it ends too early"))?;
    if header.ch_type.get(endian) != elf::ELFCOMPRESS_ZLIB {
        return Err(UnwindError::Compressed("it is compressed by something else than zlib"));
    }
    let size = header.ch_size.get(endian);
    if size > (packed.len() as u64).saturating_mul(MAX_EXPANSION) {
        return Err(UnwindError::Compressed("it expands beyond every bound"));
    }
    let mut unpacked = Vec::with_capacity(bounded(size, MAX_SECTION_BYTES)?);
    // One byte more than is stated, so that more than is stated is seen.
    let read = flate2::read::ZlibDecoder::new(packed).take(size + 1).read_to_end(&mut unpacked);
    match read {
        Ok(read) if read as u64 == size => Ok(unpacked),
        _ => Err(UnwindError::Compressed("it is damaged")),
    }
}

/// Finds `.eh_frame` as an unwinder in the program does: by the header that the program headers point to.
///
/// Its size is stated nowhere. It ends with an empty entry, and with its segment.
/// Source: Linux Standard Base 5, section 10.6.2.
fn from_segments(file: &File, programs: &[Program]) -> Result<Option<SectionData>, UnwindError> {
    let endian = LittleEndian;
    let Some(header) = programs.iter().find(|program| program.p_type(endian) == elf::PT_GNU_EH_FRAME) else {
        return Ok(None);
    };
    // Version 1; how three numbers are encoded; the first of them, which is the address.
    let address = header.p_vaddr(endian);
    let mut start = [0; 12];
    let size = start.len().min(usize::try_from(header.p_filesz(endian)).unwrap_or(usize::MAX));
    if file.read_exact_at(&mut start[..size], header.p_offset(endian)).is_err() || start[0] != 1 {
        return Ok(None);
    }
    let bases = Bases { section: Some(address), text: None, data: Some(address) };
    let Ok(address) = Cursor::new(&start[..size], 4).pointer(start[1], &bases) else { return Ok(None) };
    let rest = programs.iter().filter(|program| program.p_type(endian) == elf::PT_LOAD).find_map(|program| {
        let inside = address.checked_sub(program.p_vaddr(endian))?;
        let size = program.p_filesz(endian).checked_sub(inside).filter(|&size| size > 0)?;
        Some((program.p_offset(endian).checked_add(inside)?, size))
    });
    let Some((offset, size)) = rest else { return Ok(None) };
    let size = usize::try_from(size.min(MAX_SECTION_BYTES)).unwrap_or_default();
    let (mut bytes, mut end) = (Vec::new(), 0);
    // Piece by piece: what follows in the segment may be a hundred times as long.
    while bytes.len() < size {
        let from = bytes.len();
        bytes.resize(size.min(from + PIECE_BYTES), 0);
        file.read_exact_at(&mut bytes[from..], offset + from as u64).map_err(UnwindError::Read)?;
        if end_of_entries(&bytes, &mut end) {
            break;
        }
    }
    bytes.truncate(end);
    Ok(Some(SectionData { address, bytes }))
}

/// Goes from entry to entry, from `at` on, to the empty one; false when that is not in the bytes.
fn end_of_entries(bytes: &[u8], at: &mut usize) -> bool {
    let mut cursor = Cursor::new(bytes, *at);
    loop {
        let length = match cursor.u32() {
            Ok(0) => return true,
            Ok(u32::MAX) => cursor.u64(),
            Ok(length) => Ok(u64::from(length)),
            Err(error) => Err(error),
        };
        if length.and_then(|length| cursor.split(length)).is_err() {
            return false;
        }
        *at = cursor.at();
    }
}
