//! How other processes end a VM: politely, firmly, and when its monitor does not answer.

use std::sync::mpsc::channel;
use std::time::Duration;

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use thiserror::Error;

use crate::control::ClientError;
use crate::control::protocol::{Reply, Request};
use crate::vms::{State, Status, Vm, VmsError};

/// How long a monitor may take to end after it was told to, before it is killed.
const PATIENCE: Duration = Duration::from_secs(10);

const SIGKILL: u8 = 9;

/// Why a VM was not ended.
#[derive(Debug, Error)]
#[allow(missing_docs, reason = "each variant is the error it carries")]
pub enum EndError {
    /// It has ended already.
    #[error("VM {0} is not running")]
    NotRunning(String),
    /// It can't be ended at all.
    #[error("VM {name}: its monitor, process {pid}, could not be killed")]
    Unkillable {
        name: String,
        pid: u32,
        #[source]
        source: std::io::Error,
    },
    /// Nobody knows who runs it.
    #[error("VM {0} is being started or removed right now: try again")]
    Busy(String),
    #[error(transparent)]
    Control(#[from] ClientError),
    #[error(transparent)]
    Vms(#[from] VmsError),
}

/// Asks the VM's command to end, kills it after `timeout`, and waits for its end. A VM that has
/// ended already is left as it is.
///
/// # Errors
/// If it goes on.
pub fn stop(vm: &Vm, timeout: Duration) -> Result<(), EndError> {
    if !is_running(vm)? {
        return Ok(());
    }
    end(vm, Some(timeout))
}

/// Ends the VM at once, by SIGKILL for its command, and waits until it has ended.
///
/// # Errors
/// If it does not run, or goes on.
pub fn kill(vm: &Vm) -> Result<(), EndError> {
    if !is_running(vm)? {
        return Err(EndError::NotRunning(vm.record().name.clone()));
    }
    end(vm, None)
}

/// Sends a signal to the VM's command.
///
/// # Errors
/// If it does not run, or its agent is gone.
pub fn signal(vm: &Vm, signal: u8) -> Result<(), EndError> {
    if !is_running(vm)? {
        return Err(EndError::NotRunning(vm.record().name.clone()));
    }
    Ok(vm.control()?.signal(signal)?)
}

/// Removes the VM; if it runs, that is an error, unless `force`: then it is ended first.
///
/// # Errors
/// If it runs, can't be ended or can't be removed.
pub fn remove(vm: &Vm, force: bool) -> Result<(), EndError> {
    if force && is_running(vm)? {
        end(vm, None)?;
    }
    match vm.try_own() {
        Ok(owned) => Ok(owned.remove()?),
        // As a VM that goes by itself when it ends.
        Err(VmsError::Removed(_)) if force => Ok(()),
        Err(VmsError::InUse(_)) if is_ending(vm)? => {
            wait_for_end(vm, PATIENCE)?;
            Ok(vm.try_own()?.remove()?)
        }
        Err(error) => Err(error.into()),
    }
}

/// Waits until the VM has ended, at most for `patience`.
///
/// # Errors
/// If its lock can't be waited for.
pub fn wait_for_end(vm: &Vm, patience: Duration) -> Result<Option<State>, VmsError> {
    let (sender, receiver) = channel();
    let waiting = vm.clone();
    // The thread is left behind if it waits for longer; it holds nothing but an open file.
    std::thread::spawn(move || {
        // Nobody may be waiting any more.
        let _ = sender.send(waiting.wait());
    });
    match receiver.recv_timeout(patience) {
        Ok(Err(VmsError::Removed(_))) => Ok(Some(State::default())),
        Ok(state) => state.map(Some),
        Err(_) => Ok(None),
    }
}

fn is_running(vm: &Vm) -> Result<bool, EndError> {
    Ok(vm.is_owned()? && !vm.state()?.status.has_ended())
}

/// Its monitor has told its end, and is about to let go of it.
fn is_ending(vm: &Vm) -> Result<bool, EndError> {
    Ok(vm.state()?.status.has_ended())
}

/// Asks the VM's command to end and gives it `timeout`; without one it is not asked.
fn end(vm: &Vm, timeout: Option<Duration>) -> Result<(), EndError> {
    // Before anything else, so that no restart policy undoes what follows.
    match vm.ask_stop() {
        Err(VmsError::Removed(_)) => return Ok(()),
        other => other?,
    }
    if vm.state()?.status != Status::Restarting {
        match ask(vm, timeout) {
            // It may end before it has answered.
            Ok(_) | Err(ClientError::Ended) => {}
            Err(error) => {
                log::debug!("VM {}: {error}", vm.record().name);
                // It is about to start or about to end: either way, a signal reaches it.
                send(vm, Signal::TERM)?;
            }
        }
    }
    if wait_for_end(vm, PATIENCE)?.is_some() {
        return Ok(());
    }
    log::warn!(
        "VM {}: its monitor does not end, so it is killed",
        vm.record().name
    );
    send(vm, Signal::KILL)?;
    match wait_for_end(vm, PATIENCE)? {
        Some(_) => Ok(()),
        None => Err(EndError::Busy(vm.record().name.clone())),
    }
}

/// Unlike the client's own, with a limit: the monitor may be past answering.
fn ask(vm: &Vm, timeout: Option<Duration>) -> Result<Reply, ClientError> {
    let request = timeout.map_or(Request::Signal { signal: SIGKILL }, |timeout| {
        Request::Stop {
            timeout_ms: u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX),
        }
    });
    let patience = timeout.unwrap_or_default().saturating_add(PATIENCE);
    vm.control()?.request(&request, Some(patience))
}

/// Sends a signal to the VM's monitor, and to no other process that has got its number meanwhile.
fn send(vm: &Vm, signal: Signal) -> Result<(), EndError> {
    let state = match vm.state() {
        Err(VmsError::Removed(_)) => return Ok(()),
        other => other?,
    };
    if state.status.has_ended() {
        return Ok(());
    }
    let name = || vm.record().name.clone();
    let pid = state.pid.ok_or_else(|| EndError::Busy(name()))?;
    let failed = |source: rustix::io::Errno| EndError::Unkillable {
        name: name(),
        pid,
        source: source.into(),
    };
    let number = i32::try_from(pid).ok().and_then(Pid::from_raw);
    let number = number.ok_or_else(|| EndError::Busy(name()))?;
    let process = match pidfd_open(number, PidfdFlags::empty()) {
        Err(rustix::io::Errno::SRCH) => return Ok(()),
        other => other.map_err(failed)?,
    };
    // Now that the process is held, is it still the one?
    match vm.state() {
        Ok(now) if now.pid == Some(pid) && vm.is_owned().unwrap_or(false) => {
            match pidfd_send_signal(&process, signal) {
                Err(rustix::io::Errno::SRCH) => Ok(()),
                other => other.map_err(failed),
            }
        }
        _ => Ok(()),
    }
}
