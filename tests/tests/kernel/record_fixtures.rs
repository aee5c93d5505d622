//! User stacks whose frames are hard to unwind: each must have the right callers, in the right order, up to main.

use std::fs;
use std::process::Command;

use profiler_tests::{
    Captured, Record, Stack, Target, Workload, find_program, float, is_emulated, require_bpf, scratch,
};

use crate::record_unwinding::{LEAST, check_complete, without_frame_pointers};

/// Records a program without frame pointers while it runs, long enough for some hundred samples.
fn record(workload: Workload, arguments: &[&str]) -> Captured {
    let arguments: Vec<_> = ["30"].iter().chain(arguments).copied().collect();
    let target = Target::start(&without_frame_pointers(workload).build(), &arguments);
    Record::new().rate(999).args(["-d", "1"]).pid(target.pid()).run()
}

/// Whether frames, root first, are the beginning of a chain, and after that nothing of it.
fn begins(frames: &[&str], chain: &[&str]) -> bool {
    let same = frames.iter().zip(chain).take_while(|(frame, name)| frame == name).count();
    !frames[same..].iter().any(|frame| chain.contains(frame))
}

/// The frames above main, root first, of a stack that has all below it as well.
fn above_main(stack: &Stack) -> Option<Vec<&str>> {
    let frames = stack.user_frames();
    let main = frames.iter().position(|&frame| frame == "main")?;
    (stack.marker().is_none() && frames[0] == "_start").then(|| frames[main + 1..].to_vec())
}

/// Checks that user stacks go from the program's start through main and `chain`, as far as they go, and are whole.
fn check_callers(captured: &Captured, chain: &[&str]) {
    check_complete(captured, LEAST);
    let right = |stack: &Stack| above_main(stack).is_some_and(|frames| begins(&frames, chain));
    let share = captured.share(|stack| !stack.user_frames().is_empty(), right);
    let all = captured.share(|_| true, |stack| above_main(stack).is_some_and(|frames| frames.starts_with(chain)));
    println!("{:.2} % have the right callers, {:.2} % all of them", share * 100.0, all * 100.0);
    assert!(share >= LEAST, "{share}\n{}", captured.folded());
    assert!(all > 0.3, "{all}\n{}", captured.folded());
}

/// Checks that a program has frames whose address is an expression, as the test is about them.
fn check_has_expressions(workload: Workload) {
    let Some(readelf) = find_program("readelf") else { return };
    let program = without_frame_pointers(workload).build();
    let output = Command::new(readelf).arg("--debug-dump=frames").arg(program).output().expect("start readelf");
    // That of the PLT has the stack pointer, breg7.
    let found = String::from_utf8_lossy(&output.stdout).contains("DW_CFA_def_cfa_expression (DW_OP_breg6 (rbp)");
    assert!(found, "the compiler made no such frame: another one is needed here");
}

#[test]
fn callers_that_realign_their_stack_are_found() {
    let Some(_kernel) = require_bpf() else { return };
    let realigned = Workload::c("frames").called("realigned");
    check_has_expressions(realigned.clone());
    let chain = ["realigned", "with_locals", "with_variable", "with_arguments", "hot"];
    check_callers(&record(realigned.clone(), &["realigned"]), &chain);
    let every = realigned.flag("-mstackrealign").flag("-mincoming-stack-boundary=3");
    check_callers(&record(every, &["realigned"]), &chain);
}

#[test]
fn a_caller_that_ends_with_a_call_that_does_not_return_is_found() {
    let Some(_kernel) = require_bpf() else { return };
    let padded = Workload::c("frames").called("noreturn").flag("-fno-toplevel-reorder");
    let adjoining = padded.clone().flag("-fno-align-functions");
    let truth = Target::start(&without_frame_pointers(adjoining.clone()).build(), &["0.01", "noreturn"]).truth();
    // What tells it is not in a virtual machine.
    assert!(is_emulated() || truth["gap_bytes"] == 0, "the return address is not the next function's: {truth}");
    let chain = ["noreturn", "ends_with_call", "never_returns", "hot"];
    check_callers(&record(padded, &["noreturn"]), &chain);
    check_callers(&record(adjoining, &["noreturn"]), &chain);
}

