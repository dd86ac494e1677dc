//! `casita stats`.

use std::collections::BTreeMap;
use std::io::{IsTerminal, Write};
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use clap::Args;
use serde::Serialize;

use super::{CliError, EXIT_CASITA, Format, json, ps, report, table, vms};
use crate::vm_stats::VmStats;
use crate::vms::Vm;

/// How often a live table is drawn.
const INTERVAL: Duration = Duration::from_secs(1);
/// To the upper left corner; then, behind what is drawn, away with what was there.
const HOME: &str = "\x1b[H";
const CLEAR_LINE: &str = "\x1b[K";
const CLEAR_REST: &str = "\x1b[J";

/// Options of `casita stats`.
#[derive(Debug, Args)]
#[command(
    after_help = "On a terminal the table is drawn anew each second, until Ctrl-C; CPU % is that \
                  of the last second, else that since the VM's start, and 100 is one CPU."
)]
pub struct StatsArgs {
    /// VMs, by name or ID [default: all that run]
    #[arg(value_name = "VM")]
    vms: Vec<String>,
    /// Print once
    #[arg(long)]
    no_stream: bool,
    /// How to print; json is printed once
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    format: Format,
}

#[derive(Debug, Serialize)]
struct Entry {
    id: String,
    name: String,
    #[serde(flatten)]
    stats: VmStats,
}

/// Shows what VMs use.
///
/// # Errors
/// If the records can't be read, or the result can't be printed.
pub fn stats(args: &StatsArgs) -> Result<ExitCode, CliError> {
    let live = !args.no_stream && args.format == Format::Text && std::io::stdout().is_terminal();
    if live {
        return watch(args);
    }
    let (entries, well) = look(args)?;
    let mut out = std::io::stdout().lock();
    match args.format {
        Format::Json => json::write(&mut out, &entries)?,
        Format::Text if entries.is_empty() && !well => {}
        Format::Text => out.write_all(&draw(&entries, &BTreeMap::new())?)?,
    }
    Ok(if well {
        ExitCode::SUCCESS
    } else {
        EXIT_CASITA.into()
    })
}

fn watch(args: &StatsArgs) -> Result<ExitCode, CliError> {
    let mut out = std::io::stdout();
    let mut before = BTreeMap::new();
    write!(out, "{HOME}{CLEAR_REST}")?;
    loop {
        let (entries, well) = look(args)?;
        if !well {
            return Ok(EXIT_CASITA.into());
        }
        let text = String::from_utf8_lossy(&draw(&entries, &before)?)
            .replace('\n', &format!("{CLEAR_LINE}\n"));
        write!(out, "{HOME}{text}{CLEAR_REST}")?;
        out.flush()?;
        let seen = |entry: Entry| (entry.id, (entry.stats.cpu_ms, entry.stats.uptime_ms));
        before = entries.into_iter().map(seen).collect();
        thread::sleep(INTERVAL);
    }
}

/// Asks the VMs; `false` if one that was named did not answer.
fn look(args: &StatsArgs) -> Result<(Vec<Entry>, bool), CliError> {
    let mut entries = Vec::new();
    if args.vms.is_empty() {
        for (vm, _) in ps::listed(false)? {
            // One that is about to start or to end has nothing to tell.
            entries.extend(ask(&vm).ok());
        }
        return Ok((entries, true));
    }
    let registry = vms::registry()?;
    let mut well = true;
    for name in &args.vms {
        let asked = registry
            .find(name)
            .map_err(CliError::from)
            .and_then(|vm| ask(&vm));
        match asked {
            Ok(entry) => entries.push(entry),
            Err(error) => {
                report(&*error, false);
                well = false;
            }
        }
    }
    Ok((entries, well))
}

fn ask(vm: &Vm) -> Result<Entry, CliError> {
    let record = vm.record();
    if vm.state()?.status.has_ended() {
        return Err(format!("VM {} is not running", record.name).into());
    }
    Ok(Entry {
        id: record.id.to_string(),
        name: record.name.clone(),
        stats: vm.control()?.stats()?,
    })
}

/// CPU time and uptime of each VM when it was last looked at, in milliseconds.
type Before = BTreeMap<String, (u64, u64)>;

fn draw(entries: &[Entry], before: &Before) -> Result<Vec<u8>, CliError> {
    let head = [
        "ID",
        "NAME",
        "CPU %",
        "MEM / LIMIT",
        "PRIVATE",
        "SHARED",
        "NET IN / OUT",
        "DISK READ / WRITTEN",
        "EXITS",
    ];
    let rows: Vec<_> = entries.iter().map(|entry| row(entry, before)).collect();
    let mut text = Vec::new();
    table::write(&mut text, &head, &rows)?;
    Ok(text)
}

fn row(entry: &Entry, before: &Before) -> Vec<String> {
    let stats = &entry.stats;
    let sum = |count: fn(&crate::vm_stats::BlockStats) -> u64| {
        table::bytes(stats.block.iter().map(count).sum())
    };
    let net = |count: fn(&crate::vm_stats::NetStats) -> u64| {
        table::bytes(stats.net.iter().map(count).sum())
    };
    vec![
        entry.id.clone(),
        entry.name.clone(),
        cpu_percent(stats, before.get(&entry.id).copied().unwrap_or_default()),
        format!(
            "{} / {}",
            table::bytes(stats.memory.resident),
            table::bytes(stats.memory.limit)
        ),
        table::bytes(stats.memory.private),
        table::bytes(stats.memory.shared),
        format!("{} / {}", net(|net| net.rx_bytes), net(|net| net.tx_bytes)),
        format!(
            "{} / {}",
            sum(|disk| disk.read_bytes),
            sum(|disk| disk.write_bytes)
        ),
        stats.exits.to_string(),
    ]
}

/// Of the time since `before`; a VM that was restarted meanwhile starts anew.
fn cpu_percent(stats: &VmStats, before: (u64, u64)) -> String {
    let (cpu, uptime) = if before.1 <= stats.uptime_ms && before.0 <= stats.cpu_ms {
        (stats.cpu_ms - before.0, stats.uptime_ms - before.1)
    } else {
        (stats.cpu_ms, stats.uptime_ms)
    };
    let tenths = cpu * 1000 / uptime.max(1);
    format!("{}.{}", tenths / 10, tenths % 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_is_that_of_the_time_between_two_looks() {
        let stats = VmStats {
            cpu_ms: 1500,
            uptime_ms: 10_000,
            ..VmStats::default()
        };
        assert_eq!(cpu_percent(&stats, (0, 0)), "15.0");
        assert_eq!(cpu_percent(&stats, (1000, 9000)), "50.0");
        assert_eq!(cpu_percent(&stats, (9000, 90_000)), "15.0");
        assert_eq!(cpu_percent(&VmStats::default(), (0, 0)), "0.0");
    }
}
