//! The daemon: windows that follow each other, whatever comes and goes, and nothing that stays when it ends.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use profiler_tests::{
    BpfObjects, Daemon, Target, Workload, long_tests, require_bpf, run_profiler, scratch, wait_until, windows_in,
};
use serde_json::Value;

use crate::record_unwinding::without_frame_pointers;

/// Checks that windows of one run follow each other without a gap, to the nanosecond.
fn check_contiguous(windows: &[Value]) {
    let mut of_runs: BTreeMap<u64, Vec<(u64, u64)>> = BTreeMap::new();
    for window in windows {
        let number = |name: &str| window[name].as_u64().expect("a number");
        of_runs.entry(number("run")).or_default().push((number("started_at_ns"), number("duration_ns")));
    }
    for spans in of_runs.values() {
        for pair in spans.windows(2) {
            assert_eq!(pair[0].0 + pair[0].1, pair[1].0, "{spans:?}");
        }
    }
}

/// The configuration that selects these: what else runs here is not named.
fn only(targets: &[&Target]) -> String {
    format!("target.pids={:?}", targets.iter().map(|target| target.pid()).collect::<Vec<_>>())
}

/// Samples on the CPU in all windows that a history has of a process.
fn samples_of(state: &Path, pid: u32) -> u64 {
    let (state, pid) = (state.to_str().expect("UTF-8"), pid.to_string());
    let ended = run_profiler(&["query", "--state-dir", state, "--last", "1h", "--pid", &pid, "--json"]);
    assert!(ended.status.success(), "{ended:?}");
    let report: Value = serde_json::from_str(&ended.stdout).expect("JSON");
    report["origins"]["cpu"]["total"].as_u64().unwrap_or(0)
}

