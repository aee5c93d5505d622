//! The toolchain that builds eBPF from Rust: a rustc with core for the BPF target, and bpf-linker.
//!
//! Two are accepted: a distribution's Rust that ships core for the target (Debian's rustc-web with
//! libstd-rust-web-dev-bpf), and a rustup nightly with rust-src, which builds core itself.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context as _;

use crate::command::{find, foreign, output, target_dir};

/// The target eBPF code is built for: little endian, as every host we support.
pub(crate) const TARGET: &str = "bpfel-unknown-none";

/// Where distributions put their Rust; rustup's proxies come first on `PATH`, so it is named in full.
pub(crate) const DISTRIBUTION_BIN: &str = "/usr/bin";

/// A toolchain that can build the eBPF object.
pub(crate) struct Toolchain {
    rust: Rust,
    /// The directory bpf-linker is in.
    linker_dir: PathBuf,
}

/// Where core for the target comes from.
#[derive(Clone, Copy, PartialEq)]
enum Rust {
    /// It is installed.
    Distribution,
    /// It is built from rust-src.
    Nightly,
}

impl Toolchain {
    /// Finds a toolchain.
    ///
    /// Errors: what is missing, and how to get it.
    pub(crate) fn find() -> anyhow::Result<Self> {
        let rust = find_rust().with_context(|| {
            format!(
                "no Rust that builds for {TARGET}; on Debian `cargo xtask setup` installs rustc-web, cargo-web and \
                 libstd-rust-web-dev-bpf; elsewhere `rustup toolchain install nightly --component rust-src`"
            )
        })?;
        let linker = find_linker().context(
            "no bpf-linker; on Debian `cargo xtask setup` builds it; elsewhere `cargo install bpf-linker`, \
             built with an LLVM at least as new as the one of `rustc -vV`",
        )?;
        let linker_dir = linker.parent().unwrap_or(Path::new("/")).to_path_buf();
        Ok(Self { rust, linker_dir })
    }

    /// `cargo build` for the target, with everything in the environment but the flags for rustc.
    pub(crate) fn cargo_build(&self) -> anyhow::Result<Command> {
        let mut cargo = self.cargo();
        let path = std::env::var_os("PATH").unwrap_or_default();
        let dirs = std::iter::once(self.linker_dir.clone()).chain(std::env::split_paths(&path));
        cargo.env("PATH", std::env::join_paths(dirs).context("cannot put bpf-linker on PATH")?);
        cargo.args(["build", "--target", TARGET]);
        if self.rust == Rust::Nightly {
            cargo.arg("-Zbuild-std=core");
        }
        Ok(cargo)
    }

    /// Where rust-src is, if it is installed.
    pub(crate) fn rust_src(&self) -> anyhow::Result<PathBuf> {
        Ok(rust_src(&output(self.rustc().args(["--print", "sysroot"]))?))
    }

    /// rustc's version, for instance `rustc 1.96.0 (ac68faa20 2026-05-25)`.
    pub(crate) fn rustc_version(&self) -> anyhow::Result<String> {
        output(self.rustc().arg("--version"))
    }

    /// The version of rustc's LLVM.
    pub(crate) fn llvm_version(&self) -> anyhow::Result<String> {
        let version = output(self.rustc().arg("-vV"))?;
        let llvm = version.lines().find_map(|line| line.strip_prefix("LLVM version: "));
        Ok(llvm.context("`rustc -vV` names no LLVM version")?.to_owned())
    }

    /// bpf-linker's version.
    pub(crate) fn linker_version(&self) -> anyhow::Result<String> {
        output(foreign(self.linker_dir.join("bpf-linker")).arg("--version"))
    }

    fn cargo(&self) -> Command {
        match self.rust {
            Rust::Distribution => {
                let mut cargo = foreign(Path::new(DISTRIBUTION_BIN).join("cargo"));
                // aya-ebpf uses an unstable feature.
                cargo.env("RUSTC", Path::new(DISTRIBUTION_BIN).join("rustc")).env("RUSTC_BOOTSTRAP", "1");
                cargo
            }
            Rust::Nightly => nightly("cargo"),
        }
    }

    fn rustc(&self) -> Command {
        match self.rust {
            Rust::Distribution => foreign(Path::new(DISTRIBUTION_BIN).join("rustc")),
            Rust::Nightly => nightly("rustc"),
        }
    }
}

/// The Rust to build with: the distribution's if it has core for the target, else a nightly with rust-src.
fn find_rust() -> Option<Rust> {
    let distribution = Path::new(DISTRIBUTION_BIN);
    if distribution.join("cargo").is_file()
        && output(foreign(distribution.join("rustc")).args(["--print", "target-libdir", "--target", TARGET]))
            .is_ok_and(|dir| Path::new(&dir).is_dir())
    {
        return Some(Rust::Distribution);
    }
    find("rustup")?;
    let sysroot = output(nightly("rustc").args(["--print", "sysroot"])).ok()?;
    rust_src(&sysroot).join("library/core").is_dir().then_some(Rust::Nightly)
}

/// bpf-linker: the one that `cargo xtask setup` built, else the one on `PATH`.
pub(crate) fn find_linker() -> Option<PathBuf> {
    let built = tools_dir().join("bin/bpf-linker");
    if built.is_file() { Some(built) } else { find("bpf-linker") }
}

/// Where `cargo xtask setup` installs what it builds.
pub(crate) fn tools_dir() -> PathBuf {
    target_dir().join("tools")
}

/// Source: the layout of a rustup toolchain.
fn rust_src(sysroot: &str) -> PathBuf {
    Path::new(sysroot).join("lib/rustlib/src/rust")
}

/// A program of the nightly toolchain.
fn nightly(program: &str) -> Command {
    let mut command = foreign("rustup");
    command.args(["run", "nightly", program]);
    command
}
