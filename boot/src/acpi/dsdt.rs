//! The DSDT: devices that nothing else enumerates, in ACPI's byte code.

use acpi_tables::Aml;
use acpi_tables::aml::{
    Device, EISAName, IO, Interrupt, Memory32Fixed, Name, ONE, Package, Path, ResourceTemplate,
    Scope, ZERO,
};
use acpi_tables::sdt::Sdt;

use super::{
    AcpiDevices, OEM_ID, OEM_REVISION, OEM_TABLE_ID, S5_SLEEP_TYPE, SerialPort, VirtioMmio,
};

/// Size of a table's header.
const HEADER_LEN: u32 = 36;
/// From revision 2 on, integers have 64 bits.
const REVISION: u8 = 2;

/// I/O ports of a 16550.
const SERIAL_PORTS: u8 = 8;

/// The whole table.
pub(super) fn table(devices: &AcpiDevices) -> Sdt {
    let mut aml = Vec::new();
    off_state().to_aml_bytes(&mut aml);

    let mut system_bus = Vec::new();
    for (index, device) in devices.virtio_mmio.iter().enumerate() {
        system_bus.extend(virtio_mmio(index, device));
    }
    if let Some(port) = devices.serial {
        system_bus.extend(serial(port));
    }
    aml.extend(Scope::raw(Path::new("_SB_"), system_bus));

    let mut table = Sdt::new(
        *b"DSDT",
        HEADER_LEN,
        REVISION,
        OEM_ID,
        OEM_TABLE_ID,
        OEM_REVISION,
    );
    table.append_slice(&aml);
    table
}

/// `\_S5`: the value for the sleep control register (ACPI 6.5, 7.4.2.6).
fn off_state() -> Name {
    let package = Package::new(vec![&S5_SLEEP_TYPE, &ZERO, &ZERO, &ZERO]);
    Name::new(Path::new("_S5_"), &package)
}

/// A virtio-mmio device: hardware ID `LNRO0005`, registers, interrupt (Linux's
/// `drivers/virtio/virtio_mmio.c`). `_CCA`: its DMA is coherent with the caches.
fn virtio_mmio(index: usize, device: &VirtioMmio) -> Vec<u8> {
    // Checked to lie below 4 GiB.
    let registers = Memory32Fixed::new(true, device.base as u32, device.len);
    let interrupt = interrupt(device.gsi);
    let uid = index as u32;
    to_bytes(&Device::new(
        Path::new(&format!("V{index:03X}")),
        vec![
            &Name::new(Path::new("_HID"), &"LNRO0005"),
            &Name::new(Path::new("_UID"), &uid),
            &Name::new(Path::new("_CCA"), &ONE),
            &Name::new(
                Path::new("_CRS"),
                &ResourceTemplate::new(vec![&registers, &interrupt]),
            ),
        ],
    ))
}

/// COM1, a 16550A: hardware ID `PNP0501`.
fn serial(port: SerialPort) -> Vec<u8> {
    let ports = IO::new(port.port, port.port, 1, SERIAL_PORTS);
    let interrupt = interrupt(port.gsi);
    to_bytes(&Device::new(
        Path::new("COM1"),
        vec![
            &Name::new(Path::new("_HID"), &EISAName::new("PNP0501")),
            &Name::new(Path::new("_UID"), &ZERO),
            &Name::new(
                Path::new("_CRS"),
                &ResourceTemplate::new(vec![&ports, &interrupt]),
            ),
        ],
    ))
}

/// An interrupt that the device consumes: edge-triggered, active high, not shared.
fn interrupt(gsi: u32) -> Interrupt {
    Interrupt::new(true, true, false, false, gsi)
}

fn to_bytes(object: &dyn Aml) -> Vec<u8> {
    let mut bytes = Vec::new();
    object.to_aml_bytes(&mut bytes);
    bytes
}
