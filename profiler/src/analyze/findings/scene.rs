//! What rules look at: a capture, what the report has found in it so far, and ways to ask for both.

use std::collections::BTreeMap;

use hashbrown::HashMap;
use profiler_common::event::Origin;

use super::{Pattern, Rules, patterns};
use crate::analyze::Weighted;
use crate::profile::{
    Capture, Column, Finding, FindingKind, FrameKind, LedgerRow, NamedFrame, Profile, Report, Severity, Table,
};

/// Objects whose functions are called by whoever does something, and are not what does it.
const LIBRARIES: [&str; 7] = ["libc.so", "libc-", "libpthread", "ld-linux", "[vdso]", "libstdc++", "libm.so"];

pub(super) struct Scene<'a> {
    pub(super) capture: &'a Capture,
    pub(super) report: &'a Report,
    pub(super) rules: &'a Rules,
    /// How long each thread ran and waited, for what: of the ledger, else, as far as it goes, of the profiles.
    rows: Vec<LedgerRow>,
    /// The frames of each location of each profile, leaf first: made once, since every rule goes over all stacks.
    frames: Vec<Vec<Vec<SceneFrame>>>,
}

/// A frame, with what tells whose it is and what it does.
pub(super) struct SceneFrame {
    /// Its name; of the kernel's, with their suffix.
    pub(super) name: String,
    kind: FrameKind,
    /// Short name of its object.
    object: String,
    /// The pattern that fits it, by its place.
    pattern: Option<usize>,
}

impl SceneFrame {
    /// Its name without the suffix.
    pub(super) fn plain(&self) -> &str {
        self.name.strip_suffix("_[k]").unwrap_or(&self.name)
    }
}

/// Values of a profile by the function that they are of.
pub(super) struct Site {
    /// The function.
    pub(super) function: String,
    /// Its part of what was asked for, 0 to 1.
    pub(super) share: f64,
    /// The heaviest stack below it, root first, a few frames.
    pub(super) stack: String,
}

impl<'a> Scene<'a> {
    pub(super) fn new(capture: &'a Capture, report: &'a Report, rules: &'a Rules) -> Self {
        let rows = match &report.ledger {
            Some(ledger) => ledger.threads.iter().filter(|row| row.tid != 0 && row.wall_ns > 0).cloned().collect(),
            None => rows(capture),
        };
        let frames = capture.profiles.iter().map(|profile| frames(profile, rules)).collect();
        Self { capture, report, rules, rows, frames }
    }

