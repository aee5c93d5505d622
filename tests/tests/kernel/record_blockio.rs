//! Requests to block devices: how many, of how many bytes, how long, and who asked.

use std::path::{Path, PathBuf};
use std::process::Command;

use profiler_common::event::Origin;
use profiler_tests::{Captured, Record, Workload, find_program, float, missing, require_bpf, run_profiler, scratch};
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

/// Checks that requests past the page cache of one process are all there.
fn check_direct(captured: &Captured, device: Option<&str>, truth: &Value) {
    assert_eq!(captured.report["tables"]["blockio"]["missing"], 0);
    for (operation, time) in [("read", "read_ns"), ("sync write", "write_ns")] {
        let mut labels = vec![("operation", operation), ("process", "disk"), ("size", "<= 64 KiB")];
        labels.extend(device.map(|device| ("device", device)));
        let rows = rows(captured, "blockio", &labels);
        let [row] = rows[..] else { panic!("{operation}: {rows:#?}") };
        assert_eq!(row["values"]["requests"], truth["requests"], "{row}");
        assert_eq!(row["values"]["bytes"], truth["bytes"], "{row}");
        assert_eq!(row["values"]["errors"], 0);
        // No request takes longer than the call that made it.
        let (found, took) = (sum(&rows, "time_ns"), truth[time].as_u64().expect("ns"));
        println!("{operation}: {found} of {took} ns in requests, p50 {}", row["distributions"]["total_ns"]["p50"]);
        assert!(found > 0 && found < took, "{found} of {took}");
        assert_eq!(found, sum(&rows, "queue_ns") + sum(&rows, "device_ns"));
        // They follow each other, but where the file or the device does not.
        assert!(2 * sum(&rows, "sequential") > sum(&rows, "requests"), "{row}");
    }
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
    let captured =
        Record::new().args(["-e", "blockio"]).program(&disk().build(), &["direct", path, "65536", "300"]).run();
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
        assert_eq!(sum(&of_file, "bytes"), truth["bytes"].as_u64().expect("bytes"), "{of_file:#?}");
        let stacks = captured.stacks.iter().filter(|stack| stack.leaf() == call);
        let (here, all) = stacks.fold((0, 0), |(here, all), stack| {
            (here + if stack.has(function) { stack.count } else { 0 }, all + stack.count)
        });
        assert!(all > 0 && float(here) > 0.99 * float(all), "{function}: {here} of {all}\n{}", captured.folded());
        // Nothing of our own is on a stack.
        assert!(!captured.folded().contains("bpf_trace"), "{}", captured.folded());
    }
    let again = scratch();
    let arguments = ["report", captured.path().to_str().expect("UTF-8"), "-o", again.path().to_str().expect("UTF-8")]
        .map(str::to_owned);
    let ended = run_profiler(&arguments.each_ref().map(String::as_str));
    assert_eq!(ended.code(), 0, "{}", ended.stderr);
    for name in ["blockio.svg", "blockio.folded", "report.md", "report.json"] {
        let read = |directory: &Path| std::fs::read(directory.join(name)).expect("a file");
        assert!(read(&captured.path()) == read(again.path()), "{name} differs");
    }
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
