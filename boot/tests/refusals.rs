//! What is not a kernel at all, and the other parts of a machine that are refused.

mod images;

use std::fs::File;
use std::os::unix::fs::FileExt;

use casita_boot::{Cmdline, InitrdPart, MemoryLayout, VirtioMmio};
use images::{Elf, MIB, Machine, devices, refusal};

/// The message for a machine with this change.
fn refused(change: impl FnOnce(&mut Machine<'_>)) -> String {
    let file = Elf::vmlinux().build();
    let mut machine = Machine::new(&file);
    change(&mut machine);
    machine.plan().expect_err("a refusal").to_string()
}

#[test]
fn an_empty_kernel_is_refused() {
    assert_eq!(refusal(&Vec::new()), "the kernel file is empty");
}

#[test]
fn foreign_files_are_named() {
    let named = |bytes: &[u8], what: &str| {
        assert_eq!(
            refusal(&bytes.to_vec()),
            format!(
                "this is not a kernel for x86-64 but {what}: \
                 give a vmlinux (ELF) or a vmlinuz (bzImage)"
            )
        );
    };
    named(b"#!/bin/sh\necho hello\n", "a script");
    named(b"\x1f\x8b\x08\0\0\0\0\0", "gzip-compressed data");
    named(b"MZ\x90\0", "a PE/EFI program without a Linux boot header");
    named(b"070701000", "a cpio archive (an initrd)");
    named(b"notes\n", "text");
    named(&[0; 100], "a file of zeros");
    named(b"\x7fEL", "data of no known kind");
}

#[test]
fn an_elf_file_of_some_bytes_is_truncated() {
    assert_eq!(
        refusal(&b"\x7fELF\x02\x01\x01".to_vec()),
        "the kernel is truncated: its headers end at byte 20, the file has only 7 bytes"
    );
}

#[test]
fn a_directory_or_a_device_is_refused_without_being_read() {
    for path in ["/", "/dev/zero"] {
        let error = Machine::new(&File::open(path).unwrap()).plan().unwrap_err();
        let cause = std::error::Error::source(&error).unwrap();
        assert_eq!(error.to_string(), "cannot read the kernel");
        assert_eq!(cause.to_string(), "not a regular file");
    }
}

#[test]
fn a_file_without_bytes_behind_its_size_is_refused() {
    let file = tempfile::tempfile().unwrap();
    file.set_len(1 << 40).unwrap();
    assert!(refusal(&file).contains("a file of zeros"));
}

#[test]
fn a_real_file_makes_the_same_plan_as_its_bytes() {
    let bytes = Elf::pvh().build();
    let file = tempfile::tempfile().unwrap();
    file.write_all_at(&bytes, 0).unwrap();
    assert_eq!(
        Machine::new(&file).plan().unwrap(),
        Machine::new(&bytes).plan().unwrap()
    );
}

#[test]
fn vcpus_must_be_1_to_32() {
    for vcpus in [0, 33, 255] {
        assert_eq!(
            refused(|machine| machine.vcpus = vcpus),
            format!("{vcpus} vCPUs are not possible: 1 to 32 are")
        );
    }
}

#[test]
fn a_command_line_longer_than_linux_reads_is_refused() {
    assert_eq!(
        refused(|machine| machine.cmdline = Cmdline::new(vec![b'x'; 2048]).unwrap()),
        "the kernel command line has 2048 bytes, this kernel takes at most 2047"
    );
}

#[test]
fn an_initrd_without_room_behind_the_kernel_is_refused() {
    let sparse = tempfile::tempfile().unwrap();
    let parts = [InitrdPart::File(&sparse)];
    for (size, message) in [
        (0, "the initrd (part 1) is empty"),
        (
            46 * MIB,
            "the initrd of 46 MiB does not fit into memory: 45 MiB are free behind the kernel",
        ),
        (
            1 << 50,
            "the initrd of 1073741824 MiB does not fit into memory: \
             45 MiB are free behind the kernel",
        ),
    ] {
        if sparse.set_len(size).is_err() {
            continue;
        }
        let file = Elf::vmlinux().build();
        let mut machine = Machine::new(&file);
        machine.initrd = &parts;
        assert_eq!(machine.plan().unwrap_err().to_string(), message);
    }
    sparse.set_len(45 * MIB).unwrap();
    let file = Elf::vmlinux().build();
    let mut machine = Machine::new(&file);
    machine.initrd = &parts;
    assert_eq!(machine.plan().unwrap().initrd.unwrap().len, 45 * MIB);
}

#[test]
fn initrds_stay_below_2_gib_although_there_is_more_memory() {
    let file = Elf::vmlinux().build();
    let mut machine = Machine::new(&file);
    let parts = [InitrdPart::Bytes(b"x")];
    machine.initrd = &parts;
    machine.memory = MemoryLayout::new(8 << 30).unwrap();
    assert_eq!(machine.plan().unwrap().initrd.unwrap().start, 0x7fff_f000);
}

#[test]
fn devices_that_cannot_be_described_are_refused() {
    let with = |base, len, gsi| {
        refused(|machine| {
            machine.devices.virtio_mmio[1] = VirtioMmio { base, len, gsi };
        })
    };
    let window = "they must lie between 0xc0000000 and 0xfec00000";
    assert!(with(0xfebf_f001, 0x1000, 5).contains(window));
    assert!(with(0xbfff_ffff, 0x1000, 5).contains(window));
    assert!(with(u64::MAX, 0x1000, 5).contains(window));
    assert!(with(0xd000_1000, 0, 5).contains(window));
    assert_eq!(
        with(0xd000_0fff, 0x1000, 5),
        "virtio devices 0 and 1 have registers at the same address"
    );
    assert_eq!(
        with(0xd000_1000, 0x1000, 24),
        "virtio device 1 has interrupt 24: the I/O APIC has 0 to 23"
    );
    assert_eq!(
        refused(|machine| machine.devices = devices(1025)),
        "1025 virtio devices are too many: at most 1024 can be described"
    );
    assert!(
        refused(|machine| machine.devices.serial.as_mut().unwrap().port = 0xfff9)
            .contains("0xfff9 reach beyond port 0xffff")
    );
    assert!(
        refused(|machine| machine.devices.serial.as_mut().unwrap().gsi = 99)
            .contains("the serial port has interrupt 99")
    );
}
