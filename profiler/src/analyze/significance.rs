//! How much of a difference is chance: variances from slices and from repetitions, and the test.
//!
//! Samples are not independent of each other: a program has phases, and a machine has neighbours. So the variance is
//! measured on the slices of a recording, in blocks of several lengths, and never taken to be that of a Poisson process
//! where there are slices; that is only its lower limit.

use statrs::distribution::{ContinuousCDF, StudentsT};

/// A rate: a value by unit of work, with what is known of its error.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Rate {
    /// The value by unit of work.
    pub(super) mean: f64,
    /// Variance of `mean`.
    pub(super) variance: f64,
    /// Degrees of freedom of `variance`.
    pub(super) freedom: f64,
}

/// Blocks that a recording is cut into, in slices: if neighbours go together, longer blocks vary more than shorter ones.
const BLOCKS: [usize; 3] = [1, 2, 4];
/// Least number of blocks that a variance is estimated from.
const LEAST_BLOCKS: usize = 8;
/// Variance of a count for each event, where a recording has no slices: what programs with phases have been seen to have.
pub(super) const ASSUMED_DISPERSION: f64 = 4.0;
/// Degrees of freedom of an assumption: few, so that it takes more to believe it.
const ASSUMED_FREEDOM: f64 = 5.0;

/// Variance of the sum of a value, from its slices.
///
/// `values`: by slice; `lengths`: of the slices, in any unit. By the ratio estimator (Cochran, Sampling Techniques,
/// chapter 6): slices need not be of one length. `None`: there are too few of them.
pub(super) fn variance_of_sum(values: &[u64], lengths: &[u64]) -> Option<(f64, f64)> {
    let (sum, length) = (total(values), total(lengths));
    if length <= 0.0 {
        return None;
    }
    let rate = sum / length;
    let mut largest: Option<(f64, f64)> = None;
    for block in BLOCKS {
        let residuals = values.chunks_exact(block).zip(lengths.chunks_exact(block));
        let residuals: Vec<f64> = residuals.map(|(values, lengths)| total(values) - rate * total(lengths)).collect();
        if residuals.len() < LEAST_BLOCKS {
            break;
        }
        let blocks = float(residuals.len());
        let squares: f64 = residuals.iter().map(|residual| residual * residual).sum();
        // What the last, incomplete block has is as variable as the rest.
        let scale = float(values.len()) / (blocks * float(block));
        let variance = squares * blocks / (blocks - 1.0) * scale;
        if largest.is_none_or(|(most, _)| variance > most) {
            largest = Some((variance, blocks - 1.0));
        }
    }
    largest
}

/// One recording's part in a rate.
#[derive(Clone, Copy, Debug)]
pub(super) struct Part {
    /// The value.
    pub(super) value: f64,
    /// Its variance and the degrees of freedom of that; `None` where there are no slices.
    pub(super) variance: Option<(f64, f64)>,
    /// What the variance is at least: that of independent events.
    pub(super) least: f64,
    /// What one event comes to, in the value's unit.
    pub(super) event: f64,
    /// Units of work.
    pub(super) work: f64,
}

/// The rate of one side. `run_noise`: deviation between recordings, in the unit of the rate, that is taken for granted where it
/// cannot be measured.
pub(super) fn rate(parts: &[Part], run_noise: impl Fn(f64) -> f64) -> Rate {
    let sum = |of: &dyn Fn(&Part) -> f64| parts.iter().map(of).sum::<f64>();
    let work = sum(&|part| part.work).max(f64::MIN_POSITIVE);
    let mean = sum(&|part| part.value) / work;
    let mut within = 0.0;
    let mut freedom = 0.0;
    for part in parts {
        let (variance, of) =
            part.variance.unwrap_or((part.value.max(part.event) * part.event * ASSUMED_DISPERSION, ASSUMED_FREEDOM));
        within += variance.max(part.least);
        freedom += of;
    }
    within /= work * work;
    let count = float(parts.len());
    if parts.len() >= 3 {
        // Measured between recordings, each weighted by its work: that has what varies within them in it.
        let squares: f64 = parts.iter().map(|part| (part.value - mean * part.work).powi(2)).sum();
        let between = squares * count / (count - 1.0);
        let least: f64 = parts.iter().map(|part| part.least).sum();
        return Rate { mean, variance: between.max(least) / (work * work), freedom: count - 1.0 };
    }
    Rate { mean, variance: within + run_noise(mean).powi(2) / count.max(1.0), freedom }
}

/// Standard error of the difference of two rates and its degrees of freedom (Welch and Satterthwaite).
pub(super) fn error_of_difference(before: Rate, after: Rate) -> (f64, f64) {
    let variance = before.variance + after.variance;
    let part = |rate: Rate| rate.variance * rate.variance / rate.freedom.max(1.0);
    let parts = part(before) + part(after);
    let freedom = if parts > 0.0 { variance * variance / parts } else { 1.0 };
    (variance.sqrt(), freedom.clamp(1.0, 1e6))
}

/// The chance that `t` is as far from 0 as this or farther, on its side.
pub(super) fn one_sided(t: f64, freedom: f64) -> f64 {
    match StudentsT::new(0.0, 1.0, freedom) {
        Ok(distribution) if t.is_finite() => distribution.sf(t.abs()).clamp(0.0, 0.5),
        _ => 1.0,
    }
}

/// As [`one_sided`], on either side.
pub(super) fn two_sided(t: f64, freedom: f64) -> f64 {
    (2.0 * one_sided(t, freedom)).min(1.0)
}

