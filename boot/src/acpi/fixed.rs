//! Tables of fixed format: FADT and MADT.

use acpi_tables::fadt::{FADT, FADTBuilder, Flags};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::madt::{
    EnabledStatus, IoApic, LocalInterruptController, MADT, ProcessorLocalApic,
};

use super::{OEM_ID, OEM_REVISION, OEM_TABLE_ID, PowerPorts};
use crate::layout::{IOAPIC_START, LAPIC_START};

/// The sleep type that `\_S5` gives for "off". Any value will do; this is the customary one.
pub const S5_SLEEP_TYPE: u8 = 5;

/// `IAPC_BOOT_ARCH` (ACPI 6.5, table 5.11): no VGA, no CMOS clock. The 8042's bit stays clear: there
/// is no keyboard controller, and a kernel that believes so does not wait for one.
const BOOT_ARCH_NO_VGA: u16 = 1 << 2;
const BOOT_ARCH_NO_CMOS_CLOCK: u16 = 1 << 5;

/// Interrupts of the one I/O APIC start at 0.
const GSI_BASE: u32 = 0;

/// FADT (ACPI 6.5, 5.2.9): hardware-reduced, so that there are no PM timer, no SCI, no SMI; what is
/// left is how to power off and to reset.
pub(super) fn fadt(power: PowerPorts, dsdt: u64) -> FADT {
    let mut fadt = FADTBuilder::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION)
        .dsdt_64(dsdt)
        .flag(Flags::HwReducedAcpi)
        .flag(Flags::ResetRegSup)
        // These two say that there are no such fixed-feature buttons.
        .flag(Flags::PwrButton)
        .flag(Flags::SlpButton);
    fadt.iapc_boot_arch = (BOOT_ARCH_NO_VGA | BOOT_ARCH_NO_CMOS_CLOCK).into();
    fadt.reset_reg = port(power.reset);
    fadt.reset_value = power.reset_value;
    fadt.sleep_control_reg = port(power.sleep_control);
    fadt.sleep_status_reg = port(power.sleep_status);
    fadt.finalize()
}

/// A register of one byte at an I/O port.
fn port(port: u16) -> GAS {
    GAS::new(
        AddressSpace::SystemIo,
        8,
        0,
        AccessSize::ByteAccess,
        port.into(),
    )
}

/// MADT (ACPI 6.5, 5.2.12): a local APIC for each vCPU, whose APIC ID is its index, and the I/O APIC.
/// There is no PIC (flag `PCAT_COMPAT` is clear).
pub(super) fn madt(vcpus: u8) -> MADT {
    let lapic = LocalInterruptController::Address(LAPIC_START as u32);
    let mut madt = MADT::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION, lapic);
    for id in 0..vcpus {
        madt.add_structure(ProcessorLocalApic::new(id, id, EnabledStatus::Enabled));
    }
    // The APIC IDs of vCPUs end where the I/O APIC's starts.
    madt.add_structure(IoApic::new(vcpus, IOAPIC_START as u32, GSI_BASE));
    madt
}
