//! From the end of sampling to everything written, beside `perf script` and inferno: `cargo xtask bench symbolize`.
//!
//! Input: the release binary, `perf`, gcc. The target is a generated program of some 100 MB, most of it debug
//! information, that goes through 20,000 paths of 24 calls each, one after the other, on two threads. Both tools record
//! about as many samples of it; what is measured begins with the signal that ends the recording. Ours: until `profiler
//! record` has written the flamegraph, the folded stacks, the pprof profile and the reports, and exits; once with an
//! empty directory of names, once with what the first left. perf's: until `perf record` exits, then `perf script
//! --no-inline` into inferno, which draws the flamegraph (inlined calls would take perf hours). Never asserts a time:
//! exits 1 when ours is not ten times as fast, 2 when it could not measure.
//!
//! Arguments: `--samples N` (1,000,000), `--rate HZ` (20,000).

#![expect(clippy::print_stdout, reason = "a benchmark prints what it found")]

use std::fmt::Write as _;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use profiler_tests::{
    Target, Usage, count_perf_samples, draw_perf, find_program, float, profiler, require_bpf, run_bench, scratch,
};

/// Paths through the program: distinct stacks.
const PATHS: usize = 20_000;
/// Calls of a path.
const DEPTH: usize = 24;
/// Functions of one depth.
const WIDTH: usize = 833;
/// How many times ours should be as fast.
const GOAL: f64 = 10.0;

fn main() -> ExitCode {
    let options = [("samples", 1_000_000, 1000..=10_000_000), ("rate", 20_000, 99..=50_000)];
    run_bench(options, |[samples, rate_hz]| bench(samples, rate_hz))
}

/// What one tool took.
struct Measured {
    /// From the signal that ends the recording to the last file, s.
    finish_s: f64,
    /// CPU time of all of it, the recording included, s.
    cpu_s: f64,
    /// Most resident memory of any of the processes, MB.
    peak_mb: f64,
    samples: u64,
    stacks: u64,
}

fn bench(samples: u32, rate_hz: u32) -> anyhow::Result<bool> {
    let Some(_kernel) = require_bpf() else { return Ok(true) };
    let Some(perf) = find_program("perf") else { return Ok(true) };
    let directory = scratch();
    let program = build(&Path::new(env!("CARGO_TARGET_TMPDIR")).join("wide"))?;
    let megabytes = float(fs::metadata(&program)?.len()) / 1e6;
    // Two threads, each on a CPU of its own when there are two.
    let time = Duration::from_secs_f64(f64::from(samples) / f64::from(rate_hz) / 2.0);
    let limit = 4 * time.as_secs() + 600;
    let target = Target::start_unready(Command::new(&program).arg(limit.to_string()));
    let names = directory.path().join("names");
    let mut rows = Vec::new();
    for what in ["profiler", "profiler, names kept"] {
        let output = directory.path().join("capture");
        rows.push((what, ours(target.pid(), rate_hz, time, &output, &names)?));
        let _ = fs::remove_dir_all(output);
    }
    rows.push(("perf + inferno", theirs(&perf, target.pid(), rate_hz, time, directory.path())?));
    drop(target);
    println!("\na program of {megabytes:.0} MB, {} functions, {PATHS} paths of {DEPTH} calls", DEPTH * WIDTH);
    println!("{:<24} {:>10} {:>8} {:>10} {:>10} {:>10}", "", "stop to s", "CPU s", "peak MB", "samples", "stacks");
    for (what, Measured { finish_s, cpu_s, peak_mb, samples, stacks }) in &rows {
        println!("{what:<24} {finish_s:>10.2} {cpu_s:>8.2} {peak_mb:>10.0} {samples:>10} {stacks:>10}");
    }
    // perf's sampling is slower, so that it has fewer samples in the same time.
    let [first, kept, perf] = [0, 1, 2].map(|row: usize| rows[row].1.finish_s / float(rows[row].1.samples.max(1)));
    println!("perf's time by ours, a sample: {:.1}, with names kept {:.1}", perf / first, perf / kept);
    let reached = perf >= GOAL * first;
    println!("{} {GOAL} times as fast", if reached { "at least" } else { "NOT" });
    Ok(reached)
}

