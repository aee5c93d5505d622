//! `cargo xtask build-ebpf`: the crate `profiler-ebpf` -> `profiler/bpf/profiler.bpf.o` and the record beside it.
//!
//! The object is checked in, so that whoever builds the profiler needs stable Rust only. The build is reproducible:
//! the same sources and toolchain give the same bytes in any directory.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};

use crate::command::{root, run as run_command, target_dir};
use crate::digest::{Record, Versions, sha256, sources};
use crate::setup;
use crate::strip::strip;
use crate::toolchain::{TARGET, Toolchain};

/// The checked-in object, from the workspace's root.
const OBJECT: &str = "profiler/bpf/profiler.bpf.o";

/// What the record says about itself.
const NOTE: &str = "written by `cargo xtask build-ebpf` with the object beside it; do not edit";

/// The arguments of `cargo xtask build-ebpf`.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Build into target/bpf/check and fail when the checked-in object is stale or another
    #[arg(long, conflicts_with = "out")]
    check: bool,
    /// Build nothing: fail when the checked-in object is stale or is not the recorded one
    #[arg(long, conflicts_with_all = ["check", "out"])]
    digest_only: bool,
    /// Write the object here (and its record beside it, .json) instead of into profiler/bpf
    #[arg(long, value_name = "PATH")]
    out: Option<PathBuf>,
}

/// Runs the command.
///
/// Errors: no toolchain, the build fails, or a check found a difference.
pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    if arguments.digest_only {
        check_record()?;
        return Ok(());
    }
    setup::ebpf()?;
    let toolchain = Toolchain::find()?;
    let out = match &arguments.out {
        Some(out) => std::path::absolute(out)?,
        None if arguments.check => target_dir().join("bpf/check/profiler.bpf.o"),
        None => root().join(OBJECT),
    };
    let built = build(&toolchain, &out)?;
    println!("wrote {} ({} bytes)", out.display(), fs::metadata(&out)?.len());
    if arguments.check { compare(&check_record()?, &built) } else { Ok(()) }
}

/// Builds, strips and writes the object to `out`, and the record beside it.
fn build(toolchain: &Toolchain, out: &Path) -> anyhow::Result<Record> {
    let root = root();
    let record_sources = sources(&root)?;
    // A directory of its own, so that neither build makes the other start again.
    let target_dir = target_dir().join("bpf");
    let mut cargo = toolchain.cargo_build()?;
    cargo.args(["--package", "profiler-ebpf", "--profile", "bpf", "--locked", "--target-dir"]).arg(&target_dir);
    cargo.env("CARGO_ENCODED_RUSTFLAGS", rustflags(&root, toolchain)?);
    run_command(&mut cargo)?;

    let linked = target_dir.join(TARGET).join("bpf/profiler");
    let linked = fs::read(&linked).with_context(|| format!("cannot read {}", linked.display()))?;
    let object = strip(&linked)?;
    let record = Record {
        note: NOTE.to_owned(),
        sources_sha256: record_sources,
        object_sha256: sha256(&object),
        toolchain: Versions {
            rustc: toolchain.rustc_version()?,
            llvm: toolchain.llvm_version()?,
            bpf_linker: toolchain.linker_version()?,
        },
    };
    if let Some(dir) = out.parent() {
        fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
    }
    fs::write(out, object).with_context(|| format!("cannot write {}", out.display()))?;
    record.write(&out.with_extension("json"))?;
    Ok(record)
}

/// The flags for rustc, separated by 0x1f as `CARGO_ENCODED_RUSTFLAGS` wants them.
fn rustflags(root: &Path, toolchain: &Toolchain) -> anyhow::Result<OsString> {
    let mut flags: Vec<OsString> = [
        "-Clinker=bpf-linker",
        "-Clink-arg=--btf",
        // BTF is made from DWARF.
        "-Cdebuginfo=2",
        // Atomics that return a value, and 32-bit jumps; every kernel we support has them (Linux 5.12).
        "-Ctarget-cpu=v3",
    ]
    .map(OsString::from)
    .into();
    // No path of this machine may be in the object. Sources of the workspace keep their relative path, by which the
    // linker, started in its root, finds their text for BTF's source lines.
    let mut remap = |from: &Path, to: &str| {
        let mut flag = OsString::from("--remap-path-prefix=");
        flag.push(from);
        flag.push("=");
        flag.push(to);
        flags.push(flag);
    };
    remap(root, ".");
    for registry in registries()? {
        remap(&registry, "crates");
    }
    remap(&toolchain.rust_src()?, "rust");
    Ok(flags.join(OsString::from("\x1f").as_os_str()))
}

/// The directories of unpacked crates: one for each registry cargo has used.
fn registries() -> anyhow::Result<Vec<PathBuf>> {
    let home = match (std::env::var_os("CARGO_HOME"), std::env::home_dir()) {
        (Some(home), _) => PathBuf::from(home),
        (None, Some(home)) => home.join(".cargo"),
        (None, None) => bail!("neither CARGO_HOME nor HOME is set"),
    };
    let sources = home.join("registry/src");
    let Ok(entries) = fs::read_dir(&sources) else { return Ok(Vec::new()) };
    entries.map(|entry| Ok(entry?.path())).collect()
}

/// Checks that the checked-in object is the recorded one and that the recorded sources are those of the tree.
fn check_record() -> anyhow::Result<Record> {
    let object = root().join(OBJECT);
    let record = Record::read(&object.with_extension("json"))?;
    let bytes = fs::read(&object).with_context(|| format!("cannot read {}", object.display()))?;
    if record.sources_sha256 != sources(&root())? {
        bail!("{OBJECT} is stale: its sources have changed since; run `cargo xtask build-ebpf`");
    }
    if record.object_sha256 != sha256(&bytes) {
        bail!("{OBJECT} is not the object its record describes; run `cargo xtask build-ebpf`");
    }
    println!("{OBJECT} matches its record and its sources");
    Ok(record)
}

/// Compares the rebuilt object with the recorded one, when the same toolchain built both.
fn compare(recorded: &Record, built: &Record) -> anyhow::Result<()> {
    if recorded.toolchain != built.toolchain {
        println!("another toolchain than the recorded one, bytes are not compared");
    } else if recorded.object_sha256 != built.object_sha256 {
        bail!("{OBJECT} is not what its sources build with the recorded toolchain; run `cargo xtask build-ebpf`");
    } else {
        println!("the rebuilt object is the checked-in one, byte for byte");
    }
    Ok(())
}
