//! The timeline as people read it: what is shown together, in which measure, and its extremes.
//!
//! The chart and the table in the report are both made of [`PANELS`].

use super::numbers::{bytes, count, float};
use crate::profile::{Column, Timeline};

/// A slice this short says nothing about a rate: CPU time is counted in ticks of 10 ms.
const SHORT_NS: u64 = 100_000_000;

/// How figures are shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Measure {
    /// Time by time: CPUs in use.
    Cpus,
    /// Time by time, in per cent.
    Percent,
    /// Bytes a second.
    BytesPerSecond,
    /// Events a second.
    PerSecond,
    /// Bytes that there are.
    Bytes,
    /// Things that there are.
    Count,
}

/// A line of the chart.
#[derive(Debug)]
pub(super) struct Series {
    /// What it is.
    pub(super) label: &'static str,
    /// What is added up for it.
    columns: &'static [Column],
    /// How it is shown.
    pub(super) measure: Measure,
    /// Whether it is in the table of the report too.
    pub(super) is_main: bool,
}

/// Lines that share a scale.
#[derive(Debug)]
pub(super) struct Panel {
    /// What it shows, with the unit.
    pub(super) title: &'static str,
    /// Its lines, four at most.
    pub(super) series: &'static [Series],
}

const fn main(label: &'static str, columns: &'static [Column], measure: Measure) -> Series {
    Series { label, columns, measure, is_main: true }
}

const fn detail(label: &'static str, columns: &'static [Column], measure: Measure) -> Series {
    Series { label, columns, measure, is_main: false }
}

/// What is shown, from top to bottom.
pub(super) const PANELS: [Panel; 11] = [
    Panel {
        title: "CPUs in use",
        series: &[
            main("target", &[Column::TargetCpuUser, Column::TargetCpuSystem], Measure::Cpus),
            detail("target, in the kernel", &[Column::TargetCpuSystem], Measure::Cpus),
            main("host", &[Column::HostCpuUser, Column::HostCpuSystem, Column::HostCpuIrq], Measure::Cpus),
            detail("stolen by the hypervisor", &[Column::HostCpuSteal], Measure::Cpus),
        ],
    },
    Panel {
        title: "Memory of the target",
        series: &[
            main("resident", &[Column::TargetRss], Measure::Bytes),
            main("charged to the cgroup", &[Column::TargetMemory], Measure::Bytes),
            detail("in use, allocated while recording", &[Column::TargetLive], Measure::Bytes),
            detail("swapped out", &[Column::TargetSwap], Measure::Bytes),
        ],
    },
    Panel {
        title: "Allocated, bytes a second of the target",
        series: &[main("allocated", &[Column::TargetAllocated], Measure::BytesPerSecond)],
    },
    Panel {
        title: "Threads of the target",
        series: &[
            main("threads", &[Column::TargetThreads], Measure::Count),
            main("processes", &[Column::TargetProcesses], Measure::Count),
        ],
    },
    Panel {
        title: "Descriptors of the target",
        series: &[main("open descriptors", &[Column::TargetDescriptors], Measure::Count)],
    },
    Panel {
        title: "Storage, bytes a second of the target",
        series: &[
            main("read", &[Column::TargetRead], Measure::BytesPerSecond),
            main("written", &[Column::TargetWritten], Measure::BytesPerSecond),
        ],
    },
    Panel {
        title: "Faults a second of the target",
        series: &[
            detail("minor", &[Column::TargetMinorFaults], Measure::PerSecond),
            main("major", &[Column::TargetMajorFaults], Measure::PerSecond),
        ],
    },
    Panel {
        title: "Cgroup: % of the time",
        series: &[
            main("waited for a CPU", &[Column::TargetPressureCpuSome], Measure::Percent),
            main("waited for I/O", &[Column::TargetPressureIoSome], Measure::Percent),
            main("waited for memory", &[Column::TargetPressureMemorySome], Measure::Percent),
            main("throttled, all threads added up", &[Column::TargetThrottled], Measure::Percent),
        ],
    },
    Panel {
        title: "Pressure on the host, % of the time",
        series: &[
            main("a task waited for a CPU", &[Column::HostPressureCpuSome], Measure::Percent),
            main("for I/O", &[Column::HostPressureIoSome], Measure::Percent),
            main("for memory", &[Column::HostPressureMemorySome], Measure::Percent),
        ],
    },
    Panel {
        title: "Memory of the host",
        series: &[
            main("available", &[Column::HostMemoryAvailable], Measure::Bytes),
            detail("page cache", &[Column::HostMemoryCached], Measure::Bytes),
            main("swap in use", &[Column::HostSwapUsed], Measure::Bytes),
        ],
    },
    Panel {
        title: "Tasks of the host",
        series: &[
            main("run or wait for a CPU", &[Column::HostRunnable], Measure::Count),
            detail("wait for I/O", &[Column::HostBlocked], Measure::Count),
        ],
    },
];

impl Measure {
    const fn is_rate(self) -> bool {
        !matches!(self, Self::Bytes | Self::Count)
    }

