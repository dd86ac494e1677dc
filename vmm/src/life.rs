//! A VM's life around its monitor, the same whether somebody is attached or not: own the record,
//! tell its state, run, tell its end, remove or release it.
//!
//! A detached VM's monitor is this same program, started with the VM's lock as its standard input
//! (`detach`). What other processes do to a running VM is in `end`.

mod detach;
mod end;
mod keeper;
mod restart;

use std::fs::File;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use rustix::process::{getegid, geteuid};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::cli::{CliError, EXIT_CASITA};
use crate::config::{BootMode, DEFAULT_MEMORY, MachineConfig};
use crate::confine::{Confinement, Ids, Most, Sandbox, Told};
use crate::dirs::Dirs;
use crate::disk::{DEFAULT_SIZE, DiskSpec};
use crate::monitor::{self, Attachment, Confine, Ended, MonitorError, OnGivenUp, VmRun};
use crate::net::{Identity, Starter};
use crate::networks::Outside;
use crate::signals::Signals;
use crate::stats::RunStats;
use crate::time::now;
use crate::vms::{NewVm, News, OwnedVm, Registry, RestartPolicy, State, Status, VmsError};

use keeper::{After, Ending, Kept};

pub use detach::{NotStarted, monitor_process, start_detached};
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

/// What a run needs of this process.
pub struct Surroundings<'a> {
    /// Where casita keeps its files.
    pub dirs: &'a Dirs,
    /// Our signals, taken over before any other thread existed.
    pub signals: &'a Signals,
    /// Where the main process's streams lead.
    pub attachment: Attachment,
    /// Stages so far.
    pub stats: RunStats,
    /// Descriptors that this process was started with and has no use for.
    pub inherited: Vec<RawFd>,
}

/// How one run of a VM ended.
#[derive(Debug)]
struct Run {
    /// Whether its main process started.
    started: bool,
    ended: Result<Ended, MonitorError>,
}

impl Run {
    fn exit_code(&self) -> u8 {
        self.ended
            .as_ref()
            .map_or(EXIT_CASITA, |ended| ended.status)
    }

    /// Why it could not start or go on.
    fn error(&self) -> Option<String> {
        match &self.ended {
            Ok(ended) => ended.error.clone(),
            Err(error) => Some(crate::cli::in_one_line(error)),
        }
    }

    fn ending(&self) -> Ending {
        Ending {
            started: self.started,
            code: self.exit_code(),
            error: self.error(),
        }
    }

    fn failure(&self) -> StartFailure {
        let silent = || "the VM ended before its command had started".to_owned();
        StartFailure {
            status: match self.exit_code() {
                0 => EXIT_CASITA,
                code => code,
            },
            message: self.error().unwrap_or_else(silent),
        }
    }
}

/// Refuses what contradicts itself in a VM that is to run with somebody attached or, if
/// `detached`, without.
///
/// # Errors
/// One line that says what.
pub fn check(new: &NewVm, detached: bool) -> Result<(), CliError> {
    let (user, group) = (geteuid(), getegid());
    if !user.is_root() {
        let (uid, gid) = (new.config.uid, new.config.gid);
        check_own("--uid", uid, user.as_raw())?;
        check_own("--gid", gid, group.as_raw())?;
    }
    match new.restart {
        RestartPolicy::No => Ok(()),
        _ if new.rm => Err("--rm and --restart contradict each other: leave out one".into()),
        _ if !detached => Err("--restart needs -d: nobody can be attached to two runs".into()),
        _ => Ok(()),
    }
}

/// An ordinary user can't give a monitor another user or group than `own`.
fn check_own(option: &str, wanted: Option<u32>, own: u32) -> Result<(), CliError> {
    match wanted {
        Some(other) if other != own => Err(format!(
            "{option} {other} takes root: the monitor of an ordinary user stays {own}; leave it out"
        )
        .into()),
        _ => Ok(()),
    }
}

