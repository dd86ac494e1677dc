//! Frames: a length (`u32`, little-endian) and so many bytes. File descriptors ride beside them.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use serde::Serialize;
use thiserror::Error;

use super::protocol::MAX_FRAME;

/// The most descriptors that ride beside a frame: a process's standard streams.
pub const MAX_FDS: usize = 3;

/// Read at a time, so that memory is taken for what comes and not for what is announced.
const PIECE: usize = 16 << 10;

/// Why there is no frame.
#[derive(Debug, Error)]
pub enum FrameError {
    /// The socket failed.
    #[error("the connection failed")]
    Io(#[from] io::Error),
    /// It announces more than there can be.
    #[error("a frame of {0} bytes is longer than {MAX_FRAME}")]
    TooLong(usize),
    /// The other side left in the middle.
    #[error("the connection ended in the middle of a frame")]
    Truncated,
    /// The other side takes its time.
    #[error("the other side did not answer in time")]
    TimedOut,
}

/// Sends `message`, and `fds` with it.
///
/// # Errors
/// If the other side is gone, does not read within the socket's time limit, or `message` is too
/// long.
pub fn send(
    stream: &UnixStream,
    message: &impl Serialize,
    fds: &[BorrowedFd<'_>],
) -> Result<(), FrameError> {
    let mut bytes = vec![0; 4];
    serde_json::to_writer(&mut bytes, message).map_err(io::Error::from)?;
    let len = bytes.len() - 4;
    if len > MAX_FRAME {
        return Err(FrameError::TooLong(len));
    }
    bytes[..4].copy_from_slice(&u32::try_from(len).unwrap_or(u32::MAX).to_le_bytes());

    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() {
        control.push(SendAncillaryMessage::ScmRights(fds));
    }
    let mut sent = 0;
    while sent < bytes.len() {
        let rest = [IoSlice::new(&bytes[sent..])];
        match sendmsg(stream, &rest, &mut control, SendFlags::NOSIGNAL) {
            Ok(count) => {
                sent += count;
                control.clear();
            }
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => return Err(FrameError::TimedOut),
            Err(error) => return Err(io::Error::from(error).into()),
        }
    }
    Ok(())
}

/// Receives a frame's bytes; None if the other side has left before it. `patience` is for the
/// frame to begin, without one there is no limit; once begun, it has `pace` to be complete.
///
/// # Errors
/// If the frame is too long, not complete, or late.
pub fn receive(
    stream: &UnixStream,
    patience: Option<Duration>,
    pace: Duration,
    fds: &mut Vec<OwnedFd>,
) -> Result<Option<Vec<u8>>, FrameError> {
    let mut receiver = Receiver {
        stream,
        deadline: patience.map(|time| Instant::now() + time),
        fds,
    };
    let mut header = [0; 4];
    let first = receiver.some(&mut header)?;
    if first == 0 {
        return Ok(None);
    }
    receiver.deadline = Some(Instant::now() + pace);
    receiver.all(&mut header[first..])?;
    let len = u32::from_le_bytes(header) as usize;
    if len > MAX_FRAME {
        return Err(FrameError::TooLong(len));
    }
    let mut body = Vec::new();
    while body.len() < len {
        let have = body.len();
        body.resize(len.min(have + PIECE), 0);
        receiver.all(&mut body[have..])?;
    }
    Ok(Some(body))
}

struct Receiver<'a> {
    stream: &'a UnixStream,
    deadline: Option<Instant>,
    fds: &'a mut Vec<OwnedFd>,
}

impl Receiver<'_> {
    fn all(&mut self, mut buffer: &mut [u8]) -> Result<(), FrameError> {
        while !buffer.is_empty() {
            match self.some(buffer)? {
                0 => return Err(FrameError::Truncated),
                count => buffer = &mut buffer[count..],
            }
        }
        Ok(())
    }

    /// Some bytes; 0 at the end.
    fn some(&mut self, buffer: &mut [u8]) -> Result<usize, FrameError> {
        const FLAGS: RecvFlags = RecvFlags::DONTWAIT.union(RecvFlags::CMSG_CLOEXEC);
        loop {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
            let mut control = RecvAncillaryBuffer::new(&mut space);
            let mut into = [IoSliceMut::new(buffer)];
            match recvmsg(self.stream, &mut into, &mut control, FLAGS) {
                Ok(message) => {
                    for message in control.drain() {
                        if let RecvAncillaryMessage::ScmRights(fds) = message {
                            // Those that nobody waits for are closed.
                            let room = MAX_FDS.saturating_sub(self.fds.len());
                            self.fds.extend(fds.take(room));
                        }
                    }
                    return Ok(message.bytes);
                }
                Err(Errno::AGAIN) => self.wait()?,
                Err(Errno::INTR) => {}
                // It left without reading all that we said.
                Err(Errno::CONNRESET) => return Ok(0),
                Err(error) => return Err(io::Error::from(error).into()),
            }
        }
    }

    fn wait(&self) -> Result<(), FrameError> {
        let left = match self.deadline {
            None => None,
            Some(deadline) => {
                let left = deadline.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    return Err(FrameError::TimedOut);
                }
                Timespec::try_from(left).ok()
            }
        };
        let mut fds = [PollFd::new(self.stream, PollFlags::IN)];
        match poll(&mut fds, left.as_ref()) {
            Ok(0) => Err(FrameError::TimedOut),
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(error) => Err(io::Error::from(error).into()),
        }
    }
}
