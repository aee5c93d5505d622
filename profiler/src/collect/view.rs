//! A recording as it goes on: the functions and threads of its last window, by name.
//!
//! Input: every [`Window`] of one recording, in their order. Names are looked up once, when a frame is first seen.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use profiler_common::event::Origin;

use super::target::{CacheDirectory, NamingConfig};
use super::watch::{OriginWindow, Window};
use crate::process::{JitProcess, ObjectFile};
use crate::profile::{Figures, FrameKind, RawFrame, RawProfile, StackId, Thread, ThreadId};
use crate::symbolize::{InterpretedFrame, Options, Sources, symbolize};

/// What is known of a recording that goes on.
#[derive(Debug)]
pub struct View {
    origins: BTreeMap<Origin, OriginView>,
    objects: Vec<Arc<ObjectFile>>,
    interpreted: Vec<InterpretedFrame>,
    naming: Options,
    facts: Facts,
}

/// What the last window is, but for its profile.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    /// Since the start of the recording.
    pub elapsed: Duration,
    /// Length of the window.
    pub length: Duration,
    /// What the target and the host used in the last slice of the timeline.
    pub figures: Figures,
    /// Length of that slice.
    pub slice: Duration,
    /// Time inside the BPF programs, ns.
    pub bpf_ns: u64,
    /// CPU time of this profiler.
    pub agent_cpu: Duration,
}

/// What is known of an origin.
#[derive(Debug, Default)]
struct OriginView {
    frames: Vec<Named>,
    stacks: Vec<Box<[u32]>>,
    threads: Vec<Thread>,
    values: Vec<(StackId, ThreadId, u64)>,
    outcomes: [u64; 3],
}

/// A frame: the functions inlined in it, innermost first.
#[derive(Clone, Debug)]
struct Named {
    names: Vec<Arc<str>>,
    kind: FrameKind,
}

/// What lines are about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lines {
    /// Functions.
    Functions,
    /// Threads.
    Threads,
}

/// A function or a thread in the last window.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// Its name.
    pub name: String,
    /// What it has itself, in the origin's unit. Of an origin that is not on-CPU time, what the kernel does is its caller's.
    pub own: u64,
    /// With all that it called; of a thread the same.
    pub total: u64,
}

/// The last window of an origin.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sum {
    /// All of its values, in the origin's unit.
    pub total: u64,
    /// Samples of which nothing is missing.
    pub complete: u64,
    /// Samples with a chain that was cut.
    pub truncated: u64,
    /// Samples that were lost.
    pub lost: u64,
}

impl View {
    /// Of nothing yet. `cache`: where names may be kept; one that cannot be used is none.
    #[must_use]
    pub fn new(naming: &NamingConfig, cache: &CacheDirectory) -> Self {
        Self {
            origins: BTreeMap::new(),
            objects: Vec::new(),
            interpreted: Vec::new(),
            naming: Options {
                debug_directories: naming.debug_directories.clone(),
                debuginfod: naming.debuginfod,
                shorten: naming.shorten,
                known: None,
                cache: cache.open().ok().and_then(|caches| caches.names),
            },
            facts: Facts::default(),
        }
    }

    /// Takes the next window in.
    pub fn take(&mut self, window: Window) {
        let Window { elapsed, length, origins, figures, slice, bpf_ns, agent_cpu, new_objects, new_interpreted, jit } =
            window;
        self.objects.extend(new_objects);
        self.interpreted.extend(new_interpreted);
        self.facts = Facts { elapsed, length, figures, slice, bpf_ns, agent_cpu };
        for OriginWindow { origin, new_frames, new_stacks, new_threads, values, complete, truncated, lost } in origins {
            let named = self.name(origin, new_frames, &jit);
            let view = self.origins.entry(origin).or_default();
            view.frames.extend(named);
            view.stacks.extend(new_stacks);
            view.threads.extend(new_threads);
            view.values = values;
            view.outcomes = [complete, truncated, lost];
        }
    }

    /// Looks the names of frames up; as many as there are frames.
    fn name(&self, origin: Origin, frames: Vec<RawFrame>, jit: &[JitProcess]) -> Vec<Named> {
        let mut raw = RawProfile::new(origin);
        for frame in frames {
            raw.frames.intern(frame);
        }
        let sources = Sources { objects: &self.objects, jit, interpreted: &self.interpreted };
        let found = symbolize(vec![raw], &sources, &self.naming);
        let Some(profile) = found.profiles.first() else { return Vec::new() };
        // A location for each frame, in their order.
        let name = |(location, kind)| Named {
            names: profile.location_frames(location).map(|frame| frame.name.as_ref().into()).collect(),
            kind,
        };
        (0..).zip(profile.locations.iter().map(|location| location.kind)).map(name).collect()
    }

    /// The window, but for its profile.
    #[must_use]
    pub const fn facts(&self) -> &Facts {
        &self.facts
    }

    /// The origins that are recorded.
    pub fn origins(&self) -> impl Iterator<Item = Origin> {
        self.origins.keys().copied()
    }

