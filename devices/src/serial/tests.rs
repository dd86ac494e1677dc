use std::fs::File;
use std::io::{Read, Write, pipe};
use std::os::fd::OwnedFd;
use std::sync::mpsc;
use std::thread;

use super::*;
use crate::event_loop::EventLoop;
use crate::testing::CountingInterrupt;

const DATA_READY: u8 = 1;
const LSR: u64 = 5;
const LONG: Duration = Duration::from_secs(30);

fn event_loop() -> EventLoop {
    EventLoop::spawn("test", |message| eprintln!("{message}")).unwrap()
}

fn port(output: Output) -> (Serial, Arc<CountingInterrupt>) {
    let interrupt = Arc::new(CountingInterrupt::default());
    let line = Arc::clone(&interrupt) as Arc<dyn Interrupt>;
    (Serial::new(line, output).unwrap(), interrupt)
}

fn nowhere() -> Output {
    Output::writer(io::sink())
}

fn put(serial: &Serial, bytes: &[u8]) {
    for &byte in bytes {
        serial.write(DATA, &[byte]);
    }
}

fn get(serial: &Serial, register: u64) -> u8 {
    let mut byte = [0xee];
    serial.read(register, &mut byte);
    byte[0]
}

/// Reads the receive FIFO as a driver does, polling, until `count` bytes have come.
fn receive(serial: &Serial, count: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    while bytes.len() < count {
        if get(serial, LSR) & DATA_READY == 0 {
            thread::yield_now();
        } else {
            bytes.push(get(serial, DATA));
        }
    }
    bytes
}

fn enable_receive(serial: &Serial) {
    serial.write(u64::from(IER), &[IER_RECEIVE]);
}

fn input(fd: impl Into<OwnedFd>, at_end: Option<u8>) -> Input {
    Input {
        source: Box::new(File::from(fd.into())),
        at_end,
    }
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at % 251) as u8).collect()
}

#[test]
fn a_prompt_without_a_newline_arrives_by_itself() {
    let (mut reader, writer) = pipe().unwrap();
    let events = event_loop();
    let (serial, _) = port(Output::descriptor(&writer).unwrap());
    let _tasks = serial.start_output(&events.handle()).unwrap();
    put(&serial, b"login: ");
    let mut bytes = [0; 7];
    reader.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"login: ");
}

#[test]
fn a_flood_arrives_whole_and_in_order_through_a_slow_reader() {
    let sent = pattern(1 << 20);
    let (mut reader, writer) = pipe().unwrap();
    let events = event_loop();
    let (serial, _) = port(Output::descriptor(&writer).unwrap());
    drop(writer);
    let tasks = serial.start_output(&events.handle()).unwrap();
    let guest = {
        let (serial, sent) = (serial.clone(), sent.clone());
        thread::spawn(move || {
            put(&serial, &sent);
            assert_eq!(serial.drain(LONG), 0);
        })
    };
    let mut received = vec![0; sent.len()];
    for piece in received.chunks_mut(1000) {
        reader.read_exact(piece).unwrap();
    }
    guest.join().unwrap();
    assert!(received == sent);
    drop(tasks);
}

