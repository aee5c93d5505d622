//! A small capture made by hand, with every kind of frame.

use std::collections::BTreeMap;

use profiler::profile::{
    Accounting, ByLength, ByNumber, BySize, Capture, CgroupMemory, ChainAccounting, Column, Figures, FrameKind,
    Function, Histogram, Host, Index, IoCell, Line, Live, LivePeak, LiveSite, Location, Memory, MemoryShares, Object,
    ObjectSummary, OriginSummary, Overhead, ProcessMemory, Profile, Row, Sample, SlowRequest, SlowRequests,
    SystemMemory, Table, TableColumn, Target, TargetKind, Thread, ThreadTime, Timeline, marker_name,
};
use profiler_common::block::BlockOperation;
use profiler_common::counters::Outcome;
use profiler_common::event::Origin;
use profiler_common::histogram::{HISTOGRAM_BUCKETS, bucket_of};
use profiler_common::system_call::reason_of;
use profiler_common::wait::Reason;

const PERIOD_NS: u64 = 10_101_010;

fn object(path: &str, build_id: &str, start: u64, end: u64, file_offset: u64) -> Object {
    Object { path: path.to_owned(), build_id: build_id.to_owned(), start, end, file_offset }
}

fn location(kind: FrameKind, object: Option<u32>, address: u64, lines: &[(u32, u32)]) -> Location {
    let lines = lines.iter().map(|&(function, line)| Line { function, line }).collect();
    Location { kind, object, address, lines }
}

fn thread(pid: u32, tid: u32, process_name: &str, thread_name: &str) -> Thread {
    Thread {
        pid,
        tid,
        start_time_ns: 3_600_000_000_000 + u64::from(pid),
        exec_count: 2,
        process_name: process_name.to_owned(),
        thread_name: thread_name.to_owned(),
        cgroup: if pid.is_multiple_of(2) { String::new() } else { format!("/system.slice/docker-{pid:064x}.scope") },
    }
}

/// Two processes; kernel, inlined, run-time, interpreted and nameless frames; cut and lost stacks.
pub(crate) fn profile() -> Profile {
    let mut profile = Profile::new(Origin::Cpu);
    profile.functions = [
        ("main", "/src/server.c"),
        ("serve(std::vector<int, std::allocator<int> >&)", "/src/server.c"),
        ("parse", "/src/parse.h"),
        ("do_syscall_64", ""),
        ("LazyCompile:~handle /app/index.js:12", ""),
        ("render", "/app/page.py"),
        (&marker_name(Outcome::NoFramePointer), ""),
        (&marker_name(Outcome::RingFull), ""),
        ("<[u8; 8] as core::fmt::Debug>::fmt|`x`", "/src/lib.rs"),
    ]
    .map(|(name, file)| Function { name: name.to_owned(), file: file.to_owned() })
    .to_vec();
    profile.objects = vec![
        object("/usr/lib/libc.so.6", "aa01", 0x28000, 0x1b0000, 0x28000),
        object("/opt/app/server", "bb02", 0x1000, 0x9000, 0x400),
        object("[kernel]", "cc03", 0xffff_ffff_8100_0000, 0xffff_ffff_8200_0000, 0),
        object("[jit]", "", 0, 0, 0),
    ];
    profile.locations = vec![
        location(FrameKind::Native, Some(1), 0x1234, &[(0, 10)]),
        location(FrameKind::Native, Some(1), 0x2345, &[(2, 5), (1, 42)]),
        location(FrameKind::Native, Some(0), 0x29d00, &[]),
        location(FrameKind::Kernel, Some(2), 0xffff_ffff_8100_1000, &[(3, 0)]),
        location(FrameKind::Jit, Some(3), 0x7f00_0000_1000, &[(4, 0)]),
        location(FrameKind::Interpreted, None, 7, &[(5, 3)]),
        location(FrameKind::Marker, None, 0, &[(6, 0)]),
        location(FrameKind::Marker, None, 0, &[(7, 0)]),
        location(FrameKind::Native, None, 0x7fff_0000_1234, &[]),
        location(FrameKind::Native, Some(1), 0x3456, &[(8, 1)]),
    ];
    profile.stacks = vec![
        vec![1, 0, 2],
        vec![3, 1, 0, 2],
        vec![2, 6],
        vec![4, 5, 0],
        vec![3, 7],
        vec![8],
        vec![9, 9, 0, 2],
        vec![7],
    ];
    profile.threads =
        vec![thread(42, 42, "server", "server"), thread(42, 43, "server", "worker"), thread(99, 99, "worker 2", "w;2")];
    let counts =
        [(0, 0, 1000), (1, 0, 120), (0, 1, 7), (2, 1, 30), (3, 2, 40), (4, 2, 2), (5, 2, 1), (6, 0, 25), (7, 1, 9)];
    profile.samples = counts
        .map(|(stack, thread, n)| Sample { stack, thread, reason: 0, span: 0, values: [n, n * PERIOD_NS, 0, 0] })
        .to_vec();
    profile
}

