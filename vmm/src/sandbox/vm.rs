//! The process that runs the VM of one run: it hears an order at its standard input, which is a
//! socket, makes the machine, has the run conducted and watched, and reports.

use std::io::{self, PipeWriter, Read};
use std::os::fd::{AsFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use casita_agent::wire::{Exit, GroupLimits};
use casita_devices::virtio::block::Traffic;
use casita_net::EgressPolicy;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{Mode, OFlags, open};
use rustix::stdio::dup2_stdin;

use super::channel::{self, Kind, Order, PROTOCOL, Report};
use super::conductor::{Caller, Conducted, Conductor, Told};
use super::request::ImageSource;
use super::result::{End, Usage};
use super::rusage;
use super::watch::Watch;
use crate::assemble::{ConsoleUse, Surroundings, assemble};
use crate::cli::{CliError, EXIT_CASITA, in_one_line};
use crate::config::{MachineConfig, MemorySize};
use crate::confine::{self, Confinement, Ids, Layer, Missing, Most, Role, inherited_descriptors};
use crate::dirs::Dirs;
use crate::disk::DiskSpec;
use crate::images::{self, ImagesError};
use crate::link::{LinkError, LinkEvent};
use crate::machine::{self, Event, Outcome, events};
use crate::monitor::ConsoleLog;
use crate::net::Identity;
use crate::net::spec::{NetMode, NetSpec};
use crate::stats::RunStats;
use crate::vms::Id;

/// How long a guest may take to boot and to get its files.
pub(super) const PATIENCE_PREPARE: Duration = Duration::from_mins(5);
/// How long it may take to give files out.
pub(super) const PATIENCE_TAKE: Duration = Duration::from_mins(1);
/// What a VM has beside its command's memory, for its kernel and its agent: this, and a part of
/// the memory for what the kernel keeps of each page.
const HEADROOM: u64 = 48 << 20;
const HEADROOM_SHARE: u64 = 32;

/// Runs the VM that whoever holds the other end of standard input orders.
///
/// # Errors
/// If standard input is no socket of a caller's.
pub fn vm_process() -> Result<ExitCode, CliError> {
    let began = Instant::now();
    let inherited = inherited_descriptors();
    let mut socket = take_stdin()?;
    let order = receive_order(&mut socket)?;
    let early = CallerWatch::start(&socket)?;
    let caller = Caller::new(socket.try_clone()?);
    match run(order, &caller, socket, (began, early, inherited)) {
        Ok(report) => {
            caller.send(Kind::Report, &serde_json::to_vec(&report)?);
            Ok(ExitCode::SUCCESS)
        }
        Err(error) => {
            let images = error.downcast_ref::<ImagesError>();
            let why = if images.is_some_and(ImagesError::is_told) {
                String::new()
            } else {
                in_one_line(&*error)
            };
            caller.send(Kind::Refused, why.as_bytes());
            Ok(EXIT_CASITA.into())
        }
    }
}

/// Takes the socket away from standard input, which nobody else is to find it at.
fn take_stdin() -> Result<UnixStream, CliError> {
    let own = rustix::io::fcntl_dupfd_cloexec(io::stdin().as_fd(), 3)?;
    if rustix::net::sockopt::socket_domain(&own) != Ok(rustix::net::AddressFamily::UNIX) {
        return Err("this verb is casita's own: use casita sandbox".into());
    }
    let nothing = open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
    dup2_stdin(&nothing)?;
    Ok(UnixStream::from(own))
}

fn receive_order(from: &mut impl Read) -> Result<Order, CliError> {
    let mut content = Vec::new();
    if channel::receive(from, &mut content)? != Some(Kind::Order) {
        return Err("the caller sent no order".into());
    }
    let value: serde_json::Value = channel::json(&content)?;
    if value["protocol"] != PROTOCOL {
        return Err("the caller is of another version than this casita".into());
    }
    Ok(serde_json::from_value(value)?)
}

/// Ends this process as soon as its caller is gone, whatever it is at. There is one before the
/// process confines itself, for which it must have one thread, and one after that.
struct CallerWatch {
    thread: Option<JoinHandle<()>>,
    /// Its other end is the thread's.
    stop: Option<PipeWriter>,
}

impl CallerWatch {
    fn start(caller: &UnixStream) -> io::Result<Self> {
        let caller = OwnedFd::from(caller.try_clone()?);
        let (stopped, stop) = io::pipe()?;
        let wait = move || {
            let mut fds = [
                PollFd::new(&caller, PollFlags::empty()),
                PollFd::new(&stopped, PollFlags::empty()),
            ];
            while !matches!(poll(&mut fds, None), Ok(1..)) {}
            if fds[1].revents().is_empty() {
                std::process::exit(EXIT_CASITA.into());
            }
        };
        Ok(Self {
            thread: Some(spawn("caller", wait)?),
            stop: Some(stop),
        })
    }
}

impl Drop for CallerWatch {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // It does not panic.
            let _ = thread.join();
        }
    }
}

