//! User stacks by table: programs without frame pointers, as they are shipped.

use std::process::Command;

use profiler_tests::{Captured, Record, Stack, Target, Workload, enough, find_program, float, require_bpf};

use crate::record_cpu::{Names, check_split};

/// Share of the samples of a program without frame pointers whose callers must all be there.
///
/// A few are taken where a process ends or begins, and its memory is not there.
pub(crate) const LEAST: f64 = 0.99;

pub(crate) fn without_frame_pointers(workload: Workload) -> Workload {
    workload.flag("-fomit-frame-pointer").flag("-DWITHOUT_FRAME_POINTERS")
}

/// Checks that nearly all user stacks were walked to their root.
pub(crate) fn check_complete(captured: &Captured, least: f64) {
    let user = &captured.accounting.user;
    let whole = float(user.complete) / float(user.total());
    println!("{:.2} % of {} user stacks are whole: {user:?}", whole * 100.0, user.total());
    assert!(whole >= least, "{user:#?}\n{}", captured.folded());
}

#[test]
fn every_caller_is_found_in_c_without_frame_pointers() {
    let Some(_kernel) = require_bpf() else { return };
    let names = Names { part: |part| part.to_owned(), caller: |number| format!("c{number:02}"), main: "main" };
    let captured = check_split(&without_frame_pointers(Workload::c("split").called("split-nofp")), 4, &names, LEAST);
    let start = captured.share(|stack| stack.has("main"), |stack| stack.has("_start"));
    assert!(start >= LEAST, "{start} reach _start\n{}", captured.folded());
}

#[test]
fn every_caller_is_found_in_cpp_without_frame_pointers() {
    let Some(_kernel) = require_bpf() else { return };
    let names = Names {
        part: |part| format!("work::{}::burn(unsigned long)", part.replace('h', "H")),
        caller: |number| format!("unsigned long work::chain<{number}>(work::Hot&, unsigned long)"),
        main: "main",
    };
    let workload = without_frame_pointers(Workload::cpp("split").called("split-cpp-nofp"));
    check_split(&workload, 4, &names, LEAST);
}

#[test]
fn every_caller_is_found_in_rust_without_frame_pointers() {
    let Some(_kernel) = require_bpf() else { return };
    let names = Names {
        part: |part| format!("split_rs_nofp::{part}"),
        caller: |number| format!("split_rs_nofp::c{number:02}"),
        main: "split_rs_nofp::main",
    };
    let workload = Workload::rust("split").called("split-rs-nofp").flag("-Cforce-frame-pointers=no");
    check_split(&workload, 4, &names, LEAST);
}

#[test]
fn stacks_through_libc_reach_the_programs_start() {
    let Some(_kernel) = require_bpf() else { return };
    let target = Target::start(&Workload::c("burn").build(), &["30", "libc"]);
    let captured = Record::new().rate(999).seconds(2).pid(target.pid()).run();
    let in_libc = |stack: &Stack| !stack.has("burn_hot");
    assert!(captured.count(in_libc) > enough(100), "{}", captured.folded());
    check_complete(&captured, LEAST);
    let whole = captured.share(|_| true, |stack| stack.has("main") && stack.has("_start"));
    assert!(whole >= LEAST, "{whole}\n{}", captured.folded());
    let silent = captured.count(|stack| !stack.has("main") && stack.marker().is_none() && !stack.frames.is_empty());
    assert!(float(silent) <= 0.001 * float(captured.total()), "cut without saying so:\n{}", captured.folded());
}

#[test]
fn python_as_it_is_shipped_is_unwound_to_its_start() {
    let Some(_kernel) = require_bpf() else { return };
    let Some(python) = find_program("python3") else { return };
    let program = "import json, time\nend = time.monotonic() + 30\nwhile time.monotonic() < end:\n    \
                   json.loads(json.dumps([{'a': i, 'b': str(i) * 3} for i in range(2000)]))\n";
    let target = Target::start_unready(Command::new(python).args(["-c", program]));
    std::thread::sleep(std::time::Duration::from_millis(500));
    let captured = Record::new().rate(999).seconds(3).pid(target.pid()).run();
    assert!(captured.total() > enough(300), "{}", captured.folded());
    check_complete(&captured, LEAST);
}