/// Waits of the same program, of each kind that the outputs treat in its own way.
pub(crate) fn waits() -> Profile {
    let mut profile = Profile::new(Origin::OffCpu);
    let names =
        ["main", "flush", "fsync", "do_syscall_64", "io_schedule", "[disk]", "[run queue]", "futex_wait", "[lock]"];
    profile.functions = names.map(|name| Function { name: name.to_owned(), file: String::new() }).to_vec();
    profile.objects = vec![
        object("/opt/app/server", "bb02", 0x1000, 0x9000, 0x400),
        object("[kernel]", "cc03", 0xffff_ffff_8100_0000, 0xffff_ffff_8200_0000, 0),
    ];
    profile.locations = vec![
        location(FrameKind::Native, Some(0), 0x1234, &[(0, 10)]),
        location(FrameKind::Native, Some(0), 0x2345, &[(1, 42)]),
        location(FrameKind::Native, Some(0), 0x3456, &[(2, 0)]),
        location(FrameKind::Kernel, Some(1), 0xffff_ffff_8100_1000, &[(3, 0)]),
        location(FrameKind::Kernel, Some(1), 0xffff_ffff_8100_2000, &[(4, 0)]),
        location(FrameKind::Reason, None, 0, &[(5, 0)]),
        location(FrameKind::Reason, None, 0, &[(6, 0)]),
        location(FrameKind::Kernel, Some(1), 0xffff_ffff_8100_3000, &[(7, 0)]),
        location(FrameKind::Reason, None, 0, &[(8, 0)]),
    ];
    profile.stacks = vec![vec![5, 4, 3, 2, 1, 0], vec![6, 4, 3, 2, 1, 0], vec![8, 7, 3, 0]];
    profile.threads = vec![thread(42, 42, "server", "server"), thread(42, 43, "server", "worker")];
    let waits = [
        (0, 0, Reason::Disk, [40, 1_200_000_000, 70, 90_000]),
        (1, 0, Reason::RunQueue, [3, 2_500_000, 3, 0]),
        (2, 1, Reason::Lock, [1, 4_999_000_000, 1, 0]),
    ];
    let sample = |(stack, thread, reason, values): (u32, u32, Reason, _)| Sample {
        stack,
        thread,
        reason: reason as u16,
        span: 0,
        values,
    };
    profile.samples = waits.map(sample).to_vec();
    profile
}

/// The capture that holds both [`profile`] and [`waits`].
pub(crate) fn capture_with_waits() -> Capture {
    let mut capture = capture();
    let waits = waits();
    let [n, total, ..] = waits.totals();
    let chain = ChainAccounting { complete: n, ..ChainAccounting::default() };
    let accounting = Accounting {
        expected: 1_000.0,
        hits: 1_000,
        filtered: 926,
        sampled_out: 30,
        complete: n,
        user: chain.clone(),
        kernel: chain,
        ..Accounting::default()
    };
    assert!(accounting.adds_up());
    let summary = OriginSummary {
        unit: "ns".to_owned(),
        total,
        n,
        event: "sched_switch, sched_exit_tp".to_owned(),
        rate_hz: 0,
        by_length: Some(ByLength { threshold_ns: 250_000, measured_ns: 6_200_000_000, standard_error_ns: 300_000.0 }),
        by_number: None,
        by_size: None,
    };
    capture.index.origins.insert("offcpu".to_owned(), summary);
    capture.index.accounting.insert("offcpu".to_owned(), accounting);
    capture.profiles.push(waits);
    let time = |(tid, name, on_cpu_ns, off_cpu_ns): (u32, &str, u64, u64)| ThreadTime {
        pid: 42,
        tid,
        start_time_ns: thread(42, tid, "", "").start_time_ns,
        process: "server".to_owned(),
        thread: name.to_owned(),
        threads: if tid == 0 { 3 } else { 1 },
        wall_ns: on_cpu_ns + off_cpu_ns,
        on_cpu_ns,
        off_cpu_ns,
    };
    capture.index.thread_times = [
        (0, "", 1_000_000, 9_000_000),
        (42, "server", 3_801_500_000, 1_202_500_000),
        (43, "worker", 4_900_000, 4_999_100_000),
    ]
    .map(time)
    .to_vec();
    capture
}

