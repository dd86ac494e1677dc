//! ARP for IPv4 over Ethernet (RFC 826).

use std::net::Ipv4Addr;

use super::FrameError;
use crate::Mac;

/// A packet of ARP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Arp {
    /// Question or answer.
    pub operation: ArpOperation,
    /// Whose it says that it is.
    pub sender: (Mac, Ipv4Addr),
    /// Whom it asks for, or whom it answers.
    pub target: (Mac, Ipv4Addr),
}

/// What it does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ArpOperation {
    /// Asks who has an address.
    Request,
    /// Tells.
    Reply,
}

/// Its length.
pub(crate) const LEN: usize = 28;
/// Ethernet, IPv4, and the lengths of their addresses.
pub(crate) const FIXED: [u8; 6] = [0, 1, 8, 0, 6, 4];

impl Arp {
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, FrameError> {
        // Ethernet pads what is shorter than a frame.
        let packet = bytes.first_chunk::<LEN>().ok_or(FrameError::Short("ARP"))?;
        let (fixed, rest) = packet.split_at(FIXED.len());
        if fixed != FIXED {
            return Err(FrameError::Wrong("ARP address type"));
        }
        let operation = match rest[..2] {
            [0, 1] => ArpOperation::Request,
            [0, 2] => ArpOperation::Reply,
            _ => return Err(FrameError::Wrong("ARP operation")),
        };
        let station = |at: usize| {
            let mac = packet[at..].first_chunk().copied().unwrap_or_default();
            let address: [u8; 4] = packet[at + 6..].first_chunk().copied().unwrap_or_default();
            (Mac(mac), Ipv4Addr::from(address))
        };
        Ok(Self {
            operation,
            sender: station(8),
            target: station(18),
        })
    }
}
