//! `cargo xtask setup`: installs what is missing; when nothing is, it costs a few milliseconds and prints nothing.
//!
//! On Debian packages come by apt-get and bpf-linker is built into the target directory. Elsewhere nothing is
//! installed: it says what is missing. It never starts a service.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};

use crate::command::{command, find, foreign, output, run as run_command, target_dir};
use crate::toolchain::{DISTRIBUTION_BIN, Toolchain, find_linker, tools_dir};

/// Debian's Rust with core for the BPF target.
const RUST_PACKAGES: [&str; 3] = ["rustc-web", "cargo-web", "libstd-rust-web-dev-bpf"];

/// What bpf-linker is built with: the LLVM of Debian's Rust, what that links to, and a linker.
const LINKER_PACKAGES: [&str; 4] = ["llvm-22-dev", "zlib1g-dev", "libzstd-dev", "g++"];

/// Where `llvm-22-dev` puts LLVM. Without it bpf-linker's build takes another LLVM and fails to link.
const LLVM_PREFIX: &str = "/usr/lib/llvm-22";

/// The bpf-linker that fits rustc-web.
const LINKER: &str = "bpf-linker@0.13.0";

/// What the kernel tests and benchmarks run: the program and Debian's package of it.
const TEST_PROGRAMS: [(&str, &str); 23] = [
    ("gcc", "gcc"),
    ("g++", "g++"),
    ("bpftool", "bpftool"),
    ("systemd-analyze", "systemd"),
    ("go", "golang-go"),
    ("etcd", "etcd-server"),
    ("prometheus", "prometheus"),
    ("node", "nodejs"),
    ("fio", "fio"),
    ("redis-server", "redis-server"),
    ("redis-benchmark", "redis-tools"),
    ("pgbench", "postgresql"),
    ("perf", "linux-perf"),
    ("xz", "xz-utils"),
    ("debuginfod", "debuginfod"),
    ("callgrind_annotate", "valgrind"),
    ("chromium", "chromium"),
    ("openssl", "openssl"),
    ("curl", "curl"),
    ("npm", "npm"),
    ("python3", "python3"),
    ("pip3", "python3-pip"),
    ("musl-gcc", "musl-tools"),
];

/// What the tests build against: a header and Debian's package of it.
const TEST_HEADERS: [(&str, &str); 2] = [
    ("/usr/include/elfutils/libdwfl.h", "libdw-dev"),
    ("/usr/include/gperftools/tcmalloc.h", "libgoogle-perftools-dev"),
];

/// Programs and messages that read exported profiles: what they are installed by, into which directory of the target
/// directory, and the packages.
const READERS: [(&str, &[&str], &str, &[&str]); 2] = [
    (
        "npm",
        &["install", "--no-audit", "--no-fund", "--silent", "--prefix"],
        "npm",
        &["speedscope@1.25.0", "@firefox-devtools/profiler-cli@0.10.0"],
    ),
    (
        "pip3",
        &["install", "--quiet", "--root-user-action=ignore", "--target"],
        "pypi",
        &["opentelemetry-proto==1.45.2", "grpcio==1.85.1"],
    ),
];

/// What `cargo xtask vm` runs.
const VM_PROGRAMS: [(&str, &str); 2] = [("qemu-system-x86_64", "qemu-system-x86"), ("busybox", "busybox-static")];

/// The arguments of `cargo xtask setup`.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Also install what the kernel tests and benchmarks run
    #[arg(long)]
    test: bool,
    /// Also install what virtual machines with other kernels need
    #[arg(long)]
    vm: bool,
}

/// Runs the command.
pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    ebpf()?;
    if arguments.test {
        test()?;
    }
    if arguments.vm { vm() } else { Ok(()) }
}

/// Makes sure that the eBPF object can be built.
///
/// Errors: what is missing, where it cannot be installed.
pub(crate) fn ebpf() -> anyhow::Result<()> {
    if Toolchain::find().is_err() && is_debian() {
        install(&RUST_PACKAGES)?;
        if find_linker().is_none() {
            install(&LINKER_PACKAGES)?;
            install_linker()?;
        }
    }
    Toolchain::find().map(drop)
}

