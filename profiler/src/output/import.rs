//! Profiles of other programs, so that reports, comparisons and exports serve them too.
//!
//! The bytes may come from anywhere: everything is checked, nothing panics.

mod perf_script;
mod pprof;

use std::collections::BTreeMap;

use thiserror::Error;

use super::pprof::DecodeError;
use crate::profile::{Capture, Index, OriginSummary, Profile, StackId, Target, TargetKind};

/// Why something cannot be imported.
#[derive(Debug, Error)]
pub enum ImportError {
    /// Not a profile of pprof.
    #[error("reading it as pprof: {0}")]
    Pprof(#[from] DecodeError),
    /// A profile of something that has no origin here.
    #[error(
        "its sample types are {0}; known are samples/count with or without cpu/nanoseconds, and contentions/count with \
         delay/nanoseconds"
    )]
    Types(String),
    /// Not what `perf script` prints.
    #[error("line {line}: {what}; give it the text that `perf script` prints, with its default fields or -F +pid")]
    PerfScript {
        /// Number of the line, from 1.
        line: usize,
        /// What is wrong with it.
        what: &'static str,
    },
    /// Nothing to import.
    #[error("there is no sample in it")]
    Empty,
}

/// What was imported.
#[derive(Clone, Debug)]
pub struct Imported {
    /// The capture, without slices.
    pub capture: Capture,
    /// Lengths of the slices in ns, where the samples have times.
    pub lengths_ns: Vec<u64>,
    /// Values by stack and slice.
    pub sliced: Vec<((StackId, u32), u64)>,
}

/// Reads a profile: gzip or protobuf as pprof, text as that of `perf script`.
///
/// `name`: what it is called, for the reader.
///
/// # Errors
///
/// When it is neither, or damaged.
pub fn import(bytes: &[u8], name: &str) -> Result<Imported, ImportError> {
    // Protobuf has control characters within its first bytes, text has none.
    let is_text = !bytes.iter().take(4096).any(|&byte| byte < b' ' && !matches!(byte, b'\t' | b'\n' | b'\r'));
    if is_text { perf_script::read(bytes, name) } else { pprof::read(bytes, name) }
}

/// A capture of one profile that another program made.
fn capture(profile: Profile, name: &str, event: String, started_at_ns: u64, duration_ns: u64, rate_hz: u64) -> Capture {
    let row = profile.origin.row();
    let totals = profile.totals();
    let summary = OriginSummary {
        unit: row.unit.to_owned(),
        total: totals[row.primary],
        n: totals[0],
        event,
        rate_hz,
        by_length: None,
        by_number: None,
        by_size: None,
    };
    let warnings = vec![format!(
        "imported from {name}: what was lost, and what recording cost, is not known; kinds of frames are guessed"
    )];
    let target = Target { kind: TargetKind::Imported, description: name.to_owned(), pids: Vec::new(), exit_code: None };
    let origins = BTreeMap::from([(row.name.to_owned(), summary)]);
    let index = Index { started_at_ns, origins, warnings, ..Index::empty(target, duration_ns) };
    Capture { index, profiles: vec![profile] }
}
