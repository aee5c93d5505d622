//! What functions are, by a table of patterns of their names.

use serde::{Deserialize, Serialize};

use crate::analyze::phases::Phase;
use crate::profile::FindingKind;

/// The table that is built in.
const BUILT_IN: &str = include_str!("patterns.toml");

/// Functions of one kind.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pattern {
    /// What it is called: `hashing`.
    pub kind: String,
    /// What kind of finding it makes.
    pub finding: FindingKind,
    /// What helps; `{function}` stands for the function that does most of it.
    pub advice: String,
    /// Names of functions; `*` stands for anything.
    pub names: Vec<String>,
}

/// A file of patterns and thresholds.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RuleFile {
    /// Patterns, the first that fits first.
    pub pattern: Vec<Pattern>,
    /// Phases, the first that fits a function first.
    pub phase: Vec<Phase>,
    /// Limits.
    pub thresholds: super::Thresholds,
}

/// The patterns that are built in.
pub(super) fn built_in() -> Vec<Pattern> {
    // The tests read it too: what is built in is sound.
    toml::from_str::<RuleFile>(BUILT_IN).map(|file| lower_case(file.pattern)).unwrap_or_default()
}

/// Patterns as [`find`] takes them.
pub(super) fn lower_case(mut patterns: Vec<Pattern>) -> Vec<Pattern> {
    for name in patterns.iter_mut().flat_map(|pattern| &mut pattern.names) {
        *name = name.to_lowercase();
    }
    patterns
}

/// The first pattern that fits a name, by its place. The patterns are in lower case.
pub(super) fn find(patterns: &[Pattern], name: &str) -> Option<usize> {
    let name = name.to_lowercase();
    patterns.iter().position(|pattern| pattern.names.iter().any(|glob| fits(glob, &name)))
}

/// Whether a name fits a glob: `*` stands for anything.
#[must_use]
pub fn fits(glob: &str, name: &str) -> bool {
    let mut parts = glob.split('*');
    let Some(mut rest) = parts.next().and_then(|first| name.strip_prefix(first)) else { return false };
    let Some(last) = parts.next_back() else { return rest.is_empty() };
    for part in parts {
        let Some(place) = rest.find(part) else { return false };
        rest = &rest[place + part.len()..];
    }
    rest.ends_with(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn globs_fit_as_they_do_elsewhere() {
        for (glob, name) in [("a", "a"), ("a*", "abc"), ("*c", "abc"), ("*b*", "abc"), ("a*c*e", "abcde"), ("*", "")] {
            assert!(fits(glob, name), "{glob} {name}");
        }
        for (glob, name) in [("a", "ab"), ("a*", "ba"), ("*c", "cb"), ("a*b*a", "aba b"), ("ab*ba", "aba")] {
            assert!(!fits(glob, name), "{glob} {name}");
        }
    }

    #[test]
    fn what_is_built_in_is_read_and_tells_functions_apart() {
        let patterns = built_in();
        assert!(patterns.len() >= 10);
        let kind = |name: &str| find(&patterns, name).map(|place| patterns[place].kind.as_str());
        for (name, expected) in [
            ("sha256_block_data_order_shani", Some("hashing")),
            ("_int_malloc", Some("allocation")),
            ("operator new(unsigned long)", Some("allocation")),
            ("__memmove_avx_unaligned_erms", Some("copying")),
            ("runtime.gcDrain", Some("garbage collection")),
            ("runtime.mallocgc", Some("allocation")),
            ("deflate_fast", Some("compression")),
            ("native_queued_spin_lock_slowpath_[k]", Some("lock")),
            ("serde_json::ser::to_string", Some("serialising")),
            ("main", None),
            ("do_syscall_64_[k]", None),
        ] {
            assert_eq!(kind(name), expected, "{name}");
        }
    }
}
