//! What has changed between two sides, each one recording or several: functions and stacks, by unit of work, with a test.
//!
//! A function is the same on both sides when its name and the name of its object's file are: paths and addresses change
//! from build to build.

use std::collections::BTreeMap;

use hashbrown::HashMap;
use profiler_common::event::Origin;

use super::Weighted;
use super::hotspots::{Functions, Key, Totals};
use super::significance::{Part, detectable, error_of_difference, holm, one_sided, rate, total, variance_of_sum};
use crate::profile::{Capture, Change, Diff, DiffRules, DiffSide, FrameKind, FunctionSlices, Profile, Run, Verdict};

/// What a function or stack must have on one side to be tested, as a part of the least effect that counts: with less, it
/// cannot have changed by as much.
const LEAST_PART: f64 = 0.8;
/// Part of everything whose noise smaller values are taken to have.
const LEAST_NOISY: f64 = 0.2;
/// Stacks that are compared and shown.
const MAX_STACKS: usize = 50;

/// A recording and the units of work that it did.
#[derive(Clone, Copy, Debug)]
pub struct Worked<'a> {
    /// The recording.
    pub capture: &'a Capture,
    /// Units of work.
    pub work: f64,
    /// Whether these are seconds. If not, it is not known how many were done in a slice: they are taken to follow the
    /// values of all functions together, and what these vary by for a unit of work to be the noise between recordings.
    pub is_time: bool,
    /// Where a unit is a timed run: all of them, by which it is known what runs vary by.
    pub runs: &'a [Run],
}

/// Compares one origin of two sides. `per`: what the work is, for the reader.
///
/// `None`: a side has no recording of that origin.
#[must_use]
pub fn diff(origin: &str, per: &str, before: &[Worked<'_>], after: &[Worked<'_>], rules: &DiffRules) -> Option<Diff> {
    let sides = [Side::new(origin, before)?, Side::new(origin, after)?];
    let row = sides[0].recordings[0].profile.origin.row();
    let whole = sides.each_ref().map(|side| side.total() / side.work());
    let everything = whole[0].max(f64::MIN_POSITIVE);
    let least_share = rules.least_effect * LEAST_PART;
    let compare = |name: &str, object: &str, parts: [Vec<Part>; 2]| {
        // What is small as a whole varies more as a part of itself: interrupts, for one, follow what else the host does.
        let noise = |mean: f64| rules.run_noise * mean.max(everything * LEAST_NOISY);
        let [before, after] = parts.map(|parts| rate(&parts, noise));
        let (error, freedom) = error_of_difference(before, after);
        let difference = after.mean - before.mean;
        let t = if error > 0.0 { difference / error } else { 0.0 };
        Change {
            name: name.to_owned(),
            object: object.to_owned(),
            before: before.mean,
            after: after.mean,
            effect: difference / everything,
            relative: (before.mean > 0.0).then(|| difference / before.mean),
            standard_error: error / everything,
            p_value: one_sided(t, freedom),
            detectable: freedom,
            verdict: Verdict::Unchanged,
        }
    };
    let parts = |values: &dyn Fn(&Recording<'_>) -> Estimate| {
        sides.each_ref().map(|side| side.recordings.iter().map(|recording| recording.part(values(recording))).collect())
    };
    let total = compare("everything", "", parts(&|recording| (recording.total, recording.variance_of_total())));
    let names = tested_functions(&sides, least_share, |values| values.own);
    let by_self = names.iter().map(|key| compare(&key.0, &key.1, parts(&|recording| recording.own(key))));
    let mut functions: Vec<Change> = by_self.collect();
    let names = tested_functions(&sides, least_share, |values| values.all);
    let by_total = names
        .iter()
        .filter(|name| !is_said_already(&sides, name))
        .map(|key| compare(&key.0, &key.1, parts(&|recording| recording.all(key))));
    let mut functions_total: Vec<Change> = by_total.collect();
    let mut stacks: Vec<Change> = tested_stacks(&sides, least_share)
        .iter()
        .map(|stack| compare(&stack.join(";"), "", parts(&|recording| recording.stack(stack))))
        .collect();
    let mut total = [total];
    let tested = judge(total.iter_mut().chain(&mut functions).chain(&mut functions_total), rules);
    judge(stacks.iter_mut(), rules);
    for changes in [&mut functions, &mut functions_total, &mut stacks] {
        changes.sort_by(|a, b| b.effect.abs().total_cmp(&a.effect.abs()).then_with(|| a.name.cmp(&b.name)));
    }
    let [total] = total;
    let [before, after] = sides.each_ref().map(Side::summary);
    let notes = notes(&sides);
    Some(Diff {
        origin: origin.to_owned(),
        unit: row.unit.to_owned(),
        per: per.to_owned(),
        before,
        after,
        rules: rules.clone(),
        tested,
        notes,
        total,
        functions,
        functions_total,
        stacks,
    })
}