/// Half of the interval that a sum is in 19 times in 20, by its variance.
pub(super) fn half_width(variance: f64, freedom: f64) -> f64 {
    match StudentsT::new(0.0, 1.0, freedom) {
        Ok(distribution) => distribution.inverse_cdf(0.975) * variance.sqrt(),
        Err(_) => f64::INFINITY,
    }
}

/// How many standard errors a difference must have to be found four times in five, among `tested` hypotheses.
pub(super) fn detectable(significance: f64, tested: usize, freedom: f64) -> f64 {
    const POWER: f64 = 0.8;
    let Ok(distribution) = StudentsT::new(0.0, 1.0, freedom) else { return f64::INFINITY };
    let each = significance / float(tested.max(1));
    distribution.inverse_cdf(1.0 - each) + distribution.inverse_cdf(POWER)
}

/// Corrects for the number of hypotheses (Holm 1979): the chance that any is wrongly taken for a change stays what was
/// asked for, whatever depends on what.
pub(super) fn holm(p_values: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..p_values.len()).collect();
    order.sort_by(|&a, &b| p_values[a].total_cmp(&p_values[b]));
    let mut corrected = vec![1.0; p_values.len()];
    let mut least: f64 = 0.0;
    for (rank, index) in order.into_iter().enumerate() {
        least = least.max((p_values[index] * float(p_values.len() - rank)).min(1.0));
        corrected[index] = least;
    }
    corrected
}

/// The sum of values, which a damaged file may make larger than 64 bits.
#[expect(clippy::cast_precision_loss, reason = "sums of counts, of which few digits matter")]
pub(super) fn total(values: &[u64]) -> f64 {
    values.iter().map(|&value| value as f64).sum()
}

#[expect(clippy::cast_precision_loss, reason = "numbers of slices and functions")]
const fn float(number: usize) -> f64 {
    number as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn near(found: f64, expected: f64, tolerance: f64) {
        assert!((found - expected).abs() < tolerance, "{found}, expected {expected}");
    }

    #[test]
    fn probabilities_are_those_of_the_tables() {
        near(two_sided(2.228, 10.0), 0.05, 1e-4);
        near(two_sided(1.96, 1e6), 0.05, 1e-4);
        near(two_sided(0.0, 3.0), 1.0, 1e-12);
        // 3.169 and 0.879 of Student's distribution with 10 degrees of freedom.
        near(detectable(0.005, 1, 10.0), 3.169 + 0.879, 2e-3);
        assert!(detectable(0.01, 100, 10.0) > detectable(0.01, 10, 10.0));
        assert_eq!(two_sided(f64::NAN, 3.0), 1.0);
    }

    #[test]
    fn holm_multiplies_the_smallest_most() {
        let corrected = holm(&[0.04, 0.001, 0.02]);
        near(corrected[1], 0.003, 1e-12);
        near(corrected[2], 0.04, 1e-12);
        near(corrected[0], 0.04, 1e-12);
        assert!(holm(&[]).is_empty());
        assert_eq!(holm(&[0.9, 0.8]), [1.0, 1.0]);
    }

    #[test]
    fn phases_make_the_variance_larger_than_chance() {
        let lengths = [1; 64];
        // Independent of each other, of variance 1 each.
        let steady: Vec<u64> = (0..64).map(|slice| 100 + 2 * (slice * 37 % 64 / 32)).collect();
        let (variance, freedom) = variance_of_sum(&steady, &lengths).unwrap();
        assert!((32.0..160.0).contains(&variance) && freedom >= 7.0, "{variance} {freedom}");
        // The same values in runs of four: sums of blocks vary four times as much.
        let phases: Vec<u64> = (0..64).map(|slice| 100 + 2 * (slice / 4 % 2)).collect();
        let (of_phases, _) = variance_of_sum(&phases, &lengths).unwrap();
        near(of_phases / 64.0, 4.0, 0.5);
        assert_eq!(variance_of_sum(&[5; 7], &[1; 7]), None);
        assert_eq!(variance_of_sum(&[], &[]), None);
    }

    #[test]
    fn a_longer_slice_is_not_taken_for_a_change() {
        let lengths: Vec<u64> = (1..=20).collect();
        let values: Vec<u64> = lengths.iter().map(|length| length * 50).collect();
        near(variance_of_sum(&values, &lengths).unwrap().0, 0.0, 1e-9);
    }

    #[test]
    fn recordings_that_differ_say_more_than_their_slices() {
        let part = |value| Part { value, variance: Some((1.0, 50.0)), least: 0.0, event: 0.0, work: 1.0 };
        let rate_of = |values: [f64; 3]| rate(&values.map(part), |_| 0.0);
        near(rate_of([100.0, 100.0, 100.0]).variance, 0.0, 1e-9);
        // The variance of the mean of three that deviate by 10.
        let far = rate_of([90.0, 100.0, 110.0]);
        near(far.variance, 100.0 / 3.0, 1e-9);
        near(far.freedom, 2.0, 1e-9);
        // What cannot be measured is assumed.
        let alone = rate(&[part(100.0)], |mean| mean * 0.02);
        near(alone.variance, 1.0 + 4.0, 1e-9);
        let without = rate(&[Part { variance: None, event: 2.0, ..part(100.0) }], |_| 0.0);
        near(without.variance, 200.0 * ASSUMED_DISPERSION, 1e-9);
    }

    #[test]
    fn the_error_of_a_difference_is_that_of_both() {
        let rate = |variance, freedom| Rate { mean: 1.0, variance, freedom };
        let (error, freedom) = error_of_difference(rate(9.0, 10.0), rate(16.0, 10.0));
        near(error, 5.0, 1e-9);
        near(freedom, 625.0 / 33.7, 1e-9);
        assert_eq!(error_of_difference(rate(0.0, 1.0), rate(0.0, 1.0)), (0.0, 1.0));
    }
}
