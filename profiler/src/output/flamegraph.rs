//! The flamegraph: an SVG that zooms and searches, drawn by inferno.
//!
//! The same profile gives the same bytes: colours come from names, never from chance.

use std::collections::BTreeSet;
use std::io::{self, Write};

use inferno::flamegraph::color::{BackgroundColor, Color, PaletteMap};
use inferno::flamegraph::{self, Options, TextTruncateDirection};

use super::folded::{Folded, clean};
use super::numbers::{NANOSECONDS, count, duration, seconds, tenths};
use crate::profile::{FrameKind, Index, NamedFrame, Profile};

/// Column of the CPU origin that has its time, in ns.
pub(super) const CPU_NS: usize = 1;
/// Longest target description in the title, in characters: more does not fit 1,200 pixels.
const MAX_TARGET_CHARS: usize = 60;
/// Stands in inferno's subtitle for the legend, which has colours that inferno's subtitles cannot have.
const LEGEND_MARK: &str = "@legend@";

/// What a frame is, as far as its colour goes. The order is that of the legend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Tint {
    Native,
    Inlined,
    Kernel,
    Jit,
    Interpreted,
    Marker,
    Reason,
    Process,
}

impl Tint {
    fn new(frame: &NamedFrame<'_>) -> Self {
        match frame.kind {
            FrameKind::Native if frame.inlined => Self::Inlined,
            FrameKind::Native => Self::Native,
            FrameKind::Kernel => Self::Kernel,
            FrameKind::Jit => Self::Jit,
            FrameKind::Interpreted => Self::Interpreted,
            FrameKind::Marker => Self::Marker,
            FrameKind::Reason => Self::Reason,
        }
    }

    /// The legend's word for it.
    const fn text(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::Inlined => "inlined",
            Self::Kernel => "kernel",
            Self::Jit => "JIT",
            Self::Interpreted => "interpreted",
            Self::Marker => "stack cut or lost",
            Self::Reason => "reason",
            Self::Process => "process",
        }
    }

    /// The middle colour and how far each component may go from it.
    const fn color(self) -> ([u8; 3], [u8; 3]) {
        match self {
            Self::Native => ([238, 196, 84], [14, 24, 30]),
            Self::Inlined => ([110, 196, 206], [30, 20, 18]),
            Self::Kernel => ([232, 112, 70], [18, 24, 22]),
            Self::Jit => ([122, 198, 98], [26, 22, 26]),
            Self::Interpreted => ([170, 152, 226], [20, 20, 18]),
            Self::Marker => ([158, 158, 158], [10, 10, 10]),
            Self::Reason => ([112, 150, 214], [16, 18, 20]),
            Self::Process => ([216, 216, 216], [14, 14, 14]),
        }
    }

    /// The colour of a frame called `name`.
    fn shade(self, name: &str) -> Color {
        // FNV-1a, 64 bits: the same on every machine.
        let hash = name
            .bytes()
            .fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
        let (middle, spread) = self.color();
        // One number for all three components: lighter or darker, the same hue.
        let step = u16::from(hash.to_be_bytes()[1]);
        let [r, g, b] = [0, 1, 2].map(|index| {
            let offset = u16::from(spread[index]) * 2 * step / 255;
            // The table keeps middle - spread .. middle + spread within a byte.
            u8::try_from(u16::from(middle[index] - spread[index]) + offset).unwrap_or(u8::MAX)
        });
        Color { r, g, b }
    }
}

/// Writes the origin's primary column.
///
/// # Errors
///
/// When `writer` fails.
pub fn write(profile: &Profile, index: &Index, writer: &mut impl Write) -> io::Result<()> {
    write_folded(profile, &Folded::new(profile), index, writer)
}

/// As [`write`], from stacks that were folded before.
pub(super) fn write_folded(
    profile: &Profile,
    folded: &Folded,
    index: &Index,
    writer: &mut impl Write,
) -> io::Result<()> {
    write_column(profile, profile.origin.row().primary, folded, index, writer)
}

