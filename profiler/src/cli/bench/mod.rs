//! `profiler bench`: a command that is run again and again, timed, and recorded meanwhile.
//!
//! The runs are started by a process of their own, which is what is recorded, with all it starts: so probes are attached
//! once for all runs, and the capture has them all.

mod runs;

use std::ffi::OsString;
use std::path::PathBuf;

use anyhow::{Context as _, Result, bail};
use clap::Args as ClapArgs;

use self::runs::{RepeatArgs, repeat, run_once};
pub(super) use self::runs::{RunsArgs, run_runs};
use super::args::parse_duration;
use super::files::{OutputDirectory, default_name};
use super::options::{Event, RecordingArgs};
use super::progress::ProgressLine;
use super::record::make_files;
use super::{CommandResult, print};
use crate::analyze::{BENCH_TABLE, BenchBudget, bench, bench_table, check_bench};
use crate::collect::{Recording, TargetSelection, record};
use crate::output;
use crate::profile::{Bench, BenchFigure, Check, Run};

/// A budget was not kept.
const FAILED: u8 = 1;

/// What a run that a signal of the terminal ended has for an exit code, and with it the process that starts runs.
const INTERRUPTED: [i32; 2] = [128 + libc::SIGINT, 128 + libc::SIGTERM];

#[derive(Debug, ClapArgs)]
#[command(
    override_usage = "profiler bench [OPTIONS] -- COMMAND ARG...",
    after_help = "Examples: profiler bench --budget p95=200ms -- ./import block.bin \u{b7} \
                  profiler bench --no-profile -- sort words\n\n\
                  Exit code: 0 when every budget is kept, 1 when one is not, 2 when the runs could not be made."
)]
pub(super) struct BenchArgs {
    /// Runs before those that are measured
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u64).range(0..=10_000))]
    warmup: u64,
    #[command(flatten)]
    repeat: RepeatArgs,
    /// The most that mean, min, p50, p90, p95, p99, max or cpu may be: p95=200ms; may be given more than once
    #[arg(long = "budget", value_name = "FIGURE=DURATION", value_parser = parse_budget)]
    budgets: Vec<BenchBudget>,
    /// Measure alone: no probes, no root, no capture
    #[arg(long, conflicts_with = "RecordingArgs")]
    no_profile: bool,
    #[command(flatten)]
    recording: RecordingArgs,
    /// Directory to write to, made when missing [default: profile-bench-COMMAND-TIME; none with --no-profile]
    #[arg(short, long, value_name = "DIR")]
    output: Option<PathBuf>,
    /// Leave arguments, paths, peers and the host's name out, so that the files can be shared
    #[arg(long)]
    redact: bool,
    /// Print it as JSON, with the time of every run
    #[arg(long, conflicts_with = "show_output")]
    json: bool,
}

/// Runs it.
pub(super) fn run(args: &BenchArgs) -> CommandResult {
    let program = args.repeat.command.first().map(|word| word.to_string_lossy().into_owned()).unwrap_or_default();
    let program = program.rsplit('/').next().unwrap_or_default();
    let path = match &args.output {
        Some(path) => Some(path.clone()),
        None => (!args.no_profile).then(|| default_name(&format!("bench-{program}"))),
    };
    let directory = path.map(OutputDirectory::create).transpose()?;
    for _ in 0..args.warmup {
        run_once(&args.repeat)?;
    }
    let (runs, files) = match &directory {
        Some(directory) if !args.no_profile => record_runs(args, program, directory)?,
        _ => (repeat(&args.repeat, &mut |_| Ok(()))?, Vec::new()),
    };
    let words: Vec<_> = args.repeat.command.iter().map(|word| word.to_string_lossy()).collect();
    let command = if args.redact { program.to_owned() } else { words.join(" ") };
    let found = bench(&command, args.warmup, args.repeat.precision(), &runs).context("no run was measured")?;
    let mut found = Bench { profiled: !args.no_profile, ..found };
    found.checks = check_bench(&found, &args.budgets);
    let json = output::bench::file(&found).context("cannot make the output")?;
    let text =
        if args.json { String::from_utf8_lossy(&json.bytes).into_owned() } else { output::bench::to_text(&found) };
    if let Some(directory) = &directory {
        directory.write(&files.into_iter().chain([json]).collect::<Vec<_>>())?;
    }
    print(&text)?;
    if let Some(directory) = &directory {
        let what = if args.no_profile { "" } else { "report.html, capture.json and more, " };
        eprintln!("wrote {}: {what}{}", directory.path().display(), output::bench::FILE);
    }
    Ok(if found.checks.iter().any(Check::fails) { FAILED } else { 0 })
}

