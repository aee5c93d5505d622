//! What a recording left: its files, read back and held against each other.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use profiler::profile::{Accounting, Profile};
use profiler_common::event::Origin;
use serde_json::Value;

use crate::environment::find_program;
use crate::process::{Ended, truth_in};

/// A line of a folded file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stack {
    /// The command name.
    pub process: String,
    /// The frames, root first.
    pub frames: Vec<String>,
    /// Samples, or ns off the CPU.
    pub count: u64,
}

impl Stack {
    /// The leaf frame; empty where there is none.
    #[must_use]
    pub fn leaf(&self) -> &str {
        self.frames.last().map_or("", String::as_str)
    }

    /// The leaf frame that is not the kernel's; empty where there is none.
    #[must_use]
    pub fn user_leaf(&self) -> &str {
        self.frames.iter().rfind(|frame| !frame.ends_with("_[k]")).map_or("", String::as_str)
    }

    /// The function that the program was in, whatever was inlined into it; empty where there is none.
    #[must_use]
    pub fn user_function(&self) -> &str {
        let inlined_or_kernel = |frame: &str| frame.ends_with("_[i]") || frame.ends_with("_[k]");
        self.frames.iter().rfind(|frame| !inlined_or_kernel(frame)).map_or("", String::as_str)
    }

    /// Whether a frame has this name.
    #[must_use]
    pub fn has(&self, name: &str) -> bool {
        self.frames.iter().any(|frame| frame == name)
    }

    /// Whether the frames contain these names, root first, each directly below the one before.
    #[must_use]
    pub fn has_chain(&self, names: &[impl AsRef<str>]) -> bool {
        self.frames
            .windows(names.len())
            .any(|frames| frames.iter().zip(names).all(|(frame, name)| frame == name.as_ref()))
    }

    /// The frames that are the program's, root first: neither the kernel's nor one that says why the root is missing.
    #[must_use]
    pub fn user_frames(&self) -> Vec<&str> {
        let frames = self.frames.iter().map(String::as_str);
        frames.filter(|frame| !frame.ends_with("_[k]") && !is_marker(frame)).collect()
    }

    /// The frame that says why the root is missing, when it does.
    #[must_use]
    pub fn marker(&self) -> Option<&str> {
        let first = self.frames.first()?;
        is_marker(first).then_some(first.as_str())
    }
}

/// A finished recording, checked for what must hold of every one. Its stacks, accounting and profile are those of the first
/// origin that was recorded.
#[derive(Debug)]
pub struct Captured {
    /// How the profiler ended.
    pub ended: Ended,
    /// `report.json`.
    pub report: Value,
    /// The origin's accounting.
    pub accounting: Accounting,
    /// Its folded stacks.
    pub stacks: Vec<Stack>,
    /// Its pprof file.
    pub profile: Profile,
    directory: tempfile::TempDir,
}

impl Captured {
    /// Reads the files and checks that they agree.
    ///
    /// # Panics
    ///
    /// When they do not, or one is missing or unreadable.
    #[must_use]
    pub fn read(ended: Ended, directory: tempfile::TempDir) -> Self {
        let path = directory.path().join("capture");
        let read = |name: &str| {
            fs::read(path.join(name)).unwrap_or_else(|error| panic!("cannot read {name}: {error}; {}", ended.stderr))
        };
        let report: Value = serde_json::from_slice(&read("report.json")).expect("report.json is JSON");
        for name in ["capture.json", "report.md"] {
            assert!(!read(name).is_empty(), "{name} is empty");
        }
        let origins = report["origins"].as_object().expect("origins").keys();
        let mut origins: Vec<_> = origins.map(|name| Origin::from_name(name).expect("a known origin")).collect();
        origins.sort_unstable();
        let first = *origins.first().expect("an origin");
        let (accounting, stacks, profile) = read_origin(first, &report, &read);
        Self { ended, report, accounting, stacks, profile, directory }.check().with_others(&origins[1..])
    }

