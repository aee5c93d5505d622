//! Raw profile to profile: a name for every frame that has one.
//!
//! Input: frames placed in objects that are held open. Output: locations with their functions, inlined ones included,
//! and how well each object could be named. Never fails as a whole: what has no name keeps object and offset.

mod guard;
mod jit_dump;
mod kernel;
mod native;
mod perf_map;
mod roots;
mod v8;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use profiler_common::counters::Outcome;

use crate::process::{JitProcess, LineTable, ObjectFile};
use crate::profile::{
    FrameKind, Function, Interner, JIT_OBJECT, KERNEL_OBJECT, Line, Location, Object, ObjectId, ObjectSummary, Profile,
    RawFrame, RawProfile, Sample, jit_label, marker_name,
};

/// What a frame's object and name are looked up in.
#[derive(Debug)]
pub struct Sources<'a> {
    /// Objects by the number in [`RawFrame::Object`].
    pub objects: &'a [Arc<ObjectFile>],
    /// Processes by the number in [`RawFrame::Jit`].
    pub jit: &'a [JitProcess],
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
            Place::Object(number) => object(&native, &sources.objects[number as usize], &addresses, &mut warnings),
            Place::Jit(process) => {
                let process = sources.jit.get(process as usize);
                let mut names = perf_map::names(process.and_then(|process| process.perf_map.as_ref()), &addresses);
                // Which has lines as well.
                names.extend(jit_dump::names(process.and_then(|process| process.jit_dump.as_ref()), &addresses));
                Ok(names)
            }
        };
        let mut found = found.unwrap_or_else(|problem| {
            warnings.push(format!("no names for {}: {problem}", place.path(sources)));
            Names::new()
        });
        if found.len() < addresses.len() {
            advice.insert(place, place.advice(sources));
        }
        if let Place::Object(number) = place {
            v8::label_builtins(&sources.objects[number as usize].file, &addresses, &mut found);
        }
        names.insert(place, found);
    }
    let frames = raw.frames.values().to_vec();
    let completed = roots::complete(&mut raw, |frame| {
        let (place, address) = Place::of(*frames.get(frame as usize)?)?;
        names.get(&place)?.get(&address)?.last().map(|found| found.name.as_str())
    });
    let labels = jit_labels(&raw);
    Symbolized { completed, ..build(raw, sources, &Naming { names, advice, labels }, warnings) }
}

/// Pieces of advice that are told for one object.
const MAX_ADVICE: usize = 4;

/// What makes a runtime, known by the name of its executable, write what it made; `has_map`: it does, for some.
fn jit_advice(executable: &str, has_map: bool) -> String {
    if has_map {
        return "made before its process wrote its perf map or dump, or not listed there".to_owned();
    }
    let is = |name: &str| {
        let version = executable.strip_prefix(name);
        version.is_some_and(|version| version.chars().all(|letter| letter.is_ascii_digit() || letter == '.'))
    };
    match executable {
        _ if is("node") || is("nodejs") => "node: start it with --perf-basic-prof --interpreted-frames-native-stack",
        _ if is("java") => "java: start it with -XX:+UnlockDiagnosticVMOptions -XX:+DumpPerfMapAtExit, or use perf-map-agent",
        _ if is("python") => "python: start it with -X perf (3.12 and later)",
        _ if is("dotnet") => "dotnet: start it with DOTNET_PerfMapEnabled=1 in its environment",
        _ => {
            "have the runtime write a perf map (node: --perf-basic-prof; java: -XX:+DumpPerfMapAtExit; python: -X perf; \
             .NET: DOTNET_PerfMapEnabled=1)"
        }
    }
    .to_owned()
}

