//! The control queue.

use super::super::header::VnetHeader;
use super::super::layout::{
    F_CTRL_GUEST_OFFLOADS, F_CTRL_MAC_ADDR, F_CTRL_RX, F_CTRL_RX_EXTRA, F_CTRL_VQ, F_GUEST_CSUM,
    F_GUEST_TSO4, F_MQ, F_MRG_RXBUF, ctrl,
};
use super::super::*;
use super::wire::*;

const OTHER: [u8; 6] = [0x52, 9, 9, 9, 9, 9];
const GROUP: [u8; 6] = [1, 0, 0x5e, 0, 0, 1];
const ALL: u64 = F_MRG_RXBUF | F_CTRL_VQ | F_CTRL_RX | F_CTRL_RX_EXTRA | F_CTRL_MAC_ADDR;

/// Whether a frame for `to` gets through: it is followed by one that does for sure.
fn passes(bench: &mut Bench, cable: &Cable, to: [u8; 6], sure: [u8; 6]) -> bool {
    while bench.driver.free_descriptors(RX) > 0 {
        bench.driver.send(RX, &[], &[1600]);
    }
    bench.driver.kick(RX);
    cable.put(VnetHeader::default(), &frame(to, 100, 1));
    cable.put(VnetHeader::default(), &frame(sure, 50, 2));
    let mut got = Vec::new();
    while got.last().is_none_or(|frame: &Vec<u8>| frame.len() != 50) {
        got.extend(
            bench
                .driver
                .wait_used(RX, 1)
                .iter()
                .map(|used| received(used).1),
        );
    }
    got.len() == 2
}

fn tables(unicast: &[[u8; 6]], multicast: &[[u8; 6]]) -> Vec<u8> {
    let mut command = vec![ctrl::MAC, ctrl::MAC_TABLE_SET];
    for table in [unicast, multicast] {
        command.extend((table.len() as u32).to_le_bytes());
        command.extend(table.concat());
    }
    command
}

#[test]
fn driver_receives_what_it_asks_for() {
    let (mut bench, cable) = bench(ALL);
    let mac = MAC.0;
    let sees = |bench: &mut Bench, to| passes(bench, &cable, to, mac);
    let set = |bench: &mut Bench, command, on| {
        assert_eq!(bench.command(2, &[ctrl::RX, command, on]), ctrl::OK);
    };
    assert!(sees(&mut bench, [0xff; 6]) && sees(&mut bench, GROUP) && !sees(&mut bench, OTHER));
    set(&mut bench, ctrl::RX_PROMISC, 1);
    assert!(sees(&mut bench, OTHER));
    set(&mut bench, ctrl::RX_PROMISC, 0);
    assert!(!sees(&mut bench, OTHER));
    set(&mut bench, ctrl::RX_ALLUNI, 1);
    assert!(sees(&mut bench, OTHER));
    set(&mut bench, ctrl::RX_ALLUNI, 0);
    set(&mut bench, ctrl::RX_NOBCAST, 1);
    assert!(!sees(&mut bench, [0xff; 6]));
    assert_eq!(bench.command(2, &tables(&[OTHER], &[])), ctrl::OK);
    assert!(sees(&mut bench, OTHER) && !sees(&mut bench, GROUP));
    assert_eq!(bench.command(2, &tables(&[], &[GROUP])), ctrl::OK);
    assert!(!sees(&mut bench, OTHER) && sees(&mut bench, GROUP));
    set(&mut bench, ctrl::RX_ALLMULTI, 1);
    set(&mut bench, ctrl::RX_NOMULTI, 1);
    assert!(!sees(&mut bench, GROUP));
    set(&mut bench, ctrl::RX_PROMISC, 1);
    assert!(sees(&mut bench, GROUP));
}

#[test]
fn address_can_be_changed_to_that_of_a_device() {
    let (mut bench, cable) = bench(ALL);
    let set = |mac: [u8; 6]| [[ctrl::MAC, ctrl::MAC_ADDR_SET].as_slice(), &mac].concat();
    assert_eq!(bench.command(2, &set(GROUP)), ctrl::ERR);
    assert!(!passes(&mut bench, &cable, OTHER, MAC.0));
    assert_eq!(bench.command(2, &set(OTHER)), ctrl::OK);
    assert!(!passes(&mut bench, &cable, MAC.0, OTHER));
    bench.driver.start(RING | ALL);
    assert!(
        !passes(&mut bench, &cable, OTHER, MAC.0),
        "a reset brings the address back"
    );
}

