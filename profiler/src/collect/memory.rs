//! Memory of the target and of the system: read when a recording begins and ends, of processes also while it goes on, by what
//! costs the target nothing.
//!
//! Everything that is read is bounded; what is not there, or may not be read, is left out.

mod cgroup;
mod shares;
mod system;

use std::collections::BTreeMap;

use self::cgroup::CgroupDirectory;
use self::shares::Watched;
use super::target::TargetSelection;
use crate::profile::{CgroupMemory, MAX_MEMORY_PROCESSES, Memory, ProcessMemory};

/// What a recording watches of memory.
#[derive(Debug, Default)]
pub(super) struct MemoryWatch {
    processes: BTreeMap<u32, Watched>,
    /// The cgroup that was asked for or that the target is in, and those above it.
    cgroups: Vec<CgroupDirectory>,
    oom_kills_before: Option<u64>,
}

impl MemoryWatch {
    /// Reads what there is when a recording begins. `members`: processes of the target.
    pub(super) fn begin(selection: &TargetSelection, members: impl Iterator<Item = u32>) -> Self {
        let mut watch = Self { oom_kills_before: system::oom_kills(), ..Self::default() };
        match selection {
            TargetSelection::Cgroup(path) => watch.cgroups = cgroup::at(path),
            // It has not executed its program yet, and is where we are.
            TargetSelection::Command(_) => watch.cgroups = cgroup::of(std::process::id()),
            TargetSelection::Processes { .. } | TargetSelection::Comm(_) | TargetSelection::Host => {}
        }
        if !matches!(selection, TargetSelection::Command(_)) {
            watch.look(members);
        }
        if watch.cgroups.is_empty()
            && let Some(largest) = watch.largest()
        {
            watch.cgroups = cgroup::of(largest);
        }
        watch
    }

    /// Notes what processes have now. `members`: processes of the target.
    pub(super) fn look(&mut self, members: impl Iterator<Item = u32>) {
        self.processes.values_mut().for_each(Watched::look);
        let new = members.filter(|pid| !self.processes.contains_key(pid)).filter_map(Watched::new);
        let mut new: Vec<Watched> = new.collect();
        new.sort_by_key(|watched| std::cmp::Reverse(watched.end.rss_bytes));
        new.truncate(MAX_MEMORY_PROCESSES - self.processes.len());
        shares::walk(new.iter_mut().map(|watched| (watched.pid, &mut watched.start)));
        self.processes.extend(new.into_iter().map(|watched| (watched.pid, watched)));
    }

    /// Reads what there is when the recording ends.
    pub(super) fn end(&mut self, members: impl Iterator<Item = u32>) -> Memory {
        self.look(members);
        let mut watched: Vec<Watched> = std::mem::take(&mut self.processes).into_values().collect();
        watched.sort_by_key(|watched| (std::cmp::Reverse(watched.end.rss_bytes), watched.pid));
        shares::walk(watched.iter_mut().filter(|watched| watched.is_there).map(|one| (one.pid, &mut one.end)));
        Memory {
            processes: watched.iter().map(Watched::to_memory).collect(),
            cgroups: self.read_cgroups(),
            system: system::read(self.oom_kills_before),
        }
    }

    /// Reads what there is at the end of a window, and begins the next with it; by what costs the target nothing.
    pub(super) fn end_window(&mut self, members: impl Iterator<Item = u32>) -> Memory {
        self.look(members);
        let mut watched: Vec<&Watched> = self.processes.values().collect();
        watched.sort_by_key(|watched| (std::cmp::Reverse(watched.end.rss_bytes), watched.pid));
        let memory = Memory {
            processes: watched.into_iter().map(Watched::to_memory).collect(),
            cgroups: self.read_cgroups(),
            system: system::read(self.oom_kills_before),
        };
        self.processes.retain(|_, watched| watched.is_there);
        self.processes.values_mut().for_each(|watched| watched.start = watched.end);
        self.oom_kills_before = system::oom_kills();
        memory
    }

    fn read_cgroups(&self) -> Vec<CgroupMemory> {
        self.cgroups.iter().enumerate().filter_map(|(level, cgroup)| cgroup.read(level == 0)).collect()
    }

    fn largest(&self) -> Option<u32> {
        self.processes.values().max_by_key(|watched| watched.end.rss_bytes).map(|watched| watched.pid)
    }
}

impl Watched {
    fn to_memory(&self) -> ProcessMemory {
        ProcessMemory {
            pid: self.pid,
            process: self.name.clone(),
            start: self.start,
            end: self.end,
            oom_score: self.oom_score,
            oom_score_adj: self.oom_score_adj,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_that_a_process_takes_shows_at_the_end() {
        let us = || std::iter::once(std::process::id());
        let mut watch = MemoryWatch::begin(&TargetSelection::Host, us());
        let block = vec![1_u8; 64 << 20];
        let memory = watch.end(us());
        assert_eq!(block.iter().map(|&byte| usize::from(byte)).sum::<usize>(), block.len());
        assert!(memory.is_sound());
        let [process] = memory.processes.as_slice() else { panic!("{memory:?}") };
        assert_eq!(process.pid, std::process::id());
        let [start, end] = [process.start, process.end];
        // Other tests take and free memory meanwhile.
        assert!(end.heap_bytes > start.heap_bytes + (32 << 20), "{start:?} {end:?}");
        assert!(end.rss_bytes >= end.heap_bytes && end.file_bytes > 0 && end.stack_bytes > 0, "{end:?}");
        assert!(memory.system.total_bytes > memory.system.available_bytes);
    }

    #[test]
    fn a_process_that_ends_has_what_it_had_last() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let pid = child.id();
        let mut watch = MemoryWatch::begin(&TargetSelection::Host, std::iter::once(pid));
        let before = watch.processes[&pid].end;
        child.kill().unwrap();
        child.wait().unwrap();
        let memory = watch.end(std::iter::empty());
        assert!(before.rss_bytes > 0);
        assert_eq!(
            memory.processes.iter().map(|process| (process.pid, process.end)).collect::<Vec<_>>(),
            [(pid, before)]
        );
    }

    #[test]
    fn no_more_processes_are_read_than_there_is_room_for() {
        let mut watch = MemoryWatch::default();
        watch.look(crate::process::all().into_iter());
        watch.look(crate::process::all().into_iter());
        assert!(!watch.processes.is_empty() && watch.processes.len() <= MAX_MEMORY_PROCESSES);
    }
}
