//! What a queue is while it does not run, and what can be wrong with it.

#![deny(clippy::indexing_slicing)]

use serde::{Deserialize, Serialize};
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryError, GuestMemoryMmap};

use crate::virtio::memory::is_writable;
use crate::virtio::spec::{self, DESCRIPTOR_SIZE};
use crate::virtio::walk::ChainFault;

/// Settings and indexes of a queue: what its transport keeps while it is not running, and what
/// is saved.
#[derive(Serialize, Deserialize, Clone, PartialEq, Eq, Debug)]
pub struct QueueState {
    /// Largest size that the device offers.
    pub max_size: u16,
    /// Size that the driver chose; 0 until it did, or if its choice was not possible.
    pub size: u16,
    /// The driver has finished the settings.
    pub ready: bool,
    /// Guest physical address of the descriptor table.
    pub desc_table: u64,
    /// Guest physical address of the available ring.
    pub avail_ring: u64,
    /// Guest physical address of the used ring.
    pub used_ring: u64,
    /// Index of the next chain to take, modulo 2^16.
    pub next_avail: u16,
    /// Index of the next chain to give back, modulo 2^16.
    pub next_used: u16,
    /// VIRTIO_F_EVENT_IDX was negotiated.
    pub event_idx: bool,
}

impl QueueState {
    /// A queue that no driver has touched.
    pub fn new(max_size: u16) -> Self {
        Self {
            max_size,
            size: 0,
            ready: false,
            desc_table: 0,
            avail_ring: 0,
            used_ring: 0,
            next_avail: 0,
            next_used: 0,
            event_idx: false,
        }
    }

    /// Chains that were taken and not given back.
    pub fn in_flight(&self) -> u16 {
        self.next_avail.wrapping_sub(self.next_used)
    }

    /// Checks all that section 2.7 demands of the settings, and that the rings are in RAM.
    ///
    /// # Errors
    /// The first setting that is wrong.
    pub fn validate(&self, memory: &GuestMemoryMmap) -> Result<(), QueueError> {
        let (size, max) = (self.size, self.max_size);
        if !size.is_power_of_two() || size > max || max > spec::QUEUE_SIZE_LIMIT {
            return Err(QueueError::Size { size, max });
        }
        let entries = u64::from(size);
        let areas = [
            (
                "descriptor table",
                self.desc_table,
                DESCRIPTOR_SIZE * entries,
                spec::DESC_TABLE_ALIGN,
            ),
            (
                "available ring",
                self.avail_ring,
                6 + 2 * entries,
                spec::AVAIL_RING_ALIGN,
            ),
            (
                "used ring",
                self.used_ring,
                6 + 8 * entries,
                spec::USED_RING_ALIGN,
            ),
        ];
        for (area, addr, len, align) in areas {
            if !addr.is_multiple_of(align) {
                return Err(QueueError::Misaligned { area, addr, align });
            }
            // Drivers write to all three, and devices to one: none lies in read-only memory.
            let inside = memory.check_range(GuestAddress(addr), len as usize);
            if !inside || !is_writable(memory, GuestAddress(addr), len) {
                return Err(QueueError::NotInRam { area, addr, len });
            }
        }
        if self.in_flight() > size {
            return Err(QueueError::InFlight {
                count: self.in_flight(),
                size,
            });
        }
        Ok(())
    }
}

/// Why a queue cannot be used, or not any more.
#[derive(Debug, thiserror::Error)]
pub enum QueueError {
    /// An earlier error has stopped the queue for good.
    #[error("the queue is stopped until the device is reset")]
    Broken,
    /// The driver has not set the queue up.
    #[error("the queue is not ready")]
    NotReady,
    /// Not a power of two from 1 to the largest size.
    #[error("queue size {size} is not a power of two from 1 to {max}")]
    Size {
        /// Its size.
        size: u16,
        /// The largest one.
        max: u16,
    },
    /// A ring's address is not a multiple of what section 2.7 demands.
    #[error("the {area} at {addr:#x} is not aligned to {align} bytes")]
    Misaligned {
        /// Which ring.
        area: &'static str,
        /// Its address.
        addr: u64,
        /// The alignment.
        align: u64,
    },
    /// A ring is not, or not wholly, in RAM.
    #[error("the {len} bytes of the {area} at {addr:#x} are not in RAM")]
    NotInRam {
        /// Which ring.
        area: &'static str,
        /// Its address.
        addr: u64,
        /// Its length.
        len: u64,
    },
    /// More chains are out than there are descriptors; only a saved state can say so.
    #[error("{count} chains are in flight in a queue of {size}")]
    InFlight {
        /// Chains.
        count: u16,
        /// The queue's size.
        size: u16,
    },
    /// The available index moved further than the driver has descriptors.
    #[error(
        "the available index went from {from} to {to} in a queue of {size} with {in_flight} chains in flight"
    )]
    AvailableIndex {
        /// Where the device is.
        from: u16,
        /// What the driver wrote.
        to: u16,
        /// The queue's size.
        size: u16,
        /// Chains in flight.
        in_flight: u16,
    },
    /// A chain starts at a descriptor that there is not.
    #[error("chain head {head} is not below the queue size {size}")]
    Head {
        /// What the driver wrote.
        head: u16,
        /// The queue's size.
        size: u16,
    },
    /// A chain breaks a rule.
    #[error("the chain at descriptor {head} is not valid")]
    BadChain {
        /// Its first descriptor.
        head: u16,
        /// The rule.
        source: ChainFault,
    },
    /// More chains were given back than were taken.
    #[error("chain {head} was not taken from this queue")]
    NotTaken {
        /// Its first descriptor.
        head: u16,
    },
    /// A ring could not be reached.
    #[error("a ring cannot be reached")]
    Memory(#[source] GuestMemoryError),
}
