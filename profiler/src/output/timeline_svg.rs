//! `timeline.svg`: the timeline as a chart, panel below panel with one axis of time. No script, light and dark.

use std::io::{self, Write};

use super::flamegraph::{escape, target};
use super::numbers::{count, float, seconds};
use super::timeline::{Measure, PANELS, Panel};
use crate::profile::{Index, Timeline};

/// Its name.
pub const FILE: &str = "timeline.svg";

const WIDTH: f64 = 1200.0;
/// Where the plots begin and end.
const LEFT: f64 = 88.0;
const RIGHT: f64 = 1170.0;
/// Height of the title above all panels.
const HEAD: f64 = 62.0;
/// Height of a panel: its title, its plot, the space below.
const PANEL_HEAD: f64 = 26.0;
const PLOT: f64 = 84.0;
const PANEL: f64 = PANEL_HEAD + PLOT + 16.0;
/// Height of the axis of time below all panels.
const FOOT: f64 = 34.0;
/// Width of a character of the legend, roughly.
const CHARACTER: f64 = 6.6;
/// More slices than this are finer than a pixel.
const MAX_DRAWN: usize = 1200;

/// Colours: dark enough on white, light enough on black, told apart without red and green (Okabe and Ito).
const STYLE: &str = "\
text{font-family:system-ui,'DejaVu Sans',sans-serif;font-size:12px;fill:#222}\
.back{fill:#fff}.title{font-size:16px;font-weight:600}.panel{font-weight:600}.axis{fill:#555;font-size:11px}\
.grid{stroke:#ddd;stroke-width:1}.frame{stroke:#999;stroke-width:1}\
.line{fill:none;stroke-width:1.6;stroke-linejoin:round}.area{stroke:none;fill-opacity:.18}\
.c0{stroke:#0072b2}.c1{stroke:#d55e00}.c2{stroke:#00825f}.c3{stroke:#a8548a}\
.f0{fill:#0072b2}.f1{fill:#d55e00}.f2{fill:#00825f}.f3{fill:#a8548a}\
@media (prefers-color-scheme:dark){\
text{fill:#ddd}.back{fill:#16181c}.axis{fill:#aaa}.grid{stroke:#33363c}.frame{stroke:#777}\
.c0{stroke:#56b4e9}.c1{stroke:#f0953f}.c2{stroke:#2cc295}.c3{stroke:#e39cc6}\
.f0{fill:#56b4e9}.f1{fill:#f0953f}.f2{fill:#2cc295}.f3{fill:#e39cc6}}";

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
    let title = escape(&title);
    writeln!(
        writer,
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" \
         height=\"{height}\" viewBox=\"0 0 {WIDTH} {height}\" role=\"img\">\n<title>{title}</title>\n\
         <style>{STYLE}</style>\n<rect class=\"back\" width=\"{WIDTH}\" height=\"{height}\"/>\n\
         <text class=\"title\" x=\"12\" y=\"26\">{title}</text>\n<text class=\"axis\" x=\"12\" y=\"46\">{}</text>",
        escape(&subtitle(index, &drawn))
    )?;
    let time = Time::new(&drawn);
    let mut top = HEAD;
    for (panel, lines) in &panels {
        write_panel(panel, lines, &drawn, &time, top, writer)?;
        top += PANEL;
    }
    for (x, text) in time.ticks() {
        writeln!(
            writer,
            "<text class=\"axis\" text-anchor=\"middle\" x=\"{x:.1}\" y=\"{:.1}\">{text}</text>",
            top + 4.0
        )?;
    }
    let middle = f64::midpoint(LEFT, RIGHT);
    writeln!(
        writer,
        "<text class=\"axis\" text-anchor=\"middle\" x=\"{middle:.1}\" y=\"{:.1}\">time since the start of the \
         recording</text>\n</svg>",
        top + 22.0
    )
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

/// The axis of time.
struct Time {
    end_s: f64,
}

impl Time {
    fn new(timeline: &Timeline) -> Self {
        let ends =
            timeline.start_ns.iter().zip(&timeline.length_ns).map(|(start, &length)| start.saturating_add(length));
        Self { end_s: (float(ends.max().unwrap_or(0)) / 1e9).max(1e-9) }
    }

    fn x(&self, ns: u64) -> f64 {
        LEFT + (float(ns) / 1e9 / self.end_s).min(1.0) * (RIGHT - LEFT)
    }

    /// Where a tick is, and what it says.
    fn ticks(&self) -> Vec<(f64, String)> {
        const STEPS_S: [f64; 20] = [
            0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 15.0, 30.0, 60.0, 120.0, 300.0,
            600.0, 1800.0,
        ];
        let mut step = STEPS_S.into_iter().find(|step| self.end_s / step <= 12.0).unwrap_or(3600.0);
        while self.end_s / step > 12.0 {
            step *= 2.0;
        }
        let at = |tick: u32| f64::from(tick) * step;
        let ticks = (0..=12).map(at).take_while(|&time| time <= self.end_s);
        ticks.map(|time| (LEFT + time / self.end_s * (RIGHT - LEFT), clock(time, step))).collect()
    }
}

/// A moment: `5 s`, `0.5 s`, `12:30`, `3:00:00`.
fn clock(time_s: f64, step_s: f64) -> String {
    if step_s < 1.0 {
        return format!("{time_s:.3}").trim_end_matches('0').trim_end_matches('.').to_owned() + " s";
    }
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "whole seconds, and saturating")]
    let whole = time_s.round() as u64;
    if step_s < 15.0 && whole < 120 {
        return format!("{whole} s");
    }
    let (hours, minutes, seconds) = (whole / 3600, whole / 60 % 60, whole % 60);
    if hours > 0 { format!("{hours}:{minutes:02}:{seconds:02}") } else { format!("{minutes}:{seconds:02}") }
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

/// How wide a text is, roughly.
fn width(text: &str) -> f64 {
    float(text.chars().count() as u64) * CHARACTER
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

    #[test]
    fn moments_are_written_as_clocks() {
        assert_eq!(clock(5.0, 1.0), "5 s");
        assert_eq!(clock(0.5, 0.1), "0.5 s");
        assert_eq!(clock(0.0, 0.1), "0 s");
        assert_eq!(clock(750.0, 150.0), "12:30");
        assert_eq!(clock(10_800.0, 3600.0), "3:00:00");
    }
}
