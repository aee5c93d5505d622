//! What a capture costs, beside `perf record -g` on the same workload: `cargo xtask bench overhead`.
//!
//! Input: the release binary, `perf` and a workload with a known rate of work. Both tools get the same target, rate and
//! time, in turns that change their order; the medians are printed as a table. Ours: CPU time of `profiler record` from
//! its start to everything written, and the time in its BPF programs. perf's: CPU time of `perf record -g`, of
//! `perf script --no-inline` and of inferno, which makes the flamegraph (in this binary, run as a process of its own).
//! Never asserts a time: exits 1 when ours is not the cheaper one of the two, 2 when it could not measure.
//!
//! Arguments: `--seconds N` (5) and `--repeats N` (5).

#![expect(clippy::print_stdout, reason = "a benchmark prints what it found")]

use std::ffi::OsString;
use std::fs::File;
use std::io::{Read as _, Write as _};
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use profiler_tests::{
    Target, Usage, Workload, count_perf_samples, draw_perf, find_program, float, profiler, require_bpf, run_bench,
    scratch,
};

/// Samples a second: what the comparisons that are published use.
const RATE_HZ: &str = "999";

fn main() -> ExitCode {
    let options = [("seconds", 5, 2..=60), ("repeats", 5, 1..=50)];
    run_bench(options, |[seconds, repeats]| bench(seconds, repeats as usize))
}

/// What to record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Scope {
    Process,
    Host,
}

/// What one recording took and gave.
#[derive(Clone, Copy, Debug, Default)]
struct Measured {
    /// CPU time of the agents, user and kernel, and of BPF programs, s.
    cpu_s: f64,
    /// Of these, in BPF programs.
    bpf_s: f64,
    /// From the start to everything written, beyond the time recorded, s.
    extra_s: f64,
    /// Most resident memory of any of the processes, MB.
    peak_mb: f64,
    /// Kernel memory of BPF maps, MB.
    maps_mb: f64,
    /// Samples in the result.
    samples: f64,
    /// Rounds of work a CPU second of the target.
    work_rate: f64,
    /// How much of the time the target was on a CPU, 0 to 1: less than 1 when others wanted it too.
    on_cpu: f64,
}

fn bench(seconds: u32, repeats: usize) -> anyhow::Result<bool> {
    let Some(_kernel) = require_bpf() else { return Ok(true) };
    let Some(perf) = find_program("perf") else { return Ok(true) };
    let split = Workload::c("split").build();
    let mut below = true;
    for (scope, name) in [(Scope::Process, "one process (-p)"), (Scope::Host, "the whole host (-a)")] {
        let (mut ours, mut theirs, mut base) = (Vec::new(), Vec::new(), Vec::new());
        for repeat in 0..repeats {
            base.push(measure(&split, seconds, |_, _| {
                std::thread::sleep(Duration::from_secs(u64::from(seconds)));
                Ok(Measured::default())
            })?);
            let mut run_ours = || -> anyhow::Result<()> {
                ours.push(measure(&split, seconds, |pid, directory| {
                    record_with_profiler(scope, seconds, pid, directory)
                })?);
                Ok(())
            };
            if repeat % 2 == 0 {
                run_ours()?;
            }
            theirs.push(measure(&split, seconds, |pid, directory| {
                record_with_perf(&perf, scope, seconds, pid, directory)
            })?);
            if repeat % 2 == 1 {
                run_ours()?;
            }
        }
        below &= print(name, seconds, [&base, &ours, &theirs]);
    }
    println!(
        "CPU s: ours is user and kernel time of `profiler record` from start to everything written (flamegraph, pprof, \
         report), with the time in its BPF programs; perf's is that of `perf record -g`, `perf script --no-inline` and \
         inferno. What perf does in the sampling interrupt cannot be measured and is not in its figure; ours is in ours."
    );
    Ok(below)
}

/// Runs `record` on a fresh target, and measures the target's work meanwhile.
fn measure(
    program: &Path,
    seconds: u32,
    record: impl FnOnce(u32, &Path) -> anyhow::Result<Measured>,
) -> anyhow::Result<Measured> {
    let directory = scratch();
    let progress = directory.path().join("progress");
    // Ended by us; bounded in case it cannot be.
    let limit = (seconds + 60).to_string();
    let target = Target::start(program, &[&limit, progress.to_str().context("the path is UTF-8")?]);
    let meter = std::thread::spawn(move || -> anyhow::Result<(f64, f64)> {
        // Within what is recorded, whatever the tool needs to start.
        std::thread::sleep(Duration::from_secs(1));
        let start = Instant::now();
        let (rounds_before, cpu_before) = read_progress(&progress)?;
        std::thread::sleep(Duration::from_millis(u64::from(seconds) * 1000 - 1200));
        let (rounds, cpu) = read_progress(&progress)?;
        let cpu_s = cpu - cpu_before;
        Ok(((rounds - rounds_before) / cpu_s, cpu_s / start.elapsed().as_secs_f64()))
    });
    let measured = record(target.pid(), directory.path())?;
    let (work_rate, on_cpu) = meter.join().map_err(|_| anyhow::anyhow!("the meter panicked"))??;
    Ok(Measured { work_rate, on_cpu, ..measured })
}

/// Rounds and CPU seconds that the workload has put into its file.
fn read_progress(file: &Path) -> anyhow::Result<(f64, f64)> {
    let mut bytes = [0; 16];
    File::open(file)?.read_exact(&mut bytes)?;
    let number = |bytes: &[u8]| bytes.iter().rev().fold(0.0, |sum, &byte| sum * 256.0 + f64::from(byte));
    Ok((number(&bytes[..8]), number(&bytes[8..]) / 1e9))
}

