//! The ACPI tables: found and summed up the way an operating system does, and disassembled by
//! ACPICA's `iasl` where it is installed.

mod images;

use std::path::Path;
use std::process::Command;

use casita_boot::PowerPorts;
use images::{Elf, Machine, devices};

const START: usize = 0xe_0000;

/// The ACPI area of a machine with so many devices and vCPUs.
fn tables(count: u32, vcpus: u8) -> Vec<u8> {
    let file = Elf::pvh().build();
    let mut machine = Machine::new(&file);
    machine.devices = devices(count);
    machine.vcpus = vcpus;
    let plan = machine.plan().unwrap();
    let blob = plan
        .blobs
        .iter()
        .find(|blob| blob.guest_addr == START as u64);
    blob.unwrap().bytes.clone()
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

fn sum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
}

/// The table at a guest address, its checksum verified.
fn table(area: &[u8], address: u64) -> &[u8] {
    let at = address as usize - START;
    let len = u32_at(area, at + 4) as usize;
    let table = &area[at..at + len];
    assert_eq!(sum(table), 0, "checksum of {:?}", &table[..4]);
    table
}

/// RSDP, XSDT, FADT, MADT, DSDT: all that there are, by signature.
fn all(area: &[u8]) -> [&[u8]; 4] {
    assert_eq!(&area[..8], b"RSD PTR ");
    assert_eq!(area[15], 2, "revision");
    assert_eq!(sum(&area[..20]), 0);
    assert_eq!(sum(&area[..36]), 0);
    let xsdt = table(area, u64_at(area, 24));
    assert_eq!(&xsdt[..4], b"XSDT");
    assert_eq!(xsdt.len(), 36 + 2 * 8);
    let fadt = table(area, u64_at(xsdt, 36));
    assert_eq!(&fadt[..4], b"FACP");
    let madt = table(area, u64_at(xsdt, 44));
    assert_eq!(&madt[..4], b"APIC");
    let dsdt = table(area, u64_at(fadt, 140));
    assert_eq!(&dsdt[..4], b"DSDT");
    [xsdt, fadt, madt, dsdt]
}

#[test]
fn every_table_is_reached_from_the_rsdp_with_a_right_checksum() {
    for (count, vcpus) in [(0, 1), (1, 2), (19, 32), (1024, 32)] {
        let area = tables(count, vcpus);
        assert!(area.len() <= 0x2_0000);
        all(&area);
    }
}

#[test]
fn the_fadt_says_hardware_reduced_with_sleep_and_reset_registers() {
    let area = tables(1, 1);
    let [_, fadt, ..] = all(&area);
    let flags = u32_at(fadt, 112);
    assert_ne!(flags & 1 << 20, 0, "HW_REDUCED_ACPI");
    assert_ne!(flags & 1 << 10, 0, "RESET_REG_SUP");
    let io_byte = |at: usize| {
        assert_eq!(&fadt[at..at + 4], [1, 8, 0, 1], "one byte of I/O space");
        u64_at(fadt, at + 4)
    };
    assert_eq!(io_byte(116), 0x602, "RESET_REG");
    assert_eq!(fadt[128], 1, "RESET_VALUE");
    assert_eq!(io_byte(244), 0x600, "SLEEP_CONTROL_REG");
    assert_eq!(io_byte(256), 0x601, "SLEEP_STATUS_REG");
    assert_eq!(fadt[109] & 2, 0, "no 8042");
}

#[test]
fn the_value_that_powers_off_is_made_of_the_sleep_type_in_s5() {
    let area = tables(0, 1);
    let [.., dsdt] = all(&area);
    let at = dsdt.windows(4).position(|name| name == b"_S5_").unwrap();
    // Package, its length, four elements, a byte follows, the byte.
    assert_eq!(dsdt[at + 4..at + 8], [0x12, 7, 4, 0x0a]);
    let sleep_type = dsdt[at + 8];
    assert_eq!(PowerPorts::power_off_value(), 0x20 | sleep_type << 2);
}

#[test]
fn the_madt_has_a_local_apic_for_each_vcpu_and_one_io_apic() {
    for vcpus in [1, 2, 32] {
        let area = tables(1, vcpus);
        let [_, _, madt, _] = all(&area);
        assert_eq!(u32_at(madt, 36), 0xfee0_0000);
        assert_eq!(u32_at(madt, 40), 0, "no PIC");
        let mut at = 44;
        for id in 0..vcpus {
            assert_eq!(madt[at..at + 8], [0, 8, id, id, 1, 0, 0, 0]);
            at += 8;
        }
        assert_eq!(madt[at..at + 2], [1, 12]);
        assert_eq!(u32_at(madt, at + 4), 0xfec0_0000);
        assert_eq!(u32_at(madt, at + 8), 0);
        assert_eq!(madt.len(), at + 12);
    }
}

/// Disassembles a table; `None` if `iasl` is not installed.
fn disassemble(directory: &Path, name: &str, table: &[u8]) -> Option<String> {
    let path = directory.join(format!("{name}.aml"));
    std::fs::write(&path, table).unwrap();
    let output = Command::new("iasl").arg("-d").arg(&path).output();
    let output = match output {
        Ok(output) => output,
        Err(error) => {
            eprintln!("skipped: iasl (Debian's acpica-tools) does not run: {error}");
            return None;
        }
    };
    let log = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{log}");
    assert!(!log.contains("Warning") && !log.contains("Error"), "{log}");
    Some(std::fs::read_to_string(path.with_extension("dsl")).unwrap())
}

#[test]
fn iasl_disassembles_every_table_if_it_is_installed() {
    let directory = tempfile::tempdir().unwrap();
    let area = tables(19, 32);
    let [xsdt, fadt, madt, dsdt] = all(&area);
    for (name, table) in [("xsdt", xsdt), ("facp", fadt), ("apic", madt)] {
        let Some(text) = disassemble(directory.path(), name, table) else {
            return;
        };
        assert!(!text.contains("Invalid"), "{text}");
    }
    let text = disassemble(directory.path(), "dsdt", dsdt).unwrap();
    assert_eq!(text.matches("\"LNRO0005\"").count(), 19, "{text}");
    for part in [
        "Device (V012)",
        "Name (_UID, 0x12)",
        "0xD0012000,         // Address Base",
        "Interrupt (ResourceConsumer, Edge, ActiveHigh, Exclusive, ,, )",
        "EisaId (\"PNP0501\")",
        "0x03F8,             // Range Minimum",
        "Name (_S5",
    ] {
        assert!(text.contains(part), "no {part} in {text}");
    }
}

#[test]
fn iasl_compiles_its_own_disassembly_without_errors_if_it_is_installed() {
    let directory = tempfile::tempdir().unwrap();
    let area = tables(3, 2);
    let [.., dsdt] = all(&area);
    if disassemble(directory.path(), "dsdt", dsdt).is_none() {
        return;
    }
    let source = directory.path().join("dsdt.dsl");
    let output = Command::new("iasl").arg(&source).output().unwrap();
    let log = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{log}");
    assert!(log.contains(" 0 Errors, 0 Warnings"), "{log}");
}
