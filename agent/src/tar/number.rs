//! Numbers in headers: octal digits, or GNU's base 256 for what these can't say.

/// Reads a field. Blanks before the digits, and a blank or a NUL behind them, are none of them.
pub(super) fn read(field: &[u8]) -> Option<i64> {
    let (first, rest) = field.split_first()?;
    if first & 0x80 != 0 {
        // Two's complement; the first byte has one bit less.
        let first = i64::from(*first & 0x7f) << 57 >> 57;
        return rest.iter().try_fold(first, |value, byte| {
            value.checked_mul(256)?.checked_add(i64::from(*byte))
        });
    }
    let digits = field.trim_ascii_start();
    let end = digits
        .iter()
        .position(|byte| matches!(byte, 0 | b' '))
        .unwrap_or(digits.len());
    let (digits, behind) = digits.split_at_checked(end)?;
    if behind.iter().any(|byte| !matches!(byte, 0 | b' ')) {
        return None;
    }
    digits.iter().try_fold(0_i64, |value, digit| match digit {
        b'0'..=b'7' => value.checked_mul(8)?.checked_add(i64::from(digit - b'0')),
        _ => None,
    })
}

/// Writes `value` with leading zeros and a NUL at the end, if the field has room for it.
pub(super) fn write(field: &mut [u8], value: u64) -> bool {
    let Some((last, digits)) = field.split_last_mut() else {
        return false;
    };
    *last = 0;
    let mut rest = value;
    for digit in digits.iter_mut().rev() {
        *digit = b'0' | (rest & 7) as u8;
        rest >>= 3;
    }
    rest == 0
}
