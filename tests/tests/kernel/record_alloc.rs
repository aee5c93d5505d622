//! Allocations: where they are made, how much, and that nothing is left in the target.

use std::fs::File;
use std::os::unix::fs::FileExt as _;

use profiler_common::event::Origin;
use profiler_tests::{Captured, Record, Target, Workload, at_work, float, is_emulated, require_bpf};

use crate::record_unwinding::without_frame_pointers;
use crate::servers::redis;

/// The program that allocates.
pub(crate) fn allocs() -> Workload {
    without_frame_pointers(Workload::c("allocs"))
}

/// The same in C++.
pub(crate) fn allocs_cpp() -> Workload {
    without_frame_pointers(Workload::cpp("allocs").called("allocs-cpp"))
}

/// The same in Rust and in Go.
pub(crate) fn allocs_rust() -> Workload {
    Workload::rust("allocs").called("allocs-rust")
}

pub(crate) fn allocs_go() -> Option<Workload> {
    Workload::go("allocs").map(|workload| workload.called("allocs-go"))
}

/// One whose own profiler chooses.
pub(crate) fn allocs_go_sampled() -> Option<Workload> {
    Workload::go("allocs_sampled").map(|workload| workload.called("allocs-go-sampled"))
}

/// Checks that each function has its share of what the program says, within what chance explains: two points at least, ten at
/// most.
pub(crate) fn check_shares(captured: &Captured, parts: &[(&str, &str)]) {
    let truth = captured.truth();
    let figure = |field: &str| truth[field].as_u64().expect("a figure");
    let all: u64 = parts.iter().map(|(_, field)| figure(field)).sum();
    let of = |function: &str| captured.count(|stack| stack.has(function));
    let found: u64 = parts.iter().map(|(function, _)| of(function)).sum();
    // Three standard errors of the total, which the samples' own variances state in KiB²: more than those of a share.
    let variance: u64 = captured.profile.samples.iter().map(|sample| sample.values[3]).sum();
    let error = 3.0 * float(variance).sqrt() * 1024.0 / float(captured.total());
    for (function, field) in parts {
        let (found, truth) = (float(of(function)) / float(found), float(figure(field)) / float(all));
        println!("{function}: {:.2} % of {:.2} %, within {:.2}", found * 100.0, truth * 100.0, error * 100.0);
        assert!(
            (found - truth).abs() < error.clamp(0.02, 0.1),
            "{function}: {found} of {truth}\n{}",
            captured.folded()
        );
    }
    // What the C library and the loader allocate for themselves is next to nothing.
    assert!(float(found) > 0.98 * float(captured.total()), "{}", captured.folded());
    assert!(captured.accounting.lost.is_empty(), "{:#?}", captured.accounting);
}

pub(crate) const PARTS: [(&str, &str); 5] = [
    ("malloc_here", "malloc"),
    ("calloc_here", "calloc"),
    ("realloc_here", "realloc"),
    ("aligned_here", "aligned"),
    ("kept_here", "kept"),
];

#[test]
fn allocations_are_where_they_are_made() {
    let Some(_kernel) = require_bpf() else { return };
    let captured = Record::new().args(["-e", "alloc"]).program(&allocs().build(), &["paced", &at_work(8)]).run();
    check_shares(&captured, &PARTS);
    let truth = captured.truth();
    let all: u64 = PARTS.iter().map(|(_, field)| truth[*field].as_u64().expect("bytes")).sum();
    let by_size = &captured.report["origins"]["alloc"]["by_size"];
    println!("{} of {all} bytes: {by_size}", captured.total());
    // Windows stand for the rest of the time; a paced program does as much in one as in another, but where others have its CPU.
    let most = if by_size["share_of_time"].as_f64() < Some(1.0) { 0.3 } else { 0.1 };
    assert!(
        is_emulated() || (float(captured.total()) / float(all) - 1.0).abs() < most,
        "{} of {all}",
        captured.total()
    );
    assert!(captured.report["overhead"]["trap_ns"].as_u64() > Some(0));
    let stacks = captured.stacks.iter().filter(|stack| stack.has("malloc_here") || stack.has("aligned_here"));
    assert!(stacks.clone().all(|stack| stack.has("main") && stack.marker().is_none()), "{}", captured.folded());
    assert!(stacks.count() > 0);
}

