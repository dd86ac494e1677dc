//! What keeps a guest from the host's own loopback, which passt would reach for it: passt connects to
//! 127.0.0.1 for a guest that sends to that address, or to 0.0.0.0, whatever it was told.
//!
//! Packets for such addresses are dropped. The gateway stands for the host's loopback, too, where UDP
//! ports are published: answers to the host's own programs go there, and passt takes them only if it
//! maps that address. So to the gateway goes only what answers: from the port that a packet came to,
//! to the port that it came from.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use casita_devices::virtio::net::backend::{Backend, Frame, Landing, Received, Sent, Wrapper};

/// Bytes of Ethernet's header.
const ETHERNET: usize = 14;
const TYPE_IPV4: [u8; 2] = [0x08, 0x00];
const TYPE_IPV6: [u8; 2] = [0x86, 0xdd];
const IPV6_HEADER: usize = 40;

const ICMP: u8 = 1;
const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMPV6: u8 = 58;

/// A back end behind the wall.
pub struct Walled<B> {
    inner: B,
    wall: Wall,
}

impl<B> Walled<B> {
    /// `gateways` are mapped to the host's loopback; none if no address is.
    pub fn new(inner: B, gateways: Vec<IpAddr>) -> Self {
        Self {
            inner,
            wall: Wall {
                gateways,
                heard: Heard::default(),
            },
        }
    }
}

impl<B: Backend> Wrapper for Walled<B> {
    type Inner = B;

    fn inner(&self) -> &B {
        &self.inner
    }

    fn inner_mut(&mut self) -> &mut B {
        &mut self.inner
    }

    fn pass_out(&mut self, frame: &Frame<'_>) -> Sent {
        if self.wall.lets_out(frame.head) {
            self.inner.send(frame)
        } else {
            Sent::Dropped
        }
    }

    fn pass_in(&mut self, landing: &mut Landing<'_>) -> Received {
        let received = self.inner.receive(landing);
        if let Received::Frame { len, .. } = &received {
            let head = landing.head();
            self.wall.hears(head.get(..*len).unwrap_or(head));
        }
        received
    }
}

struct Wall {
    gateways: Vec<IpAddr>,
    heard: Heard,
}

impl Wall {
    /// Whether a frame of the guest's goes on. passt takes ARP, IPv4 and IPv6 without a VLAN tag, and
    /// nothing else.
    fn lets_out(&self, frame: &[u8]) -> bool {
        let Some(packet) = Packet::of(frame) else {
            return true;
        };
        if is_hosts_own(packet.destination) {
            return false;
        }
        if !self.gateways.contains(&packet.destination) {
            return true;
        }
        match packet.protocol {
            ICMP | ICMPV6 => true,
            _ => packet.flow.is_some_and(|(protocol, own, other)| {
                self.heard.has(packet.destination, protocol, other, own)
            }),
        }
    }

    /// Takes notice of a frame that the guest receives.
    fn hears(&mut self, frame: &[u8]) {
        if self.gateways.is_empty() {
            return;
        }
        if let Some(packet) = Packet::of(frame)
            && self.gateways.contains(&packet.source)
            && let Some((protocol, other, own)) = packet.flow
        {
            self.heard.note(packet.source, protocol, other, own);
        }
    }
}

/// Addresses that mean the host itself to its own kernel.
fn is_hosts_own(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => matches!(ip.octets()[0], 0 | 127),
        // IPv4 in IPv6's clothes is IPv4 to sockets, and the first 96 bits are zero in the loopback
        // address and in that of nobody.
        IpAddr::V6(ip) => ip.to_ipv4_mapped().is_some() || ip.to_bits() >> 32 == 0,
    }
}

/// What of a packet counts here.
pub(super) struct Packet {
    pub(super) source: IpAddr,
    pub(super) destination: IpAddr,
    protocol: u8,
    /// Of TCP and UDP whose header is the first and whole: which, and the ports from and to.
    flow: Option<(u8, u16, u16)>,
}

