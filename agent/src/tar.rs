//! Tar archives, by which files get into a guest and out of it: headers in ustar's format with
//! pax's extensions are written; ustar, pax and GNU headers are read.
//!
//! Nothing here touches files. A [`Reader`] is fed with blocks of [`BLOCK`] bytes and tells of the
//! entries between whose headers the content lies. Whatever it is fed, it keeps at most
//! [`MAX_EXTENSION`] bytes at a time.

use alloc::string::String;
use alloc::vec::Vec;

mod number;
mod pax;
mod read;
mod write;

pub use read::{Reader, Step};
pub use write::{end, header};

/// The unit of an archive, in bytes.
pub const BLOCK: usize = 512;
/// The most that one entry's extended headers take, in bytes.
pub const MAX_EXTENSION: u64 = 1 << 20;
/// The longest path in an archive, in bytes.
pub const MAX_PATH: usize = 4096;
/// The exit status of [`crate::wire::Program::CopyOut`] and of `CopyIn` if the path they were
/// given does not exist. Any other failure is 1.
pub const EXIT_MISSING: u8 = 2;

/// A moment, since the beginning of 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Time {
    /// Seconds.
    pub seconds: i64,
    /// And so many nanoseconds later: less than 1e9.
    pub nanoseconds: u32,
}

/// What an entry is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// A file; its content follows.
    File,
    /// A directory.
    Directory,
    /// A symbolic link to this path.
    Symlink(Vec<u8>),
    /// Another name of this earlier entry.
    HardLink(Vec<u8>),
    /// A character device.
    CharDevice {
        /// The number of its driver.
        major: u32,
        /// The number among the driver's devices.
        minor: u32,
    },
    /// A block device.
    BlockDevice {
        /// The number of its driver.
        major: u32,
        /// The number among the driver's devices.
        minor: u32,
    },
    /// A FIFO.
    Fifo,
}

/// A file, directory or other node in an archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its path as the archive has it: it can be absolute or have `..`. Never empty, and without
    /// NUL.
    pub path: Vec<u8>,
    /// What it is.
    pub kind: Kind,
    /// Its permissions and set-id bits.
    pub mode: u32,
    /// Its owner.
    pub uid: u32,
    /// Its group.
    pub gid: u32,
    /// When it was changed last.
    pub mtime: Time,
    /// The length of its content, which follows the header; 0 for all but files.
    pub size: u64,
    /// Extended attributes: names and values.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// The zeros between `size` bytes of content and the next header.
pub const fn padding(size: u64) -> usize {
    let rest = (size % BLOCK as u64) as usize;
    (BLOCK - rest) % BLOCK
}

/// Why an archive can't be read, or an entry not be written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TarError {
    /// A header's checksum is not that of its bytes.
    #[error("this is not a tar archive, or it is damaged: a header's checksum is wrong")]
    Checksum,
    /// A field is not what it should be.
    #[error("the archive has a header with a wrong {0}")]
    Field(&'static str),
    /// A type of entry that is not known.
    #[error("the archive has an entry {path:?} of the unknown type {kind:?}")]
    Type {
        /// Its path.
        path: String,
        /// The letter.
        kind: char,
    },
    /// A sparse file as GNU tar writes it.
    #[error("the archive has a sparse file; make it anew without --sparse")]
    Sparse,
    /// More than [`MAX_EXTENSION`] bytes in extended headers.
    #[error("the archive has an entry with more than {MAX_EXTENSION} bytes of extended headers")]
    Extension,
    /// A path that is empty, too long or has a NUL inside.
    #[error("the archive has a path that is empty, longer than {MAX_PATH} bytes or has a NUL byte")]
    Path,
    /// The end comes in the midst of an entry.
    #[error("the archive ends in the midst of an entry")]
    Truncated,
}

#[cfg(test)]
mod tests;
