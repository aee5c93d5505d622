//! What ARCHITECTURE.md says of the sources, checked on the sources: which way imports run, and what is nowhere.
//!
//! Looks at the text of the code, without comments and files of tests: a name that appears is taken for a use. Runs
//! nothing, needs no root.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// The modules of the profiler, left to right: a module may use those of the layers before its own, and itself.
const LAYERS: [&[&str]; 5] = [
    &["profile", "process", "disk_cache"],
    &["alloc", "bpf", "python", "unwind", "symbolize", "analyze", "output"],
    &["collect"],
    &["daemon"],
    &["cli"],
];

/// Names that only some modules may use: names, modules, and the sentence they stand for.
const ONLY_IN: [(&[&str], &[&str], &str); 12] = [
    (&["aya", "perf_event_open", "SYS_perf_event_open", "SYS_bpf"], &["bpf"], "only bpf knows eBPF and perf events"),
    (&["clap"], &["cli"], "only cli knows clap"),
    (&["print", "println", "eprint", "eprintln", "indicatif", "ratatui"], &["cli"], "only cli prints"),
    (
        &["stdout", "stderr"],
        &["cli", "symbolize", "bpf", "collect", "daemon"],
        "only cli prints; symbolize reads what debuginfod-find prints; what others start may have none",
    ),
    (&["ExitCode"], &["cli", "main"], "only cli chooses an exit code"),
    (&["prost", "inferno"], &["output"], "only output knows a format's bytes"),
    (
        &["flate2"],
        &["output", "process", "unwind", "disk_cache", "symbolize"],
        "only output compresses; others expand sections and compute checksums",
    ),
    (&["blazesym"], &["symbolize"], "only symbolize looks names up"),
    (
        &["gimli"],
        &["symbolize"],
        "call-frame information is read by unwind itself; gimli is what its tests compare with",
    ),
    (&["tokio"], &["bpf", "collect", "daemon", "cli"], "the model, analysis and output do not wait"),
    (
        &["redb", "axum", "hyper", "hyper_util", "tokio_rustls", "prometheus_client"],
        &["daemon"],
        "only the daemon keeps a history and speaks to a network",
    ),
    (&["jiff"], &["daemon", "cli"], "times of a calendar are for whoever asks for one"),
];

/// Modules that are pure functions of their input.
const PURE: [&str; 3] = ["profile", "analyze", "output"];

/// What system calls are made by.
const SYSTEM: [&str; 13] = [
    "libc",
    "fs",
    "net",
    "os",
    "env",
    "thread",
    "process",
    "SystemTime",
    "Instant",
    "File",
    "stdin",
    "stdout",
    "stderr",
];

/// A source file of a crate.
struct Source {
    /// Its path below the crate's `src`.
    path: PathBuf,
    /// Its first directory, or its own name: the top-level module it belongs to.
    module: String,
    /// Its text without comments.
    code: String,
}

/// The source files below `src` of a crate of the workspace.
fn sources(krate: &str) -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(krate).join("src");
    let mut todo = vec![root.clone()];
    let mut found = Vec::new();
    while let Some(directory) = todo.pop() {
        for entry in fs::read_dir(&directory).unwrap_or_else(|error| panic!("{}: {error}", directory.display())) {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                todo.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let code = without_comments(&fs::read_to_string(&path).expect("a source file"));
                if code.trim_start().starts_with("#![cfg(test)]") {
                    continue;
                }
                let path = path.strip_prefix(&root).expect("a path below src").to_owned();
                let first = Path::new(path.components().next().expect("a name").as_os_str());
                let module = first.file_stem().expect("a name").to_string_lossy().into_owned();
                found.push(Source { path, module, code });
            }
        }
    }
    assert!(!found.is_empty(), "{} has no sources", root.display());
    found
}

fn without_comments(text: &str) -> String {
    let code = |line: &str| {
        let end = if line.trim_start().starts_with("//") { 0 } else { line.find(" // ").unwrap_or(line.len()) };
        line[..end].to_owned()
    };
    text.lines().map(code).collect::<Vec<_>>().join("\n")
}

/// The identifiers of a text.
fn words(text: &str) -> BTreeSet<&str> {
    text.split(|character: char| !character.is_alphanumeric() && character != '_').collect()
}

/// The top-level modules that a file names by a path from the crate's root, or from its own module's parent.
fn imports(code: &str) -> BTreeSet<&str> {
    let modules: BTreeSet<&str> = LAYERS.concat().into_iter().collect();
    let mut named = BTreeSet::new();
    for (place, prefix) in code.match_indices("crate::").chain(code.match_indices("super::")) {
        let rest = &code[place + prefix.len()..];
        let heads: Vec<&str> = match rest.strip_prefix('{') {
            Some(group) => heads(group),
            None => rest.split(|character: char| !character.is_alphanumeric() && character != '_').take(1).collect(),
        };
        named.extend(heads.into_iter().filter(|head| modules.contains(head)));
    }
    named
}

