//! What the newest window was, and what all windows since the start came to: for whoever waits for windows or counts them.
//!
//! The daemon's loop publishes each window once; nobody who reads can hold it up.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::watch;

use crate::profile::{Capture, Column, Fold};

/// Sums since the start, for counters that only grow.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Totals {
    /// Windows.
    pub windows: u64,
    /// Their time, ns.
    pub duration_ns: u64,
    /// End of the last, ns since the Unix epoch.
    pub end_ns: u64,
    /// By origin.
    pub origins: BTreeMap<String, OriginTotals>,
    /// Sums of the timeline's columns that are sums; of others the last figure.
    pub figures: BTreeMap<Column, u64>,
    /// Time in the kernel's programs, ns.
    pub bpf_ns: u64,
    /// Time in traps, ns.
    pub trap_ns: u64,
    /// CPU time of the profiler, ns.
    pub agent_cpu_ns: u64,
    /// Most resident memory of the profiler, bytes.
    pub peak_rss_bytes: u64,
    /// Kernel memory of maps, bytes.
    pub bpf_map_bytes: u64,
    /// Warnings of the last window.
    pub warnings: u64,
}

/// Sums of an origin.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct OriginTotals {
    /// Unit of `value`.
    pub unit: String,
    /// Sum of the values.
    pub value: u64,
    /// Samples of which nothing is missing.
    pub complete: u64,
    /// Samples with a chain cut short, by reason.
    pub truncated: BTreeMap<String, u64>,
    /// Samples that were lost, by reason.
    pub lost: BTreeMap<String, u64>,
}

/// Where windows are published.
#[derive(Debug)]
pub struct Hub {
    latest: watch::Sender<Option<Arc<Capture>>>,
    totals: Mutex<Totals>,
    /// When the last window came, or the hub was made.
    last: Mutex<Instant>,
}

impl Default for Hub {
    fn default() -> Self {
        Self { latest: watch::Sender::new(None), totals: Mutex::default(), last: Mutex::new(Instant::now()) }
    }
}

impl Hub {
    /// Tells everybody of a window.
    pub fn publish(&self, window: Arc<Capture>) {
        self.totals.lock().unwrap_or_else(PoisonError::into_inner).add(&window);
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
        self.latest.send_replace(Some(window));
    }

    /// To wait for windows: each change is one, of which a reader that is slow sees the last.
    #[must_use]
    pub fn windows(&self) -> watch::Receiver<Option<Arc<Capture>>> {
        self.latest.subscribe()
    }

    /// The newest window.
    #[must_use]
    pub fn latest(&self) -> Option<Arc<Capture>> {
        self.latest.borrow().clone()
    }

    /// Time since the last window came, or since the start.
    #[must_use]
    pub fn quiet(&self) -> Duration {
        self.last.lock().unwrap_or_else(PoisonError::into_inner).elapsed()
    }

    /// What all windows came to.
    #[must_use]
    pub fn totals(&self) -> Totals {
        self.totals.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Totals {
    fn add(&mut self, window: &Capture) {
        let index = &window.index;
        self.windows += 1;
        self.duration_ns = self.duration_ns.saturating_add(index.duration_ns);
        self.end_ns = index.started_at_ns.saturating_add(index.duration_ns);
        for (name, summary) in &index.origins {
            let totals = self.origins.entry(name.clone()).or_default();
            totals.unit.clone_from(&summary.unit);
            totals.value = totals.value.saturating_add(summary.total);
        }
        for (name, accounting) in &index.accounting {
            let totals = self.origins.entry(name.clone()).or_default();
            totals.complete = totals.complete.saturating_add(accounting.complete);
            for (sums, counts) in [(&mut totals.truncated, &accounting.truncated), (&mut totals.lost, &accounting.lost)]
            {
                for (reason, count) in counts {
                    let sum = sums.entry(reason.clone()).or_default();
                    *sum = sum.saturating_add(*count);
                }
            }
        }
        for column in Column::ALL {
            let Some(figures) = index.timeline.column(column) else { continue };
            let mut known = figures.iter().flatten().copied();
            match column.fold() {
                Fold::Sum => {
                    let sum = self.figures.entry(column).or_default();
                    *sum = known.fold(*sum, u64::saturating_add);
                }
                Fold::Maximum | Fold::Minimum => {
                    if let Some(last) = known.next_back() {
                        self.figures.insert(column, last);
                    }
                }
            }
        }
        let overhead = &index.overhead;
        self.bpf_ns = self.bpf_ns.saturating_add(overhead.bpf_ns);
        self.trap_ns = self.trap_ns.saturating_add(overhead.trap_ns);
        self.agent_cpu_ns = self.agent_cpu_ns.saturating_add(overhead.agent_cpu_ns);
        self.peak_rss_bytes = overhead.peak_rss_bytes;
        self.bpf_map_bytes = overhead.bpf_map_bytes;
        self.warnings = index.warnings.len() as u64;
    }
}
