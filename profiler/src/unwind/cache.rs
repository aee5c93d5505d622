//! Compiled tables kept on disk, so that the next start need not compile them again.
//!
//! A table is found by a SHA-256 digest of all that it is made of: the section's bytes and address, what pointers are
//! relative to, the executable segments, and [`COMPILER`]. So a file can spoil no other file's table, whatever it says of
//! itself. Weaker keys were considered: a build ID is a claim of the file's; device, inode and times are claims of the file
//! system's, and a user may have one of his own mounted (FUSE, a loop device) and leave its device number to the next.
//!
//! The price is that the section is read and digested. With the processor's SHA instructions, reading, digesting, loading
//! and checking took 0.9 to 1.4 ms of CPU time a MB of call-frame information, compiling 3.2 to 3.8; without them there is
//! little to gain. So this is for large objects alone, [`MIN_FRAME_BYTES`].
//!
//! The directory must be ours, closed to others and no link; else there is no cache. A file is whole under its name or
//! not there; what is damaged, of another version or cannot be read is compiled again, without an error. What cannot be
//! written is not kept. A checksum finds damage; who could forge it could write the directory, and is ourselves.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{DirBuilderExt as _, FileExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use profiler_common::unwind::{Packed, Rule, Unpacked, row, rule_of, start_of};
use sha2::{Digest as _, Sha256};

use super::compile::{Kind, Source, compile_source};
use super::rules::{Refusal, Rules};
use super::table::{Page, Table};
use super::{Compiled, UnwindError};

/// Number of what the compiler makes of a section. One more whenever it makes something else, or this file's layout
/// changes: older tables are then not found.
const COMPILER: u32 = 2;

const MAGIC: [u8; 8] = *b"unwindtb";

/// Call-frame information below this size is compiled faster than a file is opened, read and checked.
const MIN_FRAME_BYTES: usize = 256 << 10;

/// Bytes of all tables together, unless another bound is given: those of a hundred large programs.
const MAX_BYTES: u64 = 256 << 20;

/// A directory of compiled tables.
#[derive(Debug)]
pub struct Cache {
    /// Held open: what is checked is what is used.
    directory: File,
    max_bytes: u64,
    min_frame_bytes: usize,
}

/// The directory that is used when none is named: the system's for root, else the user's; `None` when he has none.
#[must_use]
pub fn default_directory() -> Option<PathBuf> {
    if our_user() == 0 {
        return Some(PathBuf::from("/var/cache/profiler/unwind"));
    }
    let user = std::env::var_os("XDG_CACHE_HOME").filter(|path| Path::new(path).is_absolute());
    let home = || std::env::var_os("HOME").map(|home| Path::new(&home).join(".cache"));
    Some(user.map(PathBuf::from).or_else(home)?.join("profiler/unwind"))
}

