//! `profiler export` and `profiler import`.

use std::path::PathBuf;

use anyhow::{Context as _, anyhow};
use clap::Args as ClapArgs;
use clap::builder::PossibleValuesParser;

use super::files::{OutputDirectory, default_name};
use super::{CommandResult, load, print, print_bytes};
use crate::analyze::{analyze, function_slices};
use crate::output::export::{Format, export};
use crate::output::import::{Imported, import};
use crate::output::{self, capture};

#[derive(Debug, ClapArgs)]
pub(super) struct ExportArgs {
    /// Directory of the capture
    directory: PathBuf,
    /// What to make of it; otlp is experimental, as OpenTelemetry's signal is
    #[arg(short, long, value_name = "FORMAT", value_parser = PossibleValuesParser::new(Format::ALL.map(Format::name)))]
    format: String,
    /// Only this origin; may be given more than once [default: all]
    #[arg(long = "origin", value_name = "NAME")]
    origins: Vec<String>,
    /// Directory to write to, or - for standard output [default: the capture's own]
    #[arg(short, long, value_name = "DIR")]
    output: Option<PathBuf>,
    /// Print which files were written as JSON
    #[arg(long)]
    json: bool,
}

/// Runs `export`.
pub(super) fn run(args: &ExportArgs) -> CommandResult {
    let format = Format::ALL.into_iter().find(|format| format.name() == args.format).context("unknown format")?;
    let capture = load::capture(&args.directory)?;
    let of = |name: &String| capture.index.origins.contains_key(name);
    if let Some(missing) = args.origins.iter().find(|name| !of(name)) {
        let known: Vec<&str> = capture.index.origins.keys().map(String::as_str).collect();
        return Err(anyhow!("the capture has no origin {missing:?}; it has: {}", known.join(", ")).into());
    }
    let mut files = Vec::new();
    for profile in &capture.profiles {
        let name = profile.origin.row().name;
        if args.origins.is_empty() || args.origins.iter().any(|origin| origin == name) {
            let file = export(profile, &capture.index, format);
            files.push(file.with_context(|| format!("cannot export {name} as {}", args.format))?);
        }
    }
    if args.output.as_deref().is_some_and(|output| output.as_os_str() == "-") {
        let [file] = files.as_slice() else {
            return Err(anyhow!("standard output takes one origin of {}: name it with --origin", files.len()).into());
        };
        print_bytes(&file.bytes)?;
        return Ok(0);
    }
    let directory = OutputDirectory::create(args.output.clone().unwrap_or_else(|| args.directory.clone()))?;
    directory.write(&files)?;
    let paths: Vec<PathBuf> = files.iter().map(|file| directory.path().join(&file.name)).collect();
    if args.json {
        print(&format!("{}\n", serde_json::json!({ "files": paths })))?;
    } else {
        for path in paths {
            eprintln!("wrote {}", path.display());
        }
    }
    Ok(0)
}

#[derive(Debug, ClapArgs)]
pub(super) struct ImportArgs {
    /// Profile of pprof, or the text of `perf script`
    file: PathBuf,
    /// Directory to write to, made when missing [default: profile-FILE-TIME]
    #[arg(short, long, value_name = "DIR")]
    output: Option<PathBuf>,
    /// Print what was imported as JSON
    #[arg(long)]
    json: bool,
}

/// Runs `import`.
pub(super) fn run_import(args: &ImportArgs) -> CommandResult {
    let path = args.file.display();
    let name = args.file.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let bytes = load::bounded(&args.file).with_context(|| format!("cannot read {path}"))?;
    let Imported { mut capture, lengths_ns, sliced } =
        import(&bytes, &name).with_context(|| format!("cannot import {path}"))?;
    if !lengths_ns.is_empty() {
        let slices = function_slices(&capture.profiles[0], lengths_ns, sliced);
        capture.index.function_slices.insert(capture.profiles[0].origin.row().name.to_owned(), slices);
    }
    let directory = OutputDirectory::create(args.output.clone().unwrap_or_else(|| default_name(&name)))?;
    if directory.path().join(capture::INDEX_FILE).exists() {
        return Err(
            anyhow!("{} has a capture already: choose another directory with -o", directory.path().display()).into()
        );
    }
    let mut files = capture::write(&capture).context("cannot make the output")?;
    files.extend(output::derived(&capture, &analyze(&capture)).context("cannot make the output")?);
    directory.write(&files)?;
    if args.json {
        let summary = serde_json::json!({ "directory": directory.path(), "origins": capture.index.origins });
        print(&format!("{summary}\n"))?;
    } else {
        eprintln!("wrote {} files to {}", files.len(), directory.path().display());
    }
    Ok(0)
}
