//! From a head index to a checked [`Chain`]: the one place that reads descriptors.
//!
//! Each descriptor is read once. What is wrong with a chain is an error, never a shorter chain:
//! a request that lost its tail would be served as if the guest had meant it so.

#![deny(clippy::indexing_slicing)]

use vm_memory::{
    GuestAddress, GuestMemoryBackend, GuestMemoryError, GuestMemoryMmap, VolatileSlice,
};

use super::chain::{Chain, Segment};
use super::memory::is_writable;
use super::spec::{DESCRIPTOR_SIZE, Descriptor, desc_flags};

/// Most descriptors in an indirect table. It is what readv(2) takes at once (UIO_MAXIOV), and
/// what other monitors allow; drivers stay below the queue size (section 2.7.5.3.1).
pub const MAX_INDIRECT_DESCRIPTORS: u32 = 1024;

/// What is wrong with a chain. `index` counts in the table that the descriptor is in.
#[derive(Debug, thiserror::Error)]
pub enum ChainFault {
    /// A `next` field leads out of its table.
    #[error("descriptor {index} is outside its table of {len}")]
    OutsideTable {
        /// The index that was asked for.
        index: u16,
        /// Descriptors in the table.
        len: u32,
    },
    /// There are more descriptors than the table has: some are there twice.
    #[error("it goes round in a circle")]
    Loop,
    /// A buffer that the device may read comes after one that it may write, against section
    /// 2.7.4.2.
    #[error("a readable buffer comes after a writable one, at descriptor {index}")]
    ReadableAfterWritable {
        /// The readable one.
        index: u16,
    },
    /// A buffer is not, or not wholly, in RAM.
    #[error("the {len:#x} bytes at {addr:#x} of descriptor {index} are not in RAM")]
    NotInRam {
        /// The descriptor.
        index: u16,
        /// Its address.
        addr: u64,
        /// Its length.
        len: u32,
    },
    /// A buffer that the device is to write is in memory that is read-only, such as a root image's.
    #[error("the {len:#x} bytes at {addr:#x} of descriptor {index} are in read-only memory")]
    ReadOnly {
        /// The descriptor.
        index: u16,
        /// Its address.
        addr: u64,
        /// Its length.
        len: u32,
    },
    /// All lengths together do not fit in 32 bits, against section 2.7.5.
    #[error("it is longer than 4 GiB")]
    TooLong,
    /// VIRTIO_F_INDIRECT_DESC was not negotiated.
    #[error("descriptor {index} is indirect, which the driver has not negotiated")]
    IndirectNotNegotiated {
        /// The descriptor.
        index: u16,
    },
    /// A table in a table, or a descriptor both indirect and with a next one, against section
    /// 2.7.5.3.1.
    #[error("descriptor {index} is indirect where it may not be")]
    IndirectMisplaced {
        /// The descriptor.
        index: u16,
    },
    /// The table's length is not a whole number of descriptors, none, or too many.
    #[error("the indirect table of {len} bytes has a wrong length")]
    IndirectLength {
        /// Its length.
        len: u32,
    },
    /// The table could not be read.
    #[error("a descriptor could not be read")]
    Memory(#[source] GuestMemoryError),
}

/// A table of descriptors, where it is in the host's memory.
#[derive(Clone, Copy)]
pub(super) struct Table<'m> {
    bytes: VolatileSlice<'m>,
    /// Number of descriptors.
    len: u32,
}

impl<'m> Table<'m> {
    /// The table of a queue of `size` descriptors.
    ///
    /// # Errors
    /// It is not in one mapping of RAM.
    pub fn direct(
        memory: &'m GuestMemoryMmap,
        addr: GuestAddress,
        size: u16,
    ) -> Result<Self, ChainFault> {
        let len = u32::from(size);
        let bytes = memory.get_slice(addr, (DESCRIPTOR_SIZE as u32 * len) as usize);
        let bytes = bytes.map_err(ChainFault::Memory)?;
        Ok(Self { bytes, len })
    }

