//! Whatever packets a driver sends: each chain comes back, memory and connections stay bounded,
//! and a connection that is opened afterwards works.

use std::cell::RefCell;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use casita_devices::event_loop::EventLoop;
use casita_devices::testing::{CountingInterrupt, FakeDriver};
use casita_devices::virtio::transport::mmio::MmioTransport;
use casita_devices::virtio::vsock::packet::HEADER_LEN;
use casita_devices::virtio::vsock::{Vsock, VsockConfig, VsockListener};
use vm_memory::{Bytes, GuestAddress};

const RX: u16 = 0;
const TX: u16 = 1;
/// Bytes of a step: what to do, and a packet's header.
const STEP: usize = 4 + HEADER_LEN as usize;
/// Steps of one input.
const MAX_STEPS: usize = 32;
/// Where packets are, and where receive buffers are, one for each descriptor.
const TX_BUFFERS: u64 = 0x20_0000;
const TX_BUFFER: u64 = 0x1_1000;
const RX_BUFFERS: u64 = 0x60_0000;
const RX_BUFFER: u32 = 4096;

struct Rig {
    driver: FakeDriver,
    listener: VsockListener,
    streams: Vec<UnixStream>,
    _events: EventLoop,
}

impl Rig {
    fn new() -> Self {
        let device = Vsock::new("fuzz", &VsockConfig::default()).expect("a device");
        let listener = device.handle().listen(0, 4).expect("a port");
        let events = EventLoop::spawn("fuzz-io", |message| {
            eprintln!("{message}");
            std::process::abort();
        })
        .expect("an event loop");
        let memory = FakeDriver::memory();
        let interrupt = Arc::new(CountingInterrupt::default());
        let transport = MmioTransport::new(
            Box::new(device),
            memory.clone(),
            interrupt.clone(),
            events.handle(),
        );
        let transport = Arc::new(transport.expect("a transport"));
        Self {
            driver: FakeDriver::new(transport, memory, interrupt),
            listener,
            streams: Vec::new(),
            _events: events,
        }
    }

    fn receive(&mut self) {
        for used in self.driver.used(RX) {
            assert!(used.len <= RX_BUFFER && (used.len == 0 || used.len >= HEADER_LEN));
        }
        while let free @ 1.. = self.driver.free_descriptors(RX) as u64 {
            let addr = RX_BUFFERS + free * u64::from(RX_BUFFER);
            self.driver.send_buffers(RX, &[], &[(addr, RX_BUFFER)]);
        }
        self.driver.kick(RX);
    }

    fn send(&mut self, at: u64, header: &[u8], len: u32, parts: u8) {
        let addr = TX_BUFFERS + at * TX_BUFFER;
        let memory = self.driver.guest_memory();
        memory
            .write_slice(header, GuestAddress(addr))
            .expect("room");
        let len = HEADER_LEN + len;
        let cut = u32::from(parts).min(len - 1);
        if cut == 0 {
            self.driver.send_buffers(TX, &[(addr, len)], &[]);
        } else {
            let rest = (addr + u64::from(cut), len - cut);
            self.driver.send_buffers(TX, &[(addr, cut), rest], &[]);
        }
        self.driver.kick(TX);
    }

    fn step(&mut self, at: u64, step: &[u8; STEP]) {
        let [what, parts, low, high, ..] = *step;
        let mut header: [u8; HEADER_LEN as usize] = step[4..].try_into().expect("its length");
        if what & 1 == 0 {
            // From this guest to this host, between a few ports.
            header[..16].copy_from_slice(&[3, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0]);
            header[16] &= 3;
            header[17..20].fill(0);
            header[20..24].fill(0);
        }
        if what & 2 == 0 {
            header[28..30].copy_from_slice(&[1, 0]);
            header[31] = 0;
        }
        let len = u16::from_le_bytes([low, high]);
        if what & 4 == 0 {
            header[24..28].copy_from_slice(&u32::from(len).to_le_bytes());
        }
        self.send(at, &header, u32::from(len), parts);
        if what & 8 != 0 {
            self.receive();
        }
        while let Some(incoming) = self.listener.try_accept() {
            incoming.stream.set_nonblocking(true).expect("a socket");
            self.streams.push(incoming.stream);
        }
        for stream in &mut self.streams {
            // Its other end may be closed, or full.
            if what & 16 != 0 {
                let _ = stream.write(&[7; 3000]);
            }
            if what & 32 != 0 {
                let _ = stream.read(&mut [0; 3000]);
            }
        }
        if what & 64 != 0 {
            self.streams.pop();
        }
    }

    /// All packets have come back.
    fn finish(&mut self) {
        let mut seen = self.driver.interrupt().count();
        loop {
            self.driver.used(TX);
            self.receive();
            if self.driver.free_descriptors(TX) == 128 {
                return;
            }
            assert!(
                self.driver.interrupt().wait_for(seen + 1),
                "a packet is lost"
            );
            seen = self.driver.interrupt().count();
        }
    }
}

thread_local! {
    static RIG: RefCell<Rig> = RefCell::new(Rig::new());
}

/// One input.
pub fn run(data: &[u8]) {
    RIG.with_borrow_mut(|rig| {
        rig.driver.start(u64::MAX);
        rig.streams.clear();
        while rig.listener.try_accept().is_some() {}
        let (steps, _) = data.as_chunks::<STEP>();
        for (at, step) in (0..).zip(steps.iter().take(MAX_STEPS)) {
            rig.step(at, step);
        }
        rig.finish();
        while rig.listener.try_accept().is_some() {}
        let mut request = [0; HEADER_LEN as usize];
        request[0] = 3;
        request[8] = 2;
        request[16] = 99;
        request[28] = 1;
        request[30] = 1;
        rig.send(0, &request, 0, 0);
        let incoming = rig.listener.accept_timeout(Duration::from_secs(10));
        assert_eq!(incoming.expect("a connection").guest_port, 99);
    });
}
