//! What the target and the host used, slice by slice: columns of figures that may be missing.
//!
//! Filled by `collect`, written by `output`. [`Column`] is the one list of what there is: the head of the CSV file, the
//! fields in JSON and the documentation all follow it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Most slices of a timeline: an hour of seconds. Beyond, each takes in its neighbour.
pub const MAX_SLICES: usize = 3600;

/// What becomes of two neighbours' figures when they are made one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fold {
    /// A quantity of the slice: they are added.
    Sum,
    /// What there was at the end of the slice: the larger one stays.
    Maximum,
    /// As `Maximum`, of what is scarce when it is small: the smaller one stays.
    Minimum,
}

/// Defines the columns: name with its unit, how neighbours fold, meaning.
macro_rules! columns {
    ($($column:ident: $name:literal, $fold:ident, $text:literal;)*) => {
        /// A figure of each slice.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Column {
            $(#[doc = $text] $column,)*
        }

        impl Column {
            /// Every column, in the order of the CSV file.
            pub const ALL: [Self; [$($name),*].len()] = [$(Self::$column),*];

            /// How many there are.
            pub const COUNT: usize = Self::ALL.len();

            /// The name in files; it ends in the unit, but for counts.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$column => $name,)* }
            }

            /// What becomes of neighbours.
            #[must_use]
            pub const fn fold(self) -> Fold {
                match self { $(Self::$column => Fold::$fold,)* }
            }

            /// What it means.
            #[must_use]
            pub const fn text(self) -> &'static str {
                match self { $(Self::$column => $text,)* }
            }
        }
    };
}

columns! {
    TargetCpuUser: "target_cpu_user_ns", Sum, "CPU time of the target in user mode";
    TargetCpuSystem: "target_cpu_system_ns", Sum, "CPU time of the target in the kernel";
    TargetThrottled: "target_throttled_ns", Sum, "time that the cgroup's CPU limit held its threads back";
    TargetProcesses: "target_processes", Maximum, "processes of the target, without zombies";
    TargetThreads: "target_threads", Maximum, "their threads";
    TargetRss: "target_rss_bytes", Maximum, "resident memory of the processes; a shared page counts once in each";
    TargetMemory: "target_memory_bytes", Maximum, "memory charged to the cgroup, page cache included";
    TargetSwap: "target_swap_bytes", Maximum, "swapped out memory of the target";
    TargetAllocated: "target_allocated_bytes", Sum, "bytes that were allocated, an estimate; only where all allocations were recorded all the time";
    TargetLive: "target_live_bytes", Maximum, "memory in use of what was allocated while recording, an estimate; only where frees were seen all the time";
    TargetDescriptors: "target_descriptors", Maximum, "open descriptors of the processes";
    TargetMinorFaults: "target_minor_faults", Sum, "page faults that needed no reading";
    TargetMajorFaults: "target_major_faults", Sum, "page faults that waited for a disk";
    TargetRead: "target_storage_read_bytes", Sum, "bytes that the processes caused to be read from storage";
    TargetWritten: "target_storage_written_bytes", Sum, "bytes that the processes caused to be written to storage";
    TargetPressureCpuSome: "target_pressure_cpu_some_ns", Sum, "time in which a task of the cgroup waited for a CPU";
    TargetPressureCpuFull: "target_pressure_cpu_full_ns", Sum, "time in which all tasks of the cgroup with work waited for a CPU";
    TargetPressureIoSome: "target_pressure_io_some_ns", Sum, "time in which a task of the cgroup waited for I/O";
    TargetPressureIoFull: "target_pressure_io_full_ns", Sum, "time in which all tasks of the cgroup with work waited for I/O";
    TargetPressureMemorySome: "target_pressure_memory_some_ns", Sum, "time in which a task of the cgroup waited for memory";
    TargetPressureMemoryFull: "target_pressure_memory_full_ns", Sum, "time in which all tasks of the cgroup with work waited for memory";
    HostCpuUser: "host_cpu_user_ns", Sum, "CPU time of all CPUs in user mode, guests and niced programs included";
    HostCpuSystem: "host_cpu_system_ns", Sum, "CPU time of all CPUs in the kernel";
    HostCpuIrq: "host_cpu_irq_ns", Sum, "CPU time of all CPUs in interrupts, hard and soft";
    HostCpuIowait: "host_cpu_iowait_ns", Sum, "idle time of CPUs from which a task waits for I/O";
    HostCpuSteal: "host_cpu_steal_ns", Sum, "time that the hypervisor gave to others";
    HostCpuIdle: "host_cpu_idle_ns", Sum, "idle time of all CPUs, without iowait";
    HostMemoryAvailable: "host_memory_available_bytes", Minimum, "memory that programs could have without swapping";
    HostMemoryFree: "host_memory_free_bytes", Minimum, "memory that nothing uses";
    HostMemoryCached: "host_memory_cached_bytes", Maximum, "page cache";
    HostMemoryDirty: "host_memory_dirty_bytes", Maximum, "memory that waits to be written to storage";
    HostSwapUsed: "host_swap_used_bytes", Maximum, "swap space in use";
    HostRunnable: "host_runnable_tasks", Maximum, "tasks that run or wait for a CPU";
    HostBlocked: "host_blocked_tasks", Maximum, "tasks that wait for I/O and cannot be interrupted";
    HostSwitches: "host_context_switches", Sum, "context switches";
    HostForks: "host_forks", Sum, "processes and threads started";
    HostPressureCpuSome: "host_pressure_cpu_some_ns", Sum, "time in which a task waited for a CPU";
    HostPressureIoSome: "host_pressure_io_some_ns", Sum, "time in which a task waited for I/O";
    HostPressureIoFull: "host_pressure_io_full_ns", Sum, "time in which all tasks with work waited for I/O";
    HostPressureMemorySome: "host_pressure_memory_some_ns", Sum, "time in which a task waited for memory";
    HostPressureMemoryFull: "host_pressure_memory_full_ns", Sum, "time in which all tasks with work waited for memory";
}

