//! `/api/v1/`: what the page asks, and other programs; `/metrics`; `/healthz`. Described by `openapi.json`.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::extract::{Query, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;
use axum::{Json, Router};
use serde::{Deserialize, Serialize};

use super::service::{Failure, Service};
use crate::analyze::{Worked, analyze, diff};
use crate::daemon::metrics;
use crate::daemon::store::{ProcessInfo, Range};
use crate::output::{self, report_html, report_json};
use crate::profile::{Capture, DiffRules, Selection};

/// The description of the API, for whoever writes a program.
pub const OPENAPI: &str = include_str!("openapi.json");

/// The routes, below `/api/v1`.
pub(super) fn router() -> Router<Arc<Service>> {
    Router::new()
        .route("/windows", get(windows))
        .route("/targets", get(targets))
        .route("/report", get(report))
        .route("/findings", get(findings))
        .route("/flamegraph", get(flamegraph))
        .route("/profile", get(profile))
        .route("/diff", get(compared))
        .route("/openapi.json", get(async || ([(header::CONTENT_TYPE, JSON)], OPENAPI)))
}

const JSON: &str = "application/json";

/// A range, and whose values.
#[derive(Debug, Default, Deserialize)]
pub(super) struct Asked {
    /// First moment, seconds since the Unix epoch, with decimals.
    from: Option<String>,
    /// Last moment.
    to: Option<String>,
    /// The range that is compared with.
    base_from: Option<String>,
    base_to: Option<String>,
    /// Process.
    pub(super) pid: Option<String>,
    process: Option<String>,
    thread: Option<String>,
    cgroup: Option<String>,
    origin: Option<String>,
}

impl Asked {
    fn range(&self) -> Result<Range, Failure> {
        between(self.from.as_deref(), self.to.as_deref())
    }

    fn base(&self) -> Result<Range, Failure> {
        if self.base_from.is_none() || self.base_to.is_none() {
            return Err(Failure::bad("base_from and base_to are needed: the range that is compared with"));
        }
        between(self.base_from.as_deref(), self.base_to.as_deref())
    }

    /// Whose values.
    pub(super) fn selection(&self) -> Result<Selection, Failure> {
        let pid = |pid: &str| pid.parse().map_err(|_| Failure::bad(format!("pid {pid:?} is no number of a process")));
        let pids = match self.pid.as_deref() {
            None | Some("" | "0") => Vec::new(),
            Some(list) => list.split(',').map(pid).collect::<Result<_, _>>()?,
        };
        let named = |name: &Option<String>| name.clone().filter(|name| !name.is_empty());
        Ok(Selection { pids, process: named(&self.process), thread: named(&self.thread), cgroup: named(&self.cgroup) })
    }
}

/// Without ends, everything.
fn between(from: Option<&str>, to: Option<&str>) -> Result<Range, Failure> {
    let from_ns = from.map_or(Ok(0), moment)?;
    let to_ns = to.map_or(Ok(u64::MAX), moment)?;
    if from_ns >= to_ns {
        return Err(Failure::bad("the range is empty: from must be before to"));
    }
    Ok(Range { from_ns, to_ns })
}

/// Seconds since the Unix epoch with up to nine decimals, exactly.
fn moment(text: &str) -> Result<u64, Failure> {
    let wrong = || Failure::bad(format!("{text:?} is no moment: use seconds since the Unix epoch, as 1795356300.5"));
    let (seconds, decimals) = text.split_once('.').unwrap_or((text, ""));
    let are_digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    if seconds.is_empty() || !are_digits(seconds) || !are_digits(decimals) || text.len() > 40 {
        return Err(wrong());
    }
    let decimals = format!("{decimals:0<9}");
    let seconds: u64 = seconds.parse().map_err(|_| wrong())?;
    let ns: u64 = decimals[..9].parse().map_err(|_| wrong())?;
    seconds.checked_mul(1_000_000_000).and_then(|seconds| seconds.checked_add(ns)).ok_or_else(wrong)
}

type Answer = Result<Response, Failure>;

/// Reads a range, and makes something of it.
async fn of_range<T: Send + 'static>(
    service: &Service,
    asked: &Asked,
    work: impl FnOnce(&Capture) -> Result<T, Failure> + Send + 'static,
) -> Result<T, Failure> {
    let (range, selection) = (asked.range()?, asked.selection()?);
    service.read(move |history, most| work(&history.read(range, &selection, most)?)).await
}

async fn windows(State(service): State<Arc<Service>>, Query(asked): Query<Asked>) -> Answer {
    let range = asked.range()?;
    let windows = service.read(move |history, _| Ok(history.windows(range)?)).await?;
    Ok(Json(serde_json::json!({ "windows": windows, "live": service.hub.is_some() })).into_response())
}

/// A process with values in a range.
#[derive(Serialize)]
struct Target {
    #[serde(flatten)]
    process: ProcessInfo,
    /// Windows in which it is among those with most.
    windows: u64,
}

async fn targets(State(service): State<Arc<Service>>, Query(asked): Query<Asked>) -> Answer {
    let range = asked.range()?;
    let windows = service.read(move |history, _| Ok(history.windows(range)?)).await?;
    let mut targets: BTreeMap<(u32, String), Target> = BTreeMap::new();
    for process in windows.into_iter().flat_map(|window| window.processes) {
        let target = targets
            .entry((process.pid, process.process.clone()))
            .or_insert_with(|| Target { process: ProcessInfo { value: 0, ..process.clone() }, windows: 0 });
        target.process.value = target.process.value.saturating_add(process.value);
        target.windows += 1;
    }
    let mut targets: Vec<Target> = targets.into_values().collect();
    targets.sort_by_key(|target| std::cmp::Reverse(target.process.value));
    targets.truncate(1000);
    Ok(Json(serde_json::json!({ "targets": targets })).into_response())
}

