//! What cannot be recorded, or only in part: a clear error or a result that says so.

use std::ffi::CString;
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use profiler_tests::{
    Ended, Record, Target, Workload, enough, find_program, profiler, require_bpf, run_profiler, scratch,
};

/// Checks that a run failed as it should: exit code 2, one message that names all of `words`, nothing of a panic.
fn check_error(ended: &Ended, words: &[&str]) {
    println!("{}", ended.stderr.trim_end());
    assert_eq!(ended.code(), 2, "{ended:?}");
    for word in words {
        assert!(ended.stderr.contains(word), "{word:?} is not in: {}", ended.stderr);
    }
    for word in ["panicked", "RUST_BACKTRACE", "unwrap", "Os {"] {
        assert!(!ended.stderr.contains(word), "{word:?} is in: {}", ended.stderr);
    }
    let errors = ended.stderr.lines().filter(|line| line.starts_with("profiler: ")).count();
    assert_eq!(errors, 1, "one message: {}", ended.stderr);
}

/// A pid that no process has.
fn free_pid() -> u32 {
    let mut child = Command::new("true").spawn().expect("start a program");
    child.wait().expect("wait for it");
    child.id()
}

#[test]
fn a_pid_that_does_not_exist_is_an_error() {
    let Some(_kernel) = require_bpf() else { return };
    let pid = free_pid();
    let record = Record::new().pid(pid).seconds(1);
    let output = record.output();
    check_error(&record.end(), &[&pid.to_string(), "no process"]);
    assert!(!output.exists(), "an output directory was left");
}

#[test]
fn rates_out_of_range_are_errors_that_name_the_range() {
    let Some(_kernel) = require_bpf() else { return };
    let own_pid = std::process::id();
    for rate in [0, 1_000_000] {
        check_error(&Record::new().pid(own_pid).seconds(1).rate(rate).end(), &[&rate.to_string()]);
    }
    for rate in ["-1", "fast", ""] {
        let ended = Record::new().pid(own_pid).seconds(1).args(["-F", rate]).end();
        assert_eq!(ended.code(), 2, "-F {rate:?}: {ended:?}");
    }
}

#[test]
fn arguments_that_contradict_each_other_are_errors() {
    let Some(_kernel) = require_bpf() else { return };
    let own_pid = std::process::id().to_string();
    let contradictions: [&[&str]; 8] = [
        &["-p", &own_pid, "--", "true"],
        &["-a", "-p", &own_pid],
        &["-a", "--comm", "x"],
        &["--comm", "x", "--cgroup", "/sys/fs/cgroup"],
        &[],
        &["-p", "0"],
        &["-p", &own_pid, "-d", "0"],
        &["-p", &own_pid, "-e", "nonsense"],
    ];
    for arguments in contradictions {
        let ended = Record::new().args(arguments).end();
        assert_eq!(ended.code(), 2, "{arguments:?}: {ended:?}");
        assert!(!ended.stderr.contains("panicked"), "{arguments:?}: {}", ended.stderr);
    }
}

#[test]
fn a_cgroup_that_is_none_is_an_error() {
    let Some(_kernel) = require_bpf() else { return };
    let missing = "/sys/fs/cgroup/profiler-test-missing";
    check_error(&Record::new().seconds(1).args(["--cgroup", missing]).end(), &[missing]);
    let directory = scratch();
    let path = directory.path().to_str().expect("UTF-8");
    check_error(&Record::new().seconds(1).args(["--cgroup", path]).end(), &[path, "cgroup"]);
}

