//! The model: stacks to values, and everything a capture says about itself.
//!
//! Filled by `symbolize` and `collect`, read by `analyze` and `output`. Nothing here makes a system call.

mod accounting;
mod bench;
mod canonical;
mod capture;
mod chain;
mod check;
mod diff;
mod finding;
mod intern;
mod io_latency;
mod ledger;
mod live;
mod locks;
mod memory;
mod merge;
mod raw;
mod redact;
mod report;
mod select;
mod slices;
mod slow_request;
mod table;
mod timeline;

pub use accounting::{Accounting, ChainAccounting};
pub use bench::{Bench, BenchFigure, Run};
pub use capture::{
    ByLength, ByNumber, BySize, Capture, Host, Index, ObjectSummary, OriginSummary, Overhead, SCHEMA_VERSION, Target,
    TargetKind,
};
pub use chain::chain_wakers;
pub use check::{Check, Direction, Trend};
pub use diff::{Change, Diff, DiffRules, DiffSide, Verdict};
pub use finding::{Deduction, Finding, FindingKind, PlanStep, Score, Severity};
pub use intern::Interner;
pub use io_latency::{IoCell, IoLatency};
pub use ledger::{Ledger, LedgerRow, ThreadTime};
pub use live::{
    Leak, LeakVerdict, Live, LivePeak, LiveSite, MAX_LIVE_SITES, MAX_LIVE_TIMES, MAX_PEAK_SITES, Peak, PeakSite,
};
pub use locks::{LockHolder, LockShare, LockTime};
pub use memory::{
    CgroupMemory, MAX_MEMORY_CGROUPS, MAX_MEMORY_PROCESSES, Memory, MemoryCheck, MemoryReport, MemoryShares,
    ProcessMemory, SystemMemory,
};
pub use merge::{Merge, merge};
pub use raw::{RawFrame, RawProfile};
pub use report::{
    Breakdown, Callgraph, Edge, Hotspot, ObjectShare, PhaseShare, ProcessShare, Report, SlowShare, ThreadShare,
};
pub use select::Selection;
pub use slices::{FunctionSlice, FunctionSlices};
pub use slow_request::{SlowRequest, SlowRequests};
pub use table::{Histogram, PERCENTILES, Row, Table, TableColumn, rank};
pub use timeline::{Column, Figures, Fold, MAX_SLICES, Timeline};

use profiler_common::counters::Outcome;
use profiler_common::event::{COLUMNS, Origin};

/// Stacks of one origin and the values found on them, with a name for every frame that has one.
///
/// Every id is an index into the vector of its kind. Equal things are stored once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Profile {
    /// The probe.
    pub origin: Origin,
    /// Functions, by [`FunctionId`].
    pub functions: Vec<Function>,
    /// Files and other things that hold code, by [`ObjectId`].
    pub objects: Vec<Object>,
    /// Code addresses with their names, by [`LocationId`].
    pub locations: Vec<Location>,
    /// Stacks, leaf first, by [`StackId`]: user frames below (rootward of) kernel frames, one chain.
    pub stacks: Vec<Vec<LocationId>>,
    /// Threads, by [`ThreadId`].
    pub threads: Vec<Thread>,
    /// The values, in no particular order; no two have the same stack, thread, reason and span.
    pub samples: Vec<Sample>,
}

/// Index into [`Profile::functions`].
pub type FunctionId = u32;
/// Index into [`Profile::objects`].
pub type ObjectId = u32;
/// Index into [`Profile::locations`].
pub type LocationId = u32;
/// Index into [`Profile::stacks`].
pub type StackId = u32;
/// Index into [`Profile::threads`].
pub type ThreadId = u32;

/// A named function.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Function {
    /// Demangled name.
    pub name: String,
    /// Source file, as the compiler recorded it; empty when unknown.
    pub file: String,
}

/// What holds code: an executable file, a library, the kernel, memory filled at run time.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Object {
    /// Path as the target sees it, or a name in brackets: `[kernel]`, `[vdso]`, `[jit]`.
    pub path: String,
    /// GNU build ID in hexadecimal; empty when there is none.
    pub build_id: String,
    /// Virtual address, as the file states it, at which the executable segment starts.
    pub start: u64,
    /// Virtual address one past its end.
    pub end: u64,
    /// File offset of `start`.
    pub file_offset: u64,
}

