//! Memory of the target, and what of the system decides over it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::Severity;

/// What was read of memory. What the system does not tell is left out.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Memory {
    /// Processes of the target, those with most resident memory at the end first.
    #[serde(default)]
    pub processes: Vec<ProcessMemory>,
    /// The cgroup of the target, and those above it that have a limit or had events, from the leaf up.
    #[serde(default)]
    pub cgroups: Vec<CgroupMemory>,
    /// Settings and figures of the host.
    #[serde(default)]
    pub system: SystemMemory,
}

/// Most processes that are read.
pub const MAX_MEMORY_PROCESSES: usize = 16;
/// Most levels of cgroups that are read.
pub const MAX_MEMORY_CGROUPS: usize = 32;
/// No machine has as many bytes: sums of the figures of all processes stay within 64 bits.
const MAX_BYTES: u64 = 1 << 56;

/// Memory of a process.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessMemory {
    /// Its number.
    pub pid: u32,
    /// Its name.
    pub process: String,
    /// When it was first read: at the start of the recording, or within a second of its own.
    pub start: MemoryShares,
    /// When it was last read: at the end of the recording, or within a second of its own.
    pub end: MemoryShares,
    /// How likely the OOM killer takes it: 0 to 1000 by its size, with the adjustment. Source: proc_pid_oom_score(5).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub oom_score: Option<u64>,
    /// What is added to its score, -1000 to 1000.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub oom_score_adj: Option<i64>,
}

/// What the memory of a process is, bytes. Source: proc_pid_status(5), proc_pid_smaps(5).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryShares {
    /// Resident.
    pub rss_bytes: u64,
    /// Resident, with pages that others have too divided among them; absent where it was not read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pss_bytes: Option<u64>,
    /// Resident anonymous memory but the first thread's stack: what allocators have, and the stacks of other threads.
    pub heap_bytes: u64,
    /// The first thread's stack.
    pub stack_bytes: u64,
    /// Resident pages of files.
    pub file_bytes: u64,
    /// Resident pages of shared memory.
    pub shared_bytes: u64,
    /// Swapped out.
    pub swap_bytes: u64,
    /// Of the anonymous memory, what is in huge pages; absent where it was not read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub huge_bytes: Option<u64>,
}

/// Memory of a cgroup. Source: Documentation/admin-guide/cgroup-v2.rst and cgroup-v1/memory.rst.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CgroupMemory {
    /// Its path in the hierarchy.
    pub path: String,
    /// What it has, the page cache included, bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub current_bytes: Option<u64>,
    /// What of it is anonymous or shared memory, which can only be swapped out, bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub held_bytes: Option<u64>,
    /// The limit, bytes; absent where there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_bytes: Option<u64>,
    /// From where on its threads are slowed down, bytes; absent where there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub high_bytes: Option<u64>,
    /// The limit of what it may swap out, bytes; absent where there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub swap_max_bytes: Option<u64>,
    /// How often while recording: `high`, `max`, `oom`, `oom_kill`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub events: BTreeMap<String, u64>,
}

/// Settings and figures of the host. Source: proc_sys_vm(5), proc_meminfo(5), Documentation/admin-guide/mm/transhuge.rst.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct SystemMemory {
    /// Who gets transparent huge pages: `always`, `madvise`, `never`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub transparent_huge_pages: Option<String>,
    /// Who waits for memory to be compacted for them: `always`, `defer`, `defer+madvise`, `madvise`, `never`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub transparent_huge_pages_defrag: Option<String>,
    /// 0 to 200.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub swappiness: Option<u64>,
    /// 0, 1 or 2.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub overcommit_memory: Option<u64>,
    /// What may be allocated where that is limited.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub commit_limit_bytes: Option<u64>,
    /// What is allocated.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub committed_bytes: Option<u64>,
    /// All memory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub total_bytes: Option<u64>,
    /// What programs could have without swapping.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub available_bytes: Option<u64>,
    /// Swap space.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub swap_total_bytes: Option<u64>,
    /// What of it is free.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub swap_free_bytes: Option<u64>,
    /// Huge pages that are set aside.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub huge_pages: Option<u64>,
    /// Those of them that nobody has, nor has asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub huge_pages_unused: Option<u64>,
    /// Size of one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub huge_page_bytes: Option<u64>,
    /// Processes that the OOM killer took while recording.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub oom_kills: Option<u64>,
}

/// A figure or setting, with what it means for the target.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryCheck {
    /// What was looked at: `swap`, `cgroup limit`.
    pub name: String,
    /// What it is.
    pub value: String,
    /// What it means for the target, in a sentence without a full stop.
    pub meaning: String,
    /// What to do; empty where there is nothing to do.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub advice: String,
    /// How much it matters, where there is something to do.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub severity: Option<Severity>,
}

/// What is thought of the memory of a target.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct MemoryReport {
    /// Every figure and setting that is known.
    pub checks: Vec<MemoryCheck>,
    /// The part of the heap at the end that is in no block in use, 0 to 1; only where all blocks were followed from the start
    /// of the program.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fragmentation: Option<f64>,
}

impl Memory {
    /// Whether lists have lengths, and numbers sizes, that can be.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        let bytes = |shares: &MemoryShares| {
            let parts = [shares.heap_bytes, shares.stack_bytes, shares.file_bytes, shares.shared_bytes];
            let others = [shares.rss_bytes, shares.swap_bytes, shares.pss_bytes.unwrap_or(0)];
            parts.into_iter().chain(others).chain(shares.huge_bytes).all(|bytes| bytes < MAX_BYTES)
        };
        self.processes.len() <= MAX_MEMORY_PROCESSES
            && self.cgroups.len() <= MAX_MEMORY_CGROUPS
            && self.processes.iter().all(|process| bytes(&process.start) && bytes(&process.end))
    }

    /// A figure of all processes at the end.
    #[must_use]
    pub fn at_end(&self, figure: impl Fn(&MemoryShares) -> u64) -> u64 {
        self.processes.iter().map(|process| figure(&process.end)).sum()
    }
}