/// Corrects the chances for the number of hypotheses and says what each comes to. Returns that number.
///
/// `detectable` comes in as the degrees of freedom.
fn judge<'a>(changes: impl Iterator<Item = &'a mut Change>, rules: &DiffRules) -> usize {
    let changes: Vec<&mut Change> = changes.collect();
    let tested = changes.len();
    let corrected = holm(&changes.iter().map(|change| change.p_value).collect::<Vec<_>>());
    for (change, p_value) in changes.into_iter().zip(corrected) {
        let errors = detectable(rules.significance, tested, change.detectable);
        change.detectable = (errors * change.standard_error).max(rules.least_effect);
        change.p_value = p_value;
        if p_value < rules.significance && change.effect.abs() >= rules.least_effect {
            change.verdict = if change.effect > 0.0 { Verdict::Regression } else { Verdict::Improvement };
        }
    }
    tested
}

/// A value, its variance and the degrees of freedom of that; no variance where it is not known.
type Estimate = (f64, Option<(f64, f64)>);

/// What tells a function: its name and that of its object's file.
type Name = (String, String);

/// A function's values in one recording.
#[derive(Clone, Debug, Default)]
struct Values {
    own: u64,
    all: u64,
    own_slices: Option<Vec<u64>>,
    all_slices: Option<Vec<u64>>,
}

/// One recording of one origin.
struct Recording<'a> {
    profile: &'a Profile,
    slices: Option<&'a FunctionSlices>,
    work: f64,
    is_time: bool,
    /// What the values of runs vary by: variance of their sum as a part of its square, and the degrees of freedom.
    of_runs: Option<(f64, f64)>,
    total: f64,
    /// What one event comes to.
    event: f64,
    functions: BTreeMap<Name, Values>,
    /// By frames, root first.
    stacks: HashMap<Vec<String>, u64>,
}

/// The recordings of one side.
struct Side<'a> {
    recordings: Vec<Recording<'a>>,
    captures: Vec<&'a Capture>,
}

impl<'a> Side<'a> {
    fn new(origin: &str, worked: &[Worked<'a>]) -> Option<Self> {
        let recordings = worked.iter().map(|worked| Recording::new(origin, *worked)).collect::<Option<Vec<_>>>()?;
        let captures = worked.iter().map(|worked| worked.capture).collect();
        (!recordings.is_empty()).then_some(Self { recordings, captures })
    }

    fn total(&self) -> f64 {
        self.recordings.iter().map(|recording| recording.total).sum()
    }

    fn work(&self) -> f64 {
        self.recordings.iter().map(|recording| recording.work).sum::<f64>().max(f64::MIN_POSITIVE)
    }

    fn summary(&self) -> DiffSide {
        DiffSide {
            target: self.captures.first().map_or_else(String::new, |capture| capture.index.target.description.clone()),
            recordings: self.recordings.len(),
            duration_ns: self.captures.iter().fold(0, |sum, capture| capture.index.duration_ns.saturating_add(sum)),
            total: self.recordings.iter().map(|recording| Weighted::new(recording.profile).total).sum(),
            work: self.work(),
        }
    }
}

impl<'a> Recording<'a> {
    fn new(origin: &str, worked: Worked<'a>) -> Option<Self> {
        let Worked { capture, work, is_time, runs } = worked;
        let profile = capture.profiles.iter().find(|profile| profile.origin.row().name == origin)?;
        let weighted = Weighted::new(profile);
        let keys = Functions::new(&weighted);
        let totals = Totals::new(&weighted, &keys);
        let slices = capture.index.function_slices.get(origin);
        let mut functions: BTreeMap<Name, Values> = BTreeMap::new();
        for (key, (own, all)) in keys.keys.iter().zip(totals.self_values.iter().zip(&totals.total_values)) {
            // Who cut a stack is no function.
            if key.kind == FrameKind::Marker || *all == 0 {
                continue;
            }
            let values = functions.entry(name_of(key)).or_default();
            values.own += own;
            values.all += all;
        }
        for slice in slices.iter().flat_map(|slices| &slices.functions) {
            let Some(values) = functions.get_mut(&(slice.function.clone(), file_of(&slice.object))) else { continue };
            add(&mut values.own_slices, &slice.self_values);
            add(&mut values.all_slices, &slice.total_values);
        }
        let mut stacks: HashMap<Vec<String>, u64> = HashMap::new();
        for (stack, value) in weighted.iter() {
            let frames = stack.iter().rev().flat_map(|&location| keys.locations[location as usize].iter().rev());
            let frames = frames.map(|&function| keys.keys[function as usize].name.clone()).collect();
            *stacks.entry(frames).or_default() += value;
        }
        let events = profile.totals()[0];
        let total = float(weighted.total);
        let event = if events == 0 { 1.0 } else { total / float(events) };
        let of_runs = variance_of_runs(origin, runs);
        Some(Self { profile, slices, work, is_time, of_runs, total, event, functions, stacks })
    }

