//! Time by phase of a program's work.

use profiler::analyze::{Rules, analyze, analyze_by};
use profiler_common::event::Origin;

use crate::made::{capture, profile};

#[test]
fn a_stack_is_of_the_phase_of_its_innermost_function_that_has_one() {
    let stacks = [
        ("main;reth_stages::run;revm_interpreter::run;memcpy", [30, 30_000, 0, 0]),
        ("main;reth_stages::run;reth_trie::hash;<reth_trie::Node>::fmt", [50, 50_000, 0, 0]),
        ("main;reth_stages::run", [15, 15_000, 0, 0]),
        ("main;other", [5, 5_000, 0, 0]),
    ];
    let capture = capture(vec![profile(Origin::Cpu, &stacks)], 10);
    let found = |rules: &Rules| -> Vec<(String, String, u64)> {
        let phases = analyze_by(&capture, rules).phases;
        assert!(phases.iter().all(|phase| phase.origin == "cpu" && (0.0..=1.0).contains(&phase.share)));
        phases.into_iter().map(|phase| (phase.phase, phase.client, phase.value)).collect()
    };
    let row = |phase: &str, client: &str, value| (phase.to_owned(), client.to_owned(), value);
    let built_in = [row("state root", "reth", 50), row("execution", "reth", 30), row("sync", "reth", 15)];
    assert_eq!(found(&Rules::default()), built_in);
    // Rules of one's own come first.
    let own = Rules::with_file("[[phase]]\nname = \"copies\"\nfunctions = [\"MEM*\", \"other\"]").unwrap();
    assert_eq!(found(&own), [row("state root", "reth", 50), row("copies", "", 35), row("sync", "reth", 15)]);
    assert!(Rules::with_file("[[phase]]\nname = \"x\"").is_err());
}

#[test]
fn a_program_that_no_rule_knows_has_no_phases() {
    let capture = capture(vec![profile(Origin::Cpu, &[("main;work", [10, 10_000, 0, 0])])], 10);
    assert!(analyze(&capture).phases.is_empty());
}
