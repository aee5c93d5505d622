//! Functions by self and by total, and the calls between them.

use std::cmp::Reverse;
use std::collections::BTreeSet;

use hashbrown::HashMap;

use super::Weighted;
use crate::profile::{Edge, FrameKind, Hotspot, Interner, Report};

/// Functions of the report by self, and as many by total.
const MAX_HOTSPOTS: usize = 50;
/// Calls of the report.
const MAX_EDGES: usize = 200;

/// Adds one origin's hotspots and calls.
pub(super) fn add(weighted: &Weighted<'_>, report: &mut Report) {
    let functions = Functions::new(weighted);
    let totals = Totals::new(weighted, &functions);
    report.hotspots.extend(hotspots(weighted, &functions, &totals));
    report.callgraph.edges.extend(edges(weighted, &functions, &totals));
}

/// What makes two frames the same function: an inlined one is the same as one that was called.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Key {
    pub(super) name: String,
    pub(super) object: String,
    pub(super) kind: FrameKind,
}

/// The functions of a profile, numbered, and those of each location.
pub(super) struct Functions {
    pub(super) keys: Vec<Key>,
    files: Vec<String>,
    /// By location id: the functions there, innermost first.
    pub(super) locations: Vec<Vec<u32>>,
}

impl Functions {
    pub(super) fn new(weighted: &Weighted<'_>) -> Self {
        let mut keys = Interner::default();
        let mut files: Vec<String> = Vec::new();
        let mut locations = Vec::with_capacity(weighted.profile.locations.len());
        for location in (0..).take(weighted.profile.locations.len()) {
            let mut ids = Vec::new();
            // A reason is no function: the time is that of the function that waited.
            let frames = weighted.profile.location_frames(location).filter(|frame| frame.kind != FrameKind::Reason);
            for frame in frames {
                let object = frame.object.map_or_else(String::new, |object| object.path.clone());
                let id = keys.intern(Key { name: frame.name.into_owned(), object, kind: frame.kind });
                files.resize(files.len().max(id as usize + 1), String::new());
                let file = &mut files[id as usize];
                // A function can be compiled from several files under one name: the first by name stands for all.
                if !frame.file.is_empty() && (file.is_empty() || frame.file < file.as_str()) {
                    frame.file.clone_into(file);
                }
                ids.push(id);
            }
            locations.push(ids);
        }
        Self { keys: keys.into_values(), files, locations }
    }

    fn is_marker(&self, function: u32) -> bool {
        self.keys[function as usize].kind == FrameKind::Marker
    }
}

/// Values by function and by call.
pub(super) struct Totals {
    pub(super) self_values: Vec<u64>,
    pub(super) total_values: Vec<u64>,
    /// By caller and callee.
    calls: HashMap<(u32, u32), u64>,
}

impl Totals {
    pub(super) fn new(weighted: &Weighted<'_>, functions: &Functions) -> Self {
        let mut self_values = vec![0; functions.keys.len()];
        let mut total_values = vec![0; functions.keys.len()];
        let mut calls: HashMap<(u32, u32), (u64, usize)> = HashMap::new();
        // The number of the last stack that counted, from 1: a recursive function counts once a stack.
        let mut counted = vec![0; functions.keys.len()];
        for ((stack, value), number) in weighted.iter().zip(1_usize..) {
            let mut callee = None;
            for function in stack.iter().flat_map(|&location| &functions.locations[location as usize]).copied() {
                if counted[function as usize] != number {
                    counted[function as usize] = number;
                    total_values[function as usize] += value;
                }
                match callee {
                    None => self_values[function as usize] += value,
                    // A marker says that the caller is unknown.
                    Some(_) if functions.is_marker(function) => {}
                    Some(callee) => {
                        let (sum, last) = calls.entry((function, callee)).or_default();
                        if *last != number {
                            *last = number;
                            *sum += value;
                        }
                    }
                }
                callee = Some(function);
            }
        }
        Self { self_values, total_values, calls: calls.into_iter().map(|(call, (value, _))| (call, value)).collect() }
    }
}

fn hotspots(weighted: &Weighted<'_>, functions: &Functions, totals: &Totals) -> Vec<Hotspot> {
    let self_value = |id: u32| totals.self_values[id as usize];
    let total_value = |id: u32| totals.total_values[id as usize];
    let key = |id: u32| &functions.keys[id as usize];
    let by_self = |id: &u32| (Reverse(self_value(*id)), Reverse(total_value(*id)), key(*id));
    let all = || (0..).take(functions.keys.len());
    let mut leaders: Vec<u32> = all().filter(|&id| self_value(id) > 0).collect();
    leaders.sort_unstable_by_key(|id| by_self(id));
    leaders.truncate(MAX_HOTSPOTS);
    // A marker is rootmost on every stack that was cut: it would lead and say nothing.
    let mut by_total: Vec<u32> = all().filter(|&id| total_value(id) > 0 && !functions.is_marker(id)).collect();
    by_total.sort_unstable_by_key(|&id| (Reverse(total_value(id)), Reverse(self_value(id)), key(id)));
    leaders.extend(by_total.into_iter().take(MAX_HOTSPOTS));
    let mut leaders: Vec<u32> = leaders.into_iter().collect::<BTreeSet<_>>().into_iter().collect();
    leaders.sort_unstable_by_key(|id| by_self(id));
    leaders
        .into_iter()
        .map(|id| Hotspot {
            origin: weighted.origin.to_owned(),
            function: key(id).name.clone(),
            object: key(id).object.clone(),
            file: functions.files[id as usize].clone(),
            kind: key(id).kind.name().to_owned(),
            self_value: self_value(id),
            self_share: weighted.share(self_value(id)),
            total_value: total_value(id),
            total_share: weighted.share(total_value(id)),
        })
        .collect()
}

fn edges(weighted: &Weighted<'_>, functions: &Functions, totals: &Totals) -> Vec<Edge> {
    let key = |id: u32| &functions.keys[id as usize];
    let mut calls: Vec<_> = totals.calls.iter().map(|(&call, &value)| (call, value)).collect();
    if calls.len() > MAX_EDGES {
        // There may be a million, most of them equally light: names are compared among the heaviest only.
        let (_, &mut (_, least), _) = calls.select_nth_unstable_by_key(MAX_EDGES - 1, |&(_, value)| Reverse(value));
        calls.retain(|&(_, value)| value >= least);
    }
    calls.sort_unstable_by_key(|&((caller, callee), value)| (Reverse(value), key(caller), key(callee)));
    calls.truncate(MAX_EDGES);
    calls
        .into_iter()
        .map(|((caller, callee), value)| Edge {
            origin: weighted.origin.to_owned(),
            caller: key(caller).name.clone(),
            caller_object: key(caller).object.clone(),
            callee: key(callee).name.clone(),
            callee_object: key(callee).object.clone(),
            value,
            share: weighted.share(value),
        })
        .collect()
}
