//! Every process we know: its images, what each maps, and the objects behind that.
//!
//! Fed by lifecycle events and, for processes that were there before us, by /proc. An image is what a process runs
//! between two execs; a snapshot is what an image maps until an address changes its meaning.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::fs::File;
use std::sync::Arc;

use profiler_common::event::RecordKey;

use crate::bpf::LifecycleEvent;
use crate::process::{
    Backing, FileKey, JitProcess, Mapping, Mappings, MappingsError, ObjectTable, cgroup, executable_name, is_running,
    open_jit_dump, open_perf_map, read_mappings,
};
use crate::profile::RawFrame;

/// Images kept of one process: a record refers to the current one, or to one that ended in the same window.
const MAX_IMAGES: usize = 8;

/// Processes whose files about code made at run time are opened before they have a sample: a descriptor or two each.
const MAX_JIT_PROCESSES: usize = 4096;

/// Times that a process's perf map is looked for as soon as it maps memory that becomes code; else once a window. V8 opens
/// its own after the first of some ten such mappings.
const MAX_PERF_MAP_TRIES: u32 = 32;

/// Which processes are of interest before they have a sample.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Interest {
    /// Those that were named, and nobody else.
    Named,
    /// Those that were named, and all below them.
    Tree,
    /// Whoever there is.
    Everybody,
}

/// What a process maps from `generation` on.
#[derive(Clone, Debug)]
struct Snapshot {
    generation: u32,
    mappings: Arc<Mappings>,
}

/// What a process runs between two execs.
#[derive(Clone, Debug)]
struct Image {
    snapshots: Vec<Snapshot>,
}

#[derive(Clone, Debug)]
struct Process {
    images: Vec<Image>,
    /// The kernel's exec count of the first of `images`, once it is known.
    first_exec_count: Option<u32>,
    /// Images before `images` that were forgotten.
    images_dropped: u32,
    generation: u32,
    exited: bool,
    /// Whether it was not asked for, and is known since it woke somebody who was.
    is_bystander: bool,
    /// Whether /proc was read in this window, since an address was not known.
    rescanned: bool,
    /// Its number in `jit`.
    jit: Option<u32>,
    /// Path of its cgroup, once somebody asked; a child's is its parent's until it executes something.
    cgroup: Option<String>,
    /// Times that its perf map was looked for since it maps memory that becomes code.
    perf_map_tries: u32,
}

/// The processes.
#[derive(Debug)]
pub(super) struct Processes {
    interest: Interest,
    table: HashMap<u32, Process>,
    pub(super) objects: ObjectTable,
    /// Processes that make code, by their number; their files are opened while they live.
    pub(super) jit: Vec<JitProcess>,
    jit_pids: Vec<u32>,
    /// Processes whose mappings were read from /proc, of which nobody was told yet.
    added: Vec<u32>,
    /// Lifecycle events that were lost.
    pub(super) events_lost: u64,
    /// Whether there may be processes we do not know of.
    rescan_all: bool,
    /// Executable mappings that were left out of a process's list.
    pub(super) mappings_left_out: usize,
    /// Why the mappings of processes could not be read.
    pub(super) unreadable: Vec<MappingsError>,
}

impl Image {
    fn new(generation: u32, mappings: Mappings) -> Self {
        Self { snapshots: vec![Snapshot { generation, mappings: Arc::new(mappings) }] }
    }
}

impl Processes {
    pub(super) fn new(interest: Interest) -> Self {
        Self {
            interest,
            table: HashMap::new(),
            objects: ObjectTable::default(),
            jit: Vec::new(),
            jit_pids: Vec::new(),
            added: Vec::new(),
            events_lost: 0,
            rescan_all: false,
            mappings_left_out: 0,
            unreadable: Vec::new(),
        }
    }

    /// Which processes are of interest.
    pub(super) const fn interest(&self) -> Interest {
        self.interest
    }

    /// Adds a process that runs. One that has exited meanwhile is no error, since it has no samples; nor is one whose
    /// mappings may not be read, since its frames have addresses and kernel stacks all the same.
    pub(super) fn add(&mut self, pid: u32) {
        let mappings = read_mappings(pid).unwrap_or_else(|error| {
            if matches!(error, MappingsError::Read(..)) {
                self.unreadable.push(error);
            }
            Mappings::default()
        });
        self.mappings_left_out += mappings.left_out;
        for mapping in mappings.iter() {
            self.objects.open(pid, mapping);
        }
        let dump = mappings.iter().find_map(|mapping| open_jit_dump(pid, mapping));
        let process = self.table.entry(pid).or_insert_with(|| Process::new(Vec::new(), None, 0));
        process.images.push(Image::new(process.generation, mappings));
        self.added.push(pid);
        self.keep_jit_dump(pid, dump);
    }

