//! Line tables of code objects: the line of an instruction, in the three ways that versions code it.

/// How a line table is coded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LineFormat {
    /// `co_lnotab`: increments of address and line, 3.8 and 3.9. Source: Objects/lnotab_notes.txt, 3.9.
    Pairs,
    /// `co_linetable`: lengths and increments of the line, 3.10. Source: Objects/lnotab_notes.txt, 3.10.
    Ranges,
    /// `co_linetable`: locations with columns, from 3.11 on. Source: Objects/locations.md, 3.11.
    Locations,
}

/// The line of an instruction, which is counted in code units of two bytes; `None` where the table gives none.
pub(super) fn line_of(format: LineFormat, table: &[u8], first_line: u32, instruction: u64) -> Option<u32> {
    let line = match format {
        LineFormat::Pairs => in_pairs(table, i64::from(first_line), 2 * instruction),
        LineFormat::Ranges => in_ranges(table, i64::from(first_line), 2 * instruction),
        LineFormat::Locations => in_locations(table, i64::from(first_line), instruction),
    };
    line.and_then(|line| u32::try_from(line).ok())
}

fn in_pairs(table: &[u8], first_line: i64, address: u64) -> Option<i64> {
    let (mut line, mut at) = (first_line, 0);
    for &[bytes, lines] in table.as_chunks::<2>().0 {
        at += u64::from(bytes);
        if at > address {
            break;
        }
        line += i64::from(lines.cast_signed());
    }
    Some(line)
}

fn in_ranges(table: &[u8], first_line: i64, address: u64) -> Option<i64> {
    /// No line in this range.
    const NONE: i8 = -128;
    let (mut line, mut end) = (first_line, 0);
    for &[bytes, lines] in table.as_chunks::<2>().0 {
        let lines = lines.cast_signed();
        end += u64::from(bytes);
        if lines != NONE {
            line += i64::from(lines);
        }
        if address < end {
            return (lines != NONE).then_some(line);
        }
    }
    None
}

fn in_locations(table: &[u8], first_line: i64, instruction: u64) -> Option<i64> {
    let mut bytes = table.iter().copied();
    let (mut line, mut end) = (first_line, 0);
    // An entry begins with the one byte whose top bit is set.
    while let Some(head) = bytes.next() {
        if head & 0x80 == 0 {
            return None;
        }
        end += u64::from(head & 7) + 1;
        let code = (head >> 3) & 15;
        match code {
            0..=9 => drop(bytes.next()?),
            10..=12 => {
                line += i64::from(code - 10);
                bytes.nth(1)?;
            }
            13 => line += signed(&mut bytes)?,
            14 => {
                line += signed(&mut bytes)?;
                for _ in 0..3 {
                    number(&mut bytes)?;
                }
            }
            _ => {}
        }
        if instruction < end {
            return (code != 15).then_some(line);
        }
    }
    None
}

/// A number in groups of six bits, the low ones first.
fn number(bytes: &mut impl Iterator<Item = u8>) -> Option<u32> {
    let (mut value, mut shift) = (0_u32, 0_u32);
    loop {
        let byte = bytes.next()?;
        value |= u32::from(byte & 0x3f).checked_shl(shift)?;
        if byte & 0x40 == 0 {
            return Some(value);
        }
        shift += 6;
    }
}

/// A number whose sign is its lowest bit.
fn signed(bytes: &mut impl Iterator<Item = u8>) -> Option<i64> {
    let value = number(bytes)?;
    let size = i64::from(value >> 1);
    Some(if value & 1 == 0 { size } else { -size })
}
