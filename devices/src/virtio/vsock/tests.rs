#![allow(clippy::indexing_slicing, reason = "a test may panic")]

mod guest;
mod hostile;
mod unix;

use std::io::{ErrorKind, Read, Write};
use std::net;
use std::os::unix::net::UnixStream;
use std::thread;

use super::packet::{Op, Shutdown};
use super::*;
use crate::virtio::spec::{feature, mmio};
use crate::virtio::transport::mmio::TransportState;
use guest::{CID, Guest};

const LONG: Duration = Duration::from_secs(20);

/// Bytes that are not like those at another place.
fn pattern(len: usize) -> Vec<u8> {
    let mut state = 0x1234_5678_9abc_def0_u64;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend(state.to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

fn accept(listener: &VsockListener) -> UnixStream {
    listener.accept_timeout(LONG).expect("a connection").stream
}

/// A connection that the guest has opened, with the monitor's end of it.
fn open(guest: &mut Guest) -> ((u32, u32), UnixStream, VsockListener) {
    let listener = guest.handle.listen(80, 4).unwrap();
    let key = guest.connect(80, 1000);
    let stream = accept(&listener);
    (key, stream, listener)
}

#[test]
fn config_space_has_the_guests_cid_and_the_feature_is_streams() {
    let guest = Guest::new();
    let mut cid = [0xff; 8];
    guest.driver.read_config(0, &mut cid);
    assert_eq!(u64::from_le_bytes(cid), CID);
    let mut high = [0xff; 4];
    guest.driver.read_config(4, &mut high);
    assert_eq!(high, [0; 4]);
    guest.driver.read_config(8, &mut high);
    assert_eq!(high, [0; 4]);
    assert_eq!(guest.driver.read_register(mmio::DEVICE_ID), 19);
    assert_eq!(
        guest.driver.offered_features() & 0xff_ffff,
        packet::F_STREAM
    );
}

#[test]
fn cids_that_are_not_for_guests_are_refused() {
    for cid in [0, 1, 2, u32::MAX] {
        let config = VsockConfig {
            guest_cid: cid,
            base: None,
        };
        assert!(Vsock::new("vsock", &config).is_err(), "{cid}");
    }
}

#[test]
fn guest_connects_and_bytes_go_both_ways() {
    for features in [0, feature::EVENT_IDX] {
        let mut guest = Guest::with(&VsockConfig::default(), features);
        let listener = guest.handle.listen(80, 4).unwrap();
        let key = guest.connect(80, 1000);
        let incoming = listener.accept_timeout(LONG).unwrap();
        assert_eq!(incoming.guest_port, 1000);
        let mut stream = incoming.stream;
        guest.write_all(key, b"from the guest", 5);
        let mut bytes = [0; 14];
        stream.read_exact(&mut bytes).unwrap();
        assert_eq!(&bytes, b"from the guest");
        stream.write_all(b"from the host").unwrap();
        guest.run_until(|guest| guest.stream(key).received.len() == 13);
        assert_eq!(guest.stream(key).received, b"from the host");
    }
}

#[test]
fn host_connects_and_bytes_go_both_ways() {
    let mut guest = Guest::new();
    guest.ports.insert(22);
    let handle = guest.handle.clone();
    let client = thread::spawn(move || {
        let mut stream = handle.connect(22, LONG).unwrap();
        stream.write_all(b"ping").unwrap();
        let mut answer = [0; 4];
        stream.read_exact(&mut answer).unwrap();
        answer
    });
    guest.run_until(|guest| guest.streams.values().any(|s| s.received == b"ping"));
    let key = *guest.streams.keys().next().unwrap();
    guest.write_all(key, b"pong", 4);
    assert_eq!(&client.join().unwrap(), b"pong");
}

#[test]
fn host_is_told_why_there_is_no_connection() {
    let mut guest = Guest::stopped(&VsockConfig::default());
    let failed = guest.handle.connect(22, LONG);
    assert!(matches!(failed, Err(ConnectError::NotRunning)));

    guest.start(0, 16);
    let handle = guest.handle.clone();
    let client = thread::spawn(move || handle.connect(22, LONG));
    guest.wait_for(Op::Request);
    assert!(matches!(client.join().unwrap(), Err(ConnectError::Refused)));

    let failed = guest.handle.connect(22, Duration::from_millis(1));
    assert!(matches!(failed, Err(ConnectError::TimedOut)));

    let handle = guest.handle.clone();
    let client = thread::spawn(move || handle.connect(22, LONG));
    // Its request is there, after those of the one before, and is never answered.
    guest.driver.wait_used(RX, 3);
    guest.driver.write_register(mmio::STATUS, 0);
    assert!(matches!(client.join().unwrap(), Err(ConnectError::Closed)));
}

#[test]
fn port_that_nobody_listens_to_is_reset() {
    let mut guest = Guest::new();
    let listener = guest.handle.listen(80, 1).unwrap();
    assert!(matches!(
        guest.handle.listen(80, 1),
        Err(ListenError::Taken { port: 80 })
    ));
    guest.request(81, 1000);
    let rst = guest.wait_for(Op::Rst);
    assert_eq!((rst.host_port(), rst.guest_port()), (81, 1000));
    // One waits to be accepted; there is no room for a second.
    guest.connect(80, 1000);
    guest.request(80, 1001);
    assert_eq!(guest.wait_for(Op::Rst).guest_port(), 1001);
    drop(listener);
    guest.request(80, 1002);
    assert_eq!(guest.wait_for(Op::Rst).guest_port(), 1002);
    // The one that nobody accepted has ended.
    guest.run_until(|guest| guest.stream((80, 1000)).host_closed.has(Shutdown::BOTH));
}

/// Sends `data` from guest to host, with packets of at most `most` bytes.
fn check_guest_to_host(guest: &mut Guest, len: usize, most: usize) {
    let (key, mut stream, _listener) = open(guest);
    let data = pattern(len);
    let reader = thread::spawn(move || {
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes).unwrap();
        bytes
    });
    guest.write_all(key, &data, most);
    guest.close(key);
    assert!(reader.join().unwrap() == data, "other bytes arrived");
}

#[test]
fn megabytes_from_the_guest_arrive_whole() {
    check_guest_to_host(&mut Guest::new(), 8 << 20, 64 << 10);
    check_guest_to_host(&mut Guest::with(&VsockConfig::default(), 0), 1 << 20, 1777);
}

#[test]
fn megabytes_to_the_guest_arrive_whole_however_little_credit_it_gives() {
    for (capacity, len) in [(256 << 10, 8 << 20), (4096, 2 << 20), (77, 100_000)] {
        let mut guest = Guest::new();
        guest.capacity = capacity;
        let (key, mut stream, _listener) = open(&mut guest);
        let data = pattern(len);
        let sent = data.clone();
        let writer = thread::spawn(move || stream.write_all(&sent).unwrap());
        guest.run_until(|guest| guest.stream(key).host_closed.has(Shutdown::BOTH));
        writer.join().unwrap();
        assert!(guest.stream(key).received == data, "other bytes arrived");
    }
}

#[test]
fn both_directions_at_once_on_several_streams() {
    const STREAMS: u32 = 5;
    const LEN: usize = 1 << 20;
    let mut guest = Guest::new();
    guest.capacity = 8192;
    let listener = guest.handle.listen(80, 16).unwrap();
    let mut echoes = Vec::new();
    let mut keys = Vec::new();
    for port in 0..STREAMS {
        keys.push(guest.connect(80, 1000 + port));
        let stream = accept(&listener);
        echoes.push(thread::spawn(move || {
            let mut reader = stream.try_clone().unwrap();
            std::io::copy(&mut reader, &mut &stream).unwrap();
            stream.shutdown(net::Shutdown::Write).unwrap();
        }));
    }
    let data = pattern(LEN);
    let mut sent = vec![0; keys.len()];
    guest.run_until(|guest| {
        for (key, sent) in keys.iter().zip(&mut sent) {
            while *sent < LEN {
                let len = guest.write_some(*key, &data[*sent..], 3000);
                *sent += len;
                if *sent == LEN {
                    guest.send(Op::Shutdown, *key, Shutdown::SEND.flags(), &[]);
                }
                if len == 0 {
                    break;
                }
            }
        }
        keys.iter()
            .all(|key| guest.streams[key].host_closed.has(Shutdown::SEND))
    });
    for key in &keys {
        assert!(guest.streams[key].received == data, "other bytes arrived");
    }
    for echo in echoes {
        echo.join().unwrap();
    }
}

#[test]
fn guest_that_shuts_down_both_ways_is_reset_after_its_bytes_have_arrived() {
    let mut guest = Guest::new();
    let (key, mut stream, _listener) = open(&mut guest);
    guest.send(Op::Rw, key, 0, b"last words");
    guest.send(Op::Shutdown, key, Shutdown::BOTH.flags(), &[]);
    guest.wait_for(Op::Rst);
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).unwrap();
    assert_eq!(bytes, b"last words");
    let error = stream.write_all(b"x").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::BrokenPipe);
    // The ports are free again.
    guest.connect(key.0, key.1);
}

