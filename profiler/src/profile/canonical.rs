//! One form for each profile: numbering and order follow from the content alone.

use std::collections::BTreeMap;

use profiler_common::event::COLUMNS;

use super::{Line, Location, Profile, Sample};

impl Profile {
    /// The same profile with everything sorted, equal things stored once and unused things left out.
    ///
    /// Two profiles that say the same have the same canonical form, whatever their ids.
    #[must_use]
    pub fn canonical(&self) -> Self {
        let mut used = Used::new(self);
        let functions = Renumbered::new(&self.functions, &used.functions);
        let objects = Renumbered::new(&self.objects, &used.objects);
        for (index, location) in self.locations.iter().enumerate() {
            if used.location_flags[index] {
                used.locations[index] = Some(Location {
                    object: location.object.map(|id| objects.id(id)),
                    lines: location
                        .lines
                        .iter()
                        .map(|line| Line { function: functions.id(line.function), ..*line })
                        .collect(),
                    ..*location
                });
            }
        }
        let locations = Renumbered::from_options(&used.locations);
        let stacks: Vec<_> = self
            .stacks
            .iter()
            .zip(&used.stacks)
            .map(|(stack, &used)| used.then(|| stack.iter().map(|&id| locations.id(id)).collect::<Vec<_>>()))
            .collect();
        let stacks = Renumbered::from_options(&stacks);
        let threads = Renumbered::new(&self.threads, &used.threads);
        let mut samples: BTreeMap<_, [u64; COLUMNS]> = BTreeMap::new();
        for sample in &self.samples {
            let key = (stacks.id(sample.stack), threads.id(sample.thread), sample.reason, sample.span);
            let values = samples.entry(key).or_default();
            for (sum, value) in values.iter_mut().zip(sample.values) {
                *sum += value;
            }
        }
        Self {
            origin: self.origin,
            functions: functions.values,
            objects: objects.values,
            locations: locations.values,
            stacks: stacks.values,
            threads: threads.values,
            samples: samples
                .into_iter()
                .map(|((stack, thread, reason, span), values)| Sample { stack, thread, reason, span, values })
                .collect(),
        }
    }
}

/// What a profile's samples refer to, by old id.
struct Used {
    functions: Vec<bool>,
    objects: Vec<bool>,
    location_flags: Vec<bool>,
    locations: Vec<Option<Location>>,
    stacks: Vec<bool>,
    threads: Vec<bool>,
}

impl Used {
    fn new(profile: &Profile) -> Self {
        let mut used = Self {
            functions: vec![false; profile.functions.len()],
            objects: vec![false; profile.objects.len()],
            location_flags: vec![false; profile.locations.len()],
            locations: vec![None; profile.locations.len()],
            stacks: vec![false; profile.stacks.len()],
            threads: vec![false; profile.threads.len()],
        };
        for sample in &profile.samples {
            used.stacks[sample.stack as usize] = true;
            used.threads[sample.thread as usize] = true;
        }
        for (stack, _) in profile.stacks.iter().zip(&used.stacks).filter(|&(_, &used)| used) {
            for &location in stack {
                used.location_flags[location as usize] = true;
            }
        }
        for (location, _) in profile.locations.iter().zip(&used.location_flags).filter(|&(_, &used)| used) {
            if let Some(object) = location.object {
                used.objects[object as usize] = true;
            }
            for line in &location.lines {
                used.functions[line.function as usize] = true;
            }
        }
        used
    }
}

/// Values in ascending order without repetition, and the new id of each old one.
struct Renumbered<T> {
    values: Vec<T>,
    ids: Vec<u32>,
}

impl<T: Clone + Ord> Renumbered<T> {
    fn new(old: &[T], used: &[bool]) -> Self {
        Self::build(old.iter().zip(used).map(|(value, &used)| used.then_some(value)))
    }

    fn from_options(old: &[Option<T>]) -> Self {
        Self::build(old.iter().map(Option::as_ref))
    }

    fn build<'a>(old: impl ExactSizeIterator<Item = Option<&'a T>>) -> Self
    where
        T: 'a,
    {
        let mut ids = vec![0; old.len()];
        let mut order: Vec<_> = old.enumerate().filter_map(|(index, value)| Some((value?, index))).collect();
        order.sort_unstable();
        let mut values: Vec<T> = Vec::new();
        for (value, index) in order {
            if values.last() != Some(value) {
                values.push(value.clone());
            }
            // Ids are 32 bits wide, so there are no more values than that.
            ids[index] = u32::try_from(values.len() - 1).unwrap_or(u32::MAX);
        }
        Self { values, ids }
    }

    fn id(&self, old: u32) -> u32 {
        self.ids[old as usize]
    }
}

#[cfg(test)]
mod tests {
    use profiler_common::event::Origin;

    use super::*;
    use crate::profile::{FrameKind, Function, Thread};

    /// `order` permutes two functions, locations, stacks and samples; a third of each is unused.
    fn profile(order: [u32; 2]) -> Profile {
        let mut profile = Profile::new(Origin::Cpu);
        let names = ["a", "b"];
        for &index in &order {
            profile.functions.push(Function { name: names[index as usize].to_owned(), file: String::new() });
        }
        profile.functions.push(Function { name: "unused".to_owned(), file: String::new() });
        for id in 0..3 {
            let lines = vec![Line { function: id, line: 0 }];
            profile.locations.push(Location { kind: FrameKind::Native, object: None, address: 0, lines });
            profile.stacks.push(vec![id]);
        }
        profile.threads.push(Thread {
            pid: 1,
            tid: 1,
            start_time_ns: 0,
            exec_count: 0,
            process_name: String::new(),
            thread_name: String::new(),
            cgroup: String::new(),
        });
        for stack in [0, 1, 0] {
            profile.samples.push(Sample {
                stack,
                thread: 0,
                reason: 0,
                span: 0,
                values: [u64::from(order[stack as usize]) + 1, 0, 0, 0],
            });
        }
        // Equal totals whichever came twice.
        profile.samples[2].values[0] = 0;
        profile
    }

    #[test]
    fn numbering_does_not_matter_and_unused_things_go() {
        let canonical = profile([0, 1]).canonical();
        assert_eq!(canonical, profile([1, 0]).canonical());
        assert_eq!(canonical, canonical.canonical());
        assert_eq!(canonical.functions.len(), 2);
        assert_eq!(canonical.samples.len(), 2);
    }
}
