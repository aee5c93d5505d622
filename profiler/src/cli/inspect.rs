//! `profiler inspect`: what unwinding makes of an ELF file.

use std::fmt::Write as _;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};

use super::args::InspectArgs;
use super::{CommandResult, print};
use crate::process::ObjectFile;
use crate::unwind::{Compiled, Rules, compile};

/// Functions that cannot be followed that a person is shown; JSON has all.
const SHOWN: usize = 20;

/// Runs it.
pub(super) fn run(args: &InspectArgs) -> CommandResult {
    let path = args.elf.display().to_string();
    let file = open(&args.elf).with_context(|| format!("cannot inspect {path}"))?;
    let mut rules = Rules::default();
    let start = Instant::now();
    let compiled = compile(&file, &mut rules).with_context(|| format!("cannot inspect {path}"))?;
    let took = start.elapsed();
    let build_id = ObjectFile::read(file, path.clone()).map(|object| object.build_id).unwrap_or_default();
    let found = Found { path, build_id, compiled, rules: rules.rules().len(), took };
    print(&if args.json { format!("{}\n", found.json()) } else { found.text() })?;
    Ok(0)
}

/// Opens a regular file: a device or a FIFO must not block us.
fn open(path: &Path) -> anyhow::Result<File> {
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(path)?;
    if !file.metadata()?.is_file() {
        bail!("not a regular file");
    }
    Ok(file)
}

/// All there is to say.
struct Found {
    path: String,
    build_id: String,
    compiled: Compiled,
    rules: usize,
    took: Duration,
}

impl Found {
    fn json(&self) -> serde_json::Value {
        let Compiled { table, refused, damaged, .. } = &self.compiled;
        let refused = refused.iter().map(
            |(start, size, why)| serde_json::json!({ "address": start, "size_bytes": size, "reason": why.to_string() }),
        );
        let damaged = damaged
            .iter()
            .map(|(offset, why)| serde_json::json!({ "section_offset": offset, "reason": why.to_string() }));
        serde_json::json!({
            "path": self.path,
            "build_id": self.build_id,
            "section": self.compiled.section,
            "frame_bytes": self.compiled.frame_bytes,
            "functions": self.compiled.functions,
            "discarded_functions": self.compiled.discarded,
            "rows": table.rows.len(),
            "pages": table.pages.len(),
            "table_bytes": table.bytes(),
            "dictionary_rules": self.rules,
            "rows_by_kind": self.compiled.kinds,
            "compile_ns": u64::try_from(self.took.as_nanos()).unwrap_or(u64::MAX),
            "not_followed": refused.collect::<Vec<_>>(),
            "damaged": damaged.collect::<Vec<_>>(),
        })
    }

    fn text(&self) -> String {
        let Compiled { table, refused, damaged, functions, .. } = &self.compiled;
        let mut text = String::new();
        let mut line = |name: &str, value: String| {
            // Writing to a string cannot fail.
            let _ = writeln!(text, "{name:<18} {value}");
        };
        let build_id = if self.build_id.is_empty() { "none" } else { &self.build_id };
        let took_ms = self.took.as_secs_f64() * 1e3;
        let frame_megabytes = ratio(self.compiled.frame_bytes, 1_000_000);
        line("file", self.path.clone());
        line("build ID", build_id.to_owned());
        line(self.compiled.section, format!("{} bytes", self.compiled.frame_bytes));
        line("compiled in", format!("{took_ms:.1} ms, {:.1} ms a MB", took_ms / frame_megabytes.max(1e-6)));
        line("functions", format!("{functions}, and {} of discarded code", self.compiled.discarded));
        line("rows", format!("{} in {} pages", table.rows.len(), table.pages.len()));
        let bytes_a_row = ratio(table.bytes(), table.rows.len());
        line("table", format!("{} bytes, {bytes_a_row:.2} a row", table.bytes()));
        line("dictionary", format!("{} rules of 16 bytes", self.rules));
        let total = self.compiled.kinds.values().sum();
        for (kind, &count) in &self.compiled.kinds {
            line(&format!("  {kind}"), format!("{count} rows, {:.2} %", 100.0 * ratio(count, total)));
        }
        line("not followed", format!("{} functions", refused.len()));
        for (start, size, why) in refused.iter().take(SHOWN) {
            line(&format!("  {start:#x}"), format!("{size} bytes: {why}"));
        }
        if refused.len() > SHOWN {
            line("  ...", format!("{} more, all in --json", refused.len() - SHOWN));
        }
        line("damaged", format!("{} entries", damaged.len()));
        for (offset, why) in damaged.iter().take(SHOWN) {
            line(&format!("  at {offset:#x}"), why.to_string());
        }
        text
    }
}

#[expect(clippy::cast_precision_loss, reason = "shown to two digits")]
fn ratio(part: usize, of: usize) -> f64 {
    part as f64 / of.max(1) as f64
}
