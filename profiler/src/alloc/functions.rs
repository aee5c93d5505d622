//! The functions of allocators, by their symbols.

use std::collections::BTreeMap;

use iced_x86::Register;
use profiler_common::alloc::{FREES_FIRST, NOT_FOLLOWED, NULL_IS_ANOTHER, RETURNS_BY_FIRST, SizeArgument};

use crate::process::ObjectFile;
use crate::process::elf::Sections;
use crate::process::probe_point::probe_point;
use crate::process::symbols::{Symbol, bytes_at, symbols};

/// Bytes of a function that are looked at, to find branches that go back to its beginning.
const MAX_FUNCTION_BYTES: u64 = 64 << 10;

/// The functions of an allocator in an object, one for each address.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Allocator {
    /// Those that allocate.
    pub allocate: Vec<AllocProbe>,
    /// Those that free their first argument.
    pub free: Vec<AllocProbe>,
}

/// A place at which calls of a function that allocates or frees are seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AllocProbe {
    /// Its name: `malloc`.
    pub function: &'static str,
    /// Offset of the instruction in the file.
    pub file_offset: u64,
    /// Where the size is: the cookie of the probe. See [`profiler_common::alloc`].
    pub cookie: u64,
    /// Whether the kernel emulates the instruction; else it is executed out of line, with two more traps.
    pub is_emulated: bool,
}

/// Prefixes that allocators put before the names of the C library: those of jemalloc in Rust programs and elsewhere,
/// mimalloc and tcmalloc.
const PREFIXES: [&str; 5] = ["", "je_", "_rjem_", "mi_", "tc_"];

/// The C library's functions, and where each has the size.
const FUNCTIONS: [(&str, SizeArgument); 10] = [
    ("malloc", SizeArgument::First),
    ("calloc", SizeArgument::FirstBySecond),
    ("realloc", SizeArgument::Second),
    ("aligned_alloc", SizeArgument::Second),
    ("memalign", SizeArgument::Second),
    ("posix_memalign", SizeArgument::Third),
    ("valloc", SizeArgument::First),
    ("pvalloc", SizeArgument::First),
    // Of jemalloc alone.
    ("mallocx", SizeArgument::First),
    ("rallocx", SizeArgument::Second),
];

/// Names of `operator new`, by the C++ ABI: of one object, of many, with and without exceptions. With an alignment, the size
/// is the first argument all the same.
const NEW: [&str; 8] = [
    "_Znwm",
    "_Znam",
    "_ZnwmRKSt9nothrow_t",
    "_ZnamRKSt9nothrow_t",
    "_ZnwmSt11align_val_t",
    "_ZnamSt11align_val_t",
    "_ZnwmSt11align_val_tRKSt9nothrow_t",
    "_ZnamSt11align_val_tRKSt9nothrow_t",
];

/// Functions that free a block, by what follows a prefix; some are of one allocator alone.
const FREE: [&str; 11] = [
    "free",
    "cfree",
    "free_sized",
    "free_aligned_sized",
    "free_size",
    "free_aligned",
    "free_size_aligned",
    "dallocx",
    "sdallocx",
    "delete",
    "deletearray",
];

/// Names of `operator delete`: of one object, of many, with size, alignment, and without exceptions.
const DELETE: [&str; 12] = [
    "_ZdlPv",
    "_ZdaPv",
    "_ZdlPvm",
    "_ZdaPvm",
    "_ZdlPvRKSt9nothrow_t",
    "_ZdaPvRKSt9nothrow_t",
    "_ZdlPvSt11align_val_t",
    "_ZdaPvSt11align_val_t",
    "_ZdlPvmSt11align_val_t",
    "_ZdaPvmSt11align_val_t",
    "_ZdlPvSt11align_val_tRKSt9nothrow_t",
    "_ZdaPvSt11align_val_tRKSt9nothrow_t",
];

/// In the C library of GNU, and in no other.
const GLIBC: &str = "__libc_malloc";

/// What all that a Go program allocates on its heap comes through.
const GO: &str = "runtime.mallocgc";

/// What a function does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    Allocates(SizeArgument),
    Frees,
}

/// All names that are looked for, with what they do.
fn names() -> BTreeMap<&'static str, Role> {
    // Made once; the names have to live as long as what is found by them.
    static NAMES: std::sync::OnceLock<Vec<(String, Role)>> = std::sync::OnceLock::new();
    let names = NAMES.get_or_init(|| {
        let prefixed = PREFIXES.iter().flat_map(|prefix| {
            let allocate = FUNCTIONS.iter().map(|&(name, argument)| (name, Role::Allocates(argument)));
            let free = FREE.iter().map(|&name| (name, Role::Frees));
            allocate.chain(free).map(move |(name, role)| (format!("{prefix}{name}"), role))
        });
        let new = NEW.iter().map(|&name| (name.to_owned(), Role::Allocates(SizeArgument::First)));
        let delete = DELETE.iter().map(|&name| (name.to_owned(), Role::Frees));
        prefixed.chain(new).chain(delete).collect()
    });
    names.iter().map(|(name, role)| (name.as_str(), *role)).collect()
}

