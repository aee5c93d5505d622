//! `cargo xtask test`: every test of the workspace, on the release binary.
//!
//! One selection of packages and one profile throughout, so that nothing is compiled twice.

use std::path::PathBuf;

use crate::command::{cargo, run as run_command, target_dir};
use crate::{setup, vm};

/// Every package but the eBPF crate, which builds for another target.
pub(crate) const PACKAGES: [&str; 3] = ["--workspace", "--exclude", "profiler-ebpf"];

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
    test.args(["test", "--release"]).args(PACKAGES).args(&arguments.arguments).env("PROFILER_BIN", binary);
    // Kernel tests share one kernel: two at a time would see each other's load. Unit tests lose nothing by it.
    test.env("RUST_TEST_THREADS", "1");
    run_command(&mut test)?;
    if arguments.vm { vm::run_usual() } else { Ok(()) }
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
