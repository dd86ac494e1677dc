//! `casita-bench`: measures Casita beside its peers.
//!
//! `casita bench` starts it with its own command line. `tests/bench` runs the project's own parts.

mod account;
mod boot;
mod containers;
mod density;
mod fingerprint;
mod formats;
mod hostclock;
mod hostmem;
mod interrupt;
mod io;
mod net;
mod parts;
mod peers;
mod picture;
mod place;
mod process;
mod progress;
mod record;
#[cfg(test)]
mod sample;
mod smaps;
mod statistics;
mod subjects;
mod tables;
mod toolimage;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, anyhow};
use casita::cli::bench::{BenchArgs, BenchCommand, Printing, ReportArgs};
use casita::cli::{self, EXIT_CASITA, Global};
use casita::dirs::Dirs;
use casita::{doctor, kvm};
use clap::{Parser, Subcommand};

use crate::formats::Destination;
use crate::record::Record;

/// Casita's helper program for measuring.
#[derive(Debug, Parser)]
#[command(name = "casita-bench", version, max_term_width = 100)]
struct Cli {
    #[command(flatten)]
    global: Global,
    /// The program that is measured
    #[arg(long, value_name = "FILE")]
    casita: PathBuf,
    #[command(subcommand)]
    command: Command,
}

/// The exit status of what Ctrl-C ended: 128 + SIGINT, as shells have it.
const INTERRUPTED: u8 = 130;

#[derive(Debug, Subcommand)]
enum Command {
    /// What `casita bench` does
    Bench(BenchArgs),
    /// The project's own figures
    #[command(subcommand)]
    Part(parts::Part),
}

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return cli::report_usage(&error),
    };
    cli::init_log(cli.global);
    let result = interrupt::watch()
        .map_err(Into::into)
        .and_then(|()| match cli.command {
            Command::Bench(args) => bench(&args, &cli.casita),
            Command::Part(part) => parts::run(part, &cli.casita),
        });
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            cli::report(error.as_ref(), cli.global.is_verbose());
            if interrupt::is_interrupted() {
                INTERRUPTED.into()
            } else {
                EXIT_CASITA.into()
            }
        }
    }
}

fn bench(args: &BenchArgs, casita: &Path) -> Result<()> {
    match &args.what {
        BenchCommand::Boot(args) => print(&args.printing, || boot::measure(args, casita)),
        BenchCommand::Density(args) => print(&args.printing, || density::measure(args, casita)),
        BenchCommand::Io(args) => print(&args.printing, || io::measure(args, casita)),
        BenchCommand::Net(args) => print(&args.printing, || net::measure(args, casita)),
        BenchCommand::Report(args) => report(args),
    }
}

/// Measures where guests can run, and prints what came of it.
fn print(printing: &Printing, measure: impl FnOnce() -> Result<Record>) -> Result<()> {
    let destination = Destination::open(printing)?;
    let kvm = kvm::open()?;
    doctor::require_usable(&kvm, &Dirs::from_env()?).map_err(|sentence| anyhow!(sentence))?;
    let record = measure()?;
    destination.write(&formats::format(&[record], printing.format)?)
}

fn report(args: &ReportArgs) -> Result<()> {
    let mut records = Vec::new();
    for path in &args.files {
        let read = std::fs::read(path).map_err(Into::into);
        let parsed = read.and_then(|bytes| formats::parse(&bytes));
        records.extend(parsed.with_context(|| format!("reading {}", path.display()))?);
    }
    let Some(into) = &args.into else {
        let destination = Destination::open(&args.printing)?;
        return destination.write(&formats::format(&records, args.printing.format)?);
    };
    let name = into.display();
    let text = std::fs::read_to_string(into).with_context(|| format!("reading {name}"))?;
    let new = formats::replace_in(&text, &records).map_err(|error| anyhow!("{name}: {error}"))?;
    std::fs::write(into, new).with_context(|| format!("writing {name}"))
}
