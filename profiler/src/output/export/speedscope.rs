//! speedscope's JSON: a sampled profile for each thread, most first.
//!
//! Source: <https://www.speedscope.app/file-format-schema.json>.

use std::collections::BTreeMap;
use std::io::{self, Write};

use serde::Serialize;

use super::plain;
use crate::profile::{Index, Interner, Profile};

#[derive(Serialize)]
struct Document<'a> {
    #[serde(rename = "$schema")]
    schema: &'a str,
    name: &'a str,
    exporter: String,
    #[serde(rename = "activeProfileIndex")]
    active: usize,
    shared: Shared,
    profiles: Vec<Sampled<'a>>,
}

#[derive(Serialize)]
struct Shared {
    frames: Vec<Frame>,
}

#[derive(Clone, PartialEq, Eq, Hash, Serialize)]
struct Frame {
    name: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    file: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    line: Option<u32>,
}

#[derive(Serialize)]
struct Sampled<'a> {
    r#type: &'a str,
    name: String,
    unit: &'a str,
    #[serde(rename = "startValue")]
    start: u64,
    #[serde(rename = "endValue")]
    end: u64,
    samples: Vec<Vec<u32>>,
    weights: Vec<u64>,
}

pub(super) fn write(profile: &Profile, index: &Index, writer: &mut impl Write) -> io::Result<()> {
    let row = profile.origin.row();
    let unit = match row.unit {
        "ns" => "nanoseconds",
        "bytes" => "bytes",
        _ => "none",
    };
    let mut frames = Interner::default();
    let mut threads: BTreeMap<u32, Sampled<'_>> = BTreeMap::new();
    for sample in profile.samples.iter().filter(|sample| sample.values[row.primary] > 0) {
        let thread = &profile.threads[sample.thread as usize];
        let sampled = threads.entry(sample.thread).or_insert_with(|| Sampled {
            r#type: "sampled",
            name: plain(&format!("{} {} {}/{}", thread.process_name, thread.thread_name, thread.pid, thread.tid)),
            unit,
            start: 0,
            end: 0,
            samples: Vec::new(),
            weights: Vec::new(),
        });
        let mut stack: Vec<u32> = profile
            .frames(sample.stack)
            .map(|frame| {
                let name = format!("{}{}", plain(&frame.name), frame.suffix());
                frames.intern(Frame { name, file: plain(frame.file), line: (frame.line > 0).then_some(frame.line) })
            })
            .collect();
        stack.reverse();
        sampled.samples.push(stack);
        sampled.weights.push(sample.values[row.primary]);
        sampled.end += sample.values[row.primary];
    }
    let mut profiles: Vec<_> = threads.into_values().collect();
    profiles.sort_by(|a, b| b.end.cmp(&a.end).then_with(|| a.name.cmp(&b.name)));
    let document = Document {
        schema: "https://www.speedscope.app/file-format-schema.json",
        name: &plain(&index.target.description),
        exporter: format!("profiler {}", plain(&index.profiler_version)),
        active: 0,
        shared: Shared { frames: frames.into_values() },
        profiles,
    };
    serde_json::to_writer(writer, &document).map_err(io::Error::other)
}
