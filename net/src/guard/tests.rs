use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::dns::{Question, Record, write_answer};
use crate::frame::{HEAD, Tcp};
use crate::reply::testing::{eth, icmp, ipv4, ipv6, tcp, udp};

const MAC: Mac = Mac([2, 0, 0, 0, 0, 1]);
const ROUTER: Mac = Mac([2, 0, 0, 0, 0, 0xfe]);
const LOCAL: &str = "fe80::ff:fe00:1";
const SYN: u8 = Tcp::SYN;
const ACK: u8 = Tcp::ACK;

fn config(policy: &str) -> GuardConfig {
    let addresses = |list: &[&str]| list.iter().map(|text| text.parse().unwrap()).collect();
    GuardConfig {
        mac: Some(MAC),
        addresses: addresses(&["10.0.0.2", "fd00::2"]),
        gateways: addresses(&["10.0.0.1", "fe80::1"]),
        resolvers: addresses(&["10.0.0.53"]),
        local_uplink: true,
        policy: policy.parse().unwrap(),
        resolved: [("db.test".parse().unwrap(), vec!["5.5.5.5".parse().unwrap()])].into(),
        ..GuardConfig::default()
    }
}

struct Bench {
    guard: Guard,
    now: Instant,
}

impl Bench {
    fn new(policy: &str) -> Self {
        Self::of(config(policy))
    }

    fn of(config: GuardConfig) -> Self {
        Self {
            guard: Guard::new(config),
            now: Instant::now(),
        }
    }

    fn sends(&mut self, frame: &[u8]) -> Verdict {
        self.guard
            .judge(&frame[..frame.len().min(HEAD)], frame.len(), self.now)
    }

    fn passes(&mut self, frame: &[u8]) -> bool {
        self.sends(frame) == Verdict::Pass
    }

    fn gets(&mut self, frame: &[u8]) {
        self.guard.learn(frame, frame.len(), self.now);
    }

    fn later(&mut self, time: Duration) {
        self.now += time;
    }
}

/// A frame to the router with a packet of either protocol.
fn out(from: &str, to: &str, protocol: u8, body: &[u8]) -> Vec<u8> {
    framed(ROUTER, MAC, from, to, protocol, body)
}

fn framed(to_mac: Mac, from_mac: Mac, from: &str, to: &str, protocol: u8, body: &[u8]) -> Vec<u8> {
    if from.contains(':') {
        eth(to_mac, from_mac, 0x86dd, &ipv6(from, to, protocol, body))
    } else {
        eth(to_mac, from_mac, 0x0800, &ipv4(from, to, protocol, body))
    }
}

/// A frame from the router.
fn inward(from: &str, to: &str, protocol: u8, body: &[u8]) -> Vec<u8> {
    framed(MAC, ROUTER, from, to, protocol, body)
}

fn arp(operation: u8, sender: (Mac, &str), target: &str) -> Vec<u8> {
    let mut packet = vec![0, 1, 8, 0, 6, 4, 0, operation];
    packet.extend(sender.0.0);
    packet.extend(sender.1.parse::<Ipv4Addr>().unwrap().octets());
    packet.extend([0; 6]);
    packet.extend(target.parse::<Ipv4Addr>().unwrap().octets());
    eth(Mac::BROADCAST, MAC, 0x0806, &packet)
}

fn dhcp(operation: u8, mac: Mac) -> Vec<u8> {
    let mut message = vec![operation, 1, 6, 0];
    message.extend([0; 24]);
    message.extend(mac.0);
    message.extend([0; 202]);
    message.extend([99, 130, 83, 99, 53, 1, 1, 255]);
    message
}

fn discovery(kind: u8, target: &str, options: &[u8]) -> Vec<u8> {
    let target: Ipv6Addr = target.parse().unwrap();
    icmp(kind, 0, &[&[0; 4], &target.octets()[..], options].concat())
}