impl Cache {
    /// Opens a directory, and makes it when it is missing.
    ///
    /// # Errors
    ///
    /// When it cannot be made or opened, is a link, belongs to somebody else or is open to others.
    pub fn open(path: &Path) -> io::Result<Self> {
        DirBuilder::new().recursive(true).mode(0o700).create(path)?;
        let directory = OpenOptions::new().read(true).custom_flags(libc::O_DIRECTORY | libc::O_NOFOLLOW).open(path)?;
        let metadata = directory.metadata()?;
        if !is_ours(&metadata) || metadata.mode() & 0o077 != 0 {
            let reason = format!("{} is not ours alone: it must be our own, with mode 0700", path.display());
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, reason));
        }
        Ok(Self { directory, max_bytes: MAX_BYTES, min_frame_bytes: MIN_FRAME_BYTES })
    }

    /// A file of the directory that is open, wherever that is by now.
    fn path(&self, name: &str) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}/{name}", self.directory.as_raw_fd()))
    }

    /// A table that was kept; `None` when there is none that can be used.
    fn load(&self, key: &Key, source: &Source<'_>, rules: &mut Rules) -> Option<Compiled> {
        let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
        let file = OpenOptions::new().read(true).custom_flags(flags).open(self.path(&key.name())).ok()?;
        let metadata = file.metadata().ok()?;
        if !metadata.is_file() || !is_ours(&metadata) || metadata.len() > self.max_bytes {
            return None;
        }
        let mut bytes = vec![0; usize::try_from(metadata.len()).ok()?];
        file.read_exact_at(&mut bytes, 0).ok()?;
        let compiled = read(&bytes, key, source, rules)?;
        // When it was used last. Not more than a hint.
        let _ = file.set_modified(SystemTime::now());
        Some(compiled)
    }

    /// Keeps a table.
    fn store(&self, key: &Key, compiled: &Compiled, rules: &Rules) -> io::Result<()> {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let Some(bytes) = write(key, compiled, rules) else { return Ok(()) };
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let temporary = self.path(&format!("{}.{}-{number}.tmp", key.name(), std::process::id()));
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .custom_flags(libc::O_NOFOLLOW)
            .mode(0o600)
            .open(&temporary)?;
        let written = file.write_all(&bytes).and_then(|()| fs::rename(&temporary, self.path(&key.name())));
        if written.is_err() {
            let _ = fs::remove_file(&temporary);
        }
        written.and_then(|()| self.sweep())
    }

    /// Removes tables that were not used for the longest time, until the rest is small enough.
    fn sweep(&self) -> io::Result<()> {
        let mut files = Vec::new();
        for entry in fs::read_dir(self.path("."))?.flatten() {
            let name = entry.file_name();
            // Nothing but what we wrote.
            let ours = name.to_str().is_some_and(|name| name.get(..64).is_some_and(is_hexadecimal));
            if let Some(metadata) = entry.metadata().ok().filter(|metadata| ours && metadata.is_file()) {
                files.push((metadata.modified()?, metadata.len(), entry.path()));
            }
        }
        let mut bytes: u64 = files.iter().map(|(_, size, _)| size).sum();
        files.sort();
        for (_, size, path) in files {
            if bytes <= self.max_bytes {
                break;
            }
            fs::remove_file(path)?;
            bytes -= size;
        }
        Ok(())
    }
}

fn is_hexadecimal(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
}

fn our_user() -> u32 {
    // SAFETY: it reads the process's user ID and cannot fail.
    unsafe { libc::geteuid() }
}

fn is_ours(metadata: &fs::Metadata) -> bool {
    metadata.uid() == our_user()
}

/// Compiles a source, or takes what was made of it before.
pub(super) fn load_or_compile(
    cache: Option<&Cache>,
    source: &Source<'_>,
    rules: &mut Rules,
) -> Result<Compiled, UnwindError> {
    let Some(cache) = cache.filter(|cache| source.section.bytes.len() >= cache.min_frame_bytes) else {
        return compile_source(source, rules);
    };
    let key = Key::of(source);
    let known = rules.rules().len();
    if let Some(compiled) = cache.load(&key, source, rules) {
        return Ok(compiled);
    }
    rules.truncate(known);
    let compiled = compile_source(source, rules)?;
    // A full disk, or a directory that has gone: compiled again the next time.
    let _ = cache.store(&key, &compiled, rules);
    Ok(compiled)
}

/// The digest of what a table is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Key([u8; 32]);

impl Key {
    fn of(source: &Source<'_>) -> Self {
        let Source { form, section, bases, code } = source;
        let mut digest = Sha256::new();
        let mut number = |number: u64| digest.update(number.to_le_bytes());
        number(u64::from(COMPILER));
        number(*form as u64);
        for base in [bases.section, bases.text, bases.data] {
            number(u64::from(base.is_some()));
            number(base.unwrap_or_default());
        }
        number(code.len() as u64);
        for segment in *code {
            number(segment.start);
            number(segment.end);
        }
        number(section.bytes.len() as u64);
        digest.update(&section.bytes);
        Self(digest.finalize().into())
    }

