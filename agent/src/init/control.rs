//! The control connection: frames from the host, and frames to it.

use alloc::vec::Vec;

use casita_agent::wire::{
    AgentMessage, FrameReader, Hello, HostMessage, Key, Purpose, encode_frame,
};
use rustix::buffer::spare_capacity;
use rustix::fd::OwnedFd;
use rustix::io::{Errno, read, write};

use crate::failure::{Doing, Failure};
use crate::vsock;

/// Bytes that wait for the host from which on nothing more is taken from it: whatever it asks for
/// would add to them.
const MOST_WAITING: usize = 1 << 20;
/// Bytes that are read at once.
const CHUNK: usize = 16 << 10;

pub(crate) struct Control {
    socket: OwnedFd,
    reader: FrameReader,
    /// Bytes from the host; those before `taken` are used.
    input: Vec<u8>,
    taken: usize,
    /// Frames for the host; the bytes before `sent` are on their way.
    output: Vec<u8>,
    sent: usize,
}

impl Control {
    /// Connects to the host and shows it the key.
    pub(crate) fn connect(key: Key) -> Result<Self, Failure> {
        let socket = vsock::connect()?;
        let hello = Hello {
            purpose: Purpose::Control,
            key,
        };
        let mut control = Control {
            socket,
            reader: FrameReader::default(),
            input: Vec::with_capacity(CHUNK),
            taken: 0,
            output: hello.encode().to_vec(),
            sent: 0,
        };
        control.send(&AgentMessage::Ready);
        control.flush()?;
        Ok(control)
    }

    pub(crate) fn socket(&self) -> &OwnedFd {
        &self.socket
    }

    /// Tells the host something, when it takes it.
    pub(crate) fn send(&mut self, message: &AgentMessage) {
        // No message that the agent makes is too long for a frame.
        if let Ok(frame) = encode_frame(message) {
            self.send_frame(&frame);
        }
    }

    pub(crate) fn send_frame(&mut self, frame: &[u8]) {
        self.output.extend_from_slice(frame);
    }

    /// Whether all that was sent is on its way.
    pub(crate) fn is_flushed(&self) -> bool {
        self.output.is_empty()
    }

    /// Whether so much waits for the host that nothing more is taken from it.
    pub(crate) fn is_full(&self) -> bool {
        self.output.len() - self.sent >= MOST_WAITING
    }

    /// Sends what the host takes now.
    pub(crate) fn flush(&mut self) -> Result<(), Failure> {
        while let Some(rest @ [_, ..]) = self.output.get(self.sent..) {
            match write(&self.socket, rest) {
                Ok(count) => self.sent += count,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Ok(()),
                Err(errno) => return Err(errno).doing(lost),
            }
        }
        self.output = Vec::new();
        self.sent = 0;
        Ok(())
    }

    /// The next message of the host's, if it has sent one.
    pub(crate) fn receive(&mut self) -> Result<Option<HostMessage>, Failure> {
        loop {
            let mut bytes = self.input.get(self.taken..).unwrap_or_default();
            let message = self.reader.next(&mut bytes);
            self.taken = self.input.len() - bytes.len();
            let message =
                message.map_err(|error| Failure::new(format_args!("the host sent a {error}")))?;
            if message.is_some() {
                return Ok(message);
            }
            self.input.clear();
            self.taken = 0;
            match read(&self.socket, spare_capacity(&mut self.input)) {
                Ok(0) => return Err(Failure::new(lost())),
                Ok(_) | Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Ok(None),
                Err(errno) => return Err(errno).doing(lost),
            }
        }
    }
}

fn lost() -> &'static str {
    "the connection to the host is lost"
}
