//! Hardware addresses of Ethernet.

use std::fmt;
use std::net::Ipv6Addr;

/// A MAC address.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Mac(pub [u8; 6]);

impl Mac {
    /// Everybody on the segment.
    pub const BROADCAST: Self = Self([0xff; 6]);

    /// Whether it means several stations.
    pub fn is_group(self) -> bool {
        self.0[0] & 1 == 1
    }

    /// The group that the solicitations for `address` go to (RFC 2464, section 7).
    pub fn of_group(address: Ipv6Addr) -> Self {
        let [.., a, b, c, d] = address.octets();
        Self([0x33, 0x33, a, b, c, d])
    }

    /// The last half of the addresses that a station makes itself (RFC 4291, appendix A).
    pub fn interface_id(self) -> [u8; 8] {
        let mut id = [0, 0, 0, 0xff, 0xfe, 0, 0, 0];
        id[..3].copy_from_slice(&self.0[..3]);
        id[5..].copy_from_slice(&self.0[3..]);
        id[0] ^= 2;
        id
    }

    /// The address with which a station speaks on its own link.
    pub fn link_local(self) -> Ipv6Addr {
        with_prefix([0xfe, 0x80, 0, 0, 0, 0, 0, 0], self)
    }
}

/// The address that a station of this MAC address makes itself below a /64 prefix.
pub(crate) fn with_prefix(prefix: [u8; 8], mac: Mac) -> Ipv6Addr {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&prefix);
    bytes[8..].copy_from_slice(&mac.interface_id());
    bytes.into()
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, byte) in self.0.iter().enumerate() {
            let colon = if index == 0 { "" } else { ":" };
            write!(f, "{colon}{byte:02x}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_made_of_a_mac_are_those_of_the_standards() {
        let mac = Mac([2, 0, 0x5e, 0x10, 0x20, 0x30]);
        assert_eq!(mac.to_string(), "02:00:5e:10:20:30");
        assert_eq!(
            mac.link_local(),
            "fe80::5eff:fe10:2030".parse::<Ipv6Addr>().unwrap()
        );
        let group = Mac::of_group("ff02::1:ff10:2030".parse().unwrap());
        assert_eq!(group.to_string(), "33:33:ff:10:20:30");
    }
}
