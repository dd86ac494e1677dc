//! Egress policies: what root in a guest sends by hand, and what the host hears of it.

use std::fmt::Write as _;
use std::fs;
use std::net::Ipv4Addr;
use std::process::Command;

use anyhow::{Result, ensure};
use casita_tests::place::Place;
use casita_tests::run::{Program, Running};
use casita_tests::suite::Suite;
use casita_tests::vm::Vm;
use casita_tests::{image, machine};

use super::net::{SERVE, get, ip, local, until};

pub fn tests(suite: &mut Suite) {
    let tap = || {
        let root =
            (!machine::is_root()).then(|| "needs root, to make network interfaces".to_owned());
        root.or_else(|| machine::lacks("ip", "iproute2"))
            .or_else(|| machine::lacks("cc", "gcc"))
            .or_else(|| machine::lacks_file("/dev/net/tun".as_ref()))
    };
    suite.test_if(tap(), "frames_by_hand_do_not_get_round_a_list", by_hand);
    let passt = || machine::lacks("passt", "passt");
    suite.test_if(
        passt(),
        "under_none_a_published_port_answers_and_nothing_gets_out",
        none,
    );
    suite.test_if(passt(), "a_name_of_a_list_is_known_in_the_guest", names);
}

const GUEST_MAC: [u8; 6] = [2, 0, 0, 0, 9, 2];
const HOST_MAC: [u8; 6] = [2, 0, 0, 0, 9, 1];
const GUEST: Ipv4Addr = Ipv4Addr::new(10, 99, 9, 2);
const HOST: Ipv4Addr = Ipv4Addr::new(10, 99, 9, 1);

/// A frame, what it is, and whether the list lets it out.
struct Case {
    name: &'static str,
    frame: Vec<u8>,
    allowed: bool,
}

fn eth(from: [u8; 6], kind: u16, packet: &[u8]) -> Vec<u8> {
    [&HOST_MAC[..], &from, &kind.to_be_bytes(), packet].concat()
}

fn ipv4(from: Ipv4Addr, to: Ipv4Addr, protocol: u8, place: [u8; 2], body: &[u8]) -> Vec<u8> {
    let len = u16::try_from(20 + body.len())
        .unwrap_or_default()
        .to_be_bytes();
    let mut packet = vec![
        0x45, 0, len[0], len[1], 0, 9, place[0], place[1], 64, protocol, 0, 0,
    ];
    packet.extend(from.octets());
    packet.extend(to.octets());
    let sum: u32 = packet
        .chunks(2)
        .map(|word| u32::from(word[0]) << 8 | u32::from(word[1]))
        .sum();
    let sum = !(((sum & 0xffff) + (sum >> 16)) as u16);
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    packet.extend(body);
    packet
}

fn ipv6(from: &str, to: &str, next: u8, hops: u8, body: &[u8]) -> Result<Vec<u8>> {
    let len = u16::try_from(body.len())?.to_be_bytes();
    let mut packet = vec![0x60, 0, 0, 0, len[0], len[1], next, hops];
    packet.extend(from.parse::<std::net::Ipv6Addr>()?.octets());
    packet.extend(to.parse::<std::net::Ipv6Addr>()?.octets());
    packet.extend(body);
    Ok(packet)
}

fn udp(from: u16, to: u16, name: &str) -> Vec<u8> {
    let data = marker(name);
    let len = u16::try_from(8 + data.len()).unwrap_or_default();
    let mut datagram = [from.to_be_bytes(), to.to_be_bytes(), len.to_be_bytes()].concat();
    datagram.extend([0, 0]);
    datagram.extend(data);
    datagram
}

/// By which a frame is told from others.
fn marker(name: &str) -> Vec<u8> {
    format!("<{name}>").into_bytes()
}

fn arp(operation: u8, claimed: Ipv4Addr, name: &str) -> Vec<u8> {
    let mut packet = vec![0, 1, 8, 0, 6, 4, 0, operation];
    packet.extend(GUEST_MAC);
    packet.extend(claimed.octets());
    packet.extend([0; 6]);
    packet.extend(HOST.octets());
    packet.extend(marker(name));
    packet
}

fn dhcp(operation: u8, mac: [u8; 6], name: &str) -> Vec<u8> {
    let mut message = vec![operation, 1, 6, 0];
    message.extend([0; 24]);
    message.extend(mac);
    message.extend([0; 202]);
    message.extend(marker(name));
    message
}

