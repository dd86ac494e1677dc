//! Whatever the program that serves a directory answers: the driver is told that the device needs a
//! reset, or it runs; nobody waits for ever.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, LazyLock, Mutex};
use std::thread;

use casita_devices::event_loop::EventLoop;
use casita_devices::interrupt::Interrupt;
use casita_devices::testing::FakeDriver;
use casita_devices::virtio::fs::Fs;
use casita_devices::virtio::spec::{mmio, status};
use casita_devices::virtio::transport::mmio::MmioTransport;
use vm_memory::{FileOffset, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

static EVENTS: LazyLock<Mutex<EventLoop>> = LazyLock::new(|| Mutex::new(crate::events()));

/// A message's code, flags and length (QEMU's docs/interop/vhost-user.rst).
const HEADER: usize = 12;
/// Flags of an answer: version 1, and that it is one.
const ANSWER: u32 = 1 | 1 << 2;

struct Line(EventFd);

impl Interrupt for Line {
    fn raise(&self) {
        let _ = self.0.write(1);
    }
    fn event(&self) -> Option<&EventFd> {
        Some(&self.0)
    }
}

/// For each message of the device's: a byte that says how it is answered, and eight of the answer.
/// When there are no more the connection is closed.
pub fn run(data: &[u8]) {
    let (own, other) = UnixStream::pair().expect("a connection");
    let answers = data.to_vec();
    let back_end = thread::spawn(move || answer(other, &answers));
    drive(own);
    back_end.join().expect("a back end that does not panic");
}

fn drive(connection: UnixStream) {
    const LEN: usize = 16 << 20;
    let file = rustix::fs::memfd_create("memory", rustix::fs::MemfdFlags::CLOEXEC);
    let file = std::fs::File::from(file.expect("a file in memory"));
    file.set_len(LEN as u64).expect("room");
    let range = (GuestAddress(0), LEN, Some(FileOffset::new(file, 0)));
    let memory = Arc::new(GuestMemoryMmap::from_ranges_with_files([range]).expect("memory"));
    let device = Box::new(Fs::new("fuzz", "data", connection).expect("a device"));
    let line = Arc::new(Line(EventFd::new(EFD_NONBLOCK).expect("an event")));
    let transport = MmioTransport::new(device, memory.clone(), line, EVENTS.lock().expect("no panic").handle());
    let transport = Arc::new(transport.expect("a transport"));
    let mut driver = FakeDriver::new(transport, memory, Arc::default());
    for _ in 0..3 {
        driver.negotiate(u64::MAX);
        while driver.add_queue(16) {}
        driver.write_register(mmio::STATUS, 15);
        let now = driver.read_register(mmio::STATUS);
        assert!(now == 15 || now == 15 | status::DEVICE_NEEDS_RESET, "{now:#x}");
        driver.send(1, &[&[0; 40]], &[64]);
        driver.kick(1);
        driver.write_register(mmio::STATUS, 0);
        assert_eq!(driver.read_register(mmio::STATUS), 0);
    }
}

fn answer(mut stream: UnixStream, answers: &[u8]) {
    for how in answers.chunks_exact(9) {
        let mut header = [0; HEADER];
        if stream.read_exact(&mut header).is_err() {
            return;
        }
        let [code, flags, len] = [0, 4, 8].map(|at| {
            u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]])
        });
        let mut body = vec![0; len.min(4096) as usize];
        if stream.read_exact(&mut body).is_err() {
            return;
        }
        // GET_FEATURES, GET_PROTOCOL_FEATURES, GET_VRING_BASE, and what asks for an answer.
        if !matches!(code, 1 | 15 | 11) && flags & 8 == 0 {
            continue;
        }
        let mut value: [u8; 8] = how[1..].try_into().expect("eight bytes");
        let (mut code, mut len) = (code, 8_u32);
        let mut sent = 8;
        match how[0] % 8 {
            0 => value = [0; 8],
            1 => value = [0xff; 8],
            2 => code = u32::from(how[1]),
            3 => len = u32::from_le_bytes([how[1], how[2], how[3], how[4]]),
            4 => sent = usize::from(how[1] % 8),
            5 => {
                // Half a header, and the end.
                let _ = stream.write_all(&value);
                return;
            }
            // As it should be: features, no failure, an index.
            6 => {
                let ok: u64 = match code {
                    1 => 1 << 32 | 1 << 30 | 1 << 29 | 1 << 28,
                    15 => 1 << 3,
                    11 => u64::from(body.first().copied().unwrap_or(0)),
                    _ => 0,
                };
                value = ok.to_le_bytes();
            }
            _ => {}
        }
        let words = [code, ANSWER, len].map(u32::to_le_bytes).concat();
        if stream.write_all(&words).is_err() || stream.write_all(&value[..sent]).is_err() {
            return;
        }
        // Whoever waits for more is not made to wait for a deadline.
        if sent < 8 || len > 8 {
            return;
        }
    }
}
