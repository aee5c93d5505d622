//! Where calls of functions are recorded: the functions that the patterns name, in the objects that processes map, and the
//! probes on them.
//!
//! Every call costs the target a trap at its beginning and one at its end. Where that comes to more than a part of a CPU, the
//! probes are taken away, and a warning says since when.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::os::fd::AsFd as _;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use profiler_common::event::COMM_LEN;
use profiler_common::function::{FunctionKey, FunctionMissed, FunctionStats, MAX_FUNCTIONS, OF_GOROUTINES};

use super::processes::{Interest, Processes};
use super::readings::Readings;
use crate::analyze::fits;
use crate::bpf::{BpfError, FunctionRuns, Kernel, TrapCosts};
use crate::process::{FunctionProbes, NamedFunctions, ObjectFile};
use crate::profile::{Histogram, Row, Table, TableColumn};
use crate::symbolize::demangle;

/// The part of one CPU that probes may take, from one window to the next: some 20,000 calls a second where the kernel executes
/// the instruction at the end of a call in single steps.
const MOST_COST: f64 = 0.2;

/// What the traps take where it cannot be measured: see `collect/allocations.rs`.
const TRAP_NS: u64 = 500;
const STEP_NS: u64 = 9_000;

/// How often the process that holds the probes is started again.
const MOST_KILLED: u32 = 8;

/// Functions whose ends are not known that a warning names.
const MAX_NAMED: usize = 4;

/// What calls are not counted for.
const MISSED: [(FunctionMissed, &str); 3] = [
    (FunctionMissed::Callers, "are not counted: more threads or goroutines were inside calls than there is room for"),
    (FunctionMissed::Deep, "are not counted: they were made more than 16 deep inside one another"),
    (FunctionMissed::Unended, "have no end that was seen, and are not counted: an exception or a jump has left them"),
];

/// Functions that somebody asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FunctionPattern {
    /// The file's path, or its name alone.
    pub binary: String,
    /// A glob of the function's name.
    pub name: String,
}

impl FunctionPattern {
    /// Whether it is about the file at a path, as a process maps it.
    fn is_of(&self, path: &str) -> bool {
        self.binary == path || Some(self.binary.as_str()) == path.rsplit('/').next()
    }

    /// What the file is when its links are followed: a program is often called by one.
    fn followed(&self) -> Option<Self> {
        let name = Path::new(&self.binary);
        let found = if self.binary.contains('/') {
            name.canonicalize().ok()?
        } else {
            let directories = std::env::var_os("PATH")?;
            std::env::split_paths(&directories).find_map(|directory| directory.join(name).canonicalize().ok())?
        };
        Some(Self { binary: found.to_str()?.to_owned(), name: self.name.clone() })
    }
}

/// Where probes are: the process, or 0 for all, and the object.
type Place = (u32, u32);

/// The functions of one object that have probes.
#[derive(Default)]
struct OfObject {
    entries: Vec<(u64, u64)>,
    ends: Vec<(u64, u64)>,
}

/// Functions, and the probes on them.
pub(super) struct Functions {
    patterns: Vec<FunctionPattern>,
    /// The same where links have been followed.
    followed: Vec<FunctionPattern>,
    /// What was found, by object.
    found: HashMap<u32, OfObject>,
    /// The objects with functions, by process.
    objects: BTreeMap<u32, BTreeSet<u32>>,
    attached: BTreeMap<Place, Vec<u64>>,
    /// Whether one probe serves all processes that map an object.
    for_all: bool,
    /// Names, by number, and whether callers are goroutines.
    names: Vec<(String, bool)>,
    costs: TrapCosts,
    /// Whether the kernel emulates the first instruction with a probe of every function.
    all_emulated: bool,
    /// What had been spent when it was looked at last.
    looked: (Instant, u64),
    began: Instant,
    /// When the probes were taken away for what they cost.
    stopped: Option<Duration>,
    killed: u32,
    warnings: Vec<String>,
    /// Of [`MISSED`], how many have been told of.
    told: [u64; MISSED.len()],
}

impl Functions {
    /// Nothing yet.
    pub(super) fn new(interest: Interest, patterns: Vec<FunctionPattern>, kernel: &mut Kernel) -> Self {
        Self {
            followed: patterns.iter().filter_map(FunctionPattern::followed).collect(),
            patterns,
            found: HashMap::new(),
            objects: BTreeMap::new(),
            attached: BTreeMap::new(),
            for_all: interest == Interest::Everybody,
            names: Vec::new(),
            all_emulated: true,
            costs: kernel.measure_function_traps(),
            looked: (Instant::now(), 0),
            began: Instant::now(),
            stopped: None,
            killed: 0,
            warnings: Vec::new(),
            told: [0; MISSED.len()],
        }
    }