/// Names for addresses in an object: a Go program's from its own table, all others from symbols and DWARF.
fn object(
    native: &native::Native,
    object: &ObjectFile,
    addresses: &[u64],
    warnings: &mut Vec<String>,
) -> Result<Names, String> {
    let Some(mut table) = LineTable::find(&object.file) else { return native.names(object, addresses) };
    if !table.knows_inlined() {
        warnings.push(format!(
            "inlined calls of {} are missing: where its table of them is could not be told",
            object.path
        ));
    }
    let found = addresses.iter().filter_map(|&address| {
        let frames = table.look_up(address)?.into_iter();
        let found = frames.map(|frame| Found { name: frame.name, file: frame.file, line: frame.line });
        Some((address, found.collect()))
    });
    let mut names: Names = found.collect();
    // C that was linked into it.
    let rest: Vec<u64> = addresses.iter().copied().filter(|address| !names.contains_key(address)).collect();
    if !rest.is_empty() {
        match native.names(object, &rest) {
            Ok(found) => names.extend(found),
            Err(problem) => warnings.push(format!("no names for {}: {problem}", object.path)),
        }
    }
    Ok(names)
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
            Self::Jit(process) => {
                let process = sources.jit.get(process as usize);
                let executable = process.map(|process| process.executable.as_str()).unwrap_or_default();
                jit_advice(
                    executable,
                    process.is_some_and(|process| process.perf_map.is_some() || process.jit_dump.is_some()),
                )
            }
            Self::Object(number) => {
                let object = &sources.objects[number as usize];
                let lacks = if object.has_symbols { "no symbols for some of it" } else { "stripped" };
                match native::debug_file_path(&object.build_id) {
                    Some(path) => format!(
                        "{lacks}: put its debug file at {} (Debian: the package's -dbgsym; elsewhere: `debuginfod-find \
                         debuginfo {}`)",
                        path.display(),
                        object.build_id
                    ),
                    None => format!("{lacks}, and no build ID by which a debug file could be found"),
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

/// What frames are called.
struct Naming {
    names: HashMap<Place, Names>,
    /// What would name the rest of a place's frames.
    advice: HashMap<Place, String>,
    /// What nameless code is called that a process made at run time, by the process's number.
    labels: HashMap<u32, String>,
}

/// Labels for code made at run time: by the name that its process had when it was sampled.
fn jit_labels(raw: &RawProfile) -> HashMap<u32, String> {
    let mut labels = HashMap::new();
    for &(stack, thread, ..) in raw.samples.keys() {
        for &frame in &raw.stacks.values()[stack as usize] {
            if let Some(&RawFrame::Jit { process, .. }) = raw.frames.values().get(frame as usize) {
                let name = &raw.threads.values()[thread as usize].process_name;
                let label = labels.entry(process).or_insert_with(|| name.clone());
                // A process may change its name: the same one is chosen in every run.
                if name < label {
                    label.clone_from(name);
                }
            }
        }
    }
    labels.into_iter().map(|(process, name)| (process, jit_label(&name))).collect()
}

/// Puts the profile together from the names that were found.
fn build(raw: RawProfile, sources: &Sources<'_>, naming: &Naming, warnings: Vec<String>) -> Symbolized {
    let Naming { names, advice, labels } = naming;
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
            if let (Place::Jit(process), true) = (place, location.lines.is_empty()) {
                let name = labels.get(&process).cloned().unwrap_or_else(|| jit_label("?"));
                let function = functions.intern(Function { name, file: String::new() });
                location.lines.push(Line { function, line: 0 });
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
    let mut by_object: BTreeMap<ObjectId, BTreeSet<&str>> = BTreeMap::new();
    for (place, text) in advice {
        if let Some(&object) = object_of.get(place) {
            by_object.entry(object).or_default().insert(text);
        }
    }
    let advice = by_object.into_iter().map(|(object, texts)| {
        let texts: Vec<&str> = texts.into_iter().take(MAX_ADVICE).collect();
        (object, texts.join("; "))
    });
    let advice = advice.collect();
    let objects = summaries(&profile, &advice);
    Symbolized { profile, objects, completed: [0; Outcome::COUNT], warnings }
}

/// Counts frames and named frames by object, each weighted by its stack's events.
fn summaries(profile: &Profile, advice: &HashMap<ObjectId, String>) -> Vec<ObjectSummary> {
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
                count.1 += if profile.is_named(location) { events } else { 0 };
            }
        }
    }
    let mut summaries: Vec<ObjectSummary> = counts
        .into_iter()
        .map(|(object, (frames, named))| {
            let object_data = object.map(|object| &profile.objects[object as usize]);
            let told = match object {
                Some(object) => advice.get(&object).map(String::as_str).unwrap_or_default(),
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
