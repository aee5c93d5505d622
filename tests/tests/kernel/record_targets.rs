//! What is sampled: processes, their threads and children, cgroups, names, the host, a command.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::Command;

use profiler_tests::{
    Captured, Record, Stack, Target, Workload, at_work, enough, float, is_emulated, require_bpf, scratch, wait_until,
};

/// Samples that so many seconds of CPU time make at 999 Hz, as a lower bound for a busy machine.
fn at_least(captured: &Captured, pid: u32, samples: u64) {
    let found = captured.by_pid().get(&pid).copied().unwrap_or(0);
    let samples = enough(samples) / 2;
    assert!(found >= samples, "{found} samples of {pid}, at least {samples} wanted: {:?}", captured.by_pid());
}

#[test]
fn every_thread_of_a_process_is_sampled_and_no_other_process() {
    let Some(_kernel) = require_bpf() else { return };
    let other = Target::start(&Workload::c("burn").build(), &["30"]);
    let target = Target::start(&Workload::c("threads").build(), &["30", "0.2", "60"]);
    let captured = Record::new().rate(999).seconds(3).pid(target.pid()).run();
    at_least(&captured, target.pid(), 500);
    assert!(!captured.by_pid().contains_key(&other.pid()));
    let threads = captured.by_thread();
    assert!(threads.contains_key("early-0") && threads.contains_key("early-1"), "{threads:?}");
    let later = threads.keys().filter(|name| name.starts_with("late-")).count();
    assert!(later >= 2, "threads that started later are missing: {threads:?}");
    let target = &captured.report["target"];
    assert_eq!(target["kind"], "processes");
    assert!(target["description"].as_str().is_some_and(|text| text.contains("threads")), "{target}");
    assert!(captured.accounting.filtered > 0, "the other process was on a CPU: {:#?}", captured.accounting);
}

#[test]
fn several_processes_are_sampled_together() {
    let Some(_kernel) = require_bpf() else { return };
    let burn = Workload::c("burn").build();
    let [one, two, other] = [(); 3].map(|()| Target::start(&burn, &["30"]));
    let captured = Record::new().rate(999).seconds(2).pid(one.pid()).pid(two.pid()).run();
    at_least(&captured, one.pid(), 300);
    at_least(&captured, two.pid(), 300);
    assert_eq!(captured.by_pid().len(), 2, "{:?}, not {}", captured.by_pid(), other.pid());
}

#[test]
fn children_are_followed_when_asked_for_those_that_run_and_those_that_come() {
    let Some(_kernel) = require_bpf() else { return };
    let family = Workload::c("family").build();
    let target = Target::start(&family, &[&at_work(4), &at_work(100)]);
    let parent = target.pid();
    // Without a duration: the recording ends with its target.
    let captured = Record::new().rate(999).args(["--children"]).pid(parent).run();
    let truth = target.truth();
    let long_pid = u32::try_from(truth["long_pid"].as_u64().expect("a pid")).expect("a pid");
    let samples = |name: &str| captured.count(|stack| stack.has(name));
    println!("{truth}: {} samples long, {} short", samples("long_child_hot"), samples("short_child_hot"));
    // The recording began a little later than the child.
    at_least(&captured, long_pid, 1000);
    let short_expected = truth["short_ns"].as_f64().expect("ns") / 1e9 * 999.0;
    let short_found = float(samples("short_child_hot"));
    let least = if is_emulated() { 0.2 * (1.0 - captured.not_delivered()) } else { 0.75 };
    assert!(short_found > short_expected * least, "{short_found} for {short_expected}:\n{}", captured.folded());
    // Children of 100 ms are named though they are gone when the recording ends.
    let short = |stack: &Stack| !stack.has("long_child_hot") && stack.user_leaf() != "" && stack.process == "exe";
    let named = captured.share(short, |stack| stack.has("short_child_hot"));
    // The rest is their way to main, which is a larger part of their lives where the CPUs are emulated.
    let least = if is_emulated() { 0.7 } else { 0.9 };
    assert!(named > least, "{named} named:\n{}", captured.folded());
}