    /// Puts probes on the functions of what a process maps now.
    pub(super) fn update(&mut self, kernel: &mut Kernel, pid: u32, processes: &mut Processes) -> Result<()> {
        let mut objects_of = BTreeSet::new();
        if let Some((mappings, objects)) = processes.mappings(pid) {
            for mapping in mappings.iter() {
                let Some((number, _)) = objects.place(pid, mapping, mapping.start) else { continue };
                let Some(object) = objects.objects().get(number as usize) else { continue };
                if !self.found.contains_key(&number) {
                    let of_object = self.look_into(object)?;
                    self.found.insert(number, of_object);
                }
                if self.found.get(&number).is_some_and(|found| !found.entries.is_empty()) {
                    objects_of.insert(number);
                }
            }
        }
        self.objects.insert(pid, objects_of);
        self.place_probes(kernel, processes);
        Ok(())
    }

    /// Finds the functions that were asked for in an object.
    fn look_into(&mut self, object: &ObjectFile) -> Result<OfObject> {
        let all = self.patterns.iter().chain(&self.followed);
        let patterns: Vec<&FunctionPattern> = all.filter(|pattern| pattern.is_of(&object.path)).collect();
        let mut of_object = OfObject::default();
        if patterns.is_empty() {
            return Ok(of_object);
        }
        let wanted = |symbol: &str| {
            let name = demangle(symbol);
            patterns.iter().any(|pattern| fits(&pattern.name, &name)).then_some(name)
        };
        let NamedFunctions { functions, without_end } = object.functions(wanted, MAX_FUNCTIONS + 1);
        if self.names.len() + functions.len() > MAX_FUNCTIONS {
            let names: Vec<&str> = functions.iter().take(MAX_NAMED).map(|function| function.name.as_str()).collect();
            bail!(
                "--func names more than {MAX_FUNCTIONS} functions, which would be more probes than a target should bear: {}, \
                 and others in {}: give a pattern that fits fewer",
                names.join(", "),
                object.path
            );
        }
        for (name, why) in without_end.iter().take(MAX_NAMED) {
            self.warnings.push(format!("{name} in {} has no probes: {why}", object.path));
        }
        if without_end.len() > MAX_NAMED {
            let more = without_end.len() - MAX_NAMED;
            self.warnings.push(format!("{more} more functions in {} have no probes, likewise", object.path));
        }
        for FunctionProbes { name, entry, is_emulated, is_go, ends } in functions {
            let flag = if is_go { OF_GOROUTINES } else { 0 };
            let cookie = self.names.len() as u64 | flag;
            self.names.push((name, is_go));
            self.all_emulated &= is_emulated;
            of_object.entries.push((entry, cookie));
            of_object.ends.extend(ends.into_iter().map(|end| (end, cookie)));
        }
        Ok(of_object)
    }

    /// Begins to hold the cost against its limit; the probes of processes that are there already are in their places.
    ///
    /// Errors: processes were named, and none of them has such a function.
    pub(super) fn begin(&mut self, kernel: &Kernel, is_there: bool) -> Result<()> {
        if is_there && self.names.is_empty() {
            bail!("{}", self.nothing_found());
        }
        (self.began, self.looked) = (Instant::now(), (Instant::now(), self.cost_ns(kernel.function_runs())));
        Ok(())
    }

    fn nothing_found(&self) -> String {
        let patterns: Vec<String> =
            self.patterns.iter().map(|pattern| format!("{}:{}", pattern.binary, pattern.name)).collect();
        let why = if self.warnings.is_empty() { String::new() } else { format!(" ({})", self.warnings.join("; ")) };
        format!(
            "no function that --func names was found ({}){why}: the file is named as in /proc/PID/maps, by its path or its last \
             part, and the function as `nm -C FILE` names it, with * for anything",
            patterns.join(", ")
        )
    }

    /// Forgets objects that nobody maps, whose numbers others may have now.
    pub(super) fn forget_objects(&mut self, numbers: &[u32]) {
        numbers.iter().for_each(|number| drop(self.found.remove(number)));
    }

