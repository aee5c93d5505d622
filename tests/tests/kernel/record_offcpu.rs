//! Time off the CPU: how long threads waited, where, and for what.

use std::collections::BTreeMap;

use profiler_common::event::Origin;
use profiler_tests::{
    Captured, Record, Target, Workload, at_work, float, is_emulated, require_bpf, run_profiler, scratch,
};

/// The program whose threads wait.
fn waits() -> Workload {
    Workload::c("waits")
}

/// Time of the threads of one name by reason, ns.
fn by_reason(captured: &Captured, thread: &str) -> BTreeMap<&'static str, f64> {
    let mut times = BTreeMap::new();
    for sample in &captured.profile.samples {
        if captured.profile.threads[sample.thread as usize].thread_name == thread {
            let reason = Origin::OffCpu.reason_name(sample.reason).expect("a reason");
            *times.entry(reason).or_default() += float(sample.values[1]);
        }
    }
    times
}

/// Time on stacks with a function, ns.
fn time_in(captured: &Captured, function: &str) -> f64 {
    float(captured.count(|stack| stack.has(function)))
}

/// Threads of the workload: name, the reason of its waits, the function it waits in.
const WAITERS: [(&str, &str, &str); 8] = [
    ("sleeper", "sleep", "sleep_here"),
    ("lock", "lock", "lock_here"),
    ("pipe", "pipe", "pipe_here"),
    ("poll", "poll", "poll_here"),
    ("network", "network", "network_here"),
    ("disk", "disk", "disk_here"),
    ("fault", "fault", "fault_here"),
    ("child", "child", "child_here"),
];

/// Deviation of a time that is allowed. Interrupts are in no thread's CPU time on some kernels, so that the workload takes
/// them for waits; on an emulated CPU they take a tenth of all time and more.
fn tolerance() -> f64 {
    if is_emulated() { 0.3 } else { 0.05 }
}

#[test]
fn every_kind_of_wait_has_its_time_its_reason_and_its_function() {
    let Some(_kernel) = require_bpf() else { return };
    // A directory that is on a disk wherever /tmp is not.
    let directory = std::env::current_dir().expect("a directory");
    let directory = directory.to_str().expect("UTF-8");
    let captured = Record::new().args(["-e", "offcpu"]).program(&waits().build(), &["all", "10", directory]).run();
    let truth = captured.truth();
    let figure = |thread: &str, field: &str| truth[thread][field].as_f64().expect("a figure");
    for (thread, reason, function) in WAITERS {
        // The virtual machine's files are in memory.
        if is_emulated() && ["disk", "fault"].contains(&thread) {
            continue;
        }
        if truth[thread]["works"] != true || figure(thread, "blocked_ns") < 1e8 {
            println!("{thread}: cannot wait here");
            continue;
        }
        let leaf = format!("[{reason}]");
        let of_reason = |wanted: &str| float(captured.count(|stack| stack.has(function) && stack.leaf() == wanted));
        let found = of_reason(&leaf);
        let (least, most) = (figure(thread, "blocked_ns"), figure(thread, "most_ns"));
        println!("{thread}: {:+.2} % of {:.3} to {:.3} s", (found / least - 1.0) * 100.0, least / 1e9, most / 1e9);
        let range = least * (1.0 - tolerance())..most * (1.0 + tolerance());
        assert!(range.contains(&found), "{thread}: {found} for {range:?}\n{}", captured.folded());
        // What is left is waiting for a CPU.
        let queued: f64 = ["[run queue]", "[preempted]"].into_iter().map(of_reason).sum();
        let others = time_in(&captured, function) - found - queued;
        assert!(others < 0.01 * found, "{thread}: {others}\n{}", captured.folded());
    }
    for thread in ["spin-0", "spin-1"] {
        let times = by_reason(&captured, thread);
        let found: f64 = times.values().sum();
        let expected = figure(thread, "delay_ns");
        println!("{thread}: {:+.2} % of {:.3} s: {times:?}", (found / expected - 1.0) * 100.0, expected / 1e9);
        assert!((found / expected - 1.0).abs() < tolerance(), "{thread}: {found} for {expected}: {times:?}");
        assert!(times["preempted"] > 0.95 * found, "{thread}: {times:?}");
    }
    let in_spin = captured.share(|stack| stack.has("spin"), |stack| stack.has("spin_here"));
    assert!(in_spin > 0.98, "{in_spin}\n{}", captured.folded());
    assert!(captured.accounting.lost.is_empty(), "{:#?}", captured.accounting);
    check_estimate(&captured);
}

/// Checks that the profile's time is the exact one, within what the report says of its own error.
fn check_estimate(captured: &Captured) {
    let by_length = &captured.report["origins"]["offcpu"]["by_length"];
    let figure = |field: &str| by_length[field].as_f64().expect("a figure");
    let (measured, error) = (figure("measured_ns"), figure("standard_error_ns"));
    let found = float(captured.total());
    println!(
        "{:+.3} % of {:.3} s, standard error {:.3} %",
        (found / measured - 1.0) * 100.0,
        measured / 1e9,
        error / measured * 100.0
    );
    // Four of them: one in 16,000 goes beyond by chance.
    assert!((found - measured).abs() <= 4.0 * error + figure("threshold_ns"), "{found} for {measured}: {by_length}");
}

