//! Ports of one process, without guests: what is sent by one is received by another.

use std::net::Ipv4Addr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixDatagram;
use std::time::Duration;

use casita_devices::virtio::net::backend::{HEAD_LEN, MAX_FRAME_LEN};
use casita_devices::virtio::net::pieces::PiecesMut;
use casita_net::subnet;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::*;
use crate::dirs::Dirs;
use crate::networks::{Join, Networks, Subnet6};

/// What is sent to the uplink comes out of a socket, and the other way round.
struct Wire(UnixDatagram);

impl Backend for Wire {
    fn fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    fn abilities(&self) -> Abilities {
        let offloads = Offloads::CHECKSUM;
        Abilities {
            from_guest: offloads,
            to_guest: offloads,
        }
    }

    fn set_offloads(&mut self, _: Offloads) -> io::Result<()> {
        Ok(())
    }

    fn send(&mut self, frame: &Frame<'_>) -> Sent {
        match self.0.send(&frame.to_vec()) {
            Ok(_) => Sent::Done,
            Err(_) => Sent::Dropped,
        }
    }

    fn receive(&mut self, landing: &mut Landing<'_>) -> Received {
        let mut buffer = vec![0; 70_000];
        match self.0.recv(&mut buffer) {
            Ok(len) if landing.place(&buffer[..len]) => Received::Frame {
                header: VnetHeader::default(),
                len,
            },
            Ok(_) => Received::Dropped,
            Err(_) => Received::Nothing,
        }
    }
}

struct Yard {
    _dir: tempfile::TempDir,
    networks: Networks,
}

struct Port {
    switch: Switch,
    outside: UnixDatagram,
    mac: Mac,
    ipv4: Ipv4Addr,
    ipv6: std::net::Ipv6Addr,
}

const ROUTER: Mac = Mac([2, 0, 0, 0, 9, 9]);
const GATEWAY: &str = "10.77.0.1";

impl Yard {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let networks = Networks::open(&Dirs::below(dir.path())).unwrap();
        for (name, range) in [("n", "10.77.0.0/24"), ("other", "10.78.0.0/24")] {
            let six = Subnet6::Given("fd77::/64".parse().unwrap());
            networks
                .create(name, Some(range.parse().unwrap()), six)
                .unwrap();
        }
        Self {
            _dir: dir,
            networks,
        }
    }

    fn member(&self, network: &str, id: &str, last: u8) -> Membership {
        let join = Join {
            id: id.to_owned(),
            names: vec![format!("vm-{id}"), format!("alias-{id}")],
            mac: format!("02:00:00:00:00:{last:02x}").parse().unwrap(),
            process: std::process::id(),
        };
        self.networks.join(network, &join).unwrap()
    }

    fn port_with(&self, network: &str, id: &str, last: u8, policy: &str) -> Port {
        let membership = self.member(network, id, last);
        let member = membership.member().clone();
        let (IpAddr::V4(ipv4), Some(IpAddr::V6(ipv6))) = (member.ipv4, member.ipv6) else {
            panic!("{member:?}")
        };
        let gateway: IpAddr = GATEWAY.parse().unwrap();
        let config = SwitchConfig {
            gateways: vec![gateway],
            resolvers: vec![gateway],
            forwards: true,
            policy: policy.parse().unwrap(),
            ..SwitchConfig::default()
        };
        let (inside, outside) = UnixDatagram::pair().unwrap();
        inside.set_nonblocking(true).unwrap();
        outside.set_nonblocking(true).unwrap();
        let mut switch = Switch::new(membership, Box::new(Wire(inside)), config).unwrap();
        switch.set_offloads(Offloads::CHECKSUM).unwrap();
        Port {
            switch,
            outside,
            mac: Mac(member.mac.0),
            ipv4,
            ipv6,
        }
    }

    fn port(&self, id: &str, last: u8) -> Port {
        self.port_with("n", id, last, "all")
    }
}

impl Port {
    fn send(&mut self, frame: &[u8]) -> Sent {
        self.switch.send(&Frame::of_bytes(frame))
    }

