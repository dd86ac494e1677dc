//! One VM's life in this process: it is assembled and run, its main process's streams are carried,
//! and whoever wants something of it is served.
//!
//! The thread that calls [`run`] owns the machine. Beside it there are one for the main process,
//! one for signals, one for the control socket, and one for the clock if the VM has a time limit;
//! all of them share the [`hub::Hub`].

mod console_log;
mod end;
mod hub;
mod main_process;

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use casita_devices::stamp::monotonic_ns;
use casita_devices::virtio::vsock::Ports;
use log::Level;
use rustix::io::fcntl_dupfd_cloexec;
use thiserror::Error;

use crate::assemble::{AssembleError, ConsoleUse, OnAgent, Surroundings, assemble};
use crate::config::{BootMode, MachineConfig};
use crate::confine::{self, ConfineError, Confined, Confinement, Layer, Missing, Role};
use crate::console::{Console, RawTerminal};
use crate::control::{ControlServer, ControlSocket, ControlTarget};
use crate::dirs::Dirs;
use crate::link::{LinkError, LinkEvent};
use crate::machine::{End, Event, EventSender, Machine, Outcome, RunError, RunningMachine, events};
use crate::net::Identity;
use crate::session::{Forwarder, Target};
use crate::signals::{self, Signals, Watcher};
use crate::stats::RunStats;
use crate::vms::Teller;

pub use console_log::ConsoleLog;
pub use end::Ended;
pub use main_process::{Attachment, OnStarted};

use hub::Hub;
use main_process::MainProcess;

/// How long clients of the control socket may take to read their last reply.
const LAST_WORDS: Duration = Duration::from_millis(500);
/// How long output may take to be written after an end that nobody waits for.
const IMPATIENT: Duration = Duration::from_millis(200);
/// More than a machine with some dozens of commands has open, and no more than a process may have
/// everywhere.
const DESCRIPTORS: i32 = 1024;

/// A VM to be run.
pub struct VmRun<'a> {
    /// What it is.
    pub config: &'a MachineConfig,
    /// Where casita keeps its files.
    pub dirs: &'a Dirs,
    /// Our signals, taken over before any other thread existed.
    pub signals: &'a Signals,
    /// Where its streams lead. A VM without casita's agent has only its console: that is
    /// `stdout` of [`Attachment::Logged`], and our own terminal else.
    pub attachment: Attachment,
    /// The folder for the control socket, private to this user; without one there is no socket.
    pub runtime_dir: Option<&'a Path>,
    /// For telling whether the VM is paused; without one nobody is told.
    pub teller: Option<Teller>,
    /// How this process confines itself, for good, before the guest's first instruction; without
    /// it, it does not.
    pub confine: Option<Confine>,
    /// For what the kernel and the agent write to the console.
    pub console_log: Option<File>,
    /// Whether to refuse a KVM that can't run Linux before trying.
    pub check_kvm: bool,
    /// Told when the main process runs; for a plain boot, when the guest is about to.
    pub on_started: Option<OnStarted>,
    /// What its network goes by.
    pub identity: Identity,
    /// Called before this process ends at once, as it was asked to twice while the machine was
    /// being made.
    pub on_given_up: Option<OnGivenUp>,
    /// Stages so far.
    pub stats: RunStats,
}

/// See [`VmRun::on_given_up`].
pub type OnGivenUp = Box<dyn FnOnce() + Send>;

/// How a process that runs a VM confines itself. It can do little more afterwards than to end.
pub struct Confine {
    /// How.
    pub how: Confinement,
    /// The cgroup that was made for it, or why there is none.
    pub cgroup: Box<dyn FnOnce() -> Result<PathBuf, String>>,
    /// The process whose namespaces were made for it.
    pub room: Box<dyn FnOnce() -> Option<OwnedFd>>,
    /// Told what it was confined to.
    pub on_confined: Box<dyn FnOnce(&Confined)>,
    /// Told that the guest has ended, and this process is about to.
    pub on_ending: OnEnding,
    /// The way to vsock ports of the host, which this process can't reach by itself any more.
    pub ports: Ports,
}

/// See [`Confine::on_ending`].
pub type OnEnding = Box<dyn FnOnce()>;

