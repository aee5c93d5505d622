//! What must not wear out: very many stacks, processes and libraries that come and go, memory and accounting.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use profiler_tests::{Captured, Record, Stack, Target, Workload, enough, float, long_tests, require_bpf, scratch};

use crate::record_unwinding::without_frame_pointers;

/// Most memory that a recording of many stacks or processes may take: what is known of each stack and each process stays
/// to the end, and makes some 90 MB in the full time.
const MEMORY_BOUND: u64 = 128 << 20;

/// Share of the samples of code that has just come whose stacks must be whole.
const LEAST_OF_NEW: f64 = 0.95;

/// Checks that memory is bounded, and prints what the profiler cost.
fn check_cost(captured: &Captured) {
    let overhead = &captured.report["overhead"];
    let ns = |name: &str| overhead[name].as_f64().expect("ns");
    let lasted = captured.report["duration_ns"].as_f64().expect("ns");
    println!(
        "{:.1} MB resident, agent {:.2} % of a CPU, BPF {:.2} %, {:.0} ns a sample: {overhead}",
        float(captured.peak_rss_bytes()) / 1e6,
        ns("agent_cpu_ns") / lasted * 100.0,
        ns("bpf_ns") / lasted * 100.0,
        ns("bpf_ns_per_sample"),
    );
    assert!(captured.peak_rss_bytes() < MEMORY_BOUND, "{overhead}");
}

#[test]
fn tens_of_thousands_of_stacks_at_9999_hz_are_as_good_at_the_end_as_at_the_start() {
    const RATE: u32 = 9999;
    let Some(_kernel) = require_bpf() else { return };
    let seconds = if long_tests() { 600 } else { 20 };
    let many = without_frame_pointers(Workload::c("many").called("many-nofp")).build();
    let target = Target::start(&many, &[&seconds.to_string(), "14", "quarters"]);
    let record = Record::new().rate(RATE).patience(Duration::from_secs(seconds));
    let captured = record.pid(target.pid()).run();
    let truth = target.truth();
    let distinct = &captured.report["origins"]["cpu"]["stacks"];
    println!("{} samples, {distinct} stacks: {:#?}", captured.total(), captured.accounting);
    check_cost(&captured);
    assert!(distinct.as_u64() > Some(10_000), "{distinct} stacks of {} samples", captured.total());
    // For each quarter: the share that is whole, and the samples there are of those that its CPU time makes.
    let quarters = [0, 1, 2, 3].map(|quarter| {
        let of_quarter = |stack: &Stack| stack.process == format!("quarter-{quarter}");
        let whole = captured.share(of_quarter, |stack| stack.marker().is_none() && stack.has("main"));
        let expected = truth["quarters_ns"][quarter].as_f64().expect("ns") / 1e9 * f64::from(RATE);
        (whole, float(captured.count(of_quarter)) / expected)
    });
    println!("whole, and found of what was expected, by quarter: {quarters:.4?}");
    let [(first_whole, first_found), .., (last_whole, last_found)] = quarters;
    assert!(first_whole >= 0.99 && last_whole >= 0.99, "{quarters:?}");
    assert!(last_whole >= first_whole - 0.005, "{quarters:?}");
    // The recording begins a little late, and what else runs here takes its share of the timer's ticks.
    assert!(last_found >= first_found - 0.03, "{quarters:?}");
    let lost: u64 = captured.accounting.lost.values().sum();
    assert!(lost <= captured.accounting.hits / 1000, "{:#?}", captured.accounting);
}

/// Copies of a library: each is another object, having no build ID to tell that they are the same.
fn copies(directory: &tempfile::TempDir, count: usize) -> Vec<PathBuf> {
    let library =
        Workload::c("plugin").called("libplugin.so").flag("-shared").flag("-fPIC").flag("-Wl,--build-id=none");
    let library = without_frame_pointers(library).build();
    let name = |number| directory.path().join(format!("libplugin-{number}.so"));
    let copies: Vec<_> = (0..count).map(name).collect();
    for copy in &copies {
        fs::copy(&library, copy).expect("copy a library");
    }
    copies
}