#[test]
fn guest_that_shuts_down_sending_still_receives() {
    let mut guest = Guest::new();
    let (key, mut stream, _listener) = open(&mut guest);
    guest.send(Op::Rw, key, 0, b"question");
    guest.send(Op::Shutdown, key, Shutdown::SEND.flags(), &[]);
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).unwrap();
    assert_eq!(bytes, b"question");
    stream.write_all(b"answer").unwrap();
    drop(stream);
    guest.run_until(|guest| guest.stream(key).host_closed.has(Shutdown::BOTH));
    assert_eq!(guest.stream(key).received, b"answer");
}

#[test]
fn guest_that_shuts_down_receiving_still_sends() {
    let mut guest = Guest::new();
    let (key, mut stream, _listener) = open(&mut guest);
    guest.send(Op::Shutdown, key, Shutdown::RECEIVE.flags(), &[]);
    guest.send(Op::Rw, key, 0, b"more");
    let mut bytes = [0; 4];
    stream.read_exact(&mut bytes).unwrap();
    let error = stream.write_all(b"x").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::BrokenPipe);
    // The second hint completes the first.
    guest.send(Op::Shutdown, key, Shutdown::SEND.flags(), &[]);
    guest.wait_for(Op::Rst);
    assert_eq!(stream.read(&mut bytes).unwrap(), 0);
}

