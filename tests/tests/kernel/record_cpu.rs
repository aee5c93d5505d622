//! On-CPU samples: shares, stacks, accounting, formats.

use profiler_tests::{Captured, Record, Stack, Target, Workload, enough, float, require_bpf};
use serde_json::Value;

use crate::servers;

/// The three functions of the `split` workloads.
const PARTS: [&str; 3] = ["hot50", "hot30", "hot20"];

/// Deviation of a share that is allowed: 2 points.
const TOLERANCE: f64 = 0.02;

/// How a workload's functions are called in its profile.
pub(crate) struct Names {
    /// One of [`PARTS`].
    pub(crate) part: fn(&str) -> String,
    /// A caller, 1 to 20.
    pub(crate) caller: fn(u32) -> String,
    pub(crate) main: &'static str,
}

/// Runs a `split` workload from its first instruction to its end and checks shares and stacks.
///
/// `least`: share of the program's own samples that have all callers.
pub(crate) fn check_split(workload: &Workload, seconds: u32, names: &Names, least: f64) -> Captured {
    let captured = Record::new().rate(999).program(&workload.build(), &[&seconds.to_string()]).run();
    let truth = captured.truth();
    let spent_ns = |part: &str| truth[part].as_f64().expect("a time");
    let all_ns: f64 = PARTS.into_iter().map(spent_ns).sum();
    let parts = PARTS.map(names.part);
    let in_program = |stack: &Stack| parts.iter().any(|part| stack.has(part));
    for (part, name) in PARTS.iter().zip(&parts) {
        let expected = spent_ns(part) / all_ns;
        let found = captured.share(in_program, |stack| stack.has(name));
        println!("{part}: {:.2} % of the samples, {:.2} % of the CPU time", found * 100.0, expected * 100.0);
        assert!((found - expected).abs() < TOLERANCE, "{part}: {found} for {expected}\n{}", captured.folded());
    }
    let own_leaf = |stack: &Stack| parts.iter().any(|part| stack.user_function() == part);
    let reaching_main = captured.share(own_leaf, |stack| stack.has(names.main));
    let mut chain: Vec<_> = (1..=20).map(names.caller).collect();
    chain.insert(0, names.main.to_owned());
    let whole_chains = captured.share(own_leaf, |stack| stack.has_chain(&chain));
    println!("{:.2} % reach main, {:.2} % through all callers", reaching_main * 100.0, whole_chains * 100.0);
    assert!(reaching_main >= least, "{reaching_main} reach main\n{}", captured.folded());
    assert!(whole_chains >= least, "{whole_chains} have all callers\n{}", captured.folded());
    // The samples as a whole are the CPU time, times the rate: nothing lost, nothing doubled.
    check_count(&captured, captured.count(in_program), all_ns, 999.0);
    captured
}

/// Checks that a number of samples is what so much CPU time makes at that rate, but for events not delivered.
fn check_count(captured: &Captured, samples: u64, cpu_ns: f64, rate_hz: f64) {
    let expected = cpu_ns / 1e9 * rate_hz;
    let ratio = float(samples) / expected;
    println!("{samples} samples, {expected:.0} expected; not delivered: {:.3} %", captured.not_delivered() * 100.0);
    let undelivered = captured.not_delivered();
    // Rounding makes it negative by one a CPU at most.
    assert!(undelivered > -0.01, "more hits than expected: {:#?}", captured.accounting);
    assert!(
        ratio < 1.03 && ratio + undelivered.max(0.0) > 0.97,
        "{samples} samples for {expected}: {:#?}",
        captured.accounting
    );
}

#[test]
fn shares_and_stacks_of_a_c_program_are_right_and_pprof_agrees() {
    let Some(_kernel) = require_bpf() else { return };
    let names = Names { part: |part| part.to_owned(), caller: |number| format!("c{number:02}"), main: "main" };
    let captured = check_split(&Workload::c("split"), 20, &names, 0.98);
    let total = captured.total();

    let Some(top) = captured.go_pprof(&["-top", "-sample_index=samples", "-nodefraction=0"]) else { return };
    assert_eq!(pprof_total(&top), total, "{top}");
    let hot50 = top.lines().find(|line| line.ends_with(" hot50")).expect("hot50 is listed");
    let flat: u64 = hot50.split_whitespace().next().and_then(|text| text.parse().ok()).expect("a count");
    assert_eq!(flat, captured.count(|stack| stack.leaf() == "hot50"), "{top}");

    let raw = captured.go_pprof(&["-raw"]).expect("Go is there");
    assert!(raw.contains("samples/count") && raw.contains("cpu/nanoseconds"), "{raw}");
    assert!(raw.contains("process:[split]") && raw.contains("thread:[split]"), "{raw}");
    assert!(raw.lines().any(|line| line.contains("/split ")), "no mapping of the program: {raw}");
}