/// The capture that holds [`profile`] and system calls: a table, with and without what a row may have.
pub(crate) fn capture_with_calls() -> Capture {
    let mut capture = capture();
    let mut calls = Profile::new(Origin::Syscall);
    calls.functions =
        ["main", "[read]", "[openat]"].map(|name| Function { name: name.to_owned(), file: String::new() }).to_vec();
    calls.objects = vec![object("/opt/app/server", "bb02", 0x1000, 0x9000, 0x400)];
    calls.locations = vec![
        location(FrameKind::Native, Some(0), 0x1234, &[(0, 10)]),
        location(FrameKind::Reason, None, 0, &[(1, 0)]),
        location(FrameKind::Reason, None, 0, &[(2, 0)]),
    ];
    calls.stacks = vec![vec![1, 0], vec![2, 0]];
    calls.threads = vec![thread(42, 42, "server", "server")];
    let samples = [(0, 0, [4, 9_000_000, 3_100, 0]), (1, 257, [1, 64_000, 2, 2])];
    calls.samples = samples
        .map(|(stack, call, values)| Sample { stack, thread: 0, reason: reason_of(call), span: 0, values })
        .to_vec();
    let [n, total, ..] = calls.totals();
    let summary = OriginSummary {
        unit: "ns".to_owned(),
        total,
        n,
        event: "sys_enter, sys_exit".to_owned(),
        rate_hz: 0,
        by_length: Some(ByLength { threshold_ns: 32_000, measured_ns: 9_060_000, standard_error_ns: 25_000.0 }),
        by_number: None,
        by_size: None,
    };
    let chain = ChainAccounting { complete: n, ..ChainAccounting::default() };
    let accounting = Accounting {
        expected: 3_102.0,
        hits: 3_102,
        sampled_out: 3_097,
        complete: n,
        user: chain.clone(),
        kernel: chain,
        ..Accounting::default()
    };
    assert!(accounting.adds_up());
    let row = |call: &str, values: [u64; 3], succeeded: &[(u64, u64)], failed: &[(u64, u64)]| Row {
        labels: [call, "server", "42"].map(str::to_owned).to_vec(),
        values: values.to_vec(),
        distributions: vec![histogram(succeeded), histogram(failed)],
    };
    let table = Table {
        title: "System calls".to_owned(),
        labels: ["call", "process", "pid"].map(str::to_owned).to_vec(),
        values: vec![
            TableColumn::new("time", "ns"),
            TableColumn::new("calls", "count"),
            TableColumn::new("errors", "count"),
        ],
        distributions: vec![TableColumn::new("succeeded", "ns"), TableColumn::new("failed", "ns")],
        rows: vec![
            row("read", [9_000_000, 3_100, 100], &[(1_000, 2_999), (6_001_000, 1)], &[(150, 100)]),
            row("openat", [60_000, 2, 2], &[], &[(30_000, 2)]),
        ],
        missing: 12,
    };
    assert!(table.is_sound());
    capture.index.tables.insert("syscall".to_owned(), table);
    capture.index.origins.insert("syscall".to_owned(), summary);
    capture.index.accounting.insert("syscall".to_owned(), accounting);
    capture.profiles.push(calls);
    capture
}

