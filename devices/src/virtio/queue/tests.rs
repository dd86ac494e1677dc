#![allow(clippy::indexing_slicing, reason = "a test may panic")]

use proptest::prelude::*;
use vm_memory::{Address, Bytes, GuestMemoryBackend};

use super::*;
use crate::testing::{CountingInterrupt, FakeDriver};
use crate::virtio::chain::ChainError;
use crate::virtio::spec::{Descriptor, desc_flags};
use crate::virtio::walk::ChainFault;

const FEATURES: u64 = feature::VERSION_1 | feature::INDIRECT_DESC;

/// A driver, the queue that it fills, and the queue's interrupt.
fn pair(size: u16, features: u64) -> (FakeDriver, Queue, Arc<CountingInterrupt>) {
    let driver = FakeDriver::without_device(size, features & feature::EVENT_IDX != 0);
    let interrupt = Arc::clone(driver.interrupt());
    let queue = start(&driver, &driver.queue_state(0), features);
    (driver, queue, interrupt)
}

fn start(driver: &FakeDriver, state: &QueueState, features: u64) -> Queue {
    let notifier = DeviceNotifier::new("test", driver.interrupt().clone());
    Queue::new(driver.guest_memory().clone(), state, features, notifier).unwrap()
}

fn descriptor(addr: u64, len: u32, flags: u16, next: u16) -> Descriptor {
    Descriptor {
        addr: addr.into(),
        len: len.into(),
        flags: flags.into(),
        next: next.into(),
    }
}

/// The fault of the chain at 0 of a queue of 4 with these descriptors.
fn fault_of(features: u64, table: &[Descriptor]) -> ChainFault {
    let (mut driver, mut queue, _) = pair(4, features);
    for (descriptor, index) in table.iter().zip(0..) {
        driver.write_descriptor(0, index, descriptor);
    }
    driver.publish(0, 0);
    let error = queue.pop().expect_err("a bad chain was taken");
    assert!(
        matches!(queue.pop(), Err(QueueError::Broken)),
        "the error does not stay"
    );
    match error {
        QueueError::BadChain { head: 0, source } => source,
        error => panic!("{error}"),
    }
}

#[test]
fn chain_is_copied_and_split_at_the_first_writable_buffer() {
    for indirect in [false, true] {
        let (mut driver, mut queue, _) = pair(8, FEATURES);
        let send = if indirect {
            FakeDriver::send_indirect
        } else {
            FakeDriver::send
        };
        let head = send(&mut driver, 0, &[b"abc", b"defgh"], &[4, 1]);
        let chain = queue.pop().unwrap().unwrap();
        assert!(queue.pop().unwrap().is_none());
        assert_eq!(
            (chain.head(), chain.readable_len(), chain.writable_len()),
            (head, 8, 5)
        );
        let lengths = |part: &[Segment]| part.iter().map(|s| s.len).collect::<Vec<_>>();
        assert_eq!(lengths(chain.readable()), [3, 5]);
        assert_eq!(lengths(chain.writable()), [4, 1]);

        let memory = queue.memory().clone();
        let mut read = [0; 5];
        chain.read_exact(&memory, 2, &mut read).unwrap();
        assert_eq!(&read, b"cdefg");
        chain.write_all(&memory, 1, b"1234").unwrap();
        chain.write_all(&memory, 0, b"0").unwrap();
        queue.complete(chain, 5).unwrap();
        let used = driver.used(0);
        assert_eq!((used[0].head, used[0].len), (head, 5));
        assert_eq!(used[0].data, b"01234");
    }
}

#[test]
fn chains_that_are_put_back_are_taken_again_in_their_order() {
    for features in [FEATURES, FEATURES | feature::EVENT_IDX] {
        let (mut driver, mut queue, _) = pair(4, features);
        // Over the end of the ring, and of the index's 16 bits.
        for round in 0..0x8004 {
            let heads = [(); 3].map(|()| driver.send(0, &[], &[1]));
            let first = queue.pop().unwrap().unwrap();
            let second = queue.pop().unwrap().unwrap();
            let third = queue.pop().unwrap().unwrap();
            queue.complete(first, 1).unwrap();
            queue.put_back(third).unwrap();
            queue.put_back(second).unwrap();
            assert_eq!(queue.in_flight(), 0, "{round}");
            for head in &heads[1..] {
                let chain = queue.pop().unwrap().unwrap();
                assert_eq!(chain.head(), *head);
                queue.complete(chain, 1).unwrap();
            }
            assert!(queue.pop().unwrap().is_none());
            let used: Vec<_> = driver.used(0).iter().map(|used| used.head).collect();
            assert_eq!(used, heads);
        }
    }
}

