//! TCP, UDP and ICMP, as far as a guard looks.

use super::ip::NO_NEXT;
use super::{FrameError, Part};

/// What a packet carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Upper<'a> {
    /// TCP.
    Tcp(Tcp),
    /// UDP.
    Udp(Udp<'a>),
    /// ICMP for IPv4.
    Icmp(Icmp<'a>),
    /// ICMP for IPv6, neighbour discovery included.
    Icmp6(Icmp<'a>),
    /// A later fragment: what is in it can't be told.
    Fragment,
    /// Nothing (IPv6).
    Nothing,
    /// Any other protocol.
    Other,
}

/// TCP's header (RFC 9293).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tcp {
    /// The sender's port.
    pub source: u16,
    /// The receiver's port.
    pub destination: u16,
    /// CWR ECE URG ACK PSH RST SYN FIN.
    pub flags: u8,
    /// Sequence number.
    pub sequence: u32,
    /// How many numbers the segment takes: its data, and one each for SYN and FIN.
    pub length: u32,
}

impl Tcp {
    /// FIN.
    pub const FIN: u8 = 1;
    /// SYN.
    pub const SYN: u8 = 2;
    /// RST.
    pub const RST: u8 = 4;
    /// ACK.
    pub const ACK: u8 = 16;

    /// Whether it may ask for a new connection, whatever else it says.
    pub fn opens(&self) -> bool {
        self.flags & Self::SYN != 0 && self.flags & Self::ACK == 0
    }
}

/// UDP (RFC 768).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Udp<'a> {
    /// The sender's port.
    pub source: u16,
    /// The receiver's port.
    pub destination: u16,
    /// The data, or what is at hand of it.
    pub data: &'a [u8],
    /// Whether all of it is at hand.
    pub complete: bool,
}

/// ICMP (RFC 792) and ICMPv6 (RFC 4443).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Icmp<'a> {
    /// Its type.
    pub kind: u8,
    /// Its code.
    pub code: u8,
    /// What is behind the checksum, or what is at hand of it.
    pub body: &'a [u8],
}

impl Icmp<'_> {
    /// The identifier of an echo request or reply.
    pub fn identifier(&self) -> Option<u16> {
        let [high, low, ..] = *self.body else {
            return None;
        };
        Some(u16::from_be_bytes([high, low]))
    }
}

pub(super) const ICMP: u8 = 1;
pub(super) const TCP: u8 = 6;
pub(super) const UDP: u8 = 17;
pub(super) const ICMP6: u8 = 58;

impl<'a> Upper<'a> {
    /// Reads what begins with `bytes` and has `len` of them in this packet or fragment.
    pub(super) fn parse(
        protocol: u8,
        part: Part,
        bytes: &'a [u8],
        len: usize,
    ) -> Result<Self, FrameError> {
        if part == Part::Later {
            return Ok(Self::Fragment);
        }
        match protocol {
            TCP => tcp(bytes, len).map(Self::Tcp),
            UDP => udp(bytes, part, len).map(Self::Udp),
            ICMP => icmp(bytes).map(Self::Icmp),
            ICMP6 => icmp(bytes).map(Self::Icmp6),
            NO_NEXT => Ok(Self::Nothing),
            _ => Ok(Self::Other),
        }
    }
}

fn tcp(bytes: &[u8], len: usize) -> Result<Tcp, FrameError> {
    let header: &[u8; 20] = bytes.first_chunk().ok_or(FrameError::Short("TCP header"))?;
    let size = usize::from(header[12] >> 4) * 4;
    if size < 20 || size > len {
        return Err(FrameError::Wrong("TCP header length"));
    }
    let flags = header[13];
    let markers = u32::from(flags & Tcp::SYN != 0) + u32::from(flags & Tcp::FIN != 0);
    let data = u32::try_from(len - size).unwrap_or(u32::MAX - 2);
    Ok(Tcp {
        source: u16::from_be_bytes([header[0], header[1]]),
        destination: u16::from_be_bytes([header[2], header[3]]),
        flags,
        sequence: u32::from_be_bytes([header[4], header[5], header[6], header[7]]),
        length: data + markers,
    })
}

fn udp(bytes: &[u8], part: Part, len: usize) -> Result<Udp<'_>, FrameError> {
    let (header, data) = bytes
        .split_first_chunk::<8>()
        .ok_or(FrameError::Short("UDP header"))?;
    let told = usize::from(u16::from_be_bytes([header[4], header[5]]));
    // A fragment has not all of what the header tells.
    if told < 8 || (part == Part::Whole && told > len) {
        return Err(FrameError::Wrong("UDP length"));
    }
    let complete = part == Part::Whole && data.len() >= told - 8;
    Ok(Udp {
        source: u16::from_be_bytes([header[0], header[1]]),
        destination: u16::from_be_bytes([header[2], header[3]]),
        data: data.get(..told - 8).unwrap_or(data),
        complete,
    })
}

fn icmp(bytes: &[u8]) -> Result<Icmp<'_>, FrameError> {
    match *bytes {
        [kind, code, _, _, ref body @ ..] => Ok(Icmp { kind, code, body }),
        _ => Err(FrameError::Short("ICMP header")),
    }
}
