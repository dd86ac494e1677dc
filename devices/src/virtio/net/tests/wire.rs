//! A back end for tests: a pair of datagram sockets, and a driver that speaks frames.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixDatagram;
use std::sync::{Arc, Mutex};

use super::super::backend::{Frame, Landing, Received, Sent};
use super::super::header::{HEADER_LEN, VnetHeader, WireHeader};
use super::super::*;
use crate::event_loop::EventLoop;
use crate::testing::{CountingInterrupt, FakeDriver, Used};
use crate::virtio::spec::{feature, mmio};
use crate::virtio::transport::mmio::MmioTransport;
use vm_memory::GuestMemoryMmap;
use zerocopy::{FromBytes, FromZeros};

pub const RX: u16 = 0;
pub const TX: u16 = 1;
pub const MAC: MacAddress = MacAddress([0x52, 0x54, 0, 1, 2, 3]);
pub const ALL_OFFLOADS: Abilities = Abilities {
    from_guest: Offloads::ALL,
    to_guest: Offloads::ALL,
};
pub const HDR: usize = HEADER_LEN as usize;

/// What a test sees of a back end.
#[derive(Clone, Default)]
pub struct Heard {
    pub offloads: Arc<Mutex<Vec<Offloads>>>,
    pub active: Arc<Mutex<Vec<bool>>>,
}

/// One end of a cable whose frames have the header of the host's order before them.
pub struct Wire {
    socket: UnixDatagram,
    abilities: Abilities,
    heard: Heard,
}

/// The other end.
pub struct Cable {
    pub socket: UnixDatagram,
    pub heard: Heard,
}

pub fn wire(abilities: Abilities) -> (Wire, Cable) {
    let (socket, other) = UnixDatagram::pair().unwrap();
    socket.set_nonblocking(true).unwrap();
    let patience = Some(std::time::Duration::from_secs(10));
    other.set_read_timeout(patience).unwrap();
    let heard = Heard::default();
    let cable = Cable {
        socket: other,
        heard: heard.clone(),
    };
    let wire = Wire {
        socket,
        abilities,
        heard,
    };
    (wire, cable)
}

impl Backend for Wire {
    fn fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    fn abilities(&self) -> Abilities {
        self.abilities
    }

    fn set_offloads(&mut self, to_guest: Offloads) -> std::io::Result<()> {
        self.heard.offloads.lock().unwrap().push(to_guest);
        Ok(())
    }

    fn set_active(&mut self, active: bool) -> std::io::Result<()> {
        self.heard.active.lock().unwrap().push(active);
        Ok(())
    }

    fn send(&mut self, frame: &Frame<'_>) -> Sent {
        let mut bytes = frame.header.to_wire().as_bytes().to_vec();
        bytes.extend(frame.to_vec());
        match self.socket.send(&bytes) {
            Ok(_) => Sent::Done,
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => Sent::Full,
            Err(error) => Sent::Closed(error),
        }
    }

    fn receive(&mut self, landing: &mut Landing<'_>) -> Received {
        let mut bytes = vec![0; 80_000];
        let len = match self.socket.recv(&mut bytes) {
            Ok(0) => return Received::Closed(std::io::ErrorKind::UnexpectedEof.into()),
            Ok(len) => len,
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                return Received::Nothing;
            }
            Err(error) => return Received::Closed(error),
        };
        let (wire, frame) = WireHeader::read_from_prefix(&bytes[..len]).unwrap();
        let header = VnetHeader::from_host(&wire, frame.len() as u32).unwrap();
        if landing.place(frame) {
            let len = frame.len();
            Received::Frame { header, len }
        } else {
            Received::Dropped
        }
    }
}

impl Cable {
    /// Gives the guest a frame.
    pub fn put(&self, header: VnetHeader, frame: &[u8]) {
        let mut bytes = header.to_wire().as_bytes().to_vec();
        bytes.extend(frame);
        self.socket.send(&bytes).unwrap();
    }

    /// Takes a frame that the guest has sent.
    pub fn take(&self) -> (WireHeader, Vec<u8>) {
        let mut bytes = vec![0; 80_000];
        let len = self.socket.recv(&mut bytes).unwrap();
        let (wire, frame) = WireHeader::read_from_prefix(&bytes[..len]).unwrap();
        (wire, frame.to_vec())
    }

    pub fn is_empty(&self) -> bool {
        self.socket.set_nonblocking(true).unwrap();
        let empty = self.socket.recv(&mut [0]).is_err();
        self.socket.set_nonblocking(false).unwrap();
        empty
    }
}

/// A device, its driver, and the loop between them.
pub struct Bench {
    pub transport: Arc<MmioTransport>,
    pub driver: FakeDriver,
    pub link: LinkState,
    pub traffic: Arc<Traffic>,
    pub events: EventLoop,
}