#[test]
fn all_lets_everything_out_that_is_the_guests_own() {
    let mut bench = Bench::new("all");
    assert!(bench.passes(&out("10.0.0.2", "8.8.8.8", 6, &tcp(1, 80, SYN))));
    assert!(bench.passes(&out("fd00::2", "2001:db8::1", 17, &udp(1, 9, b"x"))));
    assert!(bench.passes(&out("10.0.0.2", "8.8.8.8", 47, b"gre")));
    assert!(bench.passes(&arp(1, (MAC, "10.0.0.2"), "10.0.0.9")));
}

#[test]
fn another_mac_or_ip_address_never_passes() {
    for policy in ["all", "0.0.0.0/0,::/0"] {
        let mut bench = Bench::new(policy);
        let body = udp(1, 9, b"x");
        assert!(
            bench.passes(&out("10.0.0.2", "8.8.8.8", 17, &body)),
            "{policy}"
        );
        let mac = framed(
            ROUTER,
            Mac([2, 0, 0, 0, 0, 9]),
            "10.0.0.2",
            "8.8.8.8",
            17,
            &body,
        );
        assert_eq!(bench.sends(&mac), Verdict::Drop(Reason::Mac));
        for from in [
            "10.0.0.3",
            "0.0.0.0",
            "127.0.0.1",
            "10.0.0.1",
            "255.255.255.255",
        ] {
            assert_eq!(
                bench.sends(&out(from, "8.8.8.8", 17, &body)),
                Verdict::Drop(Reason::Address),
                "{from}"
            );
        }
        for from in ["fd00::3", "::", "::1", "fe80::1", "::ffff:10.0.0.2"] {
            assert_eq!(
                bench.sends(&out(from, "2001::1", 17, &body)),
                Verdict::Drop(Reason::Address),
                "{from}"
            );
        }
    }
}

#[test]
fn arp_that_claims_another_address_never_passes() {
    let mut bench = Bench::new("all");
    assert!(bench.passes(&arp(1, (MAC, "0.0.0.0"), "10.0.0.2")));
    assert!(bench.passes(&arp(2, (MAC, "10.0.0.2"), "10.0.0.1")));
    for operation in [1, 2] {
        let claim = arp(operation, (MAC, "10.0.0.1"), "10.0.0.1");
        assert_eq!(bench.sends(&claim), Verdict::Drop(Reason::Claim));
        let other = arp(operation, (ROUTER, "10.0.0.2"), "10.0.0.1");
        assert_eq!(bench.sends(&other), Verdict::Drop(Reason::Mac));
    }
    assert_eq!(
        bench.sends(&arp(2, (MAC, "0.0.0.0"), "10.0.0.1")),
        Verdict::Drop(Reason::Claim)
    );
}

#[test]
fn servers_and_routers_are_not_played() {
    let mut bench = Bench::new("all");
    for (from, to) in [(67, 68), (68, 68), (67, 9), (547, 546), (9, 546)] {
        let frame = out(
            "10.0.0.2",
            "255.255.255.255",
            17,
            &udp(from, to, &dhcp(2, MAC)),
        );
        assert_eq!(
            bench.sends(&frame),
            Verdict::Drop(Reason::Role),
            "{from} to {to}"
        );
    }
    for kind in [134, 137] {
        let frame = out(LOCAL, "ff02::1", 58, &icmp(kind, 0, &[0; 20]));
        assert_eq!(bench.sends(&frame), Verdict::Drop(Reason::Role), "{kind}");
    }
    for kind in [5, 9] {
        let frame = out("10.0.0.2", "10.0.0.1", 1, &icmp(kind, 0, &[0; 20]));
        assert_eq!(bench.sends(&frame), Verdict::Drop(Reason::Role), "{kind}");
    }
    // Neither in fragments, of which the first looks like something else.
    let fragment = [&[58, 0, 0, 8, 0, 0, 0, 9][..], &icmp(134, 0, &[0; 20])].concat();
    assert_eq!(
        bench.sends(&out(LOCAL, "ff02::1", 44, &fragment)),
        Verdict::Drop(Reason::Role)
    );
}

