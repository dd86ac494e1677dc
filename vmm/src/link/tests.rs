//! A link whose guest is in this process.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{Receiver, TryRecvError, channel};
use std::thread;

use casita_agent::wire::{
    AgentMessage, Exit, FrameReader, Hello, MAX_FRAME, Program, Purpose, encode_frame,
};

use super::*;

const KEY: Key = Key([1; 16]);
/// More than anything here takes.
const LONG: Duration = Duration::from_mins(1);

/// A guest: what opens connections, and the agent's control connection.
struct Guest {
    accept: Box<dyn Fn(UnixStream) -> bool + Send>,
    control: UnixStream,
    reader: FrameReader,
}

/// A link, its guest, whose agent is connected and ready, and what the owner is told.
fn connected() -> (AgentLink, Guest, Receiver<LinkEvent>) {
    let (link, accept, events) = listening();
    let control = open(&accept, Purpose::Control, KEY);
    let mut guest = Guest {
        accept,
        control,
        reader: FrameReader::default(),
    };
    guest.say(&AgentMessage::Ready);
    link.wait_ready(Some(LONG)).unwrap();
    assert_eq!(events.recv_timeout(LONG), Ok(LinkEvent::Ready));
    (link, guest, events)
}

type Accept = Box<dyn Fn(UnixStream) -> bool + Send>;

fn listening() -> (AgentLink, Accept, Receiver<LinkEvent>) {
    let (told, events) = channel();
    let (link, accept) = AgentLink::with_connections(KEY, move |event| {
        let _ = told.send(event);
    })
    .unwrap();
    (link, Box::new(accept), events)
}

fn open(accept: &Accept, purpose: Purpose, key: Key) -> UnixStream {
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    ours.write_all(&Hello { purpose, key }.encode()).unwrap();
    assert!(accept(theirs), "the connection is refused");
    ours.set_read_timeout(Some(LONG)).unwrap();
    ours
}

fn is_closed(stream: &mut UnixStream) -> bool {
    matches!(stream.read(&mut [0]), Ok(0) | Err(_))
}

impl Guest {
    fn say(&mut self, message: &AgentMessage) {
        self.control
            .write_all(&encode_frame(message).unwrap())
            .unwrap();
    }

    fn hear(&mut self) -> HostMessage {
        loop {
            // A byte at a time, so that none is left for the next one.
            let mut byte = [0];
            self.control.read_exact(&mut byte).unwrap();
            if let Some(message) = self.reader.next(&mut &byte[..]).unwrap() {
                return message;
            }
        }
    }

    fn hear_start(&mut self) -> Start {
        match self.hear() {
            HostMessage::Start(start) => start,
            other => panic!("{other:?}"),
        }
    }
}

fn command() -> ProcessSpec {
    ProcessSpec {
        program: Program::Command(vec![b"true".to_vec()]),
        env: Vec::new(),
        workdir: Vec::new(),
        user: String::new(),
        terminal: None,
        limits: Vec::new(),
        group: None,
    }
}

/// Starts a process on a thread of its own, for it waits for the guest.
fn start(link: &AgentLink, streams: Streams) -> thread::JoinHandle<Result<Process, StartError>> {
    let link = link.clone();
    thread::spawn(move || link.start(command(), streams))
}

/// A process without streams that runs.
fn running(link: &AgentLink, guest: &mut Guest) -> Process {
    let starting = start(link, Streams::default());
    let id = guest.hear_start().id;
    guest.say(&AgentMessage::Started { id, pid: 7 });
    starting.join().unwrap().unwrap()
}

#[test]
fn a_process_starts_with_its_streams_and_ends() {
    let (link, mut guest, _events) = connected();
    let starting = start(&link, Streams::ALL);
    let asked = guest.hear_start();
    assert_eq!(asked.process, command());
    let mut stdin = open(&guest.accept, Purpose::Stream, asked.stdin.unwrap());
    let mut stderr = open(&guest.accept, Purpose::Stream, asked.stderr.unwrap());
    guest.say(&AgentMessage::Started {
        id: asked.id,
        pid: 42,
    });
    // The last one is late.
    let mut stdout = open(&guest.accept, Purpose::Stream, asked.stdout.unwrap());
    stdout.write_all(b"out").unwrap();
    stderr.write_all(b"err").unwrap();
    drop((stdout, stderr));
    let process = starting.join().unwrap().unwrap();
    assert_eq!((process.id, process.pid), (asked.id, 42));
    process.stdin.unwrap().write_all(b"in").unwrap();

    let text = |mut stream: UnixStream| {
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        text
    };
    assert_eq!(text(process.stdout.unwrap()), "out");
    assert_eq!(text(process.stderr.unwrap()), "err");
    let mut given = String::new();
    stdin.read_to_string(&mut given).unwrap();
    assert_eq!(given, "in");

    let id = asked.id;
    assert_eq!(process.exit.0.try_recv(), Err(TryRecvError::Empty));
    guest.say(&AgentMessage::Exited {
        id,
        exit: Exit::Signal(9),
    });
    assert_eq!(process.exit.wait().unwrap(), Exit::Signal(9));
}

