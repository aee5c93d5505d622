//! The sections of an ELF file that unwinding reads.

use std::fs::File;
use std::os::unix::fs::FileExt;

use object::elf;
use object::endian::LittleEndian;
use object::read::elf::{FileHeader, SectionHeader};

use super::UnwindError;

/// Section headers that are read: more than any linker writes for a program (one a function, at the worst).
const MAX_SECTIONS: usize = 65_536;
/// Bytes of section names that are read.
const MAX_NAMES: u64 = 16 << 20;
/// Largest section of call-frame information that is read: that of the largest programs known is about 100 MB.
const MAX_SECTION_BYTES: u64 = 256 << 20;

type Header = elf::FileHeader64<LittleEndian>;
type Section = elf::SectionHeader64<LittleEndian>;

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
    /// Virtual address of the code, against which some pointers are relative.
    pub(super) text_address: u64,
    /// Virtual address of the global offset table, likewise.
    pub(super) got_address: u64,
}

/// Reads the sections; those that are not there are `None`.
pub(super) fn read(file: &File) -> Result<Sections, UnwindError> {
    let read_at = |offset: u64, size: usize| {
        let mut bytes = vec![0; size];
        file.read_exact_at(&mut bytes, offset).map_err(UnwindError::Read)?;
        Ok::<_, UnwindError>(bytes)
    };
    let endian = LittleEndian;
    let header_bytes = read_at(0, size_of::<Header>())?;
    let header = Header::parse(header_bytes.as_slice()).map_err(|_| UnwindError::NoElf)?;
    if header.e_machine(endian) != elf::EM_X86_64 {
        return Err(UnwindError::Machine(header.e_machine(endian).0));
    }
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
    let mut sections = Sections::default();
    for section in headers {
        let name = names.get(section.sh_name(endian) as usize..).and_then(|rest| rest.split(|&byte| byte == 0).next());
        let slot = match name {
            Some(b".eh_frame") => &mut sections.eh_frame,
            Some(b".debug_frame") => &mut sections.debug_frame,
            Some(b".text") => {
                sections.text_address = section.sh_addr(endian);
                continue;
            }
            Some(b".got") => {
                sections.got_address = section.sh_addr(endian);
                continue;
            }
            _ => continue,
        };
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
