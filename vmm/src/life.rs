//! A VM's life around its monitor, the same whether somebody is attached or not: own the record,
//! tell its state, run, tell its end, remove or release it.
//!
//! A detached VM's monitor is this same program, started with the VM's lock as its standard input
//! (`detach`). What other processes do to a running VM is in `end`.

mod detach;
mod end;
mod restart;

use std::cell::Cell;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::cli::{CliError, EXIT_CASITA};
use crate::monitor::{MainIo, MonitorEnd, monitor};
use crate::vms::{NewVm, OwnedVm, Registry, RestartPolicy, State, Status, VmsError, now};

pub use detach::{monitor_process, start_detached};
pub use end::{EndError, kill, remove, signal, stop, wait_for_end};

/// Why a VM's main process did not start.
#[derive(Debug, Clone, PartialEq, Eq, Error, Serialize, Deserialize)]
#[error("{message}")]
pub struct StartFailure {
    /// The exit status that goes with it: 126 or 127 as in a shell, 125 if it is casita's.
    pub status: u8,
    /// One line for people.
    pub message: String,
}

impl StartFailure {
    /// Casita's own failure.
    pub fn of(error: &(dyn std::error::Error + 'static)) -> Self {
        Self {
            status: EXIT_CASITA,
            message: crate::cli::in_one_line(error),
        }
    }
}

impl From<VmsError> for StartFailure {
    fn from(error: VmsError) -> Self {
        Self::of(&error)
    }
}

/// How one run of a VM ended.
#[derive(Debug)]
struct Run {
    /// Whether its main process started; else why not.
    start: Result<(), StartFailure>,
    exit_code: u8,
    /// Why it could not go on.
    error: Option<String>,
}

/// Refuses what contradicts itself in a VM that is to run with somebody attached or, if
/// `detached`, without.
///
/// # Errors
/// One line that says what.
pub fn check(new: &NewVm, detached: bool) -> Result<(), CliError> {
    match new.restart {
        RestartPolicy::No => Ok(()),
        _ if new.rm => Err("--rm and --restart contradict each other: leave out one".into()),
        _ if !detached => Err("--restart needs -d: nobody can be attached to two runs".into()),
        _ => Ok(()),
    }
}

/// Records a VM and runs it to its end with this process's streams, as `io` says.
///
/// # Errors
/// If it can't be recorded, started, or go on; if it did not start nothing is left of it.
pub fn run_attached(registry: &Registry, new: NewVm, io: MainIo) -> Result<u8, CliError> {
    check(&new, false)?;
    let mut vm = registry.create(new)?;
    let run = run_once(&mut vm, io, |_| {})?;
    if let Err(failure) = run.start {
        vm.remove()?;
        return Err(failure.into());
    }
    let (code, error) = (run.exit_code, run.error.clone());
    finish(vm, run)?;
    match error {
        None => Ok(code),
        Some(message) => Err(StartFailure {
            status: code,
            message,
        }
        .into()),
    }
}

/// Records a VM and starts it with nobody attached; returns its ID.
///
/// # Errors
/// If it can't be recorded or started; then nothing is left of it.
pub fn run_detached(registry: &Registry, new: NewVm) -> Result<String, CliError> {
    check(&new, true)?;
    let vm = registry.create(new)?;
    let id = vm.record().id.to_string();
    match start_detached(vm) {
        Ok(()) => Ok(id),
        Err((vm, failure)) => {
            vm.remove()?;
            Err(failure.into())
        }
    }
}

/// Runs the VM once. `tell` is told when its main process has started, or why it has not.
fn run_once(
    vm: &mut OwnedVm,
    io: MainIo,
    tell: impl FnOnce(Result<(), StartFailure>),
) -> Result<Run, VmsError> {
    let before = vm.state();
    vm.set_state(State {
        status: match before.restarts {
            0 => Status::Created,
            _ => Status::Restarting,
        },
        pid: Some(std::process::id()),
        exit_code: None,
        error: None,
        finished: None,
        ..before
    })?;
    let teller = vm.teller();
    let mut tell = Some(tell);
    let start = Cell::new(None);
    let ready = |result: Result<(), StartFailure>| {
        if result.is_ok() {
            let told = teller.update(|state| {
                state.status = Status::Running;
                state.started = Some(now());
            });
            if let Err(error) = told {
                log::warn!("{error}");
            }
        }
        start.set(Some(result.clone()));
        if let Some(tell) = tell.take() {
            tell(result);
        }
    };
    let ended = monitor(vm, io, ready).map_err(|error| StartFailure::of(&*error));
    let start = start.take().unwrap_or_else(|| {
        Err(ended.clone().err().unwrap_or_else(|| StartFailure {
            status: EXIT_CASITA,
            message: "the VM ended before its command had started".to_owned(),
        }))
    });
    if let (Err(failure), Some(tell)) = (&start, tell) {
        tell(Err(failure.clone()));
    }
    Ok(match (&start, ended) {
        (Err(failure), _) | (Ok(()), Err(failure)) => Run {
            exit_code: failure.status,
            error: Some(failure.message.clone()),
            start,
        },
        (Ok(()), Ok(MonitorEnd { exit_code, error })) => Run {
            start,
            exit_code,
            error,
        },
    })
}

/// Tells how it ended for good, and gives it up; it is removed if that was wanted.
fn finish(mut vm: OwnedVm, run: Run) -> Result<(), VmsError> {
    // First, so that nobody finds a state that has ended beside a socket.
    vm.clean();
    let state = vm.state();
    vm.set_state(State {
        status: Status::Exited,
        pid: None,
        exit_code: Some(run.exit_code),
        error: run.error,
        finished: Some(now()),
        ..state
    })?;
    if vm.record().rm { vm.remove() } else { Ok(()) }
}
