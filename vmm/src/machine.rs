//! A machine and its one owner: everything of a VM lives here, and only the thread that calls
//! [`RunningMachine::run`] decides about its end. Others tell it of [`Event`]s.

mod command;

use std::any::Any;
use std::fmt;
use std::fs::File;
use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use casita_devices::event_loop::{EventLoop, EventLoopError};
use casita_devices::power::PowerEvent;
use casita_devices::serial::{Input, Serial, SerialError, SerialOutput};
use casita_devices::stamp::{StampDevice, monotonic_ns};
use casita_devices::virtio::block::Traffic;
use casita_devices::virtio::spec::device_type;
use casita_devices::virtio::transport::mmio::MmioTransport;
use kvm_ioctls::VcpuFd;
use thiserror::Error;

use crate::confine::{self, Role};
use crate::kvm::vm::Vm;
use crate::link::AgentLink;
use crate::net::{NetDevice, NetworkState};
use crate::share::Share;
use crate::stats::RunStats;
use crate::vcpu::{Buses, Gate, VcpuFailure, VcpuReport, VcpuThread};
use crate::vm_stats::{self, BlockStats, NetStats, OwnMemory, VmStats};
pub use command::{Answer, Command, Ended, Reply};

/// What can happen to a machine that its owner must know.
#[derive(Debug)]
pub enum Event {
    /// The guest wrote a power register.
    Power(PowerEvent),
    /// A signal that ends casita arrived.
    Signal(i32),
    /// The user typed the console's escape key.
    Escape,
    /// The guest's agent is gone, and nobody has asked it to go.
    AgentGone,
    /// Somebody tells the machine to do something.
    Command(Command, Reply),
    /// A vCPU can't go on.
    VcpuFailed {
        /// Which.
        index: u8,
        /// Why.
        failure: VcpuFailure,
    },
    /// A thread of ours panicked.
    Panicked {
        /// Which.
        thread: String,
        /// What it said.
        message: String,
    },
}

/// Tells a machine's owner of events.
#[derive(Clone)]
pub struct EventSender(SyncSender<Event>);

/// More events than a machine's owner has reason to look at; a guest that causes more of them is
/// not heard.
const EVENTS_WAITING: usize = 64;

impl EventSender {
    /// Tells it; a machine that has ended, or is about to, does not care.
    pub fn send(&self, event: Event) {
        let _ = self.0.try_send(event);
    }
}

/// How long a guest without its agent, which is its first process, may take to panic.
const PATIENCE_WITHOUT_AGENT: Duration = Duration::from_secs(1);

/// The two ends of a machine's events.
pub fn events() -> (EventSender, Receiver<Event>) {
    let (sender, receiver) = sync_channel(EVENTS_WAITING);
    (EventSender(sender), receiver)
}

/// What a panic said.
pub fn panic_message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "without a message".to_owned())
}

/// How a machine ended.
#[derive(Debug)]
pub enum End {
    /// The guest powered off.
    PowerOff,
    /// The guest reset itself.
    Reset,
    /// The user left by the console's escape key.
    Escape,
    /// A signal asked for the end.
    Signal(i32),
    /// [`Command::Kill`] did.
    Killed,
    /// The guest's agent is gone, but not the guest.
    AgentGone,
    /// It could not go on.
    Failed(Failure),
}

/// Why a machine could not go on.
#[derive(Debug)]
pub enum Failure {
    /// A vCPU can't.
    Vcpu(u8, VcpuFailure),
    /// A thread of ours panicked.
    Panic(String, String),
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Vcpu(index, failure) => write!(f, "vCPU {index}: {failure}"),
            Self::Panic(thread, message) => {
                write!(
                    f,
                    "casita's own thread {thread} panicked, which is a bug of casita's: {message}"
                )
            }
        }
    }
}

