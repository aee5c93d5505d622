//! Numbers and times as people read them.

/// With thousands separators: `1,234,567`.
pub(super) fn count(value: u64) -> String {
    let digits = value.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A rounded count that may be below zero: `-1.5`, `1,234.0`.
pub(super) fn tenths(value: f64) -> String {
    let tenths = (value.abs() * 10.0).round();
    // Saturates at a size that no count has.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "not negative, and saturating")]
    let tenths = tenths as u64;
    let sign = if value < 0.0 && tenths > 0 { "-" } else { "" };
    format!("{sign}{}.{}", count(tenths / 10), tenths % 10)
}

/// A duration in seconds: `5.0 s`.
pub(super) fn seconds(ns: u64) -> String {
    format!("{} s", tenths(float(ns) / 1e9))
}

/// The unit of times.
pub(super) const NANOSECONDS: &str = "ns";

/// A time with as many digits as say something: `1.234 s`, `12.3 ms`, `850 us`.
pub(super) fn duration(ns: u64) -> String {
    let value = float(ns);
    match ns {
        0..100_000 => format!("{:.1} us", value / 1e3),
        100_000..100_000_000 => format!("{:.2} ms", value / 1e6),
        _ => format!("{:.3} s", value / 1e9),
    }
}

/// A value in its unit's own way: a time as [`duration`], all else as [`count`].
pub(super) fn value(value: u64, unit: &str) -> String {
    if unit == NANOSECONDS { duration(value) } else { count(value) }
}

/// A part of a whole in per cent: `12.34 %`; `-` of nothing.
pub(super) fn percent(part: u64, whole: u64) -> String {
    ratio(float(part), float(whole))
}

/// A part of a whole in per cent: `12.34 %`; `-` of nothing.
pub(super) fn ratio(part: f64, whole: f64) -> String {
    if whole > 0.0 { format!("{:.2} %", part / whole * 100.0) } else { "-".to_owned() }
}

/// Bytes in a unit that keeps the number short: `512 B`, `1.5 MiB`.
pub(super) fn bytes(bytes: u64) -> String {
    let mut value = float(bytes);
    for unit in ["B", "KiB", "MiB"] {
        if value < 1024.0 {
            return if unit == "B" { format!("{bytes} B") } else { format!("{value:.1} {unit}") };
        }
        value /= 1024.0;
    }
    format!("{value:.1} GiB")
}

/// Date and time in UTC: `2026-11-03 12:34:56 UTC`.
///
/// Source: H. Hinnant, "chrono-compatible low-level date algorithms", `civil_from_days`, for days after 1970.
pub(super) fn timestamp(ns_since_epoch: u64) -> String {
    let second = ns_since_epoch / 1_000_000_000;
    let days = second / 86_400 + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    let (hour, minute, second) = (second / 3600 % 24, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02} UTC")
}

/// For arithmetic that ends in a few digits.
#[expect(clippy::cast_precision_loss, reason = "shown with a few digits")]
pub(super) const fn float(value: u64) -> f64 {
    value as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_grouped_and_rounded() {
        assert_eq!(count(0), "0");
        assert_eq!(count(999), "999");
        assert_eq!(count(1_234_567), "1,234,567");
        assert_eq!(tenths(-1.54), "-1.5");
        assert_eq!(tenths(-0.01), "0.0");
        assert_eq!(seconds(5_049_000_000), "5.0 s");
        assert_eq!(duration(5_049_000_000), "5.049 s");
        assert_eq!(duration(1_500_000), "1.50 ms");
        assert_eq!(duration(880), "0.9 us");
        assert_eq!((value(1500, "ns"), value(1500, "samples")), ("1.5 us".to_owned(), "1,500".to_owned()));
        assert_eq!(percent(1, 3), "33.33 %");
        assert_eq!(percent(0, 0), "-");
        assert_eq!(bytes(512), "512 B");
        assert_eq!(bytes(3 << 19), "1.5 MiB");
        assert_eq!(bytes(5 << 30), "5.0 GiB");
    }

    #[test]
    fn times_are_civil() {
        assert_eq!(timestamp(0), "1970-01-01 00:00:00 UTC");
        assert_eq!(timestamp(951_782_399_000_000_000), "2000-02-28 23:59:59 UTC");
        assert_eq!(timestamp(951_782_400_000_000_000), "2000-02-29 00:00:00 UTC");
        assert_eq!(timestamp(1_793_709_296_999_999_999), "2026-11-03 12:34:56 UTC");
    }
}
