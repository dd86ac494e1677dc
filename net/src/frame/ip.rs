//! IPv4 (RFC 791) and IPv6 (RFC 8200) with what is between their headers and the next protocol.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::{FrameError, Upper};

/// A packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IpPacket<'a> {
    /// Whom it says that it is from.
    pub source: IpAddr,
    /// Whom it is for.
    pub destination: IpAddr,
    /// How far it may go still.
    pub hops: u8,
    /// Whether it is a whole packet.
    pub part: Part,
    /// It has options (IPv4) or extension headers (IPv6) beside the fragment header.
    pub options: bool,
    /// It says which way it is to go: a source route, or a routing header.
    pub routed: bool,
    /// What it carries.
    pub upper: Upper<'a>,
    /// The number of the protocol that it carries.
    pub protocol: u8,
}

/// A packet, or a fragment of one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// All of it.
    Whole,
    /// Its beginning, with its headers.
    First,
    /// Something behind that.
    Later,
}

/// More extension headers than anybody sends.
const MAX_EXTENSIONS: usize = 8;
/// The longest chain of them that is read.
const MAX_CHAIN: usize = 128;

const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const AUTHENTICATION: u8 = 51;
const DESTINATION: u8 = 60;
const MOBILITY: u8 = 135;
const HIP: u8 = 139;
const SHIM6: u8 = 140;
pub(super) const NO_NEXT: u8 = 59;

impl<'a> IpPacket<'a> {
    /// Reads IPv4; `len` is what the frame has for it.
    pub(super) fn parse_v4(bytes: &'a [u8], len: usize) -> Result<Self, FrameError> {
        let short = FrameError::Short("IPv4 header");
        let (fixed, _) = bytes.split_first_chunk::<20>().ok_or(short)?;
        if fixed[0] >> 4 != 4 {
            return Err(FrameError::Wrong("IPv4 version"));
        }
        let header = usize::from(fixed[0] & 15) * 4;
        let total = usize::from(u16::from_be_bytes([fixed[2], fixed[3]]));
        if header < 20 || total < header {
            return Err(FrameError::Wrong("IPv4 header length"));
        }
        if total > len {
            return Err(FrameError::Short("IPv4 header"));
        }
        let options = bytes.get(20..header).ok_or(short)?;
        let place = u16::from_be_bytes([fixed[6], fixed[7]]);
        let part = match (place & 0x1fff, place & 0x2000) {
            (0, 0) => Part::Whole,
            (0, _) => Part::First,
            _ => Part::Later,
        };
        let end = total.min(bytes.len());
        let body = bytes.get(header..end).unwrap_or_default();
        let address = |at: usize| {
            let [a, b, c, d] = fixed[at..].first_chunk().copied().unwrap_or_default();
            IpAddr::from(Ipv4Addr::new(a, b, c, d))
        };
        let protocol = fixed[9];
        Ok(Self {
            source: address(12),
            destination: address(16),
            hops: fixed[8],
            part,
            options: !options.is_empty(),
            routed: has_source_route(options)?,
            upper: Upper::parse(protocol, part, body, total - header)?,
            protocol,
        })
    }

    /// Reads IPv6; `len` is what the frame has for it.
    pub(super) fn parse_v6(bytes: &'a [u8], len: usize) -> Result<Self, FrameError> {
        let (fixed, rest) = bytes
            .split_first_chunk::<40>()
            .ok_or(FrameError::Short("IPv6 header"))?;
        if fixed[0] >> 4 != 6 {
            return Err(FrameError::Wrong("IPv6 version"));
        }
        let total = usize::from(u16::from_be_bytes([fixed[4], fixed[5]]));
        if total > len - 40 {
            return Err(FrameError::Short("IPv6 header"));
        }
        let rest = rest.get(..total).unwrap_or(rest);
        let chain = Chain::walk(fixed[6], rest, total)?;
        let address = |at: usize| {
            let bytes: [u8; 16] = fixed[at..].first_chunk().copied().unwrap_or_default();
            IpAddr::from(Ipv6Addr::from(bytes))
        };
        let body = rest.get(chain.len..).unwrap_or_default();
        Ok(Self {
            source: address(8),
            destination: address(24),
            hops: fixed[7],
            part: chain.part,
            options: chain.options,
            routed: chain.routed,
            upper: Upper::parse(chain.protocol, chain.part, body, total - chain.len)?,
            protocol: chain.protocol,
        })
    }