#[test]
fn bytes_outside_of_the_chain_are_refused() {
    let (mut driver, mut queue, _) = pair(8, FEATURES);
    driver.send(0, &[b"abc"], &[4]);
    let chain = queue.pop().unwrap().unwrap();
    let memory = queue.memory().clone();
    for (offset, len) in [(0, 4), (3, 1), (u32::MAX, 1), (1, usize::MAX >> 40)] {
        let read = chain.read_exact(&memory, offset, &mut vec![0; len]);
        assert!(matches!(read, Err(ChainError::Outside { .. })));
        assert!(chain.readable_slices(&memory, offset, len as u32).is_err());
    }
    assert!(chain.write_all(&memory, 1, b"1234").is_err());
    assert!(chain.writable_slices(&memory, 0, 5).is_err());
    chain.read_exact(&memory, 3, &mut []).unwrap();
    assert_eq!(chain.writable_slices(&memory, 4, 0).unwrap().len(), 0);
}

#[test]
fn buffer_across_two_mappings_of_ram_is_whole() {
    let ranges = [
        (GuestAddress(0), 0x10_000),
        (GuestAddress(0x10_000), 0x10_000),
    ];
    let memory = Arc::new(GuestMemoryMmap::from_ranges(&ranges).unwrap());
    let table = Table::direct(&memory, GuestAddress(0), 1).unwrap();
    for (addr, in_ram) in [(0xfff0, true), (0x1_ffe0, true), (0x1_ffe1, false)] {
        let only = descriptor(addr, 0x20, desc_flags::WRITE, 0);
        let bytes: [u8; 16] = zerocopy::transmute!(only);
        memory.write_slice(&bytes, GuestAddress(0)).unwrap();
        let chain = walk::walk(&memory, table, 0, false, Vec::new());
        assert_eq!(chain.is_ok(), in_ram, "{addr:#x}");
        if addr == 0xfff0 {
            let chain = chain.unwrap();
            let mut iovecs = Vec::new();
            chain
                .writable_iovecs(&memory, 1, 0x1e, &mut iovecs)
                .unwrap();
            let lengths: Vec<_> = iovecs.iter().map(|iovec| iovec.iov_len).collect();
            assert_eq!(lengths, [0xf, 0xf]);
            chain.write_all(&memory, 0, &[7; 0x20]).unwrap();
            let mut back = [0; 0x20];
            memory.read_slice(&mut back, GuestAddress(0xfff0)).unwrap();
            assert_eq!(back, [7; 0x20]);
        }
    }
}

#[test]
fn bad_chains_are_errors_and_stop_the_queue() {
    use ChainFault as Fault;
    use desc_flags::{INDIRECT, NEXT, WRITE};
    let heap = 0x20_0000;
    let ram = 16 << 20;
    let fault = |table: &[Descriptor]| fault_of(FEATURES, table);

    let circle = [descriptor(heap, 1, NEXT, 1), descriptor(heap, 1, NEXT, 0)];
    assert!(matches!(fault(&circle), Fault::Loop));
    let outside = fault(&[descriptor(heap, 1, NEXT, 4)]);
    assert!(matches!(outside, Fault::OutsideTable { index: 4, len: 4 }));
    let swapped = [
        descriptor(heap, 1, NEXT | WRITE, 1),
        descriptor(heap, 1, 0, 0),
    ];
    assert!(matches!(
        fault(&swapped),
        Fault::ReadableAfterWritable { index: 1 }
    ));
    for (addr, len) in [
        (ram, 1),
        (ram - 1, 2),
        (u64::MAX, 1),
        (u64::MAX, u32::MAX),
        (0, u32::MAX),
    ] {
        let fault = fault(&[descriptor(addr, len, 0, 0)]);
        assert!(
            matches!(fault, Fault::NotInRam { .. }),
            "{addr:#x}+{len:#x}"
        );
    }

    let table = descriptor(heap, 16, INDIRECT, 0);
    let refused = fault_of(feature::VERSION_1, &[table]);
    assert!(matches!(refused, Fault::IndirectNotNegotiated { index: 0 }));
    let and_next = fault(&[descriptor(heap, 16, INDIRECT | NEXT, 1)]);
    assert!(matches!(and_next, Fault::IndirectMisplaced { index: 0 }));
    for len in [
        0,
        15,
        17,
        16 * (walk::MAX_INDIRECT_DESCRIPTORS + 1),
        u32::MAX,
    ] {
        let fault = fault(&[descriptor(heap, len, INDIRECT, 0)]);
        assert!(matches!(fault, Fault::IndirectLength { .. }), "{len}");
    }
    let beyond = fault(&[descriptor(ram - 16, 32, INDIRECT, 0)]);
    assert!(matches!(beyond, Fault::NotInRam { .. }));
}

