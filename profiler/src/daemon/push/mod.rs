//! Windows to stores that keep those of a whole fleet: Pyroscope, Parca, an OpenTelemetry Collector.
//!
//! A window becomes a request for each store, which waits in a queue on disk until it was sent: in order, one at a time, again
//! after a while where the store says that it may take it later. What finds no room, or is refused, is counted. Nothing here
//! holds the recording up.

pub(super) mod client;
mod queue;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

use super::metrics::Family;
use crate::output::export::stores;
use crate::profile::Capture;
use client::{Client, Outcome, Protocol};
use queue::Queue;

/// What a store is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum StoreKind {
    /// Grafana Pyroscope.
    Pyroscope,
    /// Parca, or Polar Signals.
    Parca,
    /// An OpenTelemetry Collector; experimental, as the signal is.
    Otlp,
}

impl StoreKind {
    /// Its name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Pyroscope => "pyroscope",
            Self::Parca => "parca",
            Self::Otlp => "otlp",
        }
    }

    const fn path(self) -> &'static str {
        match self {
            Self::Pyroscope => "/push.v1.PusherService/Push",
            Self::Parca => "/parca.profilestore.v1alpha1.ProfileStoreService/WriteRaw",
            Self::Otlp => "/v1development/profiles",
        }
    }

    const fn protocol(self) -> Protocol {
        match self {
            Self::Pyroscope => Protocol::Http("application/proto"),
            Self::Parca => Protocol::Grpc,
            Self::Otlp => Protocol::Http("application/x-protobuf"),
        }
    }

    /// The requests for a window.
    fn requests(self, window: &Capture, labels: &BTreeMap<String, String>) -> Vec<Vec<u8>> {
        match self {
            Self::Pyroscope => vec![stores::pyroscope(window, labels)],
            Self::Parca => vec![stores::parca(window, labels)],
            Self::Otlp => stores::otlp(window),
        }
    }
}

/// A store that windows are sent to: an element of `[[push.store]]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PushConfig {
    /// What it is.
    pub kind: StoreKind,
    /// `http://HOST:PORT` or `https://HOST:PORT`, with a path in front of the store's own where there is one.
    pub address: String,
    /// Labels of every profile, `service_name` among them.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// File with the value of the `Authorization` header: `Bearer TOKEN`, `Basic ...`.
    #[serde(default)]
    pub authorization_file: PathBuf,
    /// Certificates of who signs the store's; the system's where none is named.
    #[serde(default)]
    pub ca: PathBuf,
    /// Most that waits to be sent, MiB.
    #[serde(default = "default_queue")]
    pub queue_mib: u64,
}

const fn default_queue() -> u64 {
    64
}

/// Shortest and longest time to the next attempt.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LAST_PAUSE: Duration = Duration::from_secs(300);

/// What came of requests to a store.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PushState {
    /// Requests that it took.
    pub sent: u64,
    /// Attempts that failed, and were made again.
    pub retried: u64,
    /// Requests that it refused.
    pub refused: u64,
    /// Requests that found no room, and were never sent.
    pub dropped: u64,
    /// Requests and bytes that wait.
    pub waiting: u64,
    /// See `waiting`.
    pub waiting_bytes: u64,
    /// Why the last attempt failed; empty after one that did not.
    pub last_error: String,
}

/// A number of a state.
type Count = fn(&PushState) -> u64;

/// One store, with what waits for it.
struct Destination {
    name: String,
    kind: StoreKind,
    labels: BTreeMap<String, String>,
    client: Client,
    queue: Mutex<Queue>,
    state: Mutex<PushState>,
    /// Something waits.
    more: Notify,
}

/// All stores.
#[derive(Clone)]
pub struct Pusher {
    destinations: Vec<Arc<Destination>>,
}

impl Pusher {
    /// Makes sure that windows can be sent to the stores. What waits is kept below `state`.
    ///
    /// # Errors
    ///
    /// When an address or a file cannot be used.
    pub fn new(state: &Path, configs: &[PushConfig]) -> Result<Self> {
        let mut destinations: Vec<Arc<Destination>> = Vec::new();
        for config in configs {
            let named = |path: &PathBuf| Some(path.clone()).filter(|path| !path.as_os_str().is_empty());
            let name = format!("{}-{:016x}", config.kind.name(), digest(&config.address));
            if destinations.iter().any(|other| other.name == name) {
                bail!("[[push.store]] names {} twice: leave one out", config.address);
            }
            let authorization = match named(&config.authorization_file) {
                None => None,
                Some(path) => {
                    let text = std::fs::read_to_string(&path);
                    Some(text.with_context(|| format!("cannot read {}", path.display()))?.trim().to_owned())
                }
            };
            let (path, protocol, ca) = (config.kind.path(), config.kind.protocol(), named(&config.ca));
            let client = Client::new(&config.address, path, protocol, authorization, ca.as_deref())
                .with_context(|| format!("cannot push to {}", config.address))?;
            let directory = state.join("push").join(&name);
            let queue = Queue::open(&directory, config.queue_mib << 20)
                .with_context(|| format!("cannot keep what waits in {}", directory.display()))?;
            let mut labels = config.labels.clone();
            labels.entry("service_name".to_owned()).or_insert_with(|| "host".to_owned());
            destinations.push(Arc::new(Destination {
                name,
                kind: config.kind,
                labels,
                client,
                queue: Mutex::new(queue),
                state: Mutex::default(),
                more: Notify::new(),
            }));
        }
        Ok(Self { destinations })
    }

