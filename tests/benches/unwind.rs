//! What unwinding costs: `cargo xtask bench unwind`.
//!
//! 1. Time inside BPF for a walk by depth, by table and by the kernel's own frame-pointer walk (`bpf_get_stack`) of the
//!    same stack, per frame found: the programs are run on a process's own stack by `BPF_PROG_TEST_RUN`, timed by the kernel's BPF
//!    statistics. What an empty program takes is taken off.
//! 2. Tables: bytes a row, size, and time to compile, of objects that are installed here. Sizes published by others are
//!    printed beside.
//! 3. From the start of the profiler to sampling with every table in place, of node.
//!
//! Never asserts a time: exits 1 when a walk does not come back whole or a table is larger than the smallest of the
//! others', 2 when it could not measure. Argument: `--rounds N` (2000).

#![expect(clippy::print_stdout, reason = "a benchmark prints what it found")]

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, ensure};
use profiler::bpf::{Kernel, Limits, Selection, TableParts};
use profiler::process::{ObjectTable, read_mappings};
use profiler::unwind::{Cache, Rules, compile, load_or_compile};
use profiler_common::config::{MappingEntry, PROCESS_TARGET, Process, UNKNOWN_EXEC_COUNT};
use profiler_tests::{Record, Target, Workload, find_program, float, require_bpf, run_bench, scratch};

/// Frames of the stacks that are walked.
const DEPTHS: [u32; 6] = [8, 16, 38, 64, 122, 480];

/// The programs: ours, the kernel's, and one that does neither.
const PROGRAMS: [&str; 3] = ["bench_walk", "bench_kernel_walk", "bench_nothing"];

fn main() -> ExitCode {
    let options = [("rounds", 2000, 100..=1_000_000)];
    run_bench(options, |[rounds]| -> anyhow::Result<bool> { Ok(walks(rounds)? & tables()? & start()?) })
}

/// One walk of each program: ns each, and frames found by ours and the kernel's.
struct Walked {
    ns: [f64; 3],
    frames: [u32; 2],
    whole: bool,
}

/// Walks stacks of every depth; returns whether ours were whole.
fn walks(rounds: u32) -> anyhow::Result<bool> {
    let Some(_kernel) = require_bpf() else { return Ok(true) };
    println!("\nA walk of the user's stack: ns inside BPF, medians of 5 times {rounds} walks");
    println!(
        "{:<24} {:>7} {:>8} {:>8}   {:>16} {:>8} {:>8}   {:>6}",
        "", "frames", "ns", "a frame", "kernel's: frames", "ns", "a frame", "ratio"
    );
    let mut all_whole = true;
    for (name, flag) in
        [("with frame pointers", "-fno-omit-frame-pointer"), ("without frame pointers", "-fomit-frame-pointer")]
    {
        let program = Workload::c("deep").flag(flag).build();
        for depth in DEPTHS {
            let runs: Vec<Walked> = (0..5).map(|_| walk(&program, depth, rounds)).collect::<Result<_, _>>()?;
            let net = |index: usize| median(runs.iter().map(|run| (run.ns[index] - run.ns[2]).max(0.0)).collect());
            let (ours, kernel) = (net(0), net(1));
            let [found, by_kernel] = runs[0].frames;
            let (a_frame, kernel_frame) = (ours / f64::from(found), kernel / f64::from(by_kernel));
            // The kernel's walk ends at the first function without a frame pointer, and at 127 frames.
            let ratio = if 2 * by_kernel > found { format!("{:.2}", a_frame / kernel_frame) } else { String::new() };
            println!(
                "{name:<24} {found:>7} {ours:>8.0} {a_frame:>8.1}   {by_kernel:>16} {kernel:>8.0} {kernel_frame:>8.1}   {ratio:>6}"
            );
            let whole = runs.iter().all(|run| run.whole && run.frames[0] > depth);
            if !whole {
                println!("NOT WHOLE: {found} frames of at least {}", depth + 1);
            }
            all_whole &= whole;
        }
    }
    Ok(all_whole)
}

