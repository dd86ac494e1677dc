use proptest::prelude::*;

use super::*;
use crate::reply::testing::{eth, ipv4, ipv6, tcp, udp};

fn v4(protocol: u8, body: &[u8]) -> Vec<u8> {
    let (mac, peer) = (Mac([2, 0, 0, 0, 0, 1]), Mac([2, 0, 0, 0, 0, 2]));
    eth(
        peer,
        mac,
        IPV4,
        &ipv4("10.0.0.1", "10.0.0.2", protocol, body),
    )
}

fn v6(next: u8, body: &[u8]) -> Vec<u8> {
    let (mac, peer) = (Mac([2, 0, 0, 0, 0, 1]), Mac([2, 0, 0, 0, 0, 2]));
    eth(peer, mac, IPV6, &ipv6("fd00::1", "fd00::2", next, body))
}

fn parse(frame: &[u8]) -> Result<Frame<'_>, FrameError> {
    Frame::parse(frame, frame.len())
}

fn packet(frame: &[u8]) -> IpPacket<'_> {
    *parse(frame).unwrap().ip().unwrap()
}

#[test]
fn tcp_and_udp_are_read_over_both_protocols() {
    for frame in [v4(6, &tcp(1, 2, Tcp::SYN)), v6(6, &tcp(1, 2, Tcp::SYN))] {
        let Upper::Tcp(read) = packet(&frame).upper else {
            panic!("no TCP")
        };
        assert_eq!((read.source, read.destination, read.length), (1, 2, 1));
        assert!(read.opens());
    }
    for frame in [v4(17, &udp(3, 4, b"data")), v6(17, &udp(3, 4, b"data"))] {
        let Upper::Udp(read) = packet(&frame).upper else {
            panic!("no UDP")
        };
        assert_eq!((read.source, read.destination), (3, 4));
        assert_eq!((read.data, read.complete), (&b"data"[..], true));
    }
}

#[test]
fn ports_behind_ip_options_are_found() {
    let mut frame = v4(6, &[&[1; 8], &tcp(7, 8, Tcp::ACK)[..]].concat());
    frame[ETHERNET] = 0x47;
    let read = packet(&frame);
    assert!(read.options && !read.routed);
    assert!(matches!(
        read.upper,
        Upper::Tcp(Tcp {
            source: 7,
            destination: 8,
            ..
        })
    ));
}

#[test]
fn source_routes_are_seen_behind_other_options() {
    for kind in [131, 137] {
        let options = [1, 1, 7, 4, 0, 0, kind, 2, 0, 0, 0, 0];
        let mut frame = v4(17, &[&options[..], &udp(1, 2, b"")].concat());
        frame[ETHERNET] = 0x48;
        assert!(packet(&frame).routed);
    }
    let mut frame = v4(17, &[&[7, 1, 0, 0][..], &udp(1, 2, b"")].concat());
    frame[ETHERNET] = 0x46;
    assert_eq!(parse(&frame), Err(FrameError::Wrong("IPv4 option")));
}

#[test]
fn extension_headers_are_walked_to_the_protocol_behind_them() {
    let chain = [
        &[60, 0, 1, 4, 0, 0, 0, 0][..],
        &[6, 0, 1, 4, 0, 0, 0, 0],
        &tcp(9, 10, 2),
    ]
    .concat();
    let frame = v6(0, &chain);
    let read = packet(&frame);
    assert!(read.options && !read.routed && read.protocol == 6);
    assert!(matches!(read.upper, Upper::Tcp(Tcp { source: 9, .. })));
    let frame = v6(
        43,
        &[&[17, 0, 0, 0, 0, 0, 0, 0][..], &udp(1, 2, b"")].concat(),
    );
    assert!(packet(&frame).routed);
    // One behind another for ever, or to the end of the packet.
    assert!(parse(&v6(60, &[60, 0, 1, 4, 0, 0, 0, 0].repeat(12))).is_err());
    assert!(parse(&v6(60, &[6, 200, 1, 4, 0, 0, 0, 0])).is_err());
    // Hop-by-hop is first, or wrong.
    let late = [
        &[0, 0, 1, 4, 0, 0, 0, 0][..],
        &[6, 0, 1, 4, 0, 0, 0, 0],
        &tcp(9, 10, 2),
    ]
    .concat();
    assert_eq!(
        parse(&v6(60, &late)),
        Err(FrameError::Wrong("order of IPv6 headers"))
    );
}

