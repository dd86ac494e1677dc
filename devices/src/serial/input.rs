//! From the host to the receive FIFO, only as far as the guest takes it.

use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::Arc;

use rustix::event::epoll;

use super::Port;
use crate::event_loop::{Control, Handler, Interest, Source};

const RESUME: u32 = 0;
const READABLE: u32 = 1;

/// Something to read from that can be waited for. It must not buffer: bytes that it has read
/// ahead would wait until more arrive.
pub trait InputSource: Read + AsFd + Send {}

impl<T: Read + AsFd + Send> InputSource for T {}

/// The guest's keyboard.
pub struct Input {
    /// Where the bytes come from.
    pub source: Box<dyn InputSource>,
    /// Given to the guest once when the source has ended: 4 (Ctrl-D) tells a shell that there is
    /// no more to come.
    pub at_end: Option<u8>,
}

/// Moves bytes while both sides are ready.
pub(super) struct InputHandler {
    port: Arc<Port>,
    source: Box<dyn InputSource>,
    at_end: Option<u8>,
    /// A regular file and the like is always ready, and epoll refuses it.
    pollable: bool,
    /// Read, and not yet in the FIFO.
    pending: Vec<u8>,
    watching: bool,
    ended: bool,
}

impl InputHandler {
    pub(super) fn new(port: Arc<Port>, input: Input) -> Self {
        // The first turn looks whether the guest takes anything yet.
        let _ = port.resume.write(1);
        Self {
            port,
            pollable: is_pollable(input.source.as_fd()),
            source: input.source,
            at_end: input.at_end,
            pending: Vec::new(),
            watching: false,
            ended: false,
        }
    }

    /// Moves bytes until one side has to be waited for; true if that is the source.
    fn pump(&mut self, mut readable: bool) -> bool {
        loop {
            if !self.pending.is_empty() {
                let taken = self.port.receive(&self.pending);
                self.pending.drain(..taken);
                if !self.pending.is_empty() {
                    return false;
                }
            }
            if self.ended {
                return false;
            }
            let room = self.port.room();
            if room == 0 {
                return false;
            }
            if !readable {
                return true;
            }
            readable = !self.pollable;
            match self.read(room) {
                Ok(0) => self.end(),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return true,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => return true,
                Err(error) => {
                    // A terminal that was closed says EIO.
                    log::debug!("the guest's console input has ended: {error}");
                    self.end();
                }
            }
        }
    }

    fn read(&mut self, room: usize) -> io::Result<usize> {
        self.pending.resize(room, 0);
        let result = self.source.read(&mut self.pending);
        self.pending.truncate(*result.as_ref().unwrap_or(&0));
        result
    }

    fn end(&mut self) {
        self.ended = true;
        self.pending.extend(self.at_end.take());
    }
}

impl Handler for InputHandler {
    fn sources(&self) -> Vec<Source> {
        vec![Source {
            fd: self.port.resume.as_raw_fd(),
            token: RESUME,
            interest: Interest::READ,
        }]
    }

    fn ready(&mut self, token: u32, control: &mut Control<'_>) {
        if token == RESUME {
            // Nothing to take is fine: it was taken before.
            let _ = self.port.resume.read();
        }
        let watch = self.pump(token == READABLE || !self.pollable) && self.pollable;
        if watch == self.watching {
            return;
        }
        let source = Source {
            fd: self.source.as_fd().as_raw_fd(),
            token: READABLE,
            interest: Interest::READ,
        };
        let changed = if watch {
            control.enable(source)
        } else {
            control.disable(source)
        };
        match changed {
            Ok(()) => self.watching = watch,
            Err(error) => {
                log::error!("the guest gets no more console input: {error}");
                self.ended = true;
            }
        }
    }
}

/// True for descriptors that epoll can watch: not regular files, directories or `/dev/null`.
pub(super) fn is_pollable(fd: BorrowedFd<'_>) -> bool {
    let try_add = || {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        epoll::add(
            &epoll,
            fd,
            epoll::EventData::new_u64(0),
            epoll::EventFlags::empty(),
        )
    };
    try_add().is_ok()
}
