//! ELF kernels: what is mapped, what is copied, and what is refused.

mod images;

use casita_boot::{BootProtocol, FileCopy, FileMapping, MemoryLayout, PlanFile};
use images::{Elf, MIB, Machine, PAGE, Segment, guest_memory, put, refusal, xen_note};

fn mapping(guest_addr: u64, file_offset: u64, len: u64) -> FileMapping {
    FileMapping {
        file: PlanFile::Kernel,
        guest_addr,
        file_offset,
        len,
    }
}

fn copy(guest_addr: u64, file_offset: u64, len: u64) -> FileCopy {
    FileCopy {
        file: PlanFile::Kernel,
        guest_addr,
        file_offset,
        len,
    }
}

#[test]
fn whole_pages_are_mapped_and_the_page_shared_with_bss_is_copied() {
    let plan = Machine::new(&Elf::vmlinux().build()).plan().unwrap();
    assert_eq!(
        plan.mappings,
        [
            mapping(16 * MIB, PAGE, 4 * PAGE),
            mapping(18 * MIB, 5 * PAGE, 2 * PAGE)
        ]
    );
    assert_eq!(plan.copies, [copy(18 * MIB + 2 * PAGE, 7 * PAGE, 100)]);
}

#[test]
fn bytes_behind_a_segment_in_the_file_do_not_reach_the_guest() {
    let file = Elf::vmlinux().build();
    let plan = Machine::new(&file).plan().unwrap();
    let memory = guest_memory(&plan, &file, &[], 20 * MIB as usize);
    let data = 18 * MIB as usize;
    let len = 2 * PAGE as usize + 100;
    assert_eq!(memory[data..data + len], file[5 * PAGE as usize..][..len]);
    assert!(
        file[5 * PAGE as usize + len..]
            .iter()
            .any(|byte| *byte != 0)
    );
    assert!(memory[data + len..].iter().all(|byte| *byte == 0));
}

#[test]
fn both_ends_of_a_segment_that_starts_within_a_page_are_copied() {
    let mut elf = Elf::vmlinux();
    elf.segments = vec![Segment::load(
        PAGE + 0x30,
        16 * MIB + 0x30,
        3 * PAGE,
        3 * PAGE,
    )];
    let plan = Machine::new(&elf.build()).plan().unwrap();
    assert_eq!(
        plan.mappings,
        [mapping(16 * MIB + PAGE, 2 * PAGE, 2 * PAGE)]
    );
    assert_eq!(
        plan.copies,
        [
            copy(16 * MIB + 0x30, PAGE + 0x30, PAGE - 0x30),
            copy(16 * MIB + 3 * PAGE, 4 * PAGE, 0x30)
        ]
    );
}

#[test]
fn a_segment_that_lies_otherwise_in_its_page_of_the_file_is_copied() {
    let mut elf = Elf::vmlinux();
    elf.segments[0].offset = PAGE + 0x40;
    let plan = Machine::new(&elf.build()).plan().unwrap();
    assert_eq!(plan.copies[0], copy(16 * MIB, PAGE + 0x40, 4 * PAGE));
    assert_eq!(plan.mappings.len(), 1);
}

#[test]
fn segments_may_share_a_page_but_no_byte() {
    let mut elf = Elf::vmlinux();
    elf.segments[1] = Segment::load(5 * PAGE + 8, 16 * MIB + 3 * PAGE + 8, PAGE, PAGE);
    elf.segments[0].file_size = 3 * PAGE + 8;
    elf.segments[0].mem_size = 3 * PAGE + 8;
    let file = elf.build();
    let plan = Machine::new(&file).plan().unwrap();
    let memory = guest_memory(&plan, &file, &[], 20 * MIB as usize);
    let text = 16 * MIB as usize;
    let page = PAGE as usize;
    assert_eq!(
        memory[text..text + 3 * page + 8],
        file[page..][..3 * page + 8]
    );
    assert_eq!(
        memory[text + 3 * page + 8..][..page],
        file[5 * page + 8..][..page]
    );

    elf.segments[0].mem_size += 1;
    assert_eq!(
        refusal(&elf.build()),
        "the kernel is corrupt: its segments 0 and 1 overlap in memory"
    );
}