    /// Puts a window into the queues. Takes the time that it takes to write it: not for a loop that records.
    pub fn put(&self, window: &Capture) {
        for destination in &self.destinations {
            for request in destination.kind.requests(window, &destination.labels) {
                destination.with_queue(|queue| queue.push(&request));
            }
            destination.more.notify_one();
        }
    }

    /// Sends what waits, until it is dropped.
    pub async fn run(&self) {
        let mut tasks = tokio::task::JoinSet::new();
        for destination in &self.destinations {
            let destination = Arc::clone(destination);
            tasks.spawn(async move { destination.run().await });
        }
        while tasks.join_next().await.is_some() {}
    }

    /// What came of it, by store.
    pub fn states(&self) -> impl Iterator<Item = (&str, PushState)> {
        self.destinations.iter().map(|destination| (destination.name.as_str(), destination.state()))
    }

    /// The same as metrics.
    #[must_use]
    pub fn metrics(&self) -> Vec<Family> {
        let states: Vec<(String, PushState)> = self.states().map(|(name, state)| (name.to_owned(), state)).collect();
        let family = |name: &str, help: &str, is_counter, values| Family {
            name: name.to_owned(),
            help: help.to_owned(),
            is_counter,
            values,
        };
        let of = |value: Count| {
            states.iter().map(move |(name, state)| (vec![("store", name.clone())], float(value(state)))).collect()
        };
        let outcomes: [(&str, Count); 4] = [
            ("sent", |state| state.sent),
            ("retried", |state| state.retried),
            ("refused", |state| state.refused),
            ("dropped", |state| state.dropped),
        ];
        let requests = states.iter().flat_map(|(name, state)| {
            outcomes.map(|(outcome, count)| {
                (vec![("store", name.clone()), ("outcome", outcome.to_owned())], float(count(state)))
            })
        });
        vec![
            family("push_requests", "Requests to stores, by what came of them", true, requests.collect()),
            family("push_waiting", "Requests that wait to be sent", false, of(|state| state.waiting)),
            family("push_waiting_bytes", "Bytes that wait to be sent", false, of(|state| state.waiting_bytes)),
        ]
    }
}

impl Destination {
    fn with_queue<T>(&self, work: impl FnOnce(&mut Queue) -> T) -> T {
        work(&mut self.queue.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn state(&self) -> PushState {
        let (waiting, waiting_bytes, dropped) =
            self.with_queue(|queue| (queue.len() as u64, queue.bytes(), queue.dropped));
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner).clone();
        PushState { waiting, waiting_bytes, dropped, ..state }
    }

    async fn run(&self) {
        let mut pause = FIRST_PAUSE;
        loop {
            let Some((number, request)) = self.with_queue(Queue::first) else {
                self.more.notified().await;
                continue;
            };
            let outcome = self.client.send(request).await;
            let error = match &outcome {
                Outcome::Accepted => String::new(),
                Outcome::Later(error) | Outcome::Refused(error) => error.clone(),
            };
            {
                let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
                state.last_error = error;
                match outcome {
                    Outcome::Accepted => state.sent += 1,
                    Outcome::Later(_) => state.retried += 1,
                    Outcome::Refused(_) => state.refused += 1,
                }
            }
            if matches!(outcome, Outcome::Later(_)) {
                tokio::time::sleep(jittered(pause)).await;
                pause = (2 * pause).min(LAST_PAUSE);
            } else {
                self.with_queue(|queue| queue.sent(number));
                pause = FIRST_PAUSE;
            }
        }
    }
}

/// From half of a time to all of it, by chance: a fleet must not come back all at once.
fn jittered(pause: Duration) -> Duration {
    let chance = digest(&format!("{:?}", std::time::Instant::now())) % 1024;
    pause / 2 + pause / 2 * u32::try_from(chance).unwrap_or(0) / 1024
}

/// A number of a text, the same each time: names of directories follow from it.
fn digest(text: &str) -> u64 {
    use sha2::Digest as _;
    let digest = sha2::Sha256::digest(text);
    u64::from_le_bytes([digest[0], digest[1], digest[2], digest[3], digest[4], digest[5], digest[6], digest[7]])
}

#[expect(clippy::cast_precision_loss, reason = "as Prometheus keeps it")]
const fn float(value: u64) -> f64 {
    value as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_are_from_half_to_all() {
        for _ in 0..100 {
            let pause = jittered(Duration::from_secs(8));
            assert!((Duration::from_secs(4)..=Duration::from_secs(8)).contains(&pause), "{pause:?}");
        }
    }
}