#[test]
fn a_process_that_ends_before_its_streams_are_here_still_has_them() {
    let (link, mut guest, _events) = connected();
    let starting = start(
        &link,
        Streams {
            stdout: true,
            ..Streams::default()
        },
    );
    let asked = guest.hear_start();
    let id = asked.id;
    assert!(asked.stdin.is_none() && asked.stderr.is_none());
    guest.say(&AgentMessage::Started { id, pid: 1 });
    let exit = Exit::Code(3);
    guest.say(&AgentMessage::Exited { id, exit });
    let _stdout = open(&guest.accept, Purpose::Stream, asked.stdout.unwrap());
    let process = starting.join().unwrap().unwrap();
    assert!(process.stdout.is_some());
    assert_eq!(process.exit.wait().unwrap(), exit);
    assert!(link.owner.shared.lock().processes.is_empty());
}

#[test]
fn a_terminal_has_no_standard_error() {
    let (link, mut guest, _events) = connected();
    let mut process = command();
    process.terminal = Some(WindowSize { rows: 1, cols: 2 });
    let asker = link.clone();
    let starting = thread::spawn(move || {
        let streams = Streams {
            stderr: true,
            ..Streams::default()
        };
        asker.start(process, streams)
    });
    let asked = guest.hear_start();
    assert_eq!(asked.stderr, None);
    let id = asked.id;
    guest.say(&AgentMessage::Started { id, pid: 1 });
    assert!(starting.join().unwrap().unwrap().stderr.is_none());
}

#[test]
fn a_process_that_can_not_be_started_is_told() {
    let (link, mut guest, _events) = connected();
    let starting = start(&link, Streams::ALL);
    let id = guest.hear_start().id;
    guest.say(&AgentMessage::Failed {
        id,
        status: 127,
        message: "not found".to_owned(),
    });
    match starting.join().unwrap() {
        Err(StartError::Refused { status, message }) => {
            assert_eq!((status, message.as_str()), (127, "not found"));
        }
        other => panic!("{other:?}"),
    }
    let state = link.owner.shared.lock();
    assert!(state.processes.is_empty() && state.keys.is_empty());
}

#[test]
fn signals_sizes_and_the_end_are_passed_on() {
    let (link, mut guest, _events) = connected();
    link.signal(5, 15).unwrap();
    assert_eq!(guest.hear(), HostMessage::Signal { id: 5, signal: 15 });
    let size = WindowSize { rows: 5, cols: 6 };
    link.resize(5, size).unwrap();
    assert_eq!(guest.hear(), HostMessage::Resize { id: 5, size });
    link.shutdown(9).unwrap();
    assert_eq!(guest.hear(), HostMessage::Shutdown { status: 9 });
}

#[test]
fn processes_are_listed_or_the_wait_ends() {
    let (link, mut guest, _events) = connected();
    let asker = link.clone();
    let asking = thread::spawn(move || asker.processes(LONG));
    let HostMessage::List { request } = guest.hear() else {
        panic!("something else was asked");
    };
    let info = ProcessInfo {
        pid: 1,
        parent: 0,
        uid: 0,
        state: b'S',
        cpu_ms: 0,
        rss_kib: 0,
        command: "init".to_owned(),
    };
    // Of these no more are wanted than there can be.
    guest.say(&AgentMessage::Processes {
        request,
        processes: vec![info.clone(); 5000],
    });
    let listed = asking.join().unwrap().unwrap();
    assert_eq!((listed.len(), &listed[0]), (4096, &info));
    assert!(matches!(
        link.processes(Duration::from_millis(1)),
        Err(LinkError::TimedOut)
    ));
    assert!(link.owner.shared.lock().lists.is_empty());
}

