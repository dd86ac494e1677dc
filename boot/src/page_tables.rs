//! Identity page tables for the 64-bit entry, with pages of 2 MiB, which every CPU with long mode
//! has (pages of 1 GiB are optional).

use crate::layout::{GIB, MIB, MemoryLayout, PAGE_SIZE, PAGE_TABLES};
use crate::plan::Blob;

const PRESENT: u64 = 1 << 0;
const WRITABLE: u64 = 1 << 1;
/// In a page directory entry: this is a page of 2 MiB, not a pointer to a table.
const HUGE: u64 = 1 << 7;
const ENTRIES: u64 = 512;

/// Tables that map low RAM, rounded up to whole GiB, to itself.
///
/// The boot protocol asks for the kernel, the zero page and the command line to be mapped; all lie
/// in low RAM.
pub(crate) fn identity(memory: MemoryLayout) -> Blob {
    let gibs = memory.low_ram().end().div_ceil(GIB);
    let pdpt = PAGE_TABLES + PAGE_SIZE;
    let directories = pdpt + PAGE_SIZE;

    let pml4_entries = std::iter::once(pdpt | PRESENT | WRITABLE);
    let pdpt_entries = (0..gibs).map(|i| (directories + i * PAGE_SIZE) | PRESENT | WRITABLE);
    let pages = (0..gibs * ENTRIES).map(|i| (i * 2 * MIB) | PRESENT | WRITABLE | HUGE);
    let entries = padded(pml4_entries)
        .chain(padded(pdpt_entries))
        .chain(pages);
    Blob {
        guest_addr: PAGE_TABLES,
        bytes: entries.flat_map(u64::to_le_bytes).collect(),
    }
}

/// One table: the given entries, the rest not present.
fn padded(entries: impl Iterator<Item = u64>) -> impl Iterator<Item = u64> {
    entries.chain(std::iter::repeat(0)).take(ENTRIES as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Walks the tables as a CPU does; `None` if the address is not mapped.
    fn translate(tables: &Blob, virt: u64) -> Option<u64> {
        let entry = |table: u64, index: u64| {
            let at = (table - tables.guest_addr + index * 8) as usize;
            let bytes = tables.bytes.get(at..at + 8)?;
            let entry = u64::from_le_bytes(bytes.try_into().unwrap());
            (entry & PRESENT != 0).then_some(entry)
        };
        let address = |entry: u64| entry & 0x000f_ffff_ffff_f000;
        let pdpt = entry(tables.guest_addr, virt >> 39 & 511)?;
        let directory = entry(address(pdpt), virt >> 30 & 511)?;
        let page = entry(address(directory), virt >> 21 & 511)?;
        assert_ne!(page & HUGE, 0);
        Some(address(page) | virt & (2 * MIB - 1))
    }

    #[test]
    fn all_low_ram_is_mapped_to_itself() {
        for bytes in [16 * MIB, GIB, GIB + PAGE_SIZE, 3 * GIB, 64 * GIB] {
            let memory = MemoryLayout::new(bytes).unwrap();
            let tables = identity(memory);
            let end = memory.low_ram().end();
            for address in [0, 0x7000, 2 * MIB + 5, end / 2, end - 1] {
                assert_eq!(translate(&tables, address), Some(address));
            }
            assert_eq!(translate(&tables, end.next_multiple_of(GIB)), None);
        }
    }

    #[test]
    fn the_tables_end_below_the_command_line() {
        let tables = identity(MemoryLayout::new(64 * GIB).unwrap());
        let end = tables.guest_addr + tables.bytes.len() as u64;
        assert!(end <= crate::layout::CMDLINE_START);
    }
}
