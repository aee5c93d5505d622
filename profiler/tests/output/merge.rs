//! Captures merged into one: sums are those of the parts, and the whole can be analyzed, written and read back.

use std::collections::BTreeMap;

use profiler::analyze::analyze;
use profiler::output::{capture, derived};
use profiler::profile::{Capture, Profile, Selection, merge};

use crate::example;
use crate::random::{self, Random};

/// The samples of a profile dealt out to several, each value to some of them.
fn dealt(profile: &Profile, parts: usize, random: &mut Random) -> Vec<Profile> {
    let mut profiles: Vec<Profile> = (0..parts).map(|_| Profile { samples: vec![], ..profile.clone() }).collect();
    for sample in &profile.samples {
        let mut left = sample.values;
        for (number, part) in profiles.iter_mut().enumerate() {
            let mut values = left;
            if number + 1 < parts {
                values.iter_mut().for_each(|value| *value = random.below(*value + 1));
            }
            left.iter_mut().zip(values).for_each(|(left, value)| *left -= value);
            part.samples.push(profiler::profile::Sample { values, ..*sample });
        }
    }
    profiles
}

#[test]
fn the_parts_of_a_profile_make_it_again() {
    let mut random = Random(5);
    for round in 0..100 {
        let profile = if round == 0 { example::profile() } else { random::profile(&mut random) };
        let base = Capture { profiles: vec![], ..example::capture() };
        let windows = dealt(&profile, 1 + round % 5, &mut random);
        let windows = (0..).zip(windows).map(|(number, profile)| {
            let mut window = Capture { profiles: vec![profile], ..base.clone() };
            window.index.started_at_ns += number * window.index.duration_ns;
            window
        });
        let whole = merge(windows).unwrap();
        // Which sample has nothing is not kept.
        let values = |profile: &Profile| {
            let mut profile = profile.canonical();
            profile.samples.retain(|sample| sample.values != [0; 4]);
            profile.canonical()
        };
        assert_eq!(values(&whole.profiles[0]), values(&profile));
    }
}

#[test]
fn every_sum_of_windows_is_the_sum_of_their_sums() {
    for window in [example::capture_with_waits(), example::capture_with_calls(), example::capture_with_requests()] {
        let windows = (0..4_u64).map(|number| {
            let mut window = window.clone();
            // The last after a gap of 3 s.
            window.index.started_at_ns += number * window.index.duration_ns + number / 3 * 3_000_000_000;
            window
        });
        let whole = merge(windows).unwrap();
        let (one, all) = (&window.index, &whole.index);
        assert_eq!((all.started_at_ns, all.duration_ns), (one.started_at_ns, 4 * one.duration_ns));
        for (name, summary) in &all.origins {
            let times = if name == "live" { 1 } else { 4 };
            assert_eq!((summary.total, summary.n), (times * one.origins[name].total, times * one.origins[name].n));
            assert_eq!(summary.rate_hz, one.origins[name].rate_hz, "{name}");
        }
        for profile in &whole.profiles {
            let before = window.profiles.iter().find(|before| before.origin == profile.origin).unwrap();
            let times = if profile.origin.row().name == "live" { 1 } else { 4 };
            assert_eq!(profile.totals(), before.totals().map(|total| times * total));
        }
        for (name, accounting) in &all.accounting {
            assert!(accounting.adds_up(), "{name}");
            assert_eq!(accounting.hits, 4 * one.accounting[name].hits);
        }
        for (name, table) in &all.tables {
            assert!(table.is_sound());
            assert_eq!(table.total(0), 4 * one.tables[name].total(0), "{name}");
            assert_eq!(table.rows.len(), one.tables[name].rows.len());
        }
        let sums = |capture: &Capture| -> BTreeMap<String, u64> {
            let columns = capture.index.timeline.columns.iter().filter(|(name, _)| name.contains("cpu"));
            columns.map(|(name, slices)| (name.clone(), slices.iter().flatten().sum())).collect()
        };
        assert_eq!(sums(&whole), sums(&window).into_iter().map(|(name, sum)| (name, 4 * sum)).collect());
        assert_eq!(all.slow_requests.requests.len(), 4 * one.slow_requests.requests.len());
        assert_eq!(all.overhead.bpf_ns, 4 * one.overhead.bpf_ns);
        assert!(all.warnings.iter().any(|warning| warning.starts_with("1 times nothing was recorded")), "{all:?}");
        // It is a capture like any other.
        let files = capture::write(&whole).unwrap();
        let read = |name: &str| Ok(files.iter().find(|file| file.name == name).unwrap().bytes.clone());
        let again = capture::read(&read(capture::INDEX_FILE).unwrap(), read).unwrap();
        let report = analyze(&again);
        assert!(!report.hotspots.is_empty());
        assert!(derived(&again, &report).unwrap().len() > 5);
    }
}

#[test]
fn slow_requests_keep_their_stacks() {
    let window = example::capture_with_requests();
    let before = analyze(&window).slow_requests;
    let mut next = window.clone();
    next.index.started_at_ns += next.index.duration_ns;
    let after = analyze(&merge([window, next]).unwrap()).slow_requests;
    let stacks = |shares: &[profiler::profile::SlowShare]| -> Vec<Vec<String>> {
        let mut stacks: Vec<_> = shares.iter().map(|share| share.stack.clone()).collect();
        stacks.sort();
        stacks
    };
    assert!(before.iter().any(|share| !share.stack.is_empty()), "there is nothing to test");
    let mut twice = [stacks(&before), stacks(&before)].concat();
    twice.sort();
    assert_eq!(stacks(&after), twice);
}

#[test]
fn a_selection_leaves_what_is_of_a_process() {
    let whole = example::capture_with_calls();
    let of = |pid: u32| {
        let capture = whole.clone().selected(&Selection { pids: vec![pid], ..Selection::default() });
        let profile = &capture.profiles[0];
        assert!(profile.threads.iter().all(|thread| thread.pid == pid));
        assert_eq!(capture.index.origins[profile.origin.row().name].n, profile.totals()[0]);
        for table in capture.index.tables.values() {
            if let Some(place) = table.labels.iter().position(|label| label == "pid") {
                assert!(table.rows.iter().all(|row| row.labels[place] == pid.to_string()));
            }
        }
        profile.totals()[0]
    };
    let pids: std::collections::BTreeSet<u32> = whole.profiles[0].threads.iter().map(|thread| thread.pid).collect();
    assert!(pids.len() > 1);
    assert_eq!(pids.into_iter().map(of).sum::<u64>(), whole.profiles[0].totals()[0]);
    assert_eq!(of(1_000_000), 0);
}
