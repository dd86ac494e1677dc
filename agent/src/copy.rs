//! Files to and from tar archives: what `casita cp` and volumes' import and export do, on the
//! guest's side and on the host's.
//!
//! Whoever made an archive may be hostile to whoever unpacks it. Unpacking therefore never leaves
//! its directory: names are checked, and every step from one directory to the next is made with a
//! descriptor and without following a symbolic link, be it the archive's own or one that was there.

use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;

use rustix::fd::BorrowedFd;
use rustix::io::Errno;

use crate::errno;
use crate::tar::{BLOCK, TarError};

mod pack;
mod unpack;

pub use pack::{Pack, pack};
pub use unpack::{Top, Unpack, open_directory, unpack};

/// Bytes that are read or written at once.
const BUFFER: usize = 256 << 10;

/// Why files could not be copied.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CopyError {
    /// The path that was to be packed does not exist.
    #[error("{0} does not exist")]
    Missing(String),
    /// The system refused something with a file.
    #[error("cannot {action} {path}: {why}", why = errno::describe(errno.raw_os_error()))]
    File {
        /// What was tried.
        action: &'static str,
        /// The path in the archive.
        path: String,
        /// Why not.
        errno: Errno,
    },
    /// The system refused to read or write the archive.
    #[error("cannot {0} the archive: {why}", why = errno::describe(.1.raw_os_error()))]
    Archive(&'static str, Errno),
    /// The archive is none.
    #[error(transparent)]
    Tar(#[from] TarError),
    /// A name leads out of the directory.
    #[error(
        "the archive has the path {0:?}, which leads out of the directory; nothing of it is unpacked"
    )]
    Outside(String),
    /// There is something else where the archive has a directory, or the other way round.
    #[error("{path} is {there} and would become {wanted}")]
    InTheWay {
        /// The path in the archive.
        path: String,
        /// What it is.
        there: &'static str,
        /// What it would become.
        wanted: &'static str,
    },
    /// A device or FIFO where none is taken.
    #[error("{0} is a device or a FIFO; it is left out")]
    Special(String),
    /// More content than [`Unpack::limit`].
    #[error("the archive holds more than the {0} bytes that there is room for")]
    Limit(u64),
    /// Directories in directories without end.
    #[error("{0} is nested too deeply; it is left out")]
    Deep(String),
    /// A file that became shorter while it was read.
    #[error("{0} became shorter while it was read; zeros stand for the rest")]
    Shorter(String),
    /// A file system without extended attributes, or without permission for one.
    #[error("{path}: the extended attribute {name} is left out: {why}", why = errno::describe(errno.raw_os_error()))]
    Attribute {
        /// The path in the archive.
        path: String,
        /// Its name.
        name: String,
        /// Why.
        errno: Errno,
    },
}

impl CopyError {
    /// Whether it says that a file does not exist.
    fn is_missing(&self) -> bool {
        let missing = Errno::NOENT;
        matches!(self, CopyError::File { errno, .. } if *errno == missing)
    }
}

/// Hears of what was left out, while the copying goes on.
pub type Complain<'a> = &'a mut dyn FnMut(CopyError);

fn lossy(path: &[u8]) -> String {
    String::from_utf8_lossy(path).into_owned()
}

fn file_error(action: &'static str, path: &[u8]) -> impl FnOnce(Errno) -> CopyError {
    let path = lossy(path);
    move |errno| CopyError::File {
        action,
        path,
        errno,
    }
}

/// An archive that is read.
struct Input<'a> {
    fd: BorrowedFd<'a>,
    buffer: Vec<u8>,
    start: usize,
    end: usize,
}

impl<'a> Input<'a> {
    fn new(fd: BorrowedFd<'a>) -> Self {
        Input {
            fd,
            buffer: vec![0; BUFFER],
            start: 0,
            end: 0,
        }
    }

    /// What has been read already, or is read now; empty at the end.
    fn some(&mut self) -> Result<&[u8], CopyError> {
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
            self.end = retry(|| rustix::io::read(self.fd, &mut self.buffer[..]))
                .map_err(|errno| CopyError::Archive("read", errno))?;
        }
        Ok(self.buffer.get(self.start..self.end).unwrap_or_default())
    }

    /// Bytes of [`Self::some`] that need not come again.
    fn took(&mut self, count: usize) {
        self.start = self.start.saturating_add(count).min(self.end);
    }

    /// The next block; `None` at the end.
    fn block(&mut self) -> Result<Option<[u8; BLOCK]>, CopyError> {
        let mut block = [0; BLOCK];
        let mut filled = 0;
        while let Some(space @ [_, ..]) = block.get_mut(filled..) {
            let some = self.some()?;
            if some.is_empty() {
                return match filled {
                    0 => Ok(None),
                    _ => Err(TarError::Truncated.into()),
                };
            }
            let count = some.len().min(space.len());
            for (to, from) in space.iter_mut().zip(some) {
                *to = *from;
            }
            self.took(count);
            filled += count;
        }
        Ok(Some(block))
    }

    /// Hands the next `len` bytes to `take`, part by part.
    fn content(
        &mut self,
        len: u64,
        take: &mut dyn FnMut(&[u8]) -> Result<(), CopyError>,
    ) -> Result<(), CopyError> {
        let mut left = len;
        while left > 0 {
            let some = self.some()?;
            if some.is_empty() {
                return Err(TarError::Truncated.into());
            }
            let count = usize::try_from(left).unwrap_or(usize::MAX).min(some.len());
            take(some.get(..count).unwrap_or_default())?;
            self.took(count);
            left -= count as u64;
        }
        Ok(())
    }
}

/// An archive that is written.
struct Output<'a> {
    fd: BorrowedFd<'a>,
    buffer: Vec<u8>,
}

impl<'a> Output<'a> {
    fn new(fd: BorrowedFd<'a>) -> Self {
        Output {
            fd,
            buffer: Vec::with_capacity(BUFFER),
        }
    }

    fn put(&mut self, bytes: &[u8]) -> Result<(), CopyError> {
        if self.buffer.len() + bytes.len() > BUFFER {
            self.flush()?;
        }
        if bytes.len() >= BUFFER {
            return write_all(self.fd, bytes).map_err(|errno| CopyError::Archive("write", errno));
        }
        self.buffer.extend_from_slice(bytes);
        Ok(())
    }

    fn zeros(&mut self, count: u64) -> Result<(), CopyError> {
        const ZEROS: [u8; 4096] = [0; 4096];
        let mut left = count;
        while left > 0 {
            let part = usize::try_from(left).unwrap_or(usize::MAX).min(ZEROS.len());
            self.put(ZEROS.get(..part).unwrap_or_default())?;
            left -= part as u64;
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<(), CopyError> {
        write_all(self.fd, &self.buffer).map_err(|errno| CopyError::Archive("write", errno))?;
        self.buffer.clear();
        Ok(())
    }
}

fn write_all(fd: BorrowedFd<'_>, bytes: &[u8]) -> Result<(), Errno> {
    let mut rest = bytes;
    while !rest.is_empty() {
        match retry(|| rustix::io::write(fd, rest))? {
            0 => return Err(Errno::IO),
            written => rest = rest.get(written..).unwrap_or_default(),
        }
    }
    Ok(())
}

fn retry<T>(mut call: impl FnMut() -> Result<T, Errno>) -> Result<T, Errno> {
    loop {
        match call() {
            Err(Errno::INTR) => {}
            result => return result,
        }
    }
}

#[cfg(test)]
mod tests;
