//! Call-frame information to a table.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io;

use gimli::{
    BaseAddresses, CieOrFde, CommonInformationEntry, DebugFrame, EhFrame, EndianSlice, LittleEndian, UnwindContext,
    UnwindSection, X86_64,
};
use profiler_common::unwind::{Packed, Special};
use thiserror::Error;

use super::rules::{Refusal, Rules, Translated, translate};
use super::sections::{self, SectionData};
use super::table::{Table, TableBuilder};

/// Rows made of one object at most: the largest programs known have some ten million.
const MAX_ROWS: usize = 64 << 20;

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
    /// Bytes of call-frame information it was made of.
    pub frame_bytes: usize,
    /// Functions described there.
    pub functions: usize,
    /// Functions of which a part cannot be followed: start, size and why.
    pub refused: Vec<(u64, u64, Refusal)>,
    /// Functions that could not be read: offset in the section and why.
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
        let bases = bases.set_eh_frame(section.address);
        let mut frames = EhFrame::new(&section.bytes, LittleEndian);
        frames.set_address_size(8);
        return compile_section(&frames, &bases, section, rules);
    }
    let section = sections.debug_frame.as_ref().ok_or(UnwindError::NoFrames)?;
    let mut frames = DebugFrame::new(&section.bytes, LittleEndian);
    frames.set_address_size(8);
    compile_section(&frames, &bases, section, rules)
}

type Slice<'a> = EndianSlice<'a, LittleEndian>;
type Cie<'a> = CommonInformationEntry<Slice<'a>>;

fn compile_section<'a, S>(
    frames: &S,
    bases: &BaseAddresses,
    section: &'a SectionData,
    rules: &mut Rules,
) -> Result<Compiled, UnwindError>
where
    S: UnwindSection<Slice<'a>>,
    S::Offset: gimli::UnwindOffset<usize>,
{
    // Frames relative to rbx are rare. Only where there are some, rbx has to be followed through all others.
    let mut reader = Reader { frames, bases, section, cies: HashMap::new(), tracks_rbx: false };
    let mut compiled = reader.compile(rules)?;
    if compiled.kinds.contains_key(BY_RBX) {
        reader.tracks_rbx = true;
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
        let mut context = UnwindContext::new();
        let mut entries = self.frames.entries(self.bases);
        let mut rows = 0;
        loop {
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
            // A linker that discards a function leaves its entry with address 0.
            if start == 0 || size == 0 {
                continue;
            }
            if function.is_signal_trampoline() {
                // The handler returns to the trampoline's first byte: the call looks as if it were one before.
                builder.add(start - 1, start.saturating_add(size), Packed::special(Special::Signal));
                *compiled.kinds.entry("signal frame").or_default() += 1;
                continue;
            }
            let mut table = match function.rows(self.frames, self.bases, &mut context) {
                Ok(table) => table,
                Err(error) => {
                    compiled.damaged.push((function.offset(), error));
                    builder.add(start, start.saturating_add(size), Packed::special(Special::Bad));
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
                    return Err(UnwindError::TooLarge(self.section.bytes.len() as u64));
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
                            gimli::CfaRule::RegisterAndOffset { .. } => "by r10",
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
                builder.add(row.start_address(), row.end_address(), packed);
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