fn walk(program: &Path, depth: u32, rounds: u32) -> anyhow::Result<Walked> {
    let selection = Selection::Processes { follow_children: false };
    let mut kernel = Kernel::load(&selection, Limits::default(), false, std::process::id())?;
    let descriptors = PROGRAMS.map(|name| kernel.load_bench_program(name));
    let descriptors: Vec<_> = descriptors.into_iter().collect::<Result<_, _>>()?;
    let mut command = Command::new(program);
    command.arg(depth.to_string()).arg(rounds.to_string());
    for descriptor in &descriptors {
        // SAFETY: the descriptor is open; it becomes one that a child inherits.
        ensure!(unsafe { libc::fcntl(descriptor.as_raw_fd(), libc::F_SETFD, 0) } == 0, "cannot pass a program on");
        command.arg(descriptor.as_raw_fd().to_string());
    }
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    let mut output = BufReader::new(child.stdout.take().context("its output is a pipe")?);
    let mut line = String::new();
    output.read_line(&mut line)?;
    publish(&mut kernel, child.id())?;
    child.stdin.take().context("its input is a pipe")?.write_all(b"\n")?;
    line.clear();
    output.read_line(&mut line)?;
    ensure!(child.wait()?.success(), "the workload failed: {line}");
    let said: serde_json::Value = serde_json::from_str(&line)?;
    let result = |index: usize| said["results"][index].as_u64().and_then(|result| u32::try_from(result).ok());
    let (ours, theirs) = (result(0).context("no result")?, result(1).context("no result")?);
    let ns = PROGRAMS.map(|name| {
        let (ns, runs) = kernel.run_time_of(|program| program == name);
        float(ns) / float(runs)
    });
    Ok(Walked { ns, frames: [ours & 0xffff, theirs & 0xffff], whole: ours >> 16 == 0 })
}

/// Makes a process's mappings and tables known to the programs.
fn publish(kernel: &mut Kernel, pid: u32) -> anyhow::Result<()> {
    let (mut objects, mut rules) = (ObjectTable::default(), Rules::default());
    let mut entries = Vec::new();
    let mut numbers = Vec::new();
    for mapping in read_mappings(pid)?.iter() {
        let (start, end) = (mapping.start, mapping.end);
        let placed = objects.place(pid, mapping, start);
        let entry = match placed {
            Some((object, address)) => {
                let compiled = compile(&objects.objects()[object as usize].file, &mut rules)?;
                let pages: Vec<_> = compiled.table.pages.iter().map(|page| (page.first_row, page.rows)).collect();
                kernel.write_rules(rules.rules())?;
                let (first_page, rows) = (compiled.table.first_page, compiled.table.rows.as_slice());
                let table = kernel.place_table(TableParts { first_page, pages: &pages, rows })?.context("no room")?;
                numbers.push(table.number);
                table.entry(start, end, start.wrapping_sub(address))
            }
            None => MappingEntry { start, end, ..MappingEntry::default() },
        };
        entries.push(entry);
    }
    let run = kernel.acquire_run(entries, numbers)?.context("no room")?;
    let process = Process {
        generation: 0,
        flags: PROCESS_TARGET,
        first_exec_count: UNKNOWN_EXEC_COUNT,
        first_mapping: run.first,
        mappings: run.length,
        python_layout: 0,
        python_runtime: 0,
    };
    Ok(kernel.set_process(pid, process)?)
}

/// Objects whose tables others have published the size of, in MB, and how their files begin.
/// Sources: OpenTelemetry eBPF profiler, lightswitch, Perforator, measured in November 2026.
const PUBLISHED: [(&str, [f64; 3]); 2] = [("libc.so.6", [0.26, 0.20, 0.41]), ("librustc_driver-", [8.4, 9.0, 18.1])];