async fn report(State(service): State<Arc<Service>>, Query(asked): Query<Asked>) -> Answer {
    let bytes = of_range(&service, &asked, |capture| {
        let mut bytes = Vec::new();
        report_json::write(&capture.index, &analyze(capture), &mut bytes)?;
        Ok(bytes)
    });
    Ok(([(header::CONTENT_TYPE, JSON)], bytes.await?).into_response())
}

async fn findings(State(service): State<Arc<Service>>, Query(asked): Query<Asked>) -> Answer {
    let report = of_range(&service, &asked, |capture| Ok(analyze(capture))).await?;
    let answer = serde_json::json!({ "findings": report.findings, "plan": report.plan, "score": report.score });
    Ok(Json(answer).into_response())
}

async fn flamegraph(State(service): State<Arc<Service>>, Query(asked): Query<Asked>) -> Answer {
    let origin = asked.origin.clone();
    let bytes = of_range(&service, &asked, move |capture| {
        let mut bytes = Vec::new();
        report_html::write_flames(capture, origin.as_deref(), &mut bytes)?;
        Ok(bytes)
    });
    Ok(([(header::CONTENT_TYPE, JSON)], bytes.await?).into_response())
}

async fn profile(State(service): State<Arc<Service>>, Query(asked): Query<Asked>) -> Answer {
    let origin = asked.origin.clone().unwrap_or_else(|| "cpu".to_owned());
    let name = origin.clone();
    let bytes = of_range(&service, &asked, move |capture| {
        output::pprof_of(capture, &origin)
            .ok_or_else(|| Failure::new(StatusCode::NOT_FOUND, format!("nothing was recorded of {origin:?}")))
    });
    let bytes = bytes.await?;
    // The name is one of an origin: there was a profile of it.
    let disposition = format!("attachment; filename=\"{name}.pb.gz\"");
    let headers =
        [(header::CONTENT_TYPE, "application/octet-stream".to_owned()), (header::CONTENT_DISPOSITION, disposition)];
    Ok((headers, bytes).into_response())
}

async fn compared(State(service): State<Arc<Service>>, Query(asked): Query<Asked>) -> Answer {
    let (range, base, selection) = (asked.range()?, asked.base()?, asked.selection()?);
    let origin = asked.origin.clone().unwrap_or_else(|| "cpu".to_owned());
    let found = service.read(move |history, most| {
        let (before, after) = (history.read(base, &selection, most)?, history.read(range, &selection, most)?);
        let worked = |capture| Worked { capture, work: seconds(capture), is_time: true, runs: &[] };
        let found = diff(&origin, "second", &[worked(&before)], &[worked(&after)], &DiffRules::default());
        let found = found.ok_or_else(|| {
            Failure::new(StatusCode::NOT_FOUND, format!("{origin:?} was not recorded in both ranges"))
        })?;
        Ok(output::diff::to_json(&found)?)
    });
    Ok(([(header::CONTENT_TYPE, JSON)], found.await?).into_response())
}

#[expect(clippy::cast_precision_loss, reason = "a divisor, of which few digits matter")]
fn seconds(capture: &Capture) -> f64 {
    (capture.index.duration_ns as f64 / 1e9).max(1e-9)
}

/// `/healthz`.
pub(super) async fn health(State(service): State<Arc<Service>>) -> Response {
    let health = service.health();
    let status = if health.healthy { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, if health.healthy { "ok\n".to_owned() } else { format!("{}\n", health.reason) }).into_response()
}

/// `/metrics`: as OpenMetrics for those that ask for it, else in the older format.
pub(super) async fn metrics(State(service): State<Arc<Service>>, headers: HeaderMap) -> Answer {
    let accept = headers.get(header::ACCEPT).and_then(|accept| accept.to_str().ok()).unwrap_or_default();
    let is_open = accept.contains(metrics::OPEN_METRICS);
    let Ok(text) = tokio::task::spawn_blocking(move || service.metrics()).await else {
        return Err(Failure::new(StatusCode::INTERNAL_SERVER_ERROR, "counting failed"));
    };
    let (kind, text) =
        if is_open { (metrics::OPEN_METRICS_TYPE, text) } else { (metrics::CLASSIC_TYPE, metrics::classic(&text)) };
    Ok(([(header::CONTENT_TYPE, kind)], text).into_response())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_exact() {
        for (text, expected) in [
            ("0", 0),
            ("1795356300", 1_795_356_300_000_000_000),
            ("1795356300.123456789", 1_795_356_300_123_456_789),
            ("1795356300.5", 1_795_356_300_500_000_000),
            ("1.0000000009", 1_000_000_000),
        ] {
            assert_eq!(moment(text).unwrap(), expected, "{text}");
        }
        for wrong in ["", ".", "-1", "1e9", "1.2.3", " 1", "99999999999999999999", "18446744074", "\u{661}"] {
            assert!(moment(wrong).is_err(), "{wrong}");
        }
        assert!(between(Some("5"), Some("5")).is_err());
        assert!(Asked::default().base().is_err());
    }
}
