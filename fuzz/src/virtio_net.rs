//! Whatever a driver sends, asks for and offers room for: what reaches a back end is a whole frame that asks
//! for nothing that was not negotiated, what is received is whole, each chain comes back, and the device goes
//! on.
use std::cell::RefCell;
use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::io::{Read, Write};
use std::sync::{Arc, Mutex};

use casita_devices::event_loop::EventLoop;
use casita_devices::testing::{CountingInterrupt, FakeDriver};
use casita_devices::virtio::net::backend::{
    Abilities, Backend, Frame, HEAD_LEN, Landing, MAX_FRAME_LEN, MIN_FRAME_LEN, Offloads, Received,
    Sent,
};
use casita_devices::virtio::net::header::{Checksum, Segmentation, VnetHeader};
use casita_devices::virtio::net::{MacAddress, Net, NetConfig};
use casita_devices::virtio::transport::mmio::MmioTransport;

const RX: u16 = 0;
const TX: u16 = 1;
const CONTROL: u16 = 2;

/// Checks what it is given, and hands out what the input has for it.
struct Checker {
    /// Readable when frames wait.
    bell: UnixStream,
    waiting: Arc<Mutex<VecDeque<Vec<u8>>>>,
}

fn abilities(all: bool) -> Abilities {
    let offloads = if all { Offloads::ALL } else { Offloads::NONE };
    Abilities {
        from_guest: offloads,
        to_guest: offloads,
    }
}

impl Backend for Checker {
    fn fd(&self) -> BorrowedFd<'_> {
        self.bell.as_fd()
    }

    fn abilities(&self) -> Abilities {
        abilities(true)
    }

    fn set_offloads(&mut self, to_guest: Offloads) -> io::Result<()> {
        assert!(Offloads::ALL.contains(to_guest));
        Ok(())
    }

    fn send(&mut self, frame: &Frame<'_>) -> Sent {
        let len = frame.len();
        assert!((MIN_FRAME_LEN as usize..=MAX_FRAME_LEN as usize).contains(&len));
        assert_eq!(frame.head.len(), len.min(HEAD_LEN));
        assert_eq!(frame.to_vec().len(), len);
        if let Checksum::Needed { start, offset } = frame.header.checksum {
            assert!(usize::from(start) + usize::from(offset) + 2 <= len);
        }
        if frame.header.segmentation != Segmentation::None {
            assert!(frame.header.segment_len > 0);
        }
        match frame.head[0] % 8 {
            0 => Sent::Dropped,
            _ => Sent::Done,
        }
    }

    fn receive(&mut self, landing: &mut Landing<'_>) -> Received {
        let _ = self.bell.read(&mut [0; 64]);
        let Some(frame) = self.waiting.lock().expect("no panic").pop_front() else {
            return Received::Nothing;
        };
        if landing.place(&frame) {
            Received::Frame {
                header: VnetHeader::default(),
                len: frame.len(),
            }
        } else {
            Received::Dropped
        }
    }
}

struct Rig {
    driver: FakeDriver,
    bell: UnixStream,
    waiting: Arc<Mutex<VecDeque<Vec<u8>>>>,
    mergeable: bool,
    /// Sizes of the buffers that are out, which may be from earlier inputs.
    posted: VecDeque<usize>,
    _events: EventLoop,
}

impl Rig {
    fn new(features: u64) -> Self {
        let (bell, other) = UnixStream::pair().expect("sockets");
        other.set_nonblocking(true).expect("a flag");
        let waiting = Arc::new(Mutex::new(VecDeque::new()));
        let checker = Checker {
            bell: other,
            waiting: Arc::clone(&waiting),
        };
        let config = NetConfig::new(MacAddress([2, 0, 0, 0, 0, 1]));
        let net = Net::new("fuzz", &config, vec![Box::new(checker)]).expect("a device");
        let events = EventLoop::spawn("fuzz-io", |message| {
            eprintln!("{message}");
            std::process::abort();
        })
        .expect("an event loop");
        let memory = FakeDriver::memory();
        let interrupt = Arc::new(CountingInterrupt::default());
        let transport = MmioTransport::new(
            Box::new(net),
            memory.clone(),
            interrupt.clone(),
            events.handle(),
        );
        let transport = Arc::new(transport.expect("a transport"));
        let mut driver = FakeDriver::new(transport, memory, interrupt);
        let features = driver.start(features);
        let mut rig = Self {
            driver,
            bell,
            waiting,
            mergeable: features & (1 << 15) != 0,
            posted: VecDeque::new(),
            _events: events,
        };
        // What is received does not depend on what the driver once asked for.
        assert_eq!(rig.command(&[0, 0, 1]), 0);
        rig
    }

