//! Recognises an interpreter in an ELF file: its version, its runtime, and the function that evaluates frames.

use std::ops::Range;

use profiler_common::python::PythonLayout;
use thiserror::Error;

use super::layout::{CodeLayout, DEBUG_OFFSETS_BYTES, of_debug_offsets, of_version};
use crate::process::ObjectFile;
use crate::process::elf::Sections;
use crate::process::symbols::{bytes_at, symbols};

/// The function whose native frame stands for a run of Python frames.
const EVAL: &str = "_PyEval_EvalFrameDefault";
const EVAL_COLD: &str = "_PyEval_EvalFrameDefault.cold";
const RUNTIME: &str = "_PyRuntime";
const CODE_TYPE: &str = "PyCode_Type";
const VERSION: &str = "Py_Version";

/// The first version that says its layout itself.
const STATES_LAYOUT: (u32, u32) = (3, 13);

/// CPython in an object: the program, or its library. Addresses are virtual ones, as the file states them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interpreter {
    /// Major and minor number.
    pub version: (u32, u32),
    /// Address of `_PyRuntime`.
    pub runtime: u64,
    /// Address of `PyCode_Type`.
    pub code_type: u64,
    /// For the programs.
    pub walk: PythonLayout,
    pub(super) code: CodeLayout,
    eval: Vec<Range<u64>>,
}

/// Why an interpreter cannot be walked.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum RuntimeError {
    /// Its version is none of those that are known.
    #[error("{path}: Python of unknown version {version}: its functions have no names (3.8 to 3.13 do)")]
    UnknownVersion {
        /// The object.
        path: String,
        /// What it says of itself.
        version: String,
    },
    /// It lacks a symbol.
    #[error("{path}: Python without the symbol {symbol}: its functions have no names")]
    NoSymbol {
        /// The object.
        path: String,
        /// What is missing.
        symbol: &'static str,
    },
}

impl Interpreter {
    /// Whether an address is in the function that evaluates frames.
    #[must_use]
    pub fn evaluates(&self, address: u64) -> bool {
        self.eval.iter().any(|range| range.contains(&address))
    }
}

/// The interpreter in an object; `None` when there is none.
///
/// Only files with `python` in their names are looked into.
///
/// # Errors
///
/// When there is one that cannot be walked.
pub fn find_interpreter(object: &ObjectFile) -> Result<Option<Interpreter>, RuntimeError> {
    let name = object.path.rsplit('/').next().unwrap_or_default();
    if !name.contains("python") {
        return Ok(None);
    }
    let Some(sections) = Sections::read(&object.file) else { return Ok(None) };
    let symbols = symbols(&sections, &[EVAL, EVAL_COLD, RUNTIME, CODE_TYPE, VERSION]);
    // A program that has its interpreter in a library, or a library that is about Python.
    let Some(runtime) = symbols.get(RUNTIME) else { return Ok(None) };
    let path = || object.path.clone();
    let needed = |symbol| symbols.get(symbol).copied().ok_or_else(|| RuntimeError::NoSymbol { path: path(), symbol });
    let (eval, code_type) = (needed(EVAL)?, needed(CODE_TYPE)?);
    let stated = symbols.get(VERSION).and_then(|symbol| bytes_at(&sections, symbol.address, 4));
    let stated = stated.and_then(|bytes| Some(u32::from_le_bytes(bytes.try_into().ok()?)));
    let version = stated.map(|number| (number >> 24, (number >> 16) & 0xff)).or_else(|| version_in(name));
    let unknown = |version: Option<(u32, u32)>| RuntimeError::UnknownVersion {
        path: path(),
        version: version.map_or_else(|| "(none stated)".to_owned(), |(major, minor)| format!("{major}.{minor}")),
    };
    let layout = match version {
        Some(STATES_LAYOUT) => {
            bytes_at(&sections, runtime.address, DEBUG_OFFSETS_BYTES).and_then(|bytes| of_debug_offsets(&bytes))
        }
        Some(version) => of_version(version),
        None => None,
    };
    let (Some(version), Some(layout)) = (version, layout) else { return Err(unknown(version)) };
    let cold = symbols.get(EVAL_COLD).into_iter();
    let ranges = std::iter::once(&eval).chain(cold);
    Ok(Some(Interpreter {
        version,
        runtime: runtime.address,
        code_type: code_type.address,
        walk: layout.walk,
        code: layout.code,
        eval: ranges.map(|symbol| symbol.address..symbol.address.saturating_add(symbol.size)).collect(),
    }))
}

/// The version in a file's name, as in `python3.9` and `libpython3.9.so.1.0`.
fn version_in(name: &str) -> Option<(u32, u32)> {
    let (_, rest) = name.split_once("python")?;
    let mut numbers = rest.split(|character: char| !character.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_is_read_from_a_files_name() {
        for (name, version) in [
            ("python3.9", Some((3, 9))),
            ("libpython3.10.so.1.0", Some((3, 10))),
            ("libpython3.8d.so", Some((3, 8))),
            ("python3", None),
            ("python", None),
            ("ipython3.x", None),
        ] {
            assert_eq!(version_in(name), version, "{name}");
        }
    }
}
