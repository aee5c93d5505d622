//! `profiler record`.

use anyhow::Context as _;

use super::args::RecordArgs;
use super::files::{OutputDirectory, default_name};
use super::options::Event;
use super::progress::ProgressLine;
use super::{CommandResult, Failure, print};
use crate::analyze::analyze;
use crate::collect::{CommandError, Recording, RunningCommand, record};
use crate::output::{self, OutputFile};
use crate::profile::{Capture, Index, Report, Severity};

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
    let (target, name) = args.target.selection(&args.command);
    let config = args.recording.config(target, args.duration, &[Event::Cpu])?;
    if let Some(note) = args.recording.leaves_out(&config) {
        eprintln!("{note}");
    }
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
pub(super) fn summary(index: &Index, report: &Report) -> String {
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
