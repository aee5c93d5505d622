//! The same tables made in another way, to compare with: entries and instructions are read by gimli, ranges of code are
//! sorted one by one. Compiled for tests alone.

#![cfg(test)]

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use gimli::{
    BaseAddresses, CfaRule, CieOrFde, DebugFrame, EhFrame, EndianSlice, LittleEndian, RegisterRule, UnwindContext,
    UnwindExpression, UnwindSection, UnwindTableRow, X86_64,
};
use profiler_common::unwind::{PAGE_SHIFT, Packed, Special, row};

use super::compile::{Source, compile_source};
use super::cursor::Bases;
use super::frames::Form;
use super::program::{Block, Cfa, Place, State};
use super::rules::{Rules, Translated, translate};
use super::sections::{self, SectionData};
use super::table::{MAX_PADDING, Page, Table};
use super::{Cache, Compiled, compile, load_or_compile};

/// Variable with what to compare, files and directories separated by colons; without it, a sample of the system's.
const OBJECTS_VARIABLE: &str = "PROFILER_UNWIND_OBJECTS";

/// Call-frame information compared without the variable.
const SAMPLE_BYTES: usize = 16 << 20;

/// Room for every register and any depth, so that gimli refuses nothing for want of it.
struct Storage;

impl gimli::UnwindContextStorage<usize> for Storage {
    type Rules = [(gimli::Register, RegisterRule<usize>); 32];
    type Stack = [UnwindTableRow<usize, Self>; 20];
}

type Slice<'a> = EndianSlice<'a, LittleEndian>;

/// What is compared, beside the table.
#[derive(Debug, Default, PartialEq, Eq)]
struct Account {
    functions: usize,
    refused: usize,
    discarded: usize,
    damaged: usize,
    kinds: BTreeMap<&'static str, usize>,
}

impl Account {
    fn of(compiled: &Compiled) -> Self {
        Self {
            functions: compiled.functions,
            refused: compiled.refused.len(),
            discarded: compiled.discarded,
            damaged: compiled.damaged.len(),
            kinds: compiled.kinds.clone(),
        }
    }
}

fn state(row: &UnwindTableRow<usize, Storage>) -> State {
    // The size stands before the expression, in one byte: no compiler writes longer ones.
    let block = |expression: &UnwindExpression<usize>| {
        assert!(expression.length < 0x80, "a size of one byte");
        Block(u32::try_from(expression.offset - 1).expect("an offset in a section"))
    };
    let place = |register| match row.register(register) {
        None => Place::Unsaid,
        Some(RegisterRule::Undefined) => Place::Undefined,
        Some(RegisterRule::SameValue) => Place::Same,
        Some(RegisterRule::Offset(offset)) => Place::Offset(i32::try_from(offset).expect("32 bits")),
        Some(RegisterRule::Expression(expression)) => Place::Expression(block(&expression)),
        Some(RegisterRule::Register(register)) => Place::Register(register.0),
        Some(_) => Place::Other,
    };
    let cfa = match row.cfa() {
        CfaRule::RegisterAndOffset { register, offset } => {
            Cfa::Register { register: register.0, offset: i32::try_from(*offset).expect("32 bits") }
        }
        CfaRule::Expression(expression) => Cfa::Expression(block(expression)),
    };
    State { cfa, return_address: place(X86_64::RA), rbp: place(X86_64::RBP), rbx: place(X86_64::RBX) }
}

