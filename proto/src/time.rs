//! Time in the core: passed in, never queried.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// A point on a node's own monotonic clock, in milliseconds from an origin that never moves while the
/// process lives. Never sent to another node: two nodes' moments can't be compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Moment(u64);

impl Moment {
    /// The origin.
    pub const ZERO: Moment = Moment(0);

    /// The moment `ms` milliseconds after the origin.
    pub const fn from_millis(ms: u64) -> Moment {
        Moment(ms)
    }

    /// Milliseconds since the origin.
    pub const fn as_millis(self) -> u64 {
        self.0
    }

    /// The moment `wait` later; saturates.
    #[must_use]
    pub fn after(self, wait: Duration) -> Moment {
        Moment(self.0.saturating_add(u64::try_from(wait.as_millis()).unwrap_or(u64::MAX)))
    }

    /// The moment `age` earlier; the origin when there is none.
    #[must_use]
    pub fn before(self, age: Duration) -> Moment {
        Moment(self.0.saturating_sub(u64::try_from(age.as_millis()).unwrap_or(u64::MAX)))
    }

    /// The first multiple of a period after this moment; saturates. A period has a millisecond at least.
    #[must_use]
    pub fn next_multiple(self, period: Duration) -> Moment {
        let period = u64::try_from(period.as_millis()).unwrap_or(u64::MAX).max(1);
        Moment((self.0 / period).saturating_add(1).saturating_mul(period))
    }

    /// The first multiple of a period that is more than half of one away: for what was due at one, and done.
    #[must_use]
    pub fn next_regular(self, period: Duration) -> Moment {
        self.after(period / 2).next_multiple(period)
    }

    /// How long ago `earlier` was; zero when it is in the future.
    pub fn since(self, earlier: Moment) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }
}

/// Wall-clock time in milliseconds since 1970, for people and for documents. No decision that concerns
/// liveness uses it, since nodes' wall clocks may differ or jump.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct UnixMs(pub u64);

impl UnixMs {
    /// The time `wait` later; saturates.
    #[must_use]
    pub fn after(self, wait: Duration) -> UnixMs {
        UnixMs(self.0.saturating_add(u64::try_from(wait.as_millis()).unwrap_or(u64::MAX)))
    }

    /// In the format of web servers and haproxy, `06/Feb/2009:12:12:51.443`, in UTC: two nodes' lines compare.
    pub fn log_date(self) -> String {
        const MONTHS: [&str; 12] =
            ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
        let (ms, s) = (self.0 % 1000, self.0 / 1000 % 86_400);
        // Days since 1 March of the year 0, in eras of 400 years, since a leap day then ends a year.
        let days = self.0 / 86_400_000 + 719_468;
        let (era, day) = (days / 146_097, days % 146_097);
        let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
        let day = day - (365 * year + year / 4 - year / 100);
        let month = (5 * day + 2) / 153;
        let day = day - (153 * month + 2) / 5 + 1;
        let year = era * 400 + year + u64::from(month >= 10);
        let name = MONTHS[((month + 2) % 12) as usize];
        format!("{day:02}/{name}/{year:04}:{:02}:{:02}:{:02}.{ms:03}", s / 3600, s / 60 % 60, s % 60)
    }
}

/// The shortest exact form of a duration in words of a person: `90s`, `15m`, `2h`, `1d`, `250ms`.
pub fn human(duration: Duration) -> String {
    let ms = duration.as_millis();
    match ms {
        0..1_000 => format!("{ms}ms"),
        _ if ms < 10_000 && !ms.is_multiple_of(1_000) => format!("{}.{}s", ms / 1_000, ms % 1_000 / 100),
        _ if ms < 120_000 => format!("{}s", ms / 1_000),
        _ if ms < 7_200_000 => format!("{}m", ms / 60_000),
        _ if ms < 172_800_000 => format!("{}h", ms / 3_600_000),
        _ => format!("{}d", ms / 86_400_000),
    }
}

/// Why a text is not a duration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadDuration {
    /// It is written otherwise.
    #[error("\"{0}\" is not a duration; write a number and ms, s, m, h or d, such as 15m")]
    NotOne(String),
    /// It is longer than a year.
    #[error("\"{0}\" is longer than a year, the longest duration")]
    TooLong(String),
}

/// Reads a duration as people write it: a whole number and one of `ms`, `s`, `m`, `h`, `d`.
///
/// # Errors
/// It is none, or too long.
pub fn parse_duration(text: &str) -> Result<Duration, BadDuration> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let ms_each: u64 = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => {
            return Err(BadDuration::NotOne(text.to_owned()));
        }
    };
    let number: u64 = number.parse().map_err(|_| BadDuration::NotOne(text.to_owned()))?;
    number
        .checked_mul(ms_each)
        .filter(|ms| *ms <= 366 * 86_400_000)
        .map(Duration::from_millis)
        .ok_or_else(|| BadDuration::TooLong(text.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_back_as_written() {
        for text in ["250ms", "90s", "15m", "2h", "3d"] {
            assert_eq!(human(parse_duration(text).unwrap()), text);
        }
        for text in ["", "5", "m", "-5m", "5 m", "1.5h", "400d", "99999999999999999999s"] {
            assert!(parse_duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn dates_are_those_of_the_calendar() {
        let table = [
            (0, "01/Jan/1970:00:00:00.000"),
            (951_782_400_000, "29/Feb/2000:00:00:00.000"),
            (951_868_799_999, "29/Feb/2000:23:59:59.999"),
            (1_233_922_371_443, "06/Feb/2009:12:12:51.443"),
            (1_735_689_599_000, "31/Dec/2024:23:59:59.000"),
            (4_107_542_400_000, "01/Mar/2100:00:00:00.000"),
        ];
        for (ms, text) in table {
            assert_eq!(UnixMs(ms).log_date(), text);
        }
    }

    #[test]
    fn moments_saturate_instead_of_wrapping() {
        let late = Moment::from_millis(u64::MAX);
        assert_eq!(late.after(Duration::from_secs(1)), late);
        assert_eq!(Moment::ZERO.since(late), Duration::ZERO);
    }
}
