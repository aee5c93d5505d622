//! What the profiles of a capture say: where the values are, who called whom, on which threads, in which objects.
//!
//! Reads a [`Capture`], fills a [`Report`]. Makes no system call. The ids of a profile do not show in the result:
//! everything is ordered by value and then by name.

mod bench;
mod counters;
mod diff;
mod findings;
mod gate;
mod hotspots;
mod leaks;
mod ledger;
mod locks;
mod memory;
mod metrics;
mod objects;
mod phases;
mod reasons;
mod significance;
mod slices;
mod slow_requests;
mod threads;
mod trend;
mod wakers;

use std::collections::BTreeMap;

pub use bench::{BENCH_TABLE, BenchBudget, bench, bench_table, check_bench, precision};
pub use counters::{counters, work};
pub use diff::{Worked, diff};
pub use findings::{Pattern, RuleFile, Rules, Thresholds, fits};
pub use gate::{BaselineRules, Budget, Budgets, check_diff, check_memory, check_rate};
pub use metrics::{Metric, metric};
pub use phases::Phase;
pub use reasons::classify;
pub use slices::function_slices;
pub use trend::trend;
pub use wakers::attribute;

use crate::profile::{Breakdown, Capture, FrameKind, Profile, Report};

/// Analyzes every origin of a capture, by the rules that are built in.
#[must_use]
pub fn analyze(capture: &Capture) -> Report {
    analyze_by(capture, &Rules::default())
}

/// As [`analyze`], by other rules.
#[must_use]
pub fn analyze_by(capture: &Capture, rules: &Rules) -> Report {
    let mut report = Report {
        ledger: ledger::ledger(capture),
        locks: locks::locks(capture),
        slow_requests: slow_requests::slow_requests(capture),
        leaks: leaks::leaks(capture),
        peak: leaks::peak(capture),
        memory: memory::memory(capture, &rules.thresholds),
        ..Report::default()
    };
    for profile in &capture.profiles {
        let weighted = Weighted::new(profile);
        report.breakdowns.insert(weighted.origin.to_owned(), breakdown(&weighted));
        hotspots::add(&weighted, &mut report);
        threads::add(&weighted, &mut report);
        phases::add(&weighted, &rules.phases, &mut report);
        objects::add(&weighted, &capture.index, &mut report);
    }
    findings::add(capture, rules, &mut report);
    report
}

/// A profile with its primary column summed by stack.
struct Weighted<'a> {
    profile: &'a Profile,
    origin: &'static str,
    column: usize,
    total: u64,
    /// Values by stack id.
    stacks: Vec<u64>,
}

impl<'a> Weighted<'a> {
    fn new(profile: &'a Profile) -> Self {
        let row = profile.origin.row();
        let mut stacks = vec![0; profile.stacks.len()];
        for sample in &profile.samples {
            stacks[sample.stack as usize] += sample.values[row.primary];
        }
        Self { profile, origin: row.name, column: row.primary, total: stacks.iter().sum(), stacks }
    }

    /// The stacks that have values, leaf first, and these values.
    fn iter(&self) -> impl Iterator<Item = (&'a [u32], u64)> {
        let stacks = self.profile.stacks.iter().map(Vec::as_slice).zip(self.stacks.iter().copied());
        stacks.filter(|&(_, value)| value > 0)
    }

    /// A value as part of the total, 0 to 1, in millionths.
    fn share(&self, value: u64) -> f64 {
        share(value, self.total)
    }
}

/// `part` of `whole`, 0 to 1, rounded to millionths; 0 of nothing.
fn share(part: u64, whole: u64) -> f64 {
    if whole == 0 {
        return 0.0;
    }
    #[expect(clippy::cast_precision_loss, reason = "rounded to millionths anyway")]
    let share = part as f64 / whole as f64;
    (share * 1e6).round() / 1e6
}

fn breakdown(weighted: &Weighted<'_>) -> Breakdown {
    let mut self_by_kind: BTreeMap<String, u64> = BTreeMap::new();
    let mut stacks = 0;
    for (stack, value) in weighted.iter() {
        let kinds = stack.iter().map(|&location| weighted.profile.locations[location as usize].kind);
        let kind = kinds.filter(|&kind| kind != FrameKind::Reason).map(FrameKind::name).next().unwrap_or("none");
        *self_by_kind.entry(kind.to_owned()).or_default() += value;
        stacks += 1;
    }
    let mut reasons: BTreeMap<String, u64> = BTreeMap::new();
    for sample in &weighted.profile.samples {
        if let Some(name) = weighted.profile.origin.reason_name(sample.reason) {
            *reasons.entry(name.to_owned()).or_default() += sample.values[weighted.column];
        }
    }
    Breakdown {
        total: weighted.total,
        threads: threads::count(weighted),
        processes: threads::count_processes(weighted),
        stacks,
        reasons,
        self_by_kind,
    }
}