#[test]
fn children_are_left_alone_unless_asked_for() {
    let Some(_kernel) = require_bpf() else { return };
    let target = Target::start(&Workload::c("family").build(), &["20", "100"]);
    let captured = Record::new().rate(999).seconds(1).pid(target.pid()).run();
    assert!(captured.by_pid().keys().all(|&pid| pid == target.pid()), "{:?}", captured.by_pid());
    assert_eq!(captured.count(|stack| stack.has("long_child_hot") || stack.has("short_child_hot")), 0);
}

/// A cgroup of the test's own; removed when it is dropped, after those in it have ended.
pub(crate) struct Cgroup(pub(crate) PathBuf);

impl Cgroup {
    pub(crate) fn create(name: &str) -> Option<Self> {
        let mounts = fs::read_to_string("/proc/self/mounts").expect("read the mounts");
        let mounted = mounts.lines().find_map(|line| {
            let mut fields = line.split(' ').skip(1);
            let path = fields.next()?;
            (fields.next()? == "cgroup2").then(|| PathBuf::from(path))
        });
        let Some(root) = mounted else {
            profiler_tests::missing("cgroup v2 is not mounted");
            return None;
        };
        Some(Self::at(root.join(format!("profiler-test-{name}-{}", std::process::id()))))
    }

    fn at(path: PathBuf) -> Self {
        fs::create_dir(&path).expect("create a cgroup");
        Self(path)
    }

    pub(crate) fn take(&self, pid: u32) {
        fs::write(self.0.join("cgroup.procs"), pid.to_string()).expect("move a process into a cgroup");
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // A process that was killed leaves its cgroup a little later.
        wait_until("the cgroup to be empty", || fs::remove_dir(&self.0).ok());
    }
}

#[test]
fn a_cgroup_is_sampled_with_those_below_it_and_nothing_else() {
    let Some(_kernel) = require_bpf() else { return };
    let Some(outer) = Cgroup::create("outer") else { return };
    let inner = Cgroup::at(outer.0.join("inner"));
    let beside = Cgroup::create("beside").expect("as before");
    let burn = Workload::c("burn").build();
    let [in_outer, in_inner, in_beside, outside] = [(); 4].map(|()| Target::start(&burn, &["30"]));
    outer.take(in_outer.pid());
    inner.take(in_inner.pid());
    beside.take(in_beside.pid());
    let captured = Record::new().rate(999).seconds(2).args(["--cgroup"]).args([&outer.0]).run();
    at_least(&captured, in_outer.pid(), 200);
    at_least(&captured, in_inner.pid(), 200);
    assert_eq!(captured.by_pid().len(), 2, "{:?}, not {}", captured.by_pid(), outside.pid());
    assert_eq!(captured.report["target"]["kind"], "cgroup");
    let named = captured.share(|_| true, |stack| stack.has_chain(&["main", "burn_caller"]));
    assert!(named > 0.9, "{}", captured.folded());
}

#[test]
fn samples_are_labelled_with_cgroup_container_and_thread() {
    let Some(_kernel) = require_bpf() else { return };
    // As Docker names its own.
    let number = format!("{:064x}", std::process::id());
    let Some(outer) = Cgroup::create("labels") else { return };
    let inner = Cgroup::at(outer.0.join(format!("docker-{number}.scope")));
    let target = Target::start(&Workload::c("burn").build(), &["30"]);
    inner.take(target.pid());
    let captured = Record::new().rate(999).seconds(1).pid(target.pid()).run();
    let process = &captured.report["processes"][0];
    assert!(
        process["cgroup"].as_str().is_some_and(|path| path.ends_with(&format!("/docker-{number}.scope"))),
        "{process}"
    );
    assert_eq!(process["container"], number[..12], "{process}");
    let Some(tags) = captured.go_pprof(&["-tags"]) else { return };
    for tag in ["cgroup:", "container:", "thread:", &number[..12]] {
        assert!(tags.contains(tag), "{tag} is not in {tags}");
    }
}

