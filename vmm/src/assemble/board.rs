//! The devices and where they are plugged in: virtio in slots, the others at I/O ports.

use std::io;
use std::path::Path;
use std::sync::Arc;

use casita_boot::layout::{SERIAL_GSI, SERIAL_PORT};
use casita_boot::{GuestRange, VirtioMmio};
use casita_devices::bus::{Bus, BusDevice, BusError};
use casita_devices::event_loop::EventLoopHandle;
use casita_devices::power::{
    I8042_COMMAND_PORT, I8042Command, PowerEvent, PowerEvents, ResetRegister, SleepRegisters,
};
use casita_devices::serial::{self, Input, Output, Serial};
use casita_devices::stamp::{self, StampDevice};
use casita_devices::token_bucket::Rate;
use casita_devices::virtio::block::{Block, BlockConfig, BlockError, Traffic};
use casita_devices::virtio::device::VirtioDevice;
use casita_devices::virtio::fs::Fs;
use casita_devices::virtio::pmem::{Pmem, PmemState, ReadOnly};
use casita_devices::virtio::spec::mmio::QUEUE_NOTIFY;
use casita_devices::virtio::transport::mmio::MmioTransport;
use casita_devices::virtio::vsock::{Vsock, VsockConfig, VsockError};

use super::{AssembleError, ConsoleUse};
use crate::config::{BootMode, MachineConfig};
use crate::console::{Console, ConsoleInput};
use crate::disk::Disk;
use crate::kvm::vm::Vm;
use crate::machine::{Event, EventSender};
use crate::platform::{self, POWER};
use crate::rootfs::RootImage;
use crate::share::Share;

/// The longest serial number of a disk, in bytes (virtio 1.2, 5.2.6: `VIRTIO_BLK_T_GET_ID`).
const SERIAL_LEN: usize = 20;

/// The image. `rate` is the most that goes through it, here and below.
pub(super) fn root_device(root: RootImage, rate: Option<Rate>) -> Result<Block, BlockError> {
    let config = BlockConfig {
        read_only: true,
        serial: "root".to_owned(),
        rate,
        ..BlockConfig::default()
    };
    Block::new(root.file, &root.path, &config)
}

pub(super) fn disk_device(disk: Disk, rate: Option<Rate>) -> Result<Block, BlockError> {
    let config = BlockConfig {
        serial: "disk".to_owned(),
        rate,
        // On a thread of its own a write into the page cache costs half: it needs no helper of the
        // ring's, and nobody else waits while it is copied.
        dedicated_thread: true,
        ..BlockConfig::default()
    };
    Block::new(disk.file, &disk.path, &config)
}

/// A volume's disk. Its serial number is the volume's name, as far as it fits.
pub(super) fn volume_device(
    disk: Disk,
    name: &str,
    read_only: bool,
    rate: Option<Rate>,
) -> Result<Block, BlockError> {
    let config = BlockConfig {
        read_only,
        serial: name.chars().take(SERIAL_LEN).collect(),
        rate,
        dedicated_thread: true,
        ..BlockConfig::default()
    };
    Block::new(disk.file, &disk.path, &config)
}

/// Streams between guest and host, whose sockets are at `path` if they have names.
pub(super) fn vsock_device(path: Option<&Path>) -> Result<Vsock, VsockError> {
    let config = VsockConfig {
        base: path.map(Path::to_owned),
        ..VsockConfig::default()
    };
    Vsock::new("vsock", &config)
}

/// A directory of the host, which somebody else serves.
pub(super) fn fs_device(share: &Share) -> Result<Box<dyn VirtioDevice>, AssembleError> {
    let connection = share.connect()?;
    Ok(Box::new(Fs::new(share.tag(), share.tag(), connection)?))
}

/// Where virtio devices are plugged in.
pub(super) struct VirtioBoard<'a> {
    vm: &'a Vm,
    io: EventLoopHandle,
    pub(super) mmio: Bus,
    pub(super) slots: Vec<VirtioMmio>,
    pub(super) transports: Vec<Arc<MmioTransport>>,
    pub(super) disks: Vec<(String, Arc<Traffic>)>,
}

