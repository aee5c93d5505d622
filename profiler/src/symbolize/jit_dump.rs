//! Names of code made at run time, with files and lines, from the dump that its process writes (`jit-PID.dump`).
//!
//! Records in the order they were written: code that was made, code that was moved, and lines of code that comes next.
//! Where code replaced other code at an address, the later holds, since a sample does not tell when it was taken. The
//! file is its process's: everything is checked, and what is read and kept has a bound. Read by `pread`, since the
//! descriptor may be another reader's too.
//!
//! Source: tools/perf/Documentation/jitdump-specification.txt.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use super::names::{Found, Names};

/// Bytes of a dump that are read: it has the code itself, some hundred MB after hours.
const MAX_BYTES: u64 = 512 << 20;
/// Pieces of code whose moves are followed.
const MAX_CODES: usize = 1 << 20;
/// Bytes of a function's or file's name that are taken.
const MAX_NAME_BYTES: usize = 4096;
/// Bytes of lines that are read of one dump.
const MAX_LINE_BYTES: u64 = 256 << 20;
/// Lines of one piece of code.
const MAX_LINES: usize = 1 << 20;
/// Addresses that records are noted for, each once a record: a process that says for each of millions of records that
/// it covers everything is not followed to its end.
const MAX_STEPS: usize = 1 << 28;
/// Bytes read at once.
const WINDOW_BYTES: usize = 64 * 1024;

/// "JiTD", as a little-endian process writes it.
const MAGIC: u32 = 0x4a69_5444;
const VERSION: u32 = 1;

/// Kinds of records.
const LOAD: u32 = 0;
const MOVE: u32 = 1;
const DEBUG_INFO: u32 = 2;
const CLOSE: u32 = 3;

/// Kind, size and time, which every record begins with.
const RECORD_HEAD: u64 = 16;
/// The record's pid, tid, address, address of the code, its size and number, before its name.
const LOAD_HEAD: u64 = RECORD_HEAD + 40;
/// The address of the code and the number of lines.
/// Bytes of a record of code that was moved.
const MOVE_HEAD: u64 = RECORD_HEAD + 48;
const DEBUG_HEAD: u64 = RECORD_HEAD + 16;
/// Address, line and discriminator, before the file's name.
const LINE_HEAD: u64 = 16;

/// Bytes of the ELF header of the file that perf makes of a function: V8 adds them to the address of each line.
/// Source: `LinuxPerfJitLogger::LogWriteDebugInfo`, src/diagnostics/perf-jit.cc.
const ELF_HEADER: u64 = 0x40;

/// A piece of code, by its records.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Code {
    /// Offset of the record that made it, and behind it.
    made: (u64, u64),
    /// Offset of the record of its lines, and behind it.
    lines: Option<(u64, u64)>,
    /// Where it was made.
    start: u64,
}

/// Names for addresses, which are ascending; only these are kept of the file.
pub(super) fn names(file: Option<&File>, addresses: &[u64]) -> Names {
    let Some(file) = file else { return Names::new() };
    let mut window = Window { file, start: 0, bytes: Vec::new() };
    let mut found = vec![None; addresses.len()];
    // A dump that is damaged, or still being written, is good up to there.
    let _ = assign(&mut window, addresses, &mut found);
    let mut by_code: BTreeMap<Code, Vec<(u64, u64)>> = BTreeMap::new();
    for (&address, code) in addresses.iter().zip(found) {
        if let Some((code, start)) = code {
            by_code.entry(code).or_default().push((address, code.start.wrapping_add(address - start)));
        }
    }
    let mut names = Names::new();
    let mut bytes_left = MAX_LINE_BYTES;
    for (code, addresses) in by_code {
        let Some(name) = window.text(code.made.0 + LOAD_HEAD, code.made.1) else { continue };
        if name.is_empty() {
            continue;
        }
        let lines = code.lines.filter(|lines| lines.1 - lines.0 <= bytes_left);
        bytes_left -= lines.map_or(0, |lines| lines.1 - lines.0);
        // Nothing may be wrong with the name when something is with the lines.
        let lines = lines.and_then(|lines| lines_of(&mut window, lines, code.start)).unwrap_or_default();
        for (address, made_at) in addresses {
            let before = lines.partition_point(|line| line.0 <= made_at).checked_sub(1);
            let (file, line) =
                before.map_or_else(|| ("".into(), 0), |index| (Arc::clone(&lines[index].2), lines[index].1));
            names.insert(address, vec![Found { name: name.as_str().into(), file, line }]);
        }
    }
    names
}