/// The total of `go tool pprof -top`: `Showing nodes accounting for 4, 100% of 4 total`.
fn pprof_total(top: &str) -> u64 {
    let line = top.lines().find(|line| line.starts_with("Showing nodes accounting for")).expect("a total");
    let total = line.rsplit_once(" of ").and_then(|(_, rest)| rest.strip_suffix(" total")).expect("a total");
    total.parse().expect("a number")
}

#[test]
fn shares_and_stacks_of_a_cpp_program_are_right() {
    let Some(_kernel) = require_bpf() else { return };
    let names = Names {
        part: |part| format!("work::{}::burn(unsigned long)", part.replace('h', "H")),
        caller: |number| format!("unsigned long work::chain<{number}>(work::Hot&, unsigned long)"),
        main: "main",
    };
    check_split(&Workload::cpp("split").called("split-cpp"), 6, &names, 0.98);
}

#[test]
fn shares_and_stacks_of_a_rust_program_are_right() {
    let Some(_kernel) = require_bpf() else { return };
    let names = Names {
        part: |part| format!("split_rs::{part}"),
        caller: |number| format!("split_rs::c{number:02}"),
        main: "split_rs::main",
    };
    check_split(&Workload::rust("split").called("split-rs"), 6, &names, 0.98);
}

/// Time that the hypervisor ran others on this machine's CPUs, in seconds.
fn stolen_s() -> f64 {
    let stat = std::fs::read_to_string("/proc/stat").expect("read /proc/stat");
    // cpu user nice system idle iowait irq softirq steal: in ticks of 10 ms (proc(5); USER_HZ is 100 everywhere).
    let field = stat.split_whitespace().nth(8).and_then(|text| text.parse::<u64>().ok());
    float(field.expect("a figure")) / 100.0
}

#[test]
fn nearly_every_event_is_delivered() {
    let Some(_kernel) = require_bpf() else { return };
    let target = Target::start(&Workload::c("burn").build(), &["30"]);
    // Another process's load on a small virtual machine comes in bursts: what holds must hold once in three times.
    let mut tries = Vec::new();
    for _ in 0..3 {
        let before_s = stolen_s();
        let captured = Record::new().rate(999).seconds(2).pid(target.pid()).run();
        // No timer can fire while the virtual machine does not run.
        let stolen = (stolen_s() - before_s) * 999.0 / captured.accounting.expected;
        tries.push(format!("{:.3} %, {:.3} % stolen", captured.not_delivered() * 100.0, stolen * 100.0));
        if (-0.005..=0.005 + stolen).contains(&captured.not_delivered()) {
            println!("not delivered: {tries:?}");
            return;
        }
    }
    panic!("not delivered: {tries:?}");
}

#[test]
fn nothing_is_lost_or_counted_twice_between_windows() {
    let Some(_kernel) = require_bpf() else { return };
    let captured = Record::new().rate(4999).program(&Workload::c("split").build(), &["5"]).run();
    let truth = captured.truth();
    let spent_ns = PARTS.iter().map(|part| truth[part].as_f64().expect("a time")).sum();
    assert!(captured.report["duration_ns"].as_u64() > Some(4_000_000_000), "several windows");
    check_count(&captured, captured.count(|stack| stack.process == "split"), spent_ns, 4999.0);
    assert!(captured.accounting.lost.is_empty(), "{:#?}", captured.accounting);
    // The second column is the same samples in CPU time.
    let [samples, cpu_ns, ..] = captured.profile.totals();
    let period_ns = float(cpu_ns) / float(samples);
    assert!((period_ns * 4999.0 / 1e9 - 1.0).abs() < 0.02, "{period_ns} ns a sample");
}

#[test]
fn work_in_short_bursts_is_sampled_as_any_other() {
    let Some(_kernel) = require_bpf() else { return };
    let captured = Record::new().rate(999).program(&Workload::c("bursts").build(), &["60", "40", "5"]).run();
    let expected = captured.truth()["bursts_ns"].as_f64().expect("ns") / 1e9 * 999.0;
    let found = float(captured.count(|stack| stack.has("main")));
    println!("{found} samples, {expected:.0} expected");
    assert!((found / expected - 1.0).abs() < 0.12, "{found} for {expected}: {:#?}", captured.accounting);
}

