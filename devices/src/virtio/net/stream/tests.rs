#![allow(clippy::indexing_slicing, reason = "a test may panic")]

use std::io::{Read, Write};

use proptest::prelude::*;

use super::*;

fn pair() -> (Stream, UnixStream) {
    let (socket, other) = UnixStream::pair().unwrap();
    let mut stream = Stream::new(socket).unwrap();
    stream.set_offloads(Offloads::CHECKSUM).unwrap();
    (stream, other)
}

fn framed(frame: &[u8]) -> Vec<u8> {
    [&(frame.len() as u32).to_be_bytes(), frame].concat()
}

fn frame(len: usize, seed: u8) -> Vec<u8> {
    (0..len)
        .map(|at| (at as u8) ^ (at >> 8) as u8 ^ seed)
        .collect()
}

/// Receives into a head and a rest, as the device does.
fn receive(stream: &mut Stream, capacity: usize) -> (Received, Vec<u8>) {
    let mut bytes = vec![0; capacity];
    let (head, rest) = bytes.split_at_mut(capacity.min(256));
    let received = stream.receive(&mut Landing::new(head, PiecesMut::of_bytes(rest)));
    if let Received::Frame { len, .. } = received {
        bytes.truncate(len);
    }
    (received, bytes)
}

fn got(stream: &mut Stream) -> Option<Vec<u8>> {
    match receive(stream, 66_000) {
        (Received::Frame { .. }, bytes) => Some(bytes),
        (Received::Nothing, _) => None,
        (other, _) => panic!("{other:?}"),
    }
}

#[test]
fn frames_are_received_one_by_one() {
    let (mut stream, mut other) = pair();
    let lens = [14, 60, 2048, 2044, 2040, 4096, 14, 65_535, 14, 1514];
    let frames: Vec<_> = lens
        .iter()
        .zip(0..)
        .map(|(&len, seed)| frame(len, seed))
        .collect();
    let all: Vec<u8> = frames.iter().flat_map(|frame| framed(frame)).collect();
    other.write_all(&all).unwrap();
    for frame in frames {
        assert!(
            got(&mut stream).unwrap() == frame,
            "a frame of {} bytes",
            frame.len()
        );
    }
    assert!(got(&mut stream).is_none() && !stream.has_waiting());
}

