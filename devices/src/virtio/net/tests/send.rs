//! Frames that the guest sends.

use std::sync::Mutex;

use vm_memory::{Bytes, GuestAddress};
use zerocopy::IntoBytes;

use super::super::backend::{Frame, HEAD_LEN, Sent};
use super::super::layout::F_MRG_RXBUF;
use super::super::*;
use super::wire::*;
use crate::virtio::spec::feature;

#[test]
fn frame_is_sent_as_it_is_whatever_buffers_it_is_in() {
    for features in [0, feature::EVENT_IDX, RING] {
        let (wire, cable) = wire(ALL_OFFLOADS);
        let mut bench = transport(net(&NetConfig::new(MAC), wire), None);
        bench.driver.start(features | F_MRG_RXBUF);
        for (len, seed) in [(14, 1), (60, 2), (256, 3), (257, 4), (1514, 5), (65_553, 6)] {
            let frame = frame([2; 6], len, seed);
            let header = plain();
            let whole = [header.as_slice(), &frame].concat();
            let cut = |at: usize| whole.split_at(at.min(whole.len()));
            let layouts: [Vec<&[u8]>; 4] = [
                vec![&whole],
                vec![&header, &frame],
                vec![
                    cut(5).0,
                    &cut(5).1[..4],
                    &cut(9).1[..9],
                    &cut(18).1[..8],
                    cut(26).1,
                ],
                cut(26)
                    .0
                    .chunks(1)
                    .chain([cut(26).1])
                    .filter(|piece| !piece.is_empty())
                    .collect(),
            ];
            for readable in layouts {
                bench.send(&readable);
                let (got_header, got) = cable.take();
                assert_eq!(got_header.as_bytes(), zero_header().as_bytes());
                assert!(got == frame, "a frame of {len} bytes has changed");
            }
            if features & feature::INDIRECT_DESC != 0 {
                bench.driver.send_indirect(TX, &[&header, &frame], &[]);
                bench.driver.kick(TX);
                bench.driver.wait_used(TX, 1);
                assert!(cable.take().1 == frame);
            }
        }
        assert_eq!(bench.traffic.sent().dropped(), 0);
    }
}
#[test]
fn kick_sends_and_interrupts() {
    let (mut bench, cable) = bench(0);
    let frame = frame([2; 6], 100, 0);
    let head = bench.driver.send(TX, &[&plain(), &frame], &[]);
    bench.driver.kick(TX);
    assert!(bench.driver.interrupt().wait_for(1));
    assert_eq!(bench.pending(), 1);
    assert_eq!(bench.driver.wait_used(TX, 1)[0].head, head);
    assert_eq!(cable.take().1, frame);
    let sent = bench.traffic.sent();
    assert_eq!((sent.frames(), sent.bytes(), sent.dropped()), (1, 100, 0));
}

#[test]
fn full_back_end_loses_nothing_and_keeps_the_order() {
    let (mut bench, cable) = bench(0);
    let mut expected = Vec::new();
    for round in 0..20_u8 {
        for seed in 0..50 {
            let frame = frame([2; 6], 200 + usize::from(seed), seed ^ round);
            bench.driver.send(TX, &[&plain(), &frame], &[]);
            expected.push(frame);
        }
        bench.driver.kick(TX);
        // A datagram socket takes some tens at most, so the device has to wait for this reader.
        for frame in expected.drain(..) {
            assert_eq!(cable.take().1, frame);
        }
        bench.driver.wait_used(TX, 50);
    }
    assert_eq!(bench.traffic.sent().frames(), 1000);
}

/// What a back end has looked at is what is sent: the guest cannot change it any more.
#[test]
fn head_is_out_of_the_guests_reach() {
    let memory = crate::testing::FakeDriver::memory();
    let guest = Arc::clone(&memory);
    let at = 0x60_0000;
    let seen = Arc::new(Mutex::new(Vec::new()));
    let sink = Arc::clone(&seen);
    let spy = Spy::new(move |frame: &Frame<'_>| {
        assert_eq!(frame.head.len(), HEAD_LEN);
        let looked_at = frame.head.to_vec();
        guest.write_slice(&[0xff; 1000], GuestAddress(at)).unwrap();
        assert_eq!(frame.head, looked_at);
        assert_eq!(frame.to_vec()[..HEAD_LEN], looked_at);
        assert_eq!(frame.to_vec()[HEAD_LEN..], [0xff; 1000 - HDR - HEAD_LEN]);
        sink.lock().unwrap().push(looked_at);
        Sent::Done
    });
    let mut bench = transport_in(net(&NetConfig::new(MAC), spy), &memory);
    bench.driver.start(RING);
    let bytes = [plain(), frame([2; 6], 1000 - HDR, 9)].concat();
    memory.write_slice(&bytes, GuestAddress(at)).unwrap();
    bench.driver.send_buffers(TX, &[(at, 1000)], &[]);
    bench.driver.kick(TX);
    bench.driver.wait_used(TX, 1);
    assert_eq!(*seen.lock().unwrap(), [bytes[HDR..][..HEAD_LEN].to_vec()]);
}

#[test]
fn frames_a_back_end_drops_are_counted_and_used() {
    let mut count = 0;
    let spy = Spy::new(move |_: &Frame<'_>| {
        count += 1;
        if count % 2 == 0 {
            Sent::Dropped
        } else {
            Sent::Done
        }
    });
    let mut bench = transport(net(&NetConfig::new(MAC), spy), None);
    bench.driver.start(RING);
    for seed in 0..10 {
        bench.send(&[&plain(), &frame([2; 6], 64, seed)]);
    }
    let sent = bench.traffic.sent();
    assert_eq!((sent.frames(), sent.dropped()), (5, 5));
}

#[test]
fn frames_pass_at_the_rate_and_none_is_lost() {
    let (wire, cable) = wire(ALL_OFFLOADS);
    let config = NetConfig {
        rate: Some("ops=200,ops-burst=2".parse().unwrap()),
        ..NetConfig::new(MAC)
    };
    let mut bench = transport(net(&config, wire), None);
    bench.driver.start(RING);
    for seed in 0..10 {
        bench
            .driver
            .send(TX, &[&plain(), &frame([2; 6], 64, seed)], &[]);
    }
    bench.driver.kick(TX);
    for seed in 0..10 {
        assert_eq!(cable.take().1, frame([2; 6], 64, seed));
    }
    bench.driver.wait_used(TX, 10);
}
