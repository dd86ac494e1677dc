//! A guest's port of its network's switch: the members, the names, and the way out.

use std::collections::VecDeque;
use std::io;
use std::net::IpAddr;
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use casita_devices::virtio::net::backend::{
    Abilities, Backend, Frame, Landing, Offloads, Received, Sent, Wrapper,
};
use casita_devices::virtio::net::header::{Checksum, VnetHeader};
use casita_net::dns::{self, Code, Question};
use casita_net::frame::{self, Arp, ArpOperation, Content, Icmp, IpPacket, Udp, Upper};
use casita_net::names::{self, Answered, Named};
use casita_net::reply::{self, Ends};
use casita_net::{EgressPolicy, Guard, GuardConfig, Mac, Resolved};

use super::guarded::Guarded;
use super::members::{Member, Membership};
use super::mesh::{Incoming, Mesh, OFFLOADS};

/// As many of our own frames wait for the guest to take them.
const MAX_ANSWERS: usize = 64;
/// The longest frame with a question that is looked at.
const MAX_QUESTION: usize = 1500;
const NEIGHBOUR_SOLICITATION: u8 = 135;
/// Router and neighbour discovery.
const DISCOVERY: std::ops::RangeInclusive<u8> = 133..=137;

/// What a port is to do beside being a member.
#[derive(Debug, Clone, Default)]
pub struct SwitchConfig {
    /// Addresses of the guest's beside those of the network.
    pub addresses: Vec<IpAddr>,
    /// Routers: those whose frames go to the uplink.
    pub gateways: Vec<IpAddr>,
    /// Whom the guest asks for names. What is no member's is asked of the uplink.
    pub resolvers: Vec<IpAddr>,
    /// Whether there is anybody behind them.
    pub forwards: bool,
    /// What may leave the network.
    pub policy: EgressPolicy,
    /// What the policy's names mean.
    pub resolved: Resolved,
}

/// The port: a back end around the uplink.
///
/// The guest's frames go to a member's monitor if their MAC address is that member's, and to the
/// uplink otherwise, if the policy lets them. Address resolution for members and questions for their
/// names are answered here; there is no flooding, and no other broadcast.
pub struct Switch {
    uplink: Guarded<Box<dyn Backend>>,
    guard: Arc<Mutex<Guard>>,
    mesh: Mesh,
    own: Arc<Member>,
    network: String,
    resolvers: Vec<IpAddr>,
    closed: bool,
    /// Our own frames for the guest.
    answers: VecDeque<Vec<u8>>,
    to_guest: Offloads,
    /// Whose turn it is to be received from.
    uplink_next: bool,
}

impl Switch {
    /// The port of `membership`'s VM, with `uplink` as its way out.
    ///
    /// # Errors
    /// If the network's folder can't be watched.
    pub fn new(
        membership: Membership,
        uplink: Box<dyn Backend>,
        config: SwitchConfig,
    ) -> io::Result<Self> {
        let own = Arc::new(membership.member().clone());
        let network = membership.network().clone();
        let mut addresses = own.addresses();
        addresses.extend(config.addresses);
        let closed = config.policy == EgressPolicy::None || !config.forwards;
        let guard = Guard::new(GuardConfig {
            mac: Some(Mac(own.mac.0)),
            addresses,
            local_uplink: true,
            gateways: config.gateways,
            resolvers: config.resolvers.clone(),
            inside: [Some(network.subnet()), network.subnet6()]
                .into_iter()
                .flatten()
                .collect(),
            policy: config.policy,
            resolved: config.resolved,
            ..GuardConfig::default()
        });
        let guard = Arc::new(Mutex::new(guard));
        Ok(Self {
            uplink: Guarded::new(uplink, guard.clone()),
            guard,
            mesh: Mesh::new(membership)?,
            own,
            network: network.name().to_owned(),
            resolvers: config.resolvers,
            closed,
            answers: VecDeque::new(),
            to_guest: Offloads::NONE,
            uplink_next: false,
        })
    }

    fn guard(&self) -> MutexGuard<'_, Guard> {
        self.guard.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends what came from the guest and is its own to where it belongs.
    fn forward(&mut self, out: &Frame<'_>, read: &frame::Frame<'_>, now: Instant) -> Sent {
        let packet = match &read.content {
            Content::Arp(arp) => return self.resolve_v4(out, arp),
            Content::Ip(packet) => packet,
        };
        match &packet.upper {
            Upper::Icmp6(icmp) if icmp.kind == NEIGHBOUR_SOLICITATION => {
                return self.resolve_v6(out, read, packet, icmp);
            }
            // Nobody learns from what a guest tells of itself, and what is to be known of routers
            // is told to it at its start.
            Upper::Icmp6(icmp) if DISCOVERY.contains(&icmp.kind) => return Sent::Done,
            Upper::Udp(udp) if self.is_question(packet, udp) => {
                return self.answer_name(out, now);
            }
            _ => {}
        }
        if let Some(peer) = self.mesh.peer(read.destination) {
            // Nobody is a router for others here.
            if !peer.has(packet.destination) || packet.routed {
                return Sent::Dropped;
            }
            return if self.mesh.send(&peer, out, now) {
                Sent::Done
            } else {
                Sent::Dropped
            };
        }
        self.leave(out, read, now)
    }

