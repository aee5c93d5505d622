//! What recording allocations costs the target: `cargo xtask bench alloc`.
//!
//! Input: the release binary and a program that does a fixed amount of work with pairs of malloc and free between, 12,000 or
//! a million for each second of its CPU time, and says what CPU time it took. It is run by itself, under `profiler record -e
//! alloc`, with probes all the time, with the library that samples, and under bcc's memleak and heaptrack where they are
//! installed. The medians are printed, as parts of what it takes by itself and as ns a pair. Exits 1 when the default costs over
//! 2 %, or the library over 10 ns a pair, 2 when it could not measure.
//!
//! Arguments: `--seconds N` (6) of CPU time, and `--repeats N` (3).

#![expect(clippy::print_stdout, reason = "a benchmark prints what it found")]

use std::ffi::OsString;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use profiler_tests::{Workload, find_program, profiler, require_bpf, run_bench, scratch};
use serde_json::Value;

/// What the default may cost, as a part of the target's CPU time.
const MOST: f64 = 0.02;

/// What the library may cost, ns a pair. Only where there are so many that this is more than the noise.
const MOST_LIBRARY_NS: f64 = 10.0;

/// Pairs for each second of CPU time.
const RATES: [u64; 2] = [12_000, 1_000_000];

fn main() -> std::process::ExitCode {
    let options = [("seconds", 6, 1..=600), ("repeats", 3, 1..=50)];
    run_bench(options, |[seconds, repeats]| bench(seconds, repeats as usize))
}

/// Who watches the program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Watcher {
    Nobody,
    Default,
    Always,
    Library,
    Memleak,
    Heaptrack,
}

impl Watcher {
    const ALL: [Self; 6] = [Self::Nobody, Self::Default, Self::Always, Self::Library, Self::Memleak, Self::Heaptrack];

    const fn name(self) -> &'static str {
        match self {
            Self::Nobody => "nobody",
            Self::Default => "record -e alloc",
            Self::Always => "probes all the time",
            Self::Library => "libprofiler_alloc.so",
            Self::Memleak => "memleak",
            Self::Heaptrack => "heaptrack",
        }
    }

    /// Whether it can be had here.
    fn is_there(self) -> bool {
        match self {
            Self::Memleak => find_program("memleak-bpfcc").is_some(),
            Self::Heaptrack => find_program("heaptrack").is_some(),
            _ => true,
        }
    }
}

fn bench(seconds: u32, repeats: usize) -> anyhow::Result<bool> {
    let Some(_kernel) = require_bpf() else { return Ok(true) };
    let workload = Workload::c("pairs").build();
    let round_ns = calibrate(&workload)?;
    let watchers: Vec<Watcher> = Watcher::ALL.into_iter().filter(|watcher| watcher.is_there()).collect();
    let mut is_cheap = true;
    for rate in RATES {
        let pairs = rate * u64::from(seconds);
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "some hundred to some ten thousand"
        )]
        let rounds = (1e9 / float(rate) / round_ns) as u64;
        let mut runs = vec![Vec::new(); watchers.len()];
        for _ in 0..repeats {
            for (watcher, runs) in watchers.iter().zip(&mut runs) {
                runs.push(run(*watcher, &workload, pairs, rounds)?);
            }
        }
        let alone = median(&mut runs[0]);
        println!("\n{:<22} {:>10} {:>10} {:>12}   {rate} pairs a second", "", "CPU s", "cost %", "ns a pair");
        for (watcher, runs) in watchers.iter().zip(&mut runs) {
            let took = median(runs);
            let cost = took / alone - 1.0;
            println!(
                "{:<22} {:>10.3} {:>10.2} {:>12.0}",
                watcher.name(),
                took / 1e9,
                cost * 100.0,
                (took - alone) / float(pairs)
            );
            is_cheap &= match watcher {
                Watcher::Default => cost <= MOST,
                Watcher::Library => rate < RATES[1] || (took - alone) / float(pairs) <= MOST_LIBRARY_NS,
                _ => true,
            };
        }
    }
    println!(
        "\nthe default costs the target at most {} %, and the library at most {MOST_LIBRARY_NS} ns a pair: {}",
        MOST * 100.0,
        if is_cheap { "yes" } else { "NO" }
    );
    Ok(is_cheap)
}

/// How long a round of multiplications takes, ns.
fn calibrate(workload: &Path) -> anyhow::Result<f64> {
    const PAIRS: u64 = 1_000;
    const ROUNDS: u64 = 100_000;
    Ok(run(Watcher::Nobody, workload, PAIRS, ROUNDS)? / float(PAIRS * ROUNDS))
}

/// CPU time of the program, ns.
fn run(watcher: Watcher, workload: &Path, pairs: u64, rounds: u64) -> anyhow::Result<f64> {
    let directory = scratch();
    let output = directory.path().join("output");
    let mut command = match watcher {
        Watcher::Nobody | Watcher::Memleak => Command::new(workload),
        Watcher::Default | Watcher::Always => {
            let mut command = Command::new(profiler());
            let budget = if watcher == Watcher::Always { "1000" } else { "2" };
            command
                .args(["record", "-e", "alloc", "--alloc-budget", budget, "-o"])
                .arg(&output)
                .arg("--")
                .arg(workload);
            command
        }
        Watcher::Library => {
            let mut preload = OsString::from("LD_PRELOAD=");
            preload.push(Workload::preload_library().build());
            let mut command = Command::new(profiler());
            command.args(["record", "-e", "alloc", "-o"]).arg(&output).args(["--", "env"]).arg(preload).arg(workload);
            command
        }
        Watcher::Heaptrack => {
            let mut command = Command::new("heaptrack");
            command.arg("-o").arg(&output).arg(workload);
            command
        }
    };
    command.args([pairs.to_string(), rounds.to_string()]).stderr(Stdio::null()).stdout(Stdio::piped());
    let child = command.spawn().context("start the program")?;
    let memleak = (watcher == Watcher::Memleak)
        .then(|| {
            let mut memleak = Command::new("memleak-bpfcc");
            memleak.args(["-p", &child.id().to_string()]).stdout(Stdio::null()).stderr(Stdio::null()).spawn()
        })
        .transpose()
        .context("start memleak")?;
    let result = child.wait_with_output().context("wait for the program")?;
    if let Some(mut memleak) = memleak {
        std::thread::sleep(Duration::from_millis(500));
        memleak.kill().and_then(|()| memleak.wait()).context("end memleak")?;
    }
    ensure!(result.status.success(), "{}: {}", watcher.name(), result.status);
    let text = String::from_utf8_lossy(&result.stdout);
    let said = text.lines().find(|line| line.starts_with("{\"cpu_ns\"")).context("the program said nothing")?;
    let said: Value = serde_json::from_str(said)?;
    said["cpu_ns"].as_f64().context("no CPU time")
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

#[expect(clippy::cast_precision_loss, reason = "numbers of pairs are far below 2^53")]
const fn float(value: u64) -> f64 {
    value as f64
}
