#![allow(clippy::indexing_slicing, reason = "a test may panic")]

use proptest::prelude::*;

use super::*;
use crate::event_loop::EventLoop;
use crate::testing::{CountingInterrupt, FakeDriver, RingLayout};
use crate::virtio::device::DeviceState;
use crate::virtio::rng::RngState;
use crate::virtio::spec::interrupt;

const DEVICE_FEATURE: u64 = 1 << 5;
const SIZES: [u16; 2] = [64, 8];
const KNOWN: u32 = status::ACKNOWLEDGE | status::DRIVER;
const NEGOTIATED: u32 = KNOWN | status::FEATURES_OK;
const RUNNING: u32 = NEGOTIATED | status::DRIVER_OK;

/// A device without workers, whose queues the test serves.
#[derive(Default)]
struct Stub(Arc<Mutex<StubState>>);

#[derive(Default)]
struct StubState {
    queues: Vec<StartedQueue>,
    running: bool,
    refuses: bool,
    features: u64,
    config: [u8; 12],
}

impl VirtioDevice for Stub {
    fn device_type(&self) -> u32 {
        42
    }
    fn name(&self) -> &'static str {
        "stub"
    }
    fn features(&self) -> u64 {
        DEVICE_FEATURE
    }
    fn queue_sizes(&self) -> &[u16] {
        &SIZES
    }
    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let config = self.0.lock().unwrap().config;
        let rest = usize::try_from(offset).ok().and_then(|at| config.get(at..));
        for (to, from) in data.iter_mut().zip(rest.unwrap_or_default()) {
            *to = *from;
        }
    }
    fn write_config(&mut self, offset: u64, data: &[u8]) {
        let config = &mut self.0.lock().unwrap().config;
        let rest = usize::try_from(offset)
            .ok()
            .and_then(|at| config.get_mut(at..));
        for (to, from) in rest.unwrap_or_default().iter_mut().zip(data) {
            *to = *from;
        }
    }
    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let state = &mut *self.0.lock().unwrap();
        assert!(!state.running, "started twice");
        if state.refuses {
            return Err(ActivateError::MissingQueue {
                name: "stub".to_owned(),
                index: 0,
            });
        }
        state.running = true;
        state.features = activation.features;
        state.queues = activation.queues;
        Ok(())
    }
    fn deactivate(&mut self) -> Vec<(u16, QueueState)> {
        let state = &mut *self.0.lock().unwrap();
        assert!(state.running, "stopped without being started");
        state.running = false;
        let queues = std::mem::take(&mut state.queues);
        let states = queues.into_iter().map(|q| (q.index, q.queue.into_state()));
        states.collect()
    }
    fn save(&self) -> DeviceState {
        DeviceState::Rng(RngState {})
    }
    fn restore(&mut self, _state: &DeviceState) -> Result<(), RestoreError> {
        Ok(())
    }
}

struct Bench {
    transport: Arc<MmioTransport>,
    driver: FakeDriver,
    stub: Arc<Mutex<StubState>>,
    _events: EventLoop,
}

fn bench() -> Bench {
    bench_with(FakeDriver::memory())
}

fn bench_with(memory: Arc<GuestMemoryMmap>) -> Bench {
    let events = EventLoop::spawn("test-io", |message| panic!("{message}")).unwrap();
    let interrupt = Arc::new(CountingInterrupt::default());
    let stub = Arc::new(Mutex::new(StubState::default()));
    let device = Box::new(Stub(stub.clone()));
    let transport =
        MmioTransport::new(device, memory.clone(), interrupt.clone(), events.handle()).unwrap();
    let transport = Arc::new(transport);
    let driver = FakeDriver::new(transport.clone(), memory, interrupt);
    Bench {
        transport,
        driver,
        stub,
        _events: events,
    }
}

impl Bench {
    fn status(&self) -> u32 {
        self.driver.read_register(mmio::STATUS)
    }
    fn set_status(&self, value: u32) {
        self.driver.write_register(mmio::STATUS, value);
    }
    fn queues(&self) -> Vec<QueueState> {
        self.transport.lock().queues.clone()
    }
    fn take_features(&self, sel: u32, value: u32) {
        self.driver.write_register(mmio::DRIVER_FEATURES_SEL, sel);
        self.driver.write_register(mmio::DRIVER_FEATURES, value);
    }
}

