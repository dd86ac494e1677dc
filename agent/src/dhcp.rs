//! DHCP, as far as a guest needs it to ask for its IPv4 address (RFC 2131, RFC 2132): messages, without
//! a socket.

use alloc::vec::Vec;
use core::net::{IpAddr, Ipv4Addr};

use crate::spec::{Address, Network};

/// Where servers listen.
pub const SERVER_PORT: u16 = 67;
/// Where we do.
pub const CLIENT_PORT: u16 = 68;
/// The longest message that a server may send unasked (RFC 2131, section 2).
pub const MAX_LEN: usize = 576;

const REQUEST: u8 = 1;
const REPLY: u8 = 2;
/// We have no address yet: answers are to be sent to all.
const FLAG_BROADCAST: [u8; 2] = [0x80, 0];
const COOKIE: [u8; 4] = [99, 130, 83, 99];
/// Bytes before the options, with the cookie.
const FIXED_LEN: usize = 240;
/// A relay may drop what is shorter (RFC 1542).
const MIN_LEN: usize = 300;

const PAD: u8 = 0;
const SUBNET_MASK: u8 = 1;
const ROUTER: u8 = 3;
const DNS: u8 = 6;
const HOST_NAME: u8 = 12;
const MTU: u8 = 26;
const ADDRESS: u8 = 50;
const LEASE: u8 = 51;
const MESSAGE: u8 = 53;
const SERVER: u8 = 54;
const PARAMETERS: u8 = 55;
const END: u8 = 255;

const DISCOVER: u8 = 1;
const OFFER: u8 = 2;
const ASK: u8 = 3;
const ACK: u8 = 5;
const NAK: u8 = 6;

/// The smallest MTU that is taken over.
const MIN_MTU: u16 = 576;
/// What a lease without a time is worth, in seconds.
const DEFAULT_LEASE: u32 = 3600;

/// Who asks.
#[derive(Debug, Clone, Copy)]
pub struct Client<'a> {
    /// The interface's address.
    pub mac: [u8; 6],
    /// A number by chance, by which answers are known.
    pub transaction: u32,
    /// The guest's name.
    pub hostname: &'a str,
}

/// What a server offers or gives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Offer {
    /// The address.
    pub address: Ipv4Addr,
    /// The server.
    pub server: Ipv4Addr,
}

/// What a server has given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    /// What to set up.
    pub network: Network,
    /// For how many seconds.
    pub seconds: u32,
    /// The offer that it came of.
    pub offer: Offer,
}

/// An answer to us.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// We can have this.
    Offer(Offer),
    /// We have it.
    Lease(Lease),
    /// We can't.
    No,
}

