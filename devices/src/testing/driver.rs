//! The driver.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};
use std::time::Instant;

use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

use super::{CountingInterrupt, PATIENCE};
use crate::bus::BusDevice;
use crate::virtio::queue::QueueState;
use crate::virtio::spec::{
    DESCRIPTOR_SIZE, Descriptor, USED_F_NO_NOTIFY, desc_flags, feature, mmio, status,
};

/// The driver's own limit to a queue's size.
const MAX_QUEUE_SIZE: u16 = 256;
/// Where the rings of queue 0 are; those of the next follow at [`RING_STRIDE`].
const RINGS: u64 = 0x10_0000;
const RING_STRIDE: u64 = 0x1_0000;
/// Where buffers are.
const HEAP: u64 = 0x20_0000;

/// A chain that the device has used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Used {
    /// As [`FakeDriver::send`] returned it.
    pub head: u16,
    /// As the device wrote it into the used ring.
    pub len: u32,
    /// What is in the writable buffers now, all of it, joined.
    pub data: Vec<u8>,
}

/// Where a queue's parts are.
#[derive(Debug, Clone, Copy)]
pub struct RingLayout {
    /// Number of descriptors.
    pub size: u16,
    /// Descriptor table.
    pub desc: u64,
    /// Available ring.
    pub avail: u64,
    /// Used ring.
    pub used: u64,
}

impl RingLayout {
    /// The place that the driver has for the rings of a queue.
    pub fn of_queue(queue: u16, size: u16) -> Self {
        let base = RINGS + RING_STRIDE * u64::from(queue);
        Self {
            size,
            desc: base,
            avail: base + 0x4000,
            used: base + 0x8000,
        }
    }
}

struct Outstanding {
    descriptors: Vec<u16>,
    writable: Vec<(u64, u32)>,
}

struct DriverQueue {
    layout: RingLayout,
    free: Vec<u16>,
    outstanding: BTreeMap<u16, Outstanding>,
    next_avail: u16,
    next_used: u16,
    /// The available index when the driver last decided whether to kick.
    kicked_at: u16,
}

impl DriverQueue {
    fn new(layout: RingLayout) -> Self {
        Self {
            layout,
            free: (0..layout.size).rev().collect(),
            outstanding: BTreeMap::new(),
            next_avail: 0,
            next_used: 0,
            kicked_at: 0,
        }
    }
}

/// A driver for any device.
pub struct FakeDriver {
    device: Arc<dyn BusDevice>,
    memory: Arc<GuestMemoryMmap>,
    interrupt: Arc<CountingInterrupt>,
    queues: Vec<DriverQueue>,
    event_idx: bool,
    heap: u64,
}

impl FakeDriver {
    /// A driver for the device at `device`, whose `memory` is that of [`FakeDriver::memory`] or
    /// has at least 16 MiB at 0.
    pub fn new(
        device: Arc<dyn BusDevice>,
        memory: Arc<GuestMemoryMmap>,
        interrupt: Arc<CountingInterrupt>,
    ) -> Self {
        Self {
            device,
            memory,
            interrupt,
            queues: Vec::new(),
            event_idx: false,
            heap: HEAP,
        }
    }

    /// A driver with one queue of `size` descriptors and no device, for tests of queues.
    pub fn without_device(size: u16, event_idx: bool) -> Self {
        struct Nobody;
        impl BusDevice for Nobody {
            fn read(&self, _offset: u64, _data: &mut [u8]) {}
            fn write(&self, _offset: u64, _data: &[u8]) {}
        }
        let interrupt = Arc::new(CountingInterrupt::default());
        let mut driver = Self::new(Arc::new(Nobody), Self::memory(), interrupt);
        driver.event_idx = event_idx;
        driver
            .queues
            .push(DriverQueue::new(RingLayout::of_queue(0, size)));
        driver
    }

    /// What a transport would keep of a queue that this driver has set up and not used.
    pub fn queue_state(&self, queue: u16) -> QueueState {
        let layout = self.layout(queue);
        QueueState {
            size: layout.size,
            ready: true,
            desc_table: layout.desc,
            avail_ring: layout.avail,
            used_ring: layout.used,
            event_idx: self.event_idx,
            ..QueueState::new(layout.size)
        }
    }

