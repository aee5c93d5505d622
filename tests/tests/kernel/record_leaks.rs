//! Memory in use: how much, who allocated it, and leaks told from caches.

use std::process::Command;

use profiler_common::event::Origin;
use profiler_tests::{Captured, Record, Workload, find_program, float, require_bpf};
use serde_json::Value;

use crate::record_unwinding::without_frame_pointers;

/// The program that holds memory in several ways.
pub(crate) fn leaks() -> Workload {
    without_frame_pointers(Workload::c("leaks"))
}

/// Whether the kernel shows the returns of single calls (Linux 6.13).
pub(crate) fn follows_blocks(captured: &Captured) -> bool {
    let undecided = captured.report["live"]["undecided"].as_str().unwrap_or("");
    if undecided.contains("6.13") {
        println!("in part: {undecided}");
    }
    !undecided.contains("6.13")
}

/// The entry of a function in the list of sites.
pub(crate) fn site<'a>(captured: &'a Captured, function: &str) -> &'a Value {
    let leaks = captured.report["leaks"].as_array().expect("sites");
    let is_its = |leak: &&Value| leak["site"][0].as_str() == Some(function);
    leaks.iter().find(is_its).unwrap_or_else(|| panic!("{function}: {leaks:#?}"))
}

#[test]
fn a_leak_is_told_from_a_cache_and_from_churn() {
    let Some(_kernel) = require_bpf() else { return };
    // What it costs is for the benchmark; this target may have to share its CPU with others.
    let record = Record::new().args(["-e", "alloc", "--alloc-budget", "1000"]);
    let captured = record.program(&leaks().build(), &["20"]).run();
    println!("{}", captured.report["origins"]["alloc"]["by_size"]);
    if !follows_blocks(&captured) {
        assert!(captured.report["potential_leak"].is_null());
        return;
    }
    println!("{:#}", captured.report["leaks"]);
    assert_eq!(captured.report["live"]["undecided"].as_str(), None, "{}", captured.report["live"]);
    let first = &captured.report["leaks"][0];
    assert_eq!((first["site"][0].as_str(), first["verdict"].as_str()), (Some("leak_here"), Some("leak")), "{first}");
    assert_eq!(captured.report["potential_leak"], true);
    let truth = captured.truth();
    let leaked = float(truth["leaked"].as_u64().expect("bytes"));
    let growth = leaked / (float(truth["wall_ns"].as_u64().expect("a time")) / 1e9);
    let end = |index: usize| first["interval"][index].as_f64().expect("an end");
    // Its interval holds 19 times in 20; a test must hold always.
    let (middle, error) = ((end(0) + end(1)) / 2.0, (end(1) - end(0)) / 2.0 / 1.96);
    assert!((growth - middle).abs() < 4.0 * error && error < growth / 5.0, "{growth} {first}");
    assert_eq!(site(&captured, "fill_here")["verdict"], "cache");
    assert_eq!(site(&captured, "replace_here")["verdict"], "cache");
    let leaks = captured.report["leaks"].as_array().expect("sites");
    assert_eq!(leaks.iter().filter(|leak| leak["verdict"] == "leak").count(), 1, "{leaks:#?}");
    // Most was in use in the middle, and who held it then has nothing any more.
    let peak = &captured.report["live"]["peak"];
    println!("{peak}");
    let (at, wall) = (peak["at_ns"].as_f64().expect("ns"), truth["wall_ns"].as_f64().expect("ns"));
    assert!((0.3..0.7).contains(&(at / wall)), "{at} of {wall}");
    assert_eq!(peak["sites"][0]["site"][0], "hold_here");
    assert_eq!(peak["sites"][0]["bytes"], 40_000_000);
    assert_eq!(peak["sites"][1]["site"][0], "fill_here");
    assert!(leaks.iter().all(|leak| leak["site"][0] != "hold_here"), "{leaks:#?}");
    let report = std::fs::read_to_string(captured.path().join("report.md")).expect("report.md");
    assert!(report.contains("Most was in use at ") && report.contains("`hold_here < main`"), "{report}");
    check_timeline(&captured.report);
    let sizes = captured.report["tables"]["alloc"].to_string();
    println!("{sizes}");
    // What each holds.
    let heap = captured.path().join("heap.pb.gz");
    if let Some(go) = find_program("go") {
        let mut output = Command::new(go);
        output.args(["tool", "pprof", "-symbolize=none", "-sample_index=inuse_space", "-peek", "_here"]);
        let output = output.arg(&heap).env("HOME", &heap).output().expect("start go tool pprof");
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(text.contains("Type: inuse_space") && text.contains("leak_here"), "{text}");
    }
    let captured = captured.into_origin(Origin::Live);
    let mut all = 0.0;
    for (function, field) in [("leak_here", "leaked"), ("fill_here", "cached"), ("replace_here", "replaced")] {
        let found = float(captured.count(|stack| stack.has(function)));
        let held = float(truth[field].as_u64().expect("bytes"));
        println!("{function}: {found} of {held}");
        assert!((found / held - 1.0).abs() < 0.25, "{function}: {found} of {held}");
        all += held;
    }
    assert!((float(captured.total()) / all - 1.0).abs() < 0.1, "{} of {all}", captured.total());
    // What is freed at once is not there.
    assert!(captured.count(|stack| stack.has("churn_here")) < 20_000, "{}", captured.folded());
}

/// Checks that the timeline shows what was allocated, and what was in use: most in the middle.
fn check_timeline(report: &Value) {
    let columns = &report["timeline"]["columns"];
    let column = |name: &str| -> Vec<Option<u64>> { serde_json::from_value(columns[name].clone()).expect(name) };
    let allocated: u64 = column("target_allocated_bytes").into_iter().flatten().sum();
    let total = report["origins"]["alloc"]["total"].as_u64().expect("bytes");
    // What came after the last window is in no slice.
    assert!(allocated <= total && float(allocated) > 0.9 * float(total), "{allocated} of {total}");
    let live: Vec<u64> = column("target_live_bytes").into_iter().flatten().collect();
    let (first, most) = (live[0], *live.iter().max().expect("slices"));
    let last = *live.last().expect("slices");
    assert!(first < 10_000_000 && most > 45_000_000 && last < 20_000_000, "{live:?}");
}

#[test]
fn without_frees_nothing_is_said_of_leaks() {
    let Some(_kernel) = require_bpf() else { return };
    let captured =
        Record::new().args(["-e", "alloc", "--alloc-budget", "0.05"]).program(&leaks().build(), &["6"]).run();
    assert!(captured.total() > 0, "{}", captured.folded());
    assert!(captured.report["potential_leak"].is_null());
    let undecided = captured.report["live"]["undecided"].as_str().expect("a reason");
    assert!(undecided.contains("frees not observed") || undecided.contains("6.13"), "{undecided}");
    assert!(captured.report["origins"]["live"].is_null());
}
