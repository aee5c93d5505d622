//! Go programs: named by their line table, with symbols and without, and held against Go's own profile.

use std::collections::HashMap;
use std::path::Path;
use std::process::Command;

use profiler_tests::{Captured, Record, Stack, Target, Workload, enough, float, require_bpf, scratch};

use crate::record_unwinding::check_complete;

/// The same program as it is built by default, without symbols, and position-independent besides.
pub(crate) fn workloads() -> Vec<Workload> {
    let Some(plain) = Workload::go("split") else { return Vec::new() };
    let stripped = "-ldflags=-s -w";
    vec![
        plain.clone().called("split-go"),
        plain.clone().called("split-go-stripped").flag(stripped),
        plain.called("split-go-pie").flag(stripped).flag("-buildmode=pie"),
    ]
}

/// Programs that leave their goroutines' stacks.
pub(crate) fn switches() -> Vec<Workload> {
    let (Some(go), Some(cgo)) = (Workload::go("switches"), Workload::cgo("calls")) else { return Vec::new() };
    let stripped = "-ldflags=-s -w";
    let pie = go.clone().called("switches-pie").flag(stripped).flag("-buildmode=pie");
    vec![go.flag(stripped), pie, cgo.flag(stripped)]
}

/// Most that a share of the profile may differ from what the program measured.
const MOST: f64 = 0.02;

#[test]
fn go_is_named_inlined_and_split_as_it_measures_itself() {
    let Some(_kernel) = require_bpf() else { return };
    for workload in workloads() {
        let program = workload.build();
        let target = Target::start(&program, &["4"]);
        let captured = Record::new().rate(999).pid(target.pid()).run();
        let truth = target.truth();
        assert!(captured.total() > enough(1000), "{}", captured.folded());
        check_complete(&captured, 0.99);
        check_split(&captured, &truth);
        let nested = ["main.nested"; 6];
        for part in ["main.(*T).Half", "main.third", "main.fifth"] {
            let chain = [&["main.burn"][..], &nested, &["main.work", part]].concat();
            let whole = |stack: &Stack| stack.has("runtime.goexit") && stack.has_chain(&chain);
            let found = captured.share(|stack| stack.has(part), whole);
            assert!(found >= 0.99, "{found} have {chain:?}\n{}", captured.folded());
        }
        let inlined =
            captured.share(|stack| stack.has("main.(*T).Half"), |s| s.has_chain(&["main.(*T).Half", "main.mix_[i]"]));
        assert!(inlined > 0.5, "{inlined} are in the inlined function\n{}", captured.folded());
        check_named(&captured, &program);
    }
}

#[test]
fn what_is_done_on_another_stack_belongs_to_the_goroutine_that_caused_it() {
    let Some(_kernel) = require_bpf() else { return };
    for workload in switches() {
        let program = workload.build();
        let target = Target::start(&program, &["4"]);
        let captured = Record::new().rate(999).seconds(2).pid(target.pid()).run();
        check_complete(&captured, 0.99);
        if program.ends_with("calls") {
            let chain = ["main.caller", "main._Cfunc_burn", "runtime.cgocall", "runtime.asmcgocall"];
            let found = captured.share(|_| true, |stack| stack.has("runtime.goexit") && stack.has_chain(&chain));
            println!("{:.2} % of C has its callers", 100.0 * found);
            assert!(found >= 0.95, "{found}\n{}", captured.folded());
            continue;
        }
        // The vDSO, a larger stack, memory and all else.
        let caused =
            [("time.now", "main.clock"), ("runtime.copystack", "main.deep"), ("runtime.systemstack", "runtime.goexit")];
        for (done, cause) in caused {
            let count = captured.count(|stack| stack.has(done));
            let found =
                captured.share(|stack| stack.has(done), |stack| stack.has(cause) && stack.has("runtime.goexit"));
            println!("{count} in {done}, {:.2} % of them by {cause}", 100.0 * found);
            assert!(count >= enough(40) && found >= 0.95, "{done}: {count}, {found}\n{}", captured.folded());
        }
    }
}