#[test]
fn host_that_shuts_down_sending_still_receives() {
    let mut guest = Guest::new();
    let (key, mut stream, _listener) = open(&mut guest);
    stream.write_all(b"question").unwrap();
    stream.shutdown(net::Shutdown::Write).unwrap();
    let packet = guest.wait_for(Op::Shutdown);
    assert_eq!(packet.closes(), Shutdown::SEND);
    assert_eq!(guest.stream(key).received, b"question");
    guest.write_all(key, b"answer", 64);
    guest.close(key);
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).unwrap();
    assert_eq!(bytes, b"answer");
}

#[test]
fn host_that_closes_after_it_shut_down_is_noticed() {
    let mut guest = Guest::new();
    let (_, stream, _listener) = open(&mut guest);
    stream.shutdown(net::Shutdown::Write).unwrap();
    assert_eq!(guest.wait_for(Op::Shutdown).closes(), Shutdown::SEND);
    drop(stream);
    assert_eq!(guest.wait_for(Op::Shutdown).closes(), Shutdown::BOTH);
}

#[test]
fn hosts_last_bytes_come_before_its_end_even_if_it_did_not_read_ours() {
    let mut guest = Guest::new();
    let (key, mut stream, _listener) = open(&mut guest);
    let data = pattern(100_000);
    stream.write_all(&data).unwrap();
    guest.write_all(key, b"nobody reads this", 64);
    drop(stream);
    // The guest goes on to send what nobody takes.
    guest.send(Op::Rw, key, 0, b"nor this");
    guest.run_until(|guest| guest.stream(key).host_closed.has(Shutdown::BOTH));
    assert!(guest.stream(key).received == data, "other bytes arrived");
}

