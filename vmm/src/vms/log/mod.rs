//! What a VM's command wrote while nobody was attached.
//!
//! Two files of records, `log.0` and, before it in time, `log.1`; each at most [`SEGMENT`] bytes.
//! A record is a header of [`HEADER`] bytes (length, stream, time; little-endian) and so many bytes
//! as they were written: a chunk, not a line.

mod lines;
mod reader;
mod writer;

use std::path::{Path, PathBuf};

pub use reader::{LogReader, Show};
pub(in crate::vms) use writer::next_segment;
pub use writer::{LogWriter, NextSegment, StreamWriter};

use serde::{Deserialize, Serialize};

/// The most that one of the two files holds.
pub const SEGMENT: u64 = 32 << 20;
/// The most that one record holds.
const MAX_CHUNK: usize = 64 << 10;
/// Length (`u32`), stream (`u8`), nanoseconds since 1970 (`u64`).
const HEADER: usize = 4 + 1 + 8;

/// Where bytes were written to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum LogStream {
    /// Standard output, or the terminal, or the console of a plain boot.
    Stdout = 1,
    /// Standard error.
    Stderr = 2,
}

/// The newer file.
fn current(dir: &Path) -> PathBuf {
    dir.join("log.0")
}

/// The older one.
fn previous(dir: &Path) -> PathBuf {
    dir.join("log.1")
}

/// What a record's header says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Header {
    len: usize,
    stream: LogStream,
    time_ns: u64,
}

impl Header {
    fn to_bytes(self) -> [u8; HEADER] {
        let mut bytes = [0; HEADER];
        let (len, rest) = bytes.split_at_mut(4);
        let (stream, time) = rest.split_at_mut(1);
        len.copy_from_slice(&(self.len as u32).to_le_bytes());
        stream.copy_from_slice(&[self.stream as u8]);
        time.copy_from_slice(&self.time_ns.to_le_bytes());
        bytes
    }

    /// `None` if it can't be one.
    fn parse(bytes: [u8; HEADER]) -> Option<Self> {
        let [a, b, c, d, stream, time @ ..] = bytes;
        let len = u32::from_le_bytes([a, b, c, d]) as usize;
        let stream = match stream {
            1 => LogStream::Stdout,
            2 => LogStream::Stderr,
            _ => return None,
        };
        (1..=MAX_CHUNK).contains(&len).then_some(Self {
            len,
            stream,
            time_ns: u64::from_le_bytes(time),
        })
    }
}

#[cfg(test)]
mod tests;
