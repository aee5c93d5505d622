//! Limits and events of memory of the target's cgroup and of those above it, of either version.
//!
//! Paths come from /proc/PID/cgroup and lead nowhere but into the hierarchy.

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

use crate::process::{ProcFile, number, number_after};
use crate::profile::{CgroupMemory, MAX_MEMORY_CGROUPS};

/// Where version 2 is mounted, alone or beside version 1; and the memory controller of version 1. Source: cgroups(7), systemd.
const MOUNTS: [(&str, Version); 3] = [
    ("/sys/fs/cgroup/memory", Version::One),
    ("/sys/fs/cgroup/unified", Version::Two),
    ("/sys/fs/cgroup", Version::Two),
];

/// Longest path of a cgroup that is followed (`PATH_MAX`).
const MAX_PATH: usize = 4096;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Version {
    One,
    Two,
}

/// The directory of a cgroup, and what it had counted when the recording began.
#[derive(Debug)]
pub(super) struct CgroupDirectory {
    directory: PathBuf,
    /// In the hierarchy.
    path: String,
    version: Version,
    before: BTreeMap<String, u64>,
}

/// The cgroup of a directory and those above it.
pub(super) fn at(directory: &Path) -> Vec<CgroupDirectory> {
    let Some((mount, version)) = MOUNTS.into_iter().find(|(mount, _)| directory.starts_with(mount)) else {
        return Vec::new();
    };
    levels(Path::new(mount), directory, version)
}

/// The cgroup that a process is in and those above it; none where it is in the root.
pub(super) fn of(pid: u32) -> Vec<CgroupDirectory> {
    let mut buffer = Vec::new();
    let Ok(file) = ProcFile::open(format!("/proc/{pid}/cgroup")) else { return Vec::new() };
    let Ok(text) = file.read(&mut buffer) else { return Vec::new() };
    let has_memory =
        |mount: &str| ["memory.stat", "cgroup.procs"].iter().all(|name| Path::new(mount).join(name).exists());
    for (mount, version) in MOUNTS {
        let Some(path) = path_of(text, version) else { continue };
        let directory = Path::new(mount).join(path);
        // Version 2 has no controller of memory where version 1 has it.
        if path.is_empty() || !(has_memory(mount) || directory.join("memory.current").exists()) {
            continue;
        }
        return levels(Path::new(mount), &directory, version);
    }
    Vec::new()
}

/// The path of the cgroup that has a process's memory, without the slash in front; `None` where it is none, or leads elsewhere.
fn path_of(text: &[u8], version: Version) -> Option<&str> {
    let lines = text.split(|&byte| byte == b'\n');
    let path = lines.filter_map(|line| std::str::from_utf8(line).ok()).find_map(|line| {
        let mut parts = line.splitn(3, ':');
        let (_, controllers, path) = (parts.next()?, parts.next()?, parts.next()?);
        let is_it = match version {
            Version::One => controllers.split(',').any(|controller| controller == "memory"),
            Version::Two => controllers.is_empty(),
        };
        is_it.then_some(path)
    })?;
    let path = path.strip_prefix('/')?;
    let is_plain = path.len() <= MAX_PATH
        && Path::new(path).components().all(|component| matches!(component, Component::Normal(_)));
    is_plain.then_some(path)
}

/// A directory and those above it, the mount left out: the root has no limit.
fn levels(mount: &Path, directory: &Path, version: Version) -> Vec<CgroupDirectory> {
    let above = directory.ancestors().take_while(|level| level.starts_with(mount) && *level != mount);
    above
        .take(MAX_MEMORY_CGROUPS)
        .map(|level| {
            let path = level.strip_prefix(mount).unwrap_or(level).to_string_lossy();
            let path = format!("/{path}");
            CgroupDirectory { directory: level.to_owned(), path, version, before: events(level, version) }
        })
        .collect()
}

impl CgroupDirectory {
    /// What it has now; `None` for one that is gone, or has no limit and no events. `is_leaf`: it is told all the same.
    pub(super) fn read(&self, is_leaf: bool) -> Option<CgroupMemory> {
        let figure = |name: &str| read_number(&self.directory, name);
        let stat = |words: [&[u8]; 2]| {
            let mut buffer = Vec::new();
            let file = ProcFile::open(self.directory.join("memory.stat")).ok()?;
            let text = file.read(&mut buffer).ok()?;
            Some(number_after(text, words[0])?.saturating_add(number_after(text, words[1]).unwrap_or(0)))
        };
        let events = events(&self.directory, self.version).into_iter().map(|(name, count)| {
            let before = self.before.get(&name).copied().unwrap_or(0);
            (name, count.saturating_sub(before))
        });
        let events = events.filter(|(_, count)| *count > 0).collect();
        let path = self.path.clone();
        let memory = match self.version {
            Version::One => CgroupMemory {
                path,
                current_bytes: figure("memory.usage_in_bytes"),
                held_bytes: stat([b"total_rss ", b"total_shmem "]),
                // No limit is the largest number of pages that a signed long has in bytes.
                max_bytes: figure("memory.limit_in_bytes").filter(|&bytes| bytes < 1 << 62),
                high_bytes: None,
                swap_max_bytes: None,
                events,
            },
            Version::Two => CgroupMemory {
                path,
                current_bytes: figure("memory.current"),
                held_bytes: stat([b"anon ", b"shmem "]),
                // `max` is no number.
                max_bytes: figure("memory.max"),
                high_bytes: figure("memory.high"),
                swap_max_bytes: figure("memory.swap.max"),
                events,
            },
        };
        let has_limit = memory.max_bytes.is_some() || memory.high_bytes.is_some() || memory.swap_max_bytes.is_some();
        (memory.current_bytes.is_some() && (is_leaf || has_limit || !memory.events.is_empty())).then_some(memory)
    }
}

