//! Who a frame says that it is from: nobody but the guest itself, by any of the names that a frame
//! has for its sender, and in no role but a station's.

use std::collections::VecDeque;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::{Judged, Reason, is_link_local_v6};
use crate::Mac;
use crate::frame::{Arp, Content, Frame, Icmp, IpPacket, Part, Udp, Upper, is_station};
use crate::mac::with_prefix;

pub(super) const ROUTER_SOLICITATION: u8 = 133;
const ROUTER_ADVERTISEMENT: u8 = 134;
pub(super) const NEIGHBOUR_SOLICITATION: u8 = 135;
pub(super) const NEIGHBOUR_ADVERTISEMENT: u8 = 136;
const REDIRECT: u8 = 137;
/// ICMP's redirect, router advertisement and solicitation for IPv4.
const OLD_ROUTING: [u8; 3] = [5, 9, 10];

/// As many of each as are kept of what was learned; the latest count.
const MAX_LEARNED: usize = 8;

/// The guest's own addresses.
#[derive(Debug)]
pub(super) struct Own {
    mac: Mac,
    addresses: Vec<IpAddr>,
    learns: bool,
    learned: VecDeque<IpAddr>,
    routers: VecDeque<IpAddr>,
}

impl Own {
    pub(super) fn new(mac: Mac, addresses: &[IpAddr], learns: bool) -> Self {
        let mut addresses = addresses.to_vec();
        addresses.push(mac.link_local().into());
        Self {
            mac,
            addresses,
            learns,
            learned: VecDeque::new(),
            routers: VecDeque::new(),
        }
    }

    pub(super) fn has(&self, address: IpAddr) -> bool {
        self.addresses.contains(&address) || self.learned.contains(&address)
    }

    pub(super) fn learns(&self) -> bool {
        self.learns
    }

    /// Routers that have told of themselves.
    pub(super) fn routers(&self) -> &VecDeque<IpAddr> {
        &self.routers
    }

    pub(super) fn check(&self, frame: &Frame<'_>) -> Judged {
        if frame.source != self.mac {
            return Err(Reason::Mac);
        }
        match &frame.content {
            Content::Arp(arp) => self.check_arp(arp),
            Content::Ip(packet) => self.check_packet(frame, packet),
        }
    }

    /// RFC 5227: a probe has no sender's address yet.
    fn check_arp(&self, arp: &Arp) -> Judged {
        let (mac, address) = arp.sender;
        let probes =
            address.is_unspecified() && arp.operation == crate::frame::ArpOperation::Request;
        if mac != self.mac {
            return Err(Reason::Mac);
        }
        if probes || self.has(address.into()) {
            Ok(())
        } else {
            Err(Reason::Claim)
        }
    }

    fn check_packet(&self, frame: &Frame<'_>, packet: &IpPacket<'_>) -> Judged {
        match &packet.upper {
            Upper::Udp(udp) => {
                if is_server(udp) {
                    return Err(Reason::Role);
                }
                if is_dhcp_client(udp) {
                    return self.check_dhcp(frame, packet, udp);
                }
            }
            Upper::Icmp(icmp) if OLD_ROUTING.contains(&icmp.kind) => return Err(Reason::Role),
            Upper::Icmp6(icmp) => return self.check_icmp6(packet, icmp),
            // A fragment can't be told from such a packet's.
            Upper::Fragment | Upper::Other if packet.protocol == ICMP6 => return Err(Reason::Role),
            _ => {}
        }
        self.check_address(packet)
    }

    fn check_address(&self, packet: &IpPacket<'_>) -> Judged {
        if self.has(packet.source) {
            Ok(())
        } else {
            Err(Reason::Address)
        }
    }

    /// DHCP's client has no address at first; DHCPv6's has its link's.
    fn check_dhcp(&self, frame: &Frame<'_>, packet: &IpPacket<'_>, udp: &Udp<'_>) -> Judged {
        if packet.is_v6() {
            return self.check_address(packet);
        }
        if !packet.source.is_unspecified() {
            self.check_address(packet)?;
        }
        let own = udp.data.get(28..34) == Some(&self.mac.0[..]) && frame.source == self.mac;
        if packet.part == Part::Whole && udp.data.get(..3) == Some(&QUESTION) && own {
            Ok(())
        } else {
            Err(Reason::Claim)
        }
    }

    /// Neighbour discovery (RFC 4861), which is never in fragments (RFC 6980) or from afar.
    fn check_icmp6(&self, packet: &IpPacket<'_>, icmp: &Icmp<'_>) -> Judged {
        if matches!(icmp.kind, ROUTER_ADVERTISEMENT | REDIRECT) {
            return Err(Reason::Role);
        }
        let nameless = packet.source.is_unspecified();
        if !is_discovery(icmp) {
            return self.check_address(packet);
        }
        if packet.part != Part::Whole || packet.options || packet.hops != 255 {
            return Err(Reason::Role);
        }
        if !nameless {
            self.check_address(packet)?;
        }
        match icmp.kind {
            NEIGHBOUR_ADVERTISEMENT => {
                let claimed = target(icmp).ok_or(Reason::Claim)?;
                if nameless || !self.has(claimed.into()) {
                    return Err(Reason::Claim);
                }
                self.check_options(icmp.body.get(20..), false)
            }
            NEIGHBOUR_SOLICITATION => {
                let asked = target(icmp).ok_or(Reason::Claim)?;
                // Whoever has no address asks for the one that it is about to take.
                if nameless && !self.has(asked.into()) {
                    return Err(Reason::Claim);
                }
                self.check_options(icmp.body.get(20..), nameless)
            }
            _ => self.check_options(icmp.body.get(4..), nameless),
        }
    }

