//! `profiler query`: what a history says of a range of time.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow};
use clap::{Args as ClapArgs, Subcommand};
use jiff::Zoned;
use jiff::tz::TimeZone;
use profiler_common::event::Origin;
use tokio::signal::unix::{SignalKind, signal};

use super::diff::{RuleArgs, WorkArgs, compare_and_tell};
use super::files::OutputDirectory;
use super::record::{make_files, summary};
use super::{CommandResult, check, moment, print};
use crate::analyze::{analyze, metric, trend};
use crate::daemon::http::{HttpConfig, Server, Service};
use crate::daemon::store::{History, Range, WindowInfo};
use crate::profile::{Capture, Selection};

/// Where the daemon keeps its history unless told otherwise.
pub(super) const STATE_DIRECTORY: &str = "/var/lib/profiler";
/// Most bytes of windows that are read at once: hours of windows of 10 s, and months of windows of an hour.
const MAX_BYTES: u64 = 4 << 30;
/// Points of a trend, as many as one is of.
const TREND_POINTS: u64 = 50;

#[derive(Debug, ClapArgs)]
#[command(
    args_conflicts_with_subcommands = true,
    after_help = "Moments: 14:05, 14:05:30, 2026-11-22T14:05 (local time), an RFC 3339 time, -5m, now.\n\n\
    Examples: profiler query --from 14:05 --to 14:07 --pid 42 -o minute · profiler query list --last 1h · \
    profiler query diff 14:00..14:05 14:05..14:07"
)]
pub(super) struct QueryArgs {
    #[command(subcommand)]
    command: Option<QueryCommand>,
    #[command(flatten)]
    when: WhenArgs,
    #[command(flatten)]
    whose: WhoseArgs,
    /// Write a capture as `record` does, with flamegraphs and report, to this directory
    #[arg(short, long, value_name = "DIR")]
    output: Option<PathBuf>,
    /// Print report.json
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    store: StoreArgs,
}

#[derive(Debug, Subcommand)]
enum QueryCommand {
    /// List the windows: when, what of, who ran
    List(ListArgs),
    /// Say which functions and stacks have changed from one range to another, beyond chance
    Diff(DiffArgs),
    /// Say where a metric goes over a range
    Trend(TrendArgs),
    /// Show a history in a browser: the daemon's page, of a copy of its state directory too
    Serve(ServeArgs),
}

/// Which time.
#[derive(Debug, ClapArgs)]
struct WhenArgs {
    /// First moment [default: an hour ago]
    #[arg(long, value_name = "MOMENT", allow_hyphen_values = true)]
    from: Option<String>,
    /// Last moment [default: now]
    #[arg(long, value_name = "MOMENT", allow_hyphen_values = true)]
    to: Option<String>,
    /// So much time until now: 5m, 2h
    #[arg(long, value_name = "DURATION", value_parser = super::args::parse_duration, conflicts_with_all = ["from", "to"])]
    last: Option<Duration>,
}

impl WhenArgs {
    fn range(&self) -> Result<Range> {
        let now = Zoned::now();
        let parse = |text: &str| moment::parse(text, &now).map_err(|error| anyhow!(error));
        let to = parse(self.to.as_deref().unwrap_or("now"))?;
        let hour = Duration::from_secs(3600);
        let from = match (&self.from, self.last) {
            (Some(from), _) => parse(from)?,
            (None, last) => {
                let ago = u64::try_from(last.unwrap_or(hour).as_nanos()).unwrap_or(u64::MAX);
                to.saturating_sub(ago)
            }
        };
        moment::range(from, to).map_err(|error| anyhow!(error))
    }
}

/// Whose values.
#[derive(Debug, Default, ClapArgs)]
struct WhoseArgs {
    /// Only this process; may be given more than once
    #[arg(long = "pid", value_name = "PID")]
    pids: Vec<u32>,
    /// Only processes of this name
    #[arg(long, value_name = "NAME")]
    process: Option<String>,
    /// Only threads of this name
    #[arg(long, value_name = "NAME")]
    thread: Option<String>,
    /// Only this cgroup and those below it
    #[arg(long, value_name = "PATH")]
    cgroup: Option<String>,
}

impl WhoseArgs {
    fn selection(&self) -> Selection {
        Selection {
            pids: self.pids.clone(),
            process: self.process.clone(),
            thread: self.thread.clone(),
            cgroup: self.cgroup.clone(),
        }
    }
}