#[test]
fn a_client_of_dhcp_asks_for_itself_alone() {
    for policy in ["all", "none"] {
        let mut bench = Bench::new(policy);
        let ask = |mac| {
            framed(
                Mac::BROADCAST,
                MAC,
                "0.0.0.0",
                "255.255.255.255",
                17,
                &udp(68, 67, &dhcp(1, mac)),
            )
        };
        assert!(bench.passes(&ask(MAC)), "{policy}");
        assert_eq!(bench.sends(&ask(ROUTER)), Verdict::Drop(Reason::Claim));
        let answer = framed(
            Mac::BROADCAST,
            MAC,
            "0.0.0.0",
            "255.255.255.255",
            17,
            &udp(68, 67, &dhcp(2, MAC)),
        );
        assert_eq!(bench.sends(&answer), Verdict::Drop(Reason::Claim));
    }
    // Its port is no way out.
    let mut bench = Bench::new("none");
    assert!(!bench.passes(&out("10.0.0.2", "8.8.8.8", 17, &udp(68, 67, &dhcp(1, MAC)))));
    assert!(!bench.passes(&out(LOCAL, "2001::1", 17, &udp(546, 547, b"x"))));
}

#[test]
fn where_dhcp_reaches_others_it_is_under_the_policy() {
    let bench = |policy| {
        Bench::of(GuardConfig {
            local_uplink: false,
            ..config(policy)
        })
    };
    let ask = framed(
        Mac::BROADCAST,
        MAC,
        "0.0.0.0",
        "255.255.255.255",
        17,
        &udp(68, 67, &dhcp(1, MAC)),
    );
    assert!(bench("1.2.3.4").passes(&ask));
    assert!(!bench("none").passes(&ask));
    let mut none = bench("none");
    assert!(none.passes(&arp(1, (MAC, "10.0.0.2"), "10.0.0.1")));
    assert!(!none.passes(&arp(1, (MAC, "10.0.0.2"), "10.0.0.77")));
    // Who asks is answered.
    let question = eth(
        Mac::BROADCAST,
        ROUTER,
        0x0806,
        &[
            &[0, 1, 8, 0, 6, 4, 0, 1][..],
            &ROUTER.0,
            &[10, 0, 0, 77],
            &[0; 6],
            &[10, 0, 0, 2],
        ]
        .concat(),
    );
    none.gets(&question);
    assert!(none.passes(&arp(2, (MAC, "10.0.0.2"), "10.0.0.77")));
    assert!(bench("10.0.0.77:80").passes(&arp(1, (MAC, "10.0.0.2"), "10.0.0.77")));
}

#[test]
fn neighbour_discovery_is_about_the_guests_own_addresses() {
    let mut bench = Bench::new("none");
    let own = [&[1, 1][..], &MAC.0].concat();
    let other = [&[1, 1][..], &ROUTER.0].concat();
    let group = "ff02::1:ff00:1";
    let send = |from: &str, to: &str, body: &[u8]| {
        framed(Mac([0x33, 0x33, 0, 0, 0, 1]), MAC, from, to, 58, body)
    };
    // Duplicate address detection, a question, an answer.
    assert!(bench.passes(&send(
        "::",
        "ff02::1:ff00:2",
        &discovery(135, "fd00::2", &[])
    )));
    assert!(bench.passes(&send(LOCAL, group, &discovery(135, "fe80::1", &own))));
    assert!(bench.passes(&send("fd00::2", "ff02::1", &discovery(136, "fd00::2", &[]))));
    assert!(bench.passes(&send(
        LOCAL,
        "ff02::2",
        &icmp(133, 0, &[&[0; 4][..], &own].concat())
    )));
    let spoofed = [
        send("::", "ff02::1:ff00:3", &discovery(135, "fd00::3", &[])),
        send(LOCAL, group, &discovery(135, "fe80::1", &other)),
        send(LOCAL, "ff02::1", &discovery(136, "fe80::1", &[])),
        send("::", "ff02::1", &discovery(136, "fd00::2", &[])),
        send(
            LOCAL,
            "ff02::1",
            &discovery(136, LOCAL, &[&[2, 1][..], &ROUTER.0].concat()),
        ),
        send(LOCAL, group, &discovery(135, "fe80::1", &[1, 0])),
        send(LOCAL, group, &discovery(135, "fe80::1", &[1, 9, 0, 0])),
    ];
    for frame in spoofed {
        assert_eq!(bench.sends(&frame), Verdict::Drop(Reason::Claim));
    }
    // From afar, or with headers between.
    let mut far = send(LOCAL, group, &discovery(135, "fe80::1", &own));
    far[21] = 64;
    assert_eq!(bench.sends(&far), Verdict::Drop(Reason::Role));
    // To somebody who is not asked.
    assert!(!bench.passes(&out(
        "fd00::2",
        "2001::5",
        58,
        &discovery(135, "fe80::1", &own)
    )));
    assert!(!bench.passes(&out("fd00::2", "2001::5", 58, &icmp(133, 0, &[0; 4]))));
}

