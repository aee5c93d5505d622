//! The commands beside `record`: `doctor` and `report`.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use profiler_tests::{Record, Workload, float, is_emulated, require_bpf, run_profiler, scratch};
use serde_json::Value;

#[test]
fn doctor_says_that_record_works_here() {
    let Some(_kernel) = require_bpf() else { return };
    let ended = run_profiler(&["doctor"]);
    assert_eq!(ended.code(), 0, "{ended:?}");
    assert!(ended.stdout.contains("BTF"), "{}", ended.stdout);
    println!("{}", ended.stdout);
}

#[test]
fn doctor_speaks_json() {
    let Some(_kernel) = require_bpf() else { return };
    let ended = run_profiler(&["doctor", "--json"]);
    assert_eq!(ended.code(), 0, "{ended:?}");
    let report: Value = serde_json::from_str(&ended.stdout).expect("JSON");
    assert!(report.is_object(), "{report}");
}

/// The files of a directory by name.
fn files(directory: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = fs::read_dir(directory).expect("read a directory");
    let names = entries.map(|entry| entry.expect("read a directory").file_name().into_string().expect("UTF-8"));
    names.map(|name| (name.clone(), fs::read(directory.join(name)).expect("read a file"))).collect()
}

#[test]
fn report_makes_the_same_bytes_again() {
    let Some(_kernel) = require_bpf() else { return };
    let captured = Record::new().rate(999).program(&Workload::c("threads").build(), &["1", "0.1", "4"]).run();
    let path = captured.path();
    let before = files(&path);
    for name in ["cpu.folded", "cpu.svg", "report.json", "report.md"] {
        fs::remove_file(path.join(name)).expect("remove a file");
    }
    let ended = run_profiler(&["report", path.to_str().expect("UTF-8")]);
    assert_eq!(ended.code(), 0, "{ended:?}");
    let after = files(&path);
    assert_eq!(before.keys().collect::<Vec<_>>(), after.keys().collect::<Vec<_>>());
    for (name, bytes) in &before {
        assert!(after[name] == *bytes, "{name} is not the same again");
    }
}

#[test]
fn report_of_what_is_no_capture_is_an_error() {
    let directory = profiler_tests::scratch();
    let path = directory.path().to_str().expect("UTF-8");
    let ended = run_profiler(&["report", path]);
    assert_eq!(ended.code(), 2, "{ended:?}");
    assert!(ended.stderr.contains("capture.json"), "{}", ended.stderr);
}

#[test]
fn bench_times_runs_records_them_and_keeps_budgets() {
    let Some(_kernel) = require_bpf() else { return };
    let directory = scratch();
    let path = directory.path().join("bench");
    let output = path.to_str().expect("a path");
    let program = Workload::c("burn").build();
    let program = program.to_str().expect("a path");
    let line = ["bench", "--min-runs", "3", "--max-runs", "4", "-F", "999", "-o", output, "--budget", "max=1h"];
    let run = |more: &[&str]| run_profiler(&[&line[..], more, &["--json", "--", program, "0.3"]].concat());
    let kept = run(&[]);
    assert_eq!(kept.code(), 0, "{kept:?}");
    let bench: Value = serde_json::from_str(&kept.stdout).expect("JSON");
    let runs = bench["runs"].as_u64().expect("runs");
    assert!((3..=4).contains(&runs), "{bench}");
    assert_eq!(bench["times_ns"].as_array().map(Vec::len), usize::try_from(runs).ok());
    let index: Value =
        serde_json::from_slice(&fs::read(path.join("capture.json")).expect("capture.json")).expect("JSON");
    assert_eq!(index["tables"]["bench"]["rows"][0]["values"][0], runs);
    // Every run is in the profile, and what is measured of its CPU time is what was sampled.
    if !is_emulated() {
        let sampled = index["origins"]["cpu"]["n"].as_f64().expect("samples") / 999.0;
        let mean_cpu_ns = bench["user_ns"].as_f64().expect("user") + bench["system_ns"].as_f64().expect("system");
        let used = mean_cpu_ns / 1e9 * float(runs);
        assert!((0.7..1.4).contains(&(sampled / used)), "{sampled} {used}");
    }
    let missed = run(&["--budget", "min=1us"]);
    assert_eq!(missed.code(), 1, "{missed:?}");
    // A command that fails is not measured.
    let failed = run_profiler(&["bench", "--no-profile", "--", "sh", "-c", "exit 3"]);
    assert_eq!(failed.code(), 2, "{failed:?}");
    assert!(failed.stderr.contains("--ignore-failure"), "{failed:?}");
}
