//! Files: what is done to each, how much, by whom, and from where.

use std::path::Path;
use std::process::Command;

use profiler_common::event::Origin;
use profiler_tests::{
    Captured, Record, Target, Workload, at_work, find_program, float, is_emulated, require_bpf, run_profiler, scratch,
};
use serde_json::Value;

use crate::servers;

/// The program that uses files.
fn files() -> Workload {
    Workload::c("files")
}

/// The rows of files with a name, of processes of the workload.
fn rows<'a>(captured: &'a Captured, file: &str) -> Vec<&'a Value> {
    let rows = captured.report["tables"]["fileio"]["rows"].as_array().expect("rows");
    let is_wanted = |row: &&Value| row["labels"]["file"] == file && row["labels"]["process"] == "files";
    rows.iter().filter(is_wanted).collect()
}

/// The only row of a file.
fn row<'a>(captured: &'a Captured, file: &str) -> &'a Value {
    match rows(captured, file)[..] {
        [row] => row,
        ref rows => panic!("{} rows of {file}: {:#}", rows.len(), captured.report["tables"]["fileio"]),
    }
}

/// Values of a column on stacks with a function and this operation as the leaf.
fn column(captured: &Captured, column: usize, function: &str, operation: &str) -> u64 {
    let profile = &captured.profile;
    let is_wanted = |stack: u32| {
        let names: Vec<_> = profile.frames(stack).map(|frame| frame.name.into_owned()).collect();
        names.first().is_some_and(|leaf| leaf == operation) && names.iter().any(|name| name == function)
    };
    let samples = profile.samples.iter().filter(|sample| is_wanted(sample.stack));
    samples.map(|sample| sample.values[column]).sum()
}

/// Checks that table, accounting and profile are of the same operations.
fn check_sums(captured: &Captured) {
    let table = &captured.report["tables"]["fileio"];
    let rows = table["rows"].as_array().expect("rows");
    let sum = |value: &str| rows.iter().map(|row| row["values"][value].as_u64().expect("a value")).sum::<u64>();
    assert_eq!(table["missing"], 0);
    let operations: u64 = ["reads", "writes", "syncs", "opens", "renames", "mapped_writes"].into_iter().map(sum).sum();
    assert_eq!(operations, captured.accounting.hits, "{:#?}", captured.accounting);
    assert!(captured.accounting.lost.is_empty(), "{:#?}", captured.accounting);
    // Where nothing was left out, the profile is exact too.
    if captured.accounting.sampled_out == 0 {
        assert_eq!(captured.total(), sum("moved_bytes"));
    }
}

/// Checks every file of the workload against what it says of itself.
fn check_files(captured: &Captured, directory: &Path) {
    let truth = captured.truth();
    assert_eq!(truth["works"], true, "{truth:#}");
    for (name, done) in truth["files"].as_object().expect("files") {
        let path = directory.join(name);
        let deleted = if name == "gone" { " (deleted)" } else { "" };
        let row = row(captured, &format!("{}{deleted}", path.display()));
        for (value, truth) in done.as_object().expect("figures") {
            assert_eq!(&row["values"][value], truth, "{value} of {name}: {row:#}");
        }
    }
}

#[test]
fn every_way_to_use_a_file_is_counted_to_the_byte() {
    let Some(_kernel) = require_bpf() else { return };
    let directory = scratch();
    let path = directory.path().to_str().expect("UTF-8");
    let captured = Record::new().args(["-e", "fileio"]).program(&files().build(), &["each", path]).run();
    check_files(&captured, directory.path());
    check_sums(&captured);
    // Each operation on the stack of its function.
    for (function, operation, operations, bytes) in
        [("read_here", "[read]", 10, 10_000), ("write_here", "[write]", 14, 14 * 333), ("sync_here", "[sync]", 3, 0)]
    {
        assert_eq!(column(&captured, 2, function, operation), operations, "{function}\n{}", captured.folded());
        assert_eq!(column(&captured, 1, function, operation), bytes, "{function}");
        assert!(column(&captured, 3, function, operation) > 0, "{function}");
    }
    // Requests of a ring end in the call that waits for them; those that a worker has done have no stack.
    if captured.truth()["files"]["ring"].is_object() {
        // Where the file system cannot read without waiting, all are done by workers.
        assert!(is_emulated() || column(&captured, 2, "ring_here", "[read]") >= 13 + 5, "{}", captured.folded());
        let direct = row(&captured, directory.path().join("direct").to_str().expect("UTF-8"));
        assert!(direct["distributions"]["reads_ns"]["p50"].as_u64() > Some(0), "{direct:#}");
    }
    // As many times as there are operations, none longer than the longest.
    let sync = row(&captured, directory.path().join("sync").to_str().expect("UTF-8"));
    let times = &sync["distributions"]["syncs_ns"];
    assert!(times["p50"].as_u64() > Some(0) && times["p50"].as_u64() <= times["max"].as_u64(), "{sync:#}");
    assert!(sync["values"]["sync_time_ns"].as_u64() >= times["max"].as_u64(), "{sync:#}");
    assert!(sync["values"]["sync_time_ns"].as_u64() <= sync["values"]["time_ns"].as_u64(), "{sync:#}");
    // Relative to where the process was, if it was still there.
    let table = captured.report["tables"]["fileio"]["rows"].as_array().expect("rows");
    for name in ["renamed", "again", "linked"] {
        let is_named = |row: &&Value| Path::new(row["labels"]["file"].as_str().expect("a path")).ends_with(name);
        let renames = table.iter().filter(is_named).filter_map(|row| row["values"]["renames"].as_u64());
        assert_eq!(renames.sum::<u64>(), 1, "{name}: {table:#?}");
    }
    assert_eq!(column(&captured, 2, "rename_here", "[rename]"), 3, "{}", captured.folded());
    // Sockets, pipes and devices for characters are no files.
    let rows = captured.report["tables"]["fileio"]["rows"].as_array().expect("rows");
    assert!(rows.iter().all(|row| row["labels"]["file"] != "/dev/null"), "{rows:#?}");
    let markdown = std::fs::read_to_string(captured.path().join("report.md")).expect("report.md");
    assert!(markdown.contains("### Files") && markdown.contains("/readv` | `files` |"), "{markdown}");
}