    fn command(&mut self, command: &[u8]) -> u8 {
        self.driver.send(CONTROL, &[command], &[1]);
        self.driver.kick(CONTROL);
        self.driver.wait_used(CONTROL, 1)[0].data[0]
    }

    fn send(&mut self, bytes: &[u8], piece: usize, indirect: bool) {
        let pieces: Vec<&[u8]> = bytes.chunks(piece.max(1)).take(200).collect();
        if pieces.is_empty() {
            return;
        }
        if indirect {
            self.driver.send_indirect(TX, &pieces, &[]);
        } else {
            self.driver.send(TX, &pieces, &[]);
        }
        self.driver.kick(TX);
        assert_eq!(self.driver.wait_used(TX, 1)[0].len, 0);
    }

    /// A frame into buffers that are out, and new ones of this size, of which there are enough.
    fn receive(&mut self, bytes: &[u8], size: u32) {
        let mut frame = bytes.to_vec();
        frame.resize(bytes.len().clamp(14, 1500), 0);
        let size = if self.mergeable { size.max(20) } else { 2000 };
        while self.driver.free_descriptors(RX) > 0 {
            self.driver.send(RX, &[], &[size]);
            self.posted.push_back(size as usize);
        }
        self.waiting.lock().expect("no panic").push_back(frame.clone());
        self.bell.write_all(&[0]).expect("room");
        self.driver.kick(RX);
        let (mut count, mut room) = (0, 0);
        while room < 12 + frame.len() {
            room += self.posted.pop_front().expect("enough buffers");
            count += 1;
        }
        let used = self.driver.wait_used(RX, count);
        let got: Vec<u8> = used
            .iter()
            .flat_map(|used| &used.data[..used.len as usize])
            .copied()
            .collect();
        assert_eq!(got[12..], frame);
        assert_eq!(usize::from(u16::from_le_bytes([got[10], got[11]])), count);
    }
}

/// Of the one all features are wanted; of the other, not mergeable receive buffers and event indexes.
const FEATURES: [u64; 2] = [u64::MAX, !(1 << 15 | 1 << 29)];

/// More than an input takes of the driver's memory, which is not used again while receive buffers are out.
const ROOM: u64 = 8 << 20;

thread_local! {
    static RIGS: RefCell<[Rig; 2]> = RefCell::new(FEATURES.map(Rig::new));
}

/// Runs the target on one input.
pub fn run(data: &[u8]) {
    RIGS.with_borrow_mut(|rigs| {
        let Some((&which, mut rest)) = data.split_first() else {
            return;
        };
        let which = usize::from(which & 1);
        let rig = &mut rigs[which];
        if rig.driver.room() < ROOM {
            *rig = Rig::new(FEATURES[which]);
        }
        while let Some((&[action, piece, len], more)) = rest.split_first_chunk::<3>() {
            let (bytes, later) = more.split_at(usize::from(len).min(more.len()));
            rest = later;
            match action % 4 {
                0 => rig.send(bytes, usize::from(piece), false),
                1 => rig.send(bytes, usize::from(piece), true),
                2 => rig.receive(bytes, u32::from(piece) * 8),
                _ => {
                    let _ = rig.command(bytes);
                    // Whatever that was, the next frame is to come through.
                    rig.command(&[0, 0, 1]);
                }
            }
        }
    });
}