    fn read(self, index: u16) -> Result<Descriptor, ChainFault> {
        if u32::from(index) >= self.len {
            let len = self.len;
            return Err(ChainFault::OutsideTable { index, len });
        }
        let at = DESCRIPTOR_SIZE as usize * usize::from(index);
        let mut bytes = [0_u8; DESCRIPTOR_SIZE as usize];
        self.bytes
            .subslice(at, bytes.len())
            .map_err(|error| ChainFault::Memory(error.into()))?
            .copy_to(&mut bytes);
        Ok(zerocopy::transmute!(bytes))
    }

    fn indirect(
        memory: &'m GuestMemoryMmap,
        index: u16,
        descriptor: &Descriptor,
    ) -> Result<Self, ChainFault> {
        let size = descriptor.len.get();
        let len = size / DESCRIPTOR_SIZE as u32;
        let whole = u64::from(size).is_multiple_of(DESCRIPTOR_SIZE);
        if !whole || len == 0 || len > MAX_INDIRECT_DESCRIPTORS {
            return Err(ChainFault::IndirectLength { len: size });
        }
        let addr = descriptor.addr.get();
        let bytes = memory.get_slice(GuestAddress(addr), size as usize);
        let bytes = bytes.map_err(|_| ChainFault::NotInRam {
            index,
            addr,
            len: size,
        })?;
        Ok(Self { bytes, len })
    }
}

/// Follows the chain that starts at `head`. `segments` is an empty vector to fill, which spares an
/// allocation when it was used before.
pub(super) fn walk<'m>(
    memory: &'m GuestMemoryMmap,
    mut table: Table<'m>,
    head: u16,
    indirect_negotiated: bool,
    segments: Vec<Segment>,
) -> Result<Chain, ChainFault> {
    let mut chain = Chain::empty(head, segments);
    let mut in_indirect = false;
    let mut index = head;
    // A chain has each descriptor of a table at most once, so this also ends circles.
    let mut left = table.len;
    loop {
        let descriptor = table.read(index)?;
        left = left.checked_sub(1).ok_or(ChainFault::Loop)?;
        let flags = descriptor.flags.get();
        if flags & desc_flags::INDIRECT != 0 {
            if !indirect_negotiated {
                return Err(ChainFault::IndirectNotNegotiated { index });
            }
            if in_indirect || flags & desc_flags::NEXT != 0 {
                return Err(ChainFault::IndirectMisplaced { index });
            }
            table = Table::indirect(memory, index, &descriptor)?;
            in_indirect = true;
            left = table.len;
            index = 0;
            continue;
        }
        push(memory, &mut chain, index, &descriptor)?;
        if flags & desc_flags::NEXT == 0 {
            return Ok(chain);
        }
        index = descriptor.next.get();
    }
}

fn push(
    memory: &GuestMemoryMmap,
    chain: &mut Chain,
    index: u16,
    descriptor: &Descriptor,
) -> Result<(), ChainFault> {
    let len = descriptor.len.get();
    let writable = descriptor.flags.get() & desc_flags::WRITE != 0;
    if !writable && chain.has_writable() {
        return Err(ChainFault::ReadableAfterWritable { index });
    }
    // Nothing forbids an empty buffer; it has no bytes that could be outside of RAM.
    if len == 0 {
        return Ok(());
    }
    check_in_ram(memory, index, descriptor)?;
    let addr = GuestAddress(descriptor.addr.get());
    if writable && !is_writable(memory, addr, len.into()) {
        let addr = addr.0;
        return Err(ChainFault::ReadOnly { index, addr, len });
    }
    chain
        .push(Segment { addr, len }, writable)
        .ok_or(ChainFault::TooLong)
}

fn check_in_ram(
    memory: &GuestMemoryMmap,
    index: u16,
    descriptor: &Descriptor,
) -> Result<(), ChainFault> {
    let (addr, len) = (descriptor.addr.get(), descriptor.len.get());
    let whole = memory.get_slice(GuestAddress(addr), len as usize).is_ok();
    // It may cross from one mapping of RAM to the next.
    if whole || memory.check_range(GuestAddress(addr), len as usize) {
        return Ok(());
    }
    Err(ChainFault::NotInRam { index, addr, len })
}