/// The capture that holds [`profile`] and blocks of memory: a site that leaks, and one that replaces what it holds.
pub(crate) fn capture_with_blocks() -> Capture {
    let mut capture = capture();
    let profile = |origin, samples: [(u32, u64, [u64; 4]); 2]| {
        let names = ["malloc", "leak|it", "fill_cache", "main"];
        let frame =
            |function: u32| location(FrameKind::Native, Some(0), 0x1100 * (u64::from(function) + 1), &[(function, 5)]);
        let sample = |(stack, span, values)| Sample { stack, thread: 0, reason: 0, span, values };
        Profile {
            functions: names.map(|name| Function { name: name.to_owned(), file: String::new() }).to_vec(),
            objects: vec![object("/opt/app/server", "bb02", 0x1000, 0x9000, 0x400)],
            locations: (0..4).map(frame).collect(),
            stacks: vec![vec![0, 1, 3], vec![0, 2, 3]],
            threads: vec![thread(42, 42, "server", "server")],
            samples: samples.map(sample).to_vec(),
            ..Profile::new(origin)
        }
    };
    let profiles = [
        profile(Origin::Alloc, [(0, 0, [150, 300_000, 1_500, 290]), (1, 0, [900, 9_000_000, 9_000, 0])]),
        profile(Origin::Live, [(0, 1, [150, 300_000, 1_500, 290]), (1, 2, [100, 1_000_000, 1_000, 0])]),
    ];
    for profile in profiles {
        let [n, total, ..] = profile.totals();
        let is_live = profile.origin == Origin::Live;
        let summary = OriginSummary {
            unit: "bytes".to_owned(),
            total,
            n,
            event: if is_live { "blocks followed to their end" } else { "malloc, realloc" }.to_owned(),
            rate_hz: 0,
            by_length: None,
            by_number: None,
            by_size: (!is_live).then_some(BySize {
                exact: false,
                stopped_after_ns: None,
                threshold_bytes: 2_000,
                measured_bytes: 9_310_000,
                standard_error_bytes: 17_438.0,
                share_of_time: 1.0,
            }),
        };
        let chain = ChainAccounting { complete: n, ..ChainAccounting::default() };
        let accounting = Accounting {
            #[expect(clippy::cast_precision_loss, reason = "a small number")]
            expected: n as f64,
            hits: n,
            complete: n,
            user: chain.clone(),
            kernel: chain,
            ..Accounting::default()
        };
        assert!(accounting.adds_up());
        let name = profile.origin.row().name.to_owned();
        capture.index.origins.insert(name.clone(), summary);
        capture.index.accounting.insert(name, accounting);
        capture.profiles.push(profile);
    }
    let seconds = 0..=10_u64;
    let leaked: Vec<u64> = seconds.clone().map(|second| second * 30_000).collect();
    let leak = LiveSite {
        span: "0x1".to_owned(),
        allocated_bytes: 300_000,
        variance_kib2: leaked.iter().map(|bytes| bytes / 500).collect(),
        kept_variance_kib2: leaked.iter().map(|bytes| bytes / 500).collect(),
        kept_bytes: leaked.clone(),
        bytes: leaked,
    };
    let cache = LiveSite {
        span: "0x2".to_owned(),
        allocated_bytes: 9_000_000,
        bytes: vec![1_000_000; 11],
        variance_kib2: vec![1_000; 11],
        kept_bytes: seconds.clone().map(|second| second * 100_000).collect(),
        kept_variance_kib2: seconds.clone().map(|second| second * 100).collect(),
    };
    let at_ns = seconds.map(|second| second * 1_000_000_000).collect();
    let sites = vec![("0x2".to_owned(), 1_000_000), ("0x1".to_owned(), 300_000)];
    let peak = Some(LivePeak { at_ns: 10_000_000_000, bytes: 1_300_000, sites });
    let live = Live { undecided: String::new(), missed: 3, at_ns, sites: vec![cache, leak], peak };
    assert!(live.is_sound());
    capture.index.live = Some(live);
    capture.index.memory = Some(memory());
    capture
}

