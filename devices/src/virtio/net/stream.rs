//! Frames over a Unix stream socket, each behind its length in four bytes (big-endian): the protocol of
//! passt, and of QEMU's `-netdev stream`.
//!
//! There is no place for a header in it. passt never looks at the checksums of TCP and UDP that the guest
//! sends, and takes a segment of any length that IP has; it computes the checksums of what it sends, and the
//! socket does not lose bits. So the guest may leave both checksums and segmentation to it, and need not
//! check what it receives.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;

use super::backend::{Abilities, Backend, Frame, Landing, MIN_FRAME_LEN, Offloads, Received, Sent};
use super::header::{Checksum, VnetHeader};
use super::pieces::{Pieces, PiecesMut};
use super::vector::{Kind, Vector};

/// Bytes of the length before a frame.
const LENGTH_LEN: usize = 4;
/// The longest frame that passt takes.
const MAX_LEN: usize = 65_535;
/// A frame that is announced as longer than this is no frame: the stream is out of step.
const MAX_SKIPPED: usize = 1 << 20;
/// So much is read beyond a frame's end: many small frames come by one call, and of a large one no more
/// than this is copied.
const AHEAD_LEN: usize = 2048;

/// The socket.
pub struct Stream {
    socket: UnixStream,
    abilities: Abilities,
    vector: Vector,
    /// The end of a frame that the socket took the first part of.
    unsent: Vec<u8>,
    /// Bytes that were read beyond the end of a frame: `ahead[ahead_start..ahead_end]`.
    ahead: Box<[u8; AHEAD_LEN]>,
    ahead_start: usize,
    ahead_end: usize,
    partial: Partial,
    /// What is said of each frame that is received.
    received: VnetHeader,
}

/// A frame of which only a part has come.
#[derive(Debug, Default)]
enum Partial {
    #[default]
    None,
    /// One that has no room, of which so many bytes are still to come.
    Skipped(usize),
    /// One of `len` bytes, and those that there are.
    Begun { len: usize, bytes: Vec<u8> },
}

/// Why no frame was received.
enum Stop {
    Nothing,
    Dropped,
    Closed(io::Error),
}

impl From<io::Error> for Stop {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::WouldBlock => Self::Nothing,
            _ => Self::Closed(error),
        }
    }
}

impl Stream {
    /// A connection to passt, or to something that is as lenient with checksums.
    ///
    /// # Errors
    /// The socket cannot be made non-blocking.
    pub fn new(socket: UnixStream) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        let segments = Offloads::TSO4 | Offloads::TSO6 | Offloads::ECN;
        Ok(Self {
            socket,
            abilities: Abilities {
                from_guest: Offloads::CHECKSUM | segments,
                to_guest: Offloads::CHECKSUM,
            },
            vector: Vector::default(),
            unsent: Vec::new(),
            ahead: Box::new([0; AHEAD_LEN]),
            ahead_start: 0,
            ahead_end: 0,
            partial: Partial::None,
            received: VnetHeader::default(),
        })
    }

    fn ahead(&self) -> &[u8] {
        let ahead = self.ahead.get(self.ahead_start..self.ahead_end);
        ahead.unwrap_or_default()
    }

    fn take_ahead(&mut self, count: usize) {
        self.ahead_start += count;
        if self.ahead_start >= self.ahead_end {
            (self.ahead_start, self.ahead_end) = (0, 0);
        }
    }

    /// The length of the frame that comes next, if that was read already.
    fn next_len(&self) -> Option<usize> {
        let length = self.ahead().first_chunk::<LENGTH_LEN>()?;
        Some(u32::from_be_bytes(*length) as usize)
    }

    /// Reads the length of the next frame, and what comes with it.
    fn read_length(&mut self) -> Result<usize, Stop> {
        loop {
            if let Some(len) = self.next_len() {
                return Ok(len);
            }
            self.ahead.copy_within(self.ahead_start..self.ahead_end, 0);
            (self.ahead_start, self.ahead_end) = (0, self.ahead_end - self.ahead_start);
            let room = self.ahead.get_mut(self.ahead_end..).unwrap_or_default();
            let mut nowhere = Landing::new(&mut [], PiecesMut::of_bytes(&mut []));
            let place = (&mut nowhere, 0, 0);
            let socket = self.socket.as_fd();
            let count = self
                .vector
                .read(socket, Kind::Socket, &mut [], place, room)?;
            self.ahead_end += some(count)?;
        }
    }

    /// Reads from the socket the bytes `from..len` of a frame into `landing`, and what follows it ahead.
    /// Returns how many bytes of the frame there are.
    fn read_frame(
        &mut self,
        landing: &mut Landing<'_>,
        from: usize,
        len: usize,
    ) -> Result<usize, Stop> {
        let ahead = self.ahead.as_mut_slice();
        let place = (landing, from, len);
        let socket = self.socket.as_fd();
        let read = self
            .vector
            .read(socket, Kind::Socket, &mut [], place, ahead);
        let there = from + some(read?)?;
        (self.ahead_start, self.ahead_end) = (0, there.saturating_sub(len));
        Ok(there.min(len))
    }

    fn try_receive(&mut self, landing: &mut Landing<'_>) -> Result<usize, Stop> {
        match std::mem::take(&mut self.partial) {
            Partial::None => {}
            Partial::Skipped(left) => return self.skip(left),
            Partial::Begun { len, bytes } => return self.go_on(landing, len, bytes),
        }
        let len = self.read_length()?;
        if len > MAX_SKIPPED {
            let what = format!("a frame of {len} bytes was announced");
            return Err(Stop::Closed(io::Error::other(what)));
        }
        self.take_ahead(LENGTH_LEN);
        if len > landing.capacity() || len < MIN_FRAME_LEN as usize {
            return self.skip(len);
        }
        let there = self.ahead().len().min(len);
        landing.place(self.ahead().get(..there).unwrap_or_default());
        self.take_ahead(there);
        if there == len {
            return Ok(len);
        }
        let there = match self.read_frame(landing, there, len) {
            Ok(there) if there == len => return Ok(len),
            Ok(there) => there,
            Err(Stop::Nothing) => there,
            Err(stop) => return Err(stop),
        };
        // The landing is another one when the rest comes.
        let bytes = landing.to_vec(there);
        self.partial = Partial::Begun { len, bytes };
        Err(Stop::Nothing)
    }

    /// Goes on with a frame of which there are `bytes`.
    fn go_on(
        &mut self,
        landing: &mut Landing<'_>,
        len: usize,
        mut bytes: Vec<u8>,
    ) -> Result<usize, Stop> {
        let there = bytes.len();
        bytes.resize(len, 0);
        let mut rest = Landing::new(&mut [], PiecesMut::of_bytes(&mut bytes));
        let (there, stop) = match self.read_frame(&mut rest, there, len) {
            Ok(there) => (there, Stop::Nothing),
            Err(stop) => (there, stop),
        };
        if there < len {
            bytes.truncate(there);
            self.partial = Partial::Begun { len, bytes };
            return Err(stop);
        }
        if landing.place(&bytes) {
            Ok(len)
        } else {
            Err(Stop::Dropped)
        }
    }

    /// Throws `left` bytes away.
    fn skip(&mut self, mut left: usize) -> Result<usize, Stop> {
        loop {
            let here = self.ahead().len().min(left);
            self.take_ahead(here);
            left -= here;
            if left == 0 {
                return Err(Stop::Dropped);
            }
            // Nothing is ahead any more: there is room for what is thrown away.
            self.partial = Partial::Skipped(left);
            let mut nowhere = Landing::new(&mut [], PiecesMut::of_bytes(&mut []));
            self.read_frame(&mut nowhere, 0, 0)?;
            self.partial = Partial::None;
        }
    }

    /// Keeps what is behind the first `sent` bytes of a frame, to send it later.
    fn keep(&mut self, length: &[u8], frame: &Frame<'_>, sent: usize) {
        self.unsent.clear();
        self.unsent.extend_from_slice(length);
        self.unsent.extend_from_slice(frame.head);
        let start = self.unsent.len();
        self.unsent.resize(start + frame.rest.len(), 0);
        let rest = self.unsent.get_mut(start..).unwrap_or_default();
        frame.rest.copy_to(rest);
        self.unsent.drain(..sent.min(self.unsent.len()));
    }

    fn send_unsent(&mut self) -> Sent {
        while !self.unsent.is_empty() {
            let rest = Frame {
                header: VnetHeader::default(),
                head: &self.unsent,
                rest: Pieces::of_bytes(&[]),
            };
            let socket = self.socket.as_fd();
            match self.vector.write(socket, Kind::Socket, &[], &rest) {
                Ok(sent) => drop(self.unsent.drain(..sent)),
                Err(error) => return failed(error),
            }
        }
        Sent::Done
    }
}

