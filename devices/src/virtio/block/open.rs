//! Looking at a file before it becomes a disk.

use std::fs::File;
use std::io::{Seek, SeekFrom};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;
use thiserror::Error;

use super::layout::{SECTOR_SHIFT, SECTOR_SIZE, SERIAL_LEN};

/// Why a disk cannot be had.
#[derive(Debug, Error)]
pub enum BlockError {
    /// The host could not say what the file is.
    #[error("disk {}: cannot be examined", path.display())]
    Examine {
        /// The disk's path.
        path: PathBuf,
        /// The host's reason.
        source: std::io::Error,
    },
    /// Not a regular file and not a block device.
    #[error("disk {}: is {kind}, give a raw image file or a block device", path.display())]
    WrongKind {
        /// The disk's path.
        path: PathBuf,
        /// What it is instead.
        kind: &'static str,
    },
    /// There is not one sector in it.
    #[error(
        "disk {}: holds {len} bytes, less than one sector of 512; is the image complete?",
        path.display()
    )]
    TooSmall {
        /// The disk's path.
        path: PathBuf,
        /// Its length in bytes.
        len: u64,
    },
    /// A writable disk needs a descriptor that can read and write.
    #[error("disk {}: is open for {mode}, a writable disk has to be open for reading and writing", path.display())]
    NotWritable {
        /// The disk's path.
        path: PathBuf,
        /// How it is open.
        mode: &'static str,
    },
    /// A read-only disk needs a descriptor that cannot write.
    #[error("disk {}: is open for writing, a read-only disk has to be open for reading alone", path.display())]
    NotReadOnly {
        /// The disk's path.
        path: PathBuf,
    },
    /// A setting has a value that the device cannot have.
    #[error("disk {}: {setting} {value} is not possible, {allowed}", path.display())]
    Setting {
        /// The disk's path.
        path: PathBuf,
        /// The setting's name.
        setting: &'static str,
        /// Its value.
        value: String,
        /// What it may be.
        allowed: &'static str,
    },
    /// `io_uring` was asked for, and the host has none.
    #[error("disk {}: io_uring cannot be used on this host, try engine \"auto\"", path.display())]
    Uring {
        /// The disk's path.
        path: PathBuf,
        /// The host's reason.
        source: std::io::Error,
    },
}

/// Checks that `file` can be a disk and returns its length in bytes.
///
/// # Errors
/// It is of another kind, too small, or open in another mode than the disk needs.
pub fn examine(file: &mut File, path: &Path, read_only: bool) -> Result<u64, BlockError> {
    let examine = |source| BlockError::Examine {
        path: path.to_owned(),
        source,
    };
    let metadata = file.metadata().map_err(examine)?;
    let file_type = metadata.file_type();
    let len = if file_type.is_file() {
        metadata.len()
    } else if file_type.is_block_device() {
        file.seek(SeekFrom::End(0)).map_err(examine)?
    } else {
        return Err(BlockError::WrongKind {
            path: path.to_owned(),
            kind: if file_type.is_dir() {
                "a directory"
            } else if file_type.is_fifo() {
                "a FIFO"
            } else if file_type.is_char_device() {
                "a character device"
            } else {
                "not a file"
            },
        });
    };
    check_mode(file, path, read_only)?;
    if len < SECTOR_SIZE {
        return Err(BlockError::TooSmall {
            path: path.to_owned(),
            len,
        });
    }
    Ok(len)
}

fn check_mode(file: &File, path: &Path, read_only: bool) -> Result<(), BlockError> {
    let flags = rustix::fs::fcntl_getfl(file).map_err(|error| BlockError::Examine {
        path: path.to_owned(),
        source: error.into(),
    })?;
    let not_writable = |mode| BlockError::NotWritable {
        path: path.to_owned(),
        mode,
    };
    match (read_only, flags & OFlags::RWMODE) {
        (true, OFlags::RDONLY) => Ok(()),
        (true, _) => Err(BlockError::NotReadOnly {
            path: path.to_owned(),
        }),
        // pwrite(2) ignores its position on such a descriptor.
        (false, _) if flags.contains(OFlags::APPEND) => Err(not_writable("appending")),
        (false, OFlags::RDWR) => Ok(()),
        (false, OFlags::RDONLY) => Err(not_writable("reading alone")),
        (false, _) => Err(not_writable("writing alone")),
    }
}

/// Capacity in sectors of a file of `len` bytes. A last, partial sector counts if nothing is ever
/// written: what the file lacks reads as zeroes. A writable disk leaves it out, as writing it
/// would lengthen the file.
pub fn capacity(len: u64, read_only: bool) -> u64 {
    if read_only {
        len.div_ceil(SECTOR_SIZE)
    } else {
        len >> SECTOR_SHIFT
    }
}

/// The serial number as the device returns it.
///
/// # Errors
/// It is longer than 20 bytes.
pub fn serial_bytes(serial: &str, path: &Path) -> Result<[u8; SERIAL_LEN], BlockError> {
    let mut bytes = [0; SERIAL_LEN];
    match bytes.get_mut(..serial.len()) {
        Some(start) => start.copy_from_slice(serial.as_bytes()),
        None => {
            return Err(BlockError::Setting {
                path: path.to_owned(),
                setting: "serial",
                value: format!("{serial:?}"),
                allowed: "it has at most 20 bytes",
            });
        }
    }
    Ok(bytes)
}