/// Ends a recording as Ctrl-C does. The target rests meanwhile: what is measured is the tool.
fn interrupt(child: &Child, target: u32) {
    // SAFETY: neither has been waited for, so that the numbers are their own.
    unsafe {
        libc::kill(target.cast_signed(), libc::SIGSTOP);
        libc::kill(child.id().cast_signed(), libc::SIGINT);
    }
}

/// Lets the target go on.
fn resume(target: u32) {
    // SAFETY: as above.
    unsafe { libc::kill(target.cast_signed(), libc::SIGCONT) };
}

fn ours(pid: u32, rate_hz: u32, time: Duration, output: &Path, names: &Path) -> anyhow::Result<Measured> {
    let mut command = Command::new(profiler());
    command.args(["record", "-F", &rate_hz.to_string(), "--cache-dir"]).arg(names);
    command.args(["-p", &pid.to_string(), "--map-entries", "65536", "--buffer-mb", "16", "-o"]).arg(output);
    let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().context("start the profiler")?;
    std::thread::sleep(time);
    let start = Instant::now();
    interrupt(&child, pid);
    let usage = Usage::wait(&child)?;
    let finish_s = start.elapsed().as_secs_f64();
    resume(pid);
    let folded = fs::read_to_string(output.join("cpu.folded"))?;
    let report: serde_json::Value = serde_json::from_reader(File::open(output.join("report.json"))?)?;
    let samples = report.pointer("/origins/cpu/total").and_then(serde_json::Value::as_u64).context("report.json")?;
    let bpf_ns = report.pointer("/overhead/bpf_ns").and_then(serde_json::Value::as_u64).context("report.json")?;
    let (cpu_s, peak_mb) = (usage.cpu_s + float(bpf_ns) / 1e9, usage.peak_mb);
    Ok(Measured { finish_s, cpu_s, peak_mb, samples, stacks: folded.lines().count() as u64 })
}

fn theirs(perf: &Path, pid: u32, rate_hz: u32, time: Duration, directory: &Path) -> anyhow::Result<Measured> {
    let (data, svg) = (directory.join("perf.data"), directory.join("perf.svg"));
    let mut record = Command::new(perf);
    record.args(["record", "-q", "-g", "-F", &rate_hz.to_string(), "-p", &pid.to_string(), "-o"]).arg(&data);
    let record = record.stdout(Stdio::null()).stderr(Stdio::null()).spawn().context("start perf record")?;
    std::thread::sleep(time);
    let start = Instant::now();
    interrupt(&record, pid);
    let recorded = Usage::wait(&record)?;
    let [scripted, collapsed] = draw_perf(perf, &data, &svg)?;
    let finish_s = start.elapsed().as_secs_f64();
    resume(pid);
    let samples = count_perf_samples(perf, &data)?;
    Ok(Measured {
        finish_s,
        cpu_s: recorded.cpu_s + scripted.cpu_s + collapsed.cpu_s,
        peak_mb: recorded.peak_mb.max(scripted.peak_mb).max(collapsed.peak_mb),
        samples,
        stacks: PATHS as u64,
    })
}

/// Calls of inlined functions in each function: they are what makes the debug information large.
const INLINED: &str = "
#include <pthread.h>
#include <stdlib.h>
#include <unistd.h>
typedef unsigned long word;
typedef word step(word, word);
#define INLINE static inline __attribute__((always_inline)) word
INLINE turn(word value, word by) { word low = value << (by & 31); word high = value >> (32 - (by & 31)); return low ^ high; }
INLINE stir(word left, word right) { word sum = left + turn(right, left); word product = sum * 0x9e3779b97f4a7c15; return product ^ turn(sum, 7); }
INLINE blend(word first, word second) { word one = stir(first, second); word two = stir(second, one); return one - two; }
";

