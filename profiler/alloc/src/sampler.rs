//! Which allocations are chosen, and what each of them stands for.

use std::cell::Cell;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

/// Mean distance of points, bytes, unless it is set: what jemalloc and tcmalloc use by default. The relative error of what a
/// stack allocates is about the square root of this by its bytes.
pub(crate) const DEFAULT_PERIOD: usize = 512 << 10;

/// Least distance that may be set: below it, announcing takes more time than the program.
const LEAST_PERIOD: usize = 1 << 10;

/// The distance that is used.
static PERIOD: AtomicUsize = AtomicUsize::new(DEFAULT_PERIOD);

/// Where a thread is between two points.
struct Position {
    /// Bytes up to the next point; 0 before there is one.
    left: Cell<usize>,
    /// State of the thread's numbers; 0 before there is one.
    random: Cell<u64>,
}

thread_local! {
    static POSITION: Position = const { Position { left: Cell::new(0), random: Cell::new(0) } };
}

/// Sets the mean distance of points, bytes.
#[cfg_attr(not(feature = "preload"), allow(dead_code, reason = "a global allocator has the default"))]
pub(crate) fn set_period(bytes: usize) {
    PERIOD.store(bytes.max(LEAST_PERIOD), Ordering::Relaxed);
}

/// Goes on by an allocation; whether there was no point in it.
#[inline(always)]
pub(crate) fn passes(size: usize) -> bool {
    POSITION.with(|position| {
        let left = position.left.get();
        let passes = size < left;
        if passes {
            position.left.set(left - size);
        }
        passes
    })
}

/// The bytes that an allocation stands for which has not passed; `None` where it is a thread's first and has no point either.
#[cold]
pub(crate) fn choose(size: usize) -> Option<u64> {
    let period = period();
    POSITION.with(|position| {
        let mut random = position.random.get();
        let is_first = random == 0;
        if is_first {
            random = seed((&raw const *position).addr());
        }
        let mut left = distance(&mut random, period);
        if is_first && size >= left {
            position.left.set(distance(&mut random, period));
            position.random.set(random);
            return Some(weight(size, period));
        }
        if is_first {
            left -= size;
        }
        position.left.set(left);
        position.random.set(random);
        (!is_first).then(|| weight(size, period))
    })
}

#[expect(clippy::cast_precision_loss, reason = "a mean")]
fn period() -> f64 {
    PERIOD.load(Ordering::Relaxed) as f64
}

/// Distance to the next point: exponentially distributed, at least 1.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "positive, and less than 40 times the period"
)]
fn distance(random: &mut u64, period: f64) -> usize {
    (-chance(random).ln() * period).ceil().max(1.0) as usize
}

/// What an allocation with a point stands for: its size by the probability that it has one. Source: D. G. Horvitz and D. J.
/// Thompson, "A generalization of sampling without replacement", 1952.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss, reason = "an estimate")]
fn weight(size: usize, period: f64) -> u64 {
    let size = size as f64;
    // exp_m1 is right where the size is small beside the period, as it mostly is.
    (size / -(-size / period).exp_m1()).round() as u64
}

/// A number above 0 and up to 1. Source: G. Marsaglia, "Xorshift RNGs", 2003, with a multiplier (xorshift64*).
fn chance(random: &mut u64) -> f64 {
    *random ^= *random >> 12;
    *random ^= *random << 25;
    *random ^= *random >> 27;
    #[expect(clippy::cast_precision_loss, reason = "53 bits")]
    let number = ((random.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 11) + 1) as f64;
    number / (1_u64 << 53) as f64
}

/// Another state for each thread of each process. Never 0. Source: S. Vigna, splitmix64.
fn seed(address: usize) -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_nanos());
    #[expect(clippy::cast_possible_truncation, reason = "the low digits are those that differ")]
    let mut state = (now as u64) ^ (address as u64).rotate_left(32);
    state = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    state = (state ^ (state >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    (state ^ (state >> 31)) | 1
}

/// Makes what this thread chooses the same each time.
#[cfg(test)]
pub(crate) fn restart(random: u64) {
    POSITION.with(|position| {
        position.random.set(random);
        position.left.set(distance(&mut { random }, period()));
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What allocations of a size are said to be, by what they are, and how many were chosen.
    fn estimate(size: usize, allocations: usize) -> (f64, usize) {
        restart(0x9e37_79b9_7f4a_7c15);
        let (mut sum, mut chosen) = (0, 0);
        for _ in 0..allocations {
            if !passes(size) {
                sum += choose(size).expect("it is not the first");
                chosen += 1;
            }
        }
        #[expect(clippy::cast_precision_loss, reason = "a ratio")]
        let ratio = sum as f64 / (size * allocations) as f64;
        (ratio, chosen)
    }

    #[test]
    fn what_is_chosen_stands_for_all_whatever_the_size() {
        for (size, allocations) in [(24, 40_000_000), (1 << 10, 4_000_000), (100 << 10, 40_000), (1 << 20, 10_000)] {
            let (ratio, chosen) = estimate(size, allocations);
            // Four standard errors, and a little for what is rounded.
            #[expect(clippy::cast_precision_loss, reason = "some thousands")]
            let most = 4.0 / (chosen as f64).sqrt() + 1e-3;
            assert!((ratio - 1.0).abs() < most, "{size}: {ratio} of {chosen}");
        }
    }

    #[test]
    fn what_is_large_beside_the_period_is_nearly_always_chosen_with_its_own_size() {
        let (_, chosen) = estimate(8 << 20, 1_000);
        assert_eq!(chosen, 1_000);
        assert_eq!(weight(64 << 20, period()), 64 << 20);
        // One byte stands for the period, or half a byte more.
        assert!(weight(1, period()).abs_diff(DEFAULT_PERIOD as u64) <= 1);
    }

    #[test]
    fn the_first_allocation_of_a_thread_is_chosen_no_more_often_than_others() {
        let chosen =
            (0..200).filter(|_| std::thread::spawn(|| !passes(64) && choose(64).is_some()).join().unwrap_or(false));
        assert!(chosen.count() <= 3);
    }

    #[test]
    fn nothing_and_all_there_is_can_be_asked_for() {
        restart(7);
        assert!(passes(0));
        assert!(!passes(usize::MAX));
        assert!(choose(usize::MAX).is_some_and(|weight| weight > 1 << 62));
    }
}