#[test]
fn fragments_are_told_apart() {
    let mut frame = v4(17, &udp(1, 2, b"x"));
    frame[ETHERNET + 6] = 0x20;
    assert_eq!(packet(&frame).part, Part::First);
    frame[ETHERNET + 7] = 1;
    assert_eq!(
        (packet(&frame).part, packet(&frame).upper),
        (Part::Later, Upper::Fragment)
    );
    let fragment = |place: [u8; 2]| {
        v6(
            44,
            &[
                &[17, 0, place[0], place[1], 0, 0, 0, 9][..],
                &udp(1, 2, b"x"),
            ]
            .concat(),
        )
    };
    assert_eq!(packet(&fragment([0, 1])).part, Part::First);
    assert_eq!(packet(&fragment([0, 8])).upper, Upper::Fragment);
    let atomic = fragment([0, 0]);
    assert!(packet(&atomic).part == Part::Whole && packet(&atomic).options);
    // What is behind a later fragment's header is data, whatever it looks like.
    let later = v6(
        44,
        &[&[43, 0, 0, 8, 0, 0, 0, 9][..], &[17, 0, 0, 0, 0, 0, 0, 0]].concat(),
    );
    assert!(!packet(&later).routed);
}

#[test]
fn lengths_that_lie_are_refused() {
    let mut frame = v4(17, &udp(1, 2, b"x"));
    frame[ETHERNET + 3] += 1;
    assert_eq!(parse(&frame), Err(FrameError::Short("IPv4 header")));
    frame[ETHERNET + 3] = 19;
    assert_eq!(parse(&frame), Err(FrameError::Wrong("IPv4 header length")));
    let mut frame = v4(17, &udp(1, 2, b"x"));
    frame[ETHERNET + 25] += 1;
    assert_eq!(parse(&frame), Err(FrameError::Wrong("UDP length")));
    let mut frame = v4(6, &tcp(1, 2, 2));
    frame[ETHERNET + 32] = 0x60;
    assert_eq!(parse(&frame), Err(FrameError::Wrong("TCP header length")));
}

#[test]
fn other_types_and_tags_are_refused() {
    let (mac, peer) = (Mac([2, 0, 0, 0, 0, 1]), Mac([2, 0, 0, 0, 0, 2]));
    for tag in VLAN {
        assert_eq!(parse(&eth(peer, mac, tag, &[0; 46])), Err(FrameError::Vlan));
    }
    // 802.3 with a length, PPPoE, MPLS, LLDP, EAPOL.
    for kind in [46, 0x8863, 0x8847, 0x88cc, 0x888e, 0] {
        assert_eq!(
            parse(&eth(peer, mac, kind, &[0; 46])),
            Err(FrameError::Type(kind))
        );
    }
}

#[test]
fn padding_behind_a_packet_is_not_part_of_it() {
    let mut frame = v4(17, &udp(1, 2, b"x"));
    frame.extend([0xaa; 20]);
    assert!(matches!(
        packet(&frame).upper,
        Upper::Udp(Udp {
            data: b"x",
            complete: true,
            ..
        })
    ));
}

#[test]
fn a_head_is_enough_of_a_long_frame() {
    let frame = v4(6, &[&tcp(1, 2, Tcp::ACK)[..], &vec![0; 60_000]].concat());
    let whole = parse(&frame).unwrap();
    assert_eq!(Frame::parse(&frame[..HEAD], frame.len()).unwrap(), whole);
    assert!(matches!(
        whole.ip().unwrap().upper,
        Upper::Tcp(Tcp { length: 60_000, .. })
    ));
    let frame = v4(17, &udp(1, 2, &[0; 1000]));
    let read = Frame::parse(&frame[..HEAD], frame.len()).unwrap();
    assert!(matches!(
        read.ip().unwrap().upper,
        Upper::Udp(Udp {
            complete: false,
            ..
        })
    ));
}

proptest! {
    #[test]
    fn any_bytes_of_any_length_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..400), len in 0usize..70_000, kind in 0..4usize) {
        let mut bytes = bytes;
        // Deeper than chance goes.
        if let (Some(place), Some(kind)) = (bytes.get_mut(12..14), [IPV4, IPV6, ARP].get(kind)) {
            place.copy_from_slice(&kind.to_be_bytes());
            if let Some(version) = bytes.get_mut(14) {
                *version = *version & 15 | if *kind == IPV6 { 0x60 } else { 0x40 };
            }
        }
        let _ = Frame::parse(&bytes, bytes.len());
        let _ = Frame::parse(&bytes, len);
    }

    /// What was decided on a head holds for the whole.
    #[test]
    fn a_longer_head_says_the_same(change in proptest::collection::vec((14usize..120, any::<u8>()), 0..4), ipv6: bool) {
        let body = tcp(1, 2, 2);
        let mut frame = if ipv6 { v6(6, &body) } else { v4(6, &body) };
        frame.resize(400, 0);
        for (at, value) in change {
            frame[at] = value;
        }
        let (short, long) = (Frame::parse(&frame[..HEAD], 400), Frame::parse(&frame, 400));
        if let (Ok(short), Ok(long)) = (short, long)
            && let (Some(short), Some(long)) = (short.ip(), long.ip())
        {
            prop_assert_eq!((short.source, short.destination, short.protocol, short.part), (long.source, long.destination, long.protocol, long.part));
            prop_assert_eq!((short.routed, short.options), (long.routed, long.options));
        }
    }
}
