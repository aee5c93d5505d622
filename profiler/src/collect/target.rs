//! What to record, checked before anything is attached.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::Sender;
use std::time::Duration;

use profiler_common::event::{COMM_LEN, Origin};
use thiserror::Error;

use super::functions::FunctionPattern;
use super::watch::Window;
use crate::bpf::{Limits, Selection};
use crate::disk_cache::default_directory;
use crate::process;
use crate::profile::{Target, TargetKind};
use crate::symbolize::NameCache;
use crate::unwind::Cache;

/// Everything a recording needs to know.
#[derive(Clone, Debug)]
pub struct RecordConfig {
    /// What to sample.
    pub target: TargetSelection,
    /// Whether a command that is started reads nothing and prints nowhere, as where the terminal is somebody else's.
    pub hushes_command: bool,
    /// What to record of it, in the order of their numbers.
    pub origins: Vec<Origin>,
    /// How allocations are recorded, where they are.
    pub alloc: AllocConfig,
    /// Whether to record who ends waits, where these are recorded.
    pub wakers: bool,
    /// The least latency of requests to block devices that are listed one by one, ns; 0 where none are.
    pub slower_ns: u64,
    /// Functions whose calls are recorded.
    pub functions: Vec<FunctionPattern>,
    /// Samples a second on each CPU.
    pub rate_hz: u64,
    /// How long; without it until the target ends or somebody interrupts.
    pub duration: Option<Duration>,
    /// How much kernel memory to take.
    pub limits: Limits,
    /// Where unwind tables and names are kept.
    pub cache: CacheDirectory,
    /// How frames are named.
    pub naming: NamingConfig,
    /// How often the maps of the programs are emptied: what is known of a process that ends lags behind by so much.
    pub drain_every: Duration,
    /// Whether it is recorded without an end: what becomes of blocks of memory is then not followed.
    pub continuous: bool,
    /// Who is told of every window, if somebody watches.
    pub watch: Option<Sender<Window>>,
}

/// How allocations are recorded.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AllocConfig {
    /// The part of the target's CPU time that this may take.
    pub budget: f64,
    /// Whether every one is recorded, until that takes more than the budget.
    pub is_exact: bool,
}

/// Where unwind tables and names are kept from one start to the next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CacheDirectory {
    /// Nowhere.
    None,
    /// In the usual directory, if it can be used.
    Usual,
    /// In this directory.
    Directory(PathBuf),
}

/// What is kept from one start to the next.
#[derive(Debug, Default)]
pub(super) struct Caches {
    pub(super) tables: Option<Cache>,
    pub(super) names: Option<NameCache>,
}

impl CacheDirectory {
    /// Opens it.
    ///
    /// Errors: a directory that was named cannot be used.
    pub(super) fn open(&self) -> Result<Caches, TargetError> {
        let open = |path: &Path| -> io::Result<Caches> {
            Ok(Caches { tables: Some(Cache::open(path)?), names: Some(NameCache::open(path)?) })
        };
        match self {
            Self::None => Ok(Caches::default()),
            Self::Usual => Ok(default_directory().and_then(|path| open(&path).ok()).unwrap_or_default()),
            Self::Directory(path) => open(path).map_err(|cause| TargetError::Cache { path: path.clone(), cause }),
        }
    }
}

/// How frames are named.
#[derive(Clone, Debug)]
pub struct NamingConfig {
    /// Directories with debug files.
    pub debug_directories: Vec<PathBuf>,
    /// Whether debug files are fetched from debuginfod servers.
    pub debuginfod: bool,
    /// Whether arguments of generics are left out of names.
    pub shorten: bool,
}

/// What to sample.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TargetSelection {
    /// Processes that run.
    Processes {
        /// Their pids.
        pids: Vec<u32>,
        /// And those below them, now and later.
        children: bool,
    },
    /// A command to start, with its children.
    Command(Vec<OsString>),
    /// A cgroup, with those below it.
    Cgroup(PathBuf),
    /// Processes and threads of this name.
    Comm(String),
    /// Everything.
    Host,
}

/// Why a target cannot be sampled.
#[derive(Debug, Error)]
pub enum TargetError {
    /// There is none of that number.
    #[error("no process with pid {0}: list processes with `ps -e`, or use --comm NAME")]
    NoProcess(u32),
    /// The number is a thread's.
    #[error("{tid} is a thread of process {pid}: use -p {pid}, which samples all its threads")]
    Thread {
        /// The number that was given.
        tid: u32,
        /// Its process.
        pid: u32,
    },
    /// It is us.
    #[error("pid {0} is this profiler, which does not sample itself")]
    Ourselves(u32),
    /// The directory cannot be used.
    #[error("cannot use cgroup {}: {reason}", path.display())]
    Cgroup {
        /// What was given.
        path: PathBuf,
        /// Why not, and what to do.
        reason: String,
    },
    /// The directory for tables and names cannot be used.
    #[error("cannot keep unwind tables and names in {}: {cause}: name a directory of your own with mode 0700, or use --no-cache", path.display())]
    Cache {
        /// What was given.
        path: PathBuf,
        /// Why not.
        cause: io::Error,
    },
    /// Too long to be one.
    #[error("command name {0:?} is longer than 15 bytes, which is all the kernel keeps: give the first 15")]
    CommTooLong(String),
}

