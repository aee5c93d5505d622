//! What an analysis finds in a capture: filled by `analyze`, written by `output`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{Finding, FrameKind, Leak, Ledger, LockShare, MemoryReport, Peak, PlanStep, Score, SlowRequest};

/// What `analyze` found. Every list is in a stable order, most important first.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Where the values are, by origin name.
    pub breakdowns: BTreeMap<String, Breakdown>,
    /// Functions that lead by self or by total, most self first.
    pub hotspots: Vec<Hotspot>,
    /// Who calls whom.
    pub callgraph: Callgraph,
    /// Threads, most first.
    pub threads: Vec<ThreadShare>,
    /// Processes, most first.
    pub processes: Vec<ProcessShare>,
    /// Phases of the programs' work, most first.
    #[serde(default)]
    pub phases: Vec<PhaseShare>,
    /// Objects, most self first.
    pub objects: Vec<ObjectShare>,
    /// Where the wall time went, where waits were recorded.
    #[serde(default)]
    pub ledger: Option<Ledger>,
    /// Locks that were waited for, those that are held by somebody first, most time first.
    #[serde(default)]
    pub locks: Vec<LockShare>,
    /// Requests to block devices that took long, longest first.
    #[serde(default)]
    pub slow_requests: Vec<SlowShare>,
    /// Sites that hold memory, leaks first.
    #[serde(default)]
    pub leaks: Vec<Leak>,
    /// When most memory was in use, where it is known what was freed.
    #[serde(default)]
    pub peak: Option<Peak>,
    /// What is thought of the target's memory and of the system's settings, where these were read.
    #[serde(default)]
    pub memory: Option<MemoryReport>,
    /// What is wrong, most severe first.
    #[serde(default)]
    pub findings: Vec<Finding>,
    /// What to do first.
    #[serde(default)]
    pub plan: Vec<PlanStep>,
    /// How well the target does.
    #[serde(default)]
    pub score: Option<Score>,
}

/// A phase of a program's work and how much of an origin's values it has.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PhaseShare {
    /// The origin.
    pub origin: String,
    /// What it is called.
    pub phase: String,
    /// Whose functions told it; empty where the rule does not say.
    pub client: String,
    /// Values of the stacks whose innermost function with a phase has this one.
    pub value: u64,
    /// The same as a part of the total.
    pub share: f64,
}

/// A request to a block device that took long, with who asked for it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SlowShare {
    /// The request.
    #[serde(flatten)]
    pub request: SlowRequest,
    /// Names of the frames of the stack that it was made on, leaf first, with the suffix of their kind: `_[k]` of the kernel, as
    /// in folded stacks; empty where that is not known.
    pub stack: Vec<String>,
}

/// Where an origin's values are, in its primary column.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Breakdown {
    /// Everything.
    pub total: u64,
    /// Threads that have values; `threads` of the report may list fewer.
    pub threads: u64,
    /// Processes that have values.
    pub processes: u64,
    /// Distinct stacks.
    pub stacks: u64,
    /// Values by reason, for an origin that has reasons.
    #[serde(default)]
    pub reasons: BTreeMap<String, u64>,
    /// Values by the kind of the leaf frame, below the one that says a reason: `kernel`, `native`, `jit`, `interpreted`, `marker`, `none` (empty stack).
    pub self_by_kind: BTreeMap<String, u64>,
}

/// A function and how much of an origin's values it has.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Hotspot {
    /// Origin name.
    pub origin: String,
    /// Name; `object+0xOFFSET` when there is none.
    pub function: String,
    /// Path of its object; empty when unknown.
    pub object: String,
    /// Source file; empty when unknown.
    pub file: String,
    /// [`FrameKind::name`].
    pub kind: String,
    /// Values with the function as the leaf.
    pub self_value: u64,
    /// `self_value` of the origin's total, 0 to 1.
    pub self_share: f64,
    /// Values with the function anywhere on the stack, a recursive one counted once a stack.
    pub total_value: u64,
    /// `total_value` of the origin's total, 0 to 1.
    pub total_share: f64,
}

/// Who calls whom.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Callgraph {
    /// Calls, most first.
    pub edges: Vec<Edge>,
}

/// One function called by another, inlined calls included.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Edge {
    /// Origin name.
    pub origin: String,
    /// Name of the caller.
    pub caller: String,
    /// Path of the caller's object; empty when unknown.
    pub caller_object: String,
    /// Name of the callee.
    pub callee: String,
    /// Path of the callee's object; empty when unknown.
    pub callee_object: String,
    /// Values of the stacks with this call, a recursive one counted once a stack.
    pub value: u64,
    /// `value` of the origin's total, 0 to 1.
    pub share: f64,
}

/// A thread and how much of an origin's values it has.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ThreadShare {
    /// Origin name.
    pub origin: String,
    /// Process.
    pub pid: u32,
    /// Thread.
    pub tid: u32,
    /// The process's command name.
    pub process: String,
    /// The thread's name.
    pub thread: String,
    /// Its values.
    pub value: u64,
    /// `value` of the origin's total, 0 to 1.
    pub share: f64,
}

/// A process and how much of an origin's values it has.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ProcessShare {
    /// Origin name.
    pub origin: String,
    /// Process.
    pub pid: u32,
    /// The command name; a process that executed another program under another name is listed again.
    pub process: String,
    /// Path of its cgroup; empty when that is the root, or is not known. One that was moved is listed again.
    pub cgroup: String,
    /// The container that this cgroup belongs to; empty for none.
    pub container: String,
    /// Threads that have values.
    pub threads: u64,
    /// Its values.
    pub value: u64,
    /// `value` of the origin's total, 0 to 1.
    pub share: f64,
}

/// An object, how much of an origin's values it has, and how well its frames are named.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ObjectShare {
    /// Origin name.
    pub origin: String,
    /// Path as the target sees it; `[unknown]` for addresses in no known mapping.
    pub path: String,
    /// Build ID; empty when there is none.
    pub build_id: String,
    /// Values with a leaf in the object.
    pub self_value: u64,
    /// `self_value` of the origin's total, 0 to 1.
    pub self_share: f64,
    /// Frames in the object, each weighted by its stack's values.
    pub frames: u64,
    /// Those of them that have a name.
    pub named: u64,
    /// `named` of `frames`, 0 to 1.
    pub named_share: f64,
    /// What would name the rest; empty when all have names or nothing is known.
    pub advice: String,
}

impl FrameKind {
    /// Every kind.
    pub const ALL: [Self; 6] = [Self::Native, Self::Kernel, Self::Jit, Self::Interpreted, Self::Marker, Self::Reason];

    /// The name used in JSON.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::Kernel => "kernel",
            Self::Jit => "jit",
            Self::Interpreted => "interpreted",
            Self::Marker => "marker",
            Self::Reason => "reason",
        }
    }
}
