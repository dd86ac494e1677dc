//! The addresses of a network of one guest and passt, which stands for all others.
//!
//! passt answers for each address but the guest's own, so they need not fit the host's networks. The
//! gateway is nobody; that the host's own loopback is not reached by it is `wall`'s business.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use casita_agent::spec::Address;
use casita_devices::virtio::net::MacAddress;

use super::NetError;
use super::host::Resolvers;
use super::spec::IpSpec;

/// The address of whatever the guest sees beside itself.
pub const GATEWAY_MAC: MacAddress = MacAddress([0x02, 0xca, 0x51, 0x7a, 0x00, 0x02]);

/// The guest, where nothing else is said: the addresses that user-mode networks usually have.
const GUEST_V4: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 15);
/// The same for IPv6, in a network by chance (RFC 4193).
const GUEST_V6: Ipv6Addr = Ipv6Addr::new(0xfdca, 0x517a, 0x2ca5, 0, 0, 0, 0, 0x15);

/// Of a network the gateway is this one, and what forwards to the host's resolver the next.
const GATEWAY: u128 = 2;
const RESOLVER: u128 = 3;

/// One version of IP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Side {
    /// The guest's address.
    pub address: Address,
    /// Its gateway.
    pub gateway: IpAddr,
    /// Where it finds a resolver that listens on the host's loopback alone.
    pub resolver: IpAddr,
}

/// The addresses of such a network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Addresses {
    /// IPv4, and IPv6 if the host has that.
    pub sides: Vec<Side>,
    /// The guest's name servers.
    pub dns: Vec<IpAddr>,
    /// What of that passt forwards to a resolver on the host's loopback: ours, then that.
    pub forwarded: Vec<(IpAddr, IpAddr)>,
}

impl Addresses {
    /// Those that the user wants, and ours for a version of IP of which nothing is said. `dns` are
    /// the user's name servers; without them the host's are taken.
    ///
    /// # Errors
    /// If they are not possible, or IPv6 is not.
    pub fn new(
        wanted: &[IpSpec],
        dns: &[IpAddr],
        host: &Resolvers,
        ipv6: bool,
    ) -> Result<Self, NetError> {
        let default = |ip: IpAddr| IpSpec {
            ip,
            prefix: None,
            gateway: None,
        };
        let find = |v4: bool| -> Result<Option<IpSpec>, NetError> {
            let mut given = wanted.iter().filter(|spec| spec.ip.is_ipv4() == v4);
            match (given.next(), given.next()) {
                (first, None) => Ok(first.copied()),
                (_, Some(second)) => Err(NetError::Options(format!(
                    "--net user gives the guest one address of each version of IP: leave out --ip {second}"
                ))),
            }
        };
        let v4 = find(true)?.unwrap_or(default(GUEST_V4.into()));
        let v6 = match find(false)? {
            Some(spec) if !ipv6 => return Err(NetError::NoIpv6(spec.ip)),
            Some(spec) => Some(spec),
            None => ipv6.then_some(default(GUEST_V6.into())),
        };
        let sides = [Some(v4), v6].into_iter().flatten().map(side);
        let sides = sides.collect::<Result<Vec<_>, _>>()?;
        let reachable = |ip: &IpAddr| ip.is_ipv4() || ipv6;
        if let Some(ip) = dns.iter().find(|ip| !reachable(ip)) {
            return Err(NetError::NoIpv6(*ip));
        }
        let mut addresses = Self {
            sides,
            dns: Vec::new(),
            forwarded: Vec::new(),
        };
        let dns = if dns.is_empty() { &host.servers } else { dns };
        for server in dns.iter().filter(|ip| reachable(ip)) {
            addresses.add_resolver(*server);
        }
        Ok(addresses)
    }

    fn add_resolver(&mut self, server: IpAddr) {
        if !server.is_loopback() {
            self.dns.push(server);
            return;
        }
        let side = self
            .sides
            .iter()
            .find(|side| same_version(side.gateway, server));
        // passt forwards to one for each version of IP.
        let taken = |ip: IpAddr| self.forwarded.iter().any(|(ours, _)| *ours == ip);
        if let Some(side) = side
            && !taken(side.resolver)
        {
            self.dns.push(side.resolver);
            self.forwarded.push((side.resolver, server));
        }
    }
}

fn same_version(a: IpAddr, b: IpAddr) -> bool {
    a.is_ipv4() == b.is_ipv4()
}

fn side(spec: IpSpec) -> Result<Side, NetError> {
    let address = spec.address();
    let room = if address.ip.is_ipv4() { 29 } else { 125 };
    if address.prefix > room {
        return Err(NetError::Options(format!(
            "a network of {room} bits at most has room for the guest and what it talks to: \
             --ip {spec}"
        )));
    }
    let mut taken = vec![address.ip];
    let mut pick = |wanted: Option<IpAddr>, first: u128| {
        let free = (first..).map(|number| member(&address, number));
        let picked = wanted.or_else(|| free.into_iter().find(|ip| !taken.contains(ip)));
        // There is room for eight of them.
        let picked = picked.unwrap_or(address.ip);
        taken.push(picked);
        picked
    };
    Ok(Side {
        gateway: pick(spec.gateway, GATEWAY),
        resolver: pick(None, RESOLVER),
        address,
    })
}

