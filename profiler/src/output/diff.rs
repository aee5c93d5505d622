//! A comparison: Markdown, JSON, folded stacks with two values, and the differential flamegraph both ways round.

mod flamegraph;
mod markdown;

use std::io;

use super::folded::Folded;
use super::{OutputFile, json};
use crate::profile::{Diff, Profile};

/// The comparison as a person reads it.
///
/// # Errors
///
/// When the text cannot be written.
pub fn to_markdown(diff: &Diff) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    markdown::write(diff, &mut bytes)?;
    Ok(bytes)
}

/// The comparison for programs: the fields of [`Diff`].
///
/// # Errors
///
/// When it cannot be put into JSON.
pub fn to_json(diff: &Diff) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    json::write(diff, &mut bytes)?;
    Ok(bytes)
}

/// The files of a comparison: `diff.md`, `diff.json`, `diff.folded` (a stack, its value before and after), `diff.svg` (as
/// wide as after) and `diff_before.svg` (as wide as before, so that what is gone is there).
///
/// `before`, `after`: the profiles of the sides. Values before are scaled to the work after.
///
/// # Errors
///
/// When a picture cannot be drawn.
pub fn files(diff: &Diff, before: &[&Profile], after: &[&Profile]) -> io::Result<Vec<OutputFile>> {
    let fold = |profiles: &[&Profile]| {
        let columns: Vec<_> = profiles.iter().map(|&profile| (profile, profile.origin.row().primary)).collect();
        Folded::of(&columns)
    };
    let scale = if diff.before.work > 0.0 { diff.after.work / diff.before.work } else { 1.0 };
    let stacks = flamegraph::join(&fold(before), &fold(after), scale);
    let mut folded = Vec::new();
    flamegraph::write_folded(&stacks, &mut folded)?;
    let file = |name: &str, bytes| OutputFile { name: name.to_owned(), bytes };
    Ok(vec![
        file("diff.md", to_markdown(diff)?),
        file("diff.json", to_json(diff)?),
        file("diff.folded", folded),
        file("diff.svg", flamegraph::draw(diff, &stacks, flamegraph::Width::After)?),
        file("diff_before.svg", flamegraph::draw(diff, &stacks, flamegraph::Width::Before)?),
    ])
}