#[test]
fn without_root_the_error_names_the_remedy() {
    let Some(_kernel) = require_bpf() else { return };
    let directory = scratch();
    // Where everybody may execute it and write.
    let binary = directory.path().join("profiler");
    fs::copy(profiler(), &binary).expect("copy the profiler");
    fs::set_permissions(&binary, fs::Permissions::from_mode(0o755)).expect("set its mode");
    let output = directory.path().join("output");
    fs::DirBuilder::new().mode(0o777).create(&output).expect("create a directory");
    fs::set_permissions(&output, fs::Permissions::from_mode(0o777)).expect("set its mode");
    let target = Target::start(&Workload::c("burn").build(), &["30"]);
    let mut command = Command::new(binary);
    command.args(["record", "-d", "1", "-p", &target.pid().to_string(), "-o"]).arg(output.join("capture"));
    command.uid(65_534).gid(65_534);
    let result = command.output().expect("start the profiler");
    let ended = Ended {
        status: result.status,
        stdout: String::from_utf8_lossy(&result.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&result.stderr).into_owned(),
    };
    check_error(&ended, &["not permitted", "root", "CAP_BPF"]);
}

#[test]
fn without_kernel_types_the_error_names_the_remedy() {
    let Some(_kernel) = require_bpf() else { return };
    let Some(unshare) = find_program("unshare") else { return };
    let target = Target::start(&Workload::c("burn").build(), &["30"]);
    // In a mount namespace of its own: the host keeps its types.
    let script = "mount -t tmpfs none /sys/kernel/btf && exec \"$@\"";
    let directory = scratch();
    let mut command = Command::new(unshare);
    command.args(["--mount", "sh", "-c", script, "sh"]).arg(profiler());
    command.args(["record", "-d", "1", "-p", &target.pid().to_string(), "-o"]).arg(directory.path().join("capture"));
    let result = command.output().expect("start unshare");
    let ended = Ended {
        status: result.status,
        stdout: String::from_utf8_lossy(&result.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&result.stderr).into_owned(),
    };
    check_error(&ended, &["/sys/kernel/btf/vmlinux", "CONFIG_DEBUG_INFO_BTF"]);
}

#[test]
fn an_output_directory_that_cannot_be_written_is_an_error() {
    let Some(_kernel) = require_bpf() else { return };
    let directory = scratch();
    let file = directory.path().join("file");
    fs::write(&file, "not a directory").expect("write a file");
    let target = Target::start(&Workload::c("burn").build(), &["30"]);
    for output in [file.clone(), file.join("below"), PathBuf::from("/proc/profiler-test")] {
        let text = output.to_str().expect("UTF-8");
        let ended = run_profiler(&["record", "-d", "1", "-p", &target.pid().to_string(), "-o", text]);
        check_error(&ended, &[text]);
    }
    // With a command it is the profiler's failure, not the command's, and the command is not run in vain.
    let marker = directory.path().join("ran");
    let [file, marker_text] = [&file, &marker].map(|path| path.to_str().expect("UTF-8"));
    let ended = run_profiler(&["record", "-o", file, "--", "touch", marker_text]);
    assert_eq!(ended.code(), 125, "{ended:?}");
    assert!(!marker.exists(), "the command ran though nothing could be written");
}

/// A small file system, unmounted when it is dropped.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    fn mount(kibibytes: u32) -> Self {
        let directory = scratch();
        let options = CString::new(format!("size={kibibytes}k")).expect("no zero byte");
        let path = c_path(directory.path());
        // SAFETY: the strings end in zero and live through the call.
        let mounted = unsafe {
            let tmpfs = c"tmpfs".as_ptr();
            libc::mount(tmpfs, path.as_ptr(), tmpfs, 0, options.as_ptr().cast())
        };
        assert_eq!(mounted, 0, "mount a tmpfs: {}", std::io::Error::last_os_error());
        Self(directory)
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    /// Writes until nothing more fits, then makes room for so many bytes.
    fn fill(&self, free: u64) {
        let path = self.path().join("filler");
        let mut file = fs::File::create(&path).expect("create the filler");
        let mut written = 0;
        while file.write_all(&[0; 4096]).is_ok() {
            written += 4096;
        }
        file.set_len(written - free).expect("shorten the filler");
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let path = c_path(self.path());
        // SAFETY: the string ends in zero and lives through the call.
        unsafe { libc::umount2(path.as_ptr(), libc::MNT_DETACH) };
    }
}