#[test]
fn addresses_from_elsewhere_become_the_guests_own() {
    let mut bench = Bench::of(GuardConfig {
        addresses: vec![],
        learns_addresses: true,
        ..config("all")
    });
    let v4 = out("10.0.0.7", "8.8.8.8", 17, &udp(1, 2, b""));
    assert!(!bench.passes(&v4));
    let mut message = dhcp(2, MAC);
    message[16..20].copy_from_slice(&[10, 0, 0, 7]);
    message.truncate(240);
    message.extend([53, 1, 5, 0, 3, 4, 10, 0, 0, 9, 255]);
    let offer = |message: &[u8]| inward("10.0.0.1", "255.255.255.255", 17, &udp(67, 68, message));
    let mut others = message.clone();
    others[28..34].copy_from_slice(&ROUTER.0);
    bench.gets(&offer(&others));
    assert!(!bench.passes(&v4), "an answer to somebody else");
    bench.gets(&offer(&message));
    assert!(bench.passes(&v4));
    assert!(bench.guard.is_router("10.0.0.9".parse().unwrap()));
    let prefix: Ipv6Addr = "2001:db8:1::".parse().unwrap();
    let option = [&[3, 4, 64, 0xc0][..], &[0; 12], &prefix.octets()].concat();
    bench.gets(&inward(
        "fe80::9",
        "ff02::1",
        58,
        &icmp(134, 0, &[&[0; 12][..], &option].concat()),
    ));
    assert!(bench.passes(&out(
        "2001:db8:1::ff:fe00:1",
        "2001::1",
        17,
        &udp(1, 2, b"")
    )));
    assert!(!bench.passes(&out("2001:db8:1::1", "2001::1", 17, &udp(1, 2, b""))));
}

#[test]
fn a_list_lets_out_what_it_names() {
    let mut bench = Bench::new("1.2.3.0/24,9.9.9.9:443/tcp,db.test:5432,[2001:db8::/32]:7/udp");
    let mut to = |to: &str, protocol: u8, body: &[u8]| {
        let from = if to.contains(':') {
            "fd00::2"
        } else {
            "10.0.0.2"
        };
        bench.passes(&out(from, to, protocol, body))
    };
    assert!(to("1.2.3.4", 6, &tcp(1, 22, SYN)) && to("1.2.3.4", 17, &udp(1, 9, b"")));
    assert!(to("1.2.3.4", 1, &icmp(8, 0, &[0; 4])));
    assert!(to("9.9.9.9", 6, &tcp(1, 443, SYN)) && to("5.5.5.5", 6, &tcp(1, 5432, SYN)));
    assert!(to("2001:db8::5", 17, &udp(1, 7, b"")));
    assert!(to("10.0.0.53", 17, &udp(1, 53, b"")) && to("10.0.0.53", 6, &tcp(1, 53, SYN)));
    let refused: [(&str, u8, Vec<u8>); 12] = [
        ("1.2.4.4", 6, tcp(1, 22, SYN)),
        ("1.2.4.4", 6, tcp(1, 22, ACK)),
        ("9.9.9.9", 6, tcp(1, 80, SYN)),
        ("9.9.9.9", 17, udp(1, 443, b"")),
        ("9.9.9.9", 1, icmp(8, 0, &[0; 4])),
        ("5.5.5.5", 6, tcp(1, 22, SYN)),
        ("8.8.8.8", 17, udp(1, 53, b"")),
        ("10.0.0.53", 17, udp(1, 5353, b"")),
        ("10.0.0.53", 17, udp(53, 54, b"")),
        (
            "1.2.3.4",
            4,
            ipv4("10.0.0.2", "8.8.8.8", 17, &udp(1, 9, b"")),
        ),
        ("1.2.3.4", 132, vec![0; 12]),
        ("2001:db8::5", 6, tcp(1, 7, SYN)),
    ];
    for (address, protocol, body) in refused {
        assert!(!to(address, protocol, &body), "{address} {protocol}");
    }
}

