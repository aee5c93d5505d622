//! What the processes of the target use, added up.
//!
//! A process is read by files that are held open. Those that began within a slice count from 0, others from when they
//! were first read. Of one that ends, what it used after the last reading is known only by what its parent inherits;
//! see [`Accounts`]. At most some hundreds are read: the rest are counted, and a warning says so.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::accounts::{Accounts, Used};
use super::cgroup::CgroupFiles;
use super::host::tick_ns;
use crate::collect::processes::Processes;
use crate::collect::target::TargetSelection;
use crate::process::{ProcessFiles, ProcessStat, command_name};
use crate::profile::{Column, Figures};

/// Most processes that are read for a slice: some 20 us each.
const MAX_PROCESSES: usize = 300;

/// Descriptors that we may have open for each process that is read: it takes three, and objects need the most.
const DESCRIPTORS_EACH: u64 = 16;

/// Most processes whose name is looked at for a slice.
const MAX_NAMES: usize = 256;

/// Times that the name of a new process is looked at before others': it takes another one when it executes.
const YOUNG: u8 = 2;

/// Which processes are the target's.
#[derive(Debug)]
enum Members {
    /// Nobody: what the host uses says it.
    Nobody,
    /// Those that the session knows.
    Known,
    /// Those of a name.
    Named(Vec<u8>),
    /// Those in a cgroup.
    Cgroup(CgroupFiles),
}

/// A process that is read.
#[derive(Debug)]
struct Member {
    files: ProcessFiles,
    start_ticks: u64,
}

/// The processes of the target.
#[derive(Debug)]
pub(super) struct Targets {
    members: Members,
    read: BTreeMap<u32, Member>,
    accounts: Accounts,
    /// Whether we are the parent of the target's first process, and inherit from it.
    starts_command: bool,
    most: usize,
    /// Most processes that were left out of a slice.
    left_out: usize,
    /// How often the name of a process was looked at that has another.
    looked_at: HashMap<u32, u8>,
    /// The process whose name was looked at last.
    last_looked_at: u32,
    /// When the last reading began, in clock ticks since boot.
    read_at_ticks: u64,
    tick_ns: u64,
    page_bytes: u64,
    buffer: Vec<u8>,
}

/// What processes have at one moment.
#[derive(Debug, Default)]
struct Gauges {
    processes: u64,
    threads: u64,
    rss_bytes: u64,
    swap_bytes: Unless,
    descriptors: Unless,
    /// Whether what they read and write is known of all.
    storage: Unless,
}

/// A sum that is missing when a part is.
#[derive(Clone, Copy, Debug)]
struct Unless(Option<u64>);

impl Default for Unless {
    fn default() -> Self {
        Self(Some(0))
    }
}

impl Unless {
    fn add(&mut self, part: Option<u64>) {
        self.0 = self.0.zip(part).map(|(sum, part)| sum.saturating_add(part));
    }
}

impl Targets {
    /// Reads nothing.
    pub(super) fn of_nobody() -> Self {
        Self::of(Members::Nobody, false)
    }

    pub(super) fn new(selection: &TargetSelection, processes: &Processes) -> Self {
        let (members, inherits) = match selection {
            TargetSelection::Processes { children, .. } => (Members::Known, *children),
            TargetSelection::Command(_) => (Members::Known, true),
            TargetSelection::Cgroup(path) => (Members::Cgroup(CgroupFiles::open(path)), false),
            TargetSelection::Comm(name) => (Members::Named(name.clone().into_bytes()), false),
            TargetSelection::Host => (Members::Nobody, false),
        };
        let mut targets = Self::of(members, inherits);
        targets.starts_command = matches!(selection, TargetSelection::Command(_));
        if targets.starts_command {
            targets.accounts.join(std::process::id(), 0, [0; 6], used_by_our_children(), false);
        }
        // All that were there before us have a name to be looked at, once.
        if let Members::Named(_) = targets.members {
            targets.looked_at.extend(processes.known().map(|pid| (pid, YOUNG - 1)));
        }
        targets
    }

    fn of(members: Members, inherits: bool) -> Self {
        // SAFETY: no pointers.
        let page_bytes = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
        Self {
            members,
            read: BTreeMap::new(),
            accounts: Accounts::new(inherits),
            starts_command: false,
            most: most_processes(),
            left_out: 0,
            looked_at: HashMap::new(),
            last_looked_at: 0,
            read_at_ticks: boot_ticks(tick_ns()),
            tick_ns: tick_ns(),
            page_bytes: u64::try_from(page_bytes).unwrap_or(4096),
            buffer: Vec::new(),
        }
    }

