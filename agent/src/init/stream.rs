//! One standard stream of a process: a connection to the host on one side, a pipe's end or a
//! terminal on the other.
//!
//! Both files are watched for changes (`EPOLLET`), so whatever happens, the stream has a turn and
//! goes on until one of the two has no more, or takes no more. Between them is nothing but the
//! pipe: a reader that is slow stops its writer.

use alloc::vec::Vec;

use casita_agent::wire::{HELLO_LEN, Hello, Key, Purpose};
use rustix::buffer::spare_capacity;
use rustix::event::epoll::EventFlags;
use rustix::fd::OwnedFd;
use rustix::io::{Errno, ioctl_fionread, read, write};
use rustix::net::{SendFlags, Shutdown, send, shutdown, sockopt::socket_error};
use rustix::pipe::{SpliceFlags, splice};
use rustix::termios::{LocalModes, SpecialCodeIndex, tcgetattr};

use crate::slots::Side;

/// Pieces that a stream moves before others have their turn, and the bytes of one. Half a pipe lets
/// both sides work: all that there is at once cost 4 % more.
const PIECES: u32 = 16;
const PIECE: usize = 32 << 10;
/// Bytes that are moved at once where the kernel does not move them itself.
const COPY: usize = 16 << 10;

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Direction {
    /// Standard input.
    In,
    /// Standard output or error.
    Out,
}

/// Whether a stream can go on at once.
#[derive(PartialEq, Eq)]
pub(crate) enum Turn {
    /// It waits for an event.
    Wait,
    /// It has been moving bytes for long enough.
    Again,
}

/// Why moving bytes has come to an end.
enum End {
    /// There will be none from where they come.
    Source,
    /// So many were to be moved.
    Limit,
    /// Nobody takes them.
    Sink,
}

#[allow(
    clippy::struct_excessive_bools,
    reason = "each is about something else"
)]
pub(crate) struct Stream {
    /// The host's number of the process.
    pub(crate) process: u32,
    pub(crate) direction: Direction,
    socket: Option<OwnedFd>,
    local: Option<OwnedFd>,
    is_terminal: bool,
    /// The hello that is still to be sent.
    hello: Option<[u8; HELLO_LEN]>,
    /// Nothing is moved any more: the host may still read what was, the process may still write.
    is_carried: bool,
    /// What the process had written when it ended, in bytes, and nobody has carried yet.
    left: Option<u64>,
    /// The host has closed the connection, or one direction of it.
    hung_up: bool,
    /// Bytes on their way, where the kernel does not move them itself.
    copy: Option<Copy>,
    /// The last byte that went to a terminal.
    last: u8,
    /// It is in the list of those that can go on.
    pub(crate) is_queued: bool,
    /// Its process knows that it is carried.
    pub(crate) is_counted: bool,
}

#[derive(Default)]
struct Copy {
    bytes: Vec<u8>,
    taken: usize,
}

impl Stream {
    pub(crate) fn new(
        process: u32,
        direction: Direction,
        key: Key,
        socket: OwnedFd,
        local: OwnedFd,
        is_terminal: bool,
    ) -> Self {
        let hello = Hello {
            purpose: Purpose::Stream,
            key,
        };
        Stream {
            process,
            direction,
            socket: Some(socket),
            local: Some(local),
            is_terminal,
            hello: Some(hello.encode()),
            is_carried: false,
            left: None,
            hung_up: false,
            // A terminal is no pipe.
            copy: is_terminal.then(Copy::default),
            last: b'\n',
            is_queued: false,
            is_counted: false,
        }
    }

    pub(crate) fn files(&self) -> [(Side, Option<&OwnedFd>); 2] {
        [
            (Side::Socket, self.socket.as_ref()),
            (Side::Local, self.local.as_ref()),
        ]
    }

    /// Whether all is done that there is to do.
    pub(crate) fn is_over(&self) -> bool {
        self.socket.is_none() && self.local.is_none()
    }

    /// Whether nothing is moved any more.
    pub(crate) fn is_carried(&self) -> bool {
        self.is_carried
    }

