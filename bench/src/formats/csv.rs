//! One line for each sample, as spreadsheets and statistics programs read them.

use anyhow::Result;
use serde::{Deserialize, Serialize};

use crate::record::{Point, Record, Results};

/// A line.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    /// `boot`, `density`, `io` or `net`.
    pub bench: String,
    /// Whose it is.
    pub name: String,
    /// What was measured.
    pub what: String,
    /// The unit of the value.
    pub unit: String,
    /// The run, from 1; of a density, how many instances there were.
    pub run: usize,
    /// The figure.
    pub value: f64,
}

/// All samples of the records.
///
/// # Errors
/// If they can't be written.
pub fn csv(records: &[Record]) -> Result<String> {
    let mut writer = csv::Writer::from_writer(Vec::new());
    for record in records {
        for sample in samples(record) {
            writer.serialize(sample)?;
        }
    }
    Ok(String::from_utf8(writer.into_inner()?)?)
}

/// The figures of a density, all in KiB.
type Figure = (&'static str, fn(&Point) -> u64);

const FIGURES: [Figure; 10] = [
    ("private", |point| point.private_kib),
    ("shared, mapped", |point| point.mapped_shared_kib),
    ("proportional", |point| point.proportional_kib),
    ("in memory files", |point| point.tmpfs_kib),
    ("page cache", |point| point.page_cache_kib),
    ("kernel", |point| point.kernel_kib),
    ("slab", |point| point.slab_kib),
    ("page tables", |point| point.page_tables_kib),
    ("guest page tables", |point| point.guest_page_tables_kib),
    ("less available", |point| point.machine_kib),
];

fn samples(record: &Record) -> Vec<Sample> {
    let sample = |bench: &str, name: &str, what: &str, unit: &str, run, value| Sample {
        bench: bench.to_owned(),
        name: name.to_owned(),
        what: what.to_owned(),
        unit: unit.to_owned(),
        run,
        value,
    };
    let mut all = Vec::new();
    match &record.results {
        Results::Boot(results) => {
            for timed in results {
                for (run, value) in (1..).zip(&timed.samples_ms) {
                    all.push(sample(
                        "boot",
                        &timed.name,
                        "start to exit",
                        "ms",
                        run,
                        *value,
                    ));
                }
                for stage in &timed.stages {
                    let what = format!("stage: {}", stage.name);
                    all.push(sample("boot", &timed.name, &what, "ms", 0, stage.ms));
                }
            }
        }
        Results::Density(results) => {
            for (crowd, point) in results
                .iter()
                .flat_map(|crowd| crowd.points.iter().map(move |point| (crowd, point)))
            {
                for (what, get) in FIGURES {
                    #[allow(clippy::cast_precision_loss, reason = "KiB of one machine")]
                    let value = get(point) as f64;
                    all.push(sample(
                        "density",
                        &crowd.name,
                        what,
                        "KiB",
                        point.instances,
                        value,
                    ));
                }
            }
        }
        Results::Io(results) | Results::Net(results) => {
            let bench = if matches!(record.results, Results::Io(_)) {
                "io"
            } else {
                "net"
            };
            for load in results {
                for (run, value) in (1..).zip(&load.samples) {
                    all.push(sample(
                        bench, &load.name, &load.load, &load.unit, run, *value,
                    ));
                }
            }
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample;

    #[test]
    fn samples_come_back_as_they_were() {
        let mut records = sample::all();
        // Names may hold anything that a command line can.
        if let Results::Boot(results) = &mut records[0].results {
            results[0].name = "a, \"b\"\nc".to_owned();
            results[0].samples_ms[0] = 1.0 / 3.0;
        }
        let text = csv(&records).unwrap();
        let mut reader = csv::Reader::from_reader(text.as_bytes());
        let read: Vec<Sample> = reader.deserialize().map(Result::unwrap).collect();
        let wanted: Vec<Sample> = records.iter().flat_map(samples).collect();
        assert_eq!(read, wanted);
        assert!(
            text.starts_with("bench,name,what,unit,run,value\n"),
            "{text}"
        );
    }
}