fn by_gimli<'a, S>(
    frames: &S,
    bases: &BaseAddresses,
    section: &'a SectionData,
    code: &[Range<u64>],
    rules: &mut Rules,
    tracks_rbx: bool,
) -> Option<(Table, Account)>
where
    S: UnwindSection<Slice<'a>>,
    S::Offset: gimli::UnwindOffset<usize>,
{
    let mut account = Account::default();
    let mut ranges = Vec::new();
    let mut commons = HashMap::new();
    let mut context = UnwindContext::<usize, Storage>::new_in();
    let mut entries = frames.entries(bases);
    loop {
        let partial = match entries.next() {
            Ok(Some(CieOrFde::Fde(partial))) => partial,
            Ok(Some(CieOrFde::Cie(_))) => continue,
            Ok(None) => break,
            Err(_) if account.functions == 0 => return None,
            Err(_) => {
                account.damaged += 1;
                break;
            }
        };
        account.functions += 1;
        let parsed = partial.parse(|section, bases, offset| {
            let key = gimli::UnwindOffset::into(offset);
            if let Some(cie) = commons.get(&key) {
                return Ok(std::clone::Clone::clone(cie));
            }
            let cie = section.cie_from_offset(bases, offset)?;
            commons.insert(key, cie.clone());
            Ok(cie)
        });
        let Ok(function) = parsed else {
            account.damaged += 1;
            continue;
        };
        let (start, size) = (function.initial_address(), function.len());
        let segment = code.iter().find(|segment| segment.contains(&start)).filter(|_| start != 0 && size != 0);
        let Some(segment) = segment else {
            account.discarded += 1;
            continue;
        };
        let limit = start.saturating_add(size).min(segment.end);
        if function.is_signal_trampoline() {
            ranges.push((start - 1, limit, Packed::special(Special::Signal)));
            *account.kinds.entry("signal frame").or_default() += 1;
            continue;
        }
        let Ok(mut table) = function.rows(frames, bases, &mut context) else {
            account.damaged += 1;
            continue;
        };
        let mut refused = false;
        loop {
            let row = match table.next_row() {
                Ok(Some(row)) => row,
                Ok(None) => break,
                Err(_) => {
                    account.damaged += 1;
                    break;
                }
            };
            let state = state(row);
            let (kind, packed) = match translate(&state, &section.bytes, tracks_rbx) {
                Ok(Translated::Special(Special::End)) => ("outermost", Ok(Packed::special(Special::End))),
                Ok(Translated::Special(special)) => ("PLT", Ok(Packed::special(special))),
                Ok(Translated::Rule(rule)) => {
                    let kind = match row.cfa() {
                        CfaRule::RegisterAndOffset { register: X86_64::RSP, .. } => "by rsp",
                        CfaRule::RegisterAndOffset { register: X86_64::RBP, .. } => "by rbp",
                        CfaRule::RegisterAndOffset { register: X86_64::RBX, .. } => "by rbx",
                        CfaRule::RegisterAndOffset { .. } => "by another register",
                        CfaRule::Expression(_) => "by memory",
                    };
                    (kind, rules.pack(rule))
                }
                Err(refusal) => ("not understood", Err(refusal)),
            };
            *account.kinds.entry(kind).or_default() += 1;
            refused |= packed.is_err();
            let (from, to) = (row.start_address().max(start), row.end_address().min(limit));
            if from < to {
                ranges.push((from, to, packed.unwrap_or(Packed::special(Special::Bad))));
            }
        }
        account.refused += usize::from(refused);
    }
    Some((table(ranges), account))
}

/// Makes a table of ranges.
fn table(mut ranges: Vec<(u64, u64, Packed)>) -> Table {
    ranges.sort_by_key(|&(start, end, _)| (start, end));
    let none = Packed::special(Special::None);
    let mut starts: Vec<(u64, Packed)> = Vec::new();
    let mut push = |address: u64, rule: Packed| match starts.last_mut() {
        Some((last, last_rule)) if *last == address => *last_rule = rule,
        Some((_, last_rule)) if *last_rule == rule => {}
        _ => starts.push((address, rule)),
    };
    let Some(&(first, ..)) = ranges.first() else { return Table::default() };
    let mut covered = first;
    for (start, end, rule) in ranges {
        if start.saturating_sub(covered) > MAX_PADDING {
            push(covered, none);
        }
        push(start, rule);
        covered = end.max(covered);
    }
    push(covered, none);
    let mut table = Table { first_page: first >> PAGE_SHIFT, ..Table::default() };
    let (mut starts, mut carried) = (starts.into_iter().peekable(), none);
    for page in first >> PAGE_SHIFT..=covered >> PAGE_SHIFT {
        let first_row = table.rows.len();
        if starts.peek().is_none_or(|&(start, _)| start > page << PAGE_SHIFT) {
            table.rows.push(row(page << PAGE_SHIFT, carried));
        }
        while let Some((start, rule)) = starts.next_if(|&(start, _)| start >> PAGE_SHIFT == page) {
            table.rows.push(row(start, rule));
            carried = rule;
        }
        let rows = u16::try_from(table.rows.len() - first_row).expect("a page of rows");
        table.pages.push(Page { first_row: u32::try_from(first_row).expect("rows"), rows });
    }
    table
}

