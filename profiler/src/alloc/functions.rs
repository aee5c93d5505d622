//! The functions of allocators, by their symbols.

use std::collections::{BTreeMap, HashMap};

use iced_x86::Register;
use object::endian::LittleEndian;
use object::read::elf::SectionHeader as _;
use profiler_common::alloc::{
    CALLS_ANOTHER, FREES_FIRST, NOT_FOLLOWED, NULL_IS_ANOTHER, RETURNS_BY_FIRST, SizeArgument, WEIGHTED,
};

use crate::process::elf::Sections;
use crate::process::probe_point::{goes_to, probe_point};
use crate::process::symbols::{Symbol, bytes_at, symbols};
use crate::process::{LineTable, ObjectFile};

/// Bytes of a function that are looked at, to find branches that go back to its beginning.
const MAX_FUNCTION_BYTES: u64 = 64 << 10;

/// Bytes of constants that are searched.
const MAX_TEXT_BYTES: u64 = 64 << 20;

/// Texts that are in an allocator and hardly elsewhere: names of variables of the environment, or how it begins a message.
const MARKS: [(&[u8], &str); 4] = [
    (b"<jemalloc>: ", "jemalloc"),
    (b"MIMALLOC_", "mimalloc"),
    (b"mimalloc: ", "mimalloc"),
    (b"TCMALLOC_SAMPLE_PARAMETER", "tcmalloc"),
];

/// The functions of an allocator in an object, one for each address.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Allocator {
    /// Those that allocate.
    pub allocate: Vec<AllocProbe>,
    /// Those that free their first argument.
    pub free: Vec<AllocProbe>,
    /// Whether these are the points at which a program tells of what it has chosen itself, in the place of all others.
    pub is_sampled: bool,
    /// Where a Go program tells of what its own profiler chooses, if that is linked in.
    pub chooser: Option<GoChooser>,
    /// The name of an allocator that must be in the file, of which no function can be found for want of symbols.
    pub unseen: Option<&'static str>,
}

/// The profiler that a Go program has of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GoChooser {
    /// Where it is told of an allocation that it has chosen.
    pub probe: AllocProbe,
    /// Address of the mean distance of what it chooses, bytes, in the file's own terms; 0 there while it is switched off.
    pub rate: u64,
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

