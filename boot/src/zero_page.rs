//! Linux's `struct boot_params`, the "zero page" (`Documentation/arch/x86/zero-page.rst`).

use linux_loader::loader::bootparam::{boot_e820_entry, boot_params, setup_header};
use vm_memory::ByteValued;

use crate::layout::{ACPI_START, CMDLINE_START, GuestRange, MemoryLayout, ZERO_PAGE};
use crate::memory_map::memory_map;
use crate::plan::Blob;

/// "Undefined loader" (`boot.rst`, `type_of_loader`): this one has no number of its own.
const LOADER_TYPE: u8 = 0xff;
/// "Normal" video mode (`boot.rst`, "Special Command Line Options").
const VIDEO_NORMAL: u16 = 0xffff;

/// The zero page for a kernel with this setup header, whose other fields a loader fills in.
pub(crate) fn build(
    header: &setup_header,
    memory: MemoryLayout,
    initrd: Option<GuestRange>,
) -> Blob {
    let mut params = boot_params {
        hdr: *header,
        acpi_rsdp_addr: ACPI_START,
        ..Default::default()
    };
    params.hdr.type_of_loader = LOADER_TYPE;
    params.hdr.vid_mode = VIDEO_NORMAL;
    // Both are constants and initrds lie in low RAM: all fit into 32 bits.
    params.hdr.cmd_line_ptr = CMDLINE_START as u32;
    if let Some(range) = initrd {
        params.hdr.ramdisk_image = range.start as u32;
        params.hdr.ramdisk_size = range.len as u32;
    }

    let map = memory_map(&memory);
    params.e820_entries = map.len() as u8;
    let mut table = params.e820_table;
    for (slot, entry) in table.iter_mut().zip(&map) {
        *slot = boot_e820_entry {
            addr: entry.range.start,
            size: entry.range.len,
            r#type: entry.kind as u32,
        };
    }
    params.e820_table = table;

    Blob {
        guest_addr: ZERO_PAGE,
        bytes: params.as_slice().to_vec(),
    }
}