/// Goes through the records: the code that each address is in at the end, and where that code is.
fn assign(window: &mut Window<'_>, addresses: &[u64], found: &mut [Option<(Code, u64)>]) -> Option<()> {
    let head = window.bytes(0, 12)?;
    if number(head, 0)? != MAGIC || number(head, 4)? != VERSION {
        return None;
    }
    let mut at = u64::from(number(head, 8)?);
    let mut codes: HashMap<u64, Code> = HashMap::new();
    let (mut lines, mut steps) = (None, MAX_STEPS);
    loop {
        let head = window.bytes(at, RECORD_HEAD)?;
        let (kind, size) = (number(head, 0)?, u64::from(number(head, 4)?));
        let end = at.checked_add(size).filter(|&end| size >= RECORD_HEAD && end <= MAX_BYTES)?;
        let body = at + RECORD_HEAD;
        match kind {
            LOAD if size >= LOAD_HEAD => {
                let [_, _, start, bytes, index] = window.words(body)?;
                let code = Code {
                    made: (at, end),
                    lines: lines.take().filter(|&(_, of)| of == start).map(|(at, _)| at),
                    start,
                };
                steps = steps.checked_sub(assign_range(addresses, found, start, bytes, code))?;
                if codes.len() < MAX_CODES || codes.contains_key(&index) {
                    codes.insert(index, code);
                }
            }
            MOVE if size >= MOVE_HEAD => {
                let [_, _, _, start, bytes, index] = window.words(body)?;
                if let Some(&code) = codes.get(&index) {
                    steps = steps.checked_sub(assign_range(addresses, found, start, bytes, code))?;
                }
            }
            DEBUG_INFO if size >= DEBUG_HEAD => {
                let [of] = window.words(body)?;
                lines = Some(((at, end), of));
            }
            CLOSE => return Some(()),
            _ => {}
        }
        at = end;
    }
}

/// Notes what code is at addresses from `start` on; returns how many.
fn assign_range(addresses: &[u64], found: &mut [Option<(Code, u64)>], start: u64, bytes: u64, code: Code) -> usize {
    let first = addresses.partition_point(|&address| address < start);
    let inside = addresses[first..].iter().take_while(|&&address| address - start < bytes).count();
    found[first..first + inside].fill(Some((code, start)));
    inside
}

/// The lines of a piece of code by address, ascending: address, line and file.
fn lines_of(window: &mut Window<'_>, record: (u64, u64), start: u64) -> Option<Vec<(u64, u32, Arc<str>)>> {
    let (at, end) = record;
    let [_, count] = window.words(at + RECORD_HEAD)?;
    let mut at = at + DEBUG_HEAD;
    let mut lines: Vec<(u64, u32, Arc<str>)> = Vec::new();
    for _ in 0..count {
        if at + LINE_HEAD >= end || lines.len() >= MAX_LINES {
            break;
        }
        let [address, line] = window.words(at)?;
        let name_at = at + LINE_HEAD;
        let (file, bytes) = window.text_and_size(name_at, end)?;
        // The file of the line before.
        let file = if bytes == 2 && window.bytes(name_at, 1)? == [0xff] {
            Arc::clone(&lines.last()?.2)
        } else {
            file.as_str().into()
        };
        #[expect(clippy::cast_possible_truncation, reason = "the lower half is the line, the upper the discriminator")]
        lines.push((address, line as u32, file));
        at = name_at + bytes;
    }
    let first = lines.iter().map(|line| line.0).min()?;
    if first >= start.checked_add(ELF_HEADER)? {
        for line in &mut lines {
            line.0 -= ELF_HEADER;
        }
    }
    lines.sort_by_key(|line| line.0);
    Some(lines)
}

/// The dump, a piece of which is in memory.
struct Window<'f> {
    file: &'f File,
    start: u64,
    bytes: Vec<u8>,
}

