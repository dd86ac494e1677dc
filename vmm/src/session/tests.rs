use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::mpsc::channel;
use std::time::Duration;

use rustix::pipe::pipe;

use super::*;

/// Our ends of a session's streams, and a process's.
struct Rig {
    own: OwnStreams,
    process: ProcessStreams,
    /// What the user holds.
    keyboard: File,
    screen: File,
    errors: File,
    /// What the process holds.
    stdin: UnixStream,
    stdout: UnixStream,
    stderr: UnixStream,
}

fn rig() -> Rig {
    let (stdin, keyboard) = pipe().unwrap();
    let (screen, stdout) = pipe().unwrap();
    let (errors, stderr) = pipe().unwrap();
    let [a, b, c] = [(); 3].map(|()| UnixStream::pair().unwrap());
    Rig {
        own: OwnStreams {
            stdin,
            stdout,
            stderr,
        },
        process: ProcessStreams {
            stdin: Some(a.0),
            stdout: Some(b.0),
            stderr: Some(c.0),
        },
        keyboard: keyboard.into(),
        screen: screen.into(),
        errors: errors.into(),
        stdin: a.1,
        stdout: b.1,
        stderr: c.1,
    }
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i * 31 + i / 251) as u8).collect()
}

#[test]
fn every_byte_arrives_in_its_own_stream_and_then_its_end() {
    let mut rig = rig();
    let mut session = Session::start(rig.process, rig.own, None).unwrap();
    let bytes = pattern(3 << 20);
    let sent = bytes.clone();
    let typist = thread::spawn(move || rig.keyboard.write_all(&sent).unwrap());
    let echo = thread::spawn(move || {
        // Both at once: nothing is stored between them.
        let mut buffer = vec![0; 10_000];
        loop {
            match rig.stdin.read(&mut buffer).unwrap() {
                0 => break,
                count => rig.stdout.write_all(&buffer[..count]).unwrap(),
            }
        }
        rig.stderr.write_all(b"complaint\0\xff").unwrap();
    });
    let mut screen = Vec::new();
    rig.screen.read_to_end(&mut screen).unwrap();
    assert!(screen == bytes, "{} bytes", screen.len());
    let mut errors = Vec::new();
    rig.errors.read_to_end(&mut errors).unwrap();
    assert_eq!(errors, b"complaint\0\xff");
    typist.join().unwrap();
    echo.join().unwrap();
    session.drain();
    drop(session);
}

#[test]
fn a_file_gets_every_byte_too() {
    let mut rig = rig();
    let file = tempfile::tempfile().unwrap();
    rig.own.stdout = file.try_clone().unwrap().into();
    let mut session = Session::start(rig.process, rig.own, None).unwrap();
    let bytes = pattern(200_000);
    rig.stdout.write_all(&bytes).unwrap();
    drop((rig.stdout, rig.stderr));
    session.drain();
    drop(session);
    let mut written = Vec::new();
    let mut file = file;
    std::io::Seek::rewind(&mut file).unwrap();
    file.read_to_end(&mut written).unwrap();
    assert!(written == bytes, "{} bytes", written.len());
}

#[test]
fn the_session_ends_while_the_keyboard_says_nothing() {
    let rig = rig();
    let mut session = Session::start(rig.process, rig.own, None).unwrap();
    drop((rig.stdout, rig.stderr));
    session.drain();
    drop(session);
    drop(rig.keyboard);
}

#[test]
fn the_session_ends_while_the_process_does_not_read_what_is_typed() {
    let mut rig = rig();
    let mut session = Session::start(rig.process, rig.own, None).unwrap();
    let (done, waits) = channel();
    let typist = thread::spawn(move || {
        // More than all buffers on the way; it fails when the session has closed the pipe.
        let result = rig.keyboard.write_all(&pattern(8 << 20));
        done.send(result.is_err()).unwrap();
    });
    drop((rig.stdout, rig.stderr));
    session.drain();
    drop(session);
    assert_eq!(waits.recv_timeout(Duration::from_secs(10)), Ok(true));
    typist.join().unwrap();
    drop(rig.stdin);
}

#[test]
fn a_process_that_closes_its_input_is_read_to_no_more() {
    let mut rig = rig();
    let mut session = Session::start(rig.process, rig.own, None).unwrap();
    drop(rig.stdin);
    // The pipe breaks without one byte typed in between.
    while rig.keyboard.write_all(&[0; 4096]).is_ok() {}
    drop((rig.stdout, rig.stderr));
    session.drain();
    drop(session);
}

#[test]
fn a_reader_that_goes_away_closes_the_process_s_stream() {
    let mut rig = rig();
    let mut session = Session::start(rig.process, rig.own, None).unwrap();
    drop(rig.screen);
    let error = loop {
        if let Err(error) = rig.stdout.write_all(&[0; 4096]) {
            break error;
        }
    };
    let kinds = [io::ErrorKind::BrokenPipe, io::ErrorKind::ConnectionReset];
    assert!(kinds.contains(&error.kind()), "{error}");
    // The other stream lives.
    rig.stderr.write_all(b"x").unwrap();
    let mut byte = [0];
    rig.errors.read_exact(&mut byte).unwrap();
    drop(rig.stderr);
    session.drain();
    drop(session);
}

#[test]
fn the_hang_up_key_works_while_the_process_does_not_read() {
    let mut rig = rig();
    let (hung_up, waits) = channel();
    let on_hang_up: OnHangUp = Box::new(move || hung_up.send(()).unwrap());
    let mut session = Session::start(rig.process, rig.own, Some(on_hang_up)).unwrap();
    // A process that reads nothing, and a user who types far more than fits anywhere.
    rig.keyboard
        .write_all(&pattern(1 << 20).replace_key())
        .unwrap();
    assert!(waits.try_recv().is_err());
    rig.keyboard.write_all(&[b'x', HANG_UP_KEY]).unwrap();
    assert_eq!(waits.recv_timeout(Duration::from_secs(10)), Ok(()));
    drop((rig.stdout, rig.stderr));
    session.drain();
    drop(session);
}

trait ReplaceKey {
    fn replace_key(self) -> Self;
}

impl ReplaceKey for Vec<u8> {
    fn replace_key(mut self) -> Self {
        for byte in &mut self {
            if *byte == HANG_UP_KEY {
                *byte = 0;
            }
        }
        self
    }
}

#[test]
fn without_a_terminal_the_hang_up_key_is_a_byte() {
    let mut rig = rig();
    let mut session = Session::start(rig.process, rig.own, None).unwrap();
    rig.keyboard.write_all(&[HANG_UP_KEY]).unwrap();
    drop(rig.keyboard);
    let mut typed = Vec::new();
    rig.stdin.read_to_end(&mut typed).unwrap();
    assert_eq!(typed, [HANG_UP_KEY]);
    drop((rig.stdout, rig.stderr));
    session.drain();
    drop(session);
}
