//! The guard of one guest: judges each frame that the guest sends, and learns from those that come
//! to it.
//!
//! Nothing that is not understood passes. A frame has to be from the guest's own addresses
//! ([`source`]); then the egress policy says whether it may go where it says ([`allowed`]). A guest
//! under a policy other than `all` sends TCP, UDP and echo, whole or in fragments that need no port
//! to be judged, and what its own addresses need to work; everything else is refused by not being
//! named. Answers of connections that come from outside pass under any policy ([`flows`]).

mod allowed;
mod flows;
mod learned;
mod source;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Instant;

use crate::dns;
use crate::egress::{EgressPolicy, Resolved, Transport};
use crate::frame::{Content, Frame, FrameError, Icmp, IpPacket, Part, Upper};
use crate::{Cidr, Mac};
use allowed::Allowed;
use flows::{Flow, Flows, Side};
use learned::Queries;
use source::Own;

/// What a guard knows of its guest.
#[derive(Debug, Clone, Default)]
pub struct GuardConfig {
    /// The NIC's address.
    pub mac: Option<Mac>,
    /// The guest's addresses.
    pub addresses: Vec<IpAddr>,
    /// Somebody unknown gives the guest its addresses: those in DHCP's answers and those that follow
    /// from router advertisements are its own, too.
    pub learns_addresses: bool,
    /// What is behind the uplink ends on this host: address resolution and DHCP reach nobody else.
    pub local_uplink: bool,
    /// Routers.
    pub gateways: Vec<IpAddr>,
    /// Whom the guest asks for names.
    pub resolvers: Vec<IpAddr>,
    /// Ranges that are never on the way out: those of the guest's own network.
    pub inside: Vec<Cidr>,
    /// What is allowed.
    pub policy: EgressPolicy,
    /// What the policy's names mean.
    pub resolved: Resolved,
}

/// What becomes of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It goes on.
    Pass,
    /// It does not.
    Drop(Reason),
}

/// Why not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Reason {
    /// It can't be understood.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// Another's MAC address.
    #[error("a frame has a MAC address that is not the guest's")]
    Mac,
    /// Another's IP address.
    #[error("a frame has an IP address that is not the guest's")]
    Address,
    /// ARP or neighbour discovery that claims another's address.
    #[error("a frame claims an address that is not the guest's")]
    Claim,
    /// What servers and routers send.
    #[error("a frame is one that only a router or a DHCP server sends")]
    Role,
    /// A source route, or a routing header.
    #[error("a frame says which way it is to go")]
    Routed,
    /// Where it goes is not allowed.
    #[error("a frame goes where the egress policy does not let it")]
    Egress,
}

type Judged = Result<(), Reason>;

/// The guard of one guest.
#[derive(Debug)]
pub struct Guard {
    own: Own,
    allowed: Allowed,
    flows: Flows,
    queries: Queries,
    local_uplink: bool,
    gateways: Vec<IpAddr>,
    resolvers: Vec<IpAddr>,
    inside: Vec<Cidr>,
}

impl Guard {
    /// A guard that is told what `config` says.
    pub fn new(config: GuardConfig) -> Self {
        let mut gateways = config.gateways;
        gateways.retain(|address| !address.is_unspecified());
        Self {
            own: Own::new(
                config.mac.unwrap_or(Mac([0; 6])),
                &config.addresses,
                config.learns_addresses,
            ),
            allowed: Allowed::new(&config.policy, &config.resolved),
            flows: Flows::default(),
            queries: Queries::default(),
            local_uplink: config.local_uplink,
            gateways,
            resolvers: config.resolvers,
            inside: config.inside,
        }
    }

    /// Whether it learns anything from what comes to the guest.
    pub fn learns(&self) -> bool {
        !self.allowed.everything() || self.own.learns()
    }

    /// Whether frames to the guest have to be seen whole ([`Guard::learn`]): the ends of answers of
    /// resolvers and of DHCP say something, too.
    pub fn reads_answers(&self) -> bool {
        self.allowed.has_names() || self.own.learns()
    }

    /// Whether the frame is from this guest, as it says, and is none that guests do not send.
    ///
    /// # Errors
    /// Why it is not.
    pub fn check_source(&self, frame: &Frame<'_>) -> Judged {
        self.own.check(frame)
    }

    /// Whether `address` is the guest's own.
    pub fn is_own(&self, address: IpAddr) -> bool {
        self.own.has(address)
    }

    /// Whether `address` is that of a router or a resolver.
    pub fn is_router(&self, address: IpAddr) -> bool {
        self.is_host(address)
    }

    /// Judges a frame of `len` bytes that the guest sends to the uplink and that begins with `head`.
    pub fn judge(&mut self, head: &[u8], len: usize, now: Instant) -> Verdict {
        let judged = Frame::parse(head, len).map_err(Reason::Frame);
        let judged = judged.and_then(|frame| {
            self.check_source(&frame)?;
            self.check_egress(&frame, len, now)
        });
        match judged {
            Ok(()) => Verdict::Pass,
            Err(reason) => Verdict::Drop(reason),
        }
    }