#[test]
fn a_pvh_note_decides_the_protocol() {
    let plan = Machine::new(&Elf::pvh().build()).plan().unwrap();
    assert_eq!(plan.entry.protocol, BootProtocol::Pvh);
    assert_eq!(plan.entry.registers.rip, Elf::ENTRY);
    assert_eq!(plan.entry.registers.rbx, 0x6000);
    assert_eq!(plan.entry.control.cr0, 0x11);
    assert_eq!(plan.entry.control.cr4, 0);
    assert_eq!((plan.entry.cs.db, plan.entry.cs.l), (1, 0));

    let plan = Machine::new(&Elf::vmlinux().build()).plan().unwrap();
    assert_eq!(plan.entry.protocol, BootProtocol::Linux64);
    assert_eq!(plan.entry.registers.rip, Elf::ENTRY);
    assert_eq!(plan.entry.registers.rsi, 0x7000);
    assert_eq!(plan.entry.control.cr3, 0x9000);
    assert_eq!((plan.entry.cs.db, plan.entry.cs.l), (0, 1));
}

#[test]
fn a_pvh_kernel_may_have_thread_local_data() {
    let mut elf = Elf::pvh();
    elf.segments.push(Segment {
        kind: 7,
        ..elf.segments[1].clone()
    });
    Machine::new(&elf.build()).plan().unwrap();
}

#[test]
fn files_for_other_machines_are_named() {
    let named = |change: fn(&mut Elf), what: &str| {
        let mut elf = Elf::vmlinux();
        change(&mut elf);
        let message = refusal(&elf.build());
        assert!(message.contains(what), "{message}");
    };
    named(|elf| elf.machine = 183, "an ELF file for aarch64");
    named(|elf| elf.class = 1, "a 32-bit ELF file");
    named(|elf| elf.data = 2, "a big-endian ELF file");
    named(|elf| elf.kind = 1, "a relocatable object");
    named(
        |elf| elf.kind = 3,
        "a shared object or a program for user space",
    );
    named(|elf| elf.kind = 4, "a core dump");
    named(|elf| elf.segments[1].kind = 3, "a program for user space");
    named(|elf| elf.segments[1].kind = 7, "a program for user space");
    named(|elf| elf.kind = 9, "e_type is 9");
    named(|elf| elf.class = 7, "EI_CLASS is 7");
}

#[test]
fn the_number_and_size_of_program_headers_are_checked() {
    let refused = |change: fn(&mut Elf), what: &str| {
        let mut elf = Elf::vmlinux();
        change(&mut elf);
        let message = refusal(&elf.build());
        assert!(message.contains(what), "{message}");
    };
    refused(|elf| elf.segment_count = Some(0), "has no segment to load");
    refused(|elf| elf.segments[0].mem_size = 0, "segment 0 is corrupt");
    refused(|elf| elf.segment_count = Some(0xffff), "e_phnum is 65535");
    refused(|elf| elf.segment_header_size = 55, "e_phentsize is 55");
    refused(
        |elf| elf.segments_offset = u64::MAX - 8,
        "program headers end at",
    );
    refused(
        |elf| elf.segments_offset = 8 * PAGE - 8,
        "program headers end at",
    );
    refused(
        |elf| {
            elf.segments.clear();
            elf.notes = xen_note(18, &[0; 4]);
        },
        "has no segment to load",
    );
}

