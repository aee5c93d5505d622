//! What distributed profile stores take: requests of Pyroscope and of Parca, which carry pprof profiles, and of an
//! OpenTelemetry Collector.
//!
//! Sources: pyroscope `api/push/v1/push.proto` and `api/types/v1/types.proto`; parca
//! `proto/parca/profilestore/v1alpha1/profilestore.proto`; opentelemetry-proto
//! `collector/profiles/v1development/profiles_service.proto`. Only the fields that are set are written out here.

use std::collections::BTreeMap;

use profiler_common::event::COLUMNS;
use prost::Message as _;

use super::{capture, otlp, pprof};
use crate::profile::{Capture, Index, Profile, Sample, Thread};

/// Most samples of a profile that Pyroscope takes by default (`max-profile-stacktrace-samples`).
const MAX_SAMPLES: usize = 16_000;

/// A name and its value, in both stores.
#[derive(Clone, PartialEq, Eq, prost::Message)]
struct Label {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    value: String,
}

/// A profile in a request, in both stores.
#[derive(Clone, PartialEq, Eq, prost::Message)]
struct RawSample {
    #[prost(bytes = "vec", tag = "1")]
    raw_profile: Vec<u8>,
}

/// `push.v1.PushRequest`.
#[derive(Clone, PartialEq, Eq, prost::Message)]
struct PyroscopeRequest {
    #[prost(message, repeated, tag = "1")]
    series: Vec<PyroscopeSeries>,
}

/// `push.v1.RawProfileSeries`.
#[derive(Clone, PartialEq, Eq, prost::Message)]
struct PyroscopeSeries {
    #[prost(message, repeated, tag = "1")]
    labels: Vec<Label>,
    #[prost(message, repeated, tag = "2")]
    samples: Vec<RawSample>,
}

/// `parca.profilestore.v1alpha1.WriteRawRequest`.
#[derive(Clone, PartialEq, Eq, prost::Message)]
struct ParcaRequest {
    #[prost(message, repeated, tag = "2")]
    series: Vec<ParcaSeries>,
    /// Whether addresses are those of the object files.
    #[prost(bool, tag = "3")]
    normalized: bool,
}

/// `parca.profilestore.v1alpha1.RawProfileSeries`.
#[derive(Clone, PartialEq, Eq, prost::Message)]
struct ParcaSeries {
    #[prost(message, optional, tag = "1")]
    labels: Option<ParcaLabels>,
    #[prost(message, repeated, tag = "2")]
    samples: Vec<RawSample>,
}

/// `parca.profilestore.v1alpha1.LabelSet`.
#[derive(Clone, PartialEq, Eq, prost::Message)]
struct ParcaLabels {
    #[prost(message, repeated, tag = "1")]
    labels: Vec<Label>,
}

/// A request of Pyroscope: a series an origin. `labels`: those of every series, `service_name` among them.
#[must_use]
pub fn pyroscope(window: &Capture, labels: &BTreeMap<String, String>) -> Vec<u8> {
    let series = series(window).map(|(name, profile)| PyroscopeSeries {
        labels: with_name(name, labels),
        samples: vec![RawSample { raw_profile: profile }],
    });
    PyroscopeRequest { series: series.collect() }.encode_to_vec()
}

/// A request of Parca: a series an origin. `labels`: those of every series.
#[must_use]
pub fn parca(window: &Capture, labels: &BTreeMap<String, String>) -> Vec<u8> {
    let series = series(window).map(|(name, profile)| ParcaSeries {
        labels: Some(ParcaLabels { labels: with_name(name, labels) }),
        samples: vec![RawSample { raw_profile: profile }],
    });
    ParcaRequest { series: series.collect(), normalized: false }.encode_to_vec()
}

