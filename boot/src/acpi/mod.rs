//! ACPI tables: hardware-reduced ACPI (ACPI 6.5, 4.1), one I/O APIC, and a DSDT that names each
//! virtio-mmio device and the serial port, so that any kernel finds them.

mod dsdt;
mod fixed;

use acpi_tables::Aml;
use acpi_tables::rsdp::Rsdp;
use acpi_tables::xsdt::XSDT;
use thiserror::Error;

use crate::layout::{ACPI_START, GuestRange, IOAPIC_PINS, IOAPIC_START, MMIO_HOLE_START};
use crate::plan::Blob;

pub use fixed::S5_SLEEP_TYPE;

/// Written into every table's header.
const OEM_ID: [u8; 6] = *b"CASITA";
const OEM_TABLE_ID: [u8; 8] = *b"CASITAVM";
const OEM_REVISION: u32 = 1;

/// The most virtio devices: so many certainly fit between [`ACPI_START`] and `ACPI_END`.
pub const MAX_VIRTIO_MMIO: usize = 1024;

/// Tables start at multiples of this.
const TABLE_ALIGN: u64 = 16;

/// A virtio device with registers in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VirtioMmio {
    /// First address of its registers, in the hole below 4 GiB.
    pub base: u64,
    /// Size of its registers in bytes.
    pub len: u32,
    /// Its global system interrupt, an input of the I/O APIC; edge-triggered, active high.
    pub gsi: u32,
}

/// A 16550-compatible serial port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SerialPort {
    /// First of its eight I/O ports.
    pub port: u16,
    /// Its global system interrupt; edge-triggered, active high.
    pub gsi: u32,
}

/// I/O ports by which the guest ends: one byte each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PowerPorts {
    /// Sleep control register (ACPI 6.5, 4.8.3.7): power off when
    /// [`PowerPorts::power_off_value`] is written.
    pub sleep_control: u16,
    /// Sleep status register.
    pub sleep_status: u16,
    /// Reset register (ACPI 6.5, 4.8.3.6): reset when `reset_value` is written.
    pub reset: u16,
    /// What is written to reset.
    pub reset_value: u8,
}

impl PowerPorts {
    /// What a guest writes to the sleep control register to be powered off: `SLP_EN`, and the sleep
    /// type from `\_S5`.
    pub const fn power_off_value() -> u8 {
        1 << 5 | S5_SLEEP_TYPE << 2
    }
}

/// What the tables name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AcpiDevices {
    /// virtio devices, in the order in which the guest is to find them.
    pub virtio_mmio: Vec<VirtioMmio>,
    /// The console, if there is one.
    pub serial: Option<SerialPort>,
    /// Power off and reset.
    pub power: PowerPorts,
}

/// Why the devices cannot be described.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum AcpiError {
    /// Registers outside of the window for them.
    #[error(
        "virtio device {index} has its registers at {base:#x}, {len} bytes long: \
         they must lie between {MMIO_HOLE_START:#x} and {IOAPIC_START:#x}"
    )]
    Registers {
        /// Index of the device.
        index: usize,
        /// Where.
        base: u64,
        /// Length in bytes.
        len: u32,
    },
    /// Two devices at one address.
    #[error("virtio devices {first} and {second} have registers at the same address")]
    Overlap {
        /// Index of one device.
        first: usize,
        /// Index of the other.
        second: usize,
    },
    /// An interrupt that the I/O APIC does not have.
    #[error("{device} has interrupt {gsi}: the I/O APIC has 0 to {}", IOAPIC_PINS - 1)]
    Interrupt {
        /// Which device.
        device: String,
        /// Its interrupt.
        gsi: u32,
    },
    /// Serial ports beyond the last I/O port.
    #[error("the serial port's registers at I/O port {port:#x} reach beyond port 0xffff")]
    SerialPort {
        /// First I/O port.
        port: u16,
    },
    /// More devices than the tables have room for.
    #[error("{devices} virtio devices are too many: at most {MAX_VIRTIO_MMIO} can be described")]
    TooMany {
        /// How many virtio devices.
        devices: usize,
    },
}

/// All tables, the RSDP first, for [`ACPI_START`].
pub(crate) fn build(devices: &AcpiDevices, vcpus: u8) -> Result<Blob, AcpiError> {
    check(devices)?;
    let mut tables = Tables::default();
    // The RSDP comes first, but needs the XSDT's address.
    tables.bytes.resize(Rsdp::len(), 0);
    let dsdt = tables.add(&dsdt::table(devices));
    let fadt = tables.add(&fixed::fadt(devices.power, dsdt));
    let madt = tables.add(&fixed::madt(vcpus));
    let mut xsdt = XSDT::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    xsdt.add_entry(fadt);
    xsdt.add_entry(madt);
    let xsdt = tables.add(&xsdt);
    let mut rsdp = Vec::new();
    Rsdp::new(OEM_ID, xsdt).to_aml_bytes(&mut rsdp);
    for (to, from) in tables.bytes.iter_mut().zip(rsdp) {
        *to = from;
    }

    Ok(Blob {
        guest_addr: ACPI_START,
        bytes: tables.bytes,
    })
}

#[derive(Default)]
struct Tables {
    bytes: Vec<u8>,
}

impl Tables {
    /// Adds a table and returns its address.
    fn add(&mut self, table: &dyn Aml) -> u64 {
        let offset = (self.bytes.len() as u64).next_multiple_of(TABLE_ALIGN);
        self.bytes.resize(offset as usize, 0);
        table.to_aml_bytes(&mut self.bytes);
        ACPI_START + offset
    }
}

fn check(devices: &AcpiDevices) -> Result<(), AcpiError> {
    if devices.virtio_mmio.len() > MAX_VIRTIO_MMIO {
        let devices = devices.virtio_mmio.len();
        return Err(AcpiError::TooMany { devices });
    }
    let window = GuestRange::from_bounds(MMIO_HOLE_START, IOAPIC_START);
    let mut ranges = Vec::with_capacity(devices.virtio_mmio.len());
    for (index, device) in devices.virtio_mmio.iter().enumerate() {
        let (base, len) = (device.base, device.len);
        let range = GuestRange::new(base, len.into())
            .filter(|range| len > 0 && window.contains(range))
            .ok_or(AcpiError::Registers { index, base, len })?;
        ranges.push((range, index));
        check_gsi(device.gsi, || format!("virtio device {index}"))?;
    }
    ranges.sort_unstable();
    for pair in ranges.windows(2) {
        if let [(a, first), (b, second)] = pair
            && a.overlaps(b)
        {
            let (first, second) = (*first.min(second), *first.max(second));
            return Err(AcpiError::Overlap { first, second });
        }
    }
    if let Some(serial) = &devices.serial {
        let port = serial.port;
        if port > 0xffff - 7 {
            return Err(AcpiError::SerialPort { port });
        }
        check_gsi(serial.gsi, || "the serial port".to_owned())?;
    }
    Ok(())
}

fn check_gsi(gsi: u32, device: impl FnOnce() -> String) -> Result<(), AcpiError> {
    if gsi < IOAPIC_PINS {
        return Ok(());
    }
    let device = device();
    Err(AcpiError::Interrupt { device, gsi })
}
