//! `profiler record`.

use std::path::Path;

use anyhow::{Context as _, bail};
use profiler_common::event::Origin;

use super::args::{Event, RecordArgs};
use super::files::{OutputDirectory, default_name};
use super::progress::ProgressLine;
use super::{CommandResult, Failure, print};
use crate::analyze::analyze;
use crate::bpf::{Limits, max_sample_rate};
use crate::collect::{
    AllocConfig, CacheDirectory, CommandError, NamingConfig, RecordConfig, Recording, RunningCommand, TargetSelection, record,
};
use crate::output::{self, OutputFile};
use crate::process;
use crate::profile::{Capture, Index, Report, Severity};
use crate::symbolize::DEBUG_DIRECTORY;

/// Our own failure when a command was to be run. Source: the convention of env, nohup and timeout.
const FAILED_WITH_COMMAND: u8 = 125;

/// Runs it.
pub(super) fn run(args: RecordArgs) -> CommandResult {
    let with_command = !args.command.is_empty();
    record_and_write(args).map_err(|failure| match failure.error.downcast_ref::<CommandError>() {
        Some(error) => Failure { code: u8::try_from(error.exit_code()).unwrap_or(FAILED_WITH_COMMAND), ..failure },
        None if with_command => Failure { code: FAILED_WITH_COMMAND, ..failure },
        None => failure,
    })
}

fn record_and_write(args: RecordArgs) -> CommandResult {
    let (config, name) = validate(&args)?;
    // Before a directory is made for it.
    config.target.selection()?;
    let directory = OutputDirectory::create(args.output.unwrap_or_else(|| default_name(&name)))?;
    let line = ProgressLine::new(config.duration, args.json);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start")?;
    let recording = runtime.block_on(record(&config, &mut |progress| line.update(progress)))?;
    drop(line);
    let Recording { capture, command, interrupted } = recording;
    let capture = if args.redact { capture.redacted() } else { capture };
    let (report, files) = make_files(&capture);
    let written = files.and_then(|files| directory.write(&files));
    let told = written.and_then(|()| tell(&capture, &report, &directory, args.json));
    // The command's own end comes first, also when our files could not be written.
    let ended = end_of_command(command, interrupted)?;
    told?;
    Ok(ended)
}

/// What is written: the capture itself, and meanwhile what is made from it.
pub(super) fn make_files(capture: &Capture) -> (Report, anyhow::Result<Vec<OutputFile>>) {
    std::thread::scope(|scope| {
        let own = scope.spawn(|| output::capture::write(capture));
        let report = analyze(capture);
        let derived = output::derived(capture, &report);
        let own = own.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        let files = own.and_then(|own| Ok(own.into_iter().chain(derived?).collect()));
        (report, files.context("cannot make the output"))
    })
}

/// The exit code: the command's own, which is waited for unless somebody interrupted us.
fn end_of_command(command: Option<RunningCommand>, interrupted: bool) -> CommandResult {
    let Some(mut command) = command else { return Ok(0) };
    if interrupted {
        return Ok(0);
    }
    let end = command.wait().context("cannot wait for the command")?;
    Ok(u8::try_from(end.exit_code()).unwrap_or(FAILED_WITH_COMMAND))
}

/// Checks that the kernel lets us sample so often.
pub(super) fn check_rate(rate_hz: u64) -> anyhow::Result<()> {
    let highest = max_sample_rate();
    if rate_hz == 0 || rate_hz > highest {
        bail!(
            "cannot sample at {rate_hz} Hz: the kernel allows 1 to {highest} Hz; lower -F, or raise it with \
             `sysctl kernel.perf_event_max_sample_rate=N`"
        );
    }
    Ok(())
}

/// Checks what clap cannot, and names the capture.
fn validate(args: &RecordArgs) -> anyhow::Result<(RecordConfig, String)> {
    check_rate(args.rate_hz)?;
    let (target, name) = if !args.command.is_empty() {
        let program = args.command[0].to_string_lossy();
        let name = program.rsplit('/').next().unwrap_or_default().to_owned();
        (TargetSelection::Command(args.command.clone()), name)
    } else {
        running(&args.pids, args.children, args.cgroup.as_deref(), args.comm.as_deref())
    };
    let origins = origins(if args.all { &Event::ALL } else { &args.events });
    let limits = Limits {
        records: args.map_entries,
        ring_bytes: args.buffer_mb << 20,
        table_shards: usize::from(args.table_mb),
        ..Limits::default()
    };
    let cache = match &args.cache_dir {
        Some(path) => CacheDirectory::Directory(path.clone()),
        None if args.no_cache => CacheDirectory::None,
        None => CacheDirectory::Usual,
    };
    let naming = NamingConfig {
        debug_directories: args.debug_directories.iter().cloned().chain([DEBUG_DIRECTORY.into()]).collect(),
        debuginfod: args.debuginfod,
        shorten: args.short_names,
    };
    let (wakers, rate_hz, duration) = (args.wakers, args.rate_hz, args.duration);
    if wakers && !origins.iter().any(|origin| matches!(origin, Origin::OffCpu | Origin::Lock)) {
        bail!("--wakers says who ends waits, which are not recorded: add -e offcpu, or -e cpu,offcpu");
    }
    let slower_ns = args.slower.map_or(0, |slower| u64::try_from(slower.as_nanos()).unwrap_or(u64::MAX));
    if slower_ns > 0 && !origins.contains(&Origin::BlockIo) {
        bail!("--slower lists requests to block devices, which are not recorded: add -e blockio, or -e cpu,blockio");
    }
    if args.exact && !origins.contains(&Origin::Alloc) {
        bail!("--exact records every allocation, and allocations are not recorded: add -e alloc");
    }
    let alloc = AllocConfig { budget: args.alloc_budget / 100.0, is_exact: args.exact };
    let config = RecordConfig {
        target,
        origins,
        alloc,
        wakers,
        slower_ns,
        rate_hz,
        duration,
        limits,
        cache,
        naming,
        watch: None,
    };
    Ok((config, name))
}

