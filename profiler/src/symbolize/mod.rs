//! Raw profile to profile: a name for every frame that has one.
//!
//! Input: frames placed in objects that are held open. Output: locations with their functions, inlined ones included,
//! and how well each object could be named. Never fails as a whole: what has no name keeps object and offset.

mod cache;
mod demangle;
mod files;
mod generics;
mod guard;
mod jit_dump;
mod kernel;
mod known;
mod names;
mod native;
mod perf_map;
mod plain;
mod roots;
mod v8;

use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub use cache::NameCache;
pub use demangle::demangle;
use hashbrown::HashMap;
pub use known::KnownNames;
use profiler_common::counters::Outcome;

use self::names::{Found, Names, in_parallel};
use crate::process::{JitProcess, LineTable, ObjectFile};
use crate::profile::{
    FrameKind, Function, Interner, JIT_OBJECT, KERNEL_OBJECT, Line, Location, Object, ObjectId, ObjectSummary, Profile,
    RawFrame, RawProfile, Sample, jit_label, marker_name,
};

/// Where distributions put debug files. Source: GDB manual, "Debugging Information in Separate Files".
pub const DEBUG_DIRECTORY: &str = "/usr/lib/debug";

/// How names are looked up.
#[derive(Debug)]
pub struct Options {
    /// Directories with debug files, by build ID or by the path of the object they belong to.
    pub debug_directories: Vec<PathBuf>,
    /// Whether debug files that are nowhere are fetched from debuginfod servers.
    pub debuginfod: bool,
    /// Whether arguments of generics are left out of names.
    pub shorten: bool,
    /// Names that were looked up before.
    pub cache: Option<NameCache>,
    /// Those of windows before, where there are any.
    pub known: Option<KnownNames>,
}

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

/// Profiles with their names, and how far they went.
#[derive(Debug)]
pub struct Symbolized {
    /// The profiles, in the order of their raw ones.
    pub profiles: Vec<Profile>,
    /// Frames and named frames by object, over all profiles, most frames first.
    pub objects: Vec<ObjectSummary>,
    /// Of each profile, events whose user chains turned out to be whole, by the outcome that their samples still have.
    pub completed: Vec<[u64; Outcome::COUNT]>,
    /// What went wrong, for a person.
    pub warnings: Vec<String>,
}