#[test]
fn processes_of_a_name_are_sampled_also_when_they_start_later() {
    let Some(_kernel) = require_bpf() else { return };
    let wanted = Workload::c("burn").called("wanted-name").build();
    let first = Target::start(&wanted, &["30"]);
    let other = Target::start(&Workload::c("burn").build(), &["30"]);
    let mut recording = Record::new().rate(999).seconds(3).args(["--comm", "wanted-name"]).start();
    recording.wait_for_samples();
    let second = Target::start(&wanted, &["30"]);
    let captured = recording.finish();
    at_least(&captured, first.pid(), 400);
    at_least(&captured, second.pid(), 200);
    assert_eq!(captured.by_pid().len(), 2, "{:?}, not {}", captured.by_pid(), other.pid());
    assert_eq!(captured.report["target"]["kind"], "comm");
    assert!(captured.stacks.iter().all(|stack| stack.process == "wanted-name"));
}

#[test]
fn the_whole_host_is_sampled_but_for_the_profiler() {
    let Some(_kernel) = require_bpf() else { return };
    let [one, two] =
        ["burn-one", "burn-two"].map(|name| Target::start(&Workload::c("burn").called(name).build(), &["30"]));
    let mut recording = Record::new().rate(999).seconds(2).args(["-a"]).start();
    recording.wait_for_samples();
    let profiler = recording.pid();
    let captured = recording.finish();
    at_least(&captured, one.pid(), 400);
    at_least(&captured, two.pid(), 400);
    let own = captured.by_pid().get(&profiler).copied().unwrap_or(0);
    let labelled = captured.report["processes"].as_array().expect("processes");
    let labelled = labelled.iter().any(|process| process["process"] == "profiler");
    assert!(own == 0 || labelled, "the profiler is sampled and not labelled");
    assert_eq!(captured.report["target"]["kind"], "host");
}

/// Records `sh -c SCRIPT` and returns the profiler's exit code and whether it wrote a report.
fn exit_code_of(program: &str, arguments: &[&str]) -> (i32, bool) {
    let recording = Record::new().args(["--", program]).args(arguments).start();
    let output = recording.output();
    let (ended, directory) = recording.wait();
    let code = ended.status.code().unwrap_or_else(|| panic!("{ended:?}"));
    let written = output.join("report.json").exists();
    drop(directory);
    (code, written)
}

#[test]
fn the_exit_code_of_a_command_is_passed_on() {
    let Some(_kernel) = require_bpf() else { return };
    assert_eq!(exit_code_of("sh", &["-c", "exit 0"]), (0, true));
    assert_eq!(exit_code_of("sh", &["-c", "exit 7"]), (7, true));
    assert_eq!(exit_code_of("sh", &["-c", "kill -TERM $$"]), (128 + libc::SIGTERM, true));
    assert_eq!(exit_code_of("sh", &["-c", "kill -KILL $$"]), (128 + libc::SIGKILL, true));
}

#[test]
fn a_command_that_cannot_be_executed_is_told_as_a_shell_tells_it() {
    let Some(_kernel) = require_bpf() else { return };
    assert_eq!(exit_code_of("/nonexistent/program", &[]), (127, false));
    assert_eq!(exit_code_of("profiler-test-no-such-program", &[]), (127, false));
    let directory = scratch();
    let file = directory.path().join("not-executable");
    fs::write(&file, "#!/bin/sh\nexit 0\n").expect("write a file");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).expect("set its mode");
    assert_eq!(exit_code_of(file.to_str().expect("UTF-8"), &[]), (126, false));
    let ended = Record::new().args(["--", "/nonexistent/program"]).end();
    assert!(ended.stderr.contains("/nonexistent/program"), "{}", ended.stderr);
}

#[test]
fn a_command_is_sampled_with_its_children_and_keeps_its_output() {
    let Some(_kernel) = require_bpf() else { return };
    let family = Workload::c("family").build();
    let captured = Record::new().rate(999).program(&family, &["2", "100"]).run();
    let truth = captured.truth();
    let long_expected = truth["long_ns"].as_f64().expect("ns") / 1e9 * 999.0;
    let long_found = float(captured.count(|stack| stack.has("long_child_hot")));
    // Processes that share a CPU are switched by the kernel's own tick, which a timer of nearly its rate samples unevenly.
    let tolerance = if is_emulated() { 0.75 } else { 0.12 };
    assert!((long_found / long_expected - 1.0).abs() < tolerance, "{long_found} for {long_expected}");
    assert!(captured.ended.stdout.starts_with("ready\n"), "{}", captured.ended.stdout);
    assert_eq!(captured.report["target"]["kind"], "command");
    assert_eq!(captured.report["target"]["exit_code"], 0);
    // Nothing of the profiler's own in the command's name.
    assert!(captured.stacks.iter().all(|stack| stack.process != "profiler"), "{}", captured.folded());
}