/// The functions of the allocator in an object.
///
/// An object without a `malloc` of any prefix has none. So `operator new` of the C++ library, which calls `malloc`, is not
/// counted twice.
#[must_use]
pub fn find_allocator(object: &ObjectFile) -> Allocator {
    let Some(sections) = Sections::read(&object.file) else { return Allocator::default() };
    let names = names();
    let wanted: Vec<&str> = names.keys().copied().chain([GLIBC, GO]).collect();
    let found = symbols(&sections, &wanted);
    if let Some(&symbol) = found.get(GO) {
        let cookie = SizeArgument::GoFirst as u64 | NOT_FOLLOWED;
        let probe = probe(object, &sections, GO, symbol, SizeArgument::GoFirst, cookie);
        return Allocator { allocate: probe.into_iter().collect(), free: Vec::new() };
    }
    if !PREFIXES.iter().any(|prefix| found.contains_key(format!("{prefix}malloc").as_str())) {
        return Allocator::default();
    }
    let is_glibc =
        found.contains_key(GLIBC) || object.path.rsplit('/').next().is_some_and(|name| name.starts_with("ld-musl"));
    let (mut allocate, mut free) = (BTreeMap::new(), BTreeMap::new());
    for (&function, &role) in &names {
        let Some(&symbol) = found.get(function) else { continue };
        let (argument, cookie) = match role {
            Role::Allocates(argument) => (argument, argument as u64 | flags(function, is_glibc)),
            Role::Frees => (SizeArgument::First, 0),
        };
        let Some(probe) = probe(object, &sections, function, symbol, argument, cookie) else { continue };
        let probes = if role == Role::Frees { &mut free } else { &mut allocate };
        // Aliases of one function: the shortest name stays, which is the one without a prefix.
        let known: &mut AllocProbe = probes.entry(symbol.address).or_insert_with(|| probe.clone());
        if function.len() < known.function.len() {
            known.function = function;
        }
    }
    Allocator { allocate: allocate.into_values().collect(), free: free.into_values().collect() }
}

/// What a function's probe is told besides where the size is. `is_glibc`: whether it is of the C library of GNU, or musl's.
fn flags(function: &str, is_glibc: bool) -> u64 {
    if function.ends_with("posix_memalign") {
        RETURNS_BY_FIRST
    } else if function.ends_with("realloc") || function.ends_with("rallocx") {
        // These libraries' realloc of nothing calls malloc.
        FREES_FIRST | if is_glibc { NULL_IS_ANOTHER } else { 0 }
    } else {
        0
    }
}

/// The registers that hold the arguments which are read, and the one that leads to the return address: where its return is
/// to be seen, the kernel looks for it there.
const fn needed(argument: SizeArgument) -> &'static [Register] {
    match argument {
        SizeArgument::First => &[Register::RSP, Register::RDI],
        SizeArgument::FirstBySecond | SizeArgument::Second => &[Register::RSP, Register::RDI, Register::RSI],
        SizeArgument::Third => &[Register::RSP, Register::RDI, Register::RDX],
        SizeArgument::GoFirst => &[Register::RSP, Register::RAX],
    }
}

fn probe(
    object: &ObjectFile,
    sections: &Sections<'_>,
    function: &'static str,
    symbol: Symbol,
    argument: SizeArgument,
    cookie: u64,
) -> Option<AllocProbe> {
    let size = usize::try_from(symbol.size.clamp(1, MAX_FUNCTION_BYTES)).ok()?;
    let code = bytes_at(sections, symbol.address, size)?;
    let point = probe_point(&code, symbol.address, needed(argument))?;
    let file_offset = object.offset_of(symbol.address + point.offset)?;
    Some(AllocProbe { function, file_offset, cookie, is_emulated: point.is_emulated })
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;

    #[test]
    fn the_c_library_has_its_functions() {
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        let Some(path) =
            maps.lines().find_map(|line| line.split_whitespace().nth(5).filter(|path| path.contains("/libc.so")))
        else {
            return;
        };
        let object = ObjectFile::read(File::open(path).unwrap(), path.to_owned()).unwrap();
        let Allocator { allocate: probes, free } = find_allocator(&object);
        let of = |name: &str| {
            probes.iter().find(|probe| probe.function == name).unwrap_or_else(|| panic!("{name}: {probes:?}"))
        };
        assert_eq!(of("malloc").cookie, SizeArgument::First as u64);
        assert_eq!(of("calloc").cookie, SizeArgument::FirstBySecond as u64);
        assert_eq!(of("realloc").cookie, SizeArgument::Second as u64 | NULL_IS_ANOTHER | FREES_FIRST);
        assert_eq!(of("posix_memalign").cookie, SizeArgument::Third as u64 | RETURNS_BY_FIRST);
        assert!(free.iter().any(|probe| probe.function == "free" && probe.is_emulated), "{free:?}");
        assert!(probes.iter().all(|probe| !probe.function.starts_with("_Zn")));
    }

    #[test]
    fn an_object_without_an_allocator_has_none() {
        let path = std::env::current_exe().unwrap();
        let object = ObjectFile::read(File::open(&path).unwrap(), path.display().to_string()).unwrap();
        assert_eq!(find_allocator(&object), Allocator::default());
    }
}
