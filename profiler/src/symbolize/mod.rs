//! Raw profile to profile: a name for every frame that has one.
//!
//! Input: frames placed in objects that are held open. Output: locations with their functions, inlined ones included,
//! and how well each object could be named. Never fails as a whole: what has no name keeps object and offset.

mod guard;
mod kernel;
mod native;
mod perf_map;
mod roots;

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::sync::Arc;

use profiler_common::counters::Outcome;

use crate::process::ObjectFile;
use crate::profile::{
    FrameKind, Function, Interner, JIT_OBJECT, KERNEL_OBJECT, Line, Location, Object, ObjectId, ObjectSummary, Profile,
    RawFrame, RawProfile, Sample, marker_name,
};

/// What a frame's object and name are looked up in.
#[derive(Debug)]
pub struct Sources<'a> {
    /// Objects by the number in [`RawFrame::Object`].
    pub objects: &'a [Arc<ObjectFile>],
    /// Perf maps by the process number in [`RawFrame::Jit`]; `None` where the process writes none.
    pub perf_maps: &'a [Option<File>],
    /// Frames by the number in [`RawFrame::Interpreted`].
    pub interpreted: &'a [InterpretedFrame],
}

/// A frame of an interpreter, as it was read from its process while that lived.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct InterpretedFrame {
    /// The function.
    pub name: String,
    /// Its source file; empty when unknown.
    pub file: String,
    /// Source line; 0 when unknown.
    pub line: u32,
}

/// A profile with its names, and how far they went.
#[derive(Debug)]
pub struct Symbolized {
    /// The profile.
    pub profile: Profile,
    /// Frames and named frames by object, most frames first.
    pub objects: Vec<ObjectSummary>,
    /// Events whose user chains turned out to be whole, by the outcome that their samples still have.
    pub completed: [u64; Outcome::COUNT],
    /// What went wrong, for a person.
    pub warnings: Vec<String>,
}

/// A function found at an address, innermost first in a list of them.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Found {
    name: String,
    file: String,
    line: u32,
}

/// Names by address; an address without a name is not in it.
type Names = HashMap<u64, Vec<Found>>;

/// Names the frames of a profile.
#[must_use]
pub fn symbolize(mut raw: RawProfile, sources: &Sources<'_>) -> Symbolized {
    let mut warnings = Vec::new();
    let mut wanted: BTreeMap<Place, Vec<u64>> = BTreeMap::new();
    for frame in raw.frames.values() {
        if let Some((place, address)) = Place::of(*frame) {
            wanted.entry(place).or_default().push(address);
        }
    }
    let native = native::Native::new();
    let mut names: HashMap<Place, Names> = HashMap::new();
    let mut advice: HashMap<Place, String> = HashMap::new();
    for (place, mut addresses) in wanted {
        addresses.sort_unstable();
        addresses.dedup();
        let found = match place {
            Place::Kernel => kernel::names(&native, &addresses),
            Place::Object(number) => native.names(&sources.objects[number as usize], &addresses),
            Place::Jit(process) => {
                Ok(perf_map::names(sources.perf_maps.get(process as usize).and_then(Option::as_ref), &addresses))
            }
        };
        let found = found.unwrap_or_else(|problem| {
            warnings.push(format!("no names for {}: {problem}", place.path(sources)));
            Names::new()
        });
        if found.len() < addresses.len() {
            advice.insert(place, place.advice(sources));
        }
        names.insert(place, found);
    }
    let frames = raw.frames.values().to_vec();
    let completed = roots::complete(&mut raw, |frame| {
        let (place, address) = Place::of(*frames.get(frame as usize)?)?;
        names.get(&place)?.get(&address)?.last().map(|found| found.name.as_str())
    });
    Symbolized { completed, ..build(raw, sources, &names, &advice, warnings) }
}

/// What an address belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Place {
    Kernel,
    Object(u32),
    Jit(u32),
}

impl Place {
    const fn of(frame: RawFrame) -> Option<(Self, u64)> {
        match frame {
            RawFrame::Kernel(address) => Some((Self::Kernel, address)),
            RawFrame::Object { object, address } => Some((Self::Object(object), address)),
            RawFrame::Jit { process, address } => Some((Self::Jit(process), address)),
            RawFrame::Interpreted(_) | RawFrame::Unknown(_) | RawFrame::Marker(_) => None,
        }
    }

    fn path<'a>(self, sources: &Sources<'a>) -> &'a str {
        match self {
            Self::Kernel => KERNEL_OBJECT,
            Self::Object(number) => &sources.objects[number as usize].path,
            Self::Jit(_) => JIT_OBJECT,
        }
    }

    /// What would name the rest of its frames.
    fn advice(self, sources: &Sources<'_>) -> String {
        match self {
            Self::Kernel => "run with CAP_SYSLOG and kernel.kptr_restrict at most 1".to_owned(),
            Self::Jit(_) => "have the runtime write a perf map (node: --perf-basic-prof; java: perf-map-agent; \
                             .NET: DOTNET_PerfMapEnabled=1)"
                .to_owned(),
            Self::Object(number) => {
                let object = &sources.objects[number as usize];
                match native::debug_file_path(&object.build_id) {
                    Some(path) => format!(
                        "no symbols for some of it: put its debug file at {} (Debian: the package's -dbgsym)",
                        path.display()
                    ),
                    None => {
                        "no symbols for some of it, and no build ID by which a debug file could be found".to_owned()
                    }
                }
            }
        }
    }

    /// The object as the model describes it.
    fn object(self, sources: &Sources<'_>) -> Object {
        let path = self.path(sources).to_owned();
        match self {
            Self::Kernel => Object { path, build_id: String::new(), start: 0, end: u64::MAX, file_offset: 0 },
            Self::Jit(_) => Object { path, build_id: String::new(), start: 0, end: u64::MAX, file_offset: 0 },
            Self::Object(number) => {
                let file = &sources.objects[number as usize];
                let first = file.segments.iter().min_by_key(|segment| segment.address);
                let end = file.segments.iter().map(|segment| segment.address.saturating_add(segment.size)).max();
                Object {
                    path,
                    build_id: file.build_id.clone(),
                    start: first.map_or(0, |segment| segment.address),
                    end: end.unwrap_or(u64::MAX),
                    file_offset: first.map_or(0, |segment| segment.file_offset),
                }
            }
        }
    }
}

