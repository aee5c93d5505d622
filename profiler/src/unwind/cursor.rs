//! Reads numbers and pointers from call-frame information: never behind its end, never with a panic.
//!
//! Source: DWARF 5, section 7.6 (LEB128); Linux Standard Base 5, section 10.5 (pointer encodings).

use thiserror::Error;

/// Why an entry of call-frame information cannot be read.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum FrameError {
    /// Something is longer than what it is in.
    #[error("it ends too early")]
    Truncated,
    /// A length that is reserved.
    #[error("an entry of reserved length")]
    Length,
    /// The common entry is not where the function's entry says it is.
    #[error("no common entry where a function refers to one")]
    NoCommonEntry,
    /// A common entry of another version.
    #[error("a common entry of unknown version {0}")]
    Version(u8),
    /// An augmentation whose data cannot be skipped.
    #[error("an unknown augmentation {0:#04x}")]
    Augmentation(u8),
    /// Addresses that are not of 8 bytes, or in segments.
    #[error("addresses that are not of 64 bits")]
    AddressSize,
    /// A pointer that is not in the file itself.
    #[error("a pointer of unsupported encoding {0:#04x}")]
    Pointer(u8),
    /// A number of more than 64 bits, or a register's of more than 16.
    #[error("a number that is too large")]
    Number,
    /// An instruction that is not known.
    #[error("unknown instruction {0:#04x}")]
    Instruction(u8),
    /// An instruction that needs what is not there: a frame address by register, an initial rule.
    #[error("an instruction out of place")]
    OutOfPlace,
    /// States are restored that were not remembered, or more are remembered than any compiler does.
    #[error("states remembered and restored in disorder")]
    States,
    /// The address goes back or beyond 64 bits.
    #[error("an address out of order")]
    Address,
}

/// What pointers may be relative to, beside their own place.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Bases {
    /// Virtual address of the section that is read, if it is loaded.
    pub(super) section: Option<u64>,
    /// Virtual address of the code.
    pub(super) text: Option<u64>,
    /// Virtual address of the data: the global offset table.
    pub(super) data: Option<u64>,
}

/// A place in a section.
#[derive(Clone, Debug)]
pub(super) struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

/// Addresses are of 64 bits: `DW_EH_PE_absptr` is 8 bytes long.
const ABSOLUTE: u8 = 0x00;
const INDIRECT: u8 = 0x80;

impl<'a> Cursor<'a> {
    /// At an offset of a section, or of its first part.
    pub(super) const fn new(bytes: &'a [u8], at: usize) -> Self {
        Self { bytes, at }
    }

    /// The offset in the section.
    pub(super) const fn at(&self) -> usize {
        self.at
    }

