//! `profiler check`, `profiler baseline` and `profiler trend`.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, anyhow, bail};
use clap::{Args as ClapArgs, Subcommand, ValueEnum};

use super::diff::{RuleArgs, WorkArgs, compare};
use super::files::OutputDirectory;
use super::{CommandResult, load, print};
use crate::analyze::{BaselineRules, Budgets, Rules, analyze_by, check_diff, check_memory, check_rate, metric, trend};
use crate::output::{OutputFile, capture, check};
use crate::profile::{Check, Direction, Trend};

/// A check failed.
const FAILED: u8 = 1;
/// Where baselines are kept unless said otherwise: beside the code that they are of.
const STORE: &str = ".profiler/baselines";

#[derive(Debug, ClapArgs)]
#[command(
    after_help = "Exit code: 0 when everything holds, 1 when something does not, 2 when it could not be checked.\n\n\
    Example: profiler check capture --budgets budgets.toml --baseline main --format github"
)]
pub(super) struct CheckArgs {
    /// Capture, or a directory of several
    directory: PathBuf,
    /// Budgets: a TOML file
    #[arg(long, value_name = "FILE", required_unless_present = "baseline")]
    budgets: Option<PathBuf>,
    /// Compare with a baseline that `baseline save` has kept
    #[arg(long, value_name = "NAME")]
    baseline: Option<String>,
    /// Where baselines are
    #[arg(long, value_name = "DIR", default_value = STORE)]
    store: PathBuf,
    /// With --baseline: a counter that must come at least 0.9 times as fast; may be given more than once
    #[arg(long, value_name = "COUNTER", requires = "baseline")]
    rate: Vec<String>,
    #[command(flatten)]
    by: WorkArgs,
    #[command(flatten)]
    compared: RuleArgs,
    /// Patterns and thresholds of findings: a TOML file
    #[arg(long, value_name = "FILE")]
    rules: Option<PathBuf>,
    /// How to print it
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
    /// Print it as JSON
    #[arg(long, conflicts_with = "format")]
    json: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    /// For a person
    Text,
    /// For programs
    Json,
    /// JUnit's XML
    Junit,
    /// Annotations of GitHub Actions
    Github,
}

/// Runs `check`.
pub(super) fn run(args: &CheckArgs) -> CommandResult {
    let rules = rules(args.rules.as_deref())?;
    let captures = load::captures(&args.directory)?;
    let mut checks: Vec<Check> = Vec::new();
    if let Some(path) = &args.budgets {
        let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        let budgets = Budgets::read(&text).map_err(|error| anyhow!("cannot use {}: {error}", path.display()))?;
        for capture in &captures {
            let report = analyze_by(capture, &rules);
            checks.extend(budgets.check(capture, &report).map_err(|error| anyhow!("cannot check budgets: {error}"))?);
        }
    }
    if let Some(name) = &args.baseline {
        let baseline = load::captures(&stored(&args.store, name)?)
            .with_context(|| format!("there is no baseline {name:?}: `profiler baseline save {name} DIR` keeps one"))?;
        let (diff, _) = compare(&baseline, &captures, None, &args.by, &args.compared.rules())?;
        checks.extend(check_diff(&diff));
        let limits = BaselineRules::default();
        for counter in &args.rate {
            checks.push(check_rate(counter, &baseline, &captures, &limits).map_err(|error| anyhow!("{error}"))?);
        }
        checks.extend(check_memory(&baseline, &captures, &limits));
    }
    let format = if args.json { Format::Json } else { args.format };
    let text = match format {
        Format::Text => check::to_text(&checks),
        Format::Json => String::from_utf8_lossy(&check::to_json(&checks)?).into_owned(),
        Format::Junit => check::to_junit(&checks)?,
        Format::Github => check::to_github(&checks),
    };
    print(&text)?;
    Ok(if checks.iter().any(Check::fails) { FAILED } else { 0 })
}

/// Rules with those of a file, if one is named.
pub(super) fn rules(path: Option<&Path>) -> Result<Rules> {
    let Some(path) = path else { return Ok(Rules::default()) };
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    Rules::with_file(&text).with_context(|| format!("cannot use {}", path.display()))
}

#[derive(Debug, ClapArgs)]
pub(super) struct BaselineArgs {
    #[command(subcommand)]
    command: BaselineCommand,
}

