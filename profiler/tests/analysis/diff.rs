//! Comparisons: noise alone is no regression, a planted one is found.

use profiler::analyze::{Worked, diff, work};
use profiler::profile::{Capture, Diff, DiffRules, Run, Verdict};

use crate::made::{Chance, sampled};

/// A program of four functions; `slower`: by how much the first one is.
fn record(chance: &mut Chance, seconds: u32, slower: f64, deviation: f64) -> Capture {
    let rates = [("half", 500.0 * (1.0 + slower)), ("quarter", 250.0), ("eighth", 125.0), ("rest", 124.0)];
    sampled(chance, seconds, &rates, deviation)
}

fn compare(before: &[Capture], after: &[Capture], rules: &DiffRules) -> Diff {
    let [before, after] = [before, after].map(|captures| {
        let worked = captures.iter().map(|capture| Worked {
            capture,
            work: work(capture, "second").unwrap(),
            is_time: true,
            runs: &[],
        });
        worked.collect::<Vec<_>>()
    });
    diff("cpu", "second", &before, &after, rules).unwrap()
}

fn verdict(diff: &Diff, name: &str) -> Verdict {
    diff.functions.iter().find(|change| change.name == name).unwrap().verdict
}

#[test]
fn the_same_program_twenty_times_has_no_regression() {
    // Over-dispersed: functions deviate by a twentieth from second to second.
    for seed in 1..=20 {
        let chance = &mut Chance(seed * 7919);
        let (before, after) = (record(chance, 60, 0.0, 0.05), record(chance, 60, 0.0, 0.05));
        let diff = compare(&[before], &[after], &DiffRules::default());
        assert_eq!(diff.regressions().count(), 0, "seed {seed}: {diff:#?}");
        assert!(diff.total.detectable > 0.0 && diff.functions.iter().all(|change| change.detectable > 0.0));
    }
}

#[test]
fn a_planted_slowdown_of_a_twentieth_is_found() {
    let rules = DiffRules { run_noise: 0.0, ..DiffRules::default() };
    let found = (1..=20).filter(|seed| {
        let chance = &mut Chance(seed * 104_729);
        let (before, after) = (record(chance, 60, 0.0, 0.03), record(chance, 60, 0.05, 0.03));
        let diff = compare(&[before], &[after], &rules);
        assert!(["quarter", "eighth", "rest"].iter().all(|name| verdict(&diff, name) != Verdict::Regression));
        verdict(&diff, "half") == Verdict::Regression
    });
    let found = found.count();
    assert!(found >= 18, "found {found} of 20");
}

#[test]
fn repetitions_tell_what_slices_cannot() {
    // Each recording of a side has a speed of its own, which its slices do not show.
    let chance = &mut Chance(42);
    let side = |chance: &mut Chance, slower: f64| -> Vec<Capture> {
        (0..6)
            .map(|_| {
                let speed = 0.04 * chance.normal();
                sampled(chance, 20, &[("half", 500.0 * (1.0 + slower + speed)), ("rest", 499.0 * (1.0 + speed))], 0.0)
            })
            .collect()
    };
    let rules = DiffRules { run_noise: 0.0, ..DiffRules::default() };
    let (before, after) = (side(chance, 0.0), side(chance, 0.0));
    let one = compare(&before[..1], &after[..1], &rules);
    let all = compare(&before, &after, &rules);
    assert_eq!(all.regressions().count(), 0, "{all:#?}");
    assert!(
        all.total.standard_error > one.total.standard_error,
        "{} {}",
        all.total.standard_error,
        one.total.standard_error
    );
    let half_more = side(chance, 0.5);
    assert_eq!(verdict(&compare(&before, &half_more, &rules), "half"), Verdict::Regression);
}

#[test]
fn what_is_new_or_gone_is_told() {
    let chance = &mut Chance(7);
    let before = sampled(chance, 30, &[("kept", 800.0), ("gone", 199.0)], 0.02);
    let after = sampled(chance, 30, &[("kept", 800.0), ("new", 199.0)], 0.02);
    let diff = compare(&[before], &[after], &DiffRules::default());
    assert_eq!(verdict(&diff, "gone"), Verdict::Improvement);
    assert_eq!(verdict(&diff, "new"), Verdict::Regression);
    assert_eq!(verdict(&diff, "kept"), Verdict::Unchanged);
    let new = diff.functions.iter().find(|change| change.name == "new").unwrap();
    assert_eq!(new.relative, None);
    assert!((new.effect - 0.2).abs() < 0.02, "{new:?}");
    assert_eq!(diff.stacks.len(), 3);
}

#[test]
fn a_short_recording_says_that_it_assumes() {
    let chance = &mut Chance(9);
    let (before, after) = (record(chance, 3, 0.0, 0.0), record(chance, 3, 0.05, 0.0));
    let diff = compare(&[before], &[after], &DiffRules::default());
    assert!(diff.notes.iter().any(|note| note.contains("slices")), "{:?}", diff.notes);
    assert_eq!(diff.regressions().count(), 0);
}

#[test]
fn what_runs_vary_by_is_known_where_they_were_timed() {
    // Slices hardly vary, runs do: by a tenth, so that the mean of 40 is known to some 3 %.
    let chance = &mut Chance(77);
    let (before, after) = (record(chance, 60, 0.0, 0.001), record(chance, 60, 0.02, 0.001));
    let runs = |chance: &mut Chance| -> Vec<Run> {
        let run = |_| {
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "not negative")]
            let user_ns = (1e9 * (1.0 + 0.1 * chance.normal())) as u64;
            Run { wall_ns: 2 * user_ns, user_ns, system_ns: 0 }
        };
        (0..40).map(run).collect()
    };
    let (of_before, of_after) = (runs(chance), runs(chance));
    let compare = |of_before: &[Run], of_after: &[Run]| {
        let rules = DiffRules { run_noise: 0.0, ..DiffRules::default() };
        let worked = |capture, runs| Worked { capture, work: 40.0, is_time: false, runs };
        diff("cpu", "bench.runs", &[worked(&before, of_before)], &[worked(&after, of_after)], &rules).unwrap()
    };
    let (slices, runs) = (compare(&[], &[]), compare(&of_before, &of_after));
    assert_eq!(verdict(&slices, "half"), Verdict::Regression, "{slices:#?}");
    assert_eq!(verdict(&runs, "half"), Verdict::Unchanged, "{runs:#?}");
    let expected = 0.1 * (2.0_f64 / 40.0).sqrt();
    assert!((0.6..1.6).contains(&(runs.total.standard_error / expected)), "{} {expected}", runs.total.standard_error);
    assert!(runs.total.detectable > 3.0 * slices.total.detectable, "{runs:#?}");
    // Too few of them tell nothing.
    assert_eq!(compare(&of_before[..3], &of_after[..3]), slices);
}
