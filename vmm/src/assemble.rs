//! The one recipe that makes a machine. Read it from top to bottom: files, memory, VM, devices,
//! boot state, vCPUs.
//!
//! The order is the cheap one: memory slots before the irqchip (see [`crate::kvm::vm`]), nothing
//! that can wait before the first `KVM_RUN`.

mod board;
mod boot;
mod mounts;

use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::Receiver;

use casita_agent::spec::SpecError;
use casita_boot::{BootError, CmdlineError, EntryState, LayoutError, MemoryLayout};
use casita_devices::bus::BusError;
use casita_devices::event_loop::{EventLoop, EventLoopError, on_thread_start};
use casita_devices::serial::SerialError;
use casita_devices::stamp::monotonic_ns;
use casita_devices::virtio::block::BlockError;
use casita_devices::virtio::fs::FsError;
use casita_devices::virtio::rng::Rng;
use casita_devices::virtio::transport::mmio::TransportError;
use casita_devices::virtio::vsock::{Ports, VsockError};
use kvm_ioctls::{Kvm, VcpuFd};
use rustix::process::{Resource, getrlimit, setrlimit};
use thiserror::Error;

use crate::config::{BootMode, ConfigError, DEFAULT_CPUS, DEFAULT_MEMORY, MachineConfig};
use crate::confine::{self, Role};
use crate::console::Console;
use crate::dirs::Dirs;
use crate::disk::{DiskError, NewFile};
use crate::files::Files;
use crate::kvm::cpuid::CpuidTemplate;
use crate::kvm::vm::{KvmError, Vm};
use crate::kvm::{self, entry, msr};
use crate::link::{self, AgentLink, LinkError, LinkEvent};
use crate::machine::{Devices, Event, EventSender, Machine};
use crate::memory::{GuestRam, MemoryError};
use crate::rootfs::RootfsError;
use crate::share::ShareError;
use crate::stats::RunStats;
use crate::vcpu::{self, Buses};
use crate::vm_stats::OwnMemory;
use crate::volume::VolumeError;
use crate::{doctor, guest, platform};
use board::{VirtioBoard, make_console, make_ports, make_stamps};
use boot::Boot;
use mounts::Mounts;

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
    Volume(#[from] VolumeError),
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
    Link(#[from] LinkError),
    #[error(transparent)]
    Share(#[from] ShareError),
    #[error(transparent)]
    Fs(#[from] FsError),
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

/// Called with what happens to the guest's agent, on a thread that may not wait.
pub type OnAgent = Box<dyn Fn(LinkEvent) + Send + Sync>;

/// What the guest's serial port leads to.
pub enum ConsoleUse {
    /// What the user sits at: our own standard streams.
    Own(Console),
    /// What is written there is kept, and nothing is typed.
    Log(Box<dyn Write + Send>),
}

/// What casita itself is told beside the machine's description.
pub struct Surroundings<'a> {
    /// Where state is kept.
    pub dirs: &'a Dirs,
    /// What the guest's serial port leads to.
    pub console: ConsoleUse,
    /// Told of the guest's agent.
    pub on_agent: OnAgent,
    /// Tells the machine's owner of events.
    pub sender: EventSender,
    /// What the owner is told.
    pub events: Receiver<Event>,
    /// Whether to refuse a KVM that can't run Linux before trying.
    pub check_kvm: bool,
    /// The way to vsock ports of the host, where it is not through a socket's name.
    pub ports: Option<Ports>,
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
    let key = link::new_key()?;
    let agent_initrd = files.agent_initrd(config, key)?;
    let boot_mode = config.boot.unwrap_or_default();
    let cmdline = guest::cmdline(config, files.root.is_some())?;
    let mut mounts = Mounts::start(files.mounts)?;
    // The programs that were started until here keep the limit that they were given.
    raise_descriptor_limit();
    stats.stage("files-opened", monotonic_ns());

    let memory = config.memory.unwrap_or(DEFAULT_MEMORY);
    let layout = MemoryLayout::new(memory.bytes())?;
    let vm = Vm::new(&kvm, GuestRam::new(layout, mounts.backing())?)?;
    stats.stage("vm-created", monotonic_ns());

    // Started by the machine: until then there is one thread.
    let io = EventLoop::new("io")?;
    on_thread_start(|| confine::enter_role(Role::Io));
    let (serial, keyboard) = make_console(&vm, around.console, &around.sender)?;
    let stamps = make_stamps(config, &around.sender);
    let mut virtio = VirtioBoard::new(&vm, io.handle());
    if let Some(root) = files.root {
        virtio.plug_in_disk("root", board::root_device(root)?)?;
    }
    if let Some(disk) = files.disk {
        virtio.plug_in_disk("disk", board::disk_device(disk)?)?;
    }
    mounts.plug_in(&mut virtio)?;
    virtio.plug_in(Box::new(Rng::new("rng")))?;
    let mut link = None;
    if config.vsock.is_some() || boot_mode == BootMode::Agent {
        let mut vsock = board::vsock_device(config.vsock.as_deref())?;
        if let Some(ports) = around.ports {
            vsock.reach_ports(ports);
        }
        if boot_mode == BootMode::Agent {
            link = Some(AgentLink::listen(&vsock.handle(), key, around.on_agent)?);
        }
        virtio.plug_in(Box::new(vsock))?;
    }
    let VirtioBoard {
        mmio,
        slots,
        transports,
        disks,
        largest_disk,
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
    if let Some(volumes) = files.new_volumes {
        volumes.keep();
    }
    Ok(Machine {
        vcpus,
        buses: Buses {
            ports: Arc::new(ports),
            mmio: Arc::new(mmio),
        },
        devices: Devices {
            serial,
            keyboard,
            stamps,
            virtio: transports,
            disks,
            link,
            shares: mounts.shares,
            holds: mounts.holds,
        },
        io,
        vm,
        sender: around.sender,
        events: around.events,
        largest_disk,
        own_memory: OwnMemory::open(),
        stats,
    })
}

/// Each process in the guest has several sockets here. Where the limit can't be raised, fewer run.
fn raise_descriptor_limit() {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    if let Err(error) = setrlimit(Resource::Nofile, limit) {
        log::debug!("the limit of file descriptors stays as it is: {error}");
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
