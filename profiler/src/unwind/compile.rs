//! Call-frame information to a table.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io;
use std::ops::Range;

use gimli::{
    BaseAddresses, CieOrFde, CommonInformationEntry, DebugFrame, EhFrame, EndianSlice, LittleEndian, UnwindContext,
    UnwindSection, X86_64,
};
use profiler_common::unwind::{Packed, Special};
use thiserror::Error;

use super::rules::{Refusal, Rules, Storage, Translated, translate};
use super::sections::{self, SectionData};
use super::table::{Table, TableBuilder};

/// Rows made of one object at most: the largest programs known have some ten million.
const MAX_ROWS: usize = 16 << 20;

/// Bytes of entries interpreted for each byte of the section. Every function runs the instructions of the entry it
/// shares with others, which compilers keep to a few bytes: below 3 in every object seen.
const MAX_WORK: usize = 16;

/// Entries that cannot be read, after which the section is taken for damaged as a whole.
const MAX_DAMAGED: usize = 10_000;

/// Bytes of code from the first function to the last. x86-64 code reaches 2 GiB; each page costs 8 bytes.
const MAX_SPAN: u64 = 4 << 30;

/// Why an object has no table.
#[derive(Debug, Error)]
pub enum UnwindError {
    /// The file cannot be read.
    #[error("cannot read it: {0}")]
    Read(io::Error),
    /// Not an ELF file, or a damaged one.
    #[error("not a usable 64-bit little-endian ELF file")]
    NoElf,
    /// For another machine.
    #[error("made for another machine (ELF number {0}): only x86-64 is unwound")]
    Machine(u16),
    /// More call-frame information than is read.
    #[error("{0} bytes of call-frame information are more than is read")]
    TooLarge(u64),
    /// More rows, more work or a larger span of code than any compiler makes.
    #[error("call-frame information beyond every bound: {0}")]
    Excessive(&'static str),
    /// It has none.
    #[error("no call-frame information (.eh_frame or .debug_frame): frame pointers are followed in it")]
    NoFrames,
    /// It cannot be understood.
    #[error("damaged call-frame information: {0}")]
    Damaged(gimli::Error),
}

/// What was made of an object's call-frame information.
#[derive(Clone, Debug, Default)]
pub struct Compiled {
    /// The table.
    pub table: Table,
    /// The section it was made of.
    pub section: &'static str,
    /// Bytes of that section.
    pub frame_bytes: usize,
    /// Functions described there.
    pub functions: usize,
    /// Functions of which a part cannot be followed: start, size and why.
    pub refused: Vec<(u64, u64, Refusal)>,
    /// Functions described that are not in an executable segment: leftovers of what the linker discarded.
    pub discarded: usize,
    /// Entries that could not be read: offset in the section and why.
    pub damaged: Vec<(usize, gimli::Error)>,
    /// Rows by kind, for a person.
    pub kinds: BTreeMap<&'static str, usize>,
}

/// Compiles the call-frame information of an open ELF file.
///
/// # Errors
///
/// When the file cannot be used as a whole. A function that cannot be read costs itself.
pub fn compile(file: &File, rules: &mut Rules) -> Result<Compiled, UnwindError> {
    let sections = sections::read(file)?;
    let bases = BaseAddresses::default().set_text(sections.text_address).set_got(sections.got_address);
    if let Some(section) = &sections.eh_frame {
        let bases = bases.clone().set_eh_frame(section.address);
        let mut frames = EhFrame::new(&section.bytes, LittleEndian);
        frames.set_address_size(8);
        let compiled = compile_section(&frames, &bases, section, &sections.code, rules)?;
        // Some linkers leave the section empty, and what there is elsewhere.
        if compiled.functions > 0 {
            return Ok(Compiled { section: ".eh_frame", ..compiled });
        }
    }
    let section = sections.debug_frame.as_ref().ok_or(UnwindError::NoFrames)?;
    let mut frames = DebugFrame::new(&section.bytes, LittleEndian);
    frames.set_address_size(8);
    let compiled = compile_section(&frames, &bases, section, &sections.code, rules)?;
    if compiled.functions == 0 {
        return Err(UnwindError::NoFrames);
    }
    Ok(Compiled { section: ".debug_frame", ..compiled })
}

type Slice<'a> = EndianSlice<'a, LittleEndian>;
type Cie<'a> = CommonInformationEntry<Slice<'a>>;

fn compile_section<'a, S>(
    frames: &S,
    bases: &BaseAddresses,
    section: &'a SectionData,
    code: &[Range<u64>],
    rules: &mut Rules,
) -> Result<Compiled, UnwindError>
where
    S: UnwindSection<Slice<'a>>,
    S::Offset: gimli::UnwindOffset<usize>,
{
    // Frames relative to rbx are rare. Only where there are some, rbx has to be followed through all others.
    let mut reader = Reader { frames, bases, section, code, cies: HashMap::new(), tracks_rbx: false };
    let rules_before = rules.clone();
    let mut compiled = reader.compile(rules)?;
    if compiled.kinds.contains_key(BY_RBX) {
        reader.tracks_rbx = true;
        *rules = rules_before;
        compiled = reader.compile(rules)?;
    }
    compiled.frame_bytes = section.bytes.len();
    Ok(compiled)
}

const BY_RBX: &str = "by rbx";

