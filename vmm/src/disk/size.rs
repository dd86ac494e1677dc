//! Sizes as people write them: `512M`, `2G`, `4096`.

/// Why a text is not a size.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SizeError {
    /// No number at the start, or something else than a unit behind it.
    #[error("'{0}' is not a size; write bytes or a number with K, M, G or T, such as 2G")]
    Syntax(String),
    /// The number of bytes does not fit 64 bits.
    #[error("the size '{0}' is too large")]
    TooLarge(String),
}

/// Reads a size in bytes: a whole number, then nothing, `B`, or one of K, M, G, T (powers of 1024),
/// which may be written `KB` or `KiB` and in lower case.
///
/// # Errors
/// [`SizeError`], with the text.
pub fn parse_size(text: &str) -> Result<u64, SizeError> {
    let syntax = || SizeError::Syntax(text.to_owned());
    let unit_at = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let (digits, unit) = text.split_at(unit_at);
    if digits.is_empty() {
        return Err(syntax());
    }
    let shift = match unit.to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        "t" | "tb" | "tib" => 40,
        _ => return Err(syntax()),
    };
    digits
        .parse::<u64>()
        .ok()
        .and_then(|number| number.checked_mul(1 << shift))
        .ok_or_else(|| SizeError::TooLarge(text.to_owned()))
}

/// Writes a size the way [`parse_size`] reads it, with the largest unit that leaves it whole.
pub fn format_size(bytes: u64) -> String {
    for (unit, shift) in [("T", 40), ("G", 30), ("M", 20), ("K", 10)] {
        if bytes != 0 && bytes.trailing_zeros() >= shift {
            return format!("{}{unit}", bytes >> shift);
        }
    }
    bytes.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn units_are_powers_of_1024() {
        for (text, bytes) in [
            ("0", 0),
            ("4096", 4096),
            ("512b", 512),
            ("1K", 1024),
            ("1kB", 1024),
            ("3MiB", 3 << 20),
            ("2G", 2 << 30),
            ("64t", 64 << 40),
        ] {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
    }

    #[test]
    fn what_is_not_a_size_is_refused() {
        for text in [
            "", "G", "-1", "+1", "1.5G", "2 G", "2Gi", "1KK", "0x10", "٣", "1é",
        ] {
            assert_eq!(
                parse_size(text),
                Err(SizeError::Syntax(text.to_owned())),
                "{text}"
            );
        }
        for text in ["18446744073709551616", "16777216T"] {
            assert_eq!(
                parse_size(text),
                Err(SizeError::TooLarge(text.to_owned())),
                "{text}"
            );
        }
    }

    proptest! {
        #[test]
        fn a_written_size_reads_back(bytes: u64) {
            prop_assert_eq!(parse_size(&format_size(bytes)), Ok(bytes));
        }

        #[test]
        fn any_text_is_answered(text in "\\PC{0,24}") {
            let _ = parse_size(&text);
        }

        #[test]
        fn a_size_is_its_number_times_its_unit(number in 0_u64..1 << 20, unit in 0_usize..5) {
            let text = format!("{number}{}", ["", "K", "MiB", "gb", "T"][unit]);
            prop_assert_eq!(parse_size(&text), Ok(number << (10 * unit)));
        }
    }
}