    /// Whether a frame that passed [`Guard::check_source`] may go out through the uplink.
    ///
    /// # Errors
    /// Why not.
    pub fn check_egress(&mut self, frame: &Frame<'_>, len: usize, now: Instant) -> Judged {
        let packet = match &frame.content {
            Content::Arp(arp) => return self.may_resolve(arp.target.1.into(), len, now),
            Content::Ip(packet) => packet,
        };
        if packet.routed {
            return Err(Reason::Routed);
        }
        let to = packet.destination;
        if self.inside.iter().any(|range| range.contains(to)) && !self.is_host(to) {
            return Err(Reason::Egress);
        }
        if self.allowed.everything() {
            return Ok(());
        }
        if is_group(to) != frame.destination.is_group() {
            return Err(Reason::Egress);
        }
        self.check_packet(packet, len, now)
    }

    /// Judges a packet under a policy that does not allow everything.
    fn check_packet(&mut self, packet: &IpPacket<'_>, len: usize, now: Instant) -> Judged {
        if packet.part != Part::Whole || packet.options {
            // Its ports may be elsewhere, or be overwritten: only where they do not matter.
            let ordinary = matches!(packet.protocol, 1 | 6 | 17 | 58);
            return permit(ordinary && self.allowed.whole(packet.destination, now));
        }
        match &packet.upper {
            Upper::Tcp(tcp) => {
                let flow = Flow::of(packet, (tcp.source, tcp.destination), Transport::Tcp);
                if !tcp.opens() && self.flows.passes(&flow, tcp.flags, now) {
                    return Ok(());
                }
                permit(self.may_reach(&flow, now))
            }
            Upper::Udp(udp) => {
                if source::is_dhcp_client(udp) && self.is_server(packet.destination) {
                    return permit(self.may_configure());
                }
                let flow = Flow::of(packet, (udp.source, udp.destination), Transport::Udp);
                let passes = self.flows.passes(&flow, 0, now) || self.may_reach(&flow, now);
                if passes && udp.destination == dns::PORT && self.resolvers.contains(&flow.remote) {
                    self.queries.asked(udp, now);
                }
                permit(passes)
            }
            Upper::Icmp6(icmp) if source::is_discovery(icmp) => {
                self.check_discovery(packet, icmp, len, now)
            }
            Upper::Icmp(icmp) | Upper::Icmp6(icmp) => self.check_icmp(packet, icmp, now),
            Upper::Fragment | Upper::Nothing | Upper::Other => Err(Reason::Egress),
        }
    }

