//! What the guest's kernel is told to set its interface up, rtnetlink(7): the messages and their
//! answers, without a socket.
//!
//! All messages go in one call. The kernel does them in order and answers each, and one that fails
//! does not keep it from the others.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::net::{IpAddr, Ipv4Addr};

use crate::spec::{Address, Network};

// linux/netlink.h
const NLMSG_ERROR: u16 = 2;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLM_F_REPLACE: u16 = 0x100;
const NLM_F_CREATE: u16 = 0x400;
/// `struct nlmsghdr`
const HEADER_LEN: usize = 16;

// linux/rtnetlink.h
const RTM_NEWLINK: u16 = 16;
const RTM_NEWADDR: u16 = 20;
const RTM_NEWROUTE: u16 = 24;
const RT_TABLE_MAIN: u8 = 254;
const RTPROT_BOOT: u8 = 3;
const RTN_UNICAST: u8 = 1;
const RTNH_F_ONLINK: u32 = 4;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;

// linux/if.h, linux/if_link.h, linux/if_addr.h
const IFF_UP: u32 = 1;
const IFLA_MTU: u16 = 4;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_BROADCAST: u16 = 4;
/// Nobody else has it: it can be used at once.
const IFA_F_NODAD: u8 = 2;

const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;

/// Messages that were made, and what each of them is for.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Requests {
    bytes: Vec<u8>,
    purposes: Vec<String>,
}

impl Requests {
    /// Those that set the interface `index` up as `network` says.
    pub fn new(index: u32, network: &Network) -> Self {
        let mut requests = Self::default();
        requests.link(index, network.mtu);
        for address in &network.addresses {
            requests.address(index, address);
        }
        for gateway in &network.gateways {
            let on_link = network.addresses.iter().any(|own| own.reaches(*gateway));
            requests.default_route(index, *gateway, on_link);
        }
        requests
    }

    /// All of them, for the kernel.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// How many answers there will be.
    pub fn count(&self) -> usize {
        self.purposes.len()
    }

    /// Up, with this MTU.
    fn link(&mut self, index: u32, mtu: Option<u16>) {
        let purpose = String::from("bring the network interface up");
        self.message(RTM_NEWLINK, 0, purpose, |body| {
            // struct ifinfomsg: family, padding, type, index, flags, mask of flags
            body.extend_from_slice(&[0; 4]);
            body.extend_from_slice(&index.to_ne_bytes());
            body.extend_from_slice(&IFF_UP.to_ne_bytes());
            body.extend_from_slice(&IFF_UP.to_ne_bytes());
            if let Some(mtu) = mtu {
                attribute(body, IFLA_MTU, &u32::from(mtu).to_ne_bytes());
            }
        });
    }

    fn address(&mut self, index: u32, address: &Address) {
        let purpose = format!("give it the address {}/{}", address.ip, address.prefix);
        let flags = NLM_F_CREATE | NLM_F_REPLACE;
        self.message(RTM_NEWADDR, flags, purpose, |body| {
            // struct ifaddrmsg: family, prefix, flags, scope, index
            body.extend_from_slice(&[family(address.ip), address.prefix, IFA_F_NODAD, 0]);
            body.extend_from_slice(&index.to_ne_bytes());
            let bytes = octets(address.ip);
            attribute(body, IFA_LOCAL, &bytes);
            attribute(body, IFA_ADDRESS, &bytes);
            if let IpAddr::V4(ip) = address.ip
                && let Some(host_bits) = u32::MAX.checked_shr(address.prefix.into())
                // A network of two has nobody else to tell (RFC 3021).
                && address.prefix < 31
            {
                let broadcast = Ipv4Addr::from_bits(ip.to_bits() | host_bits);
                attribute(body, IFA_BROADCAST, &broadcast.octets());
            }
        });
    }

    fn default_route(&mut self, index: u32, gateway: IpAddr, on_link: bool) {
        let purpose = format!("route through {gateway}");
        let flags = NLM_F_CREATE | NLM_F_REPLACE;
        self.message(RTM_NEWROUTE, flags, purpose, |body| {
            // struct rtmsg: family, lengths of destination and source, TOS, table, protocol, scope,
            // type, flags
            let (table, protocol) = (RT_TABLE_MAIN, RTPROT_BOOT);
            body.extend_from_slice(&[family(gateway), 0, 0, 0, table, protocol, 0, RTN_UNICAST]);
            let flags = if on_link { 0 } else { RTNH_F_ONLINK };
            body.extend_from_slice(&flags.to_ne_bytes());
            attribute(body, RTA_GATEWAY, &octets(gateway));
            attribute(body, RTA_OIF, &index.to_ne_bytes());
        });
    }

    /// Appends a message; its sequence number is its place, from 0 on.
    fn message(&mut self, kind: u16, flags: u16, purpose: String, fill: impl FnOnce(&mut Vec<u8>)) {
        let mut body = Vec::new();
        fill(&mut body);
        // A few dozen bytes.
        let len = (HEADER_LEN + body.len()) as u32;
        let flags = flags | NLM_F_REQUEST | NLM_F_ACK;
        self.bytes.extend_from_slice(&len.to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(&flags.to_ne_bytes());
        let sequence = self.purposes.len() as u32;
        self.bytes.extend_from_slice(&sequence.to_ne_bytes());
        self.bytes.extend_from_slice(&[0; 4]);
        self.bytes.extend_from_slice(&body);
        self.purposes.push(purpose);
    }

    /// What of this failed, by the kernel's `answers`, with its number. Whatever is no answer to
    /// one of the messages is passed over.
    pub fn failures<'a>(&'a self, answers: &'a [u8]) -> impl Iterator<Item = (&'a str, i32)> {
        Answers(answers).filter_map(|(sequence, error)| {
            let purpose = self.purposes.get(usize::try_from(sequence).ok()?)?;
            (error != 0).then_some((purpose.as_str(), error.wrapping_neg()))
        })
    }
}

