//! The verbs that start, stop and remove VMs, and wait for them: one line each.

use std::process::ExitCode;
use std::time::Duration;

use clap::Args;

use super::CliError;
use super::vms::{VerbError, each};
use crate::life;
use crate::process_config::{Period, Signal};
use crate::vms::{Id, State, Vm, VmsError};

/// VMs, and nothing else.
#[derive(Debug, Args)]
pub struct VmsArgs {
    /// VMs, by name or ID
    #[arg(required = true, value_name = "VM")]
    vms: Vec<String>,
}

/// Options of `casita stop` and `casita restart`.
#[derive(Debug, Args)]
pub struct StopArgs {
    /// How long the command has to end by itself, in seconds or for example 2m [default: the VM's
    /// --stop-timeout]
    #[arg(short, long, value_name = "TIME")]
    timeout: Option<Period>,
    /// VMs, by name or ID
    #[arg(required = true, value_name = "VM")]
    vms: Vec<String>,
}

/// Options of `casita kill`.
#[derive(Debug, Args)]
pub struct KillArgs {
    /// Signal for the command; KILL ends the whole VM
    #[arg(short, long, default_value_t = Signal::KILL)]
    signal: Signal,
    /// VMs, by name or ID
    #[arg(required = true, value_name = "VM")]
    vms: Vec<String>,
}

/// Options of `casita rm`.
#[derive(Debug, Args)]
pub struct RmArgs {
    /// End those that run
    #[arg(short, long)]
    force: bool,
    /// VMs, by name or ID
    #[arg(required = true, value_name = "VM")]
    vms: Vec<String>,
}

/// Options of the process that runs a VM with nobody attached.
#[derive(Debug, Args)]
pub struct MonitorArgs {
    id: Id,
    #[arg(long, value_name = "MS")]
    last_delay: Option<u64>,
}

impl StopArgs {
    fn timeout(&self, vm: &Vm) -> Duration {
        let config = &vm.record().config;
        let timeout = self.timeout.unwrap_or_else(|| config.stop_timeout());
        timeout.duration()
    }
}

fn name(vm: &Vm) -> String {
    vm.record().name.clone()
}

/// Waits until VMs have ended, and prints their exit codes.
///
/// # Errors
/// If the records can't be read.
pub fn wait(args: &VmsArgs) -> Result<ExitCode, CliError> {
    each(&args.vms, |_, vm| {
        let state = vm.wait()?;
        Ok(state.exit_code.unwrap_or_default().to_string())
    })
}

/// Stops VMs in their tracks.
///
/// # Errors
/// If the records can't be read.
pub fn pause(args: &VmsArgs) -> Result<ExitCode, CliError> {
    each(&args.vms, |_, vm| {
        running(&vm)?.control()?.pause()?;
        Ok(name(&vm))
    })
}

/// Lets them go on.
///
/// # Errors
/// If the records can't be read.
pub fn resume(args: &VmsArgs) -> Result<ExitCode, CliError> {
    each(&args.vms, |_, vm| {
        running(&vm)?.control()?.resume()?;
        Ok(name(&vm))
    })
}

/// Asks VMs to end, and ends those that do not.
///
/// # Errors
/// If the records can't be read.
pub fn stop(args: &StopArgs) -> Result<ExitCode, CliError> {
    each(&args.vms, |_, vm| {
        life::stop(&vm, args.timeout(&vm))?;
        Ok(name(&vm))
    })
}

/// Sends a signal to VMs' commands, or ends them at once.
///
/// # Errors
/// If the records can't be read.
pub fn kill(args: &KillArgs) -> Result<ExitCode, CliError> {
    each(&args.vms, |_, vm| {
        if args.signal == Signal::KILL {
            life::kill(&vm)?;
        } else {
            life::signal(&vm, args.signal.number())?;
        }
        Ok(name(&vm))
    })
}

/// Starts VMs that have ended.
///
/// # Errors
/// If the records can't be read.
pub fn start(args: &VmsArgs) -> Result<ExitCode, CliError> {
    each(&args.vms, |_, vm| start_one(&vm))
}

/// Stops VMs that run, and starts all of them.
///
/// # Errors
/// If the records can't be read.
pub fn restart(args: &StopArgs) -> Result<ExitCode, CliError> {
    each(&args.vms, |_, vm| {
        if vm.record().rm {
            let name = name(&vm);
            return Err(
                format!("VM {name} goes when it ends (--rm): it can't be restarted").into(),
            );
        }
        life::stop(&vm, args.timeout(&vm))?;
        start_one(&vm)
    })
}

/// Removes VMs, with their own disks.
///
/// # Errors
/// If the records can't be read.
pub fn rm(args: &RmArgs) -> Result<ExitCode, CliError> {
    each(&args.vms, |_, vm| {
        match life::remove(&vm, args.force) {
            Err(life::EndError::Vms(VmsError::InUse(name))) => {
                let hint = if args.force {
                    "somebody has started it again meanwhile: try again".to_owned()
                } else {
                    format!("casita rm -f {name} ends it first")
                };
                return Err(format!("VM {name} is running: {hint}").into());
            }
            other => other?,
        }
        Ok(name(&vm))
    })
}

/// Runs a VM with nobody attached, in this process.
///
/// # Errors
/// If it can't.
pub fn monitor(args: &MonitorArgs) -> Result<ExitCode, CliError> {
    life::monitor_process(&args.id, args.last_delay.map(Duration::from_millis))
}

fn running(vm: &Vm) -> Result<&Vm, VerbError> {
    if vm.state()?.status.has_ended() {
        return Err(format!("VM {} is not running", name(vm)).into());
    }
    Ok(vm)
}

fn start_one(vm: &Vm) -> Result<String, VerbError> {
    let mut owned = match vm.try_own() {
        Err(VmsError::InUse(name)) => return Err(format!("VM {name} is running already").into()),
        other => other?,
    };
    let state = owned.state();
    owned.set_state(State {
        restarts: 0,
        ..state
    })?;
    life::start_detached(owned).map_err(|not_started| not_started.failure)?;
    Ok(name(vm))
}
