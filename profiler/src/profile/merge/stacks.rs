//! Profiles of one origin, added up stack by stack and thread by thread.

use hashbrown::HashMap;
use profiler_common::event::{COLUMNS, Origin};

use crate::profile::{Function, Interner, Line, Location, Object, Profile, Sample, StackId, Thread, ThreadId};

/// Distinct stacks of threads beyond which threads are told apart by name and cgroup alone: a host that starts processes
/// without end would otherwise make a profile without end.
const MAX_SAMPLES: usize = 1 << 19;

/// A profile that others are added to.
pub(super) struct Stacks {
    origin: Origin,
    functions: Interner<Function>,
    objects: Interner<Object>,
    locations: Interner<Location>,
    stacks: Interner<Vec<u32>>,
    threads: Interner<Thread>,
    samples: HashMap<(StackId, ThreadId, u16, u64), [u64; COLUMNS]>,
    /// Most samples before numbers of threads go.
    limit: usize,
    /// Whether they have gone.
    is_coarse: bool,
}

impl Stacks {
    pub(super) fn new(origin: Origin) -> Self {
        Self {
            origin,
            functions: Interner::default(),
            objects: Interner::default(),
            locations: Interner::default(),
            stacks: Interner::default(),
            threads: Interner::default(),
            samples: HashMap::new(),
            limit: MAX_SAMPLES,
            is_coarse: false,
        }
    }

    /// Adds a profile; `span` gives the spans that its samples have in the sum.
    pub(super) fn add(&mut self, profile: Profile, mut span: impl FnMut(u64) -> u64) {
        let functions: Vec<u32> = profile.functions.into_iter().map(|value| self.functions.intern(value)).collect();
        let objects: Vec<u32> = profile.objects.into_iter().map(|value| self.objects.intern(value)).collect();
        let locations = profile.locations.into_iter().map(|location| {
            let line = |line: &Line| Line { function: functions[line.function as usize], ..*line };
            self.locations.intern(Location {
                object: location.object.map(|object| objects[object as usize]),
                lines: location.lines.iter().map(line).collect(),
                ..location
            })
        });
        let locations: Vec<u32> = locations.collect();
        let stacks = profile.stacks.into_iter().map(|mut stack| {
            stack.iter_mut().for_each(|location| *location = locations[*location as usize]);
            self.stacks.intern(stack)
        });
        let stacks: Vec<u32> = stacks.collect();
        let is_coarse = self.is_coarse;
        let threads = profile.threads.into_iter();
        let threads = threads.map(|thread| self.threads.intern(if is_coarse { nameless(thread) } else { thread }));
        let threads: Vec<u32> = threads.collect();
        for sample in profile.samples {
            let key =
                (stacks[sample.stack as usize], threads[sample.thread as usize], sample.reason, span(sample.span));
            add(self.samples.entry(key).or_default(), &sample.values);
        }
        if self.samples.len() > self.limit && !self.is_coarse {
            self.coarsen();
        }
    }

    /// Forgets the numbers of threads and processes.
    fn coarsen(&mut self) {
        self.is_coarse = true;
        let mut threads: Interner<Thread> = Interner::default();
        let old = std::mem::take(&mut self.threads).into_values();
        let new: Vec<u32> = old.into_iter().map(|thread| threads.intern(nameless(thread))).collect();
        self.threads = threads;
        for ((stack, thread, reason, span), values) in std::mem::take(&mut self.samples) {
            add(self.samples.entry((stack, new[thread as usize], reason, span)).or_default(), &values);
        }
    }

    /// Whether threads are told apart by name and cgroup alone.
    pub(super) const fn is_coarse(&self) -> bool {
        self.is_coarse
    }

    /// The sum.
    pub(super) fn finish(self) -> Profile {
        let samples = self.samples.into_iter();
        let sample = |((stack, thread, reason, span), values)| Sample { stack, thread, reason, span, values };
        let mut samples: Vec<Sample> = samples.map(sample).collect();
        samples.sort_unstable_by_key(|sample| (sample.stack, sample.thread, sample.reason, sample.span));
        Profile {
            origin: self.origin,
            functions: self.functions.into_values(),
            objects: self.objects.into_values(),
            locations: self.locations.into_values(),
            stacks: self.stacks.into_values(),
            threads: self.threads.into_values(),
            samples,
        }
    }
}

/// The thread without its numbers.
fn nameless(thread: Thread) -> Thread {
    Thread { pid: 0, tid: 0, start_time_ns: 0, exec_count: 0, ..thread }
}

fn add(sums: &mut [u64; COLUMNS], values: &[u64; COLUMNS]) {
    for (sum, value) in sums.iter_mut().zip(values) {
        *sum = sum.saturating_add(*value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::profile::FrameKind;

    fn profile(names: &[&str], pid: u32, value: u64) -> Profile {
        let mut profile = Profile::new(Origin::Cpu);
        for (id, name) in (0..).zip(names) {
            profile.functions.push(Function { name: (*name).to_owned(), file: String::new() });
            let lines = vec![Line { function: id, line: 0 }];
            profile.locations.push(Location { kind: FrameKind::Native, object: None, address: 0, lines });
            profile.stacks.push(vec![id]);
            profile.samples.push(Sample { stack: id, thread: 0, reason: 0, span: 3, values: [value, 0, 0, 0] });
        }
        profile.threads.push(Thread {
            pid,
            tid: pid,
            start_time_ns: 1,
            exec_count: 0,
            process_name: "a".to_owned(),
            thread_name: "a".to_owned(),
            cgroup: String::new(),
        });
        profile
    }

    #[test]
    fn equal_stacks_of_equal_threads_become_one() {
        let mut sum = Stacks::new(Origin::Cpu);
        sum.add(profile(&["x", "y"], 1, 10), |span| span);
        sum.add(profile(&["y", "z"], 1, 5), |span| span);
        sum.add(profile(&["y"], 2, 1), |_| 0);
        let sum = sum.finish().canonical();
        let found = sum.samples.iter().map(|sample| {
            let name = sum.frames(sample.stack).map(|frame| frame.name.into_owned()).collect::<String>();
            (name, sum.threads[sample.thread as usize].pid, sample.span, sample.values[0])
        });
        let expected = [("x", 1, 3, 10), ("y", 1, 3, 15), ("y", 2, 0, 1), ("z", 1, 3, 5)];
        let mut found: Vec<_> = found.collect();
        found.sort();
        assert_eq!(found, expected.map(|(name, pid, span, value)| (name.to_owned(), pid, span, value)));
    }

    #[test]
    fn too_many_threads_are_told_apart_by_name() {
        let mut sum = Stacks { limit: 10, ..Stacks::new(Origin::Cpu) };
        for pid in 1..=100 {
            sum.add(profile(&["x"], pid, 1), |span| span);
        }
        assert!(sum.is_coarse());
        let sum = sum.finish();
        assert_eq!((sum.samples.len(), sum.totals()[0]), (1, 100));
        assert_eq!((sum.threads[0].pid, sum.threads[0].process_name.as_str()), (0, "a"));
    }
}