    /// An origin's last window.
    #[must_use]
    pub fn sum(&self, origin: Origin) -> Sum {
        let Some(view) = self.origins.get(&origin) else { return Sum::default() };
        let [complete, truncated, lost] = view.outcomes;
        Sum { total: view.values.iter().map(|&(.., value)| value).sum(), complete, truncated, lost }
    }

    /// An origin's functions or threads, most of their own first.
    #[must_use]
    pub fn lines(&self, origin: Origin, lines: Lines) -> Vec<Line> {
        let Some(view) = self.origins.get(&origin) else { return Vec::new() };
        let mut sums: BTreeMap<String, (u64, u64)> = BTreeMap::new();
        match lines {
            Lines::Functions => view.add_functions(origin, &mut sums),
            Lines::Threads => view.add_threads(&mut sums),
        }
        let mut lines: Vec<Line> = sums.into_iter().map(|(name, (own, total))| Line { name, own, total }).collect();
        lines.sort_by_key(|line| std::cmp::Reverse((line.own, line.total)));
        lines
    }
}

impl OriginView {
    fn add_functions(&self, origin: Origin, sums: &mut BTreeMap<String, (u64, u64)>) {
        let is_own = |kind| match kind {
            FrameKind::Marker | FrameKind::Reason => false,
            FrameKind::Kernel => origin == Origin::Cpu,
            _ => true,
        };
        for &(stack, _, value) in &self.values {
            let Some(stack) = self.stacks.get(stack as usize) else { continue };
            let frames = || stack.iter().filter_map(|&frame| self.frames.get(frame as usize));
            let named = frames().flat_map(|frame| &frame.names);
            let seen: HashSet<&Arc<str>> = named.collect();
            for name in seen {
                sums.entry(name.to_string()).or_default().1 += value;
            }
            let own = frames().find(|frame| is_own(frame.kind)).or_else(|| frames().next());
            if let Some(name) = own.and_then(|frame| frame.names.first()) {
                sums.entry(name.to_string()).or_default().0 += value;
            }
        }
    }

    fn add_threads(&self, sums: &mut BTreeMap<String, (u64, u64)>) {
        for &(_, thread, value) in &self.values {
            let Some(thread) = self.threads.get(thread as usize) else { continue };
            let Thread { process_name, thread_name, pid, tid, .. } = thread;
            let sum = sums.entry(format!("{process_name} {pid} \u{b7} {thread_name} {tid}")).or_default();
            *sum = (sum.0 + value, sum.1 + value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn naming() -> NamingConfig {
        NamingConfig { debug_directories: Vec::new(), debuginfod: false, shorten: false }
    }

    fn window(origins: Vec<OriginWindow>) -> Window {
        Window {
            elapsed: Duration::from_secs(1),
            length: Duration::from_secs(1),
            origins,
            figures: Figures::default(),
            slice: Duration::from_secs(1),
            bpf_ns: 0,
            agent_cpu: Duration::ZERO,
            new_objects: Vec::new(),
            new_interpreted: ["leaf", "middle", "root"]
                .map(|name| InterpretedFrame { name: name.to_owned(), file: String::new(), line: 1 })
                .to_vec(),
            jit: Vec::new(),
        }
    }

    fn origin_window(values: Vec<(StackId, ThreadId, u64)>) -> OriginWindow {
        OriginWindow {
            origin: Origin::Cpu,
            new_frames: (0..3).map(RawFrame::Interpreted).collect(),
            // The last one calls itself.
            new_stacks: vec![Box::new([0, 1, 2]), Box::new([1, 1, 2])],
            new_threads: vec![Thread {
                pid: 7,
                tid: 8,
                start_time_ns: 0,
                exec_count: 0,
                process_name: "server".to_owned(),
                thread_name: "worker".to_owned(),
                cgroup: String::new(),
            }],
            values,
            complete: 9,
            truncated: 1,
            lost: 2,
        }
    }

    #[test]
    fn a_function_counts_once_in_a_stack_and_windows_replace_each_other() {
        let mut view = View::new(&naming(), &CacheDirectory::None);
        view.take(window(vec![origin_window(vec![(0, 0, 10), (1, 0, 5)])]));
        let line = |name: &str, own, total| Line { name: name.to_owned(), own, total };
        let functions = view.lines(Origin::Cpu, Lines::Functions);
        assert_eq!(functions, [line("leaf", 10, 10), line("middle", 5, 15), line("root", 0, 15)]);
        assert_eq!(view.lines(Origin::Cpu, Lines::Threads), [line("server 7 \u{b7} worker 8", 15, 15)]);
        assert_eq!(view.sum(Origin::Cpu), Sum { total: 15, complete: 9, truncated: 1, lost: 2 });
        // Nothing is new but the values.
        let next = origin_window(vec![(1, 0, 2)]);
        let next = OriginWindow { new_frames: vec![], new_stacks: vec![], new_threads: vec![], ..next };
        view.take(Window { new_interpreted: vec![], ..window(vec![next]) });
        assert_eq!(view.lines(Origin::Cpu, Lines::Functions), [line("middle", 2, 2), line("root", 0, 2)]);
        assert!(view.lines(Origin::OffCpu, Lines::Functions).is_empty());
    }
}
