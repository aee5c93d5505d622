//! What recording files costs a call: `cargo xtask bench fileio`.
//!
//! Input: the release binary and a program that reads 16 bytes of a cached file, writes them, and asks for its parent, which
//! is for no file, and says what CPU time each takes. It is run by itself, as the target of `profiler record -e fileio`, and
//! beside a recording of another process. The medians are printed, with what was added, and the time in the BPF programs by
//! the kernel's statistics. Exits 1 when a call for no file takes over 50 ns more, 2 when it could not measure.
//!
//! Arguments: `--rounds N` (20), of 50,000 calls each, and `--repeats N` (5).

#![expect(clippy::print_stdout, reason = "a benchmark prints what it found")]

use std::fs::File;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, ensure};
use profiler_tests::{Record, Target, Workload, profiler, require_bpf, run_bench, scratch};
use serde_json::Value;

/// What may be added to a call that is for no file, ns.
const MOST_ADDED_NS: f64 = 50.0;

fn main() -> std::process::ExitCode {
    let options = [("rounds", 20, 1..=1000), ("repeats", 5, 1..=50)];
    run_bench(options, |[rounds, repeats]| bench(rounds, repeats as usize))
}

/// Who is recorded meanwhile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Recorded {
    Nobody,
    Other,
    Target,
}

impl Recorded {
    const ALL: [Self; 3] = [Self::Nobody, Self::Other, Self::Target];

    const fn name(self) -> &'static str {
        match self {
            Self::Nobody => "nobody is recorded",
            Self::Other => "another process is",
            Self::Target => "the program is",
        }
    }
}

/// One run of the program.
#[derive(Clone, Copy, Debug, Default)]
struct Run {
    /// CPU time of a call that is for no file, a read and a write, ns.
    calls_ns: [f64; 3],
    /// Time in our BPF programs for each operation, ns.
    bpf_ns: f64,
}

fn bench(rounds: u32, repeats: usize) -> anyhow::Result<bool> {
    let Some(_kernel) = require_bpf() else { return Ok(true) };
    let workload = Workload::c("files").build();
    let mut runs: [Vec<Run>; 3] = Default::default();
    for _ in 0..repeats {
        for (recorded, runs) in Recorded::ALL.into_iter().zip(&mut runs) {
            runs.push(run(recorded, &workload, rounds)?);
        }
    }
    let median = |runs: &[Run], field: &dyn Fn(&Run) -> f64| {
        let mut values: Vec<f64> = runs.iter().map(field).collect();
        values.sort_by(f64::total_cmp);
        values[values.len() / 2]
    };
    println!(
        "\n{:<22} {:>10} {:>8} {:>10} {:>8} {:>10} {:>8}",
        "", "no file", "added", "read", "added", "write", "added"
    );
    let mut is_cheap = true;
    for (recorded, runs_of) in Recorded::ALL.into_iter().zip(&runs) {
        print!("{:<22}", recorded.name());
        for call in 0..3 {
            let ns = median(runs_of, &|run| run.calls_ns[call]);
            let added = ns - median(&runs[0], &|run| run.calls_ns[call]);
            print!(" {ns:>10.0} {added:>8.0}");
            is_cheap &= call != 0 || added <= MOST_ADDED_NS;
        }
        println!();
    }
    let bpf = median(&runs[2], &|run| run.bpf_ns);
    println!(
        "\nCPU time of a call in ns. Of what is added to an operation, {bpf:.0} ns are in the BPF programs by the kernel's \
         statistics, which are on for that and cost something themselves."
    );
    println!("a call that is for no file takes {} {MOST_ADDED_NS} ns more", if is_cheap { "at most" } else { "OVER" });
    Ok(is_cheap)
}

/// Runs the program once.
fn run(recorded: Recorded, workload: &Path, rounds: u32) -> anyhow::Result<Run> {
    let directory = scratch();
    let (output, file) = (directory.path().join("capture"), directory.path().join("data"));
    let mut command = if recorded == Recorded::Target {
        let mut command = Command::new(profiler());
        command.args(["record", "-e", "fileio", "-o"]).arg(&output).arg("--").arg(workload);
        command
    } else {
        Command::new(workload)
    };
    let other = (recorded == Recorded::Other).then(|| {
        let other = Target::start_unready(Command::new("sleep").arg("600"));
        let mut recording = Record::new().args(["-e", "fileio"]).pid(other.pid()).start();
        recording.wait_for_samples();
        (other, recording)
    });
    command.arg("cost").arg(&file).arg(rounds.to_string());
    let result = command.stderr(std::process::Stdio::null()).output().context("start the program")?;
    if let Some((_other, recording)) = other {
        recording.signal(libc::SIGINT);
        let (ended, _directory) = recording.wait();
        ensure!(ended.code() == 0, "the recording failed: {}", ended.stderr);
    }
    ensure!(result.status.success(), "{}: {}", recorded.name(), result.status);
    let text = String::from_utf8_lossy(&result.stdout);
    let account = text.lines().rfind(|line| line.starts_with('{')).context("the program's account")?;
    let account: Value = serde_json::from_str(account)?;
    ensure!(account["works"] == true, "a call failed: {account}");
    let figure = |value: &Value, pointer: &str| value.pointer(pointer).and_then(Value::as_f64).context("a figure");
    let mut run = Run::default();
    for (ns, name) in run.calls_ns.iter_mut().zip(["/getppid_ns", "/pread_ns", "/pwrite_ns"]) {
        *ns = figure(&account, name)?;
    }
    if recorded == Recorded::Target {
        let report: Value = serde_json::from_reader(File::open(output.join("report.json"))?)?;
        run.bpf_ns = figure(&report, "/overhead/bpf_ns")? / figure(&report, "/accounting/fileio/hits")?;
    }
    Ok(run)
}