    /// The processes that were read last.
    pub(super) fn members(&self) -> impl Iterator<Item = u32> {
        self.read.keys().copied()
    }

    /// What a reader must know.
    pub(super) fn warning(&self) -> Option<String> {
        (self.left_out > 0).then(|| {
            format!(
                "the timeline has the figures of {} processes, and of up to {} more only their number: use --cgroup",
                self.most, self.left_out
            )
        })
    }

    /// Reads them into `figures`. `has_swap`: whether the host has swap space.
    pub(super) fn read(&mut self, processes: &Processes, has_swap: bool, figures: &mut Figures) {
        if matches!(self.members, Members::Nobody) {
            return;
        }
        let began = boot_ticks(self.tick_ns);
        let mut gauges = Gauges::default();
        if self.starts_command {
            // Before the others: what a child leaves to us must not be missed by both.
            self.accounts.update(std::process::id(), 0, [0; 6], used_by_our_children());
        }
        let current = self.current(processes);
        let mut gone = Vec::new();
        // Parents before their children, for the same reason.
        let mut known: Vec<(u64, u32)> = self.read.iter().map(|(&pid, member)| (member.start_ticks, pid)).collect();
        known.sort_unstable();
        for (_, pid) in known {
            if !self.read_known(pid, &current, has_swap, &mut gauges) {
                gone.push(pid);
            }
        }
        let mut left_out = 0;
        for &pid in &current {
            if self.read.contains_key(&pid) {
                continue;
            }
            if self.read.len() < self.most {
                self.read_new(pid, has_swap, &mut gauges);
            } else if !gone.contains(&pid) && self.is_named(pid) {
                left_out += 1;
            }
        }
        self.accounts.settle(&gone);
        self.left_out = self.left_out.max(left_out);
        self.read_at_ticks = began;
        gauges.processes += left_out as u64;
        self.show(&gauges, figures);
        if let Members::Cgroup(files) = &self.members {
            files.read(&mut self.buffer, figures);
        }
    }

    /// Whether a process has the name that was asked for, if it was one.
    fn is_named(&self, pid: u32) -> bool {
        match &self.members {
            Members::Named(name) => command_name(pid).is_some_and(|found| found.as_bytes() == name),
            _ => true,
        }
    }

    fn show(&self, gauges: &Gauges, figures: &mut Figures) {
        let [user, system, minor_faults, major_faults, read, written] = self.accounts.used();
        let storage = |bytes| gauges.storage.0.map(|_| bytes);
        for (column, figure) in [
            (Column::TargetCpuUser, Some(user)),
            (Column::TargetCpuSystem, Some(system)),
            (Column::TargetMinorFaults, Some(minor_faults)),
            (Column::TargetMajorFaults, Some(major_faults)),
            (Column::TargetRead, storage(read)),
            (Column::TargetWritten, storage(written)),
            (Column::TargetProcesses, Some(gauges.processes)),
            (Column::TargetThreads, Some(gauges.threads)),
            (Column::TargetRss, Some(gauges.rss_bytes)),
            (Column::TargetSwap, gauges.swap_bytes.0),
            (Column::TargetDescriptors, gauges.descriptors.0),
        ] {
            figures.set(column, figure);
        }
    }

    /// Those that may be the target's now.
    fn current(&mut self, processes: &Processes) -> BTreeSet<u32> {
        match &self.members {
            Members::Nobody => BTreeSet::new(),
            Members::Known => processes.known().collect(),
            Members::Cgroup(files) => files.members(&mut self.buffer),
            Members::Named(_) => {
                let known: BTreeSet<u32> = processes.known().collect();
                self.looked_at.retain(|pid, _| known.contains(pid));
                let others = || known.iter().copied().filter(|pid| !self.read.contains_key(pid));
                let young = |pid: &u32| self.looked_at.get(pid).is_none_or(|&times| times < YOUNG);
                let last = self.last_looked_at;
                let round = others().filter(|&pid| pid > last).chain(others().filter(|&pid| pid <= last));
                let mut chosen: BTreeSet<u32> = others().filter(young).take(MAX_NAMES).collect();
                for pid in round.filter(|pid| !young(pid)) {
                    if chosen.len() >= MAX_NAMES {
                        break;
                    }
                    chosen.insert(pid);
                    self.last_looked_at = pid;
                }
                for &pid in &chosen {
                    let times = self.looked_at.entry(pid).or_default();
                    *times = times.saturating_add(1);
                }
                chosen
            }
        }
    }

