//! Frames that the guest receives.

use std::collections::VecDeque;
use std::sync::Arc;

use zerocopy::IntoBytes;

use super::backend::{Backend, HEAD_LEN, Landing, MAX_FRAME_LEN, Offloads, Received};
use super::header::{HEADER_LEN, VnetHeader};
use super::pieces::{PieceList, PiecesMut};
use super::shared::Shared;
use crate::token_bucket::Throttle;
use crate::virtio::chain::Chain;
use crate::virtio::device::StartedQueue;
use crate::virtio::net::layout::F_MRG_RXBUF;
use crate::virtio::queue::QueueError;

/// So many frames are received before others have their turn.
const BUDGET: usize = 128;
/// So many are received before the driver is told.
const BATCH: usize = 32;
/// Most pieces that frames land in; with more buffers than that a driver has very small ones.
const MAX_PIECES: usize = libc::UIO_MAXIOV as usize - 8;

/// Why receiving has paused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Paused {
    /// No frame waits; the back end's descriptor goes on.
    Idle,
    /// The driver has not enough buffers; a kick goes on.
    NoRoom,
    /// The rate's timer goes on.
    Throttled,
    /// Others have their turn.
    Budget,
    /// The back end has closed.
    Closed,
}

/// The receive queue of a pair. Chains are taken before frames come, and stay here until they are filled.
pub(super) struct Receiver {
    pub started: StartedQueue,
    pub throttle: Option<Throttle>,
    /// Chains that were taken, each with the number of its pieces.
    held: VecDeque<(Chain, usize)>,
    /// Their bytes.
    held_len: u64,
    /// Their pieces.
    row: PieceList,
    /// The pieces that the next frame lands in, behind its first bytes.
    rest: PieceList,
    head: Box<[u8; HEAD_LEN]>,
    mergeable: bool,
    mtu: u32,
}

impl Receiver {
    /// `mtu` is that of the link, without Ethernet's header.
    pub fn new(started: StartedQueue, throttle: Option<Throttle>, features: u64, mtu: u16) -> Self {
        let memory = started.queue.memory();
        let (row, rest) = (
            PieceList::new(Arc::clone(memory)),
            PieceList::new(Arc::clone(memory)),
        );
        Self {
            started,
            throttle,
            held: VecDeque::new(),
            held_len: 0,
            row,
            rest,
            head: Box::new([0; HEAD_LEN]),
            mergeable: features & F_MRG_RXBUF != 0,
            mtu: u32::from(mtu),
        }
    }

    /// Receives what waits, for a bounded time.
    pub fn receive(
        &mut self,
        backend: &mut dyn Backend,
        shared: &Shared,
    ) -> Result<Paused, QueueError> {
        self.started.queue.disable_notification()?;
        for received in 1..=BUDGET {
            if let Some(throttle) = &mut self.throttle
                && !throttle.may_start()
            {
                return self.pause(Paused::Throttled);
            }
            if !self.hold(shared.to_guest())? {
                return self.pause(Paused::NoRoom);
            }
            match self.receive_one(backend, shared)? {
                Some(paused) => return self.pause(paused),
                None if received % BATCH == 0 => self.started.queue.notify()?,
                None => {}
            }
        }
        self.pause(Paused::Budget)
    }

    fn pause(&mut self, why: Paused) -> Result<Paused, QueueError> {
        self.started.queue.notify()?;
        Ok(why)
    }

