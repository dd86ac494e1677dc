//! Results for programs.

use std::io::{self, Write};

use serde::Serialize;

/// Writes `value` on lines of its own.
///
/// # Errors
/// If it can't be written.
pub fn write(out: &mut impl Write, value: &(impl Serialize + ?Sized)) -> io::Result<()> {
    serde_json::to_writer_pretty(&mut *out, value)?;
    writeln!(out)
}

/// Writes what was found of the `asked` that were asked for: one object if it was one, else an
/// array.
///
/// # Errors
/// If it can't be written.
pub fn write_found<T: Serialize>(
    out: &mut impl Write,
    found: &[T],
    asked: usize,
) -> io::Result<()> {
    match (asked, found) {
        (1, []) => Ok(()),
        (1, [one]) => write(out, one),
        _ => write(out, found),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_is_an_object_and_several_are_an_array() {
        let written = |found: &[u8], asked| {
            let mut out = Vec::new();
            write_found(&mut out, found, asked).unwrap();
            String::from_utf8(out).unwrap()
        };
        assert_eq!(written(&[7], 1), "7\n");
        assert_eq!(written(&[7], 2), "[\n  7\n]\n");
        assert_eq!(written(&[], 1), "");
        assert_eq!(written(&[], 2), "[]\n");
    }
}
