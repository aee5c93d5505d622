//! Folded stacks: `command;root;...;leaf N`, one line a stack, as FlameGraph's tools read them.
//!
//! Frames carry the suffix of their kind; a cut stack's root-most frame after the command says why it was cut. Lines
//! are sorted, equal ones merged, those of value 0 left out.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::io::{self, Write};

use crate::profile::{Profile, StackId};

/// Writes the values of the origin's primary column.
///
/// # Errors
///
/// When `writer` fails.
pub fn write(profile: &Profile, writer: &mut impl Write) -> io::Result<()> {
    for (stack, value) in stacks(profile) {
        writeln!(writer, "{stack} {value}")?;
    }
    Ok(())
}

/// The lines' stacks and values, in the order of the lines.
pub(super) fn stacks(profile: &Profile) -> BTreeMap<String, u64> {
    let column = profile.origin.row().primary;
    let mut values: HashMap<(&str, StackId), u64> = HashMap::new();
    for sample in &profile.samples {
        let process = profile.threads[sample.thread as usize].process_name.as_str();
        *values.entry((process, sample.stack)).or_default() += sample.values[column];
    }
    // Most locations are on many stacks: their text is made once.
    let mut locations: Vec<Option<String>> = vec![None; profile.locations.len()];
    let mut lines = BTreeMap::new();
    for ((process, stack), value) in values {
        if value == 0 {
            continue;
        }
        let mut line = clean(process).into_owned();
        for &location in profile.stacks[stack as usize].iter().rev() {
            line.push_str(locations[location as usize].get_or_insert_with(|| location_text(profile, location)));
        }
        *lines.entry(line).or_default() += value;
    }
    lines
}

/// The frames of a location, root-most first, each with the semicolon that goes before it.
fn location_text(profile: &Profile, location: u32) -> String {
    let mut frames: Vec<_> = profile.location_frames(location).collect();
    frames.reverse();
    frames.iter().map(|frame| format!(";{}{}", clean(&frame.name), frame.suffix())).collect()
}

/// A name that cannot be taken for anything else in a line: no separator, no control character, no space at the ends,
/// no number after the last space (a second count), no `# ` at the front (a comment).
pub(super) fn clean(name: &str) -> Cow<'_, str> {
    let odd = |c: char| c == ';' || c.is_control() || matches!(c, '\u{fffe}' | '\u{ffff}');
    let number = |word: &str| word.chars().all(|c| c.is_ascii_digit() || c == '.');
    let trimmed = name.trim();
    if trimmed.is_empty() {
        return "[unnamed]".into();
    }
    let counted = trimmed.rsplit_once(' ').filter(|(_, word)| number(word));
    if counted.is_none() && !trimmed.starts_with("# ") && !trimmed.contains(odd) {
        return trimmed.into();
    }
    let mut clean: String = match counted {
        Some((front, word)) => format!("{front}_{word}"),
        None => trimmed.to_owned(),
    };
    if clean.starts_with("# ") {
        clean.replace_range(1..2, "_");
    }
    clean
        .chars()
        .map(|c| match c {
            ';' => ':',
            c if odd(c) => '?',
            c => c,
        })
        .collect::<String>()
        .into()
}

#[cfg(test)]
mod tests {
    use super::clean;

    #[test]
    fn names_cannot_break_a_line() {
        for (name, expected) in [
            ("main", "main"),
            ("[u8; 8]::len", "[u8: 8]::len"),
            ("a\nb", "a?b"),
            (" worker 12 ", "worker_12"),
            ("# note", "#_note"),
            ("# 5", "#_5"),
            ("", "[unnamed]"),
        ] {
            assert_eq!(clean(name), expected);
        }
    }
}
