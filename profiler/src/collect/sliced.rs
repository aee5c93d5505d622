//! The stacks of a recording by slices of time, so that it can be told how much a function's share varies.
//!
//! A slice is a window; when there are too many, each takes in its neighbour. So the memory that is used follows from how
//! many stacks there are, not from how long the recording takes.

use std::time::Duration;

use hashbrown::HashMap;

use crate::profile::StackId;

/// Most slices: a variance needs dozens, and twice as many say no more.
const MAX_SLICES: usize = 64;

/// Values of one origin's stacks by slice.
#[derive(Clone, Debug, Default)]
pub(super) struct SlicedStacks {
    /// By stack and slice.
    values: HashMap<(StackId, u32), u64>,
    /// When each slice ended that has ended.
    ends: Vec<Duration>,
    /// Windows that make a slice, as a power of two.
    doublings: u32,
    /// Windows since the last slice ended.
    windows: u32,
}

impl SlicedStacks {
    /// Adds a value to a stack in the slice that goes on.
    pub(super) fn add(&mut self, stack: StackId, value: u64) {
        // There are `MAX_SLICES` at most.
        let slice = u32::try_from(self.ends.len()).unwrap_or(u32::MAX);
        *self.values.entry((stack, slice)).or_default() += value;
    }

    /// Ends a window. `elapsed`: since the start of the recording.
    pub(super) fn end_window(&mut self, elapsed: Duration) {
        self.windows += 1;
        if self.windows < 1 << self.doublings {
            return;
        }
        self.windows = 0;
        self.ends.push(elapsed);
        if self.ends.len() < MAX_SLICES {
            return;
        }
        self.ends = self.ends.chunks(2).filter_map(|pair| pair.last()).copied().collect();
        self.doublings += 1;
        for ((stack, slice), value) in std::mem::take(&mut self.values) {
            *self.values.entry((stack, slice / 2)).or_default() += value;
        }
    }

    /// Lengths of the slices in ns, and the values by stack and slice. `duration`: of the recording.
    pub(super) fn finish(mut self, duration: Duration) -> (Vec<u64>, HashMap<(StackId, u32), u64>) {
        // What came after the last window belongs to a slice of its own, unless that is a fragment.
        let rest = duration.saturating_sub(self.ends.last().copied().unwrap_or_default());
        let usual = self.ends.first().copied().unwrap_or_default();
        if self.ends.is_empty() || rest > usual / 2 {
            self.ends.push(duration);
        } else if let Some(last) = self.ends.last_mut() {
            *last = duration.max(*last);
        }
        let last = u32::try_from(self.ends.len() - 1).unwrap_or(u32::MAX);
        let mut values = HashMap::with_capacity(self.values.len());
        for ((stack, slice), value) in self.values {
            *values.entry((stack, slice.min(last))).or_default() += value;
        }
        let mut start = Duration::ZERO;
        let lengths = self.ends.into_iter().map(|end| {
            let length = u64::try_from(end.saturating_sub(start).as_nanos()).unwrap_or(u64::MAX);
            start = end;
            length
        });
        (lengths.collect(), values)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slices_double_and_lose_nothing() {
        for seconds in [0, 1, 3, 119, 120, 121, 1000] {
            let mut sliced = SlicedStacks::default();
            for second in 1..=seconds {
                sliced.add(1, 10);
                sliced.add(2, second);
                sliced.end_window(Duration::from_secs(second));
            }
            sliced.add(1, 1);
            let (lengths, values) = sliced.finish(Duration::from_millis(seconds * 1000 + 100));
            assert!((1..=MAX_SLICES).contains(&lengths.len()), "{seconds}: {}", lengths.len());
            assert_eq!(lengths.iter().sum::<u64>(), seconds * 1_000_000_000 + 100_000_000);
            let of = |stack| values.iter().filter(|((of, _), _)| *of == stack).map(|(_, value)| value).sum::<u64>();
            assert_eq!((of(1), of(2)), (seconds * 10 + 1, (1..=seconds).sum()));
            assert!(values.keys().all(|&(_, slice)| (slice as usize) < lengths.len()));
        }
    }
}
