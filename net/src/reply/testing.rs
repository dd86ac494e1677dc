//! Frames by hand, for tests. Checksums are left out: nobody here checks them.

use std::net::{Ipv4Addr, Ipv6Addr};

use crate::Mac;

pub(crate) fn eth(to: Mac, from: Mac, kind: u16, packet: &[u8]) -> Vec<u8> {
    super::ethernet(to, from, kind, packet)
}

pub(crate) fn ipv4(from: &str, to: &str, protocol: u8, body: &[u8]) -> Vec<u8> {
    let (from, to): (Ipv4Addr, Ipv4Addr) = (from.parse().unwrap(), to.parse().unwrap());
    let mut packet = vec![0x45, 0];
    packet.extend(u16::try_from(body.len() + 20).unwrap().to_be_bytes());
    packet.extend([0, 0, 0, 0, 64, protocol, 0, 0]);
    packet.extend(from.octets());
    packet.extend(to.octets());
    packet.extend(body);
    packet
}

pub(crate) fn ipv6(from: &str, to: &str, next: u8, body: &[u8]) -> Vec<u8> {
    let (from, to): (Ipv6Addr, Ipv6Addr) = (from.parse().unwrap(), to.parse().unwrap());
    let mut packet = vec![0x60, 0, 0, 0];
    packet.extend(u16::try_from(body.len()).unwrap().to_be_bytes());
    packet.extend([next, 255]);
    packet.extend(from.octets());
    packet.extend(to.octets());
    packet.extend(body);
    packet
}

pub(crate) fn tcp(from: u16, to: u16, flags: u8) -> Vec<u8> {
    let mut header = [from.to_be_bytes(), to.to_be_bytes()].concat();
    header.extend([0, 0, 0, 1, 0, 0, 0, 1, 0x50, flags, 1, 0, 0, 0, 0, 0]);
    header
}

pub(crate) fn udp(from: u16, to: u16, data: &[u8]) -> Vec<u8> {
    let len = u16::try_from(data.len() + 8).unwrap();
    let mut datagram = [from.to_be_bytes(), to.to_be_bytes(), len.to_be_bytes()].concat();
    datagram.extend([0, 0]);
    datagram.extend(data);
    datagram
}

pub(crate) fn icmp(kind: u8, code: u8, body: &[u8]) -> Vec<u8> {
    [&[kind, code, 0, 0], body].concat()
}
