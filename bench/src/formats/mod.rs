//! Records in the formats that `--format` has.

mod csv;
mod html;
mod markdown;
pub mod text;

use std::fs::File;
use std::io::{Write, stdout};

use anyhow::{Context, Result, anyhow};
use casita::cli::bench::{BenchFormat, Printing};

use crate::picture::{self, render};
use crate::record::Record;

pub use markdown::replace_in;

/// Where results go. It is opened before anything is measured, so that a name that can't be written
/// is known at once.
pub enum Destination {
    /// Standard output.
    Stdout,
    /// A file, and its name.
    File(File, String),
}

impl Destination {
    /// Opens what was asked for.
    ///
    /// # Errors
    /// If the file can't be made.
    pub fn open(printing: &Printing) -> Result<Self> {
        let Some(path) = &printing.output else {
            return Ok(Self::Stdout);
        };
        // What is in it stays until there is something to put in its place.
        let file = File::options()
            .write(true)
            .create(true)
            .truncate(false)
            .open(path);
        let name = path.display().to_string();
        let file = file.with_context(|| format!("results can't be written to {name}"))?;
        Ok(Self::File(file, name))
    }

    /// Writes all of it.
    ///
    /// # Errors
    /// If it can't be written.
    pub fn write(self, bytes: &[u8]) -> Result<()> {
        match self {
            Self::Stdout => {
                let mut out = stdout().lock();
                out.write_all(bytes)
                    .and_then(|()| out.flush())
                    .context("results can't be written to standard output")
            }
            Self::File(mut file, name) => {
                // A pipe or terminal has no length to set.
                let _ = file.set_len(0);
                file.write_all(bytes)
                    .with_context(|| format!("results can't be written to {name}"))
            }
        }
    }
}

/// The records in a format.
///
/// # Errors
/// If a picture can't be drawn.
pub fn format(records: &[Record], format: BenchFormat) -> Result<Vec<u8>> {
    Ok(match format {
        BenchFormat::Text => text::text(records).into_bytes(),
        BenchFormat::Json => json(records)?,
        BenchFormat::Csv => csv::csv(records)?.into_bytes(),
        BenchFormat::Svg => render::svg(&picture::poster(records))?.into_bytes(),
        BenchFormat::Png => render::png(&picture::poster(records))?,
        BenchFormat::Html => html::html(records)?.into_bytes(),
        BenchFormat::Markdown => markdown::markdown(records).into_bytes(),
    })
}

/// One as an object, several as an array.
fn json(records: &[Record]) -> Result<Vec<u8>> {
    let mut bytes = match records {
        [one] => serde_json::to_vec_pretty(one)?,
        several => serde_json::to_vec_pretty(several)?,
    };
    bytes.push(b'\n');
    Ok(bytes)
}

/// Reads what [`format`] wrote as JSON.
///
/// # Errors
/// If it is something else.
pub fn parse(bytes: &[u8]) -> Result<Vec<Record>> {
    let value: serde_json::Value =
        serde_json::from_slice(bytes).map_err(|error| anyhow!("this is no JSON: {error}"))?;
    let records = if value.is_array() {
        serde_json::from_value(value)
    } else {
        serde_json::from_value(value).map(|one| vec![one])
    };
    // Whole, for people are told the last cause alone.
    records.map_err(|error| anyhow!("this is no result of `casita bench --format json`: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample;

    #[test]
    fn one_record_and_several_come_back() {
        let all = sample::all();
        assert_eq!(parse(&json(&all).unwrap()).unwrap(), all);
        assert_eq!(parse(&json(&all[..1]).unwrap()).unwrap(), all[..1]);
        let error = format!("{:#}", parse(b"{\"bench\": \"boot\"}").unwrap_err());
        assert!(error.contains("no result of `casita bench"), "{error}");
        assert!(parse(b"nonsense").is_err());
    }

    #[test]
    fn a_file_keeps_what_it_has_until_there_is_something_new() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("out");
        std::fs::write(&path, "old and long").unwrap();
        let printing = Printing {
            format: BenchFormat::Text,
            output: Some(path.clone()),
        };
        let destination = Destination::open(&printing).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "old and long");
        destination.write(b"new").unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "new");
        let missing = Printing {
            output: Some(place.path().join("none/out")),
            ..printing
        };
        let error = Destination::open(&missing).err().unwrap();
        assert!(format!("{error:#}").contains("none/out"), "{error:#}");
    }
}
