//! The first vCPU's registers, as plain data that mirrors what `KVM_SET_REGS` and `KVM_SET_SREGS`
//! take. The other vCPUs wait for the guest to start them and need none of this.

use crate::layout::{GDT_START, PAGE_TABLES, PVH_START_INFO, ZERO_PAGE};
use crate::plan::Blob;

/// By which protocol the kernel is entered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BootProtocol {
    /// PVH: 32-bit protected mode without paging.
    Pvh,
    /// Linux's 64-bit boot protocol: long mode with identity page tables.
    Linux64,
}

/// Everything that the first vCPU starts with. General registers that are not named are 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EntryState {
    /// By which protocol.
    pub protocol: BootProtocol,
    /// General registers.
    pub registers: Registers,
    /// Code segment.
    pub cs: Segment,
    /// Data segment, for `ds`, `es`, `fs`, `gs` and `ss`.
    pub data: Segment,
    /// Task register.
    pub tr: Segment,
    /// Global descriptor table; a blob of the plan.
    pub gdt: DescriptorTable,
    /// Interrupt descriptor table: empty, so that an early fault ends in a triple fault.
    pub idt: DescriptorTable,
    /// Control registers.
    pub control: ControlRegisters,
}

/// General registers that are not 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Registers {
    /// Where execution starts, a physical address.
    pub rip: u64,
    /// PVH: address of the start info.
    pub rbx: u64,
    /// 64-bit boot protocol: address of the zero page.
    pub rsi: u64,
    /// Flags: only the bit that is always set.
    pub rflags: u64,
}

/// A segment register with its hidden part (Intel SDM 3A, 3.4.5), laid out as `kvm_segment`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    /// Linear base address.
    pub base: u64,
    /// Last valid offset, in bytes (already scaled by the granularity).
    pub limit: u32,
    /// Selector: an offset into the GDT.
    pub selector: u16,
    /// Segment type, four bits.
    pub type_: u8,
    /// Present bit.
    pub present: u8,
    /// Privilege level.
    pub dpl: u8,
    /// Default operand size: 1 for 32 bits.
    pub db: u8,
    /// 1 for code and data, 0 for system segments.
    pub s: u8,
    /// 1 for 64-bit code.
    pub l: u8,
    /// Granularity: 1 if the descriptor counts its limit in pages.
    pub g: u8,
}

/// Base and limit of a descriptor table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct DescriptorTable {
    /// Linear address.
    pub base: u64,
    /// Last valid offset, in bytes.
    pub limit: u16,
}

/// Control registers; the ones that are not named are 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ControlRegisters {
    /// Protection, paging.
    pub cr0: u64,
    /// Physical address of the top-level page table.
    pub cr3: u64,
    /// Paging extensions.
    pub cr4: u64,
    /// The extended feature enable MSR.
    pub efer: u64,
}

/// `CR0.PE`: protected mode.
pub const CR0_PE: u64 = 1 << 0;
/// `CR0.ET`: always 1 on current CPUs.
pub const CR0_ET: u64 = 1 << 4;
/// `CR0.PG`: paging.
pub const CR0_PG: u64 = 1 << 31;
/// `CR4.PAE`: page tables of long mode.
pub const CR4_PAE: u64 = 1 << 5;
/// `EFER.LME`: long mode enabled.
pub const EFER_LME: u64 = 1 << 8;
/// `EFER.LMA`: long mode active.
pub const EFER_LMA: u64 = 1 << 10;

/// Flags with only the bit that is always set.
const RFLAGS_RESERVED: u64 = 1 << 1;

/// Selectors that the 64-bit boot protocol asks for: `__BOOT_CS` and `__BOOT_DS`.
const BOOT_CS: u16 = 0x10;
const BOOT_DS: u16 = 0x18;
const BOOT_TSS: u16 = 0x20;
/// Two unused descriptors, code, data, and a TSS of the double size that long mode has.
const GDT_ENTRIES: u16 = 6;

const FLAT: Segment = Segment {
    base: 0,
    limit: 0xffff_ffff,
    selector: 0,
    type_: 0,
    present: 1,
    dpl: 0,
    db: 0,
    s: 1,
    l: 0,
    g: 1,
};
/// Execute/read, accessed.
const CODE: Segment = Segment {
    selector: BOOT_CS,
    type_: 0xb,
    ..FLAT
};
/// Read/write, accessed.
const DATA: Segment = Segment {
    selector: BOOT_DS,
    type_: 0x3,
    db: 1,
    ..FLAT
};
/// Busy TSS, as PVH and KVM want it: the smallest one, at address 0, never used.
const TSS: Segment = Segment {
    selector: BOOT_TSS,
    type_: 0xb,
    limit: 0x67,
    s: 0,
    g: 0,
    ..FLAT
};