fn c_path(path: &Path) -> CString {
    CString::new(path.to_str().expect("UTF-8")).expect("no zero byte")
}

#[test]
fn a_full_disk_is_an_error_and_leaves_no_half_written_file() {
    let Some(_kernel) = require_bpf() else { return };
    let target = Target::start(&Workload::c("threads").build(), &["30", "0.1", "200"]);
    for free in [0, 4096, 8192, 16384] {
        let disk = SmallDisk::mount(64);
        disk.fill(free);
        let output = disk.path().join("capture");
        let text = output.to_str().expect("UTF-8");
        let ended = run_profiler(&["record", "-F", "4999", "-d", "1", "-p", &target.pid().to_string(), "-o", text]);
        check_error(&ended, &[text, "No space left"]);
        // What is there is whole: a file gets its name only when all of it is written.
        for entry in fs::read_dir(&output).into_iter().flatten() {
            let path = entry.expect("read the directory").path();
            let bytes = fs::read(&path).expect("read a file");
            let name = path.file_name().and_then(|name| name.to_str()).expect("UTF-8").to_owned();
            let whole = match name.as_str() {
                "cpu.pb.gz" => profiler::output::pprof::decode(&bytes).is_ok(),
                "cpu.svg" | "timeline.svg" => bytes.trim_ascii_end().ends_with(b"</svg>"),
                "capture.json" | "report.json" => serde_json::from_slice::<serde_json::Value>(&bytes).is_ok(),
                "cpu.folded" | "report.md" | "timeline.csv" => bytes.ends_with(b"\n"),
                _ => false,
            };
            assert!(whole, "{name} is left with {} bytes", bytes.len());
        }
    }
}

#[test]
fn files_are_private() {
    let Some(_kernel) = require_bpf() else { return };
    let mut record = Record::new().args(["--", "true"]);
    // SAFETY: the closure makes one system call and touches no memory of the parent.
    unsafe {
        record.command().pre_exec(|| {
            libc::umask(0);
            Ok(())
        });
    }
    let captured = record.run();
    let mode = |path: &Path| fs::metadata(path).expect("stat").permissions().mode() & 0o7777;
    assert_eq!(mode(&captured.path()), 0o700);
    let mut files = 0;
    for entry in fs::read_dir(captured.path()).expect("read the directory") {
        let path = entry.expect("read the directory").path();
        assert_eq!(mode(&path), 0o600, "{}", path.display());
        files += 1;
    }
    assert_eq!(
        files, 9,
        "capture.json, cpu.folded, cpu.svg, cpu.pb.gz, report.html, report.md, report.json, timeline.csv, timeline.svg"
    );
}

#[test]
fn an_existing_capture_is_replaced_whole_and_a_link_is_not_followed() {
    let Some(_kernel) = require_bpf() else { return };
    let directory = scratch();
    let output = directory.path().join("capture");
    fs::create_dir(&output).expect("create a directory");
    let precious = directory.path().join("precious");
    fs::write(&precious, "keep").expect("write a file");
    std::os::unix::fs::symlink(&precious, output.join("cpu.folded")).expect("make a link");
    fs::write(output.join("report.json"), "old").expect("write a file");
    let ended = run_profiler(&["record", "-o", output.to_str().expect("UTF-8"), "--", "true"]);
    assert_eq!(ended.code(), 0, "{ended:?}");
    assert_eq!(fs::read_to_string(&precious).expect("read a file"), "keep", "the link was written through");
    assert_ne!(fs::read_to_string(output.join("report.json")).expect("read a file"), "old");
    assert!(!fs::symlink_metadata(output.join("cpu.folded")).expect("stat").is_symlink());
}

/// Most memory a recording may take, whatever the target: the processes of the tests above take a tenth of it.
const MEMORY_BOUND: u64 = 256 << 20;

