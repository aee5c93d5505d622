//! Where allocations are recorded: the allocators that processes map, and when probes are on them.
//!
//! A probe is a trap at every call, whatever becomes of the call, and the target pays for it. So the probes are there all the
//! time only while they cost no more than the budget, a part of the target's own CPU time; else in windows, as long apart as
//! it takes, and what they see stands for the time in between.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use profiler_common::alloc::{RATE_SHIFT, SizeStats, takes};
use profiler_common::histogram::{HISTOGRAM_BUCKETS, bucket_of};

use super::alloc_duty::{Duty, Usage, WINDOW};
use super::live::{Following, Sites};
use super::processes::{Interest, Processes};
use super::target::AllocConfig;
use crate::alloc::{AllocProbe, Allocator, find_allocator};
use crate::bpf::{AttachedProbes, BpfError, Kernel, Probes};
use crate::process::{ProcessFiles, Ticks, read_memory};
use crate::profile::{Column, Histogram, Live, Profile, RawProfile, Row, Table, TableColumn};

/// What the trap of a probe takes, ns, besides the program: where the kernel emulates the instruction, if it cannot be measured,
/// and where it does not.
const TRAP_NS: u64 = 500;
const STEP_NS: u64 = 9_000;

/// What a probe costs the target for each ns that is measured of it: with the caches that traps and programs leave behind. By
/// `cargo xtask bench alloc`: 1,817 ns a pair of a million a second, 3,186 of 12,000, of which 1,350 and 2,300 are measured.
const WITH_CACHES: f64 = 1.35;

/// How often the process that holds the probes is started again.
const MOST_KILLED: u32 = 8;

/// Why blocks are not followed any more.
const IN_WINDOWS: &str = "frees not observed: probes were there in windows, since all the time would have cost the target more \
                          than the budget; --alloc-budget allows more";

/// The same where there is no end at which it could be said.
const CONTINUOUS: &str = "frees not observed: blocks are followed by a recording that ends";

/// Processes whose CPU time is read.
const MAX_PROCESSES: usize = 300;

/// Errors that are kept.
const MAX_ERRORS: usize = 4;

/// The part of the target's time that probes may take while they are there before the total is doubted.
const SLOWED: f64 = 0.2;

/// The mean distance of what the library and Go's profiler choose, unless it is set, bytes.
const USUAL_PERIOD: u64 = 512 << 10;

/// Where probes are: the process, or 0 for all, and the object.
type Place = (u32, u32);

/// Allocators, and the probes on them.
pub(super) struct Allocations {
    /// Functions by object.
    functions: HashMap<u32, Allocator>,
    /// Objects with allocators, by process.
    objects: BTreeMap<u32, BTreeSet<u32>>,
    files: HashMap<u32, ProcessFiles>,
    attached: BTreeMap<Place, AttachedProbes>,
    /// Where the process that holds the probes was killed while it put them there.
    lost: BTreeSet<Place>,
    /// Whether one probe serves all processes that map an object.
    for_all: bool,
    duty: Duty,
    /// What the trap of a probe takes here, ns.
    trap_ns: u64,
    /// What becomes of the blocks.
    following: Option<Following>,
    /// Where Go programs have the distance by which their own profiler chooses.
    rates: BTreeMap<Place, u64>,
    /// The longest of these, bytes.
    longest: u64,
    /// Functions that have had probes.
    names: BTreeSet<&'static str>,
    /// Files with an allocator that cannot be seen, and its name.
    unseen: BTreeMap<String, &'static str>,
    errors: Vec<String>,
    /// How often the process that holds the probes was killed.
    killed: u32,
    /// When [`Allocations::take_share`] was told last, and for how long probes had been on by then.
    told: (Instant, Duration),
}

impl Allocations {
    pub(super) fn new(interest: Interest, config: AllocConfig) -> Self {
        Self {
            functions: HashMap::new(),
            objects: BTreeMap::new(),
            files: HashMap::new(),
            attached: BTreeMap::new(),
            lost: BTreeSet::new(),
            for_all: interest == Interest::Everybody,
            duty: Duty::new(Instant::now(), config, Usage::default()),
            trap_ns: TRAP_NS,
            following: None,
            rates: BTreeMap::new(),
            longest: 0,
            names: BTreeSet::new(),
            unseen: BTreeMap::new(),
            errors: Vec::new(),
            killed: 0,
            told: (Instant::now(), Duration::ZERO),
        }
    }

