//! The sections of an ELF file that unwinding reads.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use object::elf;
use object::endian::LittleEndian;
use object::read::elf::{FileHeader, ProgramHeader, SectionHeader};

use super::UnwindError;

/// Section headers that are read: more than any linker writes for a program (one a function, at the worst).
const MAX_SECTIONS: usize = 65_536;
/// Program headers that are read: far more than any linker writes.
const MAX_PROGRAM_HEADERS: usize = 512;
/// Bytes of section names that are read.
const MAX_NAMES: u64 = 16 << 20;
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
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Sections {
    pub(super) eh_frame: Option<SectionData>,
    pub(super) debug_frame: Option<SectionData>,
    /// Virtual addresses of the executable segments: code is nowhere else.
    pub(super) code: Vec<Range<u64>>,
    /// Virtual address of the code, against which some pointers are relative.
    pub(super) text_address: Option<u64>,
    /// Virtual address of the global offset table, likewise.
    pub(super) got_address: Option<u64>,
}

/// Reads the sections; those that are not there are `None`.
pub(super) fn read(file: &File) -> Result<Sections, UnwindError> {
    let read_at = |offset: u64, size: usize| {
        let mut bytes = vec![0; size];
        file.read_exact_at(&mut bytes, offset).map_err(UnwindError::Read)?;
        Ok::<_, UnwindError>(bytes)
    };
    let endian = LittleEndian;
    let header_bytes = read_at(0, size_of::<Header>()).map_err(|error| match error {
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
    let table = read_at(header.e_phoff(endian), count * size_of::<Program>())?;
    let (programs, _) = object::pod::slice_from_bytes::<Program>(&table, count).map_err(|()| UnwindError::NoElf)?;
    let executable =
        |program: &&Program| program.p_type(endian) == elf::PT_LOAD && program.p_flags(endian).0 & elf::PF_X.0 != 0;
    let range = |program: &Program| {
        let start = program.p_vaddr(endian);
        start..start.saturating_add(program.p_memsz(endian))
    };
    let code = programs.iter().filter(executable).map(range).collect();
    let count = usize::from(header.e_shnum(endian));
    if count == 0 || usize::from(header.e_shentsize(endian)) != size_of::<Section>() || count > MAX_SECTIONS {
        return Ok(Sections::default());
    }
    let table = read_at(header.e_shoff(endian), count * size_of::<Section>())?;
    let (headers, _) = object::pod::slice_from_bytes::<Section>(&table, count).map_err(|()| UnwindError::NoElf)?;
    let names = match headers.get(usize::from(header.e_shstrndx(endian).0)) {
        Some(section) if section.sh_size(endian) <= MAX_NAMES =>
        {
            #[expect(clippy::cast_possible_truncation, reason = "bounded just above")]
            read_at(section.sh_offset(endian), section.sh_size(endian) as usize)?
        }
        _ => return Ok(Sections::default()),
    };
    let mut sections = Sections { code, ..Sections::default() };
    for section in headers {
        // Compared from the start: a name without an end costs no search for it in every header.
        let rest = names.get(section.sh_name(endian) as usize..).unwrap_or_default();
        let slot = if rest.starts_with(b".eh_frame\0") {
            &mut sections.eh_frame
        } else if rest.starts_with(b".debug_frame\0") {
            &mut sections.debug_frame
        } else {
            if rest.starts_with(b".text\0") {
                sections.text_address = Some(section.sh_addr(endian));
            } else if rest.starts_with(b".got\0") {
                sections.got_address = Some(section.sh_addr(endian));
            }
            continue;
        };
        // Of two with one name the first counts, so that many cost no more than one.
        if slot.is_some() {
            continue;
        }
        let compressed = section.sh_flags(endian).0 & elf::SHF_COMPRESSED.0 != 0;
        if section.sh_type(endian) == elf::SHT_NOBITS || compressed {
            continue;
        }
        let size = section.sh_size(endian);
        if size > MAX_SECTION_BYTES {
            return Err(UnwindError::TooLarge(size));
        }
        #[expect(clippy::cast_possible_truncation, reason = "bounded just above")]
        let bytes = read_at(section.sh_offset(endian), size as usize)?;
        *slot = Some(SectionData { address: section.sh_addr(endian), bytes });
    }
    Ok(sections)
}
