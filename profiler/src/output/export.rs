//! Profiles in the formats of other programs: one file an origin.

mod callgrind;
mod csv;
mod firefox;
mod otlp;
mod perf_script;
mod speedscope;
pub mod stores;

use std::io;

use super::{OutputFile, capture, folded, pprof};
use crate::profile::{Index, Profile};

/// What a profile can be exported as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Gzipped `profile.proto`, for `go tool pprof` and most stores.
    Pprof,
    /// Lines of stacks, for FlameGraph, inferno and speedscope.
    Folded,
    /// For `callgrind_annotate` and KCachegrind.
    Callgrind,
    /// JSON for speedscope.
    Speedscope,
    /// JSON for the Firefox Profiler, in its processed format.
    Firefox,
    /// Text as `perf script` prints it.
    PerfScript,
    /// OpenTelemetry's profiles signal as protobuf. Experimental, as the signal is.
    Otlp,
    /// One row a sample.
    Csv,
}

impl Format {
    /// Every format.
    pub const ALL: [Self; 8] = [
        Self::Pprof,
        Self::Folded,
        Self::Callgrind,
        Self::Speedscope,
        Self::Firefox,
        Self::PerfScript,
        Self::Otlp,
        Self::Csv,
    ];

    /// Its name on the command line.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Pprof => "pprof",
            Self::Folded => "folded",
            Self::Callgrind => "callgrind",
            Self::Speedscope => "speedscope",
            Self::Firefox => "firefox",
            Self::PerfScript => "perf-script",
            Self::Otlp => "otlp",
            Self::Csv => "csv",
        }
    }

    /// Name of the file of an origin: what the programs that read it look for.
    #[must_use]
    pub fn file(self, origin: &str) -> String {
        match self {
            Self::Pprof => format!("{origin}.pb.gz"),
            Self::Folded => format!("{origin}.folded"),
            Self::Callgrind => format!("callgrind.out.{origin}"),
            Self::Speedscope => format!("{origin}.speedscope.json"),
            Self::Firefox => format!("{origin}.firefox.json"),
            Self::PerfScript => format!("{origin}.perf.txt"),
            Self::Otlp => format!("{origin}.otlp.pb"),
            Self::Csv => format!("{origin}.csv"),
        }
    }
}

/// Exports one profile of a capture.
///
/// # Errors
///
/// When the format cannot hold it.
pub fn export(profile: &Profile, index: &Index, format: Format) -> io::Result<OutputFile> {
    let index = &capture::rounded(index);
    let profile = &profile.canonical();
    let mut bytes = Vec::new();
    match format {
        Format::Pprof => bytes = pprof::encode(profile, &pprof::Meta::new(index, profile.origin.row().name)),
        Format::Folded => folded::write(profile, &mut bytes)?,
        Format::Callgrind => callgrind::write(profile, index, &mut bytes)?,
        Format::Speedscope => speedscope::write(profile, index, &mut bytes)?,
        Format::Firefox => firefox::write(profile, index, &mut bytes)?,
        Format::PerfScript => perf_script::write(profile, index, &mut bytes)?,
        Format::Otlp => bytes = otlp::encode(profile, index),
        Format::Csv => csv::write(profile, &mut bytes)?,
    }
    Ok(OutputFile { name: format.file(profile.origin.row().name), bytes })
}

/// A name on one line.
fn plain(name: &str) -> String {
    name.chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}
