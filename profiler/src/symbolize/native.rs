//! Names from ELF symbols and DWARF, by blazesym.

use std::fs::File;
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
        problems.extend(file.problem.clone());
        let rest: Vec<u64> = addresses.iter().copied().filter(|address| !names.contains_key(address)).collect();
        if rest.is_empty() {
            break;
        }
        let parts: Vec<&[u64]> = match rest.len() {
            size if size < SHARED_ADDRESSES => vec![rest.as_slice()],
            size => rest.chunks(size.div_ceil(std::thread::available_parallelism().map_or(1, usize::from))).collect(),
        };
        for found in in_parallel(&parts, |part| in_file(object, file, part, directories)) {
            match found {
                Ok(found) => names.extend(found),
                Err(problem) if problems.contains(&problem) => {}
                Err(problem) => problems.push(problem),
            }
        }
    }
    names
}

/// Names for addresses in one of an object's files.
fn in_file(object: &ObjectFile, file: &NameFile, addresses: &[u64], directories: &[PathBuf]) -> Result<Names, String> {
    let Some(parsed) = file.parsed() else { return Ok(Names::new()) };
    // A symbol without a size ends with its section at the latest: the stubs of the procedure linkage table, which
    // have no symbols, are not part of the `_init` before them.
    let covers = |symbol: &Sym<'_>, address| symbol.size.is_some() || object.in_one_section(symbol.addr, address);
    let look_up = |path, debug_syms| {
        let source = Source::Elf(Elf { debug_syms, ..Elf::new(path) });
        look_up(&source, Input::VirtOffset(addresses), addresses, directories, covers)
    };
    let symbols = || look_up(descriptor_path(parsed), false);
    let mut names = if file.has_debug {
        let beside = file.package.as_ref().and_then(|package| Beside::new(parsed, package));
        let path =
            beside.as_ref().map_or_else(|| descriptor_path(parsed), |beside| beside.directory.path().join("object"));
        // Debug information that is damaged costs lines and inlined calls, not the names.
        look_up(path, true).or_else(|_| symbols())?
    } else {
        symbols()?
    };
    let by_table = if file.has_debug { symbols().unwrap_or_default() } else { Names::new() };
    let sections = if file.has_debug { Sections::read(parsed) } else { None };
    demangle_all(&mut names, &by_table, sections.as_ref());
    Ok(names)
}

/// A directory in which an object has its package of split debug information beside it, where it is looked for.
struct Beside {
    directory: tempfile::TempDir,
}

impl Beside {
    fn new(object: &File, package: &File) -> Option<Self> {
        let directory = tempfile::Builder::new().prefix("profiler-").tempdir().ok()?;
        for (file, name) in [(object, "object"), (package, "object.dwp")] {
            std::os::unix::fs::symlink(descriptor_path(file), directory.path().join(name)).ok()?;
        }
        Some(Self { directory })
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

/// The functions at an address, innermost first. blazesym lists inlined ones outermost first.
fn found(symbol: &Sym<'_>, strings: &mut Strings) -> Vec<Found> {
    let mut describe = |name: &str, code: Option<&CodeInfo<'_>>| Found {
        name: strings.intern(name),
        file: strings.intern(&code.map(|code| code.to_path().to_string_lossy().into_owned()).unwrap_or_default()),
        line: code.and_then(|code| code.line).unwrap_or(0),
    };
    let mut list: Vec<Found> =
        symbol.inlined.iter().rev().map(|inlined| describe(&inlined.name, inlined.code_info.as_ref())).collect();
    list.push(describe(&symbol.name, symbol.code_info.as_deref()));
    list
}