    pub(super) fn profile(&self, origin: Origin) -> Option<&'a Profile> {
        self.capture.profiles.iter().find(|profile| profile.origin == origin)
    }

    pub(super) fn table(&self, name: &str) -> Option<&'a Table> {
        self.capture.index.tables.get(name)
    }

    pub(super) fn duration_ns(&self) -> f64 {
        float(self.capture.index.duration_ns).max(1.0)
    }

    /// Sum of a column of the timeline.
    pub(super) fn sum(&self, column: Column) -> Option<f64> {
        let figures = self.capture.index.timeline.column(column)?;
        Some(figures.iter().flatten().map(|&figure| float(figure)).sum())
    }

    /// CPUs that the target used, of samples or of the ledger; `None` where neither was recorded.
    pub(super) fn cpus(&self) -> Option<f64> {
        if let Some(ledger) = &self.report.ledger {
            return Some(float(ledger.total.cpu_ns) / self.duration_ns());
        }
        let summary = self.capture.index.origins.get(Origin::Cpu.row().name)?;
        (summary.rate_hz > 0).then(|| float(summary.n) / float(summary.rate_hz) / (self.duration_ns() / 1e9))
    }

    /// The threads, those that stand for several left out.
    pub(super) fn threads(&self) -> impl Iterator<Item = &LedgerRow> {
        self.rows.iter()
    }

    /// Time that all of them waited for a reason, ns.
    pub(super) fn waited(&self, reason: &str) -> f64 {
        self.rows.iter().filter_map(|row| row.waits.get(reason)).map(|&time| float(time)).sum()
    }

    /// The part of wall time that a time is of the threads whose part of it passes the threshold of waits.
    ///
    /// `time`: of a thread, ns. Returns the part and how many threads these are.
    pub(super) fn share_of_wall(&self, time: impl Fn(&LedgerRow) -> u64) -> (f64, usize) {
        let (mut sum, mut wall, mut count) = (0.0, 0.0, 0);
        for row in self.threads() {
            let of = float(time(row));
            if of >= float(row.wall_ns) * self.rules.thresholds.wait_share {
                sum += of;
                wall += float(row.wall_ns);
                count += 1;
            }
        }
        (if wall > 0.0 { (sum / wall).min(1.0) } else { 0.0 }, count)
    }

    /// How much an effect matters.
    pub(super) fn severity(&self, effect: f64) -> Severity {
        let thresholds = &self.rules.thresholds;
        match effect {
            effect if effect >= thresholds.high_effect => Severity::High,
            effect if effect >= thresholds.medium_effect => Severity::Medium,
            _ => Severity::Info,
        }
    }

    /// A finding whose severity follows from its effect.
    pub(super) fn finding(
        &self,
        kind: FindingKind,
        title: String,
        effect: f64,
        confidence: f64,
        evidence: Vec<String>,
        recommendation: String,
    ) -> Finding {
        let effect = if effect.is_finite() { effect.clamp(0.0, 1.0) } else { 0.0 };
        let effect = (effect * 1e4).round() / 1e4;
        Finding { kind, severity: self.severity(effect), title, evidence, confidence, effect, recommendation }
    }

    /// Where a profile's values are, by the function of the program itself that is nearest to the leaf.
    ///
    /// `is_meant`: which stacks, by their frames, leaf first.
    /// Returns also what part of all these stacks are.
    pub(super) fn site(&self, origin: Origin, is_meant: impl Fn(&[&SceneFrame]) -> bool) -> Option<(Site, f64)> {
        let place = self.capture.profiles.iter().position(|profile| profile.origin == origin)?;
        let weighted = Weighted::new(&self.capture.profiles[place]);
        let text = |stack: &[u32]| shown(stack.iter().flat_map(|&location| &self.frames[place][location as usize]));
        let mut sites: BTreeMap<&str, (u64, u64, &[u32])> = BTreeMap::new();
        let mut sum = 0;
        let mut frames: Vec<&SceneFrame> = Vec::new();
        for (stack, value) in weighted.iter() {
            frames.clear();
            frames.extend(stack.iter().flat_map(|&location| &self.frames[place][location as usize]));
            if !is_meant(&frames) {
                continue;
            }
            sum += value;
            let (total, heaviest, longest) = sites.entry(site_of(&frames)).or_default();
            *total += value;
            // Stacks have another order in a capture that was read back.
            if value > *heaviest || (value == *heaviest && text(stack) < text(longest)) {
                (*heaviest, *longest) = (value, stack);
            }
        }
        let (function, (value, _, stack)) = sites.into_iter().max_by_key(|(_, (value, ..))| *value)?;
        let share = float(value) / float(sum).max(1.0);
        let stack = text(stack);
        Some((Site { function: function.to_owned(), share, stack }, float(sum) / float(weighted.total).max(1.0)))
    }

    /// Whether a pattern fits a function by itself.
    pub(super) fn has_pattern(&self, name: &str) -> bool {
        patterns::find(&self.rules.patterns, name).is_some()
    }

    /// The pattern that says what a stack does: that of the first frame from the leaf that has one.
    pub(super) fn pattern(&self, frames: &[&SceneFrame]) -> Option<&'a Pattern> {
        frames.iter().find_map(|frame| frame.pattern).map(|place| &self.rules.patterns[place])
    }
}

/// The frames of each location of a profile, leaf first.
fn frames(profile: &Profile, rules: &Rules) -> Vec<Vec<SceneFrame>> {
    // Most functions are at many places.
    let mut known: HashMap<String, Option<usize>> = HashMap::new();
    let mut frame = |frame: NamedFrame<'_>| {
        let suffix = if frame.kind == FrameKind::Kernel { "_[k]" } else { "" };
        let name = format!("{}{suffix}", frame.name);
        let pattern = *known.entry(name.clone()).or_insert_with(|| patterns::find(&rules.patterns, &name));
        let object = frame.object.map_or_else(String::new, |object| object.short_name().to_owned());
        SceneFrame { name, kind: frame.kind, object, pattern }
    };
    let locations = (0..).take(profile.locations.len());
    locations.map(|location| profile.location_frames(location).map(&mut frame).collect()).collect()
}

