//! Formats: one file each. Only this module knows a format's bytes.
//!
//! Reads the model, returns bytes or writes them to an `impl Write`; makes no system call. Every file but
//! `capture.json` and the `.pb.gz` profiles is a pure function of what is read back from these, and none depends on
//! how a profile numbers its parts.

pub mod bench;
pub mod capture;
mod chart;
pub mod check;
pub mod diff;
pub mod export;
pub mod flamegraph;
pub mod folded;
mod heap;
pub mod import;
pub mod io_latency_csv;
pub mod io_latency_svg;
mod json;
mod markdown;
mod numbers;
pub mod pprof;
pub mod pprof_proto;
pub mod report_html;
pub mod report_json;
pub mod report_markdown;
mod timeline;
pub mod timeline_csv;
pub mod timeline_svg;

use std::io;

use profiler_common::event::Origin;

use crate::profile::{Capture, Report, chain_wakers};

/// A file of a capture.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutputFile {
    /// Name in the output directory.
    pub name: String,
    /// Content.
    pub bytes: Vec<u8>,
}

/// The files that are made from a capture and what was found in it.
///
/// # Errors
///
/// When a format cannot hold the capture.
pub fn derived(capture: &Capture, report: &Report) -> io::Result<Vec<OutputFile>> {
    let index = &capture::rounded(&capture.index);
    let mut files = Vec::new();
    for profile in &capture.profiles {
        let name = profile.origin.row().name;
        let folded = folded::Folded::new(profile);
        let mut bytes = Vec::new();
        folded.write(&mut bytes)?;
        files.push(OutputFile { name: format!("{name}.folded"), bytes });
        let mut bytes = Vec::new();
        flamegraph::write_folded(profile, &folded, index, &mut bytes)?;
        files.push(OutputFile { name: format!("{name}.svg"), bytes });
        for &(column, what) in profile.origin.row().also {
            let folded = folded::Folded::of(&[(profile, column)]);
            let mut bytes = Vec::new();
            folded.write(&mut bytes)?;
            files.push(OutputFile { name: format!("{name}_{what}.folded"), bytes });
            let mut bytes = Vec::new();
            flamegraph::write_column(profile, column, &folded, index, &mut bytes)?;
            files.push(OutputFile { name: format!("{name}_{what}.svg"), bytes });
        }
    }
    let of = |origin| capture.profiles.iter().find(|profile| profile.origin == origin);
    if let (Some(cpu), Some(offcpu)) = (of(Origin::Cpu), of(Origin::OffCpu)) {
        let primary = offcpu.origin.row().primary;
        let folded = folded::Folded::of(&[(cpu, flamegraph::CPU_NS), (offcpu, primary)]);
        let mut bytes = Vec::new();
        folded.write(&mut bytes)?;
        files.push(OutputFile { name: "wall.folded".to_owned(), bytes });
        let mut bytes = Vec::new();
        flamegraph::write_wall([cpu, offcpu], &folded, index, &mut bytes)?;
        files.push(OutputFile { name: "wall.svg".to_owned(), bytes });
    }
    if let (Some(allocated), Some(in_use)) = (of(Origin::Alloc), of(Origin::Live)) {
        files.push(OutputFile { name: heap::FILE.to_owned(), bytes: heap::encode(allocated, in_use, index) });
    }
    if let (Some(offcpu), Some(waker)) = (of(Origin::OffCpu), of(Origin::Waker)) {
        let chained = chain_wakers(offcpu, waker);
        let folded = folded::Folded::new(&chained);
        let mut bytes = Vec::new();
        folded.write(&mut bytes)?;
        files.push(OutputFile { name: "offwake.folded".to_owned(), bytes });
        let mut bytes = Vec::new();
        flamegraph::write_folded(&chained, &folded, index, &mut bytes)?;
        files.push(OutputFile { name: "offwake.svg".to_owned(), bytes });
    }
    if !index.timeline.is_empty() {
        let mut bytes = Vec::new();
        timeline_csv::write(&index.timeline, &mut bytes)?;
        files.push(OutputFile { name: timeline_csv::FILE.to_owned(), bytes });
        let mut bytes = Vec::new();
        timeline_svg::write(index, &mut bytes)?;
        files.push(OutputFile { name: timeline_svg::FILE.to_owned(), bytes });
    }
    if !index.io_latency.is_empty() {
        let mut bytes = Vec::new();
        io_latency_csv::write(&index.io_latency, &mut bytes)?;
        files.push(OutputFile { name: io_latency_csv::FILE.to_owned(), bytes });
        let mut bytes = Vec::new();
        io_latency_svg::write(index, &mut bytes)?;
        files.push(OutputFile { name: io_latency_svg::FILE.to_owned(), bytes });
    }
    let mut bytes = Vec::new();
    report_json::write(index, report, &mut bytes)?;
    files.push(OutputFile { name: "report.json".to_owned(), bytes });
    let mut bytes = Vec::new();
    report_html::write(capture, index, report, &mut bytes)?;
    files.push(OutputFile { name: "report.html".to_owned(), bytes });
    let mut bytes = Vec::new();
    report_markdown::write(index, report, &mut bytes)?;
    files.push(OutputFile { name: "report.md".to_owned(), bytes });
    Ok(files)
}

/// Whether a capture has what [`pprof_of`] makes a file of.
#[must_use]
pub fn has(capture: &Capture, name: &str) -> bool {
    let has = |origin| capture.profiles.iter().any(|profile| profile.origin == origin);
    if name == "heap" { has(Origin::Alloc) && has(Origin::Live) } else { Origin::from_name(name).is_some_and(has) }
}

/// The pprof file of an origin of a capture; `heap` is what was allocated and what is in use in one. `None` where the
/// capture has no such origin.
#[must_use]
pub fn pprof_of(capture: &Capture, name: &str) -> Option<Vec<u8>> {
    let of = |origin| capture.profiles.iter().find(|profile| profile.origin == origin);
    if name == "heap" {
        return Some(heap::encode(of(Origin::Alloc)?, of(Origin::Live)?, &capture.index));
    }
    let profile = of(Origin::from_name(name)?)?;
    Some(pprof::encode(profile, &pprof::Meta::new(&capture.index, name)))
}

/// The folded stacks of an origin of a capture; of `heap`, those of what is in use. `None` where the capture has no such
/// origin.
#[must_use]
pub fn folded_of(capture: &Capture, name: &str) -> Option<Vec<u8>> {
    let origin = if name == "heap" { Origin::Live } else { Origin::from_name(name)? };
    let profile = capture.profiles.iter().find(|profile| profile.origin == origin)?;
    let mut bytes = Vec::new();
    folded::write(profile, &mut bytes).ok()?;
    Some(bytes)
}

/// CPUs that a sampled origin's samples stand for on average: samples times period by duration.
///
/// `None` where it is no such origin or nothing was recorded.
fn cpus(index: &crate::profile::Index, origin: &str) -> Option<f64> {
    let summary = index.origins.get(origin).filter(|summary| summary.rate_hz > 0 && index.duration_ns > 0)?;
    let seconds = numbers::float(summary.n) / numbers::float(summary.rate_hz);
    Some(seconds / (numbers::float(index.duration_ns) / 1e9))
}
