//! Frames of the host's own: what a monitor answers in place of others.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::Mac;
use crate::frame::{Arp, ArpOperation};

/// Answers the question `who has the target` with `mac`.
pub fn arp(question: &Arp, mac: Mac) -> Option<Vec<u8>> {
    if question.operation != ArpOperation::Request {
        return None;
    }
    let (asker, address) = question.sender;
    let mut packet = Vec::with_capacity(28);
    packet.extend(crate::frame::ARP_FIXED);
    packet.extend([0, 2]);
    packet.extend(mac.0);
    packet.extend(question.target.1.octets());
    packet.extend(asker.0);
    packet.extend(address.octets());
    Some(ethernet(asker, mac, 0x0806, &packet))
}

/// Tells `asker` that `target` is at `mac` (RFC 4861, section 4.4).
pub fn neighbour(asker: (Mac, Ipv6Addr), target: Ipv6Addr, mac: Mac) -> Vec<u8> {
    /// Solicited, and over what was known.
    const FLAGS: [u8; 4] = [0x60, 0, 0, 0];
    let mut body = vec![136, 0, 0, 0];
    body.extend(FLAGS);
    body.extend(target.octets());
    body.extend([2, 1]);
    body.extend(mac.0);
    let packet = ipv6(target, asker.1, 58, 255, body, 2);
    ethernet(asker.0, mac, 0x86dd, &packet)
}

/// Both ends of a datagram.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ends {
    /// Whose MAC address it is from.
    pub from_mac: Mac,
    /// Whom it is for.
    pub to_mac: Mac,
    /// From where.
    pub from: (IpAddr, u16),
    /// To where.
    pub to: (IpAddr, u16),
}

/// A datagram; `None` if it is too long, or its ends are of two protocols.
pub fn udp(ends: &Ends, data: &[u8]) -> Option<Vec<u8>> {
    let len = u16::try_from(data.len() + 8).ok()?;
    let mut body = Vec::with_capacity(data.len() + 8);
    body.extend(ends.from.1.to_be_bytes());
    body.extend(ends.to.1.to_be_bytes());
    body.extend(len.to_be_bytes());
    body.extend([0, 0]);
    body.extend(data);
    let (kind, packet) = match (ends.from.0, ends.to.0) {
        (IpAddr::V4(from), IpAddr::V4(to)) => (0x0800, ipv4(from, to, body)?),
        (IpAddr::V6(from), IpAddr::V6(to)) => (0x86dd, ipv6(from, to, 17, 64, body, 6)),
        _ => return None,
    };
    Some(ethernet(ends.to_mac, ends.from_mac, kind, &packet))
}

fn ethernet(to: Mac, from: Mac, kind: u16, packet: &[u8]) -> Vec<u8> {
    let mut frame = Vec::with_capacity(14 + packet.len());
    frame.extend(to.0);
    frame.extend(from.0);
    frame.extend(kind.to_be_bytes());
    frame.extend(packet);
    frame
}

/// A whole packet of UDP.
fn ipv4(from: Ipv4Addr, to: Ipv4Addr, mut body: Vec<u8>) -> Option<Vec<u8>> {
    let total = u16::try_from(body.len() + 20).ok()?;
    let mut pseudo = [from.octets(), to.octets()].concat();
    pseudo.extend([0, 17]);
    pseudo.extend(&body[4..6]);
    seal(&pseudo, &mut body, 6);
    let mut packet = vec![0x45, 0];
    packet.extend(total.to_be_bytes());
    packet.extend([0, 0, 0x40, 0, 64, 17, 0, 0]);
    packet.extend(from.octets());
    packet.extend(to.octets());
    let sum = finish(sum(&packet));
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    packet.extend(body);
    Some(packet)
}

/// A packet whose checksum is at `at` in its body.
fn ipv6(from: Ipv6Addr, to: Ipv6Addr, next: u8, hops: u8, mut body: Vec<u8>, at: usize) -> Vec<u8> {
    let len = u16::try_from(body.len()).unwrap_or(u16::MAX);
    let mut pseudo = [from.octets(), to.octets()].concat();
    pseudo.extend(u32::from(len).to_be_bytes());
    pseudo.extend([0, 0, 0, next]);
    seal(&pseudo, &mut body, at);
    let mut packet = vec![0x60, 0, 0, 0];
    packet.extend(len.to_be_bytes());
    packet.extend([next, hops]);
    packet.extend(from.octets());
    packet.extend(to.octets());
    packet.extend(body);
    packet
}

