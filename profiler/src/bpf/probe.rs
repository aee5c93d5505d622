//! What this kernel and user can do, probe by probe: what `doctor` prints.

use std::fs;
use std::path::Path;

use aya::maps::MapType;
use aya::programs::ProgramType;

use super::net::{NetHook, has_accepts};
use super::{
    BpfError, Faults, Kernel, Limits, SamplingEvent, Selection, TableParts, WaitHook, max_sample_rate, online_cpus,
    read_task_offsets,
};

/// How a check ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// As it should be.
    Ok,
    /// Something is missing that costs a little.
    Degraded,
    /// `record` does not work without it.
    Missing,
}

/// One thing that was looked at.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Check {
    /// What was looked at.
    pub name: &'static str,
    /// How it ended.
    pub verdict: Verdict,
    /// What was found.
    pub found: String,
    /// What to change, and what it costs not to; empty when nothing is amiss.
    pub remedy: String,
}

impl Check {
    fn ok(name: &'static str, found: impl Into<String>) -> Self {
        Self { name, verdict: Verdict::Ok, found: found.into(), remedy: String::new() }
    }

    fn degraded(name: &'static str, found: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { name, verdict: Verdict::Degraded, found: found.into(), remedy: remedy.into() }
    }

    fn missing(name: &'static str, found: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { name, verdict: Verdict::Missing, found: found.into(), remedy: remedy.into() }
    }
}

/// Runs every check. Loads the sampling program as `record` would, and takes nothing from any process.
#[must_use]
pub fn checks() -> Vec<Check> {
    vec![
        kernel_release(),
        kernel_types(),
        map_types(),
        sampling_program(),
        sampling_event(),
        sample_rate(),
        time_off_the_cpu(),
        page_faults(),
        system_calls(),
        block_io(),
        files(),
        sockets(),
        allocations(),
        following_processes(),
        kernel_symbols(),
        mapped_files(),
        pid_namespace(),
        cgroups(),
    ]
}

fn setting(path: &str) -> Option<String> {
    fs::read_to_string(path).ok().map(|text| text.trim().to_owned())
}

fn kernel_release() -> Check {
    let release = setting("/proc/sys/kernel/osrelease").unwrap_or_else(|| "unknown".to_owned());
    Check::ok("kernel", format!("Linux {release}, {} CPUs online", online_cpus().map_or(0, |cpus| cpus.len())))
}

fn kernel_types() -> Check {
    const NAME: &str = "kernel types (BTF)";
    match read_task_offsets() {
        Ok(_) => Check::ok(NAME, "/sys/kernel/btf/vmlinux has every field that is read"),
        Err(error) => Check::missing(NAME, error.to_string(), "run a kernel with CONFIG_DEBUG_INFO_BTF=y"),
    }
}

fn map_types() -> Check {
    const NAME: &str = "BPF maps";
    match aya::sys::is_map_supported(MapType::RingBuf) {
        Ok(true) => Check::ok(NAME, "ring buffer and batch operations"),
        Ok(false) => Check::missing(NAME, "no ring buffer", "run Linux 5.8 or later"),
        Err(error) => Check::missing(NAME, error.to_string(), "run as root, or with CAP_BPF"),
    }
}

fn sampling_program() -> Check {
    const NAME: &str = "sampling program";
    let limits =
        Limits { records: 64, ring_bytes: 4096, processes: 64, mappings: 64, table_shards: 1, ..Limits::default() };
    let table = TableParts { first_page: 1, pages: &[(0, 1)], rows: &[0] };
    let loaded = Kernel::load(&Selection::All, limits, false, std::process::id()).and_then(|mut kernel| {
        kernel.place_table(table)?;
        kernel.load_sampling_program().map(drop)
    });
    match loaded {
        Ok(()) => Check::ok(NAME, "the verifier accepts it, and there is room for unwind tables"),
        Err(error) => {
            Check::missing(NAME, error.to_string(), "as the error says; Linux 5.15 or later has every helper it needs")
        }
    }
}

fn sampling_event() -> Check {
    const NAME: &str = "sampling event";
    match SamplingEvent::detect() {
        SamplingEvent::Cycles => Check::ok(NAME, "hardware cycles"),
        SamplingEvent::CpuClock => Check::degraded(
            NAME,
            "the CPU clock; this machine shows no PMU",
            "code that runs with interrupts off is charged to where they come on again; give the virtual machine a PMU",
        ),
    }
}

fn sample_rate() -> Check {
    const NAME: &str = "highest rate";
    let rate = max_sample_rate();
    if rate >= 999 {
        Check::ok(NAME, format!("{rate} Hz (kernel.perf_event_max_sample_rate)"))
    } else {
        Check::degraded(NAME, format!("{rate} Hz"), "sysctl kernel.perf_event_max_sample_rate=100000, to sample faster")
    }
}

fn time_off_the_cpu() -> Check {
    const NAME: &str = "time off the CPU";
    match WaitHook::detect() {
        Ok(hook) => Check::ok(NAME, hook.name()),
        Err(error) => Check::degraded(NAME, error.to_string(), "-e offcpu does not work; -e cpu does"),
    }
}

fn page_faults() -> Check {
    const NAME: &str = "page faults";
    match Faults::try_open() {
        Ok(()) => Check::ok(NAME, Faults::name()),
        Err(error) => Check::degraded(NAME, error.to_string(), "-e fault does not work"),
    }
}

