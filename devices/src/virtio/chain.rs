//! A chain of descriptors that was checked and copied out of guest memory.

#![deny(clippy::indexing_slicing)]

use vm_memory::{
    Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryError, GuestMemoryMmap, VolatileSlice,
};

/// A part of guest memory that was found wholly in RAM when the chain was taken from its queue.
/// RAM is not taken away while devices run, so it stays there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// First address.
    pub addr: GuestAddress,
    /// Length in bytes, at least 1.
    pub len: u32,
}

/// Why bytes of a chain could not be reached.
#[derive(Debug, thiserror::Error)]
pub enum ChainError {
    /// The chain is shorter than the request needs.
    #[error("{len} bytes at offset {offset} are outside the {available} bytes of the chain")]
    Outside {
        /// First byte that was asked for.
        offset: u32,
        /// How many were asked for.
        len: u64,
        /// Length of the readable or the writable part.
        available: u32,
    },
    /// Guest memory refused the access.
    #[error("guest memory cannot be reached")]
    Memory(#[source] GuestMemoryError),
}

/// The buffers of one request: first those that the device may read, then those that it may
/// write. The descriptors are never looked at again, so a guest that changes them changes nothing.
#[derive(Debug, PartialEq, Eq)]
pub struct Chain {
    head: u16,
    segments: Vec<Segment>,
    /// How many of `segments` are readable.
    readable_count: usize,
    readable_len: u32,
    writable_len: u32,
}

impl Chain {
    pub(super) fn empty(head: u16, mut segments: Vec<Segment>) -> Self {
        segments.clear();
        Self {
            head,
            segments,
            readable_count: 0,
            readable_len: 0,
            writable_len: 0,
        }
    }

    /// Adds a segment at the end. None if the lengths together do not fit in 32 bits.
    pub(super) fn push(&mut self, segment: Segment, writable: bool) -> Option<()> {
        let total = self.readable_len.checked_add(self.writable_len)?;
        total.checked_add(segment.len)?;
        if writable {
            self.writable_len += segment.len;
        } else {
            self.readable_count += 1;
            self.readable_len += segment.len;
        }
        self.segments.push(segment);
        Some(())
    }

    pub(super) fn has_writable(&self) -> bool {
        self.writable_len > 0
    }

    pub(super) fn into_segments(self) -> Vec<Segment> {
        self.segments
    }

    /// Index of the first descriptor, by which the driver knows the request.
    pub fn head(&self) -> u16 {
        self.head
    }

    /// Bytes that the device may read.
    pub fn readable_len(&self) -> u32 {
        self.readable_len
    }

    /// Bytes that the device may write. Readable and writable bytes together fit in 32 bits.
    pub fn writable_len(&self) -> u32 {
        self.writable_len
    }

    /// The buffers that the device may read.
    pub fn readable(&self) -> &[Segment] {
        self.segments.get(..self.readable_count).unwrap_or_default()
    }

    /// The buffers that the device may write.
    pub fn writable(&self) -> &[Segment] {
        self.segments.get(self.readable_count..).unwrap_or_default()
    }

    /// Copies `buf.len()` bytes from the readable part, starting `offset` bytes into it.
    ///
    /// # Errors
    /// The readable part ends before; `buf` is then in an unknown state.
    pub fn read_exact(
        &self,
        memory: &GuestMemoryMmap,
        offset: u32,
        buf: &mut [u8],
    ) -> Result<(), ChainError> {
        let part = Part::readable(self);
        let mut rest = buf;
        part.pieces(offset, rest.len() as u64, |addr, len| {
            let (now, later) = std::mem::take(&mut rest)
                .split_at_mut_checked(len as usize)
                .unwrap_or_default();
            rest = later;
            memory.read_slice(now, addr).map_err(ChainError::Memory)
        })
    }

    /// Copies `data` into the writable part, starting `offset` bytes into it.
    ///
    /// # Errors
    /// The writable part ends before; nothing is written then.
    pub fn write_all(
        &self,
        memory: &GuestMemoryMmap,
        offset: u32,
        data: &[u8],
    ) -> Result<(), ChainError> {
        let mut rest = data;
        Part::writable(self).pieces(offset, data.len() as u64, |addr, len| {
            let (now, later) = rest.split_at_checked(len as usize).unwrap_or_default();
            rest = later;
            memory.write_slice(now, addr).map_err(ChainError::Memory)
        })
    }

