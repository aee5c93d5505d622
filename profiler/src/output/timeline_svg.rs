//! `timeline.svg`: the timeline as a chart, panel below panel with one axis of time. No script, light and dark.

use std::io::{self, Write};

use super::chart::{self, LEFT, RIGHT, Time, width};
use super::flamegraph::{escape, target};
use super::numbers::{count, float, seconds};
use super::timeline::{Measure, PANELS, Panel};
use crate::profile::{Index, Timeline};

/// Its name.
pub const FILE: &str = "timeline.svg";

/// Height of the title above all panels.
const HEAD: f64 = 62.0;
/// Height of a panel: its title, its plot, the space below.
const PANEL_HEAD: f64 = 26.0;
const PLOT: f64 = 84.0;
const PANEL: f64 = PANEL_HEAD + PLOT + 16.0;
/// Height of the axis of time below all panels.
const FOOT: f64 = 34.0;
/// More slices than this are finer than a pixel.
const MAX_DRAWN: usize = 1200;

/// A line that has values.
struct Drawn {
    label: &'static str,
    values: Vec<Option<f64>>,
    /// Its largest value, as text.
    most: String,
}

/// Draws the timeline.
///
/// # Errors
///
/// When `writer` fails.
pub fn write(index: &Index, writer: &mut impl Write) -> io::Result<()> {
    let drawn = drawn(&index.timeline);
    let panels: Vec<(&Panel, Vec<Drawn>)> = PANELS
        .iter()
        .map(|panel| (panel, lines(panel, &index.timeline, &drawn)))
        .filter(|(_, lines)| !lines.is_empty())
        .collect();
    let height = HEAD + float(panels.len() as u64) * PANEL + FOOT;
    let title = format!("Timeline: {} · {}", target(index), seconds(index.duration_ns));
    chart::begin(&title, &subtitle(index, &drawn), height, writer)?;
    let time = Time::new(&drawn.start_ns, &drawn.length_ns);
    let mut top = HEAD;
    for (panel, lines) in &panels {
        write_panel(panel, lines, &drawn, &time, top, writer)?;
        top += PANEL;
    }
    chart::end(&time, top, writer)
}

/// The slices that are drawn: neighbours are taken together until there is room for each.
fn drawn(timeline: &Timeline) -> Timeline {
    let mut drawn = timeline.clone();
    while drawn.len() > MAX_DRAWN {
        drawn.merge_neighbours();
    }
    drawn
}

/// What a slice is, and what the host has.
fn subtitle(index: &Index, drawn: &Timeline) -> String {
    let longest = |timeline: &Timeline| timeline.length_ns.iter().copied().max().unwrap_or(0);
    let slices = index.timeline.len();
    let mut text = format!(
        "{} on {} CPUs; {} slice{} of up to {}",
        super::folded::clean(&index.host.name),
        index.host.cpus,
        count(slices as u64),
        if slices == 1 { "" } else { "s" },
        seconds(longest(&index.timeline))
    );
    if drawn.len() < slices {
        text.push_str(&format!(", drawn by up to {}", seconds(longest(drawn))));
    }
    text
}

/// The lines of a panel that have values. `timeline`: all slices, which tell the largest value; `drawn`: the drawn ones.
fn lines(panel: &Panel, timeline: &Timeline, drawn: &Timeline) -> Vec<Drawn> {
    let line = |series: &super::timeline::Series| {
        let most = series.extremes(timeline)?.most;
        Some(Drawn { label: series.label, values: series.values(drawn), most: series.measure.text(most) })
    };
    panel.series.iter().filter_map(line).collect()
}

fn write_panel(
    panel: &Panel,
    lines: &[Drawn],
    timeline: &Timeline,
    time: &Time,
    top: f64,
    writer: &mut impl Write,
) -> io::Result<()> {
    writeln!(writer, "<text class=\"panel\" x=\"12\" y=\"{:.1}\">{}</text>", top + 13.0, escape(panel.title))?;
    let mut x = 12.0 + 28.0 + width(panel.title) * 1.1;
    for (color, line) in lines.iter().enumerate() {
        let text = format!("{} (max {})", line.label, line.most);
        writeln!(
            writer,
            "<rect class=\"f{color}\" x=\"{x:.1}\" y=\"{:.1}\" width=\"10\" height=\"10\"/><text x=\"{:.1}\" \
             y=\"{:.1}\">{}</text>",
            top + 4.0,
            x + 15.0,
            top + 13.0,
            escape(&text)
        )?;
        x += 15.0 + width(&text) + 22.0;
    }
    let (plot_top, bottom) = (top + PANEL_HEAD, top + PANEL_HEAD + PLOT);
    let most = lines.iter().flat_map(|line| line.values.iter().flatten().copied()).fold(0.0, f64::max);
    let measure = panel.series.first().map_or(Measure::Count, |series| series.measure);
    let (step, end) = scale(most, measure);
    let y = |value: f64| bottom - (value / end).min(1.0) * PLOT;
    let ticks = (0..=MAX_TICKS).map(|tick| f64::from(tick) * step).take_while(|&value| value <= end * 1.000_001);
    for value in ticks {
        let class = if value > 0.0 { "grid" } else { "frame" };
        writeln!(
            writer,
            "<path class=\"{class}\" d=\"M{LEFT} {0:.1}H{RIGHT}\"/><text class=\"axis\" text-anchor=\"end\" x=\"{1:.1}\" \
             y=\"{2:.1}\">{3}</text>",
            y(value),
            LEFT - 6.0,
            y(value) + 4.0,
            tick_text(value, step, measure)
        )?;
    }
    for (x, _) in time.ticks() {
        writeln!(writer, "<path class=\"grid\" d=\"M{x:.1} {plot_top:.1}V{bottom:.1}\"/>")?;
    }
    for (color, line) in lines.iter().enumerate() {
        let (path, area) = path(line, timeline, time, y, bottom);
        if color == 0 {
            writeln!(writer, "<path class=\"area f{color}\" d=\"{area}\"/>")?;
        }
        writeln!(writer, "<path class=\"line c{color}\" d=\"{path}\"><title>{}</title></path>", escape(line.label))?;
    }
    Ok(())
}