/// Records a target with very many mappings; it runs on.
fn check_mappings(kind: &str, count: &str) -> Target {
    let target = Target::start(&Workload::c("mappings").build(), &["30", kind, count]);
    let captured = Record::new().rate(999).seconds(2).pid(target.pid()).run();
    let named = captured.share(|_| true, |stack| stack.has_chain(&["main", "mapped_hot"]));
    let overhead = &captured.report["overhead"];
    println!("{} samples, {named} named, {overhead}", captured.total());
    assert!(captured.total() > enough(500) && named > 0.95, "{}", captured.folded());
    assert!(overhead["peak_rss_bytes"].as_u64() < Some(MEMORY_BOUND), "{overhead}");
    target
}

#[test]
fn a_target_with_60000_mappings_is_recorded() {
    let Some(_kernel) = require_bpf() else { return };
    let target = check_mappings("lines", "60000");
    let lines = fs::read_to_string(format!("/proc/{}/maps", target.pid())).expect("its mappings").lines().count();
    assert!(lines > 60_000, "{lines} lines");
}

#[test]
fn a_target_with_5000_executable_mappings_is_recorded() {
    let Some(_kernel) = require_bpf() else { return };
    check_mappings("executable", "5000");
}

#[test]
fn a_target_that_makes_5000_executable_mappings_while_sampled_is_recorded() {
    let Some(_kernel) = require_bpf() else { return };
    let mappings = Workload::c("mappings").build();
    let captured = Record::new().rate(999).program(&mappings, &["1", "executable", "5000"]).run();
    assert_eq!(captured.truth()["made"], 5000);
    let hot = captured.count(|stack| stack.has_chain(&["main", "mapped_hot"]));
    assert!(hot > enough(900), "{hot}\n{}", captured.folded());
    let overhead = &captured.report["overhead"];
    assert!(overhead["peak_rss_bytes"].as_u64() < Some(MEMORY_BOUND), "{overhead}");
}

#[test]
fn maps_that_are_full_are_a_counted_loss() {
    let Some(_kernel) = require_bpf() else { return };
    let target = Target::start(&Workload::c("many").build(), &["30"]);
    let record = Record::new().rate(4999).args(["--map-entries", "64", "--buffer-mb", "1"]).seconds(3);
    let mut recording = record.pid(target.pid()).start();
    recording.wait_for_samples();
    // Nothing drains the maps while the profiler is stopped, as on a host that starves it.
    recording.signal(libc::SIGSTOP);
    std::thread::sleep(std::time::Duration::from_secs(1));
    recording.signal(libc::SIGCONT);
    // The profile, the accounting and the formats agree in any case: that is checked of every recording.
    let captured = recording.finish();
    let lost = captured.accounting.lost.get("map_full").copied().unwrap_or(0);
    println!("{} samples, {lost} lost: {:#?}", captured.total(), captured.accounting);
    assert!(lost > enough(1000), "64 records held a second of distinct stacks: {:#?}", captured.accounting);
    let report = fs::read_to_string(captured.path().join("report.md")).expect("report.md");
    assert!(report.contains("--map-entries"), "the report does not name the remedy:\n{report}");
    assert!(captured.ended.stderr.contains("lost"), "{}", captured.ended.stderr);
}

#[test]
fn many_distinct_stacks_are_all_kept() {
    let Some(_kernel) = require_bpf() else { return };
    let target = Target::start(&Workload::c("many").build(), &["30"]);
    let captured = Record::new().rate(4999).seconds(2).pid(target.pid()).run();
    println!("{} samples, {} lines", captured.total(), captured.stacks.len());
    assert!(captured.accounting.lost.is_empty(), "{:#?}", captured.accounting);
    let deep = captured.share(|stack| stack.has("left"), |stack| stack.has("main") && stack.frames.len() >= 18);
    assert!(deep >= 0.98, "{deep}\n{}", captured.folded());
    assert!(
        captured.stacks.len() as u64 > enough(3000),
        "{} lines of {} samples",
        captured.stacks.len(),
        captured.total()
    );
}
