//! Files: where the kernel keeps what is read of them; loads and attaches what records them, and reads what was counted
//! exactly.

use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use aya::Ebpf;
use aya::maps::{Array, HashMap, MapData};
use aya::programs::{RawTracePoint, TracePoint};
use profiler_common::config::Control;
use profiler_common::file::{
    FileCallKind, FileHistogram, FileId, FileKey, FileOffsets, FileStats, TIMED_OPERATIONS, files_missed,
};
use profiler_common::system_call::SYSTEM_CALLS;

use super::BpfError;
use super::btf::Types;
use super::drain::Batch;
use super::load::{Kernel, Shared, program_error, take, typed};
use super::perf::{Attributes, Event, TYPE_TRACEPOINT};
use super::pythons::PythonProgram;
use super::sampler::online_cpus;
use super::waits::clock_ns;

/// The programs on the tracepoints of system calls: the exit first, so that every entry that is seen has its exit.
const PROGRAMS: [(&str, &str); 2] = [("file_exit", "sys_exit"), ("file_enter", "sys_enter")];

/// The program that forgets threads, those that see pages of files, and their tracepoints.
const OTHERS: [(&str, &str); 3] = [
    ("file_end", "sched_process_exit"),
    ("file_page_added", "mm_filemap_add_to_page_cache"),
    ("file_dirtied", "writeback_dirty_folio"),
];

/// The programs that see requests of `io_uring`, and their tracepoints, of which the kernel has the first or the second:
/// the completion first, as above. Source: include/trace/events/io_uring.h, Linux 6.3 and before.
const OF_RINGS: [(&str, [&str; 2]); 2] = [
    ("file_completed", ["io_uring_complete", "io_uring_complete"]),
    ("file_submitted", ["io_uring_submit_req", "io_uring_submit_sqe"]),
];

/// Where the kernel shows its tracepoints, where that is mounted.
const TRACEFS: [&str; 2] = ["/sys/kernel/tracing", "/sys/kernel/debug/tracing"];

/// What is held of files.
pub(super) struct Files {
    stats: Batch<FileKey, FileStats>,
    histograms: Array<MapData, Shared<FileHistogram>>,
    missed: Array<MapData, u64>,
    /// What the programs are attached to.
    events: Vec<Event>,
    /// Whether the kernel's types say where it keeps what is read of a request of `io_uring`.
    knows_requests: bool,
    /// Whether these are recorded.
    sees_rings: bool,
    /// Those that have been named, of all origins.
    seen: HashMap<MapData, Shared<FileId>, u8>,
}

/// What was counted of one file.
#[derive(Debug)]
pub struct CountedFile {
    /// The process and the file.
    pub key: FileKey,
    /// What was counted.
    pub stats: FileStats,
    /// How long reads, writes and syncs took, where there are any.
    pub histograms: [Option<Box<FileHistogram>>; TIMED_OPERATIONS],
}

/// What was counted of files.
#[derive(Debug, Default)]
pub struct FileCounts {
    /// By process and file.
    pub files: Vec<CountedFile>,
    /// Operations that are in none of them, for want of room.
    pub missed: u64,
    /// Operations that are in no histogram, for want of room.
    pub untimed: u64,
    /// Whether requests of `io_uring` are among them.
    pub has_rings: bool,
}

impl Files {
    pub(super) fn new(ebpf: &mut Ebpf, offsets: &FileOffsets) -> Result<Self, BpfError> {
        Ok(Self {
            stats: Batch::new(take(ebpf, "FILE_STATS")?, "FILE_STATS")?,
            histograms: typed(ebpf, "FILE_HISTOGRAMS")?,
            missed: typed(ebpf, "FILES_MISSED")?,
            events: Vec::new(),
            knows_requests: offsets.request_result != 0,
            sees_rings: false,
            seen: typed(ebpf, "FILES_SEEN")?,
        })
    }
}

impl Kernel {
    /// Name of the hooks of files in reports.
    pub const FILE_HOOKS: &str = "tracepoints of the system calls";

