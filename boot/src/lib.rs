//! From a kernel file, a memory layout and a machine's description to the state in which a guest
//! starts.
//!
//! Everything here is pure: nothing is mapped, no KVM is touched. [`plan()`] reads the kernel's
//! headers, refuses what cannot boot with one clear line, and returns a [`BootPlan`], plain data
//! that the monitor carries out: which pages to map from which file, which bytes to copy, which
//! tables to write, and with which registers the first vCPU starts.
//!
//! Two ways into a kernel are known:
//! - **PVH** (an ELF file with a `XEN_ELFNOTE_PHYS32_ENTRY` note): 32-bit protected mode, `ebx`
//!   points at a start-of-day structure. See Xen's `docs/misc/pvh.pandoc`.
//! - **Linux 64-bit boot protocol** (a bzImage, or an ELF file without that note): long mode, `rsi`
//!   points at the zero page. See the kernel's `Documentation/arch/x86/boot.rst`, section
//!   "64-bit Boot Protocol".

#![cfg_attr(not(test), deny(clippy::indexing_slicing))]

pub mod acpi;
pub mod cmdline;
pub mod image_file;
pub mod initrd;
pub mod kernel;
pub mod layout;
pub mod memory_map;
pub mod plan;
pub mod registers;

mod page_tables;
mod pvh;
mod zero_page;

pub use acpi::{AcpiDevices, AcpiError, PowerPorts, SerialPort, VirtioMmio};
pub use cmdline::{Cmdline, CmdlineError};
pub use image_file::ImageFile;
pub use initrd::{InitrdError, InitrdPart};
pub use kernel::{BzImageError, ElfError, KernelError};
pub use layout::{GuestRange, LayoutError, MemoryLayout};
pub use plan::{Blob, BootError, BootPlan, BootSpec, FileCopy, FileMapping, PlanFile, plan};
pub use registers::{BootProtocol, EntryState};