/// As [`write_folded`], of a column that was folded.
pub(super) fn write_column(
    profile: &Profile,
    column: usize,
    folded: &Folded,
    index: &Index,
    writer: &mut impl Write,
) -> io::Result<()> {
    let row = profile.origin.row();
    let unit = match row.columns[column].1 {
        _ if column == row.primary => row.unit,
        "nanoseconds" => NANOSECONDS,
        unit => unit,
    };
    draw(&title(profile, column, unit, index), unit, &[profile], folded, writer)
}

/// Writes time on the CPUs and off them in one picture, from both folded together.
pub(super) fn write_wall(
    [cpu, offcpu]: [&Profile; 2],
    folded: &Folded,
    index: &Index,
    writer: &mut impl Write,
) -> io::Result<()> {
    let parts = [
        target(index),
        seconds(index.duration_ns),
        format!("{} on the CPU", duration(cpu.totals()[CPU_NS])),
        format!("{} off the CPU", duration(offcpu.totals()[offcpu.origin.row().primary])),
    ];
    draw(&parts.join(" · "), NANOSECONDS, &[cpu, offcpu], folded, writer)
}

/// Draws stacks; `profiles` tells what the frames are.
fn draw(title: &str, unit: &str, profiles: &[&Profile], folded: &Folded, writer: &mut impl Write) -> io::Result<()> {
    if folded.stacks.is_empty() {
        return write_empty(title, writer);
    }
    let mut tints = BTreeSet::from([Tint::Process]);
    let mut palette = palette(profiles, &mut tints);
    let mut options = Options::default();
    title.clone_into(&mut options.title);
    options.subtitle = Some(LEGEND_MARK.to_owned());
    options.count_name = unit.to_owned();
    options.bgcolors = Some(BackgroundColor::Flat(Color { r: 250, g: 250, b: 250 }));
    options.palette_map = Some(&mut palette);
    options.text_truncate_direction = TextTruncateDirection::Right;
    // Inferno insists on lines that are sorted as text, by which `a b` comes between `a` and `a;c` and parts them. A
    // flame chart takes them as they are, but the last first.
    options.flame_chart = true;
    let frames: Vec<String> = folded.frames.iter().map(|frame| for_inferno(frame)).collect();
    let lines = folded.stacks.iter().rev().map(|(stack, value)| {
        let mut line = String::new();
        folded.join(stack, &frames, &mut line);
        line.push(' ');
        line.push_str(&value.to_string());
        line
    });
    let lines: Vec<String> = lines.collect();
    let mut svg = Vec::new();
    flamegraph::from_lines(&mut options, lines.iter().map(String::as_str), &mut svg)?;
    let svg = String::from_utf8(svg).map_err(io::Error::other)?;
    writer.write_all(with_legend(&svg, title, &tints).as_bytes())
}

/// `_[w]` is a suffix nobody here uses that inferno takes off where it shows a name; it leaves `_[p]` on.
pub(super) fn for_inferno(frame: &str) -> String {
    match frame.strip_suffix("_[p]") {
        Some(front) => format!("{front}_[w]"),
        None => frame.to_owned(),
    }
}

/// The target, as much of it as a title has room for.
pub(super) fn target(index: &Index) -> String {
    let description = clean(&index.target.description);
    let mut target: String = description.chars().take(MAX_TARGET_CHARS).collect();
    if target.len() < description.len() {
        target.push('…');
    }
    target
}

