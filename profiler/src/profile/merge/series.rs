//! What captures have slice by slice, one behind the other, in no more slices than one capture may have.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap};

use crate::profile::{Column, Fold, FunctionSlice, FunctionSlices, IoCell, IoLatency, MAX_SLICES, Timeline};

/// Most slices of functions' values: a variance needs dozens.
const MAX_FUNCTION_SLICES: usize = 256;
/// Most functions that are followed.
const MAX_FUNCTIONS: usize = 300;
/// Functions that are kept until it is known which have most.
const MAX_CANDIDATES: usize = 4 * MAX_FUNCTIONS;

/// The number of the longer slice that each slice becomes part of: of `most` slices of equal length, those that have nothing
/// left out. `start_ns`: ascending.
fn longer(start_ns: &[u64], length_ns: &[u64], most: usize) -> Vec<usize> {
    let first = start_ns.first().copied().unwrap_or(0);
    let end = start_ns.last().zip(length_ns.last()).map_or(0, |(start, length)| start.saturating_add(*length));
    let length = end.saturating_sub(first).div_ceil(most as u64).max(1);
    let (mut place, mut last) = (0, 0);
    let number = |(index, start): (usize, &u64)| {
        let slot = start.saturating_sub(first) / length;
        if index > 0 && slot != last {
            place += 1;
        }
        last = slot;
        place
    };
    start_ns.iter().enumerate().map(number).collect()
}

/// Starts of the longer slices, and their lengths: of those that are in them, so that gaps are in none.
fn lengthen(start_ns: &mut Vec<u64>, length_ns: &mut Vec<u64>, places: &[usize]) {
    let count = places.last().map_or(0, |place| place + 1);
    let (mut starts, mut lengths) = (vec![u64::MAX; count], vec![0_u64; count]);
    for ((start, length), &place) in start_ns.iter().zip(length_ns.iter()).zip(places) {
        starts[place] = starts[place].min(*start);
        lengths[place] = lengths[place].saturating_add(*length);
    }
    (*start_ns, *length_ns) = (starts, lengths);
}

/// Puts a timeline behind another, `offset_ns` after that began.
pub(super) fn add_timeline(sum: &mut Timeline, mut other: Timeline, offset_ns: u64) {
    let before = sum.len();
    let names: BTreeSet<String> = sum.columns.keys().chain(other.columns.keys()).cloned().collect();
    for name in names {
        let of_other = other.columns.remove(&name);
        let column = sum.columns.entry(name).or_default();
        column.resize(before, None);
        column.extend(of_other.unwrap_or_default());
        column.resize(before + other.start_ns.len(), None);
    }
    sum.start_ns.extend(other.start_ns.iter().map(|start| start.saturating_add(offset_ns)));
    sum.length_ns.extend(&other.length_ns);
    if sum.len() > 2 * MAX_SLICES {
        shorten_timeline(sum, MAX_SLICES);
    }
}

/// Makes longer slices until there are no more than `most`.
pub(super) fn shorten_timeline(timeline: &mut Timeline, most: usize) {
    if timeline.len() <= most {
        return;
    }
    let places = longer(&timeline.start_ns, &timeline.length_ns, most);
    lengthen(&mut timeline.start_ns, &mut timeline.length_ns, &places);
    let count = timeline.start_ns.len();
    for (name, slices) in &mut timeline.columns {
        // Of a column that we do not know, the greatest figure says something at least.
        let fold = Column::ALL.into_iter().find(|column| column.name() == name).map_or(Fold::Maximum, Column::fold);
        let mut folded: Vec<Option<u64>> = vec![None; count];
        for (figure, &place) in slices.iter().zip(&places) {
            let Some(figure) = *figure else { continue };
            let one = &mut folded[place];
            *one = Some(match (*one, fold) {
                (None, _) => figure,
                (Some(sum), Fold::Sum) => sum.saturating_add(figure),
                (Some(sum), Fold::Maximum) => sum.max(figure),
                (Some(sum), Fold::Minimum) => sum.min(figure),
            });
        }
        *slices = folded;
    }
}

/// Puts latencies behind others, `offset_ns` after those began.
pub(super) fn add_latency(sum: &mut IoLatency, other: IoLatency, offset_ns: u64) {
    let before = u32::try_from(sum.start_ns.len()).unwrap_or(u32::MAX);
    sum.start_ns.extend(other.start_ns.iter().map(|start| start.saturating_add(offset_ns)));
    sum.length_ns.extend(&other.length_ns);
    sum.cells.extend(other.cells.into_iter().map(|cell| IoCell { slice: cell.slice.saturating_add(before), ..cell }));
    if sum.start_ns.len() > 2 * MAX_SLICES {
        shorten_latency(sum, MAX_SLICES);
    }
}