#[allow(clippy::too_many_lines, reason = "a table")]
fn cases() -> Result<Vec<Case>> {
    const TCP_SYN: [u8; 20] = [
        0x30, 0x39, 0x1b, 0x59, 0, 0, 0, 1, 0, 0, 0, 0, 0x50, 2, 16, 0, 0, 0, 0, 0,
    ];
    let v4 = |name, from, protocol, place, body: &[u8], allowed| Case {
        name,
        frame: eth(GUEST_MAC, 0x0800, &ipv4(from, HOST, protocol, place, body)),
        allowed,
    };
    let whole = [0, 0];
    let plain = |name, port, allowed| v4(name, GUEST, 17, whole, &udp(4000, port, name), allowed);
    let server = |name, body: Vec<u8>, from: u16, to: u16| {
        let len = u16::try_from(8 + body.len()).unwrap_or_default();
        let head = [
            from.to_be_bytes(),
            to.to_be_bytes(),
            len.to_be_bytes(),
            [0, 0],
        ]
        .concat();
        v4(name, GUEST, 17, whole, &[head, body].concat(), false)
    };
    let v6 = |name, from: &str, next, hops, body: &[u8]| -> Result<Case> {
        Ok(Case {
            name,
            frame: eth(GUEST_MAC, 0x86dd, &ipv6(from, "fd99::1", next, hops, body)?),
            allowed: false,
        })
    };
    let options = |name: &str| [&[17, 0, 1, 4, 0, 0, 0, 0][..], &udp(4000, 7000, name)].concat();
    let advertisement = |name: &str| [&[134, 0, 0, 0][..], &[0; 12], &marker(name)].concat();
    Ok(vec![
        plain("allowed", 7000, true),
        plain("another port", 7001, false),
        plain("dns", 53, false),
        plain("dns over 5353", 5353, false),
        Case {
            name: "spoofed mac",
            frame: eth(
                [2, 0, 0, 0, 9, 7],
                0x0800,
                &ipv4(GUEST, HOST, 17, whole, &udp(4000, 7000, "spoofed mac")),
            ),
            allowed: false,
        },
        v4(
            "spoofed ip",
            Ipv4Addr::new(10, 99, 9, 7),
            17,
            whole,
            &udp(4000, 7000, "spoofed ip"),
            false,
        ),
        v4(
            "first fragment",
            GUEST,
            17,
            [0x20, 0],
            &udp(4000, 7000, "first fragment"),
            false,
        ),
        v4(
            "later fragment",
            GUEST,
            17,
            [0, 9],
            &marker("later fragment"),
            false,
        ),
        v4(
            "tunnel",
            GUEST,
            4,
            whole,
            &ipv4(GUEST, HOST, 17, whole, &udp(4000, 7000, "tunnel")),
            false,
        ),
        v4("sctp", GUEST, 132, whole, &marker("sctp"), false),
        v4(
            "echo",
            GUEST,
            1,
            whole,
            &[&[8, 0, 0, 0, 0, 1, 0, 1][..], &marker("echo")].concat(),
            false,
        ),
        v4(
            "tcp",
            GUEST,
            6,
            whole,
            &[&TCP_SYN[..], &marker("tcp")].concat(),
            false,
        ),
        Case {
            name: "vlan",
            frame: eth(
                GUEST_MAC,
                0x8100,
                &[
                    &[0, 5, 8, 0][..],
                    &ipv4(GUEST, HOST, 17, whole, &udp(4000, 7000, "vlan")),
                ]
                .concat(),
            ),
            allowed: false,
        },
        Case {
            name: "odd type",
            frame: eth(GUEST_MAC, 0x88b5, &marker("odd type")),
            allowed: false,
        },
        Case {
            name: "arp question",
            frame: eth(GUEST_MAC, 0x0806, &arp(1, GUEST, "arp question")),
            allowed: true,
        },
        Case {
            name: "arp claim",
            frame: eth(GUEST_MAC, 0x0806, &arp(2, HOST, "arp claim")),
            allowed: false,
        },
        server("dhcp answer", dhcp(2, GUEST_MAC, "dhcp answer"), 67, 68),
        server(
            "dhcp for another",
            dhcp(1, HOST_MAC, "dhcp for another"),
            68,
            67,
        ),
        v6("ipv6", "fd99::2", 17, 64, &udp(4000, 7000, "ipv6"))?,
        v6(
            "spoofed ipv6",
            "fd99::7",
            17,
            64,
            &udp(4000, 7000, "spoofed ipv6"),
        )?,
        v6("ipv6 options", "fd99::2", 60, 64, &options("ipv6 options"))?,
        v6(
            "router",
            "fe80::ff:fe00:902",
            58,
            255,
            &advertisement("router"),
        )?,
    ])
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// A root with the sender of frames in it.
fn sender(place: &Place) -> Result<()> {
    let (tree, source) = (place.path("tree"), place.path("raw-frames.c"));
    image::tree(&tree, "")?;
    fs::write(&source, include_str!("raw-frames.c"))?;
    let built = Command::new("cc")
        .args(["-static", "-O1", "-o"])
        .args([&tree.join("bin/raw-frames"), &source])
        .status()?;
    ensure!(built.success(), "the sender does not compile");
    Ok(())
}

/// What the host hears of `cases` from a guest with these options, by name.
fn heard(options: &[&str], cases: &[Case]) -> Result<Vec<&'static str>> {
    let place = Place::new()?;
    sender(&place)?;
    let fixed = [
        "--rootfs",
        "tree",
        "--net",
        "tap:cst9",
        "--mac",
        "02:00:00:00:09:02",
        "--ip",
        "10.99.9.2/24,gw=10.99.9.1",
        "--ip",
        "fd99::2",
    ];
    let vm = Vm::start(&place, &[&fixed, options].concat(), "sleep 1000")?;
    ip("link set cst9 address 02:00:00:00:09:01")?;
    ip("addr add 10.99.9.1/24 dev cst9")?;
    let ear: Running = Program::new([
        place.text("tree/bin/raw-frames"),
        "hear".into(),
        "cst9".into(),
    ])
    .start()?;
    ear.wait_for("hearing")?;
    let last = eth(
        GUEST_MAC,
        0x0800,
        &ipv4(GUEST, HOST, 17, [0, 0], &udp(4000, 7000, "last")),
    );
    let mut words = vec!["raw-frames", "send", "eth0"];
    let frames: Vec<String> = cases
        .iter()
        .map(|case| hex(&case.frame))
        .chain([hex(&last)])
        .collect();
    words.extend(frames.iter().map(String::as_str));
    vm.exec(&[], &words).finish()?.expect(0)?;
    ear.wait_for(&hex(&marker("last")))?;
    ear.signal(rustix::process::Signal::TERM)?;
    let text = ear.finish()?.text();
    let found = cases
        .iter()
        .filter(|case| text.contains(&hex(&marker(case.name))));
    Ok(found.map(|case| case.name).collect())
}

