#![allow(clippy::indexing_slicing, reason = "a test may panic")]

use std::sync::Mutex;

use proptest::prelude::*;

use super::*;
use crate::event_loop::EventLoop;
use crate::testing::{CountingInterrupt, FakeDriver};
use crate::virtio::spec::{feature as common, interrupt, mmio, status};
use crate::virtio::transport::mmio::{MmioTransport, TransportState};

const DEFLATE: u16 = 1;
const ALL: u64 = u64::MAX;

/// Remembers what was given back.
#[derive(Default)]
struct Owner {
    given: Mutex<Vec<(u64, u64)>>,
    refuses: bool,
}

impl Discard for Owner {
    fn discard(&self, addr: GuestAddress, len: u64) -> io::Result<()> {
        self.given.lock().unwrap().push((addr.0, len));
        if self.refuses {
            return Err(io::ErrorKind::OutOfMemory.into());
        }
        Ok(())
    }
}

struct Bench {
    transport: Arc<MmioTransport>,
    driver: FakeDriver,
    owner: Arc<Owner>,
    _events: EventLoop,
}

impl Bench {
    fn given(&self) -> Vec<(u64, u64)> {
        std::mem::take(&mut self.owner.given.lock().unwrap())
    }

    fn needs_reset(&self) -> bool {
        self.driver.read_register(mmio::STATUS) & status::DEVICE_NEEDS_RESET != 0
    }
}

fn bench_with(owner: Owner, memory: Arc<GuestMemoryMmap>, line: Arc<CountingInterrupt>) -> Bench {
    let events = EventLoop::spawn("test-io", |message| panic!("{message}")).unwrap();
    let owner = Arc::new(owner);
    let device = Box::new(Balloon::new("balloon", owner.clone()));
    let transport = MmioTransport::new(device, memory.clone(), line.clone(), events.handle());
    let transport = Arc::new(transport.unwrap());
    Bench {
        driver: FakeDriver::new(transport.clone(), memory, line),
        transport,
        owner,
        _events: events,
    }
}

fn bench() -> Bench {
    bench_with(Owner::default(), FakeDriver::memory(), Arc::default())
}

fn pages(numbers: &[u32]) -> Vec<u8> {
    numbers.iter().flat_map(|page| page.to_le_bytes()).collect()
}

#[test]
fn kick_with_a_report_gives_its_pages_back_and_interrupts() {
    for indirect in [false, true] {
        let mut bench = bench();
        let driver = &mut bench.driver;
        let features = driver.start(ALL);
        assert_ne!(features & feature::PAGE_REPORTING, 0);
        assert_eq!(driver.read_register(mmio::DEVICE_ID), device_type::BALLOON);
        let ranges = [(0x40_0000, 0x20_0000), (0x80_0000, 0x1000)];
        let head = if indirect {
            driver.send_indirect(REPORTING, &[], &[0x3000])
        } else {
            driver.send_buffers(REPORTING, &[], &ranges)
        };
        driver.kick(REPORTING);
        assert!(driver.interrupt().wait_for(1));
        let pending = driver.read_register(mmio::INTERRUPT_STATUS);
        assert_eq!(pending, interrupt::USED_BUFFER);
        let used = driver.wait_used(REPORTING, 1);
        assert_eq!((used[0].head, used[0].len), (head, 0));
        let given = bench.given();
        if indirect {
            // The fake driver's buffer is not aligned to pages.
            assert!(given.len() <= 1);
        } else {
            assert_eq!(given, ranges.map(|(addr, len)| (addr, u64::from(len))));
        }
    }
}