    /// Looks for allocators in what a process maps now.
    pub(super) fn update(&mut self, kernel: &mut Kernel, pid: u32, processes: &mut Processes) {
        let mut objects_of = BTreeSet::new();
        if let Some((mappings, objects)) = processes.mappings(pid) {
            for mapping in mappings.iter() {
                let Some((number, address)) = objects.place(pid, mapping, mapping.start) else { continue };
                let Some(object) = objects.objects().get(number as usize) else { continue };
                let functions = self.functions.entry(number).or_insert_with(|| find_allocator(object));
                if let Some(allocator) = functions.unseen
                    && self.unseen.len() < MAX_ERRORS
                {
                    self.unseen.entry(object.path.clone()).or_insert(allocator);
                }
                // A probe of all processes sees the allocator behind the library as well, and not all come to the library's.
                let is_for_us = !functions.is_sampled || !(self.for_all || self.duty.config.is_exact);
                if is_for_us && !functions.allocate.is_empty() {
                    objects_of.insert(number);
                }
                if let Some(chooser) = &functions.chooser {
                    let rate = mapping.start.wrapping_sub(address).wrapping_add(chooser.rate);
                    // One that has started while it is recorded may not have set it yet.
                    let is_on = self.following.is_some() || read_rate(pid, rate) > Some(0);
                    if is_on && !self.for_all && !self.duty.config.is_exact {
                        self.rates.entry((pid, number)).or_insert(rate);
                    }
                }
            }
        }
        // What the program tells of itself is all there is to know of it.
        let is_sampled = |number: &u32| self.functions[number].is_sampled;
        if objects_of.iter().any(is_sampled) {
            objects_of.retain(is_sampled);
        }
        if self.files.len() < MAX_PROCESSES
            && let Ok(files) = ProcessFiles::open(pid)
        {
            self.files.entry(pid).or_insert(files);
        }
        self.objects.insert(pid, objects_of);
        self.place_probes(kernel, processes);
    }

    /// Forgets objects whose numbers others will have.
    pub(super) fn forget_objects(&mut self, numbers: &[u32]) {
        numbers.iter().for_each(|number| drop(self.functions.remove(number)));
    }

    /// Forgets a process that has ended.
    pub(super) fn forget(&mut self, kernel: &mut Kernel, pid: u32, processes: &Processes) {
        self.objects.remove(&pid);
        self.files.remove(&pid);
        self.place_probes(kernel, processes);
    }

    /// When [`Allocations::look`] wants to be called.
    pub(super) fn next(&self) -> Instant {
        let look = self.following.as_ref().and_then(Following::next);
        look.map_or(self.duty.next, |look| look.min(self.duty.next))
    }

    /// Puts probes on or takes them away, by what they cost.
    pub(super) fn look(&mut self, kernel: &mut Kernel, processes: &Processes) -> Result<(), BpfError> {
        if kernel.has_lost_probes() {
            self.mend(kernel, processes);
        }
        if let Some(following) = &mut self.following {
            following.look(kernel, processes)?;
        }
        if Instant::now() < self.duty.next {
            return Ok(());
        }
        let usage = self.usage(kernel);
        if self.duty.look(Instant::now(), usage) {
            self.turn(kernel, processes)?;
        }
        Ok(())
    }

    /// Begins to record, with the probes that are there. `follows`: whether to find out what becomes of the blocks.
    pub(super) fn begin(&mut self, kernel: &mut Kernel, follows: bool) -> Result<(), BpfError> {
        self.trap_ns = kernel.measure_trap_ns().unwrap_or(TRAP_NS);
        let following = if follows { Following::new(kernel) } else { Following::none(CONTINUOUS) };
        let exact = if self.duty.config.is_exact { takes::EXACT } else { 0 };
        kernel.take_allocations(exact | if following.is_on() { takes::BLOCKS } else { takes::ALLOCATIONS })?;
        self.following = Some(following);
        self.duty = Duty::new(Instant::now(), self.duty.config, self.usage(kernel));
        self.told = (self.duty.began, Duration::ZERO);
        Ok(())
    }

    /// Whether the blocks have been followed all the time.
    pub(super) fn follows(&self) -> bool {
        self.following.as_ref().is_some_and(Following::is_on)
    }

    /// What a slice of the timeline says of memory, where nothing is missing. `allocated`: the profile of allocations.
    pub(super) fn figures(&mut self, allocated: Option<&RawProfile>) -> [(Column, Option<u64>); 2] {
        let following = self.following.as_mut().filter(|following| following.is_on());
        let bytes = |profile: &RawProfile| profile.samples.values().map(|values| values[1]).sum();
        let allocated = following.as_ref().and(allocated).map(bytes);
        [(Column::TargetAllocated, allocated), (Column::TargetLive, following.and_then(Following::take_held))]
    }

