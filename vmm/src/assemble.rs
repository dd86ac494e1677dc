//! The one recipe that makes a machine. Read it from top to bottom: files, memory, VM, devices,
//! boot state, vCPUs.
//!
//! The order is the cheap one: memory slots before the irqchip (see [`crate::kvm::vm`]), nothing
//! that can wait before the first `KVM_RUN`.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::Receiver;

use casita_agent::ports::Stage;
use casita_agent::spec::SpecError;
use casita_boot::layout::{SERIAL_GSI, SERIAL_PORT};
use casita_boot::{
    BootError, BootSpec, Cmdline, CmdlineError, EntryState, InitrdPart, LayoutError, MemoryLayout,
    VirtioMmio,
};
use casita_devices::bus::{Bus, BusDevice, BusError};
use casita_devices::event_loop::{EventLoop, EventLoopError, EventLoopHandle};
use casita_devices::power::{
    I8042_COMMAND_PORT, I8042Command, PowerEvent, PowerEvents, ResetRegister, SleepRegisters,
};
use casita_devices::serial::{self, Input, Output, Serial, SerialError};
use casita_devices::stamp::{self, StampDevice, StampEvent, monotonic_ns};
use casita_devices::virtio::block::{Block, BlockConfig, BlockError};
use casita_devices::virtio::device::VirtioDevice;
use casita_devices::virtio::rng::Rng;
use casita_devices::virtio::spec::mmio::QUEUE_NOTIFY;
use casita_devices::virtio::transport::mmio::{MmioTransport, TransportError};
use casita_devices::virtio::vsock::{Vsock, VsockConfig, VsockError};
use kvm_ioctls::{Kvm, VcpuFd};
use thiserror::Error;

use crate::config::{BootMode, ConfigError, DEFAULT_CPUS, DEFAULT_MEMORY, MachineConfig};
use crate::console::{Console, ConsoleInput};
use crate::dirs::Dirs;
use crate::disk::{Disk, DiskError, NewFile};
use crate::files::{Files, Opened};
use crate::kvm::cpuid::CpuidTemplate;
use crate::kvm::vm::{KvmError, Vm};
use crate::kvm::{self, entry, msr};
use crate::machine::{Devices, Event, EventSender, Keyboard, Machine};
use crate::memory::{GuestRam, MemoryError, PlanFiles};
use crate::rootfs::{RootImage, RootfsError};
use crate::signals::SignalHandler;
use crate::stats::RunStats;
use crate::vcpu::{self, Buses};
use crate::{doctor, guest, platform};