/// What a signal handler interrupted: the frames above main, root first, up to the one that the kernel made.
fn interrupted(stack: &Stack) -> Option<Vec<&str>> {
    let mut frames = above_main(stack)?;
    let handler = frames.iter().position(|&frame| frame == "on_signal")?;
    let right = frames[handler + 1..].iter().all(|&frame| frame == "handler_hot");
    // One frame between the two: the code that the handler returns to.
    frames.truncate(handler.checked_sub(1)?);
    right.then_some(frames)
}

/// Checks that stacks of a signal handler go through the frame that the kernel makes to what was interrupted.
///
/// `chain`: the functions that are interrupted.
fn check_handler(captured: &Captured, chain: &[&str]) {
    check_complete(captured, LEAST);
    let in_handler = |stack: &Stack| stack.has("on_signal") || stack.has("handler_hot");
    let handled = captured.share(|_| true, in_handler);
    let right = captured.share(in_handler, |stack| interrupted(stack).is_some_and(|frames| begins(&frames, chain)));
    let all = captured.share(in_handler, |stack| interrupted(stack).is_some_and(|frames| frames.starts_with(chain)));
    let [handled_percent, right_percent, all_percent] = [handled, right, all].map(|share| share * 100.0);
    println!("{handled_percent:.1} % in the handler; {right_percent:.2} % right, {all_percent:.1} % all callers");
    assert!(handled > 0.05 && right >= LEAST && all > 0.3, "{handled}, {right}, {all}\n{}", captured.folded());
    let wrong = captured.count(|stack| {
        let right = above_main(stack).is_some_and(|frames| begins(&frames, chain));
        !in_handler(stack) && !stack.user_frames().is_empty() && !right
    });
    assert!(float(wrong) <= (1.0 - LEAST) * float(captured.total()), "{wrong} elsewhere\n{}", captured.folded());
}

#[test]
fn a_signal_handler_is_on_top_of_what_it_interrupted() {
    let Some(_kernel) = require_bpf() else { return };
    check_handler(&record(Workload::c("frames").called("raised"), &["raise"]), &["raises"]);
    let chain = ["interrupted", "interrupted_leaf", "hot"];
    check_handler(&record(Workload::c("frames").called("timer"), &["timer"]), &chain);
}

#[test]
fn a_signal_handler_on_a_stack_of_its_own_is_on_top_of_what_it_interrupted() {
    let Some(_kernel) = require_bpf() else { return };
    let chain = ["interrupted", "interrupted_leaf", "hot"];
    check_handler(&record(Workload::c("frames").called("alternate"), &["alternate"]), &chain);
}

#[test]
fn every_instruction_of_callers_that_realign_their_stack_is_unwound() {
    let Some(_kernel) = require_bpf() else { return };
    let realigned = Workload::c("frames").called("restless");
    let chain = ["realigned", "with_locals", "with_variable", "with_arguments", "hot"];
    for workload in [realigned.clone(), realigned.flag("-mstackrealign").flag("-mincoming-stack-boundary=3")] {
        let target = Target::start(&without_frame_pointers(workload).build(), &["60", "restless"]);
        let captured = Record::new().rate(4999).seconds(3).pid(target.pid()).run();
        // What the handler adds is none of the chain.
        let right = |stack: &Stack| above_main(stack).is_some_and(|frames| begins(&frames, &chain));
        let share = captured.share(|stack| !stack.user_frames().is_empty(), right);
        println!("{:.3} % have the right callers: {:?}", share * 100.0, captured.accounting.user);
        assert!(share >= 0.999, "{share}\n{}", captured.folded());
    }
}

#[test]
fn samples_in_system_calls_have_all_callers_without_frame_pointers() {
    let Some(_kernel) = require_bpf() else { return };
    for (arguments, caller) in [(&[][..], "read_zeros"), (&["libc"], "read_by_libc")] {
        let captured = record(Workload::c("syscalls").called("syscalls-nofp"), arguments);
        check_callers(&captured, &["many_reads", caller]);
        let in_kernel = |stack: &Stack| stack.leaf().ends_with("_[k]");
        let kernel = captured.share(|_| true, in_kernel);
        let right = |stack: &Stack| above_main(stack).is_some_and(|frames| begins(&frames, &["many_reads", caller]));
        let whole = captured.share(in_kernel, right);
        println!("{:.1} % in the kernel, of these {:.2} % have all callers", kernel * 100.0, whole * 100.0);
        assert!(kernel > 0.2 && whole >= LEAST, "{kernel}, {whole}\n{}", captured.folded());
    }
}

