//! A saved state of any content is refused, or a device goes on from it; after a reset it works.

use std::sync::{Arc, LazyLock, Mutex};

use casita_devices::event_loop::EventLoop;
use casita_devices::testing::{CountingInterrupt, FakeDriver};
use casita_devices::virtio::rng::Rng;
use casita_devices::virtio::transport::mmio::{MmioTransport, TransportState};

static EVENTS: LazyLock<Mutex<EventLoop>> = LazyLock::new(|| Mutex::new(crate::events()));

/// The state as JSON.
pub fn run(data: &[u8]) {
    let Ok(state) = serde_json::from_slice::<TransportState>(data) else {
        return;
    };
    let memory = FakeDriver::memory();
    let interrupt = Arc::new(CountingInterrupt::default());
    let device = Box::new(Rng::new("fuzz"));
    let transport =
        MmioTransport::new(device, memory.clone(), interrupt.clone(), EVENTS.lock().expect("no panic").handle());
    let transport = Arc::new(transport.expect("a transport"));
    match transport.restore(&state) {
        Ok(()) => {
            assert_eq!(transport.save().expect("it does not run"), state);
            let _ = transport.resume();
        }
        Err(error) => {
            assert!(!error.to_string().contains('\n'), "{error}");
            // The driver's own way goes on from where it was: at the start.
            assert_eq!(transport.save().expect("it does not run").status, 0);
            let _ = transport.resume();
        }
    }
    let mut driver = FakeDriver::new(transport, memory, interrupt);
    driver.start(u64::MAX);
    driver.send(0, &[], &[16]);
    driver.kick(0);
    assert_eq!(driver.wait_used(0, 1)[0].len, 16);
}
