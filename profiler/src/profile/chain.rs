//! Waits with who ended them: one profile of two.

use std::collections::HashMap;

use super::{FrameKind, Function, Interner, Line, Location, Profile, Sample};

impl Profile {
    /// The sample with most time of each span.
    #[must_use]
    pub fn by_span(&self) -> HashMap<u64, &Sample> {
        let mut by_span: HashMap<u64, &Sample> = HashMap::new();
        let rank = |sample: &Sample| (sample.values[self.origin.row().primary], &self.threads[sample.thread as usize]);
        for sample in &self.samples {
            let most = by_span.entry(sample.span).or_insert(sample);
            if rank(sample) > rank(most) {
                *most = sample;
            }
        }
        by_span
    }
}

/// The frame between a wait and the stack that ended it.
const SEPARATOR: &str = "--";

/// Each wait's stack and above it, upside down, the stack that ended it and the process of that: as bcc's `offwaketime`
/// shows it. Waits that nobody was seen to end stay as they are.
///
/// `wakers`: its samples have the spans of the waits that they ended.
#[must_use]
pub fn chain_wakers(waits: &Profile, wakers: &Profile) -> Profile {
    let mut chained = waits.clone();
    let offset = |length: usize| u32::try_from(length).unwrap_or(u32::MAX);
    let (functions, objects, locations) =
        (offset(chained.functions.len()), offset(chained.objects.len()), offset(chained.locations.len()));
    chained.functions.extend(wakers.functions.iter().cloned());
    chained.objects.extend(wakers.objects.iter().cloned());
    chained.locations.extend(wakers.locations.iter().map(|location| Location {
        object: location.object.map(|object| object + objects),
        // Upside down, what was inlined comes first.
        lines: location.lines.iter().rev().map(|line| Line { function: line.function + functions, ..*line }).collect(),
        ..*location
    }));
    let mut marks: HashMap<String, u32> = HashMap::new();
    let mut mark = |chained: &mut Profile, name: &str| {
        *marks.entry(name.to_owned()).or_insert_with(|| {
            let function = offset(chained.functions.len());
            chained.functions.push(Function { name: name.to_owned(), file: String::new() });
            let lines = vec![Line { function, line: 0 }];
            chained.locations.push(Location { kind: FrameKind::Reason, object: None, address: 0, lines });
            offset(chained.locations.len() - 1)
        })
    };
    let by_span = wakers.by_span();
    let mut stacks: Interner<Vec<u32>> = Interner::default();
    for (index, sample) in waits.samples.iter().enumerate() {
        let mut stack = Vec::new();
        if let Some(waker) = by_span.get(&sample.span).filter(|_| sample.span != 0) {
            let process = &wakers.threads[waker.thread as usize].process_name;
            stack.push(mark(&mut chained, process));
            stack.extend(wakers.stacks[waker.stack as usize].iter().rev().map(|location| location + locations));
            stack.push(mark(&mut chained, SEPARATOR));
        }
        stack.extend_from_slice(&waits.stacks[sample.stack as usize]);
        chained.samples[index].stack = stacks.intern(stack);
    }
    chained.stacks = stacks.into_values();
    chained
}