#[test]
fn a_program_that_does_nothing_else_keeps_its_shares_and_is_told_of() {
    let Some(_kernel) = require_bpf() else { return };
    let captured = Record::new().args(["-e", "alloc"]).program(&allocs().build(), &["fast", &at_work(6)]).run();
    check_shares(&captured, &PARTS);
    let by_size = &captured.report["origins"]["alloc"]["by_size"];
    println!("{by_size}");
    assert!(by_size["share_of_time"].as_f64().is_some_and(|share| share < 0.3), "{by_size}");
    let warnings = captured.report["warnings"].to_string();
    assert!(warnings.contains("too low"), "{warnings}");
}

#[test]
fn operator_new_is_counted_once() {
    let Some(_kernel) = require_bpf() else { return };
    let captured = Record::new().args(["-e", "alloc"]).program(&allocs_cpp().build(), &[&at_work(4)]).run();
    check_shares(&captured, &[("one_here()", "one"), ("many_here()", "many")]);
}

#[test]
fn rust_and_go_allocate_where_they_say() {
    let Some(_kernel) = require_bpf() else { return };
    let record = || Record::new().args(["-e", "alloc", "--alloc-budget", "1000"]);
    let captured = record().program(&allocs_rust().build(), &[&at_work(3)]).run();
    let shares = ["small", "zeroed", "kept"].map(|kind| (format!("allocs_rust::{kind}_here"), kind));
    check_shares(&captured, &shares.each_ref().map(|(function, field)| (function.as_str(), *field)));
    let Some(go) = allocs_go() else { return };
    let captured = record().program(&go.build(), &[&at_work(3)]).run();
    let shares = [("main.smallHere", "small"), ("main.largeHere", "large")];
    check_shares(&captured, &shares);
    assert!(
        captured.report["origins"]["alloc"]["event"].as_str().is_some_and(|event| event.contains("runtime.mallocgc"))
    );
    // What a collector frees is not followed.
    assert!(captured.report["origins"]["live"].is_null());
}

#[test]
fn nothing_is_left_in_the_target() {
    let Some(_kernel) = require_bpf() else { return };
    let target = Target::start(&allocs().build(), &["paced", "60"]);
    let text_before = text_of_libc(target.pid());
    let captured = Record::new().args(["-e", "alloc"]).pid(target.pid()).seconds(2).run();
    assert!(captured.total() > 0, "{}", captured.folded());
    assert_eq!(text_of_libc(target.pid()), text_before);
}

/// The code of a process's C library, as it is in its memory.
pub(crate) fn text_of_libc(pid: u32) -> Vec<u8> {
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).expect("its mappings");
    let line = maps.lines().find(|line| line.contains("/libc.so") && line.contains(" r-xp ")).expect("the C library");
    let range = line.split_whitespace().next().expect("a range");
    let (start, end) = range.split_once('-').expect("two addresses");
    let address = |text| u64::from_str_radix(text, 16).expect("an address");
    let mut text = vec![0; usize::try_from(address(end) - address(start)).expect("a size")];
    let memory = File::open(format!("/proc/{pid}/mem")).expect("its memory");
    memory.read_exact_at(&mut text, address(start)).expect("its code");
    text
}

#[test]
fn redis_allocates_by_jemalloc_on_whole_stacks() {
    let Some(_kernel) = require_bpf() else { return };
    let Some(server) = redis() else { return };
    let captured = Record::new().args(["-e", "cpu,alloc"]).pid(server.target.pid()).seconds(5).run();
    let captured = captured.into_origin(Origin::Alloc);
    let by_size = &captured.report["origins"]["alloc"]["by_size"];
    println!("{} bytes, {by_size}, {:#?}", captured.total(), captured.accounting);
    assert!(captured.accounting.samples() > 200, "{:#?}", captured.accounting);
    let whole = float(captured.accounting.complete) / float(captured.accounting.samples());
    assert!(whole > 0.99, "{:#?}", captured.accounting);
    assert!(captured.count(|stack| stack.has("readQueryFromClient")) > captured.total() / 2, "{}", captured.folded());
}

