//! Locks: how long they were waited for, and who held them; and who ends waits of every kind.

use std::fs;
use std::process::Command;

use profiler_common::event::Origin;
use profiler_tests::{Captured, Record, Target, Workload, float, is_emulated, require_bpf, run_profiler, scratch};
use serde_json::Value;

use crate::servers;

/// Deviation of a time that is allowed.
fn tolerance() -> f64 {
    if is_emulated() { 0.3 } else { 0.05 }
}

/// Locks of the workload: its name there, the kind, and how long it is held each time, ns.
const LOCKS: [(&str, &str, f64); 4] = [
    ("mutex", "mutex", 20e6),
    ("rwlock", "rwlock", 10e6),
    ("condition", "condvar", 15e6),
    ("semaphore", "semaphore", 5e6),
];

fn figure(row: &Value, field: &str) -> f64 {
    row[field].as_f64().unwrap_or_else(|| panic!("{field} of {row}"))
}

/// Rows of the locks that a function waits for: a condition variable has a futex for each of two groups of waiters.
fn rows<'a>(captured: &'a Captured, site: &str) -> Vec<&'a Value> {
    let locks = captured.report["locks"].as_array().expect("locks");
    locks.iter().filter(|lock| lock["site"] == *site).collect()
}

#[test]
fn locks_have_their_waits_their_kind_and_their_holder() {
    let Some(_kernel) = require_bpf() else { return };
    let captured = Record::new().args(["-e", "lock"]).program(&Workload::c("locks").build(), &["5"]).run();
    let truth = captured.truth();
    assert_eq!(captured.profile.origin, Origin::Lock);
    for (name, kind, held_ns) in LOCKS {
        let rows = rows(&captured, &format!("{name}_wait_here"));
        let sum = |field: &str| rows.iter().map(|row| figure(row, field)).sum::<f64>();
        let expected = &truth[name];
        let longest = rows.iter().map(|row| figure(row, "longest_ns")).fold(0.0, f64::max);
        for (what, found) in [("delay_ns", sum("delay_ns")), ("waits", sum("waits"))] {
            let expected = figure(expected, what);
            println!("{name}: {what} {found}, {:+.2} %", (found / expected - 1.0) * 100.0);
            assert!((found / expected - 1.0).abs() < tolerance(), "{name}: {what} {found} for {expected}: {rows:#?}");
        }
        // The waiter's own figure includes waiting for a CPU, ours does not.
        let most = figure(expected, "longest_ns");
        println!("{name}: longest {longest} of {most}, held for {held_ns} ns");
        assert!((held_ns * 0.95..most * 1.01).contains(&longest), "{name}: {longest} {rows:#?}");
        // sem_wait jumps to a function of its own library that only debug files name.
        let is_nameless = name == "semaphore";
        for row in &rows {
            assert!(row["kind"] == *kind || (is_nameless && row["kind"] == "futex"), "{row}");
            assert_eq!(row["holder"]["function"], format!("{name}_give_back_here"), "{row}");
            assert_eq!(row["holder"]["thread"], format!("{name}-holder").chars().take(15).collect::<String>(), "{row}");
            assert!(figure(&row["holder"], "share") > 0.9, "{row}");
        }
        // The address of the lock itself or of a word in it.
        let at = |text: &Value| u64::from_str_radix(&text.as_str().expect("an address")[2..], 16).expect("a number");
        let lock = at(&expected["address"]);
        assert!(rows.iter().all(|row| (lock..lock + 64).contains(&at(&row["address"]))), "{lock:#x}: {rows:#?}");
        let leaf = format!("[{}]", rows[0]["kind"].as_str().expect("a kind"));
        let waited = float(captured.count(|stack| stack.has(&format!("{name}_wait_here")) && stack.leaf() == leaf));
        assert!((waited / sum("delay_ns") - 1.0).abs() < 0.01, "{name}: {waited}\n{}", captured.folded());
    }
    assert!(captured.accounting.lost.is_empty(), "{:#?}", captured.accounting);
    // Contention first: who waits for a condition may have nothing to do.
    let kinds: Vec<_> = captured.report["locks"].as_array().expect("locks").iter().map(|lock| &lock["kind"]).collect();
    assert!(
        kinds[..2].iter().all(|kind| ["mutex", "rwlock", "futex"].iter().any(|held| **kind == **held)),
        "{kinds:?}"
    );
    let markdown = fs::read_to_string(captured.path().join("report.md")).expect("report.md");
    assert!(markdown.contains("### Locks") && markdown.contains("mutex_give_back_here"), "{markdown}");
    // Made again, byte for byte; nothing but locks was asked for.
    let again = scratch();
    let path = captured.path();
    let arguments = ["report", path.to_str().expect("UTF-8"), "-o", again.path().to_str().expect("UTF-8")];
    assert_eq!(run_profiler(&arguments).code(), 0);
    for name in ["lock.svg", "lock.folded", "waker.folded", "report.md", "report.json"] {
        let read = |directory: &std::path::Path| fs::read(directory.join(name)).expect("a file");
        assert!(read(&path) == read(again.path()), "{name} differs");
    }
    assert!(!path.join("offcpu.svg").exists() && captured.report.get("ledger").is_none());
}

