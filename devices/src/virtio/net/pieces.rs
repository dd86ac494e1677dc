//! A frame's bytes where they are: in the guest's memory, in pieces, or in the host's.
#![allow(
    unsafe_code,
    reason = "an iovec is a raw pointer; these types tie it to the memory it points into"
)]

use std::sync::Arc;

use libc::iovec;
use vm_memory::{GuestMemoryMmap, VolatileSlice};

use crate::virtio::chain::{Chain, ChainError};

/// Pieces of guest memory, which is mapped for as long as this lives.
#[derive(Debug)]
pub(super) struct PieceList {
    iovecs: Vec<iovec>,
    memory: Arc<GuestMemoryMmap>,
}

// SAFETY: the pointers point into `memory`, which is Send and Sync; nothing about them belongs to a
// thread.
unsafe impl Send for PieceList {}

impl PieceList {
    /// An empty list of pieces of `memory`.
    pub fn new(memory: Arc<GuestMemoryMmap>) -> Self {
        Self {
            iovecs: Vec::new(),
            memory,
        }
    }

    pub fn clear(&mut self) {
        self.iovecs.clear();
    }

    /// Drops all but the first `count` pieces.
    pub fn truncate(&mut self, count: usize) {
        self.iovecs.truncate(count);
    }

    /// How many pieces there are.
    pub fn count(&self) -> usize {
        self.iovecs.len()
    }

    /// Appends the readable bytes of `chain` from `offset` on.
    ///
    /// # Errors
    /// The chain ends before `offset`.
    pub fn push_readable(&mut self, chain: &Chain, offset: u32) -> Result<(), ChainError> {
        let len = chain.readable_len().saturating_sub(offset);
        chain.readable_iovecs(&self.memory, offset, len, &mut self.iovecs)
    }

    /// Appends all writable bytes of `chain`.
    ///
    /// # Errors
    /// Guest memory is not what it was.
    pub fn push_writable(&mut self, chain: &Chain) -> Result<(), ChainError> {
        let len = chain.writable_len();
        chain.writable_iovecs(&self.memory, 0, len, &mut self.iovecs)
    }

    /// Makes this all of `from` behind its first `skip` bytes.
    pub fn fill_behind(&mut self, from: &PieceList, mut skip: usize) {
        self.clear();
        let mut pieces = from.iovecs.iter();
        for piece in pieces.by_ref() {
            if skip < piece.iov_len {
                self.iovecs.push(iovec {
                    // Stays inside of the piece, as `skip` is less than its length.
                    iov_base: piece.iov_base.wrapping_byte_add(skip),
                    iov_len: piece.iov_len - skip,
                });
                break;
            }
            skip -= piece.iov_len;
        }
        self.iovecs.extend_from_slice(pieces.as_slice());
    }

    /// Drops the first `count` pieces.
    pub fn drop_first(&mut self, count: usize) {
        self.iovecs.drain(..count.min(self.iovecs.len()));
    }

    /// Writes `bytes` to the start of the first pieces, as far as there is room.
    pub fn write(&mut self, bytes: &[u8]) {
        PiecesMut::of_guest(self).copy_from(bytes);
    }
}

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
    Guest { iovecs: &'a [iovec], len: usize },
}

// SAFETY: as for `Pieces`.
unsafe impl Send for PiecesMut<'_> {}

impl<'a> Pieces<'a> {
    /// Bytes of the host's.
    pub fn of_bytes(bytes: &'a [u8]) -> Self {
        Self(Place::Host(bytes))
    }

    /// Bytes of the guest's.
    pub(super) fn of_guest(list: &'a PieceList) -> Self {
        let iovecs = &list.iovecs;
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

    /// Bytes of the guest's.
    pub(super) fn of_guest(list: &'a mut PieceList) -> Self {
        Self(PlaceMut::Guest {
            iovecs: &list.iovecs,
            len: total(&list.iovecs),
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
                    if rest.is_empty() {
                        break;
                    }
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
    // SAFETY: the piece is of a `PieceList`, which keeps the memory mapped and is borrowed for longer than
    // this; guest memory is only accessed as volatile slices and by the kernel.
    unsafe { VolatileSlice::new(piece.iov_base.cast(), piece.iov_len) }
}
