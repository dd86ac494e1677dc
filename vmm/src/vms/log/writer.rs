//! Writing a log.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufReader, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use super::{HEADER, Header, LogStream, MAX_CHUNK, SEGMENT, current, previous};
use crate::time::since_1970;

/// Writes a VM's log. Clones write to the same one, from any thread.
#[derive(Debug, Clone)]
pub struct LogWriter(Arc<Mutex<Writer>>);

/// Puts the current segment away, and gives an empty one.
pub type NextSegment = Box<dyn FnMut() -> io::Result<File> + Send>;

struct Writer {
    next: NextSegment,
    file: File,
    len: u64,
    segment: u64,
}

impl LogWriter {
    /// Goes on behind the last whole record in `dir`.
    pub(in crate::vms) fn open(dir: &Path) -> io::Result<Self> {
        Self::with_segment(dir, SEGMENT)
    }

    pub(super) fn with_segment(dir: &Path, segment: u64) -> io::Result<Self> {
        let file = open(dir)?;
        // A writer that was killed may have left a part of a record.
        let len = whole(&file)?;
        file.set_len(len)?;
        Ok(Self(Arc::new(Mutex::new(Writer {
            next: next_in(dir),
            file,
            len,
            segment,
        }))))
    }

    /// Has segments put away by `next`, in a process that can't do so itself.
    pub fn through(&self, next: NextSegment) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).next = next;
    }

    /// One of its streams.
    pub fn stream(&self, stream: LogStream) -> StreamWriter {
        StreamWriter {
            log: self.clone(),
            stream,
        }
    }

    /// Writes what came from `stream` now.
    ///
    /// # Errors
    /// If the host has no space left, for example. What could be written of it is whole records.
    pub fn append(&self, stream: LogStream, bytes: &[u8]) -> io::Result<()> {
        let time = since_1970();
        let mut writer = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for chunk in bytes.chunks(MAX_CHUNK) {
            let header = Header {
                len: chunk.len(),
                stream,
                time_ns: u64::try_from(time.as_nanos()).unwrap_or(u64::MAX),
            };
            writer.append(header, chunk)?;
        }
        Ok(())
    }
}

/// One stream of a log, to be written to.
#[derive(Debug)]
pub struct StreamWriter {
    log: LogWriter,
    stream: LogStream,
}

impl Write for StreamWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.log.append(self.stream, bytes)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Writer {
    fn append(&mut self, header: Header, chunk: &[u8]) -> io::Result<()> {
        let record = [&header.to_bytes()[..], chunk].concat();
        let len = record.len() as u64;
        if self.len > 0 && self.len + len > self.segment {
            self.file = (self.next)()?;
            self.len = 0;
        }
        // One write, so that readers seldom see a part.
        if let Err(error) = self.file.write_all(&record) {
            self.file.set_len(self.len)?;
            return Err(error);
        }
        self.len += len;
        Ok(())
    }
}

fn next_in(dir: &Path) -> NextSegment {
    let dir: PathBuf = dir.to_owned();
    Box::new(move || next_segment(&dir))
}

/// Puts the current segment in `dir` away, and makes an empty one.
pub(in crate::vms) fn next_segment(dir: &Path) -> io::Result<File> {
    fs::rename(current(dir), previous(dir))?;
    open(dir)
}

impl std::fmt::Debug for Writer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Writer")
            .field("file", &self.file)
            .field("len", &self.len)
            .finish_non_exhaustive()
    }
}

fn open(dir: &Path) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .append(true)
        .create(true)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW)
        .open(current(dir))
}

/// The length of the whole records at the beginning of `file`.
fn whole(file: &File) -> io::Result<u64> {
    let end = file.metadata()?.len();
    let mut reader = BufReader::with_capacity(256 << 10, file);
    let mut at = 0;
    loop {
        let mut bytes = [0; HEADER];
        match reader.read_exact(&mut bytes) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(at),
            other => other?,
        }
        let Some(header) = Header::parse(bytes) else {
            return Ok(at);
        };
        let next = at + (HEADER + header.len) as u64;
        if next > end {
            return Ok(at);
        }
        reader.seek_relative(i64::try_from(header.len).unwrap_or(0))?;
        at = next;
    }
}
