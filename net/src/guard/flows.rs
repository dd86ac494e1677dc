//! Connections that came from outside, whose answers pass under any policy; and those to addresses
//! that a name had when they were begun.
//!
//! The table is bounded. It has two halves: what is used moves to the younger one, and when that is
//! full the older one is forgotten, so that a flood costs at most the connections that were idle
//! all the while.

use std::collections::{HashMap, VecDeque};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::{Duration, Instant};

use crate::egress::Transport;
use crate::frame::{Icmp, IpPacket, Tcp};

/// As many flows as each half has.
const HALF: usize = 16 * 1024;
/// As many neighbours are remembered that have spoken to the guest.
const MAX_REMOTES: usize = 256;

/// How long a flow holds after its last packet. Of UDP only what comes from outside counts for a
/// flow that was begun there.
const TCP_OPENING: Duration = Duration::from_mins(2);
const TCP_OPEN: Duration = Duration::from_mins(130);
const UDP: Duration = Duration::from_mins(1);

/// One flow, seen from the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Flow {
    pub(super) transport: Transport,
    /// An echo's identifier is both of its ports.
    echo: bool,
    guest: IpAddr,
    guest_port: u16,
    pub(super) remote: IpAddr,
    pub(super) remote_port: u16,
}

/// Who has begun it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    Guest,
    Outside,
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    side: Side,
    open: bool,
    end: Instant,
}

#[derive(Debug, Default)]
pub(super) struct Flows {
    young: HashMap<Flow, Entry>,
    old: HashMap<Flow, Entry>,
    remotes: VecDeque<IpAddr>,
}

impl Flow {
    /// Of a packet that the guest sends.
    pub(super) fn of(packet: &IpPacket<'_>, ports: (u16, u16), transport: Transport) -> Self {
        Self {
            transport,
            echo: false,
            guest: packet.source,
            guest_port: ports.0,
            remote: packet.destination,
            remote_port: ports.1,
        }
    }

    /// Of a packet that comes to the guest.
    pub(super) fn to_guest(packet: &IpPacket<'_>, ports: (u16, u16), transport: Transport) -> Self {
        Self {
            transport,
            echo: false,
            guest: packet.destination,
            guest_port: ports.1,
            remote: packet.source,
            remote_port: ports.0,
        }
    }

    /// Of an echo that the guest sends.
    pub(super) fn echo(packet: &IpPacket<'_>, icmp: &Icmp<'_>) -> Option<Self> {
        let identifier = icmp.identifier()?;
        Some(Self {
            echo: true,
            ..Self::of(packet, (identifier, identifier), Transport::Udp)
        })
    }
}

impl Flows {
    /// Takes note of a new one.
    pub(super) fn begun(&mut self, flow: Flow, side: Side, now: Instant) {
        let end = match flow.transport {
            Transport::Tcp => now + TCP_OPENING,
            Transport::Udp => now + UDP,
        };
        if side == Side::Outside {
            self.remember(flow.remote);
        }
        self.old.remove(&flow);
        let open = false;
        self.insert(flow, Entry { side, open, end });
    }

    /// Whether a packet of the guest's, with these flags of TCP, belongs to one.
    pub(super) fn passes(&mut self, flow: &Flow, flags: u8, now: Instant) -> bool {
        let Some(entry) = self.touch(flow, now) else {
            return false;
        };
        match flow.transport {
            Transport::Tcp => {}
            Transport::Udp if entry.side == Side::Guest => entry.end = now + UDP,
            Transport::Udp => return true,
        }
        self.follow(flow, flags, now);
        true
    }

    /// Takes note of a packet that comes to the guest; whether it belongs to one.
    pub(super) fn heard(&mut self, flow: &Flow, flags: u8, now: Instant) -> bool {
        let Some(entry) = self.touch(flow, now) else {
            return false;
        };
        if flow.transport == Transport::Udp {
            entry.end = now + UDP;
        } else {
            entry.open |= flags & Tcp::ACK != 0;
            self.follow(flow, flags, now);
        }
        true
    }

    /// What TCP's flags mean for how long it holds.
    fn follow(&mut self, flow: &Flow, flags: u8, now: Instant) {
        if flags & Tcp::RST != 0 {
            self.young.remove(flow);
        } else if let Some(entry) = self.young.get_mut(flow)
            && flow.transport == Transport::Tcp
        {
            entry.open &= flags & Tcp::FIN == 0;
            entry.end = now + if entry.open { TCP_OPEN } else { TCP_OPENING };
        }
    }

    /// Whether an error that the guest reports is about a packet of one.
    pub(super) fn concerns(
        &mut self,
        packet: &IpPacket<'_>,
        icmp: &Icmp<'_>,
        now: Instant,
    ) -> bool {
        let Some(flow) = quoted(icmp.body.get(4..).unwrap_or_default(), packet) else {
            return false;
        };
        self.touch(&flow, now).is_some()
    }

    /// Whether this neighbour has begun one of the latest.
    pub(super) fn has_remote(&self, address: IpAddr) -> bool {
        self.remotes.contains(&address)
    }

    pub(super) fn remember(&mut self, remote: IpAddr) {
        if self.remotes.front() != Some(&remote) && !self.remotes.contains(&remote) {
            self.remotes.truncate(MAX_REMOTES - 1);
            self.remotes.push_front(remote);
        }
    }

    /// The entry, now among the young ones; none if it has ended.
    fn touch(&mut self, flow: &Flow, now: Instant) -> Option<&mut Entry> {
        if let Some(entry) = self.old.remove(flow) {
            self.insert(*flow, entry);
        }
        if self.young.get(flow)?.end <= now {
            self.young.remove(flow);
            return None;
        }
        self.young.get_mut(flow)
    }

    fn insert(&mut self, flow: Flow, entry: Entry) {
        if self.young.len() >= HALF {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(flow, entry);
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.young.len() + self.old.len()
    }
}

/// The flow of the packet to the guest that an error of ICMP quotes. The error goes to whom that
/// was from.
fn quoted(bytes: &[u8], error: &IpPacket<'_>) -> Option<Flow> {
    let (from, to, protocol, upper): (IpAddr, IpAddr, u8, &[u8]) = match error.destination {
        IpAddr::V4(_) => {
            let header: &[u8; 20] = bytes.first_chunk()?;
            let address = |at: usize| -> Option<IpAddr> {
                let bytes: [u8; 4] = header.get(at..at + 4)?.try_into().ok()?;
                Some(Ipv4Addr::from(bytes).into())
            };
            let size = usize::from(header[0] & 15) * 4;
            (address(12)?, address(16)?, header[9], bytes.get(size..)?)
        }
        IpAddr::V6(_) => {
            let header: &[u8; 40] = bytes.first_chunk()?;
            let address = |at: usize| -> Option<IpAddr> {
                let bytes: [u8; 16] = header.get(at..at + 16)?.try_into().ok()?;
                Some(Ipv6Addr::from(bytes).into())
            };
            (address(8)?, address(24)?, header[6], bytes.get(40..)?)
        }
    };
    let &[p0, p1, q0, q1] = upper.first_chunk()?;
    let transport = match protocol {
        6 => Transport::Tcp,
        17 => Transport::Udp,
        _ => return None,
    };
    let flow = Flow {
        transport,
        echo: false,
        guest: to,
        guest_port: u16::from_be_bytes([q0, q1]),
        remote: from,
        remote_port: u16::from_be_bytes([p0, p1]),
    };
    (flow.guest == error.source && flow.remote == error.destination).then_some(flow)
}