    /// A value with its unit, where that is not the panel's.
    pub(super) fn text(self, value: f64) -> String {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "saturating, and shown rounded")]
        let whole = value.round() as u64;
        match self {
            Self::Cpus => format!("{value:.2}"),
            Self::Percent => format!("{value:.1} %"),
            Self::BytesPerSecond => format!("{}/s", bytes(whole)),
            Self::PerSecond => format!("{}/s", count(whole)),
            Self::Bytes => bytes(whole),
            Self::Count => count(whole),
        }
    }
}

/// Extremes and mean of a series.
#[derive(Debug)]
pub(super) struct Extremes {
    pub(super) least: f64,
    /// Weighted by the length of slices.
    pub(super) mean: f64,
    pub(super) most: f64,
    pub(super) last: f64,
}

impl Series {
    /// The values by slice; `None` where a figure is missing, or the slice is too short for a rate.
    pub(super) fn values(&self, timeline: &Timeline) -> Vec<Option<f64>> {
        let mut sums: Vec<Option<u64>> = vec![Some(0); timeline.len()];
        for &column in self.columns {
            let Some(figures) = timeline.column(column) else { return vec![None; timeline.len()] };
            for (sum, figure) in sums.iter_mut().zip(figures) {
                *sum = sum.zip(*figure).map(|(sum, figure)| sum.saturating_add(figure));
            }
        }
        let is_short = timeline.length_ns.iter().all(|&length| length < SHORT_NS);
        let value = |(sum, &length): (Option<u64>, &u64)| {
            let value = float(sum?);
            if self.measure.is_rate() && (length == 0 || (length < SHORT_NS && !is_short)) {
                return None;
            }
            Some(match self.measure {
                Measure::Cpus => value / float(length),
                Measure::Percent => value / float(length) * 100.0,
                Measure::BytesPerSecond | Measure::PerSecond => value / float(length) * 1e9,
                Measure::Bytes | Measure::Count => value,
            })
        };
        sums.into_iter().zip(&timeline.length_ns).map(value).collect()
    }

    /// `None` without a value.
    pub(super) fn extremes(&self, timeline: &Timeline) -> Option<Extremes> {
        let values = self.values(timeline);
        let there =
            || values.iter().zip(&timeline.length_ns).filter_map(|(value, &length)| Some(((*value)?, float(length))));
        let (last, _) = there().next_back()?;
        let (sum, weight) =
            there().fold((0.0, 0.0), |(sum, weight), (value, length)| (sum + value * length, weight + length));
        Some(Extremes {
            least: there().map(|(value, _)| value).fold(f64::INFINITY, f64::min),
            mean: if weight > 0.0 { sum / weight } else { last },
            most: there().map(|(value, _)| value).fold(0.0, f64::max),
            last,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::profile::Figures;

    fn timeline(slices: &[(u64, Option<u64>, Option<u64>)]) -> Timeline {
        let mut timeline = Timeline::default();
        let mut start = 0;
        for &(length, cpu, rss) in slices {
            let mut figures = Figures::default();
            figures.set(Column::TargetCpuSystem, cpu);
            figures.set(Column::TargetRss, rss);
            timeline.push(start, length, &figures);
            start += length;
        }
        timeline
    }

    #[test]
    fn rates_leave_short_slices_out_and_gauges_do_not() {
        const SECOND: u64 = 1_000_000_000;
        let slices = [(2 * SECOND, Some(SECOND), Some(5)), (SECOND, None, Some(9)), (SECOND, Some(SECOND), None)];
        let short = (1_000_000, Some(10_000_000), Some(7));
        let timeline = timeline(&[slices[0], slices[1], slices[2], short]);
        let cpu = detail("", &[Column::TargetCpuSystem], Measure::Cpus);
        assert_eq!(cpu.values(&timeline), [Some(0.5), None, Some(1.0), None]);
        let extremes = cpu.extremes(&timeline).unwrap();
        assert_eq!((extremes.least, extremes.most, extremes.last), (0.5, 1.0, 1.0));
        assert!((extremes.mean - 2.0 / 3.0).abs() < 1e-9);
        let rss = detail("", &[Column::TargetRss], Measure::Bytes);
        assert_eq!(rss.values(&timeline), [Some(5.0), Some(9.0), None, Some(7.0)]);
        assert_eq!(rss.extremes(&timeline).unwrap().last, 7.0);
        let both = detail("", &[Column::TargetCpuSystem, Column::TargetCpuUser], Measure::Cpus);
        assert!(both.extremes(&timeline).is_none());
    }

    #[test]
    fn a_recording_that_was_short_as_a_whole_has_rates() {
        let timeline = timeline(&[(50_000_000, Some(25_000_000), None)]);
        let cpu = detail("", &[Column::TargetCpuSystem], Measure::Cpus);
        assert_eq!(cpu.values(&timeline), [Some(0.5)]);
    }

    #[test]
    fn panels_have_at_most_four_lines_of_one_kind() {
        for panel in &PANELS {
            assert!((1..=4).contains(&panel.series.len()), "{}", panel.title);
            assert!(panel.series.iter().all(|series| series.measure == panel.series[0].measure), "{}", panel.title);
        }
    }
}
