//! What is wrong, by how much, and what to do: filled by `analyze`, written by `output`.

use serde::{Deserialize, Serialize};

/// What a finding is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FindingKind {
    /// Time on the CPUs.
    Cpu,
    /// Memory: allocation, faults, swapping.
    Memory,
    /// Block devices.
    Disk,
    /// Operations on files.
    File,
    /// Sockets.
    Network,
    /// Locks.
    Lock,
    /// Waiting for a CPU, and work that is not shared out.
    Scheduling,
    /// A limit or setting of the system.
    System,
}

/// How much a finding matters, by its effect on wall time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// A threshold was passed; no great effect on wall time is known.
    Info,
    /// It costs a good part of the wall time.
    Medium,
    /// It costs most of the wall time.
    High,
}

/// One thing that was found.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Finding {
    /// What it is about.
    pub kind: FindingKind,
    /// How much it matters.
    pub severity: Severity,
    /// What was found, in a sentence without a full stop.
    pub title: String,
    /// Figures, stacks and intervals that it follows from.
    pub evidence: Vec<String>,
    /// How likely it is to be so, 0 to 1.
    pub confidence: f64,
    /// What it costs: an estimate of the part of wall time, 0 to 1, of the threads concerned.
    pub effect: f64,
    /// What to do, naming the function, file, setting or command.
    pub recommendation: String,
}

/// A step of the plan.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PlanStep {
    /// What to do.
    pub action: String,
    /// What it may win at most: a part of wall time, 0 to 1.
    pub gain: f64,
}

/// How well a program does: 100, less what is deducted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Score {
    /// 0 to 100.
    pub value: u32,
    /// What was deducted, most first.
    pub deductions: Vec<Deduction>,
}

/// What a score was lessened by.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deduction {
    /// Points.
    pub points: u32,
    /// For what.
    pub reason: String,
}

impl FindingKind {
    /// Its name, as in JSON.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Memory => "memory",
            Self::Disk => "disk",
            Self::File => "file",
            Self::Network => "network",
            Self::Lock => "lock",
            Self::Scheduling => "scheduling",
            Self::System => "system",
        }
    }
}

impl Severity {
    /// Its name, as in JSON.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Info => "info",
            Self::Medium => "medium",
            Self::High => "high",
        }
    }
}