/// The steps of a line, and the area below them. A missing value is a gap.
fn path(line: &Drawn, timeline: &Timeline, time: &Time, y: impl Fn(f64) -> f64, bottom: f64) -> (String, String) {
    let (mut path, mut area) = (String::new(), String::new());
    let mut height: Option<String> = None;
    for (slice, value) in line.values.iter().enumerate() {
        let start = timeline.start_ns[slice];
        let (left, right) = (time.x(start), time.x(start.saturating_add(timeline.length_ns[slice])));
        let Some(value) = value else {
            if height.take().is_some() {
                area.push_str(&format!("V{bottom:.1}Z"));
            }
            continue;
        };
        let now = format!("{:.1}", y(*value));
        if height.is_none() {
            path.push_str(&format!("M{left:.1} {now}"));
            area.push_str(&format!("M{left:.1} {bottom:.1}V{now}"));
        } else if height.as_ref() != Some(&now) {
            path.push_str(&format!("V{now}"));
            area.push_str(&format!("V{now}"));
        }
        for steps in [&mut path, &mut area] {
            // One step along is enough while the height stays.
            steps.push_str(&format!("H{right:.1}"));
        }
        height = Some(now);
    }
    if height.is_some() {
        area.push_str(&format!("V{bottom:.1}Z"));
    }
    (path, area)
}

/// Most steps of a scale above 0.
const MAX_TICKS: u32 = 4;

/// Step and end of a scale for values up to `most`: round numbers, of bytes powers of two.
fn scale(most: f64, measure: Measure) -> (f64, f64) {
    let fits = |step: f64| most / step <= f64::from(MAX_TICKS);
    let is_bytes = matches!(measure, Measure::Bytes | Measure::BytesPerSecond);
    let mut step = match measure {
        Measure::Cpus => 0.05,
        Measure::Percent => 0.5,
        _ => 1.0,
    };
    // Steps of 1, 2 and 5; those below 1 begin with a 5. Bounded: no value is above 2^64.
    let factors = match measure {
        _ if is_bytes => [2.0; 3],
        Measure::Cpus | Measure::Percent => [2.0, 2.0, 2.5],
        _ => [2.0, 2.5, 2.0],
    };
    for factor in factors.into_iter().cycle().take(200) {
        if fits(step) {
            break;
        }
        step *= factor;
    }
    (step, step * (most / step).ceil().max(1.0))
}

/// A value beside its line.
fn tick_text(value: f64, step: f64, measure: Measure) -> String {
    match measure {
        Measure::Percent if step >= 1.0 => format!("{value:.0} %"),
        Measure::Cpus if step >= 1.0 => format!("{value:.0}"),
        measure => measure.text(value).replace(".0 ", " "),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scales_are_round_and_hold_the_largest_value() {
        for most in [0.0, 0.01, 0.3, 1.0, 1.99, 7.0, 99.0, 100.0, 12_345.0, 5e9, 1.8e19] {
            for measure in [Measure::Cpus, Measure::Percent, Measure::Bytes, Measure::Count, Measure::BytesPerSecond] {
                let (step, end) = scale(most, measure);
                assert!(end >= most && end / step <= 4.01 && step > 0.0, "{most} {measure:?}: {step} {end}");
            }
        }
        assert_eq!(scale(9.0, Measure::Cpus).1, 10.0);
        assert_eq!(scale(97.0, Measure::Percent), (50.0, 100.0));
        assert_eq!(scale(3.0 * 1024.0 * 1024.0, Measure::Bytes), (1024.0 * 1024.0, 3.0 * 1024.0 * 1024.0));
    }
}