    /// Loads the programs that record operations on files.
    ///
    /// # Errors
    ///
    /// When the verifier refuses one.
    pub(super) fn load_file_programs(&mut self) -> Result<(), BpfError> {
        self.pythons.expect(PythonProgram::FILE);
        for (name, _) in PROGRAMS {
            let program: &mut TracePoint = self.program(name)?;
            program.load().map_err(|cause| program_error("load", name, cause))?;
        }
        for name in OTHERS.map(|(name, _)| name).into_iter().chain(OF_RINGS.map(|(name, _)| name)) {
            let program: &mut RawTracePoint = self.program(name)?;
            program.load().map_err(|cause| program_error("load", name, cause))?;
        }
        Ok(())
    }

    /// Attaches what [`Kernel::load_file_programs`] has loaded.
    ///
    /// # Errors
    ///
    /// When the kernel has no tracepoints of system calls.
    pub(super) fn begin_files(&mut self) -> Result<(), BpfError> {
        for (name, tracepoint) in OTHERS {
            let program: &mut RawTracePoint = self.program(name)?;
            program.attach(tracepoint).map_err(|cause| program_error("attach", name, cause))?;
        }
        self.files.sees_rings = self.files.knows_requests && self.attach_to_rings().is_ok();
        let tracepoints = Tracepoints::find().map_err(BpfError::NoTracepoints)?;
        for (name, prefix) in PROGRAMS {
            let program: &mut TracePoint = self.program(name)?;
            let failed = |cause| program_error("attach", name, cause);
            let fd = program.fd().map_err(failed)?.as_fd().try_clone_to_owned();
            let fd = fd.map_err(|error| BpfError::map("duplicate", name, error))?;
            for event in call_events(prefix) {
                let attached = tracepoints.attach("syscalls", &event, &fd).map_err(BpfError::NoTracepoints)?;
                self.files.events.push(attached);
            }
        }
        self.write_control(Control { ended_ns: u64::MAX, ..self.controlled })
    }

    /// Looks for the tracepoints of files, and says what there is; takes none.
    ///
    /// # Errors
    ///
    /// When one of a system call is not there.
    pub fn check_file_hooks() -> Result<String, BpfError> {
        let tracepoints = Tracepoints::find().map_err(BpfError::NoTracepoints)?;
        let mut calls = 0;
        for event in PROGRAMS.iter().flat_map(|(_, prefix)| call_events(prefix)) {
            tracepoints.id("syscalls", &event).map_err(BpfError::NoTracepoints)?;
            calls += 1;
        }
        let rings = ["io_uring_submit_req", "io_uring_submit_sqe"];
        let has_rings = rings.iter().any(|name| tracepoints.id("io_uring", name).is_ok());
        Ok(format!("{calls} {}, io_uring: {}", Self::FILE_HOOKS, if has_rings { "yes" } else { "no" }))
    }

    fn attach_to_rings(&mut self) -> Result<(), BpfError> {
        for (name, [first, second]) in OF_RINGS {
            let program: &mut RawTracePoint = self.program(name)?;
            let attached = program.attach(first).or_else(|_| program.attach(second));
            attached.map_err(|cause| program_error("attach", name, cause))?;
        }
        Ok(())
    }

    /// Ends the recording of files: operations that end from now on are not counted.
    ///
    /// The kernel takes some 70 ms to detach each of the programs, one after another: that is left to a thread.
    ///
    /// # Errors
    ///
    /// When a map cannot be written.
    pub(super) fn end_files(&mut self) -> Result<(), BpfError> {
        let ended_ns = self.controlled.ended_ns.min(clock_ns(libc::CLOCK_MONOTONIC));
        self.write_control(Control { ended_ns, ..self.controlled })?;
        let events = std::mem::take(&mut self.files.events);
        // Without the thread they are closed here.
        let _ = std::thread::Builder::new().name("detach".to_owned()).spawn(move || drop(events));
        Ok(())
    }

