//! What requests are answered from: the history, the windows that come, and what the daemon says of itself.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Json;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::Requests;
use crate::daemon::hub::Hub;
use crate::daemon::metrics::Family;
use crate::daemon::store::{History, HistoryError, StoreState};
use crate::profile::Finding;

/// Most bytes of windows that a request may read: an hour or more of windows of 10 s.
const MAX_RANGE_BYTES: u64 = 128 << 20;
/// Requests that read the history at a time: more would make it slow for all, and large.
const MAX_READERS: usize = 2;
/// Windows, and time to name one, without which something is wrong.
const LATE_WINDOWS: u32 = 3;
const LATENESS: Duration = Duration::from_secs(30);
/// Longest wait of a request for its turn.
const TURN_TIME: Duration = Duration::from_secs(30);

/// What the daemon says of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Health {
    /// Whether windows come as they should.
    pub healthy: bool,
    /// Why not; empty when they do.
    pub reason: String,
}

/// What requests are answered from.
pub struct Service {
    /// State directory.
    pub(in crate::daemon) state: PathBuf,
    /// Where windows come from; `None` where a history is only shown.
    pub(in crate::daemon) hub: Option<Arc<Hub>>,
    /// What the store does.
    pub(in crate::daemon) store: Option<Arc<Mutex<StoreState>>>,
    /// Findings of the newest window, with its start: made when they are asked for.
    pub(in crate::daemon) findings: Mutex<(u64, Vec<Finding>)>,
    /// What came of requests.
    pub(in crate::daemon) requests: Requests,
    /// What other parts of the daemon tell.
    pub(in crate::daemon) more: Vec<Box<dyn Fn() -> Vec<Family> + Send + Sync>>,
    /// Length of a window, where they come.
    window: Option<Duration>,
    readers: Arc<Semaphore>,
}

impl Service {
    /// Of a history that is only shown.
    #[must_use]
    pub fn of_history(state: PathBuf) -> Self {
        Self {
            state,
            hub: None,
            store: None,
            findings: Mutex::default(),
            requests: Requests::default(),
            more: Vec::new(),
            window: None,
            readers: Arc::new(Semaphore::new(MAX_READERS)),
        }
    }

    /// Of a daemon, whose windows come by the hub and are kept by the store.
    #[must_use]
    pub fn of_daemon(state: PathBuf, hub: Arc<Hub>, store: Arc<Mutex<StoreState>>, window: Duration) -> Self {
        Self { hub: Some(hub), store: Some(store), window: Some(window), ..Self::of_history(state) }
    }

    /// Adds metrics of another part of the daemon.
    #[must_use]
    pub fn with_metrics(mut self, more: impl Fn() -> Vec<Family> + Send + Sync + 'static) -> Self {
        self.more.push(Box::new(more));
        self
    }

    /// Whether windows come as they should: the last one some time ago that is no more than a few windows take, and kept.
    #[must_use]
    pub fn health(&self) -> Health {
        let (Some(hub), Some(window)) = (&self.hub, self.window) else {
            return Health { healthy: true, reason: String::new() };
        };
        // A window is named after it has ended, and one may be as long as two.
        let late = LATE_WINDOWS * window + LATENESS;
        let quiet = hub.quiet();
        if quiet > late {
            let reason = format!("no window has come for {} s", quiet.as_secs());
            return Health { healthy: false, reason };
        }
        let lost = self.store.as_ref().map(|store| store.lock().unwrap_or_else(PoisonError::into_inner).clone());
        match lost.filter(|store| store.losing) {
            Some(store) => Health { healthy: false, reason: format!("windows are lost: {}", store.last_error) },
            None => Health { healthy: true, reason: String::new() },
        }
    }

    /// Runs what reads the history where it keeps nobody up, when it is its turn.
    pub(super) async fn read<T: Send + 'static>(
        &self,
        work: impl FnOnce(&History, u64) -> Result<T, Failure> + Send + 'static,
    ) -> Result<T, Failure> {
        let turn = timeout(TURN_TIME, Arc::clone(&self.readers).acquire_owned()).await;
        let Ok(Ok(turn)) = turn else {
            return Err(Failure::new(StatusCode::SERVICE_UNAVAILABLE, "too many requests read the history: try again"));
        };
        let state = self.state.clone();
        let done = tokio::task::spawn_blocking(move || {
            // Until it is done, whether or not anybody still waits for it.
            let _turn = turn;
            work(&History::open(&state)?, MAX_RANGE_BYTES)
        });
        done.await
            .unwrap_or_else(|_| Err(Failure::new(StatusCode::INTERNAL_SERVER_ERROR, "reading the history failed")))
    }
}

/// Why a request has no answer.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) status: StatusCode,
    pub(super) reason: String,
}

impl Failure {
    pub(super) fn new(status: StatusCode, reason: impl Into<String>) -> Self {
        Self { status, reason: reason.into() }
    }

    pub(super) fn bad(reason: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, reason)
    }
}

impl From<HistoryError> for Failure {
    fn from(error: HistoryError) -> Self {
        let status = match &error {
            HistoryError::Nothing(_) => StatusCode::NOT_FOUND,
            HistoryError::TooMuch { .. } => StatusCode::PAYLOAD_TOO_LARGE,
            HistoryError::Changing => StatusCode::SERVICE_UNAVAILABLE,
            HistoryError::Directory(..) | HistoryError::Window(..) => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Self::new(status, error.to_string())
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string())
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        (self.status, Json(serde_json::json!({ "error": self.reason }))).into_response()
    }
}