    /// Takes chains until the longest frame that may come has room. False if the driver has too few.
    fn hold(&mut self, to_guest: Offloads) -> Result<bool, QueueError> {
        let longest =
            if to_guest & (Offloads::TSO4 | Offloads::TSO6 | Offloads::USO) == Offloads::NONE {
                // An Ethernet header and a VLAN tag.
                self.mtu + 18
            } else {
                MAX_FRAME_LEN
            };
        let wanted = u64::from(HEADER_LEN + longest);
        // A driver with a small ring may never have that much out; half of the ring is enough.
        let many = usize::from(self.started.queue.size() / 2).max(1);
        loop {
            let enough = if self.mergeable {
                self.held_len >= wanted || self.row.count() >= MAX_PIECES
            } else {
                !self.held.is_empty()
            };
            if enough {
                return Ok(true);
            }
            let chain = match self.started.queue.pop()? {
                Some(chain) => chain,
                None if self.held.len() >= many => return Ok(true),
                None if self.started.queue.enable_notification()? => continue,
                None => return Ok(false),
            };
            let before = self.row.count();
            if self.row.push_writable(&chain).is_err() || chain.writable_len() == 0 {
                // Nothing can be received into it. It is given back as it is.
                self.row.truncate(before);
                self.started.queue.complete(chain, 0)?;
                continue;
            }
            self.held_len += u64::from(chain.writable_len());
            self.held.push_back((chain, self.row.count() - before));
        }
    }

    fn receive_one(
        &mut self,
        backend: &mut dyn Backend,
        shared: &Shared,
    ) -> Result<Option<Paused>, QueueError> {
        let room = self.held_len.saturating_sub(u64::from(HEADER_LEN));
        let head_len = HEAD_LEN.min(room as usize);
        let head = self.head.get_mut(..head_len).unwrap_or_default();
        self.rest
            .fill_behind(&self.row, HEADER_LEN as usize + head_len);
        self.rest.truncate(MAX_PIECES);
        let mut landing = Landing::new(head, PiecesMut::of_guest(&mut self.rest));
        let counters = shared.traffic.received();
        let (header, len) = match backend.receive(&mut landing) {
            Received::Frame { header, len } if len <= landing.capacity() => (header, len),
            Received::Nothing => return Ok(Some(Paused::Idle)),
            Received::Dropped | Received::Frame { .. } => {
                counters.count_dropped();
                return Ok(None);
            }
            Received::Closed(error) => {
                shared.closed(&error);
                return Ok(Some(Paused::Closed));
            }
        };
        let head = self.head.get(..head_len.min(len)).unwrap_or_default();
        // The driver may have changed its offloads since the back end was told.
        let taken = shared.to_guest().contains(header.asks_for());
        if !taken || !shared.filter.accepts(head) {
            counters.count_dropped();
            return Ok(None);
        }
        if let Some(throttle) = &self.throttle {
            throttle.charge(len as u64);
        }
        counters.count(len);
        self.give(header, len)?;
        Ok(None)
    }

    /// Completes the header and the first bytes of a frame that has landed, and gives the chains that it is
    /// in to the driver: all at once, as it does not wait for the rest of a frame.
    fn give(&mut self, header: VnetHeader, len: usize) -> Result<(), QueueError> {
        let whole = u64::from(HEADER_LEN) + len as u64;
        let (mut count, mut covered) = (0_u16, 0);
        for (chain, _) in &self.held {
            if covered >= whole {
                break;
            }
            covered += u64::from(chain.writable_len());
            count += 1;
        }
        let mut wire = header.to_wire();
        wire.num_buffers = count.into();
        let mut start = [0; HEADER_LEN as usize + HEAD_LEN];
        let (first, second) = start.split_at_mut(HEADER_LEN as usize);
        first.copy_from_slice(wire.as_bytes());
        second.copy_from_slice(&*self.head);
        let used = start.len().min(whole as usize);
        self.row.write(start.get(..used).unwrap_or_default());
        let (mut left, mut emptied) = (whole, 0);
        for _ in 0..count {
            let Some((chain, pieces)) = self.held.pop_front() else {
                break;
            };
            let room = chain.writable_len();
            let filled = left.min(u64::from(room));
            left -= filled;
            self.held_len -= u64::from(room);
            emptied += pieces;
            self.started.queue.fill(chain, filled as u32)?;
        }
        self.row.drop_first(emptied);
        Ok(())
    }

    /// Puts chains that nothing has landed in back into the queue.
    pub fn release(&mut self) {
        while let Some((chain, _)) = self.held.pop_back() {
            if self.started.queue.put_back(chain).is_err() {
                break; // the queue is broken, and stays so until it is reset
            }
        }
        self.held.clear();
        self.held_len = 0;
        self.row.clear();
    }
}