#[test]
fn only_whole_pages_are_given_back() {
    let mut bench = bench();
    bench.driver.start(ALL);
    let ranges = [
        (0x40_0001, 0x1fff),
        (0x50_0800, 0x800),
        (0x60_0800, 0x2000),
        (0xff_f000, 0x1000),
    ];
    bench.driver.send_buffers(REPORTING, &[], &ranges);
    bench.driver.kick(REPORTING);
    bench.driver.wait_used(REPORTING, 1);
    let whole = [
        (0x40_1000, 0x1000),
        (0x60_1000, 0x1000),
        (0xff_f000, 0x1000),
    ];
    assert_eq!(bench.given(), whole);
}

#[test]
fn what_a_report_only_shows_stays() {
    let mut bench = bench();
    bench.driver.start(ALL);
    bench
        .driver
        .send_buffers(REPORTING, &[(0x40_0000, 0x1000)], &[(0x50_0000, 0x1000)]);
    bench.driver.kick(REPORTING);
    bench.driver.wait_used(REPORTING, 1);
    assert_eq!(bench.given(), [(0x50_0000, 0x1000)]);
}

#[test]
fn inflated_pages_are_given_back_in_runs() {
    let mut bench = bench();
    bench.driver.start(ALL);
    let numbers = pages(&[0, 1, 2, 9, 8, 7, 7, 20, 4095]);
    bench.driver.send(INFLATE, &[&numbers], &[]);
    bench.driver.kick(INFLATE);
    bench.driver.wait_used(INFLATE, 1);
    let given = bench.given();
    let runs = [
        (0, 3 * PAGE),
        (7 * PAGE, 3 * PAGE),
        (7 * PAGE, PAGE),
        (20 * PAGE, PAGE),
        (4095 * PAGE, PAGE),
    ];
    assert_eq!(given, runs);
    // Taking them out again takes nothing but an answer.
    bench.driver.send(DEFLATE, &[&numbers], &[]);
    bench.driver.kick(DEFLATE);
    bench.driver.wait_used(DEFLATE, 1);
    assert!(bench.given().is_empty());
}

#[test]
fn pages_that_are_not_ram_ask_for_a_reset_after_which_the_device_works() {
    // 16 MiB of RAM end at page 4096; the product with the size of a page fits in 64 bits.
    for page in [4096, 0x10_0000, u32::MAX] {
        let mut bench = bench();
        bench.driver.start(ALL);
        bench.driver.send(INFLATE, &[&pages(&[1, page])], &[]);
        bench.driver.kick(INFLATE);
        assert!(bench.driver.interrupt().wait_for(1));
        assert!(bench.needs_reset(), "page {page:#x}");
        assert!(bench.given().iter().all(|(addr, _)| *addr < 2 * PAGE));
        bench.driver.start(ALL);
        bench.driver.send(INFLATE, &[&pages(&[1])], &[]);
        bench.driver.kick(INFLATE);
        bench.driver.wait_used(INFLATE, 1);
        assert_eq!(bench.given(), [(PAGE, PAGE)]);
    }
}

#[test]
fn a_report_of_what_is_not_ram_asks_for_a_reset() {
    for (addr, len) in [
        (0xff_f000, 0x2000),
        (1 << 40, 0x1000),
        (u64::MAX - 4095, 0x1000),
    ] {
        let mut bench = bench();
        bench.driver.start(ALL);
        bench.driver.send_buffers(REPORTING, &[], &[(addr, len)]);
        bench.driver.kick(REPORTING);
        assert!(bench.driver.interrupt().wait_for(1));
        assert!(bench.needs_reset(), "{len:#x} bytes at {addr:#x}");
        assert!(bench.given().is_empty());
    }
}

#[test]
fn long_chains_are_served_in_part() {
    let mut bench = bench();
    bench.driver.start(ALL);
    let numbers: Vec<u32> = (0..2000).map(|page| page * 2).collect();
    bench.driver.send(INFLATE, &[&pages(&numbers)], &[]);
    bench.driver.kick(INFLATE);
    bench.driver.wait_used(INFLATE, 1);
    assert_eq!(bench.given().len(), MAX_PAGES as usize);
}

