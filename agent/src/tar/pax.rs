//! Records of pax extended headers: `LENGTH KEY=VALUE\n` (POSIX.1-2017, pax).

use alloc::string::ToString;
use alloc::vec::Vec;

use super::{TarError, Time};

/// The prefix of keys that carry extended attributes.
pub(super) const XATTR: &[u8] = b"SCHILY.xattr.";

/// Adds a record to `out`. Its length counts itself.
pub(super) fn push(out: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    let rest = 1 + key.len() + 1 + value.len() + 1;
    let mut len = rest + 1;
    while len != rest + len.to_string().len() {
        len = rest + len.to_string().len();
    }
    out.extend_from_slice(len.to_string().as_bytes());
    out.push(b' ');
    out.extend_from_slice(key);
    out.push(b'=');
    out.extend_from_slice(value);
    out.push(b'\n');
}

/// A key and its value.
pub(super) type Record<'a> = (&'a [u8], &'a [u8]);

/// Splits the first record off.
pub(super) fn next(bytes: &[u8]) -> Result<(Record<'_>, &[u8]), TarError> {
    let wrong = TarError::Field("extended header");
    let split = || {
        let blank = bytes.iter().take(20).position(|byte| *byte == b' ')?;
        let len = usize::try_from(decimal(bytes.get(..blank)?)?).ok()?;
        let record = bytes.get(blank + 1..len)?.strip_suffix(b"\n")?;
        let equals = record.iter().position(|byte| *byte == b'=')?;
        let (key, value) = (record.get(..equals)?, record.get(equals + 1..)?);
        Some(((key, value), bytes.get(len..)?))
    };
    split().ok_or(wrong)
}

pub(super) fn decimal(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() {
        return None;
    }
    digits.iter().try_fold(0_u64, |value, digit| match digit {
        b'0'..=b'9' => value.checked_mul(10)?.checked_add(u64::from(digit - b'0')),
        _ => None,
    })
}

/// Reads a time: `-12.25` is three quarters of a second after -13.
pub(super) fn time(text: &[u8]) -> Option<Time> {
    let (negative, text) = match text.strip_prefix(b"-") {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let point = text.iter().position(|byte| *byte == b'.');
    let (whole, fraction) = match point {
        Some(at) => (text.get(..at)?, text.get(at + 1..)?),
        None => (text, &b""[..]),
    };
    let whole = decimal(whole)?;
    if !fraction.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let digits = fraction.iter().chain(core::iter::repeat(&b'0')).take(9);
    let nanoseconds = digits.fold(0_u32, |value, digit| value * 10 + u32::from(digit - b'0'));
    Some(match (negative, nanoseconds) {
        (false, _) => Time {
            seconds: i64::try_from(whole).ok()?,
            nanoseconds,
        },
        (true, 0) => Time {
            seconds: 0_i64.checked_sub_unsigned(whole)?,
            nanoseconds,
        },
        (true, _) => Time {
            seconds: (-1_i64).checked_sub_unsigned(whole)?,
            nanoseconds: 1_000_000_000 - nanoseconds,
        },
    })
}

/// Writes a time as [`time`] reads it.
pub(super) fn push_time(out: &mut Vec<u8>, key: &[u8], time: Time) {
    let (sign, seconds, nanoseconds) = match (time.seconds, time.nanoseconds) {
        (0.., nanoseconds) => ("", time.seconds.unsigned_abs(), nanoseconds),
        (_, 0) => ("-", time.seconds.unsigned_abs(), 0),
        (_, nanoseconds) => (
            "-",
            time.seconds.unsigned_abs() - 1,
            1_000_000_000 - nanoseconds,
        ),
    };
    let text = alloc::format!("{sign}{seconds}.{nanoseconds:09}");
    push(out, key, text.as_bytes());
}