#[test]
fn mapped_writes_and_the_page_cache_are_counted_as_the_kernel_does() {
    let Some(_kernel) = require_bpf() else { return };
    let directory = scratch();
    let path = directory.path().to_str().expect("UTF-8");
    let captured = Record::new().args(["-e", "fileio"]).program(&files().build(), &["pages", path]).run();
    let truth = captured.truth();
    assert_eq!(truth["works"], true, "{truth:#}");
    let values = |file: &str| row(&captured, directory.path().join(file).to_str().expect("UTF-8"))["values"].clone();
    let (holes, large, cached) = (values("holes"), values("large"), values("cached"));
    println!("{truth}\n{holes}\n{large}\n{cached}");
    // A file system in memory makes nothing dirty.
    if truth["holes"] == 0 {
        println!("part of the test is left out: the directory is on a file system without write-back");
    } else {
        let pages = truth["pages"].as_u64().expect("pages");
        assert_eq!(holes["mapped_writes"].as_u64(), Some(pages), "{holes:#}");
        assert_eq!(holes["mapped_written_bytes"].as_u64(), Some(4096 * pages), "{holes:#}");
        assert_eq!(
            column(&captured, 1, "map_here", "[mapped write]"),
            captured.truth()["holes"].as_u64().expect("bytes") + truth["large"].as_u64().expect("bytes"),
            "{}",
            captured.folded()
        );
    }
    assert_eq!(holes["mapped_written_bytes"], truth["holes"], "{holes:#}");
    assert_eq!(large["mapped_written_bytes"], truth["large"], "{large:#}");
    assert_eq!(holes["written_bytes"], 0, "{holes:#}");
    assert_eq!((&cached["cache_hits"], &cached["cache_misses"]), (&truth["hits"], &truth["misses"]), "{cached:#}");
    check_sums(&captured);
}

#[test]
fn two_processes_that_write_one_file_are_told_apart() {
    let Some(_kernel) = require_bpf() else { return };
    let directory = scratch();
    let file = directory.path().join("log");
    let file = file.to_str().expect("UTF-8");
    let program = files().build();
    // Both from one shell, at once.
    let script = format!("{0} shared {file} 500 & {0} shared {file} 300; wait", program.display());
    let captured = Record::new().args(["-e", "fileio", "--", "sh", "-c", &script]).run();
    let mut found: Vec<_> = rows(&captured, file)
        .iter()
        .map(|row| (row["values"]["writes"].as_u64(), row["values"]["written_bytes"].as_u64()))
        .collect();
    found.sort_unstable();
    assert_eq!(
        found,
        [(Some(300), Some(30_000)), (Some(500), Some(50_000))],
        "{:#}",
        captured.report["tables"]["fileio"]
    );
    check_sums(&captured);
}

#[test]
fn a_million_short_reads_are_all_counted() {
    let Some(_kernel) = require_bpf() else { return };
    let directory = scratch();
    let file = directory.path().join("data");
    let file = file.to_str().expect("UTF-8");
    let captured = Record::new().args(["-e", "fileio"]).program(&files().build(), &["many", file, &at_work(2)]).run();
    let made = captured.truth()["reads"].as_u64().expect("reads");
    let row = row(&captured, file);
    println!("{made} reads; {} kept", captured.accounting.samples());
    assert_eq!(row["values"]["reads"].as_u64(), Some(made));
    assert_eq!(row["values"]["read_bytes"].as_u64(), Some(16 * made));
    assert!(is_emulated() || made > 200_000, "{made}");
    assert!(is_emulated() || captured.accounting.sampled_out > made / 2, "{:#?}", captured.accounting);
    let by_number = &captured.report["origins"]["fileio"]["by_number"];
    let on_stacks = column(&captured, 2, "many", "[read]");
    let weight = by_number["weight"].as_u64().expect("a weight");
    assert!(on_stacks.abs_diff(made) <= made / 20 + 2 * weight, "{on_stacks} of {made}: {by_number}");
    check_sums(&captured);
}