/// Requests of an OpenTelemetry Collector, one an origin: an `ExportProfilesServiceRequest` has the fields of
/// `ProfilesData`.
#[must_use]
pub fn otlp(window: &Capture) -> Vec<Vec<u8>> {
    let index = &capture::rounded(&window.index);
    window.profiles.iter().map(|profile| otlp::encode(&profile.canonical(), index)).collect()
}

/// The profiles of a window as pprof, with the names that stores know them by.
fn series(window: &Capture) -> impl Iterator<Item = (&'static str, Vec<u8>)> {
    let profiles = window.profiles.iter().filter(|profile| !profile.samples.is_empty());
    profiles.map(|profile| {
        let name = profile.origin.row().name;
        // Source: the types that Pyroscope's own clients push.
        let known = match name {
            "cpu" => "process_cpu",
            "alloc" | "live" => "memory",
            "lock" => "mutex",
            other => other,
        };
        (known, encode(profile, &window.index))
    })
}

/// A profile as stores keep it: without labels of threads, and no larger than they take.
fn encode(profile: &Profile, index: &Index) -> Vec<u8> {
    pprof::encode(&by_stack(profile), &pprof::Meta::new(index, profile.origin.row().name))
}

/// Values by process name and stack alone, those that have most; what is left out is on a stack of its own.
fn by_stack(profile: &Profile) -> Profile {
    let mut profile = profile.clone();
    for thread in &mut profile.threads {
        let process_name = std::mem::take(&mut thread.process_name);
        *thread = Thread { process_name, ..Thread::default() };
    }
    for sample in &mut profile.samples {
        sample.span = 0;
    }
    let mut profile = profile.canonical();
    if profile.samples.len() > MAX_SAMPLES {
        let primary = profile.origin.row().primary;
        profile.samples.sort_by_key(|sample| std::cmp::Reverse(sample.values[primary]));
        let rest = profile.samples.split_off(MAX_SAMPLES - 1);
        let mut values = [0_u64; COLUMNS];
        for sample in &rest {
            values.iter_mut().zip(sample.values).for_each(|(sum, value)| *sum = sum.saturating_add(value));
        }
        let number = |length: usize| u32::try_from(length).unwrap_or(u32::MAX);
        profile.stacks.push(Vec::new());
        profile.threads.push(Thread { process_name: "(others)".to_owned(), ..Thread::default() });
        let (stack, thread) = (number(profile.stacks.len() - 1), number(profile.threads.len() - 1));
        profile.samples.push(Sample { stack, thread, reason: 0, span: 0, values });
        profile = profile.canonical();
    }
    profile
}

/// Labels in ascending order, as stores ask for, with the name of the profile.
fn with_name(name: &str, labels: &BTreeMap<String, String>) -> Vec<Label> {
    let mut all = labels.clone();
    all.insert("__name__".to_owned(), name.to_owned());
    all.into_iter().map(|(name, value)| Label { name, value }).collect()
}

#[cfg(test)]
mod tests {
    use profiler_common::event::Origin;

    use super::*;

    #[test]
    fn a_profile_has_no_more_samples_than_stores_take_and_all_of_its_values() {
        let mut profile = Profile::new(Origin::Cpu);
        let count = u32::try_from(3 * MAX_SAMPLES).unwrap();
        for number in 0..count {
            profile.threads.push(Thread { pid: number % 7, process_name: "a".to_owned(), ..Thread::default() });
            profile.locations.push(crate::profile::Location {
                kind: crate::profile::FrameKind::Native,
                object: None,
                address: number.into(),
                lines: Vec::new(),
            });
            profile.stacks.push(vec![number / 2]);
            let values = [u64::from(number), 1, 0, 0];
            profile.samples.push(Sample { stack: number, thread: number, reason: 0, span: 9, values });
        }
        let kept = by_stack(&profile);
        assert_eq!((kept.samples.len(), kept.totals()), (MAX_SAMPLES, profile.totals()));
        assert!(kept.threads.iter().all(|thread| thread.pid == 0));
    }
}
