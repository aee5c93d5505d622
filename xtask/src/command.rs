//! Starting other programs: echoed, from the workspace's root, a failure is an error with the command in it.

use std::ffi::OsStr;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, bail};

/// What `cargo run` and rustup set for us and a cargo of another toolchain must not inherit.
const CARGO_ENVIRONMENT: [&str; 13] = [
    "CARGO",
    "CARGO_BUILD_RUSTFLAGS",
    "CARGO_BUILD_TARGET",
    "CARGO_ENCODED_RUSTFLAGS",
    "CARGO_TARGET_DIR",
    "LD_LIBRARY_PATH",
    "RUSTC",
    "RUSTC_WORKSPACE_WRAPPER",
    "RUSTC_WRAPPER",
    "RUSTDOC",
    "RUSTDOCFLAGS",
    "RUSTFLAGS",
    "RUSTUP_TOOLCHAIN",
];

/// The workspace's root directory.
pub(crate) fn root() -> PathBuf {
    // The manifest directory is known when xtask is built, and asked again at run time in case the checkout moved.
    let manifest = std::env::var_os("CARGO_MANIFEST_DIR").unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into());
    Path::new(&manifest).parent().map_or_else(|| PathBuf::from("."), Path::to_path_buf)
}

/// The target directory: `CARGO_TARGET_DIR` if it is set, else `target`.
pub(crate) fn target_dir() -> PathBuf {
    root().join(std::env::var_os("CARGO_TARGET_DIR").unwrap_or_else(|| "target".into()))
}

/// A command that runs in the workspace's root.
pub(crate) fn command(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    command.current_dir(root());
    command
}

/// The cargo that runs xtask.
pub(crate) fn cargo() -> Command {
    command(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
}

/// A cargo of another toolchain: nothing of the one that runs xtask reaches it.
pub(crate) fn foreign(program: impl AsRef<OsStr>) -> Command {
    let mut command = command(program);
    for name in CARGO_ENVIRONMENT {
        command.env_remove(name);
    }
    command
}

/// Prints the command, runs it and waits.
///
/// Errors: it cannot be started, or it does not exit 0.
pub(crate) fn run(command: &mut Command) -> anyhow::Result<()> {
    let line = line(command);
    println!("+ {line}");
    let status = command.status().with_context(|| format!("cannot start `{line}`"))?;
    if !status.success() {
        bail!("`{line}` failed: {status}");
    }
    Ok(())
}

/// As [`run`]; `read` also gets every line that the command writes to standard output.
pub(crate) fn run_and_read(command: &mut Command, mut read: impl FnMut(&str)) -> anyhow::Result<()> {
    let line = line(command);
    println!("+ {line}");
    let mut child = command.stdout(Stdio::piped()).spawn().with_context(|| format!("cannot start `{line}`"))?;
    for text in child.stdout.take().map(BufReader::new).into_iter().flat_map(BufReader::lines) {
        let text = text.with_context(|| format!("cannot read what `{line}` writes"))?;
        println!("{text}");
        read(&text);
    }
    let status = child.wait().with_context(|| format!("cannot wait for `{line}`"))?;
    if !status.success() {
        bail!("`{line}` failed: {status}");
    }
    Ok(())
}

/// Runs the command and returns what it wrote to standard output, without the last newline.
///
/// Errors: it cannot be started, it does not exit 0, or it wrote something that is not UTF-8.
pub(crate) fn output(command: &mut Command) -> anyhow::Result<String> {
    let line = line(command);
    let output = command.output().with_context(|| format!("cannot start `{line}`"))?;
    if !output.status.success() {
        bail!("`{line}` failed: {}\n{}", output.status, String::from_utf8_lossy(&output.stderr).trim_end());
    }
    let text = String::from_utf8(output.stdout).with_context(|| format!("`{line}` wrote no UTF-8"))?;
    Ok(text.trim_end().to_owned())
}

/// Where `program` is on `PATH`, or in the two directories of administration commands that a user's `PATH` may lack.
pub(crate) fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let extra = ["/usr/sbin", "/sbin"].map(PathBuf::from);
    std::env::split_paths(&path).chain(extra).map(|dir| dir.join(program)).find(|file| file.is_file())
}

/// The command as it would be typed, without quotes and environment.
fn line(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(OsStr::to_string_lossy).collect::<Vec<_>>().join(" ")
}
