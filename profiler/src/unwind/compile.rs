//! Call-frame information to a table.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::ops::Range;

use profiler_common::unwind::{Packed, Special};
use thiserror::Error;

use super::cache::{self, Cache};
use super::cursor::{Bases, FrameError};
use super::frames::{Form, Frames, Function};
use super::go;
use super::program::{Block, Cfa, Machine, Place, Rows, State, register};
use super::rules::{Refusal, Rules, Translated, translate};
use super::sections::{self, SectionData};
use super::table::{Table, TableBuilder};
use crate::process::LineTable;

/// Rows made of one object at most: the largest programs known have some ten million.
pub(super) const MAX_ROWS: usize = 16 << 20;

/// Bytes read for each byte of the section. Functions that refer to common entries of their own, which lie over each
/// other, make more of it than there are; below 2 in every object seen.
const MAX_WORK: usize = 16;

/// Entries that cannot be read, after which the section is taken for damaged as a whole.
const MAX_DAMAGED: usize = 10_000;

/// Bytes of code from the first function to the last. x86-64 code reaches 2 GiB; each page costs 8 bytes.
pub(super) const MAX_SPAN: u64 = 4 << 30;

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
    /// It is compressed in a way that is not read, or badly.
    #[error("cannot decompress .debug_frame: {0}")]
    Compressed(&'static str),
    /// It cannot be understood.
    #[error("damaged call-frame information: {0}")]
    Damaged(FrameError),
}

/// What was made of an object's call-frame information.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
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
    pub damaged: Vec<(usize, FrameError)>,
    /// Rows by kind, for a person.
    pub kinds: BTreeMap<&'static str, usize>,
    /// Whether it was compiled before, and kept.
    pub from_cache: bool,
}

/// Compiles the call-frame information of an open ELF file.
///
/// # Errors
///
/// When the file cannot be used as a whole. A function that cannot be read costs itself.
pub fn compile(file: &File, rules: &mut Rules) -> Result<Compiled, UnwindError> {
    load_or_compile(None, file, rules)
}

/// Compiles the call-frame information of an open ELF file, or takes what was made of the same before.
///
/// # Errors
///
/// Those of [`compile`]. A cache adds none.
pub fn load_or_compile(cache: Option<&Cache>, file: &File, rules: &mut Rules) -> Result<Compiled, UnwindError> {
    let Some(mut lines) = LineTable::find(file) else { return from_frames(cache, file, rules, true) };
    // What Go's linker writes to .debug_frame says the same, but where stacks begin.
    let mut compiled = from_frames(cache, file, rules, false).unwrap_or_default();
    match go::add(&mut lines, &mut compiled, rules) {
        Some(()) => Ok(compiled),
        None => from_frames(cache, file, rules, true),
    }
}

/// The table of call-frame information; `debug`: whether that of debug information may be used.
fn from_frames(cache: Option<&Cache>, file: &File, rules: &mut Rules, debug: bool) -> Result<Compiled, UnwindError> {
    let sections = sections::read(file)?;
    let mut make = |form, section: &SectionData| {
        let address = (form == Form::EhFrame).then_some(section.address);
        let bases = Bases { section: address, text: sections.text_address, data: sections.got_address };
        cache::load_or_compile(cache, &Source { form, section, bases, code: &sections.code }, rules)
    };
    if let Some(section) = &sections.eh_frame {
        let compiled = make(Form::EhFrame, section)?;
        // Some linkers leave the section empty, and what there is elsewhere.
        if compiled.functions > 0 {
            return Ok(compiled);
        }
    }
    if !debug {
        return Err(UnwindError::NoFrames);
    }
    let section = sections.debug_frame()?.ok_or(UnwindError::NoFrames)?;
    let compiled = make(Form::DebugFrame, &section)?;
    if compiled.functions == 0 {
        return Err(UnwindError::NoFrames);
    }
    Ok(compiled)
}

/// What a table is made of, and of nothing else.
#[derive(Clone, Debug)]
pub(super) struct Source<'s> {
    pub(super) form: Form,
    pub(super) section: &'s SectionData,
    pub(super) bases: Bases,
    /// Virtual addresses of the executable segments.
    pub(super) code: &'s [Range<u64>],
}

