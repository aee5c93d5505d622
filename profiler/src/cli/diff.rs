//! `profiler diff`.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use clap::Args as ClapArgs;

use super::files::OutputDirectory;
use super::{CommandResult, load, print};
use crate::analyze::{Worked, counters, diff, work};
use crate::output;
use crate::profile::{Capture, Diff, DiffRules, Profile};

/// The counter that is time.
const TIME: &str = "second";
/// The counter of those that are timed runs.
const BENCH_RUNS: &str = "bench.runs";

/// A regression was found.
const FOUND: u8 = 1;

#[derive(Debug, ClapArgs)]
#[command(after_help = "Exit code: 0 when nothing got worse, 1 when something did, 2 when it could not run.\n\n\
    Example: profiler diff old new --per syscall.calls -o changes")]
pub(super) struct DiffArgs {
    /// Capture before, or a directory of several: repetitions tell how far recordings of the same program differ
    before: PathBuf,
    /// Capture after, or a directory of several
    after: PathBuf,
    /// Origin to compare [default: cpu, else the first that both have]
    #[arg(long, value_name = "NAME")]
    origin: Option<String>,
    #[command(flatten)]
    by: WorkArgs,
    #[command(flatten)]
    rules: RuleArgs,
    /// Also write diff.md, diff.json, diff.folded and both flamegraphs to this directory
    #[arg(short, long, value_name = "DIR")]
    output: Option<PathBuf>,
    /// Print it as JSON
    #[arg(long)]
    json: bool,
}

/// What values are divided by.
#[derive(Clone, Debug, Default, ClapArgs)]
pub(super) struct WorkArgs {
    /// Divide by this counter instead of the time: ORIGIN.COLUMN, TABLE.VALUE or a column of the timeline that is a sum
    #[arg(long, value_name = "COUNTER")]
    pub(super) per: Option<String>,
    /// Divide by units of work that the program did: one number for each capture, those before first, those of a
    /// directory in the order of their names
    #[arg(long, value_name = "N,N", value_delimiter = ',', conflicts_with = "per")]
    pub(super) work: Vec<f64>,
}

/// When a change counts.
#[derive(Clone, Debug, ClapArgs)]
pub(super) struct RuleArgs {
    /// Chance, in all, of reporting a regression where there is none
    #[arg(long, value_name = "P", default_value_t = DiffRules::default().significance, value_parser = parse_part)]
    significance: f64,
    /// Least change that counts, in per cent of everything
    #[arg(long, value_name = "PERCENT", default_value_t = DiffRules::default().least_effect * 100.0, value_parser = parse_percent)]
    least_effect: f64,
    /// How far two recordings of the same program are taken to differ, in per cent; measured with three or more a side
    #[arg(long, value_name = "PERCENT", default_value_t = DiffRules::default().run_noise * 100.0, value_parser = parse_percent)]
    run_noise: f64,
}

impl RuleArgs {
    pub(super) fn rules(&self) -> DiffRules {
        DiffRules {
            significance: self.significance,
            least_effect: self.least_effect / 100.0,
            run_noise: self.run_noise / 100.0,
        }
    }
}

/// Runs it.
pub(super) fn run(args: &DiffArgs) -> CommandResult {
    let (before, after) = (load::captures(&args.before)?, load::captures(&args.after)?);
    let rules = args.rules.rules();
    compare_and_tell([&before, &after], args.origin.as_deref(), &args.by, &rules, args.output.as_deref(), args.json)
}

/// Compares captures before and after, writes the files where they are asked for, and says what has changed.
pub(super) fn compare_and_tell(
    [before, after]: [&[Capture]; 2],
    origin: Option<&str>,
    by: &WorkArgs,
    rules: &DiffRules,
    directory: Option<&Path>,
    json: bool,
) -> CommandResult {
    let (diff, origin) = compare(before, after, origin, by, rules)?;
    if let Some(directory) = directory {
        let files = output::diff::files(&diff, &profiles(before, &origin), &profiles(after, &origin))
            .context("cannot make the output")?;
        let directory = OutputDirectory::create(directory.to_owned())?;
        directory.write(&files)?;
        eprintln!("wrote {} files to {}", files.len(), directory.path().display());
    }
    let text = if json { output::diff::to_json(&diff) } else { output::diff::to_markdown(&diff) };
    print(&String::from_utf8_lossy(&text?))?;
    Ok(if diff.regressions().next().is_some() { FOUND } else { 0 })
}

