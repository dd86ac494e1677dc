//! Queues whose back end has ended: each request is answered with EIO, as a disk that is gone would.

use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use vm_memory::{Bytes, GuestAddress};
use zerocopy::little_endian::{I32, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::{LentQueue, Memory};
use crate::event_loop::{Interest, Source};
use crate::virtio::chain::Chain;
use crate::virtio::device::{DeviceNotifier, StartedQueue, WithCauses};
use crate::virtio::queue::{Queue, QueueError, QueueState};

/// How each request starts: fuse_in_header of the kernel's include/uapi/linux/fuse.h, as far as it
/// matters here.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Default)]
#[repr(C)]
struct InHeader {
    len: U32,
    opcode: U32,
    unique: U64,
}

/// How each answer starts, and an error ends: fuse_out_header.
#[derive(IntoBytes, Immutable)]
#[repr(C)]
struct OutHeader {
    len: U32,
    error: I32,
    unique: U64,
}

/// A queue that answers with errors.
pub(super) struct Orphan {
    queue: StartedQueue,
}

impl Orphan {
    /// Goes on where the back end has stopped. It has used the chains in the order in which they
    /// were made available, so those that are open are the ones after the last that it used.
    pub(super) fn adopt(
        lent: LentQueue,
        memory: &Memory,
        features: u64,
        notifier: &DeviceNotifier,
    ) -> Result<Self, QueueError> {
        let mut state = lent.state;
        // The rings were found in RAM, so the address does not wrap.
        let used = GuestAddress(state.used_ring + 2);
        let used = memory.load(used, Ordering::Acquire).map(u16::from_le);
        state.next_used = used.map_err(QueueError::Memory)?;
        state.next_avail = state.next_used;
        let queue = Queue::new(Arc::clone(memory), &state, features, notifier.clone())?;
        Ok(Self {
            queue: StartedQueue {
                index: lent.index,
                queue,
                kick: lent.kick,
            },
        })
    }

    pub(super) fn source(&self) -> Source {
        Source {
            fd: self.queue.kick.as_raw_fd(),
            token: u32::from(self.queue.index),
            interest: Interest::READ,
        }
    }

    /// Answers what is there, a bounded number at once.
    pub(super) fn serve(&mut self, notifier: &DeviceNotifier) {
        if let Err(error) = self.queue.drain(refuse) {
            notifier.warn(&WithCauses(&error));
        }
    }

    pub(super) fn into_state(self) -> (u16, QueueState) {
        (self.queue.index, self.queue.queue.into_state())
    }
}

/// Some requests have no room for an answer, and are only given back.
fn refuse(queue: &mut Queue, chain: Chain) -> Result<(), QueueError> {
    const LEN: u32 = size_of::<OutHeader>() as u32;
    let mut header = InHeader::default();
    let asked = chain.read_exact(queue.memory(), 0, header.as_mut_bytes());
    let answer = OutHeader {
        len: LEN.into(),
        error: (-libc::EIO).into(),
        unique: header.unique,
    };
    let answered = asked.and_then(|()| chain.write_all(queue.memory(), 0, answer.as_bytes()));
    let len = if answered.is_ok() { LEN } else { 0 };
    queue.complete(chain, len)
}
