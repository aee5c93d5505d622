//! Bytes to messages to model. The bytes may come from anywhere: everything is checked, nothing panics.

use std::borrow::Cow;
use std::collections::HashMap;
use std::io::Read as _;

use flate2::read::MultiGzDecoder;
use profiler_common::event::{COLUMNS, ORIGINS, Origin};
use prost::Message as _;
use thiserror::Error;

use super::{ORIGIN_COMMENT, default_kind, label};
use crate::output::pprof_proto as proto;
use crate::profile::{FrameKind, Function, Interner, Line, Location, Object, Profile, Sample, Thread};

/// Most bytes a file may have when decompressed: no honest profile comes near, and a bomb stops there.
pub const MAX_BYTES: u64 = 1 << 30;
/// Longest string: the longest names are those of C++ templates, some hundred KiB.
const MAX_STRING_BYTES: usize = 1 << 20;
/// Most functions inlined at one address.
const MAX_LINES: usize = 1 << 10;
/// Most frames of a stack: 32 times what the probes take.
const MAX_FRAMES: usize = 1 << 14;

/// Why a file is not a profile.
#[derive(Debug, Error)]
pub enum DecodeError {
    /// Not gzip, or damaged.
    #[error("decompressing the profile: {0}")]
    Gzip(#[from] std::io::Error),
    /// Larger than a profile can be.
    #[error("the profile is larger than {0} bytes when decompressed")]
    TooLarge(u64),
    /// Not protobuf, or damaged.
    #[error("reading the profile's protobuf: {0}")]
    Protobuf(#[from] prost::DecodeError),
    /// No origin has these sample types.
    #[error("unknown origin: sample types {0}")]
    Origin(String),
    /// The origin has no such reason.
    #[error("unknown reason {0:?}")]
    Reason(String),
    /// Something refers to a thing that is not there.
    #[error("{what} {id} is referred to and not defined")]
    Missing {
        /// What kind of thing.
        what: &'static str,
        /// Its id.
        id: i128,
    },
    /// A number does not fit.
    #[error("{what} is out of range: {value}")]
    Range {
        /// What it is.
        what: &'static str,
        /// Its value.
        value: i128,
    },
}

/// Reads a file, gzipped or not.
///
/// # Errors
///
/// When it is not a profile of a known origin, or larger than [`MAX_BYTES`].
pub fn decode(bytes: &[u8]) -> Result<Profile, DecodeError> {
    decode_limited(bytes, MAX_BYTES)
}

fn decode_limited(bytes: &[u8], limit: u64) -> Result<Profile, DecodeError> {
    decode_message(&proto::Profile::decode(&*expand_limited(bytes, limit)?)?)
}

/// The message in a file, gzipped or not.
///
/// # Errors
///
/// When it is damaged, or larger than [`MAX_BYTES`].
pub(in crate::output) fn expand(bytes: &[u8]) -> Result<Cow<'_, [u8]>, DecodeError> {
    expand_limited(bytes, MAX_BYTES)
}

fn expand_limited(bytes: &[u8], limit: u64) -> Result<Cow<'_, [u8]>, DecodeError> {
    // The first two bytes of gzip, RFC 1952 section 2.3.1.
    if !bytes.starts_with(&[0x1f, 0x8b]) {
        return Ok(bytes.into());
    }
    let mut message = Vec::new();
    MultiGzDecoder::new(bytes).take(limit + 1).read_to_end(&mut message)?;
    if message.len() as u64 > limit {
        return Err(DecodeError::TooLarge(limit));
    }
    Ok(message.into())
}

