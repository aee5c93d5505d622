//! `cargo xtask vm [VERSION...] [-- TEST ARGUMENTS]`: the kernel tests on other kernels.
//!
//! Debian's kernel packages are downloaded and unpacked, never installed, and booted by qemu, which emulates the CPU: no
//! right is needed but the tests' own inside. What runs there is what runs here: the release binary, the built kernel
//! tests and their workloads, at the same paths. It needs Debian for the packages.

mod guest;
mod initramfs;
mod kernels;
mod machine;
mod results;

use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use serde_json::Value;

use crate::command::{cargo, command, output, run as run_command, target_dir};
use crate::{setup, test};
use results::Results;

/// The kernels that are tested when none is named: those of Debian 12 and 13.
pub(crate) const VERSIONS: [&str; 2] = ["6.1", "6.12"];

/// Kernel tests that are not run in a virtual machine, and why. Everything else is, and must pass.
const LEFT_OUT: [(&str, &str); 8] = [
    ("nearly_every_event_is_delivered", TIMERS),
    ("threads_have_the_samples_of_their_own_time", TIMERS),
    ("work_in_short_bursts_is_sampled_as_any_other", TIMERS),
    ("tens_of_thousands_of_stacks_at_9999_hz", TIMERS),
    ("a_profiler_in_a_pid_namespace_of_its_own_finds_all_callers", STARTS),
    ("processes_that_live_for_200_ms_are_unwound", STARTS),
    ("processes_that_fork_exec_and_open_libraries_all_the_time", STARTS),
    ("a_program_that_only_its_own_mount_and_pid_namespace_has", "mounts what the machine's init has not the tools for"),
];

const TIMERS: &str = "counts samples; an emulated CPU that waits for the host's own gets no timer interrupt meanwhile";

const STARTS: &str =
    "a program's start, which takes microseconds elsewhere, is a large part of what an emulated CPU does";

/// The arguments of `cargo xtask vm`.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Beginning of a kernel's version; the newest such kernel that Debian has is taken
    #[arg(value_name = "VERSION", default_values = VERSIONS)]
    pub(crate) versions: Vec<String>,
    /// For the kernel tests, for instance the name of a test
    #[arg(last = true)]
    pub(crate) arguments: Vec<String>,
}

/// Runs the command.
pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    setup::vm()?;
    let profiler = test::prepare()?;
    let tests = kernel_tests()?;
    let workloads = workloads(&tests)?;
    let directory = target_dir().join("vm");
    let mut test_arguments = arguments.arguments.clone();
    for (test, _) in LEFT_OUT {
        test_arguments.extend(["--skip".to_owned(), test.to_owned()]);
    }
    let initramfs = directory.join("initramfs.cpio");
    guest::write(&initramfs, &guest::Content { profiler, tests, workloads, arguments: test_arguments })?;
    let mut table = Vec::new();
    for version in &arguments.versions {
        let kernel = kernels::fetch(version, &directory)?;
        println!("== Linux {}", kernel.release);
        let results = machine::run(&kernel, &initramfs, &directory);
        let results = results.unwrap_or_else(|error| {
            println!("{error:#}");
            Results { broken: true, ..Results::default() }
        });
        table.push((kernel.release, results));
    }
    print(&table);
    let failed = table.iter().filter(|(_, results)| results.is_failure()).map(|(release, _)| release.as_str());
    let failed: Vec<_> = failed.collect();
    if failed.is_empty() {
        return Ok(());
    }
    bail!("kernel tests failed on {}; all they said is in {}", failed.join(", "), directory.display())
}

/// Builds the kernel tests and returns the program.
fn kernel_tests() -> anyhow::Result<PathBuf> {
    let mut build = cargo();
    build.args(["test", "--release"]).args(test::PACKAGES);
    let messages = output(build.args(["--test", "kernel", "--no-run", "--message-format=json"]))?;
    let messages = messages.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let mut programs = messages.filter(|message| message["target"]["name"] == "kernel");
    let program = programs.find_map(|message| message["executable"].as_str().map(PathBuf::from));
    program.context("cargo did not say where it put the kernel tests")
}

/// Builds the programs of the kernel tests, since there is no compiler in the virtual machine.
fn workloads(tests: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let build = ["--ignored", "--exact", "workloads::every_workload_builds", "--nocapture"];
    let said = output(command(tests).args(build).current_dir(target_dir()))?;
    let workloads: Vec<_> =
        said.lines().filter_map(|line| line.strip_prefix("workload: ").map(PathBuf::from)).collect();
    if workloads.is_empty() { bail!("{} built no workload", tests.display()) } else { Ok(workloads) }
}

/// Prints what became of the tests, kernel by kernel, and what was not tested.
fn print(table: &[(String, Results)]) {
    println!("\n{:<32} {:>7} {:>8} {:>7}", "kernel", "passed", "in part", "failed");
    for (release, results) in table {
        let Results { passed, in_part, failed, broken } = results;
        let broken = if *broken { "  did not end" } else { "" };
        println!("{release:<32} {passed:>7} {:>8} {:>7}{broken}", in_part.len(), failed.len());
    }
    for (release, results) in table {
        for test in &results.failed {
            println!("failed on {release}: {test}");
        }
        for (test, why) in &results.in_part {
            println!("in part on {release}: {test}: {why}");
        }
    }
    for (test, why) in LEFT_OUT {
        println!("left out: {test}: {why}");
    }
}

/// For `cargo xtask test --vm`: the usual kernels, all tests.
pub(crate) fn run_usual() -> anyhow::Result<()> {
    run(&Arguments { versions: VERSIONS.map(str::to_owned).to_vec(), arguments: Vec::new() })
        .context("in virtual machines")
}

/// Runs a command whose output is not for people, but for its errors.
fn quiet(command: &mut std::process::Command) -> anyhow::Result<()> {
    run_command(command.stdout(std::process::Stdio::null()))
}