#[test]
fn guests_bytes_reach_a_slow_reader_after_the_guest_has_reset() {
    let mut guest = Guest::new();
    let (key, mut stream, _listener) = open(&mut guest);
    // More than the socket holds, so that the device has to keep some.
    let data = pattern(600 << 10);
    let mut sent = 0;
    guest.run_until(|guest| {
        loop {
            let len = guest.write_some(key, &data[sent..], 64 << 10);
            sent += len;
            if len == 0 {
                return sent > 300 << 10 && guest.stream(key).credit() == 0;
            }
        }
    });
    guest.send(Op::Rst, key, 0, &[]);
    // The ports can be used again at once.
    guest.streams.clear();
    guest.connect(key.0, key.1);
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).unwrap();
    assert!(bytes == data[..sent], "other bytes arrived");
}

#[test]
fn slow_reader_stops_its_guest_and_nobody_else() {
    let mut guest = Guest::new();
    let (key, mut slow, listener) = open(&mut guest);
    let data = pattern(2 << 20);
    let mut sent = 0;
    // Until the device gives no credit any more: the socket and the backlog are full.
    guest.run_until(|guest| {
        loop {
            let len = guest.write_some(key, &data[sent..], 64 << 10);
            sent += len;
            if len == 0 {
                return sent > 400 << 10;
            }
        }
    });
    assert!(sent < 1 << 20, "{sent} bytes were taken that nobody reads");
    // Others go on.
    let other = guest.connect(80, 2000);
    let mut fast = accept(&listener);
    guest.write_all(other, b"hello", 64);
    let mut bytes = [0; 5];
    fast.read_exact(&mut bytes).unwrap();
    // And so does it, once somebody reads.
    let expected = data.clone();
    let reader = thread::spawn(move || {
        let mut bytes = Vec::new();
        slow.read_to_end(&mut bytes).unwrap();
        assert!(bytes == expected, "other bytes arrived");
    });
    guest.write_all(key, &data[sent..], 64 << 10);
    guest.close(key);
    reader.join().unwrap();
}

#[test]
fn guest_that_does_not_read_stops_its_host_and_nobody_else() {
    let mut guest = Guest::new();
    guest.capacity = 10_000;
    guest.reads = false;
    let (key, stream, listener) = open(&mut guest);
    let mut writer = stream.try_clone().unwrap();
    let data = pattern(1 << 20);
    let expected = data.clone();
    let writing = thread::spawn(move || writer.write_all(&data).unwrap());
    guest.run_until(|guest| guest.stream(key).count == 10_000);
    let other = guest.connect(80, 2000);
    accept(&listener).write_all(b"hello").unwrap();
    guest.run_until(|guest| guest.stream(other).received == b"hello");
    assert_eq!(guest.stream(key).count, 10_000);
    guest.reads = true;
    guest.read(key);
    guest.run_until(|guest| guest.stream(key).count as usize == expected.len());
    writing.join().unwrap();
    assert!(
        guest.stream(key).received == expected,
        "other bytes arrived"
    );
}

#[test]
fn without_receive_buffers_nothing_is_lost_and_memory_is_bounded() {
    let mut guest = Guest::stopped(&VsockConfig::default());
    guest.start(feature::EVENT_IDX, 0);
    let listener = guest.handle.listen(80, 4).unwrap();
    // Every one of these makes the device answer; it stops to take them at some point.
    let mut taken = 0;
    for port in 0..5_000 {
        guest.driver.used(TX);
        if guest.driver.free_descriptors(TX) < 32 {
            break;
        }
        let header = Guest::header(Op::CreditRequest, 9, port);
        guest
            .driver
            .send(TX, &[zerocopy::IntoBytes::as_bytes(&header)], &[]);
        guest.driver.kick(TX);
        taken = port + 1;
        if taken <= 200 {
            guest.driver.wait_used(TX, 1);
        }
    }
    assert!(
        taken < 1_000,
        "{taken} packets were taken without an answer"
    );
    guest.give_buffers(32);
    let mut answers = 0;
    while answers < taken {
        let seen = guest.driver.interrupt().count();
        let packets = guest.poll();
        answers += packets.iter().filter(|it| it.op() == Op::Rst).count() as u32;
        assert!(!packets.is_empty() || guest.driver.interrupt().wait_for(seen + 1));
    }
    assert_eq!(answers, taken);
    let key = guest.connect(80, 1);
    accept(&listener).write_all(b"still here").unwrap();
    guest.run_until(|guest| guest.stream(key).received == b"still here");
}