/// Reads the message of a file.
///
/// # Errors
///
/// When it refers to what is not there or does not come from a known origin.
pub fn decode_message(message: &proto::Profile) -> Result<Profile, DecodeError> {
    let strings = Strings(&message.string_table);
    for string in &message.string_table {
        check("the length of a string", string.len(), MAX_STRING_BYTES)?;
    }
    let origin = origin(message, strings)?;
    let columns = message.sample_type.len();
    let functions = Functions::new(message, strings)?;
    let objects = Objects::new(message, strings)?;
    let mut locations = Interner::default();
    let mut location_ids = HashMap::with_capacity(message.location.len());
    for location in &message.location {
        location_ids.insert(location.id, locations.intern(read_location(location, &functions, &objects)?));
    }
    let mut stacks = Interner::default();
    let mut threads = Interner::default();
    let mut samples: HashMap<_, [u64; COLUMNS]> = HashMap::new();
    let mut totals = [0_u64; COLUMNS];
    for sample in &message.sample {
        check("the depth of a stack", sample.location_id.len(), MAX_FRAMES)?;
        if sample.value.len() != columns {
            return Err(range("the number of values", sample.value.len()));
        }
        let stack: Result<Vec<_>, _> =
            sample.location_id.iter().map(|&id| find(&location_ids, "location", id)).collect();
        let (thread, reason, span) = read_labels(&sample.label, strings, origin)?;
        let key = (stacks.intern(stack?), threads.intern(thread), reason, span);
        let values = samples.entry(key).or_default();
        for ((sum, total), &value) in values.iter_mut().zip(&mut totals).zip(&sample.value) {
            let value = u64::try_from(value).map_err(|_| range("a value", value))?;
            *total = total
                .checked_add(value)
                .filter(|&total| i64::try_from(total).is_ok())
                .ok_or_else(|| range("the sum of the values", value))?;
            *sum += value;
        }
    }
    let mut samples: Vec<_> = samples
        .into_iter()
        .map(|((stack, thread, reason, span), values)| Sample { stack, thread, reason, span, values })
        .collect();
    samples.sort_unstable_by_key(|sample| (sample.stack, sample.thread, sample.reason, sample.span));
    Ok(Profile {
        origin,
        functions: functions.functions.into_values(),
        objects: objects.objects.into_values(),
        locations: locations.into_values(),
        stacks: stacks.into_values(),
        threads: threads.into_values(),
        samples,
    })
}