/// Compares captures by what was asked for. Returns the origin too.
pub(super) fn compare(
    before: &[Capture],
    after: &[Capture],
    origin: Option<&str>,
    by: &WorkArgs,
    rules: &DiffRules,
) -> Result<(Diff, String)> {
    let all = || before.iter().chain(after);
    let origin = match origin {
        Some(origin) => origin.to_owned(),
        None => common_origin(all()).context(
            "the captures have no origin in common: record the same with -e, or compare captures that have one",
        )?,
    };
    let (per, works) = works(all().collect(), by)?;
    let (of_before, of_after) = works.split_at(before.len());
    let worked = |capture, work| worked(capture, work, &per);
    let before: Vec<_> = before.iter().zip(of_before).map(|(capture, &work)| worked(capture, work)).collect();
    let after: Vec<_> = after.iter().zip(of_after).map(|(capture, &work)| worked(capture, work)).collect();
    let found = diff(&origin, &per, &before, &after, rules)
        .with_context(|| format!("a capture has no profile of {origin:?}: name another with --origin"))?;
    Ok((found, origin))
}

/// A capture with the work it did, in units of `per`.
fn worked<'a>(capture: &'a Capture, work: f64, per: &str) -> Worked<'a> {
    let runs = if per == BENCH_RUNS { &capture.index.runs[..] } else { &[] };
    Worked { capture, work, is_time: per == TIME, runs }
}

/// What the values are divided by, and how much of it each capture has.
fn works(captures: Vec<&Capture>, by: &WorkArgs) -> Result<(String, Vec<f64>)> {
    if !by.work.is_empty() {
        if by.work.len() != captures.len() {
            bail!("--work has {} numbers for {} captures: give one for each", by.work.len(), captures.len());
        }
        if let Some(wrong) = by.work.iter().find(|work| !(work.is_finite() && **work > 0.0)) {
            bail!("--work {wrong}: units of work must be more than 0");
        }
        return Ok(("unit of work".to_owned(), by.work.clone()));
    }
    let usual = if captures.iter().all(|capture| !capture.index.runs.is_empty()) { BENCH_RUNS } else { TIME };
    let counter = by.per.as_deref().unwrap_or(usual);
    let found = captures.into_iter().map(|capture| match work(capture, counter) {
        Some(work) if work > 0.0 => Ok(work),
        Some(_) => bail!("{counter} is 0 in the capture of {}: name another counter", capture.index.target.description),
        None => bail!(
            "the capture of {} has no counter {counter:?}; it has: {}",
            capture.index.target.description,
            counters(capture).join(", ")
        ),
    });
    Ok((counter.to_owned(), found.collect::<Result<_>>()?))
}

/// `cpu` where all have it, else the first that all have.
fn common_origin<'a>(captures: impl Iterator<Item = &'a Capture>) -> Option<String> {
    let mut captures = captures.map(|capture| capture.index.origins.keys().cloned().collect::<Vec<_>>());
    let mut common = captures.next()?;
    for origins in captures {
        common.retain(|origin| origins.contains(origin));
    }
    let cpu = common.iter().find(|origin| *origin == "cpu");
    cpu.or(common.first()).cloned()
}

fn profiles<'a>(captures: &'a [Capture], origin: &str) -> Vec<&'a Profile> {
    captures
        .iter()
        .flat_map(|capture| &capture.profiles)
        .filter(|profile| profile.origin.row().name == origin)
        .collect()
}

/// A chance between 0 and 1.
fn parse_part(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(part) if part > 0.0 && part < 1.0 => Ok(part),
        _ => Err("must be a number between 0 and 1, as in 0.01".to_owned()),
    }
}

/// Per cent from 0 to 100.
fn parse_percent(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(percent) if (0.0..=100.0).contains(&percent) => Ok(percent),
        _ => Err("must be per cent from 0 to 100, as in 0.5".to_owned()),
    }
}
