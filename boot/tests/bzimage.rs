//! bzImages: the 64-bit boot protocol's rules.

mod images;

use casita_boot::{BootProtocol, Cmdline, FileMapping, MemoryLayout, PlanFile};
use images::{BzImage, MIB, Machine, PAGE, guest_memory, refusal};

#[test]
fn the_payload_goes_to_its_preferred_address_and_is_mapped_where_it_is_aligned() {
    let plan = Machine::new(&BzImage::vmlinuz().build()).plan().unwrap();
    assert_eq!(plan.entry.protocol, BootProtocol::Linux64);
    assert_eq!(plan.entry.registers.rip, 16 * MIB + 0x200);
    assert_eq!(plan.kernel.len, 16 * MIB);
    assert_eq!(
        plan.mappings,
        [FileMapping {
            file: PlanFile::Kernel,
            guest_addr: 16 * MIB,
            file_offset: PAGE,
            len: 0x4000
        }]
    );
}

#[test]
fn a_payload_that_is_not_aligned_in_the_file_is_copied() {
    let mut image = BzImage::vmlinuz();
    image.setup_sects = 0;
    image.size = 5 * 512 + 0x4000;
    let file = image.build();
    let plan = Machine::new(&file).plan().unwrap();
    assert!(plan.mappings.is_empty());
    let memory = guest_memory(&plan, &file, &[], 18 * MIB as usize);
    assert_eq!(memory[16 * MIB as usize..][..0x4000], file[5 * 512..]);
}

#[test]
fn what_follows_the_kernel_in_the_file_is_left_out() {
    let mut image = BzImage::vmlinuz();
    image.size += 3000;
    let plan = Machine::new(&image.build()).plan().unwrap();
    let len: u64 = plan.mappings.iter().map(|m| m.len).sum();
    assert_eq!(len, 0x4000);
    assert!(plan.copies.is_empty());
}

#[test]
fn the_zero_page_holds_the_kernels_header_and_the_loaders_fields() {
    let file = BzImage::vmlinuz().build();
    let initrd = vec![7; 5000];
    let parts = [casita_boot::InitrdPart::File(&initrd)];
    let mut machine = Machine::new(&file);
    machine.initrd = &parts;
    let plan = machine.plan().unwrap();
    let memory = guest_memory(&plan, &file, &[&initrd], 64 * MIB as usize);
    let word = |at: usize| u32::from_le_bytes(memory[0x7000 + at..][..4].try_into().unwrap());

    assert_eq!(memory[0x7000 + 0x1f1], 7, "setup_sects is the kernel's");
    assert_eq!(word(0x202), 0x5372_6448);
    assert_eq!(memory[0x7000 + 0x210], 0xff, "type_of_loader");
    assert_eq!(word(0x228), 0x2_0000, "cmd_line_ptr");
    assert_eq!(u64::from(word(0x218)), 64 * MIB - 2 * PAGE, "ramdisk_image");
    assert_eq!(word(0x21c), 5000, "ramdisk_size");
    assert_eq!(word(0x70), 0xe_0000, "acpi_rsdp_addr");
    assert_eq!(memory[0x7000 + 0x1ef], 0, "sentinel");
    assert_eq!(memory[0x7000 + 0x1e8], 4, "e820_entries");
    let range = plan.initrd.unwrap();
    assert_eq!(memory[range.start as usize..][..5000], initrd);
    let nothing = &memory[0x7000 + 0x26c..0x7000 + 0x290];
    assert!(nothing.iter().all(|byte| *byte == 0), "behind the header");
}

#[test]
fn headers_that_cannot_be_booted_are_refused() {
    let refused = |change: fn(&mut BzImage), what: &str| {
        let mut image = BzImage::vmlinuz();
        change(&mut image);
        let message = refusal(&image.build());
        assert!(message.contains(what), "{message}");
    };
    refused(|i| i.version = 0x020b, "boot protocol 2.11");
    refused(
        |i| (i.version, i.jump) = (0x0204, 0x36),
        "boot protocol 2.04: at least 2.12",
    );
    refused(|i| i.jump = 0x36, "jump is 0x36");
    refused(|i| i.loadflags = 0, "a zImage");
    refused(|i| i.xloadflags = 2, "32-bit kernel");
    refused(|i| i.syssize = 0, "syssize is 0x0");
    refused(|i| i.kernel_alignment = 0, "kernel_alignment is 0x0");
    refused(|i| i.kernel_alignment = 3, "kernel_alignment is 0x3");
    refused(
        |i| (i.pref_address, i.relocatable) = (0x7000, 0),
        "pref_address is 0x7000",
    );
    refused(|i| i.pref_address = u64::MAX - 1, "pref_address is");
    refused(|i| i.pref_address = 1 << 40, "give it more memory");
    refused(|i| i.init_size = 49 << 20, "needs memory up to 65 MiB");
    refused(|i| i.init_size = u32::MAX, "give it more memory");
}

#[test]
fn a_file_truncated_anywhere_is_refused() {
    let file = BzImage::vmlinuz().build();
    for len in (0..file.len() - 15).filter(|len| len % 97 == 0 || *len < 0x300) {
        assert!(
            Machine::new(&file[..len].to_vec()).plan().is_err(),
            "{len} bytes"
        );
    }
    assert_eq!(
        refusal(&file[..0x1000].to_vec()),
        "the bzImage is truncated: it needs 20480 bytes, the file has only 4096"
    );
}

#[test]
fn the_kernels_own_limit_for_the_command_line_holds() {
    let mut image = BzImage::vmlinuz();
    image.cmdline_size = 100;
    let file = image.build();
    let mut machine = Machine::new(&file);
    machine.cmdline = Cmdline::new(vec![b'x'; 100]).unwrap();
    machine.plan().unwrap();
    machine.cmdline.push("y").unwrap();
    assert_eq!(
        machine.plan().unwrap_err().to_string(),
        "the kernel command line has 102 bytes, this kernel takes at most 100"
    );
}

#[test]
fn the_initrd_stays_below_the_address_that_the_kernel_names() {
    let mut image = BzImage::vmlinuz();
    image.initrd_addr_max = 48 * MIB as u32 - 1;
    let file = image.build();
    let parts = [casita_boot::InitrdPart::Bytes(&[1; 10])];
    let mut machine = Machine::new(&file);
    machine.initrd = &parts;
    machine.memory = MemoryLayout::new(256 * MIB).unwrap();
    assert_eq!(
        machine.plan().unwrap().initrd.unwrap().start,
        48 * MIB - PAGE
    );
}