#[test]
fn what_nobody_asked_for_is_ignored() {
    let (link, mut guest, events) = connected();
    for id in 1000..3000 {
        guest.say(&AgentMessage::Started { id, pid: 1 });
        guest.say(&AgentMessage::Exited {
            id,
            exit: Exit::Code(0),
        });
        guest.say(&AgentMessage::Processes {
            request: id,
            processes: Vec::new(),
        });
        guest.say(&AgentMessage::Ready);
    }
    let process = running(&link, &mut guest);
    let id = process.id;
    // Neither does a second answer count, nor an end of one that was not started.
    guest.say(&AgentMessage::Failed {
        id,
        status: 1,
        message: String::new(),
    });
    let starting = start(&link, Streams::default());
    let other = guest.hear_start().id;
    guest.say(&AgentMessage::Exited {
        id: other,
        exit: Exit::Code(0),
    });
    guest.say(&AgentMessage::Started { id: other, pid: 8 });
    assert_eq!(starting.join().unwrap().unwrap().pid, 8);
    guest.say(&AgentMessage::Exited {
        id,
        exit: Exit::Code(4),
    });
    assert_eq!(process.exit.wait().unwrap(), Exit::Code(4));
    assert!(events.try_recv().is_err(), "ready is told once");
}

#[test]
fn only_the_first_connection_with_the_key_is_the_agent() {
    let (link, accept, _events) = listening();
    assert!(is_closed(&mut open(
        &accept,
        Purpose::Control,
        Key([2; 16])
    )));
    let control = open(&accept, Purpose::Control, KEY);
    assert!(is_closed(&mut open(&accept, Purpose::Control, KEY)));
    let mut guest = Guest {
        accept,
        control,
        reader: FrameReader::default(),
    };
    guest.say(&AgentMessage::Ready);
    link.wait_ready(Some(LONG)).unwrap();
    // A stream that nobody has asked for.
    assert!(is_closed(&mut open(&guest.accept, Purpose::Stream, KEY)));
    running(&link, &mut guest);
}

#[test]
fn a_stream_is_taken_once() {
    let (link, mut guest, _events) = connected();
    let starting = start(
        &link,
        Streams {
            stdin: true,
            ..Streams::default()
        },
    );
    let asked = guest.hear_start();
    let key = asked.stdin.unwrap();
    let _first = open(&guest.accept, Purpose::Stream, key);
    assert!(is_closed(&mut open(&guest.accept, Purpose::Stream, key)));
    let id = asked.id;
    guest.say(&AgentMessage::Started { id, pid: 1 });
    assert!(starting.join().unwrap().unwrap().stdin.is_some());
}

#[test]
fn a_malformed_frame_ends_the_link() {
    let frames: [Vec<u8>; 2] = [
        u32::try_from(MAX_FRAME + 1).unwrap().to_le_bytes().to_vec(),
        vec![1, 0, 0, 0, 0xff],
    ];
    for frame in frames {
        let (link, mut guest, events) = connected();
        let process = running(&link, &mut guest);
        let starting = start(&link, Streams::ALL);
        guest.hear_start();
        guest.control.write_all(&frame).unwrap();
        assert_eq!(events.recv_timeout(LONG), Ok(LinkEvent::Gone));
        assert!(matches!(starting.join().unwrap(), Err(StartError::Gone)));
        assert!(matches!(process.exit.wait(), Err(LinkError::Gone)));
        assert!(is_closed(&mut guest.control));
        assert!(events.try_recv().is_err(), "the end is told once");
    }
}

#[test]
fn a_guest_that_ends_is_gone_for_all_who_wait() {
    let (link, mut guest, events) = connected();
    let process = running(&link, &mut guest);
    let asker = link.clone();
    let asking = thread::spawn(move || asker.processes(LONG));
    guest.hear();
    drop(guest);
    assert!(matches!(process.exit.wait(), Err(LinkError::Gone)));
    assert!(matches!(asking.join().unwrap(), Err(LinkError::Gone)));
    assert_eq!(events.recv_timeout(LONG), Ok(LinkEvent::Gone));
    assert!(matches!(link.signal(1, 1), Err(LinkError::Gone)));
    assert!(matches!(link.wait_ready(None), Err(LinkError::Gone)));
}

#[test]
fn whoever_waits_for_a_guest_that_never_comes_learns_of_its_end() {
    let (link, accept, _events) = listening();
    assert!(matches!(
        link.wait_ready(Some(Duration::ZERO)),
        Err(LinkError::TimedOut)
    ));
    let waiting = start(&link, Streams::ALL);
    link.gone();
    assert!(matches!(waiting.join().unwrap(), Err(StartError::Gone)));
    let (_ours, theirs) = UnixStream::pair().unwrap();
    assert!(!accept(theirs), "nobody is there for a connection");
}