#[test]
fn bad_indirect_tables_are_errors() {
    let (driver, _, _) = pair(4, FEATURES);
    let table = 0x30_0000;
    let memory = driver.guest_memory().clone();
    let fault = |inner: &[Descriptor]| {
        for (at, descriptor) in inner.iter().enumerate() {
            let bytes: [u8; 16] = zerocopy::transmute!(*descriptor);
            let addr = GuestAddress(table).unchecked_add(16 * at as u64);
            memory.write_slice(&bytes, addr).unwrap();
        }
        let len = 16 * inner.len() as u32;
        let outer = descriptor(table, len, desc_flags::INDIRECT, 0);
        driver.write_descriptor(0, 0, &outer);
        let whole = GuestAddress(driver.layout(0).desc);
        let whole = Table::direct(&memory, whole, 4).unwrap();
        walk::walk(&memory, whole, 0, true, Vec::new()).expect_err("a bad table was taken")
    };
    let next = desc_flags::NEXT;
    let nested = fault(&[descriptor(table, 16, desc_flags::INDIRECT, 0)]);
    assert!(matches!(nested, ChainFault::IndirectMisplaced { index: 0 }));
    let outside = fault(&[descriptor(table, 16, next, 1)]);
    assert!(matches!(
        outside,
        ChainFault::OutsideTable { index: 1, len: 1 }
    ));
    let circle = fault(&[descriptor(table, 1, next, 1), descriptor(table, 1, next, 1)]);
    assert!(matches!(circle, ChainFault::Loop));
    // 300 times 15 MiB is more than 4 GiB.
    let chain = (1..=300).map(|to| descriptor(0, 15 << 20, next, to));
    let long = fault(&chain.collect::<Vec<_>>());
    assert!(matches!(long, ChainFault::TooLong));
}

#[test]
fn direct_descriptors_may_lead_to_an_indirect_table() {
    let (mut driver, mut queue, _) = pair(4, FEATURES);
    let table = 0x30_0000;
    let last = descriptor(0x20_1000, 5, desc_flags::WRITE, 0);
    let bytes: [u8; 16] = zerocopy::transmute!(last);
    driver
        .guest_memory()
        .write_slice(&bytes, GuestAddress(table))
        .unwrap();
    driver.write_descriptor(0, 2, &descriptor(0x20_0000, 3, desc_flags::NEXT, 0));
    // Whether a table is writable means nothing.
    let flags = desc_flags::INDIRECT | desc_flags::WRITE;
    driver.write_descriptor(0, 0, &descriptor(table, 16, flags, 0));
    driver.publish(0, 2);
    let chain = queue.pop().unwrap().unwrap();
    assert_eq!(
        (chain.head(), chain.readable_len(), chain.writable_len()),
        (2, 3, 5)
    );
}

#[test]
fn available_index_that_runs_ahead_is_an_error() {
    for ahead in [5, 4096, 0x8000, u16::MAX] {
        let (driver, mut queue, _) = pair(4, FEATURES);
        driver.write_available_index(0, ahead);
        let error = queue.pop();
        assert!(
            matches!(error, Err(QueueError::AvailableIndex { .. })),
            "{ahead}"
        );
    }
}

#[test]
fn chains_in_flight_count_against_the_available_index() {
    let (mut driver, mut queue, _) = pair(4, FEATURES);
    for _ in 0..3 {
        driver.send(0, &[b"x"], &[]);
        queue.pop().unwrap().unwrap();
    }
    assert_eq!(queue.in_flight(), 3);
    // One more is possible, two are more than there are descriptors.
    driver.write_available_index(0, 5);
    let error = queue.pop();
    let expected = matches!(
        error,
        Err(QueueError::AvailableIndex {
            from: 3,
            to: 5,
            size: 4,
            in_flight: 3
        })
    );
    assert!(expected, "{error:?}");
}

