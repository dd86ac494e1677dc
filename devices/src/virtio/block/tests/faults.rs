//! Hosts that fail, are slow, or do half of what they are asked.

use std::thread;

use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::virtio::block::layout::{
    TYPE_DISCARD, TYPE_FLUSH, TYPE_IN, TYPE_OUT, TYPE_WRITE_ZEROES,
};
use crate::virtio::spec::{mmio, status};

const OK: u8 = Status::Ok as u8;
const IOERR: u8 = Status::IoErr as u8;

fn os_error(code: i32) -> Answer {
    Answer::Now(Err(io::Error::from_raw_os_error(code)))
}

fn started_fake() -> (Rig, FakeControl) {
    let (block, control) = fake_block(&BlockConfig::default());
    let mut rig = Rig::new(block);
    rig.driver.start(ALL);
    (rig, control)
}

#[test]
fn a_host_error_reaches_the_guest_and_the_device_goes_on() {
    let (mut rig, control) = started_fake();
    for code in [libc::EIO, libc::ENOSPC, libc::EDQUOT, libc::EFAULT] {
        control.answer([os_error(code), os_error(code), os_error(code)]);
        assert_eq!(rig.ask(&[&header(TYPE_IN, 0)], &[512, 1]).0, IOERR);
        let out = rig.ask(&[&header(TYPE_OUT, 0), &[0; 512]], &[1]);
        assert_eq!(out.0, IOERR);
        assert_eq!(rig.ask(&[&header(TYPE_FLUSH, 0)], &[1]).0, IOERR);
        assert_eq!(rig.ask(&[&header(TYPE_FLUSH, 0)], &[1]).0, OK);
    }
    let status = rig.driver.read_register(mmio::STATUS);
    assert_eq!(status & self::status::DEVICE_NEEDS_RESET, 0);
}

#[test]
fn a_full_host_disk_is_an_error_for_the_guest_alone() {
    // Every write to this device fails with ENOSPC, whatever engine does it.
    for engine in engines() {
        let open = |path: &str| File::options().read(true).write(true).open(path).unwrap();
        let full = Arc::new(DiskFile::new(open("/dev/full"), 1 << 20));
        let config = BlockConfig::default();
        let block = Block::with_backend(1 << 20, Path::new("/dev/full"), &config, move |depth| {
            backend::open(engine, &full, depth, false)
        });
        let mut rig = Rig::new(block.unwrap());
        rig.driver.start(ALL);
        let out = rig.ask(&[&header(TYPE_OUT, 0), &[0; 4096]], &[1]);
        assert_eq!(out.0, IOERR, "{engine:?}");
        let ask = rig.ask(&[&header(TYPE_IN, 0)], &[4096, 1]);
        assert_eq!(ask.0, OK, "{engine:?}");
    }
}

#[test]
fn flush_reaches_the_host_once_and_no_other_request_does() {
    let (mut rig, control) = started_fake();
    rig.ask(&[&header(TYPE_OUT, 0), &[0; 512]], &[1]);
    rig.ask(&[&header(TYPE_FLUSH, 0)], &[1]);
    let write = Operation::Write {
        offset: 0,
        durable: false,
    };
    assert_eq!(control.operations(), [write, Operation::Flush]);
}

#[test]
fn without_the_flush_feature_each_write_is_durable() {
    let (block, control) = fake_block(&BlockConfig::default());
    let mut rig = Rig::new(block);
    rig.driver.start(ALL & !F_FLUSH);
    rig.ask(&[&header(TYPE_OUT, 0), &[0; 512]], &[1]);
    rig.ask(&[&header(TYPE_WRITE_ZEROES, 0), &range(0, 8, 0)], &[1]);
    let write = Operation::Write {
        offset: 0,
        durable: true,
    };
    let zero = Operation::WriteZeroes {
        offset: 0,
        len: 4096,
        unmap: false,
    };
    assert_eq!(control.operations(), [write, zero, Operation::Flush]);
}

#[test]
fn short_and_interrupted_transfers_go_on_where_they_stopped() {
    let (mut rig, control) = started_fake();
    control.answer([
        Answer::Now(Ok(100)),
        os_error(libc::EINTR),
        Answer::Later,
        Answer::Now(Ok(5000)),
    ]);
    control.release.send(()).unwrap();
    let ask = rig.ask(&[&header(TYPE_IN, 1)], &[300, 3796, 1]);
    assert_eq!(ask.0, OK);
    let reads = [512, 612, 612].map(|offset| Operation::Read { offset });
    assert_eq!(control.operations(), reads);
}

#[test]
fn a_write_that_moves_nothing_is_an_error() {
    let (mut rig, control) = started_fake();
    control.answer([Answer::Now(Ok(0))]);
    let out = rig.ask(&[&header(TYPE_OUT, 0), &[0; 512]], &[1]);
    assert_eq!(out.0, IOERR);
}

#[test]
fn discard_succeeds_where_the_file_system_cannot() {
    let (mut rig, control) = started_fake();
    control.answer([os_error(libc::EOPNOTSUPP), os_error(libc::EIO)]);
    let discard = [header(TYPE_DISCARD, 0), range(0, 8, 0)].concat();
    assert_eq!(rig.ask(&[&discard], &[1]).0, OK);
    assert_eq!(rig.ask(&[&discard], &[1]).0, IOERR);
}

#[test]
fn one_kick_is_one_submission() {
    let (mut rig, control) = started_fake();
    control.answer((0..8).map(|_| Answer::Later));
    for sector in 0..8 {
        rig.driver.send(0, &[&header(TYPE_IN, sector)], &[512, 1]);
    }
    rig.driver.kick(0);
    for _ in 0..8 {
        control.release.send(()).unwrap();
    }
    control.event.write(1).unwrap();
    assert_eq!(rig.driver.wait_used(0, 8).len(), 8);
    assert_eq!(control.script.lock().unwrap().submissions, 1);
}

