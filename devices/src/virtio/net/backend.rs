//! What stands behind a queue pair: something of the host's that takes frames and hands frames out.
//!
//! Back ends know nothing of virtio queues. A wrapper is a [`Backend`] that has another one inside:
//! it looks at [`Frame::head`] and at [`Landing::head`], which are the host's own copies, and decides
//! what goes on. What it decided on is what is sent, whatever the guest does to its memory meanwhile.

use std::io;
use std::ops::{BitAnd, BitOr};
use std::os::fd::BorrowedFd;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::header::VnetHeader;
use super::pieces::{Pieces, PiecesMut};

/// So many of a frame's first bytes are copied into the host's memory, where the guest cannot change
/// them any more. All headers up to TCP's options are in them: Ethernet with a VLAN tag (18), IPv6 (40)
/// with as much as 128 bytes of extensions, TCP (60).
pub const HEAD_LEN: usize = 256;

/// Length of the longest frame: what IP can say of itself, behind Ethernet's header and a VLAN tag.
pub const MAX_FRAME_LEN: u32 = 65_535 + 18;

/// Length of the shortest frame: an Ethernet header.
pub const MIN_FRAME_LEN: u32 = 14;

/// Work on frames that one side leaves to the other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offloads(u8);

impl Offloads {
    /// Nothing: each frame is complete, and fits the MTU.
    pub const NONE: Offloads = Offloads(0);
    /// Checksums of TCP and UDP are left to the receiver.
    pub const CHECKSUM: Offloads = Offloads(1);
    /// TCP over IPv4 comes in frames longer than the MTU.
    pub const TSO4: Offloads = Offloads(1 << 1);
    /// TCP over IPv6 does.
    pub const TSO6: Offloads = Offloads(1 << 2);
    /// Such frames of TCP may have congestion notification (CWR) set.
    pub const ECN: Offloads = Offloads(1 << 3);
    /// UDP datagrams of one length come many to a frame.
    pub const USO: Offloads = Offloads(1 << 4);

    /// All of them.
    pub const ALL: Offloads = Offloads(0x1f);

    pub(super) fn bits(self) -> u8 {
        self.0
    }

    pub(super) fn from_bits(bits: u8) -> Self {
        Self(bits) & Self::ALL
    }

    /// All of `other` are among them.
    pub fn contains(self, other: Offloads) -> bool {
        self & other == other
    }

    /// These, and `other` if `on`.
    #[must_use]
    pub fn with(self, other: Offloads, on: bool) -> Offloads {
        if on { self | other } else { self }
    }
}

impl BitOr for Offloads {
    type Output = Offloads;
    fn bitor(self, other: Offloads) -> Offloads {
        Offloads(self.0 | other.0)
    }
}

impl BitAnd for Offloads {
    type Output = Offloads;
    fn bitand(self, other: Offloads) -> Offloads {
        Offloads(self.0 & other.0)
    }
}

/// What a back end can do, asked once when the device is made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Abilities {
    /// What the guest may leave to it in frames that it sends.
    pub from_guest: Offloads,
    /// What it would leave to the guest, if the guest's driver takes it.
    pub to_guest: Offloads,
}

/// A frame on its way out of the guest. It was checked: its length is from [`MIN_FRAME_LEN`] to
/// [`MAX_FRAME_LEN`], and `header` fits it and asks for nothing that was not offered.
#[derive(Clone, Copy, Debug)]
pub struct Frame<'a> {
    /// What is left to the receiver.
    pub header: VnetHeader,
    /// The first bytes, up to [`HEAD_LEN`], in the host's memory. A wrapper that changes them puts a
    /// copy of its own, of the same length, here.
    pub head: &'a [u8],
    /// All bytes that follow `head`, in the guest's memory.
    pub rest: Pieces<'a>,
}

impl<'a> Frame<'a> {
    /// A frame of the host's own, with nothing left to the receiver.
    pub fn of_bytes(bytes: &'a [u8]) -> Self {
        let (head, rest) = bytes.split_at(bytes.len().min(HEAD_LEN));
        Self {
            header: VnetHeader::default(),
            head,
            rest: Pieces::of_bytes(rest),
        }
    }

