//! What recording time off the CPU costs a switch, beside other tools: `cargo xtask bench offcpu`.
//!
//! Input: the release binary and two threads that wake each other on one CPU as fast as they can, which count their switches
//! and their CPU time. Everybody gets them in turns: nobody, `profiler record -e offcpu`, `perf record -e
//! sched:sched_switch -g`, and bcc's libbpf `offcputime` where it is installed. The medians are printed: CPU time a
//! switch, what was added, and for ours what the kernel's statistics of BPF programs say. Never asserts a time: exits 1
//! when ours is not five times as cheap as any other that was there, 2 when it could not measure.
//!
//! Arguments: `--seconds N` (2) and `--repeats N` (5).

#![expect(clippy::print_stdout, reason = "a benchmark prints what it found")]

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use profiler_tests::{Workload, find_program, profiler, require_bpf, run_bench, scratch};
use serde_json::Value;

/// How many times cheaper ours is to be.
const LEAST_RATIO: f64 = 5.0;

/// How long a tool of others takes to attach.
const ATTACHING: Duration = Duration::from_millis(1500);

fn main() -> ExitCode {
    let options = [("seconds", 2, 1..=60), ("repeats", 5, 1..=50)];
    run_bench(options, |[seconds, repeats]| bench(seconds, repeats as usize))
}

/// Who looks at the switches.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Tool {
    Nobody,
    Ours,
    Perf(PathBuf),
    OffCpuTime(PathBuf),
}

impl Tool {
    const fn name(&self) -> &'static str {
        match self {
            Self::Nobody => "nobody",
            Self::Ours => "profiler record -e offcpu",
            Self::Perf(_) => "perf record -e sched:sched_switch -g",
            Self::OffCpuTime(_) => "bcc's libbpf offcputime",
        }
    }
}

/// One run of the workload.
#[derive(Clone, Copy, Debug)]
struct Run {
    /// CPU time of both threads a switch, ns.
    cpu_ns: f64,
    /// Switches a second.
    rate: f64,
    /// Time in our BPF programs a switch, ns; both programs run once in each.
    bpf_ns: f64,
}

fn bench(seconds: u32, repeats: usize) -> anyhow::Result<bool> {
    let Some(_kernel) = require_bpf() else { return Ok(true) };
    let workload = Workload::c("waits").build();
    let mut tools = vec![Tool::Nobody, Tool::Ours];
    tools.extend(find_program("perf").map(Tool::Perf));
    tools.extend(find_program("offcputime").map(Tool::OffCpuTime));
    let mut runs: Vec<Vec<Run>> = vec![Vec::new(); tools.len()];
    for _ in 0..repeats {
        for (tool, runs) in tools.iter().zip(&mut runs) {
            runs.push(run(tool, &workload, seconds)?);
        }
    }
    let median = |runs: &[Run], field: &dyn Fn(&Run) -> f64| {
        let mut values: Vec<f64> = runs.iter().map(field).collect();
        values.sort_by(f64::total_cmp);
        values[values.len() / 2]
    };
    let base = median(&runs[0], &|run| run.cpu_ns);
    let ours = median(&runs[1], &|run| run.cpu_ns) - base;
    println!("\n{:<38} {:>12} {:>12} {:>10} {:>8}", "", "switches/s", "CPU ns each", "added ns", "ratio");
    let mut is_cheap = true;
    for (tool, runs) in tools.iter().zip(&runs) {
        let (cpu, rate) = (median(runs, &|run| run.cpu_ns), median(runs, &|run| run.rate));
        let added = cpu - base;
        let is_other = !matches!(tool, Tool::Nobody | Tool::Ours);
        let ratio = if is_other { format!("{:.1}", added / ours) } else { String::new() };
        println!("{:<38} {rate:>12.0} {cpu:>12.0} {added:>10.0} {ratio:>8}", tool.name());
        is_cheap &= !is_other || added >= LEAST_RATIO * ours;
    }
    let bpf = median(&runs[1], &|run| run.bpf_ns);
    println!(
        "\nOf ours, {bpf:.0} ns a switch are in the BPF programs by the kernel's statistics, which are on for that and \
         cost something themselves. Ratio: what the other adds by what ours adds."
    );
    println!("{}", if is_cheap { "ours is at least five times as cheap" } else { "NOT five times as cheap" });
    Ok(is_cheap)
}

/// Runs the workload once beside a tool.
fn run(tool: &Tool, workload: &Path, seconds: u32) -> anyhow::Result<Run> {
    let directory = scratch();
    let output = directory.path().join("capture");
    let seconds = seconds.to_string();
    let arguments = [workload.to_str().context("the path is UTF-8")?, "switch", &seconds];
    let mut beside = None;
    let mut command = match tool {
        Tool::Nobody => Command::new(workload),
        Tool::Ours => {
            let mut command = Command::new(profiler());
            command.args(["record", "-e", "offcpu", "-o"]).arg(&output).arg("--").arg(workload);
            command
        }
        Tool::Perf(perf) => {
            let mut command = Command::new(perf);
            command
                .args(["record", "-q", "-g", "-e", "sched:sched_switch", "-o"])
                .arg(directory.path().join("perf.data"));
            command.arg("--").arg(workload);
            command
        }
        Tool::OffCpuTime(offcputime) => {
            beside =
                Some(Ended(Command::new(offcputime).arg("600").stdout(Stdio::null()).stderr(Stdio::null()).spawn()?));
            std::thread::sleep(ATTACHING);
            Command::new(workload)
        }
    };
    let result = command.args(&arguments[1..]).stderr(Stdio::null()).output().context("start the workload")?;
    drop(beside);
    ensure!(result.status.success(), "{} failed: {}", tool.name(), result.status);
    let text = String::from_utf8_lossy(&result.stdout);
    let account = text.lines().rfind(|line| line.starts_with('{')).context("the workload's account")?;
    let account: Value = serde_json::from_str(account)?;
    let figure = |value: &Value, pointer: &str| value.pointer(pointer).and_then(Value::as_f64).context("a figure");
    let switches = figure(&account, "/switches")?;
    let bpf_ns = if *tool == Tool::Ours {
        let report: Value = serde_json::from_reader(File::open(output.join("report.json"))?)?;
        figure(&report, "/overhead/bpf_ns")? / figure(&report, "/overhead/bpf_runs")? * 2.0
    } else {
        0.0
    };
    Ok(Run {
        cpu_ns: figure(&account, "/cpu_ns")? / switches,
        rate: switches / figure(&account, "/wall_ns")? * 1e9,
        bpf_ns,
    })
}

/// A tool that runs; killed when it is dropped.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