#[test]
fn a_descriptor_that_cannot_be_reopened_gets_everything_too() {
    let (mut ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
    let events = event_loop();
    let (serial, _) = port(Output::descriptor(&theirs).unwrap());
    let _tasks = serial.start_output(&events.handle()).unwrap();
    let sent = pattern(500_000);
    let guest = {
        let (serial, sent) = (serial.clone(), sent.clone());
        thread::spawn(move || put(&serial, &sent))
    };
    let mut received = vec![0; sent.len()];
    ours.read_exact(&mut received).unwrap();
    guest.join().unwrap();
    assert!(received == sent);
}

#[test]
fn drain_writes_what_is_left_without_an_event_loop() {
    let file = tempfile::tempfile().unwrap();
    let (serial, _) = port(Output::descriptor(&file).unwrap());
    put(&serial, b"last words");
    assert_eq!(serial.drain(LONG), 0);
    let mut bytes = [0; 10];
    std::os::unix::fs::FileExt::read_exact_at(&file, &mut bytes, 0).unwrap();
    assert_eq!(&bytes, b"last words");
}

#[test]
fn drain_gives_up_on_an_output_that_takes_nothing() {
    let (_reader, mut writer) = pipe().unwrap();
    let (serial, _) = port(Output::descriptor(&writer).unwrap());
    // Full to the last byte.
    rustix::io::ioctl_fionbio(&writer, true).unwrap();
    while writer.write(&[0; 4096]).is_ok() {}
    put(&serial, b"lost");
    assert_eq!(serial.drain(Duration::from_millis(1)), 4);
}

#[test]
fn an_output_without_a_reader_does_not_stop_the_guest() {
    let (reader, writer) = pipe().unwrap();
    drop(reader);
    let events = event_loop();
    let (serial, _) = port(Output::descriptor(&writer).unwrap());
    let _tasks = serial.start_output(&events.handle()).unwrap();
    let sent = pattern(200 * 1024);
    put(&serial, &sent);
    // Nothing waits: whoever drains until then comes to an end.
    assert_eq!(serial.drain(LONG), 0);
    assert_eq!(serial.lost(), sent.len());
}

#[test]
fn a_blocked_output_stops_the_guest_until_it_is_released() {
    let (_reader, writer) = pipe().unwrap();
    let events = event_loop();
    let (serial, _) = port(Output::descriptor(&writer).unwrap());
    let _tasks = serial.start_output(&events.handle()).unwrap();
    let (done, finished) = mpsc::channel();
    let guest = {
        let serial = serial.clone();
        thread::spawn(move || {
            put(&serial, &pattern(1 << 20));
            done.send(()).unwrap();
        })
    };
    // The queue is full, and a vCPU that reads a register is not held up by the one that waits.
    while serial.output.waiting_bytes() < 64 * 1024 {
        thread::yield_now();
    }
    assert_ne!(get(&serial, LSR), 0xee);
    assert!(finished.try_recv().is_err(), "the guest did not wait");
    serial.release();
    finished.recv().unwrap();
    guest.join().unwrap();
}

#[test]
fn input_arrives_whole_however_slowly_the_guest_reads() {
    let sent = pattern(10_000);
    let (reader, mut writer) = pipe().unwrap();
    let events = event_loop();
    let (serial, interrupt) = port(nowhere());
    let _tasks = serial
        .start_input(&events.handle(), input(reader, None))
        .unwrap();
    writer.write_all(&sent).unwrap();
    enable_receive(&serial);
    assert!(receive(&serial, sent.len()) == sent);
    assert!(interrupt.count() > 0);
}

#[test]
fn input_waits_for_the_driver_that_would_throw_it_away() {
    let (reader, mut writer) = pipe().unwrap();
    let events = event_loop();
    let (serial, _) = port(nowhere());
    writer.write_all(b"early").unwrap();
    let tasks = serial
        .start_input(&events.handle(), input(reader, None))
        .unwrap();
    // As Linux's 8250 driver does at its start.
    serial.write(u64::from(LCR), &[LCR_DIVISOR]);
    serial.write(DATA, &[1]);
    serial.write(u64::from(LCR), &[3]);
    get(&serial, DATA);
    // The handler has had its first turn once it can be taken out.
    drop(tasks);
    assert_eq!(get(&serial, LSR) & DATA_READY, 0);
}

#[test]
fn early_input_arrives_once_the_driver_is_ready() {
    let (reader, mut writer) = pipe().unwrap();
    let events = event_loop();
    let (serial, _) = port(nowhere());
    writer.write_all(b"early").unwrap();
    let _tasks = serial
        .start_input(&events.handle(), input(reader, None))
        .unwrap();
    serial.write(u64::from(MCR), &[MCR_LOOP]);
    serial.write(u64::from(LCR), &[LCR_DIVISOR]);
    serial.write(u64::from(LCR), &[3]);
    enable_receive(&serial);
    serial.write(u64::from(MCR), &[0]);
    assert_eq!(receive(&serial, 5), b"early");
}

#[test]
fn the_end_of_input_gives_one_byte_if_one_is_set() {
    for at_end in [Some(4), None] {
        let (reader, mut writer) = pipe().unwrap();
        let events = event_loop();
        let (serial, _) = port(nowhere());
        writer.write_all(b"x").unwrap();
        drop(writer);
        let tasks = serial
            .start_input(&events.handle(), input(reader, at_end))
            .unwrap();
        enable_receive(&serial);
        let expected: Vec<u8> = [b'x'].into_iter().chain(at_end).collect();
        assert_eq!(receive(&serial, expected.len()), expected);
        drop(tasks);
        assert_eq!(get(&serial, LSR) & DATA_READY, 0);
    }
}

#[test]
fn a_regular_file_is_input_too() {
    let sent = pattern(1000);
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(&sent).unwrap();
    let events = event_loop();
    let (serial, _) = port(nowhere());
    let source = File::open(file.path()).unwrap();
    let _tasks = serial
        .start_input(&events.handle(), input(source, Some(4)))
        .unwrap();
    enable_receive(&serial);
    let mut expected = sent;
    expected.push(4);
    assert!(receive(&serial, expected.len()) == expected);
}

#[test]
fn state_moves_to_another_port() {
    let (reader, mut writer) = pipe().unwrap();
    let events = event_loop();
    let (first, _) = port(nowhere());
    let typing = first
        .start_input(&events.handle(), input(reader, None))
        .unwrap();
    writer.write_all(b"abc").unwrap();
    enable_receive(&first);
    first.write(7, &[0x5a]);
    assert_eq!(receive(&first, 1), b"a");
    drop(typing);
    let json = serde_json::to_string(&first.save()).unwrap();
    let state: SerialState = serde_json::from_str(&json).unwrap();
    let (second, _) = port(nowhere());
    second.restore(&state).unwrap();
    assert_eq!(second.save(), state);
    assert_eq!(get(&second, 7), 0x5a);
    assert_eq!(receive(&second, 2), b"bc");
}

#[test]
fn a_state_with_too_long_a_fifo_is_refused() {
    let (serial, _) = port(nowhere());
    let mut state = serial.save();
    state.in_buffer = vec![0; 65];
    let refused = serial.restore(&state);
    assert!(matches!(refused, Err(SerialError::LongFifo(65))));
}

#[test]
fn every_access_of_every_width_is_harmless() {
    let (serial, _) = port(nowhere());
    for offset in 0..LEN {
        for width in 0..=8 {
            for value in [0x00, 0xff, 0x80, 0x10] {
                serial.write(offset, &[value; 8][..width]);
                serial.read(offset, &mut [0; 8][..width]);
            }
        }
    }
}