struct Reader<'s, 'a, S> {
    frames: &'s S,
    bases: &'s BaseAddresses,
    section: &'a SectionData,
    code: &'s [Range<u64>],
    cies: HashMap<usize, Cie<'a>>,
    tracks_rbx: bool,
}

impl<'a, S> Reader<'_, 'a, S>
where
    S: UnwindSection<Slice<'a>>,
    S::Offset: gimli::UnwindOffset<usize>,
{
    fn compile(&mut self, rules: &mut Rules) -> Result<Compiled, UnwindError> {
        let mut compiled = Compiled::default();
        let mut builder = TableBuilder::default();
        let mut context = UnwindContext::<usize, Storage>::new_in();
        let mut entries = self.frames.entries(self.bases);
        let mut rows = 0;
        let mut work = 0_usize;
        let (mut first, mut end) = (u64::MAX, 0);
        loop {
            if compiled.damaged.len() > MAX_DAMAGED {
                return Err(UnwindError::Damaged(compiled.damaged[0].1));
            }
            let partial = match entries.next() {
                Ok(None) => break,
                Ok(Some(CieOrFde::Cie(_))) => continue,
                Ok(Some(CieOrFde::Fde(partial))) => partial,
                // The length of an entry leads to the next: after a damaged one there is nothing to hold on to.
                Err(error) if compiled.functions == 0 => return Err(UnwindError::Damaged(error)),
                Err(error) => {
                    compiled.damaged.push((0, error));
                    break;
                }
            };
            compiled.functions += 1;
            let cies = &mut self.cies;
            let parsed = partial.parse(|section, bases, offset| {
                let key = gimli::UnwindOffset::into(offset);
                if let Some(cie) = cies.get(&key) {
                    return Ok(cie.clone());
                }
                let cie = section.cie_from_offset(bases, offset)?;
                cies.insert(key, cie.clone());
                Ok(cie)
            });
            let function = match parsed {
                Ok(function) => function,
                Err(error) => {
                    compiled.damaged.push((0, error));
                    continue;
                }
            };
            let (start, size) = (function.initial_address(), function.len());
            work = work.saturating_add(function.entry_len()).saturating_add(function.cie().entry_len());
            if work / MAX_WORK > self.section.bytes.len() {
                return Err(UnwindError::Excessive("too much work"));
            }
            // A linker that discards a function leaves its entry, with address 0 or another where no code is.
            let segment = self.code.iter().find(|segment| segment.contains(&start));
            let Some(segment) = segment.filter(|_| start != 0 && size != 0) else {
                compiled.discarded += 1;
                continue;
            };
            let limit = start.saturating_add(size).min(segment.end);
            (first, end) = (first.min(start), end.max(limit));
            if end - first > MAX_SPAN {
                return Err(UnwindError::Excessive("code over more than 4 GiB"));
            }
            if function.is_signal_trampoline() {
                // The handler returns to the trampoline's first byte: the call looks as if it were one before.
                builder.add(start - 1, limit, Packed::special(Special::Signal));
                *compiled.kinds.entry("signal frame").or_default() += 1;
                continue;
            }
            let mut table = match function.rows(self.frames, self.bases, &mut context) {
                Ok(table) => table,
                Err(error) => {
                    compiled.damaged.push((function.offset(), error));
                    builder.add(start, limit, Packed::special(Special::Bad));
                    continue;
                }
            };
            let mut refusal = None;
            loop {
                let row = match table.next_row() {
                    Ok(Some(row)) => row,
                    Ok(None) => break,
                    Err(error) => {
                        compiled.damaged.push((function.offset(), error));
                        break;
                    }
                };
                rows += 1;
                if rows > MAX_ROWS {
                    return Err(UnwindError::Excessive("too many rows"));
                }
                let expression = |unread: &gimli::UnwindExpression<usize>| {
                    self.section.bytes.get(unread.offset..unread.offset.checked_add(unread.length)?)
                };
                let translated = translate(row, expression, self.tracks_rbx);
                let (kind, packed) = match translated {
                    Ok(Translated::Special(special)) => (kind_of_special(special), Ok(Packed::special(special))),
                    Ok(Translated::Rule(rule)) => {
                        let kind = match row.cfa() {
                            gimli::CfaRule::RegisterAndOffset { register: X86_64::RSP, .. } => "by rsp",
                            gimli::CfaRule::RegisterAndOffset { register: X86_64::RBP, .. } => "by rbp",
                            gimli::CfaRule::RegisterAndOffset { register: X86_64::RBX, .. } => BY_RBX,
                            gimli::CfaRule::RegisterAndOffset { .. } => "by another register",
                            gimli::CfaRule::Expression(_) => "by memory",
                        };
                        (kind, rules.pack(rule))
                    }
                    Err(refused) => ("not understood", Err(refused)),
                };
                *compiled.kinds.entry(kind).or_default() += 1;
                let packed = packed.unwrap_or_else(|refused| {
                    refusal = Some(refused);
                    Packed::special(Special::Bad)
                });
                builder.add(row.start_address().max(start), row.end_address().min(limit), packed);
            }
            if let Some(refused) = refusal {
                compiled.refused.push((start, size, refused));
            }
        }
        compiled.table = builder.build();
        Ok(compiled)
    }
}

const fn kind_of_special(special: Special) -> &'static str {
    match special {
        Special::None => "none",
        Special::End => "outermost",
        Special::Signal => "signal frame",
        Special::Plt11 | Special::Plt10 => "PLT",
        Special::Bad => "not understood",
    }
}
