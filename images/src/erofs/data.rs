//! Files' data on their way into the image: aligned to blocks, in large writes, with holes.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;

use rustix::fs::FallocateFlags;

use super::ErofsError;
use super::format::BLOCK;
use crate::tree::Data;

/// What is gathered before it is written.
const BUFFER: usize = 1 << 20;
/// So much at once is written from where it is.
const DIRECT: usize = 128 << 10;
/// Shorter holes are written as zeroes: a file system would keep most of them anyway.
const MIN_HOLE: u64 = 64 << 10;

/// The image's file while data is added to it.
pub struct DataWriter {
    file: File,
    buffer: Vec<u8>,
    /// Where the buffer belongs.
    at: u64,
    /// What files may have together, and still may.
    limit: u64,
    left: u64,
}

impl DataWriter {
    /// Writes into this empty file. `limit` is for the files' lengths together.
    pub fn new(file: File, limit: u64) -> Self {
        Self {
            file,
            buffer: Vec::with_capacity(BUFFER + BLOCK),
            at: BLOCK as u64,
            limit,
            left: limit,
        }
    }

    /// Begins a file of this length; returns the block where its data will be.
    ///
    /// # Errors
    /// If it is too long.
    pub fn begin(&mut self, len: u64) -> Result<u32, ErofsError> {
        let left = self.left.checked_sub(len);
        self.left = left.ok_or(ErofsError::TooLarge(self.limit))?;
        let block = self.next_block();
        u32::try_from(block).map_err(|_| ErofsError::TooManyBlocks)
    }

    /// The block behind all that is written.
    pub fn next_block(&self) -> u64 {
        self.position() / BLOCK as u64
    }

    /// The next bytes of the present file.
    ///
    /// # Errors
    /// If the host can't write them.
    pub fn data(&mut self, bytes: &[u8]) -> Result<(), ErofsError> {
        if bytes.len() >= DIRECT {
            self.flush()?;
            self.file
                .write_all_at(bytes, self.at)
                .map_err(ErofsError::Write)?;
            self.at += bytes.len() as u64;
            return Ok(());
        }
        self.buffer.extend_from_slice(bytes);
        if self.buffer.len() >= BUFFER {
            self.flush()?;
        }
        Ok(())
    }

    /// So many zeroes of the present file.
    ///
    /// # Errors
    /// As for data.
    pub fn hole(&mut self, len: u64) -> Result<(), ErofsError> {
        if len < MIN_HOLE {
            self.buffer.resize(self.buffer.len() + len as usize, 0);
            // Files of nothing but short holes come without any data.
            return if self.buffer.len() >= BUFFER {
                self.flush()
            } else {
                Ok(())
            };
        }
        self.flush()?;
        self.at += len;
        Ok(())
    }

    /// Ends the present file; the next one begins at the next block.
    ///
    /// # Errors
    /// As for data.
    pub fn end(&mut self) -> Result<(), ErofsError> {
        let position = self.position();
        self.hole(position.next_multiple_of(BLOCK as u64) - position)
    }

    /// Gives the space of data that nobody needs any more back to the host.
    ///
    /// # Errors
    /// As for data.
    pub fn punch(&mut self, dead: &[Data]) -> Result<(), ErofsError> {
        if dead.is_empty() {
            return Ok(());
        }
        // Some may still be in the buffer.
        self.flush()?;
        let mut ranges: Vec<(u64, u64)> = dead
            .iter()
            .map(|data| (u64::from(data.block), data.size.div_ceil(BLOCK as u64)))
            .collect();
        ranges.sort_unstable();
        let mut ranges = ranges.into_iter().peekable();
        while let Some((start, mut blocks)) = ranges.next() {
            while let Some((_, more)) = ranges.next_if(|(next, _)| *next == start + blocks) {
                blocks += more;
            }
            let mode = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            let block = BLOCK as u64;
            match rustix::fs::fallocate(&self.file, mode, start * block, blocks * block) {
                Err(rustix::io::Errno::OPNOTSUPP) => return Ok(()),
                result => result.map_err(io::Error::from).map_err(ErofsError::Write)?,
            }
        }
        Ok(())
    }

    /// Writes what is still in memory.
    ///
    /// # Errors
    /// As for data.
    pub fn finish(mut self) -> Result<(File, u64), ErofsError> {
        self.flush()?;
        Ok((self.file, self.at))
    }

    fn position(&self) -> u64 {
        self.at + self.buffer.len() as u64
    }

    fn flush(&mut self) -> Result<(), ErofsError> {
        self.file
            .write_all_at(&self.buffer, self.at)
            .map_err(ErofsError::Write)?;
        self.at += self.buffer.len() as u64;
        self.buffer.clear();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_holes_do_not_gather_in_memory() {
        let file = tempfile::tempfile().unwrap();
        let mut writer = DataWriter::new(file, 1 << 30);
        for _ in 0..1000 {
            writer.begin(MIN_HOLE - 1).unwrap();
            writer.hole(MIN_HOLE - 1).unwrap();
            writer.end().unwrap();
            assert!(writer.buffer.capacity() <= 2 * BUFFER);
        }
        let (_, size) = writer.finish().unwrap();
        assert_eq!(size, BLOCK as u64 + 1000 * MIN_HOLE);
    }
}
