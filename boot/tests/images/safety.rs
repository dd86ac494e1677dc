//! What makes a plan safe to carry out; the fuzz targets check the same.

use casita_boot::{BootPlan, GuestRange, MemoryLayout, PlanFile, layout::PAGE_SIZE};

/// What the monitor relies on when it maps and writes without further checks. `kernel` and `initrd` are
/// the files' sizes.
pub fn assert_safe(plan: &BootPlan, memory: MemoryLayout, kernel: u64, initrd: &[u64]) {
    let file_size = |file| match file {
        PlanFile::Kernel => kernel,
        PlanFile::Initrd(index) => initrd[index],
    };
    for mapping in &plan.mappings {
        assert!(mapping.len > 0);
        assert_eq!(mapping.guest_addr % PAGE_SIZE, 0);
        assert_eq!(mapping.file_offset % PAGE_SIZE, 0);
        assert_eq!(mapping.len % PAGE_SIZE, 0);
        let end = mapping.file_offset.checked_add(mapping.len).unwrap();
        assert!(end <= file_size(mapping.file), "{mapping:x?}");
    }
    for copy in &plan.copies {
        assert!(copy.len > 0);
        let end = copy.file_offset.checked_add(copy.len).unwrap();
        assert!(end <= file_size(copy.file), "{copy:x?}");
    }
    let mut ranges: Vec<_> = plan.ranges().collect();
    ranges.sort();
    for range in &ranges {
        assert!(range.start.checked_add(range.len).is_some());
        assert!(memory.is_ram(range), "{range:x?} is not RAM");
    }
    for pair in ranges.windows(2) {
        assert!(!pair[0].overlaps(&pair[1]), "{pair:x?} overlap");
    }
    let entry = GuestRange {
        start: plan.entry.registers.rip,
        len: 1,
    };
    assert!(plan.kernel.contains(&entry), "{plan:x?}");
    assert!(memory.is_ram(&plan.kernel));
    if let Some(initrd) = plan.initrd {
        assert!(!initrd.overlaps(&plan.kernel));
        assert!(memory.low_ram().contains(&initrd));
    }
}
