//! Figures of a capture by name: what budgets and trends are about.
//!
//! - a counter of [`super::counters()`], for each second;
//! - `cpus`; `score`; `peak_rss`; `rss_growth`, bytes a second from the first slice to the last; `disk_utilisation`, the part of the
//!   time in which the busiest device had something to do; `lost.ORIGIN`, the part of its samples; `overhead`, CPUs that the profiler used;
//! - `self:FUNCTION` and `total:FUNCTION`, parts of the CPU time; `ORIGIN/self:FUNCTION` of another origin;
//! - `wait:REASON`, a part of the wall time of all threads;
//! - `findings`, those above "info"; `findings:KIND`;
//! - `TABLE.DISTRIBUTION.p50`, `.p90`, `.p99` and `.max`, over all rows.

use super::counters::work;
use crate::profile::{Capture, Column, Histogram, PERCENTILES, Report, Severity};

/// A figure and its unit: `share`, `ns`, `bytes` or nothing.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Metric {
    /// The figure.
    pub value: f64,
    /// Its unit.
    pub unit: &'static str,
}

/// A figure by its name; `None` where the capture does not have it.
#[must_use]
pub fn metric(capture: &Capture, report: &Report, name: &str) -> Option<Metric> {
    let share = |value| Metric { value, unit: "share" };
    let plain = |value| Metric { value, unit: "" };
    let index = &capture.index;
    let seconds = float(index.duration_ns) / 1e9;
    if let Some(found) = function(report, name) {
        return Some(share(found));
    }
    if let Some(reason) = name.strip_prefix("wait:") {
        let total = &report.ledger.as_ref()?.total;
        return Some(share(float(total.waits.get(reason).copied().unwrap_or(0)) / float(total.wall_ns).max(1.0)));
    }
    if let Some(origin) = name.strip_prefix("lost.") {
        let accounting = index.accounting.get(origin)?;
        let lost = accounting.samples_lost();
        return Some(share(float(lost) / float(lost + accounting.samples()).max(1.0)));
    }
    let worth = report.findings.iter().filter(|finding| finding.severity > Severity::Info);
    if let Some(kind) = name.strip_prefix("findings:") {
        return Some(plain(count(worth.filter(|finding| finding.kind.name() == kind).count())));
    }
    match name {
        "findings" => return Some(plain(count(worth.count()))),
        "score" => return Some(plain(f64::from(report.score.as_ref()?.value))),
        "cpus" => {
            let cpu = index.origins.get("cpu").filter(|summary| summary.rate_hz > 0 && seconds > 0.0)?;
            return Some(plain(float(cpu.n) / float(cpu.rate_hz) / seconds));
        }
        "overhead" => return (seconds > 0.0).then(|| plain(float(index.overhead.agent_cpu_ns) / 1e9 / seconds)),
        "peak_rss" => {
            let most = index.timeline.column(Column::TargetRss)?.iter().flatten().max()?;
            return Some(Metric { value: float(*most), unit: "bytes" });
        }
        "rss_growth" => {
            let timeline = &index.timeline;
            let slices = timeline.start_ns.iter().zip(timeline.column(Column::TargetRss)?);
            let mut known = slices.filter_map(|(start, rss)| Some((*start, float((*rss)?))));
            let ((start, first), (end, last)) = (known.next()?, known.next_back()?);
            let seconds = float(end.saturating_sub(start)) / 1e9;
            return (seconds > 0.0).then(|| Metric { value: (last - first) / seconds, unit: "bytes" });
        }
        "disk_utilisation" => {
            let table = index.tables.get("blockio_devices")?;
            let busy = table.values.iter().position(|column| column.name == "busy")?;
            let most = table.rows.iter().filter_map(|row| row.values.get(busy)).max()?;
            return (seconds > 0.0).then(|| share(float(*most) / 1e9 / seconds));
        }
        _ => {}
    }
    percentile(capture, name)
        .or_else(|| (seconds > 0.0).then(|| work(capture, name).map(|sum| plain(sum / seconds)))?)
}

/// `self:FUNCTION`, `total:FUNCTION`, either with `ORIGIN/` in front. A function that leads nowhere has nothing.
fn function(report: &Report, name: &str) -> Option<f64> {
    let (origin, rest) = match name.split_once('/') {
        Some((origin, rest)) if report.breakdowns.contains_key(origin) => (origin, rest),
        _ => ("cpu", name),
    };
    let (is_self, function) = match rest.strip_prefix("self:") {
        Some(function) => (true, function),
        None => (false, rest.strip_prefix("total:")?),
    };
    report.breakdowns.get(origin)?;
    let mine = report.hotspots.iter().filter(|hotspot| hotspot.origin == origin && hotspot.function == function);
    Some(mine.map(|hotspot| if is_self { hotspot.self_share } else { hotspot.total_share }).sum())
}

fn percentile(capture: &Capture, name: &str) -> Option<Metric> {
    let (rest, which) = name.rsplit_once('.')?;
    let (table, distribution) = rest.split_once('.')?;
    let per_mille = match PERCENTILES.iter().find(|(name, _)| *name == which) {
        Some((_, per_mille)) => Some(*per_mille),
        None if which == "max" => None,
        None => return None,
    };
    let table = capture.index.tables.get(table)?;
    let place = table.distributions.iter().position(|column| column.field() == distribution)?;
    let mut all = Histogram::default();
    table.rows.iter().filter_map(|row| row.distributions.get(place)).for_each(|histogram| all.add(histogram));
    let value = per_mille.map_or(Some(all.max), |per_mille| all.percentile(per_mille))?;
    let unit = if table.distributions[place].unit == "ns" { "ns" } else { "" };
    Some(Metric { value: float(value), unit })
}

#[expect(clippy::cast_precision_loss, reason = "figures of which few digits matter")]
const fn float(value: u64) -> f64 {
    value as f64
}

#[expect(clippy::cast_precision_loss, reason = "a few")]
const fn count(value: usize) -> f64 {
    value as f64
}
