//! `cargo xtask bench [NAME]`: the benchmarks, each a bench target of the tests crate.

use clap::builder::PossibleValuesParser;

use crate::command::{cargo, run as run_command};
use crate::test;

/// Every benchmark and what it measures; a new one is a row here and a file in tests/benches.
const BENCHES: [(&str, &str); 9] = [
    ("alloc", "what recording allocations costs the target, by pairs of malloc and free, beside memleak and heaptrack"),
    ("blockio", "what recording block I/O costs a request, beside bcc's biolatency"),
    ("daemon", "what the daemon costs at its defaults, on an idle host and on a busy one"),
    ("fileio", "what recording files costs a read, a write, and a call that is for no file"),
    ("net", "what recording sockets costs a message, of the target and of others, and others' system calls"),
    ("offcpu", "what recording waits costs a switch, beside perf and bcc's offcputime"),
    ("overhead", "what a capture costs, beside perf record -g on the same workload"),
    (
        "symbolize",
        "from stop to written: a million samples of 20,000 stacks over 100 MB, beside perf script and inferno",
    ),
    ("unwind", "what a walk costs by depth, beside the kernel's own; size and time of tables"),
];

/// The arguments of `cargo xtask bench`.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Which benchmark; all of them without it
    #[arg(value_parser = names())]
    name: Option<String>,
    /// For the benchmark
    #[arg(last = true)]
    arguments: Vec<String>,
}

/// Runs the command.
pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let binary = test::prepare()?;
    for (name, what) in BENCHES {
        if arguments.name.as_ref().is_none_or(|wanted| wanted == name) {
            println!("== {name}: {what}");
            let mut bench = cargo();
            bench.arg("bench").args(test::PACKAGES).args(["--bench", name, "--"]).args(&arguments.arguments);
            run_command(bench.env("PROFILER_BIN", &binary))?;
        }
    }
    Ok(())
}

/// The names that are accepted, with their descriptions for `--help`.
fn names() -> PossibleValuesParser {
    let values = BENCHES.map(|(name, what)| clap::builder::PossibleValue::new(name).help(what));
    PossibleValuesParser::new(values)
}
