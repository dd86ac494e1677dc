//! Every register of every device, with every width, in every status, against a model of what a
//! driver may see (virtio 1.2, 4.2.2 and 2.1).

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use casita_devices::bus::BusDevice;
use casita_devices::event_loop::EventLoop;
use casita_devices::testing::{CountingInterrupt, FakeDriver, Keeper, idle_net};
use casita_devices::virtio::balloon::Balloon;
use casita_devices::virtio::block::{Block, BlockConfig};
use casita_devices::virtio::device::VirtioDevice;
use casita_devices::virtio::pmem::{Pmem, PmemState};
use casita_devices::virtio::rng::Rng;
use casita_devices::virtio::spec::{mmio, status};
use casita_devices::virtio::transport::mmio::MmioTransport;
use casita_devices::virtio::vsock::{Vsock, VsockConfig};

const IMAGE: PmemState = PmemState {
    start: 1 << 30,
    size: 2 << 20,
};
const VALUES: [u64; 5] = [0, 1, 0x8000_0001, 0xffff_ffff, u64::MAX];
const OK: u32 = status::ACKNOWLEDGE | status::DRIVER | status::FEATURES_OK;
const STATUSES: [u32; 6] = [
    0,
    status::ACKNOWLEDGE,
    status::ACKNOWLEDGE | status::DRIVER,
    OK,
    OK | status::DRIVER_OK,
    OK | status::DEVICE_NEEDS_RESET,
];

/// A device's driver, and what it asks for to see whether the device works: the queue, what it
/// sends, and how many bytes it gets back.
struct Rig {
    driver: FakeDriver,
    transport: Arc<MmioTransport>,
    queue: u16,
    sent: &'static [u8],
    room: &'static [u32],
    _events: EventLoop,
}

/// A new device is a line here.
fn rigs() -> Vec<Rig> {
    let vsock = Vsock::new("vsock", &VsockConfig::default()).unwrap();
    vec![
        rig(Box::new(Rng::new("rng")), 0, &[], &[16]),
        rig(Box::new(disk()), 0, &[0; 16], &[512, 1]),
        rig(Box::new(vsock), 1, &[0; 44], &[]),
        rig(Box::new(idle_net("net")), 1, &[0; 72], &[]),
        rig(Box::new(Pmem::new("pmem", IMAGE)), 0, &[0; 4], &[4]),
        rig(
            Box::new(Balloon::new("balloon", Arc::new(Keeper))),
            0,
            &[1, 0, 0, 0],
            &[],
        ),
    ]
}

fn disk() -> Block {
    let file =
        File::from(rustix::fs::memfd_create("disk", rustix::fs::MemfdFlags::CLOEXEC).unwrap());
    file.set_len(1 << 20).unwrap();
    Block::new(file, Path::new("disk"), &BlockConfig::default()).unwrap()
}

fn rig(
    device: Box<dyn VirtioDevice>,
    queue: u16,
    sent: &'static [u8],
    room: &'static [u32],
) -> Rig {
    let events = EventLoop::spawn("test-io", |message| panic!("{message}")).unwrap();
    let memory = FakeDriver::memory();
    let interrupt = Arc::new(CountingInterrupt::default());
    let transport = MmioTransport::new(device, memory.clone(), interrupt.clone(), events.handle());
    let transport = Arc::new(transport.unwrap());
    Rig {
        driver: FakeDriver::new(transport.clone(), memory, interrupt),
        transport,
        queue,
        sent,
        room,
        _events: events,
    }
}

/// What registers say that a write may change, but not any write.
#[derive(Debug, Clone, PartialEq)]
struct Seen {
    identity: [u32; 4],
    status: u32,
    /// For each queue: the largest size, and whether it is ready.
    queues: Vec<(u32, u32)>,
}

impl Rig {
    fn enter(&mut self, wanted: u32) {
        if wanted & status::FEATURES_OK != 0 {
            self.driver.negotiate(u64::MAX);
            while self.driver.add_queue(8) {}
            if wanted & status::DEVICE_NEEDS_RESET != 0 {
                // A queue without a size.
                self.driver.write_register(mmio::QUEUE_SEL, 0);
                self.driver.write_register(mmio::QUEUE_READY, 0);
                self.driver.write_register(mmio::QUEUE_NUM, 0);
                self.driver.write_register(mmio::QUEUE_READY, 1);
            }
            if wanted & status::DRIVER_OK != 0 {
                self.driver.driver_ok();
            }
        } else {
            self.driver.write_register(mmio::STATUS, 0);
            self.driver.write_register(mmio::STATUS, wanted & 1);
            self.driver.write_register(mmio::STATUS, wanted);
        }
        assert_eq!(self.driver.read_register(mmio::STATUS), wanted);
    }

