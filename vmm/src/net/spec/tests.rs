use proptest::option;
use proptest::prelude::*;

use super::*;

fn round<T: FromStr<Err = String> + fmt::Display>(text: &str) -> String {
    text.parse::<T>()
        .unwrap_or_else(|error| panic!("{error}"))
        .to_string()
}

fn refused<T: FromStr<Err = String> + fmt::Debug>(text: &str) -> String {
    text.parse::<T>().unwrap_err()
}

#[test]
fn networks_are_read_as_they_are_written() {
    for text in [
        "user",
        "user,mac=52:54:00:12:34:56,mtu=1400",
        "tap",
        "tap:vm0",
        "tap:vm0,mac=52:54:00:12:34:56,mtu=9000,netns=blue,queues=4",
        "tap,netns=/proc/1/ns/net",
        "bridge:br0",
        "bridge:br0,netns=blue,queues=8",
        "none",
    ] {
        assert_eq!(round::<NetSpec>(text), text);
    }
}

#[test]
fn what_is_wrong_with_a_network_is_named() {
    for (text, says) in [
        ("", "give user, tap"),
        ("tun", "give user, tap"),
        ("user:x", "give user, tap"),
        ("bridge", "which bridge"),
        ("bridge:", "name of a network interface"),
        ("tap:", "name of a network interface"),
        ("tap:a/b", "name of a network interface"),
        ("tap:..", "name of a network interface"),
        ("tap:sixteen-letters0", "name of a network interface"),
        ("tap:tap%d", "name of a network interface"),
        ("tap:a b", "name of a network interface"),
        ("user,mac=52:54:00:12:34", "not a MAC address"),
        ("user,mac=01:00:5e:00:00:01", "address of a group"),
        ("user,mac=00:00:00:00:00:00", "zeroes"),
        ("user,mtu=67", "give 68 to 65520"),
        ("user,mtu=65521", "give 68 to 65520"),
        ("user,mtu=-1", "give 68 to 65520"),
        ("user,mtu=", "give 68 to 65520"),
        ("tap,queues=0", "give 1 to 8"),
        ("tap,queues=9", "give 1 to 8"),
        ("tap,mtu=1500,mtu=1500", "mtu is given twice"),
        ("tap,up", "there are mac=MAC"),
        ("tap,ip=1.2.3.4", "there are mac=MAC"),
        ("tap,netns=", "not a network namespace"),
        ("tap,netns=a/b", "not a network namespace"),
        ("user,netns=blue", "tap and bridge do"),
        ("user,queues=2", "tap and bridge do"),
        ("none,mtu=1500", "neither mac nor mtu"),
    ] {
        let error = refused::<NetSpec>(text);
        assert!(error.contains(says), "{text}: {error}");
        assert_eq!(error.lines().count(), 1);
    }
}

#[test]
fn a_namespace_is_a_name_or_a_path() {
    let path = |text: &str| text.parse::<NetNs>().unwrap().path();
    assert_eq!(path("blue"), PathBuf::from("/run/netns/blue"));
    assert_eq!(path("/proc/7/ns/net"), PathBuf::from("/proc/7/ns/net"));
}

#[test]
fn addresses_have_a_network_around_them() {
    let address = |text: &str| {
        let address = text.parse::<IpSpec>().unwrap().address();
        (address.ip.to_string(), address.prefix)
    };
    assert_eq!(address("10.1.2.3"), ("10.1.2.3".to_owned(), 24));
    assert_eq!(address("10.1.2.3/8"), ("10.1.2.3".to_owned(), 8));
    assert_eq!(address("fd00::3"), ("fd00::3".to_owned(), 64));
    for text in [
        "10.1.2.3",
        "10.1.2.3/8,gw=10.0.0.1",
        "fd00::3/48,gw=fe80::1",
    ] {
        assert_eq!(round::<IpSpec>(text), text);
    }
}

#[test]
fn what_is_wrong_with_an_address_is_named() {
    for (text, says) in [
        ("", "not an IP address"),
        ("10.1.2", "not an IP address"),
        ("10.1.2.3/33", "give 1 to 32"),
        ("10.1.2.3/0", "give 1 to 32"),
        ("10.1.2.3/", "give 1 to 32"),
        ("fd00::3/129", "give 1 to 128"),
        ("0.0.0.0", "address of a machine"),
        ("127.0.0.1", "address of a machine"),
        ("224.0.0.1", "address of a machine"),
        ("255.255.255.255", "address of a machine"),
        ("ff02::1", "address of a machine"),
        ("10.1.2.3,gw=fd00::1", "can't be a gateway"),
        ("10.1.2.3,gw=10.1.2.3", "its own gateway"),
        ("10.1.2.3,10.1.2.1", "there is gw=ADDRESS"),
    ] {
        let error = refused::<IpSpec>(text);
        assert!(error.contains(says), "{text}: {error}");
    }
}