impl Segment {
    /// The eight bytes of this segment's descriptor (Intel SDM 3A, figure 3-8).
    fn descriptor(&self) -> u64 {
        let limit = u64::from(if self.g == 1 {
            self.limit >> 12
        } else {
            self.limit
        });
        let access = u64::from(self.type_)
            | u64::from(self.s) << 4
            | u64::from(self.dpl) << 5
            | u64::from(self.present) << 7;
        let flags = u64::from(self.l) << 1 | u64::from(self.db) << 2 | u64::from(self.g) << 3;
        limit & 0xffff
            | (self.base & 0xff_ffff) << 16
            | access << 40
            | (limit >> 16 & 0xf) << 48
            | flags << 52
            | (self.base >> 24 & 0xff) << 56
    }
}

impl EntryState {
    /// PVH's state at `entry` (Xen's `docs/misc/pvh.pandoc`, "x86/PVH").
    pub(crate) fn pvh(entry: u64) -> Self {
        Self {
            protocol: BootProtocol::Pvh,
            registers: Registers {
                rip: entry,
                rbx: PVH_START_INFO,
                rsi: 0,
                rflags: RFLAGS_RESERVED,
            },
            cs: Segment { db: 1, ..CODE },
            data: DATA,
            tr: TSS,
            gdt: GDT,
            idt: DescriptorTable::default(),
            control: ControlRegisters {
                cr0: CR0_PE | CR0_ET,
                ..ControlRegisters::default()
            },
        }
    }

    /// The 64-bit boot protocol's state at `entry`.
    pub fn linux64(entry: u64) -> Self {
        Self {
            protocol: BootProtocol::Linux64,
            registers: Registers {
                rip: entry,
                rbx: 0,
                rsi: ZERO_PAGE,
                rflags: RFLAGS_RESERVED,
            },
            cs: Segment { l: 1, ..CODE },
            data: DATA,
            tr: TSS,
            gdt: GDT,
            idt: DescriptorTable::default(),
            control: ControlRegisters {
                cr0: CR0_PE | CR0_ET | CR0_PG,
                cr3: PAGE_TABLES,
                cr4: CR4_PAE,
                efer: EFER_LME | EFER_LMA,
            },
        }
    }

    /// The descriptor table that the segments' selectors point into.
    pub fn gdt_blob(&self) -> Blob {
        let descriptors = [
            0,
            0,
            self.cs.descriptor(),
            self.data.descriptor(),
            self.tr.descriptor(),
            0,
        ];
        Blob {
            guest_addr: GDT_START,
            bytes: descriptors.iter().flat_map(|d| d.to_le_bytes()).collect(),
        }
    }
}

const GDT: DescriptorTable = DescriptorTable {
    base: GDT_START,
    limit: GDT_ENTRIES * 8 - 1,
};

#[cfg(test)]
mod tests {
    use super::*;

    fn descriptors(state: &EntryState) -> Vec<u64> {
        let words = state.gdt_blob().bytes;
        let words = words.chunks(8).map(|word| word.try_into().unwrap());
        words.map(u64::from_le_bytes).collect()
    }

    #[test]
    fn the_gdt_describes_flat_segments() {
        let data = 0x00cf_9300_0000_ffff;
        let tss = 0x0000_8b00_0000_0067;
        assert_eq!(
            descriptors(&EntryState::pvh(0)),
            [0, 0, 0x00cf_9b00_0000_ffff, data, tss, 0]
        );
        assert_eq!(
            descriptors(&EntryState::linux64(0)),
            [0, 0, 0x00af_9b00_0000_ffff, data, tss, 0]
        );
    }

    #[test]
    fn selectors_and_limit_fit_the_gdt() {
        let state = EntryState::linux64(0);
        assert_eq!((state.cs.selector, state.data.selector), (0x10, 0x18));
        assert_eq!(
            usize::from(state.gdt.limit) + 1,
            state.gdt_blob().bytes.len()
        );
    }
}