    /// The bytes that are left.
    pub(super) fn rest(self) -> &'a [u8] {
        self.bytes.get(self.at..).unwrap_or_default()
    }

    /// The next byte, if there is one.
    #[inline(always)]
    pub(super) fn next(&mut self) -> Option<u8> {
        let byte = *self.bytes.get(self.at)?;
        self.at += 1;
        Some(byte)
    }

    #[inline(always)]
    pub(super) fn byte(&mut self) -> Result<u8, FrameError> {
        self.next().ok_or(FrameError::Truncated)
    }

    #[inline(always)]
    fn array<const N: usize>(&mut self) -> Result<[u8; N], FrameError> {
        let array = self.bytes.get(self.at..).and_then(|rest| rest.first_chunk()).ok_or(FrameError::Truncated)?;
        self.at += N;
        Ok(*array)
    }

    pub(super) fn u16(&mut self) -> Result<u16, FrameError> {
        self.array().map(u16::from_le_bytes)
    }

    #[inline(always)]
    pub(super) fn u32(&mut self) -> Result<u32, FrameError> {
        self.array().map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self) -> Result<u64, FrameError> {
        self.array().map(u64::from_le_bytes)
    }

    /// The part of `size` bytes from here on, as a cursor of its own; this one goes on behind it.
    #[inline(always)]
    pub(super) fn split(&mut self, size: u64) -> Result<Self, FrameError> {
        let end = usize::try_from(size).ok().and_then(|size| self.at.checked_add(size));
        let end = end.filter(|&end| end <= self.bytes.len()).ok_or(FrameError::Truncated)?;
        let part = Self { bytes: &self.bytes[..end], at: self.at };
        self.at = end;
        Ok(part)
    }

    /// The bytes up to the next zero, which is skipped.
    pub(super) fn until_zero(&mut self) -> Result<&'a [u8], FrameError> {
        let rest = self.bytes.get(self.at..).unwrap_or_default();
        let size = rest.iter().position(|&byte| byte == 0).ok_or(FrameError::Truncated)?;
        self.at += size + 1;
        Ok(&rest[..size])
    }

    /// An unsigned LEB128 number.
    #[inline(always)]
    pub(super) fn unsigned(&mut self) -> Result<u64, FrameError> {
        let byte = self.byte()?;
        if byte < 0x80 { Ok(u64::from(byte)) } else { self.long_unsigned(byte) }
    }

    fn long_unsigned(&mut self, first: u8) -> Result<u64, FrameError> {
        let mut number = u64::from(first & 0x7f);
        for shift in (7..63).step_by(7) {
            let byte = self.byte()?;
            number |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Ok(number);
            }
        }
        match self.byte()? {
            byte @ (0 | 1) => Ok(number | u64::from(byte) << 63),
            _ => Err(FrameError::Number),
        }
    }

    /// A signed LEB128 number.
    pub(super) fn signed(&mut self) -> Result<i64, FrameError> {
        let mut number = 0;
        for shift in (0..63).step_by(7) {
            let byte = self.byte()?;
            number |= i64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                let unused = 64 - (shift + 7);
                return Ok(number << unused >> unused);
            }
        }
        match self.byte()? {
            0x00 => Ok(number),
            0x7f => Ok(number | i64::MIN),
            _ => Err(FrameError::Number),
        }
    }

    /// A register's number.
    #[inline(always)]
    pub(super) fn register(&mut self) -> Result<u16, FrameError> {
        u16::try_from(self.unsigned()?).map_err(|_| FrameError::Number)
    }

    /// A number in the format of a pointer encoding; negative ones as their 64 bits.
    #[inline(always)]
    pub(super) fn value(&mut self, encoding: u8) -> Result<u64, FrameError> {
        match encoding & 0x0f {
            ABSOLUTE | 0x04 | 0x0c => self.u64(),
            0x01 => self.unsigned(),
            0x02 => self.u16().map(u64::from),
            0x03 => self.u32().map(u64::from),
            0x09 => self.signed().map(i64::cast_unsigned),
            0x0a => self.u16().map(|number| i64::from(number.cast_signed()).cast_unsigned()),
            0x0b => self.u32().map(|number| i64::from(number.cast_signed()).cast_unsigned()),
            _ => Err(FrameError::Pointer(encoding)),
        }
    }

    /// A pointer. One that is to be read from memory is refused: files do not hold what the linker puts there.
    #[inline(always)]
    pub(super) fn pointer(&mut self, encoding: u8, bases: &Bases) -> Result<u64, FrameError> {
        if encoding & INDIRECT != 0 {
            return Err(FrameError::Pointer(encoding));
        }
        let base = match encoding & 0x70 {
            ABSOLUTE => Some(0),
            0x10 => bases.section.map(|section| section.wrapping_add(self.at as u64)),
            0x20 => bases.text,
            0x30 => bases.data,
            // Relative to the function, which is what is being read; aligned, which no linker writes.
            _ => None,
        };
        let base = base.ok_or(FrameError::Pointer(encoding))?;
        Ok(base.wrapping_add(self.value(encoding)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_every_length_are_read() {
        let unsigned = |bytes: &[u8]| Cursor::new(bytes, 0).unsigned();
        let signed = |bytes: &[u8]| Cursor::new(bytes, 0).signed();
        assert_eq!(unsigned(&[0x7f]), Ok(127));
        assert_eq!(unsigned(&[0xe5, 0x8e, 0x26]), Ok(624_485));
        let mut longest = [0xff; 10];
        longest[9] = 1;
        assert_eq!(unsigned(&longest), Ok(u64::MAX));
        longest[9] = 2;
        assert_eq!(unsigned(&longest), Err(FrameError::Number));
        assert_eq!(unsigned(&[0x80; 9]), Err(FrameError::Truncated));
        assert_eq!(signed(&[0x78]), Ok(-8));
        assert_eq!(signed(&[0x80, 0x7f]), Ok(-128));
        assert_eq!(signed(&[0xff, 0x00]), Ok(127));
        let mut longest = [0x80; 10];
        longest[9] = 0x7f;
        assert_eq!(signed(&longest), Ok(i64::MIN));
        longest[9] = 0x3f;
        assert_eq!(signed(&longest), Err(FrameError::Number));
        assert_eq!(signed(&[]), Err(FrameError::Truncated));
    }

    #[test]
    fn pointers_are_relative_to_what_their_encoding_says() {
        let bases = Bases { section: Some(0x1000), text: Some(0x2000), data: None };
        let pointer = |encoding, bytes: &[u8]| Cursor::new(bytes, 1).pointer(encoding, &bases);
        assert_eq!(pointer(0x1b, &[0, 0xfe, 0xff, 0xff, 0xff]), Ok(0x0fff));
        assert_eq!(pointer(0x22, &[0, 0x10, 0x01]), Ok(0x2110));
        assert_eq!(pointer(0x00, &[0, 1, 2, 0, 0, 0, 0, 0, 0]), Ok(0x0201));
        assert_eq!(pointer(0x3b, &[0; 5]), Err(FrameError::Pointer(0x3b)), "no base for it");
        assert_eq!(pointer(0x9b, &[0; 5]), Err(FrameError::Pointer(0x9b)), "indirect");
        assert_eq!(pointer(0x4b, &[0; 5]), Err(FrameError::Pointer(0x4b)));
        assert_eq!(pointer(0x15, &[0; 9]), Err(FrameError::Pointer(0x15)));
        assert_eq!(pointer(0x1b, &[0; 4]), Err(FrameError::Truncated));
        assert_eq!(pointer(0xff, &[0; 9]), Err(FrameError::Pointer(0xff)));
    }
}
