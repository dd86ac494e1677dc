//! Values of options that several verbs have.

use std::time::Duration;

/// Names of signals, by their number less one (signal(7), x86-64).
const SIGNALS: [&str; 31] = [
    "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2",
    "PIPE", "ALRM", "TERM", "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG",
    "XCPU", "XFSZ", "VTALRM", "PROF", "WINCH", "IO", "PWR", "SYS",
];

/// A signal's number: `TERM`, `SIGTERM`, `term` or `15`.
///
/// # Errors
/// If Linux has no such signal.
pub fn signal(text: &str) -> Result<u8, String> {
    let name = text.to_ascii_uppercase();
    let name = name.strip_prefix("SIG").unwrap_or(&name);
    let named = (1..).zip(SIGNALS).find(|(_, known)| *known == name);
    let number = named.map(|(number, _)| number).or(text.parse().ok());
    number
        .filter(|number| (1..=64).contains(number))
        .ok_or_else(|| format!("{text:?} is not a signal: give a name such as TERM, or 1 to 64"))
}

/// A time: seconds, or a number with `ms`, `s`, `m` or `h`.
///
/// # Errors
/// If it is anything else.
pub fn duration(text: &str) -> Result<Duration, String> {
    let digits = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let ms = match unit {
        "ms" => Some(1),
        "" | "s" => Some(1000),
        "m" => Some(60_000),
        "h" => Some(3_600_000),
        _ => None,
    };
    let time = ms.and_then(|ms| number.parse::<u64>().ok()?.checked_mul(ms));
    time.map(Duration::from_millis)
        .ok_or_else(|| format!("{text:?} is not a time: write for example 10, 10s, 500ms or 2m"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_have_names_and_numbers() {
        for text in ["TERM", "SIGTERM", "sigterm", "15"] {
            assert_eq!(signal(text), Ok(15), "{text}");
        }
        assert_eq!(signal("SYS"), Ok(31));
        assert_eq!(signal("64"), Ok(64));
        for bad in ["", "SIG", "0", "65", "-9", "FOO", "SIG9"] {
            assert!(signal(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn times_have_units() {
        let parse = |text| duration(text).map(|time| time.as_millis());
        assert_eq!(parse("10"), Ok(10_000));
        assert_eq!(parse("500ms"), Ok(500));
        assert_eq!(parse("2m"), Ok(120_000));
        assert_eq!(parse("0"), Ok(0));
        for bad in ["", "s", "-1", "1.5", "10 s", "9999999999999999999h", "3d"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
