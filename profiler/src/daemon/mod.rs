//! Always on: the history of a host, and whoever is told of it.

pub mod alerts;
pub mod http;
pub mod hub;
pub mod metrics;
pub mod push;
pub mod sinks;
pub mod store;
