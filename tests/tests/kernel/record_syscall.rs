//! System calls: how many, how long, how many failed, and who made them.

use std::process::Command;

use profiler_common::event::Origin;
use profiler_tests::{
    Captured, Record, Workload, at_work, find_program, float, is_emulated, require_bpf, run_profiler, scratch,
};
use serde_json::Value;

/// The program that makes calls.
fn calls() -> Workload {
    Workload::c("calls")
}

/// The row of a call of the only process.
fn row<'a>(captured: &'a Captured, call: &str) -> &'a Value {
    let rows = captured.report["tables"]["syscall"]["rows"].as_array().expect("rows");
    let mut found = rows.iter().filter(|row| row["labels"]["call"] == call && row["labels"]["process"] == "calls");
    found.next().unwrap_or_else(|| panic!("no row of {call}: {rows:#?}"))
}

/// Values of a column on stacks with a function and this call as the leaf.
fn column(captured: &Captured, column: usize, function: &str, call: &str) -> u64 {
    let profile = &captured.profile;
    let is_wanted = |stack: u32| {
        let names: Vec<_> = profile.frames(stack).map(|frame| frame.name.into_owned()).collect();
        names.first().is_some_and(|leaf| leaf == call) && names.iter().any(|name| name == function)
    };
    let samples = profile.samples.iter().filter(|sample| is_wanted(sample.stack));
    samples.map(|sample| sample.values[column]).sum()
}

#[test]
fn every_call_is_counted_with_its_time_its_errors_and_its_function() {
    let Some(_kernel) = require_bpf() else { return };
    let mut record = Record::new().args(["-e", "syscall"]).program(&calls().build(), &["each", "2000"]);
    // Where the loader would look for libraries, with a call each.
    record.command().env_remove("LD_LIBRARY_PATH");
    let captured = record.run();
    let truth = captured.truth();
    let figure = |field: &str| truth[field].as_u64().expect("a figure");
    assert_eq!(truth["works"], true);
    // The loader and the C library make a few of each before and after.
    for (call, calls, errors) in [
        ("read", "reads", 0),
        ("write", "writes", 0),
        ("openat", "failures", figure("failures")),
        ("nanosleep", "sleeps", 0),
    ] {
        let values = &row(&captured, call)["values"];
        let (found, failed) = (values["calls"].as_u64().expect("calls"), values["errors"].as_u64().expect("errors"));
        println!("{call}: {found} of {}, {failed} failed", figure(calls));
        assert!((figure(calls)..figure(calls) + 12).contains(&found), "{call}: {found}");
        assert!((errors..errors + 3).contains(&failed), "{call}: {failed}");
    }
    let sleep = row(&captured, "nanosleep");
    assert_eq!(sleep["values"]["calls"].as_u64(), Some(figure("sleeps")));
    let latency = &sleep["distributions"]["succeeded_ns"];
    let p50 = latency["p50"].as_f64().expect("ns");
    println!("nanosleep: p50 {p50} of {} ns: {latency}", figure("sleep_p50_ns"));
    assert!((p50 / float(figure("sleep_p50_ns")) - 1.0).abs() < 0.05, "{latency}");
    // The program's clock is read outside of the call.
    let max = latency["max"].as_u64().expect("ns");
    assert!(max <= figure("sleep_max_ns") && float(max) > 0.9 * float(figure("sleep_max_ns")), "{latency}");
    let slept = sleep["values"]["time_ns"].as_f64().expect("ns");
    assert!(slept <= float(figure("slept_ns")) && slept > 0.95 * float(figure("slept_ns")), "{slept}");
    // Each call on the stack of its function: those that are long exactly, the rest by estimate.
    let on_stacks = column(&captured, 1, "sleep_here", "[nanosleep]");
    assert!((float(on_stacks) - slept).abs() < 1.0, "{on_stacks} of {slept}\n{}", captured.folded());
    assert_eq!(column(&captured, 2, "sleep_here", "[nanosleep]"), figure("sleeps"));
    let failed = column(&captured, 3, "fail_here", "[openat]");
    println!("{failed} errors on stacks of {}", figure("failures"));
    assert_eq!(failed, column(&captured, 2, "fail_here", "[openat]"));
    assert!((float(failed) / float(figure("failures")) - 1.0).abs() < 0.15, "{failed}\n{}", captured.folded());
    for (function, call) in [("read_here", "[read]"), ("write_here", "[write]")] {
        assert!(column(&captured, 2, function, call) > 0, "{function}\n{}", captured.folded());
        assert_eq!(column(&captured, 3, function, call), 0, "{function}");
    }
    check_sums(&captured);
}

