//! Whatever a driver sends and writes: each request comes back within its buffers, and nothing is
//! written to the image, which would end this process.
use std::cell::RefCell;
use std::sync::Arc;

use casita_devices::event_loop::EventLoop;
use casita_devices::testing::{CountingInterrupt, FakeDriver};
use casita_devices::virtio::pmem::{Pmem, PmemState};
use casita_devices::virtio::spec::{mmio, status};
use casita_devices::virtio::transport::mmio::MmioTransport;
use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{GuestAddress, GuestRegionMmap};

const IMAGE: PmemState = PmemState {
    start: 16 << 20, // adjacent to RAM
    size: 2 << 20,
};

struct Rig {
    driver: FakeDriver,
    _events: EventLoop,
}

impl Rig {
    fn new() -> Self {
        let region = MmapRegionBuilder::new(IMAGE.size as usize)
            .with_mmap_prot(libc::PROT_READ)
            .with_mmap_flags(libc::MAP_PRIVATE | libc::MAP_ANONYMOUS)
            .build()
            .expect("room");
        let region = GuestRegionMmap::new(region, GuestAddress(IMAGE.start)).expect("a place");
        let memory = FakeDriver::memory().insert_region(Arc::new(region));
        let memory = Arc::new(memory.expect("no overlap"));
        let events = EventLoop::spawn("fuzz-io", |message| {
            eprintln!("{message}");
            std::process::abort();
        })
        .expect("an event loop");
        let interrupt = Arc::new(CountingInterrupt::default());
        let device = Box::new(Pmem::new("fuzz", IMAGE));
        let transport =
            MmioTransport::new(device, memory.clone(), interrupt.clone(), events.handle());
        let transport = Arc::new(transport.expect("a transport"));
        let mut driver = FakeDriver::new(transport, memory, interrupt);
        driver.start(u64::MAX);
        Self {
            driver,
            _events: events,
        }
    }
}

thread_local! {
    static RIG: RefCell<Rig> = RefCell::new(Rig::new());
}

/// An address near the end of RAM, in the image, or behind it.
fn address(bytes: [u8; 3]) -> u64 {
    let [low, middle, high] = bytes;
    let base = match high % 4 {
        0 => 0x20_0000,
        1 => IMAGE.start - 0x8000,
        2 => IMAGE.start,
        _ => IMAGE.start + IMAGE.size - 0x8000,
    };
    base + u64::from(u16::from_le_bytes([low, middle]))
}

/// Runs the target on one input.
pub fn run(data: &[u8]) {
    let Some((&[a, b, c, len, d, e, f, room], _)) = data.split_first_chunk::<8>() else {
        return;
    };
    RIG.with_borrow_mut(|rig| {
        let (len, room) = (u32::from(len), u32::from(room));
        let mut readable = vec![(address([a, b, c]), len)];
        let mut writable = vec![(address([d, e, f]), room)];
        readable.retain(|(_, len)| *len > 0);
        writable.retain(|(_, len)| *len > 0);
        if readable.is_empty() && writable.is_empty() {
            return;
        }
        let interrupts = rig.driver.interrupt().count();
        rig.driver.send_buffers(0, &readable, &writable);
        rig.driver.kick(0);
        assert!(rig.driver.interrupt().wait_for(interrupts + 1));
        if rig.driver.read_register(mmio::STATUS) & status::DEVICE_NEEDS_RESET != 0 {
            let (end, top) = (IMAGE.start, IMAGE.start + IMAGE.size);
            let outside = readable.iter().any(|(at, len)| at + u64::from(*len) > top);
            let written = writable.iter().any(|(at, len)| at + u64::from(*len) > end);
            assert!(outside || written, "a good request was refused");
            *rig = Rig::new();
            return;
        }
        let used = rig.driver.wait_used(0, 1);
        assert!(used[0].len <= room && (used[0].len == 0 || used[0].len == 4));
    });
}