    fn look(&self) -> Seen {
        let read = |register| self.driver.read_register(register);
        let queues = (0..4).map(|queue| {
            self.driver.write_register(mmio::QUEUE_SEL, queue);
            (read(mmio::QUEUE_NUM_MAX), read(mmio::QUEUE_READY))
        });
        Seen {
            identity: [
                mmio::MAGIC_VALUE,
                mmio::VERSION,
                mmio::DEVICE_ID,
                mmio::VENDOR_ID,
            ]
            .map(read),
            queues: queues.collect(),
            status: read(mmio::STATUS),
        }
    }

    fn works(&mut self) {
        self.driver.start(u64::MAX);
        let sent: &[&[u8]] = &[self.sent];
        let sent = if self.sent.is_empty() { &[] } else { sent };
        self.driver.send(self.queue, sent, self.room);
        self.driver.kick(self.queue);
        let used = self.driver.wait_used(self.queue, 1);
        assert_eq!(used[0].len, self.room.iter().sum::<u32>());
    }
}

/// The status that a write of `value` leads to.
fn after(status: u32, value: u32) -> u32 {
    if value == 0 {
        return 0;
    }
    let step = |now: u32, bit, before| {
        let added = value & bit != 0 && now & before != 0;
        now | if added { bit } else { 0 }
    };
    let now = status | value & (status::FAILED | status::ACKNOWLEDGE);
    // Without VERSION_1 a driver is refused: FEATURES_OK is there already, or does not come.
    let now = step(now, status::DRIVER, status::ACKNOWLEDGE);
    if now & status::FAILED != 0 {
        return now;
    }
    step(now, status::DRIVER_OK, status::FEATURES_OK)
}

/// What is expected once `value` was written with this width at this offset.
fn expected(before: &Seen, offset: u64, width: usize, value: u64) -> Seen {
    let mut seen = before.clone();
    // Nothing but a whole register is taken; the configuration space is the device's own.
    if offset >= mmio::CONFIG || width != 4 || !offset.is_multiple_of(4) {
        return seen;
    }
    let value = value as u32;
    match offset {
        mmio::STATUS => {
            seen.status = after(before.status, value);
            if seen.status == 0 {
                seen.queues.iter_mut().for_each(|queue| queue.1 = 0);
            }
        }
        // The first queue is selected where it is ready: it can be taken back until DRIVER_OK.
        mmio::QUEUE_READY if before.status == OK && value == 0 => seen.queues[0].1 = 0,
        _ => {}
    }
    seen
}

#[test]
fn every_register_with_every_width_in_every_status() {
    for mut rig in rigs() {
        for wanted in STATUSES {
            for width in [1, 2, 4, 8] {
                for offset in 0..0x140 {
                    for value in VALUES {
                        try_one(&mut rig, wanted, offset, width, value);
                    }
                }
            }
            rig.works();
        }
    }
}

fn try_one(rig: &mut Rig, wanted: u32, offset: u64, width: usize, value: u64) {
    if rig.driver.read_register(mmio::STATUS) != wanted {
        rig.enter(wanted);
    }
    let mut before = rig.look();
    if wanted & status::FEATURES_OK != 0 && before.queues[0].1 == 0 {
        rig.enter(wanted);
        before = rig.look();
    }
    assert_eq!(before.status, wanted);
    if before.queues[0].1 == 1 {
        rig.driver.write_register(mmio::QUEUE_SEL, 0);
    }
    rig.transport.write(offset, &value.to_le_bytes()[..width]);
    let mut data = [0xee; 8];
    rig.transport.read(offset, &mut data[..width]);
    let after = rig.look();
    let model = expected(&before, offset, width, value);
    assert_eq!(
        after, model,
        "{value:#x} with {width} bytes at {offset:#x} in status {wanted:#x}"
    );
    assert_eq!(data[width..], [0xee; 8][width..], "read beyond the width");
}