    fn part(&self, (value, variance): Estimate) -> Part {
        // Of the samples of a clock, it is by chance whose they are, but not how many there are.
        let others = if self.is_time { 1.0 } else { 1.0 - value / self.total.max(f64::MIN_POSITIVE) };
        Part {
            value,
            variance,
            least: value.max(self.event) * self.event * others.max(0.0),
            event: self.event,
            work: self.work,
        }
    }

    fn variance(&self, values: Option<&Vec<u64>>) -> Option<(f64, f64)> {
        let slices = self.slices?;
        variance_of_sum(values?, if self.is_time { &slices.length_ns } else { &slices.totals })
    }

    fn variance_of_total(&self) -> Option<(f64, f64)> {
        if let Some((variance, freedom)) = self.of_runs {
            return Some((variance * self.total * self.total, freedom));
        }
        self.variance(self.slices.map(|slices| &slices.totals))
    }

    /// What a value varies by as a part of all values, and with all values where runs tell how these do.
    fn with_runs(&self, value: f64, variance: Option<(f64, f64)>) -> Option<(f64, f64)> {
        let Some((of_runs, freedom)) = self.of_runs else { return variance };
        let with_all = of_runs * value * value;
        Some(match variance {
            Some((own, of_own)) => (own + with_all, if own > with_all { of_own } else { freedom }),
            None => (with_all, freedom),
        })
    }

    fn own(&self, name: &Name) -> Estimate {
        let Some(values) = self.functions.get(name) else { return (0.0, self.like(0.0)) };
        let value = float(values.own);
        (value, self.with_runs(value, self.variance(values.own_slices.as_ref()).or_else(|| self.like(value))))
    }

    fn all(&self, name: &Name) -> Estimate {
        let Some(values) = self.functions.get(name) else { return (0.0, self.like(0.0)) };
        let value = float(values.all);
        (value, self.with_runs(value, self.variance(values.all_slices.as_ref()).or_else(|| self.like(value))))
    }

    fn stack(&self, frames: &Vec<String>) -> Estimate {
        let value = float(self.stacks.get(frames).copied().unwrap_or(0));
        (value, self.with_runs(value, self.like(value)))
    }

