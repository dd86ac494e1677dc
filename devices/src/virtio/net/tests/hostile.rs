//! A guest that means harm, and a network that does.

use std::io::Read;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress};

use super::super::backend::{Frame, Landing, MAX_FRAME_LEN, MIN_FRAME_LEN, Received, Sent};
use super::super::header::VnetHeader;
use super::super::layout::{F_CSUM, F_HOST_TSO4, F_MRG_RXBUF};
use super::super::stream::Stream;
use super::super::*;
use super::wire::*;
use crate::event_loop::{Control, Handler, Interest, Source};
use crate::virtio::spec::{Descriptor, desc_flags, mmio, status};

/// Where tests have a buffer of their own.
const BUFFER: u64 = 0x60_0000;

#[test]
fn frames_of_every_length_are_sent_or_dropped_by_their_length_alone() {
    let lens = Arc::new(Mutex::new(Vec::new()));
    let sink = Arc::clone(&lens);
    let spy = Spy::new(move |frame: &Frame<'_>| {
        sink.lock().unwrap().push(frame.len() as u32);
        Sent::Done
    });
    let mut bench = transport(net(&NetConfig::new(MAC), spy), None);
    bench.driver.start(RING);
    let lengths: Vec<u32> = (0..=70_000).collect();
    for some in lengths.chunks(100) {
        for &len in some {
            // Two buffers, and sometimes a header in pieces; a chain of no bytes at all is one, too.
            let cut = len.min(len % 31);
            let readable = [(BUFFER, cut), (BUFFER + u64::from(cut), len - cut)];
            bench.driver.send_buffers(TX, &readable, &[]);
        }
        bench.driver.kick(TX);
        bench.driver.wait_used(TX, some.len());
    }
    let header = HDR as u32;
    let expected: Vec<u32> = (MIN_FRAME_LEN..=MAX_FRAME_LEN.min(70_000 - header)).collect();
    assert_eq!(*lens.lock().unwrap(), expected);
    let dropped = 70_001 - expected.len() as u64;
    assert_eq!(bench.traffic.sent().dropped(), dropped);
}

#[test]
fn frame_in_more_pieces_than_the_host_takes_is_dropped() {
    let (mut bench, cable) = bench(0);
    // The first piece has the header and the bytes that are copied.
    let first = [plain(), frame([2; 6], 256, 0)].concat();
    for (pieces, passes) in [(1023, false), (1020, true)] {
        let readable = [vec![first.as_slice()], vec![[7].as_slice(); pieces]].concat();
        bench.driver.send_indirect(TX, &readable, &[]);
        bench.driver.kick(TX);
        bench.driver.wait_used(TX, 1);
        assert_eq!(bench.traffic.sent().dropped(), 1);
        assert_eq!(bench.traffic.sent().frames(), u64::from(passes));
    }
    assert_eq!(cable.take().1.len(), 256 + 1020);
}

#[test]
fn writable_buffers_of_a_frame_to_send_are_left_alone() {
    let (mut bench, cable) = bench(0);
    bench
        .driver
        .send(TX, &[&plain(), &frame([2; 6], 60, 1)], &[100]);
    bench.driver.kick(TX);
    let used = bench.driver.wait_used(TX, 1);
    assert_eq!(
        (used[0].len, used[0].data.as_slice()),
        (0, [0; 100].as_slice())
    );
    cable.take();
}

#[test]
fn broken_chain_stops_the_device_until_it_is_reset() {
    for queue in [RX, TX] {
        let (mut bench, cable) = bench(F_MRG_RXBUF);
        let descriptor = |addr: u64, len: u32| Descriptor {
            addr: addr.into(),
            len: len.into(),
            flags: if queue == RX { desc_flags::WRITE } else { 0 }.into(),
            next: 0.into(),
        };
        bench
            .driver
            .write_descriptor(queue, 0, &descriptor(u64::MAX - 5, 100));
        bench.driver.publish(queue, 0);
        bench.driver.kick(queue);
        let broken = || bench.driver.read_register(mmio::STATUS) & status::DEVICE_NEEDS_RESET != 0;
        while !broken() {
            std::thread::yield_now();
        }
        bench.driver.start(RING | F_MRG_RXBUF);
        bench.send(&[&plain(), &frame([2; 6], 60, 1)]);
        cable.take();
    }
}