/// Puts the profile together from the names that were found.
fn build(
    raw: RawProfile,
    sources: &Sources<'_>,
    names: &HashMap<Place, Names>,
    advice: &HashMap<Place, String>,
    warnings: Vec<String>,
) -> Symbolized {
    let mut functions: Interner<Function> = Interner::default();
    let mut objects: Interner<Object> = Interner::default();
    let mut object_of: HashMap<Place, ObjectId> = HashMap::new();
    let mut locations = Vec::with_capacity(raw.frames.values().len());
    for frame in raw.frames.values() {
        let mut location = Location { kind: FrameKind::Native, object: None, address: 0, lines: Vec::new() };
        if let Some((place, address)) = Place::of(*frame) {
            location.kind = match place {
                Place::Kernel => FrameKind::Kernel,
                Place::Object(_) => FrameKind::Native,
                Place::Jit(_) => FrameKind::Jit,
            };
            let object = *object_of.entry(place).or_insert_with(|| objects.intern(place.object(sources)));
            location.object = Some(object);
            location.address = address;
            for found in names.get(&place).and_then(|names| names.get(&address)).into_iter().flatten() {
                let function = functions.intern(Function { name: found.name.clone(), file: found.file.clone() });
                location.lines.push(Line { function, line: found.line });
            }
        }
        match *frame {
            RawFrame::Unknown(address) => location.address = address,
            RawFrame::Interpreted(number) => {
                location.kind = FrameKind::Interpreted;
                if let Some(InterpretedFrame { name, file, line }) = sources.interpreted.get(number as usize) {
                    let function = functions.intern(Function { name: name.clone(), file: file.clone() });
                    location.lines.push(Line { function, line: *line });
                }
            }
            RawFrame::Marker(outcome) => {
                location.kind = FrameKind::Marker;
                let name = marker_name(outcome);
                let function = functions.intern(Function { name, file: String::new() });
                location.lines.push(Line { function, line: 0 });
            }
            _ => {}
        }
        locations.push(location);
    }
    let samples: Vec<Sample> = raw
        .samples
        .iter()
        .map(|(&(stack, thread, reason, span), &values)| Sample { stack, thread, reason, span, values })
        .collect();
    let profile = Profile {
        origin: raw.origin,
        functions: functions.into_values(),
        objects: objects.into_values(),
        locations,
        stacks: raw.stacks.into_values().into_iter().map(Vec::from).collect(),
        threads: raw.threads.into_values(),
        samples,
    };
    let advice = advice.iter().filter_map(|(place, text)| Some((*object_of.get(place)?, text.as_str()))).collect();
    let objects = summaries(&profile, &advice);
    Symbolized { profile, objects, completed: [0; Outcome::COUNT], warnings }
}

/// Counts frames and named frames by object, each weighted by its stack's events.
fn summaries(profile: &Profile, advice: &HashMap<ObjectId, &str>) -> Vec<ObjectSummary> {
    let mut events = vec![0; profile.stacks.len()];
    for sample in &profile.samples {
        events[sample.stack as usize] += sample.values[0];
    }
    let mut counts: HashMap<Option<ObjectId>, (u64, u64)> = HashMap::new();
    for (stack, events) in profile.stacks.iter().zip(events) {
        for &location in stack {
            let location = &profile.locations[location as usize];
            // What an interpreter runs is in no object.
            if !matches!(location.kind, FrameKind::Marker | FrameKind::Interpreted) {
                let count = counts.entry(location.object).or_default();
                count.0 += events;
                count.1 += if location.lines.is_empty() { 0 } else { events };
            }
        }
    }
    let mut summaries: Vec<ObjectSummary> = counts
        .into_iter()
        .map(|(object, (frames, named))| {
            let object_data = object.map(|object| &profile.objects[object as usize]);
            let told = match object {
                Some(object) => advice.get(&object).copied().unwrap_or_default(),
                None => "these addresses were in no mapping that was known",
            };
            ObjectSummary {
                path: object_data.map_or("[unknown]", |object| &object.path).to_owned(),
                build_id: object_data.map(|object| object.build_id.clone()).unwrap_or_default(),
                frames,
                named,
                advice: if named < frames { told.to_owned() } else { String::new() },
            }
        })
        .collect();
    summaries.sort_by(|left, right| right.frames.cmp(&left.frames).then_with(|| left.path.cmp(&right.path)));
    summaries
}
