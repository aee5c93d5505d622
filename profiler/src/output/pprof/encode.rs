//! Model to messages to bytes.

use std::collections::BTreeMap;
use std::collections::HashMap;
use std::io::Write as _;

use flate2::{Compression, GzBuilder};
use profiler_common::event::OriginRow;
use prost::Message as _;

use super::{ORIGIN_COMMENT, default_kind, label, layout};
use crate::output::pprof_proto as proto;
use crate::profile::{Accounting, FrameKind, Index, Location, Profile, Thread, container_of};

/// What the file says about the recording as a whole.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Meta {
    /// Start, ns since the Unix epoch.
    pub started_at_ns: u64,
    /// Length, ns.
    pub duration_ns: u64,
    /// Samples a second and CPU; 0 when the origin does not sample by time.
    pub rate_hz: u64,
    /// Remarks for a person: `go tool pprof -comments` shows them.
    pub comments: Vec<String>,
}

impl Meta {
    /// What `index` says of the origin called `origin`.
    #[must_use]
    pub fn new(index: &Index, origin: &str) -> Self {
        Self {
            started_at_ns: index.started_at_ns,
            duration_ns: index.duration_ns,
            rate_hz: index.origins.get(origin).map_or(0, |summary| summary.rate_hz),
            comments: index.accounting.get(origin).map(accounting).into_iter().collect(),
        }
    }
}

/// The accounting on one line.
fn accounting(accounting: &Accounting) -> String {
    let reasons = |reasons: &BTreeMap<String, u64>| {
        let words: Vec<String> = reasons.iter().map(|(reason, count)| format!("{reason} {count}")).collect();
        if words.is_empty() { "0".to_owned() } else { words.join(", ") }
    };
    let sampled_out = match accounting.sampled_out {
        0 => String::new(),
        number => format!(" + sampled out {number}"),
    };
    format!(
        "hits {} = filtered {} + idle {}{sampled_out} + complete {} + truncated ({}) + lost ({}); not delivered {:.1}",
        accounting.hits,
        accounting.filtered,
        accounting.idle,
        accounting.complete,
        reasons(&accounting.truncated),
        reasons(&accounting.lost),
        accounting.not_delivered
    )
}

/// The gzipped file.
#[must_use]
pub fn encode(profile: &Profile, meta: &Meta) -> Vec<u8> {
    encode_as(profile, profile.origin.row(), meta)
}

/// The gzipped file of a profile whose values are what `row` says, not its origin's.
pub(in super::super) fn encode_as(profile: &Profile, row: &OriginRow, meta: &Meta) -> Vec<u8> {
    let message = message_as(profile, row, meta).encode_to_vec();
    // No time and no file name in the header: the same profile gives the same bytes.
    let mut gzip = GzBuilder::new().write(Vec::new(), Compression::default());
    // Writing to memory cannot fail.
    let _ = gzip.write_all(&message);
    gzip.finish().unwrap_or_default()
}

/// The message in the file.
#[must_use]
pub fn encode_message(profile: &Profile, meta: &Meta) -> proto::Profile {
    message_as(profile, profile.origin.row(), meta)
}

