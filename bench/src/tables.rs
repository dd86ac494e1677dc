//! Records as tables, for every format that has tables.

use crate::record::{Crowd, Load, Point, Record, Results, Timed};

/// A table; the first column says what a row is, the others are figures.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    /// What it is of.
    pub title: String,
    /// Names of the columns.
    pub header: Vec<String>,
    /// The rows, as long as the header each.
    pub rows: Vec<Vec<String>>,
}

impl Table {
    fn new(title: impl Into<String>, header: &[&str], rows: Vec<Vec<String>>) -> Self {
        Self {
            title: title.into(),
            header: header.iter().map(|&name| name.to_owned()).collect(),
            rows,
        }
    }
}

/// All tables of a record.
pub fn of(record: &Record) -> Vec<Table> {
    match &record.results {
        Results::Boot(results) => {
            let mut tables = vec![times(record, results)];
            tables.extend(results.iter().filter_map(stages));
            tables
        }
        Results::Density(results) => vec![each(record, results), together(results)],
        Results::Io(results) | Results::Net(results) => vec![loads(record, results)],
    }
}

/// Three digits or more.
pub fn figure(value: f64) -> String {
    if !value.is_finite() {
        return "-".to_owned();
    }
    let decimals = match value.abs() {
        size if size >= 99.95 || size == 0.0 => 0,
        size if size >= 9.995 => 1,
        _ => 2,
    };
    let text = format!("{value:.decimals$}");
    // Four digits are read at a glance; five are not.
    match text.parse::<i64>() {
        Ok(whole) if whole.abs() >= 10_000 => grouped(whole),
        _ => text,
    }
}

fn grouped(whole: i64) -> String {
    let digits = whole.unsigned_abs().to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    if whole < 0 { format!("-{text}") } else { text }
}

#[allow(clippy::cast_precision_loss, reason = "KiB of one machine")]
fn mib(kib: u64) -> String {
    figure(kib as f64 / 1024.0)
}

fn times(record: &Record, results: &[Timed]) -> Table {
    let first = results.first().map_or(f64::NAN, |timed| timed.p50_ms);
    let rows = results.iter().map(|timed| {
        let [low, high] = timed.p50_interval_ms;
        vec![
            timed.name.clone(),
            figure(timed.p50_ms),
            format!("{} to {}", figure(low), figure(high)),
            figure(timed.p90_ms),
            figure(timed.p99_ms),
            timed.samples_ms.len().to_string(),
            format!("{}x", figure(first / timed.p50_ms)),
        ]
    });
    let ours = results.first().map_or("", |timed| &timed.name);
    Table::new(
        format!("Start to exit of `{}`, ms", record.settings.command),
        &[
            "",
            "p50",
            "95 % sure",
            "p90",
            "p99",
            "runs",
            &format!("{ours} takes"),
        ],
        rows.collect(),
    )
}

fn stages(timed: &Timed) -> Option<Table> {
    if timed.stages.is_empty() {
        return None;
    }
    let mut at = 0.0;
    let rows = timed.stages.iter().map(|stage| {
        at += stage.ms;
        vec![stage.name.clone(), figure(stage.ms), figure(at)]
    });
    Some(Table::new(
        format!("Stages of {}, ms", timed.name),
        &["", "takes", "until"],
        rows.collect(),
    ))
}

