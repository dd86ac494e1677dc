//! `casita inspect`.

use std::io::{BufWriter, Write};
use std::process::ExitCode;

use clap::Args;
use serde_json::Value;

use super::describe::Description;
use super::{CliError, EXIT_CASITA, Format, json, report, vms};

/// Options of `casita inspect`.
#[derive(Debug, Args)]
pub struct InspectArgs {
    /// VMs, by name or ID
    #[arg(required = true, value_name = "VM")]
    vms: Vec<String>,
    /// How to print: json is one object for one VM, an array for several
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    format: Format,
}

/// Prints all that is known of VMs.
///
/// # Errors
/// If the records can't be read, or the result can't be printed.
pub fn inspect(args: &InspectArgs) -> Result<ExitCode, CliError> {
    let registry = vms::registry()?;
    let mut found: Vec<Description> = Vec::new();
    for name in &args.vms {
        let described = registry.find(name).and_then(|vm| {
            let state = vm.state()?;
            Ok((vm, state))
        });
        match described {
            Ok((vm, state)) => found.push(Description::of(&vm, state)?),
            Err(error) => report(&error, false),
        }
    }
    let well = found.len() == args.vms.len();
    let mut out = BufWriter::new(std::io::stdout().lock());
    match args.format {
        Format::Text => {
            for (index, vm) in found.iter().enumerate() {
                if index > 0 {
                    writeln!(out)?;
                }
                describe(&mut out, vm)?;
            }
        }
        Format::Json => json::write_found(&mut out, &found, args.vms.len())?,
    }
    out.flush()?;
    Ok(if well {
        ExitCode::SUCCESS
    } else {
        EXIT_CASITA.into()
    })
}

/// What people look for, in this order; the JSON form has the rest.
const SHOWN: [&str; 19] = [
    "id",
    "name",
    "state",
    "pid",
    "exit_code",
    "error",
    "image",
    "command",
    "created",
    "started",
    "finished",
    "limits",
    "network",
    "mounts",
    "disk",
    "restart",
    "restarts",
    "kernel",
    "dir",
];

fn describe(out: &mut impl Write, vm: &Description) -> Result<(), CliError> {
    let fields = serde_json::to_value(vm)?;
    for name in SHOWN {
        print(out, name, &fields[name])?;
    }
    let mode = fields["sandbox"]["mode"].as_str().unwrap_or_default();
    writeln!(out, "{:<18} {mode}", "sandbox")?;
    for layer in &vm.sandbox.layers {
        let name = format!("sandbox.{}", layer.layer);
        writeln!(out, "{name:<26} {}", super::one_line(&layer.in_words()))?;
    }
    Ok(())
}

/// One line for each value that there is, with its path in the JSON form.
fn print(out: &mut impl Write, path: &str, value: &Value) -> std::io::Result<()> {
    match value {
        Value::Null => Ok(()),
        Value::Object(fields) => fields
            .iter()
            .try_for_each(|(name, value)| print(out, &format!("{path}.{name}"), value)),
        Value::Array(items) if items.iter().any(Value::is_object) => items
            .iter()
            .enumerate()
            .try_for_each(|(index, item)| print(out, &format!("{path}.{index}"), item)),
        Value::Array(items) if items.is_empty() => Ok(()),
        Value::String(text) => writeln!(out, "{path:<18} {}", super::one_line(text)),
        other => writeln!(out, "{path:<18} {other}"),
    }
}
