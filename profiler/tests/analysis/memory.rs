//! What settings, limits and figures of memory come to, without a kernel.

use profiler::analyze::analyze;
use profiler::profile::{
    Capture, CgroupMemory, Finding, FindingKind, Memory, MemoryCheck, MemoryShares, ProcessMemory, Severity,
    SystemMemory, TargetKind,
};
use profiler_common::event::Origin;

use crate::made::{capture, profile};

const GIB: u64 = 1 << 30;

/// A host with nothing to complain of.
fn system() -> SystemMemory {
    SystemMemory {
        transparent_huge_pages: Some("madvise".to_owned()),
        transparent_huge_pages_defrag: Some("madvise".to_owned()),
        swappiness: Some(60),
        overcommit_memory: Some(0),
        commit_limit_bytes: Some(40 * GIB),
        committed_bytes: Some(39 * GIB),
        total_bytes: Some(64 * GIB),
        available_bytes: Some(40 * GIB),
        swap_total_bytes: Some(8 * GIB),
        swap_free_bytes: Some(8 * GIB),
        huge_pages: Some(0),
        huge_pages_unused: Some(0),
        huge_page_bytes: Some(2 << 20),
        oom_kills: Some(0),
    }
}

fn recorded(memory: Memory) -> Capture {
    let mut capture = capture(Vec::new(), 10);
    capture.index.memory = Some(memory);
    capture
}

fn of_host(change: impl Fn(&mut SystemMemory)) -> Capture {
    let mut system = system();
    change(&mut system);
    recorded(Memory { system, ..Memory::default() })
}

fn of_cgroup(cgroup: CgroupMemory) -> Capture {
    let cgroup = CgroupMemory { path: "/jobs".to_owned(), current_bytes: Some(3 * GIB), ..cgroup };
    recorded(Memory { system: system(), cgroups: vec![cgroup], ..Memory::default() })
}

fn findings(capture: &Capture) -> Vec<Finding> {
    analyze(capture).findings
}

fn named(capture: &Capture, name: &str) -> MemoryCheck {
    let checks = analyze(capture).memory.unwrap().checks;
    checks.into_iter().find(|check| check.name == name).unwrap_or_else(|| panic!("no check {name}"))
}

/// Exactly one finding, of the system, with a text in its title.
fn check(capture: &Capture, severity: Severity, title: &str) {
    let found = findings(capture);
    let [finding] = found.as_slice() else { panic!("{title}: {found:#?}") };
    assert_eq!((finding.kind, finding.severity), (FindingKind::System, severity), "{finding:#?}");
    assert!(finding.title.contains(title), "{finding:#?}");
    assert!(!finding.evidence.is_empty() && !finding.recommendation.is_empty(), "{finding:#?}");
}

#[test]
fn settings_that_do_no_harm_are_told_and_no_findings() {
    let capture = of_host(|_| {});
    assert_eq!(findings(&capture), []);
    let names = ["memory of the host", "swap", "vm.swappiness", "vm.overcommit_memory", "transparent huge pages"];
    for name in names {
        let check = named(&capture, name);
        assert!(!check.value.is_empty() && !check.meaning.is_empty() && check.advice.is_empty(), "{check:?}");
    }
    // What is not known is not told.
    assert_eq!(analyze(&recorded(Memory::default())).memory.unwrap().checks, []);
}

#[test]
fn what_bites_on_the_host_is_a_finding() {
    check(&of_host(|system| system.available_bytes = Some(6 * GIB)), Severity::Info, "90.6 % of the host's memory");
    check(&of_host(|system| system.swap_free_bytes = Some(0)), Severity::Info, "100.0 % of the swap space");
    check(&of_host(|system| system.overcommit_memory = Some(2)), Severity::Info, "allocations are about to fail");
    let of_huge = of_host(|system| (system.huge_pages, system.huge_pages_unused) = (Some(8192), Some(4096)));
    check(&of_huge, Severity::Info, "8.0 GiB are set aside");
    let always = || Some("always".to_owned());
    let waits = of_host(|system| {
        (system.transparent_huge_pages, system.transparent_huge_pages_defrag) = (always(), always());
    });
    check(&waits, Severity::Info, "page faults wait while memory is compacted");
    check(&of_host(|system| system.oom_kills = Some(2)), Severity::Info, "took 2 processes on the host");
}

