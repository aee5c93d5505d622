//! A capture: one index and the profiles, from which every output file is made.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{
    Accounting, FunctionSlices, IoLatency, Live, LockTime, Memory, Profile, Run, SlowRequests, Table, ThreadTime,
    Timeline,
};

/// Version of `capture.json` and `report.json`. Raised when a field changes its meaning or goes away.
pub const SCHEMA_VERSION: u32 = 1;

/// Everything one recording found.
#[derive(Clone, Debug, PartialEq)]
pub struct Capture {
    /// What is not a profile: `capture.json`.
    pub index: Index,
    /// One profile for each origin, in the order of their numbers.
    pub profiles: Vec<Profile>,
}

/// `capture.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Index {
    /// [`SCHEMA_VERSION`].
    pub schema_version: u32,
    /// Version of the profiler that recorded.
    pub profiler_version: String,
    /// Start of the recording, ns since the Unix epoch.
    pub started_at_ns: u64,
    /// Wall time recorded, ns.
    pub duration_ns: u64,
    /// What was asked for.
    pub target: Target,
    /// Where it ran.
    pub host: Host,
    /// Totals by origin name.
    pub origins: BTreeMap<String, OriginSummary>,
    /// What was counted rather than sampled, by name; a table of an origin by the name of that.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub tables: BTreeMap<String, Table>,
    /// Accounting by origin name.
    pub accounting: BTreeMap<String, Accounting>,
    /// What the recording cost.
    pub overhead: Overhead,
    /// The objects that have frames in the profiles and how many of these have names, most samples first.
    pub objects: Vec<ObjectSummary>,
    /// How long each thread was there, ran and waited, where waits were recorded: by process and number.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub thread_times: Vec<ThreadTime>,
    /// What waits for locks have come to, by lock and who ended them, where these were recorded: most time first.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub lock_times: Vec<LockTime>,
    /// What a reader must know before he believes the figures: things that were degraded, and how to mend them.
    pub warnings: Vec<String>,
    /// What the target and the host used, slice by slice; empty in captures of versions that had none.
    #[serde(default, skip_serializing_if = "Timeline::is_empty")]
    pub timeline: Timeline,
    /// How long requests to block devices took, slice by slice, where these were recorded.
    #[serde(default, skip_serializing_if = "IoLatency::is_empty")]
    pub io_latency: IoLatency,
    /// Requests to block devices that took long, where they were asked for.
    #[serde(default, skip_serializing_if = "SlowRequests::is_empty")]
    pub slow_requests: SlowRequests,
    /// What became of blocks that were allocated, where allocations were recorded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub live: Option<Live>,
    /// Memory of the target and of the system; absent in captures of versions that had none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<Memory>,
    /// The runs that were timed, in their order: of captures of `bench`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub runs: Vec<Run>,
    /// Values by function and slice, by origin name; empty in captures of versions that had none.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub function_slices: BTreeMap<String, FunctionSlices>,
}

impl Index {
    /// That of a recording by this version which found nothing, on a host of which nothing is known.
    #[must_use]
    pub fn empty(target: Target, duration_ns: u64) -> Self {
        Self {
            schema_version: SCHEMA_VERSION,
            profiler_version: env!("CARGO_PKG_VERSION").to_owned(),
            started_at_ns: 0,
            duration_ns,
            target,
            host: Host { name: String::new(), kernel: String::new(), architecture: String::new(), cpus: 0 },
            origins: BTreeMap::new(),
            tables: BTreeMap::new(),
            accounting: BTreeMap::new(),
            overhead: Overhead::default(),
            objects: Vec::new(),
            thread_times: Vec::new(),
            lock_times: Vec::new(),
            warnings: Vec::new(),
            timeline: Timeline::default(),
            io_latency: IoLatency::default(),
            slow_requests: SlowRequests::default(),
            live: None,
            memory: None,
            runs: Vec::new(),
            function_slices: BTreeMap::new(),
        }
    }
}

/// What was asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Target {
    /// What kind of target.
    pub kind: TargetKind,
    /// For a person: `pid 42 (redis-server)`, `command: make -j2`, `cgroup /system.slice`, `host`.
    pub description: String,
    /// The processes named or started; empty for the other kinds.
    pub pids: Vec<u32>,
    /// The command's exit code, when the recording started one and saw its end.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub exit_code: Option<i32>,
}

