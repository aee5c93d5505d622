//! Budgets, baselines and metrics on captures whose figures are known.

use profiler::analyze::{BaselineRules, Budgets, Rules, analyze, analyze_by, check_memory, check_rate, metric};
use profiler::profile::{Capture, Column, Figures, Histogram, Row, Severity, Table, TableColumn};
use profiler_common::event::Origin;

use crate::made::{capture, profile};

/// Two functions, a table of calls, and a timeline of memory.
fn example(calls: u64, rss_bytes: u64) -> Capture {
    let stacks = [("main;parse", [750, 750_000_000, 0, 0]), ("main;send", [249, 249_000_000, 0, 0])];
    let mut capture = capture(vec![profile(Origin::Cpu, &stacks)], 10);
    let mut counts = vec![0; 400];
    counts[profiler_common::histogram::bucket_of(1_000_000)] = calls;
    let table = Table {
        title: "System calls".to_owned(),
        labels: vec!["call".to_owned()],
        values: vec![TableColumn::new("time", "ns"), TableColumn::new("calls", "count")],
        distributions: vec![TableColumn::new("succeeded", "ns")],
        rows: vec![Row {
            labels: vec!["read".to_owned()],
            values: vec![calls * 1000, calls],
            distributions: vec![Histogram::new(&counts, 1_000_500)],
        }],
        missing: 0,
    };
    capture.index.tables.insert("syscall".to_owned(), table);
    for slice in 0..10 {
        let mut figures = Figures::default();
        figures.set(Column::TargetRss, Some(rss_bytes - slice));
        capture.index.timeline.push(slice * 1_000_000_000, 1_000_000_000, &figures);
    }
    capture
}

#[test]
fn metrics_have_their_figures() {
    let capture = example(5000, 100 << 20);
    let report = analyze(&capture);
    let value = |name: &str| metric(&capture, &report, name).map(|metric| metric.value);
    let near = |name: &str, expected: f64| {
        let found = value(name).unwrap_or_else(|| panic!("{name}"));
        assert!((found / expected - 1.0).abs() < 0.05, "{name}: {found}");
    };
    near("self:parse", 0.75);
    near("total:main", 1.0);
    near("cpu/self:send", 0.25);
    near("syscall.calls", 500.0);
    near("syscall.succeeded_ns.p99", 1_000_000.0);
    near("syscall.succeeded_ns.max", 1_000_500.0);
    near("peak_rss", f64::from(100 << 20));
    near("cpus", 0.1);
    assert_eq!(value("self:nobody"), Some(0.0));
    for missing in ["wait:disk", "syscall.nothing", "x", "lost.cpu", "fileio/self:x"] {
        assert_eq!(value(missing), None, "{missing}");
    }
}

fn check(text: &str) -> Result<Vec<(bool, bool)>, String> {
    let capture = example(5000, 100 << 20);
    let checks = Budgets::read(text)?.check(&capture, &analyze(&capture))?;
    Ok(checks.iter().map(|check| (check.passed, check.fails())).collect())
}

#[test]
fn budgets_hold_or_fail_by_unit_and_severity() {
    let budget = |metric: &str, rest: &str| format!("[[budget]]\nmetric = {metric:?}\n{rest}\n");
    assert_eq!(check(&budget("self:parse", "max = 80\nunit = \"%\"")), Ok(vec![(true, false)]));
    assert_eq!(check(&budget("self:parse", "max = 70\nunit = \"%\"")), Ok(vec![(false, true)]));
    assert_eq!(check(&budget("self:parse", "max = 0.7\nseverity = \"info\"")), Ok(vec![(false, false)]));
    assert_eq!(check(&budget("peak_rss", "max = 99\nunit = \"MiB\"\nseverity = \"medium\"")), Ok(vec![(false, true)]));
    assert_eq!(check(&budget("syscall.succeeded_ns.p99", "max = 2\nunit = \"ms\"")), Ok(vec![(true, false)]));
    assert_eq!(check(&budget("syscall.calls", "min = 501")), Ok(vec![(false, true)]));
}

#[test]
fn budgets_that_cannot_be_checked_do_not_pass() {
    for (text, hint) in [
        ("", "no [[budget]]"),
        ("[[budget]]\nmetric = \"score\"\n", "needs max or min"),
        ("[[budget]]\nmetric = \"score\"\nmax = nan\n", "needs max or min"),
        ("[[budget]]\nmetric = \"score\"\nmax = 1\nunit = \"parsec\"\n", "parsec"),
        ("[[budget]]\nmetric = \"score\"\nmax = 1\nlimit = 3\n", "limit"),
        ("[[budget]]\nmetric = \"peak_rss\"\nmax = 1\nunit = \"ms\"\n", "bytes"),
        ("[[budget]]\nmetric = \"wait:disk\"\nmax = 1\n", "record what it is of"),
    ] {
        let error = check(text).expect_err(text);
        assert!(error.contains(hint), "{text}: {error}");
    }
}

#[test]
fn a_rate_and_memory_are_held_against_the_baseline() {
    let rules = BaselineRules::default();
    let rate = |before, after| {
        check_rate("syscall.calls", &[example(before, 1 << 20)], &[example(after, 1 << 20)], &rules).unwrap()
    };
    assert!(rate(50_000, 49_000).passed);
    assert!(rate(50_000, 46_000).passed);
    let slow = rate(50_000, 40_000);
    assert!(!slow.passed && slow.severity == Severity::High, "{slow:?}");
    // So few that chance explains it.
    assert!(rate(50, 40).passed);
    assert!(check_rate("nothing", &[example(1, 1 << 20)], &[example(1, 1 << 20)], &rules).is_err());
    let memory = |before: u64, after: u64| {
        check_memory(&[example(1, before << 20)], &[example(1, after << 20)], &rules).unwrap()
    };
    assert!(memory(100, 115).passed);
    let more = memory(100, 130);
    assert!(!more.passed && more.severity == Severity::Medium, "{more:?}");
}

#[test]
fn rules_of_a_file_come_first() {
    let capture = example(5000, 1 << 20);
    let rules = "[thresholds]\nfunction_share = 0.9\n\n[[pattern]]\nkind = \"parsing\"\nfinding = \"cpu\"\n\
                 advice = \"parse less in {function}\"\nnames = [\"par*\"]\n";
    let titles = |rules: &Rules| -> Vec<String> {
        analyze_by(&capture, rules).findings.into_iter().map(|finding| finding.title).collect()
    };
    assert!(titles(&Rules::default()).iter().any(|title| title.starts_with("`parse` takes")));
    assert!(titles(&Rules::with_file(rules).unwrap()).is_empty());
    let lower = Rules::with_file(&rules.replace("0.9", "0.1")).unwrap();
    assert!(titles(&lower).iter().any(|title| title.starts_with("parsing takes")), "{:?}", titles(&lower));
    for wrong in ["[thresholds]\nnothing = 1\n", "[[pattern]]\nkind = \"x\"\n", "x"] {
        assert!(Rules::with_file(wrong).is_err(), "{wrong}");
    }
}
