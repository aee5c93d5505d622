//! What became of the blocks that were allocated, by the stack that allocated them.

use serde::{Deserialize, Serialize};

/// Blocks that were allocated while recording and have not been freed, as they were time and again.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Live {
    /// Why it is not known what was freed; empty where it is.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub undecided: String,
    /// Blocks that were chosen and could not be followed.
    pub missed: u64,
    /// When it was looked, ns since the start of the recording.
    pub at_ns: Vec<u64>,
    /// By stack and process, most bytes at the end first.
    pub sites: Vec<LiveSite>,
    /// When most was there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peak: Option<LivePeak>,
}

/// The time, of those at which it was looked, at which most was there.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LivePeak {
    /// ns since the start of the recording.
    pub at_ns: u64,
    /// What was there, bytes: an estimate.
    pub bytes: u64,
    /// Who held it, most first: the spans of their samples as in [`LiveSite::span`], of the value 0 where nothing is left
    /// at the end, and their bytes.
    pub sites: Vec<(String, u64)>,
}

/// The blocks of one stack of one process, as often as [`Live::at_ns`] says. Bytes are estimates from the blocks that were
/// chosen, and variances those of the estimates.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LiveSite {
    /// The span of its samples in the profile of live blocks, in hexadecimal.
    pub span: String,
    /// What was allocated there in all, bytes.
    pub allocated_bytes: u64,
    /// What was there.
    pub bytes: Vec<u64>,
    /// Its variance, KiB².
    pub variance_kib2: Vec<u64>,
    /// What of it is still there at the end.
    pub kept_bytes: Vec<u64>,
    /// The variance of that, KiB².
    pub kept_variance_kib2: Vec<u64>,
}

/// Most sites, and most times, that are written and read.
pub const MAX_LIVE_SITES: usize = 256;
/// See [`MAX_LIVE_SITES`].
pub const MAX_LIVE_TIMES: usize = 64;
/// Most sites of a peak that are written and read.
pub const MAX_PEAK_SITES: usize = 16;

impl Live {
    /// Whether every site has what there should be, and every number is one that can be.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        let times = self.at_ns.len();
        times <= MAX_LIVE_TIMES
            && self.sites.len() <= MAX_LIVE_SITES
            && self.at_ns.is_sorted()
            && self.sites.iter().all(|site| {
                let columns = [&site.bytes, &site.variance_kib2, &site.kept_bytes, &site.kept_variance_kib2];
                columns.iter().all(|column| column.len() == times && column.iter().all(|&value| value < 1 << 53))
            })
            && self.peak.as_ref().is_none_or(|peak| {
                let all = [peak.at_ns, peak.bytes].into_iter().chain(peak.sites.iter().map(|(_, bytes)| *bytes));
                peak.sites.len() <= MAX_PEAK_SITES && all.into_iter().all(|value| value < 1 << 53)
            })
    }
}

/// What is thought of a site.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LeakVerdict {
    /// More and more is there, and what is old is not freed.
    Leak,
    /// It has stopped to grow, or what is new takes the place of what is old.
    Cache,
    /// It was allocated early, and is kept.
    LongLived,
    /// It is freed soon after.
    Churn,
    /// There is too little to tell.
    Undecided,
}

impl LeakVerdict {
    /// As in reports.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Leak => "leak",
            Self::Cache => "cache",
            Self::LongLived => "long-lived",
            Self::Churn => "churn",
            Self::Undecided => "undecided",
        }
    }
}

/// A site with its verdict.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Leak {
    /// The functions that allocate, leaf first, those of the allocator left out.
    pub site: Vec<String>,
    /// The process.
    pub process: String,
    /// Its number.
    pub pid: u32,
    /// What is thought of it.
    pub verdict: LeakVerdict,
    /// How sure that is, 0 to 1.
    pub confidence: f64,
    /// Why.
    pub reason: String,
    /// What is there at the end, bytes.
    pub live_bytes: u64,
    /// What was allocated in all, bytes.
    pub allocated_bytes: u64,
    /// How fast it grew in the second half of the recording, bytes a second.
    pub growth_bytes_per_s: f64,
    /// Where that is, 19 times in 20, bytes a second.
    pub interval: [f64; 2],
}

/// When most memory was in use, of what was allocated while recording, and who held it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Peak {
    /// ns since the start of the recording.
    pub at_ns: u64,
    /// Bytes: an estimate.
    pub bytes: u64,
    /// The sites that held most, most first.
    pub sites: Vec<PeakSite>,
}

/// What a site held when most was in use.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeakSite {
    /// As [`Leak::site`].
    pub site: Vec<String>,
    /// The process.
    pub process: String,
    /// Its number.
    pub pid: u32,
    /// Bytes: an estimate.
    pub bytes: u64,
}
