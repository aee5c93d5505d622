//! What the system's settings and limits of memory mean for the target, and how much of its heap is in use.
//!
//! A setting by itself is no fault: something is to be done only where figures of the target or of the host say that it bites.

use profiler_common::event::Origin;

use super::Thresholds;
use crate::profile::{
    Capture, CgroupMemory, Column, Memory, MemoryCheck, MemoryReport, Severity, SystemMemory, TargetKind, Timeline,
};

/// Heap from which on small pages may cost much time: its page tables alone are 8 MiB then.
const LARGE_HEAP: u64 = 4 << 30;
/// Heap below which what the libraries keep for themselves is a good part.
const LEAST_HEAP: u64 = 16 << 20;
/// Part of the host's memory that may be set aside for huge pages in vain.
const IDLE_HUGE_PAGES: f64 = 0.05;
/// Part of swap space, or of what may be allocated, that is nearly all.
const NEARLY_ALL: f64 = 0.9;
/// Part of the blocks that may be missing where it is said how much of the heap is in use.
const MISSED_BLOCKS: f64 = 0.05;

/// What is thought of memory, where it was read.
pub(super) fn memory(capture: &Capture, thresholds: &Thresholds) -> Option<MemoryReport> {
    let memory = capture.index.memory.as_ref()?;
    let (system, timeline) = (&memory.system, &capture.index.timeline);
    let in_use = in_use(system);
    let mut checks = Vec::new();
    checks.extend(host(system, in_use, thresholds));
    checks.extend(memory.cgroups.iter().filter_map(|cgroup| limit(cgroup, thresholds)));
    checks.extend(pressure(timeline, capture.index.duration_ns));
    checks.extend(swap(system));
    checks.extend(swappiness(system));
    checks.extend(overcommit(system));
    checks.extend(transparent_huge_pages(memory));
    checks.extend(huge_pages(system));
    checks.extend(oom_score(memory, in_use.is_some_and(|part| part >= thresholds.memory_use)));
    checks.extend(oom_kills(system));
    Some(MemoryReport { checks, fragmentation: fragmentation(capture, memory) })
}

/// A check without anything to do.
fn told(name: &str, value: String, meaning: impl Into<String>) -> MemoryCheck {
    MemoryCheck { name: name.to_owned(), value, meaning: meaning.into(), advice: String::new(), severity: None }
}

/// The same with something to do.
fn to_do(check: MemoryCheck, meaning: String, advice: impl Into<String>) -> MemoryCheck {
    MemoryCheck { meaning, advice: advice.into(), severity: Some(Severity::Info), ..check }
}

/// The part of the host's memory that is in use.
fn in_use(system: &SystemMemory) -> Option<f64> {
    let (total, available) = (system.total_bytes?, system.available_bytes?);
    (total > 0).then(|| 1.0 - (float(available) / float(total)).min(1.0))
}

fn host(system: &SystemMemory, in_use: Option<f64>, thresholds: &Thresholds) -> Option<MemoryCheck> {
    let (total, available) = (system.total_bytes?, system.available_bytes?);
    let value = format!("{} of {} available", size(available), size(total));
    let check = told("memory of the host", value, "there is memory left for whoever asks");
    Some(match in_use? {
        part if part >= thresholds.memory_use => to_do(
            check,
            format!(
                "{} of the host's memory is in use: when there is none left, pages are reclaimed from the target too",
                percent(part)
            ),
            "move some of the load, or give the host more memory",
        ),
        _ => check,
    })
}

