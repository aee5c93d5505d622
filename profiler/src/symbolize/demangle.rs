//! Symbols to names that a person reads, and the closures that are async functions by the name of their source.
//!
//! rustc compiles an `async fn f` to a function that makes the future, and a closure that runs it: what shows in profiles
//! is `f::{{closure}}`. Only debug information tells such a closure from any other, by its name there, `{async_fn#0}`.

use std::collections::HashMap as Map;
use std::fmt::{self, Write};
use std::sync::Arc;

use gimli::{AbbreviationsCacheStrategy, AttributeValue, Dwarf, EndianSlice, LittleEndian, UnitOffset};
use hashbrown::HashSet;

use super::names::{Names, Strings};
use crate::process::elf::Sections;

/// Bytes of one section that are read in the search for async functions: beyond, they keep their closures' names.
const MAX_SECTION_BYTES: u64 = 512 << 20;

/// Bytes of a name: a symbol may refer to its own parts again and again, and stand for one without end.
const MAX_NAME_BYTES: usize = 64 << 10;

/// Entries that are looked at in that search: ten times those of the largest programs known.
const MAX_ENTRIES: u64 = 1 << 30;

/// What the name of an async function's closure begins with. Source: rustc_codegen_llvm/src/debuginfo/type_names.rs.
const ASYNC: &str = "{async_fn#";

/// The name behind a symbol: of Rust without the hash, of C++ with its parameters; any other as it is.
#[must_use]
pub fn demangle(symbol: &str) -> String {
    if !symbol.starts_with('_') {
        return symbol.to_owned();
    }
    let mut name = Bounded(String::new());
    let told = match rustc_demangle::try_demangle(symbol) {
        Ok(demangled) => write!(name, "{demangled:#}").is_ok(),
        Err(_) if symbol.starts_with("_Z") => cpp_demangle::Symbol::new(symbol).is_ok_and(|demangled| {
            demangled.structured_demangle(&mut name, &cpp_demangle::DemangleOptions::default()).is_ok()
        }),
        Err(_) => false,
    };
    if told { name.0 } else { symbol.to_owned() }
}

/// A name that may not become longer than [`MAX_NAME_BYTES`].
struct Bounded(String);

impl Write for Bounded {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        if self.0.len() + text.len() > MAX_NAME_BYTES {
            return Err(fmt::Error);
        }
        self.0.push_str(text);
        Ok(())
    }
}

/// A closure's name without the part that says so; `None` for what is none.
fn without_closure(name: &str) -> Option<&str> {
    let (front, last) = name.rsplit_once("::")?;
    let is_closure = last == "{{closure}}" || (last.starts_with("{closure#") && last.ends_with('}'));
    is_closure.then_some(front)
}

/// Demangles all names in place.
///
/// `symbols`: the symbols at these addresses, by the symbol table: where debug information is terse, it has names
/// without a path. `file`: the debug information, where there is some.
pub(super) fn demangle_all(names: &mut Names, symbols: &Names, file: Option<&Sections<'_>>) {
    let mut memo: Map<Arc<str>, String> = Map::new();
    let mut closures: HashSet<Arc<str>> = HashSet::new();
    let all = names.values().flatten().chain(symbols.values().flatten());
    for symbol in all.map(|found| &found.name) {
        if !memo.contains_key(symbol) {
            let name = demangle(symbol);
            if without_closure(&name).is_some() {
                closures.insert(Arc::clone(symbol));
            }
            memo.insert(Arc::clone(symbol), name);
        }
    }
    if !closures.is_empty() {
        for symbol in file.and_then(|file| async_functions(file, &closures)).unwrap_or_default() {
            if let Some(name) = memo.get_mut(&*symbol)
                && let Some(function) = without_closure(name).map(str::to_owned)
            {
                *name = function;
            }
        }
    }
    let mut strings = Strings::default();
    for (address, list) in names {
        let by_table = symbols.get(address).and_then(|list| list.last()).and_then(|found| memo.get(&found.name));
        let last = list.len().saturating_sub(1);
        for (index, found) in list.iter_mut().enumerate() {
            let Some(name) = memo.get(&found.name) else { continue };
            found.name = match by_table {
                Some(by_table) if index == last && !name.contains("::") && by_table.contains("::") => {
                    let function = without_closure(by_table).filter(|_| name.starts_with(ASYNC));
                    strings.intern(function.unwrap_or(by_table))
                }
                _ => strings.intern(name),
            };
        }
    }
}

