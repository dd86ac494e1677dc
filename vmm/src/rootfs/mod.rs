//! Root images: found by what they contain, opened read-only, and packed when they are directories.
//!
//! Every machine that boots the same image opens the same file, so that the host's page cache holds
//! it once. Directories become EROFS images in the cache directory, named by their content.

mod builtin;
mod mode;
mod pack;
mod probe;
mod tree;

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;

use crate::dirs::{Dirs, DirsError};
use crate::disk::{open_regular, special};

pub use builtin::builtin;
pub use casita_agent::spec::FsType;
pub use mode::{Circumstances, RootDevice, RootfsMode};
pub use probe::Problem;

/// An image that a machine can have as its root.
#[derive(Debug)]
pub struct RootImage {
    /// Open for reading only: the host enforces what the guest may not.
    pub file: File,
    /// Where it is; for a directory or the built-in image a file in the cache.
    pub path: PathBuf,
    /// What is on it.
    pub fs: FsType,
    /// Its length in bytes.
    pub len: u64,
    /// Whether a guest that has the image as memory can use its files where they are.
    pub in_place: bool,
}

/// Why there is no root image.
#[derive(Debug, thiserror::Error)]
pub enum RootfsError {
    /// A directory of ours is not usable.
    #[error(transparent)]
    Dirs(#[from] DirsError),
    /// There is nothing at the path.
    #[error("the root image {} does not exist", .0.display())]
    Missing(PathBuf),
    /// The user may not read it.
    #[error("no permission to read the root image {}", .0.display())]
    Denied(PathBuf),
    /// A device, FIFO or socket.
    #[error(
        "the root image {} is {found}; give an image file or a directory", path.display()
    )]
    NotAFile {
        /// The path.
        path: PathBuf,
        /// What it is.
        found: &'static str,
    },
    /// It is a file, but no image that can be used.
    #[error("the root image {} {problem}", path.display())]
    Unusable {
        /// The path.
        path: PathBuf,
        /// What is the matter, and what to do.
        problem: Problem,
    },
    /// The system failed to read or write something.
    #[error("can't {action} {}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// The path.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// Something inside a directory can't be read.
    #[error(
        "can't pack the directory: no permission to read {} in it", .0.display()
    )]
    Unreadable(PathBuf),
    /// A kernel's own file system is mounted inside a directory.
    #[error(
        "can't pack the directory: {} in it is a mounted {kind}; unmount it first", path.display()
    )]
    Mounted {
        /// The mount point.
        path: PathBuf,
        /// What is mounted.
        kind: &'static str,
    },
    /// The image would be packed into itself.
    #[error(
        "can't pack {}: the cache {} lies in it; set XDG_CACHE_HOME to another place",
        path.display(), cache.display()
    )]
    CacheInside {
        /// The directory.
        path: PathBuf,
        /// The cache directory.
        cache: PathBuf,
    },
    /// Somebody keeps writing to a directory.
    #[error("{} changed twice while it was packed; try again when it is quiet", .0.display())]
    Changing(PathBuf),
    /// `mkfs.erofs` is not installed.
    #[error("mkfs.erofs is needed to pack a directory: apt install erofs-utils")]
    NoMkfs,
    /// `mkfs.erofs` failed.
    #[error("mkfs.erofs could not pack {}: {message}", path.display())]
    Mkfs {
        /// The directory.
        path: PathBuf,
        /// What it said.
        message: String,
    },
    /// No busybox that would run in a guest.
    #[error("{problem}; the built-in image needs a static busybox: apt install busybox-static")]
    NoBusybox {
        /// What was found instead.
        problem: String,
    },
}

impl RootfsError {
    fn io<E: Into<io::Error>>(action: &'static str, path: &Path) -> impl FnOnce(E) -> Self {
        let path = path.to_owned();
        move |source| Self::Io {
            action,
            path,
            source: source.into(),
        }
    }
}

/// Opens the image at `path`, or packs the directory that is there.
///
/// # Errors
/// [`RootfsError`], one line that names the path and says what to do.
pub fn open(path: &Path, dirs: &Dirs) -> Result<RootImage, RootfsError> {
    let found = path.metadata().map_err(|error| unreadable(path, error))?;
    if found.is_dir() {
        return pack::directory(path, dirs);
    }
    open_image(path)
}

/// Opens a regular file and finds out what is on it.
fn open_image(path: &Path) -> Result<RootImage, RootfsError> {
    let refuse = |kind: std::fs::FileType| match special(kind) {
        None => Ok(()),
        Some(found) => Err(RootfsError::NotAFile {
            path: path.to_owned(),
            found,
        }),
    };
    // Before it is opened, as opening alone can act on a device; and again on what was opened.
    refuse(
        path.metadata()
            .map_err(|error| unreadable(path, error))?
            .file_type(),
    )?;
    let file = open_regular(path, false, OFlags::empty())
        .map_err(|error| unreadable(path, error))?
        .ok_or_else(|| RootfsError::Missing(path.to_owned()))?;
    let found = file.metadata().map_err(RootfsError::io("read", path))?;
    refuse(found.file_type())?;
    let mut head = vec![0; probe::HEAD_LEN];
    let got = read_head(&file, &mut head).map_err(RootfsError::io("read", path))?;
    head.truncate(got);
    let fs = probe::identify(&head, found.len()).map_err(|problem| RootfsError::Unusable {
        path: path.to_owned(),
        problem,
    })?;
    Ok(RootImage {
        file,
        path: path.to_owned(),
        fs,
        len: found.len(),
        in_place: fs == FsType::Erofs && probe::is_in_place(&head, found.len()),
    })
}

fn read_head(file: &File, head: &mut [u8]) -> io::Result<usize> {
    let mut got = 0;
    while let Some(rest) = head.get_mut(got..).filter(|rest| !rest.is_empty()) {
        match file.read_at(rest, got as u64) {
            Ok(0) => break,
            Ok(more) => got += more,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => (),
            Err(error) => return Err(error),
        }
    }
    Ok(got)
}

fn unreadable(path: &Path, error: io::Error) -> RootfsError {
    match error.kind() {
        io::ErrorKind::NotFound => RootfsError::Missing(path.to_owned()),
        io::ErrorKind::PermissionDenied => RootfsError::Denied(path.to_owned()),
        _ => RootfsError::io("open the root image", path)(error),
    }
}

#[cfg(test)]
mod tests;
