//! The ranges of networks, and the addresses that their members get.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::Cidr;

/// Network `n` of those that are made without a range gets 10.89.n.0/24; from 10.88 podman takes.
const FIRST: [u8; 2] = [10, 89];

/// Why a range can't be a network's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SubnetError {
    /// An IPv6 range where one of IPv4 is wanted, or the other way round.
    #[error("{0} is not a range of {1}")]
    Protocol(Cidr, &'static str),
    /// Too small, or too large.
    #[error("a network can't have {0}: its prefix has {1} bits, {2} to {3} are possible")]
    Size(Cidr, u8, u8, u8),
    /// Addresses that mean something else.
    #[error("a network can't have {0}: these are not addresses of stations")]
    Special(Cidr),
}

/// Checks a range that a network is to have of IPv4: 8 to 29 bits.
///
/// # Errors
/// What is wrong.
pub fn check_v4(range: Cidr) -> Result<(), SubnetError> {
    check(range, true, 8, 29)
}

/// Checks a range that a network is to have of IPv6: 48 to 64 bits.
///
/// # Errors
/// What is wrong.
pub fn check_v6(range: Cidr) -> Result<(), SubnetError> {
    check(range, false, 48, 64)
}

fn check(range: Cidr, v4: bool, least: u8, most: u8) -> Result<(), SubnetError> {
    if range.address().is_ipv4() != v4 {
        return Err(SubnetError::Protocol(
            range,
            if v4 { "IPv4" } else { "IPv6" },
        ));
    }
    if !(least..=most).contains(&range.bits()) {
        return Err(SubnetError::Size(range, range.bits(), least, most));
    }
    let special = host(range, 1).is_none_or(|first| match first {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.segments()[0] & 0xff80 == 0xfe80,
    } || !crate::frame::is_station(first));
    if special {
        return Err(SubnetError::Special(range));
    }
    Ok(())
}

/// The first range of those that networks get by themselves that overlaps none of `taken`.
pub fn free_v4(taken: &[Cidr]) -> Option<Cidr> {
    let ranges = (0..=u8::MAX).map(|n| Ipv4Addr::new(FIRST[0], FIRST[1], n, 0));
    let mut ranges = ranges.filter_map(|first| Cidr::around(first.into(), 24));
    ranges.find(|range| !taken.iter().any(|other| other.overlaps(*range)))
}

/// The IPv6 range of a network with these 40 random bits (RFC 4193).
pub fn unique_v6(random: [u8; 5]) -> Option<Cidr> {
    let mut bytes = [0; 16];
    bytes[0] = 0xfd;
    bytes[1..6].copy_from_slice(&random);
    Cidr::around(Ipv6Addr::from(bytes).into(), 64)
}

/// The address of number `number` in a range; `None` if it has not so many.
pub fn host(range: Cidr, number: u32) -> Option<IpAddr> {
    let address = match range.address() {
        IpAddr::V4(first) => Ipv4Addr::from(u32::from(first).checked_add(number)?).into(),
        IpAddr::V6(first) => Ipv6Addr::from(u128::from(first).checked_add(number.into())?).into(),
    };
    range.contains(address).then_some(address)
}

/// The number that the gateway of each range has.
pub const GATEWAY: u32 = 1;
/// The first that members get: the ones before it are for what stands beside the gateway.
const FIRST_MEMBER: u32 = 4;
/// As many members as a network has at most.
pub const MAX_MEMBERS: u32 = 1022;

/// The least free number for a member. The last address of a range is everybody's.
pub fn free_member(range: Cidr, taken: &BTreeSet<u32>) -> Option<u32> {
    let numbers = FIRST_MEMBER..FIRST_MEMBER + MAX_MEMBERS;
    let mut free = numbers.filter(|number| !taken.contains(number));
    free.find(|number| host(range, number + 1).is_some())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cidr(text: &str) -> Cidr {
        text.parse().unwrap()
    }

    #[test]
    fn ranges_that_can_not_be_a_networks_are_refused() {
        for good in [
            "10.0.0.0/8",
            "192.168.7.0/24",
            "172.16.0.0/29",
            "100.64.0.0/10",
        ] {
            assert_eq!(check_v4(cidr(good)), Ok(()), "{good}");
        }
        for bad in [
            "10.0.0.0/30",
            "0.0.0.0/0",
            "127.0.0.0/8",
            "224.0.0.0/8",
            "169.254.0.0/16",
            "240.0.0.0/8",
            "fd00::/64",
        ] {
            assert!(check_v4(cidr(bad)).is_err(), "{bad}");
        }
        assert_eq!(check_v6(cidr("fd12::/64")), Ok(()));
        for bad in [
            "fd00::/65",
            "fe80::/64",
            "ff02::/64",
            "::/64",
            "10.0.0.0/24",
            "fd00::/8",
        ] {
            assert!(check_v6(cidr(bad)).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_network_gets_a_range_that_is_free() {
        assert_eq!(free_v4(&[]), Some(cidr("10.89.0.0/24")));
        let taken = [
            cidr("10.89.0.0/23"),
            cidr("10.89.3.128/25"),
            cidr("fd00::/64"),
        ];
        assert_eq!(free_v4(&taken), Some(cidr("10.89.2.0/24")));
        assert_eq!(free_v4(&[cidr("10.0.0.0/8")]), None);
        assert_eq!(unique_v6([1, 2, 3, 4, 5]), Some(cidr("fd01:203:405::/64")));
    }

    #[test]
    fn members_get_each_address_once_and_never_the_last() {
        let range = cidr("10.1.0.0/29");
        let mut taken = BTreeSet::new();
        while let Some(number) = free_member(range, &taken) {
            taken.insert(number);
        }
        assert_eq!(taken, (4..=6).collect());
        taken.remove(&5);
        assert_eq!(free_member(range, &taken), Some(5));
        assert_eq!(host(range, 4), Some("10.1.0.4".parse().unwrap()));
        assert_eq!(host(range, 8), None);
        assert_eq!(host(cidr("fd00::/64"), 4), Some("fd00::4".parse().unwrap()));
    }
}
