//! Names kept on disk, so that what was looked up once is not parsed again.
//!
//! An entry belongs to the content that its names come from: symbol tables, their strings and debug information, by
//! digest. It holds what was looked up so far, addresses without a name included. Reading and digesting takes a fraction
//! of parsing where there is debug information, and as long as parsing for a small symbol table: [`MIN_BYTES`].

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::Path;
use std::sync::Arc;

use object::endian::LittleEndian as LE;
use object::read::elf::SectionHeader as _;
use sha2::{Digest as _, Sha256};

use super::files::NameFile;
use super::names::{Found, Names, Strings};
use super::plain::makes_names;
use crate::disk_cache::{DiskCache, HEAD_BYTES, Key, seal, unseal};
use crate::process::ObjectFile;
use crate::process::elf::{Sections, has_content};

/// Version of what is looked up and how it is written: one more when either changes.
const VERSION: u32 = 2;

const MAGIC: [u8; 8] = *b"namesprf";

/// Bytes of all entries together: at some 100 bytes an address those of millions of addresses.
const MAX_BYTES: u64 = 256 << 20;

/// Symbols and debug information below this size are parsed as fast as they are digested.
const MIN_BYTES: u64 = 4 << 20;

/// Bytes that are digested for one file: debug information of the largest programs known.
const MAX_DIGESTED: u64 = 4 << 30;

/// Addresses that an entry holds: all that a year of profiles of one program has seen. Beyond, it begins anew.
const MAX_ADDRESSES: usize = 500_000;

/// A directory of names.
#[derive(Debug)]
pub struct NameCache {
    directory: DiskCache,
    min_bytes: u64,
}

impl NameCache {
    /// Opens a directory of a cache, and makes it when it is missing.
    ///
    /// # Errors
    ///
    /// When it cannot be used.
    pub fn open(path: &Path) -> io::Result<Self> {
        Ok(Self { directory: DiskCache::open(&path.join("names"), MAX_BYTES)?, min_bytes: MIN_BYTES })
    }

    /// The key of what these files say; `None` when it does not pay.
    pub(super) fn key(&self, object: &ObjectFile, files: &[NameFile]) -> Option<Key> {
        let mut digest = Sha256::new();
        // By these it is judged how far a symbol without a size goes.
        digest.update((object.sections.len() as u64).to_le_bytes());
        for section in &object.sections {
            digest.update(section.start.to_le_bytes());
            digest.update(section.end.to_le_bytes());
        }
        let mut bytes = 0;
        for file in files {
            // Such a file system belongs to a process, which may serve each reader another content.
            if file.parsed().is_some_and(is_on_fuse) {
                return None;
            }
            // A package is in the name of its program's; what a damaged file has is not worth keeping.
            if file.problem.is_some() {
                return None;
            }
            bytes += digest_names(file.parsed()?, &mut digest)?;
            digest.update([u8::from(file.package.is_some())]);
            if let Some(package) = &file.package {
                bytes += digest_names(package.parsed(), &mut digest)?;
            }
        }
        (bytes >= self.min_bytes).then(|| Key::of(digest))
    }

    /// What tells whether files were written to since they were digested. Whoever owns one can do so at any time, and what
    /// was read of it then has nothing to do with the key.
    pub(super) fn stamps(files: &[NameFile]) -> Vec<(i64, i64, u64)> {
        let parsed = files.iter().filter_map(NameFile::parsed);
        let all = parsed.chain(files.iter().filter_map(|file| Some(file.package.as_ref()?.parsed())));
        let metadata = all.filter_map(|file| file.metadata().ok());
        metadata.map(|metadata| (metadata.ctime(), metadata.ctime_nsec(), metadata.len())).collect()
    }

    /// What is known; nothing when there is no entry that can be used.
    pub(super) fn load(&self, key: &Key) -> Names {
        let bytes = self.directory.load(key);
        bytes.and_then(|bytes| read(unseal(&bytes, MAGIC, VERSION, key)?)).unwrap_or_default()
    }

    /// Keeps what is known now.
    pub(super) fn store(&self, key: &Key, names: &Names) {
        let mut bytes = write(names);
        seal(&mut bytes, MAGIC, VERSION, key);
        self.directory.store(key, &bytes);
    }

    /// Whether one more lookup may be added to an entry.
    pub(super) const fn has_room(known: usize, new: usize) -> bool {
        known + new <= MAX_ADDRESSES
    }
}

