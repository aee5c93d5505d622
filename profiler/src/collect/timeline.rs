//! Takes the slices of a recording's timeline: reads what the target and the host have used so far, and keeps the
//! difference to the reading before.
//!
//! A slice ends with a window, after that was drained. It is never taken more often than it costs a fiftieth of the
//! time, so that a host on which /proc is slow gets longer slices, not later windows.

mod accounts;
mod cgroup;
mod host;
mod targets;

use std::time::{Duration, Instant};

use self::host::HostFiles;
use self::targets::Targets;
use super::processes::Processes;
use super::target::TargetSelection;
use crate::profile::{Column, Figures, Fold, MAX_SLICES, Timeline};

/// Length of a slice while there are few.
const SLICE: Duration = Duration::from_secs(1);

/// A window that is this much too early is left to the next slice; Python's first window is.
const TOO_EARLY: Duration = Duration::from_millis(500);

/// Time between two readings, in times that the last one took.
const LEAST_PAUSE: u32 = 50;

/// The timeline of a recording that runs.
#[derive(Debug)]
pub(super) struct Slices {
    timeline: Timeline,
    host: HostFiles,
    targets: Targets,
    /// What is counted from the start on, as it was last read.
    before: Figures,
    /// Figures for the next slice that others know.
    told: Vec<(Column, Option<u64>)>,
    /// Start of the first slice and end of the last one, since the start of the recording.
    began: Duration,
    end: Duration,
    /// Length of a slice by now.
    length: Duration,
    /// When the next slice may end.
    due: Duration,
}

impl Default for Slices {
    /// Of nothing.
    fn default() -> Self {
        Self {
            timeline: Timeline::default(),
            host: HostFiles::default(),
            targets: Targets::of_nobody(),
            before: Figures::default(),
            told: Vec::new(),
            began: Duration::ZERO,
            end: Duration::ZERO,
            length: SLICE,
            due: SLICE.saturating_sub(TOO_EARLY),
        }
    }
}

impl Slices {
    /// Reads what there is when a recording begins.
    pub(super) fn begin(selection: &TargetSelection, processes: &Processes) -> Self {
        let mut slices =
            Self { host: HostFiles::open(), targets: Targets::new(selection, processes), ..Self::default() };
        slices.before = slices.read(processes);
        // Counted by ourselves, from now on.
        slices.before.set(Column::TargetAllocated, Some(0));
        slices
    }

    /// Takes what others know of the time until now, for the slice that ends next: what was counted since the start of the
    /// recording, or what there is.
    pub(super) fn tell(&mut self, figures: impl IntoIterator<Item = (Column, Option<u64>)>) {
        self.told.clear();
        self.told.extend(figures);
    }

    /// Ends a slice if it is long enough. `elapsed`: since the start of the recording.
    pub(super) fn end_window(&mut self, elapsed: Duration, processes: &Processes) {
        if elapsed >= self.due {
            self.end_slice(elapsed, processes);
        }
    }

    /// Ends a slice. `elapsed`: since the start of the recording.
    pub(super) fn end_slice(&mut self, elapsed: Duration, processes: &Processes) {
        if elapsed <= self.end {
            return;
        }
        let began = Instant::now();
        let now = self.read(processes);
        let figures = difference(&mut self.before, &now);
        let start = nanoseconds(self.end) - nanoseconds(self.began);
        self.timeline.push(start, nanoseconds(elapsed) - nanoseconds(self.end), &figures);
        if self.timeline.len() > MAX_SLICES {
            self.timeline.merge_neighbours();
            self.length *= 2;
        }
        self.end = elapsed;
        self.due = elapsed + self.length.saturating_sub(TOO_EARLY).max(began.elapsed() * LEAST_PAUSE);
    }

    /// What the last slice had, and its length; nothing where there was none.
    pub(super) fn last(&self) -> (Figures, Duration) {
        let mut figures = Figures::default();
        for column in Column::ALL {
            figures.set(column, self.timeline.column(column).and_then(|slices| slices.last().copied().flatten()));
        }
        (figures, Duration::from_nanos(self.timeline.length_ns.last().copied().unwrap_or(0)))
    }

    /// What a reader must know.
    pub(super) fn warning(&self) -> Option<String> {
        self.targets.warning()
    }

