//! Times in seconds since 1970, from and to the text that JSON carries.

/// Seconds since 1970 of a time such as `2024-05-01T12:00:00.25+02:00`; none if it is anything
/// else, or before 1970.
pub(crate) fn parse_rfc3339(text: &str) -> Option<u64> {
    let number = |range: std::ops::Range<usize>| -> Option<i64> {
        let digits = text.get(range)?;
        digits
            .bytes()
            .all(|byte| byte.is_ascii_digit())
            .then(|| digits.parse().ok())?
    };
    let is =
        |at: usize, allowed: &[u8]| text.as_bytes().get(at).is_some_and(|b| allowed.contains(b));
    if !(is(4, b"-") && is(7, b"-") && is(10, b"Tt ") && is(13, b":") && is(16, b":")) {
        return None;
    }
    let (year, month, day) = (number(0..4)?, number(5..7)?, number(8..10)?);
    let (hour, minute, second) = (number(11..13)?, number(14..16)?, number(17..19)?);
    if !(1..=12).contains(&month)
        || !(1..=31).contains(&day)
        || hour > 23
        || minute > 59
        || second > 60
    {
        return None;
    }
    let mut zone_at = 19;
    if is(zone_at, b".") {
        zone_at += 1;
        while is(zone_at, b"0123456789") {
            zone_at += 1;
        }
    }
    let offset = match text.get(zone_at..)? {
        "Z" | "z" => 0,
        zone if zone.len() == 6 && is(zone_at, b"+-") && is(zone_at + 3, b":") => {
            let minutes =
                number(zone_at + 1..zone_at + 3)? * 60 + number(zone_at + 4..zone_at + 6)?;
            if is(zone_at, b"-") {
                -minutes * 60
            } else {
                minutes * 60
            }
        }
        _ => return None,
    };
    let seconds = days(year, month, day) * 86400 + hour * 3600 + minute * 60 + second - offset;
    u64::try_from(seconds).ok()
}

/// Days from 1970-01-01 to a day of the Gregorian calendar, whose year is counted from March so
/// that the leap day is its last.
fn days(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let month_from_march = (month + 9) % 12;
    let day_of_year = (153 * month_from_march + 2) / 5 + day - 1;
    365 * year + year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400) + day_of_year
        - 719_468
}

/// Seconds since 1970, now.
pub(crate) fn now() -> u64 {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests {
    use super::parse_rfc3339;

    #[test]
    fn times_are_read() {
        for (text, seconds) in [
            ("1970-01-01T00:00:00Z", Some(0)),
            ("2000-02-29T12:34:56.789012345Z", Some(951_827_696)),
            ("2024-05-01T12:00:00+02:00", Some(1_714_557_600)),
            ("2024-05-01T12:00:00-00:30", Some(1_714_566_600)),
            ("0001-01-01T00:00:00Z", None),
            ("2024-13-01T12:00:00Z", None),
            ("2024-05-01T12:00:00", None),
            ("2024-05-01", None),
            ("2024-05-01T12:00:00é00:00", None),
        ] {
            assert_eq!(parse_rfc3339(text), seconds, "{text}");
        }
    }
}