    /// Forgets a process that has ended.
    pub(super) fn forget(&mut self, kernel: &mut Kernel, pid: u32, processes: &Processes) {
        self.objects.remove(&pid);
        self.place_probes(kernel, processes);
    }

    /// Holds what the probes cost against the limit, and puts them back where they were lost.
    pub(super) fn end_window(&mut self, kernel: &mut Kernel, processes: &Processes) {
        if kernel.has_lost_functions() {
            self.mend(kernel, processes);
        }
        let cost_ns = self.cost_ns(kernel.function_runs());
        let (at, before_ns) = std::mem::replace(&mut self.looked, (Instant::now(), cost_ns));
        let spent = Duration::from_nanos(cost_ns.saturating_sub(before_ns)).as_secs_f64();
        if self.stopped.is_none() && spent > MOST_COST * at.elapsed().as_secs_f64() {
            let after = self.began.elapsed();
            self.stopped = Some(after);
            self.place_probes(kernel, processes);
            self.warnings.push(format!(
                "probes on functions took {:.0} % of a CPU and were taken away {:.1} s after the beginning: calls from then on are \
                 not counted; name functions that are called less often",
                100.0 * spent / at.elapsed().as_secs_f64().max(1e-9),
                after.as_secs_f64()
            ));
        }
    }

    /// Takes all probes away.
    pub(super) fn end(&mut self, kernel: &mut Kernel) {
        kernel.end_functions();
    }

    /// What a reader must know of the time since the last call.
    pub(super) fn take_warnings(&mut self, kernel: &Kernel) -> Vec<String> {
        let mut warnings = std::mem::take(&mut self.warnings);
        if self.names.is_empty() {
            warnings = vec![self.nothing_found()];
        }
        for (told, (what, text)) in self.told.iter_mut().zip(MISSED) {
            let missed = kernel.functions_missed(what);
            let calls = missed - std::mem::replace(told, missed);
            if calls > 0 {
                warnings.push(format!("{calls} calls of functions {text}"));
            }
        }
        warnings
    }

    /// Time in the traps of the probes, ns.
    pub(super) fn trap_ns(&self, kernel: &Kernel) -> u64 {
        let runs = kernel.function_runs();
        self.cost_ns(runs) - runs.bpf_ns
    }

    fn cost_ns(&self, runs: FunctionRuns) -> u64 {
        let stepped_ns = self.costs.stepped_ns.unwrap_or(STEP_NS);
        let entry_ns = if self.all_emulated { self.costs.emulated_ns.unwrap_or(TRAP_NS) } else { stepped_ns };
        runs.bpf_ns + runs.entries * entry_ns + runs.ends * stepped_ns
    }

    /// Makes the probes those that are wanted now.
    fn place_probes(&mut self, kernel: &mut Kernel, processes: &Processes) {
        let mut wanted: BTreeSet<Place> = BTreeSet::new();
        if self.stopped.is_none() {
            for (&pid, objects) in &self.objects {
                wanted.extend(objects.iter().map(|&object| (if self.for_all { 0 } else { pid }, object)));
            }
        }
        let gone: Vec<Place> = self.attached.keys().filter(|place| !wanted.contains(*place)).copied().collect();
        for place in gone {
            if let Some(numbers) = self.attached.remove(&place) {
                // Without the process that holds them there is nothing to take away; `mend` follows.
                let _ = kernel.detach_functions(&numbers);
            }
        }
        for (pid, object) in wanted {
            if self.attached.contains_key(&(pid, object)) {
                continue;
            }
            let Some(file) = processes.objects.objects().get(object as usize) else { continue };
            let found = &self.found[&object];
            match kernel.attach_functions(file.file.as_fd(), pid, &found.entries, &found.ends) {
                Ok(numbers) => {
                    self.attached.insert((pid, object), numbers);
                }
                // It may have ended meanwhile.
                Err(_) if pid != 0 && !crate::process::is_running(pid) => {}
                Err(BpfError::HolderGone) => {}
                Err(error) => self.warn_once(format!("no probes in {}: {error}", file.path)),
            }
        }
    }

    /// Puts the probes back after the process that held them was killed: what it left in the targets goes with them.
    fn mend(&mut self, kernel: &mut Kernel, processes: &Processes) {
        self.killed += 1;
        if self.killed > MOST_KILLED {
            return;
        }
        self.warn_once(
            "the process that holds probes was killed: another one has put them back; calls in between are missing"
                .to_owned(),
        );
        if let Err(error) = kernel.restart_functions() {
            return self.warn_once(format!("no probes on functions any more: {error}"));
        }
        self.attached.clear();
        self.place_probes(kernel, processes);
    }