/// Records a VM and runs it to its end with somebody attached.
///
/// # Errors
/// If it can't be recorded, made, or run; if it did not start nothing is left of it.
pub fn run_attached(
    registry: &Registry,
    new: NewVm,
    around: Surroundings<'_>,
) -> Result<Ended, CliError> {
    check(&new, false)?;
    let after: After = Box::new(|vm, ending, _| {
        if ending.started {
            finish(vm, ending.code, ending.error)?;
        } else {
            vm.remove()?;
        }
        Ok(())
    });
    let mut vm = registry.create(new)?;
    if let Err(error) = about_to_run(&mut vm) {
        vm.remove()?;
        return Err(error.into());
    }
    let mut vm = keep(vm, after)?;
    let run = run_once(&mut vm, around, |_| {})?;
    vm.end(run.ending())?;
    Ok(run.ended?)
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
        Err(not_started) => {
            not_started.vm.remove()?;
            Err(not_started.failure.into())
        }
    }
}

/// A VM that is about to run, with the keeper that it needs if its monitor is to be confined.
fn keep(vm: OwnedVm, after: After) -> Result<Kept, CliError> {
    if vm.record().config.sandbox == Some(Sandbox::Off) {
        return Ok(Kept::by_itself(vm, after));
    }
    Kept::by_keeper(vm, after)
        .map_err(|error| format!("the VM's keeper could not be started: {error}").into())
}

fn about_to_run(vm: &mut OwnedVm) -> Result<(), VmsError> {
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
        sandbox: None,
        ..before
    })
}

/// How the monitor of `vm` is to confine itself; None if it is not.
fn confine(vm: &Kept, inherited: Vec<RawFd>) -> Option<Confine> {
    let keeper = vm.keeper()?.clone();
    let record = vm.vm.record();
    let config = &record.config;
    let own = Ids::of_vm(record.id.as_str());
    let ids = match (config.uid, config.gid) {
        (Some(0), None | Some(0)) => None,
        (uid, gid) => {
            let uid = uid.unwrap_or(own.uid);
            let gid = gid.unwrap_or(if config.uid.is_some() { uid } else { own.gid });
            Some(Ids { uid, gid })
        }
    };
    let (connecting, waiting, joining) = (keeper.clone(), keeper.clone(), keeper.clone());
    let ending = keeper.clone();
    Some(Confine {
        how: Confinement {
            strict: config.sandbox == Some(Sandbox::Strict),
            ids,
            most: Most {
                threads: config.pids_limit,
                guest_memory: config.memory.unwrap_or(DEFAULT_MEMORY).bytes(),
                file: None,
            },
            inherited,
            told: Some(Told {
                socket: keeper.socket().as_raw_fd(),
                lock: vm.vm.lock().map(AsRawFd::as_raw_fd),
            }),
            ..Confinement::default()
        },
        cgroup: Box::new(move || waiting.cgroup()),
        room: Box::new(move || joining.room()),
        on_confined: Box::new(move |confined| {
            if let Err(error) = keeper.confined(confined) {
                log::warn!("how the VM is confined could not be told: {error}");
            }
        }),
        on_ending: Box::new(move || {
            if let Err(error) = ending.ending() {
                log::debug!("the VM's end could not be told beforehand: {error}");
            }
        }),
        ports: Arc::new(move |port| connecting.connect(port)),
    })
}