    /// Options of neighbour discovery: the guest's own MAC address, and a nonce (RFC 7527).
    fn check_options(&self, options: Option<&[u8]>, nameless: bool) -> Judged {
        let mut rest = options.ok_or(Reason::Claim)?;
        while let [kind, units, ..] = *rest {
            let size = usize::from(units) * 8;
            let option = rest.get(2..size).ok_or(Reason::Claim)?;
            match kind {
                // The link address of whom it is from, or of whom it is about.
                1 | 2 if option == self.mac.0 && !(nameless && kind == 1) => {}
                14 if units == 1 => {}
                _ => return Err(Reason::Claim),
            }
            rest = rest.get(size..).unwrap_or_default();
        }
        if rest.is_empty() {
            Ok(())
        } else {
            Err(Reason::Claim)
        }
    }

    /// Learns the guest's addresses from those who give them.
    pub(super) fn learn(&mut self, frame: &Frame<'_>, packet: &IpPacket<'_>) {
        if !self.learns {
            return;
        }
        match &packet.upper {
            Upper::Udp(udp) if udp.source == 67 && udp.destination == 68 => {
                if let Some((address, router)) = acknowledged(udp, self.mac) {
                    remember(&mut self.learned, address.into());
                    if let Some(router) = router {
                        remember(&mut self.routers, router.into());
                    }
                }
            }
            Upper::Icmp6(icmp) if icmp.kind == ROUTER_ADVERTISEMENT && packet.hops == 255 => {
                if let IpAddr::V6(router) = packet.source
                    && is_link_local_v6(router)
                    && frame.source != self.mac
                {
                    remember(&mut self.routers, router.into());
                    self.learn_prefixes(icmp);
                }
            }
            _ => {}
        }
    }

    /// The guest makes itself an address below each prefix that is for that (RFC 4862).
    fn learn_prefixes(&mut self, icmp: &Icmp<'_>) {
        let mut rest = icmp.body.get(12..).unwrap_or_default();
        while let [kind, units, ..] = *rest {
            let size = usize::from(units) * 8;
            let Some(option) = rest.get(..size).filter(|option| !option.is_empty()) else {
                return;
            };
            // Prefix information: 64 bits long, and for the guests' own use.
            if kind == 3
                && option.get(2) == Some(&64)
                && option.get(3).is_some_and(|flags| flags & 0x40 != 0)
                && let Some(prefix) = option.get(16..).and_then(|rest| rest.first_chunk::<8>())
            {
                let address = with_prefix(*prefix, self.mac);
                if is_station(address.into()) {
                    remember(&mut self.learned, address.into());
                }
            }
            rest = rest.get(size..).unwrap_or_default();
        }
    }
}

const ICMP6: u8 = 58;
/// The begin of a question of DHCP's, of Ethernet, with six bytes of address.
const QUESTION: [u8; 3] = [1, 1, 6];

fn remember(list: &mut VecDeque<IpAddr>, address: IpAddr) {
    if !list.contains(&address) {
        list.truncate(MAX_LEARNED - 1);
        list.push_front(address);
    }
}

/// Part of neighbour discovery that a station sends.
pub(super) fn is_discovery(icmp: &Icmp<'_>) -> bool {
    matches!(
        icmp.kind,
        ROUTER_SOLICITATION | NEIGHBOUR_SOLICITATION | NEIGHBOUR_ADVERTISEMENT
    )
}

/// The address that is asked for or told.
pub(super) fn target(icmp: &Icmp<'_>) -> Option<Ipv6Addr> {
    let bytes: &[u8; 16] = icmp.body.get(4..)?.first_chunk()?;
    Some(Ipv6Addr::from(*bytes))
}

/// Sent by a server of DHCP or DHCPv6, or for one that a relay asks.
fn is_server(udp: &Udp<'_>) -> bool {
    matches!(udp.source, 67 | 547) || matches!(udp.destination, 68 | 546)
}

/// Sent to a server of DHCP or DHCPv6.
pub(super) fn is_dhcp_client(udp: &Udp<'_>) -> bool {
    matches!(udp.destination, 67 | 547)
}

/// The address that a server of DHCP gives to `mac` with this message, and the first router that it
/// tells of (RFC 2131, RFC 2132).
fn acknowledged(udp: &Udp<'_>, mac: Mac) -> Option<(Ipv4Addr, Option<Ipv4Addr>)> {
    const ANSWER: [u8; 3] = [2, 1, 6];
    const COOKIE: [u8; 4] = [99, 130, 83, 99];
    const ROUTER: u8 = 3;
    let data = udp.data;
    let own = data.get(..3)? == ANSWER && data.get(28..34)? == mac.0;
    let &bytes = data.get(16..20)?.first_chunk::<4>()?;
    let address = Ipv4Addr::from(bytes);
    if !own || !is_station(address.into()) {
        return None;
    }
    // The options may be behind what is at hand.
    let options = data.get(236..).and_then(|rest| rest.strip_prefix(&COOKIE));
    let router = options.and_then(|options| option(options, ROUTER));
    let router = router.and_then(|value| value.first_chunk::<4>().copied());
    Some((address, router.map(Ipv4Addr::from)))
}

/// The value of an option of DHCP.
fn option(mut options: &[u8], wanted: u8) -> Option<&[u8]> {
    loop {
        options = match *options {
            [0, ref rest @ ..] => rest,
            [kind, len, ref rest @ ..] if kind != 255 => {
                let (value, rest) = rest.split_at_checked(usize::from(len))?;
                if kind == wanted {
                    return Some(value);
                }
                rest
            }
            _ => return None,
        };
    }
}
