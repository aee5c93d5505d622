//! Arguments to validated configurations to one call. The only place that knows clap, and that prints and exits.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "the command line is where a person is spoken to")]

mod args;
mod bench;
mod check;
mod daemon;
mod diff;
mod doctor;
mod export;
mod files;
mod inspect;
mod load;
mod moment;
mod options;
mod progress;
mod query;
mod record;
mod report;
mod top;

use std::io::Write;
use std::os::fd::AsFd as _;
use std::process::ExitCode;

use clap::Parser;

/// Something kept the command from running.
const COULD_NOT_RUN: u8 = 2;

/// Reads the command line and runs what it asks for.
#[must_use]
pub fn main() -> ExitCode {
    let args = args::Args::parse();
    let result = match args.command {
        args::Command::Record(args) => record::run(*args),
        args::Command::Top(args) => top::run(&args),
        args::Command::Report(args) => report::run(&args),
        args::Command::Diff(args) => diff::run(&args),
        args::Command::Export(args) => export::run(&args),
        args::Command::Import(args) => export::run_import(&args),
        args::Command::Check(args) => check::run(&args),
        args::Command::Baseline(args) => check::run_baseline(&args),
        args::Command::Trend(args) => check::run_trend(&args),
        args::Command::Query(args) => query::run(&args),
        args::Command::Daemon(args) => daemon::run(&args),
        args::Command::Config(args) => daemon::run_config(&args),
        args::Command::Bench(args) => bench::run(&args),
        args::Command::MakeRuns(args) => bench::run_runs(&args),
        args::Command::Doctor(args) => doctor::run(&args),
        args::Command::Inspect(args) => inspect::run(&args),
        args::Command::HoldProbes => hold_probes(),
    };
    match result {
        Ok(code) => ExitCode::from(code),
        Err(Failure { error, code }) => {
            // When nobody reads our errors either, the exit code has to do.
            let _ = writeln!(std::io::stderr(), "profiler: {error:#}");
            ExitCode::from(code)
        }
    }
}

/// Runs as the process that holds probes.
fn hold_probes() -> CommandResult {
    crate::bpf::hold_probes(std::io::stdin().as_fd());
    Ok(0)
}

/// An error and the exit code it gives.
struct Failure {
    error: anyhow::Error,
    code: u8,
}

impl<E: Into<anyhow::Error>> From<E> for Failure {
    fn from(error: E) -> Self {
        Self { error: error.into(), code: COULD_NOT_RUN }
    }
}

type CommandResult = Result<u8, Failure>;

/// Prints to standard output; a reader that has gone is no error.
fn print(text: &str) -> std::io::Result<()> {
    print_bytes(text.as_bytes())
}

/// As [`print`].
fn print_bytes(bytes: &[u8]) -> std::io::Result<()> {
    match std::io::stdout().write_all(bytes) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(error),
        _ => Ok(()),
    }
}