    /// A frame that has come already.
    fn take(&mut self) -> Option<Vec<u8>> {
        let (mut head, mut rest) = ([0; HEAD_LEN], vec![0; MAX_FRAME_LEN as usize]);
        for _ in 0..1000 {
            let mut landing = Landing::new(&mut head, PiecesMut::of_bytes(&mut rest));
            match self.switch.receive(&mut landing) {
                Received::Frame { len, .. } => {
                    let mut frame = [&head[..], &rest].concat();
                    frame.truncate(len);
                    return Some(frame);
                }
                Received::Nothing => return None,
                _ => {}
            }
        }
        panic!("there is always something, and never a frame");
    }

    /// The next frame, which has been sent: sockets of one machine carry it at once, but a peer may
    /// have to be taken first.
    fn receive(&mut self) -> Vec<u8> {
        loop {
            if let Some(frame) = self.take() {
                return frame;
            }
            let side = self.switch.side_fd().unwrap().try_clone_to_owned().unwrap();
            let main = self.switch.fd().try_clone_to_owned().unwrap();
            assert!(readable(&[&side, &main]), "nothing comes");
        }
    }

    /// What has gone out through the uplink.
    fn left(&self) -> Option<Vec<u8>> {
        let mut buffer = vec![0; 70_000];
        let len = self.outside.recv(&mut buffer).ok()?;
        buffer.truncate(len);
        Some(buffer)
    }

    fn udp(&self, to: &Port, data: &[u8]) -> Vec<u8> {
        datagram(
            (self.mac, self.ipv4.into(), 7),
            (to.mac, to.ipv4.into(), 8),
            data,
        )
    }

    fn udp6(&self, to: &Port, data: &[u8]) -> Vec<u8> {
        datagram(
            (self.mac, self.ipv6.into(), 7),
            (to.mac, to.ipv6.into(), 8),
            data,
        )
    }

    /// Who has this address.
    fn arp(&mut self, target: Ipv4Addr) -> Sent {
        let mut packet = vec![0, 1, 8, 0, 6, 4, 0, 1];
        packet.extend(self.mac.0);
        packet.extend(self.ipv4.octets());
        packet.extend([0; 6]);
        packet.extend(target.octets());
        let frame = [&[0xff; 6][..], &self.mac.0, &[8, 6], &packet].concat();
        self.send(&frame)
    }

