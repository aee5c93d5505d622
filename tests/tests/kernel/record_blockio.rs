//! Requests to block devices: how many, of how many bytes, how long, and who asked.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use profiler_common::event::Origin;
use profiler_tests::{
    Captured, Record, Workload, find_program, float, is_emulated, missing, require_bpf, run_profiler, scratch,
};
use serde_json::Value;

/// The program that reads and writes.
fn disk() -> Workload {
    Workload::c("disk")
}

/// Rows of a table whose labels are these.
fn rows<'a>(captured: &'a Captured, table: &str, labels: &[(&str, &str)]) -> Vec<&'a Value> {
    let rows = captured.report["tables"][table]["rows"].as_array().expect("rows");
    rows.iter().filter(|row| labels.iter().all(|(label, value)| row["labels"][label] == *value)).collect()
}

/// Sum of a value over rows.
fn sum(rows: &[&Value], value: &str) -> u64 {
    rows.iter().map(|row| row["values"][value].as_u64().expect("a value")).sum()
}

/// A file as a block device; given back when it is dropped.
struct Loop(PathBuf);

impl Loop {
    /// `None` where there are none; says so.
    fn new(file: &Path) -> Option<Self> {
        let losetup = find_program("losetup")?;
        let output = Command::new(losetup).args(["--find", "--show", "--direct-io=on"]).arg(file).output();
        let output = output.expect("start losetup");
        if !output.status.success() {
            missing(&format!("no loop device: {}", String::from_utf8_lossy(&output.stderr)));
            return None;
        }
        Some(Self(String::from_utf8_lossy(&output.stdout).trim().into()))
    }

    fn name(&self) -> &str {
        self.0.file_name().and_then(|name| name.to_str()).expect("a name")
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("losetup").arg("--detach").arg(&self.0).status();
    }
}

/// Checks that what was found is what there was, but for so much of requests whose end was not seen: a kernel may run no program
/// while it works for a process that it protects, and an end interrupts whoever is on its CPU.
fn check_counted(found: u64, truth: u64, unseen: u64) {
    println!("{found} of {truth}, {unseen} unseen");
    assert!(found <= truth && truth - found <= unseen, "{found} of {truth}, {unseen} unseen");
}

/// Requests whose end was not seen.
fn unseen(captured: &Captured) -> u64 {
    captured.report["tables"]["blockio"]["missing"].as_u64().expect("a count")
}

/// Checks that requests past the page cache of one process are all there.
fn check_direct(captured: &Captured, device: Option<&str>, truth: &Value) {
    let mut found_of_both = 0;
    for (operation, time) in [("read", "read_ns"), ("sync write", "write_ns")] {
        let mut labels = vec![("operation", operation), ("process", "disk"), ("size", "<= 64 KiB")];
        labels.extend(device.map(|device| ("device", device)));
        let rows = rows(captured, "blockio", &labels);
        let [row] = rows[..] else { panic!("{operation}: {rows:#?}") };
        for (value, of_each) in [("requests", 1), ("bytes", 65536)] {
            check_counted(sum(&rows, value), truth[value].as_u64().expect("a figure"), unseen(captured) * of_each);
        }
        found_of_both += sum(&rows, "requests");
        assert_eq!(row["values"]["errors"], 0);
        // No request takes longer than the call that made it.
        let (found, took) = (sum(&rows, "time_ns"), truth[time].as_u64().expect("ns"));
        println!("{operation}: {found} of {took} ns in requests, p50 {}", row["distributions"]["total_ns"]["p50"]);
        assert!(found > 0 && found < took, "{found} of {took}");
        assert_eq!(found, sum(&rows, "queue_ns") + sum(&rows, "device_ns"));
        // They follow each other, but where the file or the device does not.
        assert!(2 * sum(&rows, "sequential") > sum(&rows, "requests"), "{row}");
    }
    check_counted(found_of_both, 2 * truth["requests"].as_u64().expect("a count"), unseen(captured));
    check_sums(captured);
}