    fn warn_once(&mut self, warning: String) {
        if !self.warnings.contains(&warning) {
            self.warnings.push(warning);
        }
    }

    /// The table of what was counted since the reading before. `missing`: calls that found no room; `is_last`: there is no other
    /// reading.
    pub(super) fn table(
        &self,
        stats: &[(FunctionKey, FunctionStats)],
        missing: u64,
        readings: &mut Readings<FunctionKey>,
        is_last: bool,
    ) -> Table {
        table(&self.names, stats, missing, readings, is_last)
    }
}

/// Time in calls that are not inside another one of the same function, and its parts; calls, and those that are inside another;
/// time in all calls.
const VALUES: [(&str, &str); 6] =
    [("time", "ns"), ("calls", "count"), ("nested", "count"), ("on_cpu", "ns"), ("off_cpu", "ns"), ("inclusive", "ns")];

fn table(
    names: &[(String, bool)],
    stats: &[(FunctionKey, FunctionStats)],
    missing: u64,
    readings: &mut Readings<FunctionKey>,
    is_last: bool,
) -> Table {
    let columns = VALUES.map(|(name, unit)| TableColumn::new(name, unit));
    let row = |(key, stats): &(FunctionKey, FunctionStats)| {
        let (name, is_go) = names.get(key.function as usize).cloned().unwrap_or_default();
        let off_cpu_ns = stats.off_cpu_ns.min(stats.total_ns);
        // On which thread a goroutine was, and whether it ran, is not followed.
        let on_cpu_ns = if is_go { 0 } else { stats.total_ns - off_cpu_ns };
        let row = Row {
            labels: vec![name, process_name(&stats.process_comm), key.pid.to_string()],
            values: vec![stats.total_ns, stats.calls, stats.nested, on_cpu_ns, off_cpu_ns, stats.sum_ns],
            distributions: vec![Histogram::new(&stats.histogram, stats.max_ns)],
        };
        readings.since(*key, row, &columns, is_last)
    };
    let rows = stats.iter().filter_map(row).collect();
    let mut table = Table {
        title: "Calls of functions".to_owned(),
        labels: ["function", "process", "pid"].map(str::to_owned).to_vec(),
        values: columns.to_vec(),
        distributions: vec![TableColumn::new("call", "ns")],
        rows,
        missing,
    };
    table.sort();
    table
}

fn process_name(bytes: &[u8; COMM_LEN]) -> String {
    let end = bytes.iter().position(|&byte| byte == 0).unwrap_or(COMM_LEN);
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

#[cfg(test)]
mod tests {
    use profiler_common::histogram::{HISTOGRAM_BUCKETS, bucket_of};

    use super::*;

    #[test]
    fn a_row_has_the_time_of_calls_that_are_not_nested_and_that_of_all() {
        let mut histogram = [0; HISTOGRAM_BUCKETS];
        histogram[bucket_of(1_000)] = 2;
        histogram[bucket_of(3_000)] = 2;
        let stats = FunctionStats {
            calls: 4,
            nested: 1,
            sum_ns: 8_000,
            total_ns: 7_000,
            off_cpu_ns: 2_000,
            max_ns: 3_000,
            process_comm: *b"name\0\0\0\0\0\0\0\0\0\0\0\0",
            histogram,
        };
        let of_go = (
            FunctionKey { start_time_ns: 1, pid: 7, exec_count: 0, function: 1, reserved: 0 },
            FunctionStats { total_ns: 500, off_cpu_ns: 0, ..stats },
        );
        let key = FunctionKey { start_time_ns: 1, pid: 7, exec_count: 0, function: 0, reserved: 0 };
        let names = [("work".to_owned(), false), ("main.work".to_owned(), true)];
        let table = table(&names, &[(key, stats), of_go], 3, &mut Readings::default(), true);
        assert!(table.is_sound());
        assert_eq!(table.missing, 3);
        assert_eq!(table.rows[0].labels, ["work", "name", "7"]);
        assert_eq!(table.rows[0].values, [7_000, 4, 1, 5_000, 2_000, 8_000]);
        assert_eq!(table.rows[1].values, [500, 4, 1, 0, 0, 8_000]);
    }
}