/// Functions that mimalloc alone has, and where each has the size. Its global allocator for Rust uses the aligned ones.
const MIMALLOC: [(&str, SizeArgument); 6] = [
    ("mi_malloc_aligned", SizeArgument::First),
    ("mi_malloc_small", SizeArgument::First),
    ("mi_zalloc", SizeArgument::First),
    ("mi_zalloc_aligned", SizeArgument::First),
    ("mi_zalloc_small", SizeArgument::First),
    ("mi_realloc_aligned", SizeArgument::Second),
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

/// In the C library of GNU; others have it too.
const GLIBC: &str = "__libc_malloc";

/// In programs that musl is linked into.
const MUSL: &str = "__libc_malloc_impl";

/// In the library of tcmalloc.
const TCMALLOC: &str = "tc_memalign";

/// Functions that may do their work by calling one that has a probe.
const CALL_OTHERS: [&str; 5] = ["calloc", "memalign", "valloc", "aligned_alloc", "aligned_malloc"];

/// Those of these that musl's library and tcmalloc's call by way of the linker, since programs may have their own. Source: musl
/// 1.2, src/malloc; gperftools 2.10, src/tcmalloc.cc.
const LINKED_CALLS: [&str; 2] = ["posix_memalign", "valloc"];
const MUSL_LINKED_CALLS: [&str; 2] = ["calloc", "memalign"];

/// What all that a Go program allocates on its heap comes through.
const GO: &str = "runtime.mallocgc";

/// What its profiler is given of what it chooses, the distance by which it does, and whether the linker has left it out, since
/// nobody can ask for what it has found. Source: src/runtime/mprof.go.
const GO_CHOSEN: &str = "runtime.mProf_Malloc";
const GO_RATE: &str = "runtime.MemProfileRate";
const GO_LEFT_OUT: &str = "runtime.disableMemoryProfiling";

/// The version from which on the size is the third argument of `mProf_Malloc`, and not the second.
const GO_SIZE_IS_THIRD: u32 = 23;

/// Where a program that samples its own allocations tells of them, and of their frees: `libprofiler_alloc.so`.
const SAMPLED: [&str; 2] = ["otel_memory_alloc", "otel_memory_free"];

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
        let mimalloc = MIMALLOC.iter().map(|&(name, argument)| (name.to_owned(), Role::Allocates(argument)));
        prefixed.chain(mimalloc).chain(new).chain(delete).collect()
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
    let wanted: Vec<&str> =
        names.keys().copied().chain([GLIBC, MUSL, GO, GO_CHOSEN, GO_RATE, GO_LEFT_OUT]).chain(SAMPLED).collect();
    let mut found = symbols(&sections, &wanted);
    if !object.has_symbols
        && let Some(code) = LineTable::find(&object.file).and_then(|mut table| table.find_function(GO))
    {
        found.insert(GO, Symbol { address: code.start, size: code.end - code.start });
    }
    if let Some(&symbol) = found.get(GO) {
        let cookie = SizeArgument::GoFirst as u64 | NOT_FOLLOWED;
        let probe = probe(object, &sections, GO, symbol, SizeArgument::GoFirst, cookie);
        let chooser = go_chooser(object, &sections, &found);
        return Allocator { allocate: probe.into_iter().collect(), chooser, ..Allocator::default() };
    }
    if let [Some(&allocated), Some(&freed)] = SAMPLED.map(|name| found.get(name)) {
        let cookie = SizeArgument::Second as u64 | WEIGHTED;
        let allocate = probe(object, &sections, SAMPLED[0], allocated, SizeArgument::Third, cookie);
        let free = probe(object, &sections, SAMPLED[1], freed, SizeArgument::First, 0);
        return Allocator {
            allocate: allocate.into_iter().collect(),
            free: free.into_iter().collect(),
            is_sampled: true,
            ..Allocator::default()
        };
    }
    let has_malloc = PREFIXES.iter().any(|prefix| found.contains_key(format!("{prefix}malloc").as_str()));
    if !has_malloc && !MIMALLOC.iter().any(|(name, _)| found.contains_key(name)) {
        return Allocator { unseen: linked_in(object, &sections), ..Allocator::default() };
    }
    let is_musl =
        found.contains_key(MUSL) || object.path.rsplit('/').next().is_some_and(|name| name.starts_with("ld-musl"));
    // Others have that name too, for who calls it.
    let is_another = is_musl || [TCMALLOC, "mallocx", "mi_malloc"].iter().any(|name| found.contains_key(name));
    let is_glibc = found.contains_key(GLIBC) && !is_another;
    let (mut allocate, mut free) = (BTreeMap::new(), BTreeMap::new());
    for (&function, &role) in &names {
        let Some(&symbol) = found.get(function) else { continue };
        let (argument, cookie) = match role {
            Role::Allocates(argument) => {
                let calls_other = calls_other(object, &sections, function, symbol, &found, is_musl);
                let calls = if calls_other { CALLS_ANOTHER } else { 0 };
                (argument, argument as u64 | flags(function, is_glibc) | calls)
            }
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
    Allocator { allocate: allocate.into_values().collect(), free: free.into_values().collect(), ..Allocator::default() }
}

/// Whether a function calls another one that has a probe, for the same allocation.
fn calls_other(
    object: &ObjectFile,
    sections: &Sections<'_>,
    function: &str,
    symbol: Symbol,
    found: &HashMap<&str, Symbol>,
    is_musl: bool,
) -> bool {
    let is_one_of = |names: &[&str]| names.iter().any(|name| function.ends_with(name));
    if !is_one_of(&CALL_OTHERS) {
        return false;
    }
    let is_library = object.path.contains(".so");
    if is_library && (is_musl || found.contains_key(TCMALLOC)) && is_one_of(&LINKED_CALLS)
        || is_library && is_musl && is_one_of(&MUSL_LINKED_CALLS)
    {
        return true;
    }
    let allocate = names().into_iter().filter(|(_, role)| matches!(role, Role::Allocates(_)));
    let others = allocate.filter_map(|(name, _)| Some(found.get(name)?.address));
    let others: Vec<u64> = others.filter(|&other| other != symbol.address).collect();
    let size = usize::try_from(symbol.size.min(MAX_FUNCTION_BYTES)).unwrap_or(0);
    bytes_at(sections, symbol.address, size).is_some_and(|code| goes_to(&code, symbol.address, &others))
}

/// The profiler of a Go program; `None` where it has none that runs, or where it is not known how it is told.
fn go_chooser(object: &ObjectFile, sections: &Sections<'_>, found: &HashMap<&str, Symbol>) -> Option<GoChooser> {
    let (&chosen, &rate) = (found.get(GO_CHOSEN)?, found.get(GO_RATE)?);
    let is_left_out = |symbol: &Symbol| bytes_at(sections, symbol.address, 1).is_some_and(|byte| byte != [0]);
    if found.get(GO_LEFT_OUT).is_some_and(is_left_out) {
        return None;
    }
    let is_third = go_version(sections)? >= GO_SIZE_IS_THIRD;
    let argument = if is_third { SizeArgument::GoThird } else { SizeArgument::GoSecond };
    let cookie = argument as u64 | NOT_FOLLOWED | WEIGHTED;
    Some(GoChooser { probe: probe(object, sections, GO_CHOSEN, chosen, argument, cookie)?, rate: rate.address })
}

/// The second number of the Go version that a program was built with, 22 of 1.22.3, which the linker writes since 1.18. Source:
/// src/debug/buildinfo/buildinfo.go.
fn go_version(sections: &Sections<'_>) -> Option<u32> {
    let section = sections.find(".go.buildinfo")?;
    let start = bytes_at(sections, section.sh_addr(LittleEndian), 64)?;
    let length = usize::from(*start.get(32).filter(|_| start.get(15).is_some_and(|flags| flags & 2 != 0))?);
    let version = std::str::from_utf8(start.get(33..33 + length.min(31))?).ok()?;
    let digits = version.strip_prefix("go1.")?;
    digits[..digits.find(|character: char| !character.is_ascii_digit()).unwrap_or(digits.len())].parse().ok()
}

/// The allocator that is in a file without symbols, by a text that only it has.
fn linked_in(object: &ObjectFile, sections: &Sections<'_>) -> Option<&'static str> {
    if object.has_symbols {
        return None;
    }
    let texts = sections.content(sections.find(".rodata")?, MAX_TEXT_BYTES).ok()?;
    MARKS.iter().find(|(mark, _)| memchr::memmem::find(&texts, mark).is_some()).map(|(_, name)| *name)
}

/// What a function's probe is told besides where the size is. `is_glibc`: whether it is of the C library of GNU.
fn flags(function: &str, is_glibc: bool) -> u64 {
    if function.ends_with("posix_memalign") {
        RETURNS_BY_FIRST
    } else if function.ends_with("realloc") || function.ends_with("rallocx") || function.ends_with("realloc_aligned") {
        // Its realloc of nothing calls malloc.
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
        SizeArgument::GoSecond => &[Register::RSP, Register::RBX],
        SizeArgument::GoThird => &[Register::RSP, Register::RCX],
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
        let Allocator { allocate: probes, free, .. } = find_allocator(&object);
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
