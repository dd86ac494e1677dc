//! What can be wrong with a disk, in one line each.

use std::io;
use std::path::{Path, PathBuf};

use super::size::format_size;
use super::spec::SpecError;
use crate::dirs::DirsError;

/// Why a disk can't be used.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// The specification itself is wrong.
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// A directory of ours is not usable.
    #[error(transparent)]
    Dirs(#[from] DirsError),
    /// No such file and no size to make one.
    #[error("the disk {} does not exist; add ,size=2G to make it", .0.display())]
    Missing(PathBuf),
    /// A symbolic link to nothing, which is not followed to make a file elsewhere.
    #[error("the disk {} is a symbolic link to a file that does not exist", .0.display())]
    DanglingLink(PathBuf),
    /// A device, directory, FIFO or socket.
    #[error("the disk {} is {found}; a disk has to be a regular file", path.display())]
    NotAFile {
        /// The path.
        path: PathBuf,
        /// What it is.
        found: &'static str,
    },
    /// Another machine has it.
    #[error("the disk {} is in use by another VM{}", path.display(), by(*pid))]
    InUse {
        /// The path.
        path: PathBuf,
        /// The process that locked it, where the system says.
        pid: Option<u32>,
    },
    /// There is one of another size.
    #[error(
        "the disk {} has {} and not the {} asked for; leave the size out or choose another file",
        path.display(), format_size(*found), format_size(*wanted)
    )]
    OtherSize {
        /// The path.
        path: PathBuf,
        /// Its length in bytes.
        found: u64,
        /// The size in the specification.
        wanted: u64,
    },
    /// No whole number of sectors.
    #[error("the disk {} has {len} bytes, which is not a whole number of 512-byte sectors", path.display())]
    Unaligned {
        /// The path.
        path: PathBuf,
        /// Its length in bytes.
        len: u64,
    },
    /// Empty or otherwise too small to be formatted.
    #[error("the disk {} has {len} bytes; one that is to be formatted needs at least 16 MiB", path.display())]
    TooSmall {
        /// The path.
        path: PathBuf,
        /// Its length in bytes.
        len: u64,
    },
    /// The superblock speaks of more than the file has.
    #[error(
        "the disk {} is smaller than its file system ({len} of {fs_len} bytes); \
         lengthen it with truncate -s {fs_len}", path.display()
    )]
    Truncated {
        /// The path.
        path: PathBuf,
        /// Its length in bytes.
        len: u64,
        /// The file system's length in bytes.
        fs_len: u64,
    },
    /// Data that is no ext4 file system is never formatted over.
    #[error(
        "the disk {} holds data that is not an ext4 file system; it is left as it is",
        .0.display()
    )]
    Foreign(PathBuf),
    /// Its journal has to be replayed before it can be read.
    #[error(
        "the disk {} was not unmounted when it was used last, so it can't be read without being \
         mended; start a VM once that may write to it", .0.display()
    )]
    NeedsRecovery(PathBuf),
    /// `mke2fs` is not installed.
    #[error("mke2fs is needed to format a disk: apt install e2fsprogs")]
    NoMke2fs,
    /// `mke2fs` failed.
    #[error("mke2fs could not make a file system of {}: {message}", format_size(*len))]
    Mke2fs {
        /// The file system's length in bytes.
        len: u64,
        /// What it said.
        message: String,
    },
    /// The host's disk is full.
    #[error("no space is left for the disk {}", .0.display())]
    HostFull(PathBuf),
    /// The host's file system can't hold so long a file.
    #[error("the file system of {} can't hold a file of {}", path.display(), format_size(*len))]
    TooLargeForHost {
        /// The path.
        path: PathBuf,
        /// The length in bytes.
        len: u64,
    },
    /// Anything else the system said.
    #[error("can't {action} the disk {}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// The path.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

fn by(pid: Option<u32>) -> String {
    pid.map_or_else(String::new, |pid| format!(" (pid {pid})"))
}

impl DiskError {
    pub(super) fn io(action: &'static str, path: &Path, source: impl Into<io::Error>) -> Self {
        let source = source.into();
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                Self::HostFull(path.to_owned())
            }
            _ => Self::Io {
                action,
                path: path.to_owned(),
                source,
            },
        }
    }
}
