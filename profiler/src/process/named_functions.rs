//! The functions of an object that somebody names, and the instructions at which their calls begin and end.

use std::collections::BTreeMap;

use iced_x86::Register;
use object::elf;

use super::ObjectFile;
use super::elf::Sections;
use super::function_ends::{NoEnds, Piece, function_ends};
use super::probe_point::probe_point;
use super::symbols::{Symbol, bytes_at, each_symbol};

/// Bytes of a function that are gone through, and of a name.
const MAX_FUNCTION_BYTES: u64 = 1 << 20;
const MAX_NAME_BYTES: usize = 4096;

/// Largest table of symbols or of their names.
const MAX_TABLE_BYTES: u64 = 256 << 20;

/// In every program of Go.
const GO_TABLE: &str = ".gopclntab";

/// What gcc and clang call the part of a function that is seldom run.
const COLD: [&str; 2] = [".cold", ".cold.1"];

/// Where calls of a function begin and end: offsets in the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FunctionProbes {
    /// Its name, as the caller has made it of the symbol.
    pub name: String,
    /// The instruction at which a call is seen.
    pub entry: u64,
    /// Whether the kernel emulates that instruction; else it is executed in single steps.
    pub is_emulated: bool,
    /// Whether callers are goroutines.
    pub is_go: bool,
    /// The instructions that it is left by.
    pub ends: Vec<u64>,
}

/// Functions that were named.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NamedFunctions {
    /// Those that can have probes, by their addresses.
    pub functions: Vec<FunctionProbes>,
    /// Those that cannot, and why.
    pub without_end: Vec<(String, &'static str)>,
}

impl ObjectFile {
    /// The functions whose symbols are wanted, each address once, `most` at most.
    ///
    /// `wanted`: gives the name of a symbol that is.
    #[must_use]
    pub fn functions(&self, wanted: impl Fn(&str) -> Option<String>, most: usize) -> NamedFunctions {
        let Some(sections) = Sections::read(&self.file) else { return NamedFunctions::default() };
        let (mut found, mut cold) = (BTreeMap::new(), BTreeMap::new());
        each_function(&sections, |symbol, at| {
            if let Some(whole) = COLD.iter().find_map(|suffix| symbol.strip_suffix(suffix)) {
                if wanted(whole).is_some() {
                    cold.insert(whole.to_owned(), at);
                }
            } else if let Some(name) = wanted(symbol)
                && found.len() < most
            {
                found.entry(at.address).or_insert((symbol.to_owned(), name, at));
            }
        });
        let is_go = sections.find(GO_TABLE).is_some();
        let mut named = NamedFunctions::default();
        for (symbol, name, at) in found.into_values() {
            // A name without a package is that of C.
            let is_go = is_go && symbol.contains('.');
            match self.probes(&sections, &name, at, cold.get(&symbol).copied(), is_go) {
                Ok(probes) => named.functions.push(probes),
                Err(why) => named.without_end.push((name, why)),
            }
        }
        named
    }

    fn probes(
        &self,
        sections: &Sections<'_>,
        name: &str,
        at: Symbol,
        cold: Option<Symbol>,
        is_go: bool,
    ) -> Result<FunctionProbes, &'static str> {
        let code = |symbol: Symbol| {
            let size = usize::try_from(symbol.size).ok().filter(|_| (1..=MAX_FUNCTION_BYTES).contains(&symbol.size))?;
            bytes_at(sections, symbol.address, size)
        };
        let own = code(at).ok_or("its size is not known, or too large")?;
        let far = cold.and_then(|cold| Some((code(cold)?, cold.address)));
        let pieces: Vec<Piece<'_>> = [(&own[..], at.address)]
            .into_iter()
            .chain(far.as_ref().map(|(code, address)| (&code[..], *address)))
            .collect();
        let ends = function_ends(&pieces).map_err(|why| match why {
            NoEnds::None => "it never returns",
            NoEnds::TooMany => "it returns in too many places",
        })?;
        let needed: &[Register] = if is_go { &[Register::RSP, Register::R14] } else { &[Register::RSP] };
        let point = probe_point(&own, at.address, needed).ok_or("it has no instruction")?;
        let offset = |address| self.offset_of(address).ok_or("its code is in no segment of the file");
        Ok(FunctionProbes {
            name: name.to_owned(),
            entry: offset(at.address + point.offset)?,
            is_emulated: point.is_emulated,
            is_go,
            ends: ends.into_iter().map(offset).collect::<Result<_, _>>()?,
        })
    }

    /// The file offset of a virtual address of code.
    #[must_use]
    pub fn offset_of(&self, address: u64) -> Option<u64> {
        self.segments.iter().find_map(|segment| {
            let into = address.checked_sub(segment.address)?;
            (into < segment.size).then(|| segment.file_offset + into)
        })
    }
}

/// Calls `take` with every function that a file defines, by its symbols.
fn each_function(sections: &Sections<'_>, mut take: impl FnMut(&str, Symbol)) {
    each_symbol(sections, MAX_TABLE_BYTES, MAX_NAME_BYTES, |name, kind, symbol| {
        if kind == elf::STT_FUNC.0
            && let Ok(name) = std::str::from_utf8(name)
        {
            take(name, symbol);
        }
    });
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;

    #[test]
    fn functions_of_our_own_file_are_found_by_a_part_of_their_name() {
        let path = std::env::current_exe().unwrap();
        let object = ObjectFile::read(File::open(&path).unwrap(), path.display().to_string()).unwrap();
        let this = "functions_of_our_own_file_are_found_by_a_part_of_their_name";
        let wanted = |symbol: &str| symbol.contains(this).then(|| "found".to_owned());
        let named = object.functions(wanted, 100);
        assert!(!named.functions.is_empty(), "{named:?}");
        for function in &named.functions {
            assert!(function.name == "found" && !function.is_go && !function.ends.is_empty(), "{function:?}");
            assert_eq!(object.address_of(function.entry).and_then(|at| object.offset_of(at)), Some(function.entry));
        }
        assert_eq!(object.functions(wanted, 0).functions.len(), 0);
        assert_eq!(object.functions(|_| None, 100), NamedFunctions::default());
    }
}