#[test]
fn segments_with_lying_fields_are_refused() {
    let refused = |change: fn(&mut Segment), what: &str| {
        let mut elf = Elf::vmlinux();
        change(&mut elf.segments[1]);
        let message = refusal(&elf.build());
        assert!(message.contains(what), "{message}");
    };
    refused(
        |s| s.file_size = s.mem_size + 1,
        "do not fit into its 32768 bytes",
    );
    refused(
        |s| (s.file_size, s.mem_size) = (u64::MAX / 2, u64::MAX / 2),
        "the kernel is truncated: its segments end at byte",
    );
    refused(
        |s| (s.file_size, s.mem_size) = (u64::MAX, u64::MAX),
        "wrap around",
    );
    refused(|s| s.offset = u64::MAX, "wrap around");
    refused(|s| s.phys_addr = u64::MAX - PAGE, "wrap around");
    refused(|s| s.offset = 7 * PAGE, "the kernel is truncated");
    refused(
        |s| s.phys_addr = MIB - 1,
        "below 1 MiB lie the machine's own tables",
    );
    refused(|s| s.phys_addr = 0, "below 1 MiB");
    refused(|s| s.phys_addr = 64 * MIB - 7 * PAGE, "give it more memory");
    refused(
        |s| s.phys_addr = 0xd000_0000,
        "outside of the guest's memory",
    );
    refused(|s| s.phys_addr = 1 << 32, "outside of the guest's memory");
    refused(|s| s.phys_addr = 16 * MIB + PAGE, "overlap in memory");
}

#[test]
fn a_segment_may_not_reach_into_the_hole_below_4_gib() {
    let mut elf = Elf::vmlinux();
    elf.segments[1].phys_addr = 0xc000_0000 - 8 * PAGE;
    let file = elf.build();
    let mut machine = Machine::new(&file);
    machine.memory = MemoryLayout::new(8 << 30).unwrap();
    machine.plan().unwrap();

    elf.segments[1].mem_size += 1;
    let file = elf.build();
    let mut machine = Machine::new(&file);
    machine.memory = MemoryLayout::new(8 << 30).unwrap();
    let message = machine.plan().unwrap_err().to_string();
    assert!(
        message.contains("outside of the guest's memory"),
        "{message}"
    );
}

#[test]
fn an_entry_outside_of_the_bytes_from_the_file_is_refused() {
    let bss = 18 * MIB + 3 * PAGE;
    for entry in [0, u64::MAX, 0xffff_ffff_8100_0000, 16 * MIB - 1, bss] {
        let message = format!("the kernel's entry point {entry:#x} lies in none of its segments");
        let mut elf = Elf::vmlinux();
        elf.entry = entry;
        assert_eq!(refusal(&elf.build()), message);
        let mut elf = Elf::vmlinux();
        elf.notes = xen_note(18, &entry.to_le_bytes());
        assert_eq!(refusal(&elf.build()), message);
    }
}

#[test]
fn corrupt_notes_are_refused() {
    let mut elf = Elf::pvh();
    elf.notes = xen_note(18, &[0; 3]);
    assert!(refusal(&elf.build()).contains("holds 3 bytes instead of 4 or 8"));

    let mut elf = Elf::pvh();
    put(&mut elf.notes, 4, &u32::MAX.to_le_bytes());
    assert!(refusal(&elf.build()).contains("does not end within them"));

    let mut elf = Elf::vmlinux();
    elf.segments.push(Segment {
        kind: 4,
        ..Segment::load(0x800, 0, 1 << 40, 0)
    });
    assert!(refusal(&elf.build()).contains("its notes end at byte"));

    let mut elf = Elf::vmlinux();
    elf.size = 100 * 1024;
    elf.segments.push(Segment {
        kind: 4,
        ..Segment::load(0, 0, 70 * 1024, 0)
    });
    assert!(refusal(&elf.build()).contains("more than 65536"));
}

#[test]
fn a_file_truncated_anywhere_is_refused_or_needs_no_more() {
    let file = Elf::pvh().build();
    let needed = 7 * PAGE as usize + 100;
    for len in (0..file.len()).filter(|len| len % 97 == 0 || *len < 1024 || *len > needed - 9) {
        let plan = Machine::new(&file[..len].to_vec()).plan();
        assert_eq!(plan.is_ok(), len >= needed, "{len} bytes");
    }
}