fn record_with_profiler(scope: Scope, seconds: u32, pid: u32, directory: &Path) -> anyhow::Result<Measured> {
    let output = directory.join("capture");
    let mut command = Command::new(profiler());
    command.args(["record", "-F", RATE_HZ, "-d", &seconds.to_string(), "-o"]).arg(&output);
    command.args(target_arguments(scope, pid)).stdout(Stdio::null()).stderr(Stdio::null());
    let start = Instant::now();
    let usage = Usage::wait(&command.spawn().context("start the profiler")?)?;
    let extra_s = start.elapsed().as_secs_f64() - f64::from(seconds);
    let report: serde_json::Value = serde_json::from_reader(File::open(output.join("report.json"))?)?;
    let figure = |pointer: &str| report.pointer(pointer).and_then(serde_json::Value::as_f64).context("report.json");
    let bpf_s = figure("/overhead/bpf_ns")? / 1e9;
    Ok(Measured {
        cpu_s: usage.cpu_s + bpf_s,
        bpf_s,
        extra_s,
        peak_mb: usage.peak_mb,
        maps_mb: figure("/overhead/bpf_map_bytes")? / 1e6,
        samples: figure("/origins/cpu/total")?,
        ..Measured::default()
    })
}

fn record_with_perf(perf: &Path, scope: Scope, seconds: u32, pid: u32, directory: &Path) -> anyhow::Result<Measured> {
    let data = directory.join("perf.data");
    let start = Instant::now();
    let mut record = Command::new(perf);
    record.args(["record", "-q", "-g", "-F", RATE_HZ, "-o"]).arg(&data).args(target_arguments(scope, pid));
    record.args(["--", "sleep", &seconds.to_string()]).stdout(Stdio::null()).stderr(Stdio::null());
    let recorded = Usage::wait(&record.spawn().context("start perf record")?)?;

    let [scripted, collapsed] = draw_perf(perf, &data, &directory.join("perf.svg"))?;
    let extra_s = start.elapsed().as_secs_f64() - f64::from(seconds);
    let samples = count_perf_samples(perf, &data)?;
    Ok(Measured {
        cpu_s: recorded.cpu_s + scripted.cpu_s + collapsed.cpu_s,
        extra_s,
        peak_mb: recorded.peak_mb.max(scripted.peak_mb).max(collapsed.peak_mb),
        samples: float(samples),
        ..Measured::default()
    })
}

fn target_arguments(scope: Scope, pid: u32) -> Vec<OsString> {
    match scope {
        Scope::Process => vec!["-p".into(), pid.to_string().into()],
        Scope::Host => vec!["-a".into()],
    }
}

fn median(runs: &[Measured], field: impl Fn(&Measured) -> f64) -> f64 {
    let mut values: Vec<_> = runs.iter().map(field).collect();
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    if values.len() % 2 == 1 { values[middle] } else { f64::midpoint(values[middle - 1], values[middle]) }
}

/// A row of the table, taken from a run.
type Field<'a> = &'a dyn Fn(&Measured) -> f64;

/// Prints the medians; returns whether ours costs less.
///
/// `runs`: without a profiler, with ours, with perf.
fn print(name: &str, seconds: u32, [base, ours, theirs]: [&[Measured]; 3]) -> bool {
    let rate = median(base, |run| run.work_rate);
    let slowdown = |run: &Measured| (1.0 - run.work_rate / rate) * 100.0;
    let rows: [(&str, Field<'_>, usize); 8] = [
        ("CPU s", &|run| run.cpu_s, 3),
        ("  of that in BPF", &|run| run.bpf_s, 3),
        ("peak resident MB", &|run| run.peak_mb, 1),
        ("BPF maps MB", &|run| run.maps_mb, 1),
        ("s beyond the recording", &|run| run.extra_s, 2),
        ("samples", &|run| run.samples, 0),
        ("target on a CPU %", &|run| run.on_cpu * 100.0, 1),
        ("slowdown of the target %", &slowdown, 2),
    ];
    println!("\n{name}: {seconds} s at {RATE_HZ} Hz, medians of {} runs each", ours.len());
    println!("{:<26} {:>12} {:>12} {:>8}", "", "profiler", "perf+inferno", "ratio");
    for (row, field, digits) in rows {
        let (our, their) = (median(ours, field), median(theirs, field));
        // Differences near zero have no ratio worth printing.
        let ratio =
            if their > 0.0 && !row.starts_with("slowdown") { format!("{:.2}", our / their) } else { String::new() };
        println!("{row:<26} {our:>12.digits$} {their:>12.digits$} {ratio:>8}");
    }
    let spread = |runs: &[Measured]| {
        let values = runs.iter().map(|run| run.cpu_s);
        let (least, most) =
            values.fold((f64::MAX, 0.0_f64), |(least, most), value| (least.min(value), most.max(value)));
        format!("{least:.3} to {most:.3}")
    };
    println!("CPU s of single runs: profiler {}, perf {}", spread(ours), spread(theirs));
    let below = median(ours, |run| run.cpu_s) < median(theirs, |run| run.cpu_s);
    println!("{}", if below { "ours costs less" } else { "NOT BELOW: ours costs as much or more" });
    // Tables of minutes of work are seen as they come.
    let _ = std::io::stdout().flush();
    below
}