/// How many answers there are in what the kernel has sent.
pub fn count_answers(answers: &[u8]) -> usize {
    Answers(answers).count()
}

/// The sequence number and the error of each answer; 0 for none.
struct Answers<'a>(&'a [u8]);

impl Iterator for Answers<'_> {
    type Item = (u32, i32);

    fn next(&mut self) -> Option<(u32, i32)> {
        loop {
            let message = self.0;
            let len = u32_at(message, 0)? as usize;
            let body = message.get(HEADER_LEN..len)?;
            self.0 = message.get(len.next_multiple_of(4)..).unwrap_or_default();
            let kind = message.get(4..6)?;
            if kind == NLMSG_ERROR.to_ne_bytes() {
                return Some((u32_at(message, 8)?, u32_at(body, 0)?.cast_signed()));
            }
        }
    }
}

fn u32_at(bytes: &[u8], offset: usize) -> Option<u32> {
    let bytes = bytes.get(offset..)?.first_chunk()?;
    Some(u32::from_ne_bytes(*bytes))
}

fn family(ip: IpAddr) -> u8 {
    if ip.is_ipv4() { AF_INET } else { AF_INET6 }
}

fn octets(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}

/// `struct rtattr` and its value, which here are whole words.
fn attribute(body: &mut Vec<u8>, kind: u16, value: &[u8]) {
    let len = (4 + value.len()) as u16;
    body.extend_from_slice(&len.to_ne_bytes());
    body.extend_from_slice(&kind.to_ne_bytes());
    body.extend_from_slice(value);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn network() -> Network {
        let address = |ip: &str, prefix| Address {
            ip: ip.parse().unwrap(),
            prefix,
        };
        Network {
            mtu: Some(1400),
            addresses: vec![address("10.0.2.15", 24), address("fd00::15", 64)],
            gateways: vec!["10.0.2.2".parse().unwrap(), "fe80::1".parse().unwrap()],
            ..Network::default()
        }
    }

    fn answer(sequence: u32, kind: u16, error: i32) -> Vec<u8> {
        let mut bytes = 36_u32.to_ne_bytes().to_vec();
        bytes.extend_from_slice(&kind.to_ne_bytes());
        bytes.extend_from_slice(&[0; 2]);
        bytes.extend_from_slice(&sequence.to_ne_bytes());
        bytes.extend_from_slice(&[0; 4]);
        bytes.extend_from_slice(&error.to_ne_bytes());
        bytes.extend_from_slice(&[0; 16]);
        bytes
    }

    #[test]
    fn each_message_is_as_long_as_it_says() {
        let requests = Requests::new(2, &network());
        assert_eq!(requests.count(), 5);
        let mut rest = requests.bytes();
        let mut kinds = Vec::new();
        while !rest.is_empty() {
            kinds.push(u16::from_ne_bytes([rest[4], rest[5]]));
            assert_eq!(u32_at(rest, 8), Some(kinds.len() as u32 - 1));
            rest = &rest[u32_at(rest, 0).unwrap() as usize..];
        }
        assert_eq!(kinds, [16, 20, 20, 24, 24]);
    }

    #[test]
    fn an_address_comes_with_its_broadcast_address() {
        let requests = Requests::new(2, &network());
        let has = |ip: [u8; 4]| requests.bytes().windows(4).any(|word| word == ip);
        assert!(has([10, 0, 2, 15]) && has([10, 0, 2, 255]));
    }

    #[test]
    fn a_gateway_outside_of_all_networks_is_said_to_be_on_the_link() {
        let flags = |gateway: &str| {
            let mut network = network();
            network.gateways = vec![gateway.parse().unwrap()];
            let requests = Requests::new(2, &network);
            let bytes = requests.bytes();
            let route = &bytes[bytes.len() - 44..];
            u32_at(route, HEADER_LEN + 8).unwrap()
        };
        assert_eq!(flags("10.0.2.2"), 0);
        assert_eq!(flags("10.0.3.2"), RTNH_F_ONLINK);
    }

    #[test]
    fn failures_are_told_with_what_they_are_of() {
        let requests = Requests::new(2, &network());
        let answers = [
            answer(0, NLMSG_ERROR, 0),
            answer(9, NLMSG_ERROR, -1),
            answer(1, 99, -1),
            answer(2, NLMSG_ERROR, -22),
        ];
        let answers = answers.concat();
        let failures: Vec<_> = requests.failures(&answers).collect();
        assert_eq!(failures, [("give it the address fd00::15/64", 22)]);
        assert_eq!(count_answers(&answers), 3);
    }

    proptest! {
        #[test]
        fn any_bytes_are_looked_through(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let requests = Requests::new(2, &network());
            let failures = requests.failures(&bytes).count();
            prop_assert!(failures <= count_answers(&bytes));
        }
    }
}
