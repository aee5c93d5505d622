//! What the virtual machine has: the tests and what they run, at the paths of this machine, and the script that runs
//! them. Paths -> an initial RAM file system.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};

use super::initramfs::Archive;
use super::machine::{ENDED, LIMIT};
use crate::command::{command, output, root, target_dir};

/// Programs that tests start, as the distribution ships them. A test whose program is missing says so.
///
/// Not Go: what its pprof reads does not depend on the kernel, and it is large.
const PROGRAMS: [&str; 16] = [
    "bpftool",
    "cat",
    "ls",
    "mount",
    "mv",
    "objcopy",
    "python3",
    "redis-benchmark",
    "redis-server",
    "sh",
    "sleep",
    "strip",
    "touch",
    "true",
    "umount",
    "unshare",
];

/// Directories of the distribution, and not of whoever uses this machine.
const PROGRAM_DIRECTORIES: [&str; 2] = ["/usr/bin", "/usr/sbin"];

/// What Python imports to start and to run the tests' programs.
const PYTHON_MODULES: &str = "import json, time, sys\n\
    for module in list(sys.modules.values()): print(getattr(module, '__file__', None) or '')";

/// What is told apart of a run's parts.
pub(crate) struct Content {
    /// The release binary.
    pub(crate) profiler: PathBuf,
    /// The program of the kernel tests.
    pub(crate) tests: PathBuf,
    /// The programs it would build.
    pub(crate) workloads: Vec<PathBuf>,
    /// Arguments of the tests.
    pub(crate) arguments: Vec<String>,
}

/// Writes the RAM file system.
///
/// Errors: something that it must have is missing here.
pub(crate) fn write(path: &Path, content: &Content) -> anyhow::Result<()> {
    if let Some(directory) = path.parent() {
        std::fs::create_dir_all(directory).with_context(|| format!("cannot create {}", directory.display()))?;
    }
    let mut archive = Archive::default();
    for directory in ["/dev", "/proc", "/sys", "/run", "/root"] {
        archive.directory(directory);
    }
    // Not a mount: the checkout itself may be below it.
    archive.copy(Path::new("/tmp"))?;
    archive.file("/init", 0o755, init(content)?.as_bytes());
    archive.copy(Path::new("/bin/busybox")).context("busybox is not installed: run `cargo xtask setup --vm`")?;
    // Where the loader finds libraries outside its own directories.
    archive.copy(Path::new("/etc/ld.so.cache"))?;
    for program in PROGRAMS {
        match PROGRAM_DIRECTORIES.iter().map(|directory| Path::new(directory).join(program)).find(|it| it.is_file()) {
            Some(file) => with_libraries(&mut archive, &file)?,
            None => println!("warning: {program} is not installed: the tests that use it will not run"),
        }
    }
    let python = Path::new("/usr/bin/python3");
    if python.is_file() {
        let modules = output(command(python).args(["-I", "-c", PYTHON_MODULES]))?;
        for module in modules.lines().filter(|line| line.starts_with('/')) {
            with_libraries(&mut archive, Path::new(module))?;
        }
    }
    for program in [&content.profiler, &content.tests].into_iter().chain(&content.workloads) {
        with_libraries(&mut archive, program)?;
    }
    // A workload is known by the content of its source.
    let packages = ["tests/workloads/allocators", "profiler/alloc"].map(|package| root().join(package));
    for directory in packages.iter().flat_map(|package| [package.clone(), package.join("src")]) {
        archive.copy_files(&directory)?;
    }
    archive.copy_files(&root().join("tests/workloads"))?;
    archive.copy(&target_dir().join("tmp/kernel-tests"))?;
    archive.write_to(path)
}

/// Adds a program and the libraries it is linked to.
fn with_libraries(archive: &mut Archive, program: &Path) -> anyhow::Result<()> {
    archive.copy(program)?;
    // It fails for what is not linked to any.
    let Ok(libraries) = output(command("ldd").arg(program)) else { return Ok(()) };
    for path in libraries.split_whitespace().filter(|word| word.starts_with('/')) {
        archive.copy(Path::new(path.trim_end_matches(':')))?;
    }
    Ok(())
}

/// The first program: mounts what tests and profiler read, runs the tests on the second serial line, restarts the
/// machine, which ends qemu.
fn init(content: &Content) -> anyhow::Result<String> {
    let [profiler, tests, directory] =
        [&content.profiler, &content.tests, &root().join("tests")].map(|path| quoted(path));
    let (profiler, tests, directory) = (profiler?, tests?, directory?);
    let arguments =
        content.arguments.iter().map(|word| quoted(Path::new(word))).collect::<Result<Vec<_>, _>>()?.join(" ");
    let limit_s = LIMIT.as_secs();
    Ok(format!(
        "#!/bin/busybox sh
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root
busybox mount -t proc none /proc
busybox mount -t sysfs none /sys
busybox mount -t devtmpfs none /dev
busybox mount -t tracefs none /sys/kernel/tracing
busybox mount -t bpf none /sys/fs/bpf
busybox mount -t cgroup2 none /sys/fs/cgroup
busybox ip link set lo up
busybox insmod /modules/configfs.ko
busybox insmod /modules/null_blk.ko nr_devices=1 gb=1 irqmode=2 completion_nsec=50000000
# The machine ends also when nobody watches it any more.
(busybox sleep {limit_s}; busybox reboot -f) &
exec </dev/null >/dev/ttyS1 2>&1
cd {directory}
export PROFILER_BIN={profiler} PROFILER_SLOW=1 RUST_TEST_THREADS=1
{tests} --show-output {arguments}
echo \"{ENDED}$?\"
busybox reboot -f
"
    ))
}

/// A word for the shell.
fn quoted(word: &Path) -> anyhow::Result<String> {
    let Some(word) = word.to_str() else { bail!("{} is not UTF-8", word.display()) };
    Ok(format!("'{}'", word.replace('\'', r"'\''")))
}
