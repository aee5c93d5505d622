//! What became of every hit of a probe, in the form the outputs show.

use std::collections::BTreeMap;

use profiler_common::counters::{Class, Counters, Outcome};
use serde::{Deserialize, Serialize};

/// The accounting of one origin, in events.
///
/// `hits = filtered + idle + sampled_out + complete + sum(truncated) + sum(lost)`, for the sample as a whole and for its `user` and
/// `kernel` chains apart; `expected = hits + not_delivered`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Accounting {
    /// Events there should have been while CPUs were busy. Of the CPU clock: hits, and the periods that passed between
    /// two of them while one task ran all the time. Of cycles: the kernel's count divided by the mean period.
    pub expected: f64,
    /// Times the program ran.
    pub hits: u64,
    /// Hits on tasks that were not asked for.
    pub filtered: u64,
    /// Hits on the idle task.
    pub idle: u64,
    /// Hits left out by chance, others counting for them; 0 for an origin that keeps all.
    #[serde(default)]
    pub sampled_out: u64,
    /// Samples of which nothing is missing.
    pub complete: u64,
    /// Samples in the profile with a chain cut short or lost, by reason.
    pub truncated: BTreeMap<String, u64>,
    /// Samples that are not in the profile, by reason.
    pub lost: BTreeMap<String, u64>,
    /// `expected - hits`: events the kernel counted and did not deliver (timer ticks skipped while interrupts were off
    /// or the virtual machine was stopped, events throttled). May be a few below zero: a late hit makes the next one
    /// look early.
    pub not_delivered: f64,
    /// Periods of the CPU clock by the events' own count, on busy and idle CPUs; 0 for an event whose period varies.
    #[serde(default)]
    pub periods: u64,
    /// Periods that passed while CPUs were idle, by the idle time the kernel keeps: roughly
    /// `periods = hits + idle_periods + not_delivered`.
    #[serde(default)]
    pub idle_periods: u64,
    /// The user chains.
    pub user: ChainAccounting,
    /// The kernel chains.
    pub kernel: ChainAccounting,
}

/// The accounting of one of a sample's chains, in samples.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChainAccounting {
    /// Chains walked to their root, or with nothing to walk.
    pub complete: u64,
    /// Chains cut short, by reason.
    pub truncated: BTreeMap<String, u64>,
    /// Chains lost, by reason.
    pub lost: BTreeMap<String, u64>,
}

impl ChainAccounting {
    fn new(outcomes: &[u64; Outcome::COUNT]) -> Self {
        let mut accounting = Self::default();
        for (outcome, &count) in Outcome::ALL.into_iter().zip(outcomes) {
            match outcome.class() {
                Class::Complete => accounting.complete += count,
                Class::Truncated if count > 0 => drop(accounting.truncated.insert(outcome.name().to_owned(), count)),
                Class::Lost if count > 0 => drop(accounting.lost.insert(outcome.name().to_owned(), count)),
                Class::Truncated | Class::Lost => {}
            }
        }
        accounting
    }

    /// Chains in all.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.complete + self.truncated.values().sum::<u64>() + self.lost.values().sum::<u64>()
    }
}

impl Accounting {
    /// `counters`: summed over CPUs and windows; `expected`: in events.
    #[must_use]
    pub fn new(counters: &Counters, expected: f64) -> Self {
        let mut accounting = Self {
            expected,
            hits: counters.hits,
            filtered: counters.filtered,
            idle: counters.idle,
            sampled_out: counters.sampled_out,
            #[expect(clippy::cast_precision_loss, reason = "counts of samples are far below 2^53")]
            not_delivered: expected - counters.hits as f64,
            user: ChainAccounting::new(&counters.user),
            kernel: ChainAccounting::new(&counters.kernel),
            ..Self::default()
        };
        for (outcome, &count) in Outcome::ALL.into_iter().zip(&counters.whole) {
            if outcome == Outcome::Complete {
                accounting.complete = count;
            } else if count > 0 {
                let reasons = if outcome.loses_record() { &mut accounting.lost } else { &mut accounting.truncated };
                reasons.insert(outcome.name().to_owned(), count);
            }
        }
        accounting
    }

    /// Samples in the profile.
    #[must_use]
    pub fn samples(&self) -> u64 {
        self.complete + self.truncated.values().sum::<u64>()
    }

    /// Samples lost, for whatever reason.
    #[must_use]
    pub fn samples_lost(&self) -> u64 {
        self.lost.values().sum()
    }

    /// Whether every hit is accounted for, for the sample and for both of its chains.
    #[must_use]
    pub fn adds_up(&self) -> bool {
        let apart = self.filtered + self.idle + self.sampled_out;
        [self.samples() + self.samples_lost(), self.user.total(), self.kernel.total()]
            .into_iter()
            .all(|total| total + apart == self.hits)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lost_chain_truncates_the_sample_and_a_lost_record_loses_it() {
        let mut counters = Counters { hits: 6, filtered: 2, idle: 1, ..Counters::default() };
        counters.whole[Outcome::Complete as usize] = 1;
        counters.whole[Outcome::RingFull as usize] = 1;
        counters.whole[Outcome::MapFull as usize] = 1;
        counters.user[Outcome::Complete as usize] = 1;
        counters.user[Outcome::RingFull as usize] = 1;
        counters.user[Outcome::MapFull as usize] = 1;
        counters.kernel[Outcome::Complete as usize] = 2;
        counters.kernel[Outcome::MapFull as usize] = 1;
        let accounting = Accounting::new(&counters, 6.5);
        assert!(accounting.adds_up());
        assert_eq!(accounting.samples(), 2);
        assert_eq!(accounting.truncated["ring_full"], 1);
        assert_eq!(accounting.lost["map_full"], 1);
        assert_eq!(accounting.user.lost["ring_full"], 1);
        assert!((accounting.not_delivered - 0.5).abs() < 1e-9);
    }
}
