//! How long windows stay as they were recorded: which of them become one, and when.

use std::time::Duration;

use super::window::{WindowInfo, WindowKey};

/// From an age on, windows are as long as this.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Level {
    /// Time since the end of the newest window.
    pub after: Duration,
    /// Length of windows that are so old: windows within one such length, counted from the Unix epoch, become one.
    pub length: Duration,
}

/// One minute after an hour, ten minutes after a day, an hour after a week.
pub const LEVELS: [Level; 3] = [
    Level { after: Duration::from_secs(3600), length: Duration::from_secs(60) },
    Level { after: Duration::from_secs(24 * 3600), length: Duration::from_secs(600) },
    Level { after: Duration::from_secs(7 * 24 * 3600), length: Duration::from_secs(3600) },
];

/// The next windows that become one, two at least, each where the one before it ends: what was not recorded is in no window.
/// `windows`: ascending by start. `None`: every window is as long as it should be.
///
/// Windows that are kept for an alert stay as they are.
pub(super) fn next_merge(windows: &[&WindowInfo], levels: &[Level]) -> Option<Vec<WindowKey>> {
    let now_ns = windows.iter().map(|window| window.key.end_ns()).max()?;
    for level in levels.iter().rev() {
        let length_ns = nanoseconds(level.length).max(1);
        let oldest_ns = now_ns.saturating_sub(nanoseconds(level.after));
        let slot = |window: &WindowInfo| window.key.started_at_ns / length_ns;
        // The whole slot must be old enough, or a window would be merged again and again.
        let is_meant = |window: &WindowInfo| {
            !window.kept
                && window.key.duration_ns < length_ns
                && slot(window).saturating_add(1).saturating_mul(length_ns) <= oldest_ns
        };
        let mut group: Vec<&WindowInfo> = Vec::new();
        for window in windows.iter().filter(|window| is_meant(window)) {
            let follows = group.last().is_none_or(|last| {
                last.key.run == window.key.run
                    && last.key.end_ns() == window.key.started_at_ns
                    && slot(last) == slot(window)
            });
            if !follows {
                if group.len() > 1 {
                    break;
                }
                group.clear();
            }
            group.push(window);
        }
        if group.len() > 1 {
            return Some(group.into_iter().map(|window| window.key).collect());
        }
    }
    None
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn window(start_s: u64, length_s: u64, run: u32) -> WindowInfo {
        WindowInfo {
            key: WindowKey { started_at_ns: start_s * SECOND, duration_ns: length_s * SECOND, run },
            bytes: 1,
            kept: false,
            target: String::new(),
            origins: BTreeMap::new(),
            processes: Vec::new(),
            figures: BTreeMap::new(),
            cost_ns: 0,
        }
    }

    /// Merges until nothing is left to be merged.
    fn settled(mut windows: Vec<WindowInfo>, levels: &[Level]) -> Vec<WindowInfo> {
        for _ in 0..100_000 {
            let found = next_merge(&windows.iter().collect::<Vec<_>>(), levels);
            let Some(group) = found else { return windows };
            let (first, last) = (group[0], group[group.len() - 1]);
            windows.retain(|window| !group.contains(&window.key));
            windows.push(window(
                first.started_at_ns / SECOND,
                (last.end_ns() - first.started_at_ns) / SECOND,
                first.run,
            ));
            windows.sort_by_key(|window| window.key);
        }
        panic!("merging does not end");
    }

    #[test]
    fn older_windows_are_longer_and_nothing_is_lost() {
        // Nine days of windows of 10 s, recorded from 5 s past a full hour.
        let first = 450_000 * 3600 + 5;
        let count = 9 * 8640;
        let mut windows: Vec<WindowInfo> = Vec::new();
        for number in 0..count {
            windows.push(window(first + number * 10, 10, 1));
            // As the daemon does: a step at a time; the settling of each would take too long here.
            if number % 2160 == 2159 {
                windows = settled(windows, &LEVELS);
            }
        }
        let end = first + count * 10;
        assert!(windows.windows(2).all(|pair| pair[0].key.end_ns() == pair[1].key.started_at_ns));
        let covered: u64 = windows.iter().map(|window| window.key.duration_ns).sum();
        assert_eq!(covered, count * 10 * SECOND);
        for window in &windows {
            let (age, length) = (end - window.key.end_ns() / SECOND, window.key.duration_ns / SECOND);
            let longest = if age < 3600 - 60 {
                10
            } else if age < 86_400 - 600 {
                60
            } else {
                3600
            };
            assert!(length <= longest, "{length} s at an age of {age} s");
        }
        assert!(windows.len() < 360 + 23 * 60 + 6 * 144 + 2 * 24 + 200, "{}", windows.len());
    }

    #[test]
    fn gaps_other_runs_and_kept_windows_end_a_group() {
        let levels = [Level { after: Duration::from_secs(100), length: Duration::from_secs(60) }];
        let newest = window(1000, 10, 9);
        let with = |windows: &[WindowInfo]| {
            let mut all = windows.to_vec();
            all.push(newest.clone());
            settled(all, &levels).len() - 1
        };
        assert_eq!(with(&[window(0, 10, 1), window(10, 10, 1), window(20, 10, 1)]), 1);
        // A gap, another run, another slot, a window that is kept.
        assert_eq!(with(&[window(0, 10, 1), window(11, 10, 1), window(21, 10, 1)]), 2);
        assert_eq!(with(&[window(0, 10, 1), window(10, 10, 2), window(20, 10, 2)]), 2);
        assert_eq!(with(&[window(40, 10, 1), window(50, 10, 1), window(60, 10, 1)]), 2);
        let kept = WindowInfo { kept: true, ..window(10, 10, 1) };
        assert_eq!(with(&[window(0, 10, 1), kept, window(20, 10, 1)]), 3);
        // Not old enough.
        assert_eq!(with(&[window(900, 10, 1), window(910, 10, 1)]), 2);
    }
}
