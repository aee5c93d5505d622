//! Compiled tables kept on disk, so that the next start need not compile them again.
//!
//! A table's key is the digest of all that it is made of: the section's bytes and address, what pointers are relative to,
//! the executable segments, and [`COMPILER`].
//!
//! The price is that the section is read and digested. With the processor's SHA instructions, reading, digesting, loading
//! and checking took 0.9 to 1.4 ms of CPU time a MB of call-frame information, compiling 3.2 to 3.8; without them there is
//! little to gain. So this is for large objects alone, [`MIN_FRAME_BYTES`]. What is damaged or of another version is
//! compiled again.

use std::io;
use std::path::Path;

use profiler_common::unwind::{Packed, Rule, Unpacked, row, rule_of, start_of};
use sha2::{Digest as _, Sha256};

use super::compile::{Kind, Source, compile_source};
use super::rules::{Refusal, Rules};
use super::table::{Page, Table};
use super::{Compiled, UnwindError};
use crate::disk_cache::{DiskCache, HEAD_BYTES, Key, seal, unseal};

/// Number of what the compiler makes of a section. One more whenever it makes something else, or this file's layout
/// changes: older tables are then not found.
const COMPILER: u32 = 2;

const MAGIC: [u8; 8] = *b"unwindtb";

/// Call-frame information below this size is compiled faster than a file is opened, read and checked.
const MIN_FRAME_BYTES: usize = 256 << 10;

/// Bytes of all tables together: those of a hundred large programs.
const MAX_BYTES: u64 = 256 << 20;

/// A directory of compiled tables.
#[derive(Debug)]
pub struct Cache {
    directory: DiskCache,
    min_frame_bytes: usize,
}

impl Cache {
    /// Opens a directory of a cache, and makes it when it is missing.
    ///
    /// # Errors
    ///
    /// When it cannot be used.
    pub fn open(path: &Path) -> io::Result<Self> {
        Ok(Self { directory: DiskCache::open(&path.join("unwind"), MAX_BYTES)?, min_frame_bytes: MIN_FRAME_BYTES })
    }
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
    let key = key_of(source);
    let known = rules.rules().len();
    let kept = cache.directory.load(&key);
    if let Some(compiled) = kept.and_then(|bytes| read(&bytes, &key, source, rules)) {
        return Ok(compiled);
    }
    rules.truncate(known);
    let compiled = compile_source(source, rules)?;
    if let Some(bytes) = write(&key, &compiled, rules) {
        cache.directory.store(&key, &bytes);
    }
    Ok(compiled)
}

/// The digest of what a table is made of.
fn key_of(source: &Source<'_>) -> Key {
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
    Key::of(digest)
}

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
    bytes.resize(HEAD_BYTES, 0);
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
    seal(&mut bytes, MAGIC, COMPILER, key);
    Some(bytes)
}

/// Reads a file's content. `None`: it is not what was written.
fn read(bytes: &[u8], key: &Key, source: &Source<'_>, rules: &mut Rules) -> Option<Compiled> {
    let mut rest = unseal(bytes, MAGIC, COMPILER, key)?;
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
    use std::fs::{self, File};

    use super::*;
    use crate::unwind::{compile, load_or_compile};

    /// Our own program, whose tables are large enough.
    fn object() -> File {
        File::open("/proc/self/exe").unwrap()
    }

    fn open(path: &Path) -> Cache {
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

    #[test]
    fn what_is_kept_is_what_was_compiled() {
        let directory = tempfile::tempdir().unwrap();
        let cache = open(directory.path());
        check(&cache, false);
        check(&cache, true);
        check(&open(directory.path()), true);
    }

    #[test]
    fn damage_is_compiled_again_and_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let cache = open(directory.path());
        check(&cache, false);
        let files: Vec<_> = fs::read_dir(directory.path().join("unwind")).unwrap().collect();
        let [Ok(file)] = files.as_slice() else { panic!("one file: {files:?}") };
        let path = file.path();
        let sound = fs::read(&path).unwrap();
        let size = sound.len();
        // The head, counts, the table and its end.
        for place in [0, 12, 50, 60, HEAD_BYTES + 200, size / 2, size - 1] {
            let mut bytes = sound.clone();
            bytes[place] ^= 4;
            fs::write(&path, bytes).unwrap();
            check(&cache, false);
            check(&cache, true);
        }
        for size in [0, HEAD_BYTES, size / 2, size - 1] {
            fs::write(&path, &sound[..size]).unwrap();
            check(&cache, false);
        }
    }
}
