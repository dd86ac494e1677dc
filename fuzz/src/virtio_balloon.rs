//! Whatever pages a driver gives away or reports: only whole pages of RAM reach the memory's owner,
//! and the device goes on or asks for a reset.
use std::cell::RefCell;
use std::io;
use std::sync::{Arc, Mutex};

use casita_devices::event_loop::EventLoop;
use casita_devices::testing::{CountingInterrupt, FakeDriver};
use casita_devices::virtio::balloon::{Balloon, Discard};
use casita_devices::virtio::spec::{mmio, status};
use casita_devices::virtio::transport::mmio::MmioTransport;
use vm_memory::GuestAddress;

const RAM: u64 = 16 << 20;
const PAGE: u64 = 4096;

#[derive(Default)]
struct Owner {
    ranges: Mutex<Vec<(u64, u64)>>,
}

impl Discard for Owner {
    fn discard(&self, addr: GuestAddress, len: u64) -> io::Result<()> {
        self.ranges.lock().expect("no panic").push((addr.0, len));
        Ok(())
    }
}

struct Rig {
    driver: FakeDriver,
    owner: Arc<Owner>,
    _events: EventLoop,
}

impl Rig {
    fn new() -> Self {
        let events = EventLoop::spawn("fuzz-io", |message| {
            eprintln!("{message}");
            std::process::abort();
        })
        .expect("an event loop");
        let memory = FakeDriver::memory();
        let interrupt = Arc::new(CountingInterrupt::default());
        let owner = Arc::new(Owner::default());
        let device = Box::new(Balloon::new("fuzz", owner.clone()));
        let transport =
            MmioTransport::new(device, memory.clone(), interrupt.clone(), events.handle());
        let transport = Arc::new(transport.expect("a transport"));
        let mut driver = FakeDriver::new(transport, memory, interrupt);
        driver.start(u64::MAX);
        Self {
            driver,
            owner,
            _events: events,
        }
    }
}

thread_local! {
    static RIG: RefCell<Rig> = RefCell::new(Rig::new());
}

/// Buffers of 8 bytes each: address and length in units of 16 bytes.
fn buffers(data: &[u8]) -> Vec<(u64, u32)> {
    let words = data.chunks_exact(8).take(16).map(|chunk| {
        let word = |at: usize| {
            u32::from_le_bytes([chunk[at], chunk[at + 1], chunk[at + 2], chunk[at + 3]])
        };
        (u64::from(word(0)) * 16, (word(4) % 0x10_0000) * 16)
    });
    words.filter(|(_, len)| *len > 0).collect()
}

/// Runs the target on one input.
pub fn run(data: &[u8]) {
    let Some((&[which], data)) = data.split_first_chunk::<1>() else {
        return;
    };
    RIG.with_borrow_mut(|rig| {
        let queue = u16::from(which % 3);
        let interrupts = rig.driver.interrupt().count();
        if which & 0x80 == 0 {
            if data.is_empty() {
                return;
            }
            let data = &data[..data.len().min(8192)];
            rig.driver.send(queue, &[data], &[]);
        } else {
            let ranges = buffers(data);
            if ranges.is_empty() {
                return;
            }
            rig.driver.send_buffers(queue, &[], &ranges);
        }
        rig.driver.kick(queue);
        assert!(rig.driver.interrupt().wait_for(interrupts + 1));
        for (addr, len) in std::mem::take(&mut *rig.owner.ranges.lock().expect("no panic")) {
            assert!(len > 0 && addr % PAGE == 0 && len % PAGE == 0);
            assert!(addr.checked_add(len).is_some_and(|end| end <= RAM));
        }
        if rig.driver.read_register(mmio::STATUS) & status::DEVICE_NEEDS_RESET != 0 {
            *rig = Rig::new();
        } else {
            assert_eq!(rig.driver.wait_used(queue, 1)[0].len, 0);
        }
    });
}