/// Which history.
#[derive(Debug, ClapArgs)]
pub(super) struct StoreArgs {
    /// The daemon's state directory, or a copy of it
    #[arg(long, value_name = "DIR", default_value = STATE_DIRECTORY)]
    pub(super) state_dir: PathBuf,
}

impl StoreArgs {
    fn open(&self) -> Result<History> {
        History::open(&self.state_dir)
            .context("name the daemon's state directory with --state-dir; reading it needs the rights of its owner")
    }
}

#[derive(Debug, ClapArgs)]
struct ListArgs {
    #[command(flatten)]
    when: WhenArgs,
    /// Print everything that is known of the windows as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    store: StoreArgs,
}

#[derive(Debug, ClapArgs)]
#[command(after_help = "Exit code: 0 when nothing got worse, 1 when something did, 2 when it could not run.\n\n\
    Example: profiler query diff 14:00..14:05 14:05..14:07 --pid 42")]
struct DiffArgs {
    /// Range before: FROM..TO
    #[arg(allow_hyphen_values = true)]
    before: String,
    /// Range after: FROM..TO
    #[arg(allow_hyphen_values = true)]
    after: String,
    #[command(flatten)]
    whose: WhoseArgs,
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
    #[command(flatten)]
    store: StoreArgs,
}

#[derive(Debug, ClapArgs)]
struct TrendArgs {
    /// Metric, as in budgets
    metric: String,
    #[command(flatten)]
    when: WhenArgs,
    #[command(flatten)]
    whose: WhoseArgs,
    /// More of it is better
    #[arg(long)]
    higher_is_better: bool,
    /// Print it as JSON, with every point
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    store: StoreArgs,
}

#[derive(Debug, ClapArgs)]
struct ServeArgs {
    /// Address and port; another than loopback needs a token
    #[arg(long, value_name = "ADDR:PORT", default_value = "127.0.0.1:4041")]
    listen: std::net::SocketAddr,
    /// File that has the token that others must show
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    #[command(flatten)]
    store: StoreArgs,
}

/// Runs it.
pub(super) fn run(args: &QueryArgs) -> CommandResult {
    match &args.command {
        None => read(args),
        Some(QueryCommand::List(args)) => list(args),
        Some(QueryCommand::Diff(args)) => diff(args),
        Some(QueryCommand::Trend(args)) => trend_of(args),
        Some(QueryCommand::Serve(args)) => serve(args),
    }
}

fn read(args: &QueryArgs) -> CommandResult {
    let history = args.store.open()?;
    let capture = history.read(args.when.range()?, &args.whose.selection(), MAX_BYTES)?;
    if let Some(path) = &args.output {
        let directory = OutputDirectory::create(path.clone())?;
        let (_, files) = make_files(&capture);
        let files = files?;
        directory.write(&files)?;
        eprintln!("wrote {} files to {}", files.len(), directory.path().display());
    }
    let report = analyze(&capture);
    if args.json {
        let mut bytes = Vec::new();
        crate::output::report_json::write(&capture.index, &report, &mut bytes)?;
        print(&String::from_utf8_lossy(&bytes))?;
    } else {
        let zone = TimeZone::system();
        let (from, length) = (capture.index.started_at_ns, capture.index.duration_ns);
        let text = format!(
            "{} of windows from {} on\n{}",
            seconds(length),
            moment::show(from, &zone),
            summary(&capture.index, &report)
        );
        print(&text)?;
    }
    Ok(0)
}

fn list(args: &ListArgs) -> CommandResult {
    let windows = args.store.open()?.windows(args.when.range()?)?;
    if args.json {
        print(&format!("{}\n", serde_json::json!({ "windows": windows })))?;
        return Ok(0);
    }
    let zone = TimeZone::system();
    let mut text = String::new();
    for window in &windows {
        text.push_str(&line(window, &zone));
    }
    text.push_str(&format!(
        "{} windows, {} of time, {:.1} MiB\n",
        windows.len(),
        seconds(windows.iter().map(|window| window.key.duration_ns).sum()),
        float(windows.iter().map(|window| window.bytes).sum()) / f64::from(1 << 20)
    ));
    // Names come from targets: none may speak to the terminal.
    print(&text.chars().map(|c| if c.is_control() && c != '\n' { '?' } else { c }).collect::<String>())?;
    Ok(0)
}

