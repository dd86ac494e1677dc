//! Whatever a guest does to the registers and the memory of a device: the monitor lives, and the
//! device works after a reset.
#![no_main]

use std::sync::{Arc, LazyLock};

use casita_devices::bus::BusDevice;
use casita_devices::event_loop::EventLoop;
use casita_devices::testing::{CountingInterrupt, FakeDriver, RingLayout};
use casita_devices::virtio::rng::Rng;
use casita_devices::virtio::transport::mmio::MmioTransport;
use libfuzzer_sys::fuzz_target;
use vm_memory::{Bytes, GuestAddress};

static EVENTS: LazyLock<EventLoop> = LazyLock::new(|| {
    EventLoop::spawn("fuzz-io", |message| {
        eprintln!("{message}");
        std::process::abort();
    })
    .expect("an event loop")
});

fuzz_target!(|data: &[u8]| {
    let Some((&[step, ref rings @ ..], accesses)) = data.split_first_chunk::<129>() else {
        return;
    };
    let memory = FakeDriver::memory();
    let interrupt = Arc::new(CountingInterrupt::default());
    let device = Box::new(Rng::new("fuzz"));
    let transport =
        MmioTransport::new(device, memory.clone(), interrupt.clone(), EVENTS.handle()).unwrap();
    let transport = Arc::new(transport);
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
    let layout = RingLayout::of_queue(0, 8);
    let (table, available) = rings.split_at(104);
    memory
        .write_slice(table, GuestAddress(layout.desc))
        .unwrap();
    memory
        .write_slice(available, GuestAddress(layout.avail))
        .unwrap();

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
    driver.send(0, &[], &[16]);
    driver.kick(0);
    assert_eq!(driver.wait_used(0, 1)[0].len, 16);
});