/// The first name of each path in a group of imports, which ends with its closing brace.
fn heads(group: &str) -> Vec<&str> {
    let (mut depth, mut start, mut found) = (0, 0, Vec::new());
    for (place, character) in group.char_indices() {
        match character {
            '{' => depth += 1,
            '}' if depth == 0 => {
                found.push(&group[start..place]);
                break;
            }
            '}' => depth -= 1,
            ',' if depth == 0 => {
                found.push(&group[start..place]);
                start = place + 1;
            }
            _ => {}
        }
    }
    found.iter().map(|path| path.trim().split("::").next().unwrap_or_default()).collect()
}

fn layer(module: &str) -> Option<usize> {
    LAYERS.iter().position(|layer| layer.contains(&module))
}

fn check(problems: &[String]) {
    assert!(problems.is_empty(), "{}", problems.join("\n"));
}

#[test]
fn groups_of_imports_are_taken_apart() {
    assert_eq!(imports("use crate::{bpf::{Kernel, Limits}, cli, profile::x};"), ["bpf", "cli", "profile"].into());
    assert_eq!(imports("use crate::process; super::output::files(); crate::processes"), ["output", "process"].into());
}

#[test]
fn every_module_has_a_layer() {
    let modules: BTreeSet<String> = sources("profiler").into_iter().map(|source| source.module).collect();
    let listed = LAYERS.concat().into_iter().chain(["lib", "main"]).map(str::to_owned).collect();
    assert_eq!(modules, listed, "place new modules in LAYERS, and in ARCHITECTURE.md");
}

#[test]
fn imports_run_one_way_and_siblings_do_not_import_each_other() {
    let mut problems = Vec::new();
    for source in sources("profiler") {
        let Some(own) = layer(&source.module) else { continue };
        for import in imports(&source.code) {
            if import != source.module && layer(import) >= Some(own) {
                problems.push(format!("{} imports {import}", source.path.display()));
            }
        }
    }
    check(&problems);
}

#[test]
fn names_are_used_only_where_they_belong() {
    let mut problems = Vec::new();
    for source in sources("profiler") {
        let used = words(&source.code);
        for (names, modules, sentence) in ONLY_IN {
            for name in names.iter().filter(|name| used.contains(*name) && !modules.contains(&source.module.as_str())) {
                problems.push(format!("{} uses {name}: {sentence}", source.path.display()));
            }
        }
    }
    check(&problems);
}

#[test]
fn the_model_the_analysis_and_the_output_make_no_system_call() {
    let mut problems = Vec::new();
    for source in sources("profiler").iter().filter(|source| PURE.contains(&source.module.as_str())) {
        for name in SYSTEM {
            // As a path only: a field may be called so.
            let paths = [format!("std::{name}"), format!("{name}::"), format!("use {name}")];
            if paths.iter().any(|path| source.code.contains(path)) {
                problems.push(format!("{} uses {name}", source.path.display()));
            }
        }
    }
    check(&problems);
}

#[test]
fn nothing_is_pinned_and_the_drain_does_not_sleep() {
    let mut problems = Vec::new();
    for source in sources("profiler").iter().filter(|source| source.module == "bpf") {
        let sleeps = source.path.ends_with("drain.rs") && source.code.contains("sleep");
        for word in [".pin(", "from_pin", "pinned", "OBJ_PIN"] {
            if source.code.contains(word) || sleeps {
                problems.push(format!("{} has {word}", source.path.display()));
            }
        }
    }
    check(&problems);
}

#[test]
fn the_programs_neither_spin_nor_allocate() {
    let mut problems = Vec::new();
    for source in sources("profiler-ebpf") {
        for word in words(&source.code) {
            if ["BPF_F_NO_PREALLOC", "spin_loop", "bpf_spin_lock"].contains(&word) {
                problems.push(format!("{} has {word}", source.path.display()));
            }
        }
        // Without this there is nothing that allocates.
        if source.code.contains("extern crate alloc") {
            problems.push(format!("{} allocates", source.path.display()));
        }
    }
    check(&problems);
}

#[test]
fn what_kernel_and_user_space_share_needs_nothing() {
    for source in sources("profiler-common") {
        let used = words(&source.code);
        if source.module == "lib" {
            assert!(used.contains("no_std"), "profiler-common is no_std");
        }
        // Tests run on the host.
        let code = source.code.split("#[cfg(test)]\nmod ").next().unwrap_or_default();
        let (std, alloc) = (code.contains("std::"), code.contains("alloc::"));
        assert!(!std && !alloc, "{} uses std or alloc", source.path.display());
    }
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("../profiler-common/Cargo.toml");
    let manifest = fs::read_to_string(manifest).unwrap();
    let (_, after) = manifest.split_once("[dependencies]").unwrap_or_default();
    let dependencies = after.split("\n[").next().unwrap_or_default();
    assert!(dependencies.trim().is_empty(), "profiler-common has dependencies: {dependencies}");
}