    /// What there is of blocks at the end: their profile, and their past.
    pub(super) fn finish_blocks(
        &mut self,
        kernel: &Kernel,
        allocated: &RawProfile,
        sites: &Sites,
    ) -> Result<Option<(RawProfile, Live)>, BpfError> {
        self.following.take().map(|following| following.finish(kernel, allocated, sites)).transpose()
    }

    /// Takes all probes away.
    pub(super) fn end(&mut self, kernel: &mut Kernel, processes: &Processes) -> Result<(), BpfError> {
        self.duty.end(Instant::now());
        self.take_away(kernel, processes)?;
        for (&(pid, _), &rate) in &self.rates {
            let rate = read_rate(pid, rate);
            // Of one that has ended, by what Go begins with.
            self.longest = self.longest.max(rate.unwrap_or(USUAL_PERIOD));
            if rate == Some(0) && self.errors.len() < MAX_ERRORS {
                self.errors.push(format!(
                    "process {pid} has switched Go's own profiler off (runtime.MemProfileRate is 0), by which its \
                     allocations are recorded: those since are missing; --exact goes by another function"
                ));
            }
        }
        kernel.end_probes();
        Ok(())
    }

    /// Puts all probes on and then records, or the other way round.
    fn turn(&mut self, kernel: &mut Kernel, processes: &Processes) -> Result<(), BpfError> {
        if self.duty.is_on {
            self.place_probes(kernel, processes);
            kernel.take_allocations(takes::ALLOCATIONS)?;
            let now = Instant::now();
            (self.duty.since, self.duty.next) = (now, now + WINDOW);
            return Ok(());
        }
        if self.duty.stopped.is_some() {
            // What the blocks were when the probes went is what is told of them.
            self.take_away(kernel, processes)?;
            return self.following.as_mut().map_or(Ok(()), |following| following.freeze(kernel));
        }
        if let Some(following) = &mut self.following {
            following.end(kernel, IN_WINDOWS)?;
        }
        self.take_away(kernel, processes)
    }

    /// Records no more, and takes the probes away.
    fn take_away(&mut self, kernel: &mut Kernel, processes: &Processes) -> Result<(), BpfError> {
        kernel.take_allocations(takes::NOTHING)?;
        self.place_probes(kernel, processes);
        Ok(())
    }