/// The most user frames of a stack.
const MAX_FRAMES: usize = profiler_common::event::MAX_USER_FRAMES;

#[test]
fn recursion_is_whole_with_every_level_up_to_the_limit() {
    let Some(_kernel) = require_bpf() else { return };
    for levels in [200, 400] {
        let captured = record(Workload::c("frames").called("deep"), &["deep", &levels.to_string()]);
        let mut chain = vec!["recurse"; levels];
        chain.insert(0, "deep");
        chain.push("hot");
        check_callers(&captured, &chain);
    }
}

#[test]
fn recursion_beyond_the_limit_is_cut_there_and_says_so() {
    let Some(_kernel) = require_bpf() else { return };
    let captured = record(Workload::c("frames").called("deep"), &["deep", "1000"]);
    let mut cut = vec!["recurse"; MAX_FRAMES - 1];
    cut.push("hot");
    let in_hot = |stack: &Stack| stack.user_leaf() == "hot";
    let right = |stack: &Stack| stack.marker() == Some("[truncated: depth_limit]") && stack.user_frames() == cut;
    let share = captured.share(in_hot, right);
    println!("{:.2} % are cut after {MAX_FRAMES} frames: {:?}", share * 100.0, captured.accounting.user);
    assert!(share >= LEAST && captured.count(in_hot) > 100, "{share}: {:#?}", captured.accounting);
    let user = &captured.accounting.user;
    let limited = user.truncated.get("depth_limit").copied().unwrap_or(0);
    assert_eq!(limited, captured.count(|stack| stack.marker() == Some("[truncated: depth_limit]")));
    // Any other is one that was not so deep at that moment.
    assert!(limited + user.complete + user.total() / 100 >= user.total(), "{user:#?}");
}

#[test]
fn a_program_whose_file_is_deleted_is_unwound_and_named() {
    let Some(_kernel) = require_bpf() else { return };
    let directory = scratch();
    let copy = directory.path().join("burn-deleted");
    fs::copy(without_frame_pointers(Workload::c("burn").called("burn-nofp")).build(), &copy).expect("copy a program");
    let target = Target::start(&copy, &["30", "delete"]);
    assert!(!copy.exists(), "the program has not deleted itself");
    let captured = Record::new().rate(999).args(["-d", "1"]).pid(target.pid()).run();
    check_callers(&captured, &["burn_caller", "burn_hot"]);
}

#[test]
fn a_program_that_only_its_own_mount_and_pid_namespace_has_is_unwound_and_named() {
    let Some(_kernel) = require_bpf() else { return };
    let Some(unshare) = find_program("unshare") else { return };
    let directory = scratch();
    let script = "mount -t tmpfs none \"$1\" && cp \"$0\" \"$1/hidden\" && exec \"$1/hidden\" 30";
    let mut command = Command::new(unshare);
    command.args(["--pid", "--mount", "--fork", "--kill-child", "sh", "-c", script]);
    command.arg(without_frame_pointers(Workload::c("burn").called("burn-nofp")).build()).arg(directory.path());
    let target = Target::start_command(&mut command);
    assert!(!directory.path().join("hidden").exists(), "the program is in this mount namespace");
    // The program is the child of unshare.
    let children = format!("/proc/{0}/task/{0}/children", target.pid());
    let pid: u32 = fs::read_to_string(children).expect("its children").trim().parse().expect("one child");
    let captured = Record::new().rate(999).args(["-d", "1"]).pid(pid).run();
    check_callers(&captured, &["burn_caller", "burn_hot"]);
}

#[test]
fn a_profiler_in_a_pid_namespace_of_its_own_finds_all_callers() {
    let Some(_kernel) = require_bpf() else { return };
    let Some(unshare) = find_program("unshare") else { return };
    let mut command = Command::new(unshare);
    command.args(["--pid", "--fork", "--kill-child", "--mount-proc"]);
    let burn = without_frame_pointers(Workload::c("burn").called("burn-nofp")).build();
    let captured = Record::under(command).rate(999).program(&burn, &["1"]).run();
    assert!(captured.total() > 300, "{}", captured.folded());
    check_callers(&captured, &["burn_caller", "burn_hot"]);
}
