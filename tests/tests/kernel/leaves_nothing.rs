//! However the profiler ends, nothing of it stays: no BPF object, no file outside its output.

use std::fs;
use std::path::Path;

use profiler_tests::{BpfObjects, Record, Target, Workload, enough, require_bpf, scratch, wait_until};

#[test]
fn kill_9_leaves_no_bpf_object_and_the_command_goes_on() {
    let Some(_kernel) = require_bpf() else { return };
    let Some(before) = BpfObjects::list() else { return };
    let directory = scratch();
    let pid_file = directory.path().join("pid");
    let script = format!("echo $$ > {0}.new; mv {0}.new {0}; exec sleep 30", pid_file.display());
    let mut recording = Record::new().rate(999).args(["--", "sh", "-c", &script]).start();
    recording.wait_for_samples();
    let command: i32 =
        wait_until("the command's pid", || fs::read_to_string(&pid_file).ok()).trim().parse().expect("a pid");
    let during = BpfObjects::list().expect("bpftool is there").since(&before);
    assert!(during.has("prog", "cpu_sample"), "bpftool does not show the sampling program: {during:?}");
    assert!(during.count("map") > 0, "{during:?}");
    println!("while it runs: {during:?}");

    recording.signal(libc::SIGKILL);
    wait_until("the profiler's end", || (!recording.runs()).then_some(()));
    // The kernel frees what no descriptor holds any more a little later.
    let mut left = during.clone();
    wait_until("the BPF objects to go", || {
        left = BpfObjects::list().expect("bpftool is there").also_in(&during);
        left.is_empty().then_some(())
    });
    let name = fs::read_to_string(format!("/proc/{command}/comm")).expect("the command still runs");
    assert_eq!(name, "sleep\n");
    // SAFETY: no memory is involved. Nobody has waited for the command, and it sleeps for longer than this test.
    unsafe { libc::kill(command, libc::SIGKILL) };
}

#[test]
fn kill_9_of_a_recording_of_a_process_leaves_no_bpf_object() {
    let Some(_kernel) = require_bpf() else { return };
    let Some(before) = BpfObjects::list() else { return };
    let mut target = Target::start(&Workload::c("burn").build(), &["30"]);
    let mut recording = Record::new().rate(999).args(["--children"]).pid(target.pid()).start();
    recording.wait_for_samples();
    let during = BpfObjects::list().expect("bpftool is there").since(&before);
    assert!(during.has("prog", "cpu_sample"), "{during:?}");
    recording.signal(libc::SIGKILL);
    wait_until("the BPF objects to go", || {
        BpfObjects::list().expect("bpftool is there").also_in(&during).is_empty().then_some(())
    });
    assert!(target.runs());
}

#[test]
fn ten_runs_in_a_row_leave_nothing() {
    let Some(_kernel) = require_bpf() else { return };
    let Some(before) = BpfObjects::list() else { return };
    let directory = scratch();
    let burn = Workload::c("burn").build();
    let temporary = directory.path().join("temporary");
    fs::create_dir(&temporary).expect("create a directory");
    let pinned = entries(Path::new("/sys/fs/bpf"));
    let probes = entries(Path::new("/sys/kernel/tracing/events/uprobes"));
    for run in 0..10 {
        let mut record = Record::new().rate(999);
        record.command().env("TMPDIR", &temporary).current_dir(&temporary);
        let captured = record.program(&burn, &["0.1"]).run();
        assert!(captured.total() > enough(20), "run {run}: {}", captured.folded());
    }
    wait_until("the BPF objects to go", || {
        BpfObjects::list().expect("bpftool is there").since(&before).is_empty().then_some(())
    });
    assert_eq!(entries(&temporary), Vec::<String>::new(), "left in the temporary or the working directory");
    assert_eq!(entries(Path::new("/sys/fs/bpf")), pinned);
    assert_eq!(entries(Path::new("/sys/kernel/tracing/events/uprobes")), probes);
}

/// The names in a directory; none where it does not exist.
fn entries(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).into_iter().flatten();
    let mut names: Vec<_> = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect();
    names.sort();
    names
}