/// Path of the object that stands for the kernel.
pub const KERNEL_OBJECT: &str = "[kernel]";
/// Path of the object that stands for code made at run time.
pub const JIT_OBJECT: &str = "[jit]";

impl Object {
    /// The last component of the path: how the object is called where space is short.
    #[must_use]
    pub fn short_name(&self) -> &str {
        let path = self.path.strip_suffix(" (deleted)").unwrap_or(&self.path);
        match path.rsplit('/').next() {
            Some(name) if !name.is_empty() => name,
            _ => path,
        }
    }
}

/// What kind of frame a location is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum FrameKind {
    /// Code of an object on disk.
    Native,
    /// Kernel code.
    Kernel,
    /// Code made at run time.
    Jit,
    /// A function of an interpreter.
    Interpreted,
    /// No code: says why the stack ends here, as `[truncated: reason]` or `[lost: reason]`.
    Marker,
    /// No code: says what the stack is there for, by the origin's reasons, as `[disk]`; the leaf.
    Reason,
}

/// An address in an object, with the functions that are there.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Location {
    /// What kind of frame it is.
    pub kind: FrameKind,
    /// The object; `None` for a marker and for an address in no known mapping.
    pub object: Option<ObjectId>,
    /// Virtual address in the object's own terms (kernel and nameless frames: as it was at run time).
    /// For a frame that is not the leaf it is that of the call, not of the return.
    pub address: u64,
    /// The functions at this address, innermost inlined first, the one that owns the code last. Empty: no name.
    pub lines: Vec<Line>,
}

/// A function at an address, and the line in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Line {
    /// The function.
    pub function: FunctionId,
    /// Source line, from 1; 0 when unknown.
    pub line: u32,
}

/// Who was running; by default nobody.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Thread {
    /// Process.
    pub pid: u32,
    /// Thread.
    pub tid: u32,
    /// Start of the process since boot, in ns: tells a reused pid apart.
    pub start_time_ns: u64,
    /// Programs the process had executed.
    pub exec_count: u32,
    /// The process's command name.
    pub process_name: String,
    /// The thread's name.
    pub thread_name: String,
    /// Path of the cgroup that the process was in; empty when that is the root, or is not known.
    pub cgroup: String,
}

/// The container that a cgroup's path belongs to, as its engine names it: the first 12 digits of its number, or its name.
///
/// Source: the paths that Docker, containerd, CRI-O, Podman (with systemd and without), LXC and systemd-nspawn make.
#[must_use]
pub fn container_of(cgroup: &str) -> Option<&str> {
    let is_number = |text: &str| text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    // The innermost one.
    cgroup.rsplit('/').find_map(|part| {
        let scope = part.strip_suffix(".scope").unwrap_or(part);
        let last = scope.rsplit(['-', ':']).next().unwrap_or(scope);
        if is_number(last) {
            return last.get(..12);
        }
        let named = ["lxc.payload.", "machine-"].iter().find_map(|prefix| scope.strip_prefix(prefix));
        named.filter(|name| !name.is_empty())
    })
}

/// What was found on one stack of one thread.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sample {
    /// The stack.
    pub stack: StackId,
    /// The thread.
    pub thread: ThreadId,
    /// The probe's reason; 0 for none.
    pub reason: u16,
    /// The call or block; 0 for none.
    pub span: u64,
    /// Values by column of the origin's row; unused columns are 0.
    pub values: [u64; COLUMNS],
}

/// One frame as a person reads it: a location is several when functions are inlined in it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct NamedFrame<'a> {
    /// The function's name, the marker's text, or `object+0xOFFSET`.
    pub name: std::borrow::Cow<'a, str>,
    /// What kind of frame it is.
    pub kind: FrameKind,
    /// Whether the function was inlined into the next frame rootward.
    pub inlined: bool,
    /// The object, when known.
    pub object: Option<&'a Object>,
    /// Source file; empty when unknown.
    pub file: &'a str,
    /// Source line; 0 when unknown.
    pub line: u32,
}

impl NamedFrame<'_> {
    /// The suffix that flamegraph tools colour by: `_[k]` kernel, `_[i]` inlined, `_[j]` JIT, `_[p]` interpreted.
    #[must_use]
    pub const fn suffix(&self) -> &'static str {
        match self.kind {
            FrameKind::Kernel => "_[k]",
            FrameKind::Jit => "_[j]",
            FrameKind::Interpreted => "_[p]",
            FrameKind::Native if self.inlined => "_[i]",
            FrameKind::Native | FrameKind::Marker | FrameKind::Reason => "",
        }
    }
}

