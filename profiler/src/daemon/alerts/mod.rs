//! Alerts: a figure of the windows that passes a threshold, and what is done then.
//!
//! [`Watcher`] looks at windows, one by one, and says which alerts go off and which time of the history is to be kept; it is a
//! pure function of what it has seen. [`Actions`] tells programs and servers. An alert that has gone off is silent for a
//! time, whatever its figure does.

mod actions;

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use thiserror::Error;

pub use actions::{Actions, ActionsState};

use super::store::Range;
use crate::analyze::{analyze, metric};
use crate::profile::{Capture, Report};

/// An alert: an element of `[[alerts.alert]]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AlertConfig {
    /// Name, for whoever is told.
    pub name: String,
    /// The figure, as in budgets: `cpus`, `rss_growth`, `disk_utilisation`, `blockio.total_ns.p99`, `lost.cpu`, `findings`.
    pub metric: String,
    /// It goes off above this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub above: Option<f64>,
    /// It goes off below this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub below: Option<f64>,
    /// Windows in a row that must pass the threshold.
    #[serde(default = "one")]
    pub windows: u32,
    /// Seconds before it that stay in the history, when the oldest windows make room.
    #[serde(default = "two_minutes")]
    pub keep_before_s: u64,
    /// Seconds from then on in which everything is recorded, at a higher rate; 0 for none. They stay too.
    #[serde(default)]
    pub capture_s: u64,
    /// Seconds in which it is silent after it has gone off.
    #[serde(default = "ten_minutes")]
    pub pause_s: u64,
    /// A program and its arguments that is told, by JSON on its standard input.
    #[serde(default)]
    pub hook: Vec<String>,
    /// A server that is told, by JSON: `http://HOST:PORT/PATH` or `https://`.
    #[serde(default)]
    pub webhook: String,
    /// Certificates of who signs that server's; the system's where none is named.
    #[serde(default)]
    pub ca: PathBuf,
}

const fn one() -> u32 {
    1
}

const fn two_minutes() -> u64 {
    120
}

const fn ten_minutes() -> u64 {
    600
}

/// Longest time that everything is recorded for.
const MAX_CAPTURE_S: u64 = 600;
/// Longest time before an alert that is kept.
const MAX_KEPT_S: u64 = 24 * 3600;
/// Shortest silence: an alert that goes off with every window tells nobody anything.
const LEAST_PAUSE_S: u64 = 10;
/// Most alerts.
const MAX_ALERTS: usize = 100;

/// Why alerts cannot be watched for.
#[derive(Debug, Error)]
pub enum AlertError {
    /// Too many.
    #[error("there are more than {MAX_ALERTS} alerts: leave some out")]
    TooMany,
    /// A value that cannot be.
    #[error("alert {0:?}: {1}")]
    Value(String, &'static str),
}

/// An alert that has gone off.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Fired {
    /// Its name.
    pub alert: String,
    /// The figure.
    pub metric: String,
    /// What it was in the last window.
    pub value: f64,
    /// What it passed.
    pub threshold: f64,
    /// Whether it is above that; below otherwise.
    pub is_above: bool,
    /// Host name.
    pub host: String,
    /// What was recorded.
    pub target: String,
    /// End of the window, ns since the Unix epoch.
    pub at_ns: u64,
    /// The time that stays in the history.
    pub kept_from_ns: u64,
    /// See `kept_from_ns`.
    pub kept_to_ns: u64,
    /// How long everything is recorded from now on, seconds.
    pub capture_s: u64,
}

/// What follows from a window.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Verdict {
    /// Alerts that go off, by their place in the configuration.
    pub fired: Vec<(usize, Fired)>,
    /// The time of which windows stay, as far as there are any yet.
    pub keep: Option<Range>,
    /// How long everything is to be recorded from now on.
    pub capture: Option<Duration>,
}

/// Looks at windows.
#[derive(Debug)]
pub struct Watcher {
    alerts: Vec<Watched>,
}

#[derive(Debug)]
struct Watched {
    config: AlertConfig,
    /// Windows in a row that passed the threshold.
    passed: u32,
    /// Silent until then, ns since the Unix epoch.
    silent_until_ns: u64,
    /// What stays of the time that goes on.
    keep: Option<Range>,
}