/// A gibibyte of garbage goes out as fast as it is read, frame by frame, and nothing grows.
#[test]
fn gibibyte_of_garbage_is_framed_right() {
    let (socket, mut other) = UnixStream::pair().unwrap();
    let stream = Stream::new(socket).unwrap();
    let mut bench = transport(net(&NetConfig::new(MAC), stream), None);
    bench.driver.start(RING);
    let read = Arc::new(AtomicU64::new(0));
    let counter = read.clone();
    let reader = std::thread::spawn(move || {
        let (mut total, mut frames) = (0_u64, 0_u64);
        let mut bytes = vec![0; 70_000];
        let mut len = [0; 4];
        while other.read_exact(&mut len).is_ok() {
            let len = u32::from_be_bytes(len) as usize;
            other.read_exact(&mut bytes[..len]).unwrap();
            // The garbage counts up from the frame's first byte.
            let first = bytes[0];
            let right = bytes[..len].iter().zip(0_u32..).step_by(251);
            let mut right = right.map(|(&byte, at)| byte == first.wrapping_add(at as u8));
            assert!(right.all(|right| right), "a frame is not what was sent");
            total += len as u64;
            frames += 1;
            counter.store(frames, Ordering::Release);
        }
        (total, frames)
    });
    let garbage: Vec<u8> = (0..=255).cycle().take(70_000).collect();
    let memory = bench.driver.guest_memory().clone();
    memory.write_slice(&garbage, GuestAddress(BUFFER)).unwrap();
    let header = BUFFER + 0x10_0000;
    let (mut sent, mut frames) = (0_u64, 0_u64);
    while sent < 1 << 30 {
        for at in 0..64 {
            let len = 65_535 - at * 13;
            let from = BUFFER + u64::from(at);
            bench
                .driver
                .send_buffers(TX, &[(header, HDR as u32), (from, len)], &[]);
            sent += u64::from(len);
            frames += 1;
        }
        bench.driver.kick(TX);
        bench.driver.wait_used(TX, 64);
    }
    let counted = (bench.traffic.sent().bytes(), bench.traffic.sent().frames());
    assert_eq!(counted, (sent, frames));
    // The rest of a frame that the socket took in part goes with the device.
    while read.load(Ordering::Acquire) < frames && !reader.is_finished() {
        std::thread::yield_now();
    }
    drop(bench);
    assert_eq!(reader.join().unwrap(), (sent, frames));
}

/// A back end that always has one more frame.
struct Flood(std::os::fd::OwnedFd);

impl Backend for Flood {
    fn fd(&self) -> std::os::fd::BorrowedFd<'_> {
        use std::os::fd::AsFd;
        self.0.as_fd()
    }
    fn abilities(&self) -> Abilities {
        ALL_OFFLOADS
    }
    fn set_offloads(&mut self, _to_guest: Offloads) -> std::io::Result<()> {
        Ok(())
    }
    fn send(&mut self, _frame: &Frame<'_>) -> Sent {
        Sent::Done
    }
    fn receive(&mut self, landing: &mut Landing<'_>) -> Received {
        // None of them is for the guest, so that its buffers never run out.
        landing.place(&frame([4; 6], 1000, 0));
        Received::Frame {
            header: VnetHeader::default(),
            len: 1000,
        }
    }
}

/// A neighbour on the loop.
struct Neighbour(std::os::fd::OwnedFd, std::sync::mpsc::Sender<()>);

impl Handler for Neighbour {
    fn sources(&self) -> Vec<Source> {
        use std::os::fd::AsRawFd;
        vec![Source {
            fd: self.0.as_raw_fd(),
            token: 0,
            interest: Interest::READ,
        }]
    }
    fn ready(&mut self, _token: u32, _control: &mut Control<'_>) {
        let _ = self.1.send(());
    }
}

