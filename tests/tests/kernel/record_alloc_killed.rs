//! Allocations: nothing is left in a target, whoever is killed when.

use std::fs;
use std::os::unix::process::CommandExt as _;
use std::time::Duration;

use profiler_tests::{Record, Recording, Target, require_bpf, wait_until};

use crate::record_alloc::{allocs, text_of_libc};

/// Records with probes that come and go.
fn start(pid: u32) -> Recording {
    start_with(pid, "2")
}

/// Records, for as much of the target's time.
fn start_with(pid: u32, budget: &str) -> Recording {
    let mut record = Record::new().args(["-e", "alloc", "--alloc-budget", budget]).pid(pid).seconds(60);
    record.command().process_group(0);
    record.start()
}

/// The processes whose parent is another.
fn children_of(parent: u32) -> Vec<u32> {
    let pids = fs::read_dir("/proc").expect("processes").flatten();
    let pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let is_child = |pid: &u32| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let fields = stat.rsplit_once(')').map_or("", |(_, fields)| fields);
        fields.split_whitespace().nth(1) == Some(parent.to_string().as_str())
    };
    pids.filter(is_child).collect()
}

/// The process that holds a recording's probes.
fn holder_of(recording: &Recording) -> u32 {
    let is_holder =
        |pid: &u32| fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line.ends_with(b"hold-probes\0"));
    wait_until("who holds probes", || children_of(recording.pid()).into_iter().find(is_holder))
}

pub(crate) fn kill(pid: i32, signal: i32) {
    // SAFETY: sends a signal to what this test has started.
    unsafe { libc::kill(pid, signal) };
}

#[test]
fn nothing_stays_in_the_target_when_the_profiler_is_killed_at_any_moment() {
    let Some(_kernel) = require_bpf() else { return };
    // Without pauses: probes come and go all the time.
    let target = Target::start(&allocs().build(), &["fast", "120"]);
    let before = text_of_libc(target.pid());
    let mut seen = 0;
    for round in 0..24 {
        let mut recording = start(target.pid());
        let group = i32::try_from(recording.pid()).expect("a pid");
        if round % 3 != 0 {
            wait_until("probes", || (text_of_libc(target.pid()) != before).then_some(()));
        }
        // At once, while probes are put on, or while they are taken away.
        std::thread::sleep(Duration::from_millis(7 * (round % 8)));
        if round % 3 == 1 {
            recording.signal(libc::SIGTERM);
            std::thread::sleep(Duration::from_millis(3 * round));
        }
        seen += u32::from(text_of_libc(target.pid()) != before);
        // The profiler alone, or all of its group.
        kill(if round % 2 == 0 { group } else { -group }, libc::SIGKILL);
        wait_until("its end", || (!recording.runs()).then_some(()));
        wait_until(("no probes", round), || (text_of_libc(target.pid()) == before).then_some(()));
    }
    // Else this has tested nothing.
    assert!(seen >= 8, "{seen}");
}

#[test]
fn traps_that_a_killed_holder_leaves_are_taken_away() {
    let Some(_kernel) = require_bpf() else { return };
    let target = Target::start(&allocs().build(), &["paced", "60"]);
    let before = text_of_libc(target.pid());
    let recording = start_with(target.pid(), "1000");
    let mut killed = Vec::new();
    for _ in 0..2 {
        let holder = holder_of(&recording);
        wait_until("probes", || (text_of_libc(target.pid()) != before).then_some(()));
        killed.push(holder);
        kill(i32::try_from(holder).expect("a pid"), libc::SIGKILL);
        wait_until("another holder", || (holder_of(&recording) != holder).then_some(()));
    }
    recording.signal(libc::SIGINT);
    let captured = recording.finish();
    assert_eq!(text_of_libc(target.pid()), before);
    assert!(captured.total() > 0, "{}", captured.folded());
    let warnings = captured.report["warnings"].to_string();
    assert!(warnings.contains("was killed, 2 times"), "{warnings}");
}

#[test]
fn a_target_that_is_killed_ends_the_recording() {
    let Some(_kernel) = require_bpf() else { return };
    for signal in [libc::SIGKILL, libc::SIGSEGV] {
        let target = Target::start(&allocs().build(), &["paced", "60"]);
        let before = text_of_libc(target.pid());
        let recording = start(target.pid());
        wait_until("probes", || (text_of_libc(target.pid()) != before).then_some(()));
        std::thread::sleep(Duration::from_millis(500));
        kill(i32::try_from(target.pid()).expect("a pid"), signal);
        let captured = recording.finish();
        assert!(captured.total() > 0, "{}", captured.folded());
    }
}

#[test]
fn a_child_that_is_forked_among_probes_keeps_none() {
    let Some(_kernel) = require_bpf() else { return };
    let target = Target::start(&allocs().build(), &["forks", "8"]);
    let before = text_of_libc(target.pid());
    let recording = start(target.pid());
    let child = wait_until("a child", || children_of(target.pid()).first().copied());
    recording.signal(libc::SIGINT);
    let captured = recording.finish();
    assert!(captured.total() > 0, "{}", captured.folded());
    for pid in [target.pid(), child] {
        assert_eq!(text_of_libc(pid), before);
    }
    // Both went on to their end.
    assert!(target.truth()["rounds"].as_u64() > Some(0));
}