    /// Processes that were added since the last call.
    pub(super) fn take_added(&mut self) -> Vec<u32> {
        std::mem::take(&mut self.added)
    }

    /// Pids of those that have not exited.
    pub(super) fn alive(&self) -> impl Iterator<Item = u32> {
        let asked_for = self.table.iter().filter(|(_, process)| !process.is_bystander);
        asked_for.filter(|(_, process)| !process.exited).map(|(&pid, _)| pid)
    }

    /// Whether a process was not asked for.
    pub(super) fn is_bystander(&self, pid: u32) -> bool {
        self.table.get(&pid).is_some_and(|process| process.is_bystander)
    }

    /// Pids of all that were asked for and are known, those included that ended in this window.
    pub(super) fn known(&self) -> impl Iterator<Item = u32> {
        self.table.iter().filter(|(_, process)| !process.is_bystander).map(|(&pid, _)| pid)
    }

    /// Takes events in, in their order; returns the processes that map something else now, or are new.
    pub(super) fn apply(&mut self, events: Vec<LifecycleEvent>) -> BTreeSet<u32> {
        let mut changed = BTreeSet::new();
        for event in events {
            match event {
                LifecycleEvent::Fork { pid, parent } => {
                    self.fork(pid, parent);
                    changed.insert(pid);
                }
                LifecycleEvent::Exec { pid } => {
                    self.exec(pid);
                    changed.insert(pid);
                }
                LifecycleEvent::Map { pid, mapping } => {
                    self.map(pid, mapping);
                    changed.insert(pid);
                }
                LifecycleEvent::Exit { pid } => {
                    if let Some(process) = self.table.get_mut(&pid) {
                        process.exited = true;
                    }
                }
                LifecycleEvent::Lost { events } => {
                    self.events_lost += events;
                    self.rescan_all = true;
                    let alive: Vec<u32> = self.alive().collect();
                    for pid in alive {
                        self.rescan(pid);
                        changed.insert(pid);
                    }
                }
            }
        }
        changed.retain(|pid| self.table.contains_key(pid));
        changed
    }

    /// Whether events were lost since the last call, so that there may be processes we do not know of.
    pub(super) fn take_rescan_all(&mut self) -> bool {
        std::mem::take(&mut self.rescan_all)
    }

    /// Whether a process is known.
    pub(super) fn knows(&self, pid: u32) -> bool {
        self.table.contains_key(&pid)
    }

    fn fork(&mut self, pid: u32, parent: u32) {
        if self.interest == Interest::Named {
            return;
        }
        let Some(parent) = self.table.get(&parent).filter(|parent| !parent.is_bystander) else { return };
        let ended = parent.images.len().saturating_sub(1);
        // A child starts with its parent's count: the kernel copies it.
        let first = parent.first_exec_count.map(|first| first + u32::try_from(ended).unwrap_or(0));
        let mut child = Process::new(parent.images.last().cloned().into_iter().collect(), first, parent.generation);
        child.cgroup.clone_from(&parent.cgroup);
        self.table.insert(pid, child);
    }

    /// The mapping generation of a process.
    pub(super) fn generation(&self, pid: u32) -> u32 {
        self.table.get(&pid).map_or(0, |process| process.generation)
    }

    /// What a process maps now, and the objects behind it.
    pub(super) fn mappings(&mut self, pid: u32) -> Option<(Arc<Mappings>, &mut ObjectTable)> {
        let snapshot = self.table.get(&pid)?.images.last()?.snapshots.last()?;
        Some((Arc::clone(&snapshot.mappings), &mut self.objects))
    }

    /// Sets the exec count that a process began with, which the programs know exactly.
    pub(super) fn set_first_exec_count(&mut self, pid: u32, count: u32) {
        if let Some(process) = self.table.get_mut(&pid)
            && process.first_exec_count.is_none()
        {
            process.first_exec_count = Some(count + process.images_dropped);
        }
    }