/// Why a machine could not be run.
#[derive(Debug, Error)]
pub enum RunError {
    /// The host has no thread left.
    #[error("the host could not start a thread for vCPU {index}")]
    Thread {
        /// Which.
        index: u8,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// What serves the network can't be watched.
    #[error("the host could not start a thread for the network")]
    Network(#[source] io::Error),
    /// The I/O thread can't be started.
    #[error(transparent)]
    EventLoop(#[from] EventLoopError),
    /// The console can't be used.
    #[error(transparent)]
    Serial(#[from] SerialError),
}

/// What a machine leaves behind.
#[derive(Debug)]
pub struct Outcome {
    /// How it ended.
    pub end: End,
    /// The command's exit status, if the guest's agent told one.
    pub exit_status: Option<u8>,
    /// What the run cost.
    pub stats: RunStats,
}

/// The devices that their owner still talks to.
pub struct Devices {
    /// The console.
    pub serial: Serial,
    /// What the user types, from the start of the run on.
    pub keyboard: Option<Input>,
    /// The guest's own account of its boot and of its command's end.
    pub stamps: Arc<StampDevice>,
    /// All virtio devices, by their place on the bus.
    pub virtio: Vec<Arc<MmioTransport>>,
    /// The disks among them, by name.
    pub disks: Vec<(String, Arc<Traffic>)>,
    /// The guest's agent, if it has one.
    pub link: Option<AgentLink>,
    /// The programs that serve directories of the host. They go after the devices, which take their
    /// queues back from them.
    pub shares: Vec<Share>,
    /// What keeps the volumes among these directories from being removed.
    pub holds: Vec<File>,
    /// The network device, if there is one, and what serves it, which goes after the device.
    pub net: Option<NetDevice>,
}

impl Devices {
    /// What a kernel that says nothing of its boot shows by what it does to its devices.
    fn kernel_stages(&self, stats: &mut RunStats) {
        let probed = self.virtio.iter().filter_map(|device| device.probed_ns());
        if let Some(first) = probed.min() {
            stats.stage("devices-probed", first);
        }
        let mut disks = self.disks.iter();
        for device in &self.virtio {
            // Disks have the names of their files; here their places are meant.
            let name = match device.device() {
                (device_type::BLOCK, path) => disks.next().map_or(path, |(name, _)| name.clone()),
                (_, name) => name,
            };
            if let Some(at) = device.driver_ok_ns() {
                stats.stage(format!("driver-{name}"), at);
            }
        }
        for (name, traffic) in &self.disks {
            if let Some(at) = traffic.first_read_ns() {
                stats.stage(format!("first-read-{name}"), at);
            }
        }
    }
}

/// An assembled machine. Fields are dropped in this order: whatever uses guest memory goes before
/// the VM that owns it.
pub struct Machine {
    /// The vCPUs, ready to run.
    pub vcpus: Vec<VcpuFd>,
    /// Where their exits go.
    pub buses: Buses,
    /// The devices.
    pub devices: Devices,
    /// The I/O thread: all queues, the console's input.
    pub io: EventLoop,
    /// KVM's part, and guest memory.
    pub vm: Vm,
    /// The network, as it was made.
    pub network: NetworkState,
    /// For those who tell.
    pub sender: EventSender,
    /// What they told.
    pub events: Receiver<Event>,
    /// The length of its largest disk, in bytes.
    pub largest_disk: u64,
    /// Where the host's kernel counts this process's memory.
    pub own_memory: OwnMemory,
    /// What the start cost so far.
    pub stats: RunStats,
}

impl Machine {
    /// The guest's agent, if it has one.
    pub fn link(&self) -> Option<&AgentLink> {
        self.devices.link.as_ref()
    }

    /// Starts the threads of devices and vCPUs, and lets the guest run. From here on this thread,
    /// and those that it starts, make no system calls but those of [`Role::Control`].
    ///
    /// # Errors
    /// If the host has no thread left, or the console can't be used.
    pub fn start(mut self) -> Result<RunningMachine, RunError> {
        self.start_io()?;
        let mut running = Running::new(self.vcpus.len());
        for (index, fd) in (0..).zip(self.vcpus.drain(..)) {
            let (buses, gate) = (self.buses.clone(), running.gate.clone());
            let thread = VcpuThread::spawn(index, fd, buses, gate, self.sender.clone());
            let thread = thread.map_err(|source| RunError::Thread { index, source })?;
            running.threads.push(thread);
        }
        // The threads make themselves ready beside each other.
        let output = self.devices.serial.start_output(&self.io.handle())?;
        // They wait until this thread, too, has only what it needs.
        confine::enter_role(Role::Control);
        if let Some(net) = &mut self.devices.net {
            net.start().map_err(RunError::Network)?;
        }
        running.gate.resume();
        Ok(RunningMachine {
            running,
            machine: self,
            output,
        })
    }

    fn start_io(&mut self) -> Result<(), RunError> {
        let sender = self.sender.clone();
        self.io.start(move |message| {
            let thread = "io".to_owned();
            sender.send(Event::Panicked { thread, message });
        })?;
        Ok(())
    }
}

/// A machine whose guest runs. Dropping it ends the guest.
pub struct RunningMachine {
    /// The vCPUs, which go first.
    running: Running,
    machine: Machine,
    output: SerialOutput,
}

impl RunningMachine {
    /// Waits for the guest's end, and calls `on_end` before all that is taken apart.
    ///
    /// # Errors
    /// If the console can't be read.
    pub fn run(self, on_end: impl FnOnce()) -> Result<Outcome, RunError> {
        let Self {
            mut running,
            machine,
            output,
        } = self;
        let outcome = machine.run(&mut running, on_end);
        drop(output);
        outcome
    }
}

impl Machine {
    fn run(mut self, running: &mut Running, on_end: impl FnOnce()) -> Result<Outcome, RunError> {
        let typed = self.devices.keyboard.take();
        let _typed = typed
            .map(|input| self.devices.serial.start_input(&self.io.handle(), input))
            .transpose()?;
        let end = self.run_until_end(running);
        on_end();
        if let Some(net) = &self.devices.net {
            net.expect_end();
        }
        running.stop();
        self.finish_output(end.is_the_guests());
        let reports = running.join();

        let mut stats = self.stats;
        if let Some(boot) = reports.first() {
            stats.stage("first-kvm-run", boot.first_run_ns);
            if boot.first_exit_ns != 0 {
                stats.stage("kernel-entered", boot.first_exit_ns);
            }
        }
        for report in &reports {
            stats.exits.add(&report.exits);
        }
        stats.guest_stamps(&self.devices.stamps.stamps());
        self.devices.kernel_stages(&mut stats);
        stats.stage("end", monotonic_ns());
        stats.in_order();
        let status = self.devices.stamps.exit_status();
        let exit_status = status.map(|status| u8::try_from(status).unwrap_or(u8::MAX));
        Ok(Outcome {
            end,
            exit_status,
            stats,
        })
    }

    fn run_until_end(&self, running: &Running) -> End {
        let mut deadline = None;
        while let Some(event) = self.next_event(deadline) {
            match event {
                Event::AgentGone => {
                    deadline.get_or_insert_with(|| Instant::now() + PATIENCE_WITHOUT_AGENT);
                }
                Event::Command(Command::Kill, reply) => {
                    reply.answer(Answer::Done);
                    return End::Killed;
                }
                Event::Command(command, reply) => self.obey(command, reply, running),
                event => {
                    if let Some(end) = End::of(event) {
                        return end;
                    }
                }
            }
        }
        End::AgentGone
    }

    /// The next event; None if there is none until `deadline`.
    fn next_event(&self, deadline: Option<Instant>) -> Option<Event> {
        match deadline {
            // `self.sender` lives as long as the receiver, so there is always somebody to tell.
            None => self.events.recv().ok(),
            Some(at) => {
                let left = at.saturating_duration_since(Instant::now());
                self.events.recv_timeout(left).ok()
            }
        }
    }

    fn obey(&self, command: Command, reply: Reply, running: &Running) {
        match command {
            Command::Pause => {
                running
                    .gate
                    .pause(Box::new(move || reply.answer(Answer::Done)));
                running.kick();
            }
            Command::Resume => {
                running.gate.resume();
                reply.answer(Answer::Done);
            }
            Command::Stats => reply.answer(Answer::Stats(Box::new(self.vm_stats(running)))),
            Command::CpuTime => {
                let times = running.threads.iter().map(VcpuThread::cpu_time);
                reply.answer(Answer::CpuTime(times.sum()));
            }
            // Told apart by the caller.
            Command::Kill => {}
        }
    }

    fn vm_stats(&self, running: &Running) -> VmStats {
        let disks = self.devices.disks.iter();
        VmStats {
            cpu_ms: vm_stats::cpu_ms(),
            vcpus_ms: running.threads.iter().map(VcpuThread::cpu_ms).collect(),
            memory: self.own_memory.stats(self.vm.ram().layout().bytes()),
            block: disks
                .map(|(name, traffic)| BlockStats::of(name, traffic))
                .collect(),
            net: self.devices.net.iter().map(NetStats::of).collect(),
            uptime_ms: u64::try_from(running.since.elapsed().as_millis()).unwrap_or(u64::MAX),
            exits: running.threads.iter().map(VcpuThread::exits).sum(),
        }
    }

    /// Writes out what the guest has sent. After an end that the guest chose, all of it, however
    /// long its reader takes, unless a signal says that it is enough.
    fn finish_output(&self, patient: bool) {
        const PATIENCE: Duration = Duration::from_millis(200);
        while self.devices.serial.drain(PATIENCE) > 0 && patient {
            if let Ok(Event::Signal(_) | Event::Escape) = self.events.try_recv() {
                break;
            }
        }
        self.devices.serial.release();
    }
}

/// The vCPUs of a running machine.
struct Running {
    gate: Arc<Gate>,
    threads: Vec<VcpuThread>,
    since: Instant,
}

impl Running {
    fn new(vcpus: usize) -> Self {
        Self {
            gate: Arc::new(Gate::closed(vcpus)),
            threads: Vec::with_capacity(vcpus),
            since: Instant::now(),
        }
    }

    /// Makes all vCPUs end.
    fn stop(&self) {
        self.gate.stop();
        self.kick();
    }

    /// Waits until they have.
    fn join(&mut self) -> Vec<VcpuReport> {
        self.threads.drain(..).map(VcpuThread::join).collect()
    }

    /// Makes all vCPUs look at the gate.
    fn kick(&self) {
        self.threads.iter().for_each(VcpuThread::kick);
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop();
        self.join();
    }
}

impl End {
    fn is_the_guests(&self) -> bool {
        matches!(self, Self::PowerOff | Self::Reset)
    }
}

impl End {
    /// The end that `event` means, if it means one.
    fn of(event: Event) -> Option<Self> {
        Some(match event {
            Event::AgentGone | Event::Command(..) => return None,
            Event::Power(PowerEvent::Off) => Self::PowerOff,
            Event::Power(PowerEvent::Reset) => Self::Reset,
            Event::Signal(number) => Self::Signal(number),
            Event::Escape => Self::Escape,
            Event::VcpuFailed { index, failure } => Self::Failed(Failure::Vcpu(index, failure)),
            Event::Panicked { thread, message } => Self::Failed(Failure::Panic(thread, message)),
        })
    }
}