/// Builds the program, unless it is there: one source file a depth, one more with the tables and `main`.
fn build(directory: &Path) -> anyhow::Result<PathBuf> {
    let program = directory.join("wide");
    if program.exists() {
        return Ok(program);
    }
    fs::create_dir_all(directory)?;
    let started = Instant::now();
    let mut sources = Vec::new();
    for depth in 0..DEPTH {
        let mut text = String::from(INLINED);
        writeln!(text, "extern step *const depth_{}[];", depth + 1)?;
        for number in 0..WIDTH {
            writeln!(
                text,
                "word f_{depth}_{number}(word path, word salt) {{ word mixed = blend(path, {number}); word result = \
                 depth_{}[turn(path, {depth}) % {WIDTH}](path, salt + 1); return turn(result, mixed) + salt; }}",
                depth + 1
            )?;
        }
        sources.push((format!("depth_{depth}.c"), text));
    }
    let mut text = String::from(INLINED);
    for depth in 0..DEPTH {
        for number in 0..WIDTH {
            writeln!(text, "step f_{depth}_{number};")?;
        }
        let names: Vec<String> = (0..WIDTH).map(|number| format!("f_{depth}_{number}")).collect();
        writeln!(text, "step *const depth_{depth}[{WIDTH}] = {{ {} }};", names.join(", "))?;
    }
    writeln!(
        text,
        "static volatile word spin_count = 400000;\n\
         word spin(word path, word salt) {{ for (word left = spin_count; left; left--) __asm__ volatile(\"\"); return path ^ salt; }}\n\
         step *const depth_{DEPTH}[{WIDTH}] = {{ [0 ... {}] = spin }};\n\
         static void *work(void *unused) {{ volatile word sum = 0; for (;;) for (word path = 0; path < {PATHS}; path++) \
         sum += depth_0[path % {WIDTH}](path * 0x9e3779b97f4a7c15 + 1, 0); return unused; }}\n\
         int main(int count, char **arguments) {{ pthread_t other; pthread_create(&other, 0, work, 0); pthread_create(&other, 0, work, 0); \
         sleep(count > 1 ? atoi(arguments[1]) : 1); _exit(0); }}",
        WIDTH - 1
    )?;
    sources.push(("main.c".to_owned(), text));
    let queue = std::sync::Mutex::new(sources.into_iter());
    let compile = || -> anyhow::Result<Vec<PathBuf>> {
        let mut objects = Vec::new();
        loop {
            let Some((name, text)) = queue.lock().map_err(|_| anyhow::anyhow!("another compiler failed"))?.next()
            else {
                return Ok(objects);
            };
            let source = directory.join(&name);
            fs::write(&source, text)?;
            let object = source.with_extension("o");
            let mut gcc = Command::new("gcc");
            gcc.args(["-O1", "-g", "-fno-omit-frame-pointer", "-fno-optimize-sibling-calls", "-c", "-o"]).arg(&object);
            ensure!(gcc.arg(&source).status().context("start gcc")?.success(), "gcc cannot compile {name}");
            objects.push(object);
        }
    };
    let objects = std::thread::scope(|scope| {
        let compilers = [(); 2].map(|()| scope.spawn(compile));
        let objects = compilers.into_iter().map(|compiler| compiler.join().unwrap_or_else(|_| bail!("a panic")));
        objects.collect::<anyhow::Result<Vec<_>>>()
    })?;
    let mut link = Command::new("gcc");
    let unfinished = directory.join("unfinished");
    link.args(["-pthread", "-o"]).arg(&unfinished).args(objects.concat());
    ensure!(link.status().context("start gcc")?.success(), "gcc cannot link");
    fs::rename(unfinished, &program)?;
    println!("built in {:.0} s", started.elapsed().as_secs_f64());
    Ok(program)
}
