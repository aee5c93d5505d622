//! What charts over time have in common: the axis of time, colours, and how they begin and end.

use std::io::{self, Write};

use super::flamegraph::escape;
use super::numbers::float;

pub(super) const WIDTH: f64 = 1200.0;
/// Where the plots begin and end.
pub(super) const LEFT: f64 = 88.0;
pub(super) const RIGHT: f64 = 1170.0;
/// Width of a character of the legend, roughly.
const CHARACTER: f64 = 6.6;

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

/// Writes what comes before the panels.
pub(super) fn begin(title: &str, subtitle: &str, height: f64, writer: &mut impl Write) -> io::Result<()> {
    let title = escape(title);
    writeln!(
        writer,
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" \
         height=\"{height}\" viewBox=\"0 0 {WIDTH} {height}\" role=\"img\">\n<title>{title}</title>\n\
         <style>{STYLE}</style>\n<rect class=\"back\" width=\"{WIDTH}\" height=\"{height}\"/>\n\
         <text class=\"title\" x=\"12\" y=\"26\">{title}</text>\n<text class=\"axis\" x=\"12\" y=\"46\">{}</text>",
        escape(subtitle)
    )
}

/// Writes the axis of time below the panels, which end at `top`.
pub(super) fn end(time: &Time, top: f64, writer: &mut impl Write) -> io::Result<()> {
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

/// The axis of time.
pub(super) struct Time {
    end_s: f64,
}

impl Time {
    /// From the slices' starts and lengths, ns.
    pub(super) fn new(start_ns: &[u64], length_ns: &[u64]) -> Self {
        let ends = start_ns.iter().zip(length_ns).map(|(start, &length)| start.saturating_add(length));
        Self { end_s: (float(ends.max().unwrap_or(0)) / 1e9).max(1e-9) }
    }

    /// Where a moment is.
    pub(super) fn x(&self, ns: u64) -> f64 {
        LEFT + (float(ns) / 1e9 / self.end_s).min(1.0) * (RIGHT - LEFT)
    }

    /// Where a tick is, and what it says.
    pub(super) fn ticks(&self) -> Vec<(f64, String)> {
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

/// How wide a text is, roughly.
pub(super) fn width(text: &str) -> f64 {
    float(text.chars().count() as u64) * CHARACTER
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_written_as_clocks() {
        assert_eq!(clock(5.0, 1.0), "5 s");
        assert_eq!(clock(0.5, 0.1), "0.5 s");
        assert_eq!(clock(0.0, 0.1), "0 s");
        assert_eq!(clock(750.0, 150.0), "12:30");
        assert_eq!(clock(10_800.0, 3600.0), "3:00:00");
    }
}
