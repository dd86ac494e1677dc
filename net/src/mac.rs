//! Hardware addresses of Ethernet.

use std::fmt;
use std::net::Ipv6Addr;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

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

/// A text that is no MAC address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a MAC address: write six bytes, such as 02:00:00:12:34:56")]
pub struct MacError(pub String);

impl FromStr for Mac {
    type Err = MacError;

    fn from_str(text: &str) -> Result<Self, MacError> {
        let wrong = || MacError(text.to_owned());
        let mut bytes = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut bytes {
            let part = parts.next().filter(|part| part.len() == 2);
            let part = part.filter(|part| part.bytes().all(|digit| digit.is_ascii_hexdigit()));
            *byte = part
                .and_then(|part| u8::from_str_radix(part, 16).ok())
                .ok_or_else(wrong)?;
        }
        match parts.next() {
            None => Ok(Self(bytes)),
            Some(_) => Err(wrong()),
        }
    }
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

impl Serialize for Mac {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Mac {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = <std::borrow::Cow<'_, str>>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_and_bytes_are_the_same_address() {
        let mac: Mac = "02:00:5e:aB:0c:ff".parse().unwrap();
        assert_eq!(mac.to_string(), "02:00:5e:ab:0c:ff");
        assert!(!mac.is_group() && Mac::BROADCAST.is_group());
        for bad in [
            "",
            "02:00",
            "02:00:5e:ab:0c:ff:00",
            "2:0:5e:ab:c:f",
            "02-00-5e-ab-0c-ff",
            "02:00:5e:ab:0c:+f",
        ] {
            assert!(bad.parse::<Mac>().is_err(), "{bad}");
        }
    }

    #[test]
    fn addresses_made_of_a_mac_are_those_of_the_standards() {
        let mac: Mac = "02:00:5e:10:20:30".parse().unwrap();
        assert_eq!(
            mac.link_local(),
            "fe80::5eff:fe10:2030".parse::<Ipv6Addr>().unwrap()
        );
        let group = Mac::of_group("ff02::1:ff10:2030".parse().unwrap());
        assert_eq!(group.to_string(), "33:33:ff:10:20:30");
    }
}