impl Client<'_> {
    /// Who has an address for us?
    pub fn discover(&self) -> Vec<u8> {
        self.message(DISCOVER, None, None)
    }

    /// We want that one. `held` is the address that we have already, if it is to be prolonged.
    pub fn request(&self, offer: &Offer, held: Option<Ipv4Addr>) -> Vec<u8> {
        self.message(ASK, Some(offer), held)
    }

    fn message(&self, kind: u8, offer: Option<&Offer>, held: Option<Ipv4Addr>) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(MIN_LEN);
        // Ethernet, addresses of six bytes, no relay.
        bytes.extend_from_slice(&[REQUEST, 1, 6, 0]);
        bytes.extend_from_slice(&self.transaction.to_be_bytes());
        bytes.extend_from_slice(&[0; 2]);
        bytes.extend_from_slice(if held.is_some() {
            &[0; 2]
        } else {
            &FLAG_BROADCAST
        });
        let own = held.unwrap_or(Ipv4Addr::UNSPECIFIED);
        bytes.extend_from_slice(&own.octets());
        bytes.resize(28, 0);
        bytes.extend_from_slice(&self.mac);
        bytes.resize(FIXED_LEN - COOKIE.len(), 0);
        bytes.extend_from_slice(&COOKIE);
        bytes.extend_from_slice(&[MESSAGE, 1, kind]);
        // Who prolongs names its address above, and no server (section 4.3.2).
        if let (Some(offer), None) = (offer, held) {
            option(&mut bytes, ADDRESS, &offer.address.octets());
            option(&mut bytes, SERVER, &offer.server.octets());
        }
        option(&mut bytes, HOST_NAME, self.hostname.as_bytes());
        option(
            &mut bytes,
            PARAMETERS,
            &[SUBNET_MASK, ROUTER, DNS, MTU, LEASE],
        );
        bytes.push(END);
        bytes.resize(bytes.len().max(MIN_LEN), PAD);
        bytes
    }

    /// What `bytes` answer, if they are an answer to us.
    pub fn answer(&self, bytes: &[u8]) -> Option<Answer> {
        let ours = bytes.first() == Some(&REPLY)
            && bytes.get(4..8)? == self.transaction.to_be_bytes()
            && bytes.get(28..34)? == self.mac
            && bytes.get(FIXED_LEN - COOKIE.len()..FIXED_LEN)? == COOKIE;
        if !ours {
            return None;
        }
        let options = Options(bytes.get(FIXED_LEN..)?);
        let address = Ipv4Addr::from(*bytes.get(16..)?.first_chunk::<4>()?);
        let [kind] = *options.find(MESSAGE)? else {
            return None;
        };
        if kind == NAK {
            return Some(Answer::No);
        }
        let server = options.addresses(SERVER).next()?;
        let offer = Offer { address, server };
        match kind {
            OFFER => Some(Answer::Offer(offer)),
            ACK => Some(Answer::Lease(options.lease(offer)?)),
            _ => None,
        }
    }
}

/// An option is at most 255 bytes long; a hostname is shorter.
fn option(bytes: &mut Vec<u8>, kind: u8, value: &[u8]) {
    if let (Ok(len @ 1..), false) = (u8::try_from(value.len()), value.is_empty()) {
        bytes.extend_from_slice(&[kind, len]);
        bytes.extend_from_slice(value);
    }
}

#[derive(Clone, Copy)]
struct Options<'a>(&'a [u8]);