impl<'a> VirtioBoard<'a> {
    pub(super) fn new(vm: &'a Vm, io: EventLoopHandle) -> Self {
        Self {
            vm,
            io,
            mmio: Bus::default(),
            slots: Vec::new(),
            transports: Vec::new(),
            disks: Vec::new(),
        }
    }

    /// Puts a disk into the next slot; `name` is for people who ask what goes through it.
    pub(super) fn plug_in_disk(&mut self, name: &str, disk: Block) -> Result<(), AssembleError> {
        self.disks.push((name.to_owned(), disk.traffic()));
        self.plug_in(Box::new(disk))
    }

    /// Tells the guest of an image that lies in its memory at `range`, and takes its writes there.
    pub(super) fn plug_in_image(
        &mut self,
        name: &str,
        range: GuestRange,
    ) -> Result<(), AssembleError> {
        let refuses = Arc::new(ReadOnly::new(name));
        self.mmio.insert(range.start, range.len, name, refuses)?;
        let (start, size) = (range.start, range.len);
        self.plug_in(Box::new(Pmem::new(name, PmemState { start, size })))
    }

    /// Puts `device` into the next slot: registers on the bus, an interrupt line, and a doorbell
    /// for each queue.
    pub(super) fn plug_in(&mut self, device: Box<dyn VirtioDevice>) -> Result<(), AssembleError> {
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

/// The serial port, with its output and its input.
pub(super) fn make_console(
    vm: &Vm,
    console: ConsoleUse,
    sender: &EventSender,
) -> Result<(Serial, Option<Input>), AssembleError> {
    let (output, keyboard) = match console {
        ConsoleUse::Own(console) => (own_output()?, make_keyboard(console, sender)?),
        ConsoleUse::Log(log) => (Output::writer(log), None),
    };
    let serial = Serial::new(Arc::new(vm.interrupt(SERIAL_GSI)?), output)?;
    Ok((serial, keyboard))
}

fn own_output() -> Result<Output, AssembleError> {
    Output::descriptor(io::stdout()).or_else(|error| match error.raw_os_error() {
        // Whoever closed it does not want to see anything.
        Some(libc::EBADF) => Ok(Output::writer(io::sink())),
        _ => Err(AssembleError::Host("use its standard output", error)),
    })
}

fn make_keyboard(console: Console, sender: &EventSender) -> Result<Option<Input>, AssembleError> {
    let sender = sender.clone();
    let input = ConsoleInput::new(console, move || sender.send(Event::Escape))
        .map_err(|error| AssembleError::Host("use its standard input", error))?;
    Ok(input.map(|source| Input {
        source: Box::new(source),
        at_end: None,
    }))
}

/// The guest's account of its boot. The agent tells the exit status last, when the disk is written
/// back: that is the end.
pub(super) fn make_stamps(config: &MachineConfig, sender: &EventSender) -> Arc<StampDevice> {
    if config.boot.unwrap_or_default() == BootMode::Plain {
        return Arc::new(StampDevice::new());
    }
    let sender = sender.clone();
    Arc::new(StampDevice::with_end(move || {
        sender.send(Event::Power(PowerEvent::Off));
    }))
}

/// The I/O ports: console, power, and the guest's own account of its boot.
pub(super) fn make_ports(
    serial: &Serial,
    stamps: &Arc<StampDevice>,
    sender: &EventSender,
) -> Result<Bus, BusError> {
    let told = sender.clone();
    let power: PowerEvents = Arc::new(move |event| told.send(Event::Power(event)));
    let devices: [(u64, u64, &str, Arc<dyn BusDevice>); 5] = [
        (
            u64::from(SERIAL_PORT),
            serial::LEN,
            "serial",
            Arc::new(serial.clone()),
        ),
        (
            POWER.sleep_control.into(),
            SleepRegisters::LEN,
            "sleep",
            Arc::new(SleepRegisters::new(power.clone())),
        ),
        (
            POWER.reset.into(),
            ResetRegister::LEN,
            "reset",
            Arc::new(ResetRegister::new(POWER.reset_value, power.clone())),
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
