#![allow(clippy::indexing_slicing, reason = "a test may panic")]

mod back_end;

use std::os::unix::net::UnixStream;
use std::sync::Arc;

use vm_memory::{FileOffset, GuestAddress};
use vmm_sys_util::eventfd::EFD_NONBLOCK;

use super::*;
use crate::event_loop::{Control, EventLoop, Handler, Interest, Source};
use crate::interrupt::Interrupt;
use crate::testing::{CountingInterrupt, FakeDriver, Used};
use crate::virtio::spec::{feature, interrupt, mmio, status};
use crate::virtio::transport::mmio::MmioTransport;
use back_end::FakeBackEnd;

const ALL: u64 = feature::EVENT_IDX | feature::INDIRECT_DESC;
const REQUESTS: u16 = 1;

/// An interrupt line with an eventfd, which a test can count.
struct Line {
    event: EventFd,
    count: Arc<CountingInterrupt>,
}

impl Interrupt for Line {
    fn raise(&self) {
        self.event.write(1).unwrap();
    }
    fn event(&self) -> Option<&EventFd> {
        Some(&self.event)
    }
}

/// KVM's part: what is signalled becomes an edge.
impl Handler for Line {
    fn sources(&self) -> Vec<Source> {
        vec![Source {
            fd: std::os::fd::AsRawFd::as_raw_fd(&self.event),
            token: 0,
            interest: Interest::READ,
        }]
    }
    fn ready(&mut self, _token: u32, _control: &mut Control<'_>) {
        self.event.read().unwrap();
        self.count.raise();
    }
}

struct Bench {
    driver: FakeDriver,
    transport: Arc<MmioTransport>,
    back_end: Option<FakeBackEnd>,
    _line: crate::event_loop::Registration<Line>,
    _events: EventLoop,
}

fn shared_memory() -> Arc<GuestMemoryMmap> {
    const LEN: usize = 16 << 20;
    let file = tempfile::tempfile().unwrap();
    file.set_len(LEN as u64).unwrap();
    let range = (GuestAddress(0), LEN, Some(FileOffset::new(file, 0)));
    Arc::new(GuestMemoryMmap::from_ranges_with_files([range]).unwrap())
}

fn bench_with(memory: Arc<GuestMemoryMmap>, connection: UnixStream) -> Bench {
    let events = EventLoop::spawn("test-io", |message| panic!("{message}")).unwrap();
    let count = Arc::new(CountingInterrupt::default());
    let event = EventFd::new(EFD_NONBLOCK).unwrap();
    let line = |event: EventFd| Line {
        event,
        count: count.clone(),
    };
    let watched = events
        .handle()
        .add(line(event.try_clone().unwrap()))
        .unwrap();
    let device = Box::new(Fs::new("share", "data", connection).unwrap());
    let transport = MmioTransport::new(
        device,
        memory.clone(),
        Arc::new(line(event)),
        events.handle(),
    );
    let transport = Arc::new(transport.unwrap());
    Bench {
        driver: FakeDriver::new(transport.clone(), memory, count),
        transport,
        back_end: None,
        _line: watched,
        _events: events,
    }
}

fn bench() -> Bench {
    let (back_end, connection) = FakeBackEnd::start();
    let mut bench = bench_with(shared_memory(), connection);
    bench.back_end = Some(back_end);
    bench
}

/// A request that the kernel could send: its header, and room for an answer.
fn request(unique: u64) -> Vec<u8> {
    let mut bytes = vec![0; 40];
    bytes[..4].copy_from_slice(&40_u32.to_le_bytes());
    bytes[8..16].copy_from_slice(&unique.to_le_bytes());
    bytes
}

fn expect_io_error(used: &Used, unique: u64) {
    assert_eq!(used.len, 16);
    assert_eq!(used.data[..4], 16_u32.to_le_bytes());
    assert_eq!(used.data[4..8], (-libc::EIO).to_le_bytes());
    assert_eq!(used.data[8..16], unique.to_le_bytes());
}

fn needs_reset(driver: &FakeDriver) -> bool {
    driver.read_register(mmio::STATUS) & status::DEVICE_NEEDS_RESET != 0
}

/// Starts a device that cannot serve, as a driver that does not look at its status would.
fn start_in_vain(driver: &mut FakeDriver) {
    driver.negotiate(ALL);
    while driver.add_queue(128) {}
    let all = status::ACKNOWLEDGE | status::DRIVER | status::FEATURES_OK | status::DRIVER_OK;
    driver.write_register(mmio::STATUS, all);
    assert!(needs_reset(driver));
}