    /// Asks for a name; the addresses in the answer, if it comes from here.
    fn ask(&mut self, name: &str, kind: u16) -> Option<Vec<String>> {
        let mut message = vec![0, 5, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        for label in name.split('.') {
            message.push(label.len().try_into().unwrap());
            message.extend(label.bytes());
        }
        message.push(0);
        message.extend(kind.to_be_bytes());
        message.extend([0, 1]);
        let gateway = GATEWAY.parse().unwrap();
        let frame = datagram(
            (self.mac, self.ipv4.into(), 9),
            (ROUTER, gateway, 53),
            &message,
        );
        assert!(matches!(self.send(&frame), Sent::Done));
        let answer = self.take()?;
        let read = frame::Frame::parse(&answer, answer.len()).unwrap();
        assert_eq!((read.source, read.destination), (ROUTER, self.mac));
        let Upper::Udp(udp) = read.ip().unwrap().upper else {
            panic!("{read:?}")
        };
        let addresses = dns::read_answer(udp.data).map(|answer| answer.addresses);
        let addresses = addresses.unwrap_or_default();
        Some(
            addresses
                .iter()
                .map(|(address, _)| address.to_string())
                .collect(),
        )
    }
}

fn readable(fds: &[&OwnedFd]) -> bool {
    let patience = Timespec {
        tv_sec: 20,
        tv_nsec: 0,
    };
    let mut fds: Vec<_> = fds
        .iter()
        .map(|fd| PollFd::new(*fd, PollFlags::IN))
        .collect();
    poll(&mut fds, Some(&patience)).unwrap() > 0
}

fn datagram(from: (Mac, IpAddr, u16), to: (Mac, IpAddr, u16), data: &[u8]) -> Vec<u8> {
    let ends = Ends {
        from_mac: from.0,
        to_mac: to.0,
        from: (from.1, from.2),
        to: (to.1, to.2),
    };
    reply::udp(&ends, data).unwrap()
}

#[test]
fn members_reach_each_other_over_both_protocols() {
    let yard = Yard::new();
    let (mut a, mut b) = (yard.port("a", 1), yard.port("b", 2));
    for data in [b"small".to_vec(), vec![7; 60_000]] {
        for frame in [a.udp(&b, &data), a.udp6(&b, &data)] {
            assert!(matches!(a.send(&frame), Sent::Done));
            assert_eq!(b.receive(), frame);
        }
        let back = b.udp(&a, &data);
        assert!(matches!(b.send(&back), Sent::Done));
        assert_eq!(a.receive(), back);
    }
    assert_eq!((a.left(), b.left()), (None, None));
}

#[test]
fn addresses_of_members_are_told_here_and_others_by_the_uplink() {
    let yard = Yard::new();
    let (mut a, b) = (yard.port("a", 1), yard.port("b", 2));
    assert!(matches!(a.arp(b.ipv4), Sent::Done));
    let answer = a.take().unwrap();
    let read = frame::Frame::parse(&answer, answer.len()).unwrap();
    let Content::Arp(arp) = read.content else {
        panic!("{read:?}")
    };
    assert_eq!(arp.sender, (b.mac, b.ipv4));
    assert_eq!(a.left(), None);
    assert!(matches!(a.arp(GATEWAY.parse().unwrap()), Sent::Done));
    assert!(a.left().is_some() && a.take().is_none());
    // Neither free addresses of the range nor its own.
    assert!(matches!(a.arp("10.77.0.200".parse().unwrap()), Sent::Done));
    let own = a.ipv4;
    assert!(matches!(a.arp(own), Sent::Done));
    assert!(a.left().is_none() && a.take().is_none());
    drop(b);
    assert!(matches!(a.arp("10.77.0.5".parse().unwrap()), Sent::Done));
    assert!(a.take().is_none(), "it is gone");
}

#[test]
fn neighbours_are_told_here() {
    let yard = Yard::new();
    let (mut a, b) = (yard.port("a", 1), yard.port("b", 2));
    for target in [b.ipv6, b.mac.link_local()] {
        let mut body = vec![135, 0, 0, 0, 0, 0, 0, 0];
        body.extend(target.octets());
        let mut packet = vec![0x60, 0, 0, 0, 0, 24, 58, 255];
        packet.extend(a.ipv6.octets());
        packet.extend(target.octets());
        packet.extend(body);
        let frame = [&b.mac.0[..], &a.mac.0, &[0x86, 0xdd], &packet].concat();
        assert!(matches!(a.send(&frame), Sent::Done));
        let answer = a.take().unwrap();
        let read = frame::Frame::parse(&answer, answer.len()).unwrap();
        assert_eq!((read.source, read.destination), (b.mac, a.mac));
        let Upper::Icmp6(icmp) = read.ip().unwrap().upper else {
            panic!("{read:?}")
        };
        assert_eq!(icmp.kind, 136);
        assert_eq!(icmp.body[4..20], target.octets());
    }
}

#[test]
fn members_have_names_and_other_names_are_asked_outside() {
    let yard = Yard::new();
    let (mut a, b) = (yard.port("a", 1), yard.port("b", 2));
    let _other = yard.port_with("other", "x", 3, "all");
    assert_eq!(a.ask("vm-b", dns::A).unwrap(), [b.ipv4.to_string()]);
    assert_eq!(a.ask("ALIAS-B.n", dns::AAAA).unwrap(), [b.ipv6.to_string()]);
    assert_eq!(a.ask("b", dns::A).unwrap(), [b.ipv4.to_string()]);
    assert_eq!(a.ask("vm-a", dns::A).unwrap(), [a.ipv4.to_string()]);
    assert!(a.left().is_none());
    for name in ["vm-x", "example.org"] {
        assert_eq!(a.ask(name, dns::A), None);
        assert!(a.left().is_some(), "{name}");
    }
    let mut closed = yard.port_with("n", "c", 4, "none");
    assert_eq!(closed.ask("vm-b", dns::A).unwrap(), [b.ipv4.to_string()]);
    assert!(closed.ask("example.org", dns::A).unwrap().is_empty());
    assert!(closed.left().is_none());
    drop(b);
    assert_eq!(a.ask("vm-b", dns::A), None, "it is gone");
}

#[test]
fn nobody_speaks_for_another() {
    let yard = Yard::new();
    let (mut a, mut b, c) = (yard.port("a", 1), yard.port("b", 2), yard.port("c", 3));
    let (from_c, as_a) = (a.udp(&b, b"x"), (a.mac, IpAddr::from(c.ipv4), 7));
    let spoofed_mac = {
        let mut frame = from_c.clone();
        frame[6..12].copy_from_slice(&c.mac.0);
        frame
    };
    let spoofed_ip = datagram(as_a, (b.mac, b.ipv4.into(), 8), b"x");
    // To a member's MAC address, for somebody else behind it.
    let routed = datagram(
        (a.mac, a.ipv4.into(), 7),
        (b.mac, "8.8.8.8".parse().unwrap(), 8),
        b"x",
    );
    for frame in [spoofed_mac, spoofed_ip, routed] {
        assert!(matches!(a.send(&frame), Sent::Dropped));
    }
    assert!(matches!(a.send(&from_c), Sent::Done));
    assert_eq!(b.receive(), from_c, "and that is the only one");
    assert_eq!(b.take(), None);
    assert_eq!(a.left(), None);
}

#[test]
fn what_a_peers_monitor_sends_is_checked_again() {
    let yard = Yard::new();
    let mut b = yard.port("b", 2);
    // A member whose monitor does as it likes.
    let rogue = yard.member("n", "a", 1);
    let (mac, IpAddr::V4(ip)) = (Mac(rogue.member().mac.0), rogue.member().ipv4) else {
        panic!("no IPv4")
    };
    let socket = rogue_socket(&rogue);
    let header = [0; 12];
    let send = |bytes: &[u8]| {
        let _ = rustix::net::send(&socket, bytes, rustix::net::SendFlags::NOSIGNAL);
    };
    send(b"casita network 1 a");
    let to = (b.mac, IpAddr::from(b.ipv4), 8);
    let good = datagram((mac, ip.into(), 7), to, b"good");
    let wrong: [Vec<u8>; 5] = [
        datagram((Mac([2, 0, 0, 0, 0, 9]), ip.into(), 7), to, b"mac"),
        datagram((mac, GATEWAY.parse().unwrap(), 7), to, b"ip"),
        datagram(
            (mac, ip.into(), 7),
            (Mac([2, 0, 0, 0, 0, 9]), to.1, 8),
            b"to",
        ),
        datagram(
            (mac, ip.into(), 7),
            (b.mac, "10.77.0.99".parse().unwrap(), 8),
            b"to",
        ),
        [
            &b.mac.0[..],
            &mac.0,
            &[8, 6],
            &[0, 1, 8, 0, 6, 4, 0, 2],
            &mac.0,
            &[10, 77, 0, 1],
            &b.mac.0,
            &b.ipv4.octets(),
        ]
        .concat(),
    ];
    for frame in &wrong {
        send(&[&header[..], frame].concat());
    }
    send(b"short");
    send(&[0xff; 100]);
    // A header that asks for what nobody offers.
    send(&[&[1, 1, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0][..], &good].concat());
    send(&[&header[..], &good].concat());
    assert_eq!(b.receive(), good);
    assert_eq!(b.take(), None);
}

fn rogue_socket(member: &Membership) -> OwnedFd {
    rogue_socket_to(member, "b")
}

#[test]
fn a_stranger_is_not_listened_to() {
    let yard = Yard::new();
    let mut b = yard.port("b", 2);
    let rogue = yard.member("n", "a", 1);
    let a = rogue.member().clone();
    let frame = datagram((Mac(a.mac.0), a.ipv4, 7), (b.mac, b.ipv4.into(), 8), b"x");
    // One that says nothing, one that lies, and one whose process is another.
    for hello in [&b""[..], b"casita network 1 zz", b"x"] {
        let socket = rogue_socket(&rogue);
        for bytes in [hello, &[&[0; 12][..], &frame].concat()] {
            let _ = rustix::net::send(&socket, bytes, rustix::net::SendFlags::NOSIGNAL);
        }
        assert_eq!(b.take(), None);
    }
    let place = yard.networks.find("n").unwrap();
    let path = place.runtime().join("a/member.json");
    let text = std::fs::read_to_string(&path).unwrap();
    let own = format!("\"pid\": {}", std::process::id());
    std::fs::write(&path, text.replace(&own, "\"pid\": 1")).unwrap();
    let mut c = yard.port("c", 3);
    let socket = rogue_socket_to(&rogue, "c");
    for bytes in [&b"casita network 1 a"[..], &[&[0; 12][..], &frame].concat()] {
        let _ = rustix::net::send(&socket, bytes, rustix::net::SendFlags::NOSIGNAL);
    }
    assert_eq!(c.take(), None);
}

fn rogue_socket_to(member: &Membership, id: &str) -> OwnedFd {
    member.outside().connect(id).unwrap()
}

#[test]
fn many_connections_of_strangers_are_bounded() {
    let yard = Yard::new();
    let (mut b, mut a) = (yard.port("b", 2), yard.port("a", 1));
    let rogue = yard.member("n", "c", 3);
    let mut sockets = Vec::new();
    for _ in 0..5 {
        sockets.extend((0..100).map(|_| rogue_socket(&rogue)));
        assert_eq!(b.take(), None);
    }
    let frame = a.udp(&b, b"x");
    assert!(matches!(a.send(&frame), Sent::Done));
    assert_eq!(b.receive(), frame);
    assert!(b.switch.mesh.connections() <= 40);
}

#[test]
fn a_peer_that_does_not_read_costs_a_bounded_queue_and_nobody_waits() {
    let yard = Yard::new();
    let (mut a, mut slow, mut b) = (yard.port("a", 1), yard.port("s", 2), yard.port("b", 3));
    let (flood, other) = (a.udp(&slow, &vec![1; 60_000]), a.udp(&b, b"other"));
    let mut dropped = 0;
    for _ in 0..1000 {
        match a.send(&flood) {
            Sent::Done => {}
            Sent::Dropped => dropped += 1,
            other => panic!("{other:?}"),
        }
    }
    // 2 MiB of ours, and what the system gives a socket: 8 MiB at most.
    assert!(dropped > 800, "{dropped} of 1000 frames were lost");
    assert!(matches!(a.send(&other), Sent::Done));
    assert_eq!(b.receive(), other);
    // When it reads again, what waited arrives, in order, and it can be reached again.
    let mut arrived = 0;
    loop {
        let mut got = false;
        while slow.take().is_some() {
            arrived += 1;
            got = true;
        }
        // Its socket has room: the sender goes on.
        let _ = a.take();
        if !got && slow.take().is_none() {
            break;
        }
        arrived += i32::from(!got);
    }
    assert_eq!(arrived, 1000 - dropped);
    let last = a.udp(&slow, b"last");
    assert!(matches!(a.send(&last), Sent::Done));
    assert_eq!(slow.receive(), last);
}

#[test]
fn a_flood_of_one_peer_leaves_others_their_turns() {
    let yard = Yard::new();
    let (mut a, mut b, mut c) = (yard.port("a", 1), yard.port("b", 2), yard.port("c", 3));
    let (flood, one) = (a.udp(&b, b"flood"), c.udp(&b, b"one"));
    for _ in 0..200 {
        let _ = a.send(&flood);
    }
    assert!(matches!(c.send(&one), Sent::Done));
    let before = (0..1_000_000).take_while(|_| b.receive() != one).count();
    assert!(before < 20, "{before} frames came before it");
}

#[test]
fn a_peer_that_was_killed_is_not_found_and_is_when_it_is_back() {
    let yard = Yard::new();
    let (mut a, mut b) = (yard.port("a", 1), yard.port("b", 2));
    let frame = a.udp(&b, b"x");
    assert!(matches!(a.send(&frame), Sent::Done));
    assert_eq!(b.receive(), frame);
    // Its sockets close and its lock is free, but its folder is there.
    b.switch.mesh.forget_lock();
    let Port { switch, .. } = b;
    std::mem::forget(switch.mesh.break_off());
    assert!(matches!(a.arp("10.77.0.5".parse().unwrap()), Sent::Done));
    assert_eq!(a.take(), None);
    assert!(matches!(a.send(&frame), Sent::Dropped));
    let mut b = yard.port("b", 2);
    assert_eq!(b.ipv4, "10.77.0.5".parse::<Ipv4Addr>().unwrap());
    assert!(matches!(a.arp(b.ipv4), Sent::Done));
    assert!(a.take().is_some());
    let deadline = Instant::now() + Duration::from_secs(20);
    // It is left alone for a moment after it could not be reached.
    while !matches!(a.send(&frame), Sent::Done) {
        assert!(Instant::now() < deadline, "it is not tried again");
        std::thread::yield_now();
    }
    assert_eq!(b.receive(), frame);
}

#[test]
fn another_networks_members_are_not_reached() {
    let yard = Yard::new();
    let (mut a, mut x) = (yard.port("a", 1), yard.port_with("other", "x", 9, "all"));
    let frame = a.udp(&x, b"x");
    let _ = a.send(&frame);
    assert_eq!(x.take(), None);
    // It is a frame like any other to the way out, which leads to no guest.
    assert_eq!(a.left(), Some(frame));
    assert!(matches!(a.arp(x.ipv4), Sent::Done));
    assert_eq!(a.take(), None);
}

#[test]
fn the_policy_is_for_what_leaves_the_network() {
    let yard = Yard::new();
    let (mut a, mut b) = (yard.port_with("n", "a", 1, "none"), yard.port("b", 2));
    let inside = a.udp(&b, b"x");
    assert!(matches!(a.send(&inside), Sent::Done));
    assert_eq!(b.receive(), inside);
    let outside = |port: &Port| {
        let from = (port.mac, IpAddr::from(port.ipv4), 7);
        datagram(from, (ROUTER, "8.8.8.8".parse().unwrap(), 8), b"x")
    };
    assert!(matches!(a.send(&outside(&a)), Sent::Dropped));
    assert_eq!(a.left(), None);
    let frame = outside(&b);
    assert!(matches!(b.send(&frame), Sent::Done));
    assert_eq!(b.left(), Some(frame));
    // A member is not reached through the router, either.
    let detour = datagram((b.mac, b.ipv4.into(), 7), (ROUTER, a.ipv4.into(), 8), b"x");
    assert!(matches!(b.send(&detour), Sent::Dropped));
}

#[test]
fn a_checksum_that_is_left_to_a_guest_that_does_not_take_it_is_made() {
    let yard = Yard::new();
    let (mut a, mut b) = (yard.port("a", 1), yard.port("b", 2));
    let whole = a.udp(&b, b"data");
    let mut open = whole.clone();
    // The pseudo header's sum, of which the rest is left.
    let pseudo = [&whole[26..34], &[0, 17, 0, 12]].concat();
    let sum = pseudo
        .chunks(2)
        .map(|word| u32::from(word[0]) << 8 | u32::from(word[1]))
        .sum::<u32>();
    let sum = u16::try_from((sum & 0xffff) + (sum >> 16)).unwrap();
    open[40..42].copy_from_slice(&sum.to_be_bytes());
    let checksum = Checksum::Needed {
        start: 34,
        offset: 6,
    };
    let frame = Frame {
        header: VnetHeader {
            checksum,
            ..VnetHeader::default()
        },
        ..Frame::of_bytes(&open)
    };
    assert!(matches!(a.switch.send(&frame), Sent::Done));
    assert_eq!(b.receive(), open);
    b.switch.set_offloads(Offloads::NONE).unwrap();
    assert!(matches!(a.switch.send(&frame), Sent::Done));
    assert_eq!(b.receive(), whole);
}

#[test]
fn the_gateways_number_is_no_members() {
    let yard = Yard::new();
    let range = yard.networks.find("n").unwrap().subnet();
    let first = yard.port("a", 1).ipv4;
    assert_ne!(
        IpAddr::from(first),
        subnet::host(range, subnet::GATEWAY).unwrap()
    );
}
