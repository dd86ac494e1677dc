//! Bytes between sockets and guest memory, without a copy in between.
#![allow(
    unsafe_code,
    reason = "vectored I/O straight between sockets and guest memory"
)]

use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;

use libc::iovec;
use vm_memory::GuestMemoryMmap;

use super::packet::HEADER_LEN;
use crate::virtio::chain::{Chain, ChainError};

/// The most pieces that the kernel takes in one call (`IOV_MAX`).
const MAX_PIECES: usize = libc::UIO_MAXIOV as usize;

/// A list of pieces that is kept for its allocation alone: it is empty between calls.
#[derive(Default)]
pub(super) struct Pieces(Vec<iovec>);

// SAFETY: no pointer outlives the call that put it there, so nothing is shared between threads.
unsafe impl Send for Pieces {}

/// What was received.
pub(super) struct Received {
    /// Bytes; 0 at the end of the stream.
    pub len: u32,
    /// Bytes that there was room for.
    pub asked: u32,
}

impl Pieces {
    /// Sends `len` bytes of the readable part of `chain`, from `offset` on, as far as the socket
    /// takes them now.
    ///
    /// # Errors
    /// The socket's; `WouldBlock` if it is full.
    pub fn send(
        &mut self,
        stream: &UnixStream,
        memory: &GuestMemoryMmap,
        chain: &Chain,
        (offset, len): (u32, u32),
    ) -> io::Result<u32> {
        self.0.clear();
        let cut = chain.readable_iovecs(memory, offset, len, &mut self.0);
        cut.map_err(io::Error::other)?;
        self.0.truncate(MAX_PIECES);
        let message = message(&mut self.0);
        let sent = retry(|| {
            // SAFETY: the pieces point into `memory`, which is borrowed during the call; the
            // kernel only reads them, and copes with a guest that changes them meanwhile.
            unsafe {
                libc::sendmsg(
                    stream.as_raw_fd(),
                    &raw const message,
                    libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL,
                )
            }
        });
        self.0.clear();
        sent
    }

    /// Receives into the writable parts of `chains`, each behind the place for a header, up to
    /// `limit` bytes in all.
    ///
    /// # Errors
    /// The socket's; `WouldBlock` if there is nothing to receive now.
    pub fn receive(
        &mut self,
        stream: &UnixStream,
        memory: &GuestMemoryMmap,
        chains: &[Chain],
        limit: u32,
    ) -> io::Result<Received> {
        self.0.clear();
        self.point_into(memory, chains, limit)
            .map_err(io::Error::other)?;
        self.0.truncate(MAX_PIECES);
        let asked: usize = self.0.iter().map(|piece| piece.iov_len).sum();
        if asked == 0 {
            // The kernel would answer 0, which means that the stream has ended.
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let mut message = message(&mut self.0);
        let received = retry(|| {
            // SAFETY: the pieces point into `memory`, which is borrowed during the call, and were
            // checked to be inside of it. Nobody in this process has references into it.
            unsafe {
                libc::recvmsg(
                    stream.as_raw_fd(),
                    &raw mut message,
                    libc::MSG_DONTWAIT | libc::MSG_CMSG_CLOEXEC,
                )
            }
        });
        self.0.clear();
        Ok(Received {
            len: received?,
            asked: u32::try_from(asked).unwrap_or(u32::MAX),
        })
    }

    fn point_into(
        &mut self,
        memory: &GuestMemoryMmap,
        chains: &[Chain],
        limit: u32,
    ) -> Result<(), ChainError> {
        let mut left = limit;
        for chain in chains {
            let room = data_room(chain).min(left);
            left -= room;
            if room > 0 && self.0.len() < MAX_PIECES {
                chain.writable_iovecs(memory, HEADER_LEN, room, &mut self.0)?;
            }
        }
        Ok(())
    }
}

/// Bytes of data that a packet in `chain` can have.
pub(super) fn data_room(chain: &Chain) -> u32 {
    chain.writable_len().saturating_sub(HEADER_LEN)
}

fn message(pieces: &mut [iovec]) -> libc::msghdr {
    // SAFETY: all zeroes is a valid msghdr: null pointers and lengths of 0.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = pieces.as_mut_ptr();
    message.msg_iovlen = pieces.len();
    message
}

/// Repeats a call that a signal interrupted. At most what 32 bits count is ever asked for.
fn retry(mut call: impl FnMut() -> isize) -> io::Result<u32> {
    loop {
        let done = call();
        if let Ok(done) = usize::try_from(done) {
            return Ok(u32::try_from(done).unwrap_or(u32::MAX));
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}