fn spawn<T: Send + 'static>(
    name: &str,
    work: impl FnOnce() -> T + Send + 'static,
) -> io::Result<JoinHandle<T>> {
    thread::Builder::new().name(name.to_owned()).spawn(move || {
        confine::enter_role(Role::Control);
        work()
    })
}

/// Confines this process as that of any VM, but for the cgroup, which takes a process that stays
/// outside to make and remove it.
fn enter_confinement(
    id: &Id,
    config: &MachineConfig,
    largest_disk: u64,
    inherited: Vec<RawFd>,
) -> Result<(), CliError> {
    confine::enter(Confinement {
        ids: Some(Ids::of_vm(id.as_str())),
        most: Most {
            threads: None,
            guest_memory: config.memory.map_or(0, MemorySize::bytes),
            file: Some(largest_disk),
        },
        missing: vec![Missing {
            layer: Layer::CgroupLimits,
            why: "a run of casita sandbox has none".to_owned(),
        }],
        inherited,
        ..Confinement::default()
    })?;
    Ok(())
}

/// The machine that an order means.
fn machine_of(order: &Order, dirs: &Dirs) -> Result<MachineConfig, CliError> {
    let limits = &order.limits;
    limits.check()?;
    let config = MachineConfig {
        kernel: order.kernel.clone(),
        disk: Some(DiskSpec::Temporary { size: limits.disk }),
        memory: Some(vm_memory(limits.memory)?),
        net: Some(network(&order.egress)),
        egress: (order.egress != EgressPolicy::None).then(|| order.egress.clone()),
        cpus: Some(order.cpus),
        command: order.command.clone(),
        env: order.env.clone(),
        workdir: order.workdir.clone(),
        user: order.user.clone(),
        ..MachineConfig::default()
    };
    Ok(match &order.image {
        ImageSource::BuiltIn => config,
        ImageSource::Rootfs(path) => MachineConfig {
            rootfs: Some(path.clone()),
            ..config
        },
        ImageSource::Reference(name) => {
            let image = images::resolve(name, order.pull, dirs)?;
            MachineConfig {
                rootfs: Some(image.path),
                ..config.with_image(&image.config)
            }
        }
    })
}

/// Who may reach nothing needs no device to be kept from it.
fn network(egress: &EgressPolicy) -> NetSpec {
    NetSpec {
        mode: match egress {
            EgressPolicy::None => NetMode::None,
            _ => NetMode::User,
        },
        ..NetSpec::default()
    }
}

/// The VM's memory, when its command may have `memory` bytes.
fn vm_memory(memory: u64) -> Result<MemorySize, String> {
    let bytes = memory + memory / HEADROOM_SHARE + HEADROOM;
    format!("{}M", bytes.div_ceil(1 << 20)).parse()
}

fn run(
    order: Order,
    caller: &Caller,
    inputs: UnixStream,
    (began, early, inherited): (Instant, CallerWatch, Vec<RawFd>),
) -> Result<Report, CliError> {
    let dirs = Dirs::from_env()?;
    let config = machine_of(&order, &dirs)?;
    let log = ConsoleLog::new(None, false)?;
    let (sender, receiver) = events();
    let watch = Watch::new(order.limits, order.cpus, sender.clone());
    let ending = Arc::new(AtomicBool::new(false));
    let on_agent = {
        let (watch, ending, sender) = (watch.clone(), ending.clone(), sender.clone());
        move |event| {
            watch.on_link(event);
            if event == LinkEvent::Gone && !ending.load(Ordering::Acquire) {
                sender.send(Event::AgentGone);
            }
        }
    };
    let id = Id::random()?;
    let machine = assemble(
        &config,
        Surroundings {
            dirs: &dirs,
            console: ConsoleUse::Log(Box::new(log.clone())),
            on_agent: Box::new(on_agent),
            sender: sender.clone(),
            events: receiver,
            identity: Identity {
                id: id.to_string(),
                ..Identity::default()
            },
            check_kvm: order.check_kvm,
            ports: None,
            stats: RunStats::default(),
        },
    )?;
    drop(early);
    let link = machine.link().cloned().ok_or(LinkError::Gone)?;
    let disk = machine
        .devices
        .disks
        .iter()
        .find(|(name, _)| name == "disk");
    let disk = disk.map(|(_, traffic)| traffic.clone());
    let mut process = config.main_process(None);
    process.group = Some(GroupLimits {
        memory: order.limits.memory,
        processes: order.limits.processes,
    });
    let conductor = Conductor {
        order,
        process,
        link: link.clone(),
        watch: watch.clone(),
        caller: caller.clone(),
        inputs,
    };
    enter_confinement(&id, &config, machine.largest_disk, inherited)?;
    let machine = machine.start()?;
    link.listen_to_agent()?;
    let _caller = CallerWatch::start(&conductor.inputs)?;
    let conducted = {
        let (watch, ending) = (watch.clone(), ending);
        spawn("command", move || {
            let conducted = conductor.run();
            ending.store(true, Ordering::Release);
            watch.over();
            // Nothing of the guest is kept, so there is no reason to let it end by itself.
            let _ = sender.command(machine::Command::Kill);
            conducted
        })?
    };
    let watching = watch.clone();
    spawn("clock", move || watching.run())?;

    let outcome = machine.run(|| ())?;
    link.gone();
    let conducted = conducted.join().map_err(|_| "the conductor panicked")?;
    report(&outcome, conducted, &watch, &log, disk.as_deref(), began)
}