/// The limit of a cgroup and what came of it.
fn limit(cgroup: &CgroupMemory, thresholds: &Thresholds) -> Option<MemoryCheck> {
    let path = &cgroup.path;
    let event = |name: &str| cgroup.events.get(name).copied().unwrap_or(0);
    let (max, high) = (cgroup.max_bytes, cgroup.high_bytes);
    let held = cgroup.held_bytes.unwrap_or(0);
    let limit = max.into_iter().chain(high).min();
    let mut value = size(cgroup.current_bytes?);
    if cgroup.held_bytes.is_some() {
        value += &format!(", {} of it without the page cache", size(held));
    }
    for (name, bytes) in [("memory.max", max), ("memory.high", high), ("memory.swap.max", cgroup.swap_max_bytes)] {
        value += &bytes.map_or_else(String::new, |bytes| format!(", {name} {}", size(bytes)));
    }
    for (name, count) in &cgroup.events {
        value += &format!(", {name} {count} times");
    }
    let meaning = match (limit, cgroup.swap_max_bytes) {
        (None, _) => "the cgroup has no limit of its own",
        (Some(_), Some(0)) => "at the limit pages of files go, then the OOM killer comes: the cgroup may not swap",
        (Some(_), _) => "at the limit pages of files go, then others are swapped out, then the OOM killer comes",
    };
    let check = told(&format!("cgroup `{path}`"), value, meaning);
    let raise =
        |setting: &str| format!("raise {setting} of `{path}`, or use less: `record -e alloc` shows who allocates");
    Some(if event("oom_kill") > 0 {
        let killed =
            format!("the OOM killer took {} of `{path}` while recording", plural(event("oom_kill"), "process"));
        MemoryCheck { severity: Some(Severity::Medium), ..to_do(check, killed, raise("memory.max")) }
    } else if event("high") > 0 {
        let slowed =
            format!("threads of `{path}` were slowed down {}, above memory.high", plural(event("high"), "time"));
        to_do(check, slowed, raise("memory.high"))
    } else if event("max") > 0 {
        let came = format!("`{path}` came to its limit of memory {} while recording", plural(event("max"), "time"));
        to_do(check, came, raise("memory.max"))
    } else {
        match limit {
            Some(limit) if float(held) >= thresholds.memory_use * float(limit.max(1)) => {
                let part = percent(float(held) / float(limit.max(1)));
                to_do(check, format!("`{path}` has {part} of its limit without the page cache"), raise("memory.max"))
            }
            _ => check,
        }
    })
}

/// Time in which tasks waited for memory: of the target where that is known, else of the host. What is too much is a finding
/// of its own.
fn pressure(timeline: &Timeline, duration_ns: u64) -> Option<MemoryCheck> {
    let part = |column| {
        let sum: f64 = timeline.column(column)?.iter().flatten().map(|&stalled| float(stalled)).sum();
        Some((sum / float(duration_ns.max(1))).min(1.0))
    };
    let of_target = part(Column::TargetPressureMemorySome).zip(part(Column::TargetPressureMemoryFull));
    let of_host = || part(Column::HostPressureMemorySome).zip(part(Column::HostPressureMemoryFull));
    let (whose, (some, full)) = match of_target {
        Some(parts) => ("the target", parts),
        None => ("the host", of_host()?),
    };
    let value = format!("some {}, full {}, of {whose}", percent(some), percent(full));
    let meaning = if some > 0.0 {
        "the part of the time in which a task, and in which all, waited for memory to be had"
    } else {
        "nobody waited for memory"
    };
    Some(told("pressure", value, meaning))
}

fn swap(system: &SystemMemory) -> Option<MemoryCheck> {
    let (total, free) = (system.swap_total_bytes?, system.swap_free_bytes?);
    if total == 0 {
        let meaning = "what is not of a file stays in memory: when that is short, pages of files go and are read again, then \
                       the OOM killer comes";
        return Some(told("swap", "none".to_owned(), meaning));
    }
    let used = total.saturating_sub(free);
    let value = format!("{} of {} in use", size(used), size(total));
    let check = told("swap", value, "what is used least may be swapped out, and is waited for when it is used again");
    if float(used) < NEARLY_ALL * float(total) {
        return Some(check);
    }
    let meaning =
        format!("{} of the swap space is in use: next the OOM killer comes", percent(float(used) / float(total)));
    Some(to_do(
        check,
        meaning,
        "find who swaps (VmSwap in /proc/PID/status), and give the host more memory or swap space",
    ))
}

