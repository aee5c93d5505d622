//! Names of code made at run time, from the perf map its process writes.
//!
//! One entry a line, `START SIZE name`, in hexadecimal; a later entry replaces an earlier one where they overlap.
//! Source: tools/perf/Documentation/jit-interface.txt.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};

use super::names::{Found, Names};

/// Bytes of a perf map that are read. Node.js writes some tens of MB after hours.
const MAX_BYTES: u64 = 512 << 20;
/// Names that are noted, those that a later one replaces included.
const MAX_STEPS: u32 = 1 << 26;
/// Longest line: generated names are long, but not that long.
const MAX_LINE_BYTES: u64 = 64 * 1024;

/// Names for addresses, which are ascending; only these are kept of the file.
pub(super) fn names(file: Option<&File>, addresses: &[u64]) -> Names {
    let mut names = Names::new();
    let Some(file) = file else { return names };
    // The descriptor may have been read before: start at the beginning.
    let Ok(mut file) = file.try_clone() else { return names };
    if std::io::Seek::rewind(&mut file).is_err() {
        return names;
    }
    let mut reader = BufReader::with_capacity(256 * 1024, file.take(MAX_BYTES));
    let (mut line, mut steps) = (Vec::new(), MAX_STEPS);
    loop {
        line.clear();
        match reader.by_ref().take(MAX_LINE_BYTES).read_until(b'\n', &mut line) {
            Ok(0) | Err(_) => return names,
            Ok(_) => {}
        }
        let Some((start, end, name)) = parse(&line) else { continue };
        let first = addresses.partition_point(|&address| address < start);
        for &address in addresses[first..].iter().take_while(|&&address| address < end) {
            // Millions of entries, each of which says that it covers everything.
            let Some(left) = steps.checked_sub(1) else { return names };
            steps = left;
            names.insert(address, vec![Found { name: name.into(), file: "".into(), line: 0 }]);
        }
    }
}

fn parse(line: &[u8]) -> Option<(u64, u64, &str)> {
    let line = std::str::from_utf8(line).ok()?.trim_end();
    let (start, rest) = line.split_once(' ')?;
    let (size, name) = rest.split_once(' ')?;
    let hex = |text: &str| u64::from_str_radix(text.trim_start_matches("0x"), 16).ok();
    let start = hex(start)?;
    (!name.is_empty()).then_some((start, start.checked_add(hex(size)?)?, name))
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn the_last_entry_that_covers_an_address_names_it() {
        let mut file = tempfile::tempfile().unwrap();
        write!(file, "1000 10 old\n\nnonsense\nffffffffffffffff 2 wraps\n0x1000 8 a b\n2000 10 two\n").unwrap();
        let names = names(Some(&file), &[0x1000, 0x1008, 0x1010, 0x200f]);
        let name = |address: u64| names.get(&address).map(|found| &*found[0].name);
        assert_eq!(name(0x1000), Some("a b"));
        assert_eq!(name(0x1008), Some("old"));
        assert_eq!(name(0x1010), None);
        assert_eq!(name(0x200f), Some("two"));
    }
}
