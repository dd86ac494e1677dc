//! Frames that the guest sends.

use std::sync::Arc;

use zerocopy::{FromZeros, IntoBytes};

use super::backend::{Backend, Frame, HEAD_LEN, MAX_FRAME_LEN, MIN_FRAME_LEN, Sent};
use super::header::{HEADER_LEN, HeaderError, VnetHeader, WireHeader};
use super::pieces::{PieceList, Pieces};
use super::shared::Shared;
use crate::token_bucket::Throttle;
use crate::virtio::chain::{Chain, ChainError};
use crate::virtio::device::StartedQueue;
use crate::virtio::queue::QueueError;

/// So many frames are sent before others have their turn.
const BUDGET: usize = 128;
/// So many are sent before the driver is told.
const BATCH: usize = 32;

/// Most pieces of a frame; the header and the first bytes have one each beside them. More than a thousand
/// pieces are nothing that a driver does, and more than the kernel takes.
const MAX_PIECES: usize = libc::UIO_MAXIOV as usize - 4;

/// Why a frame was not sent.
#[derive(Debug, thiserror::Error)]
enum FrameError {
    #[error(
        "a chain of {0} bytes has no frame of {MIN_FRAME_LEN} to {MAX_FRAME_LEN} bytes behind its header"
    )]
    Length(u32),
    #[error("a frame is in {0} pieces")]
    Pieces(usize),
    #[error("a frame's header")]
    Header(#[from] HeaderError),
    #[error("a frame's buffers")]
    Chain(#[from] ChainError),
}

/// Why sending has paused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Paused {
    /// The queue is empty; a kick goes on.
    Empty,
    /// The back end has no room.
    Full,
    /// The rate's timer goes on.
    Throttled,
    /// Others have their turn.
    Budget,
    /// The back end has closed.
    Closed,
}

/// The transmit queue of a pair.
pub(super) struct Transmitter {
    pub started: StartedQueue,
    pub throttle: Option<Throttle>,
    pieces: PieceList,
    head: Box<[u8; HEAD_LEN]>,
}

impl Transmitter {
    pub fn new(started: StartedQueue, throttle: Option<Throttle>) -> Self {
        let memory = Arc::clone(started.queue.memory());
        Self {
            started,
            throttle,
            pieces: PieceList::new(memory),
            head: Box::new([0; HEAD_LEN]),
        }
    }

    /// Sends what is in the queue, for a bounded time.
    pub fn send(
        &mut self,
        backend: &mut dyn Backend,
        shared: &Shared,
    ) -> Result<Paused, QueueError> {
        self.started.queue.disable_notification()?;
        for sent in 1..=BUDGET {
            if let Some(throttle) = &mut self.throttle
                && !throttle.may_start()
            {
                return self.pause(Paused::Throttled);
            }
            let Some(chain) = self.started.queue.pop()? else {
                if self.started.queue.enable_notification()? {
                    continue;
                }
                return self.pause(Paused::Empty);
            };
            if let Some(paused) = self.send_one(chain, backend, shared)? {
                return self.pause(paused);
            }
            if sent % BATCH == 0 {
                self.started.queue.notify()?;
            }
        }
        self.pause(Paused::Budget)
    }

    fn pause(&mut self, why: Paused) -> Result<Paused, QueueError> {
        self.started.queue.notify()?;
        Ok(why)
    }

    fn send_one(
        &mut self,
        chain: Chain,
        backend: &mut dyn Backend,
        shared: &Shared,
    ) -> Result<Option<Paused>, QueueError> {
        let counters = shared.traffic.sent();
        let paused = if shared.link.is_up() {
            match self.frame(&chain, shared) {
                Ok(frame) => {
                    let len = frame.len();
                    let sent = backend.send(&frame);
                    if let Some(throttle) = &self.throttle
                        && !matches!(sent, Sent::Full)
                    {
                        throttle.charge(len as u64);
                    }
                    match sent {
                        Sent::Done => {
                            counters.count(len);
                            None
                        }
                        Sent::Dropped => {
                            counters.count_dropped();
                            None
                        }
                        Sent::Full => {
                            self.started.queue.put_back(chain)?;
                            return Ok(Some(Paused::Full));
                        }
                        Sent::Closed(error) => {
                            counters.count_dropped();
                            shared.closed(&error);
                            Some(Paused::Closed)
                        }
                    }
                }
                Err(error) => {
                    counters.count_dropped();
                    shared.refused(&error);
                    self.charge_refused();
                    None
                }
            }
        } else {
            counters.count_dropped();
            None
        };
        self.started.queue.fill(chain, 0)?;
        Ok(paused)
    }

    /// A frame that is refused costs an operation, or a guest would have those for nothing.
    fn charge_refused(&self) {
        if let Some(throttle) = &self.throttle {
            throttle.charge(0);
        }
    }

    /// Copies the header and the first bytes, checks them, and points at the rest.
    fn frame(&mut self, chain: &Chain, shared: &Shared) -> Result<Frame<'_>, FrameError> {
        let readable = chain.readable_len();
        let len = readable.saturating_sub(HEADER_LEN);
        if !(MIN_FRAME_LEN..=MAX_FRAME_LEN).contains(&len) {
            return Err(FrameError::Length(readable));
        }
        let memory = self.started.queue.memory();
        let mut wire = WireHeader::new_zeroed();
        chain.read_exact(memory, 0, wire.as_mut_bytes())?;
        let header = VnetHeader::check(&wire, len, shared.from_guest)?;
        let head_len = HEAD_LEN.min(len as usize);
        let head = self.head.get_mut(..head_len).unwrap_or_default();
        chain.read_exact(memory, HEADER_LEN, head)?;
        self.pieces.clear();
        self.pieces
            .push_readable(chain, HEADER_LEN + head_len as u32)?;
        if self.pieces.count() > MAX_PIECES {
            return Err(FrameError::Pieces(self.pieces.count()));
        }
        Ok(Frame {
            header,
            head,
            rest: Pieces::of_guest(&self.pieces),
        })
    }
}