#[test]
fn system_calls_show_their_kernel_stack_on_top_of_their_callers() {
    let Some(_kernel) = require_bpf() else { return };
    let captured = Record::new().rate(999).program(&Workload::c("syscalls").build(), &["3"]).run();
    let truth = captured.truth();
    let (user_ns, kernel_ns) = (truth["user_ns"].as_f64().expect("ns"), truth["kernel_ns"].as_f64().expect("ns"));
    let of_program = |stack: &Stack| stack.process == "syscalls";
    let in_kernel = |stack: &Stack| stack.leaf().ends_with("_[k]");
    let found = captured.share(of_program, in_kernel);
    let expected = kernel_ns / (user_ns + kernel_ns);
    println!("{:.1} % in the kernel, {:.1} % by rusage", found * 100.0, expected * 100.0);
    assert!((found - expected).abs() < 0.05, "{found} for {expected}\n{}", captured.folded());
    let chain = ["main", "many_reads", "read_zeros"];
    let whole = captured.share(|stack| of_program(stack) && in_kernel(stack), |stack| stack.has_chain(&chain));
    assert!(whole >= 0.97, "{whole}\n{}", captured.folded());
    // Every kernel frame is above every user frame.
    for stack in &captured.stacks {
        let first = stack.frames.iter().position(|frame| frame.ends_with("_[k]")).unwrap_or(stack.frames.len());
        assert!(stack.frames[first..].iter().all(|frame| frame.ends_with("_[k]")), "{stack:?}");
    }
}

#[test]
fn threads_have_the_samples_of_their_own_time() {
    let Some(_kernel) = require_bpf() else { return };
    let captured = Record::new().rate(999).program(&Workload::c("threads").build(), &["2", "0.3", "5"]).run();
    let Value::Object(truth) = captured.truth() else { panic!("no account") };
    let found = captured.by_thread();
    println!("{found:?}");
    for (name, spent_ns) in &truth {
        let expected = spent_ns.as_f64().expect("ns") / 1e9 * 999.0;
        let samples = float(found.get(name.as_str()).copied().unwrap_or(0));
        // Samples of a thread that were taken before it named itself have its parent's name; and threads that share a
        // CPU are switched by the kernel's own tick, which a timer of nearly its rate samples unevenly.
        assert!((samples - expected).abs() < expected * 0.10 + 8.0, "{name}: {samples} for {expected}: {found:?}");
    }
    let threads = captured.report["threads"].as_array().expect("threads");
    for name in truth.keys() {
        assert!(threads.iter().any(|thread| thread["thread"] == **name), "{name} is not in the report");
    }
    let Some(tags) = captured.go_pprof(&["-tags", "-sample_index=samples"]) else { return };
    assert!(truth.keys().all(|name| tags.contains(name)), "{tags}");
}

#[test]
fn a_real_server_under_load_is_profiled() {
    let Some(_kernel) = require_bpf() else { return };
    let Some(redis) = servers::redis() else { return };
    let server = &redis.target;
    let captured = Record::new().rate(999).seconds(3).pid(server.pid()).run();
    assert!(captured.total() > enough(300), "{}", captured.folded());
    assert!(captured.by_pid().keys().all(|&pid| pid == server.pid()));
    assert!(captured.stacks.iter().all(|stack| stack.process == "redis-server"));
    // Stripped, and without frame pointers: unwound by table to the start of the process.
    let whole = float(captured.accounting.user.complete) / float(captured.accounting.user.total());
    println!("{:.2} % of the user stacks are whole", whole * 100.0);
    assert!(whole >= 0.99, "{:#?}", captured.accounting);
    // It reads and writes sockets: the kernel is on most stacks, and all of it has names.
    assert!(captured.count(|stack| stack.leaf().ends_with("_[k]")) > enough(100), "{}", captured.folded());
    let nameless = |frame: &String| frame.contains("+0x") && frame.ends_with("_[k]");
    assert_eq!(captured.count(|stack| stack.frames.iter().any(nameless)), 0, "{}", captured.folded());
    let objects = captured.report["objects"].as_array().expect("objects");
    let own = objects.iter().find(|object| object["path"].as_str().is_some_and(|path| path.contains("redis")));
    let own = own.unwrap_or_else(|| panic!("no object of redis: {objects:#?}"));
    println!("{} samples, {} of redis' own frames named", captured.total(), own["named_share"]);
    assert!(own["build_id"].as_str().is_some_and(|id| id.len() >= 16), "{own}");
}