impl Profile {
    /// A profile with nothing in it.
    #[must_use]
    pub const fn new(origin: Origin) -> Self {
        Self {
            origin,
            functions: Vec::new(),
            objects: Vec::new(),
            locations: Vec::new(),
            stacks: Vec::new(),
            threads: Vec::new(),
            samples: Vec::new(),
        }
    }

    /// Sum of each value column over all samples.
    #[must_use]
    pub fn totals(&self) -> [u64; COLUMNS] {
        let mut totals = [0; COLUMNS];
        for sample in &self.samples {
            for (total, value) in totals.iter_mut().zip(sample.values) {
                *total += value;
            }
        }
        totals
    }

    /// Whether a location has the name of a function: `[JIT: NAME]` and `[V8 builtin]` are none.
    #[must_use]
    pub fn is_named(&self, location: &Location) -> bool {
        let name = |line: &Line| self.functions[line.function as usize].name.as_str();
        let is_jit = location.kind == FrameKind::Jit;
        location.lines.iter().any(|line| name(line) != V8_BUILTIN && !(is_jit && name(line).starts_with(JIT_LABEL)))
    }

    /// The frames of a stack, leaf first, inlined ones told apart.
    pub fn frames(&self, stack: StackId) -> impl Iterator<Item = NamedFrame<'_>> {
        self.stacks[stack as usize].iter().flat_map(|&location| self.location_frames(location))
    }

    /// The frames of a location, innermost first; one without a name when nothing is known.
    pub fn location_frames(&self, location: LocationId) -> impl Iterator<Item = NamedFrame<'_>> {
        let location = &self.locations[location as usize];
        let object = location.object.map(|id| &self.objects[id as usize]);
        let nameless = location.lines.is_empty().then(|| NamedFrame {
            name: match object {
                Some(object) => format!("{}+{:#x}", object.short_name(), location.address).into(),
                None => format!("[unknown]+{:#x}", location.address).into(),
            },
            kind: location.kind,
            inlined: false,
            object,
            file: "",
            line: 0,
        });
        let last = location.lines.len().saturating_sub(1);
        let named = location.lines.iter().enumerate().map(move |(index, line)| {
            let function = &self.functions[line.function as usize];
            NamedFrame {
                name: function.name.as_str().into(),
                kind: location.kind,
                inlined: index < last,
                object,
                file: &function.file,
                line: line.line,
            }
        });
        nameless.into_iter().chain(named)
    }
}

/// The name of frames in code that a process made at run time, when it does not say what it made.
#[must_use]
pub fn jit_label(process_name: &str) -> String {
    format!("{JIT_LABEL}{process_name}]")
}

/// What code that V8 was built with is called where a stripped file does not name it.
pub const V8_BUILTIN: &str = "[V8 builtin]";

/// What [`jit_label`] begins with.
const JIT_LABEL: &str = "[JIT: ";

/// The name of the frame that ends a cut chain: `[truncated: reason]` or `[lost: reason]`.
#[must_use]
pub fn marker_name(outcome: Outcome) -> String {
    use profiler_common::counters::Class;
    match outcome.class() {
        Class::Complete | Class::Truncated => format!("[truncated: {}]", outcome.name()),
        Class::Lost => format!("[lost: {}]", outcome.name()),
    }
}

#[cfg(test)]
mod tests {
    use super::container_of;

    #[test]
    fn a_cgroup_tells_its_container() {
        let number = "0123456789abcdef".repeat(4);
        for path in [
            format!("/system.slice/docker-{number}.scope"),
            format!("/docker/{number}"),
            format!(
                "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1_2.slice/cri-containerd-{number}.scope"
            ),
            format!("/kubepods/besteffort/pod1-2/{number}"),
            format!("/kubepods-pod1.slice:cri-containerd:{number}"),
            format!("/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-{number}.scope/container"),
        ] {
            assert_eq!(container_of(&path), Some("0123456789ab"), "{path}");
        }
        assert_eq!(container_of("/lxc.payload.web/system.slice/nginx.service"), Some("web"));
        assert_eq!(container_of("/machine.slice/machine-debian.scope"), Some("debian"));
        for path in
            ["", "/", "/system.slice/ssh.service", "/user.slice/user-0.slice/session-1.scope", "/machine-.scope"]
        {
            assert_eq!(container_of(path), None, "{path}");
        }
    }
}
