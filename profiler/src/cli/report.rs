//! `profiler report`.

use anyhow::Context as _;

use super::args::ReportArgs;
use super::files::OutputDirectory;
use super::{CommandResult, check, load, print};
use crate::analyze::analyze_by;
use crate::output;

/// Runs it.
pub(super) fn run(args: &ReportArgs) -> CommandResult {
    let capture = load::capture(&args.directory)?;
    let capture = if args.redact { capture.redacted() } else { capture };
    let report = analyze_by(&capture, &check::rules(args.rules.as_deref())?);
    let mut files = output::derived(&capture, &report).context("cannot make the output")?;
    if args.redact {
        files.extend(output::capture::write(&capture).context("cannot make the output")?);
    }
    if args.json {
        let json = files.iter().find(|file| file.name == "report.json").map(|file| file.bytes.as_slice());
        print(&String::from_utf8_lossy(json.unwrap_or_default()))?;
        return Ok(0);
    }
    let directory = OutputDirectory::create(args.output.clone().unwrap_or_else(|| args.directory.clone()))?;
    directory.write(&files)?;
    eprintln!("wrote {} files to {}", files.len(), directory.path().display());
    Ok(0)
}
