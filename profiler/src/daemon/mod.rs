//! Always on: windows without an end, what they may cost, the history of a host, and whoever is told of it.

pub mod budget;
pub mod config;
mod run;
pub mod store;

pub use run::{Notice, Sink, State, Supervisor, run};
