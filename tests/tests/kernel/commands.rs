//! The commands beside `record`: `doctor` and `report`.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use profiler_tests::{Record, Workload, require_bpf, run_profiler};
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