#[test]
fn misuse_of_a_connection_resets_it() {
    type Misuse = fn(&mut Guest, (u32, u32));
    let cases: [(&str, Misuse); 7] = [
        ("beyond the credit", |guest, key| {
            let mut header = Guest::header(Op::Rw, key.0, key.1);
            header.len = (60 << 10).into();
            for _ in 0..40 {
                guest.send_raw(&header, &pattern(60 << 10));
            }
        }),
        ("data that is not there", |guest, key| {
            let mut header = Guest::header(Op::Rw, key.0, key.1);
            header.len = 11.into();
            guest.send_raw(&header, &[7; 10]);
        }),
        ("a second request", |guest, key| {
            guest.send(Op::Request, key, 0, &[]);
        }),
        ("a response to nothing", |guest, key| {
            guest.send(Op::Response, key, 0, &[]);
        }),
        ("data after the end", |guest, key| {
            guest.send(Op::Shutdown, key, Shutdown::SEND.flags(), &[]);
            guest.send(Op::Rw, key, 0, b"more");
        }),
        ("an unknown operation", |guest, key| {
            let mut header = Guest::header(Op::Rw, key.0, key.1);
            header.op = 8.into();
            guest.send_raw(&header, &[]);
        }),
        ("operation 0", |guest, key| {
            let mut header = Guest::header(Op::Rw, key.0, key.1);
            header.op = 0.into();
            guest.send_raw(&header, &[]);
        }),
    ];
    for (name, misuse) in cases {
        let mut guest = Guest::new();
        let (key, mut stream, listener) = open(&mut guest);
        misuse(&mut guest, key);
        let rst = guest.wait_for(Op::Rst);
        assert_eq!((rst.host_port(), rst.guest_port()), key, "{name}");
        let mut rest = Vec::new();
        stream.read_to_end(&mut rest).expect(name);
        // The device goes on.
        guest.connect(80, 3000);
        accept(&listener);
    }
}

#[test]
fn packets_for_nobody_are_answered_or_dropped_and_never_twice() {
    let mut guest = Guest::new();
    let (key, mut stream, _listener) = open(&mut guest);
    let mut foreign = Guest::header(Op::Rw, key.0, key.1);
    foreign.src_cid = 9.into();
    guest.send_raw(&foreign, &[]);
    let reset_of_nothing = Guest::header(Op::Rst, 5, 6);
    guest.send_raw(&reset_of_nothing, &[]);
    guest.driver.send(TX, &[&[0; 43]], &[]);
    guest.driver.send(TX, &[], &[64]);

    let mut elsewhere = Guest::header(Op::Request, 80, 7);
    elsewhere.dst_cid = 9.into();
    guest.send_raw(&elsewhere, &[]);
    let rst = guest.wait_for(Op::Rst);
    assert_eq!((rst.header.src_cid.get(), rst.guest_port()), (9, 7));

    let mut datagram = Guest::header(Op::Rw, key.0, key.1);
    datagram.kind = 3.into();
    guest.send_raw(&datagram, &[]);
    let rst = guest.wait_for(Op::Rst);
    assert_eq!(rst.header.kind.get(), 3);

    // The connection is none the worse for it.
    guest.streams.get_mut(&key).unwrap().reset = false;
    guest.write_all(key, b"hello", 64);
    let mut bytes = [0; 5];
    stream.read_exact(&mut bytes).unwrap();
}

#[test]
fn guest_that_lies_about_its_credit_gets_no_more_than_it_has_buffers_for() {
    let mut guest = Guest::new();
    guest.capacity = 1000;
    guest.reads = false;
    let (key, mut stream, _listener) = open(&mut guest);
    stream.write_all(&pattern(5000)).unwrap();
    guest.run_until(|guest| guest.stream(key).count == 1000);
    // It has dealt with bytes that were never sent.
    for lie in [1001, 5000, u32::MAX, 1 << 31] {
        let mut header = Guest::header(Op::CreditUpdate, key.0, key.1);
        header.buf_alloc = 1000.into();
        header.fwd_cnt = lie.into();
        guest.send_raw(&header, &[]);
    }
    // Then it takes its promise back, and gives it again.
    let mut header = Guest::header(Op::CreditUpdate, key.0, key.1);
    header.buf_alloc = 0.into();
    guest.send_raw(&header, &[]);
    guest.send(Op::CreditRequest, key, 0, &[]);
    guest.wait_for(Op::CreditUpdate);
    assert_eq!(guest.stream(key).count, 1000);
    guest.read(key);
    guest.run_until(|guest| guest.stream(key).count == 2000);
}

