//! Links, resets, saved states.

use super::super::header::VnetHeader;
use super::super::layout::{F_CTRL_RX, F_CTRL_VQ, F_MRG_RXBUF, F_MTU, F_STATUS, ctrl};
use super::super::*;
use super::wire::*;
use crate::virtio::device::{DeviceState, RestoreError};
use crate::virtio::spec::{interrupt, mmio, status};
use crate::virtio::transport::mmio::TransportState;

#[test]
fn configuration_has_address_status_and_mtu() {
    let (wire, _cable) = wire(ALL_OFFLOADS);
    let config = NetConfig {
        mtu: Some(9000),
        ..NetConfig::new(MAC)
    };
    let bench = transport(net(&config, wire), None);
    assert_ne!(bench.driver.offered_features() & F_MTU, 0);
    let mut space = [0; 20];
    for (at, byte) in space.iter_mut().enumerate() {
        bench
            .driver
            .read_config(at as u64, std::slice::from_mut(byte));
    }
    assert_eq!(space[..6], MAC.0);
    assert_eq!(space[6..12], [1, 0, 1, 0, 0x28, 0x23]);
    assert_eq!(bench.driver.read_register(mmio::DEVICE_ID), 1);
}

#[test]
fn settings_that_are_not_possible_are_refused() {
    let new = |config: &NetConfig, pairs| {
        let backends = (0..pairs).map(|_| Box::new(wire(ALL_OFFLOADS).0) as Box<dyn Backend>);
        Net::new("net", config, backends.collect()).err()
    };
    let name = || "net".to_owned();
    for mtu in [0, 67, 65_521, u16::MAX] {
        let config = NetConfig {
            mtu: Some(mtu),
            ..NetConfig::new(MAC)
        };
        assert_eq!(new(&config, 1), Some(NetError::Mtu { name: name(), mtu }));
    }
    for size in [0, 1, 3, 2048] {
        let config = NetConfig {
            queue_size: size,
            ..NetConfig::new(MAC)
        };
        assert_eq!(
            new(&config, 1),
            Some(NetError::QueueSize { name: name(), size })
        );
    }
    for count in [0, 9] {
        assert_eq!(
            new(&NetConfig::new(MAC), count),
            Some(NetError::QueuePairs {
                name: name(),
                count
            })
        );
    }
    assert_eq!(new(&NetConfig::new(MAC), 8), None);
}

#[test]
fn link_goes_down_and_up_and_the_driver_is_told() {
    let (mut bench, cable) = bench(F_MRG_RXBUF | F_STATUS);
    bench.driver.send(RX, &[], &[1600]);
    bench.driver.kick(RX);
    assert_eq!(bench.status(), 1);
    let generation = bench.driver.read_register(mmio::CONFIG_GENERATION);
    assert!(bench.link.set(false));
    assert_eq!(
        bench.pending() & interrupt::CONFIG_CHANGE,
        interrupt::CONFIG_CHANGE
    );
    assert_ne!(
        bench.driver.read_register(mmio::CONFIG_GENERATION),
        generation
    );
    assert_eq!(bench.status(), 0);
    bench
        .driver
        .write_register(mmio::INTERRUPT_ACK, interrupt::CONFIG_CHANGE);
    // What is sent now is lost.
    bench.send(&[&plain(), &frame([2; 6], 60, 1)]);
    assert_eq!(bench.traffic.sent().dropped(), 1);
    // What comes now waits.
    cable.put(VnetHeader::default(), &frame(MAC.0, 60, 2));
    assert!(bench.link.set(true));
    assert_eq!(
        bench.pending() & interrupt::CONFIG_CHANGE,
        interrupt::CONFIG_CHANGE
    );
    assert_eq!(bench.status(), 1);
    assert_eq!(
        received(&bench.driver.wait_used(RX, 1)[0]).1,
        frame(MAC.0, 60, 2)
    );
    bench.send(&[&plain(), &frame([2; 6], 60, 3)]);
    assert_eq!(cable.take().1, frame([2; 6], 60, 3));
}

#[test]
fn back_end_that_goes_takes_the_link_down_and_nothing_else() {
    // With buffers that wait for frames, without, and while sending.
    for (buffers, sends) in [(1, false), (0, false), (0, true)] {
        let (mut bench, cable) = bench(F_MRG_RXBUF | F_STATUS);
        for _ in 0..buffers {
            bench.driver.send(RX, &[], &[70_000]);
        }
        bench.driver.kick(RX);
        // Both queues have been looked at when this is used.
        bench.send(&[&plain(), &frame([2; 6], 60, 1)]);
        // An empty datagram is this wire's end.
        cable.socket.send(&[]).unwrap();
        drop(cable);
        if sends {
            bench.send(&[&plain(), &frame([2; 6], 60, 2)]);
        } else if buffers == 0 {
            // Nobody looks for frames without buffers, so the driver offers some.
            bench.driver.send(RX, &[], &[70_000]);
            bench.driver.kick(RX);
        }
        while bench.link.closed().is_none() {
            std::thread::yield_now();
        }
        assert!(!bench.link.is_up() && !bench.link.set(true));
        assert_eq!(bench.status(), 0);
        assert_eq!(
            bench.driver.read_register(mmio::STATUS) & status::DEVICE_NEEDS_RESET,
            0
        );
        for seed in 0..200 {
            bench.send(&[&plain(), &frame([2; 6], 60, seed)]);
        }
        bench.driver.start(RING | F_STATUS);
        assert_eq!(bench.status(), 0);
        bench.send(&[&plain(), &frame([2; 6], 60, 3)]);
    }
}

