//! What the kernel finds in memory at its start, read the way a kernel reads it.

mod images;

use casita_boot::{InitrdPart, MemoryLayout};
use images::{Elf, MIB, Machine, PAGE, guest_memory};

struct Memory(Vec<u8>);

impl Memory {
    fn u32(&self, at: u64) -> u32 {
        u32::from_le_bytes(self.0[at as usize..][..4].try_into().unwrap())
    }

    fn u64(&self, at: u64) -> u64 {
        u64::from_le_bytes(self.0[at as usize..][..8].try_into().unwrap())
    }
}

const RAM: u32 = 1;
const RESERVED: u32 = 2;
const ACPI: u32 = 3;

fn expected_map(memory: MemoryLayout) -> Vec<(u64, u64, u32)> {
    let low_end = memory.bytes().min(0xc000_0000);
    let mut map = vec![
        (0, 0x9_fc00, RAM),
        (0x9_fc00, 0xe_0000, RESERVED),
        (0xe_0000, 0x10_0000, ACPI),
        (0x10_0000, low_end, RAM),
    ];
    if memory.bytes() > low_end {
        map.push((1 << 32, (1 << 32) + memory.bytes() - low_end, RAM));
    }
    map
}

#[test]
fn pvh_start_info_leads_to_map_command_line_tables_and_initrd() {
    let file = Elf::pvh().build();
    let initrd = vec![0x5a; 3 * PAGE as usize];
    for bytes in [64 * MIB, 8 << 30] {
        let parts = [InitrdPart::File(&initrd)];
        let mut machine = Machine::new(&file);
        machine.initrd = &parts;
        machine.memory = MemoryLayout::new(bytes).unwrap();
        let plan = machine.plan().unwrap();
        let memory = Memory(guest_memory(&plan, &file, &[&initrd], 2 * MIB as usize));

        let info = plan.entry.registers.rbx;
        assert_eq!(memory.u32(info), 0x336e_c578, "magic");
        assert_eq!(memory.u32(info + 4), 1, "version");
        assert_eq!(memory.u32(info + 12), 1, "modules");
        let module = memory.u64(info + 16);
        assert_eq!(memory.u64(module), plan.initrd.unwrap().start);
        assert_eq!(memory.u64(module + 8), 3 * PAGE);
        let cmdline = memory.u64(info + 24) as usize;
        assert_eq!(&memory.0[cmdline..][..14], b"console=ttyS0\0");
        let rsdp = memory.u64(info + 32) as usize;
        assert_eq!(&memory.0[rsdp..][..8], b"RSD PTR ");
        let entries = memory.u64(info + 40);
        let map: Vec<_> = (0..u64::from(memory.u32(info + 48)))
            .map(|i| entries + 24 * i)
            .map(|at| {
                let start = memory.u64(at);
                (start, start + memory.u64(at + 8), memory.u32(at + 16))
            })
            .collect();
        assert_eq!(map, expected_map(machine.memory));
    }
}

#[test]
fn the_zero_page_has_the_same_map() {
    let file = Elf::vmlinux().build();
    for bytes in [64 * MIB, 8 << 30] {
        let mut machine = Machine::new(&file);
        machine.memory = MemoryLayout::new(bytes).unwrap();
        let plan = machine.plan().unwrap();
        let memory = Memory(guest_memory(&plan, &file, &[], 2 * MIB as usize));
        let zero_page = plan.entry.registers.rsi;
        let count = u64::from(memory.0[zero_page as usize + 0x1e8]);
        let map: Vec<_> = (0..count)
            .map(|i| zero_page + 0x2d0 + 20 * i)
            .map(|at| {
                let start = memory.u64(at);
                (start, start + memory.u64(at + 8), memory.u32(at + 16))
            })
            .collect();
        assert_eq!(map, expected_map(machine.memory));
        assert_eq!(memory.u32(zero_page + 0x202), 0x5372_6448, "HdrS");
    }
}

#[test]
fn parts_of_an_initrd_follow_each_other_at_multiples_of_four() {
    let file = Elf::pvh().build();
    let (first, third) = (vec![1; PAGE as usize + 2], vec![3; 9000]);
    let second = [2; 7];
    let parts = [
        InitrdPart::File(&first),
        InitrdPart::Bytes(&second),
        InitrdPart::File(&third),
    ];
    let mut machine = Machine::new(&file);
    machine.initrd = &parts;
    let plan = machine.plan().unwrap();
    let range = plan.initrd.unwrap();
    assert_eq!(range.start % PAGE, 0);

    let mut expected = first.clone();
    expected.extend([0, 0]);
    expected.extend(second);
    expected.push(0);
    expected.extend(&third);
    let files = [&first[..], &[], &third];
    let memory = guest_memory(&plan, &file, &files, 64 * MIB as usize);
    assert_eq!(range.len, expected.len() as u64);
    assert!(memory[range.start as usize..][..expected.len()] == expected);
    assert!(plan.mappings.iter().any(|m| m.guest_addr == range.start));
}
