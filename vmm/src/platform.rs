//! Casita's board: which device sits where. The addresses of RAM and of the CPU's own devices are
//! [`casita_boot::layout`]'s.

use casita_boot::acpi::{AcpiDevices, PowerPorts, SerialPort, VirtioMmio};
use casita_boot::layout;

/// ACPI's sleep and reset registers (ACPI 6.5, 4.8.3.7 and 4.8.3.6). Writing
/// [`POWER`]`.reset_value` to the last resets.
pub const POWER: PowerPorts = PowerPorts {
    sleep_control: 0x600,
    sleep_status: 0x601,
    reset: 0x602,
    reset_value: 1,
};

/// Number of virtio-mmio devices that find an interrupt line of their own.
pub const MAX_VIRTIO_DEVICES: u32 = layout::IOAPIC_PINS - layout::VIRTIO_GSI_START;

/// Where the virtio-mmio device number `index` sits, if there is room for it.
pub fn virtio_slot(index: u32) -> Option<VirtioMmio> {
    (index < MAX_VIRTIO_DEVICES).then(|| VirtioMmio {
        base: layout::VIRTIO_MMIO_START + u64::from(index) * layout::VIRTIO_MMIO_STRIDE,
        len: layout::VIRTIO_MMIO_STRIDE as u32,
        gsi: layout::VIRTIO_GSI_START + index,
    })
}

/// What the guest's ACPI tables name, with `virtio` devices.
pub fn acpi_devices(virtio: Vec<VirtioMmio>) -> AcpiDevices {
    AcpiDevices {
        virtio_mmio: virtio,
        serial: Some(SerialPort {
            port: layout::SERIAL_PORT,
            gsi: layout::SERIAL_GSI,
        }),
        power: POWER,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn virtio_slots_have_lines_of_their_own_and_end_before_the_io_apic() {
        let slots: Vec<_> = (0..64).map_while(virtio_slot).collect();
        assert_eq!(slots.len() as u32, MAX_VIRTIO_DEVICES);
        for pair in slots.windows(2) {
            let [a, b] = pair else { panic!("pairs") };
            assert!(a.base + u64::from(a.len) <= b.base && a.gsi < b.gsi);
        }
        let last = slots.last().unwrap();
        assert!(last.gsi < layout::IOAPIC_PINS && last.base < layout::VIRTIO_MMIO_END);
    }
}
