//! Names from ELF symbols and DWARF, by blazesym.

use std::os::fd::AsRawFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;

use blazesym::symbolize::source::{Elf, Source};
use blazesym::symbolize::{CodeInfo, Input, Sym, Symbolized, Symbolizer};

use super::{Found, Names, guard};
use crate::process::ObjectFile;

/// Where distributions put debug files, by build ID. Source: GDB manual, "Debugging Information in Separate Files".
const DEBUG_DIRECTORY: &str = "/usr/lib/debug/.build-id";

/// Looks names up in files; keeps what it has parsed.
pub(super) struct Native {
    symbolizer: Symbolizer,
}

impl Native {
    pub(super) fn new() -> Self {
        guard::install();
        let symbolizer =
            Symbolizer::builder().enable_code_info(true).enable_inlined_fns(true).enable_demangling(true).build();
        Self { symbolizer }
    }

    /// Names for addresses in an object, which are virtual addresses in its own terms.
    ///
    /// The debug file with the object's build ID is used where there is one. Otherwise the object itself, which
    /// may name its debug file by a link.
    pub(super) fn names(&self, object: &ObjectFile, addresses: &[u64]) -> Result<Names, String> {
        let own = PathBuf::from(format!("/proc/self/fd/{}", object.file.as_raw_fd()));
        let path = debug_file_path(&object.build_id).filter(|path| path.is_file()).unwrap_or(own);
        // A symbol without a size ends with its section at the latest: the stubs of the procedure linkage table, which
        // have no symbols, are not part of the `_init` before them.
        let covers = |symbol: &Sym<'_>, address| symbol.size.is_some() || object.in_one_section(symbol.addr, address);
        self.look_up(&Source::Elf(Elf::new(path)), Input::VirtOffset(addresses), addresses, covers)
    }

    /// Asks blazesym; a panic on a damaged file costs the names of that file. `covers`: whether a symbol may be believed.
    pub(super) fn look_up(
        &self,
        source: &Source<'_>,
        input: Input<&[u64]>,
        addresses: &[u64],
        covers: impl Fn(&Sym<'_>, u64) -> bool,
    ) -> Result<Names, String> {
        let looked_up = catch_unwind(AssertUnwindSafe(|| self.symbolizer.symbolize(source, input)));
        let symbols = match looked_up {
            Ok(Ok(symbols)) => symbols,
            Ok(Err(error)) => return Err(format!("{error:#}")),
            Err(_) => return Err("its symbols or debug information are damaged".to_owned()),
        };
        let named = addresses.iter().zip(symbols).filter_map(|(&address, symbol)| match symbol {
            Symbolized::Sym(symbol) if covers(&symbol, address) => Some((address, found(&symbol))),
            Symbolized::Sym(_) | Symbolized::Unknown(_) => None,
        });
        Ok(named.collect())
    }
}

/// Where the debug file of this build ID is looked for.
pub(super) fn debug_file_path(build_id: &str) -> Option<PathBuf> {
    let (directory, name) = build_id.split_at_checked(2).filter(|(_, name)| !name.is_empty())?;
    Some(PathBuf::from(format!("{DEBUG_DIRECTORY}/{directory}/{name}.debug")))
}

/// The functions at an address, innermost first. blazesym lists inlined ones outermost first.
fn found(symbol: &Sym<'_>) -> Vec<Found> {
    let mut list: Vec<Found> =
        symbol.inlined.iter().rev().map(|inlined| describe(&inlined.name, inlined.code_info.as_ref())).collect();
    list.push(describe(&symbol.name, symbol.code_info.as_deref()));
    list
}

fn describe(name: &str, code: Option<&CodeInfo<'_>>) -> Found {
    Found {
        name: name.to_owned(),
        file: code.map(|code| code.to_path().to_string_lossy().into_owned()).unwrap_or_default(),
        line: code.and_then(|code| code.line).unwrap_or(0),
    }
}