#[test]
fn waits_are_shown_with_who_ended_them() {
    let Some(_kernel) = require_bpf() else { return };
    let captured =
        Record::new().args(["-e", "offcpu", "--wakers"]).program(&Workload::c("locks").build(), &["3"]).run();
    let truth = captured.truth();
    let chained = fs::read_to_string(captured.path().join("offwake.folded")).expect("offwake.folded");
    let value = |line: &str| line.rsplit_once(' ').and_then(|(_, value)| value.parse::<f64>().ok()).expect("a value");
    let total: f64 = chained.lines().map(value).sum();
    assert!((total / float(captured.total()) - 1.0).abs() < 1e-9, "{total} for {}", captured.total());
    for (name, ..) in LOCKS {
        let (waiter, waker) = (format!("{name}_wait_here;"), format!("{name}_give_back_here;"));
        let is_so = |line: &&str| {
            line.split_once(";--;").is_some_and(|(wait, wake)| wait.contains(&waiter) && wake.contains(&waker))
        };
        let found: f64 = chained.lines().filter(is_so).map(value).sum();
        let expected = figure(&truth[name], "delay_ns");
        println!("{name}: {:+.2} %", (found / expected - 1.0) * 100.0);
        assert!((found / expected - 1.0).abs() < tolerance(), "{name}: {found} for {expected}\n{chained}");
    }
    // A timer ends a sleep, whoever runs then.
    let slept: f64 =
        chained.lines().filter(|line| line.contains(";[sleep];--;") && line.contains(";[interrupt] ")).map(value).sum();
    let all: f64 = chained.lines().filter(|line| line.contains(";[sleep]")).map(value).sum();
    println!("{:.2} % of the sleep is ended by an interrupt", slept / all * 100.0);
    assert!(slept > 0.9 * all, "{chained}");
    // The same time, by who ended it.
    let wakers = captured.into_origin(Origin::Waker);
    let given = wakers.count(|stack| stack.has("mutex_give_back_here"));
    let expected = figure(&truth["mutex"], "delay_ns");
    assert!((float(given) / expected - 1.0).abs() < 2.0 * tolerance(), "{given} for {expected}\n{}", wakers.folded());
}

#[test]
fn who_wakes_a_target_does_not_become_one() {
    let Some(_kernel) = require_bpf() else { return };
    let Some(redis) = servers::redis() else { return };
    let pid = redis.target.pid();
    let captured = Record::new().args(["-e", "offcpu", "--wakers"]).seconds(3).pid(pid).run();
    assert!(captured.total() > 0);
    assert_eq!(captured.by_pid().keys().collect::<Vec<_>>(), [&pid]);
    let wakers = captured.into_origin(Origin::Waker);
    let clients = wakers.count(|stack| stack.process == "redis-benchmark" || stack.process == "[interrupt]");
    println!("{:.1} % of the waits that were ended were by others", float(clients) / float(wakers.total()) * 100.0);
    assert!(float(clients) > 0.5 * float(wakers.total()), "{}", wakers.folded());
    let complete = float(wakers.accounting.complete)
        / float(wakers.accounting.complete + wakers.accounting.truncated.values().sum::<u64>());
    println!("{:.1} % of their stacks are whole", complete * 100.0);
}

#[test]
fn wakers_that_live_for_a_moment_are_forgotten() {
    let Some(_kernel) = require_bpf() else { return };
    let directory = scratch();
    let fifo = directory.path().join("fifo");
    let made = Command::new("mkfifo").arg(&fifo).status().expect("run mkfifo");
    assert!(made.success());
    let shell = |script: &str| {
        let mut command = Command::new("sh");
        command.args(["-c", script]).current_dir(directory.path());
        Target::start_unready(&mut command)
    };
    let reader = shell("exec cat <>fifo >/dev/null");
    let _writer = shell("i=0; while [ $i -lt 20000 ]; do /bin/echo x >fifo; i=$((i + 1)); done");
    let captured = Record::new().args(["-e", "offcpu", "--wakers"]).seconds(4).pid(reader.pid()).run();
    assert_eq!(captured.by_pid().keys().collect::<Vec<_>>(), [&reader.pid()]);
    // What others use is not the target's.
    let processes = captured.report["timeline"]["columns"]["target_processes"].as_array().expect("a column");
    assert!(processes.iter().all(|count| *count == 1), "{processes:?}");
    let wakers = captured.into_origin(Origin::Waker);
    let (seen, waited) = (wakers.by_pid().len(), wakers.count(|stack| stack.process == "echo"));
    println!("{seen} processes woke it");
    assert!(seen > 50 && waited > 0, "{}", wakers.folded());
}

#[test]
fn wakers_of_nothing_are_refused() {
    let ended = Record::new().args(["-e", "cpu", "--wakers", "-a", "-d", "1"]).end();
    assert_eq!(ended.code(), 2, "{ended:?}");
    assert!(ended.stderr.contains("-e offcpu"), "{}", ended.stderr);
}