#[test]
fn windows_follow_each_other_and_the_last_one_is_written_when_it_is_told_to_end() {
    let Some(_kernel) = require_bpf() else { return };
    let Some(before) = BpfObjects::list() else { return };
    let directory = scratch();
    let burn = Target::start(&Workload::c("burn").build(), &["60"]);
    let mut daemon =
        Daemon::start(directory.path(), &["collect.rate_hz=99", "budget.cpu_percent=100.0", &only(&[&burn])]);
    let windows = daemon.wait_for(4);
    check_contiguous(&windows);
    daemon.signal(libc::SIGTERM);
    let state = daemon.state().to_owned();
    let (status, said) = daemon.wait();
    assert!(status.success(), "{status}: {said}");
    let after = windows_in(&state);
    check_contiguous(&after);
    // The window that went on, besides those that were there.
    assert!(after.len() > windows.len(), "{after:?}");
    assert!(samples_of(&state, burn.pid()) > 20, "{after:?}");
    let left = wait_until("nothing is attached", || Some(BpfObjects::list()?.since(&before)));
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn kill_9_leaves_nothing_attached_and_the_history_goes_on() {
    let Some(_kernel) = require_bpf() else { return };
    let Some(before) = BpfObjects::list() else { return };
    let directory = scratch();
    let burn = Target::start(&Workload::c("burn").build(), &["120"]);
    let mut daemon = Daemon::start(directory.path(), &[&only(&[&burn])]);
    let windows = daemon.wait_for(2);
    daemon.signal(libc::SIGKILL);
    let (status, _) = daemon.wait();
    assert!(!status.success());
    wait_until("nothing is attached", || BpfObjects::list()?.since(&before).is_empty().then_some(()));
    let mut daemon = Daemon::start(directory.path(), &[&only(&[&burn])]);
    let again = daemon.wait_for(windows.len() + 2);
    check_contiguous(&again);
    for window in &windows {
        assert!(again.contains(window), "{window} of {again:?}");
    }
}

#[test]
fn hup_reads_the_configuration_again_and_a_wrong_one_changes_nothing() {
    let Some(_kernel) = require_bpf() else { return };
    let directory = scratch();
    let file = directory.path().join("config.toml");
    let burn = Target::start(&Workload::c("burn").build(), &["120"]);
    let write = |collect: &str| {
        let text = format!("[collect]\nwindow_s = 1\n{collect}\n[target]\npids = [{}]\n", burn.pid());
        std::fs::write(&file, text).expect("write the configuration");
    };
    write("offcpu = true");
    let path = file.to_str().expect("UTF-8");
    let mut daemon = Daemon::start_with(directory.path(), path);
    let first = daemon.wait_for(2);
    assert!(first.iter().all(|window| !window["origins"]["offcpu"].is_null()), "{first:?}");
    write("offcpus = false");
    daemon.signal(libc::SIGHUP);
    wait_until("it says what is wrong", || {
        let said = daemon.said();
        (said.contains("stays as it was") && said.contains("offcpus") && said.contains("line 3")).then_some(())
    });
    write("offcpu = false");
    daemon.signal(libc::SIGHUP);
    let last = wait_until("windows without waits", || {
        windows_in(daemon.state()).pop().filter(|window| window["origins"]["offcpu"].is_null())
    });
    assert!(!last["origins"]["cpu"].is_null(), "{last}");
}

/// What must not grow.
#[derive(Clone, Copy, Debug)]
struct Size {
    memory_kib: u64,
    descriptors: usize,
    maps: usize,
}

#[test]
fn churn_of_processes_threads_and_libraries_wears_nothing_out() {
    let Some(_kernel) = require_bpf() else { return };
    let Some(before) = BpfObjects::list() else { return };
    let (seconds, warm) = if long_tests() { (300, 60) } else { (40, 15) };
    let directory = scratch();
    let library =
        Workload::c("plugin").called("libplugin.so").flag("-shared").flag("-fPIC").flag("-Wl,--build-id=none");
    let library = without_frame_pointers(library).build();
    let churn = without_frame_pointers(Workload::c("churn")).build();
    let arguments = ["8", "1000000", &(seconds + 120).to_string(), "20", library.to_str().expect("UTF-8")];
    let churn = Target::start_unready(Command::new(&churn).args(arguments));
    let threads = Target::start_unready(Command::new(Workload::c("ends").build()).args(["1000000", "5", "4"]));
    let values = ["budget.cpu_percent=100.0", "collect.rate_hz=99", "target.children=true", &only(&[&churn, &threads])];
    let mut daemon = Daemon::start(directory.path(), &values);
    let size = |daemon: &Daemon| Size {
        memory_kib: daemon.memory_kib(),
        descriptors: daemon.descriptors(),
        maps: BpfObjects::list().expect("bpftool").since(&before).count("map"),
    };
    // The greatest of a while: what it holds of a window comes and goes.
    let greatest = |daemon: &mut Daemon, seconds: u64| {
        let sizes: Vec<Size> = (0..seconds)
            .map(|_| {
                std::thread::sleep(Duration::from_secs(1));
                size(daemon)
            })
            .collect();
        let most = |of: fn(&Size) -> u64| sizes.iter().map(of).max().unwrap_or(0);
        Size {
            memory_kib: most(|size| size.memory_kib),
            descriptors: usize::try_from(most(|size| size.descriptors as u64)).expect("a number"),
            maps: usize::try_from(most(|size| size.maps as u64)).expect("a number"),
        }
    };
    let _ = daemon.wait_for(2);
    let early = greatest(&mut daemon, warm);
    let _ = greatest(&mut daemon, seconds - 2 * warm.min(seconds / 3));
    let late = greatest(&mut daemon, warm);
    let windows = windows_in(daemon.state());
    println!("{} windows: {early:?}, then {late:?}", windows.len());
    check_contiguous(&windows);
    // Pieces that are freed are not all given back to the kernel, and some KiB are known of each window: a second of this load
    // makes some 300 processes and threads, which would be far more if they stayed.
    assert!(late.memory_kib * 100 <= early.memory_kib * 105 + 100 * 8192, "{early:?} {late:?}");
    assert!(late.descriptors <= early.descriptors + early.descriptors / 10 + 64, "{early:?} {late:?}");
    // A new shard of unwind tables is a map.
    assert!(late.maps <= early.maps + 2, "{early:?} {late:?}");
    let ended =
        run_profiler(&["query", "--state-dir", daemon.state().to_str().expect("UTF-8"), "--last", "1h", "--json"]);
    let report: Value = serde_json::from_str(&ended.stdout).expect("JSON");
    let doubt = report["warnings"].as_array().expect("warnings").iter().filter_map(Value::as_str);
    let doubt: Vec<&str> = doubt.filter(|text| text.contains("does not add up")).collect();
    assert!(doubt.is_empty(), "{doubt:?}");
}

#[test]
fn a_target_that_fills_maps_loses_its_own_samples_and_nothing_else() {
    let Some(_kernel) = require_bpf() else { return };
    let directory = scratch();
    let many = without_frame_pointers(Workload::c("many").called("many-nofp")).build();
    let target = Target::start(&many, &["60", "14"]);
    let values = ["collect.rate_hz=4999", "budget.cpu_percent=100.0", &only(&[&target])];
    let mut daemon = Daemon::start(directory.path(), &values);
    let windows = daemon.wait_for(5);
    check_contiguous(&windows);
    let memory = daemon.memory_kib();
    println!("{memory} KiB");
    // Without optimisation everything takes more.
    assert!(memory < 256 << 10, "{memory} KiB");
    daemon.signal(libc::SIGTERM);
    let state = daemon.state().to_owned();
    let (status, said) = daemon.wait();
    assert!(status.success(), "{said}");
    assert!(samples_of(&state, target.pid()) > 1_000);
}

#[test]
fn a_full_disk_costs_windows_and_not_the_daemon() {
    let Some(_kernel) = require_bpf() else { return };
    let directory = scratch();
    let mounted = directory.path().join("state");
    std::fs::create_dir(&mounted).expect("make a directory");
    let mount = Command::new("mount").args(["-t", "tmpfs", "-o", "size=300k,mode=0700", "none"]).arg(&mounted).status();
    if !mount.is_ok_and(|status| status.success()) {
        println!("skipped: no file system can be mounted here");
        return;
    }
    struct Unmount<'a>(&'a Path);
    impl Drop for Unmount<'_> {
        fn drop(&mut self) {
            let _ = Command::new("umount").arg("-l").arg(self.0).status();
        }
    }
    let _unmount = Unmount(&mounted);
    let burn = Target::start(&Workload::c("burn").build(), &["120"]);
    let mut daemon = Daemon::start(directory.path(), &["budget.cpu_percent=100.0", &only(&[&burn])]);
    let _ = daemon.wait_for(1);
    // Far more than the disk has room for.
    let first = windows_in(daemon.state());
    let newer = wait_until("newer windows take the place of the first", || {
        let windows = windows_in(daemon.state());
        (!windows.is_empty() && !windows.contains(&first[0])).then_some(windows)
    });
    check_contiguous(&newer[newer.len() - 1..]);
    daemon.signal(libc::SIGTERM);
    let (status, said) = daemon.wait();
    assert!(status.success(), "{said}");
}
