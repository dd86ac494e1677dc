//! A part of a file, read without moving the file's own position: several can be read at once.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

/// The part that is still to be read.
#[derive(Debug, Clone)]
pub struct Section {
    file: Arc<File>,
    at: u64,
    left: u64,
}

impl Section {
    /// The `len` bytes from `at` on.
    pub fn new(file: Arc<File>, at: u64, len: u64) -> Self {
        Self {
            file,
            at,
            left: len,
        }
    }

    /// How many bytes are left.
    pub fn len(&self) -> u64 {
        self.left
    }
}

impl Read for Section {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let want = usize::try_from(self.left).map_or(buffer.len(), |left| left.min(buffer.len()));
        if want == 0 {
            return Ok(0);
        }
        let got = self.file.read_at(&mut buffer[..want], self.at)?;
        if got == 0 {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "the file ends too early",
            ));
        }
        self.at += got as u64;
        self.left -= got as u64;
        Ok(got)
    }
}
