//! An ELF file behind a mapping: held open from first sight, with the little of it that placing an address needs.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::PathBuf;

use object::elf;
use object::endian::LittleEndian;
use object::read::elf::{FileHeader, ProgramHeader, SectionHeader};
use thiserror::Error;

use super::elf::Sections;
use super::mapping::FileKey;

/// Program headers that are read: far more than any linker writes.
const MAX_PROGRAM_HEADERS: usize = 512;
/// Bytes of one note segment that are read.
const MAX_NOTE_BYTES: u64 = 64 * 1024;
/// Size of a page on x86-64.
const PAGE: u64 = 4096;
/// Longest build ID that is taken: twice that of SHA-256.
const MAX_BUILD_ID_BYTES: usize = 64;

type Header = elf::FileHeader64<LittleEndian>;

/// A loadable, executable segment. Source: ELF specification, `Elf64_Phdr`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Virtual address of its first byte.
    pub address: u64,
    /// File offset of its first byte.
    pub file_offset: u64,
    /// Bytes of it in the file.
    pub size: u64,
}

/// An ELF file that stays open, so that it can be read after the process exits or the file is deleted.
#[derive(Debug)]
pub struct ObjectFile {
    /// The open file.
    pub file: File,
    /// Its path as the process sees it.
    pub path: String,
    /// GNU build ID in hexadecimal; empty when there is none.
    pub build_id: String,
    /// Its executable segments.
    pub segments: Vec<Segment>,
    /// The address ranges of its executable sections; empty when it has no section headers.
    pub sections: Vec<Range<u64>>,
    /// Whether it has a symbol table besides that of what it exports: a stripped file has none.
    pub has_symbols: bool,
}

/// Why a file could not be used.
#[derive(Debug, Error)]
pub enum ObjectError {
    /// It could not be opened or read.
    #[error("cannot read {path}: {cause}")]
    Io {
        /// What was tried.
        path: String,
        /// Why not.
        cause: io::Error,
    },
    /// Another file is at that path now.
    #[error("{0} was replaced since it was mapped")]
    Replaced(String),
    /// It is not a 64-bit little-endian ELF file, or a damaged one.
    #[error("{path} is not a usable ELF file: {reason}")]
    Malformed {
        /// The file.
        path: String,
        /// What is wrong with it.
        reason: &'static str,
    },
}

impl ObjectFile {
    /// One that has nothing: it takes the place of one that was closed.
    pub(super) fn nothing() -> io::Result<Self> {
        let (path, build_id) = (String::new(), String::new());
        let file = File::open("/dev/null")?;
        Ok(Self { file, path, build_id, segments: Vec::new(), sections: Vec::new(), has_symbols: false })
    }

    /// Reads what is needed of an open file.
    ///
    /// # Errors
    ///
    /// When it cannot be read or is no ELF file.
    pub fn read(file: File, path: String) -> Result<Self, ObjectError> {
        let malformed = |reason| ObjectError::Malformed { path: path.clone(), reason };
        let read_at = |offset: u64, size: usize| -> Result<Vec<u8>, ObjectError> {
            let mut bytes = vec![0; size];
            file.read_exact_at(&mut bytes, offset).map_err(|cause| ObjectError::Io { path: path.clone(), cause })?;
            Ok(bytes)
        };
        let bytes = read_at(0, size_of::<Header>())?;
        let header = Header::parse(bytes.as_slice()).map_err(|_| malformed("no 64-bit little-endian ELF header"))?;
        let endian = LittleEndian;
        let count = usize::from(header.e_phnum(endian));
        if count > MAX_PROGRAM_HEADERS
            || usize::from(header.e_phentsize(endian)) != size_of::<elf::ProgramHeader64<LittleEndian>>()
        {
            return Err(malformed("too many program headers, or of an unknown size"));
        }
        let table = read_at(header.e_phoff(endian), count * size_of::<elf::ProgramHeader64<LittleEndian>>())?;
        let (headers, _) = object::pod::slice_from_bytes::<elf::ProgramHeader64<LittleEndian>>(&table, count)
            .map_err(|()| malformed("misplaced program headers"))?;
        let mut segments = Vec::new();
        let mut build_id = String::new();
        for header in headers {
            let (file_offset, size) = (header.p_offset(endian), header.p_filesz(endian));
            if header.p_type(endian) == elf::PT_LOAD && header.p_flags(endian).0 & elf::PF_X.0 != 0 {
                segments.push(Segment { address: header.p_vaddr(endian), file_offset, size });
            } else if header.p_type(endian) == elf::PT_NOTE && build_id.is_empty() && size <= MAX_NOTE_BYTES {
                #[expect(clippy::cast_possible_truncation, reason = "bounded above")]
                let notes = read_at(file_offset, size as usize).unwrap_or_default();
                build_id = build_id_of(&notes).unwrap_or_default();
            }
        }
        // A file works without section headers.
        type Section = elf::SectionHeader64<LittleEndian>;
        let known = usize::from(header.e_shentsize(endian)) == size_of::<Section>();
        let count = if known { usize::from(header.e_shnum(endian)) } else { 0 };
        let table = read_at(header.e_shoff(endian), count * size_of::<Section>()).unwrap_or_default();
        let headers = object::pod::slice_from_bytes::<Section>(&table, count);
        let headers = headers.map(|(headers, _)| headers).unwrap_or_default();
        let has_symbols = headers.iter().any(|header| header.sh_type(endian) == elf::SHT_SYMTAB);
        let sections = headers.iter().filter_map(|header| {
            let start = header.sh_addr(endian);
            (header.sh_flags(endian).0 & elf::SHF_EXECINSTR.0 != 0)
                .then(|| start..start.saturating_add(header.sh_size(endian)))
        });
        let sections = sections.collect();
        Ok(Self { file, path, build_id, segments, sections, has_symbols })
    }