#[test]
fn head_outside_of_the_table_is_an_error() {
    for head in [4, u16::MAX] {
        let (mut driver, mut queue, _) = pair(4, FEATURES);
        driver.publish(0, head);
        assert!(matches!(queue.pop(), Err(QueueError::Head { size: 4, .. })));
        assert!(matches!(queue.notify(), Err(QueueError::Broken)));
    }
}

#[test]
fn chains_that_belong_together_appear_at_once() {
    for features in [FEATURES, FEATURES | feature::EVENT_IDX] {
        let (mut driver, mut queue, interrupt) = pair(8, features);
        let heads = [(); 3].map(|()| driver.send(0, &[], &[1]));
        for _ in &heads {
            let chain = queue.pop().unwrap().unwrap();
            queue.fill(chain, 1).unwrap();
            assert!(driver.used(0).is_empty());
        }
        assert_eq!(queue.in_flight(), 0);
        queue.notify().unwrap();
        assert_eq!(interrupt.count(), 1);
        let used: Vec<_> = driver.used(0).iter().map(|used| used.head).collect();
        assert_eq!(used, heads);
    }
}

#[test]
fn used_length_is_at_most_what_is_writable() {
    let (mut driver, mut queue, _) = pair(4, FEATURES);
    driver.send(0, &[b"x"], &[7]);
    let chain = queue.pop().unwrap().unwrap();
    queue.complete(chain, u32::MAX).unwrap();
    assert_eq!(driver.used(0)[0].len, 7);
}

#[test]
fn chains_may_be_completed_in_any_order_and_indexes_wrap() {
    let (mut driver, mut queue, _) = pair(4, FEATURES);
    for round in 0..40_000 {
        let first = driver.send(0, &[b"x"], &[]);
        let second = driver.send(0, &[], &[1]);
        let a = queue.pop().unwrap().unwrap();
        let b = queue.pop().unwrap().unwrap();
        queue.complete(b, 1).unwrap();
        queue.complete(a, 0).unwrap();
        let used = driver.used(0);
        assert_eq!((used[0].head, used[1].head), (second, first), "{round}");
    }
    assert_eq!(queue.into_state().next_used, 80_000_u32 as u16);
}

#[test]
fn chain_of_nobody_cannot_be_completed() {
    let (mut driver, mut queue, _) = pair(4, FEATURES);
    driver.send(0, &[b"x"], &[]);
    let chain = queue.pop().unwrap().unwrap();
    let (_, mut other, _) = pair(4, FEATURES);
    assert!(matches!(
        other.complete(chain, 0),
        Err(QueueError::NotTaken { .. })
    ));
}

#[test]
fn interrupt_follows_the_flag_without_event_idx() {
    let (mut driver, mut queue, interrupt) = pair(4, FEATURES);
    let flags = GuestAddress(driver.layout(0).avail);
    for (flag, interrupts) in [(0_u16, 1), (AVAIL_F_NO_INTERRUPT, 0)] {
        driver
            .guest_memory()
            .write_obj(flag.to_le(), flags)
            .unwrap();
        let before = interrupt.count();
        driver.send(0, &[b"x"], &[]);
        let chain = queue.pop().unwrap().unwrap();
        queue.complete(chain, 0).unwrap();
        queue.notify().unwrap();
        queue.notify().unwrap();
        assert_eq!(interrupt.count() - before, interrupts);
        driver.used(0);
    }
}

#[test]
fn interrupt_waits_for_used_event_with_event_idx() {
    let (mut driver, mut queue, interrupt) = pair(8, FEATURES | feature::EVENT_IDX);
    let used_event = GuestAddress(driver.layout(0).avail + 4 + 2 * 8);
    driver
        .guest_memory()
        .write_obj(2_u16.to_le(), used_event)
        .unwrap();
    for expected in [0, 0, 1, 1] {
        driver.send(0, &[b"x"], &[]);
        let chain = queue.pop().unwrap().unwrap();
        queue.complete(chain, 0).unwrap();
        queue.notify().unwrap();
        assert_eq!(interrupt.count(), expected);
    }
}