#[test]
fn flood_leaves_others_on_the_loop_their_turns() {
    let ready = || rustix::event::eventfd(1, rustix::event::EventfdFlags::NONBLOCK).unwrap();
    let mut bench = transport(net(&NetConfig::new(MAC), Flood(ready())), None);
    bench.driver.start(RING | F_MRG_RXBUF);
    bench.driver.send(RX, &[], &[4096]);
    bench.driver.kick(RX);
    let (sender, turns) = std::sync::mpsc::channel();
    let neighbour = bench
        .events
        .handle()
        .add(Neighbour(ready(), sender))
        .unwrap();
    for _ in 0..20 {
        let before = bench.traffic.received().dropped();
        turns
            .recv_timeout(std::time::Duration::from_secs(10))
            .unwrap();
        // The flood goes on, too.
        while bench.traffic.received().dropped() == before {
            std::thread::yield_now();
        }
        // And sending has its turn in between.
        bench.send(&[&plain(), &frame([2; 6], 60, 1)]);
    }
    drop(neighbour);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Chains of any layout with any header: each is used, and what gets out is within what was promised.
    #[test]
    fn any_frames_are_used_and_only_sound_ones_are_sent(
        frames in prop::collection::vec(
            (prop::collection::vec(any::<u8>(), HDR), 0..3000_usize, 1..700_usize, 0..4_u8), 1..20),
    ) {
        let (wire, cable) = wire(ALL_OFFLOADS);
        let mut bench = transport(net(&NetConfig::new(MAC), wire), None);
        bench.driver.start(RING | F_CSUM | F_HOST_TSO4);
        for (header, len, piece, quiet) in &frames {
            let mut bytes = header.clone();
            if *quiet > 0 {
                bytes[..2].fill(0);
            }
            bytes.extend((0..*len).map(|at| at as u8));
            let pieces: Vec<&[u8]> = bytes.chunks(*piece).take(200).collect();
            bench.send(&pieces);
            let cut: usize = pieces.iter().map(|piece| piece.len()).sum();
            let sent = bench.traffic.sent();
            if *quiet > 0 && cut >= HDR + 14 {
                let (_, got) = cable.take();
                prop_assert_eq!(&got, &bytes[HDR..cut]);
            } else if !cable.is_empty() {
                prop_assert!(cut >= HDR + 14);
            }
            prop_assert!(sent.frames() + sent.dropped() > 0);
        }
        let sent = bench.traffic.sent();
        prop_assert_eq!(sent.frames() + sent.dropped(), frames.len() as u64);
    }

    /// Buffers of any sizes: frames arrive whole and in order, or not at all.
    #[test]
    fn any_buffers_get_whole_frames(
        sizes in prop::collection::vec(1..3000_u32, 30..100),
        lens in prop::collection::vec(14..1500_usize, 1..10),
        merge: bool,
    ) {
        let (wire, cable) = wire(ALL_OFFLOADS);
        let mut bench = transport(net(&NetConfig::new(MAC), wire), None);
        bench.driver.start(RING | if merge { F_MRG_RXBUF } else { 0 });
        for size in &sizes {
            bench.driver.send(RX, &[], &[*size]);
        }
        bench.driver.kick(RX);
        let mut got = Vec::new();
        for (len, seed) in lens.iter().zip(0..) {
            cable.put(VnetHeader::default(), &frame(MAC.0, *len, seed));
        }
        let counters = &bench.traffic.received();
        let mut starved = false;
        while counters.frames() + counters.dropped() < lens.len() as u64 && !starved {
            got.extend(bench.driver.used(RX));
            // The ring is empty, or what is left in it is too little for the longest frame.
            let out: u32 = sizes[got.len()..].iter().sum();
            starved = out < HDR as u32 + 1518 || got.len() == sizes.len();
        }
        if !starved {
            while got.iter().map(|used| used.len as usize).sum::<usize>()
                < counters.bytes() as usize + HDR * counters.frames() as usize {
                got.extend(bench.driver.used(RX));
            }
        }
        let mut got = got.into_iter();
        let mut expected = lens.iter().zip(0_u8..).map(|(len, seed)| frame(MAC.0, *len, seed));
        while let Some(first) = got.next() {
            let mut bytes = first.data[..first.len as usize].to_vec();
            let mut count = 1;
            while bytes.len() < HDR || count < u16::from_le_bytes([bytes[10], bytes[11]]) {
                let Some(next) = got.next() else { break };
                bytes.extend(&next.data[..next.len as usize]);
                count += 1;
            }
            // Frames may be missing, but not change.
            if starved && got.len() == 0 {
                break;
            }
            prop_assert!(expected.any(|frame| frame == bytes[HDR..]));
        }
    }
}
