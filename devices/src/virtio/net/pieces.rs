//! A frame's bytes where they are: in the guest's memory, in pieces, or in the host's.
#![allow(
    unsafe_code,
    reason = "an iovec is a raw pointer; these types tie it to the memory it points into"
)]

use std::marker::PhantomData;

use libc::iovec;
use vm_memory::{GuestMemoryMmap, VolatileSlice};

/// Bytes to be read.
#[derive(Clone, Copy, Debug)]
pub struct Pieces<'a>(Place<'a>);

#[derive(Clone, Copy, Debug)]
enum Place<'a> {
    Host(&'a [u8]),
    Guest {
        /// Never changed through this.
        iovecs: &'a [iovec],
        len: usize,
    },
}

// SAFETY: the pointers point into guest memory, which is Sync and borrowed for 'a; nothing about them
// belongs to a thread.
unsafe impl Send for Pieces<'_> {}

/// Bytes to be written.
#[derive(Debug)]
pub struct PiecesMut<'a>(PlaceMut<'a>);

#[derive(Debug)]
enum PlaceMut<'a> {
    Host(&'a mut [u8]),
    Guest {
        iovecs: &'a [iovec],
        len: usize,
        memory: PhantomData<&'a GuestMemoryMmap>,
    },
}

// SAFETY: as for `Pieces`.
unsafe impl Send for PiecesMut<'_> {}

impl<'a> Pieces<'a> {
    /// Bytes of the host's.
    pub fn of_bytes(bytes: &'a [u8]) -> Self {
        Self(Place::Host(bytes))
    }

    /// Bytes of the guest's, `iovecs` being pieces of `memory`, which stays mapped while it is
    /// borrowed.
    pub(super) fn of_guest(_memory: &'a GuestMemoryMmap, iovecs: &'a [iovec]) -> Self {
        let len = total(iovecs);
        Self(Place::Guest { iovecs, len })
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        match self.0 {
            Place::Host(bytes) => bytes.len(),
            Place::Guest { len, .. } => len,
        }
    }

    /// There are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Copies as many as fit into `out`, and returns how many those were.
    pub fn copy_to(&self, out: &mut [u8]) -> usize {
        match self.0 {
            Place::Host(bytes) => {
                let len = bytes.len().min(out.len());
                let (to, from) = (out.get_mut(..len), bytes.get(..len));
                if let (Some(to), Some(from)) = (to, from) {
                    to.copy_from_slice(from);
                }
                len
            }
            Place::Guest { iovecs, .. } => {
                let mut done = 0;
                for piece in iovecs {
                    let rest = out.get_mut(done..).unwrap_or_default();
                    done += volatile(piece).copy_to(rest);
                }
                done
            }
        }
    }

    /// Appends them, for vectored output. What is behind the pointers is only to be read.
    pub(super) fn append_to(&self, out: &mut Vec<iovec>) {
        match self.0 {
            Place::Host([]) => {}
            Place::Host(bytes) => out.push(iovec {
                iov_base: bytes.as_ptr().cast_mut().cast(),
                iov_len: bytes.len(),
            }),
            Place::Guest { iovecs, .. } => out.extend_from_slice(iovecs),
        }
    }
}

impl<'a> PiecesMut<'a> {
    /// Bytes of the host's.
    pub fn of_bytes(bytes: &'a mut [u8]) -> Self {
        Self(PlaceMut::Host(bytes))
    }

    /// Bytes of the guest's, as [`Pieces::of_guest`] has them.
    pub(super) fn of_guest(_memory: &'a GuestMemoryMmap, iovecs: &'a [iovec]) -> Self {
        Self(PlaceMut::Guest {
            iovecs,
            len: total(iovecs),
            memory: PhantomData,
        })
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        match &self.0 {
            PlaceMut::Host(bytes) => bytes.len(),
            PlaceMut::Guest { len, .. } => *len,
        }
    }

    /// There are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The same, to be read.
    pub fn as_pieces(&self) -> Pieces<'_> {
        match &self.0 {
            PlaceMut::Host(bytes) => Pieces::of_bytes(bytes),
            PlaceMut::Guest { iovecs, len, .. } => Pieces(Place::Guest { iovecs, len: *len }),
        }
    }

    /// Copies as many of `bytes` as fit, and returns how many those were.
    pub fn copy_from(&mut self, bytes: &[u8]) -> usize {
        match &mut self.0 {
            PlaceMut::Host(out) => {
                let len = bytes.len().min(out.len());
                let (to, from) = (out.get_mut(..len), bytes.get(..len));
                if let (Some(to), Some(from)) = (to, from) {
                    to.copy_from_slice(from);
                }
                len
            }
            PlaceMut::Guest { iovecs, .. } => {
                let mut rest = bytes;
                for piece in *iovecs {
                    let (now, later) = rest.split_at(rest.len().min(piece.iov_len));
                    volatile(piece).copy_from(now);
                    rest = later;
                }
                bytes.len() - rest.len()
            }
        }
    }

    /// Appends them, for vectored input.
    pub(super) fn append_to(&mut self, out: &mut Vec<iovec>) {
        match &mut self.0 {
            PlaceMut::Host([]) => {}
            PlaceMut::Host(bytes) => out.push(iovec {
                iov_base: bytes.as_mut_ptr().cast(),
                iov_len: bytes.len(),
            }),
            PlaceMut::Guest { iovecs, .. } => out.extend_from_slice(iovecs),
        }
    }
}

fn total(iovecs: &[iovec]) -> usize {
    iovecs.iter().map(|piece| piece.iov_len).sum()
}

/// A piece of guest memory as what it is: bytes that change under one's hands.
fn volatile(piece: &iovec) -> VolatileSlice<'_> {
    // SAFETY: the constructors were given pieces of guest memory, borrowed for longer than this, and
    // guest memory is only accessed as volatile slices and by the kernel.
    unsafe { VolatileSlice::new(piece.iov_base.cast(), piece.iov_len) }
}
