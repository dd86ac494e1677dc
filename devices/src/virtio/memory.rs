//! Which part of guest memory a device may write to.
//!
//! Beside RAM, guest memory may have an image in it that nobody may change (see [`super::pmem`]).
//! It is mapped without the right to write: a device that wrote there, because a driver said so,
//! would end the monitor.

use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};

/// Whether none of the `len` bytes from `addr` is in a region that may only be read. Bytes that are
/// in no region at all are not this function's concern.
pub(super) fn is_writable(memory: &GuestMemoryMmap, addr: GuestAddress, len: u64) -> bool {
    let end = addr.0.saturating_add(len);
    memory
        .iter()
        .filter(|region| region.prot() & libc::PROT_WRITE == 0)
        .all(|region| {
            let start = region.start_addr().0;
            // Regions are mapped, so they do not wrap.
            end <= start || start + region.len() <= addr.0
        })
}