/// Time on a CPU that this thread has had: the machine may have other work.
fn cpu_time() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: clock_gettime writes to `time`, which lives here.
    assert_eq!(unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) }, 0, "read a clock");
    Duration::new(u64::try_from(time.tv_sec).expect("seconds"), u32::try_from(time.tv_nsec).expect("nanoseconds"))
}

/// Runs something three times: the last result, and the shortest time.
fn timed<T>(mut run: impl FnMut() -> T) -> (T, Duration) {
    let mut once = || {
        let start = cpu_time();
        let result = run();
        (result, cpu_time() - start)
    };
    let (first, second, (result, third)) = (once().1, once().1, once());
    (result, first.min(second).min(third))
}

/// The sum of what was compared.
#[derive(Default)]
struct Sum {
    files: usize,
    bytes: usize,
    rows: usize,
    ours: Duration,
    theirs: Duration,
}

impl Sum {
    /// Compares both tables of a section; false when they differ.
    fn compare(&mut self, path: &Path, form: Form, section: &SectionData, sections: &sections::Sections<'_>) -> bool {
        let (mut our_rules, mut their_rules) = (Rules::default(), Rules::default());
        let section_base = (form == Form::EhFrame).then_some(section.address);
        let bases = Bases { section: section_base, text: sections.text_address, data: sections.got_address };
        let (ours, took) = timed(|| {
            our_rules = Rules::default();
            compile_source(&Source { form, section, bases, code: &sections.code }, &mut our_rules)
        });
        let mut bases = BaseAddresses::default();
        for (address, set) in [
            (section_base, BaseAddresses::set_eh_frame as fn(_, _) -> _),
            (sections.text_address, BaseAddresses::set_text),
            (sections.got_address, BaseAddresses::set_got),
        ] {
            bases = address.map_or(bases.clone(), |address| set(bases, address));
        }
        let mut gimli = |tracks_rbx| {
            their_rules = Rules::default();
            let code = &sections.code;
            if form == Form::EhFrame {
                let mut frames = EhFrame::new(&section.bytes, LittleEndian);
                frames.set_address_size(8);
                by_gimli(&frames, &bases, section, code, &mut their_rules, tracks_rbx)
            } else {
                let mut frames = DebugFrame::new(&section.bytes, LittleEndian);
                frames.set_address_size(8);
                by_gimli(&frames, &bases, section, code, &mut their_rules, tracks_rbx)
            }
        };
        let (theirs, gimli_took) = timed(|| match gimli(false) {
            Some((_, account)) if account.kinds.contains_key("by rbx") => gimli(true),
            first => first,
        });
        self.theirs += gimli_took;
        self.ours += took;
        self.files += 1;
        self.bytes += section.bytes.len();
        let same = match (&ours, &theirs) {
            (Ok(ours), Some((table, account))) => {
                self.rows += table.rows.len();
                ours.table == *table && Account::of(ours) == *account && our_rules.rules() == their_rules.rules()
            }
            (Err(_), None) => true,
            _ => false,
        };
        if !same {
            if let (Ok(ours), Some((table, _))) = (&ours, &theirs) {
                let rows = ours.table.rows.iter().zip(&table.rows);
                println!("row of {} that differs first: {:?}", path.display(), rows.clone().position(|(a, b)| a != b));
            }
            let ours = ours.map(|ours| (ours.table.rows.len(), Account::of(&ours), ours.damaged.first().copied()));
            let theirs = theirs.map(|(table, account)| (table.rows.len(), account));
            println!("{} {form:?} differs: {ours:?}, by gimli {theirs:?}", path.display());
        }
        same
    }