    fn exec(&mut self, pid: u32) {
        if let Some(process) = self.table.get_mut(&pid) {
            // Another program makes its own code, and says so in files of its own.
            (process.jit, process.perf_map_tries) = (None, 0);
            // What starts a container moves itself before it executes what is in it.
            process.cgroup = cgroup(pid).or_else(|| process.cgroup.take());
            process.images.push(Image::new(process.generation, Mappings::default()));
        } else if self.interest == Interest::Everybody {
            let images = vec![Image::new(0, Mappings::default())];
            self.table.insert(pid, Process::new(images, None, 0));
        }
    }

    fn map(&mut self, pid: u32, mapping: Mapping) {
        if !self.table.contains_key(&pid) {
            return;
        }
        if matches!(mapping.backing, Backing::Anonymous(_)) {
            self.look_for_perf_map(pid);
        }
        let dump = open_jit_dump(pid, &mapping);
        self.keep_jit_dump(pid, dump);
        let Some(process) = self.table.get_mut(&pid) else { return };
        self.objects.open(pid, &mapping);
        let Some(image) = process.images.last_mut() else { return };
        let Some(snapshot) = image.snapshots.last_mut() else { return };
        let mut mappings = Arc::unwrap_or_clone(Arc::clone(&snapshot.mappings));
        let left_out = mappings.left_out;
        let changed = mappings.insert(mapping);
        self.mappings_left_out += mappings.left_out - left_out;
        if changed {
            process.generation += 1;
            image.snapshots.push(Snapshot { generation: process.generation, mappings: Arc::new(mappings) });
        } else {
            snapshot.mappings = Arc::new(mappings);
        }
    }

    /// Reads again what a process maps, after something was missed.
    fn rescan(&mut self, pid: u32) {
        for mapping in read_mappings(pid).iter().flat_map(Mappings::iter) {
            self.map(pid, mapping.clone());
        }
    }

    /// Tells the images of a process apart by the records of a window, where the programs could not.
    ///
    /// `exec_counts`: those of each process. They are taken for the images' when there are as many of both.
    /// `recorded`: the processes that have records of their own; others only woke somebody.
    pub(super) fn learn_exec_counts(&mut self, exec_counts: &HashMap<u32, BTreeSet<u32>>, recorded: &HashSet<u32>) {
        for (pid, counts) in exec_counts {
            if !self.table.contains_key(pid) {
                self.add(*pid);
                let is_bystander = self.interest != Interest::Everybody && !recorded.contains(pid);
                // There is no event of an end that came before it was known.
                let exited = is_bystander && !is_running(*pid);
                self.table.entry(*pid).and_modify(|process| {
                    (process.is_bystander, process.exited) = (is_bystander, exited);
                });
            }
            if let Some(process) = self.table.get_mut(pid)
                && process.first_exec_count.is_none()
                && process.images.len() == counts.len()
            {
                process.first_exec_count = counts.first().copied();
            }
        }
    }

    /// Places an address of a record's process.
    pub(super) fn place(&mut self, key: &RecordKey, address: u64) -> RawFrame {
        let Some(mapping) = self.find(key, address) else { return RawFrame::Unknown(address) };
        match mapping.backing {
            Backing::Anonymous(_) => RawFrame::Jit { process: self.jit_number(key.pid), address },
            Backing::File(..) | Backing::Vdso => match self.objects.place(key.pid, &mapping, address) {
                Some((object, address)) => RawFrame::Object { object, address },
                None => RawFrame::Unknown(address),
            },
        }
    }

    fn find(&mut self, key: &RecordKey, address: u64) -> Option<Mapping> {
        if let Some(mapping) = self.table.get(&key.pid)?.find(key, address) {
            return Some(mapping.clone());
        }
        // There is no event for code that was mapped before a process was known, nor after events were lost.
        let process = self.table.get_mut(&key.pid)?;
        if process.exited || std::mem::replace(&mut process.rescanned, true) {
            return None;
        }
        self.rescan(key.pid);
        self.added.push(key.pid);
        self.table.get(&key.pid)?.find(key, address).cloned()
    }

    /// Path of the cgroup that a process is in; empty for the root, and when nobody knows.
    pub(super) fn cgroup(&mut self, pid: u32) -> String {
        let Some(process) = self.table.get_mut(&pid) else { return String::new() };
        process.cgroup.get_or_insert_with(|| cgroup(pid).unwrap_or_default()).clone()
    }