impl Packet {
    /// The packet of a frame, if it has one of IP.
    pub(super) fn of(frame: &[u8]) -> Option<Self> {
        let packet = frame.get(ETHERNET..)?;
        match *frame.get(12..)?.first_chunk()? {
            TYPE_IPV4 => Self::of_v4(packet),
            TYPE_IPV6 => Self::of_v6(packet),
            _ => None,
        }
    }

    fn of_v4(packet: &[u8]) -> Option<Self> {
        let address = |at: usize| {
            let bytes = packet.get(at..)?.first_chunk::<4>()?;
            Some(IpAddr::from(Ipv4Addr::from(*bytes)))
        };
        let protocol = *packet.get(9)?;
        let header = usize::from(packet.first()? & 0xf) * 4;
        let fragment = u16::from_be_bytes(*packet.get(6..)?.first_chunk()?);
        // Neither an offset nor more of them, whatever the two bits before say.
        let whole = fragment << 2 == 0;
        Some(Self {
            source: address(12)?,
            destination: address(16)?,
            protocol,
            flow: whole.then(|| flow(protocol, packet, header)).flatten(),
        })
    }

    fn of_v6(packet: &[u8]) -> Option<Self> {
        let address = |at: usize| {
            let bytes = packet.get(at..)?.first_chunk::<16>()?;
            Some(IpAddr::from(Ipv6Addr::from(*bytes)))
        };
        let protocol = *packet.get(6)?;
        Some(Self {
            source: address(8)?,
            destination: address(24)?,
            protocol,
            flow: flow(protocol, packet, IPV6_HEADER),
        })
    }
}

fn flow(protocol: u8, packet: &[u8], header: usize) -> Option<(u8, u16, u16)> {
    let [a, b, c, d] = *packet.get(header..)?.first_chunk::<4>()?;
    let ports = (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]));
    matches!(protocol, TCP | UDP).then_some((protocol, ports.0, ports.1))
}

/// Which port of the guest's each port of the host's has talked to last, by version of IP and by
/// protocol. A table is made when it is first needed.
#[derive(Default)]
struct Heard([Vec<u16>; 4]);

impl Heard {
    fn table(ip: IpAddr, protocol: u8) -> usize {
        2 * usize::from(ip.is_ipv6()) + usize::from(protocol == UDP)
    }

    fn note(&mut self, ip: IpAddr, protocol: u8, host: u16, guest: u16) {
        if let Some(table) = self.0.get_mut(Self::table(ip, protocol)) {
            table.resize(1 << 16, 0);
            if let Some(entry) = table.get_mut(usize::from(host)) {
                *entry = guest;
            }
        }
    }

