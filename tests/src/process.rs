//! Processes the tests start: bounded in time, ended by pid, and asked for their own account.

use std::fmt::Debug;
use std::io::{BufRead as _, BufReader, Read as _};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

/// How long a test waits for what should come at once, on a machine that may be busy.
const PATIENCE: Duration = Duration::from_secs(60);

/// How much longer where everything takes ten times as long.
const EMULATED: u32 = 4;

pub(crate) fn patience() -> Duration {
    if crate::environment::is_emulated() { EMULATED * PATIENCE } else { PATIENCE }
}

/// Waits until `ready` gives something.
///
/// # Panics
///
/// When nothing comes in a minute, or in four where the CPUs are emulated.
pub fn wait_until<T>(what: impl Debug, mut ready: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(value) = ready() {
            return value;
        }
        assert!(start.elapsed() < patience(), "waited in vain: {what:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A workload that runs; killed when it is dropped.
#[derive(Debug)]
pub struct Target {
    child: Child,
    output: BufReader<ChildStdout>,
}

impl Target {
    /// Starts a workload and waits until it says that it is ready.
    ///
    /// # Panics
    ///
    /// When it cannot be started, or says something else.
    #[must_use]
    pub fn start(program: &Path, arguments: &[&str]) -> Self {
        Self::start_command(Command::new(program).args(arguments))
    }

    /// As [`Target::start`], for a command that is set up already.
    ///
    /// # Panics
    ///
    /// As for [`Target::start`].
    #[must_use]
    pub fn start_command(command: &mut Command) -> Self {
        let mut target = Self::start_unready(command);
        let mut line = String::new();
        target.output.read_line(&mut line).expect("read the workload's output");
        assert_eq!(line, "ready\n", "{command:?}");
        target
    }

    /// As [`Target::start_command`], for a program that is not a workload and does not say when it is ready.
    ///
    /// # Panics
    ///
    /// When it cannot be started.
    #[must_use]
    pub fn start_unready(command: &mut Command) -> Self {
        owned_by(command);
        let mut child = command.stdout(Stdio::piped()).spawn().expect("start a program");
        let output = BufReader::new(child.stdout.take().expect("its output is a pipe"));
        Self { child, output }
    }

    /// Lines that it prints until it prints `last`, which is left out.
    ///
    /// # Panics
    ///
    /// When it ends before.
    #[must_use]
    pub fn lines_until(&mut self, last: &str) -> Vec<String> {
        let mut lines = Vec::new();
        loop {
            let mut line = String::new();
            assert!(self.output.read_line(&mut line).expect("read its output") > 0, "it ended: {lines:?}");
            match line.trim_end() {
                line if line == last => return lines,
                line => lines.push(line.to_owned()),
            }
        }
    }

    /// Its pid.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Whether it still runs.
    ///
    /// # Panics
    ///
    /// When the kernel does not say.
    #[must_use]
    pub fn runs(&mut self) -> bool {
        self.child.try_wait().expect("ask for a child").is_none()
    }

    /// Waits for its end and returns the account it printed.
    ///
    /// # Panics
    ///
    /// When it fails, or prints none.
    #[must_use]
    pub fn truth(mut self) -> Value {
        let mut text = String::new();
        self.output.read_to_string(&mut text).expect("read the workload's output");
        let status = self.child.wait().expect("wait for a child");
        assert!(status.success(), "the workload failed: {status}");
        truth_in(&text)
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The last line that is a JSON object.
pub(crate) fn truth_in(text: &str) -> Value {
    let line = text.lines().rfind(|line| line.starts_with('{'));
    let line = line.unwrap_or_else(|| panic!("no account of the workload in {text:?}"));
    serde_json::from_str(line).unwrap_or_else(|error| panic!("{line:?}: {error}"))
}

/// Makes the kernel kill what the command starts when the thread that started it ends, however that ends.
pub fn owned_by(command: &mut Command) {
    // SAFETY: the closure makes one system call and touches no memory of the parent.
    unsafe {
        command.pre_exec(|| {
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
            Ok(())
        });
    }
}

/// How a program ended and what it said.
#[derive(Debug)]
pub struct Ended {
    /// Exit status.
    pub status: ExitStatus,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Ended {
    /// The exit code; panics where a signal ended it.
    ///
    /// # Panics
    ///
    /// See above.
    #[must_use]
    pub fn code(&self) -> i32 {
        self.status.code().unwrap_or_else(|| panic!("ended by a signal: {self:?}"))
    }
}

/// A child whose output is read as it comes.
#[derive(Debug)]
pub(crate) struct Reader {
    pub(crate) child: Child,
    /// How long it may take to end.
    pub(crate) patience: Duration,
    stdout: Option<std::thread::JoinHandle<String>>,
    stderr: Option<std::thread::JoinHandle<String>>,
}

impl Reader {
    pub(crate) fn start(command: &mut Command) -> Self {
        fn read(mut source: impl std::io::Read + Send + 'static) -> std::thread::JoinHandle<String> {
            std::thread::spawn(move || {
                let mut bytes = Vec::new();
                let _ = source.read_to_end(&mut bytes);
                String::from_utf8_lossy(&bytes).into_owned()
            })
        }
        owned_by(command);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap_or_else(|error| panic!("cannot start {command:?}: {error}"));
        let stdout = child.stdout.take().map(read);
        let stderr = child.stderr.take().map(read);
        Self { child, patience: patience(), stdout, stderr }
    }

    pub(crate) fn wait(&mut self) -> Ended {
        let start = Instant::now();
        let status = loop {
            if let Some(status) = self.child.try_wait().expect("ask for a child") {
                break status;
            }
            if start.elapsed() > self.patience {
                let _ = self.child.kill();
                let _ = self.child.wait();
                // What it said is left out: a child of it that still runs may hold the pipe.
                panic!("did not end in {:?}", self.patience);
            }
            std::thread::sleep(Duration::from_millis(5));
        };
        // A child of it that still runs may hold the pipes: what it started is the test's to end first.
        let text = |handle: &mut Option<std::thread::JoinHandle<String>>| {
            handle.take().and_then(|handle| handle.join().ok()).unwrap_or_default()
        };
        let (stdout, stderr) = (text(&mut self.stdout), text(&mut self.stderr));
        Ended { status, stdout, stderr }
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