pub fn transport(net: Net, driver: Option<&FakeDriver>) -> Bench {
    match driver {
        Some(driver) => connect(net, driver.guest_memory(), driver.interrupt().clone()),
        None => transport_in(net, &FakeDriver::memory()),
    }
}

pub fn transport_in(net: Net, memory: &Arc<GuestMemoryMmap>) -> Bench {
    connect(net, memory, Arc::default())
}

fn connect(net: Net, memory: &Arc<GuestMemoryMmap>, interrupt: Arc<CountingInterrupt>) -> Bench {
    let events = EventLoop::spawn("test-io", |message| panic!("{message}")).unwrap();
    let (link, traffic) = (net.link(), net.traffic());
    let line = interrupt.clone();
    let transport = MmioTransport::new(Box::new(net), memory.clone(), line, events.handle());
    let transport = Arc::new(transport.unwrap());
    let driver = FakeDriver::new(transport.clone(), memory.clone(), interrupt);
    Bench {
        transport,
        driver,
        link,
        traffic,
        events,
    }
}

pub fn net(config: &NetConfig, backend: impl Backend + 'static) -> Net {
    Net::new("net", config, vec![Box::new(backend)]).unwrap()
}

/// A device with one pair on a wire, started with these features beside those of every queue.
pub fn bench(features: u64) -> (Bench, Cable) {
    let (wire, cable) = wire(ALL_OFFLOADS);
    let mut bench = transport(net(&NetConfig::new(MAC), wire), None);
    bench.driver.start(RING | features);
    (bench, cable)
}

pub const RING: u64 = feature::EVENT_IDX | feature::INDIRECT_DESC;

/// A header that leaves nothing to anybody.
pub fn plain() -> Vec<u8> {
    vec![0; HDR]
}

/// A frame of `len` bytes for `to`, that can be told from others by `seed`.
pub fn frame(to: [u8; 6], len: usize, seed: u8) -> Vec<u8> {
    let mut frame: Vec<u8> = (0..len)
        .map(|at| (at as u8).wrapping_mul(7) ^ seed)
        .collect();
    frame[..6].copy_from_slice(&to);
    frame[6..12].copy_from_slice(&MAC.0);
    frame[12..14].copy_from_slice(&[8, 0]);
    frame
}

/// Header and frame of a chain that was received into one buffer.
pub fn received(used: &Used) -> (WireHeader, Vec<u8>) {
    let bytes = &used.data[..used.len as usize];
    let (wire, frame) = WireHeader::read_from_prefix(bytes).unwrap();
    (wire, frame.to_vec())
}

impl Bench {
    /// Sends header and frame as they are, and waits until they were used.
    pub fn send(&mut self, readable: &[&[u8]]) {
        self.driver.send(TX, readable, &[]);
        self.driver.kick(TX);
        let used = self.driver.wait_used(TX, 1);
        assert_eq!(used[0].len, 0);
    }

    pub fn status(&self) -> u16 {
        let mut status = [0; 2];
        self.driver.read_config(6, &mut status);
        u16::from_le_bytes(status)
    }

    /// One command of the control queue, and its answer.
    pub fn command(&mut self, queue: u16, command: &[u8]) -> u8 {
        self.driver.send(queue, &[command], &[1]);
        self.driver.kick(queue);
        let used = self.driver.wait_used(queue, 1);
        assert_eq!(used[0].len, 1);
        used[0].data[0]
    }

    pub fn pending(&self) -> u32 {
        self.driver.read_register(mmio::INTERRUPT_STATUS)
    }
}

/// A back end whose `send` is the test's.
pub struct Spy<F> {
    event: OwnedFd,
    send: F,
}

impl<F: FnMut(&Frame<'_>) -> Sent + Send> Spy<F> {
    pub fn new(send: F) -> Self {
        let event = rustix::event::eventfd(0, rustix::event::EventfdFlags::NONBLOCK).unwrap();
        Self { event, send }
    }
}

impl<F: FnMut(&Frame<'_>) -> Sent + Send> Backend for Spy<F> {
    fn fd(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }

    fn abilities(&self) -> Abilities {
        ALL_OFFLOADS
    }

    fn set_offloads(&mut self, _to_guest: Offloads) -> std::io::Result<()> {
        Ok(())
    }

    fn send(&mut self, frame: &Frame<'_>) -> Sent {
        (self.send)(frame)
    }

    fn receive(&mut self, _landing: &mut Landing<'_>) -> Received {
        Received::Nothing
    }
}

pub fn zero_header() -> WireHeader {
    WireHeader::new_zeroed()
}
