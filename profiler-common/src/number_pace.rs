//! How events are chosen by their number, where there are too many to walk the stacks of all.

use crate::wait::Cell;

/// Events of one kind that one CPU is to keep in [`SLOT_NS`], at most: as many as of waits. Walking the stacks of so many
/// takes up to a fiftieth of its time.
pub const KEPT_IN_A_SLOT: u64 = 2_000;

/// After so long at the latest, the weight is made to fit what came.
pub const SLOT_NS: u64 = 1_000_000_000;

/// No event counts for more.
pub const MOST_WEIGHT: u64 = 1 << 20;

/// How one CPU chooses among the events of one kind: an element of the `NUMBER_PACE` map.
///
/// Of `weight` events that follow each other one is kept, by chance, and counts for all of them. The weight is 1, so that
/// every event is in the profile, until there are more than [`KEPT_IN_A_SLOT`] in a slot of time.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NumberPace {
    /// When this slot of time began.
    pub slot_ns: u64,
    /// Events kept in it.
    pub kept: u64,
    /// Events that a kept one counts for; 0 before the first.
    pub weight: u64,
    /// The most events that one counted for, by its weight and its period.
    pub highest_weight: u64,
    /// Where the CPU is among as many events as the weight.
    pub cell: Cell,
}

/// What chooses by number: elements of the `NUMBER_PACE` map.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Chosen {
    /// Faults without input or output.
    MinorFaults = 0,
    /// Faults with.
    MajorFaults = 1,
    /// Requests to block devices.
    BlockIo = 2,
    /// Operations on files.
    FileIo = 3,
    /// Messages of sockets.
    Net = 4,
    /// Threads that make pages dirty or wait for a block device: whose stacks are walked. Each counts for itself, walked or not.
    BlockOthers = 5,
}

impl Chosen {
    /// How many there are.
    pub const COUNT: usize = 6;
}

impl NumberPace {
    /// Goes over one event; returns how many it counts for, 0 when it is left out.
    ///
    /// `period`: how many it stands for already; `chance` gives any number, `now` the time. The clock is read only where an
    /// event is kept.
    #[inline(always)]
    pub fn step(&mut self, period: u64, chance: impl Fn() -> u32, now: impl FnOnce() -> u64) -> u64 {
        let weight = if self.weight == 0 { 1 } else { self.weight };
        let points = if weight == 1 { 1 } else { self.cell.step(1, weight, chance) };
        if points == 0 {
            return 0;
        }
        self.kept += 1;
        self.follow(weight, now());
        if weight * period > self.highest_weight {
            self.highest_weight = weight * period;
        }
        points * weight * period
    }

    /// Makes the weight fit what came, at the end of a slot.
    #[inline(always)]
    fn follow(&mut self, weight: u64, now: u64) {
        let elapsed = now - self.slot_ns;
        if self.kept < KEPT_IN_A_SLOT && elapsed < SLOT_NS {
            self.weight = weight;
            return;
        }
        // As many events came as the kept ones stand for. Checked, so that no panic gets into a program.
        let fitting = (weight * self.kept * (SLOT_NS / KEPT_IN_A_SLOT)).checked_div(elapsed).unwrap_or(MOST_WEIGHT);
        let fitting = if fitting < 1 { 1 } else { fitting };
        self.weight = if fitting > MOST_WEIGHT { MOST_WEIGHT } else { fitting };
        self.slot_ns = now;
        self.kept = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::cell::Cell as Shared;

    /// Events that came and that the kept ones stand for, and how many were kept, at an even rate for a while.
    fn run(pace: &mut NumberPace, clock: &mut u64, state: &Shared<u64>, events: u64, gap_ns: u64) -> (u64, u64) {
        // Knuth's MMIX generator, the high half.
        let chance = || {
            state.set(state.get().wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407));
            (state.get() >> 32) as u32
        };
        let (mut sum, mut kept) = (0, 0);
        for _ in 0..events {
            *clock += gap_ns;
            let counts_for = pace.step(1, chance, || *clock);
            sum += counts_for;
            kept += u64::from(counts_for > 0);
        }
        (sum, kept)
    }

    #[test]
    fn few_events_are_all_kept_and_many_add_up() {
        let (mut pace, mut clock, state) = (NumberPace::default(), 5 * SLOT_NS, Shared::new(42));
        assert_eq!(run(&mut pace, &mut clock, &state, 1_900, 1_000), (1_900, 1_900));
        clock += 10 * SLOT_NS;
        assert_eq!(run(&mut pace, &mut clock, &state, 10_000, 1_000_000), (10_000, 10_000));
        let (sum, kept) = run(&mut pace, &mut clock, &state, 5_000_000, 1_000);
        assert!(sum.abs_diff(5_000_000) <= pace.highest_weight, "{sum} {pace:?}");
        // Five seconds, and what it takes to notice.
        assert!(kept < 7 * KEPT_IN_A_SLOT, "{kept} {pace:?}");
        // Calm again: the next that is kept makes it so.
        clock += 100 * SLOT_NS;
        let (sum, _) = run(&mut pace, &mut clock, &state, 20_000, 1_000_000);
        assert!(sum.abs_diff(20_000) <= pace.highest_weight, "{sum} {pace:?}");
        assert_eq!(run(&mut pace, &mut clock, &state, 1_000, 1_000_000), (1_000, 1_000));
    }

    #[test]
    fn the_layout_has_no_hidden_padding() {
        assert_eq!(size_of::<NumberPace>(), 40);
    }
}