impl TargetSelection {
    /// Checks that the target is there, and says what the programs must select.
    ///
    /// # Errors
    ///
    /// When it is not.
    pub fn selection(&self) -> Result<Selection, TargetError> {
        match self {
            Self::Processes { pids, children } => {
                for &pid in pids {
                    if pid == std::process::id() {
                        return Err(TargetError::Ourselves(pid));
                    }
                    if !process::exists(pid) {
                        return Err(TargetError::NoProcess(pid));
                    }
                    if let Some(leader) = process::is_thread(pid) {
                        return Err(TargetError::Thread { tid: pid, pid: leader });
                    }
                }
                Ok(Selection::Processes { follow_children: *children })
            }
            Self::Command(_) => Ok(Selection::Processes { follow_children: true }),
            Self::Cgroup(path) => cgroup(path),
            Self::Comm(name) => {
                let mut comm = [0; COMM_LEN];
                let bytes = name.as_bytes();
                if bytes.len() >= COMM_LEN {
                    return Err(TargetError::CommTooLong(name.clone()));
                }
                comm[..bytes.len()].copy_from_slice(bytes);
                Ok(Selection::Comm(comm))
            }
            Self::Host => Ok(Selection::All),
        }
    }

    /// The target as the capture describes it. `command`: pid of the command that was started.
    pub(super) fn describe(&self, command: Option<u32>) -> Target {
        let (kind, description, pids) = match self {
            Self::Processes { pids, children } => {
                let names: Vec<String> = pids
                    .iter()
                    .map(|&pid| match process::command_name(pid) {
                        Some(name) => format!("{name} (pid {pid})"),
                        None => format!("pid {pid}"),
                    })
                    .collect();
                let with = if *children { " and children" } else { "" };
                (TargetKind::Processes, format!("{}{with}", names.join(", ")), pids.clone())
            }
            Self::Command(arguments) => {
                let words: Vec<_> = arguments.iter().map(|word| word.to_string_lossy()).collect();
                let mut line: String = words.join(" ");
                if let Some((end, _)) = line.char_indices().nth(MAX_COMMAND_CHARACTERS) {
                    line.truncate(end);
                    line.push('\u{2026}');
                }
                (TargetKind::Command, format!("command: {line}"), command.into_iter().collect())
            }
            Self::Cgroup(path) => (TargetKind::Cgroup, format!("cgroup {}", path.display()), Vec::new()),
            Self::Comm(name) => (TargetKind::Comm, format!("comm {name}"), Vec::new()),
            Self::Host => (TargetKind::Host, "host".to_owned(), Vec::new()),
        };
        Target { kind, description, pids, exit_code: None }
    }
}

/// Characters of a command line that a capture keeps: it is the title of every picture.
const MAX_COMMAND_CHARACTERS: usize = 200;

/// `CGROUP2_SUPER_MAGIC`. Source: include/uapi/linux/magic.h.
const CGROUP2_MAGIC: i64 = 0x6367_7270;

/// A cgroup's number and depth. Only version 2 has numbers that a program can compare.
fn cgroup(path: &Path) -> Result<Selection, TargetError> {
    let failed = |reason: String| TargetError::Cgroup { path: path.to_owned(), reason };
    let full = path.canonicalize().map_err(|error: io::Error| failed(error.to_string()))?;
    let mount = full
        .ancestors()
        .take_while(|ancestor| is_cgroup2(ancestor))
        .last()
        .ok_or_else(|| {
            failed("it is not a directory of a cgroup version 2 hierarchy (mount -t cgroup2): use -p with the pids in its cgroup.procs".to_owned())
        })?;
    let level = full.strip_prefix(mount).map_or(0, |below| below.components().count());
    let id = fs::metadata(&full).map_err(|error| failed(error.to_string()))?.ino();
    Ok(Selection::Cgroup { id, level: u32::try_from(level).unwrap_or(u32::MAX) })
}

fn is_cgroup2(path: &Path) -> bool {
    let Ok(name) = std::ffi::CString::new(path.as_os_str().as_bytes()) else { return false };
    // SAFETY: an all-zero structure is a valid one; the name is a C string.
    unsafe {
        let mut status: libc::statfs = std::mem::zeroed();
        libc::statfs(name.as_ptr(), &raw mut status) == 0 && status.f_type == CGROUP2_MAGIC
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pid_that_is_not_there_is_refused_with_its_number() {
        let target = TargetSelection::Processes { pids: vec![u32::MAX - 1], children: false };
        assert!(target.selection().unwrap_err().to_string().contains(&(u32::MAX - 1).to_string()));
        let ourselves = TargetSelection::Processes { pids: vec![std::process::id()], children: false };
        assert!(matches!(ourselves.selection(), Err(TargetError::Ourselves(_))));
    }

    #[test]
    fn names_and_cgroups_are_checked() {
        assert!(TargetSelection::Comm("0123456789abcdef".to_owned()).selection().is_err());
        assert!(matches!(TargetSelection::Comm("redis".to_owned()).selection(), Ok(Selection::Comm(_))));
        assert!(TargetSelection::Cgroup("/proc".into()).selection().is_err());
        assert!(TargetSelection::Cgroup("/no/such".into()).selection().is_err());
    }
}