    /// Bytes, without the header.
    pub fn len(&self) -> usize {
        self.head.len() + self.rest.len()
    }

    /// It has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// All bytes, in the host's memory: whoever decides by more than [`Frame::head`] does it by such
    /// a copy, and sends that ([`Frame::of_bytes`]).
    pub fn to_vec(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.len()];
        let (head, rest) = bytes.split_at_mut(self.head.len());
        head.copy_from_slice(self.head);
        self.rest.copy_to(rest);
        bytes
    }
}

/// What became of a frame that was to be sent.
#[derive(Debug)]
pub enum Sent {
    /// It is on its way, or will be without being sent again.
    Done,
    /// It will not arrive, as happens to frames: it was not allowed, or the host refused it.
    Dropped,
    /// There is no room now. The same frame is offered again when [`Backend::fd`] is writable.
    Full,
    /// There is no other end any more; the link is down from now on.
    Closed(io::Error),
}

/// What was received.
#[derive(Debug)]
pub enum Received {
    /// A frame of `len` bytes has landed.
    Frame {
        /// What is left to the guest.
        header: VnetHeader,
        /// Bytes, at most [`Landing::capacity`].
        len: usize,
    },
    /// One came that the guest is not to get, or that was longer than the landing. What has landed
    /// does not count. There may be more.
    Dropped,
    /// No frame waits.
    Nothing,
    /// There is no other end any more; the link is down from now on.
    Closed(io::Error),
}

/// Where a received frame is put: its first bytes into the host's memory, the others straight into the
/// guest's. The device moves the first ones into the guest's memory once the frame is accepted.
#[derive(Debug)]
pub struct Landing<'a> {
    head: &'a mut [u8],
    rest: PiecesMut<'a>,
}

impl<'a> Landing<'a> {
    /// A landing of `head.len()` bytes (at most [`HEAD_LEN`]) and `rest`.
    pub fn new(head: &'a mut [u8], rest: PiecesMut<'a>) -> Self {
        Self { head, rest }
    }

    /// Length of the longest frame that has room.
    pub fn capacity(&self) -> usize {
        self.head.len() + self.rest.len()
    }

    /// The first bytes of the frame that has landed. Those behind its end are what was there before.
    pub fn head(&self) -> &[u8] {
        self.head
    }

    /// The same, for changes. What was received is sent on as it is here.
    pub fn head_mut(&mut self) -> &mut [u8] {
        self.head
    }

    /// The bytes behind [`Landing::head`]. The guest may have changed them since they were received.
    pub fn rest(&self) -> Pieces<'_> {
        self.rest.as_pieces()
    }

    /// Puts a frame of the host's own here. False if it is longer than [`Landing::capacity`]; nothing
    /// has landed then.
    pub fn place(&mut self, frame: &[u8]) -> bool {
        if frame.len() > self.capacity() {
            return false;
        }
        let (first, others) = frame.split_at(frame.len().min(self.head.len()));
        if let Some(head) = self.head.get_mut(..first.len()) {
            head.copy_from_slice(first);
        }
        self.rest.copy_from(others);
        true
    }

    /// The first `len` bytes of what has landed.
    pub(super) fn to_vec(&self, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len.min(self.capacity())];
        let (first, others) = bytes.split_at_mut(self.head.len().min(len));
        if let Some(head) = self.head.get(..first.len()) {
            first.copy_from_slice(head);
        }
        self.rest().copy_to(others);
        bytes
    }

    /// Both parts, for a back end that receives into them.
    pub(super) fn parts(&mut self) -> (&mut [u8], &mut PiecesMut<'a>) {
        (self.head, &mut self.rest)
    }
}

/// A back end of one queue pair. Its calls never block; one thread at a time makes them.
pub trait Backend: Send {
    /// Readable when frames wait, writable when one can be sent again after [`Sent::Full`]. It stays
    /// the same, and open, for as long as the back end lives.
    fn fd(&self) -> BorrowedFd<'_>;

