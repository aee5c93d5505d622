//! What a contributor runs: `cargo xtask COMMAND`.
//!
//! Every command is one module, needs no argument in the usual case, prints the commands it starts and stops at the
//! first that fails. Exit codes: 0 fine, 1 a check found something or a command failed, 2 usage.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a command for people prints")]

mod bench;
mod build_ebpf;
mod command;
mod digest;
mod licenses;
mod lint;
mod setup;
mod strip;
mod test;
mod toolchain;
mod vm;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// The arguments of `cargo xtask`.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", about, disable_version_flag = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

/// One command, one module.
#[derive(Subcommand)]
enum Command {
    /// Install what is missing to build the eBPF object (Debian: by apt-get and cargo install)
    Setup(setup::Arguments),
    /// Build the eBPF object from source, strip it and write it with its digest into profiler/bpf
    BuildEbpf(build_ebpf::Arguments),
    /// Run every test: unit tests, then the kernel tests against the release binary
    Test(test::Arguments),
    /// Run the kernel tests on other kernels: Debian's, in virtual machines
    Vm(vm::Arguments),
    /// Run a benchmark of the tests crate, or all of them
    Bench(bench::Arguments),
    /// Check formatting, clippy and the documentation, warnings denied
    Lint,
    /// Check that every dependency's licence is on the list of those we accept
    Licenses,
}

fn main() -> ExitCode {
    let result = match Arguments::parse().command {
        Command::Setup(arguments) => setup::run(&arguments),
        Command::BuildEbpf(arguments) => build_ebpf::run(&arguments),
        Command::Test(arguments) => test::run(&arguments),
        Command::Vm(arguments) => vm::run(&arguments),
        Command::Bench(arguments) => bench::run(&arguments),
        Command::Lint => lint::run(),
        Command::Licenses => licenses::run(),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