#[test]
fn identity_registers_are_those_of_a_modern_device() {
    let bench = bench();
    let read = |offset| bench.driver.read_register(offset);
    assert_eq!(read(0), 0x7472_6976);
    assert_eq!(read(4), 2);
    assert_eq!(read(8), 42);
    assert_ne!(read(0xc), 0);
    let features = bench.driver.offered_features();
    assert_eq!(features, DEVICE_FEATURE | TRANSPORT_FEATURES);
    bench.driver.write_register(mmio::DEVICE_FEATURES_SEL, 2);
    assert_eq!(read(mmio::DEVICE_FEATURES), 0);
    for shm in (0xb0..=0xbc).step_by(4) {
        assert_eq!(read(shm), u32::MAX);
    }
}

#[test]
fn driver_starts_the_device_step_by_step() {
    let mut bench = bench();
    let features = bench.driver.start(u64::MAX);
    assert_eq!(features, DEVICE_FEATURE | TRANSPORT_FEATURES);
    assert_eq!(bench.status(), RUNNING);
    let stub = bench.stub.lock().unwrap();
    assert_eq!(stub.features, features);
    let queues = stub.queues.iter().map(|q| (q.index, q.queue.size()));
    assert_eq!(queues.collect::<Vec<_>>(), [(0, 64), (1, 8)]);
}

#[test]
fn only_queues_that_are_ready_are_started() {
    let mut bench = bench();
    bench.driver.negotiate(0);
    bench.driver.add_queue(4);
    bench.driver.driver_ok();
    assert_eq!(bench.stub.lock().unwrap().queues.len(), 1);
}

#[test]
fn steps_cannot_be_left_out() {
    let bench = bench();
    for value in [
        status::DRIVER,
        status::FEATURES_OK,
        status::DRIVER_OK,
        1 << 31,
    ] {
        bench.set_status(value);
        assert_eq!(bench.status(), 0, "{value:#x}");
    }
    bench.set_status(status::ACKNOWLEDGE | status::FEATURES_OK | status::DRIVER_OK);
    assert_eq!(bench.status(), status::ACKNOWLEDGE);
    bench.set_status(KNOWN | status::DRIVER_OK | status::DEVICE_NEEDS_RESET);
    assert_eq!(bench.status(), KNOWN);
    assert!(!bench.stub.lock().unwrap().running);
}

#[test]
fn features_that_were_not_offered_are_refused() {
    let version_1 = (feature::VERSION_1 >> 32) as u32;
    // Each list: writes of (sel, value), and whether they are accepted.
    let cases: [(&[(u32, u32)], bool); 7] = [
        (&[(1, version_1)], true),
        (&[(1, version_1), (0, DEVICE_FEATURE as u32)], true),
        (&[], false),
        (&[(0, DEVICE_FEATURE as u32)], false),
        (&[(1, version_1), (0, 1 << 6)], false),
        (&[(1, version_1 | 4)], false),
        (&[(1, version_1), (2, 1)], false),
    ];
    for (writes, accepted) in cases {
        let bench = bench();
        bench.set_status(status::ACKNOWLEDGE);
        bench.set_status(KNOWN);
        for (sel, value) in writes {
            bench.take_features(*sel, *value);
        }
        bench.set_status(NEGOTIATED);
        let expected = if accepted { NEGOTIATED } else { KNOWN };
        assert_eq!(bench.status(), expected, "{writes:?}");
        // Without FEATURES_OK there is no going on.
        bench.set_status(RUNNING);
        assert_eq!(bench.stub.lock().unwrap().running, accepted);
    }
}

#[test]
fn features_are_frozen_once_they_were_accepted() {
    let mut bench = bench();
    let features = bench.driver.negotiate(0);
    bench.take_features(0, DEVICE_FEATURE as u32);
    bench.driver.driver_ok();
    assert_eq!(bench.stub.lock().unwrap().features, features);
}

#[test]
fn failed_device_does_not_start() {
    let mut bench = bench();
    bench.driver.negotiate(0);
    bench.set_status(NEGOTIATED | status::FAILED);
    bench.set_status(RUNNING | status::FAILED);
    assert_eq!(bench.status(), NEGOTIATED | status::FAILED);
    assert!(!bench.stub.lock().unwrap().running);
}

