//! Placing the initrd: at the top of low RAM, its parts one behind the other.

use std::io;

use thiserror::Error;

use crate::image_file::{ImageFile, Reader};
use crate::kernel::Kernel;
use crate::layout::{GuestRange, MIB, MemoryLayout, PAGE_SIZE};
use crate::plan::{Blob, Piece, PlanFile};

/// The highest address that an initrd may reach into, if the kernel does not say it: the value in
/// Linux's own setup header.
pub(crate) const DEFAULT_ADDR_MAX: u64 = 0x7fff_ffff;

/// Each part starts at a multiple of this: Linux unpacks archives that follow each other if zeros
/// fill the gap up to four bytes (`Documentation/driver-api/early-userspace/buffer-format.rst`).
const PART_ALIGN: u64 = 4;

/// One part of an initrd, a cpio archive, compressed or not. Several are unpacked one over the
/// other.
#[derive(Clone, Copy)]
pub enum InitrdPart<'a> {
    /// A file; its whole pages are mapped where that is possible (the first part's always).
    File(&'a dyn ImageFile),
    /// Bytes in memory.
    Bytes(&'a [u8]),
}

/// Why an initrd was refused.
#[derive(Debug, Error)]
pub enum InitrdError {
    /// A part cannot be read.
    #[error("cannot read the initrd (part {})", index + 1)]
    Read {
        /// Index of the part.
        index: usize,
        /// Why.
        source: io::Error,
    },
    /// A part is empty: surely not what was meant.
    #[error("the initrd (part {}) is empty", index + 1)]
    Empty {
        /// Index of the part.
        index: usize,
    },
    /// There is no room for it behind the kernel.
    #[error(
        "the initrd of {} MiB does not fit into memory: {} MiB are free behind the kernel",
        size.div_ceil(MIB), free / MIB
    )]
    TooLarge {
        /// Its size in bytes.
        size: u64,
        /// What is free, in bytes.
        free: u64,
    },
}

/// An initrd with its place.
pub(crate) struct Initrd {
    pub range: GuestRange,
    pub pieces: Vec<Piece>,
    pub blobs: Vec<Blob>,
}

/// Places the initrd as high as the kernel and low RAM allow, on a page boundary.
pub(crate) fn place(
    parts: &[InitrdPart<'_>],
    kernel: &Kernel,
    memory: MemoryLayout,
) -> Result<Option<Initrd>, InitrdError> {
    let (offsets, size) = part_offsets(parts)?;
    if parts.is_empty() {
        return Ok(None);
    }

    let top = memory
        .low_ram()
        .end()
        .min(kernel.initrd_addr_max.saturating_add(1));
    let bottom = kernel.occupied.end().next_multiple_of(PAGE_SIZE);
    let start = top.saturating_sub(size) / PAGE_SIZE * PAGE_SIZE;
    if size > top || start < bottom {
        let free = top.saturating_sub(bottom);
        return Err(InitrdError::TooLarge { size, free });
    }

    let mut initrd = Initrd {
        range: GuestRange { start, len: size },
        pieces: Vec::new(),
        blobs: Vec::new(),
    };
    for (index, (part, (offset, len))) in parts.iter().zip(offsets).enumerate() {
        let guest_addr = start + offset;
        match part {
            InitrdPart::File(_) => initrd.pieces.push(Piece {
                file: PlanFile::Initrd(index),
                guest_addr,
                file_offset: 0,
                len,
                written: false,
            }),
            InitrdPart::Bytes(bytes) => initrd.blobs.push(Blob {
                guest_addr,
                bytes: bytes.to_vec(),
            }),
        }
    }
    Ok(Some(initrd))
}

/// Offset and length of each part, and the size of all.
fn part_offsets(parts: &[InitrdPart<'_>]) -> Result<(Vec<(u64, u64)>, u64), InitrdError> {
    let mut offsets = Vec::with_capacity(parts.len());
    let mut end = 0_u64;
    for (index, part) in parts.iter().enumerate() {
        let len = match part {
            InitrdPart::File(file) => Reader::new(*file)
                .map_err(|source| InitrdError::Read { index, source })?
                .size(),
            InitrdPart::Bytes(bytes) => bytes.len() as u64,
        };
        if len == 0 {
            return Err(InitrdError::Empty { index });
        }
        // A sparse file may claim nearly any size; adding them up must not wrap.
        let placed = end
            .checked_next_multiple_of(PART_ALIGN)
            .and_then(|start| Some((start, start.checked_add(len)?)));
        let Some((start, new_end)) = placed else {
            return Err(InitrdError::TooLarge {
                size: u64::MAX,
                free: 0,
            });
        };
        offsets.push((start, len));
        end = new_end;
    }
    Ok((offsets, end))
}