    /// Forgets what a process has done to a file that has ended.
    pub fn forget_file_stats(&self, key: &FileKey) {
        self.files.stats.remove(key);
    }

    /// Makes the programs forget which files they have named: those that are used on are named anew.
    ///
    /// # Errors
    ///
    /// When the map cannot be emptied.
    pub fn forget_named_files(&mut self) -> Result<(), BpfError> {
        let failed = |error| BpfError::map("empty", "FILES_SEEN", error);
        let known: Vec<Shared<FileId>> = self.files.seen.keys().collect::<Result<_, _>>().map_err(failed)?;
        for id in known {
            // One that is gone already was forgotten by the kernel.
            let _ = self.files.seen.remove(&id);
        }
        Ok(())
    }

    /// What was counted so far.
    ///
    /// # Errors
    ///
    /// When a map cannot be read.
    pub fn file_counts(&self) -> Result<FileCounts, BpfError> {
        let missed = |what| self.files.missed.get(&what, 0).unwrap_or(0);
        let mut counts = FileCounts {
            missed: missed(files_missed::OPERATIONS),
            untimed: missed(files_missed::TIMES),
            has_rings: self.files.sees_rings,
            ..FileCounts::default()
        };
        for (key, stats) in self.files.stats.read_all()? {
            let histograms = std::array::from_fn(|operation| {
                let number = stats.histograms[operation].checked_sub(1)?;
                Some(Box::new(self.files.histograms.get(&number, 0).ok()?.0))
            });
            counts.files.push(CountedFile { key, stats, histograms });
        }
        Ok(counts)
    }
}

/// Names of the tracepoints of the calls that are recorded.
fn call_events(prefix: &str) -> impl Iterator<Item = String> {
    let calls = (0..).zip(SYSTEM_CALLS).filter(|&(number, _)| FileCallKind::of(number).is_some());
    calls.map(move |(_, name)| {
        // By the name of the function, which is another one here.
        let name = if name == "sendfile" { "sendfile64" } else { name };
        format!("{prefix}_{name}")
    })
}

/// The kernel's list of tracepoints.
struct Tracepoints {
    path: PathBuf,
    /// The file system that it is in, where nobody has mounted it. Nobody else sees this mount.
    _mount: Option<OwnedFd>,
}

impl Tracepoints {
    fn find() -> io::Result<Self> {
        if let Some(path) = TRACEFS.iter().find(|path| Path::new(path).join("events").exists()) {
            return Ok(Self { path: path.into(), _mount: None });
        }
        let mount = mount_unseen(c"tracefs")?;
        Ok(Self { path: format!("/proc/self/fd/{}", mount.as_raw_fd()).into(), _mount: Some(mount) })
    }

    /// Number of a tracepoint.
    fn id(&self, system: &str, name: &str) -> io::Result<u64> {
        let path = self.path.join("events").join(system).join(name).join("id");
        let id = std::fs::read_to_string(&path)
            .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display())))?;
        id.trim().parse().map_err(io::Error::other)
    }

    /// Runs a program on every hit of a tracepoint.
    fn attach(&self, system: &str, name: &str, program: &OwnedFd) -> io::Result<Event> {
        let config = self.id(system, name)?;
        let attributes = Attributes { kind: TYPE_TRACEPOINT, config, ..Attributes::default() };
        // One event, for all CPUs: the program belongs to the tracepoint.
        let cpu = online_cpus()?.first().copied().unwrap_or(0);
        let event = Event::open(attributes, cpu)?;
        event.set_program(program.as_fd())?;
        Ok(event)
    }
}