    /// Whether no section ends between two addresses of code, as far as the file tells.
    #[must_use]
    pub fn in_one_section(&self, first: u64, last: u64) -> bool {
        let section = self.sections.iter().find(|section| section.contains(&first));
        section.is_none_or(|section| section.contains(&last))
    }

    /// The virtual address, in the file's own terms, of a file offset.
    #[must_use]
    pub fn address_of(&self, file_offset: u64) -> Option<u64> {
        // The kernel maps whole pages: a mapping may begin a little before the segment, and end a little after it.
        self.segments.iter().find_map(|segment| {
            let first = segment.file_offset & !(PAGE - 1);
            let end = segment.file_offset.checked_add(segment.size)?.checked_next_multiple_of(PAGE)?;
            let address = segment.address.wrapping_sub(segment.file_offset & (PAGE - 1));
            (first..end).contains(&file_offset).then(|| address.wrapping_add(file_offset - first))
        })
    }
}

/// The build ID that a file states in a section, as a debug file does whose segments are elsewhere; empty when in none.
pub(crate) fn build_id(file: &File) -> String {
    let content = Sections::read(file).and_then(|sections| {
        let section = sections.find(".note.gnu.build-id")?;
        sections.content(section, MAX_NOTE_BYTES).ok()
    });
    content.and_then(|notes| build_id_of(&notes)).unwrap_or_default()
}

/// The GNU build ID in a note segment, in hexadecimal.
///
/// Source: ELF specification, note section: name size, description size, type, name, description, each padded to 4.
#[must_use]
fn build_id_of(notes: &[u8]) -> Option<String> {
    let mut rest = notes;
    while rest.len() >= 12 {
        let word = |index: usize| {
            let bytes = rest.get(4 * index..4 * index + 4)?;
            Some(u32::from_le_bytes(bytes.try_into().ok()?) as usize)
        };
        let (name_size, size, kind) = (word(0)?, word(1)?, word(2)?);
        let name = rest.get(12..12_usize.checked_add(name_size)?)?;
        let start = 12 + name_size.checked_next_multiple_of(4)?;
        let description = rest.get(start..start.checked_add(size)?)?;
        if kind == elf::NT_GNU_BUILD_ID.0 as usize && name == b"GNU\0" {
            let hex = description.iter().take(MAX_BUILD_ID_BYTES).map(|byte| format!("{byte:02x}")).collect();
            return Some(hex);
        }
        rest = rest.get(start + size.checked_next_multiple_of(4)?..)?;
    }
    None
}

