//! What `analyze` makes of captures whose truth is known: made by hand, or by chance from a seed.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod diff;
mod findings;
mod gate;
mod made;
mod memory;
mod phases;
