//! The tables.

use std::fmt::Write;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use crate::formats::text::wrap;
use crate::parts::result::{Goal, PartResult, Row};
use crate::tables::figure;

/// The parts in the order of the report, with their headings.
const PARTS: [(&str, &str); 10] = [
    ("start", "Start of a monitor"),
    ("boot", "Boot"),
    ("run", "A command in a new VM"),
    ("exec", "A command in a running VM"),
    ("streams", "Standard streams"),
    ("import", "Image import"),
    ("memory", "Memory"),
    ("fio", "Disk"),
    ("net", "Network over tap"),
    ("passt", "Network over passt"),
];

/// Joins the parts in `dir`: results.json for programs, results.txt and standard output for people.
pub fn report(dir: &Path) -> Result<()> {
    let mut results = Vec::new();
    let mut text = String::new();
    for (part, heading) in PARTS {
        let Ok(json) = fs::read(dir.join(format!("{part}.json"))) else {
            continue;
        };
        let result: PartResult =
            serde_json::from_slice(&json).with_context(|| format!("{part}.json"))?;
        describe(heading, &result, &mut text)?;
        results.push(result);
    }
    fs::write(
        dir.join("results.json"),
        serde_json::to_vec_pretty(&results)?,
    )?;
    fs::write(dir.join("results.txt"), &text)?;
    print!("{text}");
    Ok(())
}

fn describe(heading: &str, result: &PartResult, text: &mut String) -> std::fmt::Result {
    writeln!(text, "\n{heading}\n{}", "=".repeat(heading.len()))?;
    for line in result.fingerprint.lines() {
        wrap("", &line, text)?;
    }
    for note in &result.notes {
        wrap("- ", note, text)?;
    }
    writeln!(
        text,
        "\n{:<40} {:>8} {:>8} {:>8} {:>4}  goal",
        "", "median", "min", "max", "runs"
    )?;
    let mut done: Vec<&str> = Vec::new();
    for row in &result.rows {
        if done.contains(&row.what.as_str()) {
            continue;
        }
        done.push(&row.what);
        let unit = if row.unit.is_empty() {
            String::new()
        } else {
            format!(", {}", row.unit)
        };
        let label = format!("{}{unit}", row.what);
        let rows: Vec<&Row> = result
            .rows
            .iter()
            .filter(|other| other.what == row.what)
            .collect();
        // What nobody else has is told in one line.
        if let [row] = rows[..] {
            writeln!(text, "{}", line(&label, row))?;
            continue;
        }
        writeln!(text, "{label}")?;
        for row in rows {
            writeln!(text, "{}", line(&format!("  {}", row.who), row))?;
        }
    }
    Ok(())
}

fn line(label: &str, row: &Row) -> String {
    let median = row.median();
    let goal = row.goal.map_or_else(String::new, |goal| {
        let (words, limit) = match goal {
            Goal::AtMost(limit) => ("at most", limit),
            Goal::AtLeast(limit) => ("at least", limit),
        };
        let met = if goal.met(median) { "met" } else { "NOT MET" };
        format!("{words} {}: {met}", figure(limit))
    });
    let text = format!(
        "{label:<40} {:>8} {:>8} {:>8} {:>4}  {goal}",
        figure(median),
        figure(row.min()),
        figure(row.max()),
        row.values.len()
    );
    text.trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missed_goal_is_said() {
        let row = Row {
            what: String::new(),
            who: "casita".into(),
            unit: "ms".into(),
            values: vec![4.0],
            goal: Some(Goal::AtMost(3.0)),
        };
        assert!(line("", &row).ends_with("at most 3.00: NOT MET"));
    }
}