#[test]
fn half_done_queue_goes_on_from_its_saved_state() {
    let (mut driver, mut queue, _) = pair(8, FEATURES | feature::EVENT_IDX);
    let heads: Vec<_> = (0..6).map(|_| driver.send(0, &[], &[1])).collect();
    for _ in 0..3 {
        let chain = queue.pop().unwrap().unwrap();
        queue.complete(chain, 1).unwrap();
    }
    let json = serde_json::to_string(&queue.into_state()).unwrap();
    let state: QueueState = serde_json::from_str(&json).unwrap();
    let mut queue = start(&driver, &state, FEATURES | feature::EVENT_IDX);
    while let Some(chain) = queue.pop().unwrap() {
        queue.complete(chain, 1).unwrap();
    }
    let used: Vec<_> = driver.used(0).iter().map(|used| used.head).collect();
    assert_eq!(used, heads);
}

#[test]
fn settings_are_checked() {
    let driver = FakeDriver::without_device(8, false);
    let memory = driver.guest_memory();
    let good = driver.queue_state(0);
    good.validate(memory).unwrap();
    let with = |change: &dyn Fn(&mut QueueState)| {
        let mut state = good.clone();
        change(&mut state);
        state.validate(memory)
    };
    for size in [0, 3, 9, 16, u16::MAX] {
        let error = with(&|state| state.size = size);
        assert!(matches!(error, Err(QueueError::Size { .. })), "{size}");
    }
    let misaligned: [&dyn Fn(&mut QueueState); 3] = [
        &|state| state.desc_table += 8,
        &|state| state.avail_ring += 1,
        &|state| state.used_ring += 2,
    ];
    for change in misaligned {
        assert!(matches!(with(change), Err(QueueError::Misaligned { .. })));
    }
    let ram = 16 << 20;
    let at_the_end = |state: &mut QueueState| {
        state.desc_table = ram - 16 * 8;
        state.avail_ring = ram - 6 - 2 * 8;
        state.used_ring = ram - 4 - 6 - 8 * 8 + 2;
    };
    with(&at_the_end).unwrap();
    let beyond: [&dyn Fn(&mut QueueState); 4] = [
        &|state| state.desc_table = ram - 16 * 7,
        &|state| state.avail_ring = ram - 4 - 2 * 8,
        &|state| state.used_ring = ram - 4 - 8 * 8,
        &|state| state.desc_table = u64::MAX - 15,
    ];
    for change in beyond {
        assert!(matches!(with(change), Err(QueueError::NotInRam { .. })));
    }
    let error = with(&|state| state.next_avail = 9);
    assert!(matches!(
        error,
        Err(QueueError::InFlight { count: 9, size: 8 })
    ));
}

/// Descriptors that are wrong more often than not, but not always in the same way.
fn any_descriptor() -> impl Strategy<Value = Descriptor> {
    let ram = 16_u64 << 20;
    let addr = prop_oneof![
        4 => 0..ram,
        1 => Just(0x10_0000_u64),
        1 => ram - 64..ram + 64,
        1 => any::<u64>(),
    ];
    let len =
        prop_oneof![4 => 0_u32..200, 2 => (0_u32..80).prop_map(|n| n * 16), 1 => any::<u32>()];
    let flags = prop_oneof![9 => 0_u16..8, 1 => any::<u16>()];
    let next = prop_oneof![9 => 0_u16..20, 1 => any::<u16>()];
    (addr, len, flags, next).prop_map(|(addr, len, flags, next)| descriptor(addr, len, flags, next))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    /// Whatever is in the rings, taking chains ends, and what is taken lies in RAM.
    #[test]
    fn random_rings_give_chains_in_ram_or_an_error(
        table in prop::collection::vec(any_descriptor(), 16),
        // The table at 0x20_0000 is what an indirect descriptor is likely to hit.
        heads in prop::collection::vec(0_u16..18, 16),
        index in 0_u16..18,
        features in prop::sample::select(vec![FEATURES, 0, FEATURES | feature::EVENT_IDX]),
    ) {
        let (mut driver, mut queue, _) = pair(16, features);
        for (descriptor, at) in table.iter().zip(0..) {
            driver.write_descriptor(0, at, descriptor);
        }
        for head in heads {
            driver.publish(0, head);
        }
        driver.write_available_index(0, index);
        let memory = queue.memory().clone();
        let mut taken = 0;
        while let Ok(Some(chain)) = queue.pop() {
            taken += 1;
            prop_assert!(taken <= 16);
            let total: u64 = chain.readable().iter().chain(chain.writable())
                .map(|segment| {
                    let len = segment.len as usize;
                    assert!(memory.check_range(segment.addr, len) && len > 0);
                    u64::from(segment.len)
                })
                .sum();
            prop_assert_eq!(total, u64::from(chain.readable_len()) + u64::from(chain.writable_len()));
            let slices = chain.writable_slices(&memory, 0, chain.writable_len()).unwrap();
            let len: usize = slices.iter().map(vm_memory::VolatileSlice::len).sum();
            prop_assert_eq!(len, chain.writable_len() as usize);
            if taken % 2 == 0 {
                queue.complete(chain, u32::MAX).unwrap();
            }
        }
    }
}