impl Watcher {
    /// Checks alerts.
    ///
    /// # Errors
    ///
    /// When one makes no sense.
    pub fn new(configs: &[AlertConfig]) -> Result<Self, AlertError> {
        if configs.len() > MAX_ALERTS {
            return Err(AlertError::TooMany);
        }
        for config in configs {
            let thresholds = [config.above, config.below];
            let wrong = match config {
                _ if thresholds.iter().flatten().count() != 1 => Some("give either `above` or `below`"),
                _ if !thresholds.iter().flatten().all(|threshold| threshold.is_finite()) => {
                    Some("the threshold is no number")
                }
                AlertConfig { windows: 0, .. } => Some("`windows` must be 1 or more"),
                AlertConfig { capture_s, .. } if *capture_s > MAX_CAPTURE_S => Some("`capture_s` must be 600 at most"),
                AlertConfig { keep_before_s, .. } if *keep_before_s > MAX_KEPT_S => {
                    Some("`keep_before_s` must be 86400 at most")
                }
                AlertConfig { pause_s, .. } if *pause_s < LEAST_PAUSE_S => Some("`pause_s` must be 10 or more"),
                AlertConfig { hook, .. } if hook.first().is_some_and(|program| !program.starts_with('/')) => {
                    Some("`hook` must begin with the absolute path of a program")
                }
                _ => None,
            };
            if let Some(wrong) = wrong {
                return Err(AlertError::Value(config.name.clone(), wrong));
            }
        }
        let watched =
            |config: &AlertConfig| Watched { config: config.clone(), passed: 0, silent_until_ns: 0, keep: None };
        Ok(Self { alerts: configs.iter().map(watched).collect() })
    }

    /// Looks at a window.
    pub fn watch(&mut self, window: &Capture) -> Verdict {
        let mut verdict = Verdict::default();
        if self.alerts.is_empty() {
            return verdict;
        }
        let end_ns = window.index.started_at_ns.saturating_add(window.index.duration_ns);
        // Made once, and only where a figure needs it.
        let mut report: Option<Report> = None;
        for (place, alert) in self.alerts.iter_mut().enumerate() {
            let config = &alert.config;
            let quick = metric(window, &Report::default(), &config.metric);
            let found = if needs_report(&config.metric) {
                metric(window, report.get_or_insert_with(|| analyze(window)), &config.metric)
            } else {
                quick
            };
            let value = found.map(|found| found.value);
            let threshold = config.above.or(config.below).unwrap_or(0.0);
            let passes = value.is_some_and(|value| {
                config.above.is_some_and(|above| value > above) || config.below.is_some_and(|below| value < below)
            });
            alert.passed = if passes { alert.passed.saturating_add(1) } else { 0 };
            if let (Some(value), true) = (value, alert.passed >= config.windows && end_ns >= alert.silent_until_ns) {
                let seconds = |count: u64| count.saturating_mul(1_000_000_000);
                let keep = Range {
                    from_ns: window.index.started_at_ns.saturating_sub(seconds(config.keep_before_s)),
                    to_ns: end_ns.saturating_add(seconds(config.capture_s)),
                };
                alert.keep = Some(keep);
                alert.passed = 0;
                alert.silent_until_ns = end_ns.saturating_add(seconds(config.pause_s));
                if config.capture_s > 0 {
                    verdict.capture = verdict.capture.max(Some(Duration::from_secs(config.capture_s)));
                }
                verdict.fired.push((
                    place,
                    Fired {
                        alert: config.name.clone(),
                        metric: config.metric.clone(),
                        value,
                        threshold,
                        is_above: config.above.is_some(),
                        host: window.index.host.name.clone(),
                        target: window.index.target.description.clone(),
                        at_ns: end_ns,
                        kept_from_ns: keep.from_ns,
                        kept_to_ns: keep.to_ns,
                        capture_s: config.capture_s,
                    },
                ));
            }
            if let Some(keep) = alert.keep {
                let known = verdict.keep.unwrap_or(keep);
                verdict.keep =
                    Some(Range { from_ns: known.from_ns.min(keep.from_ns), to_ns: known.to_ns.max(keep.to_ns) });
                if window.index.started_at_ns >= keep.to_ns {
                    alert.keep = None;
                }
            }
        }
        verdict
    }
}

