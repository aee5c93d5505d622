//! Allocations by allocators other than the C library's: linked in, preloaded, stripped, and sampled by the program itself.

use std::path::Path;

use profiler_common::event::Origin;
use profiler_tests::{Captured, Record, Workload, at_work, float, is_emulated, require_bpf};
use serde_json::Value;

use crate::record_alloc::{PARTS, allocs_go, allocs_rust, check_shares};
use crate::record_leaks::{follows_blocks, leaks, site};
use crate::record_unwinding::without_frame_pointers;

/// The C program with tcmalloc as a library, and with musl linked in.
fn tcmalloc() -> Workload {
    let linked = Workload::c("allocs").called("allocs-tcmalloc").flag("-Wl,--no-as-needed").flag("-ltcmalloc_minimal");
    without_frame_pointers(linked)
}

fn musl() -> Option<Workload> {
    Workload::musl("allocs").map(|workload| without_frame_pointers(workload.called("allocs-musl")))
}

/// The Rust program with the allocator of a feature.
fn linked_in(feature: &str) -> Workload {
    Workload::package("allocators", "allocators").flag("--features").flag(feature)
}

/// The same without symbols.
fn stripped(feature: &str) -> Workload {
    linked_in(feature).flag("--config").flag("profile.release.strip=true")
}

fn stripped_go() -> Option<Workload> {
    allocs_go().map(|workload| workload.called("allocs-go-stripped").flag("-ldflags=-s -w"))
}

pub(crate) fn workloads() -> Vec<Workload> {
    let mut all = vec![tcmalloc(), linked_in("jemalloc"), linked_in("mimalloc"), linked_in("sampled")];
    all.extend([stripped("jemalloc"), stripped("mimalloc"), Workload::preload_library()]);
    all.extend(musl());
    all.extend(stripped_go());
    all
}

/// Records all allocations that are chosen, whatever that costs: what it costs is for the benchmark.
fn record() -> Record {
    Record::new().args(["-e", "alloc", "--alloc-budget", "1000"])
}

const RUST_PARTS: [(&str, &str); 3] = [
    ("allocators::allocs::small_here", "small"),
    ("allocators::allocs::zeroed_here", "zeroed"),
    ("allocators::allocs::kept_here", "kept"),
];

/// Checks that what one function keeps is in use at the end, and nothing else is, where frees are seen.
fn check_kept(captured: Captured, function: &str) {
    if !follows_blocks(&captured) {
        return;
    }
    assert_eq!(captured.report["live"]["undecided"].as_str(), None, "{}", captured.report["live"]);
    let kept = float(captured.truth()["kept"].as_u64().expect("bytes"));
    let captured = captured.into_origin(Origin::Live);
    let found = float(captured.count(|stack| stack.has(function)));
    println!("{function}: {found} of {kept} in use, {} in all", captured.total());
    assert!((found / kept - 1.0).abs() < 0.1, "{found} of {kept}\n{}", captured.folded());
    assert!(float(captured.total()) < 1.1 * kept, "{} of {kept}\n{}", captured.total(), captured.folded());
}

/// What the report calls the functions that had probes.
fn event(captured: &Captured) -> &str {
    captured.report["origins"]["alloc"]["event"].as_str().expect("functions")
}

#[test]
fn tcmalloc_and_musl_allocate_where_they_say() {
    let Some(_kernel) = require_bpf() else { return };
    for workload in [Some(tcmalloc()), musl()].into_iter().flatten() {
        let captured = record().program(&workload.build(), &["paced", &at_work(4)]).run();
        println!("{}", event(&captured));
        check_shares(&captured, &PARTS);
        check_kept(captured, "kept_here");
    }
}

#[test]
fn allocators_that_rust_has_linked_in_are_found_by_their_symbols() {
    let Some(_kernel) = require_bpf() else { return };
    for (feature, function) in [("jemalloc", "_rjem_malloc"), ("mimalloc", "mi_malloc_aligned")] {
        let captured = record().program(&linked_in(feature).build(), &[&at_work(4)]).run();
        println!("{feature}: {}", event(&captured));
        assert!(event(&captured).contains(function), "{}", event(&captured));
        check_shares(&captured, &RUST_PARTS);
        check_kept(captured, "allocators::allocs::kept_here");
    }
}

