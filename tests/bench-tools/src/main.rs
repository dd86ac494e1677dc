//! `casita-bench`: measures Casita beside its peers, one part at a time, and makes the report.
//!
//! `tests/bench` prepares what the parts need and runs each where it can be measured.

mod boot;
mod containers;
mod exec;
mod fingerprint;
mod fio;
mod import;
mod memory;
mod peers;
mod process;
mod report;
mod result;
mod run;
mod start;
mod streams;

use std::path::PathBuf;

use anyhow::Result;
use clap::{Args, Parser, Subcommand};

use crate::fingerprint::Fingerprint;
use crate::result::PartResult;

#[derive(Parser)]
struct Cli {
    #[command(subcommand)]
    part: Part,
}

#[derive(Subcommand)]
enum Part {
    /// exec to the first KVM_RUN
    Start(Subjects),
    /// exec to init, and VM exits
    Boot(Subjects),
    /// Start to exit of a command in a new VM
    Run(Subjects),
    /// Start to exit of a command in a running VM
    Exec(Subjects),
    /// Bytes a second through standard input and output
    Streams(Subjects),
    /// From an OCI layout to a root image
    Import(Subjects),
    /// Memory of idle VMs
    Memory(Subjects),
    /// fio in the guest
    Fio(Subjects),
    /// Joins the parts' results in DIR and prints the tables
    Report {
        /// Holds one JSON file for each part; gets results.json and results.txt
        dir: PathBuf,
    },
}

/// What is measured, and with what.
#[derive(Args)]
pub struct Subjects {
    /// The program
    #[arg(long)]
    pub casita: PathBuf,
    /// The guest kernel of all VMs
    #[arg(long)]
    pub kernel: PathBuf,
    /// The root image of all VMs
    #[arg(long)]
    pub image: PathBuf,
    /// The initrd of the peers' guests, with guest-init.c
    #[arg(long)]
    pub initrd: PathBuf,
    /// The library that stamps events, from shim.c
    #[arg(long)]
    pub shim: PathBuf,
    /// For files that are written while measuring
    #[arg(long)]
    pub work: PathBuf,
    /// The image that is imported, an OCI layout
    #[arg(long)]
    pub layout: Option<PathBuf>,
    /// Runs of each peer
    #[arg(long)]
    pub runs: usize,
}

impl Subjects {
    /// In the lab the machine's files come from a file server outside, whose answers take a time
    /// that is not the lab's: everything that is measured is copied to memory first.
    fn brought_near(mut self) -> Result<Self> {
        if std::env::var_os("CASITA_LAB").is_none() {
            return Ok(self);
        }
        let folder = PathBuf::from("/dev/shm/casita-bench-files");
        std::fs::create_dir_all(&folder)?;
        for path in [
            &mut self.casita,
            &mut self.kernel,
            &mut self.image,
            &mut self.initrd,
            &mut self.shim,
        ] {
            let copy = folder.join(path.file_name().unwrap_or_default());
            std::fs::copy(&*path, &copy)?;
            *path = copy;
        }
        Ok(self)
    }
}

fn main() -> Result<()> {
    let (name, measure, subjects): (_, fn(&Subjects, &mut PartResult) -> Result<()>, _) =
        match Cli::parse().part {
            Part::Start(subjects) => ("start", start::measure, subjects),
            Part::Boot(subjects) => ("boot", boot::measure, subjects),
            Part::Run(subjects) => ("run", run::measure, subjects),
            Part::Exec(subjects) => ("exec", exec::measure, subjects),
            Part::Streams(subjects) => ("streams", streams::measure, subjects),
            Part::Import(subjects) => ("import", import::measure, subjects),
            Part::Memory(subjects) => ("memory", memory::measure, subjects),
            Part::Fio(subjects) => ("fio", fio::measure, subjects),
            Part::Report { dir } => return report::report(&dir),
        };
    std::fs::create_dir_all(&subjects.work)?;
    let mut result = PartResult::new(name, Fingerprint::take(&subjects)?);
    measure(&subjects.brought_near()?, &mut result)?;
    println!("{}", serde_json::to_string(&result)?);
    Ok(())
}
