//! The memory map that a guest is given, as e820 entries or as PVH's table: both use the same
//! numbers for the kinds of memory.

use crate::layout::{ACPI_END, ACPI_START, EBDA_START, GuestRange, HIMEM_START, MemoryLayout};

/// What a range of memory is, with the number that e820 and PVH give it (ACPI 6.5, table 15.5).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum MemoryKind {
    /// Usable RAM.
    Ram = 1,
    /// Not to be used.
    Reserved = 2,
    /// ACPI tables; RAM again once they have been read.
    Acpi = 3,
}

/// One entry of the map.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryMapEntry {
    /// Where.
    pub range: GuestRange,
    /// What.
    pub kind: MemoryKind,
}

/// The map of a guest: ascending, without overlaps, RAM never including the hole below 4 GiB.
pub fn memory_map(memory: &MemoryLayout) -> Vec<MemoryMapEntry> {
    let entry = |start, end, kind| MemoryMapEntry {
        range: GuestRange::from_bounds(start, end),
        kind,
    };
    let mut map = vec![
        entry(0, EBDA_START, MemoryKind::Ram),
        entry(EBDA_START, ACPI_START, MemoryKind::Reserved),
        entry(ACPI_START, ACPI_END, MemoryKind::Acpi),
        entry(HIMEM_START, memory.low_ram().end(), MemoryKind::Ram),
    ];
    map.extend(memory.high_ram().map(|range| MemoryMapEntry {
        range,
        kind: MemoryKind::Ram,
    }));
    map
}
