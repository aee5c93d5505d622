//! `cargo xtask lint`: formatting, clippy and the documentation, warnings denied.

use crate::command::{cargo, run as run_command, target_dir};
use crate::test::PACKAGES;

/// Runs the command.
pub(crate) fn run() -> anyhow::Result<()> {
    run_command(cargo().args(["fmt", "--all", "--check"]))?;
    run_command(cargo().arg("clippy").args(PACKAGES).args(["--all-targets", "--", "-Dwarnings"]))?;
    // The eBPF crate is checked for the host: no clippy knows the BPF target without rust-src. aya-ebpf uses an
    // unstable feature, and the profile aborts on panic as a program without std must.
    let mut ebpf = cargo();
    ebpf.args(["clippy", "--package", "profiler-ebpf", "--profile", "bpf", "--target-dir"]);
    ebpf.arg(target_dir().join("bpf")).args(["--", "-Dwarnings"]).env("RUSTC_BOOTSTRAP", "1");
    run_command(&mut ebpf)?;
    run_command(cargo().args(["doc", "--no-deps"]).args(PACKAGES).env("RUSTDOCFLAGS", "-Dwarnings"))
}
