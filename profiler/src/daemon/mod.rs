//! Always on: the history of a host, and whoever is told of it.

pub mod store;