    /// The processes of the target that were there when a slice last ended.
    pub(super) fn members(&self) -> impl Iterator<Item = u32> {
        self.targets.members()
    }

    /// The slices since the last call, by the time since then.
    pub(super) fn take_timeline(&mut self) -> Timeline {
        (self.began, self.length) = (self.end, SLICE);
        self.before.set(Column::TargetAllocated, Some(0));
        std::mem::take(&mut self.timeline)
    }

    fn read(&mut self, processes: &Processes) -> Figures {
        let mut figures = Figures::default();
        let has_swap = self.host.read(&mut figures);
        self.targets.read(processes, has_swap, &mut figures);
        for (column, figure) in self.told.drain(..) {
            figures.set(column, figure);
        }
        figures
    }
}

/// The figures of a slice. `before`: the reading that ended the slice before; it becomes what the next one begins with.
///
/// What is counted must not go back, and where the kernel lets it (iowait), the slice has 0 until it has caught up.
fn difference(before: &mut Figures, now: &Figures) -> Figures {
    let mut figures = Figures::default();
    for column in Column::ALL {
        let (then, read) = (before.of(column), now.of(column));
        figures.set(
            column,
            match column.fold() {
                Fold::Sum => read.zip(then).map(|(read, then)| read.saturating_sub(then)),
                Fold::Maximum | Fold::Minimum => read,
            },
        );
        // `None` is less than any figure.
        before.set(column, then.max(read));
    }
    figures
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::collect::processes::Interest;

    #[test]
    fn slices_add_up_to_the_whole_whatever_was_missing() {
        let (counter, gauge) = (Column::HostCpuIowait, Column::TargetRss);
        let mut before = Figures::default();
        let mut sum = 0;
        let readings = [Some(100), Some(130), Some(120), None, Some(125), Some(150), Some(150)];
        let mut found = Vec::new();
        for reading in readings {
            let mut now = Figures::default();
            now.set(counter, reading);
            now.set(gauge, reading);
            let figures = difference(&mut before, &now);
            sum += figures.of(counter).unwrap_or(0);
            found.push(figures.of(counter));
            assert_eq!(figures.of(gauge), reading);
        }
        assert_eq!(found, [None, Some(30), Some(0), None, Some(0), Some(20), Some(0)]);
        assert_eq!(sum, 50);
    }

    #[test]
    fn a_slice_is_taken_when_it_is_due_and_they_meet() {
        let processes = Processes::new(Interest::Named);
        let mut slices = Slices::begin(&TargetSelection::Host, &processes);
        let at = Duration::from_millis;
        slices.end_window(at(200), &processes);
        slices.end_window(at(1200), &processes);
        slices.due = at(1700);
        slices.end_window(at(1600), &processes);
        slices.end_window(at(2200), &processes);
        slices.end_slice(at(2300), &processes);
        slices.end_slice(at(2300), &processes);
        let timeline = slices.take_timeline();
        assert_eq!(timeline.start_ns, [0, 1_200_000_000, 2_200_000_000]);
        assert_eq!(timeline.length_ns, [1_200_000_000, 1_000_000_000, 100_000_000]);
        assert!(timeline.is_consistent());
        assert!(timeline.column(Column::HostMemoryFree).unwrap().iter().all(Option::is_some));
        assert_eq!(timeline.column(Column::TargetCpuUser), None);
    }

    #[test]
    fn a_long_recording_has_longer_slices() {
        let mut slices = Slices::default();
        let processes = Processes::new(Interest::Named);
        for second in 1..=9_000 {
            slices.end_window(Duration::from_secs(second), &processes);
        }
        slices.end_slice(Duration::from_secs(9_001), &processes);
        let timeline = slices.take_timeline();
        assert!((1_800..=MAX_SLICES).contains(&timeline.len()), "{}", timeline.len());
        assert_eq!(timeline.length_ns.iter().sum::<u64>(), 9_001_000_000_000);
        // Of an odd number the last one stays alone.
        let others = timeline.length_ns.iter().filter(|&&length| length != 4_000_000_000).count();
        assert!(others <= 3 && timeline.length_ns.iter().all(|&length| length <= 4_000_000_000), "{others}");
        let ends = timeline.start_ns.iter().zip(&timeline.length_ns).map(|(start, length)| start + length);
        assert!(ends.zip(&timeline.start_ns[1..]).all(|(end, &start)| end == start));
    }
}