#[test]
fn a_host_that_refuses_is_no_error_of_the_guests() {
    let owner = Owner {
        refuses: true,
        ..Owner::default()
    };
    let mut bench = bench_with(owner, FakeDriver::memory(), Arc::default());
    bench.driver.start(ALL);
    bench
        .driver
        .send_buffers(REPORTING, &[], &[(0x40_0000, 0x1000)]);
    bench.driver.kick(REPORTING);
    assert_eq!(bench.driver.wait_used(REPORTING, 1).len(), 1);
    assert!(!bench.needs_reset());
}

#[test]
fn without_reporting_negotiated_its_queue_gives_nothing_back() {
    let mut bench = bench();
    bench
        .driver
        .start(feature::DEFLATE_ON_OOM | common::EVENT_IDX);
    bench
        .driver
        .send_buffers(REPORTING, &[], &[(0x40_0000, 0x1000)]);
    bench.driver.kick(REPORTING);
    bench.driver.wait_used(REPORTING, 1);
    assert!(bench.given().is_empty());
}

#[test]
fn the_hosts_wish_is_none_and_the_drivers_account_is_kept() {
    let mut bench = bench();
    bench.driver.start(ALL);
    bench.driver.write_register(mmio::CONFIG + ACTUAL, 77);
    bench.driver.write_register(mmio::CONFIG, 5);
    let mut config = [0xff; 16];
    for (at, word) in (0..).step_by(4).zip(config.chunks_exact_mut(4)) {
        bench.driver.read_config(at, word);
    }
    let mut wanted = [0; 16];
    wanted[4] = 77;
    assert_eq!(config, wanted);
}

#[test]
fn saved_device_goes_on_in_a_new_transport() {
    let mut old = bench();
    old.driver.start(ALL);
    old.driver.write_register(mmio::CONFIG + ACTUAL, 3);
    let json = serde_json::to_string(&old.transport.save().unwrap()).unwrap();
    old.driver
        .send_buffers(REPORTING, &[], &[(0x40_0000, 0x1000)]);
    // Nobody serves the kick that comes while the device is stopped.
    old.driver.kick(REPORTING);

    let state: TransportState = serde_json::from_str(&json).unwrap();
    let (memory, line) = (old.driver.guest_memory(), old.driver.interrupt());
    let new = bench_with(Owner::default(), memory.clone(), line.clone());
    new.transport.restore(&state).unwrap();
    assert_eq!(new.transport.save().unwrap(), state);
    old.driver.set_device(new.transport.clone());
    new.transport.resume().unwrap();
    old.driver.wait_used(REPORTING, 1);
    assert_eq!(new.given(), [(0x40_0000, 0x1000)]);
    assert_eq!(old.driver.read_register(mmio::CONFIG + ACTUAL), 3);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever page numbers come, only whole pages of RAM are given back, and each that came is,
    /// or the device asks for a reset.
    #[test]
    fn nothing_outside_ram_is_ever_given_back(
        numbers in prop::collection::vec(prop_oneof![0_u32..4096, 4000_u32..4200, any::<u32>()], 1..40)
    ) {
        let mut bench = bench();
        bench.driver.start(ALL);
        bench.driver.send(INFLATE, &[&pages(&numbers)], &[]);
        bench.driver.kick(INFLATE);
        prop_assert!(bench.driver.interrupt().wait_for(1));
        let given = bench.given();
        for &(addr, len) in &given {
            prop_assert!(len > 0 && addr % PAGE == 0 && len % PAGE == 0);
            prop_assert!(addr + len <= 16 << 20);
        }
        let all_in_ram = numbers.iter().all(|&page| page < 4096);
        prop_assert_eq!(bench.needs_reset(), !all_in_ram);
        if all_in_ram {
            let total: u64 = given.iter().map(|(_, len)| len / PAGE).sum();
            prop_assert_eq!(total, numbers.len() as u64);
        }
    }
}
