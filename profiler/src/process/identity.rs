//! Pids: who exists, who descends from whom, in which namespace we count.

use std::fs;
use std::io::{self, Read as _};
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;

/// Inode of the initial pid namespace. Source: `PROC_PID_INIT_INO`, include/linux/proc_ns.h.
const INITIAL_PID_NAMESPACE: u64 = 0xeffffffc;

/// Bytes of /proc/PID/cgroup that are read: a dozen paths, of at most 4,096 bytes each.
const MAX_CGROUP_BYTES: u64 = 64 << 10;

/// Whether a process with this pid exists, as a zombie at least.
#[must_use]
pub fn exists(pid: u32) -> bool {
    fs::metadata(format!("/proc/{pid}")).is_ok()
}

/// Path of the cgroup that a process is in; empty for the root. `None` when it is gone.
///
/// Of version 2, or where all are in the root of that, the first hierarchy of version 1 in which it is not, but for
/// systemd's own last. Source: cgroups(7), /proc/PID/cgroup.
#[must_use]
pub fn cgroup(pid: u32) -> Option<String> {
    let mut text = String::new();
    let file = fs::File::open(format!("/proc/{pid}/cgroup")).ok()?;
    io::Read::take(file, MAX_CGROUP_BYTES).read_to_string(&mut text).ok()?;
    let mut paths: Vec<(&str, &str)> = text
        .lines()
        .filter_map(|line| line.splitn(3, ':').skip(1).collect::<Vec<_>>().try_into().ok())
        .map(|[controllers, path]: [&str; 2]| (controllers, path))
        .filter(|(_, path)| *path != "/")
        .collect();
    paths.sort_by_key(|(controllers, _)| (!controllers.is_empty(), controllers.starts_with("name=")));
    Some(paths.first().map_or("", |(_, path)| path).to_owned())
}

/// Every process there is.
#[must_use]
pub fn all() -> Vec<u32> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

/// Whether a process with this pid still runs: a zombie that its parent has not waited for does not.
#[must_use]
pub fn is_running(pid: u32) -> bool {
    // The first thread of a process may end before the others do: then it is a zombie among them.
    has_state(&format!("/proc/{pid}/stat"))
        || fs::read_dir(format!("/proc/{pid}/task"))
            .is_ok_and(|tasks| tasks.flatten().any(|task| has_state(&task.path().join("stat").to_string_lossy())))
}

/// A descriptor that is readable once the process has ended, its last thread included. `None` when it cannot be had.
#[must_use]
pub fn end_of(pid: u32) -> Option<OwnedFd> {
    let pid = libc::pid_t::try_from(pid).ok()?;
    // SAFETY: no pointers; the kernel sets close-on-exec. Source: pidfd_open(2), Linux 5.3.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    let fd = i32::try_from(fd).ok().filter(|&fd| fd >= 0)?;
    // SAFETY: the descriptor was just made, and nobody else has it.
    Some(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Whether a `stat` file shows a state in which a thread may run again.
fn has_state(path: &str) -> bool {
    let stat = fs::read(path).unwrap_or_default();
    // The state follows the name, which is in parentheses and may contain any character.
    let state = stat.iter().rposition(|&byte| byte == b')').and_then(|end| stat.get(end + 2));
    !matches!(state, None | Some(b'Z' | b'X'))
}

/// Whether `pid` is a thread that is not its process's leader; then the leader.
#[must_use]
pub fn is_thread(pid: u32) -> Option<u32> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let leader = status.lines().find_map(|line| line.strip_prefix("Tgid:"))?.trim().parse().ok()?;
    (leader != pid).then_some(leader)
}

/// The file name of what a process executes; it may have been deleted since.
#[must_use]
pub fn executable_name(pid: u32) -> Option<String> {
    let path = fs::read_link(format!("/proc/{pid}/exe")).ok()?;
    let name = path.file_name()?.to_string_lossy();
    Some(name.strip_suffix(" (deleted)").unwrap_or(&name).to_owned())
}

/// The command name of a process, as the kernel keeps it.
#[must_use]
pub fn command_name(pid: u32) -> Option<String> {
    let comm = fs::read(format!("/proc/{pid}/comm")).ok()?;
    Some(String::from_utf8_lossy(comm.trim_ascii_end()).into_owned())
}

/// The processes that `pid` has forked and that still run.
#[must_use]
pub fn children_of(pid: u32) -> Vec<u32> {
    let Ok(tasks) = fs::read_dir(format!("/proc/{pid}/task")) else { return Vec::new() };
    let mut children = Vec::new();
    for task in tasks.flatten() {
        if let Ok(listed) = fs::read_to_string(task.path().join("children")) {
            children.extend(listed.split_ascii_whitespace().filter_map(|word| word.parse::<u32>().ok()));
        }
    }
    children
}

/// The running processes below `pid`, without itself.
#[must_use]
pub fn descendants_of(pid: u32) -> Vec<u32> {
    let mut found = Vec::new();
    let mut todo = vec![pid];
    while let Some(parent) = todo.pop() {
        for child in children_of(parent) {
            // The tree changes while it is read: a pid that comes up again must not start a cycle.
            if !found.contains(&child) && child != pid {
                found.push(child);
                todo.push(child);
            }
        }
    }
    found
}

/// Device and inode of the pid namespace we are in, when it is not the initial one.
#[must_use]
pub fn pid_namespace() -> Option<(u64, u64)> {
    let namespace = fs::metadata("/proc/self/ns/pid").ok()?;
    (namespace.ino() != INITIAL_PID_NAMESPACE).then(|| (namespace.dev(), namespace.ino()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_child_is_found_below_its_parent() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let found = descendants_of(std::process::id());
        assert!(is_running(child.id()));
        child.kill().unwrap();
        while is_running(child.id()) {
            std::thread::yield_now();
        }
        assert!(exists(child.id()), "it was not waited for yet");
        child.wait().unwrap();
        assert!(found.contains(&child.id()));
        assert!(exists(std::process::id()));
        assert!(!exists(u32::MAX));
    }
}
