//! A guest's side of the protocol, as far as tests need one: it keeps to the credit that it was
//! given, takes what comes, and waits by interrupts alone.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use vm_memory::{Bytes, GuestAddress};
use zerocopy::{FromBytes, FromZeros, IntoBytes};

use crate::event_loop::EventLoop;
use crate::testing::{CountingInterrupt, FakeDriver};
use crate::virtio::spec::feature;
use crate::virtio::transport::mmio::MmioTransport;
use crate::virtio::vsock::packet::{HEADER_LEN, Header, Op, Shutdown, TYPE_STREAM};
use crate::virtio::vsock::{HOST_CID, RX, TX, Vsock, VsockConfig, VsockHandle};

pub const CID: u64 = 3;
/// Where receive buffers are, and how long each is.
const RX_BUFFERS: u64 = 0x40_0000;
pub const RX_BUFFER: u32 = 4096;
/// Where packets to the device are, and room for each.
const TX_BUFFERS: u64 = 0x60_0000;
const TX_BUFFER: u64 = 0x1_1000;
const TX_BUFFER_COUNT: u64 = 100;

/// A packet from the device.
#[derive(Debug, Clone)]
pub struct Packet {
    pub header: Header,
    pub data: Vec<u8>,
}

impl Packet {
    pub fn op(&self) -> Op {
        Op::new(self.header.op.get()).expect("an operation of the specification")
    }

    pub fn host_port(&self) -> u32 {
        self.header.src_port.get()
    }

    pub fn guest_port(&self) -> u32 {
        self.header.dst_port.get()
    }

    pub fn closes(&self) -> Shutdown {
        assert_eq!(self.op(), Op::Shutdown);
        Shutdown::from_flags(self.header.flags.get())
    }
}

/// What the guest knows of a connection.
#[derive(Debug, Default)]
pub struct Stream {
    pub open: bool,
    pub reset: bool,
    pub host_closed: Shutdown,
    pub received: Vec<u8>,
    /// Bytes that were received in all.
    pub count: u32,
    /// Bytes that it has told to have dealt with.
    pub told: u32,
    pub capacity: u32,
    sent: u32,
    peer_alloc: u32,
    peer_forwarded: u32,
}

impl Stream {
    pub fn credit(&self) -> u32 {
        let in_flight = self.sent.wrapping_sub(self.peer_forwarded);
        assert!(in_flight <= self.peer_alloc, "the device takes credit back");
        self.peer_alloc - in_flight
    }
}

pub struct Guest {
    pub driver: FakeDriver,
    pub transport: Arc<MmioTransport>,
    pub handle: VsockHandle,
    pub streams: BTreeMap<(u32, u32), Stream>,
    /// Ports at which the guest listens.
    pub ports: BTreeSet<u32>,
    /// Credit of streams that are opened from now on.
    pub capacity: u32,
    /// The guest deals with what it receives at once.
    pub reads: bool,
    /// Receive buffers by the head of their chain.
    rx: BTreeMap<u16, u64>,
    pub tx_next: u64,
    _events: EventLoop,
}

impl Guest {
    pub fn new() -> Self {
        Self::with(&VsockConfig::default(), feature::EVENT_IDX)
    }

    pub fn with(config: &VsockConfig, features: u64) -> Self {
        let mut guest = Self::stopped(config);
        guest.start(features, 32);
        guest
    }

    pub fn stopped(config: &VsockConfig) -> Self {
        Self::stopped_with(Vsock::new("vsock", config).unwrap())
    }

    pub fn stopped_with(device: Vsock) -> Self {
        let handle = device.handle();
        let events = EventLoop::spawn("test-io", |message| {
            eprintln!("{message}");
            std::process::abort();
        });
        let events = events.unwrap();
        let memory = FakeDriver::memory();
        let interrupt = Arc::new(CountingInterrupt::default());
        let transport = MmioTransport::new(
            Box::new(device),
            memory.clone(),
            interrupt.clone(),
            events.handle(),
        );
        let transport = Arc::new(transport.unwrap());
        Self {
            driver: FakeDriver::new(transport.clone(), memory, interrupt),
            transport,
            handle,
            streams: BTreeMap::new(),
            ports: BTreeSet::new(),
            capacity: 64 << 10,
            reads: true,
            rx: BTreeMap::new(),
            tx_next: 0,
            _events: events,
        }
    }

    /// Starts the driver with `buffers` receive buffers.
    pub fn start(&mut self, features: u64, buffers: u64) {
        self.driver.start(features);
        self.rx.clear();
        self.streams.clear();
        self.give_buffers(buffers);
    }

