//! Timed runs of a command: text and JSON.

use std::io;

use super::{OutputFile, check, json};
use crate::profile::Bench;

/// Name of the file.
pub const FILE: &str = "bench.json";

/// As a person reads it.
#[must_use]
pub fn to_text(bench: &Bench) -> String {
    let warm_ups = match bench.warm_ups {
        0 => String::new(),
        1 => " after one to warm up".to_owned(),
        more => format!(" after {more} to warm up"),
    };
    let mut text = format!("{} runs of {}{warm_ups}\n", bench.runs, one_line(&bench.command));
    text.push_str(&format!("  mean       {}", time(bench.mean_ns)));
    if let Some(precision) = bench.precision {
        let half = (bench.interval_ns[1] - bench.interval_ns[0]) / 2.0;
        text.push_str(&format!(" \u{b1} {} ({:.2} %), 19 times in 20", time(half), precision * 100.0));
    }
    text.push_str(&format!("\n  deviation  {} a run\n", time(bench.deviation_ns)));
    let runs = [
        ("min", bench.min_ns),
        ("p50", bench.p50_ns),
        ("p90", bench.p90_ns),
        ("p95", bench.p95_ns),
        ("p99", bench.p99_ns),
        ("max", bench.max_ns),
    ];
    let runs: Vec<String> =
        runs.iter().map(|&(name, value)| format!("{name} {}", time(super::numbers::float(value)))).collect();
    text.push_str(&format!("  runs       {}\n", runs.join(" \u{b7} ")));
    text.push_str(&format!("  CPU        {} user, {} system\n", time(bench.user_ns), time(bench.system_ns)));
    for note in &bench.notes {
        text.push_str(&format!("note: {}\n", one_line(note)));
    }
    if !bench.checks.is_empty() {
        text.push_str(&check::to_text(&bench.checks));
    }
    text
}

/// For programs: the fields of [`Bench`].
///
/// # Errors
///
/// When it cannot be put into JSON.
pub fn file(bench: &Bench) -> io::Result<OutputFile> {
    let mut bytes = Vec::new();
    json::write(bench, &mut bytes)?;
    Ok(OutputFile { name: FILE.to_owned(), bytes })
}

/// A time in ns with four digits, in the unit that it has them in.
fn time(ns: f64) -> String {
    let (value, unit) = match ns {
        _ if ns < 1e6 => (ns / 1e3, "\u{b5}s"),
        _ if ns < 1e9 => (ns / 1e6, "ms"),
        _ => (ns / 1e9, "s"),
    };
    let digits = match value {
        _ if value < 10.0 => 3,
        _ if value < 100.0 => 2,
        _ => 1,
    };
    format!("{value:.digits$} {unit}")
}

/// A text that cannot speak to a terminal.
fn one_line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::profile::{Check, Severity};

    #[test]
    fn text_and_json_have_the_figures() {
        let checks = vec![Check {
            name: "mean".to_owned(),
            group: "bench".to_owned(),
            severity: Severity::High,
            passed: false,
            message: "mean is 12.000 ms, and may be 10.000 ms".to_owned(),
        }];
        let bench = Bench {
            command: "sort \u{1b}[2J x".to_owned(),
            warm_ups: 1,
            runs: 20,
            mean_ns: 12e6,
            interval_ns: [11.9e6, 12.1e6],
            precision: Some(0.1 / 12.0),
            deviation_ns: 900.0,
            max_ns: 1_234_567_890,
            times_ns: vec![1, 2],
            checks,
            ..Bench::default()
        };
        let text = to_text(&bench);
        assert!(text.starts_with("20 runs of sort ?[2J x after one to warm up\n"), "{text}");
        assert!(text.contains("mean       12.00 ms \u{b1} 100.0 \u{b5}s (0.83 %), 19 times in 20\n"), "{text}");
        assert!(text.contains("deviation  0.900 \u{b5}s a run") && text.contains("max 1.235 s"), "{text}");
        assert!(text.ends_with("1 checked, 1 failed\n"), "{text}");
        let file = file(&bench).unwrap();
        assert_eq!(serde_json::from_slice::<Bench>(&file.bytes).unwrap(), bench);
    }
}
