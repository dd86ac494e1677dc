//! Whatever a guest does to the registers and the memory of a device: the monitor lives, and the
//! device works after a reset.

use std::fs::File;
use std::path::Path;
use std::sync::{Arc, LazyLock, Mutex};

use casita_devices::bus::BusDevice;
use casita_devices::event_loop::EventLoop;
use casita_devices::testing::{CountingInterrupt, FakeDriver, Keeper, RingLayout, idle_net};
use casita_devices::virtio::balloon::Balloon;
use casita_devices::virtio::block::{Block, BlockConfig, Engine};
use casita_devices::virtio::device::VirtioDevice;
use casita_devices::virtio::pmem::{Pmem, PmemState};
use casita_devices::virtio::rng::Rng;
use casita_devices::virtio::transport::mmio::MmioTransport;
use casita_devices::virtio::vsock::{Vsock, VsockConfig};
use vm_memory::{Bytes, GuestAddress};

static EVENTS: LazyLock<Mutex<EventLoop>> = LazyLock::new(|| Mutex::new(crate::events()));

/// A device, and a request of the given parts to one of its queues that it answers.
struct Kind {
    make: fn() -> Box<dyn VirtioDevice>,
    queue: u16,
    readable: &'static [u8],
    writable: &'static [u32],
}

/// A new device is a line here.
const KINDS: &[Kind] = &[
    Kind {
        make: || Box::new(Rng::new("fuzz")),
        queue: 0,
        readable: &[],
        writable: &[16],
    },
    Kind {
        make: disk,
        queue: 0,
        readable: &[0; 16],
        writable: &[512, 1],
    },
    Kind {
        make: || Box::new(Vsock::new("fuzz", &VsockConfig::default()).expect("a device")),
        queue: 1,
        readable: &[0; 44],
        writable: &[],
    },
    Kind {
        make: || Box::new(idle_net("fuzz")),
        queue: 1,
        readable: &[0; 72],
        writable: &[],
    },
    Kind {
        make: || Box::new(Pmem::new("fuzz", IMAGE)),
        queue: 0,
        readable: &[0; 4],
        writable: &[4],
    },
    Kind {
        make: || Box::new(Balloon::new("fuzz", Arc::new(Keeper))),
        queue: 0,
        readable: &[1, 0, 0, 0],
        writable: &[],
    },
];

const IMAGE: PmemState = PmemState {
    start: 1 << 30,
    size: 2 << 20,
};

fn disk() -> Box<dyn VirtioDevice> {
    let file = rustix::fs::memfd_create("disk", rustix::fs::MemfdFlags::CLOEXEC);
    let file = File::from(file.expect("a file in memory"));
    file.set_len(64 * 512).expect("room");
    let config = BlockConfig {
        engine: Engine::Sync,
        ..BlockConfig::default()
    };
    Box::new(Block::new(file, Path::new("fuzz"), &config).expect("a disk"))
}

/// A byte that says how far the driver has got and which device it is, 128 for the rings, and 7 for
/// each access.
pub fn run(data: &[u8]) {
    let Some((&[step, ref rings @ ..], accesses)) = data.split_first_chunk::<129>() else {
        return;
    };
    let kind = &KINDS[usize::from(step >> 2) % KINDS.len()];
    let memory = FakeDriver::memory();
    let interrupt = Arc::new(CountingInterrupt::default());
    let transport = MmioTransport::new(
        (kind.make)(),
        memory.clone(),
        interrupt.clone(),
        EVENTS.lock().expect("no panic").handle(),
    );
    let transport = Arc::new(transport.expect("a transport"));
    let mut driver = FakeDriver::new(transport.clone(), memory.clone(), interrupt);
    match step % 4 {
        0 => {}
        1 => drop(driver.negotiate(u64::MAX)),
        2 => {
            driver.negotiate(u64::MAX);
            driver.add_queue(8);
        }
        _ => drop(driver.start(u64::MAX)),
    }
    let layout = RingLayout::of_queue(kind.queue, 8);
    let (table, available) = rings.split_at(104);
    memory
        .write_slice(table, GuestAddress(layout.desc))
        .expect("room for it");
    memory
        .write_slice(available, GuestAddress(layout.avail))
        .expect("room for it");

    // One access: a byte that says what and how wide, two of offset, four of value.
    for access in accesses.chunks_exact(7).take(64) {
        let &[kind, low, high, ref value @ ..] = access else {
            continue;
        };
        let offset = u64::from(u16::from_le_bytes([low, high]) & 0x1ff);
        match kind % 8 {
            0 => transport.read(offset, &mut [0; 8][..usize::from(kind >> 3) % 9]),
            1 => transport.write(offset, &value[..usize::from(kind >> 3) % 5]),
            2 => transport.read(offset & !3, &mut [0; 4]),
            3 => {
                if let Ok(state) = transport.save() {
                    transport.restore(&state).expect("its own state");
                    let _ = transport.resume();
                }
            }
            _ => transport.write(offset & !3, value),
        }
    }
    driver.start(u64::MAX);
    let readable: &[&[u8]] = &[kind.readable];
    let readable = if kind.readable.is_empty() {
        &[]
    } else {
        readable
    };
    driver.send(kind.queue, readable, kind.writable);
    driver.kick(kind.queue);
    let writable: u32 = kind.writable.iter().sum();
    assert_eq!(driver.wait_used(kind.queue, 1)[0].len, writable);
}
