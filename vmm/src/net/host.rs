//! What the guest's network takes over from the host's: name servers, and whether there is IPv6.

use std::fs;
use std::net::IpAddr;
use std::path::Path;

/// resolv.conf(5), as far as it counts here.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Resolvers {
    /// Name servers, in this order.
    pub servers: Vec<IpAddr>,
    /// Domains in which short names are looked up.
    pub search: Vec<String>,
}

/// More than any resolver uses.
const MOST_SERVERS: usize = 8;
const MOST_DOMAINS: usize = 6;

/// The host's resolvers. Where they are a stub on the host itself, which the guest can't reach, those
/// that the stub asks are taken if they are known (systemd-resolved(8)).
pub fn resolvers() -> Resolvers {
    let read = |path: &str| {
        let text = fs::read_to_string(Path::new(path)).unwrap_or_default();
        Resolvers::parse(&text)
    };
    read("/etc/resolv.conf").or_behind_the_stub(|| read("/run/systemd/resolve/resolv.conf"))
}

impl Resolvers {
    fn parse(text: &str) -> Self {
        let mut resolvers = Self::default();
        for line in text.lines() {
            let mut words = line.split_whitespace();
            match words.next() {
                Some("nameserver") => {
                    // One with a scope is on a link that the guest does not have.
                    let server = words.next().and_then(|word| word.parse::<IpAddr>().ok());
                    resolvers.servers.extend(server);
                }
                // The last of them counts.
                Some("search" | "domain") => {
                    let domains = words.filter(|domain| is_domain(domain));
                    resolvers.search = domains.map(str::to_owned).collect();
                }
                _ => {}
            }
        }
        resolvers.servers.truncate(MOST_SERVERS);
        resolvers.search.truncate(MOST_DOMAINS);
        resolvers
    }

    fn or_behind_the_stub(self, behind: impl FnOnce() -> Self) -> Self {
        if self.servers.is_empty() || !self.servers.iter().all(IpAddr::is_loopback) {
            return self;
        }
        let behind = behind();
        if behind.servers.iter().all(IpAddr::is_loopback) {
            return self;
        }
        Self {
            search: behind.search,
            servers: behind.servers,
        }
    }
}

/// What the guest's resolv.conf takes.
fn is_domain(text: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    // The root's domain is none to search.
    text != "." && !text.is_empty() && text.len() <= 255 && text.bytes().all(allowed)
}

/// The interface from which passt takes its own IPv6 address: one with a link-local address, that of
/// the default route if it has one. None if there is no IPv6.
pub fn ipv6_interface() -> Option<String> {
    let addresses = fs::read_to_string("/proc/net/if_inet6").ok()?;
    let routes = fs::read_to_string("/proc/net/ipv6_route").unwrap_or_default();
    choose_ipv6(&addresses, &routes)
}

/// By the texts of `/proc/net/if_inet6` (address, index, prefix, scope, flags, name) and
/// `/proc/net/ipv6_route` (destination, prefix, six more, flags, name).
fn choose_ipv6(addresses: &str, routes: &str) -> Option<String> {
    const LINK: &str = "20";
    /// `IFA_F_DADFAILED`, `IFA_F_TENTATIVE`
    const NOT_USABLE: u32 = 0x48;
    let usable: Vec<&str> = addresses
        .lines()
        .filter_map(|line| {
            let fields: Vec<&str> = line.split_whitespace().collect();
            let [_, _, _, LINK, flags, name] = fields[..] else {
                return None;
            };
            let flags = u32::from_str_radix(flags, 16).ok()?;
            (flags & NOT_USABLE == 0).then_some(name)
        })
        .collect();
    let default = routes.lines().find_map(|line| {
        let mut fields = line.split_whitespace();
        let destination = fields.next()?;
        let everything = destination.bytes().all(|byte| byte == b'0') && fields.next()? == "00";
        let name = fields.next_back()?;
        (everything && usable.contains(&name)).then_some(name)
    });
    default
        .or_else(|| usable.first().copied())
        .map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn servers(resolvers: &Resolvers) -> Vec<String> {
        resolvers.servers.iter().map(IpAddr::to_string).collect()
    }

    #[test]
    fn the_hosts_resolvers_are_read() {
        let text = "# made by hand\nnameserver 192.0.2.1\nnameserver fe80::1%eth0\n\
                    nameserver 2001:db8::1\nsearch old.example\nsearch a.example b.example .\n\
                    options edns0\nnameserver\nnameserver x\n";
        let resolvers = Resolvers::parse(text);
        assert_eq!(servers(&resolvers), ["192.0.2.1", "2001:db8::1"]);
        assert_eq!(resolvers.search, ["a.example", "b.example"]);
        assert_eq!(Resolvers::parse(""), Resolvers::default());
    }

    #[test]
    fn those_behind_a_stub_are_taken_if_they_are_known() {
        let stub = || Resolvers::parse("nameserver 127.0.0.53\nsearch a\n");
        let known = stub().or_behind_the_stub(|| Resolvers::parse("nameserver 192.0.2.1\n"));
        assert_eq!(servers(&known), ["192.0.2.1"]);
        assert_eq!(stub().or_behind_the_stub(Resolvers::default), stub());
        let none = || panic!("it was looked behind what is no stub");
        let mixed = Resolvers::parse("nameserver 127.0.0.53\nnameserver 192.0.2.1\n");
        assert_eq!(mixed.clone().or_behind_the_stub(none), mixed);
    }

    #[test]
    fn ipv6_is_that_of_the_default_route_if_it_can_be() {
        let link = |name: &str, flags: &str| {
            format!("fe800000000000000000000000000001 02 40 20 {flags} {name:>8}\n")
        };
        let lo = "00000000000000000000000000000001 01 80 10 80       lo\n";
        let route = |name: &str| {
            let zero = "0".repeat(32);
            format!("{zero} 00 {zero} 00 {zero} 00000400 00000001 00000000 00000003 {name}\n")
        };
        assert_eq!(choose_ipv6(lo, &route("lo")), None);
        let both = [lo, &link("eth0", "80"), &link("eth1", "80")].concat();
        assert_eq!(choose_ipv6(&both, ""), Some("eth0".to_owned()));
        assert_eq!(choose_ipv6(&both, &route("eth1")), Some("eth1".to_owned()));
        assert_eq!(choose_ipv6(&both, &route("tun0")), Some("eth0".to_owned()));
        // One that is not known yet to be nobody else's.
        assert_eq!(choose_ipv6(&link("eth0", "c0"), ""), None);
        assert_eq!(choose_ipv6("x\ny z\n", "x\n"), None);
    }
}