impl Window<'_> {
    /// Bytes at an offset, at most [`WINDOW_BYTES`].
    fn bytes(&mut self, at: u64, size: u64) -> Option<&[u8]> {
        let size = usize::try_from(size).ok().filter(|&size| size <= WINDOW_BYTES)?;
        let inside = |start: u64, length: usize| {
            let from = usize::try_from(at.checked_sub(start)?).ok()?;
            (from.checked_add(size)? <= length).then_some(from)
        };
        if inside(self.start, self.bytes.len()).is_none() {
            self.bytes.resize(WINDOW_BYTES, 0);
            let mut filled = 0;
            while filled < WINDOW_BYTES {
                match self.file.read_at(&mut self.bytes[filled..], at + filled as u64) {
                    Ok(0) | Err(_) => break,
                    Ok(count) => filled += count,
                }
            }
            self.bytes.truncate(filled);
            self.start = at;
        }
        let from = inside(self.start, self.bytes.len())?;
        self.bytes.get(from..from + size)
    }

    fn words<const N: usize>(&mut self, at: u64) -> Option<[u64; N]> {
        let bytes = self.bytes(at, 8 * N as u64)?;
        let mut words = [0; N];
        for (word, bytes) in words.iter_mut().zip(bytes.as_chunks().0) {
            *word = u64::from_le_bytes(*bytes);
        }
        Some(words)
    }

    fn text(&mut self, at: u64, end: u64) -> Option<String> {
        self.text_and_size(at, end).map(|(text, _)| text)
    }

    /// A text that ends with a zero before `end`, and its size with that.
    fn text_and_size(&mut self, at: u64, end: u64) -> Option<(String, u64)> {
        let most = end.checked_sub(at)?.min(MAX_NAME_BYTES as u64);
        let bytes = self.bytes(at, most)?;
        let length = bytes.iter().position(|&byte| byte == 0)?;
        Some((String::from_utf8_lossy(&bytes[..length]).into_owned(), length as u64 + 1))
    }
}