/// Compiles a section.
pub(super) fn compile_source(source: &Source<'_>, rules: &mut Rules) -> Result<Compiled, UnwindError> {
    let known = rules.rules().len();
    let mut once = |tracks_rbx| {
        rules.truncate(known);
        Compiler::new(source, rules, tracks_rbx).compile()
    };
    let compiled = match once(false)? {
        Some(compiled) => Some(compiled),
        None => once(true)?,
    };
    compiled.ok_or(UnwindError::Excessive("rbx is followed already"))
}

/// Kinds of rows, as they are counted.
#[derive(Clone, Copy)]
pub(super) enum Kind {
    ByRsp,
    ByRbp,
    ByRbx,
    ByOther,
    ByMemory,
    SignalFrame,
    Outermost,
    Plt,
    NotUnderstood,
}

impl Kind {
    pub(super) const NAMES: [&'static str; 9] = [
        "by rsp",
        "by rbp",
        "by rbx",
        "by another register",
        "by memory",
        "signal frame",
        "outermost",
        "PLT",
        "not understood",
    ];
}

struct Compiler<'s> {
    source: &'s Source<'s>,
    rules: &'s mut Rules,
    tracks_rbx: bool,
    builder: TableBuilder,
    kinds: [usize; Kind::NAMES.len()],
    rows: usize,
    /// What was made of states seen lately: functions go through the same few.
    memory: Vec<Option<(State, Kind, Packed)>>,
    compiled: Compiled,
}

/// States remembered, each in a place of its own that its numbers lead to. A power of two; more than most objects have.
const REMEMBERED: usize = 1024;

/// The place of a state in the memory.
#[inline(always)]
fn slot(state: &State) -> usize {
    let cfa = match state.cfa {
        Cfa::Register { register, offset } => offset.cast_unsigned() ^ u32::from(register),
        Cfa::Expression(Block(at)) => at,
    };
    let saved = match state.rbp {
        Place::Offset(offset) => offset.cast_unsigned(),
        _ => 0,
    };
    // Odd numbers without a pattern: the upper bits of the product depend on all bits.
    let mixed = cfa.wrapping_mul(0x9e37_79b1).wrapping_add(saved.wrapping_mul(0x85eb_ca77));
    (mixed >> (u32::BITS - REMEMBERED.ilog2())) as usize
}

impl<'s> Compiler<'s> {
    fn new(source: &'s Source<'s>, rules: &'s mut Rules, tracks_rbx: bool) -> Self {
        Self {
            source,
            rules,
            tracks_rbx,
            builder: TableBuilder::default(),
            kinds: Default::default(),
            rows: 0,
            memory: vec![None; REMEMBERED],
            compiled: Compiled::default(),
        }
    }

    /// Compiles all functions. `None`: frames relative to rbx were found, which are rare: only where there are some,
    /// rbx has to be followed through all others.
    fn compile(mut self) -> Result<Option<Compiled>, UnwindError> {
        let Source { form, section, bases, code } = self.source;
        let mut frames = Frames::new(*form, &section.bytes, *bases);
        let mut machine = Machine::new(self.tracks_rbx);
        let (mut first, mut end) = (u64::MAX, 0);
        loop {
            if self.compiled.damaged.len() > MAX_DAMAGED {
                return Err(UnwindError::Damaged(self.compiled.damaged[0].1));
            }
            let (offset, function) = match frames.next(&mut machine) {
                Ok(None) => break,
                Ok(Some(found)) => found,
                // The length of an entry leads to the next: after a damaged one there is nothing to hold on to.
                Err((_, error)) if self.compiled.functions == 0 => return Err(UnwindError::Damaged(error)),
                Err(damaged) => {
                    self.compiled.damaged.push(damaged);
                    break;
                }
            };
            if frames.work / MAX_WORK > section.bytes.len() {
                return Err(UnwindError::Excessive("too much work"));
            }
            self.compiled.functions += 1;
            let function = match function {
                Ok(function) => function,
                Err(error) => {
                    self.compiled.damaged.push((offset, error));
                    continue;
                }
            };
            let (start, size) = (function.start, function.size);
            // A linker that discards a function leaves its entry, with address 0 or another where no code is.
            let segment = code.iter().find(|segment| segment.contains(&start));
            let Some(segment) = segment.filter(|_| start != 0 && size != 0) else {
                self.compiled.discarded += 1;
                continue;
            };
            let limit = start.saturating_add(size).min(segment.end);
            (first, end) = (first.min(start), end.max(limit));
            if end - first > MAX_SPAN {
                return Err(UnwindError::Excessive("code over more than 4 GiB"));
            }
            if function.common.signal {
                // The handler returns to the trampoline's first byte: the call looks as if it were one before.
                self.builder.add(start - 1, limit, Packed::special(Special::Signal));
                self.kinds[Kind::SignalFrame as usize] += 1;
                continue;
            }
            // Each row takes an instruction of one byte at least, and there is a last one.
            if self.rows + function.program.clone().rest().len() >= MAX_ROWS {
                return Err(UnwindError::Excessive("too many rows"));
            }
            if let Err(error) = self.function(function, limit, bases, &mut machine) {
                self.compiled.damaged.push((offset, error));
            }
            if self.kinds[Kind::ByRbx as usize] > 0 && !self.tracks_rbx {
                return Ok(None);
            }
        }
        let counted = Kind::NAMES.into_iter().zip(self.kinds).filter(|&(_, count)| count > 0);
        let (table, kinds) = (self.builder.build(), counted.collect());
        let (frame_bytes, section) = (section.bytes.len(), form.section_name());
        Ok(Some(Compiled { table, section, frame_bytes, kinds, ..self.compiled }))
    }

