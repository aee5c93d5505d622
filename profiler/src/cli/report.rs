//! `profiler report`.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use anyhow::{Context as _, anyhow};

use super::args::ReportArgs;
use super::files::OutputDirectory;
use super::{CommandResult, print};
use crate::analyze::analyze;
use crate::output::{self, capture};

/// Largest file of a capture that is read.
const MAX_FILE_BYTES: u64 = 1 << 30;

/// Runs it.
pub(super) fn run(args: &ReportArgs) -> CommandResult {
    let read = |name: &str| read_bounded(&args.directory.join(name));
    let index = read(capture::INDEX_FILE).map_err(|error| {
        anyhow!(
            "cannot read {} in {}: {error}; name a directory that `record` wrote",
            capture::INDEX_FILE,
            args.directory.display()
        )
    })?;
    let capture = capture::read(&index, read).with_context(|| format!("cannot use {}", args.directory.display()))?;
    let report = analyze(&capture);
    let files = output::derived(&capture, &report).context("cannot make the output")?;
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

fn read_bounded(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let read = File::open(path)?.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes)?;
    if read as u64 > MAX_FILE_BYTES {
        return Err(io::Error::other("larger than 1 GiB, which no capture is"));
    }
    Ok(bytes)
}