    /// Reads a process that was read before; returns whether it is still there.
    fn read_known(&mut self, pid: u32, current: &BTreeSet<u32>, has_swap: bool, gauges: &mut Gauges) -> bool {
        let Some(member) = self.read.get(&pid) else { return false };
        let Some(stat) = member.files.stat(&mut self.buffer) else {
            self.read.remove(&pid);
            return false;
        };
        let storage = member.files.storage(&mut self.buffer);
        let (own, children) = self.used(&stat, storage);
        self.accounts.update(pid, stat.parent, own, children);
        let is_member = match &self.members {
            Members::Nobody | Members::Known => true,
            Members::Named(name) => stat.name == *name,
            Members::Cgroup(_) => stat.is_zombie || current.contains(&pid),
        };
        if is_member {
            self.add(pid, &stat, storage, has_swap, gauges);
        } else {
            self.read.remove(&pid);
            self.accounts.leave(pid);
        }
        true
    }

    /// Reads a process for the first time, if it is one of the target's.
    fn read_new(&mut self, pid: u32, has_swap: bool, gauges: &mut Gauges) {
        if pid == std::process::id() {
            return;
        }
        let Ok(files) = ProcessFiles::open(pid) else { return };
        let Some(stat) = files.stat(&mut self.buffer) else { return };
        if matches!(&self.members, Members::Named(name) if stat.name != *name) {
            return;
        }
        let storage = files.storage(&mut self.buffer);
        let (own, children) = self.used(&stat, storage);
        let is_new = stat.start_ticks >= self.read_at_ticks;
        self.accounts.join(pid, stat.parent, own, children, is_new);
        self.read.insert(pid, Member { files, start_ticks: stat.start_ticks });
        self.add(pid, &stat, storage, has_swap, gauges);
    }

    /// Adds what a process has now.
    fn add(&mut self, pid: u32, stat: &ProcessStat, storage: Option<(u64, u64)>, has_swap: bool, gauges: &mut Gauges) {
        if stat.is_zombie {
            return;
        }
        let Some(member) = self.read.get(&pid) else { return };
        gauges.processes += 1;
        gauges.threads += stat.threads;
        gauges.rss_bytes += stat.rss_pages.saturating_mul(self.page_bytes);
        gauges.storage.add(storage.map(|_| 0));
        // Without swap space nothing is swapped out.
        gauges.swap_bytes.add(if has_swap { member.files.swap_bytes(&mut self.buffer) } else { Some(0) });
        // The files of a process cannot be counted any more when its first thread has ended.
        gauges.descriptors.add(if stat.leader_is_gone { None } else { member.files.descriptors() });
    }

    /// What a process has used by itself, and by children that it has waited for. Storage is not told apart.
    fn used(&self, stat: &ProcessStat, storage: Option<(u64, u64)>) -> (Used, Used) {
        let [mut own, mut children] = [stat.own, stat.children].map(|ticks| {
            let [user, system] = [ticks.user, ticks.system].map(|time| time.saturating_mul(self.tick_ns));
            [user, system, ticks.minor_faults, ticks.major_faults, 0, 0]
        });
        let all = if self.accounts.inherits() { &mut children } else { &mut own };
        (all[4], all[5]) = storage.unwrap_or_default();
        (own, children)
    }
}

/// What processes that we have started and waited for have used.
fn used_by_our_children() -> Used {
    // SAFETY: an all-zero structure is a valid one, and the call fills it.
    let usage = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        libc::getrusage(libc::RUSAGE_CHILDREN, &raw mut usage);
        usage
    };
    let ns = |time: libc::timeval| {
        time.tv_sec.unsigned_abs().saturating_mul(1_000_000_000) + time.tv_usec.unsigned_abs() * 1000
    };
    // Storage is counted in sectors of 512 bytes. Source: `task_io_get_inblock`, include/linux/task_io_accounting_ops.h.
    let bytes = |blocks: libc::c_long| blocks.unsigned_abs().saturating_mul(512);
    [
        ns(usage.ru_utime),
        ns(usage.ru_stime),
        usage.ru_minflt.unsigned_abs(),
        usage.ru_majflt.unsigned_abs(),
        bytes(usage.ru_inblock),
        bytes(usage.ru_oublock),
    ]
}