#[test]
fn every_allocation_is_recorded_until_it_costs_too_much() {
    let Some(_kernel) = require_bpf() else { return };
    let record = || Record::new().args(["-e", "alloc", "--exact"]);
    let captured = record().args(["--alloc-budget", "1000"]).program(&allocs().build(), &["paced", &at_work(3)]).run();
    let truth = captured.truth();
    let found = |function: &str| captured.count(|stack| stack.has(function));
    // Probes come some milliseconds, and as many rounds, after the program's first instruction; from then on nothing is missing.
    let rounds = found("malloc_here") / (8 * 24);
    assert!(rounds * 20 > truth["rounds"].as_u64().expect("rounds") * 19, "{rounds} {truth}");
    assert!(found("calloc_here").abs_diff(500 * rounds) <= 500, "{rounds}\n{}", captured.folded());
    assert!(found("realloc_here").abs_diff(640 * rounds) <= 640, "{rounds}\n{}", captured.folded());
    assert!(found("aligned_here").abs_diff(512 * rounds) <= 4096, "{rounds}\n{}", captured.folded());
    assert!(found("kept_here").abs_diff(600 * rounds) <= 6000, "{rounds}\n{}", captured.folded());
    let by_size = &captured.report["origins"]["alloc"]["by_size"];
    assert_eq!((by_size["exact"].as_bool(), by_size["stopped_after_ns"].as_u64()), (Some(true), None), "{by_size}");
    assert!(captured.accounting.lost.is_empty() && captured.accounting.sampled_out == 0, "{:#?}", captured.accounting);
    // A program that does nothing else: it ends by itself, and what there is of it is not made into more.
    let captured = record().program(&allocs().build(), &["fast", &at_work(4)]).run();
    let by_size = &captured.report["origins"]["alloc"]["by_size"];
    println!("{by_size}");
    let (after, duration) = (by_size["stopped_after_ns"].as_u64(), captured.report["duration_ns"].as_u64());
    assert!(after.is_some() && after < duration, "{by_size}");
    assert!(captured.report["warnings"].to_string().contains("--exact ended after"), "{}", captured.report["warnings"]);
    assert!(captured.total() <= by_size["measured_bytes"].as_u64().expect("bytes"), "{by_size}");
}

#[test]
fn go_says_itself_what_it_has_chosen() {
    let Some(_kernel) = require_bpf() else { return };
    let Some(go) = allocs_go_sampled() else { return };
    let captured = Record::new().args(["-e", "alloc"]).program(&go.build(), &[&at_work(4)]).run();
    let event = captured.report["origins"]["alloc"]["event"].as_str().expect("functions");
    assert!(event.contains("runtime.mProf_Malloc") && !event.contains("runtime.mallocgc"), "{event}");
    check_shares(&captured, &[("main.smallHere", "small"), ("main.largeHere", "large"), ("main.hugeHere", "huge")]);
    let truth = captured.truth();
    let all: u64 = ["small", "large", "huge"].iter().map(|field| truth[*field].as_u64().expect("bytes")).sum();
    println!("{} of {all}: {}", captured.total(), captured.report["origins"]["alloc"]["by_size"]);
    // One in 64 KiB, of 100 MB: three standard errors are 8 in 100; in all it is what those were that were chosen.
    assert!((float(captured.total()) / float(all) - 1.0).abs() < 0.1, "{} of {all}", captured.total());
    // Few probes were hit: not each allocation's.
    assert!(captured.accounting.samples() < all / (32 << 10), "{:#?}", captured.accounting);
}