    /// Whether it is IPv6.
    pub fn is_v6(&self) -> bool {
        self.source.is_ipv6()
    }
}

/// Whether IPv4 options have a loose or strict source route.
fn has_source_route(mut options: &[u8]) -> Result<bool, FrameError> {
    const END: u8 = 0;
    const NOTHING: u8 = 1;
    let mut routed = false;
    loop {
        options = match *options {
            [] | [END, ..] => return Ok(routed),
            [NOTHING, ref rest @ ..] => rest,
            [kind, len, ..] if len >= 2 => {
                routed |= kind == 131 || kind == 137;
                let rest = options.get(usize::from(len)..);
                rest.ok_or(FrameError::Wrong("IPv4 option"))?
            }
            _ => return Err(FrameError::Wrong("IPv4 option")),
        };
    }
}

/// The extension headers of an IPv6 packet.
struct Chain {
    /// Their length.
    len: usize,
    /// What follows them.
    protocol: u8,
    part: Part,
    options: bool,
    routed: bool,
}

impl Chain {
    /// Walks along the headers in `bytes`, of which the packet has `total`.
    fn walk(first: u8, bytes: &[u8], total: usize) -> Result<Self, FrameError> {
        let mut chain = Self {
            len: 0,
            protocol: first,
            part: Part::Whole,
            options: false,
            routed: false,
        };
        for _ in 0..=MAX_EXTENSIONS {
            let header = bytes.get(chain.len..).unwrap_or_default();
            let Some(len) = chain.extension(header)? else {
                return Ok(chain);
            };
            chain.protocol = header[0];
            chain.len += len;
            if chain.len > total.min(bytes.len()) || chain.len > MAX_CHAIN {
                return Err(FrameError::Short("IPv6 extension header"));
            }
            if chain.part == Part::Later {
                // What follows is from the middle of something.
                return Ok(chain);
            }
        }
        Err(FrameError::Wrong("number of IPv6 extension headers"))
    }

    /// Takes note of the extension header that `header` begins with; its length. `None` if what
    /// comes is none.
    fn extension(&mut self, header: &[u8]) -> Result<Option<usize>, FrameError> {
        let units = match self.protocol {
            HOP_BY_HOP | ROUTING | FRAGMENT | AUTHENTICATION | DESTINATION | MOBILITY | HIP
            | SHIM6 => match *header {
                [_, len, ..] => usize::from(len),
                _ => return Err(FrameError::Short("IPv6 extension header")),
            },
            _ => return Ok(None),
        };
        match self.protocol {
            HOP_BY_HOP if self.len > 0 => return Err(FrameError::Wrong("order of IPv6 headers")),
            FRAGMENT if self.part != Part::Whole => {
                return Err(FrameError::Wrong("number of IPv6 fragment headers"));
            }
            FRAGMENT => {
                let place = match *header {
                    [_, _, high, low, ..] => u16::from_be_bytes([high, low]),
                    _ => return Err(FrameError::Short("IPv6 extension header")),
                };
                self.part = match (place & 0xfff8, place & 1) {
                    // RFC 6946: an atomic fragment is the whole packet.
                    (0, 0) => {
                        self.options = true;
                        Part::Whole
                    }
                    (0, _) => Part::First,
                    _ => Part::Later,
                };
                return Ok(Some(8));
            }
            ROUTING => self.routed = true,
            _ => {}
        }
        self.options = true;
        Ok(Some(match self.protocol {
            AUTHENTICATION => (units + 2) * 4,
            _ => (units + 1) * 8,
        }))
    }
}