fn seal(pseudo: &[u8], body: &mut [u8], at: usize) {
    let total = sum(pseudo) + sum(body);
    let value = match finish(total) {
        // Of UDP, 0 means none.
        0 => 0xffff,
        value => value,
    };
    if let Some(place) = body.get_mut(at..at + 2) {
        place.copy_from_slice(&value.to_be_bytes());
    }
}

/// The sum of a checksum (RFC 1071), of fewer than 2^48 bytes.
fn sum(bytes: &[u8]) -> u64 {
    let (words, rest) = bytes.as_chunks::<2>();
    let total: u64 = words
        .iter()
        .map(|word| u64::from(u16::from_be_bytes(*word)))
        .sum();
    total + rest.first().map_or(0, |last| u64::from(*last) << 8)
}

fn finish(mut total: u64) -> u16 {
    while total > 0xffff {
        total = (total & 0xffff) + (total >> 16);
    }
    !(total as u16)
}

#[cfg(test)]
pub(crate) mod testing;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::{Content, Frame, Upper};

    const A: Mac = Mac([2, 0, 0, 0, 0, 1]);
    const B: Mac = Mac([2, 0, 0, 0, 0, 2]);

    fn whole(frame: &[u8]) -> Frame<'_> {
        Frame::parse(frame, frame.len()).unwrap()
    }

    #[test]
    fn an_arp_question_gets_its_answer() {
        let question = Arp {
            operation: ArpOperation::Request,
            sender: (A, Ipv4Addr::new(10, 0, 0, 1)),
            target: (Mac([0; 6]), Ipv4Addr::new(10, 0, 0, 2)),
        };
        let frame = arp(&question, B).unwrap();
        let read = whole(&frame);
        let Content::Arp(answer) = read.content else {
            panic!("{read:?}")
        };
        assert_eq!((read.source, read.destination), (B, A));
        assert_eq!(answer.operation, ArpOperation::Reply);
        assert_eq!(answer.sender, (B, question.target.1));
        assert_eq!(answer.target, question.sender);
        assert_eq!(arp(&answer, B), None);
    }

    #[test]
    fn datagrams_have_right_checksums_over_both_protocols() {
        for (from, to) in [("10.0.0.1", "10.0.0.2"), ("fd00::1", "fd00::2")] {
            let (from, to) = (from.parse().unwrap(), to.parse().unwrap());
            let ends = Ends {
                from_mac: A,
                to_mac: B,
                from: (from, 53),
                to: (to, 4000),
            };
            for data in [&b"odd"[..], b"even", b""] {
                let frame = udp(&ends, data).unwrap();
                let Upper::Udp(read) = whole(&frame).ip().unwrap().upper else {
                    panic!("no UDP")
                };
                assert_eq!((read.source, read.destination, read.data), (53, 4000, data));
                let addresses = if from.is_ipv4() { 26..34 } else { 22..54 };
                let start = if from.is_ipv4() { 34 } else { 54 };
                let len = u32::try_from(data.len() + 8).unwrap().to_be_bytes();
                let pseudo = [&frame[addresses], &len, &[0, 0, 0, 17]].concat();
                assert_eq!(finish(sum(&pseudo) + sum(&frame[start..])), 0);
            }
        }
    }

    #[test]
    fn a_neighbour_is_told_with_a_checksum_that_adds_up() {
        let (asker, target) = ((A, "fd00::1".parse().unwrap()), "fd00::2".parse().unwrap());
        let frame = neighbour(asker, target, B);
        let read = whole(&frame);
        let Upper::Icmp6(icmp) = read.ip().unwrap().upper else {
            panic!("{read:?}")
        };
        assert_eq!((icmp.kind, read.ip().unwrap().hops), (136, 255));
        let mut pseudo = frame[22..54].to_vec();
        pseudo.extend([0, 0, 0, 32, 0, 0, 0, 58]);
        assert_eq!(finish(sum(&pseudo) + sum(&frame[54..])), 0);
    }
}
