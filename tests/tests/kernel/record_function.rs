//! Calls of functions: how many, how long, on and off the CPU, and what is slow.

use std::net::TcpStream;
use std::path::Path;
use std::process::Command;

use profiler_common::event::Origin;
use profiler_tests::{
    Captured, Record, Target, Workload, find_program, float, is_emulated, missing, require_bpf, run_profiler, scratch,
    wait_until,
};
use serde_json::Value;

use crate::record_alloc_killed::kill;
use crate::record_unwinding::without_frame_pointers;
use crate::servers::free_port;

/// The program whose functions take known times.
pub(crate) fn latency() -> Workload {
    without_frame_pointers(Workload::c("latency"))
}

/// One whose goroutines change threads and stacks inside calls.
pub(crate) fn latency_go() -> Option<Workload> {
    Workload::go("latency").map(|workload| workload.called("latency-go"))
}

/// The file's name and a pattern, as `--func` takes them.
fn function(program: &Path, pattern: &str) -> String {
    format!("{}:{pattern}", program.file_name().expect("a name").to_string_lossy())
}

/// The row of a function of the only process.
fn row<'a>(captured: &'a Captured, function: &str) -> &'a Value {
    let rows = captured.report["tables"]["func"]["rows"].as_array().expect("rows");
    let mut found = rows.iter().filter(|row| row["labels"]["function"] == function);
    found.next().unwrap_or_else(|| panic!("no row of {function}: {rows:#?}"))
}

fn value(row: &Value, name: &str) -> u64 {
    row["values"][name].as_u64().unwrap_or_else(|| panic!("{name} of {row}"))
}

/// Whether a figure is what it should be, within a part of that.
fn is_near(found: u64, truth: u64, part: f64) -> bool {
    (float(found) / float(truth) - 1.0).abs() < part
}

#[test]
fn every_call_has_its_time_on_and_off_the_cpu() {
    let Some(_kernel) = require_bpf() else { return };
    let program = latency().build();
    let all = function(&program, "work_*");
    let captured = Record::new().args(["-e", "cpu", "--func", &all]).program(&program, &["400", "probed"]).run();
    let truth = captured.truth();
    let figure = |field: &str| truth[field].as_u64().expect("a figure");
    let captured = captured.into_origin(Origin::Func);
    let mixed = row(&captured, "work_mixed");
    println!("{mixed}\n{truth}");
    assert_eq!((value(mixed, "calls"), value(mixed, "nested")), (figure("calls"), 0));
    // What the program measures has the traps in it as well.
    assert!(value(mixed, "time_ns") < figure("total_ns") && is_near(value(mixed, "time_ns"), figure("total_ns"), 0.2));
    let call = &mixed["distributions"]["call_ns"];
    for (percentile, field) in [("p50", "p50_ns"), ("p99", "p99_ns"), ("max", "max_ns")] {
        let found = call[percentile].as_u64().expect("ns");
        assert!(is_near(found, figure(field), 0.2), "{percentile}: {found} of {}", figure(field));
    }
    let (mean, deviation) = (call["mean"].as_u64().expect("ns"), call["deviation"].as_u64().expect("ns"));
    assert!(is_near(mean, figure("total_ns") / figure("calls"), 0.2), "{mean}");
    assert!(is_near(deviation, figure("deviation_ns"), 0.2), "{deviation} of {}", figure("deviation_ns"));

    let halves = row(&captured, "work_halves");
    println!("{halves}");
    assert_eq!(value(halves, "calls"), figure("halves"));
    assert!(is_near(value(halves, "on_cpu_ns"), figure("on_ns"), 0.1), "{halves} {truth}");
    assert!(is_near(value(halves, "off_cpu_ns"), figure("off_ns"), 0.1), "{halves} {truth}");

    // Each of four calls inside one another is counted, and the time of the outermost.
    let deep = row(&captured, "work_deep");
    assert_eq!((value(deep, "calls"), value(deep, "nested")), (figure("deep"), figure("deep") / 4 * 3));
    assert!(value(deep, "time_ns") < value(deep, "inclusive_ns"), "{deep}");

    // What longjmp has left is not counted: the last of them was left when nobody called any more.
    let warnings = captured.report["warnings"].to_string();
    let unended = format!("{} calls of functions have no end", figure("left") - 1);
    assert!(warnings.contains(&unended), "{warnings}");
    assert_eq!(captured.report["tables"]["func"]["missing"], 0);
    check_stacks(&captured, figure("calls") + figure("halves") + figure("deep") / 4);
    assert!(captured.report["overhead"]["trap_ns"].as_u64() > Some(0));
}