    /// Opens the perf map of a process that may end before the window does.
    fn look_for_perf_map(&mut self, pid: u32) {
        let has_tries = self.table.get(&pid).is_some_and(|process| process.perf_map_tries < MAX_PERF_MAP_TRIES);
        if !has_tries || self.jit.len() >= MAX_JIT_PROCESSES {
            return;
        }
        let number = self.jit_number(pid) as usize;
        if let (Some(process), Some(jit)) = (self.table.get_mut(&pid), self.jit.get_mut(number))
            && jit.perf_map.is_none()
        {
            process.perf_map_tries += 1;
            jit.perf_map = open_perf_map(pid).map(Arc::new);
        }
    }

    /// Keeps the dump of a process that says by a mapping that it writes one.
    fn keep_jit_dump(&mut self, pid: u32, dump: Option<File>) {
        if dump.is_some() && self.jit.len() < MAX_JIT_PROCESSES {
            let number = self.jit_number(pid);
            if let Some(jit) = self.jit.get_mut(number as usize) {
                jit.jit_dump = dump.map(Arc::new);
            }
        }
    }

    /// The number of a process that makes code at run time; its perf map is opened when there is one.
    fn jit_number(&mut self, pid: u32) -> u32 {
        let number = self.table.get(&pid).and_then(|process| process.jit).unwrap_or_else(|| {
            self.jit.push(JitProcess { executable: executable_name(pid).unwrap_or_default(), ..JitProcess::default() });
            self.jit_pids.push(pid);
            u32::try_from(self.jit.len() - 1).unwrap_or(u32::MAX)
        });
        if let Some(process) = self.table.get_mut(&pid) {
            process.jit = Some(number);
        }
        number
    }

    /// Hands out the processes that make code, by the numbers that frames have named them by, and begins to number anew those
    /// that are still there; returns also the new number of each that has one.
    pub(super) fn take_jit(&mut self) -> (Vec<JitProcess>, HashMap<u32, u32>) {
        let (old, pids) = (std::mem::take(&mut self.jit), std::mem::take(&mut self.jit_pids));
        let mut renumbered = HashMap::new();
        for ((number, jit), pid) in (0..).zip(&old).zip(pids) {
            if let Some(process) = self.table.get_mut(&pid).filter(|process| process.jit == Some(number)) {
                let new = u32::try_from(self.jit.len()).unwrap_or(u32::MAX);
                process.jit = Some(new);
                renumbered.insert(number, new);
                self.jit.push(jit.clone());
                self.jit_pids.push(pid);
            }
        }
        (old, renumbered)
    }

    /// Closes the files that no process that is known maps, but for those that are `kept` by their number; returns the numbers
    /// that mean nothing any more.
    pub(super) fn forget_objects(&mut self, kept: &HashSet<u32>) -> Vec<u32> {
        let images = self.table.values().flat_map(|process| &process.images);
        let snapshots = images.flat_map(|image| &image.snapshots);
        // Processes that were forked share them.
        let distinct: HashMap<*const Mappings, &Mappings> =
            snapshots.map(|snapshot| (Arc::as_ptr(&snapshot.mappings), &*snapshot.mappings)).collect();
        let backings = distinct.values().flat_map(|mappings| mappings.iter()).map(|mapping| &mapping.backing);
        let keys = backings.filter_map(|backing| match backing {
            Backing::File(key, _) => Some(*key),
            Backing::Vdso | Backing::Anonymous(_) => None,
        });
        let mapped: HashSet<FileKey> = keys.collect();
        self.objects.forget(&mapped, kept)
    }

    /// Ends a window: opens the perf maps that have come, forgets what no later record can refer to.
    ///
    /// Returns the processes that have ended.
    pub(super) fn end_window(&mut self) -> Vec<u32> {
        for (number, (jit, &pid)) in (0..).zip(self.jit.iter_mut().zip(&self.jit_pids)) {
            // The number may be another process's by now.
            let is_its = self.table.get(&pid).is_some_and(|process| process.jit == Some(number) && !process.exited);
            if jit.perf_map.is_none() && is_its {
                jit.perf_map = open_perf_map(pid).map(Arc::new);
            }
        }
        let exited = self.table.iter().filter(|(_, process)| process.exited).map(|(&pid, _)| pid);
        // The first thread of a process may end before the others do.
        let ended: Vec<u32> = exited.filter(|&pid| !is_running(pid)).collect();
        for pid in &ended {
            self.table.remove(pid);
        }
        for process in self.table.values_mut() {
            process.rescanned = false;
            let old = process.images.len().saturating_sub(MAX_IMAGES);
            process.images.drain(..old);
            let old = u32::try_from(old).unwrap_or(0);
            process.images_dropped += old;
            process.first_exec_count = process.first_exec_count.map(|first| first + old);
            for image in &mut process.images {
                let old = image.snapshots.len().saturating_sub(MAX_IMAGES);
                image.snapshots.drain(..old);
            }
        }
        ended
    }
}