#[test]
fn a_command_that_outlasts_the_recording_is_waited_for_and_not_killed() {
    let Some(_kernel) = require_bpf() else { return };
    let directory = scratch();
    let done = directory.path().join("done");
    let script = format!("sleep 3; echo done > {}; exit 5", done.display());
    let mut recording = Record::new().seconds(1).args(["--", "sh", "-c", &script]).start();
    let report = recording.output().join("report.json");
    wait_until("the report", || report.exists().then_some(()));
    assert!(!done.exists(), "the report came only when the command had ended");
    assert!(recording.runs(), "the profiler did not wait for the command");
    let (ended, _output) = recording.wait();
    assert_eq!(ended.code(), 5, "{}", ended.stderr);
    assert!(done.exists(), "the command was killed");
}

#[test]
fn a_process_that_ends_while_sampled_ends_the_recording_and_keeps_its_names() {
    let Some(_kernel) = require_bpf() else { return };
    let target = Target::start(&Workload::c("burn").build(), &[&at_work(2)]);
    let mut recording = Record::new().rate(999).pid(target.pid()).start();
    recording.wait_for_samples();
    // It is waited for, so that nothing of it is left but what the profiler kept.
    let _ = target.truth();
    let captured = recording.finish();
    assert!(captured.total() > enough(300), "{}", captured.folded());
    let named = captured.share(|stack| !stack.frames.is_empty(), |stack| stack.has_chain(&["main", "burn_caller"]));
    assert!(named > 0.95, "{named} named\n{}", captured.folded());
}

#[test]
fn signals_end_a_recording_with_everything_written() {
    let Some(_kernel) = require_bpf() else { return };
    let target = Target::start(&Workload::c("burn").build(), &["30"]);
    for signal in [libc::SIGINT, libc::SIGTERM] {
        let mut recording = Record::new().rate(999).pid(target.pid()).start();
        recording.wait_for_samples();
        std::thread::sleep(std::time::Duration::from_secs(1));
        recording.signal(signal);
        let captured = recording.finish();
        at_least(&captured, target.pid(), 300);
    }
}

#[test]
fn a_signal_to_the_profiler_leaves_its_command_to_end_by_itself() {
    let Some(_kernel) = require_bpf() else { return };
    let directory = scratch();
    let done = directory.path().join("done");
    let script = format!("sleep 2; echo done > {}", done.display());
    let mut recording = Record::new().args(["--", "sh", "-c", &script]).start();
    recording.wait_for_samples();
    recording.signal(libc::SIGTERM);
    let captured = recording.finish();
    assert_eq!(captured.report["target"]["kind"], "command");
    wait_until("the command's end", || done.exists().then_some(()));
}

#[test]
fn a_target_in_another_pid_and_mount_namespace_is_sampled_and_named() {
    let Some(_kernel) = require_bpf() else { return };
    let Some(unshare) = profiler_tests::find_program("unshare") else { return };
    let mut command = Command::new(unshare);
    command.args(["--pid", "--mount", "--fork", "--kill-child"]).arg(Workload::c("burn").build()).arg("30");
    let target = Target::start_command(&mut command);
    // The workload is the child of unshare.
    let children = format!("/proc/{0}/task/{0}/children", target.pid());
    let pid: u32 = fs::read_to_string(children).expect("its children").trim().parse().expect("one child");
    let captured = Record::new().rate(999).seconds(1).pid(pid).run();
    at_least(&captured, pid, 300);
    let named = captured.share(|_| true, |stack| stack.has_chain(&["main", "burn_caller"]));
    assert!(named > 0.95, "{}", captured.folded());
}