/// Makes longer slices until there are no more than `most`.
pub(super) fn shorten_latency(latency: &mut IoLatency, most: usize) {
    if latency.start_ns.len() <= most {
        return;
    }
    let places = longer(&latency.start_ns, &latency.length_ns, most);
    lengthen(&mut latency.start_ns, &mut latency.length_ns, &places);
    for cell in &mut latency.cells {
        cell.slice = places.get(cell.slice as usize).and_then(|&place| u32::try_from(place).ok()).unwrap_or(0);
    }
    latency.sum_up();
}

/// Functions' values by slice, one capture's behind the other's.
#[derive(Default)]
pub(super) struct Functions {
    length_ns: Vec<u64>,
    totals: Vec<u64>,
    /// Own and total values by name and object.
    functions: HashMap<(String, String), [Vec<u64>; 2]>,
}

impl Functions {
    /// Adds the slices of a capture. A function that is not followed in it has nothing there.
    pub(super) fn add(&mut self, slices: FunctionSlices) {
        let before = self.length_ns.len();
        self.length_ns.extend(slices.length_ns);
        self.totals.extend(slices.totals);
        for function in slices.functions {
            let values = self.functions.entry((function.function, function.object)).or_default();
            for (values, more) in values.iter_mut().zip([function.self_values, function.total_values]) {
                values.resize(before, 0);
                values.extend(more);
            }
        }
        let count = self.length_ns.len();
        self.functions.values_mut().flatten().for_each(|values| values.resize(count, 0));
        if count > 2 * MAX_FUNCTION_SLICES {
            self.shorten();
        }
        if self.functions.len() > 2 * MAX_CANDIDATES {
            self.keep_most(MAX_CANDIDATES);
        }
    }

    fn shorten(&mut self) {
        let mut end = 0_u64;
        let mut starts: Vec<u64> = Vec::with_capacity(self.length_ns.len());
        for length in &self.length_ns {
            starts.push(end);
            end = end.saturating_add(*length);
        }
        let places = longer(&starts, &self.length_ns, MAX_FUNCTION_SLICES);
        lengthen(&mut starts, &mut self.length_ns, &places);
        let count = starts.len();
        for values in self.functions.values_mut().flatten().chain([&mut self.totals]) {
            let mut sums = vec![0_u64; count];
            values.iter().zip(&places).for_each(|(value, &place)| sums[place] = sums[place].saturating_add(*value));
            *values = sums;
        }
    }

    fn keep_most(&mut self, most: usize) {
        let mut order: Vec<_> = std::mem::take(&mut self.functions).into_iter().collect();
        order.sort_by_cached_key(|(name, [_, totals])| (Reverse(totals.iter().sum::<u64>()), name.clone()));
        order.truncate(most);
        self.functions = order.into_iter().collect();
    }

    /// The functions that have most, most first.
    pub(super) fn finish(mut self) -> FunctionSlices {
        if self.length_ns.len() > MAX_FUNCTION_SLICES {
            self.shorten();
        }
        let mut order: Vec<_> = self.functions.into_iter().collect();
        order.sort_by_cached_key(|(name, [_, totals])| (Reverse(totals.iter().sum::<u64>()), name.clone()));
        order.truncate(MAX_FUNCTIONS);
        let functions = order.into_iter().map(|((function, object), [self_values, total_values])| FunctionSlice {
            function,
            object,
            self_values,
            total_values,
        });
        FunctionSlices { length_ns: self.length_ns, totals: self.totals, functions: functions.collect() }
    }
}

/// Warnings, each once, with how many captures had it.
#[derive(Default)]
pub(super) struct Warnings(BTreeMap<String, (usize, u64, String)>);

/// Most warnings that are kept.
const MAX_WARNINGS: usize = 100;

impl Warnings {
    /// Adds what a capture warns of: warnings that differ in their numbers alone are one, of which the last is told.
    pub(super) fn add(&mut self, warnings: Vec<String>) {
        for warning in warnings {
            let (text, times) = counted(&warning);
            let alike = text.replace(|c: char| c.is_ascii_digit(), "");
            let order = self.0.len();
            if let Some((_, count, last)) = self.0.get_mut(&alike) {
                *count = count.saturating_add(times);
                text.clone_into(last);
            } else if order < MAX_WARNINGS {
                self.0.insert(alike, (order, times, text.to_owned()));
            }
        }
    }