    /// Lets a queue's indexes start elsewhere than at 0, so that they wrap soon.
    pub fn start_at(&mut self, queue: u16, index: u16) {
        let layout = self.layout(queue);
        let driver = &mut self.queues[usize::from(queue)];
        driver.next_avail = index;
        driver.next_used = index;
        driver.kicked_at = index;
        let size = u64::from(layout.size);
        // Both indexes and both event fields.
        for addr in [
            layout.avail + 2,
            layout.avail + 4 + 2 * size,
            layout.used + 2,
            layout.used + 4 + 8 * size,
        ] {
            let at = GuestAddress(addr);
            self.memory
                .store(index.to_le(), at, Ordering::Release)
                .unwrap();
        }
    }

    /// The device that the driver drives would interrupt this.
    pub fn interrupt(&self) -> &Arc<CountingInterrupt> {
        &self.interrupt
    }

    /// The guest's memory.
    pub fn guest_memory(&self) -> &Arc<GuestMemoryMmap> {
        &self.memory
    }

    /// 16 MiB of RAM at 0.
    pub fn memory() -> Arc<GuestMemoryMmap> {
        Arc::new(GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 16 << 20)]).unwrap())
    }

    /// Goes on with another device, as after a restore.
    pub fn set_device(&mut self, device: Arc<dyn BusDevice>) {
        self.device = device;
    }

    /// Reads a register.
    pub fn read_register(&self, offset: u64) -> u32 {
        let mut data = [0; 4];
        self.device.read(offset, &mut data);
        u32::from_le_bytes(data)
    }

    /// Writes a register.
    pub fn write_register(&self, offset: u64, value: u32) {
        self.device.write(offset, &value.to_le_bytes());
    }

    /// Reads configuration space; `offset` counts from its start.
    pub fn read_config(&self, offset: u64, data: &mut [u8]) {
        self.device.read(mmio::CONFIG + offset, data);
    }

    /// The features that the device offers.
    pub fn offered_features(&self) -> u64 {
        let half = |sel| {
            self.write_register(mmio::DEVICE_FEATURES_SEL, sel);
            u64::from(self.read_register(mmio::DEVICE_FEATURES))
        };
        half(0) | half(1) << 32
    }

    /// Resets the device and goes as far as FEATURES_OK, with those of `wanted` that are offered
    /// and VERSION_1. Returns the features.
    pub fn negotiate(&mut self, wanted: u64) -> u64 {
        assert_eq!(self.read_register(mmio::MAGIC_VALUE), mmio::MAGIC);
        assert_eq!(self.read_register(mmio::VERSION), mmio::VERSION_MODERN);
        self.write_register(mmio::STATUS, 0);
        assert_eq!(self.read_register(mmio::STATUS), 0, "not reset");
        self.queues.clear();
        self.heap = HEAP;
        let known = status::ACKNOWLEDGE | status::DRIVER;
        self.write_register(mmio::STATUS, status::ACKNOWLEDGE);
        self.write_register(mmio::STATUS, known);
        let features = (wanted | feature::VERSION_1) & self.offered_features();
        for (sel, half) in [(0, features), (1, features >> 32)] {
            self.write_register(mmio::DRIVER_FEATURES_SEL, sel);
            self.write_register(mmio::DRIVER_FEATURES, half as u32);
        }
        self.write_register(mmio::STATUS, known | status::FEATURES_OK);
        let now = self.read_register(mmio::STATUS);
        assert_eq!(now, known | status::FEATURES_OK, "features refused");
        self.event_idx = features & feature::EVENT_IDX != 0;
        features
    }

    /// Sets up the next queue with at most `max_size` descriptors. False if the device has no
    /// more queues.
    pub fn add_queue(&mut self, max_size: u16) -> bool {
        let index = self.queues.len() as u16;
        self.write_register(mmio::QUEUE_SEL, u32::from(index));
        let max = self.read_register(mmio::QUEUE_NUM_MAX);
        if max == 0 {
            return false;
        }
        let size = max_size.min(u16::try_from(max).unwrap());
        let layout = RingLayout::of_queue(index, size);
        self.write_register(mmio::QUEUE_NUM, u32::from(size));
        self.write_queue_address(mmio::QUEUE_DESC_LOW, layout.desc);
        self.write_queue_address(mmio::QUEUE_DRIVER_LOW, layout.avail);
        self.write_queue_address(mmio::QUEUE_DEVICE_LOW, layout.used);
        let zeroes = vec![0; RING_STRIDE as usize];
        let rings = GuestAddress(layout.desc);
        self.memory.write_slice(&zeroes, rings).unwrap();
        self.write_register(mmio::QUEUE_READY, 1);
        assert_eq!(self.read_register(mmio::QUEUE_READY), 1, "queue {index}");
        self.queues.push(DriverQueue::new(layout));
        true
    }

    /// Writes a queue's address registers, `low` being the lower one's offset.
    pub fn write_queue_address(&self, low: u64, addr: u64) {
        self.write_register(low, addr as u32);
        self.write_register(low + 4, (addr >> 32) as u32);
    }

    /// Lets the device run.
    pub fn driver_ok(&self) {
        let all = status::ACKNOWLEDGE | status::DRIVER | status::FEATURES_OK | status::DRIVER_OK;
        self.write_register(mmio::STATUS, all);
        assert_eq!(
            self.read_register(mmio::STATUS),
            all,
            "the device did not start"
        );
    }

    /// Resets the device, takes those of `wanted` that it offers (VERSION_1 always), sets up all
    /// of its queues, with at most 256 descriptors each, and lets it run. Returns the features.
    pub fn start(&mut self, wanted: u64) -> u64 {
        let features = self.negotiate(wanted);
        while self.add_queue(MAX_QUEUE_SIZE) {}
        self.driver_ok();
        features
    }

    /// Where the rings of a queue are.
    pub fn layout(&self, queue: u16) -> RingLayout {
        self.queues[usize::from(queue)].layout
    }

    /// Descriptors that are free in a queue.
    pub fn free_descriptors(&self, queue: u16) -> usize {
        self.queues[usize::from(queue)].free.len()
    }

    /// Makes a chain available: `readable` buffers with these contents, then `writable` ones of
    /// these lengths. There is no kick. Returns its head.
    pub fn send(&mut self, queue: u16, readable: &[&[u8]], writable: &[u32]) -> u16 {
        let (mut table, writable) = self.buffers(readable, writable);
        let count = table.len();
        let driver = &mut self.queues[usize::from(queue)];
        let descriptors = driver.free.split_off(driver.free.len() - count);
        for (at, descriptor) in table.iter_mut().enumerate() {
            descriptor.next = descriptors.get(at + 1).copied().unwrap_or(0).into();
        }
        for (&index, descriptor) in descriptors.iter().zip(&table) {
            self.write_descriptor(queue, index, descriptor);
        }
        let head = descriptors[0];
        self.post(queue, descriptors, writable);
        head
    }

    /// The same with buffers of the caller's, by address and length, which it has filled.
    pub fn send_buffers(
        &mut self,
        queue: u16,
        readable: &[(u64, u32)],
        writable: &[(u64, u32)],
    ) -> u16 {
        let count = readable.len() + writable.len();
        let driver = &mut self.queues[usize::from(queue)];
        let descriptors = driver.free.split_off(driver.free.len() - count);
        let readable = readable.iter().map(|buffer| (buffer, 0));
        let buffers = readable.chain(writable.iter().map(|buffer| (buffer, desc_flags::WRITE)));
        for (at, (&(addr, len), flags)) in buffers.enumerate() {
            let next = descriptors.get(at + 1).copied();
            let more = next.map_or(0, |_| desc_flags::NEXT);
            let descriptor = Descriptor {
                addr: addr.into(),
                len: len.into(),
                flags: (flags | more).into(),
                next: next.unwrap_or(0).into(),
            };
            self.write_descriptor(queue, descriptors[at], &descriptor);
        }
        let head = descriptors[0];
        self.post(queue, descriptors, writable.to_vec());
        head
    }

    /// The same by way of an indirect table.
    pub fn send_indirect(&mut self, queue: u16, readable: &[&[u8]], writable: &[u32]) -> u16 {
        let (mut table, writable) = self.buffers(readable, writable);
        for (descriptor, next) in table.iter_mut().zip(1_u16..) {
            descriptor.next = next.into();
        }
        let bytes = table.len() as u32 * DESCRIPTOR_SIZE as u32;
        let addr = self.allocate(bytes);
        for (descriptor, at) in table.iter().zip(0..) {
            self.write_descriptor_at(addr + DESCRIPTOR_SIZE * at, descriptor);
        }
        let head = self.queues[usize::from(queue)].free.pop().unwrap();
        let indirect = Descriptor {
            addr: addr.into(),
            len: bytes.into(),
            flags: desc_flags::INDIRECT.into(),
            next: 0.into(),
        };
        self.write_descriptor(queue, head, &indirect);
        self.post(queue, vec![head], writable);
        head
    }

    /// Buffers, and descriptors of them whose `next` is still to be filled in.
    fn buffers(
        &mut self,
        readable: &[&[u8]],
        writable: &[u32],
    ) -> (Vec<Descriptor>, Vec<(u64, u32)>) {
        let mut buffers = Vec::new();
        for contents in readable {
            let len = u32::try_from(contents.len()).unwrap();
            let addr = self.allocate(len);
            self.memory
                .write_slice(contents, GuestAddress(addr))
                .unwrap();
            buffers.push((addr, len, 0));
        }
        let mut results = Vec::new();
        for &len in writable {
            let addr = self.allocate(len);
            buffers.push((addr, len, desc_flags::WRITE));
            results.push((addr, len));
        }
        let count = buffers.len();
        assert_ne!(count, 0, "a chain without buffers");
        let table = buffers.into_iter().enumerate().map(|(at, buffer)| {
            let (addr, len, flags) = buffer;
            let next = if at + 1 < count { desc_flags::NEXT } else { 0 };
            Descriptor {
                addr: addr.into(),
                len: len.into(),
                flags: (flags | next).into(),
                next: 0.into(),
            }
        });
        (table.collect(), results)
    }

    /// Memory for a buffer, which is used again once no chain is outstanding.
    fn allocate(&mut self, len: u32) -> u64 {
        if self.queues.iter().all(|queue| queue.outstanding.is_empty()) && self.heap > 8 << 20 {
            self.heap = HEAP;
        }
        let addr = self.heap.next_multiple_of(16);
        self.heap = addr + u64::from(len);
        assert!(
            self.memory.check_range(GuestAddress(addr), len as usize),
            "the driver is out of memory"
        );
        addr
    }

    /// Bytes that are left for buffers, while chains are outstanding.
    pub fn room(&self) -> u64 {
        (self.memory.last_addr().0 + 1).saturating_sub(self.heap)
    }

    /// Writes a descriptor of a queue's own table, whatever it says.
    pub fn write_descriptor(&self, queue: u16, index: u16, descriptor: &Descriptor) {
        let table = self.layout(queue).desc;
        self.write_descriptor_at(table + DESCRIPTOR_SIZE * u64::from(index), descriptor);
    }

    fn write_descriptor_at(&self, addr: u64, descriptor: &Descriptor) {
        let bytes: [u8; DESCRIPTOR_SIZE as usize] = zerocopy::transmute!(*descriptor);
        self.memory.write_slice(&bytes, GuestAddress(addr)).unwrap();
    }

    fn post(&mut self, queue: u16, descriptors: Vec<u16>, writable: Vec<(u64, u32)>) {
        let head = descriptors[0];
        let outstanding = Outstanding {
            descriptors,
            writable,
        };
        let driver = &mut self.queues[usize::from(queue)];
        driver.outstanding.insert(head, outstanding);
        self.publish(queue, head);
    }

    /// Makes the chain at `head` available, whether there is one or not.
    pub fn publish(&mut self, queue: u16, head: u16) {
        let driver = &mut self.queues[usize::from(queue)];
        let slot = u64::from(driver.next_avail % driver.layout.size);
        let at = GuestAddress(driver.layout.avail + 4 + 2 * slot);
        self.memory
            .store(head.to_le(), at, Ordering::Relaxed)
            .unwrap();
        driver.next_avail = driver.next_avail.wrapping_add(1);
        let index = driver.next_avail;
        self.write_available_index(queue, index);
    }

    /// Writes the available index, whatever it is.
    pub fn write_available_index(&self, queue: u16, index: u16) {
        let at = GuestAddress(self.layout(queue).avail + 2);
        self.memory
            .store(index.to_le(), at, Ordering::Release)
            .unwrap();
    }

    /// Writes QueueNotify.
    pub fn kick(&self, queue: u16) {
        self.write_register(mmio::QUEUE_NOTIFY, u32::from(queue));
    }

    /// Kicks if the device asks for it. True if it did.
    pub fn kick_if_asked(&mut self, queue: u16) -> bool {
        fence(Ordering::SeqCst);
        let layout = self.layout(queue);
        let asked = if self.event_idx {
            let avail_event = self.load_u16(layout.used + 4 + 8 * u64::from(layout.size));
            let driver = &self.queues[usize::from(queue)];
            let (new, old) = (driver.next_avail, driver.kicked_at);
            // vring_need_event() of section 2.7.10.1.
            new.wrapping_sub(avail_event).wrapping_sub(1) < new.wrapping_sub(old)
        } else {
            self.load_u16(layout.used) & USED_F_NO_NOTIFY == 0
        };
        let driver = &mut self.queues[usize::from(queue)];
        driver.kicked_at = driver.next_avail;
        if asked {
            self.kick(queue);
        }
        asked
    }

    /// What the device has used since the last call. The interrupt is acknowledged, and the next
    /// one asked for.
    pub fn used(&mut self, queue: u16) -> Vec<Used> {
        let pending = self.read_register(mmio::INTERRUPT_STATUS);
        self.write_register(mmio::INTERRUPT_ACK, pending);
        let mut taken = Vec::new();
        loop {
            taken.extend(self.take_used(queue));
            if !self.event_idx {
                return taken;
            }
            // Ask, then look once more, as section 2.7.7.1 has it.
            let driver = &self.queues[usize::from(queue)];
            let layout = driver.layout;
            let used_event = GuestAddress(layout.avail + 4 + 2 * u64::from(layout.size));
            let next = driver.next_used;
            self.memory
                .store(next.to_le(), used_event, Ordering::Relaxed)
                .unwrap();
            fence(Ordering::SeqCst);
            if self.load_u16(layout.used + 2) == next {
                return taken;
            }
        }
    }

    fn take_used(&mut self, queue: u16) -> Vec<Used> {
        let mut taken = Vec::new();
        let layout = self.layout(queue);
        let end = self.load_u16(layout.used + 2);
        let driver = &mut self.queues[usize::from(queue)];
        while driver.next_used != end {
            let slot = u64::from(driver.next_used % layout.size);
            let at = layout.used + 4 + 8 * slot;
            let id: u32 = self.memory.read_obj(GuestAddress(at)).unwrap();
            let len: u32 = self.memory.read_obj(GuestAddress(at + 4)).unwrap();
            let head = u16::try_from(u32::from_le(id)).unwrap();
            let chain = driver.outstanding.remove(&head);
            let chain = chain.unwrap_or_else(|| panic!("chain {head} was not sent"));
            driver.free.extend(chain.descriptors);
            driver.next_used = driver.next_used.wrapping_add(1);
            let mut data = Vec::new();
            for (addr, len) in chain.writable {
                let mut buffer = vec![0; len as usize];
                self.memory
                    .read_slice(&mut buffer, GuestAddress(addr))
                    .unwrap();
                data.extend(buffer);
            }
            let len = u32::from_le(len);
            taken.push(Used { head, len, data });
        }
        taken
    }

    fn load_u16(&self, addr: u64) -> u16 {
        let value = self.memory.load(GuestAddress(addr), Ordering::Acquire);
        u16::from_le(value.unwrap())
    }

    /// Waits, by interrupts alone, until `count` chains were used, and returns them. Panics after
    /// ten seconds without an interrupt.
    pub fn wait_used(&mut self, queue: u16, count: usize) -> Vec<Used> {
        let start = Instant::now();
        let mut used = Vec::new();
        loop {
            let seen = self.interrupt.count();
            used.extend(self.used(queue));
            if used.len() >= count {
                return used;
            }
            let came = self.interrupt.wait_for(seen + 1);
            assert!(
                came && start.elapsed() < 6 * PATIENCE,
                "{} of {count} chains were used",
                used.len()
            );
        }
    }
}
