//! A split virtqueue, section 2.7, as its device sees it.
//!
//! The indexes, the used ring and the event fields are those of the `virtio-queue` crate.
//! Descriptors are read by [`super::walk`], which takes a bad chain for an error.

#![deny(clippy::indexing_slicing)]

mod state;

use std::num::Wrapping;
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use virtio_queue::QueueT;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::chain::{Chain, Segment};
use super::device::DeviceNotifier;
use super::spec::{AVAIL_F_NO_INTERRUPT, feature};
use super::walk::{self, Table};

pub use state::{QueueError, QueueState};

/// A running queue. Its worker owns it, so it needs no lock; the driver's settings are frozen in
/// it. The first error stops it: from then on every call returns [`QueueError::Broken`].
#[derive(Debug)]
pub struct Queue {
    ring: virtio_queue::Queue,
    memory: Arc<GuestMemoryMmap>,
    notifier: DeviceNotifier,
    indirect: bool,
    broken: bool,
    /// The driver's available index when it was last read.
    available: u16,
    in_flight: u16,
    /// Chains were completed since the last [`Queue::notify`].
    completed: bool,
    /// Segment lists of completed chains, used again so that a request allocates nothing.
    spare: Vec<Vec<Segment>>,
}

impl Queue {
    /// A queue that goes on where `state` left off. `features` are those that were negotiated.
    ///
    /// # Errors
    /// The state is not ready or not valid.
    pub fn new(
        memory: Arc<GuestMemoryMmap>,
        state: &QueueState,
        features: u64,
        notifier: DeviceNotifier,
    ) -> Result<Self, QueueError> {
        if !state.ready {
            return Err(QueueError::NotReady);
        }
        state.validate(&memory)?;
        let ring = virtio_queue::Queue::try_from(virtio_queue::QueueState {
            max_size: state.max_size,
            next_avail: state.next_avail,
            next_used: state.next_used,
            event_idx_enabled: features & feature::EVENT_IDX != 0,
            size: state.size,
            ready: true,
            desc_table: state.desc_table,
            avail_ring: state.avail_ring,
            used_ring: state.used_ring,
        })
        .map_err(QueueError::Ring)?;
        Ok(Self {
            ring,
            memory,
            notifier,
            indirect: features & feature::INDIRECT_DESC != 0,
            broken: false,
            available: state.next_avail,
            in_flight: state.in_flight(),
            completed: false,
            spare: Vec::new(),
        })
    }

    /// Takes the next chain that the driver made available, whole and checked; None if there is
    /// none. At most [`Queue::size`] chains are out at once.
    ///
    /// # Errors
    /// The driver broke a rule of section 2.7, or the queue is broken.
    pub fn pop(&mut self) -> Result<Option<Chain>, QueueError> {
        self.latch(Self::try_pop)
    }

    fn try_pop(&mut self) -> Result<Option<Chain>, QueueError> {
        let next = self.ring.next_avail();
        if next == self.available {
            self.read_available_index()?;
            if next == self.available {
                return Ok(None);
            }
        }
        let head = self.read_head(next)?;
        let table = Table {
            addr: GuestAddress(self.ring.desc_table()),
            len: u32::from(self.ring.size()),
        };
        let segments = self.spare.pop().unwrap_or_default();
        let chain = walk::walk(&self.memory, table, head, self.indirect, segments)
            .map_err(|source| QueueError::BadChain { head, source })?;
        self.ring.set_next_avail(next.wrapping_add(1));
        self.in_flight += 1;
        Ok(Some(chain))
    }

    fn read_available_index(&mut self) -> Result<(), QueueError> {
        let from = self.ring.next_avail();
        // Acquire: what the driver wrote before the index is seen after it.
        let Wrapping(to) = self
            .ring
            .avail_idx(&*self.memory, Ordering::Acquire)
            .map_err(QueueError::Ring)?;
        let (size, in_flight) = (self.ring.size(), self.in_flight);
        if to.wrapping_sub(from) > size - in_flight {
            return Err(QueueError::AvailableIndex {
                from,
                to,
                size,
                in_flight,
            });
        }
        self.available = to;
        Ok(())
    }

    fn read_head(&self, next: u16) -> Result<u16, QueueError> {
        let size = self.ring.size();
        // The ring was found in RAM, so its addresses do not wrap.
        let at = self.ring.avail_ring() + 4 + 2 * u64::from(next % size);
        let head = self
            .memory
            .load(GuestAddress(at), Ordering::Relaxed)
            .map(u16::from_le)
            .map_err(QueueError::Memory)?;
        if head >= size {
            return Err(QueueError::Head { head, size });
        }
        Ok(head)
    }