/// Checks that table, accounting and profile are of the same requests.
fn check_sums(captured: &Captured) {
    let rows = rows(captured, "blockio", &[]);
    assert_eq!(sum(&rows, "requests"), captured.accounting.hits, "{:#?}", captured.accounting);
    assert!(captured.accounting.lost.is_empty(), "{:#?}", captured.accounting);
    let by_number = &captured.report["origins"]["blockio"]["by_number"];
    if by_number["weight"] == 1 {
        assert_eq!(captured.total(), sum(&rows, "time_ns"));
        let bytes: u64 = captured.profile.samples.iter().map(|sample| sample.values[3]).sum();
        assert_eq!(bytes, sum(&rows, "bytes"));
    }
}

#[test]
fn every_request_past_the_page_cache_is_counted_with_its_bytes_its_file_and_its_stack() {
    let Some(_kernel) = require_bpf() else { return };
    let directory = scratch();
    let file = directory.path().join("direct");
    let path = file.to_str().expect("UTF-8");
    let captured = Record::new()
        .args(["-e", "blockio", "--slower", "1us"])
        .program(&disk().build(), &["direct", path, "65536", "300"])
        .run();
    let truth = captured.truth();
    if truth["works"] != true {
        return missing(&format!("{path} cannot be written past the page cache: {truth}"));
    }
    if rows(&captured, "blockio", &[]).is_empty() {
        return missing("the scratch directory is on no block device");
    }
    check_direct(&captured, None, &truth);
    for (operation, function, call) in [("read", "read_here", "[read]"), ("sync write", "write_here", "[sync write]")] {
        let of_file = rows(&captured, "blockio_files", &[("file", path), ("operation", operation)]);
        check_counted(sum(&of_file, "bytes"), truth["bytes"].as_u64().expect("bytes"), unseen(&captured) * 65536);
        let stacks = captured.stacks.iter().filter(|stack| stack.leaf() == call);
        let (here, all) = stacks.fold((0, 0), |(here, all), stack| {
            (here + if stack.has(function) { stack.count } else { 0 }, all + stack.count)
        });
        assert!(all > 0 && float(here) > 0.99 * float(all), "{function}: {here} of {all}\n{}", captured.folded());
        // Nothing of our own is on a stack.
        assert!(!captured.folded().contains("bpf_trace"), "{}", captured.folded());
    }
    check_slow(&captured, path);
    check_files(&captured);
    let again = scratch();
    let arguments = ["report", captured.path().to_str().expect("UTF-8"), "-o", again.path().to_str().expect("UTF-8")]
        .map(str::to_owned);
    let ended = run_profiler(&arguments.each_ref().map(String::as_str));
    assert_eq!(ended.code(), 0, "{}", ended.stderr);
    for name in ["blockio.svg", "blockio_bytes.svg", "iolatency.csv", "iolatency.svg", "report.md", "report.json"] {
        let read = |directory: &Path| std::fs::read(directory.join(name)).expect("a file");
        assert!(read(&captured.path()) == read(again.path()), "{name} differs");
    }
}

/// Checks that every request was told when all are slow, and with the function that made it.
fn check_slow(captured: &Captured, file: &str) {
    let all = rows(captured, "blockio", &[]);
    let slow = captured.report["slow_requests"].as_array().expect("slow requests");
    assert_eq!(slow.len() as u64, sum(&all, "requests"));
    for value in ["queue_ns", "device_ns", "bytes"] {
        let told: u64 = slow.iter().map(|request| request[value].as_u64().expect("a value")).sum();
        assert_eq!(told, sum(&all, value), "{value}");
    }
    let is_read = |request: &&Value| request["file"] == file && request["operation"] == "read";
    let reads: Vec<&Value> = slow.iter().filter(is_read).collect();
    let has_function = |request: &&&Value| {
        request["stack"].as_array().is_some_and(|stack| stack.iter().any(|frame| frame == "read_here"))
    };
    // The program waited for each of them, but for those that were done before it could.
    let awaited = reads.iter().filter(|request| request["wakeup_ns"].as_u64().is_some_and(|ns| ns > 0)).count();
    assert!(2 * awaited > reads.len(), "{awaited} of {}", reads.len());
    let named = reads.iter().filter(has_function).count();
    assert!(named > 0 && named == reads.len(), "{named} of {}: {:?}", reads.len(), reads.first());
    let sectors: std::collections::BTreeSet<_> = reads.iter().map(|request| request["sector"].as_u64()).collect();
    assert_eq!(sectors.len(), reads.len(), "each is of another place");
}