fn by_hand() -> Result<()> {
    let cases = cases()?;
    let all = heard(&[], &cases)?;
    let silent: Vec<_> = cases
        .iter()
        .map(|case| case.name)
        .filter(|name| !all.contains(name))
        .collect();
    ensure!(
        silent.is_empty(),
        "not heard though everything is allowed: {silent:?}"
    );
    let listed = heard(&["--egress", "10.99.9.1:7000/udp"], &cases)?;
    for case in &cases {
        ensure!(
            listed.contains(&case.name) == case.allowed,
            "{}: heard {}, allowed {}",
            case.name,
            listed.contains(&case.name),
            case.allowed
        );
    }
    Ok(())
}

fn none() -> Result<()> {
    let place = Place::new()?;
    let options = [
        "-p",
        "127.0.0.1::80",
        "--egress",
        "none",
        "--memory",
        "128M",
    ];
    let vm = Vm::start(&place, &options, SERVE)?;
    let server = local(&vm, 80)?;
    ensure!(until(|| get(server))? == "hello\n");
    ensure!(
        vm.inspect()?["network"]["egress"] == "none",
        "{}",
        vm.inspect()?
    );
    let script = "for at in 10.0.2.2 192.0.2.1; do ping -c 1 -W 1 $at > /dev/null && echo REACHED; done; true";
    let text = vm.asks(script)?;
    ensure!(text.is_empty(), "{text}");
    ensure!(get(server)? == "hello\n", "it has gone silent");
    Ok(())
}

fn names() -> Result<()> {
    let place = Place::new()?;
    let own = casita_tests::run::Program::new(["hostname"])
        .finish()?
        .expect(0)?
        .text();
    let own = own.trim();
    let options = ["--egress", &format!("{own}:80"), "--name", "n"];
    let finished = super::vm(&place, &options, "cat /etc/hosts").finish()?;
    // A host whose own name means nothing, or itself alone, says so.
    if finished.status.code() == Some(125) {
        ensure!(finished.complaint().contains(own), "{finished}");
        return Ok(());
    }
    finished.expect(0)?.says(&[own])?;
    Ok(())
}