/// Runs the VM once. `tell` is told when its main process has started, or why it has not.
fn run_once(
    kept: &mut Kept,
    around: Surroundings<'_>,
    tell: impl FnOnce(Result<(), StartFailure>) + Send + 'static,
) -> Result<Run, VmsError> {
    let confine = confine(kept, around.inherited);
    let vm = &kept.vm;
    let teller = match kept.keeper() {
        Some(keeper) => vm.teller().through(keeper.clone()),
        None => vm.teller(),
    };
    let (runtime_dir, console_log) = match surroundings_of(vm) {
        Ok(made) => made,
        Err(error) => {
            tell(Err(StartFailure::of(&error)));
            return Err(error);
        }
    };
    let config = machine_of(vm);
    let tell = Arc::new(Mutex::new(Some(tell)));
    let (told, telling) = (tell.clone(), teller.clone());
    let started = move |_| {
        if let Err(error) = telling.tell(News::Running) {
            log::warn!("{error}");
        }
        if let Some(tell) = taken(&told) {
            tell(Ok(()));
        }
    };
    // One that was made for this run; another one shows as dead.
    let is_new = matches!(around.attachment, Attachment::Attached(_)) || vm.record().rm;
    let on_given_up = is_new.then(|| Box::new(vm.remover()) as OnGivenUp);
    let ended = monitor::run(VmRun {
        config: &config,
        dirs: around.dirs,
        signals: around.signals,
        attachment: around.attachment,
        runtime_dir: Some(&runtime_dir),
        teller: Some(teller),
        confine,
        console_log,
        check_kvm: !vm.record().skip_kvm_check,
        on_started: Some(Box::new(started)),
        identity: Identity {
            id: vm.record().id.to_string(),
            name: vm.record().name.clone(),
            before: vm.state().network.map(|network| *network),
            outside: kept
                .keeper()
                .map(|keeper| keeper.clone() as Arc<dyn Outside>),
            starter: kept
                .keeper()
                .map(|keeper| keeper.clone() as Arc<dyn Starter>),
        },
        on_given_up,
        stats: around.stats,
    });
    let untold = taken(&tell);
    let run = Run {
        started: untold.is_none(),
        ended,
    };
    if let Some(tell) = untold {
        tell(Err(run.failure()));
    }
    Ok(run)
}

/// Makes what a VM needs beside its machine.
fn surroundings_of(vm: &OwnedVm) -> Result<(PathBuf, Option<File>), VmsError> {
    Ok((vm.runtime_dir()?, console_log(vm)?))
}

fn taken<T>(place: &Mutex<Option<T>>) -> Option<T> {
    place.lock().unwrap_or_else(PoisonError::into_inner).take()
}

/// The recorded machine, with the disk of its own that a VM has unless it is temporary or has got
/// another one.
fn machine_of(vm: &OwnedVm) -> MachineConfig {
    let record = vm.record();
    let mut config = record.config.clone();
    let agent = config.boot.unwrap_or_default() == BootMode::Agent;
    let size = match config.disk {
        None if agent => Some(DEFAULT_SIZE),
        // With a name it is kept under that.
        Some(DiskSpec::Temporary { size }) if config.name.is_none() => Some(size),
        _ => None,
    };
    if let (Some(size), false) = (size, record.rm) {
        config.disk = Some(DiskSpec::File {
            path: vm.disk_path(),
            size: Some(size),
        });
    }
    config
}

/// For the kernel's messages; a temporary VM has none to keep.
fn console_log(vm: &OwnedVm) -> Result<Option<File>, VmsError> {
    if vm.record().rm {
        return Ok(None);
    }
    let path = vm.console_log();
    let mut options = File::options();
    options.read(true).write(true).create(true).truncate(true);
    match options
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW)
        .open(&path)
    {
        Ok(file) => Ok(Some(file)),
        Err(source) => Err(VmsError::Io {
            doing: "make",
            path,
            source,
        }),
    }
}

/// Tells how it ended for good, and gives it up; it is removed if that was wanted.
fn finish(mut vm: OwnedVm, exit_code: u8, error: Option<String>) -> Result<(), VmsError> {
    let told = tell_end(&mut vm, exit_code, error);
    if vm.record().rm { vm.remove() } else { told }
}

fn tell_end(vm: &mut OwnedVm, exit_code: u8, error: Option<String>) -> Result<(), VmsError> {
    // First, so that nobody finds a state that has ended beside a socket.
    vm.clean();
    let state = vm.state();
    vm.set_state(State {
        status: Status::Exited,
        pid: None,
        exit_code: Some(exit_code),
        error,
        finished: Some(now()),
        ..state
    })
}