/// The title: target, duration, rate, samples, losses.
fn title(profile: &Profile, column: usize, unit: &str, index: &Index) -> String {
    let row = profile.origin.row();
    let mut parts = vec![target(index)];
    let rate = index.origins.get(row.name).map_or(0, |summary| summary.rate_hz);
    parts.push(match rate {
        0 => seconds(index.duration_ns),
        rate => format!("{} at {} Hz", seconds(index.duration_ns), count(rate)),
    });
    let total = profile.totals()[column];
    parts.push(match unit {
        NANOSECONDS => format!("{} {}", duration(total), row.total),
        unit => format!("{} {unit}", count(total)),
    });
    if let Some(accounting) = index.accounting.get(row.name) {
        parts.push(format!("{} lost", count(accounting.samples_lost())));
        parts.push(format!("{} truncated", count(accounting.truncated.values().sum())));
        if rate > 0 {
            parts.push(format!("{} not delivered", tenths(accounting.not_delivered)));
        }
    }
    parts.join(" · ")
}

/// The colour of every frame by the name inferno sees, and in `tints` what there is.
fn palette(profiles: &[&Profile], tints: &mut BTreeSet<Tint>) -> PaletteMap {
    let mut palette = PaletteMap::default();
    // The frame that holds everything.
    palette.insert("", Tint::Process.shade(""));
    for thread in profiles.iter().flat_map(|profile| &profile.threads) {
        let name = clean(&thread.process_name);
        palette.insert(&name, Tint::Process.shade(&name));
    }
    for profile in profiles {
        // A profile that was just made has locations that no sample is on any more; one that was read back has none.
        let mut used = vec![false; profile.locations.len()];
        for &location in profile.samples.iter().flat_map(|sample| &profile.stacks[sample.stack as usize]) {
            used[location as usize] = true;
        }
        let used = (0..).zip(used).filter_map(|(location, used)| used.then_some(location));
        for frame in used.flat_map(|location| profile.location_frames(location)) {
            let tint = Tint::new(&frame);
            tints.insert(tint);
            let name = clean(&frame.name);
            let suffix = if tint == Tint::Interpreted { "_[w]" } else { frame.suffix() };
            palette.insert(format!("{name}{suffix}"), tint.shade(&name));
        }
    }
    palette
}

/// Puts the legend in its place and gives the document a title of its own, which browsers show.
fn with_legend(svg: &str, title: &str, tints: &BTreeSet<Tint>) -> String {
    let legend: Vec<_> = tints
        .iter()
        .map(|tint| {
            let [r, g, b] = tint.color().0;
            format!("<tspan fill=\"rgb({r},{g},{b})\">■</tspan> {}", tint.text())
        })
        .collect();
    let title = format!("<title>{}</title>", escape(title));
    let (head, rest) = svg.split_at(svg.find("<defs>").unwrap_or(0));
    let (front, back) = rest.split_at(rest.find("id=\"subtitle\"").unwrap_or(0));
    format!("{head}{title}{front}{}", back.replacen(LEGEND_MARK, &legend.join(" \u{a0} "), 1))
}

/// As [`write_empty`], as bytes.
pub(super) fn empty(title: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    // Writing to memory does not fail.
    let _ = write_empty(title, &mut bytes);
    bytes
}

/// A picture that says there is nothing to see; inferno calls that an error.
fn write_empty(title: &str, writer: &mut impl Write) -> io::Result<()> {
    let title = escape(title);
    writeln!(
        writer,
        concat!(
            "<?xml version=\"1.0\" standalone=\"no\"?>\n",
            "<svg version=\"1.1\" width=\"1200\" height=\"100\" viewBox=\"0 0 1200 100\" ",
            "xmlns=\"http://www.w3.org/2000/svg\">\n",
            "<title>{title}</title>\n",
            "<rect width=\"100%\" height=\"100%\" fill=\"rgb(250,250,250)\"/>\n",
            "<g font-family=\"monospace\" text-anchor=\"middle\">\n",
            "<text x=\"50%\" y=\"32\" font-size=\"17\">{title}</text>\n",
            "<text x=\"50%\" y=\"68\" font-size=\"14\">no samples</text>\n",
            "</g>\n</svg>"
        ),
        title = title
    )
}

pub(super) fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}