    fn name(&self) -> String {
        self.0.iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

/// Magic, number of the compiler, checksum of what follows it, key.
const HEAD_BYTES: usize = 8 + 4 + 4 + 32;

/// A file's content: the head, numbers, then the parts of the table one after the other. `None`: it is not kept.
fn write(key: &Key, compiled: &Compiled, rules: &Rules) -> Option<Vec<u8>> {
    let Compiled { table, refused, discarded, functions, damaged, kinds, .. } = compiled;
    // Damaged objects are rare, and what is wrong with them is not worth a form of its own.
    if !damaged.is_empty() {
        return None;
    }
    // Rules have numbers of a load's own: in a file they have numbers of the file's.
    let mut numbers = vec![None; rules.rules().len()];
    let mut used = Vec::new();
    let mut rows = Vec::with_capacity(table.rows.len());
    for &word in &table.rows {
        let mut rule = rule_of(word);
        if let Unpacked::Dictionary(number) = rule.unpack() {
            let slot = numbers.get_mut(number as usize)?;
            let number = *slot.get_or_insert_with(|| {
                used.push(number);
                used.len() - 1
            });
            rule = Packed::dictionary(number)?;
        }
        rows.push(row(u64::from(start_of(word)), rule));
    }
    let mut bytes = Vec::with_capacity(HEAD_BYTES + 256 + 2 * table.pages.len() + 4 * rows.len() + 20 * refused.len());
    bytes.extend(MAGIC);
    bytes.extend(COMPILER.to_le_bytes());
    bytes.extend([0; 4]);
    bytes.extend(key.0);
    let counts = [table.pages.len(), rows.len(), used.len(), refused.len()];
    let numbers = [*functions, *discarded].into_iter().chain(counts);
    let kinds = Kind::NAMES.map(|name| kinds.get(name).copied().unwrap_or_default());
    for number in numbers.chain(kinds) {
        bytes.extend((number as u64).to_le_bytes());
    }
    bytes.extend(table.first_page.to_le_bytes());
    for page in &table.pages {
        bytes.extend(page.rows.to_le_bytes());
    }
    for row in rows {
        bytes.extend(row.to_le_bytes());
    }
    for number in used {
        let Rule { base, rbp, rbx, added, base_offset, rbp_offset, rbx_offset, return_offset } =
            *rules.rules().get(number as usize)?;
        bytes.extend([base, rbp, rbx, added]);
        bytes.extend(base_offset.to_le_bytes());
        bytes.extend(rbp_offset.to_le_bytes());
        bytes.extend(rbx_offset.to_le_bytes());
        bytes.extend(return_offset.to_le_bytes());
    }
    for &(start, size, why) in refused {
        bytes.extend(start.to_le_bytes());
        bytes.extend(size.to_le_bytes());
        bytes.extend(why.to_number().to_le_bytes());
    }
    let checksum = checksum(&bytes[16..]);
    bytes[12..16].copy_from_slice(&checksum.to_le_bytes());
    Some(bytes)
}

fn checksum(bytes: &[u8]) -> u32 {
    let mut checksum = flate2::Crc::new();
    checksum.update(bytes);
    checksum.sum()
}

/// Reads a file's content. `None`: it is not what was written.
fn read(bytes: &[u8], key: &Key, source: &Source<'_>, rules: &mut Rules) -> Option<Compiled> {
    let mut rest = bytes;
    if take(&mut rest)? != MAGIC || u32::from_le_bytes(take(&mut rest)?) != COMPILER {
        return None;
    }
    if u32::from_le_bytes(take(&mut rest)?) != checksum(rest) || take::<32>(&mut rest)? != key.0 {
        return None;
    }
    let mut number = || usize::try_from(u64::from_le_bytes(take(&mut rest)?)).ok();
    let [functions, discarded, pages, rows, used, refused] =
        [number()?, number()?, number()?, number()?, number()?, number()?];
    let mut kinds = [0; Kind::NAMES.len()];
    for kind in &mut kinds {
        *kind = number()?;
    }
    let first_page = u64::from_le_bytes(take(&mut rest)?);
    let part = |rest: &mut &'_ [u8], count: usize, size: usize| {
        let (part, behind) = rest.split_at_checked(count.checked_mul(size)?)?;
        *rest = behind;
        Some(part.to_vec())
    };
    let page_bytes = part(&mut rest, pages, 2)?;
    let row_bytes = part(&mut rest, rows, 4)?;
    let mut table = Table { first_page, pages: Vec::with_capacity(pages), rows: Vec::new() };
    let mut first_row = 0_u32;
    for rows in page_bytes.as_chunks().0 {
        let rows = u16::from_le_bytes(*rows);
        table.pages.push(Page { first_row, rows });
        first_row = first_row.checked_add(u32::from(rows))?;
    }
    if first_row as usize != rows {
        return None;
    }
    table.rows.extend(row_bytes.as_chunks().0.iter().map(|row| u32::from_le_bytes(*row)));
    let mut numbers = Vec::with_capacity(used);
    for _ in 0..used {
        let [base, rbp, rbx, added] = take(&mut rest)?;
        let base_offset = i32::from_le_bytes(take(&mut rest)?);
        let rbp_offset = i32::from_le_bytes(take(&mut rest)?);
        let rbx_offset = i16::from_le_bytes(take(&mut rest)?);
        let return_offset = i16::from_le_bytes(take(&mut rest)?);
        let rule = Rule { base, rbp, rbx, added, base_offset, rbp_offset, rbx_offset, return_offset };
        numbers.push(rules.pack(rule).ok()?);
    }
    for word in &mut table.rows {
        if let Unpacked::Dictionary(number) = rule_of(*word).unpack() {
            *word = row(u64::from(start_of(*word)), *numbers.get(number as usize)?);
        }
    }
    let mut refusals = Vec::new();
    for _ in 0..refused {
        let (start, size) = (u64::from_le_bytes(take(&mut rest)?), u64::from_le_bytes(take(&mut rest)?));
        refusals.push((start, size, Refusal::from_number(u32::from_le_bytes(take(&mut rest)?))?));
    }
    let section = source.form.section_name();
    let kinds = Kind::NAMES.into_iter().zip(kinds).filter(|&(_, count)| count > 0).collect();
    let (frame_bytes, refused, damaged) = (source.section.bytes.len(), refusals, Vec::new());
    Some(Compiled { table, section, frame_bytes, functions, refused, discarded, damaged, kinds, from_cache: true })
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
    use crate::unwind::{compile, load_or_compile};

    /// Our own program, whose tables are large enough.
    fn object() -> File {
        File::open("/proc/self/exe").unwrap()
    }

    fn open(path: &Path) -> Cache {
        fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
        Cache { min_frame_bytes: 0, ..Cache::open(path).unwrap() }
    }

    /// A table with its rules in full.
    fn resolved(compiled: &Compiled, rules: &Rules) -> Vec<(u32, Result<Rule, Packed>)> {
        let rule = |word| match rule_of(word).unpack() {
            Unpacked::Dictionary(number) => Ok(rules.rules()[number as usize]),
            _ => Err(rule_of(word)),
        };
        compiled.table.rows.iter().map(|&word| (start_of(word), rule(word))).collect()
    }

    fn check(cache: &Cache, from_cache: bool) {
        let (mut plain, mut cached) = (Rules::default(), Rules::default());
        // Numbers of another load.
        cached.pack(Rule { added: 77, ..Rule::new(profiler_common::unwind::Base::AtRsp, 1234) }).unwrap();
        let expected = compile(&object(), &mut plain).unwrap();
        let found = load_or_compile(Some(cache), &object(), &mut cached).unwrap();
        assert_eq!(found.from_cache, from_cache);
        assert_eq!(resolved(&found, &cached), resolved(&expected, &plain));
        let without_rows = |compiled: Compiled| {
            let table = Table { rows: Vec::new(), ..compiled.table };
            Compiled { table, from_cache: false, ..compiled }
        };
        assert_eq!(without_rows(found), without_rows(expected));
    }

    fn only_file(directory: &Path) -> PathBuf {
        let files: Vec<PathBuf> = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect();
        assert_eq!(files.len(), 1, "{files:?}");
        files[0].clone()
    }

    #[test]
    fn what_is_kept_is_what_was_compiled() {
        let directory = tempfile::tempdir().unwrap();
        let cache = open(directory.path());
        check(&cache, false);
        assert_eq!(fs::metadata(only_file(directory.path())).unwrap().mode() & 0o777, 0o600);
        check(&cache, true);
        check(&open(directory.path()), true);
    }

    #[test]
    fn damage_is_compiled_again_and_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let cache = open(directory.path());
        check(&cache, false);
        let path = only_file(directory.path());
        let sound = fs::read(&path).unwrap();
        let size = sound.len();
        // Magic, number of the compiler, checksum, key, counts, the table and its end.
        for place in [0, 8, 12, 20, 50, 60, HEAD_BYTES + 200, size / 2, size - 1] {
            let mut bytes = sound.clone();
            bytes[place] ^= 4;
            fs::write(&path, bytes).unwrap();
            check(&cache, false);
            check(&cache, true);
        }
        for size in [0, 1, HEAD_BYTES, size / 2, size - 1] {
            fs::write(&path, &sound[..size]).unwrap();
            check(&cache, false);
        }
        // A content that is whole, and another object's.
        let mut other = sound.clone();
        other[16] ^= 1;
        let checksum = checksum(&other[16..]);
        other[12..16].copy_from_slice(&checksum.to_le_bytes());
        fs::write(&path, other).unwrap();
        check(&cache, false);
        // A link, a FIFO, a directory where a file should be.
        fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink("/dev/zero", &path).unwrap();
        check(&cache, false);
        check(&cache, true);
    }