    /// The `len` bytes from `offset` of the readable part, in place. A buffer that crosses from
    /// one mapping of RAM to the next gives more than one slice.
    ///
    /// # Errors
    /// The readable part ends before.
    pub fn readable_slices<'a>(
        &self,
        memory: &'a GuestMemoryMmap,
        offset: u32,
        len: u32,
    ) -> Result<Vec<VolatileSlice<'a>>, ChainError> {
        let mut slices = Vec::with_capacity(self.readable_count);
        Part::readable(self).slices(memory, offset, len, |slice| slices.push(slice))?;
        Ok(slices)
    }

    /// The `len` bytes from `offset` of the writable part, in place.
    ///
    /// # Errors
    /// The writable part ends before.
    pub fn writable_slices<'a>(
        &self,
        memory: &'a GuestMemoryMmap,
        offset: u32,
        len: u32,
    ) -> Result<Vec<VolatileSlice<'a>>, ChainError> {
        let mut slices = Vec::with_capacity(self.segments.len());
        Part::writable(self).slices(memory, offset, len, |slice| slices.push(slice))?;
        Ok(slices)
    }

    /// Appends the `len` bytes from `offset` of the readable part to `out`, for vectored I/O. The
    /// addresses are good for as long as `memory` is mapped: whoever starts I/O with them holds
    /// an `Arc` of it until the I/O has ended.
    ///
    /// # Errors
    /// The readable part ends before; nothing is appended then.
    pub fn readable_iovecs(
        &self,
        memory: &GuestMemoryMmap,
        offset: u32,
        len: u32,
        out: &mut Vec<libc::iovec>,
    ) -> Result<(), ChainError> {
        Part::readable(self).slices(memory, offset, len, |slice| out.push(iovec(&slice)))
    }

    /// Appends the `len` bytes from `offset` of the writable part to `out`, as
    /// [`Chain::readable_iovecs`] does.
    ///
    /// # Errors
    /// The writable part ends before; nothing is appended then.
    pub fn writable_iovecs(
        &self,
        memory: &GuestMemoryMmap,
        offset: u32,
        len: u32,
        out: &mut Vec<libc::iovec>,
    ) -> Result<(), ChainError> {
        Part::writable(self).slices(memory, offset, len, |slice| out.push(iovec(&slice)))
    }
}

fn iovec(slice: &VolatileSlice<'_>) -> libc::iovec {
    libc::iovec {
        iov_base: slice.ptr_guard_mut().as_ptr().cast(),
        iov_len: slice.len(),
    }
}

/// The readable or the writable segments, as one row of bytes.
struct Part<'c> {
    segments: &'c [Segment],
    len: u32,
}

impl<'c> Part<'c> {
    fn readable(chain: &'c Chain) -> Self {
        Self {
            segments: chain.readable(),
            len: chain.readable_len,
        }
    }

    fn writable(chain: &'c Chain) -> Self {
        Self {
            segments: chain.writable(),
            len: chain.writable_len,
        }
    }

    /// Calls `visit` with address and length of each piece of the `len` bytes from `offset`.
    fn pieces(
        &self,
        offset: u32,
        len: u64,
        mut visit: impl FnMut(GuestAddress, u32) -> Result<(), ChainError>,
    ) -> Result<(), ChainError> {
        let available = self.len;
        if u64::from(offset) + len > u64::from(available) {
            return Err(ChainError::Outside {
                offset,
                len,
                available,
            });
        }
        let mut skip = offset;
        let mut left = len as u32; // at most `available`
        for segment in self.segments {
            if left == 0 {
                break;
            }
            if skip >= segment.len {
                skip -= segment.len;
                continue;
            }
            let piece = left.min(segment.len - skip);
            // A segment lies in RAM, so addresses in it do not wrap.
            visit(GuestAddress(segment.addr.0 + u64::from(skip)), piece)?;
            left -= piece;
            skip = 0;
        }
        Ok(())
    }

    fn slices<'a>(
        &self,
        memory: &'a GuestMemoryMmap,
        offset: u32,
        len: u32,
        mut visit: impl FnMut(VolatileSlice<'a>),
    ) -> Result<(), ChainError> {
        self.pieces(offset, u64::from(len), |addr, len| {
            for slice in memory.get_slices(addr, len as usize) {
                visit(slice.map_err(ChainError::Memory)?);
            }
            Ok(())
        })
    }
}
