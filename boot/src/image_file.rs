//! Files that a plan reads headers from, and bounded reading of them.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use zerocopy::FromBytes;

/// A kernel or an initrd: a file, or bytes in memory.
pub trait ImageFile {
    /// Size in bytes.
    ///
    /// # Errors
    /// If it cannot be learned, or if this is not a regular file (a FIFO or a device has no size
    /// and cannot be mapped).
    fn size(&self) -> io::Result<u64>;

    /// Fills `buf` with the bytes from `offset` on.
    ///
    /// # Errors
    /// If reading fails or the file ends before `buf` is full.
    fn read_bytes_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()>;
}

impl ImageFile for File {
    fn size(&self) -> io::Result<u64> {
        let metadata = self.metadata()?;
        if metadata.is_file() {
            Ok(metadata.len())
        } else {
            Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "not a regular file",
            ))
        }
    }

    fn read_bytes_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        FileExt::read_exact_at(self, buf, offset)
    }
}

impl ImageFile for Vec<u8> {
    fn size(&self) -> io::Result<u64> {
        Ok(self.len() as u64)
    }

    fn read_bytes_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let bytes = usize::try_from(offset)
            .ok()
            .and_then(|start| self.get(start..start.checked_add(buf.len())?))
            .ok_or(io::ErrorKind::UnexpectedEof)?;
        buf.copy_from_slice(bytes);
        Ok(())
    }
}

/// A file whose size was taken once: a file that grows while it is read gains nothing by it, and
/// one that shrinks makes reads fail.
#[derive(Clone, Copy)]
pub(crate) struct Reader<'a> {
    file: &'a dyn ImageFile,
    size: u64,
}

impl<'a> Reader<'a> {
    pub fn new(file: &'a dyn ImageFile) -> io::Result<Self> {
        let size = file.size()?;
        Ok(Self { file, size })
    }

    pub fn size(&self) -> u64 {
        self.size
    }

    /// Whether `len` bytes from `offset` on lie in the file.
    pub fn has(&self, offset: u64, len: u64) -> bool {
        offset.checked_add(len).is_some_and(|end| end <= self.size)
    }

    /// The first `len` bytes, or fewer if the file is shorter.
    pub fn head(&self, len: usize) -> io::Result<Vec<u8>> {
        let len = len.min(usize::try_from(self.size).unwrap_or(usize::MAX));
        self.bytes(0, len)
    }

    /// `len` bytes from `offset` on. The caller bounds `len`.
    pub fn bytes(&self, offset: u64, len: usize) -> io::Result<Vec<u8>> {
        if !self.has(offset, len as u64) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let mut buf = vec![0; len];
        self.file.read_bytes_at(&mut buf, offset)?;
        Ok(buf)
    }

    /// A structure of the file's format, at `offset`.
    pub fn value<T: FromBytes>(&self, offset: u64) -> io::Result<T> {
        let bytes = self.bytes(offset, size_of::<T>())?;
        T::read_from_bytes(&bytes).map_err(|_| io::ErrorKind::InvalidData.into())
    }
}