#[test]
fn reset_stops_the_device_and_forgets_the_driver() {
    let mut bench = bench();
    bench.driver.start(u64::MAX);
    bench.driver.kick(0);
    bench.transport.notifier.config_changed();
    bench.set_status(0);
    assert_eq!(bench.status(), 0);
    assert!(!bench.stub.lock().unwrap().running);
    assert_eq!(bench.queues(), SIZES.map(QueueState::new));
    assert_eq!(bench.driver.read_register(mmio::INTERRUPT_STATUS), 0);
    assert_eq!(bench.driver.read_register(mmio::QUEUE_READY), 0);
    assert!(
        bench.transport.queue_events()[0].read().is_err(),
        "old kick"
    );
    bench.driver.start(0);
    assert!(bench.stub.lock().unwrap().running);
}

#[test]
fn queue_that_there_is_not_reads_as_zero() {
    let mut bench = bench();
    bench.driver.negotiate(0);
    for sel in [2, 64, 0xffff, 0x1_0000, u32::MAX] {
        bench.driver.write_register(mmio::QUEUE_SEL, sel);
        bench.driver.write_register(mmio::QUEUE_NUM, 8);
        bench.driver.write_register(mmio::QUEUE_READY, 1);
        assert_eq!(bench.driver.read_register(mmio::QUEUE_NUM_MAX), 0);
        assert_eq!(bench.driver.read_register(mmio::QUEUE_READY), 0);
        bench.driver.write_register(mmio::QUEUE_NOTIFY, sel);
    }
    assert_eq!(bench.queues(), SIZES.map(QueueState::new));
    assert_eq!(bench.status(), NEGOTIATED);
}

#[test]
fn bad_queue_settings_are_refused_and_need_a_reset() {
    let ram = 16 << 20;
    let layout = RingLayout::of_queue(0, 8);
    let good = (8, layout.desc, layout.avail, layout.used);
    let cases = [
        (good, true),
        ((0, good.1, good.2, good.3), false),
        ((7, good.1, good.2, good.3), false),
        ((128, good.1, good.2, good.3), false),
        ((0x1_0008, good.1, good.2, good.3), false),
        ((8, good.1 + 4, good.2, good.3), false),
        ((8, good.1, good.2 + 1, good.3), false),
        ((8, good.1, good.2, good.3 + 2), false),
        ((8, ram - 16, good.2, good.3), false),
        ((8, good.1, ram - 16, good.3), false),
        ((8, good.1, good.2, ram - 16), false),
        ((8, u64::MAX - 15, good.2, good.3), false),
    ];
    for ((size, desc, avail, used), accepted) in cases {
        let mut bench = bench();
        bench.driver.negotiate(0);
        bench.driver.write_register(mmio::QUEUE_NUM, size);
        bench.driver.write_queue_address(mmio::QUEUE_DESC_LOW, desc);
        bench
            .driver
            .write_queue_address(mmio::QUEUE_DRIVER_LOW, avail);
        bench
            .driver
            .write_queue_address(mmio::QUEUE_DEVICE_LOW, used);
        bench.driver.write_register(mmio::QUEUE_READY, 1);
        let ready = bench.driver.read_register(mmio::QUEUE_READY);
        assert_eq!(
            ready == 1,
            accepted,
            "{size} {desc:#x} {avail:#x} {used:#x}"
        );
        bench.set_status(RUNNING);
        let needs_reset = bench.status() & status::DEVICE_NEEDS_RESET != 0;
        assert_eq!(needs_reset, !accepted);
        assert_eq!(bench.stub.lock().unwrap().running, accepted);
    }
}

/// Writes other settings for all queues, by all registers there are.
fn meddle(bench: &Bench) {
    for queue in 0..2 {
        bench.driver.write_register(mmio::QUEUE_SEL, queue);
        bench.driver.write_register(mmio::QUEUE_NUM, 2);
        for low in [
            mmio::QUEUE_DESC_LOW,
            mmio::QUEUE_DRIVER_LOW,
            mmio::QUEUE_DEVICE_LOW,
        ] {
            bench.driver.write_queue_address(low, 0x1_0000_4000);
        }
    }
}