    #[test]
    fn a_directory_that_others_could_write_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let inside = |name: &str| directory.path().join(name);
        assert!(Cache::open(&inside("new/deep")).is_ok());
        assert_eq!(fs::metadata(inside("new/deep")).unwrap().mode() & 0o777, 0o700);
        std::os::unix::fs::symlink(inside("new"), inside("link")).unwrap();
        assert!(Cache::open(&inside("link")).is_err());
        fs::write(inside("file"), "").unwrap();
        assert!(Cache::open(&inside("file")).is_err());
        fs::set_permissions(inside("new"), std::os::unix::fs::PermissionsExt::from_mode(0o770)).unwrap();
        assert!(Cache::open(&inside("new")).is_err());
        fs::set_permissions(inside("new"), std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
        assert!(Cache::open(&inside("new")).is_ok());
        // Only root can give a directory away.
        if std::os::unix::fs::chown(inside("new"), Some(65_534), None).is_ok() {
            assert!(Cache::open(&inside("new")).is_err());
        }
    }

    #[test]
    fn what_cannot_be_written_is_not_kept() {
        let directory = tempfile::tempdir().unwrap();
        let cache = open(&directory.path().join("."));
        directory.close().unwrap();
        check(&cache, false);
        check(&cache, false);
    }

    #[test]
    fn the_oldest_tables_make_room() {
        let directory = tempfile::tempdir().unwrap();
        let cache = Cache { max_bytes: 2500, ..open(directory.path()) };
        let name = |number: u32| directory.path().join(format!("{number:064}"));
        for number in 0..4 {
            fs::write(name(number), [0; 1000]).unwrap();
            let used = SystemTime::now() - std::time::Duration::from_secs(u64::from(100 * (number % 2) + number));
            File::open(name(number)).unwrap().set_modified(used).unwrap();
        }
        fs::write(directory.path().join("of somebody else"), [0; 5000]).unwrap();
        cache.sweep().unwrap();
        let left = (0..4).filter(|&number| name(number).exists());
        assert_eq!(left.collect::<Vec<_>>(), [0, 2]);
        assert!(directory.path().join("of somebody else").exists());
    }
}
