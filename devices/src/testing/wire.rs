//! What a network device is connected to when it does not matter to what.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::{EventfdFlags, eventfd};

use crate::virtio::net::backend::{Abilities, Backend, Frame, Landing, Offloads, Received, Sent};

/// A back end that takes every frame and has none.
#[derive(Debug)]
pub struct Nowhere {
    never: OwnedFd,
}

impl Nowhere {
    /// A new one.
    ///
    /// # Errors
    /// The process has no descriptor left.
    pub fn new() -> io::Result<Self> {
        let never = eventfd(0, EventfdFlags::CLOEXEC)?;
        Ok(Self { never })
    }
}

impl Backend for Nowhere {
    fn fd(&self) -> BorrowedFd<'_> {
        self.never.as_fd()
    }

    fn abilities(&self) -> Abilities {
        Abilities {
            from_guest: Offloads::CHECKSUM,
            to_guest: Offloads::CHECKSUM,
        }
    }

    fn set_offloads(&mut self, _to_guest: Offloads) -> io::Result<()> {
        Ok(())
    }

    fn send(&mut self, _frame: &Frame<'_>) -> Sent {
        Sent::Done
    }

    fn receive(&mut self, _landing: &mut Landing<'_>) -> Received {
        Received::Nothing
    }
}