#[test]
fn what_is_missing_of_stripped_programs_is_said_and_go_needs_no_symbols() {
    let Some(_kernel) = require_bpf() else { return };
    for feature in ["jemalloc", "mimalloc"] {
        let captured = record().program(&stripped(feature).build(), &[&at_work(1)]).run();
        let warnings = captured.report["warnings"].to_string();
        assert!(warnings.contains(&format!("has {feature} linked in")), "{warnings}");
    }
    // Of one that has all it needs, nothing of the kind is said.
    let captured = record().program(&allocs_rust().build(), &[&at_work(1)]).run();
    assert!(!captured.report["warnings"].to_string().contains("linked in"), "{}", captured.report["warnings"]);
    let Some(go) = stripped_go() else { return };
    let captured = record().program(&go.build(), &[&at_work(3)]).run();
    assert!(event(&captured).contains("runtime.mallocgc"), "{}", event(&captured));
    check_shares(&captured, &[("main.smallHere", "small"), ("main.largeHere", "large")]);
}

/// Records a program with the library, which chooses an allocation for each so many bytes. The profiler has it as well: a shell
/// between them would have allocations of its own.
fn preloaded(program: &Path, arguments: &[&str], period: &str) -> Captured {
    let mut record = record();
    record.command().env("LD_PRELOAD", Workload::preload_library().build()).env("PROFILER_ALLOC_PERIOD", period);
    record.program(program, arguments).run()
}

/// Sums of a column of the table of sizes.
fn sum(captured: &Captured, column: &str) -> u64 {
    let rows = captured.report["tables"]["alloc"]["rows"].as_array().expect("rows");
    rows.iter().map(|row| row["values"][column].as_u64().unwrap_or_else(|| panic!("{row}"))).sum()
}

#[test]
fn a_leak_is_found_beside_a_million_pairs_a_second_by_the_library() {
    let Some(_kernel) = require_bpf() else { return };
    let captured = preloaded(&leaks().build(), &["20", if is_emulated() { "50" } else { "1000" }], "8192");
    println!("{}\n{:#}", captured.report["origins"]["alloc"], captured.report["leaks"]);
    assert!(event(&captured).contains("otel_memory_alloc"), "{}", event(&captured));
    let truth = captured.truth();
    let figure = |field: &str| float(truth[field].as_u64().expect("a figure"));
    // Three standard errors of what is chosen by chance, and what the C library allocates itself.
    let bytes = float(captured.count(|stack| stack.has("churn_here")));
    let error = captured.report["origins"]["alloc"]["by_size"]["standard_error_bytes"].as_f64().expect("an error");
    println!("{bytes} of {} bytes, within {error}", figure("churned"));
    assert!((bytes - figure("churned")).abs() < 3.0 * error, "{bytes} of {}", figure("churned"));
    assert!(error < 0.03 * bytes, "{error}");
    if !follows_blocks(&captured) {
        return;
    }
    let first = &captured.report["leaks"][0];
    assert_eq!((first["site"][0].as_str(), first["verdict"].as_str()), (Some("leak_here"), Some("leak")), "{first}");
    assert_eq!(site(&captured, "fill_here")["verdict"], "cache");
    let leaks = captured.report["leaks"].as_array().expect("sites");
    assert_eq!(leaks.iter().filter(|leak| leak["verdict"] == "leak").count(), 1, "{leaks:#?}");
    // Every block that was announced is announced when it is freed: what was allocated is freed or in use.
    assert_eq!(captured.report["live"]["missed"], Value::from(0), "{}", captured.report["live"]);
    let (allocated, freed) = (sum(&captured, "allocated"), sum(&captured, "freed"));
    let captured = captured.into_origin(Origin::Live);
    let live: u64 = captured.profile.samples.iter().map(|sample| sample.values[2]).sum();
    assert_eq!(allocated - freed, live, "{allocated} allocated, {freed} freed");
    assert!(freed > 10 * live, "{freed} freed, {live} in use");
}

#[test]
fn a_rust_program_chooses_by_its_global_allocator() {
    let Some(_kernel) = require_bpf() else { return };
    let captured = record().program(&linked_in("sampled").build(), &[&at_work(8)]).run();
    assert!(event(&captured).contains("otel_memory_alloc"), "{}", event(&captured));
    // One in 512 KiB: some hundreds.
    check_shares(&captured, &RUST_PARTS);
}