    /// Undoes the latest [`Queue::pop`]: `chain` is the one that it returned, and the next one to be
    /// taken. Several are put back in the opposite order. The driver notices nothing.
    ///
    /// # Errors
    /// No chain is out, or the queue is broken.
    pub fn put_back(&mut self, chain: Chain) -> Result<(), QueueError> {
        self.latch(|queue| {
            let head = chain.head();
            let left = queue.in_flight.checked_sub(1);
            queue.in_flight = left.ok_or(QueueError::NotTaken { head })?;
            let next = queue.ring.next_avail().wrapping_sub(1);
            queue.ring.set_next_avail(next);
            queue.spare.push(chain.into_segments());
            Ok(())
        })
    }

    /// Gives a chain back to the driver, with the number of bytes written into it, which is
    /// never reported as more than the chain's writable bytes. The driver may look at once, but
    /// is told by [`Queue::notify`].
    ///
    /// # Errors
    /// The used ring cannot be written, or the queue is broken.
    pub fn complete(&mut self, chain: Chain, len: u32) -> Result<(), QueueError> {
        self.latch(|queue| {
            let head = chain.head();
            if queue.in_flight == 0 {
                return Err(QueueError::NotTaken { head });
            }
            let len = len.min(chain.writable_len());
            queue
                .ring
                .add_used(&*queue.memory, head, len)
                .map_err(QueueError::Ring)?;
            queue.in_flight -= 1;
            queue.completed = true;
            queue.spare.push(chain.into_segments());
            Ok(())
        })
    }

    /// Interrupts the driver if chains were completed since the last call and the driver wants to
    /// know (sections 2.7.7 and 2.7.10). Once after a batch is enough.
    ///
    /// # Errors
    /// A ring cannot be read, or the queue is broken.
    pub fn notify(&mut self) -> Result<(), QueueError> {
        self.latch(|queue| {
            if std::mem::take(&mut queue.completed) && queue.driver_wants_interrupt()? {
                queue.notifier.buffers_used();
            }
            Ok(())
        })
    }

    fn driver_wants_interrupt(&mut self) -> Result<bool, QueueError> {
        if self.ring.event_idx_enabled() {
            return self
                .ring
                .needs_notification(&*self.memory)
                .map_err(QueueError::Ring);
        }
        // The used index has to be seen before the flags are read: the driver clears the flag
        // and then looks at the index once more.
        fence(Ordering::SeqCst);
        let flags = GuestAddress(self.ring.avail_ring());
        let flags = self
            .memory
            .load(flags, Ordering::Relaxed)
            .map(u16::from_le)
            .map_err(QueueError::Memory)?;
        Ok(flags & AVAIL_F_NO_INTERRUPT == 0)
    }

    /// Asks the driver to kick when it makes the next chain available. True if one came
    /// meanwhile, of which there may be no kick: the queue has to be drained again.
    ///
    /// # Errors
    /// A ring cannot be reached, or the queue is broken.
    pub fn enable_notification(&mut self) -> Result<bool, QueueError> {
        self.latch(|queue| {
            queue
                .ring
                .enable_notification(&*queue.memory)
                .map_err(QueueError::Ring)
        })
    }

    /// Lets the driver know that kicks are not needed for now. It is a hint; kicks may come all
    /// the same.
    ///
    /// # Errors
    /// A ring cannot be written, or the queue is broken.
    pub fn disable_notification(&mut self) -> Result<(), QueueError> {
        self.latch(|queue| {
            queue
                .ring
                .disable_notification(&*queue.memory)
                .map_err(QueueError::Ring)
        })
    }

    /// Number of descriptors, a power of two.
    pub fn size(&self) -> u16 {
        self.ring.size()
    }

    /// Chains that were taken and not given back.
    pub fn in_flight(&self) -> u16 {
        self.in_flight
    }

    /// The memory that the rings and the chains are in.
    pub fn memory(&self) -> &Arc<GuestMemoryMmap> {
        &self.memory
    }

    /// Stops the queue for good, as an error of its own would.
    pub fn break_off(&mut self) {
        self.broken = true;
    }

    /// Settings and indexes, for a queue that goes on later. Chains in flight are lost to it, so
    /// they are completed before.
    pub fn into_state(self) -> QueueState {
        let state = self.ring.state();
        QueueState {
            max_size: state.max_size,
            size: state.size,
            ready: state.ready,
            desc_table: state.desc_table,
            avail_ring: state.avail_ring,
            used_ring: state.used_ring,
            next_avail: state.next_avail,
            next_used: state.next_used,
            event_idx: state.event_idx_enabled,
        }
    }

    fn latch<T>(
        &mut self,
        work: impl FnOnce(&mut Self) -> Result<T, QueueError>,
    ) -> Result<T, QueueError> {
        if self.broken {
            return Err(QueueError::Broken);
        }
        let done = work(self);
        self.broken = done.is_err();
        done
    }
}

#[cfg(test)]
mod tests;
