//! `/debug/pprof/`, as Go's `net/http/pprof` serves it: `go tool pprof URL` works, of any process of this host.
//!
//! `profile` and its like take `seconds`, `pid` and `debug`. With `seconds` the answer is of the windows that cover so much
//! time from now on, when they have come; without it, or where no daemon runs, of the last windows of the history. Windows are
//! whole: the time is that of the profile, or more.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Path, Query, State};
use axum::http::{StatusCode, header};
use axum::response::{AppendHeaders, Html, IntoResponse as _, Redirect, Response};
use axum::routing::get;
use hyper::body::Frame;
use profiler_common::event::{ORIGINS, Origin};
use serde::Deserialize;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout_at};

use super::api::Asked;
use super::service::{Failure, Service};
use crate::daemon::hub::Hub;
use crate::daemon::store::Range;
use crate::output;
use crate::profile::{Capture, MAX_SLICES, Merge, Selection};

/// Longest profile, as Go's server with its usual time limits would not allow either.
const MAX_SECONDS: f64 = 600.0;
/// How long windows that are awaited may be late.
const LATENESS: Duration = Duration::from_secs(90);
/// Time that is looked back at where nothing is awaited, ns.
const LAST_NS: u64 = 60_000_000_000;

/// Names that Go gives, and the origins they stand for here.
const NAMES: [(&str, &str, &str); 4] = [
    ("profile", "cpu", "CPU time by stack"),
    ("heap", "heap", "memory that was allocated and is in use, where allocations are recorded"),
    ("block", "offcpu", "waits of threads, for whatever, where they are recorded"),
    ("mutex", "lock", "waits for locks, where they are recorded"),
];

/// The routes.
pub(super) fn router() -> Router<Arc<Service>> {
    Router::new()
        .route("/debug/pprof", get(async || Redirect::permanent("/debug/pprof/")))
        .route("/debug/pprof/", get(index))
        .route("/debug/pprof/cmdline", get(cmdline))
        .route("/debug/pprof/symbol", get(symbol).post(symbol))
        .route("/debug/pprof/{name}", get(profile))
}

async fn index() -> Html<String> {
    let own = ORIGINS.iter().map(|row| (row.name, row.name, row.event));
    let rows = NAMES
        .into_iter()
        .chain(own)
        .map(|(name, _, text)| format!("<tr><td><a href=\"{name}\">{name}</a></td><td>{text}</td></tr>\n"));
    let rows: String = rows.collect();
    Html(format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head><meta charset=\"utf-8\"><title>/debug/pprof/</title></head>\n<body>\n\
         <h1>/debug/pprof/</h1>\n<p>Profiles of every process of this host. <code>seconds=N</code>: of the next N seconds; \
         <code>pid=N</code>: of one process; <code>debug=1</code>: as text.</p>\n<table>\n{rows}</table>\n</body>\n</html>\n"
    ))
}

/// The command line, its arguments separated by zero bytes.
async fn cmdline() -> Response {
    let arguments: Vec<String> = std::env::args_os().map(|argument| argument.to_string_lossy().into_owned()).collect();
    ([(header::CONTENT_TYPE, "text/plain; charset=utf-8")], arguments.join("\0")).into_response()
}

/// Names of addresses, which pprof asks for where a profile has some without: all that are known are in the profile.
async fn symbol() -> Response {
    ([(header::CONTENT_TYPE, "text/plain; charset=utf-8")], "num_symbols: 0\n").into_response()
}

/// What is asked for beside the process.
#[derive(Debug, Deserialize)]
pub(super) struct Options {
    seconds: Option<String>,
    debug: Option<String>,
}

async fn profile(
    State(service): State<Arc<Service>>,
    Path(name): Path<String>,
    Query(asked): Query<Asked>,
    Query(options): Query<Options>,
) -> Response {
    match make(&service, &name, &asked, &options).await {
        Ok(response) => response,
        Err(failure) => {
            // As Go says it.
            let headers = [(header::CONTENT_TYPE.as_str(), "text/plain; charset=utf-8"), ("x-go-pprof", "1")];
            (failure.status, headers, format!("{}\n", failure.reason)).into_response()
        }
    }
}

