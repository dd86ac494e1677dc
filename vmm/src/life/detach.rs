//! A VM with nobody attached: its monitor is a process of its own, in a session of its own.
//!
//! It is started with the VM's lock as its standard input, so the VM is owned all the time, and
//! with a pipe as its standard output, through which it tells, once, how its start went. Then both
//! lead to `/dev/null`. Warnings go to `monitor.log` in the VM's folder.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use super::restart::{next_delay, wait_unless_stopped};
use super::{
    After, Ending, StartFailure, Surroundings, about_to_run, finish, keep, run_once, tell_end,
};
use crate::cli::CliError;
use crate::confine::inherited_descriptors;
use crate::dirs::Dirs;
use crate::monitor::Attachment;
use crate::signals::Signals;
use crate::stats::RunStats;
use crate::time::now;
use crate::vms::log::LogStream;
use crate::vms::{Id, OwnedVm, Registry, State, Status, VmsError};

/// More than a monitor says about its start.
const MAX_REPORT: u64 = 64 << 10;

/// How a start went, on its way from the monitor.
type Report = Result<(), StartFailure>;

/// A VM whose main process was to start and did not. It is the caller's again.
#[derive(Debug)]
pub struct NotStarted {
    /// The VM.
    pub vm: OwnedVm,
    /// Why.
    pub failure: StartFailure,
}

/// Starts `vm` in a process of its own, and returns when its main process has started.
///
/// # Errors
/// If it does not start.
pub fn start_detached(vm: OwnedVm) -> Result<(), Box<NotStarted>> {
    match spawn(&vm) {
        Ok(()) => {
            vm.hand_over();
            Ok(())
        }
        Err(failure) => Err(Box::new(NotStarted { vm, failure })),
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
    let others = inherited_descriptors();
    let Inherited { lock, report } = Inherited::take()?;
    // It was started through a link in /proc, whose name says nothing in a list of processes.
    let _ = rustix::thread::set_name(c"casita");
    // After a restart it is in a session of its own already.
    let _ = rustix::process::setsid();
    // No file system is kept busy by the place where somebody typed a command.
    std::env::set_current_dir("/")?;
    match prepare(id, lock) {
        Ok((vm, dirs, signals)) => live(vm, &dirs, &signals, report, last_delay, others),
        Err(error) => {
            tell(report, &Err(StartFailure::of(&*error)));
            Err(error)
        }
    }
}

fn prepare(id: &Id, lock: OwnedFd) -> Result<(OwnedVm, Dirs, Signals), CliError> {
    let signals = Signals::take_all()?;
    let dirs = Dirs::from_env()?;
    let vm = Registry::open(&dirs)?.adopt(id, lock.into())?;
    Ok((vm, dirs, signals))
}

fn live(
    mut vm: OwnedVm,
    dirs: &Dirs,
    signals: &Signals,
    report: File,
    last_delay: Option<Duration>,
    inherited: Vec<RawFd>,
) -> Result<ExitCode, CliError> {
    let restarted = last_delay.is_some();
    if restarted && vm.is_stop_asked() {
        return end_between_runs(vm);
    }
    let began = Instant::now();
    let log = match vm.log_writer() {
        Ok(log) => log,
        Err(error) => {
            tell(report, &Err(StartFailure::of(&error)));
            return Err(error.into());
        }
    };
    let around = Surroundings {
        dirs,
        signals,
        attachment: Attachment::Logged {
            stdout: Box::new(log.stream(LogStream::Stdout)),
            stderr: Box::new(log.stream(LogStream::Stderr)),
            terminal: vm.record().config.tty,
        },
        stats: RunStats::default(),
        inherited,
    };
    let after: After = Box::new(move |mut vm, ending, let_go| {
        let Ending {
            started,
            code,
            error,
        } = ending;
        if !started && !restarted {
            // The process that asked for the start waits, owns the VM, and decides what becomes of
            // it.
            tell_end(&mut vm, code, error)?;
            vm.hand_over();
        } else if vm.record().restart.says_again(code, vm.state().restarts) && !vm.is_stop_asked() {
            let delay = next_delay(last_delay, began.elapsed());
            restart(vm, (code, error), delay, let_go)?;
        } else {
            finish(vm, code, error)?;
        }
        Ok(())
    });
    let ready = about_to_run(&mut vm).map_err(CliError::from);
    let mut vm = match ready.and_then(|()| keep(vm, after)) {
        Ok(vm) => vm,
        Err(error) => {
            tell(report, &Err(StartFailure::of(&*error)));
            return Err(error);
        }
    };
    if let Some(keeper) = vm.keeper().cloned() {
        log.through(Box::new(move || keeper.next_log()));
    }
    let run = run_once(&mut vm, around, move |result| tell(report, &result))?;
    let ending = run.ending();
    if let Some(error) = &ending.error {
        log::error!("{error}");
    }
    let code = ending.code;
    vm.end(ending)?;
    Ok(code.into())
}

/// Tells whoever started this process, who may be gone, and closes the way to them.
fn tell(mut report: File, result: &Report) {
    let _ = serde_json::to_writer(&mut report, result).map(|()| report.flush());
}

/// Becomes the monitor of the next run, after a while.
fn restart(
    mut vm: OwnedVm,
    (code, error): (u8, Option<String>),
    delay: Duration,
    let_go: &dyn Fn(),
) -> Result<ExitCode, CliError> {
    vm.clean();
    let state = vm.state();
    vm.set_state(State {
        status: Status::Restarting,
        pid: Some(std::process::id()),
        exit_code: Some(code),
        error,
        finished: Some(now()),
        sandbox: None,
        ..state
    })?;
    // Whoever ran until now may have what the next run needs.
    let_go();
    if wait_unless_stopped(&vm, delay)? {
        return end_between_runs(vm);
    }
    vm.teller().update(|state| state.restarts += 1)?;
    let error = reexecute(&vm, delay)?;
    let error = format!("casita could not start itself again: {error}");
    finish(vm, crate::cli::EXIT_CASITA, Some(error))?;
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
    finish(vm, state.exit_code.unwrap_or(0), state.error)?;
    Ok(ExitCode::SUCCESS)
}