#[test]
fn credit_request_is_answered() {
    let mut guest = Guest::new();
    let (key, mut stream, _listener) = open(&mut guest);
    guest.write_all(key, b"12345", 64);
    stream.read_exact(&mut [0; 5]).unwrap();
    guest.send(Op::CreditRequest, key, 0, &[]);
    let update = guest.wait_for(Op::CreditUpdate);
    assert_eq!(update.header.fwd_cnt.get(), 5);
    assert!(update.header.buf_alloc.get() >= CREDIT_LEAST);
}

#[test]
fn a_thousand_connections_work_at_once_and_one_too_many_is_refused() {
    let mut guest = Guest::new();
    guest.capacity = 1000;
    let (sender, streams) = std::sync::mpsc::channel();
    // Sockets of both ends are in this process, and many systems allow 1024 descriptors.
    raise_descriptor_limit();
    let _listening = guest.handle.listen_with(80, move |incoming| {
        sender.send(incoming).map_err(|_| Refused)
    });
    let count = MAX_CONNECTIONS as u32;
    for port in 0..count {
        guest.request(80, port);
        guest.poll();
    }
    guest.run_until(|guest| guest.streams.values().all(|stream| stream.open));
    guest.request(80, count);
    assert_eq!(guest.wait_for(Op::Rst).guest_port(), count);
    guest.streams.remove(&(80, count));

    let mut streams: Vec<_> = streams.try_iter().collect();
    assert_eq!(streams.len(), MAX_CONNECTIONS);
    for incoming in &mut streams {
        let port = incoming.guest_port;
        incoming.stream.write_all(&port.to_le_bytes()).unwrap();
        guest.write_all((80, port), &port.to_be_bytes(), 4);
    }
    guest.run_until(|guest| guest.streams.values().all(|stream| stream.count == 4));
    for incoming in &mut streams {
        let port = incoming.guest_port;
        let mut bytes = [0; 4];
        incoming.stream.read_exact(&mut bytes).unwrap();
        assert_eq!(u32::from_be_bytes(bytes), port);
        assert_eq!(guest.stream((80, port)).received, port.to_le_bytes());
    }
    drop(streams);
    guest.run_until(|guest| {
        let mut all = guest.streams.values();
        all.all(|stream| stream.host_closed.has(Shutdown::BOTH))
    });
    for key in guest.streams.keys().copied().collect::<Vec<_>>() {
        guest.send(Op::Rst, key, 0, &[]);
    }
    guest.streams.clear();
    guest.connect(80, count);
}

fn raise_descriptor_limit() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = Some(limit.maximum.map_or(8192, |most| most.min(8192)));
    setrlimit(Resource::Nofile, limit).unwrap();
}

/// The guest never answers; the device ends what it has closed, and frees its ports.
#[test]
fn guest_that_does_not_acknowledge_the_end_is_reset_in_time() {
    let mut device = Vsock::new("vsock", &VsockConfig::default()).unwrap();
    device.close_timeout = Duration::from_millis(20);
    let mut guest = Guest::stopped_with(device);
    guest.start(feature::EVENT_IDX, 32);
    let (key, stream, _listener) = open(&mut guest);
    let (_, other, _other_listener) = {
        let listener = guest.handle.listen(81, 1).unwrap();
        let key = guest.connect(81, 1000);
        (key, accept(&listener), listener)
    };
    drop(stream);
    guest.run_until(|guest| guest.stream(key).reset);
    assert!(guest.stream(key).host_closed.has(Shutdown::BOTH));
    // One that was only closed in one direction stays.
    other.shutdown(net::Shutdown::Write).unwrap();
    guest.run_until(|guest| guest.stream((81, 1000)).host_closed.has(Shutdown::SEND));
    guest.write_all((81, 1000), b"more", 4);
    (&other).read_exact(&mut [0; 4]).unwrap();
    guest.connect(key.0, key.1);
}