impl<'a> Options<'a> {
    fn find(self, wanted: u8) -> Option<&'a [u8]> {
        let mut rest = self.0;
        loop {
            let (kind, after) = rest.split_first()?;
            match *kind {
                END => return None,
                PAD => rest = after,
                kind => {
                    let (len, after) = after.split_first()?;
                    let value = after.get(..usize::from(*len))?;
                    if kind == wanted {
                        return Some(value);
                    }
                    rest = after.get(usize::from(*len)..)?;
                }
            }
        }
    }

    fn addresses(self, wanted: u8) -> impl Iterator<Item = Ipv4Addr> {
        let (words, _) = self.find(wanted).unwrap_or_default().as_chunks::<4>();
        words.iter().map(|word| Ipv4Addr::from(*word))
    }

    fn lease(self, offer: Offer) -> Option<Lease> {
        let usable = !offer.address.is_unspecified() && !offer.address.is_multicast();
        let mask = self.addresses(SUBNET_MASK).next();
        let prefix = mask.map_or(24, |mask| mask.to_bits().leading_ones() as u8);
        let address = Address {
            ip: offer.address.into(),
            prefix,
        };
        let number = |kind| {
            let bytes = self.find(kind)?.first_chunk::<4>()?;
            Some(u32::from_be_bytes(*bytes))
        };
        let mtu = self.find(MTU).and_then(|bytes| bytes.first_chunk::<2>());
        let mtu = mtu.map(|bytes| u16::from_be_bytes(*bytes));
        usable.then(|| Lease {
            network: Network {
                mtu: mtu.filter(|mtu| *mtu >= MIN_MTU),
                addresses: [address].into(),
                gateways: self.addresses(ROUTER).take(1).map(IpAddr::from).collect(),
                dns: self.addresses(DNS).map(IpAddr::from).collect(),
                ..Network::default()
            },
            seconds: number(LEASE).unwrap_or(DEFAULT_LEASE),
            offer,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const CLIENT: Client<'_> = Client {
        mac: [2, 0, 0, 0, 0, 1],
        transaction: 0x1234_5678,
        hostname: "yard",
    };

    /// A server's answer of this kind with more options.
    fn reply(kind: u8, options: &[u8]) -> Vec<u8> {
        let mut bytes = CLIENT.discover();
        bytes[0] = REPLY;
        bytes[16..20].copy_from_slice(&[10, 0, 2, 15]);
        bytes.truncate(FIXED_LEN);
        bytes.extend_from_slice(&[MESSAGE, 1, kind, PAD, SERVER, 4, 10, 0, 2, 2]);
        bytes.extend_from_slice(options);
        bytes.push(END);
        bytes
    }

    const OFFERED: Offer = Offer {
        address: Ipv4Addr::new(10, 0, 2, 15),
        server: Ipv4Addr::new(10, 0, 2, 2),
    };

    #[test]
    fn what_is_asked_has_the_form_of_the_rfc() {
        let discover = CLIENT.discover();
        assert_eq!(discover.len(), MIN_LEN);
        assert_eq!(discover[..8], [1, 1, 6, 0, 0x12, 0x34, 0x56, 0x78]);
        assert_eq!(discover[10..12], FLAG_BROADCAST);
        assert_eq!(discover[28..34], CLIENT.mac);
        let options = Options(&discover[FIXED_LEN..]);
        assert_eq!(options.find(MESSAGE), Some(&[DISCOVER][..]));
        assert_eq!(options.find(HOST_NAME), Some(&b"yard"[..]));
        let request = CLIENT.request(&OFFERED, None);
        let options = Options(&request[FIXED_LEN..]);
        assert_eq!(options.addresses(ADDRESS).next(), Some(OFFERED.address));
        assert_eq!(options.addresses(SERVER).next(), Some(OFFERED.server));
        let longer = CLIENT.request(&OFFERED, Some(OFFERED.address));
        assert_eq!(longer[12..16], [10, 0, 2, 15]);
        assert_eq!(Options(&longer[FIXED_LEN..]).find(ADDRESS), None);
    }

    #[test]
    fn what_is_given_is_understood() {
        assert_eq!(
            CLIENT.answer(&reply(OFFER, &[])),
            Some(Answer::Offer(OFFERED))
        );
        assert_eq!(CLIENT.answer(&reply(NAK, &[])), Some(Answer::No));
        let options = [
            &[SUBNET_MASK, 4, 255, 255, 240, 0][..],
            &[ROUTER, 8, 10, 0, 2, 2, 10, 0, 2, 3],
            &[DNS, 8, 10, 0, 2, 4, 10, 0, 2, 5],
            &[MTU, 2, 5, 120, LEASE, 4, 0, 0, 0, 60],
        ];
        let Some(Answer::Lease(lease)) = CLIENT.answer(&reply(ACK, &options.concat())) else {
            panic!("no lease");
        };
        assert_eq!(lease.seconds, 60);
        assert_eq!(lease.network.addresses[0].prefix, 20);
        assert_eq!(lease.network.gateways, [IpAddr::from([10, 0, 2, 2])]);
        assert_eq!(lease.network.dns.len(), 2);
        assert_eq!(lease.network.mtu, Some(1400));
    }

    #[test]
    fn what_is_for_others_is_passed_over() {
        let mut other = reply(ACK, &[]);
        other[33] = 2;
        assert_eq!(CLIENT.answer(&other), None);
        let mut other = reply(ACK, &[]);
        other[7] = 0;
        assert_eq!(CLIENT.answer(&other), None);
        assert_eq!(CLIENT.answer(&CLIENT.discover()), None);
    }

    proptest! {
        #[test]
        fn any_answer_is_understood_or_passed_over(
            options in proptest::collection::vec(any::<u8>(), 0..100),
            kind in any::<u8>(),
            cut in any::<prop::sample::Index>(),
        ) {
            let bytes = reply(kind, &options);
            let _ = CLIENT.answer(&bytes);
            let _ = CLIENT.answer(&bytes[..cut.index(bytes.len())]);
        }
    }
}