#[test]
fn groups_and_everybody_are_not_reached_by_other_ways() {
    let mut bench = Bench::new("1.2.3.4,10.0.0.0/24");
    let body = udp(1, 9, b"");
    for to in ["224.0.0.251", "255.255.255.255", "239.1.1.1"] {
        assert!(
            !bench.passes(&framed(Mac::BROADCAST, MAC, "10.0.0.2", to, 17, &body)),
            "{to}"
        );
    }
    assert!(!bench.passes(&framed(
        Mac::BROADCAST,
        MAC,
        "10.0.0.2",
        "1.2.3.4",
        17,
        &body
    )));
    assert!(!bench.passes(&framed(
        Mac([0x33, 0x33, 0, 0, 0, 1]),
        MAC,
        LOCAL,
        "ff02::fb",
        17,
        &body
    )));
}

#[test]
fn fragments_go_only_where_ports_do_not_matter() {
    let mut bench = Bench::new("1.2.3.4,9.9.9.9:443");
    for (place, ok) in [([0x20, 0], true), ([0, 1], true), ([0x20, 0xb9], true)] {
        let mut whole = out("10.0.0.2", "1.2.3.4", 17, &udp(1, 443, &[0; 16]));
        whole[20..22].copy_from_slice(&place);
        assert_eq!(bench.passes(&whole), ok);
        let mut port = out("10.0.0.2", "9.9.9.9", 17, &udp(1, 443, &[0; 16]));
        port[20..22].copy_from_slice(&place);
        assert!(!bench.passes(&port));
        let mut none = out("10.0.0.2", "8.8.8.8", 17, &udp(1, 443, &[0; 16]));
        none[20..22].copy_from_slice(&place);
        assert!(!bench.passes(&none));
    }
}

#[test]
fn headers_between_hide_nothing() {
    let mut bench = Bench::new("[2001:db8::1]:443,2001:db8::2");
    let chain = |first: &[u8]| [first, &tcp(1, 443, SYN)].concat();
    assert!(bench.passes(&out("fd00::2", "2001:db8::1", 6, &tcp(1, 443, SYN))));
    let options = chain(&[6, 0, 1, 4, 0, 0, 0, 0]);
    assert!(bench.passes(&out("fd00::2", "2001:db8::2", 60, &options)));
    assert!(!bench.passes(&out("fd00::2", "2001:db8::1", 60, &options)));
    assert!(!bench.passes(&out("fd00::2", "2001:db8::3", 60, &options)));
    // A way that leads on to somebody else.
    assert_eq!(
        bench.sends(&out("fd00::2", "2001:db8::2", 43, &options)),
        Verdict::Drop(Reason::Routed)
    );
    let mut all = Bench::new("all");
    assert_eq!(
        all.sends(&out("fd00::2", "2001:db8::2", 43, &options)),
        Verdict::Drop(Reason::Routed)
    );
    let mut source = out(
        "10.0.0.2",
        "1.2.3.4",
        17,
        &[&[131, 7, 4, 8, 8, 8, 8, 0][..], &udp(1, 2, b"")].concat(),
    );
    source[14] = 0x47;
    assert_eq!(all.sends(&source), Verdict::Drop(Reason::Routed));
}