/// Holds the shares of the three functions against the time that each took.
fn check_split(captured: &Captured, truth: &serde_json::Value) {
    let parts = [("half_ns", "main.(*T).Half"), ("third_ns", "main.third"), ("fifth_ns", "main.fifth")];
    let all: u64 = parts.iter().map(|(_, name)| captured.count(|stack| stack.has(name))).sum();
    let spent: f64 = parts.iter().map(|(key, _)| truth[key].as_f64().expect("ns")).sum();
    for (key, name) in parts {
        let found = float(captured.count(|stack| stack.has(name))) / float(all);
        let expected = truth[key].as_f64().expect("ns") / spent;
        println!("{name}: {found:.4} for {expected:.4}");
        assert!((found - expected).abs() <= MOST, "{name}: {found} for {expected}\n{}", captured.folded());
    }
}

/// Checks that the program's own frames have names, files and lines.
fn check_named(captured: &Captured, program: &Path) {
    let objects = captured.report["objects"].as_array().expect("objects");
    let own = objects.iter().find(|object| object["path"].as_str() == program.to_str());
    let own = own.unwrap_or_else(|| panic!("{objects:#?}"));
    assert!(own["named_share"].as_f64().is_some_and(|share| share >= 0.99), "{own}");
    let profile = &captured.profile;
    let frames = profile.locations.iter().flat_map(|location| &location.lines);
    let inlined: Vec<_> = frames.filter(|line| profile.functions[line.function as usize].name == "main.mix").collect();
    assert!(!inlined.is_empty());
    for line in inlined {
        let file = &profile.functions[line.function as usize].file;
        assert!(file.ends_with("split.go") && line.line > 0, "{file}:{}", line.line);
    }
}

#[test]
fn the_top_functions_are_those_of_gos_own_profile() {
    let Some(_kernel) = require_bpf() else { return };
    let directory = scratch();
    let own = directory.path().join("own.pprof");
    let Some(workload) = workloads().into_iter().nth(1) else { return };
    let target = Target::start(&workload.build(), &["10", own.to_str().expect("UTF-8")]);
    let captured = Record::new().rate(499).pid(target.pid()).run();
    let _ = target.truth();
    let options = ["-top", "-nodecount=1000", "-nodefraction=0"];
    let Some(ours) = captured.go_pprof(&[&options[..], &["-sample_index=samples"]].concat()) else { return };
    let output = Command::new("go").args(["tool", "pprof"]).args(options).arg(&own).output().expect("start go");
    let (ours, theirs) = (shares(&ours), shares(&String::from_utf8_lossy(&output.stdout)));
    assert!(theirs.len() >= 5, "{theirs:?}");
    for column in [0, 1] {
        let mut top: Vec<_> = theirs.iter().collect();
        // Where Go's own timer signal finds a goroutine that is asked to make room: nothing that takes time.
        top.retain(|(name, _)| *name != "runtime.asyncPreempt");
        top.sort_by(|(_, left), (_, right)| right[column].total_cmp(&left[column]));
        for (name, expected) in top.into_iter().take(10) {
            let found = ours.get(name).copied().unwrap_or_default()[column];
            println!("{name}: {found} % for {} %", expected[column]);
            assert!((found - expected[column]).abs() <= 5.0, "{name}: {ours:#?}\n{theirs:#?}");
        }
    }
}

/// Self and total in percent by function, of a table of `go tool pprof -top`.
pub(crate) fn shares(table: &str) -> HashMap<String, [f64; 2]> {
    let row = |line: &str| {
        let mut columns = line.split_ascii_whitespace();
        let percent = |text: &str| text.strip_suffix('%')?.parse().ok();
        let own = percent(columns.nth(1)?)?;
        percent(columns.next()?)?;
        let total = percent(columns.nth(1)?)?;
        let name = columns.collect::<Vec<_>>().join(" ");
        Some((name.trim_end_matches(" (inline)").trim_end_matches(" (partial-inline)").to_owned(), [own, total]))
    };
    table.lines().filter_map(row).collect()
}
