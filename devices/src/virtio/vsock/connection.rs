//! One connection: a socket of the host on one side, packets on the other.
//!
//! Nothing here knows queues. What has to be told to the guest is noted in [`Pending`]; the worker
//! sends it when the driver has a buffer for it.

#![deny(clippy::indexing_slicing)]

use std::io;
use std::net;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use vm_memory::GuestMemoryMmap;

use super::backlog::Backlog;
use super::credit::{ReceiveCredit, SendCredit};
use super::handshake::Handshake;
use super::host::{ConnectError, Request};
use super::packet::{HEADER_LEN, Header, Op, Shutdown};
use super::socket::Pieces;
use crate::event_loop::Interest;
use crate::virtio::chain::Chain;

/// What tells connections apart: there is one peer on each side.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Key {
    pub host_port: u32,
    pub guest_port: u32,
}

/// How far a connection is.
pub(super) enum State {
    /// A client of the host's has connected, and has not said yet to which port.
    Handshake(Handshake),
    /// The guest was asked, and has not answered yet.
    Requested(Opener),
    /// Both sides know of it.
    Open,
    /// The guest knows nothing of it any more; its last bytes are on their way to their reader.
    Draining,
}

/// Who waits for the guest's answer.
pub(super) enum Opener {
    /// A client with a socket; the port is for its eyes.
    Client { host_port: u32 },
    /// Somebody in this process, and the end that is for them.
    InProcess(Request, UnixStream),
}

/// Packets that the guest is to get.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Pending(u8);

impl Pending {
    /// In the order in which they are sent.
    const ORDER: [Op; 5] = [
        Op::Request,
        Op::Response,
        Op::CreditUpdate,
        Op::CreditRequest,
        Op::Shutdown,
    ];

    pub fn add(&mut self, op: Op) {
        self.0 |= 1 << op as u8;
    }

    pub fn remove(&mut self, op: Op) {
        self.0 &= !(1 << op as u8);
    }

    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    pub fn first(self) -> Option<Op> {
        let mut all = Self::ORDER.into_iter();
        all.find(|op| self.0 & (1 << *op as u8) != 0)
    }
}

/// How a connection ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// The guest has to be told.
    Reset,
    /// It knows, or never knew.
    Silent,
}

/// A connection.
pub(super) struct Connection {
    /// None while the guest does not know of it.
    pub key: Option<Key>,
    pub state: State,
    pub stream: UnixStream,
    pub send: SendCredit,
    pub receive: ReceiveCredit,
    pub backlog: Backlog,
    /// Directions that the guest has closed.
    guest_closed: Shutdown,
    /// Directions that the host has closed, as the guest was told or will be.
    pub host_closed: Shutdown,
    pub pending: Pending,
    pub end: Option<End>,
    /// It is in the worker's list of those with something pending.
    pub is_queued: bool,
    /// It is in the worker's list of those to receive from.
    pub is_runnable: bool,
    /// It wanted to receive, and the guest had given no credit.
    pub is_stalled: bool,
    /// What the event loop waits for.
    pub watched: Option<Interest>,
    /// Buffers of the driver that the next receive takes at once.
    pub batch: usize,
    pub deadline: Option<Instant>,
    /// What it took from the pool that credit comes from.
    pub pooled: u32,
}

impl Connection {
    pub fn new(state: State, stream: UnixStream) -> Self {
        Self {
            key: None,
            state,
            stream,
            send: SendCredit::default(),
            receive: ReceiveCredit::new(0),
            backlog: Backlog::default(),
            guest_closed: Shutdown::default(),
            host_closed: Shutdown::default(),
            pending: Pending::default(),
            end: None,
            is_queued: false,
            is_runnable: false,
            is_stalled: false,
            watched: None,
            batch: 1,
            deadline: None,
            pooled: 0,
        }
    }

    /// Data for the host came, `len` bytes after the header in `chain`.
    pub fn data(&mut self, pieces: &mut Pieces, memory: &GuestMemoryMmap, chain: &Chain, len: u32) {
        let open = matches!(self.state, State::Open) && !self.guest_closed.has(Shutdown::SEND);
        if !open || !self.receive.receive(len) {
            self.end = Some(End::Reset);
            return;
        }
        if self.host_closed.has(Shutdown::RECEIVE) {
            // It was on its way when the reader went.
            self.receive.forward(len);
            return;
        }
        let mut sent = 0;
        if self.backlog.is_empty() && len > 0 {
            sent = match pieces.send(&self.stream, memory, chain, (HEADER_LEN, len)) {
                Ok(sent) => sent,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => 0,
                Err(_) => {
                    self.receive.forward(len);
                    return self.reader_is_gone();
                }
            };
            self.receive.forward(sent);
        }
        let rest = (HEADER_LEN + sent, len - sent);
        if sent < len && self.backlog.push(memory, chain, rest).is_err() {
            self.end = Some(End::Reset);
        }
    }

    /// The socket takes bytes again.
    pub fn flush(&mut self) {
        match self.backlog.flush(&self.stream) {
            Ok(sent) => self.receive.forward(sent),
            Err(_) => self.reader_is_gone(),
        }
        self.after_flush();
    }

    fn after_flush(&mut self) {
        if !self.backlog.is_empty() {
            return;
        }
        if matches!(self.state, State::Draining) {
            self.end = Some(End::Silent);
        } else if self.guest_closed.has(Shutdown::BOTH) {
            // The guest knows by it that everything has arrived.
            self.end = Some(End::Reset);
        } else if self.guest_closed.has(Shutdown::SEND) {
            // An error means that the host has closed it before.
            let _ = self.stream.shutdown(net::Shutdown::Write);
        }
    }

