//! Vectored I/O of whole frames between guest memory and a descriptor.
#![allow(
    unsafe_code,
    reason = "vectored I/O straight between descriptors and guest memory"
)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use libc::iovec;

use super::backend::{Frame, Landing};

/// What kind of descriptor it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// A device, which was opened non-blocking.
    Device,
    /// A stream socket.
    Socket,
}

/// A list of pieces that is kept for its allocation alone: it is empty between calls.
#[derive(Default)]
pub(super) struct Vector(Vec<iovec>);

// SAFETY: no pointer outlives the call that put it there, so nothing is shared between threads.
unsafe impl Send for Vector {}

impl Vector {
    /// Writes `header` and the frame, as far as the descriptor takes them now, and returns how many bytes
    /// that were.
    ///
    /// # Errors
    /// The descriptor's; `WouldBlock` if it is full.
    pub fn write(
        &mut self,
        fd: BorrowedFd<'_>,
        kind: Kind,
        header: &[u8],
        frame: &Frame<'_>,
    ) -> io::Result<usize> {
        self.0.clear();
        self.0.extend([readable(header), readable(frame.head)]);
        frame.rest.append_to(&mut self.0);
        let count = self.count()?;
        let fd = fd.as_raw_fd();
        let written = match kind {
            Kind::Device => retry(|| {
                // SAFETY: the pieces are borrowed during the call: by `header`, and by `frame`, which
                // borrows guest memory. The kernel only reads them, and copes with a guest that changes
                // them meanwhile.
                unsafe { libc::writev(fd, self.0.as_ptr(), count) }
            }),
            Kind::Socket => {
                let message = message(&mut self.0);
                let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
                // SAFETY: as above.
                retry(|| unsafe { libc::sendmsg(fd, &raw const message, flags) })
            }
        };
        self.0.clear();
        written
    }

    /// Reads `header`, then as much of a frame as lands, then what is too much into `spare`. Of the
    /// landing at most `limit` bytes are used. Returns how many bytes were read.
    ///
    /// # Errors
    /// The descriptor's; `WouldBlock` if there is nothing to read.
    pub fn read(
        &mut self,
        fd: BorrowedFd<'_>,
        kind: Kind,
        header: &mut [u8],
        (landing, from, limit): (&mut Landing<'_>, usize, usize),
        spare: &mut [u8],
    ) -> io::Result<usize> {
        self.0.clear();
        if !header.is_empty() {
            self.0.push(writable(header));
        }
        let (start, capacity) = (self.0.len(), landing.capacity());
        let (head, rest) = landing.parts();
        self.0.push(writable(head));
        rest.append_to(&mut self.0);
        if from > 0 || limit < capacity {
            self.cut(start, from, limit);
        }
        self.0.push(writable(spare));
        let count = self.count()?;
        let fd = fd.as_raw_fd();
        let read = match kind {
            Kind::Device => retry(|| {
                // SAFETY: the pieces are borrowed during the call: by `header` and `spare`, and by
                // `landing`, which borrows guest memory, of which nobody has references.
                unsafe { libc::readv(fd, self.0.as_ptr(), count) }
            }),
            Kind::Socket => {
                let mut message = message(&mut self.0);
                // SAFETY: as above.
                retry(|| unsafe { libc::recvmsg(fd, &raw mut message, libc::MSG_DONTWAIT) })
            }
        };
        self.0.clear();
        read
    }

    /// Leaves of the pieces from index `start` on the bytes `from..limit`.
    fn cut(&mut self, start: usize, from: usize, limit: usize) {
        let (mut skip, mut left) = (from, limit.saturating_sub(from));
        let mut to = start;
        for at in start..self.0.len() {
            let Some(mut piece) = self.0.get(at).copied() else {
                break;
            };
            if skip >= piece.iov_len {
                skip -= piece.iov_len;
                continue;
            }
            // Stays inside of the piece, as `skip` is less than its length.
            piece.iov_base = piece.iov_base.wrapping_byte_add(skip);
            piece.iov_len = (piece.iov_len - skip).min(left);
            skip = 0;
            left -= piece.iov_len;
            if piece.iov_len > 0
                && let Some(place) = self.0.get_mut(to)
            {
                *place = piece;
                to += 1;
            }
        }
        self.0.truncate(to);
    }

    /// A frame in more pieces than the kernel takes would be cut short.
    fn count(&self) -> io::Result<libc::c_int> {
        match libc::c_int::try_from(self.0.len()) {
            Ok(count) if count <= libc::UIO_MAXIOV => Ok(count),
            _ => Err(io::ErrorKind::ArgumentListTooLong.into()),
        }
    }
}

fn readable(bytes: &[u8]) -> iovec {
    iovec {
        iov_base: bytes.as_ptr().cast_mut().cast(),
        iov_len: bytes.len(),
    }
}

fn writable(bytes: &mut [u8]) -> iovec {
    iovec {
        iov_base: bytes.as_mut_ptr().cast(),
        iov_len: bytes.len(),
    }
}

fn message(iovecs: &mut [iovec]) -> libc::msghdr {
    // SAFETY: zeroes are a valid msghdr: no address, no pieces, no control data.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = iovecs.as_mut_ptr();
    message.msg_iovlen = iovecs.len();
    message
}

fn retry(mut call: impl FnMut() -> isize) -> io::Result<usize> {
    loop {
        if let Ok(count) = usize::try_from(call()) {
            return Ok(count);
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}