    /// Gives the device `count` more receive buffers.
    pub fn give_buffers(&mut self, count: u64) {
        let first = self.rx.len() as u64;
        for index in first..first + count {
            self.give_buffer(RX_BUFFERS + index * u64::from(RX_BUFFER));
        }
        self.driver.kick(RX);
    }

    fn give_buffer(&mut self, addr: u64) {
        // Header and data in two buffers.
        let parts = [
            (addr, HEADER_LEN),
            (addr + u64::from(HEADER_LEN), RX_BUFFER - HEADER_LEN),
        ];
        let head = self.driver.send_buffers(RX, &[], &parts);
        self.rx.insert(head, addr);
    }

    pub fn header(op: Op, host_port: u32, guest_port: u32) -> Header {
        Header {
            src_cid: CID.into(),
            dst_cid: HOST_CID.into(),
            src_port: guest_port.into(),
            dst_port: host_port.into(),
            kind: TYPE_STREAM.into(),
            op: (op as u16).into(),
            buf_alloc: (64 << 10).into(),
            ..Header::new_zeroed()
        }
    }

    /// Sends a packet as it is.
    pub fn send_raw(&mut self, header: &Header, data: &[u8]) {
        self.driver.used(TX);
        while self.driver.free_descriptors(TX) < 2
            || 128 - self.driver.free_descriptors(TX) as u64 >= TX_BUFFER_COUNT
        {
            self.driver.wait_used(TX, 1);
        }
        let addr = TX_BUFFERS + self.tx_next * TX_BUFFER;
        self.tx_next = (self.tx_next + 1) % TX_BUFFER_COUNT;
        assert!(addr + TX_BUFFER <= 16 << 20);
        let memory = self.driver.guest_memory().clone();
        memory
            .write_slice(header.as_bytes(), GuestAddress(addr))
            .unwrap();
        let data_addr = addr + u64::from(HEADER_LEN);
        memory.write_slice(data, GuestAddress(data_addr)).unwrap();
        let mut parts = vec![(addr, HEADER_LEN)];
        if !data.is_empty() {
            parts.push((data_addr, data.len() as u32));
        }
        self.driver.send_buffers(TX, &parts, &[]);
        self.driver.kick_if_asked(TX);
    }

    /// Sends a packet of a stream, with its credit.
    pub fn send(&mut self, op: Op, key: (u32, u32), flags: u32, data: &[u8]) {
        let mut header = Self::header(op, key.0, key.1);
        header.flags = flags.into();
        header.len = (data.len() as u32).into();
        if let Some(stream) = self.streams.get_mut(&key) {
            header.buf_alloc = stream.capacity.into();
            header.fwd_cnt = stream.told.into();
            if op == Op::Rw {
                stream.sent = stream.sent.wrapping_add(data.len() as u32);
            }
        }
        self.send_raw(&header, data);
    }

    pub fn stream(&mut self, key: (u32, u32)) -> &mut Stream {
        self.streams.get_mut(&key).expect("a stream")
    }

    /// Asks for a connection, without waiting for the answer.
    pub fn request(&mut self, host_port: u32, guest_port: u32) -> (u32, u32) {
        let key = (host_port, guest_port);
        let capacity = self.capacity;
        self.streams.insert(
            key,
            Stream {
                capacity,
                ..Stream::default()
            },
        );
        self.send(Op::Request, key, 0, &[]);
        key
    }

    /// Connects; panics if it is refused.
    pub fn connect(&mut self, host_port: u32, guest_port: u32) -> (u32, u32) {
        let key = self.request(host_port, guest_port);
        self.run_until(|guest| guest.streams[&key].open || guest.streams[&key].reset);
        assert!(!self.streams[&key].reset, "the connection was refused");
        key
    }

    /// Sends what the credit allows, in packets of at most `most` bytes; returns how much.
    pub fn write_some(&mut self, key: (u32, u32), data: &[u8], most: usize) -> usize {
        let credit = self.stream(key).credit() as usize;
        let len = data.len().min(credit).min(most);
        if len > 0 {
            self.send(Op::Rw, key, 0, &data[..len]);
        }
        len
    }

    /// Sends all of it, waiting for credit.
    pub fn write_all(&mut self, key: (u32, u32), mut data: &[u8], most: usize) {
        while !data.is_empty() {
            let len = self.write_some(key, data, most);
            data = &data[len..];
            if len == 0 {
                self.run_until(|guest| {
                    let stream = &guest.streams[&key];
                    stream.credit() > 0 || stream.reset
                });
                assert!(!self.stream(key).reset, "reset while writing");
            }
        }
    }

