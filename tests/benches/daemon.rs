//! What the daemon costs at its defaults, on a host that is left alone and on one with every CPU busy:
//! `cargo xtask bench daemon`.
//!
//! Input: the release binary. The daemon runs on the whole host with nothing set; what it takes to start, and the first windows,
//! in which names and tables are looked up that later ones have, are left out. Printed are its own CPU time by the kernel's account
//! of the process, the time in its BPF programs by the windows that it wrote, its memory and that of its maps.
//! Exits 1 when own time and BPF programs together are above the default budget, 2 when it could not measure.
//!
//! Arguments: `--seconds N` (120) for each host.

#![expect(clippy::print_stdout, reason = "a benchmark prints what it found")]

use std::process::ExitCode;
use std::thread::sleep;
use std::time::Duration;

use anyhow::Context as _;
use profiler_tests::{Daemon, Target, Workload, float, require_bpf, run_bench, run_profiler, scratch, windows_in};

/// The default of `[budget] cpu_percent`.
const BUDGET_PERCENT: f64 = 0.5;

/// Time that is left out at the start: three windows and a bit.
const WARM: u64 = 45;

fn main() -> ExitCode {
    run_bench([("seconds", 120, 30..=3600)], |[seconds]| {
        let Some(_kernel) = require_bpf() else { anyhow::bail!("it needs a kernel with BTF, and root") };
        println!("host      own CPU   BPF       together  memory    maps      switches a second");
        let seconds = u64::from(seconds);
        let idle = measure("idle", seconds)?;
        let cpus = std::thread::available_parallelism().map_or(1, usize::from);
        let burn = Workload::c("burn").build();
        let lasts = (seconds + 2 * WARM).to_string();
        let _busy: Vec<Target> = (0..cpus).map(|_| Target::start(&burn, &[&lasts])).collect();
        let busy = measure("busy", seconds)?;
        Ok(idle.max(busy) <= BUDGET_PERCENT)
    })
}

/// Measures one host; returns what the daemon took of a CPU, in per cent.
fn measure(host: &str, seconds: u64) -> anyhow::Result<f64> {
    let directory = scratch();
    let mut daemon = Daemon::start_with(directory.path(), "/dev/null");
    daemon.wait_started();
    sleep(Duration::from_secs(WARM));
    let seen = windows_in(daemon.state()).len();
    let (before_s, switches_before) = (daemon.cpu_s(), switches()?);
    sleep(Duration::from_secs(seconds));
    let (after_s, switches_after) = (daemon.cpu_s(), switches()?);
    let memory_mib = float(daemon.memory_kib()) / 1024.0;
    let windows = daemon.wait_for(seen + 1);
    anyhow::ensure!(windows.len() > seen, "no window came");
    // What the windows of this time say of the programs.
    let state = daemon.state().to_str().context("the path of the state directory")?.to_owned();
    let ended = run_profiler(&["query", "--state-dir", &state, "--last", &format!("{seconds}s"), "--json"]);
    let report: serde_json::Value = serde_json::from_str(&ended.stdout).context("the report of the windows")?;
    let number = |name: &str| report["overhead"][name].as_f64().unwrap_or(0.0);
    let lasted_ns = report["duration_ns"].as_f64().filter(|&ns| ns > 0.0).context("the windows have no length")?;
    let own = (after_s - before_s) / float(seconds) * 100.0;
    let bpf = number("bpf_ns") / lasted_ns * 100.0;
    println!(
        "{host:8} {own:7.3} % {bpf:7.3} % {:7.3} % {memory_mib:6.1} MiB {:6.1} MiB {:12.0}",
        own + bpf,
        number("bpf_map_bytes") / f64::from(1 << 20),
        float(switches_after - switches_before) / float(seconds),
    );
    println!("         {}", daemon.said().lines().collect::<Vec<_>>().join("; "));
    Ok(own + bpf)
}

/// Switches of all CPUs so far. Source: proc_stat(5), `ctxt`.
fn switches() -> anyhow::Result<u64> {
    let text = std::fs::read_to_string("/proc/stat").context("cannot read /proc/stat")?;
    let count = text.lines().find_map(|line| line.strip_prefix("ctxt ")?.parse().ok());
    count.context("the kernel does not count switches")
}
