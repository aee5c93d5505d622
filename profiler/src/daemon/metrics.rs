//! What the daemon tells Prometheus: its own health, what was lost, what it costs, what the host used, what was found.
//!
//! Labels are origins, reasons, kinds and the like, of which there are few: no pid and no name of a process, of which there
//! is no end.

use std::fmt;
use std::sync::{Arc, PoisonError};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric as _, NoLabelSet};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;

use super::http::Service;
use super::hub::Totals;
use super::store::StoreState;
use crate::analyze::analyze;
use crate::profile::{Column, Finding, Fold};

/// The media type of OpenMetrics, which a program asks for by name.
pub const OPEN_METRICS: &str = "application/openmetrics-text";
/// The type of an answer in OpenMetrics.
pub const OPEN_METRICS_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
/// The type of an answer in the older format.
pub const CLASSIC_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// What is told at a moment.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// Of windows; `None` where no daemon records.
    pub totals: Option<Totals>,
    /// Of the history.
    pub store: Option<StoreState>,
    /// Of the newest window.
    pub findings: Vec<Finding>,
    /// Requests by class of their status.
    pub requests: Vec<(String, u64)>,
    /// Whether windows come as they should.
    pub healthy: bool,
    /// What others add: name, what it means, and whether it only grows.
    pub more: Vec<Family>,
}

