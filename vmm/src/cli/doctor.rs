//! `casita doctor`.

use std::io::Write;
use std::process::ExitCode;

use clap::Args;

use super::{CliError, EXIT_CASITA, Format, json};
use crate::confine::state::Is;
use crate::dirs::Dirs;
use crate::doctor::{Report, Status, examine};

/// Options of `casita doctor`.
#[derive(Debug, Args)]
#[command(
    after_help = "The exit status is 0 if a guest can run on this machine's own KVM, else 125."
)]
pub struct DoctorArgs {
    /// How to print
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    format: Format,
}

/// Examines the machine and prints what was found.
///
/// # Errors
/// If the result can't be printed.
pub fn doctor(args: &DoctorArgs) -> Result<ExitCode, CliError> {
    let report = examine(&Dirs::from_env()?);
    let mut stdout = std::io::stdout().lock();
    match args.format {
        Format::Json => json::write(&mut stdout, &report)?,
        Format::Text => print(&report, &mut stdout)?,
    }
    Ok(if report.can_run_guests {
        ExitCode::SUCCESS
    } else {
        EXIT_CASITA.into()
    })
}

fn print(report: &Report, out: &mut impl Write) -> std::io::Result<()> {
    for check in &report.checks {
        let mark = match check.status {
            Status::Ok => "ok  ",
            Status::Warn => "warn",
            Status::Fail => "FAIL",
        };
        writeln!(out, "{mark}  {:<12}  {}", check.name, check.detail)?;
        if let Some(fix) = &check.fix {
            writeln!(out, "{:20}-> {fix}", "")?;
        }
    }
    writeln!(out, "The sandbox of a VM's monitor, as this host gives it:")?;
    for layer in &report.sandbox {
        let mark = if layer.is == Is::Off { "warn" } else { "ok  " };
        writeln!(out, "{mark}  {:<18}  {}", layer.layer, layer.in_words())?;
    }
    if let Some(error) = &report.sandbox_error {
        writeln!(out, "warn  none: {error}")?;
    }
    let verdict = if report.can_run_guests {
        "Guests can run on this machine."
    } else {
        "No guest can run on this machine's own KVM."
    };
    writeln!(out, "{verdict}")
}