/// Names the frames of profiles.
#[must_use]
pub fn symbolize(mut raw: Vec<RawProfile>, sources: &Sources<'_>, options: &Options) -> Symbolized {
    let naming = Naming::look_up(&raw, sources, options);
    let completed = raw.iter_mut().map(|raw| {
        let frames = raw.frames.values().to_vec();
        roots::complete(raw, |frame| {
            let (place, address) = Place::of(*frames.get(frame as usize)?)?;
            Some(&*naming.names.get(&place)?.get(&address)?.last()?.name)
        })
    });
    let completed = completed.collect();
    let mut profiles = Vec::with_capacity(raw.len());
    let mut counts = ObjectCounts::default();
    for raw in raw {
        let (profile, places) = build(raw, sources, &naming);
        counts.add(&profile, &places, &naming);
        profiles.push(profile);
    }
    Symbolized { profiles, objects: counts.summaries(), completed, warnings: naming.warnings }
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

/// Names for addresses in an object, which ascend: a Go program's from its own table, all others from symbols and DWARF.
fn object(object: &ObjectFile, addresses: &[u64], options: &Options) -> (Names, Vec<String>) {
    let mut warnings = Vec::new();
    let mut names = Names::new();
    if let Some(mut table) = LineTable::find(&object.file) {
        if !table.knows_inlined() {
            warnings.push(format!(
                "inlined calls of {} are missing: where its table of them is could not be told",
                object.path
            ));
        }
        let found = addresses.iter().filter_map(|&address| {
            let frames = table.look_up(address)?.into_iter();
            let found =
                frames.map(|frame| Found { name: frame.name.into(), file: frame.file.into(), line: frame.line });
            Some((address, found.collect()))
        });
        names = found.collect();
    }
    // Of a Go program, C that was linked into it.
    let rest: Vec<u64> = addresses.iter().copied().filter(|address| !names.contains_key(address)).collect();
    if !rest.is_empty() {
        let mut problems = Vec::new();
        names.extend(known_or_looked_up(object, &rest, options, &mut problems, &mut warnings));
        warnings.extend(problems.into_iter().map(|problem| format!("names of {} are missing: {problem}", object.path)));
    }
    (names, warnings)
}

/// Names from symbols and DWARF, or as they were kept.
fn known_or_looked_up(
    object: &ObjectFile,
    addresses: &[u64],
    options: &Options,
    problems: &mut Vec<String>,
    warnings: &mut Vec<String>,
) -> Names {
    let files = files::find(object, options, warnings);
    let stamps = NameCache::stamps(&files);
    let cache = options.cache.as_ref().and_then(|cache| Some((cache, cache.key(object, &files)?)));
    let Some((cache, key)) = cache else {
        return native::names(object, &files, addresses, &options.debug_directories, problems);
    };
    let mut known = cache.load(&key);
    let new: Vec<u64> = addresses.iter().copied().filter(|address| !known.contains_key(address)).collect();
    if !new.is_empty() {
        let mut found = native::names(object, &files, &new, &options.debug_directories, problems);
        // That an address has no name is known from now on as well.
        for address in &new {
            found.entry(*address).or_default();
        }
        if !NameCache::has_room(known.len(), found.len()) {
            known.retain(|address, _| addresses.binary_search(address).is_ok());
        }
        known.extend(found);
        if problems.is_empty() && NameCache::stamps(&files) == stamps {
            cache.store(&key, &known);
        }
    }
    known
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
                match files::path_by_id(Path::new(DEBUG_DIRECTORY), &object.build_id) {
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
#[derive(Default)]
struct Naming {
    names: HashMap<Place, Names>,
    /// What would name the rest of a place's frames.
    advice: HashMap<Place, String>,
    /// What nameless code is called that a process made at run time, by the process's number.
    labels: HashMap<u32, String>,
    /// Whether arguments of generics are left out.
    shorten: bool,
    warnings: Vec<String>,
}

impl Naming {
    /// Looks up every address of the profiles, once.
    fn look_up(raw: &[RawProfile], sources: &Sources<'_>, options: &Options) -> Self {
        let mut wanted: HashMap<Place, Vec<u64>> = HashMap::new();
        for (place, address) in raw.iter().flat_map(|raw| raw.frames.values()).filter_map(|frame| Place::of(*frame)) {
            wanted.entry(place).or_default().push(address);
        }
        let mut wanted: Vec<(Place, Vec<u64>)> = wanted.into_iter().collect();
        for (_, addresses) in &mut wanted {
            addresses.sort_unstable();
            addresses.dedup();
        }
        // Long ones first; the rest in an order that is the same in every run.
        wanted.sort_by_key(|(place, addresses)| (std::cmp::Reverse(addresses.len()), *place));
        let look_up = |place: Place, addresses: &[u64]| match place {
            Place::Kernel => match kernel::names(addresses) {
                Ok(names) => (names, Vec::new()),
                Err(problem) => (Names::new(), vec![format!("no names for {}: {problem}", place.path(sources))]),
            },
            Place::Object(number) => {
                let looked_up = AssertUnwindSafe(|| object(&sources.objects[number as usize], addresses, options));
                catch_unwind(looked_up).unwrap_or_else(|_| {
                    let problem = "its symbols or debug information are damaged";
                    (Names::new(), vec![format!("names of {} are missing: {problem}", place.path(sources))])
                })
            }
            Place::Jit(process) => {
                let process = sources.jit.get(process as usize);
                let mut names = perf_map::names(process.and_then(|process| process.perf_map.as_deref()), addresses);
                // Which has lines as well.
                names.extend(jit_dump::names(process.and_then(|process| process.jit_dump.as_deref()), addresses));
                (names, Vec::new())
            }
        };
        let found = in_parallel(&wanted, |(place, addresses)| {
            let object = match *place {
                Place::Kernel => None,
                Place::Object(number) => Some(&sources.objects[number as usize]),
                // It may be other code by now.
                Place::Jit(_) => return look_up(*place, addresses),
            };
            let Some(known) = &options.known else { return look_up(*place, addresses) };
            let mut names = known.of(object, addresses);
            let new: Vec<u64> = addresses.iter().copied().filter(|address| !names.contains_key(address)).collect();
            let mut warnings = Vec::new();
            if !new.is_empty() {
                let (found, problems) = look_up(*place, &new);
                // What went wrong may go right the next time.
                if problems.is_empty() {
                    known.add(object, &new, &found);
                }
                names.extend(found);
                warnings = problems;
            }
            (names, warnings)
        });
        let mut naming = Self { labels: jit_labels(raw), shorten: options.shorten, ..Self::default() };
        for ((place, addresses), (mut names, warnings)) in wanted.into_iter().zip(found) {
            // That there is none was known, for some.
            names.retain(|_, found| !found.is_empty());
            if addresses.iter().any(|address| !names.contains_key(address)) {
                naming.advice.insert(place, place.advice(sources));
            }
            if let Place::Object(number) = place {
                v8::label_builtins(&sources.objects[number as usize].file, &addresses, &mut names);
            }
            naming.names.insert(place, names);
            let new = warnings.into_iter().filter(|warning| !naming.warnings.contains(warning)).collect::<Vec<_>>();
            naming.warnings.extend(new);
        }
        naming
    }

    /// The functions at an address, innermost first.
    fn at(&self, place: Place, address: u64) -> &[Found] {
        self.names.get(&place).and_then(|names| names.get(&address)).map_or(&[], Vec::as_slice)
    }
}

/// Labels for code made at run time: by the name that its process had when it was sampled.
fn jit_labels(raw: &[RawProfile]) -> HashMap<u32, String> {
    let mut labels = HashMap::new();
    for raw in raw {
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
    }
    labels.into_iter().map(|(process, name)| (process, jit_label(&name))).collect()
}

/// Puts a profile together from the names that were found; also returns which places its objects are.
fn build(raw: RawProfile, sources: &Sources<'_>, naming: &Naming) -> (Profile, HashMap<Place, ObjectId>) {
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
            for found in naming.at(place, address) {
                let name = if naming.shorten { generics::shorten(&found.name) } else { found.name.as_ref().to_owned() };
                let function = functions.intern(Function { name, file: found.file.as_ref().to_owned() });
                location.lines.push(Line { function, line: found.line });
            }
            if let (Place::Jit(process), true) = (place, location.lines.is_empty()) {
                let name = naming.labels.get(&process).cloned().unwrap_or_else(|| jit_label("?"));
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
    (profile, object_of)
}

/// Frames and named frames by object.
#[derive(Default)]
struct ObjectCounts<'a> {
    /// By path and build ID; no path: in no known mapping.
    objects: BTreeMap<(Option<String>, String), ObjectCount<'a>>,
}

/// Of one object.
#[derive(Default)]
struct ObjectCount<'a> {
    frames: u64,
    named: u64,
    advice: BTreeSet<&'a str>,
}

impl<'a> ObjectCounts<'a> {
    /// Counts a profile's, each weighted by its stack's events.
    fn add(&mut self, profile: &Profile, places: &HashMap<Place, ObjectId>, naming: &'a Naming) {
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
        let key = |object: Option<ObjectId>| match object.map(|object| &profile.objects[object as usize]) {
            Some(object) => (Some(object.path.clone()), object.build_id.clone()),
            None => (None, String::new()),
        };
        for (object, (frames, named)) in counts {
            let count = self.objects.entry(key(object)).or_default();
            count.frames += frames;
            count.named += named;
        }
        for (place, advice) in &naming.advice {
            if let Some(count) = places.get(place).and_then(|&object| self.objects.get_mut(&key(Some(object)))) {
                count.advice.insert(advice);
            }
        }
    }

    fn summaries(self) -> Vec<ObjectSummary> {
        let mut summaries: Vec<ObjectSummary> = self
            .objects
            .into_iter()
            .map(|((path, build_id), ObjectCount { frames, named, advice })| {
                let advice = match path {
                    Some(_) => advice.into_iter().take(MAX_ADVICE).collect::<Vec<_>>().join("; "),
                    None => "these addresses were in no mapping that was known".to_owned(),
                };
                ObjectSummary {
                    path: path.unwrap_or_else(|| "[unknown]".to_owned()),
                    build_id,
                    frames,
                    named,
                    advice: if named < frames { advice } else { String::new() },
                }
            })
            .collect();
        summaries.sort_by(|left, right| right.frames.cmp(&left.frames).then_with(|| left.path.cmp(&right.path)));
        summaries
    }
}
