//! `cargo xtask test`: every test of the workspace, on the release binary.
//!
//! One selection of packages and one profile throughout, so that nothing is compiled twice.
//!
//! A kernel test measures, and something else on the machine may take its CPUs just then. So the few kernel tests that fail are
//! run once more by themselves, which is said; one that fails again has failed, as has any other.

use std::path::{Path, PathBuf};

use crate::command::{cargo, run as run_command, run_and_read, target_dir};
use crate::{setup, vm};

/// Every package but the eBPF crate, which builds for another target.
pub(crate) const PACKAGES: [&str; 3] = ["--workspace", "--exclude", "profiler-ebpf"];

/// Most kernel tests that are run once more: where more fail, something is wrong.
const MOST_AGAIN: usize = 3;

/// The arguments of `cargo xtask test`.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Then run the kernel tests in virtual machines too, as `cargo xtask vm` does
    #[arg(long)]
    vm: bool,
    /// For cargo test, for instance the name of a test
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<String>,
}

/// Runs the command.
pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let binary = prepare()?;
    let mut test = cargo();
    test.args(["test", "--release", "--no-fail-fast"]).args(PACKAGES).args(&arguments.arguments);
    set_up(&mut test, &binary);
    let mut failed = Vec::new();
    let result = run_and_read(&mut test, |line| failed.extend(failed_test(line).map(str::to_owned)));
    if let Err(error) = result {
        if failed.is_empty() || failed.len() > MOST_AGAIN || !are_kernel_tests(&failed)? {
            return Err(error);
        }
        println!("\nonce more, by themselves: {}\n", failed.join(", "));
        let mut again = cargo();
        again.args(["test", "--release"]).args(PACKAGES).args(KERNEL_TESTS).args(["--", "--exact"]).args(&failed);
        set_up(&mut again, &binary);
        run_command(&mut again)?;
    }
    if arguments.vm { vm::run_usual() } else { Ok(()) }
}

/// The target of kernel tests.
const KERNEL_TESTS: [&str; 2] = ["--test", "kernel"];

/// Kernel tests share one kernel: two at a time would see each other's load. Unit tests lose nothing by it.
fn set_up(test: &mut std::process::Command, binary: &Path) {
    test.env("PROFILER_BIN", binary).env("RUST_TEST_THREADS", "1");
}

/// The name of a test, of a line that says that it has failed.
fn failed_test(line: &str) -> Option<&str> {
    line.strip_prefix("test ")?.strip_suffix(" ... FAILED")
}

/// Whether all of these are kernel tests.
fn are_kernel_tests(names: &[String]) -> anyhow::Result<bool> {
    let list = crate::command::output(
        cargo().args(["test", "--release"]).args(PACKAGES).args(KERNEL_TESTS).args(["--", "--list"]),
    )?;
    Ok(names.iter().all(|name| list.lines().any(|line| line.strip_suffix(": test") == Some(name))))
}

/// Installs what tests and benchmarks run, as far as it can, builds the release binary and returns its path.
///
/// The toolchain for eBPF is not needed here: the binary embeds the checked-in object.
pub(crate) fn prepare() -> anyhow::Result<PathBuf> {
    if let Err(error) = setup::test() {
        eprintln!("warning: tests and benchmarks will miss programs: {error:#}");
    }
    run_command(cargo().args(["build", "--release"]).args(PACKAGES))?;
    Ok(target_dir().join("release/profiler"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_test_that_failed_has_a_name() {
        assert_eq!(failed_test("test record_cpu::all_of_it ... FAILED"), Some("record_cpu::all_of_it"));
        assert_eq!(failed_test("test record_cpu::all_of_it ... ok"), None);
        assert_eq!(failed_test("test result: FAILED. 180 passed; 1 failed"), None);
    }
}
