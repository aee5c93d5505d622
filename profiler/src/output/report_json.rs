//! `report.json`: everything the report says, for programs. docs/report-schema.md explains every field.

use std::collections::BTreeMap;
use std::io::{self, Write};

use serde::Serialize;

use super::json;
use crate::profile::{
    Accounting, ByLength, ByNumber, BySize, Callgraph, Column, Finding, Histogram, Host, Hotspot, Index, Leak,
    LeakVerdict, Ledger, LockShare, Memory, MemoryReport, ObjectShare, Overhead, Peak, PhaseShare, PlanStep,
    ProcessShare, Report, SCHEMA_VERSION, Score, SlowShare, Table, TableColumn, Target, ThreadShare, Timeline,
};

/// Writes the report of a capture.
///
/// # Errors
///
/// When `writer` fails.
pub fn write(index: &Index, report: &Report, writer: &mut impl Write) -> io::Result<()> {
    json::write(&document(index, report), writer)
}

/// The report as it is put into JSON.
pub(super) fn document<'a>(index: &'a Index, report: &'a Report) -> impl Serialize + use<'a> {
    let decided = index.live.as_ref().is_some_and(|live| live.undecided.is_empty());
    Document {
        schema_version: SCHEMA_VERSION,
        profiler_version: &index.profiler_version,
        target: &index.target,
        host: &index.host,
        started_at_ns: index.started_at_ns,
        duration_ns: index.duration_ns,
        origins: index.origins.keys().map(|name| (name.as_str(), Origin::new(name, index, report))).collect(),
        tables: index.tables.iter().map(|(name, table)| (name.as_str(), Counted::new(table))).collect(),
        accounting: &index.accounting,
        overhead: &index.overhead,
        hotspots: &report.hotspots,
        callgraph: &report.callgraph,
        threads: &report.threads,
        processes: &report.processes,
        phases: &report.phases,
        objects: &report.objects,
        ledger: report.ledger.as_ref(),
        locks: &report.locks,
        slow_requests: &report.slow_requests,
        live: index.live.as_ref().map(|live| InUse {
            undecided: &live.undecided,
            missed: live.missed,
            peak: report.peak.as_ref(),
        }),
        leaks: &report.leaks,
        potential_leak: decided.then(|| report.leaks.iter().any(|leak| leak.verdict == LeakVerdict::Leak)),
        growth_rate_percent: index.live.as_ref().and_then(|_| growth_percent(&index.timeline)),
        memory: index.memory.as_ref().map(|read| OfMemory { read, judged: report.memory.as_ref() }),
        findings: &report.findings,
        plan: &report.plan,
        score: report.score.as_ref(),
        warnings: &index.warnings,
        timeline: &index.timeline,
    }
}

#[derive(Serialize)]
struct Document<'a> {
    schema_version: u32,
    profiler_version: &'a str,
    target: &'a Target,
    host: &'a Host,
    started_at_ns: u64,
    duration_ns: u64,
    origins: BTreeMap<&'a str, Origin<'a>>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    tables: BTreeMap<&'a str, Counted<'a>>,
    accounting: &'a BTreeMap<String, Accounting>,
    overhead: &'a Overhead,
    hotspots: &'a [Hotspot],
    callgraph: &'a Callgraph,
    threads: &'a [ThreadShare],
    processes: &'a [ProcessShare],
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    phases: &'a [PhaseShare],
    objects: &'a [ObjectShare],
    #[serde(skip_serializing_if = "Option::is_none")]
    ledger: Option<&'a Ledger>,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    locks: &'a [LockShare],
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    slow_requests: &'a [SlowShare],
    #[serde(skip_serializing_if = "Option::is_none")]
    live: Option<InUse<'a>>,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    leaks: &'a [Leak],
    #[serde(skip_serializing_if = "Option::is_none")]
    potential_leak: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    growth_rate_percent: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    memory: Option<OfMemory<'a>>,
    findings: &'a [Finding],
    plan: &'a [PlanStep],
    #[serde(skip_serializing_if = "Option::is_none")]
    score: Option<&'a Score>,
    warnings: &'a [String],
    #[serde(skip_serializing_if = "Timeline::is_empty")]
    timeline: &'a Timeline,
}

/// How much is known of blocks that were allocated.
#[derive(Serialize)]
struct InUse<'a> {
    /// Why it is not known what was freed.
    #[serde(skip_serializing_if = "str::is_empty")]
    undecided: &'a str,
    missed: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    peak: Option<&'a Peak>,
}

/// Memory as it was read, and what is thought of it.
#[derive(Serialize)]
struct OfMemory<'a> {
    #[serde(flatten)]
    read: &'a Memory,
    #[serde(flatten)]
    judged: Option<&'a MemoryReport>,
}

