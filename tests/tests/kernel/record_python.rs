//! Python: functions with their lines, in the right place among native frames, whatever version runs them.

use std::path::PathBuf;
use std::process::Command;

use profiler_tests::{Captured, Record, Stack, Target, find_program, float, require_bpf};

/// Interpreters beside the distribution's own: `PROFILER_PYTHONS`, a list like that of `PATH`.
const VARIABLE: &str = "PROFILER_PYTHONS";

/// Interpreters to test with; the first is the distribution's. Those that are not there are told.
fn interpreters() -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = find_program("/usr/bin/python3").into_iter().collect();
    let others = std::env::var_os(VARIABLE).unwrap_or_default();
    found.extend(std::env::split_paths(&others).filter(|path| !path.as_os_str().is_empty()));
    let usual = (8..=13).map(|minor| PathBuf::from(format!("/usr/bin/python3.{minor}")));
    let own = std::fs::canonicalize("/usr/bin/python3").unwrap_or_default();
    found.extend(usual.filter(|path| path.exists() && *path != own));
    if found.len() < 2 {
        println!("one version of Python only: {VARIABLE} names more interpreters");
    }
    found
}

fn script() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("workloads/split.py")
}

/// Starts the workload, for so many seconds.
fn start(interpreter: &PathBuf, arguments: &[&str]) -> Target {
    Target::start_command(Command::new(interpreter).arg(script()).args(arguments))
}

/// Records the workload until it ends, and returns its account with the capture.
fn record(interpreter: &PathBuf, arguments: &[&str]) -> (Captured, serde_json::Value) {
    let target = start(interpreter, arguments);
    let captured = Record::new().rate(999).pid(target.pid()).run();
    (captured, target.truth())
}

/// Function, in folded stacks.
fn python(name: &str) -> String {
    format!("{name}_[p]")
}

/// Samples in a function that are in `spin` too, which measures itself.
fn in_spin(stack: &Stack, name: &str) -> bool {
    let bare = |frame: &String| frame.rsplit('.').next().unwrap_or_default().to_owned();
    let frames: Vec<String> = stack.frames.iter().map(bare).collect();
    frames.windows(2).any(|pair| pair[0] == python(name) && pair[1] == "spin_[p]")
        || (stack.frames.iter().any(|frame| *frame == python(name)) && stack.frames.contains(&python("spin")))
}

/// The three shares must be those that the program measured, within two points.
fn check_shares(captured: &Captured, truth: &serde_json::Value) {
    let names = ["half", "third", "fifth"];
    let spent: Vec<f64> = names.iter().map(|name| truth[name].as_f64().expect("seconds")).collect();
    let found = names.map(|name| float(captured.count(|stack| in_spin(stack, name))));
    let (all_spent, all_found) = (spent.iter().sum::<f64>(), found.iter().sum::<f64>());
    assert!(all_found > 500.0, "{}", captured.folded());
    for ((name, spent), found) in names.iter().zip(&spent).zip(found) {
        let (expected, share) = (100.0 * spent / all_spent, 100.0 * found / all_found);
        println!("{name}: {share:.1} % of samples, {expected:.1} % of time");
        assert!((share - expected).abs() < 2.0, "{name}: {share} for {expected}\n{}", captured.folded());
    }
}

/// The callers of `split.py` and whom they call, root first; without the native frames that versions before 3.11 have
/// between them.
fn has_callers(stack: &Stack, callee: &str) -> bool {
    let frames: Vec<&String> = stack.frames.iter().filter(|frame| frame.ends_with("_[p]")).collect();
    let callers = (1..=20).map(|number| python(&format!("caller_{number:02}")));
    let chain: Vec<String> = ["<module>", "main", "loop"].map(python).into_iter().chain(callers).collect();
    frames.len() > chain.len()
        && frames.iter().zip(&chain).all(|(frame, expected)| *frame == expected)
        && *frames[chain.len()] == python(callee)
}

#[test]
fn python_functions_have_their_shares_under_all_their_callers() {
    let Some(_kernel) = require_bpf() else { return };
    for interpreter in interpreters() {
        println!("{}", interpreter.display());
        let (captured, truth) = record(&interpreter, &["3"]);
        check_shares(&captured, &truth);
        let spinning = |stack: &Stack| ["half", "third", "fifth"].iter().any(|name| in_spin(stack, name));
        let under = captured.share(spinning, |stack| has_callers(stack, "work"));
        assert!(under >= 0.99, "{under} under all callers\n{}", captured.folded());
        let raw = captured.share(spinning, |stack| stack.has("_PyEval_EvalFrameDefault"));
        assert!(raw <= 0.01, "{raw} with a frame of the interpreter itself\n{}", captured.folded());
    }
}