#[test]
fn inside_a_pid_namespace_files_are_as_outside() {
    let Some(_kernel) = require_bpf() else { return };
    let Some(unshare) = find_program("unshare") else { return };
    let mut command = Command::new(unshare);
    command.args(["--pid", "--fork", "--mount-proc", "--kill-child"]);
    let directory = scratch();
    let path = directory.path().to_str().expect("UTF-8");
    let captured = Record::under(command).args(["-e", "fileio"]).program(&files().build(), &["each", path]).run();
    check_files(&captured, directory.path());
    check_sums(&captured);
    let read = row(&captured, directory.path().join("read").to_str().expect("UTF-8"));
    // As the namespace numbers it.
    assert!(read["labels"]["pid"].as_str().is_some_and(|pid| pid.len() < 3), "{read}");
    assert_eq!(column(&captured, 2, "read_here", "[read]"), 10, "{}", captured.folded());
}

#[test]
fn files_fit_one_recording_with_all_else_and_report_makes_it_again() {
    let Some(_kernel) = require_bpf() else { return };
    let work = scratch();
    let path = work.path().to_str().expect("UTF-8");
    let captured = Record::new()
        .args(["-e", "cpu,offcpu,fault,syscall,fileio"])
        .rate(999)
        .program(&files().build(), &["each", path])
        .run();
    let directory = captured.path();
    let again = scratch();
    let arguments = ["report", directory.to_str().expect("UTF-8"), "-o", again.path().to_str().expect("UTF-8")];
    let ended = run_profiler(&arguments);
    assert_eq!(ended.code(), 0, "{}", ended.stderr);
    for name in ["fileio.svg", "fileio.folded", "report.md", "report.json"] {
        let read = |directory: &Path| std::fs::read(directory.join(name)).expect("a file");
        assert!(read(&directory) == read(again.path()), "{name} differs");
    }
    let captured = captured.into_origin(Origin::FileIo);
    check_files(&captured, work.path());
    check_sums(&captured);
}

#[test]
fn a_process_that_runs_already_is_recorded_with_the_files_it_has_open() {
    let Some(_kernel) = require_bpf() else { return };
    let directory = scratch();
    let file = directory.path().join("data");
    let file = file.to_str().expect("UTF-8");
    let target = Target::start(&files().build(), &["many", file, "60"]);
    let captured = Record::new().args(["-e", "fileio"]).pid(target.pid()).seconds(2).run();
    let row = row(&captured, file);
    let reads = row["values"]["reads"].as_u64().expect("reads");
    assert!(reads > 100, "{row:#}");
    assert_eq!(row["values"]["read_bytes"].as_u64(), Some(16 * reads), "{row:#}");
    assert_eq!(row["values"]["opens"].as_u64(), Some(0), "{row:#}");
    let times = row["values"]["read_time_ns"].as_f64().expect("ns") / float(reads);
    assert!(times > 10.0 && times < 1e6, "{times} ns a read: {row:#}");
    check_sums(&captured);
}

#[test]
fn the_log_of_postgres_is_told_apart_from_its_tables() {
    let Some(_kernel) = require_bpf() else { return };
    let Some(postgres) = servers::postgres() else { return };
    let target = &postgres.target;
    let captured = Record::new().args(["-e", "fileio", "--children"]).pid(target.pid()).seconds(4).run();
    let rows = captured.report["tables"]["fileio"]["rows"].as_array().expect("rows");
    let sum = |wanted: &dyn Fn(&str) -> bool, value: &str| -> u64 {
        let rows = rows.iter().filter(|row| wanted(row["labels"]["file"].as_str().expect("a path")));
        rows.map(|row| row["values"][value].as_u64().expect("a value")).sum()
    };
    let is_log = |path: &str| path.contains("/pg_wal/");
    let is_other = |path: &str| !is_log(path);
    let (syncs, writes, written) = (sum(&is_log, "syncs"), sum(&is_log, "writes"), sum(&is_log, "written_bytes"));
    println!("the log: {syncs} syncs, {writes} writes of {written} bytes; others: {} syncs", sum(&is_other, "syncs"));
    // A commit writes whole blocks of the log and syncs them; the tables are left to the checkpoint.
    // But for the first, whose write may have come before the recording.
    assert!(syncs > 20 && writes + 2 >= syncs, "{syncs} syncs, {writes} writes");
    assert_eq!(written % 8192, 0);
    assert!(sum(&is_other, "syncs") < syncs / 4, "{rows:#?}");
    check_sums(&captured);
    // By stack too: the log is flushed where transactions end.
    let flushed = column(&captured, 2, "XLogFlush", "[sync]") + column(&captured, 2, "XLogBackgroundFlush", "[sync]");
    let all = sum(&|_| true, "syncs");
    println!("{flushed} of {all} syncs are under XLogFlush");
    // Where not all are kept, those that are stand for as many to within a few.
    assert!(flushed >= syncs * 9 / 10 && flushed <= all + all / 50, "{flushed} of {syncs}\n{}", captured.folded());
}