    /// The functions that have had probes.
    pub(super) fn names(&self) -> Vec<&'static str> {
        self.names.iter().copied().collect()
    }

    /// The size from which on all allocations are there, whatever the programs say: 0 where none chooses by itself.
    pub(super) fn sampled_bytes(&self) -> u64 {
        // Of 16 times the period all but one in ten million are chosen.
        let is_left = self.for_all || self.duty.config.is_exact;
        let is_sampled = self.functions.values().any(|functions| functions.is_sampled && !is_left);
        16 * self.longest.max(if is_sampled { USUAL_PERIOD } else { 0 })
    }

    /// What a reader must know.
    pub(super) fn warnings(&self) -> Vec<String> {
        let mut warnings = self.errors.clone();
        warnings.extend(self.unseen.iter().map(|(path, allocator)| {
            format!(
                "{path} has {allocator} linked in, and no symbols to find it by: what it allocates is missing; keep the \
                 program's symbol table (Rust: strip = \"debuginfo\"; else no -s, and no strip)"
            )
        }));
        if self.names.is_empty() {
            warnings.push(
                "no allocator was found: no file of the target has a symbol of one (malloc, or jemalloc's, mimalloc's or \
                 tcmalloc's own); a program that is linked statically must have its symbol table (not be stripped), but \
                 for Go's"
                    .to_owned(),
            );
        }
        if self.killed > 0 {
            warnings.push(format!(
                "the process that holds probes was killed, {} times: another one has taken its probes away; allocations in \
                 between are missing{}",
                self.killed,
                if self.killed > MOST_KILLED { ", and traps may have stayed in the targets: restart them" } else { "" }
            ));
        }
        if let Some(after) = self.stopped_after() {
            warnings.push(format!(
                "--exact ended after {:.1} s, since to record every allocation took more than {:.0} % of the target's CPU \
                 time: allocations and what is in use are those until then; --alloc-budget allows more",
                after.as_secs_f64(),
                self.duty.config.budget * 100.0
            ));
        }
        if self.duty.slowed > SLOWED && !self.duty.config.is_exact {
            warnings.push(format!(
                "the target allocates so much that probes took {:.0} % of its time while they were there: it allocated less \
                 then, so that the total of allocations is too low; their shares hold",
                self.duty.slowed * 100.0
            ));
        }
        warnings
    }

    /// Time in the traps of the probes, ns, as they were measured elsewhere.
    pub(super) fn trap_ns(&self, kernel: &Kernel) -> u64 {
        kernel.alloc_run_time().1 * self.trap_ns_each()
    }

    fn trap_ns_each(&self) -> u64 {
        let mut probes = self.functions.values().flat_map(|allocator| allocator.allocate.iter().chain(&allocator.free));
        if probes.all(|probe| probe.is_emulated) { self.trap_ns } else { STEP_NS }
    }

    /// The part of the time since the last call, or the start, in which probes were on, 0 to 1.
    pub(super) fn take_share(&mut self) -> f64 {
        let now = self.duty.ended.unwrap_or_else(Instant::now);
        let on = self.duty.on + if self.duty.is_on { now - self.duty.since } else { Duration::ZERO };
        let (told_at, told) = std::mem::replace(&mut self.told, (now, on));
        ((on - told).as_secs_f64() / (now - told_at).as_secs_f64().max(1e-9)).clamp(1e-6, 1.0)
    }

    /// When it stopped by itself, after the beginning, since to record every allocation cost more than the budget.
    pub(super) fn stopped_after(&self) -> Option<Duration> {
        self.duty.stopped.map(|stopped| stopped - self.duty.began)
    }

    /// Whether every allocation was recorded.
    pub(super) const fn is_exact(&self) -> bool {
        self.duty.config.is_exact
    }

    fn usage(&self, kernel: &Kernel) -> Usage {
        let (bpf_ns, runs) = kernel.alloc_run_time();
        let mut buffer = Vec::new();
        let stats = self.files.values().filter_map(|files| files.stat(&mut buffer));
        let measured_ns = bpf_ns + runs * self.trap_ns_each();
        #[expect(clippy::cast_precision_loss, reason = "an estimate, of which few digits say something")]
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "not negative")]
        let cost_ns = (measured_ns as f64 * WITH_CACHES) as u64;
        Usage { cost_ns, cpu_ns: stats.map(|stat| stat.own.cpu_ns()).sum() }
    }

    /// Makes the probes those that are wanted now.
    fn place_probes(&mut self, kernel: &mut Kernel, processes: &Processes) {
        let mut wanted: BTreeSet<Place> = BTreeSet::new();
        if self.duty.is_on {
            for (&pid, objects) in &self.objects {
                wanted.extend(objects.iter().map(|&object| (if self.for_all { 0 } else { pid }, object)));
            }
        }
        let gone: Vec<Place> = self.attached.keys().filter(|place| !wanted.contains(*place)).copied().collect();
        for place in gone {
            if let Some(probes) = self.attached.remove(&place)
                && let Err(BpfError::HolderGone) = kernel.detach_probes(&probes)
            {
                self.attached.insert(place, probes);
            }
        }
        self.attach(kernel, processes, &wanted);
        if kernel.has_lost_probes() {
            self.mend(kernel, processes);
        }
    }

    fn attach(&mut self, kernel: &mut Kernel, processes: &Processes, wanted: &BTreeSet<Place>) {
        // Not known before the recording begins.
        let follows = self.following.as_ref().map_or_else(|| kernel.follows_blocks(), Following::is_on);
        for &(pid, object) in wanted {
            if self.attached.contains_key(&(pid, object)) {
                continue;
            }
            let Some(file) = processes.objects.objects().get(object as usize) else { continue };
            let functions = &self.functions[&object];
            let points = |probes: &[AllocProbe]| -> Vec<(u64, u64)> {
                probes.iter().map(|probe| (probe.file_offset, probe.cookie)).collect()
            };
            let chooser = functions.chooser.as_ref().zip(self.rates.get(&(pid, object)));
            let probes = match chooser {
                Some((chooser, _)) => std::slice::from_ref(&chooser.probe),
                None => functions.allocate.as_slice(),
            };
            let rate = chooser.map_or(0, |(_, rate)| rate << RATE_SHIFT);
            let enters: Vec<_> = points(probes).into_iter().map(|(offset, cookie)| (offset, cookie | rate)).collect();
            let frees = if follows { points(&functions.free) } else { Vec::new() };
            match kernel.attach_probes(Probes { file: file.file.as_fd(), pid, enters: &enters, frees: &frees }) {
                Ok(attached) => {
                    self.names.extend(probes.iter().map(|probe| probe.function));
                    self.attached.insert((pid, object), attached);
                }
                // It may have put some there before it was killed.
                Err(BpfError::HolderGone) => {
                    self.lost.insert((pid, object));
                }
                // It may have ended meanwhile.
                Err(_) if pid != 0 && !crate::process::is_running(pid) => {}
                Err(error) => note(&mut self.errors, &error),
            }
        }
    }

    /// Goes on when the process that held the probes was killed: what it left in the targets goes when probes that were put
    /// in the same places are taken away.
    fn mend(&mut self, kernel: &mut Kernel, processes: &Processes) {
        self.killed += 1;
        if let Some(following) = &mut self.following
            && let Err(error) = following.end(kernel, "frees not observed: the process that holds probes was killed")
        {
            note(&mut self.errors, &error);
        }
        if self.killed > MOST_KILLED {
            return;
        }
        if let Err(error) = kernel.restart_holder() {
            note(&mut self.errors, &error);
            return;
        }
        let mut places = std::mem::take(&mut self.lost);
        places.extend(std::mem::take(&mut self.attached).into_keys());
        self.attach(kernel, processes, &places);
        if !self.duty.is_on {
            for (_, probes) in std::mem::take(&mut self.attached) {
                let _ = kernel.detach_probes(&probes);
            }
        }
    }
}