async fn make(service: &Service, name: &str, asked: &Asked, options: &Options) -> Result<Response, Failure> {
    let known = NAMES.into_iter().find(|(go, ..)| *go == name).map(|(_, origin, _)| origin);
    let Some(origin) = known.or_else(|| Origin::from_name(name).map(|origin| origin.row().name)) else {
        return Err(Failure::new(StatusCode::NOT_FOUND, "Unknown profile"));
    };
    let selection = asked.selection()?;
    let seconds = match options.seconds.as_deref() {
        // Go samples for 30 s where nothing is said.
        None if name == "profile" => Some(30.0),
        None => None,
        Some(text) => {
            let seconds: f64 = text.parse().map_err(|_| Failure::bad(format!("seconds {text:?} is no number")))?;
            if !(0.0..=MAX_SECONDS).contains(&seconds) {
                return Err(Failure::bad(format!("seconds must be from 0 to {MAX_SECONDS}")));
            }
            Some(seconds).filter(|&seconds| seconds > 0.0)
        }
    };
    let as_text = options.debug.as_deref().is_some_and(|debug| debug != "0" && !debug.is_empty());
    let disposition = format!("attachment; filename=\"{name}\"");
    let kind = if as_text { "text/plain; charset=utf-8" } else { "application/octet-stream" };
    let headers = move || {
        let kind = (header::CONTENT_TYPE, kind.to_owned());
        if as_text { vec![kind] } else { vec![kind, (header::CONTENT_DISPOSITION, disposition)] }
    };
    let encode = move |capture: &Capture| {
        if as_text { output::folded_of(capture, origin) } else { output::pprof_of(capture, origin) }
    };
    let missing = || {
        let reason = format!("{origin} is not recorded: switch it on in the daemon's configuration");
        Failure::new(StatusCode::NOT_FOUND, reason)
    };
    if let (Some(hub), Some(seconds)) = (&service.hub, seconds) {
        // What can be refused is refused now: the head of the answer goes before the windows come, since pprof waits for it
        // half as long again as it asked for, and 5 s.
        if hub.latest().is_some_and(|latest| !output::has(&latest, origin)) {
            return Err(missing());
        }
        let hub = Arc::clone(hub);
        let made = tokio::spawn(async move {
            let capture = next(&hub, Duration::from_secs_f64(seconds), selection).await.ok()?;
            tokio::task::spawn_blocking(move || encode(&capture)).await.ok()?
        });
        return Ok((AppendHeaders(headers()), Body::new(Later(Some(made)))).into_response());
    }
    let capture = last(service, seconds, selection).await?;
    let made = tokio::task::spawn_blocking(move || encode(&capture));
    let made = made.await.map_err(|_| Failure::new(StatusCode::INTERNAL_SERVER_ERROR, "making the profile failed"))?;
    Ok((AppendHeaders(headers()), made.ok_or_else(missing)?).into_response())
}

/// The body of an answer whose head went before. Where there is none after all, the connection is cut off.
struct Later(Option<JoinHandle<Option<Vec<u8>>>>);

impl hyper::body::Body for Later {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        let Some(made) = &mut self.0 else { return Poll::Ready(None) };
        let made = ready!(Pin::new(made).poll(context));
        self.0 = None;
        let bytes = made.ok().flatten().ok_or_else(|| io::Error::other("there is no profile after all"));
        Poll::Ready(Some(bytes.map(|bytes| Frame::data(bytes.into()))))
    }
}

impl Drop for Later {
    fn drop(&mut self) {
        // Nobody waits for it any more.
        if let Some(made) = &self.0 {
            made.abort();
        }
    }
}

/// The windows that come until so much time has passed.
async fn next(hub: &Hub, time: Duration, selection: Selection) -> Result<Capture, Failure> {
    let mut windows = hub.windows();
    windows.mark_unchanged();
    let end = Instant::now() + time;
    let mut sum = Merge::default();
    loop {
        if !matches!(timeout_at(end + LATENESS, windows.changed()).await, Ok(Ok(()))) {
            return Err(Failure::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "no window came: the daemon ends, or is held up",
            ));
        }
        let Some(window) = windows.borrow_and_update().clone() else { continue };
        sum.add(Capture::clone(&window).selected(&selection));
        if Instant::now() >= end {
            return sum.finish(MAX_SLICES).ok_or_else(|| Failure::new(StatusCode::NOT_FOUND, "there is no window"));
        }
    }
}

/// The last windows of the history, of so much time.
async fn last(service: &Service, seconds: Option<f64>, selection: Selection) -> Result<Capture, Failure> {
    let time_ns = seconds
        .map_or(LAST_NS, |seconds| u64::try_from(Duration::from_secs_f64(seconds).as_nanos()).unwrap_or(u64::MAX));
    let read = service.read(move |history, most| {
        let to_ns = history.keys()?.iter().map(|key| key.end_ns()).max().unwrap_or(0);
        let range = Range { from_ns: to_ns.saturating_sub(time_ns), to_ns };
        Ok(history.read(range, &selection, most)?)
    });
    read.await
}
