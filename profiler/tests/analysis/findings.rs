//! Findings on captures whose bottleneck is known, without a kernel.

use profiler::analyze::analyze;
use profiler::profile::{Capture, Finding, FindingKind, Live, LiveSite, Row, Severity, Table, TableColumn, ThreadTime};
use profiler_common::event::Origin;

use crate::made::{capture, profile};

const SECOND: u64 = 1_000_000_000;

/// A capture of 10 s of CPU samples, with waits where there are any, and the exact times of threads that follow from both.
fn recorded(samples: &[(&str, u64)], waits: &[(&str, u64)]) -> Capture {
    let cpu: Vec<_> = samples.iter().map(|&(stack, n)| (stack, [n, n * SECOND / 999, 0, 0])).collect();
    let offcpu: Vec<_> = waits.iter().map(|&(stack, ns)| (stack, [1, ns, 1, 0])).collect();
    let mut profiles = vec![profile(Origin::Cpu, &cpu)];
    if !waits.is_empty() {
        profiles.push(profile(Origin::OffCpu, &offcpu));
    }
    let mut capture = capture(profiles, 10);
    if !waits.is_empty() {
        let (on, off) = (cpu.iter().map(|(_, values)| values[1]).sum(), waits.iter().map(|(_, ns)| ns).sum());
        capture.index.thread_times = vec![ThreadTime {
            pid: 1,
            tid: 1,
            start_time_ns: 1,
            process: "program".to_owned(),
            thread: "program".to_owned(),
            threads: 1,
            wall_ns: on + off,
            on_cpu_ns: on,
            off_cpu_ns: off,
        }];
    }
    capture
}

fn findings(capture: &Capture) -> Vec<Finding> {
    analyze(capture).findings
}

fn first(capture: &Capture) -> Finding {
    let found = findings(capture);
    found.into_iter().next().unwrap_or_else(|| panic!("nothing was found"))
}

fn check(found: &Finding, kind: FindingKind, severity: Severity, function: &str) {
    assert_eq!((found.kind, found.severity), (kind, severity), "{found:#?}");
    assert!(found.title.contains(function), "{found:#?}");
    assert!(!found.evidence.is_empty() && !found.recommendation.is_empty(), "{found:#?}");
    assert!((0.0..=1.0).contains(&found.effect) && (0.0..=1.0).contains(&found.confidence), "{found:#?}");
}

#[test]
fn what_takes_the_cpu_is_told_by_what_it_is() {
    let busy = [("main;check;sha256_compress", 7000), ("main;check", 2000), ("main;other", 990)];
    check(&first(&recorded(&busy, &[])), FindingKind::Cpu, Severity::High, "hashing takes 70.1 %");
    let busy = [("main;build;malloc;_int_malloc", 5000), ("main;build;free", 2000), ("main;a", 1500), ("main;b", 1490)];
    check(&first(&recorded(&busy, &[])), FindingKind::Memory, Severity::High, "allocation takes 70.1 %");
    let busy = [("main;own_function", 9000), ("main;other", 990)];
    check(&first(&recorded(&busy, &[])), FindingKind::Cpu, Severity::High, "`own_function` takes 90.1 %");
}

#[test]
fn a_threshold_alone_is_no_more_than_info() {
    // Nine tenths of next to nothing.
    let idle = [("main;sha256_compress", 90), ("main;other", 10)];
    let found = findings(&recorded(&idle, &[]));
    assert!(!found.is_empty() && found.iter().all(|finding| finding.severity == Severity::Info), "{found:#?}");
    // Twelve functions that have a twelfth each.
    let names: Vec<String> = (0..12).map(|number| format!("main;step_{number}")).collect();
    let even: Vec<(&str, u64)> = names.iter().map(|name| (name.as_str(), 800)).collect();
    assert_eq!(findings(&recorded(&even, &[])), []);
}

#[test]
fn waits_are_told_by_what_they_are_for() {
    let busy = [("main;work", 100)];
    let kernel = "do_syscall_64_[k]";
    let of = |stack: &str| recorded(&busy, &[(stack, 8 * SECOND)]);
    let fsync = of(&format!("main;save;fsync;{kernel};__x64_sys_fsync_[k];[disk]"));
    check(&first(&fsync), FindingKind::File, Severity::High, "fsync");
    let disk = of(&format!("main;load;pread;{kernel};io_schedule_[k];[disk]"));
    check(&first(&disk), FindingKind::Disk, Severity::High, "`pread` waits for the disk");
    let asks = of(&format!("main;ask;recv;{kernel};tcp_recvmsg_[k];[network]"));
    check(&first(&asks), FindingKind::Network, Severity::High, "waits for its peer");
    let lock = of(&format!("main;update;pthread_mutex_lock;{kernel};futex_wait_[k];[lock]"));
    check(&first(&lock), FindingKind::Lock, Severity::High, "waits for a lock");
    let faults = of("main;scan;asm_exc_page_fault_[k];handle_mm_fault_[k];filemap_fault_[k];[fault]");
    check(&first(&faults), FindingKind::Memory, Severity::High, "`scan` waits for pages");
    let queue = of("main;work;[run queue]");
    check(&first(&queue), FindingKind::Scheduling, Severity::High, "1 thread ready to run without a CPU");
}

