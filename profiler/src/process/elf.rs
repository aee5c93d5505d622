//! The sections of an ELF file: found by name, read whole, decompressed.
//!
//! The file is its target's: every offset and count is checked, what is read and what it expands to has a bound.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;

use object::elf;
use object::endian::LittleEndian as LE;
use object::read::elf::{FileHeader, SectionHeader};
use thiserror::Error;

/// Section headers that are read: more than any linker writes for a program (one a function, at the worst).
const MAX_SECTIONS: usize = 65_536;
/// Bytes of section names that are read.
const MAX_NAMES: u64 = 16 << 20;
/// Bytes that compression may make of one: debug information expands to some five times.
const MAX_EXPANSION: u64 = 64;

/// A section header, as it is in the file.
pub(crate) type Section = elf::SectionHeader64<LE>;

/// A program header, as it is in the file.
pub(crate) type Program = elf::ProgramHeader64<LE>;

/// Program headers that are read: far more than any linker writes.
const MAX_PROGRAM_HEADERS: usize = 512;

/// Reads the file header and the program headers; `None` for no 64-bit little-endian ELF file, and one with too many.
pub(crate) fn programs(file: &File) -> Option<(elf::FileHeader64<LE>, Vec<Program>)> {
    let mut bytes = [0; size_of::<elf::FileHeader64<LE>>()];
    file.read_exact_at(&mut bytes, 0).ok()?;
    let header = *elf::FileHeader64::<LE>::parse(bytes.as_slice()).ok()?;
    let count = usize::from(header.e_phnum(LE));
    if count > MAX_PROGRAM_HEADERS || usize::from(header.e_phentsize(LE)) != size_of::<Program>() {
        return None;
    }
    let mut table = vec![0; count * size_of::<Program>()];
    file.read_exact_at(&mut table, header.e_phoff(LE)).ok()?;
    let programs = object::pod::slice_from_bytes::<Program>(&table, count).ok()?.0.to_vec();
    Some((header, programs))
}

/// The section headers of an open file.
#[derive(Debug)]
pub(crate) struct Sections<'f> {
    pub(crate) file: &'f File,
    pub(crate) header: elf::FileHeader64<LE>,
    pub(crate) headers: Vec<Section>,
    names: Vec<u8>,
}

/// Why a section's content cannot be had.
#[derive(Debug, Error)]
pub(crate) enum SectionError {
    #[error("{0}")]
    Read(#[from] std::io::Error),
    #[error("a section of {0} bytes is larger than what is read")]
    TooLarge(u64),
    #[error("a compressed section is damaged")]
    Damaged,
    #[error("a section is compressed in a way that is not known ({0})")]
    Unknown(u32),
}

impl<'f> Sections<'f> {
    /// Reads the section headers; `None` where there are none, or for no 64-bit little-endian ELF file.
    pub(crate) fn read(file: &'f File) -> Option<Self> {
        let mut bytes = [0; size_of::<elf::FileHeader64<LE>>()];
        file.read_exact_at(&mut bytes, 0).ok()?;
        let header = *elf::FileHeader64::<LE>::parse(bytes.as_slice()).ok()?;
        let count = usize::from(header.e_shnum(LE));
        if count == 0 || count > MAX_SECTIONS || usize::from(header.e_shentsize(LE)) != size_of::<Section>() {
            return None;
        }
        let mut table = vec![0; count * size_of::<Section>()];
        file.read_exact_at(&mut table, header.e_shoff(LE)).ok()?;
        let headers = object::pod::slice_from_bytes::<Section>(&table, count).ok()?.0.to_vec();
        let names = headers.get(usize::from(header.e_shstrndx(LE).0)).filter(|names| names.sh_size(LE) <= MAX_NAMES);
        let names = names.and_then(|section| {
            let mut bytes = vec![0; usize::try_from(section.sh_size(LE)).ok()?];
            file.read_exact_at(&mut bytes, section.sh_offset(LE)).ok()?;
            Some(bytes)
        });
        Some(Self { file, header, headers, names: names.unwrap_or_default() })
    }

    /// The bytes from a section's name on. A name without an end is found by nobody.
    fn name_from(&self, section: &Section) -> &[u8] {
        self.names.get(section.sh_name(LE) as usize..).unwrap_or_default()
    }