/// Threads by what the profiles have of them, where their exact times are missing: each is taken to have been there all the
/// time.
fn rows(capture: &Capture) -> Vec<LedgerRow> {
    let Some(waits) = capture.profiles.iter().find(|profile| profile.origin == Origin::OffCpu) else {
        return Vec::new();
    };
    let mut rows: BTreeMap<(u32, u32), LedgerRow> = BTreeMap::new();
    for profile in capture.profiles.iter().filter(|profile| [Origin::Cpu, Origin::OffCpu].contains(&profile.origin)) {
        for sample in &profile.samples {
            let thread = &profile.threads[sample.thread as usize];
            let row = rows.entry((thread.pid, thread.tid)).or_default();
            (row.pid, row.tid, row.threads) = (thread.pid, thread.tid, 1);
            row.wall_ns = capture.index.duration_ns;
            row.process.clone_from(&thread.process_name);
            row.thread.clone_from(&thread.thread_name);
            // The second column of both is their time.
            match waits.origin.reason_name(sample.reason).filter(|_| profile.origin == Origin::OffCpu) {
                Some(reason) => *row.waits.entry(reason.to_owned()).or_default() += sample.values[1],
                None => row.cpu_ns = row.cpu_ns.saturating_add(sample.values[1]),
            }
        }
    }
    rows.into_values().filter(|row| row.wall_ns > 0).collect()
}

/// `1 thread`, `3 threads`.
pub(super) fn plural(count: usize, what: &str) -> String {
    if count == 1 { format!("1 {what}") } else { format!("{count} {what}s") }
}

/// The function of the program that is nearest to the leaf, else the nearest that is not the kernel's.
fn site_of<'a>(frames: &[&'a SceneFrame]) -> &'a str {
    let user = || {
        let kinds = [FrameKind::Native, FrameKind::Jit, FrameKind::Interpreted];
        frames.iter().filter(move |frame| kinds.contains(&frame.kind))
    };
    let own = user().find(|frame| !LIBRARIES.iter().any(|library| frame.object.starts_with(library)));
    own.or_else(|| user().next()).or(frames.first()).map_or("[unknown]", |frame| frame.name.as_str())
}

/// The frames nearest to the leaf, root first.
fn shown<'a>(leafward: impl Iterator<Item = &'a SceneFrame>) -> String {
    const FRAMES: usize = 8;
    let mut frames: Vec<&str> = leafward.take(FRAMES).map(|frame| frame.name.as_str()).collect();
    frames.reverse();
    frames.join(" → ")
}

/// A part as text.
pub(super) fn percent(part: f64) -> String {
    format!("{:.1} %", part * 100.0)
}

/// A time as text.
pub(super) fn time(ns: f64) -> String {
    match ns {
        ns if ns >= 1e9 => format!("{:.2} s", ns / 1e9),
        ns if ns >= 1e6 => format!("{:.2} ms", ns / 1e6),
        ns => format!("{:.1} us", ns / 1e3),
    }
}

/// A number for arithmetic that ends in a few digits.
#[expect(clippy::cast_precision_loss, reason = "shown with a few digits")]
pub(super) const fn float(value: u64) -> f64 {
    value as f64
}

/// A value of a table's row by the name of its field; 0 where there is none.
pub(super) fn value(table: &Table, row: usize, field: &str) -> u64 {
    let place = table.values.iter().position(|column| column.field() == field);
    place.and_then(|place| table.rows.get(row)?.values.get(place)).copied().unwrap_or(0)
}

/// A label of a table's row by its name; empty where there is none.
pub(super) fn label<'a>(table: &'a Table, row: usize, name: &str) -> &'a str {
    let place = table.labels.iter().position(|label| label == name);
    place.and_then(|place| table.rows.get(row)?.labels.get(place)).map_or("", String::as_str)
}
