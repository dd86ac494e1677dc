//! PVH's start-of-day structure (Xen's `xen/include/public/arch-x86/hvm/start_info.h`), with its
//! memory map and module list behind it in the same page.

use linux_loader::loader::elf::start_info::{
    XEN_HVM_START_MAGIC_VALUE, hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info,
};
use vm_memory::ByteValued;

use crate::layout::{ACPI_START, CMDLINE_START, GuestRange, MemoryLayout, PVH_START_INFO};
use crate::memory_map::memory_map;
use crate::plan::Blob;

/// The version that has a memory map.
const VERSION: u32 = 1;

/// The structure at [`PVH_START_INFO`], then the map's entries, then the module (the initrd).
pub(crate) fn start_info(memory: MemoryLayout, initrd: Option<GuestRange>) -> Blob {
    let map: Vec<_> = memory_map(&memory)
        .iter()
        .map(|entry| hvm_memmap_table_entry {
            addr: entry.range.start,
            size: entry.range.len,
            type_: entry.kind as u32,
            reserved: 0,
        })
        .collect();
    let modules: Vec<_> = initrd
        .iter()
        .map(|range| hvm_modlist_entry {
            paddr: range.start,
            size: range.len,
            ..Default::default()
        })
        .collect();

    let map_addr = PVH_START_INFO + size_of::<hvm_start_info>() as u64;
    let modules_addr = map_addr + size_of_val(map.as_slice()) as u64;
    let info = hvm_start_info {
        magic: XEN_HVM_START_MAGIC_VALUE,
        version: VERSION,
        flags: 0,
        nr_modules: modules.len() as u32,
        modlist_paddr: if modules.is_empty() { 0 } else { modules_addr },
        cmdline_paddr: CMDLINE_START,
        rsdp_paddr: ACPI_START,
        memmap_paddr: map_addr,
        memmap_entries: map.len() as u32,
        reserved: 0,
    };

    let mut bytes = info.as_slice().to_vec();
    bytes.extend(map.iter().flat_map(ByteValued::as_slice));
    bytes.extend(modules.iter().flat_map(ByteValued::as_slice));
    Blob {
        guest_addr: PVH_START_INFO,
        bytes,
    }
}
