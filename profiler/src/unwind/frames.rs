//! The entries of a section of call-frame information: which functions it describes, and by which programs.
//!
//! Input: the section's bytes. Output: one function after another. An entry that cannot be read costs itself.
//! Source: DWARF 5, section 6.4.1; Linux Standard Base 5, section 10.6 (`.eh_frame`).

use std::collections::HashMap;

use super::cursor::{Bases, Cursor, FrameError};
use super::program::{Factors, Machine, Rows, State};

/// Which of the two forms a section has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// `.eh_frame`: loaded with the program, ends with an empty entry.
    EhFrame,
    /// `.debug_frame`: for debuggers.
    DebugFrame,
}

impl Form {
    /// The section's name.
    pub(super) const fn section_name(self) -> &'static str {
        match self {
            Self::EhFrame => ".eh_frame",
            Self::DebugFrame => ".debug_frame",
        }
    }
}

/// What functions share: a common information entry, read once.
#[derive(Clone, Copy, Debug)]
pub(super) struct Common {
    pub(super) factors: Factors,
    /// The rules that each function begins with.
    pub(super) initial: State,
    /// Whether its functions are trampolines that a signal handler returns to.
    pub(super) signal: bool,
    /// Whether its functions' entries have data of their own before the program.
    augmented: bool,
}

/// A function described.
#[derive(Debug)]
pub(super) struct Function<'a> {
    /// Its first address.
    pub(super) start: u64,
    /// Its size in bytes.
    pub(super) size: u64,
    /// What it shares with others.
    pub(super) common: Common,
    /// Its instructions.
    pub(super) program: Cursor<'a>,
}

/// Common entries found lately, by the low bits of where they are. Functions refer to few, in turns.
const RECENT: usize = 16;

/// Reads entry by entry.
pub(super) struct Frames<'a> {
    form: Form,
    section: &'a [u8],
    bases: Bases,
    cursor: Cursor<'a>,
    commons: HashMap<usize, Result<Common, FrameError>>,
    recent: [(usize, Option<Common>); RECENT],
    /// Bytes read, each time they are: what common entries that lie over each other add to is more than the section.
    pub(super) work: usize,
}

/// The head of an entry.
struct Head<'a> {
    /// The offset of the number that says what it is.
    at: usize,
    /// That number: zero or all ones for a common entry, else where the common entry is.
    id: u64,
    /// Whether it is a common entry.
    is_common: bool,
    rest: Cursor<'a>,
}

impl<'a> Frames<'a> {
    /// At the first entry.
    pub(super) fn new(form: Form, section: &'a [u8], bases: Bases) -> Self {
        Self {
            form,
            section,
            bases,
            cursor: Cursor::new(section, 0),
            commons: HashMap::new(),
            recent: [(0, None); RECENT],
            work: 0,
        }
    }

    /// The next function's entry and its offset; `None` at the end.
    ///
    /// # Errors
    ///
    /// The outer one when nothing can be found behind this entry, the inner one for this function alone.
    #[inline(always)]
    #[expect(clippy::type_complexity, reason = "two kinds of failure that the caller treats differently")]
    pub(super) fn next(
        &mut self,
        machine: &mut Machine,
    ) -> Result<Option<(usize, Result<Function<'a>, FrameError>)>, (usize, FrameError)> {
        loop {
            let at = self.cursor.at();
            if at >= self.section.len() {
                return Ok(None);
            }
            let head = match head(self.form, &mut self.cursor) {
                Ok(Some(head)) => head,
                Ok(None) if self.form == Form::EhFrame => return Ok(None),
                // Some assemblers leave empty entries in .debug_frame.
                Ok(None) => continue,
                Err(error) => return Err((at, error)),
            };
            self.work += self.cursor.at() - at;
            if !head.is_common {
                return Ok(Some((at, self.function(head, machine))));
            }
        }
    }