    /// Sends a frame to the uplink, if it may leave.
    fn leave(&mut self, out: &Frame<'_>, read: &frame::Frame<'_>, now: Instant) -> Sent {
        let judged = self.guard().check_egress(read, out.len(), now);
        if let Err(reason) = judged {
            log::trace!("not sent: {reason}");
            return Sent::Dropped;
        }
        self.uplink.inner_mut().send(out)
    }

    /// Who has an IPv4 address: members are known here, the uplink knows its own.
    fn resolve_v4(&mut self, out: &Frame<'_>, arp: &Arp) -> Sent {
        if arp.operation != ArpOperation::Request {
            return Sent::Done;
        }
        let target = IpAddr::V4(arp.target.1);
        if let Some(member) = self.mesh.roster().by_address(target) {
            let answer = reply::arp(arp, Mac(member.mac.0));
            if let Some(answer) = answer {
                self.answer(answer);
            }
            return Sent::Done;
        }
        self.ask_uplink(out, target)
    }

    fn resolve_v6(
        &mut self,
        out: &Frame<'_>,
        read: &frame::Frame<'_>,
        packet: &IpPacket<'_>,
        icmp: &Icmp<'_>,
    ) -> Sent {
        let target = icmp.body.get(4..).and_then(|body| body.first_chunk::<16>());
        let (Some(target), IpAddr::V6(asker)) = (target, packet.source) else {
            return Sent::Dropped;
        };
        let target = std::net::Ipv6Addr::from(*target);
        if let Some(member) = self.mesh.roster().by_address(target.into()) {
            if !asker.is_unspecified() {
                let mac = Mac(member.mac.0);
                let answer = reply::neighbour((read.source, asker), target, mac);
                self.answer(answer);
            }
            return Sent::Done;
        }
        self.ask_uplink(out, target.into())
    }

    /// Asks the uplink who has an address, if it may be its own. What a guest asks of its own is
    /// known: nobody else has it.
    fn ask_uplink(&mut self, out: &Frame<'_>, target: IpAddr) -> Sent {
        let network = self.mesh.membership().network();
        let ranges = [Some(network.subnet()), network.subnet6()];
        let inside = ranges
            .into_iter()
            .flatten()
            .any(|range| range.contains(target));
        let router = self.guard().is_router(target);
        if self.guard().is_own(target) || (inside && !router) {
            return Sent::Done;
        }
        self.uplink.inner_mut().send(out)
    }

    fn is_question(&self, packet: &IpPacket<'_>, udp: &Udp<'_>) -> bool {
        udp.destination == dns::PORT && self.resolvers.contains(&packet.destination)
    }

    /// Answers a question for a name, or passes it on.
    fn answer_name(&mut self, out: &Frame<'_>, now: Instant) -> Sent {
        if out.len() > MAX_QUESTION {
            return Sent::Dropped;
        }
        // What is read is what is sent: a copy of all of it.
        let bytes = out.to_vec();
        let Ok(read) = frame::Frame::parse(&bytes, bytes.len()) else {
            return Sent::Dropped;
        };
        let Some((packet, Upper::Udp(udp))) = read.ip().map(|packet| (packet, packet.upper)) else {
            return Sent::Dropped;
        };
        let copy = Frame {
            header: out.header,
            ..Frame::of_bytes(&bytes)
        };
        // The copy may be of something else than what was judged.
        if self.guard().check_source(&read).is_err() || !self.is_question(packet, &udp) {
            return Sent::Dropped;
        }
        let question = udp.complete.then(|| dns::read_question(udp.data)).flatten();
        let Some(question) = question else {
            return self.leave(&copy, &read, now);
        };
        let message = match self.known(&question) {
            Answered::Here(message) => message,
            Answered::Elsewhere if self.closed => {
                dns::write_answer(&question, Code::Refused, &[], 0)
            }
            Answered::Elsewhere => return self.leave(&copy, &read, now),
        };
        let ends = Ends {
            from_mac: read.destination,
            to_mac: read.source,
            from: (packet.destination, udp.destination),
            to: (packet.source, udp.source),
        };
        let answer = reply::udp(&ends, &message);
        if let Some(answer) = answer {
            self.answer(answer);
        }
        Sent::Done
    }

