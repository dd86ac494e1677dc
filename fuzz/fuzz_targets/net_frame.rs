//! A guest sends any bytes as frames, and others do as if they were the network: nothing is too odd
//! to be judged, and under `none` nothing that passes is for anybody beyond the host.
#![no_main]

use std::time::{Duration, Instant};

use casita_net::frame::{Content, Frame, HEAD, Upper};
use casita_net::{Guard, GuardConfig, Mac, Verdict, dns};
use libfuzzer_sys::fuzz_target;

const MAC: Mac = Mac([2, 0, 0, 0, 0, 1]);
const POLICIES: [&str; 3] = ["none", "1.2.3.0/24:80/tcp,db.test:5432,[2001:db8::/32]:7/udp", "all"];

fn guard(policy: usize) -> Guard {
    let addresses = |list: &[&str]| list.iter().map(|text| text.parse().expect("an address")).collect();
    Guard::new(GuardConfig {
        mac: Some(MAC),
        addresses: addresses(&["10.0.0.2", "fd00::2"]),
        gateways: addresses(&["10.0.0.1", "fe80::1"]),
        resolvers: addresses(&["10.0.0.53"]),
        learns_addresses: true,
        local_uplink: true,
        policy: POLICIES[policy % POLICIES.len()].parse().expect("a policy"),
        ..GuardConfig::default()
    })
}

// Frames behind a byte each: whose it is, how it is made, and how long its head is; and two of length.
fuzz_target!(|bytes: &[u8]| {
    let Some((first, mut rest)) = bytes.split_first() else { return };
    let policy = usize::from(*first);
    let mut guard = guard(policy);
    let mut now = Instant::now();
    let mut heard = false;
    while let [kind, high, low, behind @ ..] = rest {
        let len = usize::from(u16::from_be_bytes([*high, *low])).min(behind.len());
        let (frame, next) = behind.split_at(len);
        rest = next;
        let mut frame = frame.to_vec();
        now += Duration::from_secs(u64::from(*kind >> 4));
        if kind & 1 == 1 {
            heard = true;
            guard.learn(&frame, frame.len(), now);
            continue;
        }
        // A fuzzer is long in finding an address.
        if let Some(source) = frame.get_mut(6..12)
            && kind & 2 == 0
        {
            source.copy_from_slice(&MAC.0);
        }
        let head = &frame[..frame.len().min(if kind & 4 == 0 { HEAD } else { usize::MAX })];
        let verdict = guard.judge(head, frame.len(), now);
        if let Ok(read) = Frame::parse(&frame, frame.len())
            && let Some(Upper::Udp(udp)) = read.ip().map(|packet| packet.upper)
        {
            let _ = (dns::read_question(udp.data), dns::read_answer(udp.data));
        }
        if verdict == Verdict::Pass && policy % POLICIES.len() == 0 && !heard {
            let read = Frame::parse(head, frame.len()).expect("it was understood");
            assert_eq!(read.source, MAC);
            if let Content::Ip(packet) = read.content {
                let near = packet.destination.is_multicast()
                    || packet.destination.to_string() == "255.255.255.255"
                    || packet.destination.to_string() == "10.0.0.1"
                    || packet.protocol == 58 && packet.hops == 255;
                assert!(near, "{packet:?}");
            }
        }
    }
});
