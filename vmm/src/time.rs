//! The clock, and times for people and for programs: always in UTC.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Seconds since 1970.
pub fn now() -> u64 {
    since_1970().as_secs()
}

/// The time since 1970; none of it on a host whose clock is older.
pub fn since_1970() -> Duration {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
}

/// A time in seconds since 1970 as RFC 3339 has it.
pub fn rfc3339(seconds: u64) -> String {
    format!("{}Z", date_and_time(seconds))
}

/// The same of nanoseconds.
pub fn rfc3339_ns(time_ns: u64) -> String {
    format!(
        "{}.{:09}Z",
        date_and_time(time_ns / 1_000_000_000),
        time_ns % 1_000_000_000
    )
}

fn date_and_time(seconds: u64) -> String {
    let (year, month, day) = date(seconds / 86_400);
    let second = seconds % 86_400;
    format!(
        "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}",
        second / 3600,
        second / 60 % 60,
        second % 60
    )
}

/// Year, month and day of the `days`th day after 1970-01-01, in the Gregorian calendar.
fn date(days: u64) -> (u64, u64, u64) {
    const ERA: u64 = 146_097; // days in 400 years
    // Years are counted from March on, so that the leap day is the last one.
    let days = days + 719_468;
    let (era, day) = (days / ERA, days % ERA);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    (era * 400 + year + u64::from(month <= 2), month, day)
}

/// How long something takes or took, in one rough figure: `5 minutes`.
pub fn rough(seconds: u64) -> String {
    let units = [
        ("year", 365 * 86_400),
        ("month", 30 * 86_400),
        ("week", 7 * 86_400),
        ("day", 86_400),
        ("hour", 3600),
        ("minute", 60),
        ("second", 1),
    ];
    // Not "1 hour" for 119 minutes.
    let (unit, len) = units
        .into_iter()
        .find(|(_, len)| seconds >= 2 * len || (*len <= 60 && seconds >= *len))
        .unwrap_or(("second", 1));
    let count = seconds / len;
    let plural = if count == 1 { "" } else { "s" };
    format!("{count} {unit}{plural}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_times() {
        assert_eq!(rfc3339(0), "1970-01-01T00:00:00Z");
        assert_eq!(rfc3339(951_782_400), "2000-02-29T00:00:00Z");
        assert_eq!(rfc3339(1_735_689_599), "2024-12-31T23:59:59Z");
        assert_eq!(rfc3339(4_107_542_400), "2100-03-01T00:00:00Z");
        assert_eq!(
            rfc3339_ns(1_000_000_000_000_000_007),
            "2001-09-09T01:46:40.000000007Z"
        );
    }

    #[test]
    fn rough_times_are_in_the_largest_unit_that_says_enough() {
        for (seconds, text) in [
            (0, "0 seconds"),
            (1, "1 second"),
            (59, "59 seconds"),
            (61, "1 minute"),
            (3700, "61 minutes"),
            (7200, "2 hours"),
            (172_800, "2 days"),
        ] {
            assert_eq!(rough(seconds), text);
        }
    }
}