/// Whether a file is on a file system of a process's own. Source: `FUSE_SUPER_MAGIC`, include/uapi/linux/magic.h.
fn is_on_fuse(file: &File) -> bool {
    const FUSE: i64 = 0x6573_5546;
    // SAFETY: an all-zero structure is a valid one; the descriptor is open.
    unsafe {
        let mut status: libc::statfs = std::mem::zeroed();
        libc::fstatfs(file.as_raw_fd(), &raw mut status) == 0 && status.f_type == FUSE
    }
}

/// Digests the sections that names come from; returns how many bytes.
fn digest_names(file: &File, digest: &mut Sha256) -> Option<u64> {
    const PIECE: usize = 1 << 20;
    let sections = Sections::read(file)?;
    let mut all: u64 = 0;
    let mut buffer = vec![0; PIECE];
    for section in sections.headers.iter().filter(|section| has_content(section)) {
        let name = sections.name(section);
        if !makes_names(section, name) {
            continue;
        }
        let size = section.sh_size(LE);
        digest.update(object::pod::bytes_of(section));
        digest.update((name.len() as u64).to_le_bytes());
        digest.update(name);
        all = size.checked_add(all).filter(|&all| all <= MAX_DIGESTED)?;
        let mut done = 0;
        while done < size {
            let piece = &mut buffer[..usize::try_from(size - done).unwrap_or(PIECE).min(PIECE)];
            file.read_exact_at(piece, section.sh_offset(LE).checked_add(done)?).ok()?;
            digest.update(&*piece);
            done += piece.len() as u64;
        }
    }
    Some(all)
}

/// Room for the head; strings, each with its length; addresses, each with its functions.
fn write(names: &Names) -> Vec<u8> {
    let mut numbers: HashMap<&str, u32> = HashMap::new();
    let mut strings: Vec<&str> = Vec::new();
    let mut body = Vec::new();
    for (address, list) in names {
        body.extend(address.to_le_bytes());
        body.extend(u32::try_from(list.len()).unwrap_or(0).to_le_bytes());
        for found in list {
            for text in [&found.name, &found.file] {
                let number = *numbers.entry(text).or_insert_with(|| {
                    strings.push(text);
                    u32::try_from(strings.len() - 1).unwrap_or(0)
                });
                body.extend(number.to_le_bytes());
            }
            body.extend(found.line.to_le_bytes());
        }
    }
    let mut bytes = vec![0; HEAD_BYTES];
    bytes.extend((strings.len() as u64).to_le_bytes());
    for text in strings {
        bytes.extend((text.len() as u64).to_le_bytes());
        bytes.extend(text.as_bytes());
    }
    bytes.extend(body);
    bytes
}

fn read(content: &[u8]) -> Option<Names> {
    let mut rest = content;
    let count = usize::try_from(u64::from_le_bytes(take(&mut rest)?)).ok().filter(|&count| count <= content.len())?;
    let mut interned = Strings::default();
    let mut strings: Vec<Arc<str>> = Vec::with_capacity(count);
    for _ in 0..count {
        let size = usize::try_from(u64::from_le_bytes(take(&mut rest)?)).ok()?;
        let (text, behind) = rest.split_at_checked(size)?;
        strings.push(interned.intern(std::str::from_utf8(text).ok()?));
        rest = behind;
    }
    let mut names = Names::new();
    while !rest.is_empty() {
        let address = u64::from_le_bytes(take(&mut rest)?);
        let count = u32::from_le_bytes(take(&mut rest)?);
        let mut list = Vec::new();
        for _ in 0..count {
            let mut text = || strings.get(u32::from_le_bytes(take(&mut rest)?) as usize).cloned();
            let (name, file) = (text()?, text()?);
            list.push(Found { name, file, line: u32::from_le_bytes(take(&mut rest)?) });
        }
        names.insert(address, list);
    }
    Some(names)
}

/// The next bytes of a content.
fn take<const N: usize>(rest: &mut &[u8]) -> Option<[u8; N]> {
    let (bytes, behind) = rest.split_first_chunk()?;
    *rest = behind;
    Some(*bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_they_were_written() {
        let found = |name: &str, line| Found { name: name.into(), file: "a.c".into(), line };
        let names =
            Names::from([(16, vec![found("inner", 3), found("outer", 9)]), (32, vec![]), (48, vec![found("", 0)])]);
        let bytes = write(&names);
        assert_eq!(read(&bytes[HEAD_BYTES..]), Some(names));
        for end in HEAD_BYTES..bytes.len() {
            // Cut anywhere it is damaged, or shorter by whole addresses: never a panic.
            assert!(read(&bytes[HEAD_BYTES..end]).is_none_or(|names| names.len() < 3));
        }
        let mut huge = vec![0xff; 8];
        huge.extend([0; 64]);
        assert_eq!(read(&huge), None);
    }
}
