//! Address arithmetic and index logic, tried for every value of a small domain against models that
//! look at single bytes and steps: what a proof would show, shown by counting.

use std::sync::Arc;

use casita_devices::bus::{Bus, BusDevice};
use casita_devices::testing::{CountingInterrupt, FakeDriver};
use casita_devices::virtio::device::DeviceNotifier;
use casita_devices::virtio::queue::{Queue, QueueError, QueueState};
use casita_devices::virtio::spec::{Descriptor, desc_flags, feature};
use casita_devices::virtio::walk::ChainFault;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

const PAGE: u64 = 0x1000;
/// Two pages, a hole, one page, and another that follows it in a mapping of its own.
const RAM: [(u64, u64); 3] = [(0, 2 * PAGE), (3 * PAGE, PAGE), (4 * PAGE, PAGE)];

fn memory() -> Arc<GuestMemoryMmap> {
    let ranges = RAM.map(|(start, len)| (GuestAddress(start), len as usize));
    Arc::new(GuestMemoryMmap::from_ranges(&ranges).unwrap())
}

/// Whether each of the bytes is in RAM. Addresses do not wrap.
fn in_ram(addr: u64, len: u64) -> bool {
    (0..len).all(|at| {
        let byte = addr.checked_add(at);
        byte.is_some_and(|byte| {
            RAM.iter()
                .any(|(start, len)| (*start..start + len).contains(&byte))
        })
    })
}

/// Every address that is within `near` bytes of an edge of RAM or of the address space.
fn addresses(near: u64) -> impl Iterator<Item = u64> {
    let edges = RAM
        .into_iter()
        .flat_map(|(start, len)| [start, start + len]);
    let edges = edges.chain([PAGE * 3, 1 << 32, 1 << 63, 0]);
    edges.flat_map(move |edge| {
        (0..2 * near).map(move |at| (edge.wrapping_sub(near)).wrapping_add(at))
    })
}

#[test]
fn rings_are_taken_where_every_byte_of_them_is_in_ram() {
    let memory = memory();
    let good = QueueState {
        size: 1,
        ready: true,
        desc_table: 0x100,
        avail_ring: 0x200,
        used_ring: 0x300,
        ..QueueState::new(64)
    };
    let mut refused = 0;
    for size in [1_u16, 2, 4, 8, 16, 32, 64] {
        let entries = u64::from(size);
        for addr in addresses(1200) {
            let with = |change: fn(&mut QueueState, u64)| {
                let mut state = QueueState {
                    size,
                    ..good.clone()
                };
                change(&mut state, addr);
                state.validate(&memory).is_ok()
            };
            let cases = [
                (
                    with(|state, addr| state.desc_table = addr),
                    16 * entries,
                    16,
                ),
                (
                    with(|state, addr| state.avail_ring = addr),
                    6 + 2 * entries,
                    2,
                ),
                (
                    with(|state, addr| state.used_ring = addr),
                    6 + 8 * entries,
                    4,
                ),
            ];
            for (taken, len, align) in cases {
                let right = addr.is_multiple_of(align) && in_ram(addr, len);
                assert_eq!(taken, right, "{len} bytes at {addr:#x}");
                refused += u32::from(!taken);
            }
        }
    }
    assert!(refused > 1000);
}

#[test]
fn every_queue_size_is_judged_as_the_specification_has_it() {
    let memory = memory();
    for max in [1, 8, 64] {
        for size in 0..=u16::MAX {
            let state = QueueState {
                size,
                ..QueueState::new(max)
            };
            let possible = (0..7).any(|shift| size == 1 << shift) && size <= max;
            assert_eq!(state.validate(&memory).is_ok(), possible, "{size} of {max}");
        }
    }
}

#[test]
fn buffers_are_taken_where_every_byte_of_them_is_in_ram() {
    let memory = memory();
    let state = QueueState {
        size: 4,
        ready: true,
        desc_table: 0x100,
        avail_ring: 0x200,
        used_ring: 0x300,
        ..QueueState::new(4)
    };
    memory.write_obj(1_u16, GuestAddress(0x202)).unwrap();
    let interrupt: Arc<CountingInterrupt> = Arc::default();
    let notifier = DeviceNotifier::new("edges", interrupt);
    let lengths = (1..40).chain([PAGE as u32, 2 * PAGE as u32, 0x7fff_ffff, u32::MAX]);
    for len in lengths {
        for addr in addresses(50) {
            let descriptor = Descriptor {
                addr: addr.into(),
                len: len.into(),
                flags: desc_flags::WRITE.into(),
                next: 0.into(),
            };
            let bytes: [u8; 16] = zerocopy::transmute!(descriptor);
            memory.write_slice(&bytes, GuestAddress(0x100)).unwrap();
            let queue = Queue::new(memory.clone(), &state, 0, notifier.clone());
            let taken = match queue.unwrap().pop() {
                Ok(chain) => chain.is_some_and(|chain| chain.writable_len() == len),
                Err(QueueError::BadChain {
                    source: ChainFault::NotInRam { .. },
                    ..
                }) => false,
                Err(error) => panic!("{error}"),
            };
            assert_eq!(taken, in_ram(addr, len.into()), "{len} bytes at {addr:#x}");
        }
    }
}

