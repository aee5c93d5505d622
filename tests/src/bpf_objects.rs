//! The kernel's BPF objects, as bpftool lists them.

use std::collections::BTreeMap;
use std::process::Command;

use serde_json::Value;

use crate::environment::find_program;

/// Programs, maps and links that are in the kernel: kind and id, with the name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BpfObjects(BTreeMap<(&'static str, u64), String>);

impl BpfObjects {
    /// Lists all of them; `None` where bpftool is not installed.
    ///
    /// # Panics
    ///
    /// When bpftool fails.
    #[must_use]
    pub fn list() -> Option<Self> {
        let bpftool = find_program("bpftool")?;
        let mut objects = BTreeMap::new();
        for kind in ["prog", "map", "link"] {
            let output = Command::new(&bpftool).args(["--json", kind, "show"]).output().expect("start bpftool");
            assert!(output.status.success(), "bpftool {kind} show: {}", String::from_utf8_lossy(&output.stderr));
            let list: Value = serde_json::from_slice(&output.stdout).expect("bpftool writes JSON");
            for object in list.as_array().expect("bpftool writes a list") {
                let name = object["name"].as_str().or_else(|| object["type"].as_str()).unwrap_or_default();
                objects.insert((kind, object["id"].as_u64().expect("an id")), name.to_owned());
            }
        }
        Some(Self(objects))
    }

    /// Those that are here and not in `before`.
    #[must_use]
    pub fn since(&self, before: &Self) -> Self {
        Self(self.0.iter().filter(|(key, _)| !before.0.contains_key(key)).map(|(&k, v)| (k, v.clone())).collect())
    }

    /// Those that are here and also in `other`.
    #[must_use]
    pub fn also_in(&self, other: &Self) -> Self {
        Self(self.0.iter().filter(|(key, _)| other.0.contains_key(key)).map(|(&k, v)| (k, v.clone())).collect())
    }

    /// How many of a kind (`prog`, `map` or `link`) there are.
    #[must_use]
    pub fn count(&self, kind: &str) -> usize {
        self.0.keys().filter(|(found, _)| *found == kind).count()
    }

    /// Whether there is one of that kind and name.
    #[must_use]
    pub fn has(&self, kind: &str, name: &str) -> bool {
        self.0.iter().any(|((found, _), called)| *found == kind && called == name)
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}
