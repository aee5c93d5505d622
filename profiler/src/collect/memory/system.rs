//! What the host does with memory: its settings, and how much there is.

use crate::process::{ProcFile, number, number_after};
use crate::profile::SystemMemory;

/// Longest word of a setting that is kept.
const MAX_WORD: usize = 32;

/// Reads what there is. `oom_kills_before`: what [`oom_kills`] said when the recording began.
pub(super) fn read(oom_kills_before: Option<u64>) -> SystemMemory {
    let huge = |name: &str| read_text(&format!("/sys/kernel/mm/transparent_hugepage/{name}"), chosen);
    let setting = |name: &str| read_text(&format!("/proc/sys/vm/{name}"), |text| number(text.trim_ascii()));
    let memory = read_text("/proc/meminfo", |text| Some(of_memory(text))).unwrap_or_default();
    SystemMemory {
        transparent_huge_pages: huge("enabled"),
        transparent_huge_pages_defrag: huge("defrag"),
        swappiness: setting("swappiness"),
        overcommit_memory: setting("overcommit_memory"),
        oom_kills: oom_kills().zip(oom_kills_before).map(|(now, before)| now.saturating_sub(before)),
        ..memory
    }
}

/// Processes that the OOM killer has taken since the host was started.
pub(super) fn oom_kills() -> Option<u64> {
    read_text("/proc/vmstat", |text| number_after(text, b"oom_kill "))
}

fn read_text<T>(path: &str, what: impl Fn(&[u8]) -> Option<T>) -> Option<T> {
    let mut buffer = Vec::new();
    what(ProcFile::open(path).ok()?.read(&mut buffer).ok()?)
}

/// What `/proc/meminfo` says, without the settings.
fn of_memory(text: &[u8]) -> SystemMemory {
    let bytes = |word: &[u8]| Some(number_after(text, word)?.saturating_mul(1024));
    let pages = |word: &[u8]| number_after(text, word);
    let unused = |free: u64| free.saturating_sub(pages(b"HugePages_Rsvd:").unwrap_or(0));
    SystemMemory {
        commit_limit_bytes: bytes(b"CommitLimit:"),
        committed_bytes: bytes(b"Committed_AS:"),
        total_bytes: bytes(b"MemTotal:"),
        available_bytes: bytes(b"MemAvailable:"),
        swap_total_bytes: bytes(b"SwapTotal:"),
        swap_free_bytes: bytes(b"SwapFree:"),
        huge_pages: pages(b"HugePages_Total:"),
        huge_pages_unused: pages(b"HugePages_Free:").map(unused),
        huge_page_bytes: bytes(b"Hugepagesize:"),
        ..SystemMemory::default()
    }
}

/// The word of a setting that is chosen, which is in brackets: `always [madvise] never`.
fn chosen(text: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(text).ok()?;
    let (_, rest) = text.split_once('[')?;
    let (word, _) = rest.split_once(']')?;
    let is_word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'+' || byte == b'_';
    (!word.is_empty() && word.len() <= MAX_WORD && word.bytes().all(is_word)).then(|| word.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_word_in_brackets_is_chosen() {
        assert_eq!(chosen(b"always [madvise] never\n").as_deref(), Some("madvise"));
        assert_eq!(chosen(b"always defer [defer+madvise] never\n").as_deref(), Some("defer+madvise"));
        for wrong in ["", "always", "[]", "[", "]a[", "[a b]", "[<b>]", &format!("[{}]", "a".repeat(33))] {
            assert_eq!(chosen(wrong.as_bytes()), None, "{wrong}");
        }
    }

    #[test]
    fn what_is_not_told_is_left_out() {
        let found =
            of_memory(b"MemTotal: 100 kB\nHugePages_Total: 8\nHugePages_Free: 6\nHugePages_Rsvd: 2\nSwapTotal: 0 kB\n");
        assert_eq!((found.total_bytes, found.swap_total_bytes), (Some(102_400), Some(0)));
        assert_eq!((found.huge_pages, found.huge_pages_unused), (Some(8), Some(4)));
        assert_eq!((found.available_bytes, found.huge_page_bytes), (None, None));
        assert_eq!(of_memory(b""), SystemMemory::default());
    }

    #[test]
    fn this_host_says_what_it_has() {
        let found = read(oom_kills());
        assert!(found.total_bytes.is_some_and(|bytes| bytes > 0), "{found:?}");
        assert!(found.swappiness.is_none_or(|swappiness| swappiness <= 200), "{found:?}");
    }
}