/// How many processes may be read: fewer where few files may be open.
fn most_processes() -> usize {
    // SAFETY: an all-zero structure is a valid one, and the call fills it.
    let limit = unsafe {
        let mut limit: libc::rlimit = std::mem::zeroed();
        libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit);
        limit.rlim_cur
    };
    usize::try_from(limit / DESCRIPTORS_EACH).unwrap_or(usize::MAX).clamp(1, MAX_PROCESSES)
}

/// Time since boot, as the start of processes is given.
fn boot_ticks(tick_ns: u64) -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the call fills the structure, or leaves it as it is.
    unsafe { libc::clock_gettime(libc::CLOCK_BOOTTIME, &raw mut time) };
    (time.tv_sec.unsigned_abs().saturating_mul(1_000_000_000) + time.tv_nsec.unsigned_abs()) / tick_ns.max(1)
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Command};

    use super::*;
    use crate::collect::processes::Interest;

    fn sleeper() -> Child {
        Command::new("sleep").arg("60").spawn().unwrap()
    }

    fn read(targets: &mut Targets, processes: &Processes) -> Figures {
        let mut figures = Figures::default();
        targets.read(processes, false, &mut figures);
        figures
    }

    #[test]
    fn what_was_asked_for_is_added_up_and_goes_when_it_ends() {
        let mut children = [sleeper(), sleeper()];
        let mut processes = Processes::new(Interest::Named);
        for child in &children {
            processes.add(child.id());
        }
        let pids = children.iter().map(Child::id).collect();
        let mut targets = Targets::new(&TargetSelection::Processes { pids, children: false }, &processes);
        let figures = read(&mut targets, &processes);
        assert_eq!(figures.of(Column::TargetProcesses), Some(2));
        assert_eq!(figures.of(Column::TargetThreads), Some(2));
        assert_eq!(figures.of(Column::TargetSwap), Some(0));
        assert!(figures.of(Column::TargetRss) > Some(0));
        assert!(figures.of(Column::TargetDescriptors) > Some(0));
        children[0].kill().unwrap();
        children[0].wait().unwrap();
        let figures = read(&mut targets, &processes);
        assert_eq!(figures.of(Column::TargetProcesses), Some(1));
        children[1].kill().unwrap();
        children[1].wait().unwrap();
        let figures = read(&mut targets, &processes);
        assert_eq!(figures.of(Column::TargetThreads), Some(0));
        assert!(figures.of(Column::TargetCpuUser).is_some());
        assert_eq!(targets.warning(), None);
    }

    #[test]
    fn more_than_can_be_read_are_counted_and_told() {
        let mut children = [sleeper(), sleeper(), sleeper()];
        let mut processes = Processes::new(Interest::Named);
        for child in &children {
            processes.add(child.id());
        }
        let selection = TargetSelection::Processes { pids: Vec::new(), children: false };
        let mut targets = Targets { most: 1, ..Targets::new(&selection, &processes) };
        let figures = read(&mut targets, &processes);
        assert_eq!(figures.of(Column::TargetProcesses), Some(3));
        assert_eq!(figures.of(Column::TargetThreads), Some(1));
        assert!(targets.warning().unwrap().contains("2 more"));
        for child in &mut children {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    #[test]
    fn processes_are_found_by_their_name() {
        let directory = tempfile::tempdir().unwrap();
        let program = directory.path().join("odd) name");
        // A copy could not be started while another test forks with it open.
        std::os::unix::fs::symlink("/bin/sleep", &program).unwrap();
        let mut odd = Command::new(&program).arg("60").spawn().unwrap();
        let mut other = sleeper();
        let mut processes = Processes::new(Interest::Everybody);
        processes.add(odd.id());
        processes.add(other.id());
        let mut targets = Targets::new(&TargetSelection::Comm("odd) name".to_owned()), &processes);
        for _ in 0..3 {
            assert_eq!(read(&mut targets, &processes).of(Column::TargetProcesses), Some(1));
        }
        for child in [&mut odd, &mut other] {
            child.kill().unwrap();
            child.wait().unwrap();
        }
        assert_eq!(read(&mut targets, &processes).of(Column::TargetProcesses), Some(0));
    }
}