/// Compiles the tables of what is installed; returns whether none is larger than the others'.
fn tables() -> anyhow::Result<bool> {
    println!("\nTables: MB as programs search them, and ms to compile and to read from the cache, medians of 5");
    println!(
        "{:<34} {:>9} {:>9} {:>8} {:>7} {:>8} {:>7} {:>7}  others' MB (OpenTelemetry, lightswitch, Perforator)",
        "", "frames MB", "rows", "table MB", "B/row", "ms", "ms/MB", "cached"
    );
    let mut smaller = true;
    let directory = scratch();
    let cache = Cache::open(&directory.path().join("cache"))?;
    for path in objects() {
        let file = File::open(&path).with_context(|| format!("open {}", path.display()))?;
        let time = |cache| {
            let times = (0..5).map(|_| {
                let started = Instant::now();
                load_or_compile(cache, &file, &mut Rules::default()).map(|_| started.elapsed().as_secs_f64() * 1e3)
            });
            times.collect::<Result<_, _>>().map(median)
        };
        let compiled = load_or_compile(Some(&cache), &file, &mut Rules::default())?;
        let (ms, cached) = (time(None)?, time(Some(&cache))?);
        let (frames, bytes) = (float(compiled.frame_bytes as u64) / 1e6, float(compiled.table.bytes() as u64));
        let rows = float(compiled.table.rows.len() as u64);
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let others = PUBLISHED.iter().find(|(begin, _)| name.starts_with(begin)).map(|(_, sizes)| *sizes);
        let beside = others.map(|sizes| sizes.map(|size| format!("{size:.2}")).join(" / ")).unwrap_or_default();
        println!(
            "{:<34} {frames:>9.2} {rows:>9.0} {:>8.3} {:>7.2} {ms:>8.1} {:>7.1} {cached:>7.1}  {beside}",
            name.chars().take(34).collect::<String>(),
            bytes / 1e6,
            bytes / rows,
            ms / frames
        );
        if others.is_some_and(|sizes| sizes.iter().any(|size| bytes / 1e6 > *size)) {
            println!("LARGER than another's");
            smaller = false;
        }
    }
    Ok(smaller)
}

/// The C and C++ libraries, node, the Rust compiler's library, and the largest library or program there is.
fn objects() -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = Vec::new();
    let mut largest: Option<(u64, PathBuf)> = None;
    let mut roots = vec![PathBuf::from("/usr/lib/x86_64-linux-gnu"), PathBuf::from("/usr/bin")];
    if let Ok(sysroot) = Command::new("rustc").args(["--print", "sysroot"]).output() {
        roots.push(Path::new(String::from_utf8_lossy(&sysroot.stdout).trim()).join("lib"));
    }
    for root in roots {
        for entry in fs::read_dir(root).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let Ok(metadata) = entry.metadata() else { continue };
            if !metadata.is_file()
                || compile(
                    &match File::open(entry.path()) {
                        Ok(file) if metadata.len() > 1 << 20 => file,
                        _ => continue,
                    },
                    &mut Rules::default(),
                )
                .is_err()
            {
                continue;
            }
            if ["libc.so.6", "libstdc++.so.6.", "librustc_driver-"].iter().any(|begin| name.starts_with(begin))
                || name == "node"
            {
                found.push(entry.path());
            }
            if largest.as_ref().is_none_or(|(size, _)| metadata.len() > *size) {
                largest = Some((metadata.len(), entry.path()));
            }
        }
    }
    found.extend(largest.map(|(_, path)| path).filter(|path| !found.contains(path)));
    found
}

/// Attaches to node a few times; prints how long it took until sampling began.
fn start() -> anyhow::Result<bool> {
    let Some(_kernel) = require_bpf() else { return Ok(true) };
    let Some(node) = find_program("node") else { return Ok(true) };
    println!("\nFrom the start of `profiler record -p PID` to sampling with every table in place, ms:");
    let size = fs::metadata(&node)?.len();
    let mut command = Command::new(&node);
    command.args(["-e", "let x = 0; console.log('ready'); for (;;) { x = Math.sqrt(x + 1); }"]);
    let target = Target::start_command(&mut command);
    let mut whole = true;
    let directory = scratch();
    let path = directory.path().join("cache");
    let kept = ["--cache-dir", path.to_str().context("a path in UTF-8")?];
    let none = ["--no-cache", "--no-cache"];
    for (turn, cache) in [("compiled", &none[..1]), ("compiled and kept", &kept[..]), ("from the cache", &kept[..])] {
        let before = SystemTime::now().duration_since(UNIX_EPOCH)?;
        let captured = Record::new().rate(999).seconds(1).args(cache).pid(target.pid()).run();
        let began = Duration::from_nanos(captured.report["started_at_ns"].as_u64().context("no start")?);
        let share = captured.share(|_| true, |stack| stack.marker().is_none());
        let ms = began.saturating_sub(before).as_secs_f64() * 1e3;
        println!(
            "node ({:.0} MB), {turn} time: {ms:>6.0} ms, {:.1} % of the samples whole",
            float(size) / 1e6,
            share * 100.0
        );
        whole &= share > 0.95;
    }
    Ok(whole)
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
