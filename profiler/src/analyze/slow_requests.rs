//! Slow requests with the stacks of who asked for them.

use std::collections::HashMap;

use profiler_common::event::Origin;

use crate::profile::{Capture, Profile, Sample, SlowShare};

/// Frames of a stack that are named, from the leaf on.
const FRAMES: usize = 64;

/// The slow requests of a capture, longest first.
pub(super) fn slow_requests(capture: &Capture) -> Vec<SlowShare> {
    let profile = capture.profiles.iter().find(|profile| profile.origin == Origin::BlockIo);
    let by_span = profile.map(Profile::by_span).unwrap_or_default();
    let mut slow: Vec<SlowShare> = capture
        .index
        .slow_requests
        .requests
        .iter()
        .map(|request| SlowShare {
            request: request.clone(),
            stack: profile.map(|profile| stack(profile, &by_span, &request.span)).unwrap_or_default(),
        })
        .collect();
    // Those of one length stay in the order in which they were made.
    slow.sort_by_key(|slow| std::cmp::Reverse(slow.request.total_ns()));
    slow
}

/// Names of the frames of a span's sample with the suffix of their kind, leaf first; none where there is no such sample.
fn stack(profile: &Profile, by_span: &HashMap<u64, &Sample>, span: &str) -> Vec<String> {
    let span = span.strip_prefix("0x").and_then(|digits| u64::from_str_radix(digits, 16).ok()).unwrap_or(0);
    let Some(sample) = by_span.get(&span).filter(|_| span != 0) else { return Vec::new() };
    // The leaf that says what kind of request it is says nothing here.
    let frames = profile.frames(sample.stack).filter(|frame| frame.kind != crate::profile::FrameKind::Reason);
    frames.take(FRAMES).map(|frame| format!("{}{}", frame.name, frame.suffix())).collect()
}
