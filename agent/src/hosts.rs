//! The small files that give the guest its name, and the names of others.

use alloc::format;
use alloc::string::String;
use core::fmt::Write;

use crate::spec::Network;

/// The guest's `/etc/hosts`. The machine's own name means its addresses; where it has none that
/// are known, it is 127.0.1.1, as Debian does where a machine has no permanent address.
pub fn hosts(hostname: &str, network: Option<&Network>) -> String {
    let mut text = String::from("127.0.0.1\tlocalhost\n");
    let addresses = network.map_or(&[][..], |network| &network.addresses);
    if addresses.is_empty() {
        let _ = writeln!(text, "127.0.1.1\t{hostname}");
    }
    text.push_str(
        "::1\tlocalhost ip6-localhost ip6-loopback\n\
         ff02::1\tip6-allnodes\n\
         ff02::2\tip6-allrouters\n",
    );
    for address in addresses {
        let _ = writeln!(text, "{}\t{hostname}", address.ip);
    }
    for host in network.map_or(&[][..], |network| &network.hosts) {
        let _ = writeln!(text, "{}\t{}", host.ip, host.name);
    }
    text
}

/// The guest's `/etc/resolv.conf`, resolv.conf(5).
pub fn resolv_conf(network: &Network) -> String {
    let mut text = String::new();
    for server in &network.dns {
        // A string takes all that is written to it.
        let _ = writeln!(text, "nameserver {server}");
    }
    if !network.search.is_empty() {
        let _ = writeln!(text, "search {}", network.search.join(" "));
    }
    text
}

/// The guest's `/etc/hostname`.
pub fn hostname(hostname: &str) -> String {
    format!("{hostname}\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::Address;

    fn network() -> Network {
        let address = |ip: &str, prefix| Address {
            ip: ip.parse().unwrap(),
            prefix,
        };
        Network {
            addresses: vec![address("10.0.2.15", 24), address("fd00::15", 64)],
            dns: vec!["10.0.2.3".parse().unwrap(), "fd00::3".parse().unwrap()],
            search: vec!["a.example".into(), "b.example".into()],
            ..Network::default()
        }
    }

    #[test]
    fn the_guests_name_means_its_addresses() {
        let with = hosts("yard", Some(&network()));
        assert!(with.contains("10.0.2.15\tyard\nfd00::15\tyard\n"), "{with}");
        assert!(!with.contains("127.0.1.1"), "{with}");
        for without in [None, Some(&Network::default())] {
            assert!(hosts("yard", without).contains("127.0.1.1\tyard\n"));
        }
    }

    #[test]
    fn hosts_that_are_told_are_known() {
        let host = crate::spec::Host {
            ip: "192.0.2.7".parse().unwrap(),
            name: "db.example".into(),
        };
        let network = Network {
            hosts: vec![host],
            ..network()
        };
        assert!(hosts("yard", Some(&network)).ends_with("192.0.2.7\tdb.example\n"));
    }

    #[test]
    fn name_servers_and_domains_are_in_their_order() {
        assert_eq!(
            resolv_conf(&network()),
            "nameserver 10.0.2.3\nnameserver fd00::3\nsearch a.example b.example\n"
        );
        assert_eq!(resolv_conf(&Network::default()), "");
    }
}
