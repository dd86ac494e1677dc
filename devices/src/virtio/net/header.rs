//! What goes before each frame in a queue (section 5.1.6): what is left to the receiver.

use zerocopy::little_endian::U16;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::backend::{HEAD_LEN, Offloads};

/// `VIRTIO_NET_HDR_F_NEEDS_CSUM`
const NEEDS_CHECKSUM: u8 = 1;
/// `VIRTIO_NET_HDR_F_DATA_VALID`
const CHECKSUM_VALID: u8 = 2;
/// `VIRTIO_NET_HDR_GSO_ECN`
const GSO_ECN: u8 = 0x80;
/// Bytes of a checksum.
const CHECKSUM_LEN: usize = 2;

/// The header as it is in guest memory. With `VIRTIO_F_VERSION_1` it is always this long.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct WireHeader {
    flags: u8,
    gso_type: u8,
    hdr_len: U16,
    gso_size: U16,
    csum_start: U16,
    csum_offset: U16,
    /// Receive only: how many buffers the frame is in.
    pub num_buffers: U16,
}

/// Bytes of a [`WireHeader`].
pub const HEADER_LEN: u32 = size_of::<WireHeader>() as u32;

/// Into what a frame is to be cut.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Segmentation {
    /// It is one segment.
    #[default]
    None,
    /// TCP over IPv4.
    Tcp4,
    /// TCP over IPv6.
    Tcp6,
    /// UDP over either, each segment a datagram.
    Udp,
}

/// A frame's checksum.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Checksum {
    /// As it is in the frame; nothing is known of it.
    #[default]
    Unknown,
    /// The receiver need not look.
    Valid,
    /// The receiver computes it: over all bytes from `start`, into the two bytes at `start + offset`,
    /// in which there is the pseudo header's sum.
    Needed {
        /// Bytes from the start of the frame.
        start: u16,
        /// Bytes from `start`.
        offset: u16,
    },
}

/// What is left to a frame's receiver, checked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VnetHeader {
    /// The checksum.
    pub checksum: Checksum,
    /// Whether it is to be cut into segments, and of what kind they are.
    pub segmentation: Segmentation,
    /// The segments' frames have congestion notification set in the first one alone.
    pub ecn: bool,
    /// Bytes of payload in each segment; 0 without segmentation.
    pub segment_len: u16,
    /// Bytes of all headers: a hint. 0 if it is not known.
    pub headers_len: u16,
}

/// What is wrong with a header. `len` is the frame's length.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum HeaderError {
    /// No such kind of segmentation, or a retired one.
    #[error("segmentation of kind {0:#x} is not known")]
    Kind(u8),
    /// The driver has not negotiated that it may ask for this.
    #[error("it asks for {0:?}, which was not negotiated")]
    NotNegotiated(Offloads),
    /// The checksum is not in the frame.
    #[error("a checksum at {start} + {offset} is outside of a frame of {len} bytes")]
    ChecksumOutside {
        /// `csum_start`
        start: u16,
        /// `csum_offset`
        offset: u16,
        /// The frame's length.
        len: u32,
    },
    /// Segmentation without a checksum to compute, or in pieces of nothing (section 5.1.6.2).
    #[error("segmentation needs a checksum and a length of segments")]
    Segments,
}