/// A target that runs, and what a capture of it is called; the host when nothing is named.
pub(super) fn running(
    pids: &[u32],
    children: bool,
    cgroup: Option<&Path>,
    comm: Option<&str>,
) -> (TargetSelection, String) {
    if let Some(path) = cgroup {
        (TargetSelection::Cgroup(path.to_owned()), path.file_name().unwrap_or_default().to_string_lossy().into_owned())
    } else if let Some(comm) = comm {
        (TargetSelection::Comm(comm.to_owned()), comm.to_owned())
    } else if let Some(first) = pids.first() {
        let name = process::command_name(*first).map_or_else(|| first.to_string(), |name| format!("{name}-{first}"));
        (TargetSelection::Processes { pids: pids.to_vec(), children }, name)
    } else {
        (TargetSelection::Host, "host".to_owned())
    }
}

/// The origins of events, each once, in the order of their numbers.
pub(super) fn origins(events: &[Event]) -> Vec<Origin> {
    let mut origins: Vec<Origin> = events.iter().map(|event| event.origin()).collect();
    origins.sort_unstable();
    origins.dedup();
    origins
}

/// What is recorded where little can be chosen, until the target ends.
pub(super) fn usual_config(target: TargetSelection, events: &[Event], rate_hz: u64) -> RecordConfig {
    RecordConfig {
        target,
        origins: origins(events),
        alloc: AllocConfig { budget: 0.02, is_exact: false },
        wakers: false,
        slower_ns: 0,
        rate_hz,
        duration: None,
        limits: Limits::default(),
        cache: CacheDirectory::Usual,
        naming: NamingConfig { debug_directories: vec![DEBUG_DIRECTORY.into()], debuginfod: false, shorten: false },
        watch: None,
    }
}

/// Says what was recorded and where it is.
fn tell(capture: &Capture, report: &Report, directory: &OutputDirectory, json: bool) -> anyhow::Result<()> {
    if json {
        let summary = serde_json::json!({
            "directory": directory.path(),
            "target": capture.index.target,
            "duration_ns": capture.index.duration_ns,
            "origins": capture.index.origins,
            "accounting": capture.index.accounting,
            "warnings": capture.index.warnings,
        });
        print(&format!("{summary}\n"))?;
        return Ok(());
    }
    // Standard output belongs to the command that was run.
    eprint!("{}", summary(&capture.index, report));
    let pictures = capture.index.origins.keys().map(|origin| format!("{origin}.svg, {origin}.pb.gz"));
    let pictures: Vec<String> = pictures.collect();
    eprintln!("wrote {}: report.md, {} and more", directory.path().display(), pictures.join(", "));
    Ok(())
}

/// What a person wants to know at once.
fn summary(index: &Index, report: &Report) -> String {
    let mut text = String::new();
    for (name, accounting) in &index.accounting {
        let share = |count: u64| 100.0 * ratio(count, accounting.samples() + accounting.samples_lost());
        let what = if is_of_time(index, name) {
            let total = index.origins.get(name).map_or(0, |summary| summary.total);
            format!("{:.3} s in {} samples", ratio(total, 1_000_000_000), accounting.samples())
        } else {
            format!("{} samples", accounting.samples())
        };
        text.push_str(&format!(
            "{name}: {what} of {} in {:.1} s: {:.1} % complete, {:.1} % truncated, {:.1} % lost\n",
            index.target.description,
            ratio(index.duration_ns, 1_000_000_000),
            share(accounting.complete),
            share(accounting.samples() - accounting.complete),
            share(accounting.samples_lost()),
        ));
        for hotspot in report.hotspots.iter().filter(|hotspot| hotspot.origin == *name).take(3) {
            text.push_str(&format!("  {:5.1} %  {}\n", 100.0 * hotspot.self_share, hotspot.function));
        }
    }
    for finding in report.findings.iter().filter(|finding| finding.severity > Severity::Info).take(3) {
        text.push_str(&format!("{}: {}\n", finding.severity.name(), finding.title));
    }
    for warning in &index.warnings {
        text.push_str(&format!("warning: {warning}\n"));
    }
    // Names come from targets: none may speak to the terminal.
    text.chars().map(|c| if c.is_control() && c != '\n' { '?' } else { c }).collect()
}

/// Whether an origin's values are times.
fn is_of_time(index: &Index, name: &str) -> bool {
    index.origins.get(name).is_some_and(|summary| summary.unit == "ns")
}

#[expect(clippy::cast_precision_loss, reason = "shown with one decimal")]
fn ratio(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 / whole as f64 }
}
