//! The packet header, section 5.10.6, and the numbers in it.
//!
//! The `virtio-vsock` crate's packet takes at most two buffers, each in one mapping of memory, and
//! a chain type of its own. Drivers send data in as many buffers as they like, so the header is
//! laid out here and the data stays where [`crate::virtio::chain::Chain`] says.

use std::fmt;

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout};

/// `struct virtio_vsock_hdr`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Header {
    /// The sender's context ID.
    pub src_cid: U64,
    /// The receiver's context ID.
    pub dst_cid: U64,
    /// The sender's port.
    pub src_port: U32,
    /// The receiver's port.
    pub dst_port: U32,
    /// Bytes of data after the header.
    pub len: U32,
    /// See [`TYPE_STREAM`].
    pub kind: U16,
    /// See [`Op`].
    pub op: U16,
    /// Depends on `op`; see [`Shutdown`].
    pub flags: U32,
    /// Bytes that the sender keeps for data that it receives on this connection.
    pub buf_alloc: U32,
    /// Bytes that it has received and dealt with so far, modulo 2^32.
    pub fwd_cnt: U32,
}

/// Bytes of a [`Header`].
pub const HEADER_LEN: u32 = size_of::<Header>() as u32;

/// `VIRTIO_VSOCK_F_STREAM`, section 5.10.3.
pub const F_STREAM: u64 = 1 << 0;

/// `VIRTIO_VSOCK_TYPE_STREAM`.
pub const TYPE_STREAM: u16 = 1;

/// `VIRTIO_VSOCK_EVENT_TRANSPORT_RESET`: all connections are gone, and the guest's context ID may
/// be another one (section 5.10.6.7).
pub const EVENT_TRANSPORT_RESET: u32 = 0;

/// What a packet does, section 5.10.6.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum Op {
    /// Asks for a connection.
    Request = 1,
    /// Grants it.
    Response = 2,
    /// Ends or refuses a connection.
    Rst = 3,
    /// Tells that the sender will not send or receive any more.
    Shutdown = 4,
    /// Carries data.
    Rw = 5,
    /// Carries `buf_alloc` and `fwd_cnt` alone.
    CreditUpdate = 6,
    /// Asks for them.
    CreditRequest = 7,
}

impl Op {
    /// The operation with this number.
    pub fn new(number: u16) -> Option<Self> {
        Some(match number {
            1 => Self::Request,
            2 => Self::Response,
            3 => Self::Rst,
            4 => Self::Shutdown,
            5 => Self::Rw,
            6 => Self::CreditUpdate,
            7 => Self::CreditRequest,
            _ => return None,
        })
    }
}

/// The directions that a SHUTDOWN is about, as its sender sees them.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct Shutdown(u32);

impl Shutdown {
    /// `VIRTIO_VSOCK_SHUTDOWN_F_RECEIVE`: the sender will not receive any more.
    pub const RECEIVE: Self = Self(1);
    /// `VIRTIO_VSOCK_SHUTDOWN_F_SEND`: the sender will not send any more.
    pub const SEND: Self = Self(2);
    /// Both.
    pub const BOTH: Self = Self(3);

    /// Those of a packet's `flags`.
    pub fn from_flags(flags: u32) -> Self {
        Self(flags & Self::BOTH.0)
    }

    /// For a packet's `flags`.
    pub fn flags(self) -> u32 {
        self.0
    }

    /// All of `other` are among these.
    pub fn has(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// Adds `other`; true if that made a difference. Directions are never opened again.
    pub fn add(&mut self, other: Self) -> bool {
        let before = self.0;
        self.0 |= other.0;
        self.0 != before
    }

    /// No direction.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }
}

impl fmt::Debug for Shutdown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Shutdown({:#b})", self.0)
    }
}

impl Header {
    /// A packet from the host to a guest, with nothing but its addresses.
    pub fn to_guest(host_port: u32, guest_port: u32, op: Op, guest_cid: u64) -> Self {
        Self {
            src_cid: super::HOST_CID.into(),
            dst_cid: guest_cid.into(),
            src_port: host_port.into(),
            dst_port: guest_port.into(),
            kind: TYPE_STREAM.into(),
            op: (op as u16).into(),
            ..Self::new_zeroed()
        }
    }

    /// The RST that answers this packet of a guest's.
    #[must_use]
    pub fn refusal(&self, guest_cid: u64) -> Self {
        Self {
            // Whoever it was sent to: a driver finds its socket by that.
            src_cid: self.dst_cid,
            kind: self.kind,
            ..Self::to_guest(self.dst_port.get(), self.src_port.get(), Op::Rst, guest_cid)
        }
    }
}
