//! The differential flamegraph: red is what grew, blue what shrank.

use std::collections::BTreeMap;
use std::io::{self, Write};

use inferno::flamegraph::color::{BackgroundColor, Color};
use inferno::flamegraph::{self, Options, TextTruncateDirection};

use crate::output::flamegraph::for_inferno;
use crate::output::folded::{Folded, clean};
use crate::output::numbers::float;
use crate::profile::Diff;

/// Stacks of both sides: frames root first, value before and after.
pub(super) type Stacks = BTreeMap<Vec<String>, [u64; 2]>;

/// Whose values the widths are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Width {
    Before,
    After,
}

/// Joins the stacks of both sides; those before are multiplied by `scale`.
pub(super) fn join(before: &Folded, after: &Folded, scale: f64) -> Stacks {
    let mut stacks = Stacks::new();
    for (side, folded, scale) in [(0, before, scale), (1, after, 1.0)] {
        for (stack, value) in &folded.stacks {
            let frames = stack.iter().map(|&frame| folded.frames[frame as usize].clone()).collect();
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "not negative, and saturating")]
            let scaled = (float(*value) * scale).round() as u64;
            stacks.entry(frames).or_default()[side] += scaled;
        }
    }
    stacks
}

/// Writes a line a stack, as `difffolded.pl` does.
pub(super) fn write_folded(stacks: &Stacks, writer: &mut impl Write) -> io::Result<()> {
    for (frames, [before, after]) in stacks {
        writeln!(writer, "{} {before} {after}", frames.join(";"))?;
    }
    Ok(())
}

/// Draws it.
pub(super) fn draw(diff: &Diff, stacks: &Stacks, width: Width) -> io::Result<Vec<u8>> {
    let mut options = Options::default();
    let target = |side: &crate::profile::DiffSide| clean(&side.target).chars().take(50).collect::<String>();
    options.title = format!("{}: {} → {}", diff.origin, target(&diff.before), target(&diff.after));
    options.subtitle = Some(match width {
        Width::After => "as wide as after; red grew, blue shrank".to_owned(),
        Width::Before => "as wide as before; red grew, blue shrank".to_owned(),
    });
    diff.unit.clone_into(&mut options.count_name);
    options.bgcolors = Some(BackgroundColor::Flat(Color { r: 250, g: 250, b: 250 }));
    options.text_truncate_direction = TextTruncateDirection::Right;
    // As the plain one: lines are in the order of frames, not of text, which only a flame chart takes as they are.
    options.flame_chart = true;
    // The difference is that of the second value to the first: taken the other way round, its sign is turned back.
    options.negate_differentials = width == Width::Before;
    let lines = stacks.iter().rev().map(|(frames, &[before, after])| {
        let frames: Vec<String> = frames.iter().map(|frame| for_inferno(frame)).collect();
        let (first, second) = if width == Width::After { (before, after) } else { (after, before) };
        format!("{} {first} {second}", frames.join(";"))
    });
    let lines: Vec<String> = lines.collect();
    if stacks.values().all(|[before, after]| if width == Width::After { *after } else { *before } == 0) {
        return Ok(crate::output::flamegraph::empty(&options.title));
    }
    let mut svg = Vec::new();
    flamegraph::from_lines(&mut options, lines.iter().map(String::as_str), &mut svg)?;
    Ok(svg)
}
