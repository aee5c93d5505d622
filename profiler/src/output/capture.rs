//! The capture as files: `capture.json` and one pprof file an origin. Everything else is made from these.

use std::io::{self, Write as _};

use flate2::Compression;
use flate2::write::GzEncoder;
use profiler_common::event::Origin;
use serde::Deserialize;
use thiserror::Error;

use super::{OutputFile, json, pprof};
use crate::profile::{Accounting, Capture, Index, SCHEMA_VERSION};

/// Name of the index.
pub const INDEX_FILE: &str = "capture.json";
/// Name of the index in a history, where it is gzipped.
pub const COMPRESSED_INDEX_FILE: &str = "capture.json.gz";
/// Most events of a capture: keeps sums of counts from a hostile file within 64 bits.
const MAX_COUNT: u64 = 1 << 53;

/// Why a capture cannot be read.
#[derive(Debug, Error)]
pub enum CaptureError {
    /// The index is not one.
    #[error("reading {INDEX_FILE}: {0}")]
    Json(#[from] serde_json::Error),
    /// The index cannot be expanded.
    #[error("reading {COMPRESSED_INDEX_FILE}: {0}")]
    Gzip(pprof::DecodeError),
    /// Made by a newer profiler.
    #[error(
        "{INDEX_FILE} has schema version {found}, this profiler reads up to {SCHEMA_VERSION}: use the profiler \
         that made it, or a newer one"
    )]
    Newer {
        /// The file's version.
        found: u64,
    },
    /// An origin this profiler does not know.
    #[error("{INDEX_FILE} names the origin {0:?}, which this profiler does not know")]
    Origin(String),
    /// A count that cannot be.
    #[error("{INDEX_FILE}: the accounting of {0} has a count that is out of range")]
    Count(String),
    /// Times whose sum cannot be.
    #[error("{INDEX_FILE}: the times of threads or locks are out of range")]
    Times,
    /// A timeline whose columns are not of one length.
    #[error("{INDEX_FILE}: the columns of the timeline are not of one length")]
    Timeline,
    /// Figures of live blocks that cannot be.
    #[error("{INDEX_FILE}: the figures of live blocks are out of range")]
    Live,
    /// Figures of memory that cannot be.
    #[error("{INDEX_FILE}: the figures of memory are out of range")]
    Memory,
    /// Latencies whose numbers cannot be.
    #[error("{INDEX_FILE}: the latencies of requests to block devices are out of range")]
    IoLatency,
    /// Slices whose lists or numbers cannot be.
    #[error("{INDEX_FILE}: the slices of {0} have lists or numbers that cannot be")]
    Slices(String),
    /// A table that cannot be.
    #[error("{INDEX_FILE}: the table {0:?} has rows or numbers that cannot be")]
    Table(String),
    /// A profile could not be had.
    #[error("reading {file}: {source}")]
    Io {
        /// File name.
        file: String,
        /// Why.
        source: io::Error,
    },
    /// A profile is not one.
    #[error("reading {file}: {source}")]
    Profile {
        /// File name.
        file: String,
        /// Why.
        source: pprof::DecodeError,
    },
}

/// Name of an origin's profile.
#[must_use]
pub fn profile_file(origin: Origin) -> String {
    format!("{}.pb.gz", origin.row().name)
}

/// The files of a capture: the profiles, then the index, so that an index never refers to what is not there yet.
///
/// # Errors
///
/// When the index cannot be put into JSON.
pub fn write(capture: &Capture) -> io::Result<Vec<OutputFile>> {
    let mut files = write_profiles(capture);
    let mut bytes = Vec::new();
    json::write(&rounded(&capture.index), &mut bytes)?;
    files.push(OutputFile { name: INDEX_FILE.to_owned(), bytes });
    Ok(files)
}

/// As [`write()`], with a gzipped index: one of a history, where many of them are kept.
///
/// # Errors
///
/// When the index cannot be put into JSON.
pub fn write_compressed(capture: &Capture) -> io::Result<Vec<OutputFile>> {
    let mut files = write_profiles(capture);
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(&serde_json::to_vec(&rounded(&capture.index))?)?;
    files.push(OutputFile { name: COMPRESSED_INDEX_FILE.to_owned(), bytes: encoder.finish()? });
    Ok(files)
}

fn write_profiles(capture: &Capture) -> Vec<OutputFile> {
    let files = capture.profiles.iter().map(|profile| {
        let meta = pprof::Meta::new(&capture.index, profile.origin.row().name);
        OutputFile { name: profile_file(profile.origin), bytes: pprof::encode(profile, &meta) }
    });
    files.collect()
}