fn system_calls() -> Check {
    const NAME: &str = "system calls";
    match aya::sys::is_program_supported(ProgramType::RawTracePoint) {
        Ok(true) => Check::ok(NAME, Kernel::CALL_HOOKS),
        Ok(false) => Check::degraded(NAME, "no raw tracepoints", "-e syscall does not work"),
        Err(error) => Check::degraded(NAME, error.to_string(), "run as root, or with CAP_PERFMON"),
    }
}

fn sockets() -> Check {
    const NAME: &str = "sockets";
    let loaded = NetHook::detect().and_then(|hook| {
        loads(Limits { net: true, ..Limits::default() }, Kernel::load_net_programs)?;
        Ok(hook)
    });
    match loaded {
        Ok(hook) if has_accepts() => Check::ok(NAME, hook.name()),
        Ok(hook) => Check::degraded(
            NAME,
            format!("{}; tracefs is not mounted", hook.name()),
            "mount -t tracefs tracefs /sys/kernel/tracing, to see connections that are accepted",
        ),
        Err(error) => Check::degraded(NAME, error.to_string(), "-e net does not work"),
    }
}

fn files() -> Check {
    const NAME: &str = "files";
    let loaded = loads(Limits { files: true, ..Limits::default() }, Kernel::load_file_programs);
    match loaded.and_then(|()| Kernel::check_file_hooks()) {
        Ok(found) => Check::ok(NAME, found),
        Err(error) => Check::degraded(NAME, error.to_string(), "-e fileio does not work"),
    }
}

fn block_io() -> Check {
    const NAME: &str = "block I/O";
    match loads(Limits { blocks: true, ..Limits::default() }, Kernel::load_block_programs) {
        Ok(()) => Check::ok(NAME, Kernel::BLOCK_HOOKS),
        Err(error) => Check::degraded(NAME, error.to_string(), "-e blockio does not work"),
    }
}

/// Loads programs, with small maps, and forgets them.
fn loads(limits: Limits, load: impl FnOnce(&mut Kernel) -> Result<(), BpfError>) -> Result<(), BpfError> {
    let limits = Limits { records: 64, ring_bytes: 4096, processes: 64, mappings: 64, table_shards: 1, ..limits };
    load(&mut Kernel::load(&Selection::All, limits, false, std::process::id())?)
}

fn allocations() -> Check {
    const NAME: &str = "allocations";
    if fs::exists(super::holder::UPROBES).unwrap_or(false) {
        Check::ok(NAME, "uprobes")
    } else {
        Check::degraded(NAME, "no uprobes (CONFIG_UPROBES)", "-e alloc does not work")
    }
}

fn following_processes() -> Check {
    const NAME: &str = "following children";
    match aya::sys::is_program_supported(ProgramType::RawTracePoint) {
        Ok(true) => Check::ok(NAME, "raw tracepoints sched_process_fork and sched_process_exec"),
        Ok(false) => Check::degraded(NAME, "no raw tracepoints", "--children and -- COMMAND do not work"),
        Err(error) => Check::degraded(NAME, error.to_string(), "run as root, or with CAP_PERFMON"),
    }
}

fn kernel_symbols() -> Check {
    const NAME: &str = "kernel symbols";
    let readable = fs::read("/proc/kallsyms").ok().map(|text| {
        // Without the permission every address reads as zero.
        text.split(|&byte| byte == b'\n').take(100).any(|line| line.iter().take(16).any(|&byte| byte != b'0'))
    });
    match readable {
        Some(true) => Check::ok(NAME, "/proc/kallsyms shows addresses"),
        Some(false) => Check::degraded(
            NAME,
            "/proc/kallsyms hides addresses",
            "run with CAP_SYSLOG and kernel.kptr_restrict at most 1",
        ),
        None => Check::degraded(NAME, "/proc/kallsyms cannot be read", "kernel frames stay addresses"),
    }
}

fn mapped_files() -> Check {
    const NAME: &str = "mapped files";
    let readable = fs::read_dir("/proc/self/map_files")
        .and_then(|mut entries| entries.next().unwrap_or_else(|| Err(std::io::Error::other("empty"))))
        .and_then(|entry| fs::File::open(entry.path()));
    match readable {
        Ok(_) => Check::ok(NAME, "/proc/PID/map_files can be opened"),
        Err(error) => Check::degraded(
            NAME,
            format!("/proc/PID/map_files: {error}"),
            "run with CAP_CHECKPOINT_RESTORE or CAP_SYS_ADMIN, to name frames of deleted and replaced files",
        ),
    }
}

fn pid_namespace() -> Check {
    const NAME: &str = "pid namespace";
    match crate::process::pid_namespace() {
        None => Check::ok(NAME, "the host's"),
        Some(_) => Check::degraded(
            NAME,
            "a container's: only its own processes can be sampled",
            "share the host's (docker run --pid=host) to sample others",
        ),
    }
}

fn cgroups() -> Check {
    const NAME: &str = "cgroups";
    let unified = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"];
    match unified.iter().find(|root| Path::new(root).join("cgroup.procs").exists()) {
        Some(root) => Check::ok(NAME, format!("version 2 at {root}")),
        None => Check::degraded(NAME, "no version 2 hierarchy", "--cgroup does not work: use -p"),
    }
}
