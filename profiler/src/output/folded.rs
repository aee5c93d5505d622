//! Folded stacks: `command;root;...;leaf N`, one line a stack, as FlameGraph's tools read them.
//!
//! Frames carry the suffix of their kind; a cut stack's root-most frame after the command says why it was cut. Lines
//! are sorted frame by frame, equal ones merged, those of value 0 left out.

use std::borrow::Cow;
use std::io::{self, Write};

use hashbrown::HashMap;

use crate::profile::{LocationId, Profile, StackId};

/// Writes the values of the origin's primary column.
///
/// # Errors
///
/// When `writer` fails.
pub fn write(profile: &Profile, writer: &mut impl Write) -> io::Result<()> {
    Folded::new(profile).write(writer)
}

/// Stacks as text, in the order of the lines.
pub(super) struct Folded {
    /// Frames, ascending.
    pub(super) frames: Vec<String>,
    /// Stacks of frames, root first, ascending and each once, with their values.
    pub(super) stacks: Vec<(Vec<u32>, u64)>,
}

impl Folded {
    /// Folds the origin's primary column.
    pub(super) fn new(profile: &Profile) -> Self {
        Self::of(&[(profile, profile.origin.row().primary)])
    }

    /// Folds one column of each profile into one.
    pub(super) fn of(columns: &[(&Profile, usize)]) -> Self {
        let mut values: HashMap<(usize, &str, StackId), u64> = HashMap::new();
        for (number, &(profile, column)) in columns.iter().enumerate() {
            for sample in &profile.samples {
                let process = profile.threads[sample.thread as usize].process_name.as_str();
                *values.entry((number, process, sample.stack)).or_default() += sample.values[column];
            }
        }
        values.retain(|_, value| *value > 0);
        // Frames by number, in the order of their text: so stacks are compared number by number.
        let locations: Vec<Vec<Vec<String>>> = columns
            .iter()
            .map(|&(profile, _)| (0..).take(profile.locations.len()).map(|location| texts(profile, location)).collect())
            .collect();
        let processes: HashMap<&str, String> =
            values.keys().map(|&(_, process, _)| (process, clean(process).into_owned())).collect();
        let mut frames: Vec<&String> = locations.iter().flatten().flatten().chain(processes.values()).collect();
        frames.sort_unstable();
        frames.dedup();
        // 32 bits are enough for what a profile numbers by 32 bits.
        let numbers: HashMap<&str, u32> = (0..).zip(&frames).map(|(number, text)| (text.as_str(), number)).collect();
        let number = |text: &String| numbers.get(text.as_str()).copied().unwrap_or(u32::MAX);
        let locations: Vec<Vec<Vec<u32>>> = locations
            .iter()
            .map(|locations| locations.iter().map(|texts| texts.iter().map(number).collect()).collect())
            .collect();
        let mut stacks: Vec<(Vec<u32>, u64)> = values
            .into_iter()
            .map(|((profile, process, stack), value)| {
                let rootward = columns[profile].0.stacks[stack as usize].iter().rev();
                let frames = rootward.flat_map(|&location| &locations[profile][location as usize]).copied();
                (processes.get(process).map(number).into_iter().chain(frames).collect(), value)
            })
            .collect();
        stacks.sort_unstable();
        stacks.dedup_by(|next, kept| {
            let equal = next.0 == kept.0;
            kept.1 += if equal { next.1 } else { 0 };
            equal
        });
        Self { frames: frames.into_iter().cloned().collect(), stacks }
    }

    /// Writes a line a stack.
    pub(super) fn write(&self, writer: &mut impl Write) -> io::Result<()> {
        let mut line = String::new();
        for (stack, value) in &self.stacks {
            line.clear();
            self.join(stack, &self.frames, &mut line);
            writeln!(writer, "{line} {value}")?;
        }
        Ok(())
    }

    /// Appends a stack's line without its value; `frames`: their texts, by number.
    pub(super) fn join(&self, stack: &[u32], frames: &[String], line: &mut String) {
        for (index, &frame) in stack.iter().enumerate() {
            if index > 0 {
                line.push(';');
            }
            line.push_str(&frames[frame as usize]);
        }
    }
}

/// The frames of a location as they are in a line, root-most first.
fn texts(profile: &Profile, location: LocationId) -> Vec<String> {
    let mut texts: Vec<String> =
        profile.location_frames(location).map(|frame| format!("{}{}", clean(&frame.name), frame.suffix())).collect();
    texts.reverse();
    texts
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
