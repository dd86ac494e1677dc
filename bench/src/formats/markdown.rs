//! Tables for a README, between comments that say what made them.

use std::fmt::Write;

use crate::record::Record;
use crate::tables::{self, Table};

/// How a table's place in a text begins, up to the name of the measurement.
const BEGIN: &str = "<!-- casita bench ";
/// How it ends.
const END: &str = "<!-- end of casita bench -->";

/// The tables of the records, each in its comments.
pub fn markdown(records: &[Record]) -> String {
    let mut text = String::new();
    for record in records {
        if !text.is_empty() {
            text.push('\n');
        }
        text.push_str(&section(record));
    }
    text
}

fn section(record: &Record) -> String {
    // Stages are in the picture.
    let tables: Vec<Table> = tables::of(record).into_iter().take(1).collect();
    let mut text = format!("{BEGIN}{} -->\n", name(record));
    for table in &tables {
        // Writing to a string can't fail.
        let _ = writeln!(text, "{}; {}:\n", table.title, record.place());
        text += &rows(table);
    }
    for missing in &record.missing {
        let (name, reason) = (escaped(&missing.name), escaped(&missing.reason));
        let _ = writeln!(text, "\n{name}: {reason}.");
    }
    text.push_str(END);
    text.push('\n');
    text
}

fn name(record: &Record) -> &'static str {
    use crate::record::Results;
    match record.results {
        Results::Boot(_) => "boot",
        Results::Density(_) => "density",
        Results::Io(_) => "io",
        Results::Net(_) => "net",
    }
}

fn rows(table: &Table) -> String {
    let line = |cells: &[String]| {
        let cells: Vec<String> = cells.iter().map(|cell| escaped(cell)).collect();
        let line = format!("| {} |\n", cells.join(" | "));
        line.replace("|  |", "| |")
    };
    let mut text = line(&table.header);
    let columns = vec!["---:"; table.header.len().saturating_sub(1)];
    let _ = writeln!(text, "|---|{}|", columns.join("|"));
    for row in &table.rows {
        text.push_str(&line(row));
    }
    text
}

fn escaped(cell: &str) -> String {
    cell.replace('|', "\\|")
        .replace('<', "&lt;")
        .replace('\n', " ")
}

/// Puts new tables into `text` in place of those that are there.
///
/// # Errors
/// If `text` has no place for one of them.
pub fn replace_in(text: &str, records: &[Record]) -> Result<String, String> {
    let mut text = text.to_owned();
    for record in records {
        let begin = format!("{BEGIN}{} -->\n", name(record));
        let place = text.find(&begin).and_then(|from| {
            let to = text[from..].find(END)?;
            Some(from..from + to + END.len() + 1)
        });
        let place = place.ok_or_else(|| format!("there is no {} ... {END}", begin.trim()))?;
        let end = place.end.min(text.len());
        text.replace_range(place.start..end, &section(record));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample;

    #[test]
    fn tables_are_put_where_they_were() {
        let old = format!(
            "# Title\n\n{BEGIN}boot -->\nold\n{END}\n\nbetween\n\n{BEGIN}io -->\n{END}\n\nafter\n"
        );
        let records = [sample::io(), sample::boot()];
        let new = replace_in(&old, &records).unwrap();
        assert!(new.starts_with("# Title\n\n<!-- casita bench boot -->\n"));
        assert!(new.contains("\nbetween\n") && new.ends_with("\nafter\n"));
        assert!(!new.contains("\nold\n"));
        assert_eq!(replace_in(&new, &records).unwrap(), new, "once is enough");
        let error = replace_in(&old, &[sample::net()]).unwrap_err();
        assert!(error.contains("casita bench net"), "{error}");
    }

    #[test]
    fn cells_can_not_break_a_table() {
        assert_eq!(escaped("a|b<c\nd"), "a\\|b&lt;c d");
        for record in sample::all() {
            let text = section(&record);
            let lines = text.lines().filter(|line| line.starts_with('|'));
            let bars: Vec<usize> = lines.map(|line| line.matches('|').count()).collect();
            assert!(
                bars.len() >= 3 && bars.iter().all(|one| *one == bars[0]),
                "{text}"
            );
        }
    }

    /// The README's tables are what this makes, in their form: the same headers and a row for each
    /// that is measured, whatever the figures are.
    #[test]
    fn the_readme_has_tables_of_this_form() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../README.md");
        let readme = std::fs::read_to_string(path).unwrap();
        let form = |text: &str, begin: &str| -> Option<Vec<String>> {
            let from = text.find(begin)?;
            let part = &text[from..from + text[from..].find(END)?];
            let lines = part.lines().filter(|line| line.starts_with('|'));
            Some(lines.take(2).map(str::to_owned).collect())
        };
        let mut found = 0;
        for record in [sample::boot(), sample::density()] {
            let begin = format!("{BEGIN}{} -->", name(&record));
            let wanted = form(&section(&record), &begin);
            if readme.contains(&begin) {
                found += 1;
                assert_eq!(
                    form(&readme, &begin),
                    wanted,
                    "{begin} is of another form: make it anew"
                );
            }
        }
        assert!(found > 0, "the README has no table of `casita bench`");
        assert_eq!(readme.matches(BEGIN).count(), readme.matches(END).count());
    }
}
