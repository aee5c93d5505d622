//! Where the tests run: the profiler's binary, what the host allows, and one test at a time.

use std::fs::{self, File};
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Variable that makes a skipped test a failure.
const REQUIRE_VARIABLE: &str = "PROFILER_REQUIRE_BPF";

/// Variable that says that the CPUs are emulated, as in the machines of `cargo xtask vm`.
const EMULATED_VARIABLE: &str = "PROFILER_SLOW";

/// The right to use the kernel, until it is dropped.
#[derive(Debug)]
pub struct Kernel {
    _process: MutexGuard<'static, ()>,
    _host: File,
}

/// Asks for the kernel: waits until no other kernel test runs.
///
/// `None`: this host cannot run kernel tests; the reason has been printed, and the test should return.
///
/// # Panics
///
/// Instead of `None`, when `PROFILER_REQUIRE_BPF=1`; when the profiler's binary does not exist.
#[must_use]
pub fn require_bpf() -> Option<Kernel> {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    // SAFETY: no preconditions.
    if unsafe { libc::geteuid() } != 0 {
        missing("not root");
        return None;
    }
    if !Path::new("/sys/kernel/btf/vmlinux").exists() {
        missing("the kernel has no BTF");
        return None;
    }
    // A test that failed has poisoned nothing: the lock guards no data.
    let process = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let host = File::create(build_directory().join("kernel-tests.lock")).expect("create the lock file");
    // SAFETY: the descriptor is open.
    let locked = unsafe { libc::flock(host.as_raw_fd(), libc::LOCK_EX) };
    assert_eq!(locked, 0, "lock the kernel tests");
    assert!(profiler().is_file(), "{} does not exist: run `cargo xtask test`", profiler().display());
    Some(Kernel { _process: process, _host: host })
}

/// Says why a test, or a part of it, is skipped.
///
/// # Panics
///
/// When `PROFILER_REQUIRE_BPF=1`.
#[expect(clippy::print_stderr, reason = "a test that is skipped says so")]
pub fn missing(what: &str) {
    assert!(std::env::var_os(REQUIRE_VARIABLE).is_none_or(|value| value != "1"), "{what}, and {REQUIRE_VARIABLE}=1");
    eprintln!("skipped: {what}");
}

/// Whether the CPUs are emulated: everything takes ten times as long, and an emulated CPU that waits for the host's own
/// gets no timer interrupt, hence no sample.
#[must_use]
pub fn is_emulated() -> bool {
    std::env::var_os(EMULATED_VARIABLE).is_some_and(|value| value == "1")
}

/// A lower bound for a number of samples; a quarter of it where the CPUs are emulated.
#[must_use]
pub fn enough(samples: u64) -> u64 {
    if is_emulated() { samples / 4 } else { samples }
}

/// The time that a workload works in which a recording is to find it, in the workload's own unit; four times as long
/// where the CPUs are emulated and a recording takes seconds to begin.
#[must_use]
pub fn at_work(time: u32) -> String {
    if is_emulated() { 4 * time } else { time }.to_string()
}

/// Whether tests that show their point only after minutes may take them: `PROFILER_LONG_TESTS=1`.
#[must_use]
pub fn long_tests() -> bool {
    std::env::var_os("PROFILER_LONG_TESTS").is_some_and(|value| value == "1")
}

/// The binary under test: `PROFILER_BIN`, else the release build of this workspace.
#[must_use]
pub fn profiler() -> PathBuf {
    if let Some(path) = std::env::var_os("PROFILER_BIN") {
        return path.into();
    }
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let target = std::env::var_os("CARGO_TARGET_DIR").unwrap_or_else(|| "target".into());
    workspace.join(target).join("release/profiler")
}

/// Where `program` is on `PATH` or among the administration commands; says that a test is skipped when it is nowhere.
///
/// # Panics
///
/// When it is nowhere and `PROFILER_REQUIRE_BPF=1`.
#[must_use]
pub fn find_program(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let extra = ["/usr/sbin", "/sbin"].map(PathBuf::from);
    let found = std::env::split_paths(&path).chain(extra).map(|dir| dir.join(program)).find(|file| file.is_file());
    if found.is_none() {
        missing(&format!("{program} is not installed"));
    }
    found
}

/// A new directory that goes when it is dropped, open to every user.
///
/// # Panics
///
/// When it cannot be made.
#[must_use]
pub fn scratch() -> tempfile::TempDir {
    use std::os::unix::fs::PermissionsExt as _;
    let permissions = fs::Permissions::from_mode(0o755);
    tempfile::Builder::new()
        .prefix("profiler-test-")
        .permissions(permissions)
        .tempdir()
        .expect("create a temporary directory")
}

/// What `cargo xtask setup --test` has installed below the target directory, by its path there.
#[must_use]
pub fn tools(path: &str) -> PathBuf {
    build_directory().join("../..").join(path)
}

/// Where built workloads are kept: `tmp` beside the profile's directory in the target directory.
pub(crate) fn build_directory() -> PathBuf {
    // target/release/deps/kernel-0123: cargo tells only the tests themselves, at compile time, and not this library.
    let executable = std::env::current_exe().expect("the test's own path");
    let target = executable.ancestors().nth(3).expect("a test in a target directory");
    let directory = target.join("tmp/kernel-tests");
    fs::create_dir_all(&directory).expect("create the directory of workloads");
    directory
}
