//! Names of frames: inlined functions, run-time code, stripped programs, what is deleted or opened meanwhile.

use std::fs;

use profiler_tests::{Captured, Record, Target, Workload, at_work, enough, float, is_emulated, require_bpf, scratch};

/// Records a running workload for two seconds.
fn record(workload: &Workload, arguments: &[&str]) -> Captured {
    let target = Target::start(&workload.build(), arguments);
    let captured = Record::new().rate(999).seconds(2).pid(target.pid()).run();
    assert!(captured.total() > enough(300), "{}", captured.folded());
    captured
}

/// The share of stacks with such a chain, of all that are in the program at all.
fn check_chain(captured: &Captured, chain: &[&str]) {
    let found = captured.share(|stack| stack.user_leaf() != "", |stack| stack.has_chain(chain));
    assert!(found >= 0.95, "{found} have {chain:?}\n{}", captured.folded());
}

#[test]
fn inlined_functions_are_frames_of_their_own_and_marked() {
    let Some(_kernel) = require_bpf() else { return };
    let captured = record(&Workload::c("inlined"), &["30"]);
    check_chain(&captured, &["main", "outer", "inlined_middle_[i]", "inlined_inner_[i]"]);
    let hotspot = &captured.report["hotspots"][0];
    assert_eq!(hotspot["function"], "inlined_inner", "{hotspot}");
    assert!(hotspot["file"].as_str().is_some_and(|file| file.ends_with("inlined.c")), "{hotspot}");
    // pprof keeps them as lines of one location.
    let Some(tree) = captured.go_pprof(&["-peek=^outer$", "-sample_index=samples"]) else { return };
    assert!(tree.contains("inlined_middle"), "{tree}");
}

#[test]
fn code_made_at_run_time_is_named_by_its_map_and_marked() {
    let Some(_kernel) = require_bpf() else { return };
    let target = Target::start(&Workload::c("jit").build(), &["30", "map"]);
    let map = format!("/tmp/perf-{}.map", target.pid());
    let captured = Record::new().rate(999).seconds(2).pid(target.pid()).run();
    // The program removes it when it ends by itself, which it is not let.
    fs::remove_file(map).expect("remove the perf map");
    check_chain(&captured, &["main", "jit_caller", "jit_hot(Array, int)_[j]"]);
}

#[test]
fn code_made_at_run_time_without_a_map_is_labelled_and_keeps_its_callers() {
    let Some(_kernel) = require_bpf() else { return };
    let captured = record(&Workload::c("jit"), &["30"]);
    check_chain(&captured, &["main", "jit_caller", "[JIT: jit]_[j]"]);
    let objects = captured.report["objects"].as_array().expect("objects");
    let jit = objects.iter().find(|object| object["path"] == "[jit]").unwrap_or_else(|| panic!("{objects:#?}"));
    assert_eq!(jit["named"], 0, "a label is no name: {jit}");
    assert!(jit["advice"].as_str().is_some_and(|advice| advice.contains("perf map")), "{jit}");
}

#[test]
fn a_stripped_program_shows_object_and_offset() {
    let Some(_kernel) = require_bpf() else { return };
    let captured = record(&Workload::c("burn").called("burn-stripped").flag("-s"), &["30"]);
    let nameless = |frame: &str| frame.starts_with("burn-stripped+0x");
    let found = captured.share(|stack| stack.user_leaf() != "", |stack| nameless(stack.user_leaf()));
    assert!(found >= 0.95, "{found}\n{}", captured.folded());
    let objects = captured.report["objects"].as_array().expect("objects");
    let own = objects.iter().find(|object| object["path"].as_str().is_some_and(|path| path.ends_with("burn-stripped")));
    let own = own.unwrap_or_else(|| panic!("{objects:#?}"));
    assert_ne!(own["advice"], "", "nothing is said about the missing symbols: {own}");
}

#[test]
fn the_same_function_of_a_stripped_program_has_one_offset_in_every_run() {
    let Some(_kernel) = require_bpf() else { return };
    let workload = Workload::c("burn").called("burn-stripped").flag("-s");
    // Address space layout differs from run to run, the file does not.
    let callers = [(); 2].map(|()| {
        let captured = record(&workload, &["30"]);
        let hottest = captured.stacks.iter().max_by_key(|stack| stack.count).cloned().expect("stacks");
        hottest.frames.iter().rev().nth(1).cloned().unwrap_or_default()
    });
    assert_eq!(callers[0], callers[1]);
}

