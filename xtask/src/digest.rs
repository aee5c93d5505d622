//! What the checked-in eBPF object came from: a digest of its sources, and the record beside it.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

/// The crates the object is built from, each a directory in the workspace.
const CRATES: [&str; 2] = ["profiler-common", "profiler-ebpf"];

/// The record beside the checked-in object.
#[derive(Serialize, Deserialize)]
pub(crate) struct Record {
    /// What this file is, for who opens it.
    pub(crate) note: String,
    /// The digest of the object's sources, by [`sources`].
    pub(crate) sources_sha256: String,
    /// The digest of the object.
    pub(crate) object_sha256: String,
    /// What built it.
    pub(crate) toolchain: Versions,
}

/// The versions that decide the object's bytes.
#[derive(Serialize, Deserialize, PartialEq)]
pub(crate) struct Versions {
    /// `rustc --version`.
    pub(crate) rustc: String,
    /// The version of rustc's LLVM.
    pub(crate) llvm: String,
    /// `bpf-linker --version`.
    pub(crate) bpf_linker: String,
}

impl Record {
    /// Reads a record.
    pub(crate) fn read(path: &Path) -> anyhow::Result<Self> {
        let text = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        serde_json::from_slice(&text).with_context(|| format!("cannot parse {}", path.display()))
    }

    /// Writes the record, one field a line.
    pub(crate) fn write(&self, path: &Path) -> anyhow::Result<()> {
        let text = serde_json::to_string_pretty(self)? + "\n";
        fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
    }
}

/// The SHA-256 of `bytes` in hexadecimal.
pub(crate) fn sha256(bytes: &[u8]) -> String {
    hex(Sha256::new_with_prefix(bytes))
}

/// The digest of everything the object is built from, in hexadecimal.
///
/// Per file, sorted by path: the path from `root`, its length in bytes, its contents; then the locked `aya-ebpf`
/// packages with their checksums, as `Cargo.lock` has them.
pub(crate) fn sources(root: &Path) -> anyhow::Result<String> {
    let mut files = BTreeSet::new();
    for name in CRATES {
        let dir = Path::new(name);
        files.insert(dir.join("Cargo.toml"));
        list(root, &dir.join("src"), &mut files)?;
    }
    let mut hasher = Sha256::new();
    for file in &files {
        let contents = read(&root.join(file))?;
        hasher.update(format!("{} {}\n", file.display(), contents.len()));
        hasher.update(contents);
    }
    for package in locked(&String::from_utf8(read(&root.join("Cargo.lock"))?)?) {
        hasher.update(format!("{package}\n"));
    }
    Ok(hex(hasher))
}

/// Adds every file under `root`/`dir`, as a path from `root`.
fn list(root: &Path, dir: &Path, files: &mut BTreeSet<PathBuf>) -> anyhow::Result<()> {
    let path = root.join(dir);
    for entry in fs::read_dir(&path).with_context(|| format!("cannot list {}", path.display()))? {
        let entry = entry?;
        let file = dir.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            list(root, &file, files)?;
        } else {
            files.insert(file);
        }
    }
    Ok(())
}

/// The `aya-ebpf` packages of a `Cargo.lock`: name, version and checksum, in the file's order, which is sorted.
fn locked(lock: &str) -> impl Iterator<Item = String> {
    lock.split("[[package]]").filter(|package| package.contains("\nname = \"aya-ebpf")).map(|package| {
        let fields = ["name = ", "version = ", "checksum = "];
        let lines = package.lines().filter(|line| fields.iter().any(|field| line.starts_with(field)));
        lines.collect::<Vec<_>>().join(" ")
    })
}

fn read(path: &Path) -> anyhow::Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}

fn hex(hasher: Sha256) -> String {
    hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn locked_takes_the_ebpf_packages_and_leaves_out_their_dependencies() {
        let lock = "version = 4\n\n[[package]]\nname = \"aya\"\nversion = \"0.14.0\"\n\n[[package]]\n\
                    name = \"aya-ebpf\"\nversion = \"0.2.1\"\nchecksum = \"ab\"\ndependencies = [\n \"x\",\n]\n";
        let packages: Vec<_> = locked(lock).collect();
        assert_eq!(packages, ["name = \"aya-ebpf\" version = \"0.2.1\" checksum = \"ab\""]);
    }
}