fn swappiness(system: &SystemMemory) -> Option<MemoryCheck> {
    let swappiness = system.swappiness?;
    let meaning = match swappiness {
        _ if system.swap_total_bytes == Some(0) => "it says nothing where there is no swap space",
        0 => "nothing is swapped out until there is nothing else to be had",
        1..100 => "pages of files go more readily than others are swapped out",
        100 => "pages of files and others go alike",
        _ => {
            "others are swapped out more readily than pages of files go, which suits swap space in memory (zram, zswap)"
        }
    };
    Some(told("vm.swappiness", swappiness.to_string(), meaning))
}

fn overcommit(system: &SystemMemory) -> Option<MemoryCheck> {
    let value = system.overcommit_memory?;
    let name = "vm.overcommit_memory";
    let meaning = match value {
        0 => {
            "an allocation fails only where it is out of all proportion; what is not there shows when it is used, by the OOM \
              killer"
        }
        1 => "no allocation fails; what is not there shows when it is used, by the OOM killer",
        _ => {
            let (committed, limit) = (system.committed_bytes?, system.commit_limit_bytes?);
            let text = format!("{value}: {} of {} allocated", size(committed), size(limit));
            let check = told(name, text, "allocations fail beyond the limit, whether the memory is used or not");
            let part = float(committed) / float(limit.max(1));
            return Some(if part < NEARLY_ALL {
                check
            } else {
                let meaning = format!("{} of what may be allocated is: allocations are about to fail", percent(part));
                to_do(check, meaning, "raise vm.overcommit_ratio, or add swap space")
            });
        }
    };
    Some(told(name, value.to_string(), meaning))
}

fn transparent_huge_pages(memory: &Memory) -> Option<MemoryCheck> {
    let mode = memory.system.transparent_huge_pages.as_deref()?;
    let defrag = memory.system.transparent_huge_pages_defrag.as_deref();
    let huge = memory.at_end(|shares| shares.huge_bytes.unwrap_or(0));
    let heap = memory.at_end(|shares| shares.heap_bytes);
    let mut value = mode.to_owned();
    value += &defrag.map_or_else(String::new, |defrag| format!(", defrag {defrag}"));
    if heap > 0 {
        value += &format!(", {} of the target's {} in such", size(huge), size(heap));
    }
    let meaning = match mode {
        "always" => {
            "memory gets huge pages where it can: fewer misses of the TLB, more resident where little of a page is used"
        }
        "madvise" => "only memory that a program asks it for gets huge pages",
        _ => "no memory gets huge pages",
    };
    let check = told("transparent huge pages", value, meaning);
    let is_read = memory.processes.iter().any(|process| process.end.huge_bytes.is_some());
    Some(if mode == "always" && defrag == Some("always") {
        to_do(
            check,
            "page faults wait while memory is compacted for huge pages".to_owned(),
            "`echo defer+madvise > /sys/kernel/mm/transparent_hugepage/defrag`",
        )
    } else if mode != "always" && is_read && huge == 0 && heap >= LARGE_HEAP {
        to_do(
            check,
            format!("{} of the target are in small pages: many misses of the TLB", size(heap)),
            "let it ask for huge pages and measure: `GLIBC_TUNABLES=glibc.malloc.hugetlb=1`, jemalloc's `thp:always`, \
             `-XX:+UseTransparentHugePages`, with `madvise` in /sys/kernel/mm/transparent_hugepage/enabled",
        )
    } else {
        check
    })
}