/// `2026-11-22T14:05:00+01:00 10.0 s cpu 190, offcpu 1234: redis-server (42) 80 %, nginx (7) 12 %`.
fn line(window: &WindowInfo, zone: &TimeZone) -> String {
    let origins = window.origins.iter().map(|(name, origin)| format!("{name} {}", origin.n));
    let of = window.origins.get(Origin::Cpu.row().name).or_else(|| window.origins.values().next());
    let whole = of.map_or(1.0, |origin| float(origin.total)).max(1.0);
    let processes =
        window.processes.iter().take(3).map(|process| {
            format!("{} ({}) {:.0} %", process.process, process.pid, 100.0 * float(process.value) / whole)
        });
    format!(
        "{} {} {}: {}{}\n",
        moment::show(window.key.started_at_ns, zone),
        seconds(window.key.duration_ns),
        origins.collect::<Vec<_>>().join(", "),
        processes.collect::<Vec<_>>().join(", "),
        if window.kept { " (kept)" } else { "" }
    )
}

fn diff(args: &DiffArgs) -> CommandResult {
    let (history, now) = (args.store.open()?, Zoned::now());
    let read = |range: &str| -> Result<Vec<Capture>> {
        let range = moment::parse_range(range, &now).map_err(|error| anyhow!(error))?;
        Ok(vec![history.read(range, &args.whose.selection(), MAX_BYTES)?])
    };
    let (before, after) = (read(&args.before)?, read(&args.after)?);
    compare_and_tell(
        [&before, &after],
        args.origin.as_deref(),
        &args.by,
        &args.rules.rules(),
        args.output.as_deref(),
        args.json,
    )
}

fn trend_of(args: &TrendArgs) -> CommandResult {
    let (history, range) = (args.store.open()?, args.when.range()?);
    let windows = history.windows(range)?;
    // As many points as a trend has, each of whole windows.
    let step = (range.to_ns - range.from_ns).div_ceil(TREND_POINTS).max(1);
    let mut points = Vec::new();
    let mut unit = "";
    let mut rest = windows.as_slice();
    while let Some(first) = rest.first() {
        let slot = first.key.started_at_ns / step;
        let count = rest.iter().take_while(|window| window.key.started_at_ns / step == slot).count();
        let (group, more) = rest.split_at(count);
        rest = more;
        let to_ns = group.iter().map(|window| window.key.end_ns()).max().unwrap_or(0);
        let group = Range { from_ns: first.key.started_at_ns, to_ns };
        let capture = history.read(group, &args.whose.selection(), MAX_BYTES)?;
        let found = metric(&capture, &analyze(&capture), &args.metric).with_context(|| {
            format!("the windows have no metric {:?}: record what it is of, or mend its name", args.metric)
        })?;
        unit = found.unit;
        points.push((capture.index.started_at_ns, found.value));
    }
    check::tell_trend(&trend(&args.metric, unit, points, args.higher_is_better), "windows", args.json)
}

/// Serves until Ctrl-C or SIGTERM.
fn serve(args: &ServeArgs) -> CommandResult {
    // Before anything listens.
    args.store.open()?;
    let token = args.token_file.as_deref().map(HttpConfig::read_token).transpose()?;
    let config = HttpConfig { listen: args.listen, token, tls: None };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start")?;
    runtime.block_on(async {
        let server = Server::bind(config).await?;
        eprintln!("showing {} on http://{}/", args.store.state_dir.display(), server.address()?);
        let mut terminated = signal(SignalKind::terminate())?;
        let service = Arc::new(Service::of_history(args.store.state_dir.clone()));
        tokio::select! {
            () = server.serve(service) => {}
            _ = terminated.recv() => {}
            interrupted = tokio::signal::ctrl_c() => interrupted?,
        }
        Ok::<(), anyhow::Error>(())
    })?;
    // A request that still reads is not waited for.
    runtime.shutdown_background();
    Ok(0)
}

fn seconds(ns: u64) -> String {
    format!("{:.1} s", float(ns) / 1e9)
}

#[expect(clippy::cast_precision_loss, reason = "shown with few digits")]
const fn float(value: u64) -> f64 {
    value as f64
}