fn report(
    outcome: &Outcome,
    conducted: Conducted,
    watch: &Watch,
    log: &ConsoleLog,
    disk: Option<&Traffic>,
    began: Instant,
) -> Result<Report, CliError> {
    let told = match conducted.told {
        Ok(told) => told,
        Err(_) if watch.is_late() => return Err(LATE.into()),
        Err(why) => return Err(why.into()),
    };
    if !watch.is_started() {
        return Err(not_prepared(outcome, watch, log).into());
    }
    let usage = watch.usage();
    Ok(Report {
        end: end(outcome, told, watch, log),
        truncated: conducted.truncated,
        not_taken: conducted.not_taken,
        usage: Usage {
            disk_written_bytes: disk.map_or(0, Traffic::write_bytes),
            exits: outcome.stats.exits.total(),
            start_ms: watch.start_ms(began).unwrap_or_default(),
            monitor: rusage::of_this_process(),
            ..usage
        },
    })
}

const LATE: &str = "the guest was not prepared in time";

/// Why a guest has come to its end before its command was started.
fn not_prepared(outcome: &Outcome, watch: &Watch, log: &ConsoleLog) -> String {
    let why = match &outcome.end {
        _ if watch.is_late() => return LATE.to_owned(),
        machine::End::Failed(failure) => failure.to_string(),
        _ => "the guest could not be prepared".to_owned(),
    };
    match log.last_lines().first() {
        Some(line) => format!("{why}: {line}"),
        None => why,
    }
}

/// How the run ended.
fn end(outcome: &Outcome, told: Told, watch: &Watch, log: &ConsoleLog) -> End {
    if let Some(limit) = watch.limit() {
        return End::Limit { limit };
    }
    match told {
        Told::Exited(Exit::Code(code)) => End::Exited { code },
        Told::Exited(Exit::Signal(signal)) => End::Signaled { signal },
        Told::NotStarted { code, message } => End::NotStarted { code, message },
        Told::Gone => End::Broken {
            message: broken(outcome, log),
        },
    }
}

fn broken(outcome: &Outcome, log: &ConsoleLog) -> String {
    let why = match &outcome.end {
        machine::End::Failed(failure) => failure.to_string(),
        machine::End::AgentGone => "something in the guest has ended its agent".to_owned(),
        machine::End::Reset => "the guest has reset itself".to_owned(),
        _ => "the guest was switched off from within".to_owned(),
    };
    match log.panic().first() {
        Some(line) => format!("{why}: {line}"),
        None => why,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vm_is_larger_than_its_command() {
        for (memory, expected) in [
            (4 << 20, "53M"),
            (256 << 20, "312M"),
            ((256 << 20) + 1, "313M"),
        ] {
            assert_eq!(vm_memory(memory).unwrap().to_string(), expected);
        }
    }

    #[test]
    fn orders_of_another_version_are_told_as_such() {
        let mut bytes = Vec::new();
        let order = serde_json::json!({"protocol": PROTOCOL + 1, "new": true});
        channel::send_json(&mut bytes, Kind::Order, &order).unwrap();
        let error = receive_order(&mut bytes.as_slice())
            .unwrap_err()
            .to_string();
        assert!(error.contains("another version"), "{error}");
    }
}