    /// Whether the host may still read what the process wrote.
    pub(crate) fn is_read(&self) -> bool {
        self.direction == Direction::Out && self.socket.is_some()
    }

    /// Notes what the kernel told of one of the files.
    pub(crate) fn event(&mut self, side: Side, flags: EventFlags) {
        let gone = EventFlags::HUP | EventFlags::ERR | EventFlags::RDHUP;
        match (side, self.direction) {
            (Side::Socket, Direction::Out) if flags.intersects(gone) => self.hung_up = true,
            (Side::Local, Direction::In)
                if flags.contains(EventFlags::ERR) && !self.is_terminal =>
            {
                // Nobody has the pipe's other end any more.
                self.local = None;
            }
            _ => {}
        }
    }

    /// The process has ended. What it wrote is still carried, what it did not read is not.
    pub(crate) fn process_ended(&mut self) {
        if self.direction == Direction::In {
            // The host is told by the connection's end, so there has to be one.
            self.local = None;
            return;
        }
        if self.is_terminal && self.is_carried {
            self.local = None;
        }
        let written = self.local.as_ref().map(ioctl_fionread);
        self.left = Some(match written {
            Some(Ok(written)) if !self.is_terminal => written,
            // A terminal tells when it is empty.
            _ => u64::MAX,
        });
    }

    fn close(&mut self) {
        self.is_carried = true;
        self.socket = None;
        self.local = None;
    }

    /// Moves what can be moved.
    pub(crate) fn turn(&mut self) -> Turn {
        if !self.is_carried && self.greet() {
            match self.carry() {
                Ok(turn) => return turn,
                Err(end) => self.end(&end),
            }
        }
        if self.is_carried {
            return self.linger();
        }
        Turn::Wait
    }

    /// Tells the host which stream this is. False while there is no connection.
    fn greet(&mut self) -> bool {
        let (Some(hello), Some(socket)) = (self.hello, &self.socket) else {
            return true;
        };
        match write(socket, &hello) {
            Ok(HELLO_LEN) => {
                self.hello = None;
                return true;
            }
            // Not yet, or never.
            Err(Errno::NOTCONN | Errno::AGAIN) if matches!(socket_error(socket), Ok(Ok(()))) => {}
            _ => self.end(&End::Sink),
        }
        false
    }

    /// Moves bytes until there are none, or no place for them.
    fn carry(&mut self) -> Result<Turn, End> {
        if self.hung_up {
            self.hung_up = false;
            self.look_for_host()?;
        }
        for _ in 0..PIECES {
            if self.left == Some(0) && self.copy.as_ref().is_none_or(Copy::is_empty) {
                return Err(End::Limit);
            }
            let moved = match &self.copy {
                None => self.splice(),
                Some(_) => self.copy(),
            };
            match moved {
                Ok(()) | Err(Moved::Failed(Errno::INTR)) => {}
                Err(Moved::Failed(Errno::AGAIN)) => return Ok(Turn::Wait),
                // This kernel can't splice the two.
                Err(Moved::Failed(Errno::INVAL)) if self.copy.is_none() => {
                    self.copy = Some(Copy::default());
                }
                Err(Moved::Failed(_)) => return Err(End::Sink),
                Err(Moved::End) => return Err(End::Source),
            }
        }
        Ok(Turn::Again)
    }

    /// A host that only sends no more is no reason to stop.
    fn look_for_host(&self) -> Result<(), End> {
        let gone = self.socket.as_ref().is_none_or(|socket| {
            let sent = send(socket, &[], SendFlags::DONTWAIT | SendFlags::NOSIGNAL);
            matches!(sent, Err(errno) if errno != Errno::AGAIN)
        });
        if gone { Err(End::Sink) } else { Ok(()) }
    }

    fn ends(&self) -> Result<(&OwnedFd, &OwnedFd), Moved> {
        let (Some(socket), Some(local)) = (&self.socket, &self.local) else {
            return Err(Moved::End);
        };
        Ok(match self.direction {
            Direction::In => (socket, local),
            Direction::Out => (local, socket),
        })
    }