    /// In the order in which they came.
    pub(super) fn finish(self) -> Vec<String> {
        let mut warnings: Vec<_> = self.0.into_values().collect();
        warnings.sort();
        let told =
            |(_, count, text): (usize, u64, String)| if count > 1 { format!("{text}{AGAIN}{count})") } else { text };
        warnings.into_iter().map(told).collect()
    }
}

/// What follows a warning that came several times.
const AGAIN: &str = " (windows with such a warning: ";

/// A warning without how many captures had it, and that number.
fn counted(warning: &str) -> (&str, u64) {
    let split = warning.strip_suffix(')').and_then(|warning| warning.rsplit_once(AGAIN));
    split.and_then(|(text, count)| Some((text, count.parse().ok()?))).unwrap_or((warning, 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slices_grow_longer_and_keep_their_sums_and_extremes() {
        let mut sum = Timeline::default();
        let capture = |value: u64| Timeline {
            start_ns: (0..100).map(|slice| slice * 10).collect(),
            length_ns: vec![10; 100],
            columns: [
                (Column::HostForks.name().to_owned(), vec![Some(value); 100]),
                (Column::TargetRss.name().to_owned(), (0..100).map(|slice| Some(value * slice)).collect()),
            ]
            .into(),
        };
        for number in 0..100 {
            // With a gap as long as a capture between any two.
            add_timeline(&mut sum, capture(number), number * 2_000);
            assert!(sum.is_consistent() && sum.len() <= 2 * MAX_SLICES);
        }
        shorten_timeline(&mut sum, 50);
        assert!(sum.is_consistent() && (25..=50).contains(&sum.len()), "{}", sum.len());
        let forks: u64 = sum.column(Column::HostForks).into_iter().flatten().flatten().sum();
        assert_eq!(forks, (0..100).map(|number| 100 * number).sum::<u64>());
        let rss = sum.column(Column::TargetRss).into_iter().flatten().flatten().max();
        assert_eq!(rss, Some(&(99 * 99)));
        assert_eq!(sum.length_ns.iter().sum::<u64>(), 100 * 1_000);
        assert!(sum.start_ns.is_sorted());
    }

    #[test]
    fn a_column_that_one_capture_lacks_has_no_figures_there() {
        let capture = |column: Column| Timeline {
            start_ns: vec![0],
            length_ns: vec![10],
            columns: [(column.name().to_owned(), vec![Some(1)])].into(),
        };
        let mut sum = capture(Column::HostForks);
        add_timeline(&mut sum, capture(Column::TargetRss), 10);
        assert_eq!(sum.column(Column::HostForks), Some([Some(1), None].as_slice()));
        assert_eq!(sum.column(Column::TargetRss), Some([None, Some(1)].as_slice()));
    }

    #[test]
    fn functions_keep_their_values() {
        let mut sum = Functions::default();
        let capture = |name: &str| FunctionSlices {
            length_ns: vec![10; 7],
            totals: vec![5; 7],
            functions: vec![FunctionSlice {
                function: name.to_owned(),
                object: String::new(),
                self_values: vec![1; 7],
                total_values: vec![2; 7],
            }],
        };
        for number in 0..200 {
            sum.add(capture(if number % 2 == 0 { "a" } else { "b" }));
        }
        let sum = sum.finish();
        assert!(sum.is_sound());
        assert!(sum.length_ns.len() <= MAX_FUNCTION_SLICES, "{}", sum.length_ns.len());
        assert_eq!((sum.length_ns.iter().sum::<u64>(), sum.totals.iter().sum::<u64>()), (200 * 70, 200 * 35));
        for function in &sum.functions {
            let sums = [&function.self_values, &function.total_values].map(|values| values.iter().sum::<u64>());
            assert_eq!(sums, [700, 1400], "{}", function.function);
        }
    }

    #[test]
    fn warnings_come_once() {
        let mut sum = Warnings::default();
        sum.add(vec!["12 events were lost".to_owned(), "other".to_owned()]);
        sum.add(vec!["15 events were lost".to_owned()]);
        let sum = sum.finish();
        assert_eq!(sum, ["15 events were lost (windows with such a warning: 2)", "other"]);
        let mut again = Warnings::default();
        again.add(sum);
        again.add(vec!["3 events were lost".to_owned()]);
        assert_eq!(again.finish(), ["3 events were lost (windows with such a warning: 3)", "other"]);
    }
}