/// Every stream has its turn, though each has more to send than the guest has buffers for.
#[test]
fn busy_streams_share_the_receive_buffers() {
    const STREAMS: u32 = 8;
    const LEN: u32 = 100 << 10;
    let mut guest = Guest::stopped(&VsockConfig::default());
    guest.start(feature::EVENT_IDX, 4);
    guest.capacity = 0;
    guest.reads = false;
    let listener = guest.handle.listen(80, 16).unwrap();
    let keys: Vec<_> = (0..STREAMS).map(|port| guest.connect(80, port)).collect();
    // It fits into the sockets, where it waits for credit.
    let mut streams: Vec<_> = keys.iter().map(|_| accept(&listener)).collect();
    for stream in &mut streams {
        stream.write_all(&pattern(LEN as usize)).unwrap();
    }
    for key in &keys {
        guest.stream(*key).capacity = 2 * LEN;
        guest.send(Op::CreditUpdate, *key, 0, &[]);
    }
    while guest.driver.free_descriptors(TX) < 128 {
        guest.driver.wait_used(TX, 1);
    }
    guest.run_until(|guest| keys.iter().any(|key| guest.streams[key].count == LEN));
    for key in keys {
        let count = guest.stream(key).count;
        assert!(count >= LEN / 2, "{key:?} has only had {count} bytes");
    }
}

#[test]
fn guest_is_asked_for_credit_when_it_has_none_left() {
    let mut guest = Guest::new();
    guest.capacity = 1000;
    guest.reads = false;
    let (key, mut stream, _listener) = open(&mut guest);
    stream.write_all(&pattern(1500)).unwrap();
    guest.wait_for(Op::CreditRequest);
    assert_eq!(guest.stream(key).count, 1000);
    guest.read(key);
    guest.run_until(|guest| guest.stream(key).count == 1500);
}

#[test]
fn ports_can_be_used_again_at_once() {
    let mut guest = Guest::new();
    let listener = guest.handle.listen(80, 4).unwrap();
    for round in 0..200_u32 {
        let key = guest.connect(80, 1000);
        let mut stream = accept(&listener);
        guest.write_all(key, &round.to_le_bytes(), 4);
        if round % 2 == 0 {
            guest.close(key);
        } else {
            guest.send(Op::Rst, key, 0, &[]);
        }
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes).unwrap();
        assert_eq!(bytes, round.to_le_bytes());
    }
}

#[test]
fn connections_of_the_host_have_ports_of_their_own() {
    let mut guest = Guest::new();
    guest.ports.insert(22);
    let (sender, streams) = std::sync::mpsc::channel();
    for _ in 0..50 {
        let sender = sender.clone();
        guest.handle.connect_then(22, LONG, move |result| {
            sender.send(result.unwrap()).unwrap();
        });
    }
    guest.run_until(|guest| guest.streams.len() == 50);
    let streams: Vec<_> = (0..50).map(|_| streams.recv().unwrap()).collect();
    assert_eq!(streams.len(), 50);
}

#[test]
fn reset_with_traffic_in_flight_ends_all_streams_and_the_device_works_after_it() {
    let mut guest = Guest::new();
    for round in 0..20 {
        let (key, stream, listener) = open(&mut guest);
        let mut reader = stream.try_clone().unwrap();
        let reading = thread::spawn(move || std::io::copy(&mut reader, &mut std::io::sink()));
        let mut writer = stream;
        let writing = thread::spawn(move || while writer.write_all(&[1; 10_000]).is_ok() {});
        guest.run_until(|guest| {
            guest.write_some(key, &[2; 5000], 5000);
            guest.stream(key).count > 20_000 * (round % 5)
        });
        guest.start(feature::EVENT_IDX, 32);
        // Both ends are told.
        let _ = reading.join().unwrap();
        writing.join().unwrap();
        drop(listener);
        assert!(guest.poll().is_empty());
    }
}

