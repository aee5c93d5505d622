//! Requests to block devices that took long, one by one.

use serde::{Deserialize, Serialize};

/// The requests that took as long as was asked for, or longer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SlowRequests {
    /// From which time on they are here, ns.
    pub threshold_ns: u64,
    /// The first of them that were done, by when they were made.
    pub requests: Vec<SlowRequest>,
    /// Others that were as long as the threshold: those after the first 10,000, and those for which there was no room.
    pub missing: u64,
}

/// A request that took long.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SlowRequest {
    /// When it was made, ns since the start of the recording.
    pub start_ns: u64,
    /// Name of the device: `nvme0n1`.
    pub device: String,
    /// Its first sector, of 512 bytes.
    pub sector: u64,
    /// Bytes.
    pub bytes: u64,
    /// What it did: `sync write`.
    pub operation: String,
    /// The file, where it has one; empty otherwise.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub file: String,
    /// The process that asked for it, or that dirtied what it writes.
    pub process: String,
    /// Its number.
    pub pid: u32,
    /// The thread.
    pub tid: u32,
    /// Time until the device was asked, ns.
    pub queue_ns: u64,
    /// Time until it had answered, ns.
    pub device_ns: u64,
    /// Time until the thread that waited was back on a CPU, ns; absent where none did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wakeup_ns: Option<u64>,
    /// The span of its sample in the profile of requests, in hexadecimal; `0x0` where its stack was not walked.
    pub span: String,
}

impl SlowRequest {
    /// From when it was made until it was done, ns.
    #[must_use]
    pub const fn total_ns(&self) -> u64 {
        self.queue_ns.saturating_add(self.device_ns)
    }
}

impl SlowRequests {
    /// Whether there is nothing to say of them.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.requests.is_empty() && self.threshold_ns == 0
    }
}