#[test]
fn under_none_only_answers_to_others_pass() {
    let mut bench = Bench::new("none");
    assert!(!bench.passes(&out("10.0.0.2", "10.0.0.53", 17, &udp(1, 53, b""))));
    assert!(!bench.passes(&out("10.0.0.2", "7.7.7.7", 6, &tcp(80, 5000, SYN))));
    let answer = out("10.0.0.2", "7.7.7.7", 6, &tcp(80, 5000, SYN | ACK));
    assert!(!bench.passes(&answer));
    bench.gets(&inward("7.7.7.7", "10.0.0.2", 6, &tcp(5000, 80, SYN)));
    assert!(bench.passes(&answer));
    bench.gets(&inward("7.7.7.7", "10.0.0.2", 6, &tcp(5000, 80, ACK)));
    bench.later(Duration::from_hours(2));
    assert!(bench.passes(&out("10.0.0.2", "7.7.7.7", 6, &tcp(80, 5000, ACK))));
    // That connection, and no other.
    for flags in [SYN, SYN | Tcp::FIN, SYN | Tcp::RST] {
        assert!(!bench.passes(&out("10.0.0.2", "7.7.7.7", 6, &tcp(80, 5000, flags))));
    }
    assert!(!bench.passes(&out("10.0.0.2", "7.7.7.7", 6, &tcp(80, 5001, ACK))));
    assert!(!bench.passes(&out("10.0.0.2", "7.7.7.7", 6, &tcp(81, 5000, ACK))));
    assert!(!bench.passes(&out("10.0.0.2", "7.7.7.7", 17, &udp(80, 5000, b""))));
    // It is over when one side says so at once, or after a while when both do.
    bench.gets(&inward("7.7.7.7", "10.0.0.2", 6, &tcp(5000, 80, Tcp::RST)));
    assert!(!bench.passes(&out("10.0.0.2", "7.7.7.7", 6, &tcp(80, 5000, ACK))));
    bench.gets(&inward("7.7.7.7", "10.0.0.2", 6, &tcp(5002, 80, SYN)));
    bench.gets(&inward(
        "7.7.7.7",
        "10.0.0.2",
        6,
        &tcp(5002, 80, ACK | Tcp::FIN),
    ));
    assert!(bench.passes(&out(
        "10.0.0.2",
        "7.7.7.7",
        6,
        &tcp(80, 5002, ACK | Tcp::FIN)
    )));
    bench.later(Duration::from_mins(10));
    assert!(!bench.passes(&out("10.0.0.2", "7.7.7.7", 6, &tcp(80, 5002, ACK))));
}

#[test]
fn datagrams_and_echo_are_answered_for_as_long_as_somebody_asks() {
    let mut bench = Bench::new("none");
    let answer = out("fd00::2", "2001::7", 17, &udp(53, 999, b"x"));
    assert!(!bench.passes(&answer));
    bench.gets(&inward("2001::7", "fd00::2", 17, &udp(999, 53, b"q")));
    for _ in 0..3 {
        bench.later(Duration::from_secs(25));
        let _ = bench.passes(&answer);
    }
    assert!(
        !bench.passes(&answer),
        "the guest itself can't keep it open"
    );
    let reply = |kind, id| out("10.0.0.2", "7.7.7.7", 1, &icmp(kind, 0, &[0, id, 0, 1]));
    assert!(!bench.passes(&reply(0, 5)));
    bench.gets(&inward(
        "7.7.7.7",
        "10.0.0.2",
        1,
        &icmp(8, 0, &[0, 5, 0, 1]),
    ));
    assert!(bench.passes(&reply(0, 5)));
    assert!(!bench.passes(&reply(0, 6)) && !bench.passes(&reply(8, 5)));
    // Nobody listens at that port.
    let query = ipv4("7.7.7.7", "10.0.0.2", 17, &udp(4000, 9, b"q"));
    let error = out(
        "10.0.0.2",
        "7.7.7.7",
        1,
        &icmp(3, 3, &[&[0; 4][..], &query].concat()),
    );
    assert!(!bench.passes(&error));
    bench.gets(&inward("7.7.7.7", "10.0.0.2", 17, &udp(4000, 9, b"q")));
    assert!(bench.passes(&error));
    let elsewhere = out(
        "10.0.0.2",
        "7.7.7.8",
        1,
        &icmp(3, 3, &[&[0; 4][..], &query].concat()),
    );
    assert!(!bench.passes(&elsewhere));
}

