//! Moments and ranges of time as a person writes them.

use jiff::civil::{DateTime, Time};
use jiff::tz::TimeZone;
use jiff::{Timestamp, ToSpan as _, Zoned};

use crate::daemon::store::Range;

/// What is accepted, for errors and help.
pub(super) const FORMS: &str = "use 14:05, 14:05:30, 2026-11-22T14:05 (local time), an RFC 3339 time, -5m or now";

/// A moment, ns since the Unix epoch.
///
/// `14:05` is the last such time of the day in the time zone of `now`, so never in the future.
pub(super) fn parse(text: &str, now: &Zoned) -> Result<u64, String> {
    let wrong = || format!("{text:?} is no moment: {FORMS}");
    if text == "now" {
        return nanoseconds(now.timestamp()).ok_or_else(wrong);
    }
    if let Some(ago) = text.strip_prefix('-') {
        let ago = super::args::parse_duration(ago).map_err(|error| format!("{text:?}: {error}"))?;
        let ago = jiff::SignedDuration::try_from(ago).map_err(|_| wrong())?;
        let moment = now.timestamp().checked_sub(ago).map_err(|_| wrong())?;
        return nanoseconds(moment).ok_or_else(wrong);
    }
    if let Ok(moment) = text.parse::<Timestamp>() {
        return nanoseconds(moment).ok_or_else(wrong);
    }
    let local = |civil: DateTime| civil.to_zoned(now.time_zone().clone()).map_err(|_| wrong());
    // Only a time, where that is unambiguous: `14` could be anything.
    if let Ok(time) = Time::strptime("%H:%M:%S", text).or_else(|_| Time::strptime("%H:%M", text)) {
        let mut moment = local(now.date().to_datetime(time))?;
        if moment > *now {
            moment = moment.checked_sub(1.day()).map_err(|_| wrong())?;
        }
        return nanoseconds(moment.timestamp()).ok_or_else(wrong);
    }
    let civil: DateTime = text.parse().map_err(|_| wrong())?;
    nanoseconds(local(civil)?.timestamp()).ok_or_else(wrong)
}

/// A range, as `FROM..TO`.
pub(super) fn parse_range(text: &str, now: &Zoned) -> Result<Range, String> {
    let (from, to) =
        text.split_once("..").ok_or_else(|| format!("{text:?} is no range: use FROM..TO, as 14:05..14:07"))?;
    range(parse(from, now)?, parse(to, now)?)
}

/// The range between two moments.
pub(super) fn range(from_ns: u64, to_ns: u64) -> Result<Range, String> {
    if from_ns >= to_ns {
        return Err(format!(
            "the range is empty: it starts at {} and ends at {}",
            show(from_ns, &TimeZone::system()),
            show(to_ns, &TimeZone::system())
        ));
    }
    Ok(Range { from_ns, to_ns })
}

/// A moment for a person: local time with its offset from UTC.
pub(super) fn show(ns: u64, zone: &TimeZone) -> String {
    Timestamp::from_nanosecond(i128::from(ns)).map_or_else(
        |_| ns.to_string(),
        |moment| moment.to_zoned(zone.clone()).strftime("%Y-%m-%dT%H:%M:%S%:z").to_string(),
    )
}

fn nanoseconds(moment: Timestamp) -> Option<u64> {
    u64::try_from(moment.as_nanosecond()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 22 November 2026, 14:06:30 at an offset of two hours.
    fn now() -> Zoned {
        let zone = TimeZone::fixed(jiff::tz::offset(2));
        jiff::civil::date(2026, 11, 22).at(14, 6, 30, 0).to_zoned(zone).unwrap()
    }

    #[test]
    fn moments_are_read_as_people_write_them() {
        let utc = |text: &str| {
            let ns = parse(text, &now()).unwrap_or_else(|error| panic!("{error}"));
            show(ns, &TimeZone::UTC)
        };
        for (text, expected) in [
            ("now", "2026-11-22T12:06:30+00:00"),
            ("-5m", "2026-11-22T12:01:30+00:00"),
            ("-1h", "2026-11-22T11:06:30+00:00"),
            ("14:05", "2026-11-22T12:05:00+00:00"),
            ("14:05:59", "2026-11-22T12:05:59+00:00"),
            // Not yet today.
            ("14:07", "2026-11-21T12:07:00+00:00"),
            ("2026-11-20T08:00", "2026-11-20T06:00:00+00:00"),
            ("2026-11-20T08:00:00Z", "2026-11-20T08:00:00+00:00"),
            ("2026-11-20T08:00:00+05:30", "2026-11-20T02:30:00+00:00"),
        ] {
            assert_eq!(utc(text), expected, "{text}");
        }
        for wrong in ["", "-", "5", "25:00", "14:5x", "tomorrow", "-5x", "1969-01-01T00:00:00Z", "2026-13-01T00:00"] {
            assert!(parse(wrong, &now()).is_err(), "{wrong}");
        }
    }

    #[test]
    fn ranges_have_two_ends_in_order() {
        let range = parse_range("14:05..now", &now()).unwrap();
        assert_eq!(range.to_ns - range.from_ns, 90_000_000_000);
        for wrong in ["14:05", "14:05..14:04", "14:05..14:05", "..", "a..b"] {
            assert!(parse_range(wrong, &now()).is_err(), "{wrong}");
        }
    }
}