#[test]
fn a_hang_is_exact_beside_millions_of_short_waits() {
    let Some(_kernel) = require_bpf() else { return };
    let captured = Record::new().args(["-e", "offcpu"]).program(&waits().build(), &["hang", "5"]).run();
    let truth = captured.truth();
    let hung = truth["hung_ns"].as_f64().expect("ns");
    let found = time_in(&captured, "hang_here");
    println!(
        "{found} of {hung} ns beside {} rounds; {} waits sampled out",
        truth["rounds"], captured.accounting.sampled_out
    );
    assert!((found / hung - 1.0).abs() < 0.002, "{found} for {hung}");
    assert!(is_emulated() || captured.accounting.sampled_out > 100_000, "{:#?}", captured.accounting);
    let exchanged = captured.count(|stack| stack.has("exchange_here"));
    assert!(exchanged > 0, "{}", captured.folded());
    assert!(captured.accounting.lost.is_empty(), "{:#?}", captured.accounting);
    check_estimate(&captured);
}

#[test]
fn threads_asleep_through_the_whole_recording_show_all_of_it() {
    let Some(_kernel) = require_bpf() else { return };
    let target = Target::start(&waits().build(), &["asleep"]);
    let captured = Record::new().args(["-e", "offcpu"]).seconds(2).pid(target.pid()).run();
    let duration = captured.report["duration_ns"].as_f64().expect("ns");
    for (thread, reason, function) in
        [("condition", "[lock]", "asleep_here"), ("reader", "[pipe]", "listen_here"), ("waits", "[sleep]", "pause_us")]
    {
        let found = float(captured.count(|stack| stack.has(function) && stack.leaf() == reason));
        println!("{thread}: {found} of {duration} ns");
        assert!((found / duration - 1.0).abs() < 0.01, "{thread}: {found} for {duration}\n{}", captured.folded());
        // Each from its first function on.
        let root = if thread == "waits" { "main" } else { "sleep_for_ever" };
        let rooted = captured.share(|stack| stack.has(function), |stack| stack.has(root));
        assert!(rooted > 0.99, "{thread}\n{}", captured.folded());
    }
    assert_eq!(captured.accounting.complete, 3, "{:#?}", captured.accounting);
}

#[test]
fn both_origins_fit_one_recording_and_report_makes_it_again() {
    let Some(_kernel) = require_bpf() else { return };
    let captured = Record::new()
        .args(["-e", "cpu,offcpu"])
        .rate(999)
        .program(&Workload::c("threads").build(), &["1", "0.2", "2"])
        .run();
    assert_eq!(captured.profile.origin, Origin::Cpu);
    let directory = captured.path();
    let again = scratch();
    let arguments = ["report", directory.to_str().expect("UTF-8"), "-o", again.path().to_str().expect("UTF-8")];
    let ended = run_profiler(&arguments);
    assert_eq!(ended.code(), 0, "{}", ended.stderr);
    let names = ["cpu", "offcpu", "wall"].map(|origin| [format!("{origin}.svg"), format!("{origin}.folded")]);
    for name in names.as_flattened().iter().map(String::as_str).chain(["report.md", "report.json"]) {
        let read = |directory: &std::path::Path| std::fs::read(directory.join(name)).expect("a file");
        assert!(read(&directory) == read(again.path()), "{name} differs");
    }
    // All time is in one picture.
    let wall = std::fs::read_to_string(directory.join("wall.folded")).expect("wall.folded");
    let wall: u64 = wall.lines().filter_map(|line| line.rsplit_once(' ')?.1.parse::<u64>().ok()).sum();
    let on_cpu = captured.profile.totals()[1];
    // A thread is on a CPU, or waits.
    let samples = captured.count(|stack| stack.has("thread_hot"));
    let captured = captured.into_origin(Origin::OffCpu);
    assert!(samples > 0 && captured.total() > 0);
    assert_eq!(wall, on_cpu + captured.total());
    let main = float(captured.count(|stack| stack.has("main") && stack.leaf() == "[lock]"));
    println!("main waits {:.3} s for its threads", main / 1e9);
    assert!(main > 1e9 * 0.5, "{}", captured.folded());
}

#[test]
fn waits_alone_take_no_samples() {
    let Some(_kernel) = require_bpf() else { return };
    let captured = Record::new().args(["-e", "offcpu"]).program(&Workload::c("burn").build(), &[&at_work(1)]).run();
    assert!(captured.report["origins"].get("cpu").is_none());
    assert!(!captured.path().join("cpu.svg").exists());
    assert_eq!(captured.profile.origin, Origin::OffCpu);
    let markdown = std::fs::read_to_string(captured.path().join("report.md")).expect("report.md");
    assert!(markdown.contains("What was waited for") && !markdown.contains("Summary: cpu"), "{markdown}");
}