#[derive(Debug, Subcommand)]
enum BaselineCommand {
    /// Keep a capture, or those in a directory, under a name; what was kept under it is replaced
    Save {
        /// Name: letters, digits, dots, dashes and underscores
        name: String,
        /// Capture, or a directory of several
        directory: PathBuf,
        /// Where to keep it
        #[arg(long, value_name = "DIR", default_value = STORE)]
        store: PathBuf,
    },
    /// List the names
    List {
        /// Where they are kept
        #[arg(long, value_name = "DIR", default_value = STORE)]
        store: PathBuf,
        /// Print them as JSON
        #[arg(long)]
        json: bool,
    },
}

/// Runs `baseline`.
pub(super) fn run_baseline(args: &BaselineArgs) -> CommandResult {
    match &args.command {
        BaselineCommand::Save { name, directory, store } => save(name, directory, store),
        BaselineCommand::List { store, json } => list(store, *json),
    }
}

fn save(name: &str, directory: &Path, store: &Path) -> CommandResult {
    let target = stored(store, name)?;
    // Read before anything is replaced: what is kept can be used.
    let captures = load::captures(directory)?;
    let new = store.join(format!(".{name}.new"));
    if new.exists() {
        std::fs::remove_dir_all(&new).with_context(|| format!("cannot remove {}", new.display()))?;
    }
    for (capture, number) in captures.iter().zip(1..) {
        let files: Vec<OutputFile> = capture::write(capture).context("cannot make the baseline")?;
        OutputDirectory::create(new.join(format!("{number:04}")))?.write(&files)?;
    }
    if target.exists() {
        std::fs::remove_dir_all(&target).with_context(|| format!("cannot replace {}", target.display()))?;
    }
    std::fs::rename(&new, &target).with_context(|| format!("cannot write {}", target.display()))?;
    eprintln!(
        "kept {} in {}",
        if captures.len() == 1 { "1 capture".to_owned() } else { format!("{} captures", captures.len()) },
        target.display()
    );
    Ok(0)
}

fn list(store: &Path, json: bool) -> CommandResult {
    let entries = std::fs::read_dir(store)
        .with_context(|| format!("cannot read {}: `profiler baseline save NAME DIR` makes it", store.display()))?;
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let mut names: Vec<String> = names.filter(|name| !name.starts_with('.')).collect();
    names.sort();
    if json {
        print(&format!("{}\n", serde_json::json!({ "baselines": names })))?;
    } else {
        print(&names.iter().map(|name| format!("{name}\n")).collect::<String>())?;
    }
    Ok(0)
}

/// Where a baseline is; its name cannot lead elsewhere.
fn stored(store: &Path, name: &str) -> Result<PathBuf> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    if name.is_empty() || name.len() > 100 || name.starts_with('.') || !name.chars().all(plain) {
        bail!("{name:?} cannot be the name of a baseline: use letters, digits, dots, dashes and underscores");
    }
    Ok(store.join(name))
}

#[derive(Debug, ClapArgs)]
pub(super) struct TrendArgs {
    /// Directory of captures
    directory: PathBuf,
    /// Metric, as in budgets
    #[arg(short, long, value_name = "NAME")]
    metric: String,
    /// More of it is better
    #[arg(long)]
    higher_is_better: bool,
    /// Print it as JSON, with every point
    #[arg(long)]
    json: bool,
}

/// Runs `trend`.
pub(super) fn run_trend(args: &TrendArgs) -> CommandResult {
    let rules = Rules::default();
    let mut points = Vec::new();
    let mut unit = "";
    for path in load::capture_paths(&args.directory)? {
        let capture = load::capture(&path)?;
        let report = analyze_by(&capture, &rules);
        let found = metric(&capture, &report, &args.metric).with_context(|| {
            format!("{} has no metric {:?}: record what it is of, or mend its name", path.display(), args.metric)
        })?;
        unit = found.unit;
        points.push((capture.index.started_at_ns, found.value));
    }
    let found = trend(&args.metric, unit, points, args.higher_is_better);
    tell_trend(&found, "captures", args.json)
}

/// Says where a metric goes. `of`: what the points are.
pub(super) fn tell_trend(found: &Trend, of: &str, json: bool) -> CommandResult {
    if json {
        print(&String::from_utf8_lossy(&check::trend_to_json(found)?))?;
        return Ok(0);
    }
    let word = match found.direction {
        Direction::Improving => "improving".to_owned(),
        Direction::Degrading => "degrading".to_owned(),
        Direction::Stable => "stable".to_owned(),
        Direction::Insufficient => format!("insufficient: a trend needs 10 {of}"),
    };
    print(&format!(
        "{} over {} {of}: {word} ({:+.1} % from the first to the last, p {:.3})\n",
        found.metric,
        found.points.len(),
        found.change * 100.0,
        found.p_value
    ))?;
    Ok(0)
}