#[test]
fn an_agent_that_does_not_read_is_gone() {
    let (link, _guest, events) = connected();
    let mut large = command();
    large.env = vec![vec![b'x'; MAX_FRAME / 2]];
    for _ in 0..4 {
        let (link, large) = (link.clone(), large.clone());
        thread::spawn(move || link.start(large, Streams::default()));
    }
    assert_eq!(events.recv_timeout(LONG), Ok(LinkEvent::Gone));
}

#[test]
fn a_process_that_is_too_long_to_tell_is_refused() {
    let (link, mut guest, _events) = connected();
    let mut large = command();
    large.env = vec![vec![b'x'; MAX_FRAME]];
    let refused = link.start(large, Streams::ALL);
    assert!(matches!(
        refused,
        Err(StartError::Link(LinkError::Message(_)))
    ));
    assert!(link.owner.shared.lock().keys.is_empty());
    running(&link, &mut guest);
}

#[test]
fn more_processes_than_there_can_be_are_refused() {
    let (link, mut guest, _events) = connected();
    let _running: Vec<_> = (0..MAX_PROCESSES)
        .map(|_| running(&link, &mut guest))
        .collect();
    assert!(matches!(
        link.start(command(), Streams::ALL),
        Err(StartError::TooMany)
    ));
}

#[test]
fn connections_that_say_nothing_are_closed() {
    let (link, mut guest, _events) = connected();
    let mut silent: Vec<UnixStream> = (0..2 * worker::MAX_UNKNOWN)
        .map(|_| {
            let (ours, theirs) = UnixStream::pair().unwrap();
            assert!((guest.accept)(theirs));
            ours.set_read_timeout(Some(LONG)).unwrap();
            ours
        })
        .collect();
    running(&link, &mut guest);
    assert!(silent.iter_mut().all(is_closed));
    running(&link, &mut guest);
}

#[test]
fn the_last_owner_closes_the_connection() {
    let (link, mut guest, events) = connected();
    drop(link.clone());
    link.signal(1, 1).unwrap();
    guest.hear();
    drop(link);
    assert!(is_closed(&mut guest.control));
    assert_eq!(events.recv_timeout(LONG), Ok(LinkEvent::Gone));
}

#[test]
fn an_agent_that_reads_bit_by_bit_is_gone() {
    let (link, mut guest, _events) = connected();
    let (stop, stopped) = channel::<()>();
    let reader = thread::spawn(move || {
        let mut some = [0; 16 << 10];
        // Much slower than all of it would have to go, and never still for long.
        while stopped.recv_timeout(Duration::from_millis(20)).is_err() {
            if matches!(guest.control.read(&mut some), Ok(0) | Err(_)) {
                return;
            }
        }
    });
    let process = ProcessSpec {
        env: vec![vec![b'x'; MAX_FRAME - 1000]],
        ..command()
    };
    let started = link.start(process, Streams::default());
    assert!(matches!(started, Err(StartError::Gone)), "{started:?}");
    let _ = stop.send(());
    reader.join().unwrap();
}

#[test]
fn what_an_agent_says_is_made_fit_for_people() {
    let (link, mut guest, _events) = connected();
    let lister = link.clone();
    let listing = thread::spawn(move || lister.processes(LONG));
    let HostMessage::List { request } = guest.hear() else {
        panic!("not a list");
    };
    let process = ProcessInfo {
        pid: 1,
        parent: 0,
        uid: 0,
        state: 0x1b,
        cpu_ms: 0,
        rss_kib: 0,
        command: format!("\x1b[2J{}", "\u{e9}".repeat(1000)),
    };
    guest.say(&AgentMessage::Processes {
        request,
        processes: vec![process],
    });
    let listed = listing.join().unwrap().unwrap();
    assert_eq!(listed[0].state, b'?');
    assert!(listed[0].command.starts_with("[2J"));
    assert!(listed[0].command.len() <= 256);

    let starting = start(&link, Streams::default());
    let id = guest.hear_start().id;
    guest.say(&AgentMessage::Failed {
        id,
        status: 126,
        message: "x".repeat(1 << 17),
    });
    match starting.join().unwrap() {
        Err(StartError::Refused { message, .. }) => assert_eq!(message.len(), 4096),
        other => panic!("{other:?}"),
    }
}