/// Starts a read that the host does not finish, and `stop`s the device on another thread. Returns
/// once the device waits for the host; the thread tells when it is done waiting.
fn stop_with_io_in_flight(
    rig: &mut Rig,
    control: &FakeControl,
    stop: impl FnOnce(&MmioTransport) + Send + 'static,
) -> thread::JoinHandle<()> {
    control.answer([Answer::Later]);
    rig.driver.send(0, &[&header(TYPE_IN, 0)], &[512, 1]);
    rig.driver.kick(0);
    while control.operations().is_empty() {
        thread::yield_now();
    }
    let transport = Arc::clone(&rig.transport);
    let thread = thread::spawn(move || stop(&transport));
    control.waiting.recv().unwrap();
    thread
}

#[test]
fn a_reset_waits_for_io_in_flight() {
    use crate::bus::BusDevice;
    let (mut rig, control) = started_fake();
    let stopped = stop_with_io_in_flight(&mut rig, &control, |transport| {
        transport.write(mmio::STATUS, &0u32.to_le_bytes());
    });
    assert!(!stopped.is_finished(), "the reset did not wait");
    control.release.send(()).unwrap();
    stopped.join().unwrap();
    assert_eq!(rig.driver.read_register(mmio::STATUS), 0);
}

#[test]
fn a_saved_queue_has_its_io_in_flight_completed() {
    let (mut rig, control) = started_fake();
    let stopped = stop_with_io_in_flight(&mut rig, &control, |transport| {
        transport.save().unwrap();
    });
    control.release.send(()).unwrap();
    stopped.join().unwrap();
    assert_eq!(rig.answer().0, OK);
}

#[test]
fn a_dropped_ring_waits_until_the_kernel_is_done_with_guest_memory() {
    if !engines().contains(&Engine::Uring) {
        return;
    }
    // A pipe stands for a slow disk: the read ends when the test writes.
    let (reader, mut writer) = io::pipe().unwrap();
    let file = File::from(std::os::fd::OwnedFd::from(reader));
    let disk = Arc::new(DiskFile::new(file, 1 << 20));
    let mut uring = backend::open(Engine::Uring, &disk, 4, false).unwrap();
    let memory = FakeDriver::memory();
    let mut buffers = backend::Buffers::new(Arc::clone(&memory));
    // Longer than what is tried without the ring.
    buffers.push(GuestAddress(0), 1 << 20).unwrap();
    let started = uring.start(Io {
        tag: 3,
        operation: Operation::Read { offset: 0 },
        buffers,
    });
    assert!(matches!(started, Started::Pending));
    uring.submit().unwrap();
    let dropper = thread::spawn(move || {
        drop(uring);
        let mut seen = [0; 5];
        memory.read_slice(&mut seen, GuestAddress(0)).unwrap();
        seen
    });
    io::Write::write_all(&mut writer, b"bytes").unwrap();
    assert_eq!(&dropper.join().unwrap(), b"bytes");
}

#[test]
fn a_broken_ring_stops_the_device_until_it_is_reset() {
    let file = file_with(&pattern(4096));
    let mut rig = Rig::started(&file, &BlockConfig::default());
    // A head that is no descriptor of the queue.
    rig.driver.publish(0, 9999);
    rig.driver.kick(0);
    while rig.driver.read_register(mmio::STATUS) & status::DEVICE_NEEDS_RESET == 0 {
        thread::yield_now();
    }
    rig.driver.start(ALL);
    assert_eq!(rig.ask(&[&header(TYPE_IN, 0)], &[512, 1]).0, OK);
}

/// A back end that panics when it is used.
struct Panicking;

impl Backend for Panicking {
    fn start(&mut self, _io: Io) -> Started {
        panic!("the back end's panic");
    }
    fn submit(&mut self) -> io::Result<()> {
        Ok(())
    }
    fn reap(&mut self) -> Option<Done> {
        None
    }
    fn in_flight(&self) -> usize {
        0
    }
    fn completion_event(&self) -> Option<std::os::fd::RawFd> {
        None
    }
    fn wait(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_workers_panic_is_reported_from_either_thread() {
    for dedicated_thread in [false, true] {
        let config = BlockConfig {
            dedicated_thread,
            ..BlockConfig::default()
        };
        let open = |_| Ok(Box::new(Panicking) as Box<dyn Backend>);
        let block = Block::with_backend(512, Path::new("fake.img"), &config, open);
        let mut rig = Rig::new(block.unwrap());
        rig.driver.start(ALL);
        rig.driver.send(0, &[&header(TYPE_FLUSH, 0)], &[1]);
        rig.driver.kick(0);
        assert_eq!(rig.panics.recv().unwrap(), "the back end's panic");
    }
}

#[test]
fn a_device_that_cannot_start_asks_for_a_reset() {
    let config = BlockConfig {
        queues: 2,
        ..BlockConfig::default()
    };
    // The second queue's back end cannot be had.
    let (block, _control) = fake_block(&config);
    let mut rig = Rig::new(block);
    rig.driver.negotiate(ALL);
    while rig.driver.add_queue(256) {}
    rig.driver.write_register(
        mmio::STATUS,
        rig.driver.read_register(mmio::STATUS) | status::DRIVER_OK,
    );
    let status = rig.driver.read_register(mmio::STATUS);
    assert_ne!(status & self::status::DEVICE_NEEDS_RESET, 0);
}
