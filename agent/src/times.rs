//! Times for people: UTC, since a static binary has no time zones, and their age.

use std::time::Duration;

use proto::time::{UnixMs, human};

const DAY_MS: u64 = 86_400_000;

/// How long ago, as `2m`; `-` when it is not known.
pub(crate) fn age(then: UnixMs, now: UnixMs) -> String {
    if then == UnixMs(0) {
        return "-".to_owned();
    }
    // Clocks of nodes differ: a time in the future counts as now.
    human(Duration::from_secs(now.0.saturating_sub(then.0) / 1000)).replace("0ms", "0s")
}

/// How long from now, as `in 10m`.
pub(crate) fn until(then: UnixMs, now: UnixMs) -> String {
    match then.0.saturating_sub(now.0) {
        0 => "over".to_owned(),
        // Rounded up: "in 1h" is what was requested, not "in 59m".
        left => format!("in {}", human(Duration::from_secs(left.div_ceil(1000)))),
    }
}

/// The time of day if that is unambiguous, else the date: `14:03:11Z`, `2026-03-01 14:03Z`.
pub(crate) fn at(then: UnixMs, now: UnixMs) -> String {
    let seconds = then.0 / 1000;
    let (hour, minute, second) = (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
    if then.0.abs_diff(now.0) < DAY_MS {
        return format!("{hour:02}:{minute:02}:{second:02}Z");
    }
    let (year, month, day) = date(then.0 / DAY_MS);
    format!("{year}-{month:02}-{day:02} {hour:02}:{minute:02}Z")
}

/// The civil date of a day since 1970-01-01. Years are counted from March, so that the leap day comes last
/// (Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms").
fn date(days: u64) -> (u64, u64, u64) {
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year + year / 4 - year / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    let (month, next) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    (year + era * 400 + next, month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_those_of_the_calendar() {
        for (seconds, text) in [
            (0, "1970-01-01 00:00Z"),
            (951_782_400, "2000-02-29 00:00Z"),
            (1_709_251_199, "2024-02-29 23:59Z"),
            (1_767_225_599, "2025-12-31 23:59Z"),
            (4_107_542_400, "2100-03-01 00:00Z"),
        ] {
            assert_eq!(at(UnixMs(seconds * 1000), UnixMs(10_000_000_000_000)), text);
        }
        assert_eq!(at(UnixMs(1_709_251_199_000), UnixMs(1_709_251_300_000)), "23:59:59Z");
        // Nothing that a peer sends makes it overflow.
        assert!(at(UnixMs(u64::MAX), UnixMs(0)).ends_with('Z'));
    }

    #[test]
    fn ages_are_short() {
        let now = UnixMs(1_000_000_000);
        assert_eq!(age(UnixMs(0), now), "-");
        assert_eq!(age(now, now), "0s");
        assert_eq!(age(UnixMs(now.0 + 5000), now), "0s");
        assert_eq!(age(UnixMs(now.0 - 119_999), now), "119s");
        assert_eq!(age(UnixMs(now.0 - 120_000), now), "2m");
        assert_eq!(until(UnixMs(now.0 + 3_599_001), now), "in 60m");
        assert_eq!(until(now, now), "over");
    }
}