    #[inline(always)]
    fn function(&mut self, head: Head<'a>, machine: &mut Machine) -> Result<Function<'a>, FrameError> {
        let at = match self.form {
            Form::EhFrame => (head.at as u64).checked_sub(head.id),
            Form::DebugFrame => Some(head.id),
        };
        let at = at.and_then(|at| usize::try_from(at).ok()).ok_or(FrameError::NoCommonEntry)?;
        let common = match self.recent[at / 4 % RECENT] {
            (found, Some(common)) if found == at => common,
            _ => self.common(at, machine)?,
        };
        let mut rest = head.rest;
        let encoding = common.factors.pointer;
        let start = rest.pointer(encoding, &self.bases)?;
        let size = rest.value(encoding)?;
        if common.augmented {
            let size = rest.unsigned()?;
            rest.split(size)?;
        }
        Ok(Function { start, size, common, program: rest })
    }

    /// The common entry at an offset.
    #[cold]
    fn common(&mut self, at: usize, machine: &mut Machine) -> Result<Common, FrameError> {
        let common = match self.commons.get(&at) {
            Some(&common) => common?,
            None => {
                let mut cursor = Cursor::new(self.section, at);
                let common = common(self.form, &mut cursor, &self.bases, machine);
                self.work = self.work.saturating_add(cursor.at() - at);
                *self.commons.entry(at).insert_entry(common).get()
            }?,
        };
        self.recent[at / 4 % RECENT] = (at, Some(common));
        Ok(common)
    }
}

/// A common entry has no rows of its own.
struct NoRows;

impl Rows for NoRows {
    fn row(&mut self, _: &State, _: bool, _: u64, _: u64) {}
}

/// Reads the head of an entry; the cursor goes on behind the entry. `None`: an empty one.
#[inline(always)]
fn head<'a>(form: Form, cursor: &mut Cursor<'a>) -> Result<Option<Head<'a>>, FrameError> {
    let (length, long) = match cursor.u32()? {
        u32::MAX => (cursor.u64()?, true),
        0xffff_fff0.. => return Err(FrameError::Length),
        length => (u64::from(length), false),
    };
    if length == 0 {
        return Ok(None);
    }
    let mut rest = cursor.split(length)?;
    let at = rest.at();
    let (id, is_common) = match (form, long) {
        (Form::EhFrame, _) => rest.u32().map(|id| (u64::from(id), id == 0))?,
        (Form::DebugFrame, false) => rest.u32().map(|id| (u64::from(id), id == u32::MAX))?,
        (Form::DebugFrame, true) => rest.u64().map(|id| (id, id == u64::MAX))?,
    };
    Ok(Some(Head { at, id, is_common, rest }))
}

/// Reads a common entry.
fn common(form: Form, cursor: &mut Cursor<'_>, bases: &Bases, machine: &mut Machine) -> Result<Common, FrameError> {
    let head = head(form, cursor)?.filter(|head| head.is_common).ok_or(FrameError::NoCommonEntry)?;
    let mut rest = head.rest;
    let version = rest.byte()?;
    if !matches!(version, 1 | 3 | 4) {
        return Err(FrameError::Version(version));
    }
    let letters = rest.until_zero()?;
    if form == Form::DebugFrame && version == 4 {
        // The size of an address, and of a segment's number.
        if (rest.byte()?, rest.byte()?) != (8, 0) {
            return Err(FrameError::AddressSize);
        }
    }
    let (code, data) = (rest.unsigned()?, rest.signed()?);
    // The number of the return address: that of the machine's, whatever is said here.
    if version == 1 {
        rest.byte()?;
    } else {
        rest.register()?;
    }
    let (mut signal, mut pointer, mut augmentation) = (false, 0, None);
    for (index, &letter) in letters.iter().enumerate() {
        let unknown = FrameError::Augmentation(letter);
        match (letter, &mut augmentation) {
            (b'z', _) if index == 0 => {
                let size = rest.unsigned()?;
                augmentation = Some(rest.split(size)?);
            }
            // GNU as marks signal frames in .debug_frame without a "z"; B and G are AArch64's, and without data.
            (b'S', _) => signal = true,
            (b'B' | b'G', _) => {}
            (b'R', Some(augmentation)) => pointer = augmentation.byte()?,
            (b'L', Some(augmentation)) => _ = augmentation.byte()?,
            (b'P', Some(augmentation)) => {
                let encoding = augmentation.byte()?;
                augmentation.value(encoding)?;
            }
            _ => return Err(unknown),
        }
    }
    let factors = Factors { code, data, pointer };
    let augmented = augmentation.is_some();
    let initial = machine.run(rest, factors, bases, None, 0, &mut NoRows)?;
    Ok(Common { factors, initial, signal, augmented })
}