#[test]
fn python_functions_have_file_and_line() {
    let Some(_kernel) = require_bpf() else { return };
    let text = std::fs::read_to_string(script()).expect("read the workload");
    let lines = |from: &str, to: &str| {
        let at = |what: &str| 1 + text.lines().position(|line| line == what).unwrap_or_else(|| panic!("{what}")) as u64;
        at(from)..at(to)
    };
    let spin = lines("def spin(name, seconds):", "def half():");
    for interpreter in interpreters() {
        println!("{}", interpreter.display());
        let (captured, _) = record(&interpreter, &["2"]);
        let profile = &captured.profile;
        let mut found = std::collections::BTreeMap::new();
        for location in &profile.locations {
            for line in &location.lines {
                let function = &profile.functions[line.function as usize];
                if function.name == "spin" {
                    assert!(function.file.ends_with("split.py"), "{function:?}");
                    *found.entry(line.line).or_insert(0) += 1;
                }
            }
        }
        println!("lines of spin: {found:?}");
        assert!(found.len() >= 2 && found.keys().all(|&line| spin.contains(&u64::from(line))), "{found:?} in {spin:?}");
    }
}

#[test]
fn native_frames_stay_between_the_python_frames_they_join() {
    let Some(_kernel) = require_bpf() else { return };
    for interpreter in interpreters() {
        println!("{}", interpreter.display());
        let (captured, truth) = record(&interpreter, &["3", "mixed"]);
        check_shares(&captured, &truth);
        for (outer, callee) in [("mixed", "key_function"), ("mixed", "reduced")] {
            let (outer, callee) = (python(outer), python(callee));
            let between = captured.share(
                |stack| stack.has(&callee),
                |stack| {
                    let at = |name: &str| stack.frames.iter().position(|frame| frame == name);
                    let (Some(first), Some(last)) = (at(&outer), at(&callee)) else { return false };
                    // What sorts and what reduces is native code.
                    has_callers(stack, "mixed")
                        && last > first + 1
                        && stack.frames[first + 1..last].iter().all(|frame| !frame.ends_with("_[p]"))
                },
            );
            assert!(between >= 0.99, "{callee}: {between}\n{}", captured.folded());
        }
        let generated = python("generated");
        let under = captured.share(
            |stack| stack.has(&generated) && stack.has(&python("spin")),
            |stack| has_callers(stack, "mixed") && stack.has(&python("fifth")),
        );
        assert!(under >= 0.99, "generator: {under}\n{}", captured.folded());
    }
}

#[test]
fn every_python_thread_has_its_own_frames() {
    let Some(_kernel) = require_bpf() else { return };
    for interpreter in interpreters() {
        println!("{}", interpreter.display());
        let (captured, truth) = record(&interpreter, &["3", "threads"]);
        check_shares(&captured, &truth);
        let spinning = |stack: &Stack| stack.has(&python("spin"));
        let own = |stack: &Stack| stack.frames.iter().any(|frame| frame.ends_with("run_[p]"));
        let other = captured.share(spinning, own);
        println!("{other} of the samples in the other thread");
        assert!((0.2..0.8).contains(&other), "{}", captured.folded());
        // Neither begins in the middle: the main thread's with the module, the other's where threading starts it.
        let whole = captured.share(spinning, |stack| {
            let first = stack.frames.iter().find(|frame| frame.ends_with("_[p]")).map_or("", String::as_str);
            if own(stack) { first.ends_with("_bootstrap_[p]") } else { first == "<module>_[p]" }
        });
        assert!(whole >= 0.99, "{whole}\n{}", captured.folded());
    }
}

#[test]
fn deep_python_recursion_is_cut_with_a_reason() {
    let Some(_kernel) = require_bpf() else { return };
    for interpreter in interpreters() {
        println!("{}", interpreter.display());
        let (captured, _) = record(&interpreter, &["2", "deep"]);
        let cut = captured.share(
            |stack| stack.has(&python("spin")),
            |stack| stack.has("[python: depth_limit]_[p]") && stack.has(&python("recurse")),
        );
        assert!(cut >= 0.95, "{cut}\n{}", captured.folded());
    }
}

#[test]
fn a_python_that_the_profiler_starts_is_named() {
    let Some(_kernel) = require_bpf() else { return };
    for interpreter in interpreters() {
        println!("{}", interpreter.display());
        let script = script();
        let arguments = [script.to_str().expect("UTF-8"), "3"];
        let captured = Record::new().rate(999).program(&interpreter, &arguments).run();
        check_shares(&captured, &captured.truth());
        let gone = captured.share(
            |stack| stack.frames.iter().any(|frame| frame.ends_with("_[p]")),
            |stack| stack.frames.iter().any(|frame| frame.starts_with("[python: ")),
        );
        println!("{gone} of the samples have a function that could not be read any more");
        assert!(gone <= 0.02, "{}", captured.folded());
    }
}