/// A metric that another part of the daemon tells.
#[derive(Clone, Debug, PartialEq)]
pub struct Family {
    /// Name, without the `profiler_` in front and the `_total` behind.
    pub name: String,
    /// What it means.
    pub help: String,
    /// Whether it only grows.
    pub is_counter: bool,
    /// Values by labels.
    pub values: Vec<(Vec<(&'static str, String)>, f64)>,
}

impl Service {
    /// What is told now, in OpenMetrics. Analyzes the newest window if nobody has yet.
    #[must_use]
    pub fn metrics(&self) -> String {
        let latest = self.hub.as_ref().and_then(|hub| hub.latest());
        let mut findings = self.findings.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(window) = latest.filter(|window| window.index.started_at_ns != findings.0) {
            *findings = (window.index.started_at_ns, analyze(&window).findings);
        }
        let snapshot = Snapshot {
            totals: self.hub.as_ref().map(|hub| hub.totals()),
            store: self.store.as_ref().map(|store| store.lock().unwrap_or_else(PoisonError::into_inner).clone()),
            findings: findings.1.clone(),
            requests: self.requests.counts().collect(),
            healthy: self.health().healthy,
            more: self.more.iter().flat_map(|more| more()).collect(),
        };
        drop(findings);
        snapshot.to_open_metrics()
    }
}

impl Snapshot {
    /// As text.
    #[must_use]
    pub fn to_open_metrics(self) -> String {
        let mut registry = Registry::with_prefix("profiler");
        registry.register_collector(Box::new(Arc::new(self)));
        let mut text = String::new();
        // Writing to a string does not fail.
        let _ = encode(&mut text, &registry);
        text
    }
}

/// Labels and values of a metric.
type Values = Vec<(Vec<(&'static str, String)>, f64)>;

struct Writer<'a>(DescriptorEncoder<'a>);

impl Writer<'_> {
    fn counter(&mut self, name: &str, help: &str, values: Values) -> fmt::Result {
        self.write(name, help, values, true)
    }

    fn gauge(&mut self, name: &str, help: &str, values: Values) -> fmt::Result {
        self.write(name, help, values, false)
    }

    fn write(&mut self, name: &str, help: &str, values: Values, is_counter: bool) -> fmt::Result {
        if values.is_empty() {
            return Ok(());
        }
        let kind =
            if is_counter { ConstCounter::new(0_u64).metric_type() } else { ConstGauge::new(0_i64).metric_type() };
        let mut family = self.0.encode_descriptor(name, help, None, kind)?;
        for (labels, value) in values {
            if labels.is_empty() {
                if is_counter {
                    family.encode_counter::<NoLabelSet, _, u64>(&value, None)?;
                } else {
                    family.encode_gauge(&value)?;
                }
                continue;
            }
            let mut one = family.encode_family(&labels)?;
            if is_counter {
                one.encode_counter::<NoLabelSet, _, u64>(&value, None)?;
            } else {
                one.encode_gauge(&value)?;
            }
        }
        Ok(())
    }
}

/// A value without labels.
fn plain(value: u64) -> Values {
    vec![(Vec::new(), float(value))]
}

/// A time without labels, in seconds.
fn seconds(ns: u64) -> Values {
    vec![(Vec::new(), float(ns) / 1e9)]
}

impl Collector for Snapshot {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut writer = Writer(encoder);
        let version = vec![("version", env!("CARGO_PKG_VERSION").to_owned())];
        writer.gauge("build_info", "What runs; always 1", vec![(version, 1.0)])?;
        writer.gauge("healthy", "1 when windows come as they should", plain(u64::from(self.healthy)))?;
        let requests = self.requests.iter().map(|(class, count)| (vec![("status", class.clone())], float(*count)));
        writer.counter("http_requests", "Requests that were answered, by status", requests.collect())?;
        if let Some(totals) = &self.totals {
            windows(&mut writer, totals)?;
            figures(&mut writer, totals)?;
            let mut counts = std::collections::BTreeMap::new();
            for finding in &self.findings {
                *counts.entry((finding.kind.name(), finding.severity.name())).or_insert(0_u64) += 1;
            }
            let found = counts.into_iter().map(|((kind, severity), count)| {
                (vec![("kind", kind.to_owned()), ("severity", severity.to_owned())], float(count))
            });
            writer.gauge("findings", "Findings of the newest window", found.collect())?;
        }
        if let Some(store) = &self.store {
            history(&mut writer, store)?;
        }
        for family in &self.more {
            writer.write(&family.name, &family.help, family.values.clone(), family.is_counter)?;
        }
        Ok(())
    }
}

fn windows(writer: &mut Writer<'_>, totals: &Totals) -> fmt::Result {
    writer.counter("windows", "Windows that were recorded", plain(totals.windows))?;
    writer.counter("recorded_seconds", "Time that was recorded", seconds(totals.duration_ns))?;
    writer.gauge("last_window_end_timestamp_seconds", "When the newest window ended", seconds(totals.end_ns))?;
    writer.gauge("last_window_warnings", "Warnings of the newest window", plain(totals.warnings))?;
    let (mut samples, mut lost, mut values) = (Vec::new(), Vec::new(), Vec::new());
    for (name, origin) in &totals.origins {
        let of = |outcome: &str, reason: &str| {
            vec![("origin", name.clone()), ("outcome", outcome.to_owned()), ("reason", reason.to_owned())]
        };
        samples.push((of("complete", ""), float(origin.complete)));
        samples.extend(origin.truncated.iter().map(|(reason, count)| (of("truncated", reason), float(*count))));
        let none = vec![("origin", name.clone()), ("reason", "map_full".to_owned())];
        if origin.lost.is_empty() {
            // So that a rate of nothing is 0 and not missing.
            lost.push((none, 0.0));
        }
        lost.extend(
            origin
                .lost
                .iter()
                .map(|(reason, count)| (vec![("origin", name.clone()), ("reason", reason.clone())], float(*count))),
        );
        let (unit, value) = match origin.unit.as_str() {
            "ns" => ("seconds", float(origin.value) / 1e9),
            unit => (unit, float(origin.value)),
        };
        values.push((vec![("origin", name.clone()), ("unit", unit.to_owned())], value));
    }
    writer.counter("samples", "Samples in profiles, by what is missing of them", samples)?;
    writer.counter("samples_lost", "Samples that are in no profile, by reason", lost)?;
    writer.counter("profiled", "Sums of the profiles' values", values)?;
    let cost = [("bpf", totals.bpf_ns), ("traps", totals.trap_ns), ("agent", totals.agent_cpu_ns)];
    let cost = cost.map(|(part, ns)| (vec![("part", part.to_owned())], float(ns) / 1e9));
    writer.counter("overhead_cpu_seconds", "CPU time that profiling took", cost.to_vec())?;
    writer.gauge(
        "overhead_memory_bytes",
        "Memory that profiling takes",
        vec![
            (vec![("part", "agent_peak".to_owned())], float(totals.peak_rss_bytes)),
            (vec![("part", "maps".to_owned())], float(totals.bpf_map_bytes)),
        ],
    )
}

/// Every column of the timeline: sums as counters, all else as gauges.
fn figures(writer: &mut Writer<'_>, totals: &Totals) -> fmt::Result {
    for column in Column::ALL {
        let Some(&figure) = totals.figures.get(&column) else { continue };
        let (name, value) = match column.name().strip_suffix("_ns") {
            Some(name) => (format!("{name}_seconds"), seconds(figure)),
            None => (column.name().to_owned(), plain(figure)),
        };
        writer.write(&name, &capitalized(column.text()), value, column.fold() == Fold::Sum)?;
    }
    Ok(())
}

fn history(writer: &mut Writer<'_>, store: &StoreState) -> fmt::Result {
    writer.gauge("history_windows", "Windows in the history", plain(store.windows))?;
    writer.gauge("history_bytes", "Bytes of the history on disk", plain(store.bytes))?;
    let what = [
        ("written", store.written),
        ("lost", store.lost),
        ("removed", store.removed),
        ("merged", store.merged),
        ("unreadable", store.unreadable),
    ];
    let what = what.map(|(event, count)| (vec![("event", event.to_owned())], float(count)));
    writer.counter(
        "history_changes",
        "Windows that were written, lost, removed, made of others, or damaged",
        what.to_vec(),
    )?;
    writer.counter("history_index_failures", "Times that the index could not be used", plain(store.index_failures))
}

fn capitalized(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().map_or_else(String::new, |first| first.to_uppercase().chain(letters).collect())
}

/// OpenMetrics as the older text format, which other programs read: a counter is called as its values are.
#[must_use]
pub fn classic(open_metrics: &str) -> String {
    let mut counters = std::collections::BTreeSet::new();
    for line in open_metrics.lines() {
        if let Some(name) = line.strip_prefix("# TYPE ").and_then(|rest| rest.strip_suffix(" counter")) {
            counters.insert(name);
        }
    }
    let mut text = String::with_capacity(open_metrics.len());
    for line in open_metrics.lines() {
        let mut words = line.splitn(4, ' ');
        match (words.next(), words.next(), words.next(), words.next()) {
            (Some("#"), Some(what @ ("HELP" | "TYPE")), Some(name), Some(rest)) => {
                let suffix = if counters.contains(name) { "_total" } else { "" };
                // A full stop that OpenMetrics' library adds.
                let rest = if what == "HELP" { rest.trim_end_matches('.') } else { rest };
                text.push_str(&format!("# {what} {name}{suffix} {rest}\n"));
            }
            (Some("#"), ..) => {}
            _ => {
                text.push_str(line);
                text.push('\n');
            }
        }
    }
    text
}

#[expect(clippy::cast_precision_loss, reason = "as Prometheus keeps it")]
const fn float(value: u64) -> f64 {
    value as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_formats_say_the_same() {
        let totals = Totals {
            windows: 3,
            figures: [(Column::HostForks, 7), (Column::HostCpuUser, 1_500_000_000), (Column::HostRunnable, 2)].into(),
            ..Totals::default()
        };
        let open = Snapshot { totals: Some(totals), healthy: true, ..Snapshot::default() }.to_open_metrics();
        assert!(open.ends_with("# EOF\n"), "{open}");
        for line in [
            "# TYPE profiler_windows counter",
            "profiler_windows_total 3.0",
            "profiler_host_forks_total 7.0",
            "profiler_host_cpu_user_seconds_total 1.5",
            "profiler_host_runnable_tasks 2.0",
            "profiler_healthy 1.0",
        ] {
            assert!(open.lines().any(|found| found == line), "{line} is not in\n{open}");
        }
        let classic = classic(&open);
        assert!(classic.contains("# TYPE profiler_windows_total counter\n") && !classic.contains("EOF"), "{classic}");
        let values =
            |text: &str| text.lines().filter(|line| !line.starts_with('#')).map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(values(&open), values(&classic));
    }

    #[test]
    fn labels_cannot_break_a_line() {
        let hostile = "a\"} 1\nprofiler_fake 2\\";
        let more = vec![Family {
            name: "x".to_owned(),
            help: "X".to_owned(),
            is_counter: false,
            values: vec![(vec![("target", hostile.to_owned())], 1.0)],
        }];
        let text = Snapshot { more, ..Snapshot::default() }.to_open_metrics();
        assert!(text.lines().all(|line| !line.starts_with("profiler_fake")), "{text}");
    }
}