/// Mounts a file system where nobody sees it. Source: fsopen(2), fsmount(2), Linux 5.2.
fn mount_unseen(kind: &std::ffi::CStr) -> io::Result<OwnedFd> {
    const CREATE: libc::c_uint = 6;
    const CLOSE_ON_EXEC: libc::c_uint = 1;
    let owned = |fd: libc::c_long| {
        let fd = i32::try_from(fd).ok().filter(|&fd| fd >= 0).ok_or_else(io::Error::last_os_error)?;
        // SAFETY: the descriptor was just made, and nobody else has it.
        Ok(unsafe { OwnedFd::from_raw_fd(fd) })
    };
    // SAFETY: a name that ends with a zero, and flags.
    let context: io::Result<_> = owned(unsafe { libc::syscall(libc::SYS_fsopen, kind.as_ptr(), CLOSE_ON_EXEC) });
    let context = context?;
    let nothing = std::ptr::null::<libc::c_char>();
    // SAFETY: this command takes no key and no value.
    if unsafe { libc::syscall(libc::SYS_fsconfig, context.as_raw_fd(), CREATE, nothing, nothing, 0) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: takes a descriptor and flags.
    owned(unsafe { libc::syscall(libc::SYS_fsmount, context.as_raw_fd(), CLOSE_ON_EXEC, 0) })
}

/// Where the kernel keeps it.
///
/// # Errors
///
/// [`BpfError::NoField`] when a field is not there.
pub(super) fn offsets(types: &Types<'_>) -> Result<FileOffsets, BpfError> {
    let offset = |structure, path: &[&'static str]| {
        let field = path.last().copied().unwrap_or_default();
        types.offset(structure, path).ok_or(BpfError::NoField { structure, field })
    };
    Ok(FileOffsets {
        inode_number: offset("inode", &["i_ino"])?,
        inode_generation: offset("inode", &["i_generation"])?,
        inode_super_block: offset("inode", &["i_sb"])?,
        inode_names: offset("inode", &["i_dentry", "first"])?,
        super_block_device: offset("super_block", &["s_dev"])?,
        // In a union of its own until Linux 6.18.
        dentry_link: offset("dentry", &["d_u", "d_alias"]).or_else(|_| offset("dentry", &["d_alias"]))?,
        dentry_parent: offset("dentry", &["d_parent"])?,
        dentry_name: offset("dentry", &["d_name", "name"])?,
        dentry_hashed: offset("dentry", &["d_hash", "pprev"])?,
        inode_mode: offset("inode", &["i_mode"])?,
        inode_links: offset("inode", &["i_nlink"])?,
        file_inode: offset("file", &["f_inode"])?,
        file_dentry: offset("file", &["f_path", "dentry"])?,
        task_files: offset("task_struct", &["files"])?,
        files_table: offset("files_struct", &["fdt"])?,
        table_size: offset("fdtable", &["max_fds"])?,
        table_files: offset("fdtable", &["fd"])?,
        request_file: offset("io_kiocb", &["file"]).unwrap_or(0),
        request_operation: offset("io_kiocb", &["opcode"]).unwrap_or(0),
        request_result: offset("io_kiocb", &["cqe", "res"]).unwrap_or(0),
        file_mapping: offset("file", &["f_mapping"])?,
        file_flags: offset("file", &["f_flags"])?,
        mapping_host: offset("address_space", &["host"])?,
        mapping_pages: offset("address_space", &["nrpages"])?,
        folio_mapping: offset("folio", &["mapping"])?,
        folio_flags: offset("folio", &["flags"])?,
        folio_large_mask: types.number("pageflags", "PG_head").map_or(0, |bit| 1 << bit),
        folio_pages: offset("folio", &["_nr_pages"]).or_else(|_| offset("folio", &["_folio_nr_pages"])).unwrap_or(0),
        reserved: 0,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_are_found_by_the_names_of_their_tracepoints() {
        let events: Vec<_> = call_events("sys_enter").collect();
        assert_eq!(events.len(), 23);
        assert!(events.contains(&"sys_enter_sendfile64".to_owned()));
        let Ok(tracepoints) = Tracepoints::find() else { return };
        for event in events {
            assert!(tracepoints.path.join("events/syscalls").join(&event).exists(), "{event}");
        }
    }
}
