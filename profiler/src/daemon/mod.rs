//! Always on: the history of a host, and whoever is told of it.

pub mod http;
pub mod hub;
pub mod metrics;
pub mod store;
