//! A command that is started under observation: held before its exec until everything is attached.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::JoinHandle;

use thiserror::Error;

/// Why a command did not start.
#[derive(Debug, Error)]
pub enum CommandError {
    /// There is no such program.
    #[error("cannot run {0}: no such program")]
    NotFound(String),
    /// It is there, and cannot be executed.
    #[error("cannot run {program}: {cause}")]
    NotExecutable {
        /// What was tried.
        program: String,
        /// Why not.
        cause: io::Error,
    },
    /// We could not make the process for it.
    #[error("cannot start a process for {program}: {cause}")]
    Start {
        /// What was tried.
        program: String,
        /// Why not.
        cause: io::Error,
    },
}

impl CommandError {
    /// The exit code that shells give this. Source: POSIX.1-2024, XCU 2.8.2.
    #[must_use]
    pub const fn exit_code(&self) -> i32 {
        match self {
            Self::NotFound(_) => 127,
            Self::NotExecutable { .. } => 126,
            Self::Start { .. } => 125,
        }
    }
}

/// A process that waits to become the command.
#[derive(Debug)]
pub(super) struct HeldCommand {
    pub(super) pid: u32,
    program: String,
    release: File,
    spawner: JoinHandle<io::Result<Child>>,
}

/// A command that runs. A recording never kills it, and it is not waited for when this is dropped.
#[derive(Debug)]
pub struct RunningCommand {
    child: Child,
}

/// How a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CommandEnd {
    status: ExitStatus,
}

impl CommandEnd {
    /// The command's exit code, or 128 and the signal's number.
    #[must_use]
    pub fn exit_code(self) -> i32 {
        self.status.code().unwrap_or_else(|| 128 + self.status.signal().unwrap_or(0))
    }
}

fn pipe() -> io::Result<(File, File)> {
    let mut ends = [0; 2];
    // SAFETY: the array has room for both descriptors.
    if unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptors were just made, and nobody else has them.
    let [reader, writer] = ends.map(|fd| File::from(unsafe { OwnedFd::from_raw_fd(fd) }));
    Ok((reader, writer))
}

impl HeldCommand {
    /// Makes the process and holds it just before its exec.
    ///
    /// `Command::spawn` returns after the exec only, hence the thread. `hushed`: it reads nothing and prints nowhere.
    pub(super) fn start(arguments: &[OsString], hushed: bool) -> Result<Self, CommandError> {
        let program = arguments.first().map(|word| word.to_string_lossy().into_owned()).unwrap_or_default();
        let failed = |cause| CommandError::Start { program: program.clone(), cause };
        let (mut pid_reader, pid_writer) = pipe().map_err(failed)?;
        let (release_reader, release) = pipe().map_err(failed)?;
        let mut command = Command::new(arguments.first().map(OsString::as_os_str).unwrap_or_default());
        command.args(arguments.iter().skip(1));
        if hushed {
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        }
        let release_end = release.as_raw_fd();
        // SAFETY: between fork and exec the closure makes system calls only, and allocates nothing.
        unsafe {
            command.pre_exec(move || {
                // Our copy of the end we wait on would keep the pipe open if the profiler died.
                libc::close(release_end);
                (&pid_writer).write_all(&std::process::id().to_ne_bytes())?;
                // A profiler that was killed closes its end: the command then runs unobserved.
                (&release_reader).read(&mut [0]).map(drop)
            });
        }
        let spawner = std::thread::spawn(move || command.spawn());
        let mut pid = [0; 4];
        match pid_reader.read_exact(&mut pid) {
            Ok(()) => Ok(Self { pid: u32::from_ne_bytes(pid), program, release, spawner }),
            // The fork failed, and with it all writing ends are closed.
            Err(error) => Err(failed(spawner.join().ok().and_then(Result::err).unwrap_or(error))),
        }
    }

    /// Lets it execute the command.
    pub(super) fn release(mut self) -> Result<RunningCommand, CommandError> {
        let program = self.program;
        // When it has been killed meanwhile, waiting for it tells.
        let _ = self.release.write_all(&[1]);
        drop(self.release);
        match self.spawner.join() {
            Ok(Ok(child)) => Ok(RunningCommand { child }),
            Ok(Err(error)) if error.kind() == io::ErrorKind::NotFound => Err(CommandError::NotFound(program)),
            Ok(Err(cause)) => Err(CommandError::NotExecutable { program, cause }),
            Err(_) => Err(CommandError::Start { program, cause: io::Error::other("the starting thread panicked") }),
        }
    }
}

impl RunningCommand {
    /// How it ended, if it has.
    pub fn try_wait(&mut self) -> Option<CommandEnd> {
        self.child.try_wait().ok().flatten().map(|status| CommandEnd { status })
    }

    /// Waits for its end.
    ///
    /// # Errors
    ///
    /// When the system call fails.
    pub fn wait(&mut self) -> io::Result<CommandEnd> {
        self.child.wait().map(|status| CommandEnd { status })
    }

    /// Kills it, if it still runs: only for one that is our own.
    ///
    /// # Errors
    ///
    /// When the system call fails.
    pub fn kill(&mut self) -> io::Result<()> {
        self.child.kill()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(words: &[&str]) -> Result<i32, CommandError> {
        let arguments: Vec<OsString> = words.iter().map(OsString::from).collect();
        let held = HeldCommand::start(&arguments, true)?;
        assert!(crate::process::exists(held.pid));
        let mut running = held.release()?;
        Ok(running.wait().unwrap().exit_code())
    }

    #[test]
    fn a_commands_end_is_passed_on() {
        assert_eq!(run(&["sh", "-c", "exit 7"]).unwrap(), 7);
        assert_eq!(run(&["sh", "-c", "kill -9 $$"]).unwrap(), 137);
        assert_eq!(run(&["/no/such/program"]).unwrap_err().exit_code(), 127);
        assert_eq!(run(&["/etc/passwd"]).unwrap_err().exit_code(), 126);
    }
}
