//! A disk that is a raw file or a block device of the host.
#![allow(unsafe_code, reason = "vectored I/O straight into guest memory")]

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, RawFd};

use libc::{c_int, iovec, off64_t};
use rustix::fs::{FallocateFlags, fallocate};

use super::{Buffers, Operation};

/// Piece of zeroes that is written where a file system cannot zero a range by itself.
static ZEROES: [u8; 4096] = [0; 4096];
/// So many pieces of [`ZEROES`] go into one system call.
const ZERO_PIECES: usize = 64;

/// An open file and how to move bytes to and from it. Shared by the workers of all queues.
#[derive(Debug)]
pub struct DiskFile {
    file: File,
    len: u64,
}

impl DiskFile {
    /// A disk of `len` bytes over `file`.
    pub fn new(file: File, len: u64) -> Self {
        Self { file, len }
    }

    /// Length in bytes when the disk was opened.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// The disk has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The descriptor for the kernel's asynchronous interfaces.
    pub fn raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }

    /// Carries out an operation on the caller's thread. A read or write may move fewer bytes than
    /// the buffers have.
    ///
    /// # Errors
    /// The host's error. An interrupted call is repeated.
    pub fn execute(&self, operation: &Operation, buffers: &Buffers) -> io::Result<usize> {
        match *operation {
            Operation::Read { offset } => self.read(buffers.pieces(), offset, 0),
            Operation::Write { offset, durable } => {
                let flags = if durable { libc::RWF_DSYNC } else { 0 };
                self.write(buffers.pieces(), offset, flags)
            }
            Operation::Flush => retry(|| Ok(rustix::fs::fdatasync(&self.file)?)).map(|()| 0),
            Operation::Discard { offset, len } => self.punch(offset, len).map(|()| 0),
            Operation::WriteZeroes { offset, len, unmap } => {
                self.write_zeroes(offset, len, unmap).map(|()| 0)
            }
        }
    }

    /// Reads only what the host's page cache has at hand; `WouldBlock` if that is nothing.
    ///
    /// # Errors
    /// The host's error; `Unsupported` if its file system cannot tell.
    pub fn read_cached(&self, buffers: &Buffers, offset: u64) -> io::Result<usize> {
        self.read(buffers.pieces(), offset, libc::RWF_NOWAIT)
    }

    fn read(&self, pieces: &[iovec], offset: u64, flags: c_int) -> io::Result<usize> {
        let (count, offset) = (piece_count(pieces)?, signed(offset)?);
        retry(|| {
            // SAFETY: the pieces point into guest memory that their owner keeps mapped during the
            // call; the kernel checks what it writes.
            bytes(unsafe { libc::preadv2(self.raw_fd(), pieces.as_ptr(), count, offset, flags) })
        })
    }

    fn write(&self, pieces: &[iovec], offset: u64, flags: c_int) -> io::Result<usize> {
        let (count, offset) = (piece_count(pieces)?, signed(offset)?);
        retry(|| {
            // SAFETY: as in `read`, or they point to ZEROES; the kernel only reads them.
            bytes(unsafe { libc::pwritev2(self.raw_fd(), pieces.as_ptr(), count, offset, flags) })
        })
    }

    fn punch(&self, offset: u64, len: u64) -> io::Result<()> {
        self.fallocate(
            FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE,
            offset,
            len,
        )
    }

    /// Zeroes a range by the cheapest means that the file system has. Only with `unmap` may it
    /// give space back.
    fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> io::Result<()> {
        let mut result = Err(io::ErrorKind::Unsupported.into());
        if unmap {
            result = self.punch(offset, len);
        }
        if is_unsupported(&result) {
            let mode = FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE;
            result = self.fallocate(mode, offset, len);
        }
        if is_unsupported(&result) {
            result = self.write_zero_pages(offset, len);
        }
        result
    }

    fn fallocate(&self, mode: FallocateFlags, offset: u64, len: u64) -> io::Result<()> {
        if len == 0 {
            return Ok(()); // which fallocate(2) calls invalid
        }
        retry(|| Ok(fallocate(&self.file, mode, offset, len)?))
    }

    fn write_zero_pages(&self, offset: u64, len: u64) -> io::Result<()> {
        let mut done = 0;
        while done < len {
            let mut left = len - done;
            let mut pieces = Vec::with_capacity(ZERO_PIECES);
            while left > 0 && pieces.len() < ZERO_PIECES {
                let piece = left.min(ZEROES.len() as u64);
                pieces.push(iovec {
                    iov_base: ZEROES.as_ptr().cast_mut().cast(),
                    iov_len: piece as usize,
                });
                left -= piece;
            }
            match self.write(&pieces, offset + done, 0)? {
                0 => return Err(io::ErrorKind::WriteZero.into()),
                written => done += written as u64,
            }
        }
        Ok(())
    }
}

/// The file system does not know the operation (or this mode of it).
pub fn is_unsupported<T>(result: &io::Result<T>) -> bool {
    result
        .as_ref()
        .is_err_and(|error| error.kind() == io::ErrorKind::Unsupported)
}

fn piece_count(pieces: &[iovec]) -> io::Result<c_int> {
    c_int::try_from(pieces.len()).map_err(|_| io::ErrorKind::InvalidInput.into())
}

fn signed(offset: u64) -> io::Result<off64_t> {
    off64_t::try_from(offset).map_err(|_| io::ErrorKind::InvalidInput.into())
}

fn bytes(result: isize) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}

fn retry<T>(mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::unix::fs::MetadataExt;

    use super::*;

    fn disk(content: &[u8]) -> (DiskFile, File) {
        let file = tempfile::tempfile().unwrap();
        rustix::io::pwrite(&file, content, 0).unwrap();
        let len = content.len() as u64;
        (DiskFile::new(file.try_clone().unwrap(), len), file)
    }

    fn content(file: &File) -> Vec<u8> {
        let mut bytes = vec![0; file.metadata().unwrap().len() as usize];
        rustix::io::pread(file, &mut bytes[..], 0).unwrap();
        bytes
    }

    #[test]
    fn zeroes_end_where_they_should_by_each_means() {
        type Means = fn(&DiskFile) -> io::Result<()>;
        let means: [Means; 3] = [
            |disk| disk.write_zeroes(4096, 8192, true),
            |disk| disk.write_zeroes(4096, 8192, false),
            |disk| disk.write_zero_pages(4096, 8192),
        ];
        for zero in means {
            let (disk, file) = disk(&[7; 16384]);
            zero(&disk).unwrap();
            let mut expected = vec![7; 16384];
            expected[4096..12288].fill(0);
            assert_eq!(content(&file), expected);
        }
    }

    #[test]
    fn zeroes_longer_than_one_call_and_of_odd_length_are_all_written() {
        let len = 600 * 1024 + 512;
        let (disk, file) = disk(&vec![7; len + 512]);
        disk.write_zero_pages(0, len as u64).unwrap();
        let bytes = content(&file);
        assert!(bytes[..len].iter().all(|&byte| byte == 0));
        assert_eq!(bytes[len..], [7; 512]);
    }

    #[test]
    fn discard_gives_space_back_and_keeps_the_length() {
        let (disk, mut file) = disk(&vec![7; 1 << 20]);
        file.sync_all().unwrap();
        let before = file.metadata().unwrap().blocks();
        disk.execute(
            &Operation::Discard {
                offset: 0,
                len: 1 << 20,
            },
            &Buffers::new(crate::testing::FakeDriver::memory()),
        )
        .unwrap();
        assert!(file.metadata().unwrap().blocks() < before);
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).unwrap();
        assert_eq!(content(&file), vec![0; 1 << 20]);
    }
}