/// What has happened to a cgroup since it is there, by the names of version 2.
fn events(directory: &Path, version: Version) -> BTreeMap<String, u64> {
    let mut events = BTreeMap::new();
    let mut take = |file: &str, words: &[(&[u8], &str)]| {
        let mut buffer = Vec::new();
        let Ok(file) = ProcFile::open(directory.join(file)) else { return };
        let Ok(text) = file.read(&mut buffer) else { return };
        for (word, name) in words {
            if let Some(count) = number_after(text, word) {
                events.insert((*name).to_owned(), count);
            }
        }
    };
    match version {
        // The number of its file is the first and only word.
        Version::One => {
            take("memory.failcnt", &[(b"", "max")]);
            take("memory.oom_control", &[(b"oom_kill ", "oom_kill")]);
        }
        Version::Two => {
            take("memory.events", &[(b"high ", "high"), (b"max ", "max"), (b"oom ", "oom"), (b"oom_kill ", "oom_kill")])
        }
    }
    events
}

fn read_number(directory: &Path, name: &str) -> Option<u64> {
    let mut buffer = Vec::new();
    number(ProcFile::open(directory.join(name)).ok()?.read(&mut buffer).ok()?.trim_ascii())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, version: Version, expected: Option<&str>) {
        assert_eq!(path_of(text.as_bytes(), version), expected, "{text}");
    }

    #[test]
    fn a_path_leads_into_the_hierarchy_or_nowhere() {
        let both = "5:cpu,memory:/jobs/one\n1:name=systemd:/x\n0::/system.slice/a.service\n";
        check(both, Version::One, Some("jobs/one"));
        check(both, Version::Two, Some("system.slice/a.service"));
        check("0::/\n", Version::Two, Some(""));
        // A colon may be in a name.
        check("0::/a:b\n", Version::Two, Some("a:b"));
        for outside in ["0::/../../etc\n", "0::/a/../b\n", "0::relative\n", "0:\n", "", "0::/./..\n"] {
            check(outside, Version::Two, None);
        }
        check(&format!("0::/{}\n", "a/".repeat(3000)), Version::Two, None);
    }

    #[test]
    fn limits_and_what_happened_while_recording_are_read_level_by_level() {
        let root = tempfile::tempdir().unwrap();
        let leaf = root.path().join("slice/leaf");
        std::fs::create_dir_all(&leaf).unwrap();
        let write = |name: &str, text: &str| std::fs::write(root.path().join("slice").join(name), text).unwrap();
        write("memory.current", "5000\n");
        write("memory.max", "8000\n");
        write("memory.high", "max\n");
        write("memory.stat", "anon 3000\nfile 1500\nshmem 500\n");
        write("memory.events", "low 0\nhigh 0\nmax 7\noom 1\noom_kill 1\n");
        write("leaf/memory.current", "4000\n");
        write("leaf/memory.max", "max\n");
        let found = levels(root.path(), &leaf, Version::Two);
        write("memory.events", "low 0\nhigh 0\nmax 9\noom 1\noom_kill 2\n");
        let read: Vec<_> = found.iter().enumerate().filter_map(|(level, one)| one.read(level == 0)).collect();
        let [leaf, slice] = read.as_slice() else { panic!("{read:?}") };
        assert_eq!((leaf.path.as_str(), leaf.current_bytes, leaf.max_bytes), ("/slice/leaf", Some(4000), None));
        assert_eq!(slice.path, "/slice");
        assert_eq!((slice.held_bytes, slice.max_bytes, slice.high_bytes), (Some(3500), Some(8000), None));
        let expected = [("max".to_owned(), 2), ("oom_kill".to_owned(), 1)];
        assert_eq!(slice.events, BTreeMap::from(expected));
        // One above the leaf without a limit says nothing, and one that is gone neither.
        assert_eq!(found[0].read(false), None);
        std::fs::remove_dir_all(root.path().join("slice")).unwrap();
        assert_eq!(found[1].read(true), None);
    }

    #[test]
    fn version_1_has_other_names() {
        let root = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(root.path().join("job").join(name), text).unwrap();
        std::fs::create_dir(root.path().join("job")).unwrap();
        write("memory.usage_in_bytes", "100\n");
        write("memory.limit_in_bytes", "9223372036854771712\n");
        write("memory.failcnt", "0\n");
        write("memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 0\n");
        let found = levels(root.path(), &root.path().join("job"), Version::One);
        write("memory.failcnt", "3\n");
        let memory = found[0].read(true).unwrap();
        assert_eq!((memory.current_bytes, memory.max_bytes), (Some(100), None));
        assert_eq!(memory.events, BTreeMap::from([("max".to_owned(), 3)]));
    }
}