/// The origin: by the comment, else the one with the same sample types.
fn origin(message: &proto::Profile, strings: Strings<'_>) -> Result<Origin, DecodeError> {
    let mut types = Vec::new();
    for value_type in message.sample_type.iter().take(COLUMNS + 1) {
        types.push((strings.get(value_type.r#type)?, strings.get(value_type.unit)?));
    }
    for &comment in &message.comment {
        let named = strings.get(comment)?.strip_prefix(ORIGIN_COMMENT).and_then(Origin::from_name);
        if let Some(origin) = named.filter(|origin| origin.row().columns == types) {
            return Ok(origin);
        }
    }
    let row = ORIGINS.iter().find(|row| row.columns == types);
    row.map(|row| row.origin).ok_or_else(|| {
        let types: Vec<_> = types.iter().map(|(name, unit)| format!("{name}/{unit}")).collect();
        DecodeError::Origin(types.join(", "))
    })
}

fn read_location(
    location: &proto::Location,
    functions: &Functions,
    objects: &Objects,
) -> Result<Location, DecodeError> {
    check("the number of functions inlined at an address", location.line.len(), MAX_LINES)?;
    let mut lines = Vec::with_capacity(location.line.len());
    for line in &location.line {
        lines.push(Line {
            function: find(&functions.ids, "function", line.function_id)?,
            line: u32::try_from(line.line).map_err(|_| range("a source line", line.line))?,
        });
    }
    let (object, bias) = match location.mapping_id {
        0 => (None, 0),
        id => {
            let (object, bias) = find(&objects.ids, "mapping", id)?;
            (Some(object), bias)
        }
    };
    let address = location.address.wrapping_sub(bias);
    let kind = match location.kind.checked_sub(1) {
        Some(index) => *FrameKind::ALL.get(index as usize).ok_or_else(|| range("a frame's kind", location.kind))?,
        None => {
            let path = object.map(|id| objects.objects.values()[id as usize].path.as_str());
            let name = lines.first().map(|line| functions.functions.values()[line.function as usize].name.as_str());
            default_kind(path, address, name)
        }
    };
    Ok(Location { kind, object, address, lines })
}

/// The thread, the reason and the span.
fn read_labels(
    labels: &[proto::Label],
    strings: Strings<'_>,
    origin: Origin,
) -> Result<(Thread, u16, u64), DecodeError> {
    let mut thread = Thread::default();
    let (mut reason, mut span) = (0, 0);
    for found in labels {
        let narrow = |what| u32::try_from(found.num).map_err(|_| range(what, found.num));
        match strings.get(found.key)? {
            label::PROCESS => strings.get(found.str)?.clone_into(&mut thread.process_name),
            label::THREAD => strings.get(found.str)?.clone_into(&mut thread.thread_name),
            label::CGROUP => strings.get(found.str)?.clone_into(&mut thread.cgroup),
            label::PID => thread.pid = narrow("a pid")?,
            label::TID => thread.tid = narrow("a tid")?,
            label::START_TIME => thread.start_time_ns = found.num.cast_unsigned(),
            label::EXEC => thread.exec_count = narrow("an exec count")?,
            label::REASON if found.str != 0 => {
                let name = strings.get(found.str)?;
                reason = origin.reason_of_name(name).ok_or_else(|| DecodeError::Reason(name.to_owned()))?;
            }
            label::REASON => reason = u16::try_from(found.num).map_err(|_| range("a reason", found.num))?,
            label::SPAN => span = found.num.cast_unsigned(),
            _ => {}
        }
    }
    Ok((thread, reason, span))
}

/// Functions and their ids in the file.
struct Functions {
    functions: Interner<Function>,
    ids: HashMap<u64, u32>,
}

impl Functions {
    fn new(message: &proto::Profile, strings: Strings<'_>) -> Result<Self, DecodeError> {
        let mut functions = Interner::default();
        let mut ids = HashMap::with_capacity(message.function.len());
        for function in &message.function {
            let name = strings.get(function.name)?.to_owned();
            let file = strings.get(function.filename)?.to_owned();
            ids.insert(function.id, functions.intern(Function { name, file }));
        }
        Ok(Self { functions, ids })
    }
}

/// Objects, and their numbers and biases by mapping id.
struct Objects {
    objects: Interner<Object>,
    ids: HashMap<u64, (u32, u64)>,
}

impl Objects {
    fn new(message: &proto::Profile, strings: Strings<'_>) -> Result<Self, DecodeError> {
        let mut objects = Interner::default();
        let mut ids = HashMap::with_capacity(message.mapping.len());
        for mapping in &message.mapping {
            let range = mapping.object.unwrap_or(proto::ObjectRange {
                start: mapping.memory_start.wrapping_sub(mapping.bias),
                end: mapping.memory_limit.wrapping_sub(mapping.bias),
                file_offset: mapping.file_offset,
            });
            let object = Object {
                path: strings.get(mapping.filename)?.to_owned(),
                build_id: strings.get(mapping.build_id)?.to_owned(),
                start: range.start,
                end: range.end,
                file_offset: range.file_offset,
            };
            ids.insert(mapping.id, (objects.intern(object), mapping.bias));
        }
        Ok(Self { objects, ids })
    }
}

/// The string table of a file.
#[derive(Clone, Copy)]
struct Strings<'a>(&'a [String]);

impl<'a> Strings<'a> {
    fn get(self, id: i64) -> Result<&'a str, DecodeError> {
        match usize::try_from(id).ok().and_then(|index| self.0.get(index)) {
            Some(string) => Ok(string),
            // A file without any string may still say "none".
            None if id == 0 => Ok(""),
            None => Err(DecodeError::Missing { what: "string", id: id.into() }),
        }
    }
}

fn find<T: Copy>(ids: &HashMap<u64, T>, what: &'static str, id: u64) -> Result<T, DecodeError> {
    ids.get(&id).copied().ok_or(DecodeError::Missing { what, id: id.into() })
}

fn check(what: &'static str, value: usize, most: usize) -> Result<(), DecodeError> {
    if value > most { Err(range(what, value)) } else { Ok(()) }
}

fn range(what: &'static str, value: impl TryInto<i128>) -> DecodeError {
    DecodeError::Range { what, value: value.try_into().unwrap_or(i128::MAX) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_grows_beyond_the_limit_is_refused() {
        let mut bomb = Vec::new();
        let zeros: &[u8] = &[0; 4096];
        assert!(flate2::read::GzEncoder::new(zeros, flate2::Compression::best()).read_to_end(&mut bomb).is_ok());
        assert!(bomb.len() < 1000);
        assert!(matches!(decode_limited(&bomb, 1000), Err(DecodeError::TooLarge(1000))));
    }
}