    /// The variance of something that is not followed slice by slice: as over-dispersed as the most dispersed function that
    /// is, by its own code.
    fn like(&self, value: f64) -> Option<(f64, f64)> {
        let slices = self.slices?;
        let of = |values: &Vec<u64>| {
            let (variance, freedom) = self.variance(Some(values))?;
            let sum = total(values);
            (sum > 0.0).then(|| (variance / (sum * self.event), freedom))
        };
        let followed = slices.functions.iter().filter_map(|slice| of(&slice.self_values));
        let (dispersion, freedom) = followed.max_by(|a, b| a.0.total_cmp(&b.0))?;
        Some((value.max(self.event) * self.event * dispersion.max(1.0), freedom))
    }
}

/// Variance of the sum of what runs took, as a part of its square: of their CPU time, of the origin that is about it, of their wall
/// time otherwise. `None`: too few runs.
fn variance_of_runs(origin: &str, runs: &[Run]) -> Option<(f64, f64)> {
    let is_cpu = origin == Origin::Cpu.row().name;
    let took = |run: &Run| if is_cpu { run.user_ns.saturating_add(run.system_ns) } else { run.wall_ns };
    let values: Vec<u64> = runs.iter().map(took).collect();
    let sum = total(&values);
    let (variance, freedom) = variance_of_sum(&values, &vec![1; values.len()])?;
    (sum > 0.0).then(|| (variance / (sum * sum), freedom))
}

/// The functions that have enough on one of the sides, by name.
fn tested_functions(sides: &[Side<'_>; 2], least_share: f64, value: impl Fn(&Values) -> u64) -> Vec<Name> {
    let mut names = std::collections::BTreeSet::new();
    for side in sides {
        let mut sums: BTreeMap<&Name, u64> = BTreeMap::new();
        for (name, values) in side.recordings.iter().flat_map(|recording| &recording.functions) {
            *sums.entry(name).or_default() += value(values);
        }
        let least = side.total() * least_share;
        names.extend(sums.into_iter().filter(|&(_, sum)| sum > 0 && float(sum) >= least).map(|(name, _)| name.clone()));
    }
    names.into_iter().collect()
}

/// Whether a function's total is no hypothesis of its own: that of a leaf is its self, that of what everything is below is
/// everything.
fn is_said_already(sides: &[Side<'_>; 2], name: &Name) -> bool {
    /// Part from which on it is everything.
    const ALL: f64 = 0.99;
    let is = |of: &dyn Fn(&Recording<'_>, &Values) -> bool| {
        sides
            .iter()
            .flat_map(|side| &side.recordings)
            .all(|recording| recording.functions.get(name).is_none_or(|values| of(recording, values)))
    };
    is(&|_, values| values.own == values.all) || is(&|recording, values| float(values.all) >= recording.total * ALL)
}

/// The stacks that have enough on one of the sides: those with the most.
fn tested_stacks(sides: &[Side<'_>; 2], least_share: f64) -> Vec<Vec<String>> {
    let mut shares: BTreeMap<&Vec<String>, f64> = BTreeMap::new();
    for side in sides {
        let total = side.total().max(f64::MIN_POSITIVE);
        for (stack, &value) in side.recordings.iter().flat_map(|recording| &recording.stacks) {
            *shares.entry(stack).or_default() += float(value) / total;
        }
    }
    let mut stacks: Vec<_> = shares.into_iter().filter(|&(_, share)| share >= least_share).collect();
    stacks.sort_by(|a, b| b.1.total_cmp(&a.1));
    stacks.into_iter().take(MAX_STACKS).map(|(stack, _)| stack.clone()).collect()
}

fn notes(sides: &[Side<'_>; 2]) -> Vec<String> {
    let mut notes = Vec::new();
    if sides.iter().any(|side| side.recordings.iter().any(|recording| recording.variance_of_total().is_none())) {
        notes.push(
            "A recording has fewer than 8 slices: its variance is an assumption (4 times that of independent events). \
             Record for 10 s or longer."
                .to_owned(),
        );
    }
    if sides.iter().any(|side| side.recordings.len() < 3) {
        notes.push(
            "How far recordings of the same program differ is an assumption (--run-noise) where a side has fewer than \
             three: repeat both in turn, and name a directory that has them all."
                .to_owned(),
        );
    }
    notes
}

fn name_of(key: &Key) -> Name {
    (key.name.clone(), file_of(&key.object))
}

/// The last component of an object's path.
fn file_of(path: &str) -> String {
    let path = path.strip_suffix(" (deleted)").unwrap_or(path);
    path.rsplit('/').next().unwrap_or(path).to_owned()
}

fn add(sums: &mut Option<Vec<u64>>, values: &[u64]) {
    match sums {
        None => *sums = Some(values.to_vec()),
        Some(sums) => sums.iter_mut().zip(values).for_each(|(sum, value)| *sum = sum.saturating_add(*value)),
    }
}

#[expect(clippy::cast_precision_loss, reason = "rates, of which few digits matter")]
const fn float(value: u64) -> f64 {
    value as f64
}