/// Checks that the profile is of so many calls, each on a whole stack with the function as its leaf.
fn check_stacks(captured: &Captured, calls: u64) {
    assert_eq!(captured.accounting.hits, calls, "{:#?}", captured.accounting);
    assert!(captured.accounting.lost.is_empty(), "{:#?}", captured.accounting);
    let rows = captured.report["tables"]["func"]["rows"].as_array().expect("rows");
    let time: u64 = rows.iter().map(|row| value(row, "time_ns")).sum();
    assert_eq!(captured.report["origins"]["func"]["by_length"]["measured_ns"].as_u64(), Some(time));
    let whole = captured.share(|_| true, |stack| stack.leaf().starts_with("work_") && stack.has("main"));
    assert!(whole > 0.999, "{whole}\n{}", captured.folded());
}

#[test]
fn stacks_of_slow_calls_alone_are_kept_when_asked_for() {
    let Some(_kernel) = require_bpf() else { return };
    let program = latency().build();
    let all = function(&program, "work_*");
    let record = || Record::new().args(["-e", "cpu", "--func", &all]);
    let first = record().program(&program, &["200", "probed"]).run();
    let usual = row(&first, "work_mixed")["distributions"]["call_ns"]["p50"].as_u64().expect("ns");
    let slower = format!("{}us", 4 * usual / 1_000);
    let captured =
        record().args(["--slower", &slower]).program(&program, &["400", "probed"]).run().into_origin(Origin::Func);
    let of_mixed = |stack| captured.profile.frames(stack).next().is_some_and(|frame| frame.name == "work_mixed");
    let mut calls = 0;
    for sample in &captured.profile.samples {
        // Whatever was slow, as when somebody else had the CPU; nothing else.
        assert!(sample.values[1] >= 4 * usual / 1_000 * 1_000 * sample.values[2], "{:?}", sample.values);
        calls += if of_mixed(sample.stack) { sample.values[2] } else { 0 };
    }
    println!("{calls} slow calls, {slower}");
    // One in ten of 400.
    assert!((40..300).contains(&calls), "{calls} of 40\n{}", captured.folded());
    assert_eq!(value(row(&captured, "work_mixed"), "calls"), 400);
    assert!(captured.accounting.sampled_out >= 300, "{:#?}", captured.accounting);
}

#[test]
fn calls_of_goroutines_end_on_other_threads_and_stacks() {
    let Some(_kernel) = require_bpf() else { return };
    let Some(workload) = latency_go() else { return missing("Go is not installed") };
    let program = workload.build();
    let work = function(&program, "main.work");
    let captured = Record::new().args(["-e", "cpu", "--func", &work]).program(&program, &["100"]).run();
    let truth = captured.truth();
    let captured = captured.into_origin(Origin::Func);
    let row = row(&captured, "main.work");
    println!("{row}\n{truth}");
    assert_eq!(Some(value(row, "calls")), truth["calls"].as_u64());
    let total = truth["total_ns"].as_u64().expect("ns");
    assert!(value(row, "time_ns") < total && is_near(value(row, "time_ns"), total, 0.2), "{row} {truth}");
    assert_eq!((value(row, "on_cpu_ns"), value(row, "off_cpu_ns")), (0, 0));
    let warnings = captured.report["warnings"].to_string();
    assert!(!warnings.contains("calls of functions"), "{warnings}");
    let whole = captured.share(|_| true, |stack| stack.leaf() == "main.work" && stack.has("main.main.func1"));
    assert!(whole > 0.999, "{whole}\n{}", captured.folded());
}

