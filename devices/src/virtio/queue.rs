//! A split virtqueue, section 2.7, as its device sees it.
//!
//! The rings are read and written in [`ring`], descriptors in [`super::walk`], which takes a bad chain
//! for an error.

#![deny(clippy::indexing_slicing)]

mod ring;
mod state;

use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use vm_memory::{GuestAddress, GuestMemoryMmap};

use super::chain::{Chain, Segment};
use super::device::DeviceNotifier;
use super::spec::{AVAIL_F_NO_INTERRUPT, USED_F_NO_NOTIFY, feature};
use super::walk::{self, Table};
use ring::Rings;

pub use state::{QueueError, QueueState};

/// A running queue. Its worker owns it, so it needs no lock; the driver's settings are frozen in
/// it. The first error stops it: from then on every call returns [`QueueError::Broken`].
#[derive(Debug)]
pub struct Queue {
    rings: Rings,
    memory: Arc<GuestMemoryMmap>,
    notifier: DeviceNotifier,
    /// The settings, and the indexes: of the next chain to take, and up to which the driver sees used
    /// elements.
    state: QueueState,
    indirect: bool,
    broken: bool,
    /// The driver's available index when it was last read.
    available: u16,
    /// Index of the next used element to write.
    filled: u16,
    /// The used index when the driver was last told, or did not want to be.
    notified: u16,
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
        let rings = Rings::new(&memory, state).map_err(QueueError::Memory)?;
        Ok(Self {
            rings,
            memory,
            notifier,
            state: QueueState {
                event_idx: features & feature::EVENT_IDX != 0,
                ..state.clone()
            },
            indirect: features & feature::INDIRECT_DESC != 0,
            broken: false,
            available: state.next_avail,
            filled: state.next_used,
            notified: state.next_used,
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
        let next = self.state.next_avail;
        if next == self.available {
            self.read_available_index()?;
            if next == self.available {
                return Ok(None);
            }
        }
        let (head, size) = (self.rings.head(next), self.size());
        if head >= size {
            return Err(QueueError::Head { head, size });
        }
        let segments = self.spare.pop().unwrap_or_default();
        let table = GuestAddress(self.state.desc_table);
        let chain = Table::direct(&self.memory, table, size)
            .and_then(|table| walk::walk(&self.memory, table, head, self.indirect, segments))
            .map_err(|source| QueueError::BadChain { head, source })?;
        self.state.next_avail = next.wrapping_add(1);
        Ok(Some(chain))
    }

    fn read_available_index(&mut self) -> Result<(), QueueError> {
        let from = self.state.next_avail;
        let to = self.rings.available_index();
        let (size, in_flight) = (self.size(), self.in_flight());
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

    /// Undoes the latest [`Queue::pop`]: `chain` is the one that it returned, and the next one to be
    /// taken. Several are put back in the opposite order. The driver notices nothing.
    ///
    /// # Errors
    /// No chain is out, or the queue is broken.
    pub fn put_back(&mut self, chain: Chain) -> Result<(), QueueError> {
        self.latch(|queue| {
            queue.was_taken(&chain)?;
            queue.state.next_avail = queue.state.next_avail.wrapping_sub(1);
            queue.spare.push(chain.into_segments());
            Ok(())
        })
    }

    /// Gives a chain back to the driver, with the number of bytes written into it, which is
    /// never reported as more than the chain's writable bytes. The driver may look at once, but
    /// is told by [`Queue::notify`].
    ///
    /// # Errors
    /// The chain was not taken, or the queue is broken.
    pub fn complete(&mut self, chain: Chain, len: u32) -> Result<(), QueueError> {
        self.fill(chain, len)?;
        self.flush();
        Ok(())
    }

    /// As [`Queue::complete`], but the driver sees nothing of it before [`Queue::notify`] or the next
    /// [`Queue::complete`]: chains that belong together appear at once.
    ///
    /// # Errors
    /// The chain was not taken, or the queue is broken.
    pub fn fill(&mut self, chain: Chain, len: u32) -> Result<(), QueueError> {
        self.latch(|queue| {
            queue.was_taken(&chain)?;
            let len = len.min(chain.writable_len());
            queue.rings.set_used(queue.filled, chain.head(), len);
            queue.filled = queue.filled.wrapping_add(1);
            queue.spare.push(chain.into_segments());
            Ok(())
        })
    }

    /// That there is a chain to give back or to put back.
    fn was_taken(&self, chain: &Chain) -> Result<(), QueueError> {
        if self.in_flight() == 0 {
            let head = chain.head();
            return Err(QueueError::NotTaken { head });
        }
        Ok(())
    }

    fn flush(&mut self) {
        if self.state.next_used != self.filled {
            self.state.next_used = self.filled;
            self.rings.set_used_index(self.filled);
        }
    }

    /// Interrupts the driver if chains were completed since the last call and the driver wants to
    /// know (sections 2.7.7 and 2.7.10). Once after a batch is enough.
    ///
    /// # Errors
    /// The queue is broken.
    pub fn notify(&mut self) -> Result<(), QueueError> {
        self.latch(|queue| {
            queue.flush();
            if queue.notified != queue.filled {
                if queue.driver_wants_interrupt() {
                    queue.notifier.buffers_used();
                }
                queue.notified = queue.filled;
            }
            Ok(())
        })
    }

    fn driver_wants_interrupt(&self) -> bool {
        // The used index has to be seen before this is read: the driver asks, and then looks at the
        // index once more.
        fence(Ordering::SeqCst);
        if self.state.event_idx {
            let (new, old) = (self.filled, self.notified);
            // The driver's index is among those that are new, section 2.7.10.1.
            let behind = new.wrapping_sub(self.rings.used_event()).wrapping_sub(1);
            behind < new.wrapping_sub(old)
        } else {
            self.rings.available_flags() & AVAIL_F_NO_INTERRUPT == 0
        }
    }

    /// Asks the driver to kick when it makes the next chain available. True if one came
    /// meanwhile, of which there may be no kick: the queue has to be drained again.
    ///
    /// # Errors
    /// The queue is broken.
    pub fn enable_notification(&mut self) -> Result<bool, QueueError> {
        self.latch(|queue| {
            if queue.state.event_idx {
                queue.rings.set_available_event(queue.state.next_avail);
            } else {
                queue.rings.set_used_flags(0);
            }
            // The driver has to see that before the index is read.
            fence(Ordering::SeqCst);
            Ok(queue.rings.available_index() != queue.state.next_avail)
        })
    }

    /// Lets the driver know that kicks are not needed for now. It is a hint; kicks may come all
    /// the same.
    ///
    /// # Errors
    /// The queue is broken.
    pub fn disable_notification(&mut self) -> Result<(), QueueError> {
        self.latch(|queue| {
            // With events it is enough that the one that was asked for has passed.
            if !queue.state.event_idx {
                queue.rings.set_used_flags(USED_F_NO_NOTIFY);
            }
            Ok(())
        })
    }

    /// Number of descriptors, a power of two.
    pub fn size(&self) -> u16 {
        self.state.size
    }

    /// Chains that were taken and not given back.
    pub fn in_flight(&self) -> u16 {
        self.state.next_avail.wrapping_sub(self.filled)
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
    pub fn into_state(mut self) -> QueueState {
        if !self.broken {
            self.flush();
        }
        self.state
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