#[test]
fn a_limit_matters_when_it_is_reached() {
    let cgroup = |held: u64, event: &str| CgroupMemory {
        held_bytes: Some(held),
        max_bytes: Some(4 * GIB),
        events: (!event.is_empty()).then(|| (event.to_owned(), 1)).into_iter().collect(),
        ..CgroupMemory::default()
    };
    // Full of the pages of files, which can go.
    assert_eq!(findings(&of_cgroup(cgroup(GIB, ""))), []);
    check(&of_cgroup(cgroup(4 * GIB - 1, "")), Severity::Info, "`/jobs` has 100.0 % of its limit");
    check(&of_cgroup(cgroup(GIB, "max")), Severity::Info, "came to its limit of memory 1 time");
    check(&of_cgroup(cgroup(GIB, "high")), Severity::Info, "slowed down 1 time");
    check(&of_cgroup(cgroup(GIB, "oom_kill")), Severity::Medium, "took 1 process of `/jobs`");
    let unlimited = CgroupMemory { held_bytes: Some(3 * GIB), ..CgroupMemory::default() };
    assert_eq!(findings(&of_cgroup(unlimited)), []);
}

#[test]
fn who_is_killed_first_matters_when_memory_is_short() {
    let of = |adjustment: i64, available: u64| {
        let process = ProcessMemory {
            pid: 1,
            process: "program".to_owned(),
            oom_score: Some(900),
            oom_score_adj: Some(adjustment),
            ..ProcessMemory::default()
        };
        let system = SystemMemory { available_bytes: Some(available), ..system() };
        recorded(Memory { processes: vec![process], system, ..Memory::default() })
    };
    assert_eq!(findings(&of(500, 40 * GIB)), []);
    assert_eq!(named(&of(-1000, 40 * GIB), "OOM score").meaning, "the OOM killer never takes it: others go for it");
    let short = findings(&of(500, GIB));
    assert!(short.iter().any(|finding| finding.title.contains("takes `program` before others")), "{short:#?}");
    assert!(findings(&of(0, GIB)).iter().all(|finding| !finding.title.contains("program")));
}

#[test]
fn a_large_heap_in_small_pages_is_told() {
    let of = |huge_bytes| {
        let end = MemoryShares { heap_bytes: 8 * GIB, huge_bytes, ..MemoryShares::default() };
        let process = ProcessMemory { pid: 1, end, ..ProcessMemory::default() };
        recorded(Memory { processes: vec![process], system: system(), ..Memory::default() })
    };
    check(&of(Some(0)), Severity::Info, "8.0 GiB of the target are in small pages");
    assert_eq!(findings(&of(Some(GIB))), []);
    // Not read is not none.
    assert_eq!(findings(&of(None)), []);
}

#[test]
fn the_heap_that_is_in_no_block_is_told_where_all_blocks_are_known() {
    let of = |kind: TargetKind, heap_bytes: u64, undecided: &str| {
        let mut capture = capture(vec![profile(Origin::Live, &[("main;fill;malloc", [400, 40 << 20, 400, 0])])], 10);
        let end = MemoryShares { heap_bytes, ..MemoryShares::default() };
        let process = ProcessMemory { pid: 1, end, ..ProcessMemory::default() };
        capture.index.memory = Some(Memory { processes: vec![process], ..Memory::default() });
        capture.index.target.kind = kind;
        capture.index.live =
            Some(profiler::profile::Live { undecided: undecided.to_owned(), ..profiler::profile::Live::default() });
        capture
    };
    let fragmentation = |capture: &Capture| analyze(capture).memory.unwrap().fragmentation;
    let capture = of(TargetKind::Command, 100 << 20, "");
    assert_eq!(fragmentation(&capture), Some(0.6));
    let found = findings(&capture);
    assert!(
        found.iter().any(|finding| finding.kind == FindingKind::Memory && finding.title.contains("60.0 %")),
        "{found:#?}"
    );
    assert_eq!(findings(&of(TargetKind::Command, 50 << 20, "")), []);
    // What was there before is in no block that is known.
    assert_eq!(fragmentation(&of(TargetKind::Processes, 100 << 20, "")), None);
    assert_eq!(fragmentation(&of(TargetKind::Command, 100 << 20, "in windows")), None);
    assert_eq!(fragmentation(&of(TargetKind::Command, 1 << 20, "")), None);
}

#[test]
fn figures_that_no_host_has_break_nothing() {
    let most = u64::MAX;
    for (total, available) in [(0, 0), (0, most), (most, 0), (most, most)] {
        let capture = of_host(|system| {
            let all = [
                &mut system.total_bytes,
                &mut system.swap_total_bytes,
                &mut system.commit_limit_bytes,
                &mut system.huge_pages,
                &mut system.huge_page_bytes,
            ];
            all.into_iter().for_each(|figure| *figure = Some(total));
            let left = [
                &mut system.available_bytes,
                &mut system.swap_free_bytes,
                &mut system.committed_bytes,
                &mut system.huge_pages_unused,
                &mut system.overcommit_memory,
                &mut system.swappiness,
                &mut system.oom_kills,
            ];
            left.into_iter().for_each(|figure| *figure = Some(available));
        });
        for finding in findings(&capture) {
            assert!(!finding.title.contains("NaN") && !finding.title.contains("inf "), "{finding:#?}");
        }
    }
}
