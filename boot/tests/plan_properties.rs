//! Whatever the file holds: no panic, and a plan that is made can be carried out safely.

mod images;

use casita_boot::{Cmdline, InitrdPart, MemoryLayout};
use images::safety::assert_safe;
use images::{BzImage, Elf, MIB, Machine, PAGE, Segment, put, xen_note};
use proptest::prelude::*;

fn check(kernel: &Vec<u8>, memory: u64, initrd: &[Vec<u8>], cmdline: &[u8]) -> bool {
    let parts: Vec<_> = initrd.iter().map(|part| InitrdPart::File(part)).collect();
    let sizes: Vec<_> = initrd.iter().map(|part| part.len() as u64).collect();
    let mut machine = Machine::new(kernel);
    machine.memory = MemoryLayout::new(memory).unwrap();
    machine.initrd = &parts;
    let Ok(cmdline) = Cmdline::new(cmdline) else {
        return false;
    };
    machine.cmdline = cmdline;
    match machine.plan() {
        Ok(plan) => {
            assert_safe(&plan, machine.memory, kernel.len() as u64, &sizes);
            true
        }
        Err(error) => {
            assert!(!error.to_string().contains('\n'));
            false
        }
    }
}

/// Numbers near everything that a bound could be near.
fn word() -> impl Strategy<Value = u64> {
    prop_oneof![
        any::<u64>(),
        0..64 * PAGE,
        15 * MIB..20 * MIB,
        60 * MIB..66 * MIB,
        0xbfff_0000_u64..0xc000_1000,
        (0..64_u32, -2_i64..3).prop_map(|(shift, d)| (1_u64 << shift).wrapping_add_signed(d)),
        (0..2000_u64).prop_map(|d| u64::MAX - d),
    ]
}

fn segment() -> impl Strategy<Value = Segment> {
    let kind = prop_oneof![20 => Just(1_u32), 1 => Just(4), 1 => any::<u32>()];
    let near = prop_oneof![20 => 0..10 * PAGE, 1 => word()];
    let place = prop_oneof![20 => (256_u64..512).prop_map(|page| page * 64 * 1024), 1 => word()];
    let offset = prop_oneof![20 => (0..8_u64).prop_map(|page| page * PAGE), 1 => word()];
    (
        kind,
        offset,
        place,
        near.clone(),
        near,
        word(),
        any::<bool>(),
    )
        .prop_map(
            |(kind, offset, phys_addr, file_size, more, align, skew)| Segment {
                kind,
                offset: offset.wrapping_add(if skew { phys_addr % PAGE } else { 0 }),
                phys_addr,
                file_size,
                mem_size: file_size.wrapping_add(more),
                align,
            },
        )
}

fn elf() -> impl Strategy<Value = Elf> {
    let notes = prop_oneof![
        Just(Vec::new()),
        prop::collection::vec(any::<u8>(), 0..64),
        word().prop_map(|entry| xen_note(18, &entry.to_le_bytes())),
        Just(xen_note(18, &(Elf::ENTRY as u32).to_le_bytes())),
    ];
    (
        prop::collection::vec(segment(), 1..6),
        notes,
        prop_oneof![4 => Just(Elf::ENTRY), 1 => word()],
        prop_oneof![0..24 * PAGE, Just(24 * PAGE)],
        any::<prop::sample::Index>(),
    )
        .prop_map(|(segments, notes, entry, size, pick)| {
            // Most entry points are to be valid, or little would be planned.
            let entry = if entry == Elf::ENTRY {
                segments[pick.index(segments.len())].phys_addr
            } else {
                entry
            };
            Elf {
                segments,
                notes,
                entry,
                size: size.max(4096),
                ..Elf::vmlinux()
            }
        })
}

fn bzimage() -> impl Strategy<Value = BzImage> {
    let mostly = |value: u32| prop_oneof![4 => Just(value), 1 => any::<u32>(), 1 => 0..64_u32];
    (
        (
            any::<u8>(),
            mostly(0x400),
            prop_oneof![Just(0x6a_u8), any::<u8>()],
        ),
        (mostly(0x7fff_ffff), mostly(0x20_0000), any::<bool>()),
        (
            mostly(2047),
            prop_oneof![Just(16 * MIB), word()],
            mostly(0x100_0000),
        ),
        0..0x2_0000_usize,
    )
        .prop_map(|(a, b, c, size)| BzImage {
            setup_sects: a.0,
            syssize: a.1,
            jump: a.2,
            initrd_addr_max: b.0,
            kernel_alignment: b.1,
            relocatable: b.2.into(),
            cmdline_size: c.0,
            pref_address: c.1,
            init_size: c.2,
            size,
            ..BzImage::vmlinuz()
        })
}

fn memory() -> impl Strategy<Value = u64> {
    prop_oneof![
        Just(64 * MIB),
        Just(8 << 30),
        (4096..2_000_000_u64).prop_map(|pages| pages * PAGE)
    ]
}

fn initrd() -> impl Strategy<Value = Vec<Vec<u8>>> {
    let part = (0..3 * PAGE as usize).prop_map(|len| vec![1; len]);
    prop::collection::vec(part, 0..4)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn any_elf_kernel_is_refused_or_planned_safely(
        elf in elf(),
        memory in memory(),
        initrd in initrd(),
    ) {
        check(&elf.build(), memory, &initrd, b"quiet");
    }

    #[test]
    fn any_bzimage_is_refused_or_planned_safely(
        image in bzimage(),
        memory in memory(),
        initrd in initrd(),
        cmdline in prop::collection::vec(any::<u8>(), 0..3000),
    ) {
        check(&image.build(), memory, &initrd, &cmdline);
    }

    #[test]
    fn any_bytes_behind_a_signature_are_refused_or_planned_safely(
        bytes in prop::collection::vec(any::<u8>(), 0..2000),
        signature in 0..3_u8,
    ) {
        let mut bytes = bytes;
        match signature {
            0 => put(&mut bytes, 0, b"\x7fELF\x02\x01\x01"),
            1 => put(&mut bytes, 0x1fe, b"\x55\xaa\xeb\x6aHdrS\x0f\x02"),
            _ => (),
        }
        check(&bytes, 64 * MIB, &[], b"");
    }

    #[test]
    fn any_change_to_a_valid_kernel_is_refused_or_planned_safely(
        at in prop_oneof![0..0x300_usize, 0x800..0x820_usize],
        value in prop_oneof![word(), (0..8_u32).prop_map(u64::from)],
        width in 1..9_usize,
        which in 0..3_u8,
    ) {
        let mut file = match which {
            0 => Elf::vmlinux().build(),
            1 => Elf::pvh().build(),
            _ => BzImage::vmlinuz().build(),
        };
        put(&mut file, at as u64, &value.to_le_bytes()[..width]);
        check(&file, 64 * MIB, &[vec![1; 5000]], b"quiet");
    }
}

#[test]
fn the_strategies_make_plans_and_refusals() {
    use proptest::strategy::ValueTree;
    use proptest::test_runner::TestRunner;
    let mut runner = TestRunner::deterministic();
    let (mut elves, mut images) = (0, 0);
    for _ in 0..500 {
        let file = elf().new_tree(&mut runner).unwrap().current().build();
        elves += u32::from(check(&file, 64 * MIB, &[], b""));
        let file = bzimage().new_tree(&mut runner).unwrap().current().build();
        images += u32::from(check(&file, 64 * MIB, &[], b""));
    }
    assert!((25..475).contains(&elves), "{elves} of 500 ELF files");
    assert!((25..475).contains(&images), "{images} of 500 bzImages");
}
