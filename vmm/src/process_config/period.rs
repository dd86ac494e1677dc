//! Lengths of time as users write them.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// The units, in milliseconds.
const UNITS: [(&str, f64); 5] = [
    ("ms", 1.0),
    ("s", 1e3),
    ("m", 60e3),
    ("h", 3600e3),
    ("d", 86_400e3),
];
/// A hundred years.
const MAX_MS: f64 = 100.0 * 366.0 * 86_400e3;

/// A length of time: a number of seconds, or with one of the units ms, s, m, h and d. Whole
/// milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Period(Duration);

impl Period {
    /// What a process has between the signal that asks it to end and the one that ends it.
    pub const STOP: Self = Self(Duration::from_secs(10));

    /// As a duration.
    pub const fn duration(self) -> Duration {
        self.0
    }
}

impl FromStr for Period {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong =
            || format!("'{text}' is not a length of time: write for example 30, 1.5m or 2h");
        let end = text
            .find(|c: char| !c.is_ascii_digit() && c != '.')
            .unwrap_or(text.len());
        let (number, unit) = text.split_at(end);
        let factor = match unit {
            "" => 1e3,
            _ => UNITS
                .iter()
                .find_map(|(name, factor)| (*name == unit).then_some(*factor))
                .ok_or_else(wrong)?,
        };
        let number: f64 = number.parse().map_err(|_| wrong())?;
        let ms = (number * factor).round();
        if !(0.0..=MAX_MS).contains(&ms) {
            return Err(format!("'{text}' is longer than a hundred years"));
        }
        #[allow(clippy::cast_sign_loss, reason = "within 0 and MAX_MS")]
        Ok(Self(Duration::from_millis(ms as u64)))
    }
}

impl fmt::Display for Period {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.subsec_millis() {
            0 => write!(f, "{}s", self.0.as_secs()),
            _ => write!(f, "{}ms", self.0.as_millis()),
        }
    }
}

impl TryFrom<String> for Period {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Period> for String {
    fn from(period: Period) -> Self {
        period.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_and_fractions_are_understood() {
        for (text, ms) in [
            ("0", 0),
            ("30", 30_000),
            ("1.5", 1500),
            ("20ms", 20),
            ("2s", 2000),
            ("0.5m", 30_000),
            ("2h", 7_200_000),
            ("1d", 86_400_000),
        ] {
            let period: Period = text.parse().unwrap();
            assert_eq!(period.duration(), Duration::from_millis(ms), "{text}");
            assert_eq!(period.to_string().parse(), Ok(period));
        }
    }

    #[test]
    fn others_are_refused() {
        for text in [
            "", "s", "-1", "1w", "1 s", "1e3", ".", "1.2.3", "inf", "nan", "9999999d",
        ] {
            assert!(text.parse::<Period>().is_err(), "{text}");
        }
    }
}
