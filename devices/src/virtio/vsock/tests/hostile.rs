//! Whatever a driver sends: the device stays within its bounds, answers, and goes on.

use std::io::{Read, Write};

use proptest::prelude::*;

use super::guest::{CID, Guest};
use super::{accept, pattern};
use crate::virtio::vsock::packet::Header;
use crate::virtio::vsock::{HOST_CID, TX};

fn cid() -> impl Strategy<Value = u64> {
    prop_oneof![8 => Just(CID), 8 => Just(HOST_CID), 1 => any::<u64>()]
}

fn count() -> impl Strategy<Value = u32> {
    prop_oneof![0_u32..10, Just(64 << 10), Just(u32::MAX), any::<u32>()]
}

fn header() -> impl Strategy<Value = Header> {
    let addresses = (cid(), cid(), 80_u32..83, 0_u32..4);
    let kind = prop_oneof![20 => Just(1_u16), 1 => any::<u16>()];
    let op = prop_oneof![20 => 1_u16..8, 1 => any::<u16>()];
    let flags = prop_oneof![0_u32..4, any::<u32>()];
    (addresses, kind, op, flags, (count(), count(), count())).prop_map(
        |((src, dst, host_port, guest_port), kind, op, flags, (len, buf_alloc, fwd_cnt))| Header {
            src_cid: src.into(),
            dst_cid: dst.into(),
            src_port: guest_port.into(),
            dst_port: host_port.into(),
            len: len.into(),
            kind: kind.into(),
            op: op.into(),
            flags: flags.into(),
            buf_alloc: buf_alloc.into(),
            fwd_cnt: fwd_cnt.into(),
        },
    )
}

#[derive(Debug, Clone)]
enum Step {
    Packet(Header, usize, bool),
    Poll,
    HostWrites(usize),
    HostReads,
    HostCloses,
    HostConnects,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        10 => (header(), 0_usize..3000, any::<bool>()).prop_map(|(header, len, honest)| {
            Step::Packet(header, len, honest)
        }),
        3 => Just(Step::Poll),
        2 => (1_usize..50_000).prop_map(Step::HostWrites),
        2 => Just(Step::HostReads),
        1 => Just(Step::HostCloses),
        1 => Just(Step::HostConnects),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn arbitrary_packets_do_no_harm(steps in prop::collection::vec(step(), 1..80)) {
        let mut guest = Guest::new();
        let listener = guest.handle.listen(80, 8).unwrap();
        let other = guest.handle.listen(81, 1).unwrap();
        let mut streams = Vec::new();
        for step in steps {
            match step {
                Step::Packet(mut header, len, honest) => {
                    if honest {
                        header.len = (len as u32).into();
                    }
                    guest.send_raw(&header, &pattern(len));
                }
                Step::Poll => drop(guest.poll()),
                Step::HostWrites(len) => {
                    for stream in &mut streams {
                        let stream: &mut std::os::unix::net::UnixStream = stream;
                        let _ = stream.write(&pattern(len));
                    }
                }
                Step::HostReads => {
                    for stream in &mut streams {
                        let _ = stream.read(&mut [0; 5000]);
                    }
                }
                Step::HostCloses => drop(streams.pop()),
                Step::HostConnects => {
                    let (sender, _) = std::sync::mpsc::channel();
                    guest.handle.connect_then(2, super::LONG, move |result| {
                        let _ = sender.send(result.is_ok());
                    });
                }
            }
            while let Some(incoming) = listener.try_accept() {
                incoming.stream.set_nonblocking(true).unwrap();
                streams.push(incoming.stream);
            }
        }
        drop(other);
        // Every chain comes back, and the device still does its work.
        while guest.driver.free_descriptors(TX) < 128 {
            guest.poll();
            guest.driver.used(TX);
        }
        while listener.try_accept().is_some() {}
        let key = guest.connect(80, 9999);
        accept(&listener).write_all(b"still here").unwrap();
        guest.run_until(|guest| guest.stream(key).received == b"still here");
    }
}
