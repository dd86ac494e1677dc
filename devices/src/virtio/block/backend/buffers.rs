//! Pieces of guest memory in the form that the kernel takes.
#![allow(
    unsafe_code,
    reason = "an iovec is a raw pointer; this type ties it to the memory it points into"
)]

use std::sync::Arc;

use libc::iovec;
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryError, GuestMemoryMmap};

/// The most pieces that the kernel takes in one call (`IOV_MAX`).
const MAX_PIECES: usize = libc::UIO_MAXIOV as usize;

/// A scatter-gather list of guest memory. It keeps the memory mapped for as long as it lives, so
/// the kernel may use it after everything else that knew of the memory is gone.
#[derive(Debug)]
pub struct Buffers {
    iovecs: Vec<iovec>,
    /// Pieces before this one have been dealt with.
    first: usize,
    memory: Arc<GuestMemoryMmap>,
}

// SAFETY: the pointers point into `memory`, which is Send and Sync, and are only ever passed to
// the kernel; nothing about them belongs to a thread.
unsafe impl Send for Buffers {}

impl Buffers {
    /// An empty list of pieces of `memory`.
    pub fn new(memory: Arc<GuestMemoryMmap>) -> Self {
        Self {
            iovecs: Vec::new(),
            first: 0,
            memory,
        }
    }

    /// Empties the list and keeps its allocation.
    pub fn clear(&mut self) {
        self.iovecs.clear();
        self.first = 0;
    }

    /// Appends `len` bytes at `addr`, as several pieces where they cross from one region of guest
    /// memory into another.
    ///
    /// # Errors
    /// Some of the bytes are not guest memory.
    pub fn push(&mut self, addr: GuestAddress, len: usize) -> Result<(), GuestMemoryError> {
        for slice in GuestMemoryBackend::get_slices(self.memory.as_ref(), addr, len) {
            let slice = slice?;
            self.iovecs.push(iovec {
                iov_base: slice.ptr_guard_mut().as_ptr().cast(),
                iov_len: slice.len(),
            });
        }
        Ok(())
    }

    /// The pieces that are left, as many as one system call takes.
    pub fn pieces(&self) -> &[iovec] {
        let rest = self.iovecs.get(self.first..).unwrap_or_default();
        rest.get(..MAX_PIECES).unwrap_or(rest)
    }

    /// Bytes in [`Buffers::pieces`].
    pub fn len(&self) -> usize {
        self.pieces().iter().map(|piece| piece.iov_len).sum()
    }

    /// Nothing is left.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Drops the first `count` bytes, or everything if there are fewer.
    pub fn advance(&mut self, mut count: usize) {
        while let Some(piece) = self.iovecs.get_mut(self.first) {
            if count < piece.iov_len {
                // Stays inside of the piece, as `count` is less than its length.
                piece.iov_base = piece.iov_base.wrapping_byte_add(count);
                piece.iov_len -= count;
                return;
            }
            count -= piece.iov_len;
            self.first += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn memory() -> Arc<GuestMemoryMmap> {
        let ranges = [(GuestAddress(0), 0x1000), (GuestAddress(0x1000), 0x1000)];
        Arc::new(GuestMemoryMmap::from_ranges(&ranges).unwrap())
    }

    fn lengths(buffers: &Buffers) -> Vec<usize> {
        buffers.pieces().iter().map(|piece| piece.iov_len).collect()
    }

    #[test]
    fn a_range_over_two_regions_becomes_two_pieces() {
        let mut buffers = Buffers::new(memory());
        buffers.push(GuestAddress(0xf00), 0x200).unwrap();
        assert_eq!(lengths(&buffers), [0x100, 0x100]);
        assert!(buffers.push(GuestAddress(0x1f00), 0x101).is_err());
    }

    #[test]
    fn advance_drops_whole_pieces_and_parts() {
        let mut buffers = Buffers::new(memory());
        for at in 0..3 {
            buffers.push(GuestAddress(at * 16), 10).unwrap();
        }
        let base = buffers.pieces()[1].iov_base;
        buffers.advance(13);
        assert_eq!(lengths(&buffers), [7, 10]);
        assert_eq!(buffers.pieces()[0].iov_base, base.wrapping_byte_add(3));
        buffers.advance(100);
        assert!(buffers.is_empty());
    }

    #[test]
    fn no_call_gets_more_pieces_than_the_kernel_takes() {
        let mut buffers = Buffers::new(memory());
        for _ in 0..1500 {
            buffers.push(GuestAddress(0), 1).unwrap();
        }
        assert_eq!(buffers.len(), 1024);
        buffers.advance(1024);
        assert_eq!(buffers.len(), 476);
    }
}
