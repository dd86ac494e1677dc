//! Unix sockets of the host's.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;

use tempfile::TempDir;

use super::guest::Guest;
use super::{LONG, pattern};
use crate::virtio::spec::feature;
use crate::virtio::vsock::packet::{Op, Shutdown};
use crate::virtio::vsock::{MAX_CONNECTIONS, Vsock, VsockConfig, VsockError};

fn with_base() -> (Guest, PathBuf, TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let base = folder.path().join("vsock");
    let config = VsockConfig {
        base: Some(base.clone()),
        ..VsockConfig::default()
    };
    (Guest::with(&config, feature::EVENT_IDX), base, folder)
}

fn client(base: &PathBuf) -> UnixStream {
    let stream = UnixStream::connect(base).unwrap();
    stream.set_read_timeout(Some(LONG)).unwrap();
    stream
}

#[test]
fn guest_reaches_the_socket_of_a_port() {
    let (mut guest, base, _folder) = with_base();
    let path = base.with_file_name("vsock_5000");
    guest.request(5000, 1);
    guest.wait_for(Op::Rst);
    let listener = UnixListener::bind(&path).unwrap();
    let key = guest.connect(5000, 2);
    let (mut stream, _) = listener.accept().unwrap();
    guest.write_all(key, b"hello", 64);
    let mut bytes = [0; 5];
    stream.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"hello");
    drop(stream);
    guest.run_until(|guest| guest.stream(key).host_closed.has(Shutdown::BOTH));
    // A file that nobody listens to is no better than none.
    drop(listener);
    guest.request(5000, 3);
    guest.wait_for(Op::Rst);
}

#[test]
fn client_reaches_a_port_of_the_guest() {
    let (mut guest, base, _folder) = with_base();
    guest.ports.insert(22);
    let mut stream = client(&base);
    // What follows the line is the guest's.
    stream.write_all(b"CONNECT 22\nhello").unwrap();
    guest.run_until(|guest| guest.streams.values().any(|s| s.received == b"hello"));
    let key = *guest.streams.keys().next().unwrap();
    let data = pattern(100_000);
    guest.write_all(key, &data, 5000);
    guest.send(Op::Shutdown, key, Shutdown::SEND.flags(), &[]);
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line).unwrap();
    assert_eq!(line, format!("OK {}\n", key.0));
    let mut rest = Vec::new();
    reader.read_to_end(&mut rest).unwrap();
    assert!(rest == data, "other bytes arrived");
}

#[test]
fn clients_that_ask_for_nothing_or_nobody_are_sent_away() {
    let (mut guest, base, _folder) = with_base();
    let mut nobody = client(&base);
    nobody.write_all(b"CONNECT 23\n").unwrap();
    guest.wait_for(Op::Request);
    assert_eq!(nobody.read(&mut [0; 8]).unwrap(), 0);
    let mut wrong = client(&base);
    wrong.write_all(b"HELLO\n").unwrap();
    assert_eq!(wrong.read(&mut [0; 8]).unwrap(), 0);
}

#[test]
fn clients_are_bounded_and_the_device_recovers_from_a_flood() {
    super::raise_descriptor_limit();
    let (mut guest, base, _folder) = with_base();
    guest.ports.insert(22);
    let flood: Vec<_> = (0..MAX_CONNECTIONS).map(|_| client(&base)).collect();
    let mut late = client(&base);
    late.write_all(b"CONNECT 22\n").unwrap();
    drop(flood);
    guest.run_until(|guest| !guest.streams.is_empty());
    let mut answer = [0; 3];
    late.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"OK ");
}

#[test]
fn socket_that_is_there_is_not_replaced_and_ours_goes_with_the_device() {
    let (guest, base, _folder) = with_base();
    let config = VsockConfig {
        base: Some(base.clone()),
        ..VsockConfig::default()
    };
    let second = Vsock::new("second", &config);
    assert!(matches!(second, Err(VsockError::Bind { .. })));
    assert!(base.exists());
    drop(guest);
    assert!(!base.exists());
}