/// Why a machine could not be made. Nothing of it is left.
#[derive(Debug, Error)]
#[allow(missing_docs, reason = "each variant is the error it carries")]
pub enum AssembleError {
    /// No KVM.
    #[error(transparent)]
    Open(#[from] kvm::OpenError),
    /// A KVM that can't run guests: the doctor's sentence.
    #[error("{0}")]
    Unusable(String),
    /// A file that can't be opened.
    #[error("{what} {path} could not be opened", path = path.display())]
    File {
        what: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// A kernel or initrd that casita will not boot.
    #[error("{what} {path}: {source}", path = path.display())]
    Boot {
        what: &'static str,
        path: PathBuf,
        source: BootError,
    },
    /// A boot that can't be planned for another reason.
    #[error(transparent)]
    Plan(BootError),
    /// All places on the bus are taken.
    #[error(
        "no place is left for one more virtio device: at most {} fit",
        platform::MAX_VIRTIO_DEVICES
    )]
    NoSlot,
    /// A plain boot of nothing.
    #[error("--boot plain needs a root file system or an initrd: give --rootfs or --initrd")]
    NothingToBoot,
    /// A command without casita's agent to run it.
    #[error("--boot plain runs the image's own init, not a command: leave out {0:?}")]
    CommandInPlainBoot(String),
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Layout(#[from] LayoutError),
    #[error(transparent)]
    Memory(#[from] MemoryError),
    #[error(transparent)]
    Rootfs(#[from] RootfsError),
    #[error(transparent)]
    Disk(#[from] DiskError),
    #[error(transparent)]
    Cmdline(#[from] CmdlineError),
    #[error(transparent)]
    Spec(#[from] SpecError),
    #[error(transparent)]
    Kvm(#[from] KvmError),
    #[error(transparent)]
    Block(#[from] BlockError),
    #[error(transparent)]
    Vsock(#[from] VsockError),
    #[error(transparent)]
    Transport(#[from] TransportError),
    #[error(transparent)]
    Bus(#[from] BusError),
    #[error(transparent)]
    Serial(#[from] SerialError),
    #[error(transparent)]
    EventLoop(#[from] EventLoopError),
    /// The host refused something ordinary.
    #[error("the host could not {0}")]
    Host(&'static str, #[source] io::Error),
}

/// What casita itself is told beside the machine's description.
pub struct Surroundings<'a> {
    /// Where state is kept.
    pub dirs: &'a Dirs,
    /// What the user sits at.
    pub console: Console,
    /// Tells the machine's owner of events.
    pub sender: EventSender,
    /// What the owner is told.
    pub events: Receiver<Event>,
    /// The signals that end the machine, already taken over.
    pub signals: SignalHandler,
    /// Whether to refuse a KVM that can't run Linux before trying.
    pub check_kvm: bool,
    /// Stages so far.
    pub stats: RunStats,
}

/// Makes the machine that `config` describes, up to the first instruction.
///
/// # Errors
/// If anything that it needs is missing, wrong or refused.
pub fn assemble(
    config: &MachineConfig,
    around: Surroundings<'_>,
) -> Result<Machine, AssembleError> {
    let mut stats = around.stats;
    let kvm = kvm::open()?;
    if around.check_kvm {
        doctor::require_usable(&kvm, around.dirs).map_err(AssembleError::Unusable)?;
    }
    stats.stage("kvm-opened", monotonic_ns());

    let files = Files::open(config, around.dirs)?;
    let new_disk = files.disk.as_ref().map(NewFile::of);
    let agent_initrd = files.agent_initrd(config, around.console)?;
    let cmdline = guest::cmdline(config, files.root.is_some())?;
    stats.stage("files-opened", monotonic_ns());

    let memory = config.memory.unwrap_or(DEFAULT_MEMORY);
    let vm = Vm::new(&kvm, GuestRam::new(MemoryLayout::new(memory.bytes())?)?)?;
    stats.stage("vm-created", monotonic_ns());

    let io = spawn_io_thread(&around.sender)?;
    let signals = io.handle().add(around.signals)?;
    let serial = make_serial(&vm)?;
    let serial_output = serial.start_output(&io.handle())?;
    let keyboard = make_keyboard(around.console, &around.sender)?;
    let stamps = make_stamps(config, &around.sender);
    let mut virtio = VirtioBoard::new(&vm, io.handle());
    if let Some(root) = files.root {
        virtio.plug_in(root_device(root)?)?;
    }
    if let Some(disk) = files.disk {
        virtio.plug_in(disk_device(disk)?)?;
    }
    virtio.plug_in(Box::new(Rng::new("rng")))?;
    plug_in_vsock(config, &mut virtio)?;
    let VirtioBoard {
        mmio,
        slots,
        transports,
        ..
    } = virtio;
    let ports = make_ports(&serial, &stamps, &around.sender)?;
    stats.stage("devices-made", monotonic_ns());

    let vcpu_count = config.cpus.unwrap_or(DEFAULT_CPUS);
    let boot = Boot {
        kernel: &files.kernel,
        initrd: files.initrd.as_ref(),
        agent: agent_initrd.as_deref(),
    };
    let entry = boot.load(&vm, &cmdline, vcpu_count, slots)?;
    stats.stage("memory-loaded", monotonic_ns());

    vcpu::install_kick_handler().map_err(|error| AssembleError::Host("handle signals", error))?;
    let vcpus = make_vcpus(&kvm, &vm, vcpu_count, &entry)?;
    stats.stage("vcpus-made", monotonic_ns());

    if let Some(file) = new_disk {
        file.keep();
    }
    Ok(Machine {
        vcpus,
        buses: Buses {
            ports: Arc::new(ports),
            mmio: Arc::new(mmio),
        },
        devices: Devices {
            serial,
            serial_output,
            keyboard,
            stamps,
            virtio: transports,
        },
        signals,
        io,
        vm,
        sender: around.sender,
        events: around.events,
        stats,
    })
}

fn spawn_io_thread(sender: &EventSender) -> Result<EventLoop, EventLoopError> {
    const NAME: &str = "io";
    let sender = sender.clone();
    EventLoop::spawn(NAME, move |message| {
        sender.send(Event::Panicked {
            thread: NAME.to_owned(),
            message,
        });
    })
}

fn root_device(root: RootImage) -> Result<Box<dyn VirtioDevice>, BlockError> {
    let config = BlockConfig {
        read_only: true,
        serial: "root".to_owned(),
        ..BlockConfig::default()
    };
    Ok(Box::new(Block::new(root.file, &root.path, &config)?))
}

fn disk_device(disk: Disk) -> Result<Box<dyn VirtioDevice>, BlockError> {
    let config = BlockConfig {
        serial: "disk".to_owned(),
        // On a thread of its own a write into the page cache costs half: it needs no helper of the
        // ring's, and nobody else waits while it is copied.
        dedicated_thread: true,
        ..BlockConfig::default()
    };
    Ok(Box::new(Block::new(disk.file, &disk.path, &config)?))
}

/// Streams between guest and host, if the user wants some.
fn plug_in_vsock(
    config: &MachineConfig,
    virtio: &mut VirtioBoard<'_>,
) -> Result<(), AssembleError> {
    if let Some(path) = &config.vsock {
        let sockets = VsockConfig {
            base: Some(path.clone()),
            ..VsockConfig::default()
        };
        virtio.plug_in(Box::new(Vsock::new("vsock", &sockets)?))?;
    }
    Ok(())
}

/// Where virtio devices are plugged in.
struct VirtioBoard<'a> {
    vm: &'a Vm,
    io: EventLoopHandle,
    mmio: Bus,
    slots: Vec<VirtioMmio>,
    transports: Vec<Arc<MmioTransport>>,
}

impl<'a> VirtioBoard<'a> {
    fn new(vm: &'a Vm, io: EventLoopHandle) -> Self {
        Self {
            vm,
            io,
            mmio: Bus::default(),
            slots: Vec::new(),
            transports: Vec::new(),
        }
    }

    /// Puts `device` into the next slot: registers on the bus, an interrupt line, and a doorbell
    /// for each queue.
    fn plug_in(&mut self, device: Box<dyn VirtioDevice>) -> Result<(), AssembleError> {
        let name = device.name().to_owned();
        let slot = platform::virtio_slot(self.slots.len() as u32).ok_or(AssembleError::NoSlot)?;
        let interrupt = Arc::new(self.vm.interrupt(slot.gsi)?);
        let memory = self.vm.ram().memory().clone();
        let transport = Arc::new(MmioTransport::new(
            device,
            memory,
            interrupt,
            self.io.clone(),
        )?);
        for (index, event) in (0..).zip(transport.queue_events()) {
            self.vm.doorbell(event, slot.base + QUEUE_NOTIFY, index)?;
        }
        self.mmio
            .insert(slot.base, u64::from(slot.len), &name, transport.clone())?;
        self.slots.push(slot);
        self.transports.push(transport);
        Ok(())
    }
}

/// The serial port, with its output to casita's own.
fn make_serial(vm: &Vm) -> Result<Serial, AssembleError> {
    let output = Output::descriptor(io::stdout()).or_else(|error| match error.raw_os_error() {
        // Whoever closed it does not want to see anything.
        Some(libc::EBADF) => Ok(Output::writer(io::sink())),
        _ => Err(AssembleError::Host("use its standard output", error)),
    })?;
    Ok(Serial::new(Arc::new(vm.interrupt(SERIAL_GSI)?), output)?)
}

fn make_keyboard(console: Console, sender: &EventSender) -> Result<Keyboard, AssembleError> {
    let sender = sender.clone();
    let input = ConsoleInput::new(console, move || sender.send(Event::Escape))
        .map_err(|error| AssembleError::Host("use its standard input", error))?;
    Ok(input.map_or(Keyboard::None, |source| {
        Keyboard::Waiting(Input {
            source: Box::new(source),
            at_end: None,
        })
    }))
}

/// The guest's account of its boot. What is typed must wait until the agent has set the terminal
/// up, or the kernel would echo it; an image's own init shows its prompt before anyone types. The
/// agent tells the exit status last, when the disk is written back: that is the end.
fn make_stamps(config: &MachineConfig, sender: &EventSender) -> Arc<StampDevice> {
    if config.boot.unwrap_or_default() == BootMode::Plain {
        sender.send(Event::ConsoleReady);
        return Arc::new(StampDevice::new());
    }
    let sender = sender.clone();
    Arc::new(StampDevice::with_events(move |event| match event {
        StampEvent::Stage(stage) if stage == Stage::AgentReady as u8 => {
            sender.send(Event::ConsoleReady);
        }
        StampEvent::Stage(_) => {}
        StampEvent::Exit(_) => sender.send(Event::Power(PowerEvent::Off)),
    }))
}

/// The I/O ports: console, power, and the guest's own account of its boot.
fn make_ports(
    serial: &Serial,
    stamps: &Arc<StampDevice>,
    sender: &EventSender,
) -> Result<Bus, BusError> {
    let told = sender.clone();
    let power: PowerEvents = Arc::new(move |event| told.send(Event::Power(event)));
    let platform::PowerAt {
        sleep,
        reset,
        reset_value,
    } = platform::power_at();
    let devices: [(u64, u64, &str, Arc<dyn BusDevice>); 5] = [
        (
            u64::from(SERIAL_PORT),
            serial::LEN,
            "serial",
            Arc::new(serial.clone()),
        ),
        (
            sleep,
            SleepRegisters::LEN,
            "sleep",
            Arc::new(SleepRegisters::new(power.clone())),
        ),
        (
            reset,
            ResetRegister::LEN,
            "reset",
            Arc::new(ResetRegister::new(reset_value, power.clone())),
        ),
        (
            I8042_COMMAND_PORT,
            I8042Command::LEN,
            "i8042",
            Arc::new(I8042Command::new(power)),
        ),
        (stamp::PORT, stamp::LEN, "stamp", stamps.clone()),
    ];
    let mut ports = Bus::default();
    for (base, len, name, device) in devices {
        ports.insert(base, len, name, device)?;
    }
    Ok(ports)
}

/// What is put into guest memory before it runs.
struct Boot<'a> {
    kernel: &'a Opened,
    initrd: Option<&'a Opened>,
    agent: Option<&'a [u8]>,
}

impl Boot<'_> {
    fn load(
        &self,
        vm: &Vm,
        cmdline: &Cmdline,
        vcpus: u8,
        slots: Vec<VirtioMmio>,
    ) -> Result<EntryState, AssembleError> {
        let user = self.initrd.map(|opened| &opened.file);
        let parts: Vec<InitrdPart<'_>> = user
            .map(|file| InitrdPart::File(file))
            .into_iter()
            .chain(self.agent.map(InitrdPart::Bytes))
            .collect();
        let plan = casita_boot::plan(&BootSpec {
            kernel: &self.kernel.file,
            initrd: &parts,
            cmdline,
            memory: vm.ram().layout(),
            vcpus,
            devices: &platform::acpi_devices(slots),
        })
        .map_err(|source| self.blame(source))?;
        vm.ram().load(
            &plan,
            &PlanFiles {
                kernel: &self.kernel.file,
                initrd: &[user],
            },
        )?;
        Ok(plan.entry)
    }

    /// Names the file that `source` is about.
    fn blame(&self, source: BootError) -> AssembleError {
        let (what, path) = match (&source, self.initrd) {
            (BootError::Kernel(_), _) => ("kernel", &self.kernel.path),
            (BootError::Initrd(_), Some(initrd)) => ("initrd", &initrd.path),
            _ => return AssembleError::Plan(source),
        };
        AssembleError::Boot {
            what,
            path: path.clone(),
            source,
        }
    }
}

fn make_vcpus(
    kvm: &Kvm,
    vm: &Vm,
    count: u8,
    entry_state: &EntryState,
) -> Result<Vec<VcpuFd>, KvmError> {
    let cpuid = CpuidTemplate::new(kvm, count)?;
    (0..count)
        .map(|index| {
            let vcpu = vm
                .fd()
                .create_vcpu(u64::from(index))
                .map_err(KvmError::of(format!("create vCPU {index}")))?;
            vcpu.set_cpuid2(&cpuid.for_vcpu(index))
                .map_err(KvmError::of(format!("set CPUID of vCPU {index}")))?;
            msr::set_boot_msrs(&vcpu)?;
            msr::set_local_interrupts(&vcpu)?;
            if index == 0 {
                entry::set_registers(&vcpu, entry_state)?;
            }
            Ok(vcpu)
        })
        .collect()
}