/// The address with this number in the network of `address`.
fn member(address: &Address, number: u128) -> IpAddr {
    match address.ip {
        IpAddr::V4(ip) => {
            let mask = u32::MAX.checked_shl(32 - u32::from(address.prefix));
            Ipv4Addr::from_bits((ip.to_bits() & mask.unwrap_or(0)) + number as u32).into()
        }
        IpAddr::V6(ip) => {
            let mask = u128::MAX.checked_shl(128 - u32::from(address.prefix));
            Ipv6Addr::from_bits((ip.to_bits() & mask.unwrap_or(0)) + number).into()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses(
        ips: &[&str],
        dns: &[&str],
        host: &[&str],
        ipv6: bool,
    ) -> Result<Addresses, NetError> {
        let ips: Vec<IpSpec> = ips.iter().map(|ip| ip.parse().unwrap()).collect();
        let parse = |texts: &[&str]| texts.iter().map(|ip| ip.parse().unwrap()).collect();
        let dns: Vec<IpAddr> = parse(dns);
        let host = Resolvers {
            servers: parse(host),
            search: Vec::new(),
        };
        Addresses::new(&ips, &dns, &host, ipv6)
    }

    fn texts(side: &Side) -> [String; 3] {
        [side.address.ip, side.gateway, side.resolver].map(|ip| ip.to_string())
    }

    #[test]
    fn without_a_word_there_are_both_versions_of_ip_if_the_host_has_them() {
        let both = addresses(&[], &[], &[], true).unwrap();
        assert_eq!(texts(&both.sides[0]), ["10.0.2.15", "10.0.2.2", "10.0.2.3"]);
        assert_eq!(
            texts(&both.sides[1]),
            [
                "fdca:517a:2ca5::15",
                "fdca:517a:2ca5::2",
                "fdca:517a:2ca5::3"
            ]
        );
        assert_eq!(addresses(&[], &[], &[], false).unwrap().sides.len(), 1);
    }

    #[test]
    fn a_wanted_address_has_its_network_around_it() {
        let with = |ip: &str| texts(&addresses(&[ip], &[], &[], false).unwrap().sides[0]);
        assert_eq!(
            with("192.168.7.9"),
            ["192.168.7.9", "192.168.7.2", "192.168.7.3"]
        );
        assert_eq!(
            with("192.168.7.2/16"),
            ["192.168.7.2", "192.168.0.2", "192.168.0.3"]
        );
        assert_eq!(
            with("192.168.7.2"),
            ["192.168.7.2", "192.168.7.3", "192.168.7.4"]
        );
        assert_eq!(
            with("192.168.7.9,gw=192.168.7.3"),
            ["192.168.7.9", "192.168.7.3", "192.168.7.4"]
        );
        assert_eq!(with("10.0.0.1/1"), ["10.0.0.1", "0.0.0.2", "0.0.0.3"]);
    }

    #[test]
    fn what_is_not_possible_is_named() {
        let refused =
            |ips: &[&str], dns: &[&str]| addresses(ips, dns, &[], false).unwrap_err().to_string();
        assert!(refused(&["10.0.0.1", "10.0.0.2"], &[]).contains("leave out --ip 10.0.0.2"));
        assert!(refused(&["10.0.0.1/30"], &[]).contains("29 bits"));
        assert!(refused(&["fd00::1"], &[]).contains("IPv6"));
        assert!(refused(&[], &["2001:db8::1"]).contains("IPv6"));
    }

    #[test]
    fn name_servers_are_the_users_or_the_hosts() {
        let dns = |dns: &[&str], host: &[&str], ipv6| {
            let addresses = addresses(&[], dns, host, ipv6).unwrap();
            let forwarded: Vec<_> = addresses
                .forwarded
                .iter()
                .map(|(_, to)| to.to_string())
                .collect();
            let servers: Vec<_> = addresses.dns.iter().map(IpAddr::to_string).collect();
            (servers.join(" "), forwarded.join(" "))
        };
        let text = |servers: &str, to: &str| (servers.to_owned(), to.to_owned());
        assert_eq!(
            dns(&["192.0.2.1"], &["192.0.2.9"], false),
            text("192.0.2.1", "")
        );
        assert_eq!(
            dns(&[], &["2001:db8::1", "192.0.2.9"], false),
            text("192.0.2.9", "")
        );
        let both = text("2001:db8::1 192.0.2.9", "");
        assert_eq!(dns(&[], &["2001:db8::1", "192.0.2.9"], true), both);
        // The guest's loopback is not the host's.
        let stub = text("10.0.2.3", "127.0.0.53");
        assert_eq!(dns(&[], &["127.0.0.53", "127.0.0.1"], false), stub);
        assert_eq!(dns(&[], &[], true), text("", ""));
    }
}