    /// Neighbour discovery, which goes to those who are concerned and to nobody else.
    fn check_discovery(
        &mut self,
        packet: &IpPacket<'_>,
        icmp: &Icmp<'_>,
        len: usize,
        now: Instant,
    ) -> Judged {
        const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
        const ALL_ROUTERS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 2);
        let to = packet.destination;
        if icmp.kind == source::ROUTER_SOLICITATION {
            return permit(to == ALL_ROUTERS && self.may_configure());
        }
        let target = source::target(icmp).ok_or(Reason::Claim)?;
        if icmp.kind == source::NEIGHBOUR_SOLICITATION {
            permit(to == target || to == solicited_group(target))?;
            return self.may_resolve(target.into(), len, now);
        }
        // The target is the guest's own; the asker is one whom it may tell.
        let about = if to == ALL_NODES { target.into() } else { to };
        self.may_resolve(about, len, now)
    }

    /// Echo, and word of what went wrong with a packet that came in.
    fn check_icmp(&mut self, packet: &IpPacket<'_>, icmp: &Icmp<'_>, now: Instant) -> Judged {
        let to = packet.destination;
        let (request, reply) = if to.is_ipv4() { (8, 0) } else { (128, 129) };
        let is_error = if to.is_ipv4() {
            matches!(icmp.kind, 3 | 11 | 12)
        } else {
            matches!(icmp.kind, 1..=4)
        };
        if icmp.kind == reply {
            let flow = Flow::echo(packet, icmp);
            let answers = flow.is_some_and(|flow| self.flows.passes(&flow, 0, now));
            return permit(answers || self.allowed.whole(to, now));
        }
        if is_error {
            let met = self.flows.concerns(packet, icmp, now);
            return permit(met || self.allowed.whole(to, now));
        }
        permit(icmp.kind == request && self.allowed.whole(to, now))
    }

    /// Whether the guest may speak first.
    fn may_reach(&mut self, flow: &Flow, now: Instant) -> bool {
        let (to, port, transport) = (flow.remote, flow.remote_port, flow.transport);
        let asks = port == dns::PORT && self.resolvers.contains(&to);
        if (asks && !self.allowed.nothing()) || self.allowed.fixed(to, transport, port) {
            return true;
        }
        let named = self.allowed.learned(to, transport, port, now);
        if named {
            // What was begun goes on when the name means something else.
            self.flows.begun(*flow, Side::Guest, now);
        }
        named
    }

    /// Whether the guest may ask who has `target`, or tell that it has it: address resolution, too,
    /// carries word to whoever listens.
    fn may_resolve(&mut self, target: IpAddr, len: usize, now: Instant) -> Judged {
        /// ARP with padding, or neighbour discovery with a few options.
        const LONGEST: usize = 14 + 40 + 24 + 24;
        if self.allowed.everything() {
            return Ok(());
        }
        let near = self.local_uplink
            || self.own.has(target)
            || self.is_host(target)
            || self.flows.has_remote(target)
            || self.allowed.somehow(target, now);
        permit(near && len <= LONGEST)
    }

    /// DHCP and router solicitations.
    fn may_configure(&self) -> bool {
        self.local_uplink || !self.allowed.nothing()
    }

    /// Where servers of DHCP are asked.
    fn is_server(&self, address: IpAddr) -> bool {
        const SERVERS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 1, 2);
        address == Ipv4Addr::BROADCAST || address == SERVERS || self.gateways.contains(&address)
    }

    fn is_host(&self, address: IpAddr) -> bool {
        self.gateways.contains(&address)
            || self.resolvers.contains(&address)
            || self.own.routers().contains(&address)
    }

    /// Learns from a frame of `len` bytes that comes from the uplink and begins with `head`:
    /// connections that are opened from outside, the guest's addresses, and what names mean. The
    /// bytes must be ones that the guest can't change.
    pub fn learn(&mut self, head: &[u8], len: usize, now: Instant) {
        let Ok(frame) = Frame::parse(head, len) else {
            return;
        };
        let packet = match &frame.content {
            Content::Ip(packet) => packet,
            Content::Arp(arp) if self.own.has(arp.target.1.into()) => {
                // The answer is for whoever asks.
                return self.flows.remember(arp.sender.1.into());
            }
            Content::Arp(_) => return,
        };
        self.own.learn(&frame, packet);
        if let Upper::Icmp6(icmp) = &packet.upper
            && icmp.kind == source::NEIGHBOUR_SOLICITATION
            && source::target(icmp).is_some_and(|target| self.own.has(target.into()))
        {
            return self.flows.remember(packet.source);
        }
        if self.allowed.everything()
            || packet.part != Part::Whole
            || !self.own.has(packet.destination)
        {
            return;
        }
        match &packet.upper {
            Upper::Tcp(tcp) => {
                let flow = Flow::to_guest(packet, (tcp.source, tcp.destination), Transport::Tcp);
                if tcp.opens() {
                    self.flows.begun(flow, Side::Outside, now);
                } else {
                    self.flows.heard(&flow, tcp.flags, now);
                }
            }
            Upper::Udp(udp) => {
                if udp.source == dns::PORT && self.resolvers.contains(&packet.source) {
                    self.learn_names(udp, now);
                }
                let flow = Flow::to_guest(packet, (udp.source, udp.destination), Transport::Udp);
                let known = self
                    .allowed
                    .fixed(flow.remote, Transport::Udp, flow.remote_port);
                if !known && !self.flows.heard(&flow, 0, now) {
                    self.flows.begun(flow, Side::Outside, now);
                }
            }
            Upper::Icmp(icmp) | Upper::Icmp6(icmp) if matches!(icmp.kind, 8 | 128) => {
                if let Some(flow) = Flow::echo(&reversed(packet), icmp) {
                    self.flows.begun(flow, Side::Outside, now);
                }
            }
            _ => {}
        }
    }

    fn learn_names(&mut self, udp: &crate::frame::Udp<'_>, now: Instant) {
        let Some(answer) = self.queries.answered(udp, now) else {
            return;
        };
        for (address, lifetime) in answer.addresses {
            // A name can't be made to mean what the uplink maps to the host itself, or a group.
            let special = is_link_local(address) || self.is_host(address) || self.own.has(address);
            if crate::frame::is_station(address) && !special {
                self.allowed.learn(&answer.name, address, lifetime, now);
            }
        }
    }
}

fn permit(allowed: bool) -> Judged {
    if allowed { Ok(()) } else { Err(Reason::Egress) }
}

/// The group in which whoever has `address` is asked for it (RFC 4291, section 2.7.1).
fn solicited_group(address: Ipv6Addr) -> Ipv6Addr {
    let [.., a, b] = address.segments();
    Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00 | a & 0xff, b)
}

/// The packet as its receiver would send it back.
fn reversed<'a>(packet: &IpPacket<'a>) -> IpPacket<'a> {
    IpPacket {
        source: packet.destination,
        destination: packet.source,
        ..*packet
    }
}

fn is_group(address: IpAddr) -> bool {
    address.is_multicast() || address == IpAddr::V4(Ipv4Addr::BROADCAST)
}

fn is_link_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => is_link_local_v6(v6),
    }
}

fn is_link_local_v6(address: Ipv6Addr) -> bool {
    address.segments()[0] & 0xffc0 == 0xfe80
}

#[cfg(test)]
mod tests;