    fn known(&mut self, question: &Question) -> Answered {
        let own = self.own.clone();
        let others = self.mesh.roster().all().cloned();
        let members: Vec<Named> = std::iter::once(own)
            .chain(others)
            .map(|member| Named {
                addresses: member.addresses(),
                names: [&member.names[..], std::slice::from_ref(&member.id)].concat(),
            })
            .collect();
        names::answer(question, &self.network, &members)
    }

    fn answer(&mut self, frame: Vec<u8>) {
        if self.answers.len() < MAX_ANSWERS {
            self.answers.push_back(frame);
        }
    }

    /// Receives from the other members.
    fn receive_inside(&mut self, landing: &mut Landing<'_>) -> Received {
        let (header, peer) = match self.mesh.receive() {
            Incoming::Nothing => return Received::Nothing,
            Incoming::Other => return Received::Dropped,
            Incoming::Frame { header, peer } => (header, peer),
        };
        let header = self.accept(header, &peer);
        let frame = self.mesh.frame();
        let len = frame.len();
        let landed = header.is_some() && landing.place(frame);
        match header {
            Some(header) if landed => Received::Frame { header, len },
            _ => Received::Dropped,
        }
    }

    /// Checks a frame from a member: it is that member's, for our guest, and no part of how
    /// addresses are found, of which each monitor tells its own guest. What is to be done for a
    /// guest that leaves nothing undone is done.
    fn accept(&mut self, mut header: VnetHeader, peer: &Member) -> Option<VnetHeader> {
        let bytes = self.mesh.frame();
        let read = frame::Frame::parse(bytes, bytes.len()).ok()?;
        let packet = read.ip()?;
        let discovery =
            matches!(packet.upper, Upper::Icmp6(icmp) if DISCOVERY.contains(&icmp.kind));
        let fits = read.source == Mac(peer.mac.0)
            && read.destination == Mac(self.own.mac.0)
            && peer.has(packet.source)
            && self.own.has(packet.destination)
            && !packet.routed
            && !discovery;
        if !fits {
            log::trace!("not taken from {}: {read:?}", peer.name());
            return None;
        }
        if !self.to_guest.contains(header.asks_for()) {
            header.finish_checksum(self.mesh.frame());
        }
        // What a peer says to be right is for the guest to see.
        if header.checksum == Checksum::Valid && !self.to_guest.contains(Offloads::CHECKSUM) {
            header.checksum = Checksum::Unknown;
        }
        Some(header)
    }
}

impl Backend for Switch {
    fn fd(&self) -> BorrowedFd<'_> {
        self.uplink.fd()
    }

    fn side_fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.mesh.fd())
    }

    fn has_waiting(&self) -> bool {
        !self.answers.is_empty() || self.mesh.has_waiting() || self.uplink.has_waiting()
    }

    fn abilities(&self) -> Abilities {
        let uplink = self.uplink.abilities();
        Abilities {
            from_guest: uplink.from_guest & OFFLOADS,
            to_guest: uplink.to_guest | OFFLOADS,
        }
    }

    fn set_offloads(&mut self, to_guest: Offloads) -> io::Result<()> {
        self.to_guest = to_guest;
        let uplink = self.uplink.abilities().to_guest;
        self.uplink.set_offloads(to_guest & uplink)
    }

    fn send(&mut self, out: &Frame<'_>) -> Sent {
        let Ok(read) = frame::Frame::parse(out.head, out.len()) else {
            return Sent::Dropped;
        };
        let judged = self.guard().check_source(&read);
        if let Err(reason) = judged {
            log::trace!("not sent: {reason}");
            return Sent::Dropped;
        }
        self.forward(out, &read, Instant::now())
    }

    fn set_active(&mut self, active: bool) -> io::Result<()> {
        self.uplink.set_active(active)
    }

    fn flush(&mut self) -> Sent {
        self.uplink.flush()
    }

    fn receive(&mut self, landing: &mut Landing<'_>) -> Received {
        if let Some(answer) = self.answers.pop_front() {
            let len = answer.len();
            return if landing.place(&answer) {
                let header = VnetHeader::default();
                Received::Frame { header, len }
            } else {
                Received::Dropped
            };
        }
        self.uplink_next = !self.uplink_next;
        let uplink_first = self.uplink_next;
        let first = if uplink_first {
            self.uplink.receive_and_learn(landing)
        } else {
            self.receive_inside(landing)
        };
        match first {
            Received::Nothing if uplink_first => self.receive_inside(landing),
            Received::Nothing => self.uplink.receive_and_learn(landing),
            received => received,
        }
    }
}

#[cfg(test)]
mod tests;
