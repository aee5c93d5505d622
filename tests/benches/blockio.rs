//! What recording block I/O costs a request, beside another tool: `cargo xtask bench blockio`.
//!
//! Input: the release binary, and fio, which reads blocks of 4 KiB at random, past the page cache, as fast as the disk gives
//! them. Recorded by `profiler record -e blockio` and by bcc's libbpf `biolatency`, in turns: that as it is by default, which is
//! the time of the device alone, of all devices and operations together; and with `-QDF`, which has the queue in it and tells
//! devices and operations apart, as ours does. Time in the BPF programs a request is by the kernel's own statistics, of the
//! programs by name: the medians are printed, of ours all of it; what of that is the records of the requests that are chosen,
//! their stacks above all, by the programs' own clock; and apart what following switches between tasks costs. Never asserts a
//! time: exits 1 when ours without the records is not below half of `biolatency -QDF`, 2 when it could not measure.
//!
//! Arguments: `--seconds N` (4) and `--repeats N` (3).

#![expect(clippy::print_stdout, reason = "a benchmark prints what it found")]

use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use profiler_tests::{find_program, profiler, require_bpf, run_bench, scratch};
use serde_json::Value;

/// What ours may cost of the other that tells the same.
const MOST_RATIO: f64 = 0.5;

/// How long a tool takes to attach.
const ATTACHING: Duration = Duration::from_millis(2500);

/// The kernel's switch for statistics of BPF programs.
const STATISTICS: &str = "/proc/sys/kernel/bpf_stats_enabled";

fn main() -> ExitCode {
    let options = [("seconds", 4, 1..=60), ("repeats", 3, 1..=50)];
    run_bench(options, |[seconds, repeats]| bench(seconds, repeats as usize))
}

/// Programs of both tools: their name, as much of it as the kernel keeps, and the time in them, ns.
type Programs = Vec<(String, f64)>;

/// What a request costs, ns.
#[derive(Clone, Copy, Debug)]
struct Cost {
    requests_per_s: f64,
    of_requests_ns: f64,
    /// What of it is the records of those that are chosen.
    of_records_ns: f64,
    of_switches_ns: f64,
}

impl Cost {
    /// What every request costs.
    fn of_counting_ns(&self) -> f64 {
        self.of_requests_ns - self.of_records_ns
    }
}

fn bench(seconds: u32, repeats: usize) -> anyhow::Result<bool> {
    let Some(_kernel) = require_bpf() else { return Ok(true) };
    let (Some(fio), Some(bpftool), Some(biolatency)) =
        (find_program("fio"), find_program("bpftool"), find_program("biolatency"))
    else {
        return Ok(true);
    };
    let directory = scratch();
    let load = Load { fio, bpftool, directory: directory.path(), seconds };
    load.run(1)?;
    let before = std::fs::read_to_string(STATISTICS).context("read the kernel's switch")?;
    std::fs::write(STATISTICS, "1").context("turn the kernel's statistics on")?;
    let measured = load.measure(&biolatency, repeats);
    std::fs::write(STATISTICS, before.trim()).context("set the kernel's switch back")?;
    let [ours, same, less] = measured?;
    println!(
        "\n{:<30} {:>12} {:>16} {:>16} {:>16} {:>16}",
        "", "requests/s", "ns a request", "of records", "the rest", "of switches"
    );
    for (name, cost) in [("profiler record -e blockio", ours), ("biolatency -QDF", same), ("biolatency", less)] {
        println!(
            "{name:<30} {:>12.0} {:>16.0} {:>16.0} {:>16.0} {:>16.0}",
            cost.requests_per_s,
            cost.of_requests_ns,
            cost.of_records_ns,
            cost.of_counting_ns(),
            cost.of_switches_ns
        );
    }
    let ratio = |other: Cost| ours.of_counting_ns() / other.of_counting_ns();
    println!(
        "\nthe counting is {:.2} of biolatency -QDF and {:.2} of biolatency, with the records {:.2} and {:.2}: stacks are",
        ratio(same),
        ratio(less),
        ours.of_requests_ns / same.of_requests_ns,
        ours.of_requests_ns / less.of_requests_ns
    );
    println!("walked of 2,000 requests a second on each CPU, whatever the rate");
    Ok(ratio(same) < MOST_RATIO)
}

/// Random reads.
struct Load<'a> {
    fio: PathBuf,
    bpftool: PathBuf,
    directory: &'a Path,
    seconds: u32,
}

