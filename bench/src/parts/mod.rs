//! The project's own figures beside its goals, part by part, for `tests/bench`.

mod boot;
mod exec;
mod fio;
mod import;
mod memory;
mod net;
mod report;
pub mod result;
mod run;
mod start;
mod streams;

use std::path::{Path, PathBuf};

use anyhow::Result;
use clap::{Args, Subcommand};

use crate::fingerprint::Fingerprint;
use crate::subjects::Subjects;
use crate::toolimage;
use result::PartResult;

/// A part.
#[derive(Debug, Subcommand)]
pub enum Part {
    /// exec to the first KVM_RUN
    Start(PartArgs),
    /// exec to init, and VM exits
    Boot(PartArgs),
    /// Start to exit of a command in a new VM
    Run(PartArgs),
    /// Start to exit of a command in a running VM
    Exec(PartArgs),
    /// Bytes a second through standard input and output
    Streams(PartArgs),
    /// From an OCI layout to a root image
    Import(PartArgs),
    /// Memory of idle VMs
    Memory(PartArgs),
    /// fio in the guest
    Fio(PartArgs),
    /// The guest's network, over a tap device
    Net(PartArgs),
    /// The guest's network, over passt
    Passt(PartArgs),
    /// Makes the root image of all VMs: busybox, fio, iperf3 and the scripts that run them
    Image {
        /// Where it goes
        file: PathBuf,
    },
    /// Joins the parts' results in DIR and prints the tables
    Report {
        /// Holds one JSON file for each part; gets results.json and results.txt
        dir: PathBuf,
    },
}

/// What is measured, and with what.
#[derive(Debug, Args)]
pub struct PartArgs {
    /// The guest kernel of all VMs
    #[arg(long)]
    kernel: PathBuf,
    /// The root image of all VMs
    #[arg(long)]
    image: PathBuf,
    /// For files that are written while measuring
    #[arg(long)]
    work: PathBuf,
    /// The image that is imported, an OCI layout
    #[arg(long)]
    layout: Option<PathBuf>,
    /// Runs of each peer
    #[arg(long)]
    runs: usize,
}

/// Measures one part, or reports on all.
///
/// # Errors
/// If it can't be measured.
pub fn run(part: Part, casita: &Path) -> Result<()> {
    let (name, measure, args): (_, fn(&Subjects, &mut PartResult) -> Result<()>, _) = match part {
        Part::Start(args) => ("start", start::measure, args),
        Part::Boot(args) => ("boot", boot::measure, args),
        Part::Run(args) => ("run", run::measure, args),
        Part::Exec(args) => ("exec", exec::measure, args),
        Part::Streams(args) => ("streams", streams::measure, args),
        Part::Import(args) => ("import", import::measure, args),
        Part::Memory(args) => ("memory", memory::measure, args),
        Part::Fio(args) => ("fio", fio::measure, args),
        Part::Net(args) => ("net", net::over_tap, args),
        Part::Passt(args) => ("passt", net::over_passt, args),
        Part::Image { file } => {
            let folder = file.parent().unwrap_or(Path::new("."));
            return toolimage::make(&file, &["fio", "iperf3"], folder);
        }
        Part::Report { dir } => return report::report(&dir),
    };
    let mut subjects = Subjects::new(casita, &args.kernel, &args.image, &args.work)?;
    subjects.layout = args.layout;
    subjects.runs = args.runs;
    let mut result = PartResult::new(name, Fingerprint::take(&subjects)?);
    measure(&subjects, &mut result)?;
    println!("{}", serde_json::to_string(&result)?);
    Ok(())
}
