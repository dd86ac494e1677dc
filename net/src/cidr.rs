//! Ranges of addresses.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// All addresses that begin with the same bits. The bits behind them are zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Cidr {
    address: IpAddr,
    bits: u8,
}

/// A text that is no range of addresses.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CidrError {
    /// Not an address, or not a length.
    #[error("{0:?} is not a range of addresses: write for example 10.0.0.0/8 or fd00::/8")]
    Syntax(String),
    /// Bits behind the prefix.
    #[error("{given} has bits behind its prefix: {meant} is meant, perhaps")]
    HostBits {
        /// What was written.
        given: String,
        /// The range that has it.
        meant: Cidr,
    },
}

impl Cidr {
    /// The range of `bits` bits that has `address`; `None` if there are not so many.
    pub fn around(address: IpAddr, bits: u8) -> Option<Self> {
        let address = match address {
            IpAddr::V4(v4) if bits <= 32 => {
                let mask = u32::MAX.checked_shl(32 - u32::from(bits)).unwrap_or(0);
                Ipv4Addr::from(u32::from(v4) & mask).into()
            }
            IpAddr::V6(v6) if bits <= 128 => {
                let mask = u128::MAX.checked_shl(128 - u32::from(bits)).unwrap_or(0);
                Ipv6Addr::from(u128::from(v6) & mask).into()
            }
            _ => return None,
        };
        Some(Self { address, bits })
    }

    /// One address.
    pub fn of(address: IpAddr) -> Self {
        let bits = if address.is_ipv4() { 32 } else { 128 };
        Self { address, bits }
    }

    /// Its first address.
    pub fn address(self) -> IpAddr {
        self.address
    }

    /// The length of its prefix, in bits.
    pub fn bits(self) -> u8 {
        self.bits
    }

    /// Whether `address` is in it. An IPv4 address is in no range of IPv6.
    pub fn contains(self, address: IpAddr) -> bool {
        Self::around(address, self.bits).is_some_and(|range| range.address == self.address)
            && address.is_ipv4() == self.address.is_ipv4()
    }

    /// Whether an address is in both.
    pub fn overlaps(self, other: Self) -> bool {
        if self.bits <= other.bits {
            self.contains(other.address)
        } else {
            other.contains(self.address)
        }
    }
}

impl FromStr for Cidr {
    type Err = CidrError;

    fn from_str(text: &str) -> Result<Self, CidrError> {
        let wrong = || CidrError::Syntax(text.to_owned());
        let Some((address, bits)) = text.split_once('/') else {
            return text.parse().map(Self::of).map_err(|_| wrong());
        };
        let plain = !bits.is_empty() && bits.bytes().all(|digit| digit.is_ascii_digit());
        let bits = bits.parse().ok().filter(|_| plain).ok_or_else(wrong)?;
        let address = address.parse().map_err(|_| wrong())?;
        let range = Self::around(address, bits).ok_or_else(wrong)?;
        if range.address != address {
            return Err(CidrError::HostBits {
                given: text.to_owned(),
                meant: range,
            });
        }
        Ok(range)
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if *self == Self::of(self.address) {
            write!(f, "{}", self.address)
        } else {
            write!(f, "{}/{}", self.address, self.bits)
        }
    }
}

impl Serialize for Cidr {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Cidr {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = <std::borrow::Cow<'_, str>>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn cidr(text: &str) -> Cidr {
        text.parse().unwrap()
    }

    #[test]
    fn a_range_has_its_addresses_and_no_others() {
        let ten = cidr("10.0.0.0/8");
        assert!(ten.contains("10.255.0.1".parse().unwrap()));
        assert!(!ten.contains("11.0.0.0".parse().unwrap()));
        assert!(!ten.contains("::ffff:10.0.0.1".parse().unwrap()));
        let all: Cidr = cidr("0.0.0.0/0");
        assert!(all.contains("255.255.255.255".parse().unwrap()));
        assert!(!all.contains("::".parse().unwrap()));
        assert!(!cidr("::/0").contains("0.0.0.0".parse().unwrap()));
        assert!(cidr("fd00::/8").contains("fdff::1".parse().unwrap()));
        assert!(cidr("1.2.3.4").contains("1.2.3.4".parse().unwrap()));
    }

    #[test]
    fn what_is_wrong_is_told() {
        for bad in [
            "",
            "/",
            "10.0.0.0/",
            "10.0.0.0/33",
            "10.0.0/8",
            "::/129",
            "10.0.0.0/+8",
            "a/8",
            "10.0.0.0/8/8",
        ] {
            let error = bad.parse::<Cidr>().unwrap_err();
            assert!(matches!(error, CidrError::Syntax(_)), "{bad}: {error}");
        }
        let error = "10.1.2.3/8".parse::<Cidr>().unwrap_err().to_string();
        assert!(error.contains("10.0.0.0/8"), "{error}");
    }

    proptest! {
        #[test]
        fn ranges_overlap_if_an_end_of_one_is_in_the_other(a: u32, abits in 0u8..=32, b: u32, bbits in 0u8..=32) {
            let range = |address: u32, bits| Cidr::around(Ipv4Addr::from(address).into(), bits).unwrap();
            let (a, b) = (range(a, abits), range(b, bbits));
            let last = |range: Cidr| {
                let IpAddr::V4(first) = range.address() else { unreachable!() };
                let rest = u32::MAX.checked_shr(u32::from(range.bits())).unwrap_or(0);
                (u32::from(first), u32::from(first) | rest)
            };
            let ((a0, a1), (b0, b1)) = (last(a), last(b));
            prop_assert_eq!(a.overlaps(b), a0 <= b1 && b0 <= a1);
            prop_assert_eq!(a.to_string().parse::<Cidr>().unwrap(), a);
        }
    }
}