/// Checks that table, accounting and profile are of the same calls.
fn check_sums(captured: &Captured) {
    let rows = captured.report["tables"]["syscall"]["rows"].as_array().expect("rows");
    let sum = |value: &str| rows.iter().map(|row| row["values"][value].as_u64().expect("a value")).sum::<u64>();
    assert_eq!(captured.report["tables"]["syscall"]["missing"], 0);
    assert_eq!(sum("calls"), captured.accounting.hits, "{:#?}", captured.accounting);
    let by_length = &captured.report["origins"]["syscall"]["by_length"];
    assert_eq!(by_length["measured_ns"].as_u64(), Some(sum("time_ns")));
    assert!(captured.accounting.lost.is_empty(), "{:#?}", captured.accounting);
    // The profile estimates it, within what the report says of its own error.
    let (found, error) = (float(captured.total()), by_length["standard_error_ns"].as_f64().expect("ns"));
    let threshold = by_length["threshold_ns"].as_f64().expect("ns");
    println!("{found} of {} ns, standard error {error}", sum("time_ns"));
    assert!((found - float(sum("time_ns"))).abs() <= 4.0 * error + threshold, "{found}: {by_length}");
}

#[test]
fn a_million_short_calls_are_all_counted() {
    let Some(_kernel) = require_bpf() else { return };
    let captured = Record::new().args(["-e", "syscall"]).program(&calls().build(), &["many", &at_work(2)]).run();
    let made = captured.truth()["calls"].as_u64().expect("calls");
    let found = row(&captured, "getppid")["values"]["calls"].as_u64().expect("calls");
    println!("{found} of {made}; {} kept", captured.accounting.samples());
    assert_eq!(found, made);
    assert!(is_emulated() || made > 200_000, "{made}");
    assert!(is_emulated() || captured.accounting.sampled_out > made / 2, "{:#?}", captured.accounting);
    let on_stacks = float(column(&captured, 2, "shortest_here", "[getppid]"));
    assert!((on_stacks / float(made) - 1.0).abs() < 0.1, "{on_stacks} of {made}\n{}", captured.folded());
    check_sums(&captured);
}

#[test]
fn calls_and_samples_fit_one_recording_and_report_makes_it_again() {
    let Some(_kernel) = require_bpf() else { return };
    let captured = Record::new()
        .args(["-e", "cpu,offcpu,fault,syscall"])
        .rate(999)
        .program(&calls().build(), &["each", "20000"])
        .run();
    let directory = captured.path();
    let again = scratch();
    let arguments = ["report", directory.to_str().expect("UTF-8"), "-o", again.path().to_str().expect("UTF-8")];
    let ended = run_profiler(&arguments);
    assert_eq!(ended.code(), 0, "{}", ended.stderr);
    for name in ["syscall.svg", "syscall.folded", "fault.svg", "report.md", "report.json"] {
        let read = |directory: &std::path::Path| std::fs::read(directory.join(name)).expect("a file");
        assert!(read(&directory) == read(again.path()), "{name} differs");
    }
    let markdown = std::fs::read_to_string(directory.join("report.md")).expect("report.md");
    assert!(markdown.contains("### System calls") && markdown.contains("| `nanosleep` | `calls` |"), "{markdown}");
    let captured = captured.into_origin(Origin::Syscall);
    assert_eq!(row(&captured, "nanosleep")["values"]["calls"].as_u64(), captured.truth()["sleeps"].as_u64());
    check_sums(&captured);
}

#[test]
fn inside_a_pid_namespace_calls_and_faults_are_as_outside() {
    let Some(_kernel) = require_bpf() else { return };
    let Some(unshare) = find_program("unshare") else { return };
    let mut command = Command::new(unshare);
    command.args(["--pid", "--fork", "--mount-proc", "--kill-child"]);
    let captured =
        Record::under(command).args(["-e", "fault,syscall"]).program(&calls().build(), &["each", "500"]).run();
    let by_number = &captured.report["origins"]["fault"]["by_number"];
    assert_eq!(by_number["measured"].as_u64(), Some(captured.total()), "{by_number}");
    let captured = captured.into_origin(Origin::Syscall);
    let sleep = row(&captured, "nanosleep");
    assert_eq!(sleep["values"]["calls"].as_u64(), captured.truth()["sleeps"].as_u64(), "{sleep}");
    // As the namespace numbers it.
    assert!(sleep["labels"]["pid"].as_str().is_some_and(|pid| pid.len() < 3), "{sleep}");
    assert!(column(&captured, 2, "fail_here", "[openat]") > 0, "{}", captured.folded());
    check_sums(&captured);
}

#[test]
fn the_profiler_itself_is_in_no_recording_of_calls() {
    let Some(_kernel) = require_bpf() else { return };
    let recording = Record::new().args(["-a", "-e", "syscall"]).seconds(2).start();
    let pid = recording.pid().to_string();
    let captured = recording.finish();
    let rows = captured.report["tables"]["syscall"]["rows"].as_array().expect("rows");
    assert!(rows.iter().all(|row| row["labels"]["pid"] != pid), "{rows:#?}");
    assert!(captured.accounting.hits > 0, "{:#?}", captured.accounting);
}