    fn text(&self) -> String {
        let megabytes = self.bytes as f64 / 1e6;
        let [ours, theirs] = [self.ours, self.theirs].map(|time| time.as_secs_f64() * 1e3 / megabytes.max(1e-6));
        format!(
            "{} sections, {megabytes:.1} MB, {} rows: {ours:.2} ms a MB, gimli {theirs:.2}, {:.1} times as long",
            self.files,
            self.rows,
            theirs / ours
        )
    }
}

/// The ELF files at and below some paths, each once, the same at every call.
fn elf_files(paths: impl Iterator<Item = PathBuf>) -> Vec<PathBuf> {
    let mut seen = HashSet::new();
    let mut todo: Vec<PathBuf> = paths.collect();
    let mut found = Vec::new();
    while let Some(path) = todo.pop() {
        let Ok(metadata) = path.symlink_metadata() else { continue };
        if metadata.is_dir() {
            let entries = std::fs::read_dir(&path).into_iter().flatten().flatten();
            let mut below: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
            below.sort();
            todo.extend(below);
        } else if metadata.is_file() && metadata.len() > 4096 && seen.insert((metadata.dev(), metadata.ino())) {
            let magic = File::open(&path).is_ok_and(|file| {
                let mut magic = [0; 4];
                std::os::unix::fs::FileExt::read_exact_at(&file, &mut magic, 0).is_ok() && magic == *b"\x7fELF"
            });
            found.extend(magic.then_some(path));
        }
    }
    found
}

#[test]
fn every_object_has_the_table_that_gimli_makes() {
    let asked = std::env::var_os(OBJECTS_VARIABLE);
    let paths: Vec<PathBuf> = match &asked {
        Some(paths) => elf_files(std::env::split_paths(paths)),
        None => {
            // Every so many of what is installed, and these, which have something of their own.
            let system = elf_files(["/usr/bin", "/usr/lib"].into_iter().map(PathBuf::from));
            let step = (system.len() / 150).max(1);
            let known = ["libc.so.6", "libcrypto.so.3", "libstdc++.so.6", "ld-linux-x86-64.so.2"];
            let known = known.map(|name| Path::new("/usr/lib/x86_64-linux-gnu").join(name));
            let ours = std::env::current_exe().into_iter();
            let all = ours.chain(known.into_iter().filter_map(|path| path.canonicalize().ok()));
            all.chain(system.into_iter().step_by(step)).collect()
        }
    };
    let (mut sum, mut different) = (Sum::default(), 0);
    let directory = tempfile::tempdir().expect("create a temporary directory");
    let cache = Cache::open(&directory.path().join("cache")).expect("open a cache");
    for path in &paths {
        if asked.is_none() && sum.bytes > SAMPLE_BYTES {
            break;
        }
        let Ok(file) = File::open(path) else { continue };
        let Ok(sections) = sections::read(&file) else { continue };
        let mut of_file = Sum::default();
        let debug_frame = sections.debug_frame().unwrap_or_default();
        for (form, section) in [(Form::EhFrame, &sections.eh_frame), (Form::DebugFrame, &debug_frame)] {
            let Some(section) = section else { continue };
            different += usize::from(!of_file.compare(path, form, section, &sections));
        }
        if of_file.bytes > 1 << 20 {
            let (_, whole) = timed(|| compile(&file, &mut Rules::default()));
            let whole = whole.as_secs_f64() * 1e9 / of_file.bytes as f64;
            let (_, loaded) = timed(|| load_or_compile(Some(&cache), &file, &mut Rules::default()));
            let loaded = loaded.as_secs_f64() * 1e9 / of_file.bytes as f64;
            println!(
                "{}: {}; with reading {whole:.2} ms a MB, from the cache {loaded:.2}",
                path.display(),
                of_file.text()
            );
        }
        let Sum { files, bytes, rows, ours, theirs } = of_file;
        let before = (sum.files, sum.bytes, sum.rows);
        (sum.files, sum.bytes, sum.rows) = (before.0 + files, before.1 + bytes, before.2 + rows);
        (sum.ours, sum.theirs) = (sum.ours + ours, sum.theirs + theirs);
    }
    println!("all: {}", sum.text());
    assert_eq!(different, 0, "sections of which the tables differ");
    assert!(sum.files > 0, "nothing to compare");
}
