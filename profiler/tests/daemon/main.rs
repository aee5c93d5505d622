//! The daemon's history and what it tells others, without a kernel: on captures made by hand.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod dashboard;
mod http;
mod push;
mod store;

#[expect(dead_code, reason = "the tests of outputs have more examples")]
#[path = "../output/example.rs"]
mod example;
