//! Frames that the guest receives.

use super::super::header::VnetHeader;
use super::super::layout::F_MRG_RXBUF;
use super::super::*;
use super::wire::*;

#[test]
fn frame_interrupts_and_is_in_the_buffer() {
    let (mut bench, cable) = bench(F_MRG_RXBUF);
    let head = bench.driver.send(RX, &[], &[2048]);
    bench.driver.kick(RX);
    let frame = frame(MAC.0, 1000, 3);
    cable.put(VnetHeader::default(), &frame);
    assert!(bench.driver.interrupt().wait_for(1));
    let used = bench.driver.wait_used(RX, 1);
    assert_eq!(used[0].head, head);
    let (header, got) = received(&used[0]);
    assert_eq!(header.num_buffers.get(), 1);
    assert_eq!(got, frame);
    let counters = bench.traffic.received();
    assert_eq!((counters.frames(), counters.bytes()), (1, 1000));
}

#[test]
fn frames_land_whole_in_buffers_of_every_size() {
    for size in [1, 11, 12, 13, 100, 268, 300, 1526, 4096] {
        let (mut bench, cable) = bench(F_MRG_RXBUF);
        for len in [14, 60, 255, 256, 257, 1000, 1514] {
            let frame = frame(MAC.0, len, 5);
            let count = (HDR + len).div_ceil(size as usize);
            if count > 200 {
                continue; // the driver's ring is not longer
            }
            while bench.driver.free_descriptors(RX) > 0 {
                bench.driver.send(RX, &[], &[size]);
            }
            bench.driver.kick(RX);
            cable.put(VnetHeader::default(), &frame);
            let used = bench.driver.wait_used(RX, count);
            assert_eq!(used.len(), count);
            let bytes: Vec<u8> = used
                .iter()
                .flat_map(|used| &used.data[..used.len as usize])
                .copied()
                .collect();
            assert_eq!(bytes.len(), HDR + len);
            assert_eq!(
                usize::from(u16::from_le_bytes([bytes[10], bytes[11]])),
                count
            );
            assert_eq!(bytes[HDR..], frame, "{len} bytes in buffers of {size}");
            // All but the last one are full.
            assert!(used[..count - 1].iter().all(|used| used.len == size));
        }
    }
}

#[test]
fn longest_frames_are_merged_from_many_buffers() {
    let (mut bench, cable) = bench(F_MRG_RXBUF | features::GUEST_OFFLOADS);
    for round in 0..20 {
        while bench.driver.free_descriptors(RX) > 0 {
            bench.driver.send(RX, &[], &[1526]);
        }
        bench.driver.kick(RX);
        let frame = frame(MAC.0, 65_549, round);
        cable.put(VnetHeader::default(), &frame);
        let used = bench.driver.wait_used(RX, 43);
        let bytes: Vec<u8> = used
            .iter()
            .flat_map(|used| &used.data[..used.len as usize])
            .copied()
            .collect();
        assert!(bytes[HDR..] == frame);
    }
}

#[test]
fn without_merging_a_frame_takes_one_chain_and_too_long_ones_are_lost() {
    let (mut bench, cable) = bench(0);
    bench.driver.send(RX, &[], &[12, 500, 88]);
    bench.driver.send(RX, &[], &[12, 1514]);
    bench.driver.kick(RX);
    cable.put(VnetHeader::default(), &frame(MAC.0, 589, 1));
    cable.put(VnetHeader::default(), &frame(MAC.0, 588, 2));
    cable.put(VnetHeader::default(), &frame(MAC.0, 1514, 3));
    let used = bench.driver.wait_used(RX, 2);
    assert_eq!(received(&used[0]).1, frame(MAC.0, 588, 2));
    assert_eq!(received(&used[1]).1, frame(MAC.0, 1514, 3));
    assert_eq!(bench.traffic.received().dropped(), 1);
}

#[test]
fn buffers_that_come_late_get_the_frames_that_wait() {
    for features in [0, F_MRG_RXBUF] {
        let (mut bench, cable) = bench(features);
        for seed in 0..8 {
            cable.put(VnetHeader::default(), &frame(MAC.0, 100, seed));
        }
        for seed in 0..8 {
            bench.driver.send(RX, &[], &[1600]);
            assert!(bench.driver.kick_if_asked(RX), "no kick was asked for");
            let used = bench.driver.wait_used(RX, 1);
            assert_eq!(received(&used[0]).1, frame(MAC.0, 100, seed));
        }
    }
}

#[test]
fn buffers_that_nothing_can_be_put_into_are_given_back() {
    let (mut bench, cable) = bench(F_MRG_RXBUF);
    let readable = bench.driver.send(RX, &[b"readable"], &[]);
    bench.driver.send(RX, &[], &[1600]);
    bench.driver.kick(RX);
    let used = bench.driver.wait_used(RX, 1);
    assert_eq!((used[0].head, used[0].len), (readable, 0));
    cable.put(VnetHeader::default(), &frame(MAC.0, 100, 1));
    assert_eq!(
        received(&bench.driver.wait_used(RX, 1)[0]).1,
        frame(MAC.0, 100, 1)
    );
}

#[test]
fn chain_without_room_for_a_header_loses_frames_and_nothing_else() {
    let (mut bench, cable) = bench(0);
    bench.driver.send(RX, &[], &[5]);
    bench.driver.kick(RX);
    for seed in 0..5 {
        cable.put(VnetHeader::default(), &frame(MAC.0, 60, seed));
    }
    bench.send(&[&plain(), &frame([2; 6], 60, 0)]);
    cable.take();
    // The frames have gone before the driver resets.
    while bench.traffic.received().dropped() < 5 {
        std::thread::yield_now();
    }
    bench.driver.start(RING);
    bench.driver.send(RX, &[], &[1600]);
    bench.driver.kick(RX);
    cable.put(VnetHeader::default(), &frame(MAC.0, 60, 9));
    assert_eq!(
        received(&bench.driver.wait_used(RX, 1)[0]).1,
        frame(MAC.0, 60, 9)
    );
}

#[test]
fn frames_pass_at_the_rate_and_none_is_lost() {
    let (wire, cable) = wire(ALL_OFFLOADS);
    let config = NetConfig {
        rate: Some("20K,burst=100".parse().unwrap()),
        ..NetConfig::new(MAC)
    };
    let mut bench = transport(net(&config, wire), None);
    bench.driver.start(RING | F_MRG_RXBUF);
    for seed in 0..6 {
        bench.driver.send(RX, &[], &[1600]);
        cable.put(VnetHeader::default(), &frame(MAC.0, 200, seed));
    }
    bench.driver.kick(RX);
    let used = bench.driver.wait_used(RX, 6);
    for (used, seed) in used.iter().zip(0..) {
        assert_eq!(received(used).1, frame(MAC.0, 200, seed));
    }
}
