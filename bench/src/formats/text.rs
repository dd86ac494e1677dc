//! For people at a terminal.

use std::fmt::Write;

use crate::record::Record;
use crate::tables::{self, Table};

const WIDTH: usize = 98;

/// Where it was measured, the tables, the notes.
pub fn text(records: &[Record]) -> String {
    let mut text = String::new();
    for record in records {
        // Writing to a string can't fail.
        let _ = one(record, &mut text);
    }
    text
}

fn one(record: &Record, out: &mut String) -> std::fmt::Result {
    let title = record.title();
    if !out.is_empty() {
        writeln!(out)?;
    }
    writeln!(out, "{title}: {}", record.place())?;
    for line in record.host.lines() {
        wrap("", &line, out)?;
    }
    for table in tables::of(record) {
        writeln!(out)?;
        write_table(&table, out)?;
    }
    let shared = record.shared();
    if !shared.is_empty() {
        writeln!(out)?;
    }
    for line in shared {
        wrap("- ", &line, out)?;
    }
    if !record.missing.is_empty() {
        writeln!(out)?;
    }
    for missing in &record.missing {
        wrap("", &format!("{}: {}", missing.name, missing.reason), out)?;
    }
    writeln!(out)?;
    for note in &record.notes {
        wrap("- ", note, out)?;
    }
    Ok(())
}

fn write_table(table: &Table, out: &mut String) -> std::fmt::Result {
    let width = |column: usize| {
        let cells = table.rows.iter().chain([&table.header]);
        let lengths = cells.filter_map(|row| row.get(column));
        lengths.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..table.header.len()).map(width).collect();
    writeln!(out, "{}", table.title)?;
    for row in [&table.header].into_iter().chain(&table.rows) {
        let mut line = String::new();
        for (index, (cell, width)) in row.iter().zip(&widths).enumerate() {
            if index == 0 {
                write!(line, "{cell:<width$}")?;
            } else {
                write!(line, "  {cell:>width$}")?;
            }
        }
        writeln!(out, "{}", line.trim_end())?;
    }
    Ok(())
}

/// Lines that are not too long, all but the first indented by as much as `lead` is long.
pub fn wrap(lead: &str, words: &str, out: &mut String) -> std::fmt::Result {
    let indent = " ".repeat(lead.len());
    let mut line = lead.to_owned();
    let mut empty = true;
    for word in words.split_whitespace() {
        if !empty && line.chars().count() + 1 + word.chars().count() > WIDTH {
            writeln!(out, "{line}")?;
            line.clone_from(&indent);
            empty = true;
        }
        if !empty {
            line.push(' ');
        }
        line.push_str(word);
        empty = false;
    }
    writeln!(out, "{line}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample;

    #[test]
    fn a_long_note_becomes_one_point_of_short_lines() {
        let mut text = String::from("before\n");
        wrap("- ", &"word ".repeat(40), &mut text).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "before");
        assert!(lines[1].starts_with("- word"), "{text}");
        assert!(lines[2].starts_with("  word"), "{text}");
        assert!(lines.iter().all(|line| line.len() <= WIDTH), "{text}");
    }

    #[test]
    fn everything_that_matters_is_said() {
        let text = text(&sample::all());
        for part in [
            "compare, don't quote",
            "spectre_v2",
            "podman: not installed",
            "crun, working",
            "4 KiB random read, 1 at once, IOPS",
        ] {
            assert!(text.contains(part), "{part} is missing in {text}");
        }
    }

    #[test]
    fn columns_are_in_line() {
        let text = text(&[sample::boot()]);
        let start = text.find("Start to exit of").unwrap();
        let lines: Vec<&str> = text[start..].lines().skip(1).take(6).collect();
        let lengths: Vec<usize> = lines.iter().map(|line| line.len()).collect();
        assert!(
            lengths.iter().all(|length| *length == lengths[0]),
            "{lines:#?}"
        );
    }
}