#[test]
fn libraries_that_were_opened_10_ms_ago_are_unwound() {
    const LIBRARIES: usize = 12;
    let Some(_kernel) = require_bpf() else { return };
    let directory = scratch();
    let libraries = copies(&directory, LIBRARIES);
    let mut arguments = vec!["10", "100"];
    arguments.extend(libraries.iter().map(|path| path.to_str().expect("UTF-8")));
    let in_library = |stack: &Stack| stack.user_leaf() == "plugin_hot";
    let chain = ["main", "in_library", "plugin_entry", "plugin_hot"];
    let target = Target::start(&without_frame_pointers(Workload::c("reopens")).build(), &arguments);
    let captured = Record::new().rate(999).pid(target.pid()).run();
    let whole = captured.share(in_library, |stack| stack.marker().is_none() && stack.has_chain(&chain));
    println!("{:.2} % of {} are whole", whole * 100.0, captured.count(in_library));
    assert_eq!(target.truth()["libraries"], LIBRARIES);
    assert!(captured.count(in_library) > enough(900), "{}", captured.folded());
    assert!(whole >= LEAST_OF_NEW, "{whole}\n{}", captured.folded());
}

#[test]
fn processes_that_live_for_200_ms_are_unwound() {
    let Some(_kernel) = require_bpf() else { return };
    let directory = scratch();
    let library = copies(&directory, 1).remove(0);
    let churn = without_frame_pointers(Workload::c("churn")).build();
    let target = Target::start(&churn, &["1", "20", "60", "200", library.to_str().expect("UTF-8")]);
    let captured = Record::new().rate(999).args(["--children"]).pid(target.pid()).run();
    let truth = target.truth();
    // All that a child does after its exec, the loader's work too.
    let short = |stack: &Stack| stack.process == "exe";
    let whole = captured.share(short, |stack| stack.marker().is_none() && stack.has("_start"));
    println!("{:.2} % of {} are whole: {truth}", whole * 100.0, captured.count(short));
    assert_eq!(truth["processes"], 21);
    assert!(captured.count(short) > enough(2000), "{}", captured.folded());
    assert!(whole >= LEAST_OF_NEW, "{whole}\n{}", captured.folded());
}

#[test]
fn processes_that_fork_exec_and_open_libraries_all_the_time_are_accounted_for_in_bounded_memory() {
    let Some(_kernel) = require_bpf() else { return };
    let seconds = if long_tests() { 60 } else { 10 };
    let directory = scratch();
    let library = copies(&directory, 1).remove(0);
    let churn = without_frame_pointers(Workload::c("churn")).build();
    let arguments = ["24", "1000000", &seconds.to_string(), "2", library.to_str().expect("UTF-8")];
    let record = Record::new().rate(999).patience(Duration::from_secs(seconds)).program(&churn, &arguments);
    // That the accounting adds up is checked of every recording.
    let captured = record.run();
    let truth = captured.truth();
    println!("{truth}: {} samples, {:#?}", captured.total(), captured.accounting);
    check_cost(&captured);
    let in_library = |stack: &Stack| stack.user_leaf() == "plugin_hot";
    let whole = captured.share(in_library, |stack| stack.marker().is_none());
    println!("{:.2} % of {} in the library are whole", whole * 100.0, captured.count(in_library));
    assert!(whole >= LEAST_OF_NEW, "{whole}\n{}", captured.folded());
    assert!(truth["processes"].as_u64() > Some(24 * 10), "{truth}");
    assert!(captured.accounting.lost.is_empty(), "{:#?}", captured.accounting);
    // Nobody's time is missing. What a child does before its exec is its parent's name's.
    let expected = truth["cpu_ns"].as_f64().expect("ns") / 1e9 * 999.0;
    let found = float(captured.total()) / expected;
    println!("{found:.3} samples for each that the CPU time makes");
    assert!((0.9..1.1).contains(&(found + captured.not_delivered().max(0.0))), "{found}: {:#?}", captured.accounting);
}