#[test]
fn who_waits_for_something_to_do_costs_nothing() {
    let busy = [("main;work", 100)];
    for stack in [
        "main;serve;accept;inet_csk_accept_[k];[network]",
        "main;serve;epoll_wait;ep_poll_[k];[poll]",
        "main;nap;clock_nanosleep;[sleep]",
        "main;take;pthread_cond_wait;__pthread_mutex_cond_lock;futex_wait_[k];[lock]",
    ] {
        let found = findings(&recorded(&busy, &[(stack, 9 * SECOND)]));
        assert!(found.iter().all(|finding| finding.severity == Severity::Info), "{stack}: {found:#?}");
    }
}

#[test]
fn many_small_reads_of_a_file_are_found_by_its_table() {
    let mut capture = recorded(&[("main;query;pread", 8000), ("main;rest", 1900)], &[]);
    let columns = [("reads", "count"), ("read_bytes", "bytes"), ("read_time", "ns"), ("syncs", "count")];
    let table = |reads: u64| Table {
        title: "Files".to_owned(),
        labels: ["file", "process", "pid"].map(str::to_owned).to_vec(),
        values: columns.map(|(name, unit)| TableColumn::new(name, unit)).to_vec(),
        distributions: Vec::new(),
        rows: vec![Row {
            labels: ["/data/rows", "program", "1"].map(str::to_owned).to_vec(),
            values: vec![reads, reads * 64, 5 * SECOND, 0],
            distributions: Vec::new(),
        }],
        missing: 0,
    };
    capture.index.tables.insert("fileio".to_owned(), table(1_000_000));
    let found = findings(&capture);
    let reads = found.iter().find(|finding| finding.kind == FindingKind::File).unwrap();
    check(reads, FindingKind::File, Severity::High, "100000 small reads a second, of `/data/rows`");
    capture.index.tables.insert("fileio".to_owned(), table(100));
    assert!(findings(&capture).iter().all(|finding| finding.kind != FindingKind::File));
}

#[test]
fn a_leak_is_found_with_its_function_and_its_rate() {
    let of_live = [("main;fill;malloc", [4, 4_000_000, 4, 0]), ("main;forget;malloc", [4, 400_000, 4, 0])];
    let mut capture = capture(vec![profile(Origin::Live, &of_live)], 20);
    for (sample, span) in capture.profiles[0].samples.iter_mut().zip([1, 2]) {
        sample.span = span;
    }
    let seconds: Vec<u64> = (0..21).collect();
    let site = |span: u64, bytes: Vec<u64>| LiveSite {
        span: format!("{span:#x}"),
        allocated_bytes: bytes[20],
        variance_kib2: bytes.iter().map(|bytes| bytes >> 10).collect(),
        kept_variance_kib2: bytes.iter().map(|bytes| bytes >> 10).collect(),
        kept_bytes: bytes.clone(),
        bytes,
    };
    let filled = seconds.iter().map(|second| (second * 1_000_000).min(4_000_000)).collect();
    let forgotten = seconds.iter().map(|second| second * 20_000).collect();
    capture.index.live = Some(Live {
        at_ns: seconds.iter().map(|second| second * SECOND).collect(),
        sites: vec![site(1, filled), site(2, forgotten)],
        ..Live::default()
    });
    let found = first(&capture);
    check(&found, FindingKind::Memory, Severity::Medium, "`forget` leaks 19.5 KiB a second");
    // A cache that has filled is none.
    assert_eq!(findings(&capture).len(), 1, "{:#?}", findings(&capture));
}

#[test]
fn the_score_is_100_less_every_deduction_that_is_shown() {
    for capture in [
        recorded(&[("main;sha256_compress", 9000), ("main;other", 990)], &[]),
        recorded(&[("main;work", 100)], &[("main;save;fsync;[disk]", 9 * SECOND)]),
        recorded(&[], &[]),
    ] {
        let report = analyze(&capture);
        let score = report.score.unwrap();
        let sum: u32 = score.deductions.iter().map(|deduction| deduction.points).sum();
        assert_eq!(score.value, 100_u32.saturating_sub(sum), "{score:?}");
        let worth = report.findings.iter().filter(|finding| finding.severity > Severity::Info).count();
        assert_eq!(report.plan.len(), worth.min(5));
    }
}

#[test]
fn figures_that_no_program_has_break_nothing() {
    let most = i64::MAX as u64 / 4;
    let mut capture =
        recorded(&[("main;sha256_compress", 10)], &[("main;save;fsync;[disk]", most), ("main;[lock]", most)]);
    capture.index.thread_times[0].wall_ns = u64::MAX >> 3;
    for duration_ns in [0, 1, u64::MAX] {
        capture.index.duration_ns = duration_ns;
        for finding in findings(&capture) {
            assert!((0.0..=1.0).contains(&finding.effect), "{finding:#?}");
            assert!(!finding.title.contains("NaN") && !finding.title.contains("inf "), "{finding:#?}");
        }
    }
}