    fn splice(&mut self) -> Result<(), Moved> {
        let (source, sink) = self.ends()?;
        let len = self.left.map_or(PIECE, |left| {
            usize::try_from(left).map_or(PIECE, |left| left.min(PIECE))
        });
        let flags = SpliceFlags::NONBLOCK | SpliceFlags::MOVE;
        let moved = splice(source, None, sink, None, len, flags)?;
        self.count(moved)
    }

    /// Moves bytes through memory of the agent's.
    fn copy(&mut self) -> Result<(), Moved> {
        let (source, sink) = self.ends()?;
        let Some(copy) = &self.copy else {
            return Ok(());
        };
        if let Some(rest @ [_, ..]) = copy.bytes.get(copy.taken..) {
            let written = write(sink, rest)?;
            let last = written.checked_sub(1).and_then(|last| rest.get(last));
            self.last = last.copied().unwrap_or(self.last);
            if let Some(copy) = &mut self.copy {
                copy.taken += written;
            }
            return Ok(());
        }
        let mut bytes = Vec::with_capacity(COPY);
        let len = match read(source, spare_capacity(&mut bytes)) {
            Ok(len) => len,
            // All that a terminal shows has been read, and nobody has it, or nobody counts.
            Err(Errno::IO) => return Err(Moved::End),
            Err(Errno::AGAIN) if self.is_terminal && self.left.is_some() => {
                return Err(Moved::End);
            }
            Err(errno) => return Err(errno.into()),
        };
        self.copy = Some(Copy { bytes, taken: 0 });
        self.count(len)
    }

    fn count(&mut self, moved: usize) -> Result<(), Moved> {
        if moved == 0 {
            return Err(Moved::End);
        }
        if let Some(left) = &mut self.left {
            *left = left.saturating_sub(moved as u64);
        }
        Ok(())
    }

    /// Moving has come to an end.
    fn end(&mut self, end: &End) {
        if self.direction == Direction::In {
            if let (End::Source, true, Some(terminal)) = (end, self.is_terminal, &self.local) {
                end_input(terminal, self.last);
            }
            return self.close();
        }
        self.is_carried = true;
        match end {
            // The connection stays until the host has read all of it. What others still write
            // goes nowhere.
            End::Source | End::Limit => {
                if let Some(socket) = &self.socket {
                    let _ = shutdown(socket, Shutdown::Write);
                }
                if matches!(end, End::Source) {
                    self.local = None;
                }
            }
            End::Sink => {
                self.socket = None;
                // Whoever writes into a pipe learns that nobody reads. Who has a terminal that
                // nobody looks at goes on.
                if !self.is_terminal || self.left.is_some() {
                    self.local = None;
                }
            }
        }
    }

    /// Waits until the host has closed its end, and takes what processes that are left write.
    fn linger(&mut self) -> Turn {
        if self.hung_up {
            self.socket = None;
        }
        let Some(local) = &self.local else {
            return Turn::Wait;
        };
        let mut nothing = [0; 4096];
        for _ in 0..PIECES {
            match read(local, &mut nothing) {
                Ok(1..) | Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Turn::Wait,
                Ok(0) | Err(_) => {
                    self.local = None;
                    return Turn::Wait;
                }
            }
        }
        Turn::Again
    }
}

impl Copy {
    fn is_empty(&self) -> bool {
        self.taken == self.bytes.len()
    }
}

/// Why no bytes were moved.
enum Moved {
    End,
    Failed(Errno),
}

impl From<Errno> for Moved {
    fn from(errno: Errno) -> Self {
        Moved::Failed(errno)
    }
}

/// Ends the input of whoever reads lines from a terminal; in the middle of a line the first `^D`
/// only ends the line.
fn end_input(terminal: &OwnedFd, last: u8) {
    let Ok(settings) = tcgetattr(terminal) else {
        return;
    };
    if settings.local_modes.contains(LocalModes::ICANON) {
        let end = [settings.special_codes[SpecialCodeIndex::VEOF]; 2];
        let count = if last == b'\n' { 1 } else { 2 };
        let _ = write(terminal, end.get(..count).unwrap_or_default());
    }
}