    /// Another descriptor, readable when [`Backend::receive`] has something beside what
    /// [`Backend::fd`] tells of: for a wrapper with frames of its own that come from other threads.
    /// `receive` takes the event off it. It stays the same, too.
    fn side_fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    /// Frames wait of which no descriptor tells: those that a wrapper answered in [`Backend::send`],
    /// or that were read ahead. The device asks after sending, and before it waits.
    fn has_waiting(&self) -> bool {
        false
    }

    /// What it can do.
    fn abilities(&self) -> Abilities;

    /// The guest's driver takes frames with these offloads, and no others from now on; they are among
    /// those of [`Abilities::to_guest`].
    ///
    /// # Errors
    /// The host refused.
    fn set_offloads(&mut self, to_guest: Offloads) -> io::Result<()>;

    /// Takes its part of the traffic, or none: the driver uses this queue pair or does not. Before the
    /// first call it does. Asked only of devices with more than one pair.
    ///
    /// # Errors
    /// The host refused.
    fn set_active(&mut self, _active: bool) -> io::Result<()> {
        Ok(())
    }

    /// Sends a frame: all of it or nothing.
    fn send(&mut self, frame: &Frame<'_>) -> Sent;

    /// Sends what is left of a frame that was only taken in part. The device calls it after some frames
    /// were sent, and when [`Backend::fd`] is writable after [`Sent::Full`], which means that something
    /// is still left.
    fn flush(&mut self) -> Sent {
        Sent::Done
    }

    /// Receives one frame.
    fn receive(&mut self, landing: &mut Landing<'_>) -> Received;
}

/// A back end in front of another one: what it says nothing of is the other's.
pub trait Wrapper: Send {
    /// The other.
    type Inner: Backend + ?Sized;

    /// The one behind it.
    fn inner(&self) -> &Self::Inner;

    /// The same, to be used.
    fn inner_mut(&mut self) -> &mut Self::Inner;

    /// [`Backend::send`].
    fn pass_out(&mut self, frame: &Frame<'_>) -> Sent {
        self.inner_mut().send(frame)
    }

    /// [`Backend::receive`].
    fn pass_in(&mut self, landing: &mut Landing<'_>) -> Received {
        self.inner_mut().receive(landing)
    }
}

impl<W: Wrapper> Backend for W {
    fn fd(&self) -> BorrowedFd<'_> {
        self.inner().fd()
    }

    fn side_fd(&self) -> Option<BorrowedFd<'_>> {
        self.inner().side_fd()
    }

    fn has_waiting(&self) -> bool {
        self.inner().has_waiting()
    }

    fn abilities(&self) -> Abilities {
        self.inner().abilities()
    }

    fn set_offloads(&mut self, to_guest: Offloads) -> io::Result<()> {
        self.inner_mut().set_offloads(to_guest)
    }

    fn set_active(&mut self, active: bool) -> io::Result<()> {
        self.inner_mut().set_active(active)
    }

    fn send(&mut self, frame: &Frame<'_>) -> Sent {
        self.pass_out(frame)
    }

    fn flush(&mut self) -> Sent {
        self.inner_mut().flush()
    }

    fn receive(&mut self, landing: &mut Landing<'_>) -> Received {
        self.pass_in(landing)
    }
}

impl<B: Backend + ?Sized> Wrapper for Box<B> {
    type Inner = B;

    fn inner(&self) -> &B {
        self
    }

    fn inner_mut(&mut self) -> &mut B {
        self
    }
}

/// Whether a back end's descriptor has an error, or its other end has gone.
pub(super) fn has_ended(fd: BorrowedFd<'_>) -> bool {
    let mut polled = [PollFd::from_borrowed_fd(fd, PollFlags::empty())];
    let at_once = Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    poll(&mut polled, Some(&at_once)).is_ok_and(|count| count > 0)
}
