//! A VM with nobody attached: its monitor is a process of its own, in a session of its own.
//!
//! It is started with the VM's lock as its standard input, so the VM is owned all the time, and
//! with a pipe as its standard output, through which it tells, once, how its start went. Then both
//! lead to `/dev/null`. Warnings go to `monitor.log` in the VM's folder.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use super::restart::{next_delay, wait_unless_stopped};
use super::{Run, StartFailure, finish, run_once};
use crate::cli::CliError;
use crate::dirs::Dirs;
use crate::monitor::MainIo;
use crate::vms::{Id, OwnedVm, Registry, State, Status, VmsError, now};

/// More than a monitor says about its start.
const MAX_REPORT: u64 = 64 << 10;

/// How a start went, on its way from the monitor.
type Report = Result<(), StartFailure>;

/// Starts `vm` in a process of its own, and returns when its main process has started.
///
/// # Errors
/// Why it did not; the VM is the caller's again.
pub fn start_detached(vm: OwnedVm) -> Result<(), (OwnedVm, StartFailure)> {
    match spawn(&vm) {
        Ok(()) => {
            vm.hand_over();
            Ok(())
        }
        Err(failure) => Err((vm, failure)),
    }
}

fn spawn(vm: &OwnedVm) -> Report {
    vm.clear_stop();
    let failed = |error: io::Error| StartFailure {
        status: crate::cli::EXIT_CASITA,
        message: format!("no process could be started for the VM: {error}"),
    };
    let (mut reader, writer) = io::pipe().map_err(failed)?;
    let mut child = Command::new("/proc/self/exe")
        .args(["monitor", vm.record().id.as_str()])
        .stdin(vm.lock_fd()?)
        .stdout(writer)
        .stderr(File::create(vm.dir().join("monitor.log")).map_err(failed)?)
        .spawn()
        .map_err(failed)?;
    let mut report = Vec::new();
    let read = reader.by_ref().take(MAX_REPORT).read_to_end(&mut report);
    let report = match read.map(|_| serde_json::from_slice::<Report>(&report)) {
        Ok(Ok(report)) => report,
        _ => Err(StartFailure {
            status: crate::cli::EXIT_CASITA,
            message: "the VM's monitor ended before it could tell how its start went".to_owned(),
        }),
    };
    if report.is_err() {
        // It has let go of the VM by then.
        let _ = child.wait();
    }
    report
}

/// What a monitor got from the process that started it.
struct Inherited {
    lock: OwnedFd,
    report: File,
}

impl Inherited {
    /// Takes it from where it was handed over, and leaves nothing there.
    fn take() -> io::Result<Self> {
        let lock = io::stdin().as_fd().try_clone_to_owned()?;
        let report = io::stdout().as_fd().try_clone_to_owned()?.into();
        let null = File::options().read(true).write(true).open("/dev/null")?;
        rustix::stdio::dup2_stdin(&null)?;
        rustix::stdio::dup2_stdout(&null)?;
        Ok(Self { lock, report })
    }
}

/// The process that runs the VM `id`, whose lock it was given. After a restart `last_delay` says
/// how long the one before had waited.
///
/// # Errors
/// If there is no such VM, or its state can't be told.
pub fn monitor_process(id: &Id, last_delay: Option<Duration>) -> Result<ExitCode, CliError> {
    let Inherited { lock, mut report } = Inherited::take()?;
    // After a restart it is in a session of its own already.
    let _ = rustix::process::setsid();
    // No file system is kept busy by the place where somebody typed a command.
    std::env::set_current_dir("/")?;
    let mut tell = |result: &Report| {
        // Whoever waited for it may be gone.
        let _ = serde_json::to_writer(&report, result).map(|()| report.flush());
    };
    let adopted = Registry::open(&Dirs::from_env()?)
        .and_then(|registry| registry.adopt(id, lock.into()));
    let mut vm = match adopted {
        Ok(vm) => vm,
        Err(error) => {
            tell(&Err(StartFailure::of(&error)));
            return Err(error.into());
        }
    };
    let restarted = last_delay.is_some();
    if restarted && vm.is_stop_asked() {
        return end_between_runs(vm);
    }
    let began = Instant::now();
    let log = vm.log_writer()?;
    let run = run_once(&mut vm, MainIo::Log(log), |result| {
        tell(&result);
        drop(report);
    })?;
    if run.start.is_err() && !restarted {
        return leave_to_starter(vm, run);
    }
    let policy = vm.record().restart;
    if !policy.says_again(run.exit_code, vm.state().restarts) || vm.is_stop_asked() {
        let code = run.exit_code;
        finish(vm, run)?;
        return Ok(code.into());
    }
    restart(vm, run, next_delay(last_delay, began.elapsed()))
}

/// The first start failed: the process that asked for it waits, still owns the VM, and decides.
fn leave_to_starter(mut vm: OwnedVm, run: Run) -> Result<ExitCode, CliError> {
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
    vm.hand_over();
    Ok(run.exit_code.into())
}

/// Becomes the monitor of the next run, after a while.
fn restart(mut vm: OwnedVm, run: Run, delay: Duration) -> Result<ExitCode, CliError> {
    let state = vm.state();
    vm.set_state(State {
        status: Status::Restarting,
        exit_code: Some(run.exit_code),
        error: run.error,
        finished: Some(now()),
        ..state
    })?;
    if wait_unless_stopped(&vm, delay)? {
        return end_between_runs(vm);
    }
    vm.teller().update(|state| state.restarts += 1)?;
    let error = reexecute(&vm, delay)?;
    let run = Run {
        start: Ok(()),
        exit_code: crate::cli::EXIT_CASITA,
        error: Some(format!("casita could not restart itself: {error}")),
    };
    finish(vm, run)?;
    Ok(crate::cli::EXIT_CASITA.into())
}

/// Returns only if it fails.
fn reexecute(vm: &OwnedVm, delay: Duration) -> Result<io::Error, VmsError> {
    let delay = delay.as_millis().to_string();
    Ok(Command::new("/proc/self/exe")
        .args(["monitor", vm.record().id.as_str(), "--last-delay", &delay])
        .stdin(vm.lock_fd()?)
        .stdout(Stdio::null())
        .exec())
}

/// It was stopped while it was not running; it ended as it did before.
fn end_between_runs(vm: OwnedVm) -> Result<ExitCode, CliError> {
    let state = vm.state();
    let run = Run {
        start: Ok(()),
        exit_code: state.exit_code.unwrap_or(0),
        error: state.error,
    };
    finish(vm, run)?;
    Ok(ExitCode::SUCCESS)
}
