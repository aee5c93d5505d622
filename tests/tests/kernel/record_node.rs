//! Node.js: JavaScript is named by what V8 writes when it is asked to, and labelled when it is not.
//!
//! The profiler starts the program, and it ends while it is recorded: what it wrote is read afterwards.

use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::path::{Path, PathBuf};

use profiler_tests::{Captured, Record, Stack, at_work, enough, find_program, float, require_bpf, scratch};

/// Most that a share may differ from what the program measured.
const MOST: f64 = 0.03;

/// What V8 writes a perf map with, in which the functions that it interprets have names of their own.
const PERF_MAP: [&str; 2] = ["--perf-basic-prof", "--interpreted-frames-native-stack"];

/// The three functions, and what the truth calls their time.
const PARTS: [(&str, &str); 3] = [("half", "half_us"), ("third", "third_us"), ("fifth", "fifth_us")];

fn script() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("workloads/split.js")
}

/// Records Node.js with these options from its first instruction to its end; `None` where there is none.
fn record(options: &[&str]) -> Option<Captured> {
    let captured = record_for(options, &at_work(3))?;
    assert!(captured.total() > enough(1000), "{}", captured.folded());
    Some(captured)
}

fn record_for(options: &[&str], seconds: &str) -> Option<Captured> {
    let node = find_program("node")?;
    let script = script();
    let arguments = [options, &[script.to_str().expect("UTF-8"), seconds]].concat();
    let mut record = Record::new().rate(999).program(&node, &arguments);
    // Where it writes a dump.
    let directory = scratch();
    record.command().current_dir(directory.path());
    let captured = record.run();
    for pid in captured.by_pid().keys() {
        // It leaves its map behind; one that it was not asked for is not there.
        let _ = fs::remove_file(format!("/tmp/perf-{pid}.map"));
    }
    check_no_number(&captured);
    Some(captured)
}

/// Checks that no frame is a bare number.
fn check_no_number(captured: &Captured) {
    for stack in &captured.stacks {
        for frame in &stack.frames {
            let number = frame.strip_suffix("_[j]").unwrap_or(frame);
            let digits = number.strip_prefix("0x").unwrap_or(number);
            assert!(u64::from_str_radix(digits, 16).is_err(), "{frame} in {:?}", stack.frames);
        }
    }
}

/// Whether a stack has a JavaScript function of this name, however V8 runs it.
fn has_function(stack: &Stack, name: &str) -> bool {
    stack.frames.iter().any(|frame| function(frame).is_some_and(|(_, function)| function == name))
}

/// How V8 runs a function of the script, by the letter that it writes before the name, and its name.
fn function(frame: &str) -> Option<(char, &str)> {
    let frame = frame.strip_prefix("JS:")?;
    let (name, place) = frame.split_once(' ')?;
    let tier = name.chars().next()?;
    place.contains("split.js:").then_some((tier, name.strip_prefix(tier)?))
}

/// Holds the shares of the three functions against the time that each took.
fn check_split(captured: &Captured) {
    let truth = captured.truth();
    let all: u64 = PARTS.iter().map(|(name, _)| captured.count(|stack| has_function(stack, name))).sum();
    let spent: f64 = PARTS.iter().map(|(_, key)| truth[*key].as_f64().expect("us")).sum();
    assert!(all * 10 > captured.total() * 8, "{all} of {}\n{}", captured.total(), captured.folded());
    for (name, key) in PARTS {
        let found = float(captured.count(|stack| has_function(stack, name))) / float(all);
        let expected = truth[key].as_f64().expect("us") / spent;
        println!("{name}: {found:.4} for {expected:.4}");
        assert!((found - expected).abs() <= MOST, "{name}: {found} for {expected}\n{}", captured.folded());
    }
}

/// Checks that the three functions are below all of their callers.
fn check_callers(captured: &Captured) {
    let in_parts = |stack: &Stack| PARTS.iter().any(|(name, _)| has_function(stack, name));
    let whole = |stack: &Stack| {
        let nested = stack.frames.iter().filter(|frame| function(frame).is_some_and(|(_, name)| name == "nested"));
        nested.count() == 6 && has_function(stack, "work") && stack.marker().is_none()
    };
    let found = captured.share(in_parts, whole);
    println!("{:.2} % have all callers", 100.0 * found);
    assert!(found >= 0.95, "{found}\n{}", captured.folded());
}

