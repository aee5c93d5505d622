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

#[cfg(test)]
mod tests {
    use super::*;

    /// Holds a recorded table against what the interpreter that made it says: runs of instructions and their line, 0 for
    /// none. The function, compiled by each version, has a comprehension, a line 201 below the one before, an exception
    /// handler and a `with`.
    fn check(format: LineFormat, table: &str, runs: &[(u64, u32)]) {
        let bytes: Vec<u8> =
            (0..table.len()).step_by(2).map(|at| u8::from_str_radix(&table[at..at + 2], 16).unwrap()).collect();
        let mut instruction = 0;
        for &(count, line) in runs {
            for _ in 0..count {
                let found = line_of(format, &bytes, 1, instruction).unwrap_or(0);
                assert_eq!(found, line, "instruction {instruction}");
                instruction += 1;
            }
        }
        // Whatever is cut off or damaged, nothing worse happens than a wrong line.
        for end in 0..bytes.len() {
            line_of(format, &bytes[..end], u32::MAX, instruction);
            let mut damaged = bytes.clone();
            damaged[end] ^= 0xff;
            line_of(format, &damaged, 1, u64::from(UNKNOWN));
        }
    }

    const UNKNOWN: u32 = 65_534;

    #[test]
    fn pairs_of_3_8_and_3_9_are_read() {
        check(
            LineFormat::Pairs,
            "0001060102ff06020201027f004a028000b7087f004b0e010a0106011601",
            &[
                (3, 2),
                (1, 3),
                (3, 2),
                (1, 4),
                (1, 5),
                (1, 206),
                (4, 5),
                (7, 207),
                (5, 208),
                (3, 209),
                (11, 210),
                (2, 211),
            ],
        );
        check(
            LineFormat::Pairs,
            "0001060102ff06020201027f004a028000b7087f004b0c010a0106012201",
            &[
                (3, 2),
                (1, 3),
                (3, 2),
                (1, 4),
                (1, 5),
                (1, 206),
                (4, 5),
                (6, 207),
                (5, 208),
                (3, 209),
                (17, 210),
                (2, 211),
            ],
        );
    }

    #[test]
    fn ranges_of_3_10_are_read() {
        check(
            LineFormat::Ranges,
            "0601020106ff02020201007f024a008108b6007f0c4b080102ff0602020120ff0402",
            &[
                (3, 2),
                (1, 3),
                (3, 2),
                (1, 4),
                (1, 5),
                (1, 206),
                (4, 5),
                (6, 207),
                (4, 208),
                (1, 207),
                (3, 209),
                (1, 210),
                (16, 209),
                (2, 211),
            ],
        );
    }

    #[test]
    fn locations_from_3_11_on_are_read() {
        check(
            LineFormat::Locations,
            "8000f002010915f000010915d81213f003010915f100010915f4000109158041f0044c03050ed80d0ef05206000e0ff1530649030e0f88018801f8f55406000c15f00001050ef00001050ef00001050ed80c0d880188018801f00301050ef8f8f8e0090af0000105118861d80f10f003010511f000010511f000010511f000010511f100010511f400010511f000010511f000010511f000010511f000010511f000010511f000010511f8f8f8f000010511f000010511f000010511f000010511e00b0c8048",
            &[
                (1, 1),
                (2, 2),
                (1, 3),
                (9, 2),
                (1, 4),
                (1, 5),
                (1, 206),
                (4, 5),
                (1, 0),
                (9, 207),
                (4, 208),
                (1, 207),
                (3, 0),
                (3, 209),
                (1, 210),
                (17, 209),
                (3, 0),
                (4, 209),
                (2, 211),
            ],
        );
        check(
            LineFormat::Locations,
            "8000e01213f603010915d80d0ef203000a0bf0000109158041f000010915f0044c03050ed80d0ef05206000e0ff1530649030e0f8801f05806000a0bf0000105118861d80f10f703010511f100010511f9f25f06010915f8f45a06000c15f20001050ed80c0d8a01f00301050efaf704010511e00b0c8048fa",
            &[
                (1, 1),
                (1, 3),
                (7, 2),
                (1, 3),
                (6, 2),
                (1, 4),
                (1, 5),
                (1, 206),
                (3, 5),
                (3, 209),
                (1, 210),
                (10, 209),
                (2, 0),
                (3, 2),
                (1, 0),
                (8, 207),
                (4, 208),
                (1, 207),
                (3, 0),
                (8, 209),
                (2, 211),
                (3, 0),
            ],
        );
        check(
            LineFormat::Locations,
            "8000e11213f303010915d912138851f303000a0bd91213f003000506f000010915f0044c03050ed80d0ef05206000e0ff1530649030e0f8801f15806000a0b8861d80f10f703000a0b8911f9f25f06010915f8f45a06000c15f30001050ed80c0d8a01f00301050efae7090a8c11e00b0c8048fa",
            &[
                (1, 1),
                (2, 3),
                (4, 2),
                (3, 3),
                (4, 2),
                (2, 3),
                (2, 2),
                (1, 4),
                (1, 5),
                (1, 206),
                (3, 5),
                (3, 209),
                (1, 210),
                (10, 209),
                (2, 0),
                (3, 2),
                (1, 0),
                (9, 207),
                (4, 208),
                (1, 207),
                (3, 0),
                (13, 209),
                (2, 211),
                (3, 0),
            ],
        );
    }
}