/// What kind of target was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TargetKind {
    /// Processes by pid.
    Processes,
    /// A command the profiler started.
    Command,
    /// A cgroup and those below it.
    Cgroup,
    /// Processes and threads of one name.
    Comm,
    /// The whole host.
    Host,
    /// Whatever another program made a profile of.
    Imported,
}

/// Where a recording ran.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Host {
    /// Host name.
    pub name: String,
    /// Kernel release, as `uname -r` prints it.
    pub kernel: String,
    /// Machine architecture, as `uname -m` prints it.
    pub architecture: String,
    /// CPUs that were online at the start.
    pub cpus: u32,
}

/// What one origin recorded.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct OriginSummary {
    /// Unit of `total`.
    pub unit: String,
    /// Sum of the primary column.
    pub total: u64,
    /// Events that make up the total.
    pub n: u64,
    /// The event that was sampled: `cpu-clock` or `cycles`; of other origins, what the kernel calls that which saw them.
    pub event: String,
    /// Samples a second and CPU that were asked for; 0 for an origin that does not sample by time.
    pub rate_hz: u64,
    /// How intervals were chosen, for an origin that chooses by length.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub by_length: Option<ByLength>,
    /// How events were chosen, for an origin that keeps some of many.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub by_number: Option<ByNumber>,
    /// How allocations were chosen.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub by_size: Option<BySize>,
}

/// How allocations were chosen by their size, as intervals are by their length, and in which part of the time.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct BySize {
    /// The highest threshold there was, bytes: every allocation of as many, while there were probes, is in the profile.
    pub threshold_bytes: u64,
    /// The exact sum of all allocations while there were probes, bytes.
    pub measured_bytes: u64,
    /// Standard error of the origin's total, bytes, by the choice alone.
    pub standard_error_bytes: f64,
    /// The part of the recording in which there were probes, 0 to 1: what was allocated then stands for all, unless every
    /// allocation was recorded.
    pub share_of_time: f64,
    /// Whether every allocation was recorded.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub exact: bool,
    /// When that ended by itself, for what it cost, ns after the beginning: all figures are of the time until then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stopped_after_ns: Option<u64>,
}

/// How intervals were chosen by their length: one of `d` is kept with probability `min(1, d / threshold)` and counts for
/// `max(d, threshold)`, by a threshold that follows the load.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct ByLength {
    /// The highest threshold there was, ns: every interval that was as long is in the profile, with its own length.
    pub threshold_ns: u64,
    /// The exact sum of all intervals, ns, those that were left out included; what the origin's total estimates.
    pub measured_ns: u64,
    /// Standard error of the origin's total, ns.
    pub standard_error_ns: f64,
}

/// How events were chosen by their number: of as many as the weight, which follow each other, one is kept by chance and
/// counts for all; by a weight that follows the load.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ByNumber {
    /// The number of events, those that were left out included; what the origin's total estimates. Exact when the period
    /// was 1.
    pub measured: u64,
    /// The most events that one in the profile counts for: 1 when every event is in it.
    pub weight: u64,
    /// The highest period of the kernel's event: of as many the kernel passed one on. 1 when it passed on all.
    pub period: u64,
}

/// What a recording cost, from its start to the last byte that `record` could still count.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Overhead {
    /// Time inside the BPF programs, ns, from the kernel's run-time statistics.
    pub bpf_ns: u64,
    /// Runs of the BPF programs in that time.
    pub bpf_runs: u64,
    /// `bpf_ns` for each sample in the profile.
    pub bpf_ns_per_sample: f64,
    /// Time the CPU spent in traps that a probe needs, ns; 0 for sampling, which shares the timer's interrupt.
    pub trap_ns: u64,
    /// CPU time of the profiler itself, user and kernel, in ns.
    pub agent_cpu_ns: u64,
    /// Most resident memory of the profiler, bytes.
    pub peak_rss_bytes: u64,
    /// Kernel memory of the BPF maps, bytes.
    pub bpf_map_bytes: u64,
}

/// How well an object's frames could be named.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ObjectSummary {
    /// Its path as the target sees it.
    pub path: String,
    /// Its build ID; empty when there is none.
    pub build_id: String,
    /// Frames in the profiles' stacks that are in it, each weighted by the stack's events.
    pub frames: u64,
    /// Those of them that have a name.
    pub named: u64,
    /// What would name the rest; empty when all have names.
    pub advice: String,
}
