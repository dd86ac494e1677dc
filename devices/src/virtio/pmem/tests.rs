#![allow(clippy::indexing_slicing, reason = "a test may panic")]

use std::sync::Arc;

use proptest::prelude::*;
use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{GuestAddress, GuestMemoryMmap, GuestRegionMmap};

use super::*;
use crate::bus::Bus;
use crate::event_loop::EventLoop;
use crate::testing::{CountingInterrupt, FakeDriver};
use crate::virtio::spec::{feature, interrupt, mmio, status};
use crate::virtio::transport::mmio::{MmioTransport, TransportState};

const IMAGE: PmemState = PmemState {
    start: 4 << 30,
    size: 2 << 20,
};
const FLUSH: [u8; 4] = [0; 4];
const ALL: u64 = feature::EVENT_IDX | feature::INDIRECT_DESC;

/// RAM with a read-only image above it.
fn memory() -> Arc<GuestMemoryMmap> {
    let region = MmapRegionBuilder::new(IMAGE.size as usize)
        .with_mmap_prot(libc::PROT_READ)
        .with_mmap_flags(libc::MAP_PRIVATE | libc::MAP_ANONYMOUS)
        .build()
        .unwrap();
    let region = GuestRegionMmap::new(region, GuestAddress(IMAGE.start)).unwrap();
    let memory = FakeDriver::memory().insert_region(Arc::new(region));
    Arc::new(memory.unwrap())
}

struct Bench {
    transport: Arc<MmioTransport>,
    driver: FakeDriver,
    _events: EventLoop,
}

fn bench_in(memory: Arc<GuestMemoryMmap>, line: Arc<CountingInterrupt>, state: PmemState) -> Bench {
    let events = EventLoop::spawn("test-io", |message| panic!("{message}")).unwrap();
    let device = Box::new(Pmem::new("root", state));
    let transport = MmioTransport::new(device, memory.clone(), line.clone(), events.handle());
    let transport = Arc::new(transport.unwrap());
    Bench {
        driver: FakeDriver::new(transport.clone(), memory, line),
        transport,
        _events: events,
    }
}

fn bench() -> Bench {
    bench_in(memory(), Arc::default(), IMAGE)
}

#[test]
fn configuration_tells_where_the_image_is() {
    let bench = bench();
    let driver = &bench.driver;
    assert_eq!(driver.read_register(mmio::DEVICE_ID), device_type::PMEM);
    let mut config = [0xff; 24];
    for (at, word) in (0..).step_by(4).zip(config.chunks_exact_mut(4)) {
        driver.read_config(at, word);
    }
    assert_eq!(config[..8], IMAGE.start.to_le_bytes());
    assert_eq!(config[8..16], IMAGE.size.to_le_bytes());
    assert_eq!(config[16..], [0; 8]);
    let mut half = [0xff; 4];
    driver.read_config(4, &mut half);
    assert_eq!(half, 1_u32.to_le_bytes());
}

#[test]
fn kick_with_a_flush_is_answered_and_interrupts() {
    for features in [0, ALL] {
        let mut bench = bench();
        let driver = &mut bench.driver;
        driver.start(features);
        let head = match features {
            0 => driver.send(0, &[&FLUSH], &[4]),
            _ => driver.send_indirect(0, &[&FLUSH], &[4]),
        };
        driver.kick(0);
        assert!(driver.interrupt().wait_for(1));
        let pending = driver.read_register(mmio::INTERRUPT_STATUS);
        assert_eq!(pending, interrupt::USED_BUFFER);
        let used = driver.wait_used(0, 1);
        assert_eq!((used[0].head, used[0].len), (head, 4));
        assert_eq!(used[0].data, RESPONSE_OK.to_le_bytes());
    }
}

#[test]
fn other_requests_and_short_ones_are_errors() {
    let mut bench = bench();
    let driver = &mut bench.driver;
    driver.start(ALL);
    for request in [&[1, 0, 0, 0][..], &[0xff; 4], &[0; 3], &[]] {
        let readable = [request];
        let readable = if request.is_empty() {
            &[][..]
        } else {
            &readable
        };
        driver.send(0, readable, &[4]);
        driver.kick(0);
        let used = driver.wait_used(0, 1);
        assert_eq!(used[0].data, RESPONSE_EIO.to_le_bytes(), "{request:?}");
    }
    // Without room for the answer there is none.
    driver.send(0, &[&FLUSH], &[3]);
    driver.kick(0);
    let used = driver.wait_used(0, 1);
    assert_eq!((used[0].len, &used[0].data[..]), (0, &[0; 3][..]));
}

