//! pprof: a [`Profile`](crate::profile::Profile) to a gzipped `profile.proto` and back.
//!
//! The file is complete: [`decode`] gives back what [`encode`] was given, but for the numbering. What the format has no
//! place for is kept so:
//!
//! - The origin is a comment, `origin=NAME`; the sample types are the columns of its row.
//! - Who ran is labels: `process` and `thread` (names), `cgroup` (path) and `container`, which follows from it, `pid`,
//!   `tid`, `process_start_time` (ns since boot) and `process_exec`; the probe's own are `reason`, by name where the
//!   origin's row names its reasons, and `span`. A number that is 0 is left out.
//! - An object's addresses are as its file states them, and all files begin near 0, so each object's addresses are
//!   moved by a bias to a place of its own. `address - memory_start + file_offset` is the file offset as always. The
//!   bias is a private field; a frame's kind is one too, where it does not follow from the mapping.
//!
//! The same profile gives the same bytes, whatever its ids.

mod decode;
mod encode;
mod layout;

pub(super) use decode::expand;
pub use decode::{DecodeError, MAX_BYTES, decode, decode_message};
pub(super) use encode::encode_as;
pub use encode::{Meta, encode, encode_message};

use crate::profile::{FrameKind, JIT_OBJECT, KERNEL_OBJECT};

/// Keys of labels.
mod label {
    pub(super) const PROCESS: &str = "process";
    pub(super) const THREAD: &str = "thread";
    pub(super) const CGROUP: &str = "cgroup";
    pub(super) const CONTAINER: &str = "container";
    pub(super) const PID: &str = "pid";
    pub(super) const TID: &str = "tid";
    pub(super) const START_TIME: &str = "process_start_time";
    pub(super) const EXEC: &str = "process_exec";
    pub(super) const REASON: &str = "reason";
    pub(super) const SPAN: &str = "span";
}

/// How a comment begins that names the origin.
const ORIGIN_COMMENT: &str = "origin=";

/// The kind of a frame that does not say what it is.
///
/// `object`: path of its mapping, when it has one; `address`: its address; `name`: its first function, when it has one.
fn default_kind(object: Option<&str>, address: u64, name: Option<&str>) -> FrameKind {
    match object {
        Some(KERNEL_OBJECT) => FrameKind::Kernel,
        Some(JIT_OBJECT) => FrameKind::Jit,
        None if address == 0 && name.is_some_and(|name| name.starts_with('[')) => FrameKind::Marker,
        Some(_) | None => FrameKind::Native,
    }
}