    /// The recording as that of another of its origins.
    ///
    /// # Panics
    ///
    /// When that was not recorded.
    #[must_use]
    pub fn into_origin(mut self, origin: Origin) -> Self {
        let path = self.path();
        let read = |name: &str| fs::read(path.join(name)).unwrap_or_else(|error| panic!("cannot read {name}: {error}"));
        (self.accounting, self.stacks, self.profile) = read_origin(origin, &self.report, &read);
        self.check()
    }

    /// Checks the other origins too.
    fn with_others(self, others: &[Origin]) -> Self {
        let first = self.profile.origin;
        others.iter().fold(self, |captured, &origin| captured.into_origin(origin)).into_origin(first)
    }

    /// What must hold of every recording.
    fn check(self) -> Self {
        let row = self.profile.origin.row();
        let accounting = &self.accounting;
        assert!(accounting.adds_up(), "hits are not accounted for: {accounting:#?}");
        let (total, totals) = (self.total(), self.profile.totals());
        let n = self.report["origins"][row.name]["n"].as_u64();
        assert_eq!(n, Some(accounting.samples()), "the report's n is not complete + truncated: {accounting:#?}");
        assert_eq!(n, Some(totals[0]), "the pprof file does not sum to the report's n");
        assert_eq!(self.count(|_| true), total, "the folded file does not sum to the report's total");
        assert_eq!(totals[row.primary], total, "the pprof file does not sum to the report's total");
        let is_cut = |stack: u32| self.profile.frames(stack).any(|frame| is_marker(&frame.name));
        let marked: u64 =
            self.profile.samples.iter().filter(|sample| is_cut(sample.stack)).map(|sample| sample.values[0]).sum();
        let incomplete: u64 = accounting.truncated.values().sum();
        assert_eq!(marked, incomplete, "samples cut short and samples with a marker differ: {accounting:#?}");
        self
    }