impl Load<'_> {
    /// Medians of ours, of the other that tells the same, and of the other as it is by default.
    fn measure(&self, biolatency: &Path, repeats: usize) -> anyhow::Result<[Cost; 3]> {
        let mut costs: [Vec<Cost>; 3] = Default::default();
        for repeat in 0..repeats {
            let output = self.directory.join(format!("capture-{repeat}"));
            let mut ours = Command::new(profiler());
            ours.args(["record", "-e", "blockio", "--comm", "fio", "-o"]).arg(output);
            costs[0].push(self.beside(&mut ours, &["block_request", "block_complete", "block_issue"])?);
            for (costs, options) in costs[1..].iter_mut().zip([&["-QDF", "600"][..], &["600"]]) {
                costs.push(self.beside(Command::new(biolatency).args(options), &["block_rq_"])?);
            }
        }
        Ok(costs.map(|mut costs| {
            costs.sort_by(|a, b| a.of_counting_ns().total_cmp(&b.of_counting_ns()));
            costs[costs.len() / 2]
        }))
    }

    /// Runs the load beside a tool.
    fn beside(&self, tool: &mut Command, programs: &[&str]) -> anyhow::Result<Cost> {
        let mut tool = Ended(tool.stdout(Stdio::null()).stderr(Stdio::null()).spawn().context("start the tool")?);
        std::thread::sleep(ATTACHING);
        let (before, records_before) = (self.programs()?, self.records_ns());
        let requests = self.run(self.seconds)?;
        let (after, records_after) = (self.programs()?, self.records_ns());
        ensure!(tool.0.try_wait()?.is_none(), "the tool ended early");
        let spent = |wanted: &dyn Fn(&str) -> bool| {
            let sum = |programs: &Programs| -> f64 {
                programs.iter().filter(|(name, _)| wanted(name)).map(|&(_, ns)| ns).sum()
            };
            sum(&after) - sum(&before)
        };
        let of_requests = spent(&|name| programs.iter().any(|program| name.starts_with(program)));
        ensure!(of_requests > 0.0, "none of the tool's programs ran");
        Ok(Cost {
            requests_per_s: requests / f64::from(self.seconds),
            of_requests_ns: of_requests / requests,
            of_records_ns: (records_after - records_before) / requests,
            of_switches_ns: spent(&|name| name == "block_switch") / requests,
        })
    }

    /// The requests that were made.
    fn run(&self, seconds: u32) -> anyhow::Result<f64> {
        let mut fio = Command::new(&self.fio);
        fio.args(["--name=job", "--rw=randread", "--bs=4k", "--size=64m", "--direct=1", "--ioengine=libaio"])
            .args(["--iodepth=16", "--time_based", "--output-format=json"])
            .arg(format!("--runtime={seconds}"))
            .arg(format!("--filename={}", self.directory.join("fio").display()));
        let output = fio.stderr(Stdio::null()).output().context("start fio")?;
        let account: Value = serde_json::from_slice(&output.stdout).context("fio's account")?;
        account["jobs"][0]["read"]["total_ios"].as_f64().context("a count")
    }

    /// What our records have cost on all CPUs, ns: the first number of the map's elements; 0 where ours does not run.
    fn records_ns(&self) -> f64 {
        let output = Command::new(&self.bpftool).args(["map", "dump", "-j", "name", "BLOCK_WALKS"]).output();
        let dump: Value =
            output.ok().and_then(|output| serde_json::from_slice(&output.stdout).ok()).unwrap_or_default();
        let cpus = dump[0]["values"].as_array().map_or(&[][..], Vec::as_slice);
        let number = |bytes: &[Value]| {
            let byte = |byte: &Value| u64::from_str_radix(byte.as_str()?.trim_start_matches("0x"), 16).ok();
            bytes.iter().take(8).rev().filter_map(byte).fold(0_u64, |number, byte| number << 8 | byte)
        };
        cpus.iter().filter_map(|cpu| Some(number(cpu["value"].as_array()?) as f64)).sum()
    }

    fn programs(&self) -> anyhow::Result<Programs> {
        let output = Command::new(&self.bpftool).args(["prog", "show", "-j"]).output().context("start bpftool")?;
        let programs: Vec<Value> = serde_json::from_slice(&output.stdout).context("bpftool's list")?;
        let program = |program: &Value| {
            let name = program["name"].as_str().unwrap_or_default().to_owned();
            (name, program["run_time_ns"].as_f64().unwrap_or(0.0))
        };
        Ok(programs.iter().map(program).collect())
    }
}

/// A tool that runs; ended when it is dropped.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
