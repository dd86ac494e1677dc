//! Fewer page faults on the way to init.
//!
//! A small guest has its memory page by page, and pays an exit for each that it touches first: most of
//! a boot's time. But there are blocks of 2 MiB in which Linux writes nearly every page before init
//! runs; as one huge page each costs one exit, and no memory that would not be used.

use casita_boot::layout::HIMEM_START;
use casita_boot::{BootPlan, GuestRange};

use super::{GuestRam, SMALL_GUEST};

/// The first block that Linux's page allocator gives from, when it has taken over from the early one:
/// measured with casita's kernel, at several sizes of memory. Before init 499 of its 512 pages are
/// touched; of the next block 280, and a MiB that may stay unused is too much for two milliseconds.
const FIRST_BLOCK: GuestRange = GuestRange {
    start: 8 << 20,
    len: BLOCK,
};
/// A huge page of x86-64, in bytes.
const BLOCK: u64 = 2 << 20;
/// Linux has a `struct page` of 64 bytes for each page, this many times less than memory.
const PAGE_TO_STRUCT_PAGE: u64 = 64;

impl GuestRam {
    /// Asks for huge pages where all of them will be used. A host that has none gives small ones.
    pub(super) fn avoid_faults(&self, plan: &BootPlan) {
        if self.layout.bytes() > SMALL_GUEST {
            return; // It has huge pages everywhere.
        }
        let first = (plan.kernel.start >= FIRST_BLOCK.end()).then_some(FIRST_BLOCK);
        let data = plan.kernel_data.map(whole_blocks);
        let blocks = [first, data, self.memory_map(plan)];
        for range in blocks.into_iter().flatten() {
            self.ask_for_huge_pages(&range);
        }
    }

    /// Where Linux puts its `struct page`s: it takes early memory from the top, where the initrd is
    /// in the way, in whole blocks.
    fn memory_map(&self, plan: &BootPlan) -> Option<GuestRange> {
        let top = match plan.initrd {
            Some(initrd) => initrd.start,
            None => self.layout.low_ram().end() - 1,
        };
        let len = self.layout.bytes() / PAGE_TO_STRUCT_PAGE / BLOCK * BLOCK;
        let end = top / BLOCK * BLOCK;
        let start = end.checked_sub(len)?;
        (start > HIMEM_START.max(plan.kernel.end())).then_some(GuestRange { start, len })
    }

    fn ask_for_huge_pages(&self, range: &GuestRange) {
        if range.len == 0 {
            return;
        }
        if let Ok(host) = self.host_range(range.start, range.len) {
            // SAFETY: the range is a mapping of ours, whose content this does not change.
            unsafe { libc::madvise(host.cast(), range.len as usize, libc::MADV_HUGEPAGE) };
        }
    }
}

/// The blocks that lie wholly in `range`.
fn whole_blocks(range: GuestRange) -> GuestRange {
    GuestRange::from_bounds(
        range.start.next_multiple_of(BLOCK),
        range.end() / BLOCK * BLOCK,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_blocks_become_huge_pages() {
        let blocks = |start, end| {
            let blocks = whole_blocks(GuestRange::from_bounds(start, end));
            (blocks.start / BLOCK, blocks.len / BLOCK)
        };
        assert_eq!(blocks(14 * BLOCK, 15 * BLOCK + 4096), (14, 1));
        assert_eq!(blocks(14 * BLOCK + 1, 16 * BLOCK), (15, 1));
        assert_eq!(blocks(14 * BLOCK + 1, 15 * BLOCK), (15, 0));
        assert_eq!(blocks(14 * BLOCK + 1, 15 * BLOCK - 1).1, 0);
    }
}