/// Memory of a process that has grown, in a cgroup that has come to its limit, on a host without swap space.
fn memory() -> Memory {
    const MIB: u64 = 1 << 20;
    let start = MemoryShares {
        rss_bytes: 40 * MIB,
        pss_bytes: Some(38 * MIB),
        heap_bytes: 30 * MIB,
        stack_bytes: MIB / 8,
        file_bytes: 10 * MIB - MIB / 8,
        ..MemoryShares::default()
    };
    let end = MemoryShares { rss_bytes: 300 * MIB, pss_bytes: None, heap_bytes: 290 * MIB, ..start };
    let process = |pid, process: &str, start, end, oom_score| ProcessMemory {
        pid,
        process: process.to_owned(),
        start,
        end,
        oom_score: Some(oom_score),
        oom_score_adj: Some(0),
    };
    let memory = Memory {
        processes: vec![process(42, "server", start, end, 680), process(99, "w|2", start, start, 667)],
        cgroups: vec![CgroupMemory {
            path: "/system.slice/server|`x`.service".to_owned(),
            current_bytes: Some(500 * MIB),
            held_bytes: Some(300 * MIB),
            max_bytes: Some(512 * MIB),
            high_bytes: None,
            swap_max_bytes: None,
            events: BTreeMap::from([("max".to_owned(), 12)]),
        }],
        system: SystemMemory {
            transparent_huge_pages: Some("madvise".to_owned()),
            transparent_huge_pages_defrag: Some("madvise".to_owned()),
            swappiness: Some(60),
            overcommit_memory: Some(0),
            total_bytes: Some(8192 * MIB),
            available_bytes: Some(7000 * MIB),
            swap_total_bytes: Some(0),
            swap_free_bytes: Some(0),
            huge_pages: Some(0),
            huge_pages_unused: Some(0),
            huge_page_bytes: Some(2 * MIB),
            oom_kills: Some(0),
            ..SystemMemory::default()
        },
    };
    assert!(memory.is_sound());
    memory
}

/// The capture that holds [`profile`] and requests to two block devices, with their latencies over time.
pub(crate) fn capture_with_requests() -> Capture {
    let mut capture = capture();
    let mut requests = Profile::new(Origin::BlockIo);
    let names = ["main", "write_log", "submit_bio", "[read]", "[sync write]"];
    requests.functions = names.map(|name| Function { name: name.to_owned(), file: String::new() }).to_vec();
    requests.objects = vec![
        object("/opt/app/server", "bb02", 0x1000, 0x9000, 0x400),
        object("[kernel]", "cc03", 0xffff_ffff_8100_0000, 0xffff_ffff_8200_0000, 0),
    ];
    requests.locations = vec![
        location(FrameKind::Native, Some(0), 0x1234, &[(0, 10)]),
        location(FrameKind::Native, Some(0), 0x2345, &[(1, 42)]),
        location(FrameKind::Kernel, Some(1), 0xffff_ffff_8100_1000, &[(2, 0)]),
        location(FrameKind::Reason, None, 0, &[(3, 0)]),
        location(FrameKind::Reason, None, 0, &[(4, 0)]),
    ];
    requests.stacks = vec![vec![3, 2, 0], vec![4, 2, 1, 0]];
    requests.threads = vec![thread(42, 42, "server", "server")];
    let samples = [
        (0, BlockOperation::Read, [30, 45_000_000, 300, 300 * 4096]),
        (1, BlockOperation::SyncWrite, [7, 91_000_000, 7, 7 * 16_384]),
    ];
    let sample = |(stack, operation, values): (u32, BlockOperation, _)| Sample {
        stack,
        thread: 0,
        reason: operation as u16,
        span: if operation == BlockOperation::Read { 0 } else { 7 },
        values,
    };
    requests.samples = samples.map(sample).to_vec();
    let [n, total, ..] = requests.totals();
    let summary = OriginSummary {
        unit: "ns".to_owned(),
        total,
        n,
        event: "block_bio_queue, block_rq_complete".to_owned(),
        rate_hz: 0,
        by_length: None,
        by_number: Some(ByNumber { measured: 307, weight: 10, period: 1 }),
        by_size: None,
    };
    let chain = ChainAccounting { complete: n, ..ChainAccounting::default() };
    let accounting = Accounting {
        expected: 307.0,
        hits: 307,
        sampled_out: 270,
        complete: n,
        user: chain.clone(),
        kernel: chain,
        ..Accounting::default()
    };
    assert!(accounting.adds_up());
    let cell = |(device, operation, ns, requests): (&str, &str, u64, u64)| IoCell {
        slice: 0,
        device: device.to_owned(),
        operation: operation.to_owned(),
        requests,
        bytes: requests * 4096,
        queue: histogram(&[(1_500, requests)]),
        on_device: histogram(&[(ns - 1_500, requests - 1), (2 * ns, 1)]),
        total: histogram(&[(ns, requests - 1), (2 * ns + 1_500, 1)]),
    };
    let latency = &mut capture.index.io_latency;
    let second = 1_000_000_000;
    latency.push(0, second, [("vda", "read", 90_000, 200), ("vda", "sync write", 12_000_000, 6)].map(cell));
    latency.push(second, second, []);
    // A device whose name is not one, as no kernel gives it.
    latency.push(2 * second, second / 2, [("vda", "read", 150_000, 90), ("a,<b>", "read", 4_000_000, 10)].map(cell));
    assert!(latency.is_sound());
    let slow = |(start_ns, queue_ns, device_ns, wakeup_ns, file, span): (u64, u64, u64, _, &str, &str)| SlowRequest {
        start_ns,
        device: "vda".to_owned(),
        sector: 8_192,
        bytes: 16_384,
        operation: "sync write".to_owned(),
        file: file.to_owned(),
        process: "server".to_owned(),
        pid: 42,
        tid: 42,
        queue_ns,
        device_ns,
        wakeup_ns,
        span: span.to_owned(),
    };
    capture.index.slow_requests = SlowRequests {
        threshold_ns: 10_000_000,
        requests: [
            (10_000_000, 1_500, 11_998_500, Some(60_000), "/srv/db/wal|log", "0x7"),
            (900_000_000, 1_500, 24_000_000, None, "", "0x0"),
        ]
        .map(slow)
        .to_vec(),
        missing: 3,
    };
    let row = |device: &str, values: [u64; 4], total: &[(u64, u64)]| Row {
        labels: [device, "read"].map(str::to_owned).to_vec(),
        values: values.to_vec(),
        distributions: vec![histogram(total)],
    };
    let table = Table {
        title: "Requests to block devices".to_owned(),
        labels: ["device", "operation"].map(str::to_owned).to_vec(),
        // Of those that end in their unit it is not said twice, and rates have no sum.
        values: [("time", "ns"), ("requests", "count"), ("bytes", "bytes"), ("requests", "per_s")]
            .map(|(name, unit)| TableColumn::new(name, unit))
            .to_vec(),
        distributions: vec![TableColumn::new("total", "ns")],
        rows: vec![
            row("vda", [136_000_000, 307, 1_343_488, 61], &[(90_000, 300), (12_000_000, 7)]),
            row("a,<b>", [40_000_000, 10, 40_960, 2], &[(4_000_000, 10)]),
        ],
        missing: 0,
    };
    assert!(table.is_sound());
    capture.index.tables.insert("blockio".to_owned(), table);
    capture.index.origins.insert("blockio".to_owned(), summary);
    capture.index.accounting.insert("blockio".to_owned(), accounting);
    capture.profiles.push(requests);
    capture
}