/// Checks that the other files are of the same requests.
fn check_files(captured: &Captured) {
    let all = rows(captured, "blockio", &[]);
    let read = |name: &str| std::fs::read_to_string(captured.path().join(name)).expect("a file");
    let bytes = read("blockio_bytes.folded");
    let bytes: u64 = bytes.lines().filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok()).sum();
    assert_eq!(bytes, sum(&all, "bytes"));
    let csv = read("iolatency.csv");
    let requests = csv.lines().skip(1).filter_map(|line| line.split(',').nth(4)?.parse::<u64>().ok());
    assert_eq!(requests.sum::<u64>(), sum(&all, "requests"), "{csv}");
    assert!(read("iolatency.svg").contains("<rect"));
}

#[test]
fn requests_to_a_loop_device_are_all_counted_beside_a_profile_of_the_cpus() {
    let Some(_kernel) = require_bpf() else { return };
    let directory = scratch();
    let file = directory.path().join("image");
    std::fs::write(&file, vec![0; 32 << 20]).expect("write an image");
    let Some(device) = Loop::new(&file) else { return };
    let path = device.0.to_str().expect("UTF-8");
    let captured = Record::new()
        .args(["-e", "cpu,blockio"])
        .program(&disk().build(), &["direct", path, "65536", "400"])
        .run()
        .into_origin(Origin::BlockIo);
    let truth = captured.truth();
    assert_eq!(truth["works"], true, "{truth}");
    check_direct(&captured, Some(device.name()), &truth);
}

#[test]
fn what_is_written_back_belongs_to_who_wrote_it() {
    let Some(_kernel) = require_bpf() else { return };
    let directory = scratch();
    let path = directory.path().to_str().expect("UTF-8");
    let captured = Record::new().args(["-e", "blockio"]).program(&disk().build(), &["writers", path, "8388608"]).run();
    let truth = captured.truth();
    assert_eq!(truth["works"], true, "{truth}");
    if rows(&captured, "blockio", &[]).is_empty() {
        return missing("the scratch directory is on no block device");
    }
    for (process, bytes) in [("writer-one", "one"), ("writer-two", "two")] {
        let path = directory.path().join(process);
        let path = path.to_str().expect("UTF-8");
        let of_file = rows(&captured, "blockio_files", &[("file", path)]);
        assert!(of_file.iter().all(|row| row["labels"]["process"] == process), "{of_file:#?}");
        println!(
            "{process}: {} of {} bytes in {} requests",
            sum(&of_file, "bytes"),
            truth[bytes],
            sum(&of_file, "requests")
        );
        assert_eq!(sum(&of_file, "bytes"), truth[bytes].as_u64().expect("bytes"), "{of_file:#?}");
        let written = captured.stacks.iter().filter(|stack| stack.process == process && stack.has("dirty_here"));
        assert!(written.map(|stack| stack.count).sum::<u64>() > 0, "{process}\n{}", captured.folded());
    }
    check_sums(&captured);
}

#[test]
fn what_was_dirty_before_the_recording_is_not_that_of_who_appends_to_the_file() {
    let Some(_kernel) = require_bpf() else { return };
    let directory = scratch();
    let file = directory.path().join("dirty");
    let path = file.to_str().expect("UTF-8");
    // Not recorded: the test is not the profiler's child.
    std::fs::write(&file, vec![1; 64 << 20]).expect("write a file");
    let captured = Record::new().args(["-e", "blockio"]).program(&disk().build(), &["append", path, "4096"]).run();
    let truth = captured.truth();
    assert_eq!(truth["works"], true, "{truth}");
    if rows(&captured, "blockio", &[]).is_empty() {
        return missing("the scratch directory is on no block device");
    }
    let of_file = rows(&captured, "blockio_files", &[("file", path)]);
    let bytes = sum(&of_file, "bytes");
    println!("{bytes} of {} bytes", truth["bytes"]);
    assert!(bytes > 0 && bytes <= truth["bytes"].as_u64().expect("bytes").next_multiple_of(4096), "{of_file:#?}");
    check_sums(&captured);
}

