//! `casita top`.

use std::process::ExitCode;

use clap::Args;

use super::{CliError, Format, json, table, vms};

/// Options of `casita top`.
#[derive(Debug, Args)]
pub struct TopArgs {
    /// The VM, by name or ID
    #[arg(value_name = "VM")]
    vm: String,
    /// How to print
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    format: Format,
}

/// Lists the processes in a VM.
///
/// # Errors
/// If it does not run, or its agent is gone.
pub fn top(args: &TopArgs) -> Result<ExitCode, CliError> {
    let vm = vms::registry()?.find(&args.vm)?;
    if vm.state()?.status.has_ended() {
        return Err(format!("VM {} is not running", vm.record().name).into());
    }
    let mut processes = vm.control()?.processes()?;
    processes.sort_by_key(|process| process.pid);
    let mut out = std::io::stdout().lock();
    if args.format == Format::Json {
        json::write(&mut out, &processes)?;
        return Ok(ExitCode::SUCCESS);
    }
    let rows: Vec<_> = processes
        .iter()
        .map(|process| {
            vec![
                process.pid.to_string(),
                process.parent.to_string(),
                process.uid.to_string(),
                char::from(process.state).to_string(),
                format!(
                    "{}.{:02}",
                    process.cpu_ms / 1000,
                    process.cpu_ms % 1000 / 10
                ),
                table::bytes(process.rss_kib.saturating_mul(1024)),
                process.command.clone(),
            ]
        })
        .collect();
    let head = ["PID", "PPID", "UID", "STATE", "CPU", "RSS", "COMMAND"];
    table::write(&mut out, &head, &rows)?;
    Ok(ExitCode::SUCCESS)
}
