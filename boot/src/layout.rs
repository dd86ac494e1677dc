//! Guest-physical memory: every fixed address of the machine, and where its RAM lies.
//!
//! ```text
//! 0x0000_0500  GDT                       0x0000_6000  PVH start info
//! 0x0000_7000  zero page                 0x0000_9000  page tables
//! 0x0002_0000  command line              0x0009_fc00  end of conventional memory
//! 0x000e_0000  ACPI tables               0x0010_0000  kernel may start here
//!          ... low RAM, the initrd at its top ...
//! 0xc000_0000  hole: no RAM              0xd000_0000  virtio-mmio registers
//! 0xfec0_0000  I/O APIC                  0xfee0_0000  local APIC
//! 0xfffb_c000  KVM's own pages           1 << 32      high RAM
//! ```

use thiserror::Error;

/// Size of a guest page, in bytes.
pub const PAGE_SIZE: u64 = 4096;
/// One MiB, in bytes.
pub const MIB: u64 = 1 << 20;
/// One GiB, in bytes.
pub const GIB: u64 = 1 << 30;

/// The global descriptor table that the entry state refers to.
pub const GDT_START: u64 = 0x500;
/// PVH's start-of-day structure, with its memory map and module list in the same page.
pub const PVH_START_INFO: u64 = 0x6000;
/// Linux's `struct boot_params`, one page.
pub const ZERO_PAGE: u64 = 0x7000;
/// Identity page tables for the 64-bit entry: PML4, PDPT, then one page directory per GiB.
pub const PAGE_TABLES: u64 = 0x9000;
/// The command line, at most [`CMDLINE_AREA`] bytes with its terminating zero.
pub const CMDLINE_START: u64 = 0x2_0000;
/// Room for the command line, in bytes.
pub const CMDLINE_AREA: u64 = 0x1_0000;
/// End of conventional memory; from here to [`HIMEM_START`] the memory maps say "reserved".
pub const EBDA_START: u64 = 0x9_fc00;
/// RSDP and all other ACPI tables. It lies in the area where an operating system that was given no
/// pointer searches for the RSDP (ACPI 6.5, 5.2.5.1).
pub const ACPI_START: u64 = 0xe_0000;
/// End of the area for ACPI tables.
pub const ACPI_END: u64 = HIMEM_START;
/// The lowest address at which a kernel may be loaded.
pub const HIMEM_START: u64 = MIB;

/// First address of the hole without RAM below 4 GiB.
pub const MMIO_HOLE_START: u64 = 0xc000_0000;
/// First address behind that hole, where high RAM starts.
pub const MMIO_HOLE_END: u64 = 0x1_0000_0000;
/// Registers of the first virtio-mmio device.
pub const VIRTIO_MMIO_START: u64 = 0xd000_0000;
/// Distance from one virtio-mmio device to the next, and the size of its registers.
pub const VIRTIO_MMIO_STRIDE: u64 = 0x1000;
/// End of the window for virtio-mmio devices.
pub const VIRTIO_MMIO_END: u64 = IOAPIC_START;
/// Registers of the I/O APIC.
pub const IOAPIC_START: u64 = 0xfec0_0000;
/// Inputs of the I/O APIC: global system interrupts 0 to 23.
pub const IOAPIC_PINS: u32 = 24;
/// Registers of each vCPU's local APIC.
pub const LAPIC_START: u64 = 0xfee0_0000;
/// For `KVM_SET_IDENTITY_MAP_ADDR`: one page.
pub const KVM_IDENTITY_MAP: u64 = 0xfffb_c000;
/// For `KVM_SET_TSS_ADDR`: three pages.
pub const KVM_TSS: u64 = 0xfffb_d000;

/// I/O port of the first serial port, COM1.
pub const SERIAL_PORT: u16 = 0x3f8;
/// Global system interrupt of the first serial port.
pub const SERIAL_GSI: u32 = 4;
/// First global system interrupt for virtio-mmio devices; they go up to [`IOAPIC_PINS`] - 1.
pub const VIRTIO_GSI_START: u32 = 5;

/// The most vCPUs that the tables describe.
pub const MAX_VCPUS: u8 = 32;
/// The least guest memory: a kernel loaded at 16 MiB would not fit anyway below this.
pub const MIN_MEMORY: u64 = 16 * MIB;
/// The most guest memory. A host whose CPU has fewer physical address bits is the monitor's to
/// check.
pub const MAX_MEMORY: u64 = 1 << 40;

/// A range of guest-physical addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct GuestRange {
    /// First address.
    pub start: u64,
    /// Length in bytes.
    pub len: u64,
}

impl GuestRange {
    /// The range of `len` bytes at `start`, or `None` if it wraps around the address space.
    pub const fn new(start: u64, len: u64) -> Option<Self> {
        match start.checked_add(len) {
            Some(_) => Some(Self { start, len }),
            None => None,
        }
    }

    /// The range from `start` up to, not including, `end`; empty when `end` is not above `start`.
    pub const fn from_bounds(start: u64, end: u64) -> Self {
        Self {
            start,
            len: end.saturating_sub(start),
        }
    }

    /// The first address behind the range.
    pub const fn end(&self) -> u64 {
        self.start.saturating_add(self.len)
    }

    /// Whether all of `other` lies in this range.
    pub const fn contains(&self, other: &GuestRange) -> bool {
        self.start <= other.start && other.end() <= self.end()
    }

