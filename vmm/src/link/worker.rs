//! The link's thread: it learns who the guest's connections are, and reads what the agent says.

use std::collections::VecDeque;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use casita_agent::wire::{AgentMessage, FrameReader, HELLO_LEN, Hello, Purpose};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{Errno, read};
use rustix::net::{RecvFlags, recv};

use super::state::{Phase, Shared};

/// How long a connection has to say what it is.
const HELLO_TIMEOUT: Duration = patience(10);
/// How long the agent has to take a frame. Its loop never waits for anything else than for us.
pub(super) const SEND_TIMEOUT: Duration = patience(20);
/// Connections that have not said who they are. A guest that opens more loses the oldest.
pub(super) const MAX_UNKNOWN: usize = 256;
/// Bytes that are read at once.
const CHUNK: usize = 64 << 10;

/// Tests have less of it.
const fn patience(seconds: u64) -> Duration {
    if cfg!(test) {
        Duration::from_millis(300)
    } else {
        Duration::from_secs(seconds)
    }
}

/// A connection that has not said yet what it is.
struct Unknown {
    stream: UnixStream,
    hello: Vec<u8>,
    deadline: Instant,
}

/// Whether a connection goes on.
enum Heard {
    Nothing,
    Hello(Hello),
    End,
}

impl Unknown {
    fn new(stream: UnixStream) -> Self {
        Self {
            stream,
            hello: Vec::with_capacity(HELLO_LEN),
            deadline: Instant::now() + HELLO_TIMEOUT,
        }
    }

    /// Reads the hello and not a byte more.
    fn read(&mut self) -> Heard {
        loop {
            let mut bytes = [0; HELLO_LEN];
            let missing = &mut bytes[self.hello.len()..];
            match recv(&self.stream, missing, RecvFlags::DONTWAIT) {
                Ok((_, 0)) => return Heard::End,
                Ok((_, count)) => {
                    let start = self.hello.len();
                    self.hello.extend_from_slice(&bytes[start..start + count]);
                }
                Err(Errno::INTR) => continue,
                Err(Errno::AGAIN) => return Heard::Nothing,
                Err(_) => return Heard::End,
            }
            if let Some(hello) = self.hello.first_chunk() {
                return match Hello::decode(hello) {
                    Ok(hello) => Heard::Hello(hello),
                    Err(error) => {
                        // Any program in the guest can do this.
                        log::debug!("a connection to the agent's port was refused: {error}");
                        Heard::End
                    }
                };
            }
        }
    }
}

/// The control connection.
struct Control {
    stream: Arc<UnixStream>,
    reader: FrameReader,
}

pub(super) struct Worker {
    shared: Arc<Shared>,
    unknown: VecDeque<Unknown>,
    control: Option<Control>,
}

impl Worker {
    pub fn new(shared: Arc<Shared>) -> Self {
        Self {
            shared,
            unknown: VecDeque::new(),
            control: None,
        }
    }

    /// Works until the link ends.
    pub fn run(mut self) {
        let mut bytes = vec![0; CHUNK];
        while self.take_arrived() {
            self.wait();
            self.greet();
            if !self.listen(&mut bytes) {
                break;
            }
        }
        self.shared.end();
    }

    /// Takes new connections over. False if the link has ended.
    fn take_arrived(&mut self) -> bool {
        // An error means that there was no signal.
        let _ = read(&self.shared.wake, &mut [0; 8]);
        let mut state = self.shared.lock();
        let arrived = state.arrived.drain(..).map(Unknown::new);
        self.unknown.extend(arrived);
        let goes_on = state.phase != Phase::Gone;
        drop(state);
        let excess = self.unknown.len().saturating_sub(MAX_UNKNOWN);
        self.unknown.drain(..excess);
        goes_on
    }

    /// Waits until there is something to do.
    fn wait(&self) {
        let mut fds = vec![PollFd::new(&self.shared.wake, PollFlags::IN)];
        let control = self.control.iter().map(|control| control.stream.as_fd());
        let unknown = self.unknown.iter().map(|unknown| unknown.stream.as_fd());
        let streams = control.chain(unknown);
        fds.extend(streams.map(|stream| PollFd::from_borrowed_fd(stream, PollFlags::IN)));
        // They are in the order in which they came.
        let timeout = self.unknown.front().map(|oldest| {
            let left = oldest.deadline.saturating_duration_since(Instant::now());
            Timespec {
                tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
                tv_nsec: i64::from(left.subsec_nanos()),
            }
        });
        if let Err(error) = poll(&mut fds, timeout.as_ref())
            && error != Errno::INTR
        {
            log::error!("the guest's agent can't be waited for: {error}");
            self.shared.end();
        }
    }

    /// Learns what new connections are.
    fn greet(&mut self) {
        let now = Instant::now();
        for mut unknown in std::mem::take(&mut self.unknown) {
            match unknown.read() {
                Heard::Nothing if unknown.deadline > now => self.unknown.push_back(unknown),
                Heard::Hello(hello) => match hello.purpose {
                    Purpose::Control => self.connect(&hello, unknown.stream),
                    Purpose::Stream => self.shared.take_stream(hello.key, unknown.stream),
                },
                Heard::Nothing | Heard::End => {}
            }
        }
    }

    /// The first connection with the right key is the agent's.
    fn connect(&mut self, hello: &Hello, stream: UnixStream) {
        if hello.key != self.shared.key || self.control.is_some() {
            log::debug!("a connection to the agent's port was refused: it is not the agent's");
            return;
        }
        let stream = Arc::new(stream);
        self.shared.connected(Arc::clone(&stream));
        self.control = Some(Control {
            stream,
            reader: FrameReader::default(),
        });
    }

    /// Reads what the agent says. False if it says nothing more.
    fn listen(&mut self, bytes: &mut [u8]) -> bool {
        let Some(control) = &mut self.control else {
            return true;
        };
        let count = match recv(&control.stream, &mut *bytes, RecvFlags::DONTWAIT) {
            Ok((_, 0)) => return false,
            Ok((_, count)) => count,
            Err(Errno::AGAIN | Errno::INTR) => return true,
            Err(error) => {
                log::debug!("the guest's agent is gone: {error}");
                return false;
            }
        };
        let mut rest = &bytes[..count];
        loop {
            match control.reader.next::<AgentMessage>(&mut rest) {
                Ok(Some(message)) => self.shared.take(message),
                Ok(None) => return true,
                Err(error) => {
                    log::warn!("the guest's agent sent a {error}; it is not heard any more");
                    return false;
                }
            }
        }
    }
}