impl Process {
    const fn new(images: Vec<Image>, first_exec_count: Option<u32>, generation: u32) -> Self {
        Self {
            images,
            first_exec_count,
            images_dropped: 0,
            generation,
            exited: false,
            is_bystander: false,
            rescanned: false,
            jit: None,
            cgroup: None,
            perf_map_tries: 0,
        }
    }

    fn find(&self, key: &RecordKey, address: u64) -> Option<&Mapping> {
        let Some(first) = self.first_exec_count else {
            // Nobody knows which image: the last one that has code there.
            return self.images.iter().rev().find_map(|image| image.find(key.generation, address));
        };
        self.images.get(key.exec_count.checked_sub(first)? as usize)?.find(key.generation, address)
    }
}

impl Image {
    fn find(&self, generation: u32, address: u64) -> Option<&Mapping> {
        let valid = self.snapshots.iter().rev().find(|snapshot| snapshot.generation <= generation);
        // A mapping may have come between the sample and the moment the programs were told of it.
        let later = self.snapshots.iter().filter(|snapshot| snapshot.generation > generation);
        valid.into_iter().chain(later).find_map(|snapshot| snapshot.mappings.find(address))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(pid: u32, exec_count: u32, generation: u32) -> RecordKey {
        RecordKey {
            start_time_ns: 0,
            kernel_stack: 0,
            user_stack: 0,
            span: 0,
            pid,
            tid: pid,
            exec_count,
            generation,
            origin: 0,
            reason: 0,
            reserved: 0,
        }
    }

    fn anonymous(name: &str) -> Mapping {
        Mapping { start: 0x1000, end: 0x2000, file_offset: 0, backing: Backing::Anonymous(name.to_owned()) }
    }

    fn named(processes: &Processes, key: &RecordKey) -> Option<String> {
        match &processes.table.get(&key.pid)?.find(key, 0x1800)?.backing {
            Backing::Anonymous(name) => Some(name.clone()),
            _ => None,
        }
    }

    #[test]
    fn an_address_is_looked_up_in_the_image_and_generation_of_its_record() {
        const PID: u32 = 1 << 30;
        let mut processes = Processes::new(Interest::Everybody);
        processes.apply(vec![LifecycleEvent::Exec { pid: PID }]);
        let changed = processes.apply(vec![LifecycleEvent::Map { pid: PID, mapping: anonymous("first") }]);
        assert_eq!((changed, processes.generation(PID)), (BTreeSet::from([PID]), 0));
        processes.learn_exec_counts(&HashMap::from([(PID, BTreeSet::from([5]))]), &HashSet::from([PID]));
        let changed = processes.apply(vec![LifecycleEvent::Map { pid: PID, mapping: anonymous("second") }]);
        assert_eq!((changed, processes.generation(PID)), (BTreeSet::from([PID]), 1));
        processes.apply(vec![
            LifecycleEvent::Fork { pid: PID + 1, parent: PID },
            LifecycleEvent::Exec { pid: PID },
            LifecycleEvent::Map { pid: PID, mapping: anonymous("third") },
        ]);
        assert_eq!(named(&processes, &key(PID, 5, 0)).as_deref(), Some("first"));
        assert_eq!(named(&processes, &key(PID, 5, 1)).as_deref(), Some("second"));
        assert_eq!(named(&processes, &key(PID, 6, 1)).as_deref(), Some("third"));
        assert_eq!(named(&processes, &key(PID + 1, 5, 1)).as_deref(), Some("second"));
    }

    #[test]
    fn processes_that_were_not_named_are_of_no_interest() {
        let mut processes = Processes::new(Interest::Named);
        processes.apply(vec![LifecycleEvent::Exec { pid: 1 << 30 }]);
        assert_eq!(processes.alive().count(), 0);
    }
}