fn pairs(text: &str) -> Vec<(Option<RangeInclusive<u16>>, u16)> {
    text.parse::<PortSpec>().unwrap().pairs().collect()
}

use std::ops::RangeInclusive;

#[test]
fn ports_are_published_as_docker_does() {
    let one = |port| Some(port..=port);
    assert_eq!(pairs("8080:80"), [(one(8080), 80)]);
    assert_eq!(pairs("80"), [(None, 80)]);
    assert_eq!(pairs("127.0.0.1::80"), [(None, 80)]);
    assert_eq!(pairs("8000-8010:80"), [(Some(8000..=8010), 80)]);
    assert_eq!(pairs("8000-8001:80-81"), [(one(8000), 80), (one(8001), 81)]);
    assert_eq!(pairs("80-81"), [(None, 80), (None, 81)]);
    let address = |text: &str| text.parse::<PortSpec>().unwrap().address;
    assert_eq!(address("[::1]:53:53/udp"), Some("::1".parse().unwrap()));
    assert_eq!(address("::1:53:53"), Some("::1".parse().unwrap()));
    for text in [
        "8080:80",
        "80",
        "127.0.0.1::80/udp",
        "[::1]:8000-8010:80",
        "1-2:3-4/udp",
    ] {
        assert_eq!(round::<PortSpec>(text), text);
    }
    assert_eq!(round::<PortSpec>("8080:80/TCP"), "8080:80");
}

#[test]
fn what_is_wrong_with_ports_is_named() {
    for (text, says) in [
        ("", "not a port"),
        ("0:80", "not a port"),
        ("80:0", "not a port"),
        ("65536:80", "not a port"),
        ("+80:80", "not a port"),
        ("90-80:80", "not a port"),
        ("8080:", "not a port"),
        (":80", "no port before"),
        ("8080:80/sctp", "give tcp or udp"),
        ("host:8080:80", "not an address"),
        ("8000-8002:80-81", "3 ports of the host can't lead to 2"),
    ] {
        let error = refused::<PortSpec>(text);
        assert!(error.contains(says), "{text}: {error}");
    }
    assert!(PortSpec::exposed("80/tcp").is_ok());
    assert!(PortSpec::exposed("80:80").is_err());
}

prop_compose! {
    fn any_ports()(first in 1..=65535_u16, more in 0..4_u16) -> RangeInclusive<u16> {
        first..=first.saturating_add(more)
    }
}

prop_compose! {
    fn any_port_spec()(
        address in option::of(any::<std::net::IpAddr>()),
        with_host in any::<bool>(),
        host in 1..=60000_u16,
        guest in any_ports(),
        udp in any::<bool>(),
    ) -> PortSpec {
        let last = host + (guest.len() - 1) as u16;
        PortSpec {
            address,
            host: with_host.then_some(host..=last),
            guest,
            protocol: if udp { Protocol::Udp } else { Protocol::Tcp },
        }
    }
}

prop_compose! {
    fn any_net_spec()(
        name in "[a-z][a-z0-9_.-]{0,14}",
        kind in 0..4,
        mac in option::of(any::<[u8; 6]>()),
        mtu in option::of(68..=65520_u32),
        netns in option::of("[a-z]{1,9}"),
        queues in option::of(1..=8_u8),
    ) -> NetSpec {
        let name: Interface = name.parse().unwrap();
        let mode = match kind {
            0 => NetMode::User,
            1 => NetMode::Tap { name: None },
            2 => NetMode::Tap { name: Some(name) },
            _ => NetMode::Bridge { name },
        };
        let tap = mode != NetMode::User;
        NetSpec {
            mode,
            mac: mac.map(MacAddress::local),
            mtu: mtu.and_then(Mtu::new),
            netns: netns.filter(|_| tap).map(|name| name.parse().unwrap()),
            queues: queues.filter(|_| tap),
        }
    }
}

proptest! {
    #[test]
    fn what_is_written_reads_back(net in any_net_spec(), ports in any_port_spec()) {
        prop_assert_eq!(net.to_string().parse::<NetSpec>().unwrap(), net);
        prop_assert_eq!(ports.to_string().parse::<PortSpec>().unwrap(), ports);
    }

    #[test]
    fn any_text_is_read_or_refused_in_one_line(text in ".{0,40}") {
        let lines = |error: String| error.lines().count();
        prop_assert!(text.parse::<NetSpec>().map_or_else(lines, |_| 1) == 1);
        prop_assert!(text.parse::<PortSpec>().map_or_else(lines, |_| 1) == 1);
        prop_assert!(text.parse::<IpSpec>().map_or_else(lines, |_| 1) == 1);
    }

    #[test]
    fn each_port_of_the_guests_is_paired(ports in any_port_spec()) {
        let pairs: Vec<_> = ports.pairs().collect();
        prop_assert_eq!(pairs.len(), ports.guest.len());
        for (host, guest) in pairs {
            prop_assert!(ports.guest.contains(&guest));
            prop_assert_eq!(host.is_some(), ports.host.is_some());
        }
    }
}
