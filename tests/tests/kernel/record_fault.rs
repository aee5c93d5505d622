//! Page faults: how many, of which kind, and who made them.

use profiler_common::event::Origin;
use profiler_tests::{Captured, Record, Workload, at_work, float, require_bpf, run_profiler, scratch};

/// The program that faults pages in.
fn faults() -> Workload {
    Workload::c("faults")
}

/// Faults of a kind on stacks with a function.
fn of_kind(captured: &Captured, function: &str, leaf: &str) -> u64 {
    captured.count(|stack| stack.has(function) && stack.leaf() == leaf)
}

#[test]
fn every_fault_has_its_kind_and_its_function() {
    let Some(_kernel) = require_bpf() else { return };
    // A directory that is on a disk wherever /tmp is not.
    let directory = std::env::current_dir().expect("a directory");
    let directory = directory.to_str().expect("UTF-8");
    let captured = Record::new().args(["-e", "fault"]).program(&faults().build(), &["each", directory]).run();
    let truth = captured.truth();
    let figure = |field: &str| truth[field].as_u64().expect("a figure");
    for (function, kind, field) in [
        ("touch_fresh", "[minor fault]", "fresh"),
        ("read_into", "[minor fault]", "written"),
        ("touch_file", "[major fault]", "file_major"),
        ("touch_file", "[minor fault]", "file_minor"),
    ] {
        let found = of_kind(&captured, function, kind);
        println!("{function} {kind}: {found} of {}", figure(field));
        assert_eq!(found, figure(field), "{function} {kind}\n{}", captured.folded());
    }
    // What the kernel did on the program's behalf is on the stack of the call.
    assert!(captured.stacks.iter().any(|stack| stack.has("read_into") && stack.has("vfs_read_[k]")));
    let sampled = &captured.report["origins"]["fault"]["by_number"];
    assert_eq!(sampled["weight"], 1, "{sampled}");
    assert_eq!(sampled["measured"].as_u64(), Some(captured.total()), "{sampled}");
    assert!(captured.accounting.lost.is_empty() && captured.accounting.sampled_out == 0, "{:#?}", captured.accounting);
}

#[test]
fn more_faults_than_can_be_kept_are_counted_and_add_up() {
    let Some(_kernel) = require_bpf() else { return };
    let captured = Record::new().args(["-e", "fault"]).program(&faults().build(), &["many", &at_work(3)]).run();
    let truth = captured.truth();
    let fresh = truth["fresh"].as_u64().expect("faults");
    let by_number = &captured.report["origins"]["fault"]["by_number"];
    let (measured, weight) = (by_number["measured"].as_u64().expect("faults"), by_number["weight"].as_u64());
    let found = of_kind(&captured, "touch_fresh", "[minor fault]");
    println!("{found} found, {measured} counted, {fresh} by the program; one counts for up to {weight:?}");
    // What the program does before and after are some hundred more; where the kernel passed on one of several, it is no
    // exact number.
    let period = by_number["period"].as_u64().expect("a period");
    let most = fresh + 1_000 + if period > 1 { fresh / 100 } else { 0 };
    let least = if period > 1 { fresh - fresh / 100 } else { fresh };
    assert!((least..most).contains(&measured), "{measured} for {fresh}: {by_number}");
    assert!((float(found) / float(fresh) - 1.0).abs() < 0.01, "{found} for {fresh}\n{}", captured.folded());
    assert!(captured.accounting.samples() < fresh / 4, "{:#?}", captured.accounting);
    assert!(captured.accounting.lost.is_empty(), "{:#?}", captured.accounting);
    assert!(captured.not_delivered() < 0.001, "{:#?}", captured.accounting);
}

#[test]
fn faults_and_samples_fit_one_recording_and_report_makes_it_again() {
    let Some(_kernel) = require_bpf() else { return };
    let captured =
        Record::new().args(["-e", "cpu,fault"]).rate(999).program(&faults().build(), &["many", &at_work(1)]).run();
    let directory = captured.path();
    let again = scratch();
    let arguments = ["report", directory.to_str().expect("UTF-8"), "-o", again.path().to_str().expect("UTF-8")];
    let ended = run_profiler(&arguments);
    assert_eq!(ended.code(), 0, "{}", ended.stderr);
    for name in ["cpu.svg", "fault.svg", "fault.folded", "report.md", "report.json"] {
        let read = |directory: &std::path::Path| std::fs::read(directory.join(name)).expect("a file");
        assert!(read(&directory) == read(again.path()), "{name} differs");
    }
    let markdown = std::fs::read_to_string(directory.join("report.md")).expect("report.md");
    assert!(markdown.contains("Kinds of fault"), "{markdown}");
    assert!(captured.share(|_| true, |stack| stack.has("touch_fresh")) > 0.8, "{}", captured.folded());
    assert!(captured.into_origin(Origin::Fault).total() > 0);
}