#[test]
fn restored_device_tells_its_driver_that_connections_are_gone() {
    let mut guest = Guest::new();
    guest.driver.send(EVENT, &[], &[4]);
    let (key, mut stream, _listener) = open(&mut guest);
    let state = guest.transport.save().unwrap();
    assert_eq!(stream.read(&mut [0; 1]).unwrap(), 0);
    let json = serde_json::to_string(&state).unwrap();
    let state: TransportState = serde_json::from_str(&json).unwrap();
    assert!(matches!(
        guest.handle.connect(22, LONG),
        Err(ConnectError::NotRunning)
    ));
    guest.transport.restore(&state).unwrap();
    guest.transport.resume().unwrap();
    let event = guest.driver.wait_used(EVENT, 1).remove(0);
    assert_eq!(event.data[..4], packet::EVENT_TRANSPORT_RESET.to_le_bytes());
    assert_eq!(event.len, 4);
    // What the driver still sends is for nobody.
    guest.send(Op::Rw, key, 0, b"hello?");
    guest.wait_for(Op::Rst);
    guest.connect(80, 1001);
}

#[test]
fn device_that_was_saved_and_goes_on_tells_its_driver_when_it_can() {
    let mut guest = Guest::new();
    let (_, _stream, _listener) = open(&mut guest);
    guest.transport.save().unwrap();
    guest.transport.resume().unwrap();
    // There was no buffer for the event until now.
    guest.driver.send(EVENT, &[], &[4]);
    guest.driver.kick(EVENT);
    let event = guest.driver.wait_used(EVENT, 1).remove(0);
    assert_eq!(event.len, 4);
    // It is told once.
    guest.driver.send(EVENT, &[], &[4]);
    guest.driver.kick(EVENT);
    guest.connect(80, 1001);
    assert!(guest.driver.used(EVENT).is_empty());
}

#[test]
fn state_of_another_device_is_refused() {
    let mut device = Vsock::new("vsock", &VsockConfig::default()).unwrap();
    let other = DeviceState::Rng(crate::virtio::rng::RngState {});
    let refused = device.restore(&other);
    assert!(matches!(refused, Err(RestoreError::WrongDevice { .. })));
    let host = DeviceState::Vsock(VsockState { guest_cid: 2 });
    let refused = device.restore(&host);
    assert!(matches!(refused, Err(RestoreError::Mismatch { .. })));
}

#[test]
fn broken_queue_ends_connections_and_a_reset_mends_it() {
    let mut guest = Guest::new();
    let (_, mut stream, listener) = open(&mut guest);
    guest.driver.write_available_index(TX, 9999);
    guest.driver.kick(TX);
    assert_eq!(stream.read(&mut [0; 1]).unwrap(), 0);
    let failed = guest.handle.connect(22, LONG);
    assert!(matches!(failed, Err(ConnectError::NotRunning)));
    guest.start(feature::EVENT_IDX, 32);
    guest.connect(80, 1000);
    accept(&listener);
}

#[test]
fn receive_buffers_without_room_come_back_empty() {
    let mut guest = Guest::stopped(&VsockConfig::default());
    guest.driver.start(0);
    let listener = guest.handle.listen(80, 4).unwrap();
    for len in [1, 43, 44, 45, 44, 50, 44, 300] {
        guest.driver.send(RX, &[], &[len]);
    }
    guest.driver.kick(RX);
    let header = Guest::header(Op::Request, 80, 1000);
    guest.send_raw(&header, &[]);
    // Two are too small for anything, the third has the response.
    let lens = |used: Vec<crate::testing::Used>| used.iter().map(|u| u.len).collect::<Vec<_>>();
    assert_eq!(lens(guest.driver.wait_used(RX, 3)), [0, 0, 44]);
    let data = pattern(200);
    accept(&listener).write_all(&data).unwrap();
    let used = guest.driver.wait_used(RX, 5);
    assert_eq!(lens(used.clone()), [45, 0, 50, 0, 44 + 193]);
    let mut received = Vec::<u8>::new();
    for used in used.iter().filter(|used| used.len > 0) {
        received.extend(&used.data[44..used.len as usize]);
    }
    assert_eq!(received, data);
}