/// Those of `closures`, by their symbols, that are the body of an async function.
fn async_functions(sections: &Sections<'_>, closures: &HashSet<Arc<str>>) -> Option<HashSet<Arc<str>>> {
    let content = |name: &str| {
        let section = sections.find(name)?;
        sections.content(section, MAX_SECTION_BYTES).ok()
    };
    let strings = content(".debug_str")?;
    // Most programs have none, and their debug information is not gone through.
    memchr::memmem::find(&strings, ASYNC.as_bytes())?;
    let mut loaded: Map<&'static str, Vec<u8>> = Map::from([(".debug_str", strings)]);
    // The last three for the head of a unit.
    let rest = [".debug_info", ".debug_abbrev", ".debug_str_offsets", ".debug_line_str", ".debug_line", ".debug_addr"];
    for name in rest {
        loaded.insert(name, content(name).unwrap_or_default());
    }
    let dwarf = Dwarf::load(|id| {
        Ok::<_, gimli::Error>(EndianSlice::new(
            loaded.get(id.name()).map(Vec::as_slice).unwrap_or_default(),
            LittleEndian,
        ))
    });
    let mut dwarf = dwarf.ok()?;
    dwarf.populate_abbreviations_cache(AbbreviationsCacheStrategy::Duplicates);
    let (mut found, mut left) = (HashSet::new(), MAX_ENTRIES);
    let mut headers = dwarf.units();
    // What is damaged ends the search.
    while let Ok(Some(header)) = headers.next() {
        let Ok(unit) = dwarf.unit(header) else { break };
        let Ok(mut entries) = unit.entries_raw(None::<UnitOffset>) else { break };
        while !entries.is_empty() {
            let Ok(abbreviation) = entries.read_abbreviation() else { return Some(found) };
            let Some(abbreviation) = abbreviation else { continue };
            let Some(rest) = left.checked_sub(1 + abbreviation.attributes().len() as u64) else { return Some(found) };
            left = rest;
            if abbreviation.tag() != gimli::DW_TAG_subprogram {
                if entries.skip_attributes(abbreviation.attributes()).is_err() {
                    return Some(found);
                }
                continue;
            }
            let (mut name, mut symbol) = (None, None);
            for specification in abbreviation.attributes() {
                let Ok(attribute) = entries.read_attribute(*specification) else { return Some(found) };
                match attribute.name() {
                    gimli::DW_AT_name => name = Some(attribute.value()),
                    gimli::DW_AT_linkage_name | gimli::DW_AT_MIPS_linkage_name => symbol = Some(attribute.value()),
                    _ => {}
                }
            }
            let text = |value: Option<AttributeValue<_>>| dwarf.attr_string(&unit, value?).ok();
            if text(name).is_some_and(|name| name.slice().starts_with(ASYNC.as_bytes()))
                && let Some(symbol) = text(symbol)
                && let Some(symbol) = std::str::from_utf8(symbol.slice()).ok().and_then(|symbol| closures.get(symbol))
            {
                found.insert(Arc::clone(symbol));
            }
        }
    }
    Some(found)
}

#[cfg(test)]
mod tests {
    use super::super::names::Found;
    use super::*;

    #[test]
    fn names_are_read_without_hashes() {
        for (symbol, name) in [
            ("main", "main"),
            ("_ZN4core3fmt9Formatter3pad17h0123456789abcdefE", "core::fmt::Formatter::pad"),
            ("_RNvNtCs1234_7mycrate3foo3bar", "mycrate::foo::bar"),
            ("_ZN3foo3barEi", "foo::bar(int)"),
            ("_ZNSt6vectorIiSaIiEE9push_backERKi", "std::vector<int, std::allocator<int> >::push_back(int const&)"),
            ("_start", "_start"),
            ("_Z", "_Z"),
        ] {
            assert_eq!(demangle(symbol), name);
        }
    }

    #[test]
    fn a_symbol_that_stands_for_a_name_without_end_stays_as_it_is() {
        // Each type has the one before a hundred times: 2 KB for 10^10 of the first.
        let types = ["S0_", "S2_", "S4_", "S6_", "S8_"]
            .iter()
            .zip('B'..)
            .map(|(before, name)| format!("1{name}I{}E", before.repeat(100)));
        let symbol = format!("_Z1f1AIiE{}", types.collect::<String>());
        assert_eq!(demangle(&symbol), symbol);
        let short = format!("_Z1f1AIiE1BI{}E", "S0_".repeat(3));
        assert_eq!(demangle(&short), "f(A<int>, B<A<int>, A<int>, A<int> >)");
    }

    #[test]
    fn terse_debug_information_gets_its_path_from_the_symbol_table() {
        let found = |name: &str| Found { name: name.into(), file: "".into(), line: 1 };
        let closure = "_ZN7mycrate5serve28_$u7b$$u7b$closure$u7d$$u7d$17h0123456789abcdefE";
        let mut names = Names::from_iter([
            (1, vec![found("inner"), found("pad")]),
            (2, vec![found("{async_fn#0}")]),
            (3, vec![found("_ZN3foo3barEi")]),
            (4, vec![found("plain")]),
        ]);
        let symbols = Names::from_iter([
            (1, vec![found("_ZN4core3fmt9Formatter3pad17h0123456789abcdefE")]),
            (2, vec![found(closure)]),
            (3, vec![found("_ZN3foo3barEi.cold")]),
            (4, vec![found("plain.part.0")]),
        ]);
        demangle_all(&mut names, &symbols, None);
        let all = |address: u64| names[&address].iter().map(|found| found.name.to_string()).collect::<Vec<_>>();
        assert_eq!(all(1), ["inner", "core::fmt::Formatter::pad"]);
        assert_eq!(all(2), ["mycrate::serve"]);
        assert_eq!(all(3), ["foo::bar(int)"]);
        assert_eq!(all(4), ["plain"]);
    }
}