#[test]
fn configuration_has_the_tag_and_one_request_queue() {
    let bench = bench();
    let mut config = [0xff; 40];
    for (offset, byte) in (0..).zip(config.iter_mut()) {
        bench.driver.read_config(offset, std::slice::from_mut(byte));
    }
    assert_eq!(config[..5], *b"data\0");
    assert!(config[5..36].iter().all(|byte| *byte == 0));
    assert_eq!(config[36..], 1_u32.to_le_bytes());
    let mut beyond = [0xff; 4];
    bench.driver.read_config(40, &mut beyond);
    assert_eq!(beyond, [0; 4]);
}

#[test]
fn tag_that_does_not_fit_is_refused() {
    for tag in ["", &"x".repeat(37), "a\0b"] {
        let (connection, _) = UnixStream::pair().unwrap();
        assert!(matches!(
            Fs::new("share", tag, connection),
            Err(FsError::Tag { .. })
        ));
    }
    let (connection, _) = UnixStream::pair().unwrap();
    Fs::new("share", &"x".repeat(36), connection).unwrap();
}

/// The back end answers with the request's bytes, upside down.
#[test]
fn kick_reaches_the_back_end_and_its_interrupt_the_driver() {
    for features in [0, ALL] {
        let mut bench = bench();
        let driver = &mut bench.driver;
        assert_eq!(driver.start(features), features | feature::VERSION_1);
        assert_eq!(
            driver.read_register(mmio::DEVICE_ID),
            device_type::FILE_SYSTEM
        );
        for queue in [0, REQUESTS] {
            let before = driver.interrupt().count();
            driver.send(queue, &[b"abc"], &[3]);
            driver.kick(queue);
            assert!(driver.interrupt().wait_for(before + 1));
            let pending = driver.read_register(mmio::INTERRUPT_STATUS);
            assert_eq!(pending, interrupt::USED_BUFFER);
            let used = driver.wait_used(queue, 1).remove(0);
            assert_eq!((used.len, used.data.as_slice()), (3, b"cba".as_slice()));
        }
        assert!(!needs_reset(driver));
    }
}

#[test]
fn back_end_goes_on_after_a_reset_and_after_a_pause() {
    let mut bench = bench();
    for round in 0..3_u8 {
        bench.driver.start(ALL);
        for _ in 0..2 {
            bench.driver.send(REQUESTS, &[&[round]], &[1]);
            bench.driver.kick_if_asked(REQUESTS);
            assert_eq!(bench.driver.wait_used(REQUESTS, 1)[0].data, [round]);
            bench.transport.save().unwrap();
            bench.transport.resume().unwrap();
        }
    }
}

#[test]
fn driver_of_a_back_end_that_ends_gets_errors_for_what_is_open_and_what_comes() {
    let mut bench = bench();
    bench.driver.start(ALL);
    let back_end = bench.back_end.take().unwrap();
    bench.driver.send(REQUESTS, &[b"x"], &[1]);
    bench.driver.kick(REQUESTS);
    bench.driver.wait_used(REQUESTS, 1);

    back_end.stop_serving();
    for unique in [7, 8] {
        bench.driver.send(REQUESTS, &[&request(unique)], &[16, 100]);
        bench.driver.kick(REQUESTS);
    }
    back_end.end();
    let used = bench.driver.wait_used(REQUESTS, 2);
    expect_io_error(&used[0], 7);
    expect_io_error(&used[1], 8);
    assert!(needs_reset(&bench.driver));

    bench.driver.send(REQUESTS, &[&request(9)], &[16]);
    bench.driver.kick_if_asked(REQUESTS);
    expect_io_error(&bench.driver.wait_used(REQUESTS, 1)[0], 9);
    // No room for an answer, and no header.
    bench.driver.send(0, &[&request(10)], &[]);
    bench.driver.kick(0);
    assert_eq!(bench.driver.wait_used(0, 1)[0].len, 0);
    bench.driver.send(0, &[b"short"], &[16]);
    bench.driver.kick(0);
    assert_eq!(bench.driver.wait_used(0, 1)[0].len, 0);

    // A driver that comes later is no better off, but does not wait either.
    start_in_vain(&mut bench.driver);
    bench.driver.send(REQUESTS, &[&request(11)], &[16]);
    bench.driver.kick(REQUESTS);
    expect_io_error(&bench.driver.wait_used(REQUESTS, 1)[0], 11);
}

/// It neither answers nor ends: the driver waits for as long as it is given, and no longer.
#[test]
fn silent_back_end_is_given_up() {
    let (connection, _silent) = UnixStream::pair().unwrap();
    let mut bench = bench_with(shared_memory(), connection);
    start_in_vain(&mut bench.driver);
    bench.driver.send(REQUESTS, &[&request(1)], &[16]);
    bench.driver.kick(REQUESTS);
    expect_io_error(&bench.driver.wait_used(REQUESTS, 1)[0], 1);
}

#[test]
fn memory_that_is_not_shared_is_not_served() {
    let (_back_end, connection) = FakeBackEnd::start();
    let mut bench = bench_with(FakeDriver::memory(), connection);
    start_in_vain(&mut bench.driver);
}