#[test]
fn redis_counts_the_commands_that_its_function_was_called_for() {
    let Some(_kernel) = require_bpf() else { return };
    let (Some(server), Some(client)) = (find_program("redis-server"), find_program("redis-cli")) else {
        return missing("redis is not installed");
    };
    let (directory, port) = (scratch(), free_port());
    let port_text = port.to_string();
    let arguments = ["--bind", "127.0.0.1", "--port", &port_text, "--save", "", "--dir", "."];
    let target = Target::start_unready(Command::new(server).args(arguments).current_dir(directory.path()));
    wait_until("redis-server to listen", || TcpStream::connect(("127.0.0.1", port)).ok());
    let ask = |words: &[&str]| {
        let output = Command::new(&client).args(["-h", "127.0.0.1", "-p", &port_text]).args(words).output();
        String::from_utf8(output.expect("run redis-cli").stdout).expect("text")
    };
    let mut recording = Record::new().args(["-e", "cpu,syscall", "--func", "redis-server:processCommand"]);
    recording = recording.pid(target.pid());
    let mut recording = recording.start();
    // Probes are put in before the recording begins.
    wait_until("probes", || (probes_of(target.pid()) > 1).then_some(()));
    recording.wait_for_samples();
    let commands = |info: &str| -> u64 {
        let line = info.lines().find_map(|line| line.strip_prefix("total_commands_processed:"));
        line.and_then(|number| number.trim().parse().ok()).expect("a number")
    };
    let before = commands(&ask(&["info", "stats"]));
    ask(&["-r", "300", "-i", "0.001", "set", "key", "value"]);
    let after = commands(&ask(&["info", "stats"]));
    recording.signal(libc::SIGINT);
    let captured = recording.finish().into_origin(Origin::Func);
    let found = value(row(&captured, "processCommand"), "calls");
    println!("{found} calls, {} commands\n{}", after - before, captured.folded());
    assert!(after - before >= 300);
    // Those before and after it as well, which are a few.
    assert!((after - before..after - before + 40).contains(&found), "{found} of {}", after - before);
    let whole = captured.share(|_| true, |stack| stack.leaf() == "processCommand" && stack.has("aeMain"));
    assert!(whole > 0.99, "{whole}\n{}", captured.folded());
}

/// Traps that are in the code of a process's program, in its first mapping that is executable.
fn probes_of(pid: u32) -> usize {
    use std::os::unix::fs::FileExt as _;
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).unwrap_or_default();
    let Some(line) = maps.lines().find(|line| line.contains(" r-xp ")) else { return 0 };
    let mut fields = line.split_whitespace();
    let (start, end) = fields.next().and_then(|range| range.split_once('-')).expect("a range");
    let number = |text| u64::from_str_radix(text, 16).expect("an address");
    let (start, end, offset) = (number(start), number(end), number(fields.nth(1).expect("an offset")));
    let mut code = vec![0; usize::try_from(end - start).expect("a size")];
    let mut file = code.clone();
    let read = |path: &str, at, bytes: &mut [u8]| {
        let length = std::fs::File::open(path).and_then(|file| file.read_at(bytes, at));
        length.unwrap_or(0)
    };
    let known = read(&format!("/proc/{pid}/exe"), offset, &mut file);
    read(&format!("/proc/{pid}/mem"), start, &mut code);
    code.iter().zip(&file).take(known).filter(|(there, here)| there != here).count()
}

#[test]
fn nothing_stays_in_the_target_when_the_profiler_is_killed() {
    let Some(_kernel) = require_bpf() else { return };
    let program = latency().build();
    let all = function(&program, "work_*");
    // One that waits for nobody: it works for long enough, on a machine of any speed.
    let target = Target::start(&program, &["2000000"]);
    assert_eq!(probes_of(target.pid()), 0);
    for round in 0..3 {
        let mut recording = Record::new().args(["-e", "cpu", "--func", &all]).pid(target.pid()).start();
        wait_until("probes", || (probes_of(target.pid()) > round).then_some(()));
        kill(i32::try_from(recording.pid()).expect("a pid"), libc::SIGKILL);
        wait_until("its end", || (!recording.runs()).then_some(()));
        wait_until(("no probes", round), || (probes_of(target.pid()) == 0).then_some(()));
    }
}

#[test]
fn what_cannot_have_probes_is_refused_with_the_reason() {
    let Some(_kernel) = require_bpf() else { return };
    let program = latency().build();
    let target = Target::start(&program, &["2000000"]);
    let pid = target.pid().to_string();
    let directory = scratch();
    let output = directory.path().join("capture");
    let output = output.to_str().expect("a path");
    for (pattern, expected) in [
        ("latency:no_such_function", "no function that --func names was found"),
        ("libc.so.6:*", "more than 64 functions"),
    ] {
        let ended = run_profiler(&["record", "-d", "1", "-p", &pid, "-o", output, "--func", pattern]);
        assert_eq!(ended.code(), 2, "{ended:?}");
        assert!(ended.stderr.contains(expected), "{ended:?}");
    }
    assert!(is_emulated() || probes_of(target.pid()) == 0);
}