    /// Nobody reads what the guest sends. What the host has sent before is still delivered.
    fn reader_is_gone(&mut self) {
        let dropped = self.backlog.clear();
        self.receive.forward(dropped);
        self.host_closes(Shutdown::RECEIVE);
    }

    /// The guest will not send, or not receive, any more.
    pub fn guest_closes(&mut self, directions: Shutdown) {
        if !matches!(self.state, State::Open) {
            self.end = Some(End::Reset);
            return;
        }
        if !self.guest_closed.add(directions) {
            return;
        }
        if self.guest_closed.has(Shutdown::RECEIVE) {
            let _ = self.stream.shutdown(net::Shutdown::Read);
        }
        self.after_flush();
    }

    /// The guest has forgotten the connection. Its last bytes may not have been read yet.
    pub fn guest_resets(&mut self) {
        match &mut self.state {
            State::Open if !self.backlog.is_empty() => {
                self.state = State::Draining;
                self.pending = Pending::default();
            }
            _ => self.end = Some(End::Silent),
        }
    }

    /// The host will not send, or not receive, any more.
    fn host_closes(&mut self, directions: Shutdown) {
        if self.host_closed.add(directions) && matches!(self.state, State::Open) {
            self.pending.add(Op::Shutdown);
        }
    }

    /// The host's stream has ended: all that came from it is with the guest.
    pub fn stream_ended(&mut self) {
        if self.is_hung_up() {
            self.host_closes(Shutdown::BOTH);
        } else {
            self.host_closes(Shutdown::SEND);
        }
    }

    /// The socket has failed; its owner closed it before it had read everything.
    pub fn stream_failed(&mut self) {
        self.host_closes(Shutdown::BOTH);
    }

    /// Whether both directions of the socket have ended.
    fn is_hung_up(&self) -> bool {
        let mut fds = [PollFd::new(&self.stream, PollFlags::empty())];
        let now = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        let ready = rustix::io::retry_on_intr(|| poll(&mut fds, Some(&now)));
        let gone = PollFlags::HUP | PollFlags::ERR;
        ready.is_ok() && fds.iter().any(|fd| fd.revents().intersects(gone))
    }

    /// The event loop found something to do. True if there may be bytes for the guest.
    pub fn is_ready(&mut self) -> bool {
        if !self.backlog.is_empty() {
            self.flush();
        }
        if self.watched == Some(Interest::HANG_UP) && self.is_hung_up() {
            self.host_closes(Shutdown::BOTH);
        }
        self.end.is_none() && self.wants_to_receive()
    }

    /// Bytes from the host are for the guest, now or when it gives credit.
    pub fn is_receiving(&self) -> bool {
        matches!(self.state, State::Open)
            && !self.host_closed.has(Shutdown::SEND)
            && !self.guest_closed.has(Shutdown::RECEIVE)
    }

    /// The same, and the guest has given credit.
    pub fn wants_to_receive(&self) -> bool {
        self.is_receiving() && self.send.available() > 0
    }

    /// What the event loop has to wait for.
    pub fn interest(&self) -> Option<Interest> {
        match self.state {
            State::Handshake(_) => return Some(Interest::READ),
            State::Requested(_) => return None,
            State::Open | State::Draining => {}
        }
        let receives = self.wants_to_receive() && !self.is_runnable;
        match (receives, !self.backlog.is_empty()) {
            (true, true) => Some(Interest::READ | Interest::WRITE),
            (true, false) => Some(Interest::READ),
            (false, true) => Some(Interest::WRITE),
            // A socket that waits for credit must not be watched at all: its end would be told
            // again and again, before its last bytes can be taken.
            (false, false) => {
                let quiet = !self.is_receiving() && !self.host_closed.has(Shutdown::BOTH);
                quiet.then_some(Interest::HANG_UP)
            }
        }
    }

    /// The guest has answered that it takes the connection.
    pub fn accepted(&mut self) {
        let State::Requested(opener) = std::mem::replace(&mut self.state, State::Open) else {
            self.end = Some(End::Reset);
            return;
        };
        match opener {
            Opener::InProcess(request, theirs) => request.answer(Ok(theirs)),
            Opener::Client { host_port } => {
                if super::handshake::accept(&self.stream, host_port).is_err() {
                    self.end = Some(End::Reset);
                }
            }
        }
    }

    /// Tells whoever waits for the guest's answer, if it is somebody in this process.
    pub fn fail_to_open(self, why: ConnectError) {
        if let State::Requested(Opener::InProcess(request, _)) = self.state {
            request.answer(Err(why));
        }
    }

    /// A packet for the guest, with the credit as it is now.
    pub fn header(&mut self, key: Key, op: Op, guest_cid: u64) -> Header {
        let (buf_alloc, fwd_cnt) = self.receive.tell();
        let flags = match op {
            Op::Shutdown => self.host_closed.flags(),
            _ => 0,
        };
        Header {
            flags: flags.into(),
            buf_alloc: buf_alloc.into(),
            fwd_cnt: fwd_cnt.into(),
            ..Header::to_guest(key.host_port, key.guest_port, op, guest_cid)
        }
    }

    /// The socket's number, for the event loop.
    pub fn fd(&self) -> i32 {
        self.stream.as_raw_fd()
    }
}