/// All pairs of the device's index and the driver's, as far as the sum of both goes: each distance
/// from some positions, and each position for the distances around the limit.
#[test]
fn the_available_index_may_be_ahead_by_what_is_free_and_no_more() {
    const SIZE: u16 = 8;
    let driver = FakeDriver::without_device(SIZE, false);
    let notifier = || DeviceNotifier::new("edges", driver.interrupt().clone());
    let check = |next: u16, in_flight: u16, index: u16| {
        let state = QueueState {
            next_avail: next,
            next_used: next.wrapping_sub(in_flight),
            ..driver.queue_state(0)
        };
        driver.write_available_index(0, index);
        let memory = driver.guest_memory().clone();
        let mut queue = Queue::new(memory, &state, 0, notifier()).unwrap();
        let (new, free) = (index.wrapping_sub(next), SIZE - in_flight);
        match queue.pop() {
            Ok(None) => assert_eq!(new, 0),
            // The descriptors are empty, which is no fault.
            Ok(Some(_)) => assert!((1..=free).contains(&new), "{next} {index}"),
            Err(QueueError::AvailableIndex { .. }) => assert!(new > free, "{next} {index}"),
            Err(error) => panic!("{error}"),
        }
    };
    for next in [0, 1, 0x7fff, 0x8000, 0xfffe, 0xffff] {
        for in_flight in [0, 1, SIZE] {
            (0..=u16::MAX).for_each(|index| check(next, in_flight, index));
        }
    }
    for next in 0..=u16::MAX {
        for ahead in [0, 1, SIZE - 1, SIZE, SIZE + 1, 0x8000, 0xffff] {
            check(next, 0, next.wrapping_add(ahead));
        }
    }
}

/// Section 2.7.10: the driver is to be told if the used index passes the one that it has asked for.
/// The model goes there step by step.
#[test]
fn an_interrupt_is_raised_when_the_used_index_passes_the_event() {
    const SIZE: u16 = 4;
    let mut driver = FakeDriver::without_device(SIZE, true);
    let mut check = |start: u16, event: u16, count: u16| {
        driver.start_at(0, start);
        let layout = driver.layout(0);
        let used_event = layout.avail + 4 + 2 * u64::from(SIZE);
        let memory = driver.guest_memory().clone();
        let state = QueueState {
            next_avail: start,
            next_used: start,
            ..driver.queue_state(0)
        };
        let notifier = DeviceNotifier::new("edges", driver.interrupt().clone());
        let features = feature::EVENT_IDX | feature::VERSION_1;
        let mut queue = Queue::new(memory.clone(), &state, features, notifier).unwrap();
        for _ in 0..count {
            driver.publish(0, 0);
        }
        let before = driver.interrupt().count();
        // What comes first after a start is told in any case.
        let chain = queue.pop().unwrap().unwrap();
        queue.complete(chain, 0).unwrap();
        queue.notify().unwrap();
        let first = driver.interrupt().count();
        assert!(first <= before + 1);
        memory
            .write_obj(event.to_le(), GuestAddress(used_event))
            .unwrap();
        for _ in 1..count {
            let chain = queue.pop().unwrap().unwrap();
            queue.complete(chain, 0).unwrap();
        }
        queue.notify().unwrap();
        let told = driver.interrupt().count() - first;
        let passed = (1..count).any(|step| start.wrapping_add(step) == event);
        assert_eq!(
            told,
            u64::from(passed),
            "from {start} by {count}, event {event}"
        );
    };
    for start in [0, 0x7ffe, 0xfffd, 0xffff] {
        (0..=u16::MAX).for_each(|event| check(start, event, 3));
    }
    for start in 0..=u16::MAX {
        for ahead in [0xffff, 0, 1, 2, 3, 4] {
            check(start, start.wrapping_add(ahead), SIZE);
        }
    }
}

struct Nothing;

impl BusDevice for Nothing {
    fn read(&self, offset: u64, data: &mut [u8]) {
        assert!(offset + data.len() as u64 <= 8);
        data.fill(1);
    }
    fn write(&self, _offset: u64, _data: &[u8]) {}
}

/// Ranges at both ends of the address space, next to each other, and with gaps.
#[test]
fn an_access_reaches_the_one_device_that_has_all_of_it() {
    let ranges = [(0, 1), (1, 8), (16, 4), (u64::MAX - 3, 4)];
    let mut bus = Bus::default();
    for (base, len) in ranges {
        bus.insert(base, len, "device", Arc::new(Nothing)).unwrap();
    }
    let addresses = (0..40).chain(u64::MAX - 20..=u64::MAX);
    for addr in addresses {
        for len in 0..=9_u64 {
            let mut data = vec![0; len as usize];
            let found = bus.read(addr, &mut data);
            let whole = ranges.iter().any(|&(base, range)| {
                len > 0
                    && addr >= base
                    && addr
                        .checked_add(len - 1)
                        .is_some_and(|last| last <= base + (range - 1))
            });
            assert_eq!(found, whole, "{len} bytes at {addr:#x}");
            assert_eq!(bus.write(addr, &data), whole);
            let filled = if whole { 1 } else { 0xff };
            assert!(data.iter().all(|&byte| byte == filled));
        }
    }
}