/// Opens the file behind a mapping of a process, whatever has become of its name.
///
/// Tried in turn: the mapping itself (`map_files`, which is exact, but needs the mapping to be there still), and the
/// path through the process's root, if it is still the same inode there.
///
/// # Errors
///
/// When neither works: the process is gone, or its file was replaced and its mapping removed.
pub(super) fn open_backing(pid: u32, start: u64, end: u64, key: FileKey, path: &str) -> Result<File, ObjectError> {
    // A device or a FIFO must not block us, nor become our terminal.
    let open = |path: &PathBuf| {
        std::fs::OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(path)
    };
    if let Ok(file) = open(&PathBuf::from(format!("/proc/{pid}/map_files/{start:x}-{end:x}")))
        && is_regular_with_inode(&file, key.inode)
    {
        return Ok(file);
    }
    let through_root = PathBuf::from(format!("/proc/{pid}/root{path}"));
    let direct = PathBuf::from(path);
    let mut failure = None;
    for candidate in [through_root, direct] {
        match open(&candidate) {
            Ok(file) if is_regular_with_inode(&file, key.inode) => return Ok(file),
            Ok(_) => failure = Some(ObjectError::Replaced(path.to_owned())),
            Err(cause) if failure.is_none() => failure = Some(ObjectError::Io { path: path.to_owned(), cause }),
            Err(_) => {}
        }
    }
    Err(failure.unwrap_or_else(|| ObjectError::Replaced(path.to_owned())))
}

/// Overlay and btrfs files show another device in maps than in stat: the inode has to do.
fn is_regular_with_inode(file: &File, inode: u64) -> bool {
    file.metadata().is_ok_and(|metadata| metadata.is_file() && metadata.ino() == inode)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::{Backing, read_mappings};

    #[test]
    fn our_own_object_places_our_own_code() {
        let code = our_own_object_places_our_own_code as fn() as usize as u64;
        let pid = std::process::id();
        let mappings = read_mappings(pid).unwrap();
        let mapping = mappings.find(code).unwrap();
        let Backing::File(key, path) = &mapping.backing else { panic!("code outside a file") };
        let file = open_backing(pid, mapping.start, mapping.end, *key, path).unwrap();
        let object = ObjectFile::read(file, path.clone()).unwrap();
        assert!(!object.build_id.is_empty());
        assert!(object.address_of(code - mapping.start + mapping.file_offset).is_some());
        assert_eq!(object.address_of(u64::MAX - 5), None);
        let section = object.sections.first().unwrap();
        assert!(object.in_one_section(section.start, section.end - 1));
        assert!(!object.in_one_section(section.start, section.end));
    }

    #[test]
    fn a_segment_that_does_not_begin_on_a_page_is_placed_from_the_page_on() {
        let object = ObjectFile {
            file: tempfile::tempfile().unwrap(),
            path: String::new(),
            build_id: String::new(),
            // As lld lays programs out: Rust's, for one.
            segments: vec![Segment { address: 0x176b0, file_offset: 0x166b0, size: 0x1000 }],
            sections: Vec::new(),
            has_symbols: false,
        };
        assert_eq!(object.address_of(0x16000), Some(0x17000));
        assert_eq!(object.address_of(0x166b0), Some(0x176b0));
        assert_eq!(object.address_of(0x17fff), Some(0x18fff));
        assert_eq!(object.address_of(0x18000), None);
        assert_eq!(object.address_of(0x15fff), None);
    }

    #[test]
    fn notes_that_lie_about_their_size_are_refused() {
        let mut note = Vec::new();
        for word in [4_u32, 4, elf::NT_GNU_BUILD_ID.0] {
            note.extend(word.to_le_bytes());
        }
        note.extend(b"GNU\0\xde\xad\xbe\xef");
        assert_eq!(build_id_of(&note).as_deref(), Some("deadbeef"));
        note[4..8].copy_from_slice(&u32::MAX.to_le_bytes());
        assert_eq!(build_id_of(&note), None);
        assert_eq!(build_id_of(&[0; 11]), None);
    }

    #[test]
    fn a_file_that_is_no_elf_is_refused() {
        let mut path = std::env::temp_dir();
        path.push(format!("profiler-no-elf-{}", std::process::id()));
        std::fs::write(&path, vec![0x7f; 4096]).unwrap();
        let file = File::open(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        assert!(matches!(ObjectFile::read(file, "x".to_owned()), Err(ObjectError::Malformed { .. })));
    }
}