/// A column's name and figure.
type Column = (&'static str, fn(&Point) -> u64);

const COLUMNS: [Column; 7] = [
    ("private", |point| point.private_kib),
    ("proportional", |point| point.proportional_kib),
    ("in memory files", |point| point.tmpfs_kib),
    ("kernel", |point| point.kernel_kib),
    ("of it slab", |point| point.slab_kib),
    ("of it page tables", |point| {
        point.page_tables_kib + point.guest_page_tables_kib
    }),
    ("in all", Point::total_kib),
];

fn each(record: &Record, results: &[Crowd]) -> Table {
    let rows = results.iter().map(|crowd| {
        let figures = COLUMNS
            .iter()
            .map(|(_, get)| figure(crowd.each(*get) / 1024.0));
        [crowd.name.clone()].into_iter().chain(figures).collect()
    });
    Table::new(
        format!(
            "One more instance, MiB (VMs of {} MiB)",
            record.settings.memory_mib
        ),
        &header(&[]),
        rows.collect(),
    )
}

fn header<'a>(more: &[&'a str]) -> Vec<&'a str> {
    let names = COLUMNS.iter().map(|(name, _)| *name);
    [""].into_iter()
        .chain(names)
        .chain(more.iter().copied())
        .collect()
}

fn together(results: &[Crowd]) -> Table {
    let rows = results.iter().filter_map(|crowd| {
        let last = crowd.points.last()?;
        let figures = COLUMNS.iter().map(|(_, get)| mib(get(last)));
        let name = format!("{} {}", last.instances, crowd.name);
        let more = [mib(last.page_cache_kib), mib(last.machine_kib)];
        Some([name].into_iter().chain(figures).chain(more).collect())
    });
    Table::new(
        "All together, MiB",
        &header(&["page cache of their files", "less available"]),
        rows.collect(),
    )
}

fn loads(record: &Record, results: &[Load]) -> Table {
    let mut names: Vec<&str> = Vec::new();
    let mut kinds: Vec<(&str, &str)> = Vec::new();
    for load in results {
        if !names.contains(&load.name.as_str()) {
            names.push(&load.name);
        }
        let kind = (load.load.as_str(), load.unit.as_str());
        if !kinds.contains(&kind) {
            kinds.push(kind);
        }
    }
    let rows = kinds.iter().map(|(kind, unit)| {
        let of = |name: &str| {
            let same = |load: &&Load| load.name == name && load.load == *kind && load.unit == *unit;
            results
                .iter()
                .find(same)
                .map_or(f64::NAN, |load| load.median)
        };
        let mut row = vec![format!("{kind}, {unit}")];
        row.extend(names.iter().map(|name| figure(of(name))));
        if let [ours, theirs, ..] = names[..] {
            let ratio = of(ours) / of(theirs);
            row.push(if ratio.is_finite() {
                format!("{}x", figure(ratio))
            } else {
                "-".to_owned()
            });
        }
        row
    });
    let ratio = match names[..] {
        [ours, theirs, ..] => Some(format!("{ours} of {theirs}'s")),
        _ => None,
    };
    let header: Vec<&str> = [""]
        .into_iter()
        .chain(names.iter().copied())
        .chain(ratio.as_deref())
        .collect();
    Table::new(
        format!("{}, medians", record.title()),
        &header,
        rows.collect(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample;

    #[test]
    fn every_row_is_as_long_as_its_header() {
        for record in sample::all() {
            let tables = of(&record);
            assert!(!tables.is_empty());
            for table in tables {
                assert!(!table.rows.is_empty(), "{}", table.title);
                for row in &table.rows {
                    assert_eq!(row.len(), table.header.len(), "{}: {row:?}", table.title);
                }
            }
        }
    }

    #[test]
    fn figures_have_three_digits_and_are_grouped() {
        let told = [0.0, 0.123, 9.996, 70.12, 99.96, 2348.2, 14_467.0, f64::NAN].map(figure);
        assert_eq!(
            told,
            ["0", "0.12", "10.0", "70.1", "100", "2348", "14,467", "-"]
        );
    }

    #[test]
    fn a_load_that_one_of_them_has_not_is_a_dash() {
        let mut record = sample::io();
        let Results::Io(results) = &mut record.results else {
            unreachable!()
        };
        results.remove(1);
        let table = &of(&record)[0];
        assert_eq!(
            table.header,
            ["", "casita", "host", "crun", "casita of host's"]
        );
        assert_eq!(table.rows[0][3], "-");
    }
}