/// Times and how many events took each.
fn histogram(times: &[(u64, u64)]) -> Histogram {
    let mut counts = [0; HISTOGRAM_BUCKETS];
    for &(time, events) in times {
        counts[bucket_of(time)] += events;
    }
    Histogram::new(&counts, times.iter().map(|&(time, _)| time).max().unwrap_or(0))
}

fn reasons(reasons: &[(Outcome, u64)]) -> BTreeMap<String, u64> {
    reasons.iter().map(|&(outcome, count)| (outcome.name().to_owned(), count)).collect()
}

/// Five slices: the first with little in it, one whose descriptors could not be counted, and a last one that is short.
fn timeline() -> Timeline {
    const MIB: u64 = 1 << 20;
    let slices = [
        (1_001_000_000, 120_000_000, 40 * MIB, Some(12)),
        (1_000_000_000, 1_400_000_000, 90 * MIB, Some(40)),
        (1_002_000_000, 2_900_000_000, 512 * MIB, None),
        (1_999_500_000, 3_100_000_000, 300 * MIB, Some(40)),
        (1_500_000, 10_000_000, 300 * MIB, Some(41)),
    ];
    let mut timeline = Timeline::default();
    let mut start_ns = 0;
    for (number, (length_ns, cpu_ns, rss_bytes, descriptors)) in (0..).zip(slices) {
        let mut figures = Figures::default();
        let mut set = |column, figure| figures.set(column, Some(figure));
        set(Column::TargetCpuUser, cpu_ns / 4 * 3);
        set(Column::TargetCpuSystem, cpu_ns / 4);
        set(Column::TargetProcesses, 2);
        set(Column::TargetThreads, 3 + number);
        set(Column::TargetRss, rss_bytes);
        set(Column::TargetSwap, 0);
        set(Column::TargetMinorFaults, 10_000 * number);
        set(Column::TargetRead, 3 * MIB * number);
        set(Column::TargetWritten, 0);
        set(Column::HostCpuUser, cpu_ns + 100_000_000);
        set(Column::HostCpuSystem, 50_000_000);
        set(Column::HostCpuIrq, 10_000_000);
        set(Column::HostCpuIdle, 4 * length_ns - cpu_ns.min(4 * length_ns));
        set(Column::HostMemoryAvailable, 8192 * MIB - rss_bytes);
        set(Column::HostMemoryCached, 1024 * MIB);
        set(Column::HostRunnable, 4);
        set(Column::HostBlocked, number % 2);
        set(Column::HostPressureCpuSome, 100_000_000 * (number % 4));
        set(Column::HostPressureIoSome, 1_000_000);
        figures.set(Column::TargetDescriptors, descriptors);
        timeline.push(start_ns, length_ns, &figures);
        start_ns += length_ns;
    }
    timeline
}