    /// A section's name, of at most 64 bytes; longer ones are empty.
    pub(crate) fn name(&self, section: &Section) -> &[u8] {
        let rest = self.name_from(section);
        let rest = &rest[..rest.len().min(65)];
        rest.iter().position(|&byte| byte == 0).map_or(&[], |end| &rest[..end])
    }

    /// The first section of a name that has a content.
    pub(crate) fn find(&self, name: &str) -> Option<&Section> {
        self.headers.iter().find(|section| has_content(section) && self.name(section) == name.as_bytes())
    }

    /// A section's content, decompressed. `max_bytes`: what it may be.
    pub(crate) fn content(&self, section: &Section, max_bytes: u64) -> Result<Vec<u8>, SectionError> {
        let size = section.sh_size(LE);
        if size > max_bytes {
            return Err(SectionError::TooLarge(size));
        }
        let mut bytes = vec![0; usize::try_from(size).map_err(|_| SectionError::TooLarge(size))?];
        self.file.read_exact_at(&mut bytes, section.sh_offset(LE))?;
        match Compression::of(section, self.name(section), &bytes)? {
            Some(compression) => compression.expand(max_bytes),
            None => Ok(bytes),
        }
    }
}

/// Whether a section has bytes in the file.
pub(crate) fn has_content(section: &Section) -> bool {
    section.sh_type(LE) != elf::SHT_NOBITS
}

/// Whether a section has to be decompressed.
pub(crate) fn is_compressed(section: &Section, name: &[u8]) -> bool {
    section.sh_flags(LE).0 & elf::SHF_COMPRESSED.0 != 0 || name.starts_with(b".zdebug_")
}

/// How a content is compressed.
enum Method {
    Zlib,
    Zstd,
}

/// A compressed content.
struct Compression<'a> {
    method: Method,
    size: u64,
    packed: &'a [u8],
}

impl<'a> Compression<'a> {
    /// Source: System V ABI, chapter 4, "Section Compression"; and the older `.zdebug_` of GNU tools, which begins with
    /// "ZLIB" and the size, highest byte first.
    fn of(section: &Section, name: &[u8], bytes: &'a [u8]) -> Result<Option<Self>, SectionError> {
        if section.sh_flags(LE).0 & elf::SHF_COMPRESSED.0 != 0 {
            let (header, packed) =
                object::pod::from_bytes::<elf::CompressionHeader64<LE>>(bytes).map_err(|()| SectionError::Damaged)?;
            let method = match header.ch_type.get(LE) {
                elf::ELFCOMPRESS_ZLIB => Method::Zlib,
                elf::ELFCOMPRESS_ZSTD => Method::Zstd,
                other => return Err(SectionError::Unknown(other.0)),
            };
            return Ok(Some(Self { method, size: header.ch_size.get(LE), packed }));
        }
        let old = name.starts_with(b".zdebug_").then(|| bytes.strip_prefix(b"ZLIB")).flatten();
        Ok(old.and_then(|rest| rest.split_first_chunk()).map(|(size, packed)| Self {
            method: Method::Zlib,
            size: u64::from_be_bytes(*size),
            packed,
        }))
    }

    fn expand(&self, max_bytes: u64) -> Result<Vec<u8>, SectionError> {
        if self.size > max_bytes || self.size > (self.packed.len() as u64).saturating_mul(MAX_EXPANSION) {
            return Err(SectionError::TooLarge(self.size));
        }
        let bytes = match self.method {
            Method::Zlib => read_exactly(flate2::read::ZlibDecoder::new(self.packed), self.size),
            Method::Zstd => ruzstd::decoding::StreamingDecoder::new(self.packed)
                .ok()
                .and_then(|decoder| read_exactly(decoder, self.size)),
        };
        bytes.ok_or(SectionError::Damaged)
    }
}

/// All of a stream, if it is as long as is stated.
fn read_exactly(stream: impl Read, size: u64) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(usize::try_from(size).ok()?);
    // One byte more than is stated, so that more than is stated is seen.
    let read = stream.take(size + 1).read_to_end(&mut bytes).ok()?;
    (read as u64 == size).then_some(bytes)
}