    /// Takes packets that have arrived, and does what a guest does about them. Does not wait.
    pub fn poll(&mut self) -> Vec<Packet> {
        let mut packets = Vec::new();
        let used = self.driver.used(RX);
        let addrs: Vec<_> = used
            .iter()
            .map(|used| self.rx.remove(&used.head).unwrap())
            .collect();
        for (used, addr) in used.iter().zip(addrs) {
            let (header, rest) = Header::read_from_prefix(&used.data).unwrap();
            assert!(used.len >= HEADER_LEN && used.len <= RX_BUFFER);
            let len = (used.len - HEADER_LEN) as usize;
            let packet = Packet {
                header,
                data: rest[..len].to_vec(),
            };
            assert_eq!(header.len.get() as usize, len);
            assert_eq!(header.dst_cid.get(), CID);
            self.give_buffer(addr);
            packets.push(packet);
        }
        if !packets.is_empty() {
            self.driver.kick_if_asked(RX);
        }
        for packet in &packets {
            self.take(packet);
        }
        packets
    }

    /// Goes on until `done`; panics after ten seconds without an interrupt.
    pub fn run_until(&mut self, mut done: impl FnMut(&mut Guest) -> bool) {
        loop {
            let seen = self.driver.interrupt().count();
            let packets = self.poll();
            self.driver.used(TX);
            if done(self) {
                return;
            }
            if packets.is_empty() {
                let came = self.driver.interrupt().wait_for(seen + 1);
                assert!(came, "nothing came: {:?}", self.streams);
            }
        }
    }

    /// Waits for a packet of this kind and returns it; others are dealt with as usual.
    pub fn wait_for(&mut self, op: Op) -> Packet {
        loop {
            let seen = self.driver.interrupt().count();
            let packets = self.poll();
            if let Some(packet) = packets.iter().find(|packet| packet.op() == op) {
                return packet.clone();
            }
            if packets.is_empty() {
                let came = self.driver.interrupt().wait_for(seen + 1);
                assert!(came, "no {op:?} came: {:?}", self.streams);
            }
        }
    }

    fn take(&mut self, packet: &Packet) {
        let key = (packet.host_port(), packet.guest_port());
        if packet.op() == Op::Request {
            if self.ports.contains(&packet.guest_port()) {
                let stream = Stream {
                    open: true,
                    capacity: self.capacity,
                    peer_alloc: packet.header.buf_alloc.get(),
                    ..Stream::default()
                };
                self.streams.insert(key, stream);
                self.send(Op::Response, key, 0, &[]);
            } else {
                self.send(Op::Rst, key, 0, &[]);
            }
            return;
        }
        let header = &packet.header;
        if header.kind.get() != TYPE_STREAM || header.src_cid.get() != HOST_CID {
            return;
        }
        let reads = self.reads;
        let Some(stream) = self.streams.get_mut(&key) else {
            return;
        };
        stream.peer_alloc = packet.header.buf_alloc.get();
        stream.peer_forwarded = packet.header.fwd_cnt.get();
        match packet.op() {
            Op::Response => stream.open = true,
            Op::Rst => stream.reset = true,
            Op::Shutdown => {
                stream.host_closed.add(packet.closes());
            }
            Op::Rw => {
                assert!(
                    !stream.host_closed.has(Shutdown::SEND),
                    "data after the end"
                );
                stream.received.extend(&packet.data);
                stream.count = stream.count.wrapping_add(packet.data.len() as u32);
                let held = stream.count.wrapping_sub(stream.told);
                assert!(held <= stream.capacity, "more than the guest has room for");
                if reads && held >= stream.capacity / 2 {
                    self.read(key);
                }
            }
            Op::CreditRequest => self.send(Op::CreditUpdate, key, 0, &[]),
            Op::CreditUpdate | Op::Request => {}
        }
    }

    /// Tells that everything which was received has been dealt with.
    pub fn read(&mut self, key: (u32, u32)) {
        let stream = self.stream(key);
        stream.told = stream.count;
        self.send(Op::CreditUpdate, key, 0, &[]);
    }

    /// Closes both directions, as Linux does, and waits for the RST.
    pub fn close(&mut self, key: (u32, u32)) {
        self.send(Op::Shutdown, key, Shutdown::BOTH.flags(), &[]);
        self.run_until(|guest| guest.streams[&key].reset);
        self.streams.remove(&key);
    }
}
