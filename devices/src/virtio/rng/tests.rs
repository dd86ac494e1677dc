#![allow(clippy::indexing_slicing, reason = "a test may panic")]

use std::sync::Arc;

use super::*;
use crate::event_loop::EventLoop;
use crate::testing::{CountingInterrupt, FakeDriver};
use crate::virtio::spec::{Descriptor, desc_flags, feature, interrupt, mmio, status};
use crate::virtio::transport::mmio::{MmioTransport, TransportState};

const ALL: u64 = feature::EVENT_IDX | feature::INDIRECT_DESC;

struct Bench {
    transport: Arc<MmioTransport>,
    driver: FakeDriver,
    _events: EventLoop,
}

fn new_transport(driver: Option<&FakeDriver>) -> (Arc<MmioTransport>, FakeDriver, EventLoop) {
    let events = EventLoop::spawn("test-io", |message| panic!("{message}")).unwrap();
    let (memory, interrupt) = match driver {
        Some(driver) => (driver.guest_memory().clone(), driver.interrupt().clone()),
        None => (FakeDriver::memory(), Arc::new(CountingInterrupt::default())),
    };
    let device = Box::new(Rng::new("rng"));
    let line = interrupt.clone();
    let transport = MmioTransport::new(device, memory.clone(), line, events.handle());
    let transport = Arc::new(transport.unwrap());
    let driver = FakeDriver::new(transport.clone(), memory, interrupt);
    (transport, driver, events)
}

fn bench() -> Bench {
    let (transport, driver, events) = new_transport(None);
    Bench {
        transport,
        driver,
        _events: events,
    }
}

fn looks_random(data: &[u8]) -> bool {
    // 32 bytes that are all alike are never random, for all that a test can tell.
    data.chunks_exact(32)
        .all(|chunk| chunk.iter().any(|byte| *byte != chunk[0]))
}

#[test]
fn kick_fills_the_buffer_and_interrupts() {
    for features in [0, feature::EVENT_IDX, ALL] {
        let mut bench = bench();
        let driver = &mut bench.driver;
        assert_eq!(driver.start(features), features | feature::VERSION_1);
        assert_eq!(driver.read_register(mmio::DEVICE_ID), device_type::ENTROPY);
        let head = match features & feature::INDIRECT_DESC {
            0 => driver.send(0, &[], &[64, 32]),
            _ => driver.send_indirect(0, &[], &[64, 32]),
        };
        driver.kick(0);
        assert!(driver.interrupt().wait_for(1));
        let pending = driver.read_register(mmio::INTERRUPT_STATUS);
        assert_eq!(pending, interrupt::USED_BUFFER);
        let used = driver.wait_used(0, 1);
        assert_eq!((used[0].head, used[0].len), (head, 96));
        assert!(looks_random(&used[0].data));
        assert_eq!(driver.read_register(mmio::INTERRUPT_STATUS), 0);
    }
}

#[test]
fn large_request_is_served_in_part_and_within_its_bounds() {
    let mut bench = bench();
    bench.driver.start(ALL);
    bench.driver.send(0, &[b"ignored"], &[10_000, 10_000]);
    bench.driver.kick(0);
    let used = bench.driver.wait_used(0, 1).remove(0);
    assert_eq!(used.len, MAX_BYTES);
    let (filled, rest) = used.data.split_at(MAX_BYTES as usize);
    assert!(looks_random(filled));
    assert!(rest.iter().all(|byte| *byte == 0));
}

#[test]
fn chain_without_writable_bytes_is_given_back_empty() {
    let mut bench = bench();
    bench.driver.start(0);
    bench.driver.send(0, &[b"nothing to fill"], &[]);
    bench.driver.kick(0);
    assert_eq!(bench.driver.wait_used(0, 1)[0].len, 0);
}

/// Driver and device run on two threads and wake each other only when asked to: a lost kick or a
/// lost interrupt stops the traffic, and the driver's patience ends.
#[test]
fn traffic_with_suppressed_notifications_never_stops() {
    for features in [0, ALL] {
        let mut bench = bench();
        bench.driver.start(features);
        for round in 0..3_000 {
            let count = 1 + round % 7;
            for _ in 0..count {
                bench.driver.send(0, &[], &[16]);
                bench.driver.kick_if_asked(0);
            }
            let used = bench.driver.wait_used(0, count);
            assert!(used.iter().all(|used| used.len == 16));
        }
    }
}

#[test]
fn bad_chain_asks_for_a_reset_after_which_the_device_works() {
    let mut bench = bench();
    let driver = &mut bench.driver;
    driver.start(ALL);
    let outside = Descriptor {
        addr: (1_u64 << 40).into(),
        len: 16.into(),
        flags: desc_flags::WRITE.into(),
        next: 0.into(),
    };
    driver.write_descriptor(0, 3, &outside);
    driver.publish(0, 3);
    driver.kick(0);
    assert!(driver.interrupt().wait_for(1));
    let pending = driver.read_register(mmio::INTERRUPT_STATUS);
    assert_eq!(pending, interrupt::CONFIG_CHANGE);
    let needs_reset = driver.read_register(mmio::STATUS) & status::DEVICE_NEEDS_RESET;
    assert_ne!(needs_reset, 0);
    assert!(driver.used(0).is_empty());

    driver.start(ALL);
    driver.send(0, &[], &[32]);
    driver.kick(0);
    assert_eq!(driver.wait_used(0, 1)[0].len, 32);
}

#[test]
fn device_without_its_queue_asks_for_a_reset() {
    let mut bench = bench();
    bench.driver.negotiate(0);
    let all = status::ACKNOWLEDGE | status::DRIVER | status::FEATURES_OK | status::DRIVER_OK;
    bench.driver.write_register(mmio::STATUS, all);
    let now = bench.driver.read_register(mmio::STATUS);
    assert_eq!(now, all | status::DEVICE_NEEDS_RESET);
}

#[test]
fn saved_device_goes_on_in_a_new_transport() {
    let mut bench = bench();
    bench.driver.start(ALL);
    for _ in 0..4 {
        bench.driver.send(0, &[], &[16]);
    }
    bench.driver.kick(0);
    let done = bench.driver.wait_used(0, 4);
    assert_eq!(done.len(), 4);
    let heads: Vec<_> = (0..5).map(|_| bench.driver.send(0, &[], &[16])).collect();
    let json = serde_json::to_string(&bench.transport.save().unwrap()).unwrap();
    // Nobody serves the kick that comes while the device is stopped.
    bench.driver.kick(0);

    let state: TransportState = serde_json::from_str(&json).unwrap();
    let (transport, _, _events) = new_transport(Some(&bench.driver));
    transport.restore(&state).unwrap();
    assert_eq!(transport.save().unwrap(), state);
    bench.driver.set_device(transport.clone());
    assert!(bench.driver.used(0).is_empty());
    transport.resume().unwrap();
    let used = bench.driver.wait_used(0, 5);
    let used: Vec<_> = used.iter().map(|used| used.head).collect();
    assert_eq!(used, heads);
}

#[test]
fn saved_device_that_was_resumed_goes_on() {
    let mut bench = bench();
    bench.driver.start(ALL);
    for _ in 0..50 {
        bench.transport.save().unwrap();
        bench.driver.send(0, &[], &[16]);
        bench.driver.kick_if_asked(0);
        bench.transport.resume().unwrap();
        assert_eq!(bench.driver.wait_used(0, 1).len(), 1);
    }
}