    /// Whether the two share a byte.
    pub const fn overlaps(&self, other: &GuestRange) -> bool {
        self.len != 0 && other.len != 0 && self.start < other.end() && other.start < self.end()
    }
}

/// Why an amount of guest memory was refused.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum LayoutError {
    /// Less than [`MIN_MEMORY`].
    #[error("{bytes} bytes of guest memory are too few: at least {} MiB are needed", MIN_MEMORY / MIB)]
    TooSmall {
        /// What was asked for.
        bytes: u64,
    },
    /// More than [`MAX_MEMORY`].
    #[error("{bytes} bytes of guest memory are too many: at most {} GiB are possible", MAX_MEMORY / GIB)]
    TooLarge {
        /// What was asked for.
        bytes: u64,
    },
    /// Not a whole number of pages.
    #[error("{bytes} bytes of guest memory are not a multiple of the page size, {PAGE_SIZE}")]
    NotPages {
        /// What was asked for.
        bytes: u64,
    },
}

/// Where a guest's RAM lies: low RAM from 0 up to the hole, the rest from 4 GiB on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryLayout {
    bytes: u64,
}

impl MemoryLayout {
    /// The layout of a guest with `bytes` bytes of RAM.
    ///
    /// # Errors
    /// If `bytes` is below [`MIN_MEMORY`], above [`MAX_MEMORY`] or not a multiple of [`PAGE_SIZE`].
    pub fn new(bytes: u64) -> Result<Self, LayoutError> {
        if bytes < MIN_MEMORY {
            Err(LayoutError::TooSmall { bytes })
        } else if bytes > MAX_MEMORY {
            Err(LayoutError::TooLarge { bytes })
        } else if !bytes.is_multiple_of(PAGE_SIZE) {
            Err(LayoutError::NotPages { bytes })
        } else {
            Ok(Self { bytes })
        }
    }

    /// All RAM, in bytes.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// RAM below the hole.
    pub fn low_ram(&self) -> GuestRange {
        GuestRange::from_bounds(0, self.bytes.min(MMIO_HOLE_START))
    }

    /// RAM from 4 GiB on, if there is more than fits below the hole.
    pub fn high_ram(&self) -> Option<GuestRange> {
        let len = self.bytes.saturating_sub(MMIO_HOLE_START);
        (len > 0).then_some(GuestRange {
            start: MMIO_HOLE_END,
            len,
        })
    }

    /// Low RAM, and high RAM if there is any, in ascending order.
    pub fn ram_ranges(&self) -> impl Iterator<Item = GuestRange> + use<> {
        std::iter::once(self.low_ram()).chain(self.high_ram())
    }

    /// Whether all of `range` is RAM.
    pub fn is_ram(&self, range: &GuestRange) -> bool {
        self.ram_ranges().any(|ram| ram.contains(range))
    }

    /// The lowest address above all RAM, a multiple of 1 GiB and at least 4 GiB, where
    /// memory-like devices (virtio-pmem) can be placed.
    pub fn device_memory_start(&self) -> u64 {
        self.high_ram()
            .map_or(MMIO_HOLE_END, |ram| ram.end())
            .next_multiple_of(GIB)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ranges(bytes: u64) -> Vec<(u64, u64)> {
        let layout = MemoryLayout::new(bytes).unwrap();
        layout
            .ram_ranges()
            .map(|ram| (ram.start, ram.len))
            .collect()
    }

    #[test]
    fn memory_that_fits_below_the_hole_is_one_range() {
        assert_eq!(ranges(256 * MIB), [(0, 256 * MIB)]);
        assert_eq!(ranges(3 * GIB), [(0, 3 * GIB)]);
    }

    #[test]
    fn the_rest_lies_from_4_gib_on() {
        assert_eq!(
            ranges(3 * GIB + PAGE_SIZE),
            [(0, 3 * GIB), (4 * GIB, PAGE_SIZE)]
        );
        assert_eq!(ranges(8 * GIB), [(0, 3 * GIB), (4 * GIB, 5 * GIB)]);
    }

    #[test]
    fn odd_sizes_are_refused() {
        let refused = |bytes| MemoryLayout::new(bytes).unwrap_err();
        assert_eq!(refused(0), LayoutError::TooSmall { bytes: 0 });
        let bytes = MIN_MEMORY - 1;
        assert_eq!(refused(bytes), LayoutError::TooSmall { bytes });
        let bytes = MIN_MEMORY + 1;
        assert_eq!(refused(bytes), LayoutError::NotPages { bytes });
        let bytes = u64::MAX;
        assert_eq!(refused(bytes), LayoutError::TooLarge { bytes });
    }

    #[test]
    fn memory_like_devices_lie_above_all_ram() {
        let start = |bytes| MemoryLayout::new(bytes).unwrap().device_memory_start();
        assert_eq!(start(256 * MIB), 4 * GIB);
        assert_eq!(start(3 * GIB + PAGE_SIZE), 5 * GIB);
        assert_eq!(start(8 * GIB), 9 * GIB);
    }

    #[test]
    fn ranges_that_touch_do_not_overlap() {
        let range = |start, end| GuestRange::from_bounds(start, end);
        assert!(!range(0, 5).overlaps(&range(5, 9)));
        assert!(range(0, 6).overlaps(&range(5, 9)));
        assert!(!range(0, 6).overlaps(&range(3, 3)));
        assert_eq!(GuestRange::new(u64::MAX, 1), None);
    }
}