/// Why a VM could not be run. Nothing of it is left.
#[derive(Debug, Error)]
pub enum MonitorError {
    /// It could not be made.
    #[error(transparent)]
    Assemble(#[from] AssembleError),
    /// It could not be run.
    #[error(transparent)]
    Run(#[from] RunError),
    /// The process that is to run it could not be confined.
    #[error(transparent)]
    Confine(#[from] ConfineError),
    /// Its agent could not be listened to.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// The host refused something ordinary.
    #[error("the host could not {0}")]
    Host(&'static str, #[source] io::Error),
}

/// Runs a VM until its end, and carries what its main process writes until that is written.
///
/// # Errors
/// If it can't be made or run.
pub fn run(vm: VmRun<'_>) -> Result<Ended, MonitorError> {
    enlarge_descriptor_table();
    match vm.config.boot.unwrap_or_default() {
        BootMode::Agent => run_with_agent(vm),
        BootMode::Plain => run_plain(vm),
    }
}

/// The kernel's table of our descriptors grows to its size while there is one thread. With more it grows
/// only when all of RCU's readers are done, some 10 ms in which the guest's first connection would wait.
fn enlarge_descriptor_table() {
    if let Err(error) = fcntl_dupfd_cloexec(io::stderr(), DESCRIPTORS - 1) {
        log::debug!("the table of file descriptors stays as it is: {error}");
    }
}

fn run_with_agent(vm: VmRun<'_>) -> Result<Ended, MonitorError> {
    let log = ConsoleLog::new(vm.console_log, log::max_level() >= Level::Info)
        .map_err(|error| MonitorError::Host("write the console's log", error))?;
    let (sender, receiver) = events();
    let early = watch_early(vm.signals, &sender, vm.on_given_up)?;
    let ending = Arc::new(AtomicBool::new(false));
    let machine = assemble(
        vm.config,
        Surroundings {
            dirs: vm.dirs,
            console: ConsoleUse::Log(Box::new(log.clone())),
            on_agent: tell_of_agent(&sender, &ending),
            sender: sender.clone(),
            events: receiver,
            check_kvm: vm.check_kvm,
            identity: vm.identity,
            ports: ports(vm.confine.as_ref()),
            stats: vm.stats,
        },
    )?;
    tell_network(vm.teller.as_ref(), &machine);
    let link = machine.link().cloned().ok_or(LinkError::Gone)?;
    let hub = Hub::new(
        sender.clone(),
        Some(link.clone()),
        vm.config,
        ending,
        vm.teller,
    );
    let target: Arc<dyn Target> = hub.clone();
    let forwarder = Arc::new(Forwarder::new(target, vm.attachment.is_raw()));
    drop(early);
    let socket = listen(vm.runtime_dir)?;
    let attached = matches!(vm.attachment, Attachment::Attached(_));
    let (machine, on_ending) = start(machine, vm.confine, attached)?;
    link.listen_to_agent()?;
    let on_signal = forwarder.clone();
    let signals = watch(vm.signals, move |signal| on_signal.on_signal(signal))?;
    let control = serve(socket, &hub)?;
    start_clock(&hub)?;
    let main_process = MainProcess {
        hub: hub.clone(),
        link: link.clone(),
        events: sender,
        attachment: vm.attachment,
        forwarder,
        on_started: vm.on_started,
    };
    let worker = spawn("command", move || main_process.run())?;

    let outcome = machine.run(on_ending);
    hub.machine_ended();
    link.gone();
    let told = hub.wait_finished(patience(&outcome));
    let told = told.then(|| worker.join().ok()).flatten();
    hub.restore_terminal();
    finish(control);
    drop(signals);
    Ok(end::of_agent(outcome?, told, hub.is_timed_out(), &log))
}

fn run_plain(vm: VmRun<'_>) -> Result<Ended, MonitorError> {
    let (sender, receiver) = events();
    let early = watch_early(vm.signals, &sender, vm.on_given_up)?;
    let own = Console::detect();
    let attached = matches!(vm.attachment, Attachment::Attached(_));
    let (console, raw) = match vm.attachment {
        Attachment::Attached(_) => (ConsoleUse::Own(own), matches!(own, Console::Terminal)),
        Attachment::Logged { stdout, .. } => (ConsoleUse::Log(stdout), false),
    };
    let machine = assemble(
        vm.config,
        Surroundings {
            dirs: vm.dirs,
            console,
            on_agent: Box::new(|_| ()),
            sender: sender.clone(),
            events: receiver,
            check_kvm: vm.check_kvm,
            identity: vm.identity,
            ports: ports(vm.confine.as_ref()),
            stats: vm.stats,
        },
    )?;
    tell_network(vm.teller.as_ref(), &machine);
    drop(early);
    let socket = listen(vm.runtime_dir)?;
    let (machine, on_ending) = start(machine, vm.confine, attached)?;
    let told = sender.clone();
    let signals = watch(vm.signals, move |signal| {
        if signals::ENDING.contains(&signal) {
            told.send(Event::Signal(signal));
        }
    })?;
    let hub = Hub::new(sender, None, vm.config, Arc::default(), vm.teller);
    let control = serve(socket, &hub)?;
    start_clock(&hub)?;
    let raw = raw.then(RawTerminal::enter).transpose();
    let raw = raw.map_err(|error| MonitorError::Host("set the terminal up", error))?;
    if let Some(on_started) = vm.on_started {
        on_started(1);
    }
    let outcome = machine.run(on_ending);
    hub.machine_ended();
    drop(raw);
    finish(control);
    drop(signals);
    Ok(end::of_plain(outcome?, hub.is_timed_out()))
}

/// Tells everybody what the VM's network is.
fn tell_network(teller: Option<&Teller>, machine: &Machine) {
    let told = teller.map(|teller| teller.tell_network(machine.network.clone()));
    if let Some(Err(error)) = told {
        log::warn!("{error}");
    }
}

/// The end of the agent's connection is news unless it is expected.
fn tell_of_agent(sender: &EventSender, ending: &Arc<AtomicBool>) -> OnAgent {
    let (sender, ending) = (sender.clone(), ending.clone());
    Box::new(move |event| {
        if event == LinkEvent::Gone && !ending.load(Ordering::Acquire) {
            sender.send(Event::AgentGone);
        }
    })
}

/// How long the output may take after this end; without a limit if the guest chose it.
fn patience(outcome: &Result<Outcome, RunError>) -> Option<Duration> {
    match outcome.as_ref().map(|outcome| &outcome.end) {
        Ok(End::PowerOff | End::Reset) => None,
        _ => Some(IMPATIENT),
    }
}

/// While there is nobody to forward signals to, those that ask for the end end the machine as soon
/// as there is one. That may take its time, when an image is packed first: the second does not
/// wait for it.
fn watch_early(
    signals: &Signals,
    sender: &EventSender,
    mut on_given_up: Option<OnGivenUp>,
) -> Result<Watcher, MonitorError> {
    let sender = sender.clone();
    let mut asked = false;
    watch(signals, move |signal| {
        if signals::ENDING.contains(&signal) {
            if std::mem::replace(&mut asked, true) {
                if let Some(clean_up) = on_given_up.take() {
                    clean_up();
                }
                std::process::exit(128 + signal);
            }
            sender.send(Event::Signal(signal));
        }
    })
}

fn watch(
    signals: &Signals,
    on_signal: impl FnMut(i32) + Send + 'static,
) -> Result<Watcher, MonitorError> {
    let watcher = signals.watch(on_signal);
    watcher.map_err(|error| MonitorError::Host("wait for signals", error))
}

fn ports(confine: Option<&Confine>) -> Option<Ports> {
    confine.map(|confine| confine.ports.clone())
}

/// Lets the guest run, once this process is confined: all that the VM needs is open, and this is
/// the only thread.
fn start(
    mut machine: Machine,
    confine: Option<Confine>,
    attached: bool,
) -> Result<(RunningMachine, OnEnding), MonitorError> {
    let Some(Confine {
        mut how,
        cgroup,
        room,
        on_confined,
        on_ending,
        ..
    }) = confine
    else {
        return Ok((machine.start()?, Box::new(|| ())));
    };
    match cgroup() {
        Ok(dir) => how.cgroup = Some(dir),
        Err(why) => how.missing.push(Missing {
            layer: Layer::CgroupLimits,
            why,
        }),
    }
    how.room = room();
    how.most.file = file_limit(&machine, attached);
    let confined = confine::enter(how)?;
    machine.stats.stage("confined", monotonic_ns());
    let machine = machine.start()?;
    // The guest need not wait for this.
    on_confined(&confined);
    Ok((machine, on_ending))
}

/// The length that no file of ours has to grow beyond: that of the largest disk, or of logs. A file
/// that the user has given us as standard output may be longer than any.
fn file_limit(machine: &Machine, attached: bool) -> Option<u64> {
    const LOGS: u64 = 256 << 20;
    let is_file = |fd: BorrowedFd<'_>| {
        rustix::fs::fstat(fd).is_ok_and(|found| {
            rustix::fs::FileType::from_raw_mode(found.st_mode) == rustix::fs::FileType::RegularFile
        })
    };
    let given = attached && (is_file(io::stdout().as_fd()) || is_file(io::stderr().as_fd()));
    (!given).then(|| machine.largest_disk.max(LOGS))
}

fn listen(dir: Option<&Path>) -> Result<Option<ControlSocket>, MonitorError> {
    dir.map(ControlSocket::listen)
        .transpose()
        .map_err(|error| MonitorError::Host("make the VM's control socket", error))
}

fn serve(
    socket: Option<ControlSocket>,
    hub: &Arc<Hub>,
) -> Result<Option<ControlServer>, MonitorError> {
    let target: Arc<dyn ControlTarget> = hub.clone();
    socket
        .map(|socket| ControlServer::serve(socket, target))
        .transpose()
        .map_err(|error| MonitorError::Host("make the VM's control socket", error))
}

fn finish(control: Option<ControlServer>) {
    if let Some(control) = control {
        control.finish(LAST_WORDS);
    }
}

/// Ends the VM when its time is over, if it has a limit.
fn start_clock(hub: &Arc<Hub>) -> Result<(), MonitorError> {
    if let Some(timeout) = hub.config().timeout {
        let hub = hub.clone();
        spawn("clock", move || hub.watch_clock(timeout.duration()))?;
    }
    Ok(())
}

fn spawn<T: Send + 'static>(
    name: &str,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<JoinHandle<T>, MonitorError> {
    thread::Builder::new()
        .name(name.into())
        .spawn(move || {
            confine::enter_role(Role::Control);
            work()
        })
        .map_err(|error| MonitorError::Host("start a thread", error))
}
