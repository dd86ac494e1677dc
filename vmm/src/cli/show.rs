//! Tables, times and sizes for people.

use std::time::{SystemTime, UNIX_EPOCH};

/// Rows of equal length, in columns as wide as they have to be.
pub fn columns<const N: usize>(rows: &[[String; N]]) -> String {
    let wide = |text: &str| text.chars().count();
    let width = |column: usize| rows.iter().map(|row| wide(&row[column])).max().unwrap_or(0);
    let widths: [usize; N] = std::array::from_fn(width);
    rows.iter().fold(String::new(), |mut text, row| {
        let cells = row.iter().zip(widths);
        let cells: Vec<_> = cells
            .map(|(cell, width)| format!("{cell:width$}"))
            .collect();
        text.push_str(cells.join("   ").trim_end());
        text.push('\n');
        text
    })
}

/// Seconds since 1970.
pub fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs())
}

/// How long ago something was, in the largest unit of which there are two.
pub fn ago(seconds: u64) -> String {
    const UNITS: [(&str, u64); 6] = [
        ("years", 365 * 86400),
        ("months", 30 * 86400),
        ("weeks", 7 * 86400),
        ("days", 86400),
        ("hours", 3600),
        ("minutes", 60),
    ];
    UNITS
        .iter()
        .find(|(_, unit)| seconds >= 2 * unit)
        .map_or_else(
            || format!("{seconds} seconds ago"),
            |(name, unit)| format!("{} {name} ago", seconds / unit),
        )
}

/// A size in the largest unit of which there is one, with one digit behind the point.
pub fn size(bytes: u64) -> String {
    const UNITS: [(&str, u64); 3] = [("GiB", 30), ("MiB", 20), ("KiB", 10)];
    UNITS
        .iter()
        .find(|(_, shift)| bytes >> shift > 0)
        .map_or_else(
            || format!("{bytes} B"),
            |(name, shift)| {
                let tenths = (u128::from(bytes) * 10) >> shift;
                format!("{}.{} {name}", tenths / 10, tenths % 10)
            },
        )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_cells() {
        let rows = [["A", "B"], ["\u{e4}\u{e4}", ""], ["x", "y"]];
        let rows = rows.map(|row| row.map(String::from));
        assert_eq!(columns(&rows), "A    B\n\u{e4}\u{e4}\nx    y\n");
    }

    #[test]
    fn times_and_sizes_are_short() {
        assert_eq!(ago(0), "0 seconds ago");
        assert_eq!(ago(119), "119 seconds ago");
        assert_eq!(ago(120), "2 minutes ago");
        assert_eq!(ago(3 * 365 * 86400), "3 years ago");
        assert_eq!(size(1023), "1023 B");
        assert_eq!(size(1536), "1.5 KiB");
        assert_eq!(size(10 << 30), "10.0 GiB");
    }
}