#[test]
fn the_vdso_is_named() {
    let Some(_kernel) = require_bpf() else { return };
    let captured = record(&Workload::c("burn"), &["30", "vdso"]);
    let named = captured.count(|stack| stack.user_leaf().contains("clock_gettime"));
    println!("{named} of {} samples in the vDSO", captured.total());
    assert!(named * 4 > captured.total(), "{}", captured.folded());
    let objects = captured.report["objects"].as_array().expect("objects");
    assert!(objects.iter().any(|object| object["path"] == "[vdso]"), "{objects:#?}");
}

#[test]
fn a_program_whose_file_is_deleted_is_named() {
    let Some(_kernel) = require_bpf() else { return };
    let directory = scratch();
    let copy = directory.path().join("burn-deleted");
    fs::copy(Workload::c("burn").build(), &copy).expect("copy the program");
    let target = Target::start(&copy, &["30", "delete"]);
    assert!(!copy.exists());
    let captured = Record::new().rate(999).seconds(1).pid(target.pid()).run();
    check_chain(&captured, &["main", "burn_caller", "burn_hot"]);
}

#[test]
fn a_program_replaced_on_disk_is_named_from_what_runs() {
    let Some(_kernel) = require_bpf() else { return };
    let directory = scratch();
    let copy = directory.path().join("burn-replaced");
    fs::copy(Workload::c("burn").build(), &copy).expect("copy the program");
    let target = Target::start(&copy, &["30"]);
    // As an upgrade does it: another program takes the file's name.
    fs::remove_file(&copy).expect("remove the program");
    fs::copy(Workload::c("split").build(), &copy).expect("put another in its place");
    let captured = Record::new().rate(999).seconds(1).pid(target.pid()).run();
    check_chain(&captured, &["main", "burn_caller", "burn_hot"]);
}

#[test]
fn a_library_opened_while_sampled_is_named() {
    let Some(_kernel) = require_bpf() else { return };
    let library = Workload::c("plugin").called("libplugin.so").flag("-shared").flag("-fPIC").build();
    let target = Target::start(&Workload::c("opens").build(), &[&at_work(3), library.to_str().expect("UTF-8")]);
    let captured = Record::new().rate(999).pid(target.pid()).run();
    let truth = target.truth();
    assert!(
        captured.count(|stack| stack.has_chain(&["main", "own_hot"])) > enough(200),
        "{truth}\n{}",
        captured.folded()
    );
    let in_plugin = captured.count(|stack| stack.has_chain(&["main", "plugin_entry", "plugin_hot"]));
    let expected = truth["plugin"].as_f64().expect("ns") / 1e9 * 999.0;
    let found = float(in_plugin);
    let tolerance = if is_emulated() { 0.75 } else { 0.05 };
    assert!((found / expected - 1.0).abs() < tolerance, "{found} for {expected}\n{}", captured.folded());
}

#[test]
fn debug_information_in_a_separate_file_is_found() {
    let Some(_kernel) = require_bpf() else { return };
    let (Some(objcopy), Some(strip)) = (profiler_tests::find_program("objcopy"), profiler_tests::find_program("strip"))
    else {
        return;
    };
    let directory = scratch();
    let program = directory.path().join("burn-linked");
    fs::copy(Workload::c("inlined").build(), &program).expect("copy the program");
    let run = |tool: &std::path::Path, arguments: &[&str]| {
        let status = std::process::Command::new(tool).args(arguments).current_dir(directory.path()).status();
        assert!(status.expect("start a tool").success(), "{tool:?} {arguments:?}");
    };
    run(&objcopy, &["--only-keep-debug", "burn-linked", "burn-linked.debug"]);
    run(&strip, &["burn-linked"]);
    run(&objcopy, &["--add-gnu-debuglink=burn-linked.debug", "burn-linked"]);
    let target = Target::start(&program, &["30"]);
    let captured = Record::new().rate(999).seconds(1).pid(target.pid()).run();
    check_chain(&captured, &["main", "outer", "inlined_middle_[i]", "inlined_inner_[i]"]);
}
