//! Boots a kernel in qemu and follows its tests. A kernel and a RAM file system -> what became of the tests.
//!
//! The kernel speaks on the first serial line, the tests on the second: neither garbles the other.

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};

use super::initramfs::Archive;
use super::kernels::Kernel;
use super::results::{Results, Section};
use crate::command::command;

/// How long all the tests may take: a few times what they do.
pub(crate) const LIMIT: Duration = Duration::from_secs(3600);

/// How long one test may say nothing: more than the slowest takes.
const SILENCE: Duration = Duration::from_secs(600);

/// What the last line begins with; the exit code of the tests follows.
pub(crate) const ENDED: &str = "vm: the tests ended with ";

/// Memory: the RAM file system takes a tenth of it, captures and 60,000 mappings the rest.
const MEMORY_MIB: &str = "3072";

/// As many CPUs as the tests assume, who run two programs at once.
const CPUS: &str = "2";

/// The two CPUs have one clock, which the kernel cannot know; without it every look at the time is a system call.
const COMMAND_LINE: &str = "console=ttyS0 panic=-1 tsc=reliable quiet loglevel=4";

/// Runs the tests on a kernel. All they say is left in a directory named after it, below `directory`.
///
/// Errors: the machine does not start, or does not say how the tests ended, in time.
pub(crate) fn run(kernel: &Kernel, initramfs: &Path, directory: &Path) -> anyhow::Result<Results> {
    let directory = directory.join(&kernel.release);
    let initramfs = &with_modules(kernel, initramfs, &directory)?;
    let [console, log] = ["console.log", "tests.log"].map(|name| directory.join(name));
    let mut log = File::create(&log).with_context(|| format!("cannot create {}", log.display()))?;
    // However we end, the machine ends with us.
    let mut qemu = command("setpriv");
    qemu.args(["--pdeathsig", "KILL", "qemu-system-x86_64"]);
    // An emulated CPU: hardware virtualization would be faster, and is often not there.
    qemu.args(["-accel", "tcg,thread=multi", "-smp", CPUS, "-m", MEMORY_MIB]);
    qemu.args(["-nodefaults", "-display", "none", "-no-reboot", "-nic", "none"]);
    qemu.arg("-serial").arg(format!("file:{}", console.display())).args(["-serial", "stdio"]);
    qemu.arg("-kernel").arg(&kernel.image).arg("-initrd").arg(initramfs).args(["-append", COMMAND_LINE]);
    let child = qemu.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().context("cannot start qemu-system-x86_64")?;
    let mut machine = Machine(child);
    let lines = machine.lines()?;
    let results = follow(&lines, &mut log);
    results.with_context(|| format!("the last words of the kernel are in {}", console.display()))
}

/// Modules of a kernel, as its package has them below `kernel`, in the order in which they are loaded: a block device of known
/// latency, and what it needs.
const MODULES: [&str; 2] = ["fs/configfs/configfs", "drivers/block/null_blk/null_blk"];

/// The RAM file system with a kernel's own modules behind it: the kernel takes several archives in one.
fn with_modules(kernel: &Kernel, initramfs: &Path, directory: &Path) -> anyhow::Result<PathBuf> {
    let modules = directory.join("lib/modules").join(&kernel.release).join("kernel");
    let mut archive = Archive::default();
    archive.directory("/modules");
    for module in MODULES {
        let name = format!("/modules/{}.ko", module.rsplit('/').next().unwrap_or(module));
        let [plain, packed] = ["ko", "ko.xz"].map(|kind| modules.join(module).with_extension(kind));
        if let Ok(content) = fs::read(&plain) {
            archive.file(name, 0o644, &content);
        } else if packed.exists() {
            let unpacked = command("xz").arg("-dc").arg(&packed).output().context("start xz")?;
            archive.file(name, 0o644, &unpacked.stdout);
        }
    }
    let path = directory.join("initramfs.cpio");
    archive.write_to(&path)?;
    let modules = fs::read(&path)?;
    fs::copy(initramfs, &path).with_context(|| format!("cannot write {}", path.display()))?;
    let mut whole = fs::OpenOptions::new().append(true).open(&path)?;
    whole.write_all(&modules).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(path)
}

/// A machine that runs; ended when it is dropped.
struct Machine(Child);

impl Machine {
    /// The lines it writes to its second serial line.
    fn lines(&mut self) -> anyhow::Result<Receiver<String>> {
        let output = self.0.stdout.take().context("qemu has no output")?;
        let (sender, receiver) = mpsc::channel();
        std::thread::spawn(move || {
            for line in BufReader::new(output).split(b'\n').map_while(Result::ok) {
                let line = String::from_utf8_lossy(&line).trim_end_matches('\r').to_owned();
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        Ok(receiver)
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Prints how each test ended and what failed, as it comes.
fn follow(lines: &Receiver<String>, log: &mut File) -> anyhow::Result<Results> {
    let start = Instant::now();
    let mut results = Results::default();
    let mut section = Section::default();
    loop {
        let patience = SILENCE.min(LIMIT.saturating_sub(start.elapsed()));
        let line = match lines.recv_timeout(patience) {
            Ok(line) => line,
            Err(RecvTimeoutError::Timeout) => bail!("the tests said nothing for {} s", patience.as_secs()),
            Err(RecvTimeoutError::Disconnected) => bail!("the machine ended before the tests did"),
        };
        writeln!(log, "{line}").context("cannot write the log of the tests")?;
        if let Some(code) = line.strip_prefix(ENDED) {
            // 0 and 101 are libtest's; anything else is a crash.
            results.broken = !matches!(code, "0" | "101") || (code == "101") == results.failed.is_empty();
            return Ok(results);
        }
        if results.read(&line, &mut section) {
            println!("{line}");
        }
    }
}