fn number(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn record(kind: u32, words: &[u64], rest: &[u8]) -> Vec<u8> {
        let size = u32::try_from(16 + 8 * words.len() + rest.len()).unwrap();
        let mut bytes = [kind.to_le_bytes(), size.to_le_bytes(), [0; 4], [0; 4]].concat();
        bytes.extend(words.iter().flat_map(|word| word.to_le_bytes()));
        bytes.extend(rest);
        bytes
    }

    fn load(start: u64, size: u64, index: u64, name: &str) -> Vec<u8> {
        let code = vec![0x90; usize::try_from(size).unwrap()];
        record(LOAD, &[0, start, start, size, index], &[name.as_bytes(), b"\0", &code].concat())
    }

    fn debug(start: u64, lines: &[(u64, u64, &[u8])]) -> Vec<u8> {
        let mut rest = Vec::new();
        for (address, line, file) in lines {
            rest.extend([address.to_le_bytes(), line.to_le_bytes()].concat());
            rest.extend(*file);
            rest.push(0);
        }
        record(DEBUG_INFO, &[start, lines.len() as u64], &rest)
    }

    fn dump(records: &[Vec<u8>]) -> Vec<u8> {
        let mut bytes = [MAGIC, VERSION, 40, 62].map(u32::to_le_bytes).concat();
        bytes.resize(40, 0);
        bytes.extend(records.concat());
        bytes
    }

    fn read(bytes: &[u8], addresses: &[u64]) -> Names {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        names(Some(&file), addresses)
    }

    fn told(names: &Names, address: u64) -> Option<(&str, &str, u32)> {
        names.get(&address).map(|found| (&*found[0].name, &*found[0].file, found[0].line))
    }

    #[test]
    fn what_a_dump_says_again_and_again_has_an_end() {
        // Lines whose file is that of the line before, a long one.
        let mut lines = Vec::new();
        lines.extend([0x1000_u64, 1].map(u64::to_le_bytes).concat());
        lines.extend(vec![b'x'; 4000]);
        lines.push(0);
        for _ in 0..3 * MAX_LINES / 2 {
            lines.extend([0x1000_u64, 2].map(u64::to_le_bytes).concat());
            lines.extend(b"\xff\0");
        }
        let head = [0x1000_u64, u64::try_from(2 * MAX_LINES).unwrap()].map(u64::to_le_bytes).concat();
        let record = |kind: u32, body: &[u8]| {
            let size = u32::try_from(body.len() + 16).unwrap();
            [&kind.to_le_bytes()[..], &size.to_le_bytes(), &[0; 8], body].concat()
        };
        let mut bytes = [MAGIC, VERSION, 40].map(u32::to_le_bytes).concat();
        bytes.resize(40, 0);
        bytes.extend(record(DEBUG_INFO, &[head, lines].concat()));
        let load = [[0; 8], 0x1000_u64.to_le_bytes(), 0x1000_u64.to_le_bytes(), 64_u64.to_le_bytes(), [0; 8]].concat();
        bytes.extend(record(LOAD, &[load, b"hot\0".to_vec(), vec![0x90; 64]].concat()));
        let names = read(&bytes, &[0x1010]);
        assert_eq!(told(&names, 0x1010).map(|(name, file, _)| (name, file.len())), Some(("hot", 4000)));
    }

    #[test]
    fn code_is_named_where_it_is_at_last_with_its_lines() {
        let bytes = dump(&[
            load(0x1000, 0x10, 1, "replaced"),
            // Lines of other code than the next are not the next's.
            debug(0x9000, &[(0x9000, 9, b"other.c")]),
            load(0x2000, 0x10, 2, "moved"),
            debug(0x3000, &[(0x3000, 3, b"a.js"), (0x3008, 4, b"\xff")]),
            load(0x3000, 0x10, 3, "with lines"),
            // As V8 writes them: from the start of a file that is made of the code.
            debug(0x4000, &[(0x4044, 5, b"b.js"), (0x4048, 6, b"\xff")]),
            load(0x4000, 0x10, 4, "as by V8"),
            record(MOVE, &[0, 0, 0x3000, 0x5000, 0x10, 3], &[]),
            record(MOVE, &[0, 0, 0x2000, 0x1008, 0x8, 2], &[]),
            record(77, &[1, 2], b"of a later version"),
            load(0x6000, 0, 5, "empty"),
            record(CLOSE, &[], &[]),
            load(0x7000, 0x10, 6, "after the end"),
        ]);
        let addresses =
            [0x1000, 0x1008, 0x1010, 0x2000, 0x3000, 0x300f, 0x4003, 0x4004, 0x400f, 0x5009, 0x6000, 0x7000];
        let names = read(&bytes, &addresses);
        assert_eq!(told(&names, 0x1000), Some(("replaced", "", 0)));
        assert_eq!(told(&names, 0x1008), Some(("moved", "", 0)));
        assert_eq!(told(&names, 0x1010), None);
        assert_eq!(told(&names, 0x2000), Some(("moved", "", 0)));
        assert_eq!(told(&names, 0x3000), Some(("with lines", "a.js", 3)));
        assert_eq!(told(&names, 0x300f), Some(("with lines", "a.js", 4)));
        assert_eq!(told(&names, 0x4003), Some(("as by V8", "", 0)));
        assert_eq!(told(&names, 0x4004), Some(("as by V8", "b.js", 5)));
        assert_eq!(told(&names, 0x400f), Some(("as by V8", "b.js", 6)));
        assert_eq!(told(&names, 0x5009), Some(("with lines", "a.js", 4)));
        assert_eq!(told(&names, 0x6000), None);
        assert_eq!(told(&names, 0x7000), None);
    }

    #[test]
    fn a_damaged_dump_costs_names_and_nothing_else() {
        let whole = dump(&[
            load(0x1000, 0x10, 1, "first"),
            debug(0x3000, &[(0x3000, 3, b"a.js"), (0x3008, 4, b"\xff")]),
            load(0x3000, 0x10, 3, "second"),
            record(MOVE, &[0, 0, 0x3000, 0x5000, 0x10, 3], &[]),
        ]);
        let addresses = [0, 0x1000, 0x3008, 0x5000, u64::MAX];
        assert_eq!(read(&whole, &addresses).len(), 3);
        for length in 0..whole.len() {
            let names = read(&whole[..length], &addresses);
            assert!(names.values().all(|found| ["first", "second"].contains(&&*found[0].name)));
        }
        for at in 0..whole.len() {
            for change in [0x01, 0x80, 0xff] {
                let mut bytes = whole.clone();
                bytes[at] ^= change;
                read(&bytes, &addresses);
            }
        }
        assert!(read(b"", &addresses).is_empty());
        assert!(read(&[0xff; 4096], &addresses).is_empty());
    }
}
