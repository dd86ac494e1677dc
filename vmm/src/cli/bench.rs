//! `casita bench`: the measuring is the helper program's, which reads this very command line.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, ExitCode};

use clap::{Args, Subcommand, ValueEnum};

use super::CliError;
use crate::helpers::{self, HelperError};

/// Options of `casita bench`.
#[derive(Debug, Args)]
#[command(after_help = "\
A machine whose own KVM can't run guests is told apart first; there, everything runs in the lab: \
`tests/lab/run --icount -- casita bench boot`.

Examples:
  casita bench boot --against crun,bwrap --format html --output boot.html
  casita bench boot --format json --output boot.json
  casita bench report boot.json density.json --format html --output report.html")]
pub struct BenchArgs {
    /// What is measured.
    #[command(subcommand)]
    pub what: BenchCommand,
}

/// What `casita bench` measures.
#[derive(Debug, Subcommand)]
pub enum BenchCommand {
    /// Start to exit of a command in a new VM, stage by stage, beside containers and other monitors
    Boot(BootArgs),
    /// Memory of many VMs at once, beside as many containers
    Density(DensityArgs),
    /// Disk: fio in a VM and in a container, on the same disk of the host's
    Io(LoadArgs),
    /// Network: iperf3 between the host and a VM, and a container
    Net(LoadArgs),
    /// Print saved results (--format json) in another way, several in one report
    Report(ReportArgs),
}

/// How results are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum BenchFormat {
    /// Tables for people.
    #[default]
    Text,
    /// Everything, for programs and for `report`.
    Json,
    /// One line for each sample.
    Csv,
    /// Pictures.
    Svg,
    /// The same as pixels.
    Png,
    /// One page with pictures, tables and the raw data in it.
    Html,
    /// Tables for a README.
    Markdown,
}

/// Where results go.
#[derive(Debug, Clone, Args)]
pub struct Printing {
    /// How to print
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    pub format: BenchFormat,
    /// Write to this file instead of standard output
    #[arg(long, value_name = "FILE")]
    pub output: Option<PathBuf>,
}

/// What runs in everything that is measured.
#[derive(Debug, Clone, Args)]
pub struct Setup {
    /// Image for all of them [default: the built-in one]
    #[arg(long, value_name = "IMAGE")]
    pub image: Option<String>,
    /// Kernel of the VMs [default: that of `casita run`]
    #[arg(long, value_name = "FILE")]
    pub kernel: Option<PathBuf>,
}

/// Whom casita is measured beside.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum Rival {
    /// The OCI runtime in C.
    Crun,
    /// The OCI runtime in Go.
    Runc,
    /// bubblewrap.
    Bwrap,
    /// util-linux's.
    Unshare,
    /// Containers without a daemon.
    Podman,
    /// QEMU's microvm.
    Qemu,
}

/// A count that is not 0.
fn count(text: &str) -> Result<usize, String> {
    const MOST: usize = 10_000;
    match text.parse() {
        Ok(number @ 1..=MOST) => Ok(number),
        _ => Err(format!("give a number from 1 to {MOST}")),
    }
}

/// Options of `casita bench boot`.
#[derive(Debug, Args)]
pub struct BootArgs {
    /// Beside whom; those that are missing or can't work here are named
    #[arg(
        long,
        value_name = "NAME,...",
        value_delimiter = ',',
        value_enum,
        num_args = 1,
        default_value = "crun,runc,bwrap,unshare"
    )]
    pub against: Vec<Rival>,
    /// Runs of each, in turns, after one that only warms up
    #[arg(long, value_name = "N", value_parser = count, default_value = "20")]
    pub runs: usize,
    /// Memory of each VM in MiB
    #[arg(long, value_name = "MIB", value_parser = count, default_value = "256")]
    pub memory: usize,
    #[command(flatten)]
    #[allow(missing_docs, reason = "named by its type")]
    pub setup: Setup,
    #[command(flatten)]
    #[allow(missing_docs, reason = "named by its type")]
    pub printing: Printing,
    /// Command that all of them run, behind -- [default: /bin/true]
    #[arg(last = true, value_name = "COMMAND")]
    pub command: Vec<String>,
}

/// Options of `casita bench density`.
#[derive(Debug, Args)]
pub struct DensityArgs {
    /// Beside whom; those that are missing or can't work here are named
    #[arg(
        long,
        value_name = "NAME,...",
        value_delimiter = ',',
        value_enum,
        num_args = 1,
        default_value = "crun"
    )]
    pub against: Vec<Rival>,
    /// Instances of each at once
    #[arg(long, value_name = "N", value_parser = count, default_value = "8")]
    pub count: usize,
    /// Memory of each VM in MiB
    #[arg(long, value_name = "MIB", value_parser = count, default_value = "128")]
    pub memory: usize,
    #[command(flatten)]
    #[allow(missing_docs, reason = "named by its type")]
    pub setup: Setup,
    #[command(flatten)]
    #[allow(missing_docs, reason = "named by its type")]
    pub printing: Printing,
}

/// Options of `casita bench io` and `net`.
#[derive(Debug, Args)]
pub struct LoadArgs {
    /// Beside which container; those that are missing or can't work here are named
    #[arg(
        long,
        value_name = "NAME,...",
        value_delimiter = ',',
        value_enum,
        num_args = 1,
        default_value = "crun"
    )]
    pub against: Vec<Rival>,
    /// Runs of each load in each, in turns
    #[arg(long, value_name = "N", value_parser = count, default_value = "3")]
    pub runs: usize,
    /// How long one run lasts
    #[arg(long, value_name = "SECONDS", value_parser = count, default_value = "4")]
    pub seconds: usize,
    /// Folder whose disk is measured [default: that of temporary files]
    #[arg(long, value_name = "DIR")]
    pub folder: Option<PathBuf>,
    /// Kernel of the VMs [default: that of `casita run`]
    #[arg(long, value_name = "FILE")]
    pub kernel: Option<PathBuf>,
    #[command(flatten)]
    #[allow(missing_docs, reason = "named by its type")]
    pub printing: Printing,
}

/// Options of `casita bench report`.
#[derive(Debug, Args)]
pub struct ReportArgs {
    /// Results that were printed with --format json
    #[arg(required = true, value_name = "FILE")]
    pub files: Vec<PathBuf>,
    /// Put the tables into this text, such as a README, between the comments that name them
    #[arg(long, value_name = "FILE", conflicts_with_all = ["format", "output"])]
    pub into: Option<PathBuf>,
    #[command(flatten)]
    #[allow(missing_docs, reason = "named by its type")]
    pub printing: Printing,
}

/// Becomes the helper program, which gets the command line as it is.
///
/// # Errors
/// If that is not installed or can't be started.
pub fn bench(_: &BenchArgs) -> Result<ExitCode, CliError> {
    let path = helpers::find(helpers::BENCH)?;
    let own = std::env::current_exe()
        .map_err(|error| format!("casita does not know where it is: {error}"))?;
    let words: Vec<OsString> = std::env::args_os().skip(1).collect();
    let source = Command::new(&path)
        .arg("--casita")
        .arg(own)
        .args(words)
        .exec();
    Err(HelperError::Start { path, source }.into())
}