/// Makes sure that what the kernel tests and benchmarks run is there.
///
/// Not on Debian: names what is missing and goes on, a test whose program is missing says so itself.
/// Errors: a package cannot be installed.
pub(crate) fn test() -> anyhow::Result<()> {
    let programs = TEST_PROGRAMS.iter().filter(|(program, _)| find(program).is_none());
    let headers = TEST_HEADERS.iter().filter(|(header, _)| !Path::new(header).exists());
    let missing: Vec<_> = programs.chain(headers).collect();
    if is_debian() {
        install(&missing.iter().map(|(_, package)| *package).collect::<Vec<_>>())?;
    } else if !missing.is_empty() {
        let programs: Vec<_> = missing.iter().map(|(program, _)| *program).collect();
        eprintln!("warning: the tests and benchmarks that use these will not run: {}", programs.join(", "));
    }
    readers()
}

/// Installs what reads exported profiles, where that is not there yet.
fn readers() -> anyhow::Result<()> {
    for (installer, arguments, name, packages) in READERS {
        let directory = target_dir().join(name);
        let mark = directory.join(".installed");
        let wanted = packages.join(" ");
        if find(installer).is_none() || fs::read_to_string(&mark).is_ok_and(|installed| installed == wanted) {
            continue;
        }
        fs::create_dir_all(&directory).with_context(|| format!("making {}", directory.display()))?;
        run_command(command(installer).args(arguments).arg(&directory).args(packages))?;
        fs::write(&mark, wanted).with_context(|| format!("writing {}", mark.display()))?;
    }
    Ok(())
}

/// Makes sure that virtual machines with Debian's kernels can be run.
///
/// Errors: what is missing, where it cannot be installed.
pub(crate) fn vm() -> anyhow::Result<()> {
    if !is_debian() {
        bail!("virtual machines run Debian's kernels: apt-get and dpkg are needed to get them");
    }
    let missing = VM_PROGRAMS.iter().filter(|(program, _)| find(program).is_none());
    install(&missing.map(|(_, package)| *package).collect::<Vec<_>>())
}

/// Installs those of `packages` that are not.
fn install(packages: &[&str]) -> anyhow::Result<()> {
    let missing: Vec<_> = packages.iter().filter(|package| !is_installed(package)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let _no_services = NoServices::new()?;
    let apt = || {
        let mut apt = command("apt-get");
        apt.env("DEBIAN_FRONTEND", "noninteractive");
        apt
    };
    run_command(apt().args(["update", "--quiet=2"]))?;
    run_command(apt().args(["install", "--quiet=2", "--yes", "--no-install-recommends"]).args(missing))
        .context("cannot install packages; this needs root and Debian's own package sources")
}

/// Builds bpf-linker into the target directory, with Debian's Rust and LLVM.
fn install_linker() -> anyhow::Result<()> {
    let bin = Path::new(DISTRIBUTION_BIN);
    let mut cargo = foreign(bin.join("cargo"));
    cargo.env("RUSTC", bin.join("rustc")).env("LLVM_PREFIX", LLVM_PREFIX);
    cargo.args(["install", "--quiet", "--locked", "--no-default-features", "--features", "llvm-22", "--root"]);
    run_command(cargo.arg(tools_dir()).arg(LINKER))
}

fn is_debian() -> bool {
    find("apt-get").is_some() && find("dpkg-query").is_some()
}

fn is_installed(package: &str) -> bool {
    output(command("dpkg-query").args(["--show", "--showformat=${db:Status-Status}", package]))
        .is_ok_and(|status| status == "installed")
}

/// While it lives, no package that is installed starts its service; the tests start their own, on ports of their own.
struct NoServices {
    /// The policy we wrote: none when the machine has one already.
    policy: Option<PathBuf>,
}

impl NoServices {
    /// Source: `invoke-rc.d(8)`, policy layer: exit code 101 forbids the action.
    fn new() -> anyhow::Result<Self> {
        let path = PathBuf::from("/usr/sbin/policy-rc.d");
        if path.exists() {
            return Ok(Self { policy: None });
        }
        let written = fs::write(&path, "#!/bin/sh\nexit 101\n")
            .and_then(|()| fs::set_permissions(&path, fs::Permissions::from_mode(0o755)));
        match written {
            Ok(()) => Ok(Self { policy: Some(path) }),
            Err(error) => bail!("packages are missing and only root can install them: {}: {error}", path.display()),
        }
    }
}

impl Drop for NoServices {
    fn drop(&mut self) {
        if let Some(path) = &self.policy
            && let Err(error) = fs::remove_file(path)
        {
            eprintln!("warning: cannot remove {}, which keeps services from starting: {error}", path.display());
        }
    }
}