/// A step of the driver or of the device; each is one that the other side can come between.
#[derive(Clone, Copy, Debug)]
enum Step {
    Send,
    DecideKick,
    Reap,
    DevicePop,
    DeviceEnable,
    DeviceComplete,
    DeviceNotify,
}

/// A driver and a device that sleep until they are told, as both do with EVENT_IDX.
struct Race {
    driver: FakeDriver,
    queue: Queue,
    interrupt: Arc<CountingInterrupt>,
    held: Vec<Chain>,
    kicked: bool,
    device_awake: bool,
    interrupts_seen: u64,
    reaped: usize,
    sent: usize,
}

impl Race {
    fn step(&mut self, step: Step) {
        match step {
            Step::Send if self.driver.free_descriptors(0) > 0 => {
                self.driver.send(0, &[b"x"], &[]);
                self.sent += 1;
            }
            Step::DecideKick => self.kicked |= self.driver.kick_if_asked(0),
            Step::Reap if self.interrupt.count() > self.interrupts_seen => {
                self.interrupts_seen = self.interrupt.count();
                self.reaped += self.driver.used(0).len();
            }
            Step::DevicePop if self.wake() => {
                self.held.extend(self.queue.pop().unwrap());
            }
            Step::DeviceEnable if self.wake() => {
                self.device_awake = self.queue.enable_notification().unwrap();
            }
            // Nothing is free, nobody was told, or it sleeps.
            Step::Send | Step::Reap | Step::DevicePop | Step::DeviceEnable => {}
            Step::DeviceComplete => {
                if let Some(chain) = self.held.pop() {
                    self.queue.complete(chain, 0).unwrap();
                }
            }
            Step::DeviceNotify => self.queue.notify().unwrap(),
        }
    }

    fn wake(&mut self) -> bool {
        self.device_awake |= std::mem::take(&mut self.kicked);
        self.device_awake
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_000))]

    /// However the steps of driver and device interleave, neither sleeps while there is work for
    /// it: a kick or an interrupt that was left out was not needed.
    #[test]
    fn no_wakeup_is_lost(
        steps in prop::collection::vec(prop::sample::select(vec![
            Step::Send, Step::Send, Step::DecideKick, Step::Reap, Step::DevicePop,
            Step::DeviceEnable, Step::DeviceComplete, Step::DeviceNotify,
        ]), 0..200),
        start_index in prop::sample::select(vec![0_u16, u16::MAX - 3]),
        event_idx in any::<bool>(),
    ) {
        let features = if event_idx { FEATURES | feature::EVENT_IDX } else { FEATURES };
        let mut driver = FakeDriver::without_device(4, event_idx);
        driver.start_at(0, start_index);
        let state = QueueState {
            next_avail: start_index,
            next_used: start_index,
            ..driver.queue_state(0)
        };
        let queue = start(&driver, &state, features);
        let interrupt = Arc::clone(driver.interrupt());
        let mut race = Race {
            driver, queue, interrupt, held: Vec::new(), kicked: true, device_awake: false,
            interrupts_seen: 0, reaped: 0, sent: 0,
        };
        for step in steps {
            race.step(step);
        }
        // Both go on until they sleep; nothing new is sent.
        for _ in 0..64 {
            for step in [Step::DecideKick, Step::DevicePop, Step::DevicePop, Step::DevicePop,
                Step::DevicePop, Step::DeviceEnable, Step::DeviceComplete, Step::DeviceNotify,
                Step::Reap]
            {
                race.step(step);
            }
        }
        prop_assert!(!race.device_awake && !race.kicked);
        prop_assert_eq!(race.reaped, race.sent);
    }
}