#[test]
fn received_frames_are_said_to_be_sound_if_the_driver_takes_that() {
    let (mut stream, mut other) = pair();
    for (offloads, expected) in [
        (Offloads::CHECKSUM, Checksum::Valid),
        (Offloads::NONE, Checksum::Unknown),
    ] {
        stream.set_offloads(offloads).unwrap();
        other.write_all(&framed(&frame(60, 0))).unwrap();
        match receive(&mut stream, 1600).0 {
            Received::Frame { header, len: 60 } => assert_eq!(header.checksum, expected),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn small_frames_that_were_read_ahead_are_told_of() {
    let (mut stream, mut other) = pair();
    let two = [framed(&frame(60, 1)), framed(&frame(60, 2))].concat();
    other.write_all(&two).unwrap();
    assert_eq!(got(&mut stream).unwrap(), frame(60, 1));
    assert!(stream.has_waiting());
    assert_eq!(got(&mut stream).unwrap(), frame(60, 2));
    assert!(!stream.has_waiting());
    // Half of a frame is none; its descriptor tells when the rest comes.
    other.write_all(&two[..100]).unwrap();
    got(&mut stream).unwrap();
    assert!(!stream.has_waiting());
}

#[test]
fn frame_that_comes_byte_by_byte_is_whole_and_may_change_its_landing() {
    let (mut stream, mut other) = pair();
    for byte in framed(&frame(700, 5)) {
        assert!(got(&mut stream).is_none());
        other.write_all(&[byte]).unwrap();
    }
    assert_eq!(got(&mut stream).unwrap(), frame(700, 5));
}

#[test]
fn frames_without_room_are_skipped_and_the_stream_stays_in_step() {
    let (mut stream, mut other) = pair();
    let writer = std::thread::spawn(move || {
        for len in [3, 1000, 100_000, 60, 0, 13, 65_535, 60] {
            other.write_all(&framed(&frame(len, 1))).unwrap();
        }
        other
    });
    let (mut frames, mut dropped) = (0, 0);
    while frames < 2 {
        match receive(&mut stream, 100) {
            (Received::Frame { .. }, bytes) => {
                assert_eq!(bytes, frame(60, 1));
                frames += 1;
            }
            (Received::Dropped, _) => dropped += 1,
            (Received::Nothing, _) => std::thread::yield_now(),
            (Received::Closed(error), _) => panic!("{error}"),
        }
    }
    assert_eq!(dropped, 6);
    drop(writer.join().unwrap());
    assert!(matches!(receive(&mut stream, 100).0, Received::Closed(_)));
}

#[test]
fn stream_that_is_out_of_step_is_closed() {
    let (mut stream, mut other) = pair();
    other.write_all(&[0xff; 64]).unwrap();
    assert!(matches!(receive(&mut stream, 1600).0, Received::Closed(_)));
}

#[test]
fn end_is_told_after_the_last_frame_and_in_the_middle_of_one() {
    for cut in [0, 2, 30] {
        let (mut stream, mut other) = pair();
        let bytes = [framed(&frame(60, 1)), framed(&frame(60, 2))[..cut].to_vec()].concat();
        other.write_all(&bytes).unwrap();
        drop(other);
        assert_eq!(got(&mut stream).unwrap(), frame(60, 1));
        assert!(matches!(receive(&mut stream, 1600).0, Received::Closed(_)));
        let sent = stream.send(&Frame::of_bytes(&frame(60, 1)));
        assert!(matches!(sent, Sent::Closed(_)));
    }
}

#[test]
fn frame_longer_than_passt_takes_is_not_sent() {
    let (mut stream, mut other) = pair();
    assert!(matches!(
        stream.send(&Frame::of_bytes(&frame(65_536, 1))),
        Sent::Dropped
    ));
    assert!(matches!(
        stream.send(&Frame::of_bytes(&frame(65_535, 2))),
        Sent::Done
    ));
    let mut bytes = vec![0; 65_539];
    other.read_exact(&mut bytes).unwrap();
    assert!(bytes == framed(&frame(65_535, 2)));
}

proptest! {
    /// A reader of any pace and a full socket: what is sent is what arrives, in whole frames.
    #[test]
    fn full_socket_never_cuts_a_frame(
        lens in prop::collection::vec(14..65_535_usize, 1..40),
        reads in prop::collection::vec(1..100_000_usize, 1..20),
    ) {
        let (mut stream, mut other) = pair();
        other.set_nonblocking(true).unwrap();
        let mut reads = reads.into_iter().cycle();
        let (mut arrived, mut expected) = (Vec::<u8>::new(), Vec::new());
        let mut read = |other: &mut UnixStream| {
            let mut bytes = vec![0; reads.next().unwrap()];
            let count = other.read(&mut bytes).unwrap_or(0);
            arrived.extend(&bytes[..count]);
            count
        };
        for (len, seed) in lens.into_iter().zip(0..) {
            let frame = frame(len, seed);
            while let Sent::Full = stream.send(&Frame::of_bytes(&frame)) {
                read(&mut other);
            }
            expected.extend(framed(&frame));
        }
        while let Sent::Full = stream.flush() {
            read(&mut other);
        }
        while read(&mut other) > 0 {}
        prop_assert!(arrived == expected);
    }

    /// Bytes that come in any pieces give the same frames.
    #[test]
    fn any_pieces_give_the_same_frames(
        lens in prop::collection::vec(14..9000_usize, 1..30),
        writes in prop::collection::vec(1..20_000_usize, 1..20),
    ) {
        let (mut stream, mut other) = pair();
        let frames: Vec<_> = lens.iter().zip(0..).map(|(&len, seed)| frame(len, seed)).collect();
        let all: Vec<u8> = frames.iter().flat_map(|frame| framed(frame)).collect();
        let mut writes = writes.into_iter().cycle();
        let mut expected = frames.into_iter();
        let mut rest = all.as_slice();
        while !rest.is_empty() {
            let (now, later) = rest.split_at(writes.next().unwrap().min(rest.len()));
            other.write_all(now).unwrap();
            rest = later;
            while let Some(frame) = got(&mut stream) {
                prop_assert!(Some(frame) == expected.next());
            }
        }
        prop_assert!(expected.next().is_none());
    }
}
