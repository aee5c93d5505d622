//! Where a metric goes over many captures.

use super::significance::two_sided;
use crate::profile::{Direction, Trend};

/// Newest points that a trend is of.
const MAX_POINTS: usize = 50;
/// Points that a trend needs.
const LEAST_POINTS: usize = 10;
/// Change over all points, as a part of the mean, from which on it counts.
const LEAST_CHANGE: f64 = 0.05;
/// Chance of a slope that is none.
const SIGNIFICANCE: f64 = 0.05;

/// The trend of points: start of the capture, ns since the Unix epoch, and value.
#[must_use]
pub fn trend(metric: &str, unit: &str, mut points: Vec<(u64, f64)>, higher_is_better: bool) -> Trend {
    points.sort_by(|a, b| a.0.cmp(&b.0).then(a.1.total_cmp(&b.1)));
    points.drain(..points.len().saturating_sub(MAX_POINTS));
    let mut trend = Trend {
        metric: metric.to_owned(),
        unit: unit.to_owned(),
        points,
        change: 0.0,
        p_value: 1.0,
        direction: Direction::Insufficient,
    };
    let count = trend.points.len();
    if count < LEAST_POINTS {
        return trend;
    }
    #[expect(clippy::cast_precision_loss, reason = "50 at most")]
    let float = |number: usize| number as f64;
    // By their number, not by time: captures of one day count as much as those of a month.
    let (middle, n) = (float(count - 1) / 2.0, float(count));
    let mean = trend.points.iter().map(|(_, value)| value).sum::<f64>() / n;
    let places = || (0..count).map(float).zip(trend.points.iter().map(|(_, value)| *value));
    let squares: f64 = places().map(|(place, _)| (place - middle).powi(2)).sum();
    let slope = places().map(|(place, value)| (place - middle) * (value - mean)).sum::<f64>() / squares;
    let residuals: f64 = places().map(|(place, value)| (value - mean - slope * (place - middle)).powi(2)).sum();
    let error = (residuals / (n - 2.0) / squares).sqrt();
    trend.change = if mean == 0.0 { 0.0 } else { slope * (n - 1.0) / mean.abs() };
    trend.p_value = match (slope, error) {
        (0.0, _) => 1.0,
        (_, 0.0) => 0.0,
        _ => two_sided(slope / error, n - 2.0),
    };
    let counts = trend.change.abs() >= LEAST_CHANGE && trend.p_value < SIGNIFICANCE;
    trend.direction = match counts {
        false => Direction::Stable,
        true if (trend.change > 0.0) == higher_is_better => Direction::Improving,
        true => Direction::Degrading,
    };
    trend
}

#[cfg(test)]
mod tests {
    use super::*;

    fn direction(values: impl Iterator<Item = f64>, higher_is_better: bool) -> Direction {
        trend("x", "", (0..).zip(values).collect(), higher_is_better).direction
    }

    #[test]
    fn a_trend_needs_points_a_slope_and_no_chance() {
        let noise = |place: u32| f64::from(place * 7919 % 13) / 13.0 - 0.5;
        assert_eq!(direction((0..9).map(f64::from), false), Direction::Insufficient);
        assert_eq!(direction((0..20).map(|_| 5.0), false), Direction::Stable);
        assert_eq!(direction((0..20).map(|place| 100.0 + 40.0 * noise(place)), false), Direction::Stable);
        assert_eq!(
            direction((0..20).map(|place| 100.0 + f64::from(place) + noise(place)), false),
            Direction::Degrading
        );
        assert_eq!(direction((0..20).map(|place| 100.0 + f64::from(place) + noise(place)), true), Direction::Improving);
        // Less than a twentieth.
        assert_eq!(direction((0..20).map(|place| 1000.0 + f64::from(place)), false), Direction::Stable);
    }

    #[test]
    fn only_the_newest_points_count() {
        let values = (0..80).map(|place| if place < 30 { 1000.0 } else { 100.0 });
        assert_eq!(direction(values, false), Direction::Stable);
    }
}
