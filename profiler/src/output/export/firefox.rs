//! The Firefox Profiler's processed format: a process for each pid, a thread for each tid.
//!
//! The samples of a profile have no times of their own: those of a thread follow each other evenly over the recording. A weight
//! is a whole number of 32 bits, so times are in microseconds, and large values in thousands or more, which the threads' names say.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::time::Duration;

use fxprof_processed_profile as fxprof;
use fxprof_processed_profile::{CategoryHandle, CpuDelta, Frame, FrameFlags, FrameInfo, Timestamp, WeightType};

use super::plain;
use crate::output::numbers::{NANOSECONDS, float};
use crate::profile::{Index, Profile};

pub(super) fn write(profile: &Profile, index: &Index, writer: &mut impl Write) -> io::Result<()> {
    let row = profile.origin.row();
    let rate_hz = index.origins.get(row.name).map_or(0, |summary| summary.rate_hz);
    let interval = fxprof::SamplingInterval::from_nanos(1_000_000_000 / rate_hz.max(1));
    let start = fxprof::ReferenceTimestamp::from_duration_since_unix_epoch(Duration::from_nanos(index.started_at_ns));
    let mut document = fxprof::Profile::new(&plain(&index.target.description), start, interval);
    let begin = Timestamp::from_millis_since_reference(0.0);
    let (scale, suffix) = scale(profile);
    let mut of_thread: BTreeMap<u32, Vec<usize>> = BTreeMap::new();
    for (number, sample) in profile.samples.iter().enumerate() {
        of_thread.entry(sample.thread).or_default().push(number);
    }
    let mut processes = BTreeMap::new();
    for (thread, samples) in of_thread {
        let thread = &profile.threads[thread as usize];
        let process = *processes
            .entry((thread.pid, &thread.process_name))
            .or_insert_with(|| document.add_process(&plain(&thread.process_name), thread.pid, begin));
        let handle = document.add_thread(process, thread.tid, begin, thread.pid == thread.tid);
        document.set_thread_name(handle, &format!("{}{suffix}", plain(&thread.thread_name)));
        document.set_thread_samples_weight_type(
            handle,
            if row.unit == "bytes" && scale == 1 { WeightType::Bytes } else { WeightType::Samples },
        );
        let step = float(index.duration_ns) / 1e6 / float(samples.len() as u64).max(1.0);
        for (place, &number) in samples.iter().enumerate() {
            let sample = &profile.samples[number];
            let mut frames: Vec<FrameInfo> = profile
                .frames(sample.stack)
                .map(|frame| FrameInfo {
                    frame: Frame::Label(document.intern_string(&format!("{}{}", plain(&frame.name), frame.suffix()))),
                    category_pair: CategoryHandle::OTHER.into(),
                    flags: FrameFlags::empty(),
                })
                .collect();
            frames.reverse();
            let stack = document.intern_stack_frames(handle, frames.into_iter());
            let at = Timestamp::from_millis_since_reference(step * float(place as u64));
            let weight = i32::try_from(sample.values[row.primary].div_ceil(scale)).unwrap_or(i32::MAX);
            document.add_sample(handle, at, stack, CpuDelta::ZERO, weight);
        }
    }
    serde_json::to_writer(writer, &document).map_err(io::Error::other)
}

/// What values are divided by, and what says so: times are in microseconds, and larger where one is too large for a weight.
fn scale(profile: &Profile) -> (u64, &'static str) {
    let row = profile.origin.row();
    let most = profile.samples.iter().map(|sample| sample.values[row.primary]).max().unwrap_or(0);
    let fits = |(scale, _): &(u64, &str)| i32::try_from(most.div_ceil(*scale)).is_ok();
    let scales = if row.unit == NANOSECONDS {
        [(1_000, " (µs)"), (1_000_000, " (ms)"), (1_000_000_000, " (s)"), (1_000_000_000_000, " (1000 s)")]
    } else {
        [(1, ""), (1_000, " (thousands)"), (1_000_000, " (millions)"), (10_000_000_000, " (10^10)")]
    };
    scales.into_iter().find(fits).unwrap_or(scales[3])
}
