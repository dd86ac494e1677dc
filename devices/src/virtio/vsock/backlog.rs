//! What a guest has sent and its reader has not taken yet.

#![deny(clippy::indexing_slicing)]

use std::io;
use std::os::unix::net::UnixStream;

use rustix::net::SendFlags;
use vm_memory::GuestMemoryMmap;

use crate::virtio::chain::{Chain, ChainError};

/// Bytes in order. Its length is bounded by the credit of its connection, and it has no memory
/// while it is empty.
#[derive(Debug, Default)]
pub(super) struct Backlog {
    bytes: Vec<u8>,
    /// Bytes before this one are gone.
    start: usize,
}

impl Backlog {
    /// Nothing waits.
    pub fn is_empty(&self) -> bool {
        self.start == self.bytes.len()
    }

    /// Bytes that wait; at most the credit of a connection, which has 32 bits.
    pub fn len(&self) -> u32 {
        (self.bytes.len() - self.start) as u32
    }

    /// Appends `len` bytes of the readable part of `chain`, from `offset` on.
    ///
    /// # Errors
    /// The chain is shorter; nothing is appended then.
    pub fn push(
        &mut self,
        memory: &GuestMemoryMmap,
        chain: &Chain,
        (offset, len): (u32, u32),
    ) -> Result<(), ChainError> {
        self.bytes.drain(..self.start);
        self.start = 0;
        let end = self.bytes.len();
        self.bytes.reserve_exact(len as usize);
        self.bytes.resize(end + len as usize, 0);
        let new = self.bytes.get_mut(end..).unwrap_or_default();
        let copied = chain.read_exact(memory, offset, new);
        if copied.is_err() {
            self.bytes.truncate(end);
        }
        copied
    }

    /// Sends as much as `stream` takes now, and returns how much that was.
    ///
    /// # Errors
    /// The socket's, but for `WouldBlock`.
    pub fn flush(&mut self, stream: &UnixStream) -> io::Result<u32> {
        let rest = self.bytes.get(self.start..).unwrap_or_default();
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        let sent = match rustix::io::retry_on_intr(|| rustix::net::send(stream, rest, flags)) {
            Ok(sent) => sent,
            Err(rustix::io::Errno::WOULDBLOCK) => 0,
            Err(error) => return Err(error.into()),
        };
        self.start += sent;
        if self.is_empty() {
            self.clear();
        }
        Ok(sent as u32) // at most `len`
    }

    /// Drops all of it, and returns how much that was.
    pub fn clear(&mut self) -> u32 {
        let len = self.len();
        *self = Self::default();
        len
    }
}