fn message_as(profile: &Profile, row: &OriginRow, meta: &Meta) -> proto::Profile {
    let profile = &profile.canonical();
    let mut strings = Strings::new();
    let sample_type = row
        .columns
        .iter()
        .map(|(name, unit)| proto::ValueType { r#type: strings.id(name), unit: strings.id(unit) })
        .collect();
    let keys = Keys::new(&mut strings);
    let threads: Vec<_> = profile.threads.iter().map(|thread| keys.thread(thread, &mut strings)).collect();
    let sample = profile
        .samples
        .iter()
        .map(|sample| {
            let mut label = threads[sample.thread as usize].clone();
            label.extend(match profile.origin.reason_name(sample.reason) {
                Some(name) => Some(proto::Label { key: keys.reason, str: strings.id(name), num: 0, num_unit: 0 }),
                None => number(keys.reason, i64::from(sample.reason), 0),
            });
            label.extend(number(keys.span, sample.span.cast_signed(), 0));
            proto::Sample {
                location_id: profile.stacks[sample.stack as usize].iter().map(|&id| u64::from(id) + 1).collect(),
                value: sample.values.iter().take(row.columns.len()).map(|&value| signed(value)).collect(),
                label,
            }
        })
        .collect();
    let (mapping, mapping_ids) = mappings(profile, &mut strings);
    let location = (1..)
        .zip(&profile.locations)
        .map(|(id, location)| proto::Location {
            id,
            mapping_id: location.object.map_or(0, |object| mapping_ids[object as usize].0),
            address: location.address.wrapping_add(location.object.map_or(0, |object| mapping_ids[object as usize].1)),
            line: location
                .lines
                .iter()
                .map(|line| proto::Line {
                    function_id: u64::from(line.function) + 1,
                    line: i64::from(line.line),
                    column: 0,
                })
                .collect(),
            is_folded: false,
            kind: private_kind(profile, location),
        })
        .collect();
    let function = (1..)
        .zip(&profile.functions)
        .map(|(id, function)| proto::Function {
            id,
            name: strings.id(&function.name),
            // Empty: pprof would take an equal one for a mangled name and cut the template arguments off.
            system_name: 0,
            filename: strings.id(&function.file),
            start_line: 0,
        })
        .collect();
    let nanoseconds = strings.id("nanoseconds");
    let period_type = (meta.rate_hz > 0).then(|| proto::ValueType { r#type: strings.id(row.name), unit: nanoseconds });
    proto::Profile {
        sample_type,
        sample,
        mapping,
        location,
        function,
        drop_frames: 0,
        keep_frames: 0,
        time_nanos: signed(meta.started_at_ns),
        duration_nanos: signed(meta.duration_ns),
        period_type,
        period: 1_000_000_000_u64.checked_div(meta.rate_hz).map_or(0, signed),
        comment: std::iter::once(format!("{ORIGIN_COMMENT}{}", row.name))
            .chain(meta.comments.iter().cloned())
            .map(|comment| strings.id(&comment))
            .collect(),
        default_sample_type: strings.id(row.columns[row.primary].0),
        doc_url: 0,
        string_table: strings.table,
    }
}

/// The mappings in the order of the file, and the mapping id and bias of each object.
fn mappings(profile: &Profile, strings: &mut Strings) -> (Vec<proto::Mapping>, Vec<(u64, u64)>) {
    let (order, placements) = layout::place(profile);
    let mut ids = vec![(0, 0); order.len()];
    let mut positions = vec![0; order.len()];
    for (position, &object) in order.iter().enumerate() {
        positions[object] = position;
    }
    let mut mappings: Vec<_> = (1..)
        .zip(&order)
        .map(|(id, &object)| {
            let placement = placements[object];
            ids[object] = (id, placement.bias);
            proto::Mapping {
                id,
                memory_start: placement.start,
                memory_limit: placement.limit,
                file_offset: placement.file_offset,
                filename: strings.id(&profile.objects[object].path),
                build_id: strings.id(&profile.objects[object].build_id),
                bias: placement.bias,
                object: placement.object,
                ..proto::Mapping::default()
            }
        })
        .collect();
    for location in &profile.locations {
        let Some(object) = location.object else { continue };
        let mapping = &mut mappings[positions[object as usize]];
        mapping.has_functions |= !location.lines.is_empty();
        mapping.has_inline_frames |= location.lines.len() > 1;
        for line in &location.lines {
            mapping.has_filenames |= !profile.functions[line.function as usize].file.is_empty();
            mapping.has_line_numbers |= line.line > 0;
        }
    }
    (mappings, ids)
}

/// The private field of a location's kind.
fn private_kind(profile: &Profile, location: &Location) -> u32 {
    let object = location.object.map(|id| profile.objects[id as usize].path.as_str());
    let name = location.lines.first().map(|line| profile.functions[line.function as usize].name.as_str());
    if location.kind == default_kind(object, location.address, name) {
        return 0;
    }
    (1..).zip(FrameKind::ALL).find(|&(_, kind)| kind == location.kind).map_or(0, |(number, _)| number)
}

/// pprof's numbers are signed; sums of samples and times are far below the limit.
fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// A label with a number, unless it is 0.
fn number(key: i64, num: i64, num_unit: i64) -> Option<proto::Label> {
    (num != 0).then_some(proto::Label { key, str: 0, num, num_unit })
}

/// The labels' keys in the string table.
struct Keys {
    process: i64,
    thread: i64,
    cgroup: i64,
    container: i64,
    pid: i64,
    tid: i64,
    start_time: i64,
    exec: i64,
    reason: i64,
    span: i64,
    nanoseconds: i64,
}

impl Keys {
    fn new(strings: &mut Strings) -> Self {
        Self {
            process: strings.id(label::PROCESS),
            thread: strings.id(label::THREAD),
            cgroup: strings.id(label::CGROUP),
            container: strings.id(label::CONTAINER),
            pid: strings.id(label::PID),
            tid: strings.id(label::TID),
            start_time: strings.id(label::START_TIME),
            exec: strings.id(label::EXEC),
            reason: strings.id(label::REASON),
            span: strings.id(label::SPAN),
            nanoseconds: strings.id("nanoseconds"),
        }
    }

    fn thread(&self, thread: &Thread, strings: &mut Strings) -> Vec<proto::Label> {
        let mut labels = Vec::new();
        let texts = [
            (self.process, thread.process_name.as_str()),
            (self.thread, &thread.thread_name),
            (self.cgroup, &thread.cgroup),
            (self.container, container_of(&thread.cgroup).unwrap_or_default()),
        ];
        for (key, name) in texts {
            if !name.is_empty() {
                labels.push(proto::Label { key, str: strings.id(name), num: 0, num_unit: 0 });
            }
        }
        labels.extend(number(self.pid, i64::from(thread.pid), 0));
        labels.extend(number(self.tid, i64::from(thread.tid), 0));
        labels.extend(number(self.start_time, thread.start_time_ns.cast_signed(), self.nanoseconds));
        labels.extend(number(self.exec, i64::from(thread.exec_count), 0));
        labels
    }
}

/// The string table.
struct Strings {
    ids: HashMap<String, i64>,
    table: Vec<String>,
}

impl Strings {
    fn new() -> Self {
        Self { ids: HashMap::from([(String::new(), 0)]), table: vec![String::new()] }
    }

    fn id(&mut self, string: &str) -> i64 {
        if let Some(&id) = self.ids.get(string) {
            return id;
        }
        let id = i64::try_from(self.table.len()).unwrap_or(i64::MAX);
        self.ids.insert(string.to_owned(), id);
        self.table.push(string.to_owned());
        id
    }
}
