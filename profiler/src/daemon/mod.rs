//! Always on: windows without an end, what they may cost, the history of a host, and whoever is told of it.

pub mod alerts;
pub mod budget;
pub mod config;
pub mod http;
pub mod hub;
pub mod metrics;
pub mod push;
mod run;
pub mod sinks;
pub mod store;

pub use run::{Notice, Sink, State, Supervisor, run, share_memory};
