//! What the memory of a process is, by /proc/PID/status and, where that is cheap, /proc/PID/smaps_rollup.

use crate::process::{ProcFile, command_name, number_after};
use crate::profile::MemoryShares;

/// Resident memory of all processes up to which page tables are walked for more than `status` says: the kernel looks at every
/// page, some 10 ms for each GiB, while the process cannot map anything.
const MAX_WALKED_BYTES: u64 = 4 << 30;

/// A process of the target.
#[derive(Debug)]
pub(super) struct Watched {
    pub(super) pid: u32,
    pub(super) name: String,
    /// Held open: it stays this process's when the number becomes another's.
    status: ProcFile,
    pub(super) start: MemoryShares,
    pub(super) end: MemoryShares,
    pub(super) oom_score: Option<u64>,
    pub(super) oom_score_adj: Option<i64>,
    /// Whether it was still there when it was last looked at.
    pub(super) is_there: bool,
}

impl Watched {
    /// `None` for one that is gone, is a thread of the kernel, or is us.
    pub(super) fn new(pid: u32) -> Option<Self> {
        let status = ProcFile::open(format!("/proc/{pid}/status")).ok()?;
        let shares = shares(status.read(&mut Vec::new()).ok()?)?;
        let name = command_name(pid).unwrap_or_default();
        let mut watched = Self {
            pid,
            name,
            status,
            start: shares,
            end: shares,
            oom_score: None,
            oom_score_adj: None,
            is_there: true,
        };
        watched.read_oom_score();
        Some(watched)
    }

    /// Notes what it has now; of one that is gone what it had last stays.
    pub(super) fn look(&mut self) {
        let now = self.status.read(&mut Vec::new()).ok().and_then(shares);
        self.is_there = now.is_some();
        if let Some(now) = now {
            self.end = now;
            self.read_oom_score();
            if let Some(name) = command_name(self.pid) {
                self.name = name;
            }
        }
    }

    fn read_oom_score(&mut self) {
        let read = |name: &str| {
            let mut buffer = Vec::new();
            let file = ProcFile::open(format!("/proc/{}/{name}", self.pid)).ok()?;
            std::str::from_utf8(file.read(&mut buffer).ok()?).ok()?.trim().parse::<i64>().ok()
        };
        self.oom_score = read("oom_score").and_then(|score| u64::try_from(score).ok());
        self.oom_score_adj = read("oom_score_adj").filter(|adjustment| (-1000..=1000).contains(adjustment));
    }
}

/// Reads what takes a walk of the page tables, of one process after another while that is cheap.
pub(super) fn walk<'a>(processes: impl Iterator<Item = (u32, &'a mut MemoryShares)>) {
    let mut buffer = Vec::new();
    let mut walked = 0_u64;
    for (pid, shares) in processes {
        walked = walked.saturating_add(shares.rss_bytes);
        if walked > MAX_WALKED_BYTES {
            return;
        }
        if let Ok(file) = ProcFile::open(format!("/proc/{pid}/smaps_rollup"))
            && let Ok(text) = file.read(&mut buffer)
        {
            shares.pss_bytes = kibibytes(text, b"Pss:");
            shares.huge_bytes = kibibytes(text, b"AnonHugePages:");
        }
    }
}

/// Shares by the text of `status`; `None` for a process without memory of its own.
fn shares(status: &[u8]) -> Option<MemoryShares> {
    let bytes = |word: &[u8]| kibibytes(status, word);
    let (anonymous, stack) = (bytes(b"RssAnon:")?, bytes(b"VmStk:")?);
    Some(MemoryShares {
        rss_bytes: bytes(b"VmRSS:")?,
        pss_bytes: None,
        heap_bytes: anonymous.saturating_sub(stack),
        stack_bytes: stack.min(anonymous),
        file_bytes: bytes(b"RssFile:")?,
        shared_bytes: bytes(b"RssShmem:")?,
        swap_bytes: bytes(b"VmSwap:").unwrap_or(0),
        huge_bytes: None,
    })
}

/// The kernel counts pages and shows them in KiB.
fn kibibytes(text: &[u8], word: &[u8]) -> Option<u64> {
    // Of more than this a process has not got.
    const MOST: u64 = 1 << 45;
    number_after(text, word).filter(|&number| number < MOST).map(|number| number * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    const STATUS: &[u8] = b"Name:\ta VmRSS: 7 kB\nVmRSS:\t    100 kB\nRssAnon:\t      60 kB\nRssFile:\t      30 kB\n\
        RssShmem:\t      10 kB\nVmStk:\t      20 kB\nVmSwap:\t       4 kB\n";

    #[test]
    fn the_parts_add_up() {
        let found = shares(STATUS).unwrap();
        let parts = [found.heap_bytes, found.stack_bytes, found.file_bytes, found.shared_bytes];
        assert_eq!(parts, [40, 20, 30, 10].map(|kibibytes| kibibytes * 1024));
        assert_eq!(parts.iter().sum::<u64>(), found.rss_bytes);
        assert_eq!(found.swap_bytes, 4096);
    }

    #[test]
    fn what_is_damaged_says_nothing_and_what_is_swapped_out_leaves_no_stack() {
        // A thread of the kernel has none of these lines.
        assert_eq!(shares(b"Name:\tkthreadd\nThreads:\t1\n"), None);
        for length in 0..STATUS.len() - b"VmStk:\t      20 kB\nVmSwap:\t       4 kB\n".len() {
            assert_eq!(shares(&STATUS[..length]), None, "{length}");
        }
        let huge = String::from_utf8(STATUS.to_vec()).unwrap().replace("60 kB", "18446744073709551615 kB");
        assert_eq!(shares(huge.as_bytes()), None);
        let swapped = String::from_utf8(STATUS.to_vec()).unwrap().replace("60 kB", "8 kB");
        let found = shares(swapped.as_bytes()).unwrap();
        assert_eq!((found.heap_bytes, found.stack_bytes), (0, 8192));
    }
}