impl Column {
    /// Unit of the figures, as the name states it.
    #[must_use]
    pub fn unit(self) -> &'static str {
        match self.name().rsplit('_').next() {
            Some("ns") => "ns",
            Some("bytes") => "bytes",
            _ => "",
        }
    }
}

/// One figure for each column, those missing that could not be had.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Figures([Option<u64>; Column::COUNT]);

impl Default for Figures {
    fn default() -> Self {
        Self([None; Column::COUNT])
    }
}

impl Figures {
    /// The figure of a column.
    #[must_use]
    pub const fn of(&self, column: Column) -> Option<u64> {
        self.0[column as usize]
    }

    /// Sets the figure of a column.
    pub const fn set(&mut self, column: Column, figure: Option<u64>) {
        self.0[column as usize] = figure;
    }
}

/// A recording by slices of about a second, or longer ones in a long recording.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Timeline {
    /// Start of each slice, ns since the start of the recording, by the monotonic clock.
    pub start_ns: Vec<u64>,
    /// Length of each slice, ns.
    pub length_ns: Vec<u64>,
    /// Figures by [`Column::name`], one for each slice; a column that has none at all is left out.
    pub columns: BTreeMap<String, Vec<Option<u64>>>,
}

impl Timeline {
    /// Number of slices.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.start_ns.len()
    }

    /// Whether there are none, as in a capture of a version that had no timeline.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.start_ns.is_empty()
    }

    /// The figures of a column, one for each slice; `None` for a column that has none.
    #[must_use]
    pub fn column(&self, column: Column) -> Option<&[Option<u64>]> {
        self.columns.get(column.name()).map(Vec::as_slice)
    }

    /// Adds a slice.
    pub fn push(&mut self, start_ns: u64, length_ns: u64, figures: &Figures) {
        for column in Column::ALL {
            let figure = figures.of(column);
            match self.columns.get_mut(column.name()) {
                Some(slices) => slices.push(figure),
                None if figure.is_some() => {
                    let mut slices = vec![None; self.len()];
                    slices.push(figure);
                    self.columns.insert(column.name().to_owned(), slices);
                }
                None => {}
            }
        }
        self.start_ns.push(start_ns);
        self.length_ns.push(length_ns);
    }

    /// Makes one slice of every two neighbours, from the first on.
    ///
    /// A missing figure is as if it were not there: the neighbour's stays.
    pub fn merge_neighbours(&mut self) {
        self.start_ns = self.start_ns.chunks(2).map(|pair| pair[0]).collect();
        let length = |pair: &[u64]| pair.iter().fold(0, |sum: u64, &length| sum.saturating_add(length));
        self.length_ns = self.length_ns.chunks(2).map(length).collect();
        for (name, slices) in &mut self.columns {
            let column = Column::ALL.into_iter().find(|column| column.name() == name);
            // Of a column that we do not know, the first figure says something at least.
            let fold = column.map_or(Fold::Maximum, Column::fold);
            let merge = |pair: &[Option<u64>]| {
                pair.iter().flatten().copied().reduce(|first, second| match fold {
                    Fold::Sum => first.saturating_add(second),
                    Fold::Maximum => first.max(second),
                    Fold::Minimum => first.min(second),
                })
            };
            *slices = slices.chunks(2).map(merge).collect();
        }
    }

    /// Whether every column has a figure or its lack for each slice, which a damaged file may not.
    #[must_use]
    pub fn is_consistent(&self) -> bool {
        let slices = self.len();
        self.length_ns.len() == slices && self.columns.values().all(|column| column.len() == slices)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figures(figures: &[(Column, u64)]) -> Figures {
        let mut all = Figures::default();
        for &(column, figure) in figures {
            all.set(column, Some(figure));
        }
        all
    }

    #[test]
    fn names_are_distinct_and_columns_are_in_their_places() {
        let names: std::collections::BTreeSet<&str> = Column::ALL.map(Column::name).into();
        assert_eq!(names.len(), Column::COUNT);
        for (place, column) in Column::ALL.into_iter().enumerate() {
            assert_eq!(column as usize, place);
            assert!(["target_", "host_"].iter().any(|scope| column.name().starts_with(scope)));
        }
    }

    #[test]
    fn neighbours_add_up_and_gauges_keep_their_extremes() {
        use Column::{HostMemoryAvailable, TargetCpuUser, TargetRead, TargetRss};
        let mut timeline = Timeline::default();
        let slices = [(5, 10, 90, None), (7, 30, 80, Some(3)), (1, 20, 70, None)];
        for (slice, (cpu, rss, available, read)) in (0..).zip(slices) {
            let mut slice_figures =
                figures(&[(TargetCpuUser, cpu), (TargetRss, rss), (HostMemoryAvailable, available)]);
            slice_figures.set(TargetRead, read);
            timeline.push(slice * 100, 100 - slice, &slice_figures);
        }
        assert_eq!(timeline.column(TargetRead), Some([None, Some(3), None].as_slice()));
        assert!(timeline.is_consistent());
        timeline.merge_neighbours();
        assert!(timeline.is_consistent());
        assert_eq!(
            (timeline.start_ns.as_slice(), timeline.length_ns.as_slice()),
            ([0, 200].as_slice(), [199, 98].as_slice())
        );
        assert_eq!(timeline.column(TargetCpuUser), Some([Some(12), Some(1)].as_slice()));
        assert_eq!(timeline.column(TargetRss), Some([Some(30), Some(20)].as_slice()));
        assert_eq!(timeline.column(HostMemoryAvailable), Some([Some(80), Some(70)].as_slice()));
        assert_eq!(timeline.column(TargetRead), Some([Some(3), None].as_slice()));
        assert_eq!(timeline.column(Column::TargetThreads), None);
    }
}
