//! Ethernet frames, read as a guard has to read them: what is not understood to the end is told
//! as such, never guessed.
//!
//! Only the first bytes of a frame may be at hand ([`HEAD`]): large frames are split into segments
//! behind us, and their data is nobody's business. All lengths that headers tell are held against
//! the length of the whole frame.

mod arp;
mod ip;
mod upper;

use std::net::IpAddr;

use crate::Mac;

pub(crate) use arp::FIXED as ARP_FIXED;
pub use arp::{Arp, ArpOperation};
pub use ip::{IpPacket, Part};
pub use upper::{Icmp, Tcp, Udp, Upper};

/// So many of its bytes have every header that is looked at: Ethernet, IPv6 with as much as 128
/// bytes of extension headers, and TCP's with its options.
pub const HEAD: usize = 256;
/// The longest frame of any kind: what IPv6 can say of itself, its header, and Ethernet's.
pub const MAX_FRAME: usize = 65_535 + 40 + ETHERNET;
/// The length of the Ethernet header.
pub const ETHERNET: usize = 14;

const IPV4: u16 = 0x0800;
const ARP: u16 = 0x0806;
const IPV6: u16 = 0x86dd;
const VLAN: [u16; 3] = [0x8100, 0x88a8, 0x9100];

/// A frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frame<'a> {
    /// Whom it is for.
    pub destination: Mac,
    /// Whom it says that it is from.
    pub source: Mac,
    /// What is in it.
    pub content: Content<'a>,
}

/// What a frame carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Content<'a> {
    /// Address resolution for IPv4.
    Arp(Arp),
    /// A packet of IPv4 or IPv6.
    Ip(IpPacket<'a>),
}

/// Why a frame is not understood.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// It ends before its headers do, or says that it is longer than it is.
    #[error("a frame is shorter than its {0} says")]
    Short(&'static str),
    /// Longer than a frame can be.
    #[error("a frame is longer than {MAX_FRAME} bytes")]
    Long,
    /// A VLAN tag.
    #[error("a frame has a VLAN tag")]
    Vlan,
    /// No protocol that is known here.
    #[error("a frame is of the unknown type {0:#06x}")]
    Type(u16),
    /// A header that contradicts itself.
    #[error("a frame has a wrong {0}")]
    Wrong(&'static str),
}

impl<'a> Frame<'a> {
    /// Reads a frame of `len` bytes that begins with `head`. If `head` is shorter than the frame,
    /// it has at least [`HEAD`] bytes; otherwise headers that go beyond it count as missing.
    ///
    /// # Errors
    /// If it is anything but well-formed ARP, IPv4 or IPv6.
    pub fn parse(head: &'a [u8], len: usize) -> Result<Self, FrameError> {
        if len > MAX_FRAME {
            return Err(FrameError::Long);
        }
        // A head that is longer than its frame has nothing to do with it.
        let head = head.get(..len).unwrap_or(head);
        let (ethernet, rest) = head
            .split_first_chunk::<ETHERNET>()
            .ok_or(FrameError::Short("Ethernet header"))?;
        let [d0, d1, d2, d3, d4, d5, s0, s1, s2, s3, s4, s5, t0, t1] = *ethernet;
        let content = match u16::from_be_bytes([t0, t1]) {
            ARP => Content::Arp(Arp::parse(rest)?),
            IPV4 => Content::Ip(IpPacket::parse_v4(rest, len - ETHERNET)?),
            IPV6 => Content::Ip(IpPacket::parse_v6(rest, len - ETHERNET)?),
            tag if VLAN.contains(&tag) => return Err(FrameError::Vlan),
            other => return Err(FrameError::Type(other)),
        };
        Ok(Self {
            destination: Mac([d0, d1, d2, d3, d4, d5]),
            source: Mac([s0, s1, s2, s3, s4, s5]),
            content,
        })
    }

    /// The packet, if it is one.
    pub fn ip(&self) -> Option<&IpPacket<'a>> {
        match &self.content {
            Content::Ip(packet) => Some(packet),
            Content::Arp(_) => None,
        }
    }
}

/// Whether an address can be that of one station somewhere: neither a group, nor everybody, nor
/// nobody, nor the speaker itself.
pub fn is_station(address: IpAddr) -> bool {
    let special = address.is_multicast() || address.is_unspecified() || address.is_loopback();
    match address {
        IpAddr::V4(v4) => {
            !special && !v4.is_broadcast() && v4.octets()[0] != 0 && v4.octets()[0] < 240
        }
        // Of IPv4 addresses in IPv6's clothes nobody knows who will undress them.
        IpAddr::V6(v6) => !special && v6.to_ipv4_mapped().is_none(),
    }
}

#[cfg(test)]
mod tests;
