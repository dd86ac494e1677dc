//! The end of a thread that waits for a file descriptor: one more descriptor to wait for.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::event::{EventfdFlags, eventfd};

/// Readable from the moment that somebody calls [`StopEvent::stop`].
#[derive(Debug, Clone)]
pub struct StopEvent(Arc<OwnedFd>);

impl StopEvent {
    /// An event that has not happened yet.
    ///
    /// # Errors
    /// If the host has no descriptor left.
    pub fn new() -> io::Result<Self> {
        let fd = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Self(Arc::new(fd)))
    }

    /// Makes it happen; it stays so.
    pub fn stop(&self) {
        // A full counter is a signal too.
        let _ = rustix::io::write(&*self.0, &1_u64.to_ne_bytes());
    }
}

impl AsFd for StopEvent {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
