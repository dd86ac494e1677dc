//! Signals by name and number, as users write them.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The names of signals 1 to 31 on x86-64.
const NAMES: [&str; 31] = [
    "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2",
    "PIPE", "ALRM", "TERM", "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG",
    "XCPU", "XFSZ", "VTALRM", "PROF", "WINCH", "IO", "PWR", "SYS",
];
/// The first and the last real-time signal that programs have for themselves, in glibc's count.
const RT_MIN: u8 = 34;
const RT_MAX: u8 = 64;

/// A signal of Linux: 1 to 64.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Signal(u8);

impl Signal {
    /// Asks for the end.
    pub const TERM: Self = Self(15);
    /// Ends it.
    pub const KILL: Self = Self(9);

    /// Its number.
    pub const fn number(self) -> u8 {
        self.0
    }
}

impl FromStr for Signal {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let unknown = || format!("'{text}' is not a signal: give a name such as TERM, or 1 to 64");
        let upper = text.to_ascii_uppercase();
        let name = upper.strip_prefix("SIG").unwrap_or(&upper);
        let number = if let Ok(number) = text.parse::<u8>() {
            Some(number)
        } else if let Some(index) = NAMES.iter().position(|known| *known == name) {
            Some(index as u8 + 1)
        } else if let Some(offset) = name.strip_prefix("RTMIN") {
            real_time(offset, '+').and_then(|offset| RT_MIN.checked_add(offset))
        } else if let Some(offset) = name.strip_prefix("RTMAX") {
            real_time(offset, '-')
                .and_then(|offset| RT_MAX.checked_sub(offset))
                .filter(|number| *number >= RT_MIN)
        } else {
            None
        };
        number
            .filter(|number| (1..=RT_MAX).contains(number))
            .map(Self)
            .ok_or_else(unknown)
    }
}

fn real_time(offset: &str, sign: char) -> Option<u8> {
    match offset {
        "" => Some(0),
        _ => offset.strip_prefix(sign)?.parse().ok(),
    }
}

impl fmt::Display for Signal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (NAMES.get(usize::from(self.0) - 1), self.0) {
            (Some(name), _) => write!(f, "SIG{name}"),
            (None, RT_MIN..) => write!(f, "SIGRTMIN+{}", self.0 - RT_MIN),
            (None, number) => write!(f, "{number}"),
        }
    }
}

impl TryFrom<String> for Signal {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Signal> for String {
    fn from(signal: Signal) -> Self {
        signal.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers_mean_the_same() {
        for text in ["TERM", "SIGTERM", "sigterm", "term", "15"] {
            assert_eq!(text.parse(), Ok(Signal::TERM), "{text}");
        }
        assert_eq!("SIGRTMIN+3".parse::<Signal>().unwrap().number(), 37);
        assert_eq!("RTMAX-14".parse::<Signal>().unwrap().number(), 50);
        for number in 1..=64 {
            let signal: Signal = number.to_string().parse().unwrap();
            assert_eq!(signal.to_string().parse(), Ok(signal));
        }
    }

    #[test]
    fn others_are_refused() {
        for text in [
            "", "0", "65", "-1", "SIG", "TERMX", "RTMIN+31", "RTMAX-31", "RTMIN-1", "999",
        ] {
            assert!(text.parse::<Signal>().is_err(), "{text}");
        }
    }
}
