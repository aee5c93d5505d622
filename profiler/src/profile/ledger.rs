//! The wall-time ledger: where each thread's time went, adding up to how long it was there.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// How long a thread was there, ran and waited, exactly: measured from switch to switch.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ThreadTime {
    /// Process; 0 for what is left of many.
    pub pid: u32,
    /// Thread; 0 for several of the process.
    pub tid: u32,
    /// Start of the process since boot, ns.
    pub start_time_ns: u64,
    /// The process's command name.
    pub process: String,
    /// The thread's name; empty for several.
    pub thread: String,
    /// How many threads these are.
    pub threads: u64,
    /// Time it was there while it was recorded, ns.
    pub wall_ns: u64,
    /// Time it ran, ns.
    pub on_cpu_ns: u64,
    /// Time it waited, for whatever, ns.
    pub off_cpu_ns: u64,
}

/// Where the wall time of the recorded threads went.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ledger {
    /// All of them.
    pub total: LedgerRow,
    /// By process, most wall time first.
    pub processes: Vec<LedgerRow>,
    /// By thread, most wall time first, of equals those that ran most.
    pub threads: Vec<LedgerRow>,
}

/// Where the wall time of a thread, or of several, went. `cpu_ns`, `waits`, `unknown_ns` and `residual_ns` add up to
/// `wall_ns`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LedgerRow {
    /// Process; 0 for several.
    pub pid: u32,
    /// Thread; 0 for several.
    pub tid: u32,
    /// The process's command name; empty for several.
    pub process: String,
    /// The thread's name; empty for several.
    pub thread: String,
    /// How many threads these are.
    pub threads: u64,
    /// Time they were there while they were recorded, summed, ns.
    pub wall_ns: u64,
    /// Time on the CPU, exact, ns.
    pub cpu_ns: u64,
    /// The part of `cpu_ns` in user space, by the share of the samples; absent where nothing was sampled.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub cpu_user_ns: Option<u64>,
    /// The part of `cpu_ns` in the kernel.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub cpu_kernel_ns: Option<u64>,
    /// Time off the CPU by reason, as the profile of waits has it, ns.
    pub waits: BTreeMap<String, u64>,
    /// Time off the CPU, known exactly, that is in no wait of the profile, ns: it was lost, or left out by chance without
    /// another that counts for it.
    pub unknown_ns: u64,
    /// What is left of the wall time, ns. Below zero when the profile's estimates are too high.
    pub residual_ns: i64,
}

impl LedgerRow {
    /// Adds another's time.
    pub fn add(&mut self, other: &Self) {
        let sum = |one: Option<u64>, other: Option<u64>| match (one, other) {
            (None, None) => None,
            (one, other) => Some(one.unwrap_or(0) + other.unwrap_or(0)),
        };
        self.threads += other.threads;
        self.wall_ns += other.wall_ns;
        self.cpu_ns += other.cpu_ns;
        self.cpu_user_ns = sum(self.cpu_user_ns, other.cpu_user_ns);
        self.cpu_kernel_ns = sum(self.cpu_kernel_ns, other.cpu_kernel_ns);
        for (reason, time) in &other.waits {
            *self.waits.entry(reason.clone()).or_default() += time;
        }
        self.unknown_ns += other.unknown_ns;
        self.residual_ns += other.residual_ns;
    }
}
