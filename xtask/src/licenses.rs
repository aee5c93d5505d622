//! `cargo xtask licenses`: every package that ends up in what we ship has a licence we accept.
//!
//! `cargo metadata` -> the packages reached by normal dependencies -> each one's SPDX expression, evaluated against
//! the list below.

use std::collections::{HashMap, HashSet};

use anyhow::{Context as _, bail};
use serde::Deserialize;

use crate::command::{cargo, output};

/// What we accept in any package.
const ACCEPTED: [&str; 9] = [
    "0BSD",
    "Apache-2.0",
    "Apache-2.0 WITH LLVM-exception",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "ISC",
    "MIT",
    "Unicode-3.0",
    "Zlib",
];

/// What we accept in one package: CDDL is copyleft by file, so it binds who changes inferno (see NOTICE).
const EXCEPTIONS: [(&str, &str); 1] = [("inferno", "CDDL-1.0")];

/// What of `cargo metadata` matters here.
#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
    workspace_members: Vec<String>,
    resolve: Resolve,
}

#[derive(Deserialize)]
struct Package {
    id: String,
    name: String,
    version: String,
    license: Option<String>,
}

#[derive(Deserialize)]
struct Resolve {
    nodes: Vec<Node>,
}

#[derive(Deserialize)]
struct Node {
    id: String,
    deps: Vec<Dependency>,
}

#[derive(Deserialize)]
struct Dependency {
    pkg: String,
    dep_kinds: Vec<DependencyKind>,
}

#[derive(Deserialize)]
struct DependencyKind {
    /// Nothing for a normal dependency, else `dev` or `build`.
    kind: Option<String>,
}

/// Runs the command.
///
/// Errors: the packages that are not accepted, one a line.
pub(crate) fn run() -> anyhow::Result<()> {
    let arguments = ["metadata", "--format-version=1", "--locked", "--filter-platform=x86_64-unknown-linux-gnu"];
    let metadata: Metadata = serde_json::from_str(&output(cargo().args(arguments))?)
        .context("cannot parse the output of `cargo metadata`")?;
    let shipped = shipped(&metadata);
    let refused: Vec<_> = metadata
        .packages
        .iter()
        .filter(|package| shipped.contains(package.id.as_str()))
        .filter(|package| !is_accepted(&package.name, package.license.as_deref().unwrap_or_default()))
        .map(|package| {
            let license = package.license.as_deref().unwrap_or("no licence");
            format!("  {} {}: {license}", package.name, package.version)
        })
        .collect();
    if !refused.is_empty() {
        bail!("licences that are not on the list in xtask/src/licenses.rs:\n{}", refused.join("\n"));
    }
    println!("the licences of {} packages are accepted", shipped.len());
    Ok(())
}

/// The packages reached from the workspace by normal dependencies, the workspace's own included.
fn shipped(metadata: &Metadata) -> HashSet<&str> {
    let nodes: HashMap<_, _> = metadata.resolve.nodes.iter().map(|node| (node.id.as_str(), node)).collect();
    let mut reached = HashSet::new();
    let mut next: Vec<&str> = metadata.workspace_members.iter().map(String::as_str).collect();
    while let Some(id) = next.pop() {
        if reached.insert(id)
            && let Some(node) = nodes.get(id)
        {
            let is_normal = |dependency: &&Dependency| dependency.dep_kinds.iter().any(|kind| kind.kind.is_none());
            next.extend(node.deps.iter().filter(is_normal).map(|dependency| dependency.pkg.as_str()));
        }
    }
    reached
}

/// Whether the SPDX expression `license` leaves a choice that `package` may be used under.
///
/// Old manifests write `/` for `OR`. An expression that cannot be read is not accepted.
/// Source: SPDX 2.3, annex D; AND binds more tightly than OR.
fn is_accepted(package: &str, license: &str) -> bool {
    let spaced = license.replace('/', " OR ").replace('(', " ( ").replace(')', " ) ");
    let mut words: Vec<&str> = spaced.split_whitespace().rev().collect();
    any_of(package, &mut words) == Some(true) && words.is_empty()
}

/// `a OR b ...`; `words`: what is left, the next word last. None: not an expression.
fn any_of(package: &str, words: &mut Vec<&str>) -> Option<bool> {
    let mut accepted = all_of(package, words)?;
    while words.pop_if(|word| *word == "OR").is_some() {
        accepted |= all_of(package, words)?;
    }
    Some(accepted)
}

/// `a AND b ...`
fn all_of(package: &str, words: &mut Vec<&str>) -> Option<bool> {
    let mut accepted = one(package, words)?;
    while words.pop_if(|word| *word == "AND").is_some() {
        accepted &= one(package, words)?;
    }
    Some(accepted)
}

/// `( ... )`, `id` or `id WITH exception`
fn one(package: &str, words: &mut Vec<&str>) -> Option<bool> {
    let word = words.pop()?;
    if word == "(" {
        let accepted = any_of(package, words)?;
        return (words.pop()? == ")").then_some(accepted);
    }
    let mut license = word.to_owned();
    if words.pop_if(|word| *word == "WITH").is_some() {
        license = format!("{license} WITH {}", words.pop()?);
    }
    Some(ACCEPTED.contains(&license.as_str()) || EXCEPTIONS.contains(&(package, &license)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(package: &str, license: &str, expected: bool) {
        assert_eq!(is_accepted(package, license), expected, "{package}: {license}");
    }

    #[test]
    fn one_accepted_choice_is_enough() {
        check("a", "MIT", true);
        check("a", "GPL-2.0-only OR MIT", true);
        check("a", "MIT/Apache-2.0", true);
        check("a", "GPL-2.0-only", false);
    }

    #[test]
    fn every_part_of_a_conjunction_must_be_accepted() {
        check("a", "(MIT OR Apache-2.0) AND Unicode-3.0", true);
        check("a", "MIT AND GPL-2.0-only", false);
        check("a", "GPL-2.0-only AND MIT OR ISC", true);
        check("a", "(GPL-2.0-only OR MIT) AND (LGPL-2.1-only OR ISC)", true);
    }

    #[test]
    fn an_exception_belongs_to_its_licence() {
        check("a", "Apache-2.0 WITH LLVM-exception", true);
        check("a", "MIT WITH LLVM-exception", false);
    }

    #[test]
    fn a_licence_of_one_package_is_not_everyones() {
        check("inferno", "CDDL-1.0", true);
        check("a", "CDDL-1.0", false);
    }

    #[test]
    fn what_cannot_be_read_is_refused() {
        check("a", "", false);
        check("a", "MIT OR", false);
        check("a", "(MIT", false);
        check("a", "MIT ISC", false);
    }
}