/// The image is guest memory for whoever reads, and for nobody who writes.
#[test]
fn a_device_reads_from_the_image_and_never_writes_there() {
    for (start, len) in [
        (IMAGE.start, 4),
        (IMAGE.start + IMAGE.size - 4, 4),
        (IMAGE.start - 2, 4),
    ] {
        let mut bench = bench();
        let driver = &mut bench.driver;
        driver.start(ALL);
        driver.send(0, &[], &[4]); // takes the place of one of ours
        driver.send_buffers(0, &[(IMAGE.start, 4)], &[(start, len)]);
        driver.kick(0);
        assert!(driver.interrupt().wait_for(1));
        while driver.read_register(mmio::STATUS) & status::DEVICE_NEEDS_RESET == 0 {
            assert!(driver.interrupt().wait_for(2), "the image was written to");
        }
    }
    let mut bench = bench();
    bench.driver.start(0);
    bench
        .driver
        .send_buffers(0, &[(IMAGE.start, 4)], &[(0x20_0000, 4)]);
    bench.driver.kick(0);
    let used = bench.driver.wait_used(0, 1);
    assert_eq!(used[0].data, RESPONSE_OK.to_le_bytes());
}

#[test]
fn no_ring_lies_in_the_image() {
    for ring in [
        mmio::QUEUE_DESC_LOW,
        mmio::QUEUE_DRIVER_LOW,
        mmio::QUEUE_DEVICE_LOW,
    ] {
        let mut bench = bench();
        let driver = &mut bench.driver;
        driver.negotiate(0);
        driver.write_register(mmio::QUEUE_SEL, 0);
        driver.write_register(mmio::QUEUE_NUM, 16);
        for low in [
            mmio::QUEUE_DESC_LOW,
            mmio::QUEUE_DRIVER_LOW,
            mmio::QUEUE_DEVICE_LOW,
        ] {
            driver.write_queue_address(low, if low == ring { IMAGE.start } else { 0x10_0000 });
        }
        driver.write_register(mmio::QUEUE_READY, 1);
        let all = status::ACKNOWLEDGE | status::DRIVER | status::FEATURES_OK | status::DRIVER_OK;
        driver.write_register(mmio::STATUS, all);
        let ready = driver.read_register(mmio::QUEUE_READY);
        let now = driver.read_register(mmio::STATUS);
        assert!(
            ready == 0 || now & status::DEVICE_NEEDS_RESET != 0,
            "a queue in read-only memory runs"
        );
    }
}

#[test]
fn writes_of_the_guest_reach_nobody() {
    let mut bus = Bus::default();
    let refuses = Arc::new(ReadOnly::new("root"));
    bus.insert(IMAGE.start, IMAGE.size, "root", refuses)
        .unwrap();
    for len in [1, 2, 4, 8] {
        assert!(bus.write(IMAGE.start + 5, &[7; 8][..len]));
    }
    let mut byte = [7];
    assert!(bus.read(IMAGE.start + 5, &mut byte));
    assert_eq!(byte, [0]);
}

#[test]
fn saved_device_goes_on_and_another_image_is_refused() {
    let mut bench = bench();
    bench.driver.start(ALL);
    let state = bench.transport.save().unwrap();
    let json = serde_json::to_string(&state).unwrap();
    let state: TransportState = serde_json::from_str(&json).unwrap();
    let memory = bench.driver.guest_memory().clone();
    let line = bench.driver.interrupt().clone();
    let other = PmemState {
        size: IMAGE.size * 2,
        ..IMAGE
    };
    let wrong = bench_in(memory.clone(), line.clone(), other);
    assert!(wrong.transport.restore(&state).is_err());

    let same = bench_in(memory, line, IMAGE);
    same.transport.restore(&state).unwrap();
    assert_eq!(same.transport.save().unwrap(), state);
    bench.driver.set_device(same.transport.clone());
    same.transport.resume().unwrap();
    bench.driver.send(0, &[&FLUSH], &[4]);
    bench.driver.kick(0);
    let used = bench.driver.wait_used(0, 1);
    assert_eq!(used[0].data, RESPONSE_OK.to_le_bytes());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn every_request_is_answered_within_its_buffers(
        request in prop::collection::vec(any::<u8>(), 0..12), room in 0_u32..12, indirect: bool
    ) {
        prop_assume!(!request.is_empty() || room > 0);
        let mut bench = bench();
        let driver = &mut bench.driver;
        driver.start(ALL);
        let readable = [&request[..]];
        let readable = if request.is_empty() { &[][..] } else { &readable };
        let room_list = [room];
        let writable = if room == 0 { &[][..] } else { &room_list };
        if indirect {
            driver.send_indirect(0, readable, writable);
        } else {
            driver.send(0, readable, writable);
        }
        driver.kick(0);
        let used = driver.wait_used(0, 1);
        let flush = request.starts_with(&FLUSH);
        let answer = if flush { RESPONSE_OK } else { RESPONSE_EIO };
        prop_assert_eq!(used[0].len, if room >= 4 { 4 } else { 0 });
        if room >= 4 {
            prop_assert_eq!(&used[0].data[..4], &answer.to_le_bytes());
        }
    }

    #[test]
    fn configuration_is_read_at_any_offset_and_width(offset in 0_u64..64, len in 0_usize..16) {
        let device = Pmem::new("root", IMAGE);
        let mut data = vec![0; len];
        device.read_config(offset, &mut data);
        let mut all = [0; 96];
        all[..8].copy_from_slice(&IMAGE.start.to_le_bytes());
        all[8..16].copy_from_slice(&IMAGE.size.to_le_bytes());
        prop_assert_eq!(&data[..], &all[offset as usize..][..len]);
        device.read_config(u64::MAX - offset, &mut data);
    }
}