    /// Adds a function's rows up to an address.
    #[inline(always)]
    fn function(
        &mut self,
        function: Function<'_>,
        limit: u64,
        bases: &Bases,
        machine: &mut Machine,
    ) -> Result<(), FrameError> {
        let Function { start, size, common, program } = function;
        let last = (Kind::NotUnderstood, Packed::special(Special::Bad));
        let mut rows = FunctionRows { compiler: self, start, limit, last, refusal: None };
        let run = machine.run(program, common.factors, bases, Some(&common.initial), start, &mut rows);
        if let Some(refused) = rows.refusal {
            self.compiled.refused.push((start, size, refused));
        }
        run.map(|_| ())
    }
}

/// Takes the rows of a function.
struct FunctionRows<'c, 's> {
    compiler: &'c mut Compiler<'s>,
    start: u64,
    limit: u64,
    last: (Kind, Packed),
    refusal: Option<Refusal>,
}

impl Rows for FunctionRows<'_, '_> {
    #[inline(always)]
    fn row(&mut self, state: &State, changed: bool, start: u64, end: u64) {
        if changed {
            self.last = match self.compiler.memory[slot(state)] {
                Some((known, kind, packed)) if known == *state => (kind, packed),
                _ => self.translate(state),
            };
        }
        let compiler = &mut *self.compiler;
        compiler.rows += 1;
        compiler.kinds[self.last.0 as usize] += 1;
        compiler.builder.add(start.max(self.start), end.min(self.limit), self.last.1);
    }
}

impl FunctionRows<'_, '_> {
    /// Translates a state that is not remembered, and remembers it.
    #[inline(never)]
    fn translate(&mut self, state: &State) -> (Kind, Packed) {
        let compiler = &mut *self.compiler;
        match row_of(state, &compiler.source.section.bytes, compiler.tracks_rbx, compiler.rules) {
            (kind, Ok(packed)) => {
                compiler.memory[slot(state)] = Some((*state, kind, packed));
                (kind, packed)
            }
            // Not remembered: each function says why.
            (kind, Err(refused)) => {
                self.refusal = Some(refused);
                (kind, Packed::special(Special::Bad))
            }
        }
    }
}

/// A row's kind and what is put into the table for it.
fn row_of(state: &State, section: &[u8], tracks_rbx: bool, rules: &mut Rules) -> (Kind, Result<Packed, Refusal>) {
    match translate(state, section, tracks_rbx) {
        Ok(Translated::Special(special)) => {
            let kind = match special {
                Special::End => Kind::Outermost,
                Special::Plt11 | Special::Plt10 => Kind::Plt,
                Special::Signal => Kind::SignalFrame,
                Special::None | Special::Bad | Special::OtherStack => Kind::NotUnderstood,
            };
            (kind, Ok(Packed::special(special)))
        }
        Ok(Translated::Rule(rule)) => {
            let kind = match state.cfa {
                Cfa::Register { register: register::RSP, .. } => Kind::ByRsp,
                Cfa::Register { register: register::RBP, .. } => Kind::ByRbp,
                Cfa::Register { register: register::RBX, .. } => Kind::ByRbx,
                Cfa::Register { .. } => Kind::ByOther,
                Cfa::Expression(_) => Kind::ByMemory,
            };
            (kind, rules.pack(rule))
        }
        Err(refused) => (Kind::NotUnderstood, Err(refused)),
    }
}