#[test]
fn what_is_sent_to_others_opens_nothing() {
    let mut bench = Bench::new("none");
    bench.gets(&inward("7.7.7.7", "10.0.0.9", 6, &tcp(5000, 80, SYN)));
    assert!(!bench.passes(&out("10.0.0.2", "7.7.7.7", 6, &tcp(80, 5000, ACK))));
}

#[test]
fn a_flood_of_connections_forgets_idle_ones_and_is_bounded() {
    let mut bench = Bench::new("none");
    let open = |bench: &mut Bench, from: u32, port: u16| {
        let from = Ipv4Addr::from(from).to_string();
        bench.gets(&inward(&from, "10.0.0.2", 6, &tcp(port, 80, SYN)));
    };
    open(&mut bench, 0x0707_0707, 1);
    let mine = out("10.0.0.2", "7.7.7.7", 6, &tcp(80, 1, ACK));
    for index in 0..100_000 {
        open(&mut bench, 0x0800_0000 + index, 2);
        if index % 1000 == 0 {
            assert!(bench.passes(&mine), "one that is used is kept");
        }
    }
    assert!(
        bench.guard.flows.len() <= 33_000,
        "{}",
        bench.guard.flows.len()
    );
}

fn asked(port: u16, id: u16, name: &str) -> Vec<u8> {
    let mut message = id.to_be_bytes().to_vec();
    message.extend([1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    for label in name.split('.') {
        message.push(label.len().try_into().unwrap());
        message.extend(label.bytes());
    }
    message.extend([0, 0, 1, 0, 1]);
    out("10.0.0.2", "10.0.0.53", 17, &udp(port, 53, &message))
}

fn told(port: u16, id: u16, name: &str, addresses: &[&str], lifetime: u32) -> Vec<u8> {
    let question = Question {
        id,
        name: name.to_owned(),
        kind: dns::A,
        recursion: true,
    };
    let records: Vec<_> = addresses
        .iter()
        .map(|text| Record::Address(text.parse().unwrap()))
        .collect();
    let message = write_answer(&question, dns::Code::Success, &records, lifetime);
    inward("10.0.0.53", "10.0.0.2", 17, &udp(53, port, &message))
}

#[test]
fn a_name_of_the_list_means_what_the_resolver_says() {
    let mut bench = Bench::new("db.test:5432");
    let to = |address: &str, port| out("10.0.0.2", address, 6, &tcp(1, port, SYN));
    assert!(!bench.passes(&to("6.6.6.6", 5432)));
    bench.gets(&told(9, 1, "db.test", &["6.6.6.6"], 300));
    assert!(!bench.passes(&to("6.6.6.6", 5432)), "nobody had asked");
    assert!(bench.passes(&asked(9, 1, "db.test")));
    for forged in [
        told(9, 2, "db.test", &["6.6.6.6"], 300),
        told(8, 1, "db.test", &["6.6.6.6"], 300),
        told(9, 1, "db.tes", &["6.6.6.6"], 300),
    ] {
        bench.gets(&forged);
    }
    assert!(
        !bench.passes(&to("6.6.6.6", 5432)),
        "an answer to another question"
    );
    bench.gets(&told(
        9,
        1,
        "db.test",
        &["6.6.6.6", "10.0.0.1", "127.0.0.1", "169.254.1.1"],
        300,
    ));
    assert!(bench.passes(&to("6.6.6.6", 5432)) && !bench.passes(&to("6.6.6.6", 80)));
    for special in ["10.0.0.1", "127.0.0.1", "169.254.1.1"] {
        assert!(!bench.passes(&to(special, 5432)), "{special}");
    }
    assert!(bench.passes(&asked(9, 3, "other.test")));
    bench.gets(&told(9, 3, "other.test", &["6.6.6.9"], 300));
    assert!(
        !bench.passes(&to("6.6.6.9", 5432)),
        "a name that is not of the list"
    );
    // When its time is over, what was begun goes on, and nothing else begins.
    bench.gets(&inward("6.6.6.6", "10.0.0.2", 6, &tcp(5432, 1, SYN | ACK)));
    bench.later(Duration::from_secs(301));
    assert!(!bench.passes(&to("6.6.6.6", 5432)));
    assert!(bench.passes(&out("10.0.0.2", "6.6.6.6", 6, &tcp(1, 5432, ACK))));
    assert!(!bench.passes(&out("10.0.0.2", "6.6.6.6", 6, &tcp(2, 5432, ACK))));
    assert!(
        bench.passes(&to("5.5.5.5", 5432)),
        "what the host resolved stays"
    );
}

#[test]
fn answers_are_believed_in_bounds() {
    let mut bench = Bench::new("db.test");
    for round in 0..50u16 {
        assert!(bench.passes(&asked(9, round, "db.test")));
        let addresses: Vec<_> = (0..20).map(|n| format!("6.6.{round}.{n}")).collect();
        let addresses: Vec<_> = addresses.iter().map(String::as_str).collect();
        bench.gets(&told(
            9,
            round,
            "db.test",
            &addresses,
            300 + u32::from(round),
        ));
    }
    let mut reached = |address: &str| bench.passes(&out("10.0.0.2", address, 6, &tcp(1, 2, SYN)));
    assert!(reached("6.6.49.3") && !reached("6.6.1.3"));
}

#[test]
fn the_networks_own_range_is_not_on_the_way_out() {
    let mut bench = Bench::of(GuardConfig {
        inside: vec!["10.0.0.0/24".parse().unwrap()],
        ..config("all")
    });
    assert!(bench.passes(&out("10.0.0.2", "10.0.0.1", 6, &tcp(1, 2, SYN))));
    assert!(!bench.passes(&out("10.0.0.2", "10.0.0.3", 6, &tcp(1, 2, SYN))));
}

proptest! {
    /// Under `none`, whatever bytes a guest sends: what passes reaches nobody beyond the host.
    #[test]
    fn nothing_gets_out_under_none(change in proptest::collection::vec((12usize..90, any::<u8>()), 0..6), start in 0usize..6) {
        let frames = [
            out("10.0.0.2", "7.7.7.7", 6, &tcp(1, 2, SYN)),
            out("10.0.0.2", "7.7.7.7", 17, &udp(1, 2, &[0; 20])),
            out("fd00::2", "2001::7", 6, &tcp(1, 2, SYN)),
            out("fd00::2", "2001::7", 60, &[&[17, 0, 1, 4, 0, 0, 0, 0][..], &udp(1, 2, &[0; 20])].concat()),
            out("10.0.0.2", "7.7.7.7", 1, &icmp(8, 0, &[0; 40])),
            out("fd00::2", "2001::7", 58, &icmp(128, 0, &[0; 40])),
        ];
        let mut frame = frames[start].clone();
        for (at, value) in change {
            if let Some(byte) = frame.get_mut(at) {
                *byte = value;
            }
        }
        let mut bench = Bench::new("none");
        if bench.passes(&frame) {
            let read = Frame::parse(&frame, frame.len()).unwrap();
            let near = match read.content {
                Content::Arp(_) => true,
                Content::Ip(packet) => match packet.destination {
                    IpAddr::V4(v4) => v4.is_broadcast() || v4 == Ipv4Addr::new(10, 0, 0, 1),
                    IpAddr::V6(v6) => v6.is_multicast() || packet.hops == 255 && packet.protocol == 58,
                },
            };
            prop_assert!(near, "{read:?}");
        }
    }

    #[test]
    fn no_bytes_are_too_odd_for_it(bytes in proptest::collection::vec(any::<u8>(), 0..300), policy in 0usize..3) {
        let mut bench = Bench::new(["all", "none", "1.2.3.0/24,db.test:1"][policy]);
        let mut bytes = bytes;
        if let Some(header) = bytes.get_mut(6..12) {
            header.copy_from_slice(&MAC.0);
        }
        bench.gets(&bytes);
        let _ = bench.sends(&bytes);
    }
}
