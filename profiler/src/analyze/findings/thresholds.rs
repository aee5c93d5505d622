//! When something is worth a finding. Every limit can be set in a file.

use serde::{Deserialize, Serialize};

/// Limits, as parts of a whole from 0 to 1 unless said otherwise.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Thresholds {
    /// A function's, or a kind of function's, part of the CPU time.
    pub function_share: f64,
    /// Samples on the CPU that a function or kind of function must have: of fewer nothing follows.
    pub least_samples: u64,
    /// CPU time of the host's CPUs.
    pub cpu_utilization: f64,
    /// Memory of the host that is in use, by what its processes wait for it: pressure.
    pub memory_pressure: f64,
    /// Memory of the host, or of a cgroup that has a limit, that is in use and cannot be had by dropping pages of files.
    pub memory_use: f64,
    /// The part of the heap that is in no block in use.
    pub fragmentation: f64,
    /// Time of the CPUs that is idle while a task waits for I/O.
    pub io_wait: f64,
    /// Time in which a block device had something to do.
    pub device_utilization: f64,
    /// Part of a thread's wall time that a wait must have.
    pub wait_share: f64,
    /// Part of wall time from which on a finding is of medium severity.
    pub medium_effect: f64,
    /// Part of wall time from which on a finding is of high severity.
    pub high_effect: f64,
    /// Mean size of reads and writes below which they are small, bytes.
    pub small_io_bytes: u64,
    /// Small reads or writes of one file a second that are many.
    pub small_io_per_second: f64,
    /// Part of the time that a thread must be on the CPU to be the one that others wait for.
    pub stage_busy: f64,
    /// Part of the time that the others must wait.
    pub stage_idle: f64,
}

impl Default for Thresholds {
    fn default() -> Self {
        Self {
            function_share: 0.1,
            least_samples: 30,
            cpu_utilization: 0.8,
            memory_pressure: 0.1,
            memory_use: 0.8,
            fragmentation: 0.3,
            io_wait: 0.1,
            device_utilization: 0.8,
            wait_share: 0.1,
            medium_effect: 0.2,
            high_effect: 0.4,
            small_io_bytes: 4096,
            small_io_per_second: 1000.0,
            stage_busy: 0.6,
            stage_idle: 0.6,
        }
    }
}