/// The distance by which a Go program's own profiler chooses, bytes.
fn read_rate(pid: u32, address: u64) -> Option<u64> {
    let mut rate = [0; 8];
    read_memory(pid, address, &mut rate).ok()?;
    // A program may set what it likes.
    Some(u64::from_le_bytes(rate).min(1 << 40))
}

/// What was counted of blocks by their size, a class a row.
pub(super) fn sizes(stats: &[(u32, SizeStats)]) -> Table {
    let row = |(class, stats): &(u32, SizeStats)| {
        let mut lifetimes = vec![0; HISTOGRAM_BUCKETS];
        let (mut longest, lived) = (0, stats.lifetimes.iter().enumerate().filter(|(_, blocks)| **blocks > 0));
        for (bucket, blocks) in lived {
            // The middle of the bucket, ns.
            let lived_ns = (3 << bucket) * 250;
            lifetimes[bucket_of(lived_ns)] += blocks;
            longest = lived_ns;
        }
        let mean_ns = stats.lived_us.saturating_mul(1_000).checked_div(stats.freed).unwrap_or(0);
        Row {
            labels: vec![format!("up to {}", 1_u64 << class)],
            values: vec![stats.bytes, stats.objects, stats.freed, mean_ns],
            distributions: vec![Histogram::new(&lifetimes, longest)],
        }
    };
    let column = TableColumn::new;
    let mut table = Table {
        title: "Sizes of blocks".to_owned(),
        labels: vec!["size".to_owned()],
        values: vec![
            column("bytes", "bytes"),
            column("allocated", "count"),
            column("freed", "count"),
            column("mean_lifetime", "ns"),
        ],
        distributions: vec![column("lifetime", "ns")],
        rows: stats.iter().map(row).collect(),
        missing: 0,
    };
    table.sort();
    table
}

/// Makes values of windows values of the whole recording: `factor` times as much.
pub(super) fn scale(profile: &mut Profile, factor: f64) {
    #[expect(clippy::cast_precision_loss, reason = "estimates, of which few digits say something")]
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "not negative, and saturating")]
    let scaled = |value: u64, factor: f64| if factor > 1.0 { (value as f64 * factor).round() as u64 } else { value };
    for sample in &mut profile.samples {
        // Bytes and allocations, and a variance.
        sample.values[1] = scaled(sample.values[1], factor);
        sample.values[2] = scaled(sample.values[2], factor);
        sample.values[3] = scaled(sample.values[3], factor * factor);
    }
}

fn note(errors: &mut Vec<String>, error: &BpfError) {
    let error = format!("some allocations are missing: {error}");
    if errors.len() < MAX_ERRORS && !errors.contains(&error) {
        errors.push(error);
    }
}

impl Ticks {
    /// CPU time, ns: a tick is a hundredth of a second wherever /proc has them (`USER_HZ`).
    const fn cpu_ns(&self) -> u64 {
        (self.user + self.system) * 10_000_000
    }
}