/// A count of bytes that were read, of which none means the end.
fn some(count: usize) -> io::Result<usize> {
    match count {
        0 => Err(io::ErrorKind::UnexpectedEof.into()),
        count => Ok(count),
    }
}

fn failed(error: io::Error) -> Sent {
    match error.kind() {
        io::ErrorKind::WouldBlock => Sent::Full,
        io::ErrorKind::ArgumentListTooLong => Sent::Dropped,
        _ => match error.raw_os_error() {
            Some(libc::ENOBUFS | libc::ENOMEM) => Sent::Dropped,
            _ => Sent::Closed(error),
        },
    }
}

impl Backend for Stream {
    fn fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    fn has_waiting(&self) -> bool {
        let next = self.next_len();
        next.is_some_and(|len| self.ahead().len() >= LENGTH_LEN + len)
    }

    fn abilities(&self) -> Abilities {
        self.abilities
    }

    fn set_offloads(&mut self, to_guest: Offloads) -> io::Result<()> {
        self.received = VnetHeader {
            checksum: if to_guest.contains(Offloads::CHECKSUM) {
                Checksum::Valid
            } else {
                Checksum::Unknown
            },
            ..VnetHeader::default()
        };
        Ok(())
    }

    fn send(&mut self, frame: &Frame<'_>) -> Sent {
        let len = frame.len();
        if len > MAX_LEN {
            return Sent::Dropped;
        }
        match self.send_unsent() {
            Sent::Done => {}
            other => return other,
        }
        let length = (len as u32).to_be_bytes();
        let socket = self.socket.as_fd();
        match self.vector.write(socket, Kind::Socket, &length, frame) {
            Ok(sent) if sent < LENGTH_LEN + len => {
                self.keep(&length, frame, sent);
                Sent::Done
            }
            Ok(_) => Sent::Done,
            Err(error) => failed(error),
        }
    }

    fn flush(&mut self) -> Sent {
        self.send_unsent()
    }

    fn receive(&mut self, landing: &mut Landing<'_>) -> Received {
        let header = self.received;
        match self.try_receive(landing) {
            Ok(len) => Received::Frame { header, len },
            Err(Stop::Nothing) => Received::Nothing,
            Err(Stop::Dropped) => Received::Dropped,
            Err(Stop::Closed(error)) => Received::Closed(error),
        }
    }
}

#[cfg(test)]
mod tests;
