//! What recording sockets costs a message: `cargo xtask bench net`.
//!
//! Input: the release binary and a thread that sends 64 bytes to and fro over loopback as fast as it can, and counts its
//! messages and its CPU time; then one that makes the shortest of system calls. Each runs in turns with nobody recording, with
//! `profiler record -e net` of another process, and with one of itself. The medians are printed: CPU time a message or a
//! call, what was added, and what the kernel's statistics of BPF programs say. Never asserts a time: exits 2 when it could not
//! measure.
//!
//! Arguments: `--seconds N` (2) and `--repeats N` (5).

#![expect(clippy::print_stdout, reason = "a benchmark prints what it found")]

use std::fs::File;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context as _, ensure};
use profiler_tests::{Record, Target, Workload, profiler, require_bpf, run_bench, scratch};
use serde_json::Value;

/// What is measured: its name, the workload and its first arguments, and the field that counts.
const LOADS: [(&str, &str, &[&str], &str); 4] = [
    ("a message by TCP", "sockets", &["exchange", "tcp"], "/messages"),
    ("a message by UDP", "sockets", &["exchange", "udp"], "/messages"),
    ("a message by a Unix socket", "sockets", &["exchange", "unix"], "/messages"),
    ("a system call, getppid", "calls", &["many"], "/calls"),
];

/// Programs that a recording of sockets attaches, at least: those that follow processes, and five of sockets.
const LINKS: usize = 7;

/// Who is recorded meanwhile.
const TOOLS: [&str; 3] = ["nobody recorded", "another process", "this process"];

fn main() -> ExitCode {
    let options = [("seconds", 2, 1..=60), ("repeats", 5, 1..=50)];
    run_bench(options, |[seconds, repeats]| bench(seconds, repeats as usize))
}

fn bench(seconds: u32, repeats: usize) -> anyhow::Result<bool> {
    let Some(_kernel) = require_bpf() else { return Ok(true) };
    println!("{:<28} {:<18} {:>12} {:>10} {:>10}", "", "", "CPU ns each", "added ns", "BPF ns");
    for (name, workload, arguments, counter) in LOADS {
        let workload = Workload::c(workload).build();
        let mut runs = [const { Vec::new() }; TOOLS.len()];
        for _ in 0..repeats {
            for (tool, runs) in runs.iter_mut().enumerate() {
                runs.push(run(tool, &workload, arguments, counter, seconds)?);
            }
        }
        let median = |runs: &[(f64, f64)], field: &dyn Fn(&(f64, f64)) -> f64| {
            let mut values: Vec<f64> = runs.iter().map(field).collect();
            values.sort_by(f64::total_cmp);
            values[values.len() / 2]
        };
        let base = median(&runs[0], &|run| run.0);
        for (tool, runs) in TOOLS.iter().zip(&runs) {
            let (cpu, bpf) = (median(runs, &|run| run.0), median(runs, &|run| run.1));
            println!("{name:<28} {tool:<18} {cpu:>12.0} {:>10.0} {bpf:>10.0}", cpu - base);
        }
    }
    println!("\nBPF ns: by the kernel's statistics, which are on for that and cost something themselves.");
    Ok(true)
}

/// CPU time and time in our programs of one message or call, ns.
fn run(tool: usize, workload: &Path, arguments: &[&str], counter: &str, seconds: u32) -> anyhow::Result<(f64, f64)> {
    let (directory, seconds) = (scratch(), seconds.to_string());
    let output = directory.path().join("capture");
    let mut command = match tool {
        2 => {
            let mut command = Command::new(profiler());
            command.args(["record", "-e", "net", "-o"]).arg(&output).arg("--").arg(workload);
            command
        }
        _ => Command::new(workload),
    };
    let other = (tool == 1).then(|| {
        let sleeper = Target::start_unready(Command::new("sleep").arg("600"));
        let mut recording = Record::new().args(["-e", "net"]).pid(sleeper.pid()).start();
        recording.wait_for_links(LINKS);
        (sleeper, recording)
    });
    let result = command.args(arguments).arg(&seconds).stderr(Stdio::null()).output().context("start the workload")?;
    drop(other);
    ensure!(result.status.success(), "{} failed: {}", TOOLS[tool], result.status);
    let text = String::from_utf8_lossy(&result.stdout);
    let account = text.lines().rfind(|line| line.starts_with('{')).context("the workload's account")?;
    let account: Value = serde_json::from_str(account)?;
    let figure = |value: &Value, pointer: &str| value.pointer(pointer).and_then(Value::as_f64).context("a figure");
    let count = figure(&account, counter)?;
    let bpf_ns = if tool == 2 {
        let report: Value = serde_json::from_reader(File::open(output.join("report.json"))?)?;
        figure(&report, "/overhead/bpf_ns")? / count
    } else {
        0.0
    };
    Ok((figure(&account, "/cpu_ns")? / count, bpf_ns))
}