/// A cgroup (version 1) with a limit on a device; removed when it is dropped, once it is empty.
struct Limit(PathBuf);

impl Limit {
    /// `None` where there is no such limit; says so. `limit`: a file and a number.
    fn new(name: &str, device: &str, limit: (&str, u64)) -> Option<Self> {
        let group = Path::new("/sys/fs/cgroup/blkio").join(format!("profiler-test-{name}-{}", std::process::id()));
        if std::fs::create_dir(&group).is_err() {
            missing("no cgroups of block I/O, version 1");
            return None;
        }
        let group = Self(group);
        let written = std::fs::write(group.0.join(limit.0), format!("{device} {}\n", limit.1));
        if written.is_err() {
            missing(&format!("no {} for {device}", limit.0));
            return None;
        }
        Some(group)
    }

    /// A command that runs a program in it.
    fn shell(&self) -> Command {
        let mut command = Command::new("sh");
        let procs = self.0.join("cgroup.procs");
        command.args(["-c", "echo $$ > \"$0\" && exec \"$@\""]).arg(procs);
        command
    }
}

impl Drop for Limit {
    fn drop(&mut self) {
        // What is under way keeps it for a moment.
        for _ in 0..50 {
            if std::fs::remove_dir(&self.0).is_ok() {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
    }
}

/// The latency of the kernel's null device, ns; `None` where there is none, which needs a module with that latency.
fn null_device() -> Option<f64> {
    let latency = std::fs::read_to_string("/sys/module/null_blk/parameters/completion_nsec").ok()?;
    let latency: f64 = latency.trim().parse().ok()?;
    let is_slow = latency >= 1e6 && Path::new(NULL_DEVICE).exists();
    is_slow.then_some(latency)
}

const NULL_DEVICE: &str = "/dev/nullb0";

/// Says that a test is skipped for want of what the virtual machines have, and hardly any other: it is a failure in them, and
/// only there.
fn missing_apart(what: &str) {
    assert!(!is_emulated(), "{what}, and this is a virtual machine of the tests");
    println!("skipped: {what}");
}

#[test]
fn a_device_of_known_latency_has_it_below_the_limit_of_a_cgroup_too() {
    let Some(_kernel) = require_bpf() else { return };
    let Some(latency) = null_device() else {
        return missing_apart("there is no null_blk with a latency of 1 ms or more");
    };
    // The timer of an emulated CPU is late itself.
    let tolerance = if is_emulated() { 0.15 } else { 0.05 };
    let record = || Record::new().args(["-e", "blockio"]);
    let captured = record().program(&disk().build(), &["direct", NULL_DEVICE, "4096", "15"]).run();
    let truth = captured.truth();
    assert_eq!(truth["works"], true, "{truth}");
    let labels = [("device", "nullb0"), ("process", "disk"), ("size", "<= 4 KiB")];
    for operation in ["read", "sync write"] {
        let labels: Vec<_> = labels.into_iter().chain([("operation", operation)]).collect();
        let rows = rows(&captured, "blockio", &labels);
        assert_eq!((sum(&rows, "requests"), sum(&rows, "bytes")), (15, 15 * 4096), "{rows:#?}");
        let mean = float(sum(&rows, "device_ns")) / 15.0;
        println!("{operation}: {mean} of {latency} ns in the device");
        assert!((mean / latency - 1.0).abs() < tolerance, "{mean} of {latency}");
    }
    let took = truth["read_ns"].as_f64().expect("ns") + truth["write_ns"].as_f64().expect("ns");
    let parts: f64 = ["queue_ns", "device_ns", "wake_up_ns"].iter().map(|part| waits(&captured, part)).sum();
    println!("waits {parts} of {took} ns");
    assert!((parts / took - 1.0).abs() < 0.05, "{parts} of {took}");
    check_sums(&captured);

    let numbers = std::fs::read_to_string("/sys/block/nullb0/dev").expect("the device's numbers");
    let group = Path::new("/sys/fs/cgroup").join(format!("profiler-test-null-{}", std::process::id()));
    let made =
        std::fs::write("/sys/fs/cgroup/cgroup.subtree_control", "+io").and_then(|()| std::fs::create_dir(&group));
    if made.is_err() {
        return missing_apart("there is no controller of block I/O, version 2");
    }
    let group = Limit(group);
    std::fs::write(group.0.join("io.max"), format!("{} wiops=5", numbers.trim())).expect("set a limit");
    let captured = Record::under(group.shell())
        .args(["-e", "blockio"])
        .program(&disk().build(), &["direct", NULL_DEVICE, "4096", "15"])
        .run();
    let truth = captured.truth();
    let written = truth["write_ns"].as_f64().expect("ns");
    let rows = rows(&captured, "blockio", &[("device", "nullb0"), ("process", "disk"), ("operation", "sync write")]);
    assert_eq!(
        (sum(&rows, "requests"), sum(&rows, "bytes")),
        (15, 15 * 4096),
        "{}",
        captured.report["tables"]["blockio"]
    );
    let (throttled, device) = (waits(&captured, "throttled_ns"), float(sum(&rows, "device_ns")));
    println!("{throttled} of {written} ns throttled, {device} in the device");
    assert!(throttled > 0.0 && (throttled + device) / written > 0.95, "{throttled} and {device} of {written}");
    assert!((device / 15.0 / latency - 1.0).abs() < tolerance, "{device}");
    check_sums(&captured);
}

/// Numbers of the device that a file is on.
fn device_of(path: &Path) -> String {
    use std::os::unix::fs::MetadataExt as _;
    let device = std::fs::metadata(path).expect("a file").dev();
    format!("{}:{}", libc::major(device), libc::minor(device))
}

/// The sum of a part of the only process's waits, and their number.
fn waits(captured: &Captured, part: &str) -> f64 {
    let rows = rows(captured, "blockio_waits", &[("process", "disk")]);
    float(sum(&rows, part))
}

#[test]
fn time_under_the_limit_of_a_cgroup_is_told_from_the_device() {
    let Some(_kernel) = require_bpf() else { return };
    let directory = scratch();
    let limit = ("blkio.throttle.write_iops_device", 50);
    let Some(group) = Limit::new("iops", &device_of(directory.path()), limit) else { return };
    let file = directory.path().join("direct");
    let path = file.to_str().expect("UTF-8");
    let captured = Record::under(group.shell())
        .args(["-e", "blockio"])
        .program(&disk().build(), &["direct", path, "65536", "100"])
        .run();
    let truth = captured.truth();
    assert_eq!(truth["works"], true, "{truth}");
    check_direct(&captured, None, &truth);
    let (written, read) = (truth["write_ns"].as_f64().expect("ns"), truth["read_ns"].as_f64().expect("ns"));
    let (all, throttled) = (waits(&captured, "total_ns"), waits(&captured, "throttled_ns"));
    println!("waits {all} of {} ns, {throttled} throttled", written + read);
    // At 50 a second a hundred take two seconds, of which the limit lets some pass at once.
    assert!(throttled > 0.9 * written && throttled < written, "{throttled} of {written}");
    assert!((all / (written + read) - 1.0).abs() < 0.05, "{all} of {}", written + read);
    let parts = ["throttled_ns", "held_ns", "queue_ns", "device_ns", "wake_up_ns"];
    let sum: f64 = parts.iter().map(|part| waits(&captured, part)).sum();
    assert!((sum - all).abs() < 1.0, "{sum} of {all}");
    // It is in no request, and the requests are in the cgroup.
    assert!(float(captured.total()) < 0.2 * all, "{} of {all}", captured.total());
    let name = format!("/{}", group.0.file_name().expect("a name").to_string_lossy());
    assert!(
        !rows(&captured, "blockio", &[("cgroup", &name)]).is_empty(),
        "{name}: {}",
        captured.report["tables"]["blockio"]
    );
}

#[test]
fn queue_device_and_wake_up_add_up_to_what_a_program_measures_of_a_slow_device() {
    let Some(_kernel) = require_bpf() else { return };
    let directory = scratch();
    let file = directory.path().join("image");
    std::fs::write(&file, vec![0; 8 << 20]).expect("write an image");
    let Some(device) = Loop::new(&file) else { return };
    // The device of the image lets a megabyte a second through on behalf of the program: that is how slow the other one is.
    let limit = ("blkio.throttle.read_bps_device", 1 << 20);
    let Some(group) = Limit::new("bps", &device_of(directory.path()), limit) else { return };
    let path = device.0.to_str().expect("UTF-8");
    let captured = Record::under(group.shell())
        .args(["-e", "blockio"])
        .program(&disk().build(), &["direct", path, "65536", "40"])
        .run();
    let truth = captured.truth();
    assert_eq!(truth["works"], true, "{truth}");
    check_direct(&captured, Some(device.name()), &truth);
    let reads = rows(&captured, "blockio", &[("operation", "read"), ("device", device.name()), ("process", "disk")]);
    let (found, took) = (float(sum(&reads, "time_ns")), truth["read_ns"].as_f64().expect("ns"));
    if took < 40.0 * 1e6 {
        return missing("the loop device reads on its own account, not on the program's");
    }
    println!("{found} of {took} ns: {}", reads[0]["distributions"]);
    assert!((found / took - 1.0).abs() < 0.05, "{found} of {took}");
    let longest = truth["longest_read_ns"].as_f64().expect("ns");
    let max = reads[0]["distributions"]["total_ns"]["max"].as_f64().expect("ns");
    // Its way back to a CPU may have been long where others want one too.
    let back = rows(&captured, "blockio_waits", &[("process", "disk")]);
    let back = back[0]["distributions"]["wake_up_ns"]["max"].as_f64().expect("ns");
    println!("longest {max} of {longest} ns, {back} at most to be back on a CPU");
    assert!(max < 1.01 * longest && max + back > 0.95 * longest, "{max} and {back} of {longest}");
    let parts: f64 = ["queue_ns", "device_ns", "wake_up_ns"].iter().map(|part| waits(&captured, part)).sum();
    let all = took + truth["write_ns"].as_f64().expect("ns");
    println!("waits {parts} of {all} ns");
    assert!((parts / all - 1.0).abs() < 0.05, "{parts} of {all}");
    // To the program it is the device that is slow, whatever its reason.
    assert!(waits(&captured, "throttled_ns") < 0.05 * all);
}

#[test]
fn fio_and_the_profiler_count_the_same() {
    let Some(_kernel) = require_bpf() else { return };
    let Some(fio) = find_program("fio") else { return };
    let directory = scratch();
    let file = directory.path().join("fio");
    // fio would write the file first, of which it gives no account.
    let made = std::fs::File::create(&file).expect("create a file");
    (&made).write_all(&vec![1; 16 << 20]).and_then(|()| made.sync_all()).expect("write a file");
    let arguments = [
        "--name=job",
        "--rw=randrw",
        "--rwmixread=70",
        "--bs=16k",
        "--size=16m",
        "--direct=1",
        "--ioengine=libaio",
        "--iodepth=8",
        "--io_size=32m",
        "--output-format=json",
        "--randseed=7",
    ];
    let mut arguments: Vec<String> = arguments.iter().map(ToString::to_string).collect();
    arguments.push(format!("--filename={}", file.display()));
    arguments.push(format!("--output={}", directory.path().join("fio.json").display()));
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let captured = Record::new().args(["-e", "blockio"]).program(&fio, &arguments).run();
    let told = std::fs::read(directory.path().join("fio.json")).expect("fio's account");
    let told: Value = serde_json::from_slice(&told).expect("JSON");
    let path = file.to_str().expect("UTF-8");
    for (operation, field) in [("read", "read"), ("sync write", "write")] {
        let job = &told["jobs"][0][field];
        let of_file = rows(&captured, "blockio_files", &[("file", path), ("operation", operation)]);
        println!("{operation}: {} requests of {}", sum(&of_file, "requests"), job["total_ios"]);
        let unseen = unseen(&captured);
        check_counted(sum(&of_file, "requests"), job["total_ios"].as_u64().expect("a count"), unseen);
        check_counted(sum(&of_file, "bytes"), job["io_bytes"].as_u64().expect("bytes"), unseen * 16384);
    }
    check_sums(&captured);
}
