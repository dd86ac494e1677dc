//! `casita ps`.

use std::io::{BufWriter, Write};
use std::process::ExitCode;

use clap::Args;

use super::describe::{Line, command};
use super::{CliError, Format, json, table, vms};
use crate::time::{now, rough};
use crate::vms::{State, Vm, VmsError};

/// Options of `casita ps`.
#[derive(Debug, Args)]
pub struct PsArgs {
    /// Those that have ended, too
    #[arg(short, long)]
    all: bool,
    /// IDs only
    #[arg(short, long, conflicts_with = "format")]
    quiet: bool,
    /// How to print
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    format: Format,
}

/// Lists VMs, the latest first.
///
/// # Errors
/// If the records can't be read, or the list can't be printed.
pub fn ps(args: &PsArgs) -> Result<ExitCode, CliError> {
    let vms = listed(args.all)?;
    let mut out = BufWriter::new(std::io::stdout().lock());
    if args.quiet {
        for (vm, _) in &vms {
            writeln!(out, "{}", vm.record().id)?;
        }
    } else if args.format == Format::Json {
        let line = |(vm, state): &(Vm, State)| Line::of(vm.record(), state);
        json::write(&mut out, &vms.iter().map(line).collect::<Vec<_>>())?;
    } else {
        let head = [
            "ID", "NAME", "IMAGE", "COMMAND", "CREATED", "STATUS", "PORTS",
        ];
        let rows: Vec<_> = vms.iter().map(|(vm, state)| row(vm, state)).collect();
        table::write(&mut out, &head, &rows)?;
    }
    out.flush()?;
    Ok(ExitCode::SUCCESS)
}

/// VMs with what is true of them now: those that run, or all.
pub(super) fn listed(all: bool) -> Result<Vec<(Vm, State)>, CliError> {
    let mut listed = Vec::new();
    for vm in vms::registry()?.list()? {
        match vm.state() {
            Ok(state) if all || !state.status.has_ended() => listed.push((vm, state)),
            // Some have come to their end since they were listed.
            Ok(_) | Err(VmsError::Removed(_)) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(listed)
}

fn row(vm: &Vm, state: &State) -> Vec<String> {
    let record = vm.record();
    let line = Line::of(record, state);
    let age = rough(now().saturating_sub(record.created));
    vec![
        line.id,
        line.name,
        table::shortened(&line.image, 32),
        table::shortened(&command(record), 32),
        format!("{age} ago"),
        line.status,
        line.ports.join(", "),
    ]
}