/// Makes the runs and records them; returns them and the files of the capture.
fn record_runs(
    args: &BenchArgs,
    program: &str,
    directory: &OutputDirectory,
) -> Result<(Vec<Run>, Vec<output::OutputFile>)> {
    let times = tempfile::NamedTempFile::new_in(directory.path())
        .with_context(|| format!("cannot write to {}: choose another directory with -o", directory.path().display()))?;
    let target = TargetSelection::Command(runs::command(&args.repeat, times.path())?);
    let config = args.recording.config(target, None, &[Event::Cpu])?;
    let line = ProgressLine::new(None, args.json || args.repeat.show_output);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start")?;
    let recording = runtime.block_on(record(&config, &mut |progress| line.update(progress)))?;
    drop(line);
    let Recording { mut capture, command, interrupted } = recording;
    if let Some(mut command) = command {
        if interrupted {
            // Whoever ended us wants no more runs. It may have ended by itself.
            let _ = command.kill();
        }
        let code = command.wait().context("cannot wait for the runs")?.exit_code();
        if !interrupted && code != 0 && !INTERRUPTED.contains(&code) {
            bail!("not all runs could be made, and nothing was written");
        }
    }
    let runs = runs::read(times.path())?;
    if runs.is_empty() {
        bail!("no run was measured before it was ended");
    }
    describe(&mut capture.index.target.description, &args.repeat.command, runs.len());
    capture.index.tables.insert(BENCH_TABLE.to_owned(), bench_table(program, &runs));
    capture.index.runs.clone_from(&runs);
    let capture = if args.redact { capture.redacted() } else { capture };
    let (_, files) = make_files(&capture);
    Ok((runs, files?))
}

/// Describes the target as the command, in the place of the process that starts it.
fn describe(description: &mut String, command: &[OsString], runs: usize) {
    /// A command line is the title of every picture.
    const MOST: usize = 180;
    let words: Vec<_> = command.iter().map(|word| word.to_string_lossy()).collect();
    let line = words.join(" ");
    let shown: String = line.chars().take(MOST).collect();
    let cut = if shown.len() < line.len() { "\u{2026}" } else { "" };
    *description = format!("command: {shown}{cut} ({runs} runs)");
}

/// `p95=200ms`.
fn parse_budget(text: &str) -> Result<BenchBudget, String> {
    let names = || BenchFigure::ALL.map(BenchFigure::name).join(", ");
    let Some((name, limit)) = text.split_once('=') else {
        return Err("must be a figure and its limit, as in mean=150ms".to_owned());
    };
    let figure = BenchFigure::ALL.into_iter().find(|figure| figure.name() == name);
    let figure = figure.ok_or_else(|| format!("unknown figure {name:?}: use {}", names()))?;
    let limit_ns = u64::try_from(parse_duration(limit)?.as_nanos()).unwrap_or(u64::MAX);
    Ok(BenchBudget { figure, limit_ns })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn budgets_name_a_figure_and_a_limit() {
        let parsed = parse_budget("p95=1.5ms").unwrap();
        assert_eq!((parsed.figure, parsed.limit_ns), (BenchFigure::P95, 1_500_000));
        assert!(parse_budget("p42=1s").unwrap_err().contains("p50, p90"));
        for wrong in ["", "mean", "mean=", "mean=-1", "=1s"] {
            assert!(parse_budget(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_target_is_described_by_its_command() {
        let mut description = String::new();
        describe(&mut description, &["a".into(), "b".into()], 3);
        assert_eq!(description, "command: a b (3 runs)");
        describe(&mut description, &["\u{fc}".repeat(500).into()], 3);
        assert!(description.ends_with("\u{fc}\u{2026} (3 runs)"), "{description}");
    }
}