/// What the report says of code made at run time.
fn jit(captured: &Captured) -> &serde_json::Value {
    let objects = captured.report["objects"].as_array().expect("objects");
    objects.iter().find(|object| object["path"] == "[jit]").unwrap_or_else(|| panic!("{objects:#?}"))
}

#[test]
fn javascript_is_named_and_split_as_it_measures_itself() {
    let Some(_kernel) = require_bpf() else { return };
    let Some(captured) = record(&PERF_MAP) else { return };
    check_split(&captured);
    check_callers(&captured);
    let jit = jit(&captured);
    assert!(jit["named_share"].as_f64().is_some_and(|share| share >= 0.99), "{jit}");
    // It has run by all means by the time it is hot.
    let tiers =
        |tier| captured.count(|stack| stack.frames.iter().any(|frame| function(frame).is_some_and(|f| f.0 == tier)));
    assert!(tiers('*') > 0 && tiers('~') > 0, "{}", captured.folded());
}

#[test]
fn javascript_that_ends_before_the_first_window_is_named() {
    let Some(_kernel) = require_bpf() else { return };
    for option in ["--perf-basic-prof", "--perf-prof"] {
        let Some(captured) = record_for(&[option, PERF_MAP[1]], "0.3") else { return };
        let named = captured.count(|stack| PARTS.iter().any(|(name, _)| has_function(stack, name)));
        println!("{named} of {} samples in named functions", captured.total());
        assert!(named > 50, "{}", captured.folded());
        assert!(jit(&captured)["named_share"].as_f64().is_some_and(|share| share >= 0.99), "{}", jit(&captured));
    }
}

#[test]
fn javascript_that_is_interpreted_is_named() {
    let Some(_kernel) = require_bpf() else { return };
    let options = [&PERF_MAP[..], &["--no-opt", "--no-sparkplug"]].concat();
    let Some(captured) = record(&options) else { return };
    // What V8's interpreter is doing when it calls nobody has no frame of its own: the function is missing, not its callers.
    let nested = captured.share(|_| true, |stack| has_function(stack, "nested"));
    let named = captured.share(|_| true, |stack| PARTS.iter().any(|(name, _)| has_function(stack, name)));
    println!("{:.2} % in nested, {:.2} % in the three functions", 100.0 * nested, 100.0 * named);
    assert!(nested > 0.8 && named > 0.3, "{}", captured.folded());
    assert!(jit(&captured)["named_share"].as_f64().is_some_and(|share| share >= 0.99), "{}", jit(&captured));
    let is_compiled = |frame: &String| function(frame).is_some_and(|(tier, _)| tier != '~');
    assert_eq!(captured.count(|stack| stack.frames.iter().any(is_compiled)), 0, "{}", captured.folded());
}

#[test]
fn javascript_is_named_with_lines_by_a_dump() {
    let Some(_kernel) = require_bpf() else { return };
    let Some(captured) = record(&["--perf-prof", "--interpreted-frames-native-stack"]) else { return };
    check_split(&captured);
    check_callers(&captured);
    let jit = jit(&captured);
    assert!(jit["named_share"].as_f64().is_some_and(|share| share >= 0.99), "{jit}");
    let warnings = captured.report["warnings"].to_string();
    assert!(!warnings.contains(".dump"), "{warnings}");
    let profile = &captured.profile;
    let mut lines = HashMap::<&str, BTreeSet<u32>>::new();
    for line in profile.locations.iter().flat_map(|location| &location.lines) {
        let called = &profile.functions[line.function as usize];
        if let Some((_, name)) = function(&called.name)
            && called.file.ends_with("split.js")
        {
            lines.entry(name).or_default().insert(line.line);
        }
    }
    // Their lines in the script, up to the closing brace, where they return.
    for (name, body) in [("half", 8..=14), ("third", 16..=22), ("fifth", 25..=31)] {
        let found = lines.get(name).unwrap_or_else(|| panic!("no lines of {name}: {lines:?}"));
        assert!(found.iter().all(|line| body.contains(line)), "{name}: {found:?}");
    }
}

#[test]
fn javascript_that_was_not_asked_for_names_is_labelled_and_the_report_says_how_to_ask() {
    let Some(_kernel) = require_bpf() else { return };
    let Some(captured) = record(&[]) else { return };
    let labelled = captured.count(|stack| stack.has("[JIT: node]_[j]"));
    assert!(labelled * 2 > captured.total(), "{labelled}\n{}", captured.folded());
    let jit = jit(&captured);
    let advice = jit["advice"].as_str().unwrap_or_default();
    assert!(PERF_MAP.iter().all(|option| advice.contains(option)), "{jit}");
}
