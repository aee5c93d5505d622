//! A daemon under test: started on a state directory of its own, and what it has written there.

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus, Stdio};

use serde_json::Value;

use crate::capture::float;
use crate::process::{owned_by, wait_until};
use crate::record::profiler_command;

/// A daemon that runs; killed when it is dropped.
#[derive(Debug)]
pub struct Daemon {
    child: Child,
    state: PathBuf,
    said: PathBuf,
}

impl Daemon {
    /// Starts one with windows of a second; `values`: of its configuration, as `--set` takes them.
    ///
    /// # Panics
    ///
    /// When it cannot be started.
    #[must_use]
    pub fn start(state: &Path, values: &[&str]) -> Self {
        let values: Vec<&str> = ["collect.window_s=1"].into_iter().chain(values.iter().copied()).collect();
        Self::run(state, "/dev/null", &values)
    }

    /// Starts one with a configuration file.
    ///
    /// # Panics
    ///
    /// As of [`Daemon::start`].
    #[must_use]
    pub fn start_with(state: &Path, config: &str) -> Self {
        Self::run(state, config, &[])
    }

    fn run(state: &Path, config: &str, values: &[&str]) -> Self {
        let said = state.join("said.log");
        let log = File::create(&said).expect("a file for what it says");
        let mut command = profiler_command();
        // Nothing listens: tests must not be in each other's way.
        command.args(["daemon", "--listen", "", "--config", config]);
        command.arg("--state-dir").arg(state.join("state"));
        for value in values {
            command.args(["--set", value]);
        }
        command.env_remove("NOTIFY_SOCKET").stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        owned_by(&mut command);
        let child = command.spawn().expect("start the daemon");
        Self { child, state: state.join("state"), said }
    }

    /// Its pid.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Where its history is.
    #[must_use]
    pub fn state(&self) -> &Path {
        &self.state
    }

    /// What it has said so far.
    #[must_use]
    pub fn said(&self) -> String {
        fs::read_to_string(&self.said).unwrap_or_default()
    }

    /// Waits until it says that it records.
    ///
    /// # Panics
    ///
    /// When it does not.
    pub fn wait_started(&self) {
        wait_until("the daemon records", || self.said().contains("recording").then_some(()));
    }

    /// Waits until there are so many windows, and returns them.
    ///
    /// # Panics
    ///
    /// When they do not come.
    #[must_use]
    pub fn wait_for(&mut self, windows: usize) -> Vec<Value> {
        let state = self.state.clone();
        wait_until(format!("{windows} windows"), || {
            let status = self.child.try_wait().expect("ask for the daemon");
            assert!(status.is_none(), "the daemon has ended: {status:?}: {}", self.said());
            let found = windows_in(&state);
            (found.len() >= windows).then_some(found)
        })
    }

    /// Sends it a signal.
    ///
    /// # Panics
    ///
    /// When the system call fails.
    pub fn signal(&self, signal: i32) {
        // SAFETY: our own child, which has not been waited for.
        let sent = unsafe { libc::kill(self.pid().cast_signed(), signal) };
        assert_eq!(sent, 0, "{}", std::io::Error::last_os_error());
    }

    /// Waits for its end; how it ended, and what it said.
    ///
    /// # Panics
    ///
    /// When it does not end.
    #[must_use]
    pub fn wait(mut self) -> (ExitStatus, String) {
        let status = wait_until("the daemon ends", || self.child.try_wait().expect("ask for the daemon"));
        (status, self.said())
    }

    /// Memory of its own, KiB.
    ///
    /// # Panics
    ///
    /// When it has ended.
    #[must_use]
    pub fn memory_kib(&self) -> u64 {
        let status = File::open(format!("/proc/{}/status", self.pid())).expect("its status");
        let lines = BufReader::new(status).lines().map_while(Result::ok);
        let words =
            lines.filter_map(|line| Some(line.strip_prefix("RssAnon:")?.trim().strip_suffix(" kB")?.to_owned()));
        words.last().and_then(|number| number.trim().parse().ok()).expect("a number")
    }

    /// CPU time that it has used, s. Source: proc_pid_stat(5), fields 14 and 15.
    ///
    /// # Panics
    ///
    /// When it has ended.
    #[must_use]
    pub fn cpu_s(&self) -> f64 {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid())).expect("its times");
        let fields = stat.rsplit(')').next().unwrap_or_default().split_ascii_whitespace();
        let ticks: u64 = fields.skip(11).take(2).filter_map(|field| field.parse::<u64>().ok()).sum();
        // SAFETY: takes a number.
        let hz = unsafe { libc::sysconf(libc::_SC_CLK_TCK) };
        float(ticks) / float(hz.unsigned_abs())
    }

    /// Its open descriptors.
    ///
    /// # Panics
    ///
    /// When it has ended.
    #[must_use]
    pub fn descriptors(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.pid())).expect("its descriptors").count()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What is known of every window in a state directory, in the order of their starts.
#[must_use]
pub fn windows_in(state: &Path) -> Vec<Value> {
    let entries = fs::read_dir(state.join("windows")).into_iter().flatten().flatten();
    let texts = entries.filter_map(|entry| fs::read(entry.path().join("window.json")).ok());
    let mut windows: Vec<Value> = texts.filter_map(|text| serde_json::from_slice(&text).ok()).collect();
    windows.sort_by_key(|window| window["started_at_ns"].as_u64());
    windows
}