    /// The origin's values in all, by the report.
    ///
    /// # Panics
    ///
    /// When the report has no such figure.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.report["origins"][self.profile.origin.row().name]["total"].as_u64().expect("a total")
    }

    /// Values of the stacks that are wanted: samples, or ns off the CPU.
    #[must_use]
    pub fn count(&self, wanted: impl Fn(&Stack) -> bool) -> u64 {
        self.stacks.iter().filter(|stack| wanted(stack)).map(|stack| stack.count).sum()
    }

    /// Samples of the stacks that are wanted, of those that are `among`, 0 to 1.
    ///
    /// # Panics
    ///
    /// When there are none to choose from.
    #[must_use]
    pub fn share(&self, among: impl Fn(&Stack) -> bool, wanted: impl Fn(&Stack) -> bool) -> f64 {
        let all = self.count(&among);
        assert!(all > 0, "no such stack among:\n{}", self.folded());
        float(self.count(|stack| among(stack) && wanted(stack))) / float(all)
    }

    /// Samples by thread name.
    #[must_use]
    pub fn by_thread(&self) -> std::collections::BTreeMap<&str, u64> {
        let mut counts = std::collections::BTreeMap::new();
        for sample in &self.profile.samples {
            let thread = &self.profile.threads[sample.thread as usize];
            *counts.entry(thread.thread_name.as_str()).or_default() += sample.values[0];
        }
        counts
    }

    /// Samples by pid.
    #[must_use]
    pub fn by_pid(&self) -> std::collections::BTreeMap<u32, u64> {
        let mut counts = std::collections::BTreeMap::new();
        for sample in &self.profile.samples {
            *counts.entry(self.profile.threads[sample.thread as usize].pid).or_default() += sample.values[0];
        }
        counts
    }

    /// The account that the workload printed, when the profiler started it.
    ///
    /// # Panics
    ///
    /// When there is none.
    #[must_use]
    pub fn truth(&self) -> Value {
        truth_in(&self.ended.stdout)
    }

    /// Events that were not delivered, of those expected, 0 to 1.
    #[must_use]
    pub fn not_delivered(&self) -> f64 {
        self.accounting.not_delivered / self.accounting.expected
    }

    /// The output directory.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        self.directory.path().join("capture")
    }

    /// The most memory that the profiler had resident, in bytes.
    ///
    /// # Panics
    ///
    /// When the report does not tell.
    #[must_use]
    pub fn peak_rss_bytes(&self) -> u64 {
        self.report["overhead"]["peak_rss_bytes"].as_u64().expect("bytes")
    }

    /// The folded stacks, the most frequent stacks first, for a failing test's message.
    #[must_use]
    pub fn folded(&self) -> String {
        let mut stacks: Vec<_> = self.stacks.iter().collect();
        stacks.sort_by_key(|stack| std::cmp::Reverse(stack.count));
        let lines = stacks.iter().take(40);
        let lines = lines.map(|stack| format!("{};{} {}\n", stack.process, stack.frames.join(";"), stack.count));
        lines.collect::<String>() + &self.ended.stderr
    }

    /// What `go tool pprof` prints with `options` of the pprof file; `None` where Go is not installed.
    ///
    /// # Panics
    ///
    /// When it fails.
    #[must_use]
    pub fn go_pprof(&self, options: &[&str]) -> Option<String> {
        let go = find_program("go")?;
        let mut command = Command::new(go);
        // Nothing of it outside the test's own directory; no symbols from elsewhere.
        command.env("HOME", self.directory.path()).env("PPROF_TMPDIR", self.directory.path());
        command
            .args(["tool", "pprof", "-symbolize=none"])
            .args(options)
            .arg(self.path().join(format!("{}.pb.gz", self.profile.origin.row().name)));
        let output = command.output().expect("start go tool pprof");
        assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
        Some(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}

/// What there is of one origin.
fn read_origin(origin: Origin, report: &Value, read: &dyn Fn(&str) -> Vec<u8>) -> (Accounting, Vec<Stack>, Profile) {
    let name = origin.row().name;
    let accounting = serde_json::from_value(report["accounting"][name].clone()).expect("the origin's accounting");
    let folded = String::from_utf8(read(&format!("{name}.folded"))).expect("the folded file is UTF-8");
    let profile = profiler::output::pprof::decode(&read(&format!("{name}.pb.gz"))).expect("a pprof file");
    assert!(!read(&format!("{name}.svg")).is_empty(), "{name}.svg is empty");
    (accounting, folded.lines().map(parse).collect(), profile)
}

fn is_marker(frame: &str) -> bool {
    frame.starts_with("[truncated: ") || frame.starts_with("[lost: ")
}

fn parse(line: &str) -> Stack {
    let (stack, count) = line.rsplit_once(' ').unwrap_or_else(|| panic!("not a folded line: {line:?}"));
    let mut frames = stack.split(';').map(str::to_owned);
    Stack {
        process: frames.next().unwrap_or_default(),
        frames: frames.collect(),
        count: count.parse().unwrap_or_else(|error| panic!("{line:?}: {error}")),
    }
}

/// A count as a number that ratios are made of.
#[must_use]
#[expect(clippy::cast_precision_loss, reason = "counts of samples are far below 2^53")]
pub fn float(count: u64) -> f64 {
    count as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folded_lines_are_read() {
        let stack = parse("redis-server;[truncated: no_frame_pointer];operator new(unsigned long);read_[k] 12");
        assert_eq!(stack.process, "redis-server");
        assert_eq!(stack.count, 12);
        assert_eq!(stack.marker(), Some("[truncated: no_frame_pointer]"));
        assert_eq!(stack.user_leaf(), "operator new(unsigned long)");
        assert_eq!(stack.leaf(), "read_[k]");
        assert_eq!(stack.user_frames(), ["operator new(unsigned long)"]);
        assert!(stack.has_chain(&["operator new(unsigned long)", "read_[k]"]));
        assert!(!stack.has_chain(&["read_[k]", "operator new(unsigned long)"]));
    }
}