/// How much more memory was resident at the end than at the start, percent; `None` where that is not known.
fn growth_percent(timeline: &Timeline) -> Option<f64> {
    let resident = timeline.column(Column::TargetRss)?;
    let mut known = resident.iter().flatten();
    let (first, last) = (*known.next()?, *known.next_back()?);
    #[expect(clippy::cast_precision_loss, reason = "a rate, rounded to hundredths")]
    (first > 0).then(|| ((last as f64 / first as f64 - 1.0) * 1e4).round() / 1e2)
}

/// What an origin recorded, in all.
#[derive(Serialize)]
struct Origin<'a> {
    unit: &'a str,
    total: u64,
    n: u64,
    event: &'a str,
    rate_hz: u64,
    /// How intervals were chosen, where that is by their length.
    #[serde(skip_serializing_if = "Option::is_none")]
    by_length: Option<ByLength>,
    /// How events were chosen, where that is by their number.
    #[serde(skip_serializing_if = "Option::is_none")]
    by_number: Option<ByNumber>,
    /// How allocations were chosen.
    #[serde(skip_serializing_if = "Option::is_none")]
    by_size: Option<BySize>,
    /// CPUs in use on average: samples times period by duration.
    #[serde(skip_serializing_if = "Option::is_none")]
    cpus: Option<f64>,
    threads: u64,
    processes: u64,
    stacks: u64,
    /// Values by reason, where the origin has reasons.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    reasons: BTreeMap<&'a str, u64>,
    self_by_kind: BTreeMap<&'a str, u64>,
}

impl<'a> Origin<'a> {
    fn new(name: &str, index: &'a Index, report: &'a Report) -> Self {
        let summary = &index.origins[name];
        let breakdown = report.breakdowns.get(name);
        Self {
            unit: &summary.unit,
            total: summary.total,
            n: summary.n,
            event: &summary.event,
            rate_hz: summary.rate_hz,
            by_length: summary.by_length,
            by_number: summary.by_number,
            by_size: summary.by_size,
            cpus: super::cpus(index, name).map(thousandths),
            threads: breakdown.map_or(0, |breakdown| breakdown.threads),
            processes: breakdown.map_or(0, |breakdown| breakdown.processes),
            stacks: breakdown.map_or(0, |breakdown| breakdown.stacks),
            reasons: breakdown.map(|breakdown| by_name(&breakdown.reasons)).unwrap_or_default(),
            self_by_kind: breakdown.map(|breakdown| by_name(&breakdown.self_by_kind)).unwrap_or_default(),
        }
    }
}

/// A table, with percentiles in the place of distributions.
#[derive(Serialize)]
struct Counted<'a> {
    title: &'a str,
    rows: Vec<CountedRow<'a>>,
    missing: u64,
}

#[derive(Serialize)]
struct CountedRow<'a> {
    labels: BTreeMap<&'a str, &'a str>,
    /// By name and unit.
    values: BTreeMap<String, u64>,
    /// Those that have events, by name and unit.
    distributions: BTreeMap<String, Distribution>,
}

/// What a distribution comes to, in its unit.
#[derive(Serialize)]
struct Distribution {
    count: u64,
    mean: u64,
    deviation: u64,
    p50: u64,
    p90: u64,
    p99: u64,
    max: u64,
}

impl Distribution {
    fn new(histogram: &Histogram) -> Option<Self> {
        let percentile = |per_mille| histogram.percentile(per_mille);
        let (mean, deviation) = histogram.mean_and_deviation()?;
        Some(Self {
            count: histogram.count(),
            mean,
            deviation,
            p50: percentile(500)?,
            p90: percentile(900)?,
            p99: percentile(990)?,
            max: histogram.max,
        })
    }
}

impl<'a> Counted<'a> {
    fn new(table: &'a Table) -> Self {
        let rows = table.rows.iter().map(|row| {
            let distributions = table.distributions.iter().map(TableColumn::field).zip(&row.distributions);
            CountedRow {
                labels: table.labels.iter().map(String::as_str).zip(row.labels.iter().map(String::as_str)).collect(),
                values: table.values.iter().map(TableColumn::field).zip(row.values.iter().copied()).collect(),
                distributions: distributions
                    .filter_map(|(name, histogram)| Some((name, Distribution::new(histogram)?)))
                    .collect(),
            }
        });
        Self { title: &table.title, rows: rows.collect(), missing: table.missing }
    }
}

fn by_name(values: &BTreeMap<String, u64>) -> BTreeMap<&str, u64> {
    values.iter().map(|(name, &value)| (name.as_str(), value)).collect()
}

/// Rounded: more digits than that say nothing.
fn thousandths(value: f64) -> f64 {
    (value * 1e3).round() / 1e3
}
