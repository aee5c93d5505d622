//! Names from ELF symbols and DWARF, by blazesym.

use std::fs::File;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;

use blazesym::symbolize::source::{Elf, Source};
use blazesym::symbolize::{CodeInfo, Input, Sym, Symbolized, Symbolizer};

use super::demangle::demangle_all;
use super::files::{NameFile, descriptor_path};
use super::guard;
use super::names::{Found, Names, Strings, in_parallel};
use crate::process::ObjectFile;
use crate::process::elf::Sections;

/// Addresses of one file from which on they are shared out among threads, each of which reads the file on its own.
const SHARED_ADDRESSES: usize = 2048;

/// Bytes of a symbol: those of Rust and C++ with many types in them are some 10,000 long.
const MAX_SYMBOL_BYTES: usize = 64 << 10;

/// Names for addresses in an object, which are virtual addresses in its own terms and ascend.
///
/// `files`: where they are looked for, best first. Errors go to `problems`, for a person.
pub(super) fn names(
    object: &ObjectFile,
    files: &[NameFile],
    addresses: &[u64],
    directories: &[PathBuf],
    problems: &mut Vec<String>,
) -> Names {
    let mut names = Names::new();
    for file in files {
        let rest: Vec<u64> = addresses.iter().copied().filter(|address| !names.contains_key(address)).collect();
        if rest.is_empty() {
            break;
        }
        let mut tell = |problem: String| {
            if !problems.contains(&problem) {
                problems.push(problem);
            }
        };
        if let Some(problem) = &file.problem {
            tell(problem.clone());
        }
        let Some(parsed) = file.parsed() else { continue };
        let beside = match &file.package {
            Some(package) => Beside::new(parsed, package.parsed())
                .map_err(|error| tell(format!("no directory for its package of debug information: {error}")))
                .ok(),
            None => None,
        };
        let parts: Vec<&[u64]> = match rest.len() {
            size if size < SHARED_ADDRESSES => vec![rest.as_slice()],
            size => rest.chunks(size.div_ceil(std::thread::available_parallelism().map_or(1, usize::from))).collect(),
        };
        let look_up = |part: &&[u64], path: PathBuf, debug_syms: bool| {
            // A symbol without a size ends with its section at the latest: the stubs of the procedure linkage table,
            // which have no symbols, are not part of the `_init` before them.
            let covers =
                |symbol: &Sym<'_>, address| symbol.size.is_some() || object.in_one_section(symbol.addr, address);
            let source = Source::Elf(Elf { debug_syms, ..Elf::new(path) });
            look_up(&source, Input::VirtOffset(part), part, directories, covers)
        };
        let by_table = in_parallel(&parts, |part| look_up(part, descriptor_path(parsed), false));
        let by_table = by_table.into_iter().filter_map(|found| found.map_err(&mut tell).ok());
        let by_table: Names = by_table.flatten().collect();
        let mut found = Names::new();
        if file.has_debug {
            let path = || beside.as_ref().map_or_else(|| descriptor_path(parsed), Beside::object);
            for part in in_parallel(&parts, |part| look_up(part, path(), true)) {
                // Debug information that is damaged costs lines and inlined calls, not the names.
                found.extend(part.map_err(&mut tell).unwrap_or_default());
            }
        }
        for (address, list) in &by_table {
            found.entry(*address).or_insert_with(|| list.clone());
        }
        let sections = if file.has_debug { Sections::read(parsed) } else { None };
        demangle_all(&mut found, &by_table, sections.as_ref());
        names.extend(found);
    }
    names
}

/// A directory in which an object has its package of split debug information beside it, where it is looked for.
struct Beside {
    directory: tempfile::TempDir,
}

impl Beside {
    fn new(object: &File, package: &File) -> io::Result<Self> {
        let directory = tempfile::Builder::new().prefix("profiler-").tempdir()?;
        for (file, name) in [(object, "object"), (package, "object.dwp")] {
            std::os::unix::fs::symlink(descriptor_path(file), directory.path().join(name))?;
        }
        Ok(Self { directory })
    }

    fn object(&self) -> PathBuf {
        self.directory.path().join("object")
    }
}

/// Asks blazesym; a panic on a damaged file costs the names of that file.
///
/// `directories`: where what several debug files share is looked for. `covers`: whether a symbol may be believed.
pub(super) fn look_up(
    source: &Source<'_>,
    input: Input<&[u64]>,
    addresses: &[u64],
    directories: &[PathBuf],
    covers: impl Fn(&Sym<'_>, u64) -> bool,
) -> Result<Names, String> {
    guard::install();
    let looked_up = catch_unwind(AssertUnwindSafe(|| {
        let symbolizer = Symbolizer::builder()
            .enable_code_info(true)
            .enable_inlined_fns(true)
            .enable_demangling(false)
            .set_debug_dirs(Some(directories))
            .build();
        let symbols = symbolizer.symbolize(source, input).map_err(|error| format!("{error:#}"))?;
        let mut strings = Strings::default();
        let named = addresses.iter().zip(symbols).filter_map(|(&address, symbol)| match symbol {
            Symbolized::Sym(symbol) if covers(&symbol, address) => Some((address, found(&symbol, &mut strings))),
            Symbolized::Sym(_) | Symbolized::Unknown(_) => None,
        });
        Ok(named.collect())
    }));
    looked_up.unwrap_or_else(|_| Err("its symbols or debug information are damaged".to_owned()))
}

/// A symbol, as much of it as is believed: a table of strings without an end is one symbol at every address.
fn bounded(symbol: &str) -> &str {
    let end = (0..=symbol.len().min(MAX_SYMBOL_BYTES)).rev().find(|&end| symbol.is_char_boundary(end));
    &symbol[..end.unwrap_or(0)]
}

/// The functions at an address, innermost first. blazesym lists inlined ones outermost first.
fn found(symbol: &Sym<'_>, strings: &mut Strings) -> Vec<Found> {
    let mut describe = |name: &str, code: Option<&CodeInfo<'_>>| Found {
        name: strings.intern(bounded(name)),
        file: strings.intern(&code.map(|code| code.to_path().to_string_lossy().into_owned()).unwrap_or_default()),
        line: code.and_then(|code| code.line).unwrap_or(0),
    };
    let mut list: Vec<Found> =
        symbol.inlined.iter().rev().map(|inlined| describe(&inlined.name, inlined.code_info.as_ref())).collect();
    list.push(describe(&symbol.name, symbol.code_info.as_deref()));
    list
}
