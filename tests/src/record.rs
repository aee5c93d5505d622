//! Runs the profiler.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use crate::capture::Captured;
use crate::environment::{profiler, scratch};
use crate::process::{Ended, Reader, patience, wait_until};

/// No two programs are attached so far apart.
const ATTACHING: Duration = Duration::from_millis(500);

/// A `profiler` command in a directory of its own that sees nothing of the caller's terminal.
#[must_use]
pub fn profiler_command() -> Command {
    Command::new(profiler())
}

/// Runs a `profiler` command to its end.
///
/// # Panics
///
/// When it cannot be started or does not end within a minute.
#[must_use]
pub fn run_profiler(arguments: &[&str]) -> Ended {
    Reader::start(profiler_command().args(arguments)).wait()
}

/// A `profiler record` command about to be run, with an output directory of its own.
#[derive(Debug)]
pub struct Record {
    command: Command,
    patience: Duration,
    directory: tempfile::TempDir,
}

impl Default for Record {
    fn default() -> Self {
        Self::new()
    }
}

impl Record {
    /// Records at the default rate, of nothing yet.
    #[must_use]
    pub fn new() -> Self {
        Self::by(profiler_command())
    }

    /// As [`Record::new`], started by another program: `wrapper` is that program with all arguments that come before
    /// the command it is to run.
    #[must_use]
    pub fn under(mut wrapper: Command) -> Self {
        wrapper.arg(profiler());
        Self::by(wrapper)
    }

    fn by(mut command: Command) -> Self {
        let directory = scratch();
        command.args(["record", "-o"]).arg(directory.path().join("capture"));
        Self { command, patience: patience(), directory }
    }

    /// Lets it take longer than a minute, by so much.
    #[must_use]
    pub fn patience(mut self, more: Duration) -> Self {
        self.patience += more;
        self
    }

    /// `-F`.
    #[must_use]
    pub fn rate(self, hz: u32) -> Self {
        self.args(["-F", &hz.to_string()])
    }

    /// `-d`, in seconds.
    #[must_use]
    pub fn seconds(self, seconds: u32) -> Self {
        self.args(["-d", &seconds.to_string()])
    }

    /// `-p`.
    #[must_use]
    pub fn pid(self, pid: u32) -> Self {
        self.args(["-p", &pid.to_string()])
    }

    /// Any arguments.
    #[must_use]
    pub fn args(mut self, arguments: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Self {
        self.command.args(arguments);
        self
    }

    /// `-- PROGRAM ARGUMENTS`.
    #[must_use]
    pub fn program(self, program: &Path, arguments: &[&str]) -> Self {
        self.args(["--"]).args([program]).args(arguments)
    }

    /// Where it will write.
    #[must_use]
    pub fn output(&self) -> PathBuf {
        self.directory.path().join("capture")
    }

    /// The command, to be changed.
    pub fn command(&mut self) -> &mut Command {
        &mut self.command
    }

    /// Starts it.
    ///
    /// # Panics
    ///
    /// When it cannot be started.
    #[must_use]
    pub fn start(mut self) -> Recording {
        let mut reader = Reader::start(&mut self.command);
        reader.patience = self.patience;
        Recording { reader, directory: self.directory }
    }

    /// Runs it to its end, which must be a good one, and reads what it wrote.
    ///
    /// # Panics
    ///
    /// When it fails, or its files contradict each other.
    #[must_use]
    pub fn run(self) -> Captured {
        self.start().finish()
    }

    /// Runs it to its end, whatever that is.
    ///
    /// # Panics
    ///
    /// When it does not end.
    #[must_use]
    pub fn end(self) -> Ended {
        self.start().wait().0
    }
}

/// A `profiler record` command that runs; killed when it is dropped.
#[derive(Debug)]
pub struct Recording {
    reader: Reader,
    directory: tempfile::TempDir,
}

impl Recording {
    /// The profiler's pid.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.reader.child.id()
    }

    /// Where it writes.
    #[must_use]
    pub fn output(&self) -> PathBuf {
        self.directory.path().join("capture")
    }

    /// Whether it still runs.
    ///
    /// # Panics
    ///
    /// When the kernel does not say.
    #[must_use]
    pub fn runs(&mut self) -> bool {
        self.reader.child.try_wait().expect("ask for a child").is_none()
    }

    /// Waits until it samples: until it holds a perf event with a BPF program.
    ///
    /// # Panics
    ///
    /// When it ends before.
    pub fn wait_for_samples(&mut self) {
        let descriptors = PathBuf::from(format!("/proc/{}/fd", self.pid()));
        wait_until("the profiler's perf events", || {
            assert!(self.runs(), "the profiler ended: {:?}", self.reader.wait());
            let links = descriptors.read_dir().ok()?.filter_map(|entry| entry.ok()?.path().read_link().ok());
            // One dummy event a CPU follows processes; those that sample come on top.
            let events = links.filter(|link| link.as_os_str() == "anon_inode:[perf_event]").count();
            (events >= 2 * cpus()).then_some(())
        });
    }

    /// Waits until it has attached all its programs: at least so many, of which two follow processes, and no more for a while.
    ///
    /// # Panics
    ///
    /// When it ends before.
    pub fn wait_for_links(&mut self, count: usize) {
        let descriptors = PathBuf::from(format!("/proc/{}/fd", self.pid()));
        let mut last = (0, Instant::now());
        wait_until("the profiler's programs", || {
            assert!(self.runs(), "the profiler ended: {:?}", self.reader.wait());
            let links = descriptors.read_dir().ok()?.filter_map(|entry| entry.ok()?.path().read_link().ok());
            let links = links.filter(|link| link.as_os_str() == "anon_inode:bpf_link").count();
            if links != last.0 {
                last = (links, Instant::now());
            }
            (links >= count && last.1.elapsed() > ATTACHING).then_some(())
        });
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: i32) {
        // SAFETY: no memory is involved; the child has not been waited for, so the pid is still its own.
        unsafe { libc::kill(self.pid().cast_signed(), signal) };
    }

    /// Waits for its end and returns it with the directory that its output is in.
    ///
    /// # Panics
    ///
    /// When it does not end.
    #[must_use]
    pub fn wait(mut self) -> (Ended, tempfile::TempDir) {
        let ended = self.reader.wait();
        (ended, self.directory)
    }

    /// Waits for its end, which must be a good one, and reads what it wrote.
    ///
    /// # Panics
    ///
    /// When it fails, or its files contradict each other.
    #[must_use]
    pub fn finish(self) -> Captured {
        let (ended, directory) = self.wait();
        assert_eq!(ended.code(), 0, "{}", ended.stderr);
        Captured::read(ended, directory)
    }
}

fn cpus() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}