    fn has(&self, ip: IpAddr, protocol: u8, host: u16, guest: u16) -> bool {
        let table = self.0.get(Self::table(ip, protocol));
        let entry = table.and_then(|table| table.get(usize::from(host)));
        // Port 0 is nobody's.
        guest != 0 && entry == Some(&guest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const GUEST: &str = "10.0.2.15";
    const GATEWAY: &str = "10.0.2.2";

    fn wall(gateways: &[&str]) -> Wall {
        Wall {
            gateways: gateways.iter().map(|ip| ip.parse().unwrap()).collect(),
            heard: Heard::default(),
        }
    }

    fn frame(from: &str, to: &str, protocol: u8, ports: [u16; 2]) -> Vec<u8> {
        let (from, to): (IpAddr, IpAddr) = (from.parse().unwrap(), to.parse().unwrap());
        let mut bytes = vec![0; 12];
        match (from, to) {
            (IpAddr::V4(from), IpAddr::V4(to)) => {
                bytes.extend(TYPE_IPV4);
                bytes.extend([0x45, 0, 0, 28, 0, 0, 0x40, 0, 64, protocol, 0, 0]);
                bytes.extend(from.octets());
                bytes.extend(to.octets());
            }
            (IpAddr::V6(from), IpAddr::V6(to)) => {
                bytes.extend(TYPE_IPV6);
                bytes.extend([0x60, 0, 0, 0, 0, 8, protocol, 64]);
                bytes.extend(from.octets());
                bytes.extend(to.octets());
            }
            _ => panic!("two versions"),
        }
        bytes.extend(ports.iter().flat_map(|port| port.to_be_bytes()));
        bytes.extend([0; 16]);
        bytes
    }

    #[test]
    fn the_hosts_own_addresses_are_not_reached() {
        let wall = wall(&[]);
        let out = |from, to| wall.lets_out(&frame(from, to, TCP, [4000, 22]));
        for to in ["127.0.0.1", "127.5.5.5", "0.0.0.0", "0.1.2.3"] {
            assert!(!out(GUEST, to), "{to}");
        }
        for to in [
            "::1",
            "::",
            "::ffff:127.0.0.1",
            "::127.0.0.1",
            "::ffff:192.0.2.1",
        ] {
            assert!(!out("fd00::15", to), "{to}");
        }
        for to in ["192.0.2.1", "10.0.2.2", "255.255.255.255", "224.0.0.1"] {
            assert!(out(GUEST, to), "{to}");
        }
        for to in ["2001:db8::1", "ff02::1", "fe80::1"] {
            assert!(out("fd00::15", to), "{to}");
        }
    }

    #[test]
    fn to_a_mapped_gateway_goes_only_what_answers() {
        for (guest, gateway) in [(GUEST, GATEWAY), ("fd00::15", "fd00::2")] {
            for protocol in [TCP, UDP] {
                let mut wall = wall(&[gateway]);
                let answer = frame(guest, gateway, protocol, [5353, 40000]);
                assert!(!wall.lets_out(&answer));
                wall.hears(&frame(gateway, guest, protocol, [40000, 5353]));
                assert!(wall.lets_out(&answer));
                // Another port on either side, and the other protocol.
                assert!(!wall.lets_out(&frame(guest, gateway, protocol, [5353, 53])));
                assert!(!wall.lets_out(&frame(guest, gateway, protocol, [5354, 40000])));
                let other = TCP + UDP - protocol;
                assert!(!wall.lets_out(&frame(guest, gateway, other, [5353, 40000])));
            }
        }
    }

    #[test]
    fn what_comes_from_elsewhere_opens_nothing() {
        let mut wall = wall(&[GATEWAY]);
        wall.hears(&frame("192.0.2.1", GUEST, UDP, [40000, 5353]));
        assert!(!wall.lets_out(&frame(GUEST, GATEWAY, UDP, [5353, 40000])));
    }

    #[test]
    fn fragments_and_extensions_hide_no_port() {
        let mut wall = wall(&[GATEWAY, "fd00::2"]);
        wall.hears(&frame(GATEWAY, GUEST, UDP, [40000, 5353]));
        for flags in [[0x20, 0], [0, 1], [0x1f, 0xff]] {
            let mut fragment = frame(GUEST, GATEWAY, UDP, [5353, 40000]);
            fragment[20..22].copy_from_slice(&flags);
            assert!(!wall.lets_out(&fragment), "{flags:?}");
        }
        wall.hears(&frame("fd00::2", "fd00::15", UDP, [40000, 5353]));
        for extension in [0, 43, 44, 60, 135] {
            let hidden = frame("fd00::15", "fd00::2", extension, [5353, 40000]);
            assert!(!wall.lets_out(&hidden), "{extension}");
        }
    }

    #[test]
    fn neighbours_are_found_and_echoes_answered() {
        let wall = wall(&[GATEWAY, "fd00::2"]);
        assert!(wall.lets_out(&frame(GUEST, GATEWAY, ICMP, [0, 0])));
        assert!(wall.lets_out(&frame("fd00::15", "fd00::2", ICMPV6, [0, 0])));
        let mut arp = vec![0; 42];
        arp[12..14].copy_from_slice(&[0x08, 0x06]);
        assert!(wall.lets_out(&arp));
    }

    proptest! {
        #[test]
        fn any_frame_is_judged(
            kind in 0..3_usize,
            rest in proptest::collection::vec(any::<u8>(), 0..100),
        ) {
            let types = [&TYPE_IPV4, &TYPE_IPV6, &[0x08, 0x06]];
            let frame = [&[0; 12][..], types[kind], &rest].concat();
            let mut wall = wall(&[GATEWAY]);
            wall.hears(&frame);
            let _ = wall.lets_out(&frame);
        }
    }
}