#[test]
fn nonsense_is_answered_with_an_error() {
    let (mut bench, cable) = bench(ALL);
    let huge = |count: u32| {
        [
            [ctrl::MAC, ctrl::MAC_TABLE_SET].as_slice(),
            &count.to_le_bytes(),
            &[0; 20],
        ]
        .concat()
    };
    let commands = [
        vec![ctrl::RX],
        vec![ctrl::RX, ctrl::RX_PROMISC],
        vec![ctrl::RX, ctrl::RX_PROMISC, 1, 1],
        vec![ctrl::RX, 77, 1],
        vec![99, 0, 0],
        vec![ctrl::MQ, ctrl::MQ_VQ_PAIRS_SET, 1, 0],
        vec![
            ctrl::GUEST_OFFLOADS,
            ctrl::GUEST_OFFLOADS_SET,
            0,
            0,
            0,
            0,
            0,
            0,
            0,
            0,
        ],
        vec![ctrl::MAC, ctrl::MAC_ADDR_SET, 2, 2, 2],
        vec![ctrl::MAC, ctrl::MAC_TABLE_SET, 0, 0],
        huge(0),
        huge(1),
        huge(u32::MAX),
        huge(0x2aaa_aaab),
    ];
    for command in commands {
        assert_eq!(bench.command(2, &command), ctrl::ERR, "{command:?}");
    }
    // No room for an answer, and nothing asked.
    bench
        .driver
        .send(2, &[&[ctrl::RX, ctrl::RX_PROMISC, 1]], &[]);
    bench.driver.kick(2);
    assert_eq!(bench.driver.wait_used(2, 1)[0].len, 0);
    bench.driver.send(2, &[], &[1]);
    bench.driver.kick(2);
    assert_eq!(bench.driver.wait_used(2, 1)[0].data, [ctrl::ERR]);
    bench.send(&[&plain(), &frame([2; 6], 60, 0)]);
    cable.take();
}

#[test]
fn offloads_change_while_frames_flow() {
    let (wire, cable) = wire(ALL_OFFLOADS);
    let mut bench = transport(net(&NetConfig::new(MAC), wire), None);
    let features = F_CTRL_VQ | F_CTRL_GUEST_OFFLOADS | F_GUEST_CSUM | F_GUEST_TSO4;
    bench.driver.start(RING | features);
    let set = |offloads: u64| {
        let command = [ctrl::GUEST_OFFLOADS, ctrl::GUEST_OFFLOADS_SET];
        [command.as_slice(), &offloads.to_le_bytes()].concat()
    };
    assert_eq!(bench.command(2, &set(F_GUEST_CSUM)), ctrl::OK);
    assert_eq!(
        bench.command(2, &set(features::GUEST_OFFLOADS)),
        ctrl::ERR,
        "more than negotiated"
    );
    assert_eq!(bench.command(2, &set(1 << 40)), ctrl::ERR);
    // The pair's thread is told after the answer; a frame through it shows that it has looked.
    bench.send(&[&plain(), &frame([2; 6], 60, 0)]);
    bench
        .driver
        .write_register(crate::virtio::spec::mmio::STATUS, 0);
    let both = Offloads::CHECKSUM | Offloads::TSO4;
    assert_eq!(
        *cable.heard.offloads.lock().unwrap(),
        [both, Offloads::CHECKSUM]
    );
}

fn two_pairs() -> (Bench, Cable, Cable) {
    let (first, one) = wire(ALL_OFFLOADS);
    let (second, two) = wire(ALL_OFFLOADS);
    let backends: Vec<Box<dyn Backend>> = vec![Box::new(first), Box::new(second)];
    let net = Net::new("net", &NetConfig::new(MAC), backends).unwrap();
    (transport(net, None), one, two)
}

#[test]
fn each_pair_has_its_own_back_end() {
    for dedicated_thread in [false, true] {
        let (first, one) = wire(ALL_OFFLOADS);
        let (second, two) = wire(ALL_OFFLOADS);
        let backends: Vec<Box<dyn Backend>> = vec![Box::new(first), Box::new(second)];
        let config = NetConfig {
            dedicated_thread,
            ..NetConfig::new(MAC)
        };
        let mut bench = transport(Net::new("net", &config, backends).unwrap(), None);
        bench.driver.start(RING | F_MRG_RXBUF | F_CTRL_VQ | F_MQ);
        assert_eq!(*two.heard.active.lock().unwrap(), [false]);
        let pairs = |count: u16| {
            [
                [ctrl::MQ, ctrl::MQ_VQ_PAIRS_SET].as_slice(),
                &count.to_le_bytes(),
            ]
            .concat()
        };
        for (count, answer) in [(0, ctrl::ERR), (3, ctrl::ERR), (2, ctrl::OK)] {
            assert_eq!(bench.command(4, &pairs(count)), answer);
        }
        for (rx, cable, seed) in [(0, &one, 1), (2, &two, 2)] {
            bench
                .driver
                .send(rx + 1, &[&plain(), &frame([2; 6], 60, seed)], &[]);
            bench.driver.kick(rx + 1);
            bench.driver.wait_used(rx + 1, 1);
            assert_eq!(cable.take().1, frame([2; 6], 60, seed));
            bench.driver.send(rx, &[], &[1600]);
            bench.driver.kick(rx);
            cable.put(VnetHeader::default(), &frame(MAC.0, 70, seed));
            let used = bench.driver.wait_used(rx, 1);
            assert_eq!(received(&used[0]).1, frame(MAC.0, 70, seed));
        }
        bench
            .driver
            .write_register(crate::virtio::spec::mmio::STATUS, 0);
        assert_eq!(two.heard.active.lock().unwrap().last(), Some(&true));
    }
}

/// Section 5.1.2: without VIRTIO_NET_F_MQ the control queue is queue 2, whatever the device has.
#[test]
fn driver_of_one_pair_finds_its_control_queue() {
    let (mut bench, one, two) = two_pairs();
    bench.driver.start(RING | ALL);
    assert_eq!(bench.command(2, &[ctrl::RX, ctrl::RX_PROMISC, 1]), ctrl::OK);
    bench.send(&[&plain(), &frame([2; 6], 60, 1)]);
    one.take();
    assert!(two.is_empty());
}