/// The index as it is read back: fractions have three decimals, so that JSON keeps them to the last bit.
pub(super) fn rounded(index: &Index) -> Index {
    let thousandths = |value: f64| (value * 1e3).round() / 1e3;
    let mut index = index.clone();
    for accounting in index.accounting.values_mut() {
        accounting.expected = thousandths(accounting.expected);
        accounting.not_delivered = thousandths(accounting.not_delivered);
    }
    for by_size in index.origins.values_mut().filter_map(|summary| summary.by_size.as_mut()) {
        by_size.standard_error_bytes = thousandths(by_size.standard_error_bytes);
        by_size.share_of_time = (by_size.share_of_time * 1e6).round() / 1e6;
    }
    for by_length in index.origins.values_mut().filter_map(|summary| summary.by_length.as_mut()) {
        by_length.standard_error_ns = thousandths(by_length.standard_error_ns);
    }
    index.overhead.bpf_ns_per_sample = thousandths(index.overhead.bpf_ns_per_sample);
    index
}

/// Reads a capture.
///
/// `index`: the bytes of [`INDEX_FILE`], gzipped or not; `read_file`: gives the bytes of the file of a name that [`profile_file`] made.
///
/// # Errors
///
/// When a file is missing or damaged, or made by a newer profiler.
pub fn read(index: &[u8], mut read_file: impl FnMut(&str) -> io::Result<Vec<u8>>) -> Result<Capture, CaptureError> {
    /// What every version of the index has.
    #[derive(Deserialize)]
    struct Version {
        schema_version: u64,
    }
    let index = &*pprof::expand(index).map_err(CaptureError::Gzip)?;
    let Version { schema_version: found } = serde_json::from_slice(index)?;
    if found > u64::from(SCHEMA_VERSION) {
        return Err(CaptureError::Newer { found });
    }
    let index: Index = serde_json::from_slice(index)?;
    for (name, accounting) in &index.accounting {
        if !counts(accounting).all(|count| count < MAX_COUNT / 64) {
            return Err(CaptureError::Count(name.clone()));
        }
    }
    let times = || index.thread_times.iter();
    let locks = || index.lock_times.iter();
    let are_sound = sums_fit(times().map(|time| time.threads))
        && sums_fit(times().map(|time| time.wall_ns))
        && sums_fit(times().map(|time| time.on_cpu_ns))
        && sums_fit(times().map(|time| time.off_cpu_ns))
        && sums_fit(locks().map(|lock| lock.waits))
        && sums_fit(locks().map(|lock| lock.delay_ns));
    if !are_sound {
        return Err(CaptureError::Times);
    }
    if !index.timeline.is_consistent() {
        return Err(CaptureError::Timeline);
    }
    if index.live.as_ref().is_some_and(|live| !live.is_sound()) {
        return Err(CaptureError::Live);
    }
    if index.memory.as_ref().is_some_and(|memory| !memory.is_sound()) {
        return Err(CaptureError::Memory);
    }
    if !index.io_latency.is_sound() {
        return Err(CaptureError::IoLatency);
    }
    if let Some((name, _)) = index.function_slices.iter().find(|(_, slices)| !slices.is_sound()) {
        return Err(CaptureError::Slices(name.clone()));
    }
    if let Some((name, _)) = index.tables.iter().find(|(_, table)| !table.is_sound()) {
        return Err(CaptureError::Table(name.clone()));
    }
    let mut origins = Vec::new();
    for name in index.origins.keys() {
        origins.push(Origin::from_name(name).ok_or_else(|| CaptureError::Origin(name.clone()))?);
    }
    origins.sort_unstable();
    let mut profiles = Vec::new();
    for origin in origins {
        let file = profile_file(origin);
        let bytes = read_file(&file).map_err(|source| CaptureError::Io { file: file.clone(), source })?;
        let profile = pprof::decode(&bytes).map_err(|source| CaptureError::Profile { file: file.clone(), source })?;
        if profile.origin != origin {
            return Err(CaptureError::Origin(profile.origin.row().name.to_owned()));
        }
        profiles.push(profile);
    }
    Ok(Capture { index, profiles })
}

/// Whether the sum of numbers is far within 64 bits, so that sums of such sums are.
fn sums_fit(numbers: impl Iterator<Item = u64>) -> bool {
    const MAX_SUM: u64 = u64::MAX >> 3;
    numbers.into_iter().try_fold(0_u64, u64::checked_add).is_some_and(|sum| sum <= MAX_SUM)
}

/// Every count of an accounting, at most 64 of them worth having: more reasons than that do not exist.
fn counts(accounting: &Accounting) -> impl Iterator<Item = u64> {
    let chains = [&accounting.user, &accounting.kernel];
    let maps = [&accounting.truncated, &accounting.lost]
        .into_iter()
        .chain(chains.into_iter().flat_map(|chain| [&chain.truncated, &chain.lost]));
    let single = [accounting.hits, accounting.filtered, accounting.idle, accounting.sampled_out, accounting.complete];
    single.into_iter().chain(chains.map(|chain| chain.complete)).chain(maps.flat_map(|map| {
        let too_many = (map.len() > 64).then_some(u64::MAX);
        map.values().copied().chain(too_many)
    }))
}