#[test]
fn reset_gives_up_buffers_and_the_next_driver_starts_anew() {
    let (mut bench, cable) = bench(F_MRG_RXBUF);
    for round in 0..10 {
        for _ in 0..100 {
            bench.driver.send(RX, &[], &[1600]);
        }
        bench.driver.kick(RX);
        cable.put(VnetHeader::default(), &frame(MAC.0, 60, round));
        assert_eq!(
            received(&bench.driver.wait_used(RX, 1)[0]).1,
            frame(MAC.0, 60, round)
        );
        bench.driver.start(RING | F_MRG_RXBUF);
    }
}

/// A bench whose device goes on in another one, by way of JSON.
fn move_on(mut bench: Bench, to: Net) -> Bench {
    let state = bench.transport.save().unwrap();
    let text = serde_json::to_string(&state).unwrap();
    let state: TransportState = serde_json::from_str(&text).unwrap();
    let other = transport(to, Some(&bench.driver));
    other.transport.restore(&state).unwrap();
    bench.driver.set_device(other.transport.clone());
    other.transport.resume().unwrap();
    Bench {
        driver: bench.driver,
        ..other
    }
}

#[test]
fn saved_device_goes_on_elsewhere_with_what_it_was_told() {
    let (mut first, cable) = bench(F_MRG_RXBUF | F_CTRL_VQ | F_CTRL_RX);
    assert_eq!(first.command(2, &[ctrl::RX, ctrl::RX_PROMISC, 1]), ctrl::OK);
    for _ in 0..50 {
        first.driver.send(RX, &[], &[1600]);
    }
    first.driver.kick(RX);
    cable.put(VnetHeader::default(), &frame([4; 6], 60, 1));
    first.driver.wait_used(RX, 1);
    let (wire, cable) = wire(ALL_OFFLOADS);
    let mut second = move_on(first, net(&NetConfig::new(MacAddress([2; 6])), wire));
    let mut start = [0; 8];
    second.driver.read_config(0, &mut start);
    assert_eq!(start[..6], MAC.0, "the address comes with the state");
    // 49 buffers are still out.
    for seed in 0..49 {
        cable.put(VnetHeader::default(), &frame([4; 6], 60, seed));
        let used = second.driver.wait_used(RX, 1);
        assert_eq!(received(&used[0]).1, frame([4; 6], 60, seed));
    }
    second.send(&[&plain(), &frame([2; 6], 60, 3)]);
    assert_eq!(cable.take().1, frame([2; 6], 60, 3));
}

#[test]
fn state_that_does_not_fit_is_refused() {
    let (wire, _cable) = wire(Abilities::default());
    let mut device = net(&NetConfig::new(MAC), wire);
    let DeviceState::Net(good) = device.save() else {
        panic!("not a network device's state");
    };
    let told = Told {
        filter: FilterState::new(MAC),
        to_guest: 0,
        active_pairs: 1,
    };
    let with = |told| NetState {
        told: Some(told),
        ..good.clone()
    };
    let bad = [
        NetState {
            queue_pairs: 2,
            ..good.clone()
        },
        NetState {
            mtu: Some(9000),
            ..good.clone()
        },
        with(Told {
            to_guest: 1,
            ..told
        }),
        with(Told {
            to_guest: 0x80,
            ..told
        }),
        with(Told {
            active_pairs: 0,
            ..told
        }),
        with(Told {
            active_pairs: 2,
            ..told
        }),
    ];
    for state in bad {
        let refused = device.restore(&DeviceState::Net(state)).unwrap_err();
        assert!(
            matches!(refused, RestoreError::Mismatch { .. }),
            "{refused}"
        );
    }
    let other = DeviceState::Rng(crate::virtio::rng::RngState {});
    let refused = device.restore(&other).unwrap_err();
    assert!(matches!(refused, RestoreError::WrongDevice { .. }));
    device.restore(&DeviceState::Net(with(told))).unwrap();
}

#[test]
fn link_is_shared_by_its_clones_and_closed_once() {
    let link = LinkState::default();
    let other = link.clone();
    assert!(other.close("gone"));
    assert_eq!(link.closed().as_deref(), Some("gone"));
    assert!(!link.close("again") && !link.is_up());
}