#[test]
fn settings_are_frozen_while_a_queue_is_ready() {
    let mut bench = bench();
    bench.driver.negotiate(0);
    bench.driver.add_queue(8);
    let before = bench.queues();
    meddle(&bench);
    let after = bench.queues();
    assert_eq!(before[0], after[0]);
    assert_ne!(before[1], after[1], "a queue that is not ready may change");
    bench.driver.write_register(mmio::QUEUE_SEL, 0);
    bench.driver.write_register(mmio::QUEUE_READY, 0);
    meddle(&bench);
    assert_ne!(bench.queues()[0], before[0]);
}

#[test]
fn settings_are_frozen_once_the_device_runs() {
    let mut bench = bench();
    bench.driver.negotiate(0);
    bench.driver.add_queue(8);
    bench.driver.driver_ok();
    let before = bench.queues();
    for ready in [0, 1] {
        for queue in 0..2 {
            bench.driver.write_register(mmio::QUEUE_SEL, queue);
            bench.driver.write_register(mmio::QUEUE_READY, ready);
        }
        meddle(&bench);
        assert_eq!(bench.queues(), before);
    }
}

#[test]
fn registers_take_aligned_accesses_of_four_bytes_alone() {
    let bench = bench();
    for (offset, len) in [
        (0, 1),
        (0, 2),
        (0, 8),
        (1, 4),
        (2, 4),
        (0, 3),
        (0xfd, 4),
        (0, 0),
    ] {
        let mut data = vec![0xaa; len];
        bench.transport.read(offset, &mut data);
        assert_eq!(data, vec![0; len], "{offset:#x}+{len}");
    }
    bench.transport.write(mmio::STATUS, &[1]);
    bench.transport.write(mmio::STATUS, &[1, 0]);
    bench.transport.write(mmio::STATUS + 2, &[1, 0, 0, 0]);
    bench
        .transport
        .write(mmio::STATUS, &[1, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(bench.status(), 0);
}

#[test]
fn config_space_takes_every_natural_width() {
    let bench = bench();
    bench.transport.write(mmio::CONFIG, &[1; 4]);
    assert_eq!(bench.stub.lock().unwrap().config, [0; 12], "before DRIVER");
    bench.set_status(KNOWN);
    bench
        .transport
        .write(mmio::CONFIG, &[1, 2, 3, 4, 5, 6, 7, 8]);
    bench.transport.write(mmio::CONFIG + 8, &[9, 10]);
    bench.transport.write(mmio::CONFIG + 10, &[11]);
    bench.transport.write(mmio::CONFIG, &[0; 3]);
    for (offset, expected) in [
        (0, &[1, 2, 3, 4, 5, 6, 7, 8][..]),
        (4, &[5, 6, 7, 8]),
        (9, &[10, 11]),
        (10, &[11]),
        (10, &[11, 0, 0, 0]),
        (0xe00, &[0, 0, 0, 0]),
        (0, &[0, 0, 0]),
    ] {
        let mut data = vec![0xff; expected.len()];
        bench.transport.read(mmio::CONFIG + offset, &mut data);
        assert_eq!(data, expected, "{offset}");
    }
}

#[test]
fn config_change_moves_the_generation_and_interrupts() {
    let bench = bench();
    let before = bench.driver.read_register(mmio::CONFIG_GENERATION);
    bench.transport.notifier.config_changed();
    assert_ne!(bench.driver.read_register(mmio::CONFIG_GENERATION), before);
    assert_eq!(bench.driver.interrupt().count(), 1);
    bench.transport.notifier.buffers_used();
    let pending = || bench.driver.read_register(mmio::INTERRUPT_STATUS);
    assert_eq!(pending(), interrupt::USED_BUFFER | interrupt::CONFIG_CHANGE);
    bench
        .driver
        .write_register(mmio::INTERRUPT_ACK, interrupt::CONFIG_CHANGE);
    assert_eq!(pending(), interrupt::USED_BUFFER);
    bench.driver.write_register(mmio::INTERRUPT_ACK, u32::MAX);
    assert_eq!(pending(), 0);
}

#[test]
fn device_that_cannot_start_needs_a_reset() {
    let mut bench = bench();
    bench.stub.lock().unwrap().refuses = true;
    bench.driver.negotiate(0);
    bench.set_status(RUNNING);
    assert_eq!(bench.status(), RUNNING | status::DEVICE_NEEDS_RESET);
    assert_eq!(bench.driver.interrupt().count(), 1);
    bench.stub.lock().unwrap().refuses = false;
    bench.driver.start(0);
    assert_eq!(bench.status(), RUNNING);
}

#[test]
fn needs_reset_is_told_once() {
    let mut bench = bench();
    bench.driver.start(0);
    for _ in 0..3 {
        bench.transport.notifier.needs_reset(&"broken");
    }
    assert_eq!(bench.driver.interrupt().count(), 1);
    assert_eq!(bench.status(), RUNNING | status::DEVICE_NEEDS_RESET);
    bench.set_status(RUNNING);
    assert_eq!(bench.status(), RUNNING | status::DEVICE_NEEDS_RESET);
}

#[test]
fn kick_signals_the_event_of_its_queue() {
    let bench = bench();
    bench.driver.kick(1);
    let events = bench.transport.queue_events();
    assert!(events[0].read().is_err());
    assert_eq!(events[1].read().unwrap(), 1);
}

#[test]
fn drain_is_bounded_and_kicks_itself_for_the_rest() {
    let mut bench = bench();
    bench.driver.start(0);
    for _ in 0..8 {
        bench.driver.send(1, &[b"x"], &[]);
    }
    bench.driver.kick(1);
    let mut stub = bench.stub.lock().unwrap();
    let queue = &mut stub.queues[1];
    let mut served = 0;
    let driver = &mut bench.driver;
    queue
        .drain(|queue, chain| {
            served += 1;
            queue.complete(chain, 0)?;
            // The guest sends as fast as the device works.
            driver.used(1);
            driver.send(1, &[b"x"], &[]);
            Ok::<_, crate::virtio::queue::QueueError>(())
        })
        .unwrap();
    assert_eq!(served, 8);
    assert_eq!(queue.kick.read().unwrap(), 1);
}

#[test]
fn half_served_queue_goes_on_in_another_transport() {
    let mut old = bench();
    old.driver.start(TRANSPORT_FEATURES);
    let heads: Vec<_> = (0..6)
        .map(|_| old.driver.send(0, &[b"request"], &[4]))
        .collect();
    serve(&old, 3);
    // The driver is not told of those three; resume has to make up for it.
    let json = serde_json::to_string(&old.transport.save().unwrap()).unwrap();
    assert!(!old.stub.lock().unwrap().running);

    let new = bench_with(old.driver.guest_memory().clone());
    new.transport
        .restore(&serde_json::from_str(&json).unwrap())
        .unwrap();
    assert!(!new.stub.lock().unwrap().running);
    new.transport.resume().unwrap();
    assert_eq!(new.driver.interrupt().count(), 1);
    assert_eq!(new.transport.queue_events()[0].read().unwrap(), 1);
    serve(&new, 3);
    old.driver.set_device(new.transport.clone());
    let used = old.driver.used(0);
    assert_eq!(used.iter().map(|used| used.head).collect::<Vec<_>>(), heads);
    assert!(used.iter().all(|used| used.data == b"done"));
}

fn serve(bench: &Bench, count: usize) {
    let mut stub = bench.stub.lock().unwrap();
    let queue = &mut stub.queues[0].queue;
    for _ in 0..count {
        let chain = queue.pop().unwrap().unwrap();
        let memory = queue.memory().clone();
        let mut request = [0; 7];
        chain.read_exact(&memory, 0, &mut request).unwrap();
        assert_eq!(&request, b"request");
        chain.write_all(&memory, 0, b"done").unwrap();
        queue.complete(chain, 4).unwrap();
    }
}

#[test]
fn paused_device_starts_when_it_is_resumed() {
    let mut bench = bench();
    bench.transport.save().unwrap();
    bench.driver.start(0);
    assert!(!bench.stub.lock().unwrap().running);
    bench.transport.resume().unwrap();
    assert!(bench.stub.lock().unwrap().running);
}

#[test]
fn broken_device_stays_broken_after_a_restore() {
    let mut old = bench();
    old.driver.start(0);
    old.transport.notifier.needs_reset(&"broken");
    let state = old.transport.save().unwrap();
    let new = bench_with(old.driver.guest_memory().clone());
    new.transport.restore(&state).unwrap();
    new.transport.resume().unwrap();
    assert!(!new.stub.lock().unwrap().running);
    assert_eq!(new.status(), RUNNING | status::DEVICE_NEEDS_RESET);
}

#[test]
fn states_that_no_driver_can_reach_are_refused() {
    let mut old = bench();
    old.driver.start(0);
    let good = old.transport.save().unwrap();
    let refused = |change: &dyn Fn(&mut TransportState)| {
        let new = bench_with(old.driver.guest_memory().clone());
        let mut state = good.clone();
        change(&mut state);
        let before = new.transport.save().unwrap();
        let refused = new.transport.restore(&state).is_err();
        assert_eq!(new.transport.save().unwrap() == before, refused);
        refused
    };
    assert!(!refused(&|_| {}));
    let changes: [&dyn Fn(&mut TransportState); 13] = [
        &|state| state.device_type = 1,
        &|state| state.status = status::DRIVER_OK,
        &|state| state.status |= 1 << 8,
        &|state| state.driver_features |= 1 << 40,
        &|state| state.driver_features = 0,
        &|state| state.unknown_features = true,
        &|state| state.interrupt_status = 4,
        &|state| state.queues.truncate(1),
        &|state| state.queues[0].max_size = 128,
        &|state| state.queues[0].size = 128,
        &|state| state.queues[0].used_ring = 1 << 40,
        &|state| state.queues[0].next_avail = 0x8000,
        &|state| state.status = KNOWN,
    ];
    for (at, change) in changes.iter().enumerate() {
        assert!(refused(change), "change {at}");
    }
    let running = old.transport.resume();
    running.unwrap();
    let error = old.transport.restore(&good);
    assert!(matches!(error, Err(TransportError::Running { .. })));
}

/// An access of the guest. Values are those that matter more often than others.
#[derive(Clone, Debug)]
struct Access {
    offset: u64,
    value: u64,
    width: usize,
    write: bool,
}

fn any_access() -> impl Strategy<Value = Access> {
    let offset = prop_oneof![
        20 => (0_u64..0x40).prop_map(|n| n * 4),
        8 => Just(mmio::STATUS),
        8 => Just(mmio::QUEUE_READY),
        4 => Just(mmio::QUEUE_NUM),
        4 => Just(mmio::DRIVER_FEATURES),
        2 => 0_u64..0x200,
        1 => any::<u64>(),
    ];
    let value = prop_oneof![
        4 => 0_u64..16,
        2 => prop::sample::select(vec![1, 3, 11, 15, 64, 128, 0x10_0000, 0x10_4000, 0x10_8000]),
        1 => (0_u32..64).prop_map(|bit| 1 << bit),
        1 => any::<u64>(),
    ];
    let width = prop_oneof![20 => Just(4_usize), 1 => 0_usize..=8];
    (offset, value, width, prop::bool::weighted(0.8)).prop_map(|(offset, value, width, write)| {
        Access {
            offset,
            value,
            width,
            write,
        }
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_000))]

    /// From every step of the way to a running device, whatever the guest does to the registers:
    /// nothing panics, a running device keeps its queues' settings, and a queue that is ready
    /// has settings that are valid.
    #[test]
    fn no_access_panics_or_changes_frozen_settings(
        step in 0..5,
        accesses in prop::collection::vec(any_access(), 0..60),
    ) {
        let mut bench = bench();
        match step {
            0 => {}
            1 => bench.set_status(KNOWN),
            2 => { bench.driver.negotiate(u64::MAX); }
            3 => { bench.driver.negotiate(u64::MAX); bench.driver.add_queue(8); }
            _ => { bench.driver.start(u64::MAX); }
        }
        let memory = bench.driver.guest_memory().clone();
        for access in accesses {
            let (before, was_running) = (bench.queues(), bench.stub.lock().unwrap().running);
            if access.write {
                let bytes = access.value.to_le_bytes();
                bench.transport.write(access.offset, &bytes[..access.width]);
            } else {
                bench.transport.read(access.offset, &mut [0; 8][..access.width]);
            }
            let (after, is_running) = (bench.queues(), bench.stub.lock().unwrap().running);
            if was_running && is_running {
                prop_assert_eq!(&before, &after);
            }
            for (queue, old) in after.iter().zip(&before) {
                if queue.ready {
                    queue.validate(&memory).unwrap();
                    if old.ready {
                        prop_assert_eq!(
                            (queue.size, queue.desc_table, queue.avail_ring, queue.used_ring),
                            (old.size, old.desc_table, old.avail_ring, old.used_ring)
                        );
                    }
                }
            }
        }
    }
}
