//! Locks that threads waited for, and who gave them back.

use serde::{Deserialize, Serialize};

/// What waits for a lock have come to that one waker ended: a row of `capture.json`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LockTime {
    /// Process.
    pub pid: u32,
    /// Start of the process since boot, ns.
    pub start_time_ns: u64,
    /// Address of the lock's futex in the process, in hexadecimal.
    pub address: String,
    /// The waker: the span of its samples in the profile of wakers, in hexadecimal; `0x0` when it was not seen.
    pub waker: String,
    /// Waits, those that the kept ones stand for included.
    pub waits: u64,
    /// Their time, ns.
    pub delay_ns: u64,
    /// The longest that was kept, ns.
    pub longest_ns: u64,
}

/// A lock that threads waited for.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct LockShare {
    /// Process.
    pub pid: u32,
    /// The process's command name.
    pub process: String,
    /// Address of the lock's futex in the process, in hexadecimal.
    pub address: String,
    /// What it is, by the functions that wait for it: a name of [`profiler_common::wait::LOCK_KINDS`].
    pub kind: String,
    /// Waits.
    pub waits: u64,
    /// Their time, ns.
    pub delay_ns: u64,
    /// The longest wait, ns.
    pub longest_ns: u64,
    /// The function that waited for it most; empty when no stack names one.
    pub site: String,
    /// Who ended most of the time that was waited for it; absent when nobody was seen.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub holder: Option<LockHolder>,
}

/// Who gave a lock back that others waited for: its holder, where it has one.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct LockHolder {
    /// Process; 0 for an interrupt, which ends a wait whose time has passed.
    pub pid: u32,
    /// Thread.
    pub tid: u32,
    /// The thread's name; `[interrupt]` for one.
    pub thread: String,
    /// The function that gave it back; empty when no stack names one.
    pub function: String,
    /// The part of the lock's delay that it ended, 0 to 1.
    pub share: f64,
}
