//! Objects: what they use themselves, and how many of their frames have names.

use std::cmp::Reverse;

use hashbrown::HashMap;

use super::{Weighted, share};
use crate::profile::{FrameKind, Index, ObjectShare, Report};

/// Path of the row for frames in no known mapping.
const UNKNOWN: &str = "[unknown]";

/// Sums of one object.
#[derive(Clone, Copy, Default)]
struct Sums {
    self_value: u64,
    frames: u64,
    named: u64,
}

/// Adds one origin's objects; `index` knows what would name the nameless.
pub(super) fn add(weighted: &Weighted<'_>, index: &Index, report: &mut Report) {
    let profile = weighted.profile;
    let mut objects: HashMap<(&str, &str), Sums> = HashMap::new();
    for (stack, value) in weighted.iter() {
        let is_code = |location: &&u32| profile.locations[**location as usize].kind != FrameKind::Reason;
        for (depth, &location) in stack.iter().filter(is_code).enumerate() {
            let location = &profile.locations[location as usize];
            // No code, and code that no object holds.
            let elsewhere = location.kind == FrameKind::Interpreted && location.object.is_none();
            if location.kind == FrameKind::Marker || elsewhere {
                continue;
            }
            let key = location.object.map_or((UNKNOWN, ""), |id| {
                let object = &profile.objects[id as usize];
                (object.path.as_str(), object.build_id.as_str())
            });
            let sums = objects.entry(key).or_default();
            if depth == 0 {
                sums.self_value += value;
            }
            // Frames are values times depth: with values at the limit of their type the sum stops there.
            sums.frames = sums.frames.saturating_add(value);
            if profile.is_named(location) {
                sums.named = sums.named.saturating_add(value);
            }
        }
    }
    let mut rows: Vec<_> = objects.into_iter().collect();
    rows.sort_unstable_by_key(|&(key, sums)| (Reverse(sums.self_value), Reverse(sums.frames), key));
    report.objects.extend(rows.into_iter().map(|((path, build_id), sums)| {
        let known = index.objects.iter().find(|object| object.path == path && object.build_id == build_id);
        ObjectShare {
            origin: weighted.origin.to_owned(),
            path: path.to_owned(),
            build_id: build_id.to_owned(),
            self_value: sums.self_value,
            self_share: weighted.share(sums.self_value),
            frames: sums.frames,
            named: sums.named,
            named_share: share(sums.named, sums.frames),
            advice: known.map_or_else(String::new, |object| object.advice.clone()),
        }
    }));
}
