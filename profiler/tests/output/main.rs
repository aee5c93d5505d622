//! What `output` writes: golden files, round trips, and sums that agree.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod example;
mod golden;
mod merge;
mod pprof;
mod random;
mod redact;
mod sums;