/// Whether a figure follows from what was found, not from the capture alone.
fn needs_report(metric: &str) -> bool {
    // With the origin in front or without.
    let (_, rest) = metric.split_once('/').unwrap_or(("", metric));
    let prefixes = ["self:", "total:", "wait:", "findings", "score"];
    [metric, rest].iter().any(|name| prefixes.iter().any(|prefix| name.starts_with(prefix)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::profile::{Column, Index, OriginSummary, Target, TargetKind};

    const SECOND: u64 = 1_000_000_000;

    fn config(text: &str) -> AlertConfig {
        toml::from_str(&format!("name = \"busy\"\nmetric = \"cpus\"\n{text}")).unwrap()
    }

    /// A window of 10 s, the one of that number, with so many samples at 10 Hz.
    fn window(number: u64, samples: u64) -> Capture {
        let target =
            Target { kind: TargetKind::Host, description: "host".to_owned(), pids: Vec::new(), exit_code: None };
        let mut index = Index::empty(target, 10 * SECOND);
        index.started_at_ns = (1000 + number * 10) * SECOND;
        let summary = OriginSummary {
            unit: "samples".to_owned(),
            total: samples,
            n: samples,
            event: String::new(),
            rate_hz: 10,
            by_length: None,
            by_number: None,
            by_size: None,
        };
        index.origins.insert("cpu".to_owned(), summary);
        Capture { index, profiles: Vec::new() }
    }

    #[test]
    fn an_alert_goes_off_after_windows_in_a_row_and_is_silent_then() {
        let mut watcher =
            Watcher::new(&[config("above = 1.0\nwindows = 2\npause_s = 50\nkeep_before_s = 30")]).unwrap();
        // 150 samples at 10 Hz in 10 s are 1.5 CPUs.
        let busy = [150, 50, 150, 150, 150, 150, 150, 150, 150, 150, 150, 50];
        let fired: Vec<usize> = busy
            .iter()
            .enumerate()
            .filter(|(number, samples)| !watcher.watch(&window(*number as u64, **samples)).fired.is_empty())
            .map(|(number, _)| number)
            .collect();
        // The third is the second in a row; 50 s later it may speak again.
        assert_eq!(fired, [3, 8]);
    }

    #[test]
    fn what_was_before_is_kept_and_what_comes_while_everything_is_recorded() {
        let mut watcher = Watcher::new(&[config("below = 0.5\nkeep_before_s = 30\ncapture_s = 20")]).unwrap();
        assert_eq!(watcher.watch(&window(0, 90)), Verdict::default());
        let verdict = watcher.watch(&window(5, 10));
        let (_, fired) = &verdict.fired[0];
        assert!((fired.value - 0.1).abs() < 1e-9 && !fired.is_above, "{fired:?}");
        assert_eq!(verdict.capture, Some(Duration::from_secs(20)));
        let keep = Range { from_ns: 1020 * SECOND, to_ns: 1080 * SECOND };
        assert_eq!(verdict.keep, Some(keep));
        for (number, expected) in [(6, Some(keep)), (7, Some(keep)), (8, Some(keep)), (9, None)] {
            assert_eq!(watcher.watch(&window(number, 90)).keep, expected, "{number}");
        }
    }

    #[test]
    fn a_figure_that_is_not_there_passes_nothing() {
        let mut missing = config("above = 0.0");
        missing.metric = "blockio.total_ns.p99".to_owned();
        let mut watcher = Watcher::new(&[missing]).unwrap();
        assert_eq!(watcher.watch(&window(0, 150)), Verdict::default());
        let mut growing = config("above = 1000.0");
        growing.metric = "rss_growth".to_owned();
        let mut watcher = Watcher::new(&[growing]).unwrap();
        let mut grown = window(0, 1);
        grown.index.timeline.start_ns = vec![0, SECOND, 2 * SECOND];
        grown.index.timeline.length_ns = vec![SECOND; 3];
        let rss = vec![Some(10_000), Some(20_000), Some(30_000)];
        grown.index.timeline.columns.insert(Column::TargetRss.name().to_owned(), rss);
        let verdict = watcher.watch(&grown);
        assert!((verdict.fired[0].1.value - 10_000.0).abs() < 1.0, "{verdict:?}");
    }

    #[test]
    fn alerts_that_make_no_sense_are_refused() {
        for (text, word) in [
            ("", "either"),
            ("above = 1.0\nbelow = 2.0", "either"),
            ("above = nan", "number"),
            ("above = 1.0\nwindows = 0", "windows"),
            ("above = 1.0\npause_s = 1", "pause_s"),
            ("above = 1.0\ncapture_s = 5000", "capture_s"),
            ("above = 1.0\nhook = [\"notify\"]", "absolute"),
        ] {
            let error = Watcher::new(&[config(text)]).unwrap_err().to_string();
            assert!(error.contains(word) && error.contains("busy"), "{text}: {error}");
        }
        assert!(toml::from_str::<AlertConfig>("name = \"x\"\nmetric = \"y\"\nabove = 1.0\nunknown = 1").is_err());
    }
}