impl VnetHeader {
    /// Checks what a driver has written before a frame of `len` bytes. `allowed` is what it may ask
    /// for.
    ///
    /// # Errors
    /// See [`HeaderError`]; the frame is then not to be sent.
    pub fn check(wire: &WireHeader, len: u32, allowed: Offloads) -> Result<Self, HeaderError> {
        let needed = wire.flags & NEEDS_CHECKSUM != 0;
        let checksum = if needed {
            let (start, offset) = (wire.csum_start.get(), wire.csum_offset.get());
            if u32::from(start) + u32::from(offset) + CHECKSUM_LEN as u32 > len {
                return Err(HeaderError::ChecksumOutside { start, offset, len });
            }
            Checksum::Needed { start, offset }
        } else {
            Checksum::Unknown
        };
        let segmentation = match wire.gso_type & !GSO_ECN {
            0 => Segmentation::None,
            1 => Segmentation::Tcp4,
            4 => Segmentation::Tcp6,
            5 => Segmentation::Udp,
            other => return Err(HeaderError::Kind(other)),
        };
        let segmented = segmentation != Segmentation::None;
        if segmented && (!needed || wire.gso_size.get() == 0) {
            return Err(HeaderError::Segments);
        }
        let longest_hint = len.min(HEAD_LEN as u32) as u16;
        let header = Self {
            checksum,
            segmentation,
            ecn: segmented && wire.gso_type & GSO_ECN != 0,
            segment_len: if segmented { wire.gso_size.get() } else { 0 },
            headers_len: wire.hdr_len.get().min(longest_hint),
        };
        let asked = header.asks_for();
        if !allowed.contains(asked) {
            return Err(HeaderError::NotNegotiated(asked));
        }
        Ok(header)
    }

    /// What the receiver has to be able to do.
    pub fn asks_for(&self) -> Offloads {
        let needed = matches!(self.checksum, Checksum::Needed { .. });
        Offloads::NONE
            .with(Offloads::CHECKSUM, needed)
            .with(Offloads::TSO4, self.segmentation == Segmentation::Tcp4)
            .with(Offloads::TSO6, self.segmentation == Segmentation::Tcp6)
            .with(Offloads::USO, self.segmentation == Segmentation::Udp)
            .with(Offloads::ECN, self.ecn)
    }

    /// The header for guest memory, or for a tap device.
    pub fn to_wire(self) -> WireHeader {
        let (flags, start, offset) = match self.checksum {
            Checksum::Unknown => (0, 0, 0),
            Checksum::Valid => (CHECKSUM_VALID, 0, 0),
            Checksum::Needed { start, offset } => (NEEDS_CHECKSUM, start, offset),
        };
        let kind = match self.segmentation {
            Segmentation::None => 0,
            Segmentation::Tcp4 => 1,
            Segmentation::Tcp6 => 4,
            Segmentation::Udp => 5,
        };
        WireHeader {
            flags,
            gso_type: kind | if self.ecn { GSO_ECN } else { 0 },
            hdr_len: self.headers_len.into(),
            gso_size: self.segment_len.into(),
            csum_start: start.into(),
            csum_offset: offset.into(),
            num_buffers: 0.into(),
        }
    }

    /// The header that a tap device gave with a frame of `len` bytes.
    ///
    /// # Errors
    /// It is not one that can be passed on.
    pub fn from_host(wire: &WireHeader, len: u32) -> Result<Self, HeaderError> {
        let mut header = Self::check(wire, len, Offloads::ALL)?;
        if header.checksum == Checksum::Unknown && wire.flags & CHECKSUM_VALID != 0 {
            header.checksum = Checksum::Valid;
        }
        Ok(header)
    }

    /// Computes the checksum that `frame` needs, if it does, for a receiver that can't.
    pub fn finish_checksum(&mut self, frame: &mut [u8]) {
        let Checksum::Needed { start, offset } = self.checksum else {
            return;
        };
        let covered = frame.get(usize::from(start)..).unwrap_or_default();
        // A sum of zero would mean 'no checksum' to UDP; its other form means the same to all.
        let sum = match !ones_complement_sum(covered) {
            0 => 0xffff,
            sum => sum,
        };
        let at = usize::from(start) + usize::from(offset);
        if let Some(field) = frame.get_mut(at..at + CHECKSUM_LEN) {
            field.copy_from_slice(&sum.to_be_bytes());
            self.checksum = Checksum::Valid;
        }
    }
}

/// The sum of RFC 1071, before it is inverted.
fn ones_complement_sum(bytes: &[u8]) -> u16 {
    let (words, last) = bytes.as_chunks::<2>();
    let mut sum: u64 = words
        .iter()
        .map(|word| u64::from(u16::from_be_bytes(*word)))
        .sum();
    if let [byte] = last {
        sum += u64::from(*byte) << 8;
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}
