//! Who holds the probes in the code of targets: a process of its own.
//!
//! The kernel takes a probe out of a process's code when its last descriptor is closed, unless the process that closes it is
//! about to be killed: then it gives up, and the trap stays in the target for good. (Source: `uprobe_unregister` in
//! kernel/events/uprobes.c, which needs pages of the target; `__get_user_pages` in mm/gup.c, which fails once a fatal signal
//! is pending.) So the profiler, which anybody may kill at any moment, never has such a descriptor. It asks a child for
//! probes, by a socket; the child is in a session of its own, takes no signal that can be ignored, and takes all probes away
//! when the socket is closed at the other end, whoever closed it.
//!
//! When the child itself is killed, traps may stay. A probe that is put in the same place again and taken away in good order
//! takes the old trap with it: [`ProbeHolder`] notices, starts another child, and does that.

mod client;
mod message;
mod process;

pub(super) use client::{HolderError, ProbeHolder, Work};
pub(super) use message::{MAX_POINTS, Program};
pub(super) use process::UPROBES;
pub use process::hold_probes;