fn huge_pages(system: &SystemMemory) -> Option<MemoryCheck> {
    let (pages, unused, page) = (system.huge_pages?, system.huge_pages_unused?, system.huge_page_bytes?);
    if pages == 0 {
        return Some(told("huge pages", "none".to_owned(), "none are set aside"));
    }
    let idle = unused.saturating_mul(page);
    let value = format!("{pages} of {}, {unused} of them unused", size(page));
    let check = told("huge pages", value, "memory that is set aside for programs that ask for huge pages");
    Some(if float(idle) < IDLE_HUGE_PAGES * float(system.total_bytes?) {
        check
    } else {
        let meaning = format!("{} are set aside for huge pages and nobody has them", size(idle));
        to_do(check, meaning, "lower vm.nr_hugepages to what is used")
    })
}

/// Of the process that the OOM killer would take first.
fn oom_score(memory: &Memory, is_short: bool) -> Option<MemoryCheck> {
    let scored = memory.processes.iter().filter_map(|process| Some((process.oom_score?, process)));
    let (score, process) = scored.max_by_key(|(score, _)| *score)?;
    let adjustment = process.oom_score_adj?;
    let name = &process.process;
    let value = format!("{score}, {adjustment} added, of `{name}` ({})", process.pid);
    let meaning = match adjustment {
        -1000 => "the OOM killer never takes it: others go for it",
        ..0 => "the OOM killer takes others of its size first",
        0 => "the OOM killer takes who has most memory",
        _ => "the OOM killer takes it before others of its size",
    };
    let check = told("OOM score", value, meaning);
    Some(if is_short && adjustment > 0 {
        let meaning = format!("memory is short, and the OOM killer takes `{name}` before others of its size");
        to_do(
            check,
            meaning,
            format!("lower oom_score_adj of `{name}` (OOMScoreAdjust= of its unit) if others can be missed sooner"),
        )
    } else {
        check
    })
}

fn oom_kills(system: &SystemMemory) -> Option<MemoryCheck> {
    let kills = system.oom_kills?;
    let check = told("OOM kills", kills.to_string(), "nobody was killed for want of memory while recording");
    Some(if kills == 0 {
        check
    } else {
        let meaning = format!("the OOM killer took {} on the host while recording", plural(kills, "process"));
        to_do(check, meaning, "`journalctl -k` says whom, and for which limit")
    })
}

/// The part of the heap that is in no block in use: known where every block was followed since the program began.
fn fragmentation(capture: &Capture, memory: &Memory) -> Option<f64> {
    let live = capture.index.live.as_ref().filter(|live| live.undecided.is_empty())?;
    if capture.index.target.kind != TargetKind::Command {
        return None;
    }
    let profile = capture.profiles.iter().find(|profile| profile.origin == Origin::Live)?;
    let [blocks, bytes, ..] = profile.totals();
    let heap = memory.at_end(|shares| shares.heap_bytes);
    if heap < LEAST_HEAP || float(live.missed) > MISSED_BLOCKS * float(blocks) {
        return None;
    }
    Some(((1.0 - float(bytes) / float(heap)).max(0.0) * 1e3).round() / 1e3)
}

#[expect(clippy::cast_precision_loss, reason = "shown with a few digits")]
const fn float(value: u64) -> f64 {
    value as f64
}

fn percent(part: f64) -> String {
    format!("{:.1} %", part * 100.0)
}

fn plural(count: u64, noun: &str) -> String {
    match (count, noun.ends_with('s')) {
        (1, _) => format!("1 {noun}"),
        (_, true) => format!("{count} {noun}es"),
        (_, false) => format!("{count} {noun}s"),
    }
}

/// Bytes as text.
pub(super) fn size(bytes: u64) -> String {
    match bytes {
        0..0x10_0000 => format!("{:.1} KiB", float(bytes) / 1024.0),
        0x10_0000..0x4000_0000 => format!("{:.1} MiB", float(bytes) / 1048576.0),
        _ => format!("{:.1} GiB", float(bytes) / 1073741824.0),
    }
}