/// The capture that holds [`profile`].
pub(crate) fn capture() -> Capture {
    let profile = profile();
    let n = profile.totals()[0];
    let accounting = Accounting {
        expected: f64::from(1300) + 0.1 + 0.2,
        hits: 1299,
        filtered: 50,
        idle: 12,
        sampled_out: 0,
        complete: 1192,
        truncated: reasons(&[(Outcome::NoFramePointer, 31), (Outcome::RingFull, 11)]),
        lost: reasons(&[(Outcome::MapFull, 3)]),
        not_delivered: f64::from(1300) + 0.1 + 0.2 - 1299.0,
        periods: 2_600,
        idle_periods: 1_290,
        user: ChainAccounting {
            complete: 1192,
            truncated: reasons(&[(Outcome::NoFramePointer, 31)]),
            lost: reasons(&[(Outcome::RingFull, 11), (Outcome::MapFull, 3)]),
        },
        kernel: ChainAccounting { complete: 1234, truncated: BTreeMap::new(), lost: reasons(&[(Outcome::MapFull, 3)]) },
    };
    assert!(accounting.adds_up());
    assert_eq!(accounting.samples(), n);
    let objects = [
        ("/opt/app/server", "bb02", 2344, 2344, ""),
        ("/usr/lib/libc.so.6", "aa01", 1182, 0, "install libc6-dbg for build ID aa01"),
    ];
    let target = Target {
        kind: TargetKind::Processes,
        description: "pid 42 (server), pid 99 (worker 2)".to_owned(),
        pids: vec![42, 99],
        exit_code: None,
    };
    let index = Index {
        profiler_version: "0.1.0".to_owned(),
        started_at_ns: 1_793_709_296_123_456_789,
        host: Host {
            name: "host-1".to_owned(),
            kernel: "6.12.0".to_owned(),
            architecture: "x86_64".to_owned(),
            cpus: 4,
        },
        origins: BTreeMap::from([(
            "cpu".to_owned(),
            OriginSummary {
                unit: "samples".to_owned(),
                total: n,
                n,
                event: "cpu-clock".to_owned(),
                rate_hz: 99,
                by_length: None,
                by_number: None,
                by_size: None,
            },
        )]),
        accounting: BTreeMap::from([("cpu".to_owned(), accounting)]),
        overhead: Overhead {
            bpf_ns: 3_000_001,
            bpf_runs: 1299,
            bpf_ns_per_sample: 3_000_001.0 / 1234.0,
            trap_ns: 0,
            agent_cpu_ns: 45_000_000,
            peak_rss_bytes: 30 << 20,
            bpf_map_bytes: 3 << 19,
        },
        objects: objects
            .map(|(path, build_id, frames, named, advice)| ObjectSummary {
                path: path.to_owned(),
                build_id: build_id.to_owned(),
                frames,
                named,
                advice: advice.to_owned(),
            })
            .to_vec(),
        warnings: vec!["no PMU: sampled by the CPU clock".to_owned()],
        timeline: timeline(),
        ..Index::empty(target, 5_004_000_000)
    };
    Capture { index, profiles: vec![profile] }
}
