//! Blobs on their way: `BLOBS/HEX.partial` grows until it is whole, whoever works on it, and is
//! removed when the last process that uses it is done.
//!
//! A process that downloads has the file's exclusive lock (flock), one that reads from it a shared
//! one. Nobody waits for a lock while it has another one, so no two processes can wait for each
//! other for ever. What a killed process leaves is taken up by the next that wants the same blob.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use casita::staging::is_at;
use casita_images::Digest;
use reqwest::{Response, StatusCode};
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use sha2::{Digest as _, Sha256};

use super::backoff::Backoff;
use super::error::PullError;
use super::registry::Registry;
use crate::section::Section;

/// How often to look whether another process has finished a blob.
const OTHER_PROCESS: Duration = Duration::from_millis(100);
/// A blob that comes in more pieces than this is not worth more.
const PIECES: u32 = 1000;

/// What a manifest says of a blob.
#[derive(Debug, Clone, Copy)]
pub struct Wanted {
    /// Its content's digest.
    pub digest: Digest,
    /// Its length.
    pub size: u64,
}

/// Where blobs are put, and what becomes of them.
#[derive(Debug, Clone)]
pub struct Folder {
    path: PathBuf,
    /// Whether what was begun is left for another attempt.
    keep: Arc<AtomicBool>,
    /// Bytes of blobs that are there.
    done: Arc<AtomicU64>,
}

impl Folder {
    /// `path` is a directory that is there; `done` counts the bytes.
    pub fn new(path: PathBuf, done: Arc<AtomicU64>) -> Self {
        Self {
            path,
            keep: Arc::default(),
            done,
        }
    }
}

/// A blob's file, locked. Dropped, it is removed unless another process uses it or it is kept for
/// another attempt.
#[derive(Debug)]
pub struct Blob {
    file: Arc<File>,
    path: PathBuf,
    keep: Arc<AtomicBool>,
}

impl Blob {
    /// The content, from its beginning.
    ///
    /// # Errors
    /// If the file can't be looked at.
    pub fn reader(&self) -> io::Result<Section> {
        let len = self.file.metadata()?.len();
        Ok(Section::new(self.file.clone(), 0, len))
    }

    fn is_worth_keeping(&self) -> bool {
        self.keep.load(Ordering::Relaxed) && self.file.metadata().is_ok_and(|found| found.len() > 0)
    }
}

impl Drop for Blob {
    fn drop(&mut self) {
        let last = flock(&*self.file, FlockOperation::NonBlockingLockExclusive).is_ok();
        if last && !self.is_worth_keeping() && is_at(&self.file, &self.path).unwrap_or(false) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Fetches a blob into `folder`, or the part of it that is not there yet.
///
/// # Errors
/// If it does not come, or is not what was wanted.
pub async fn fetch(
    registry: &Registry,
    folder: &Folder,
    wanted: Wanted,
) -> Result<Blob, PullError> {
    let path = folder.path.join(format!("{}.partial", wanted.digest.hex()));
    let file_error = |source| PullError::File {
        path: path.clone(),
        source,
    };
    let (blob, whole) = loop {
        match claim(&path, wanted.size, &folder.keep).map_err(file_error)? {
            Claim::Whole(blob) => break (blob, true),
            Claim::Partial(blob) => break (blob, false),
            Claim::Busy => tokio::time::sleep(OTHER_PROCESS).await,
        }
    };
    let mut download = Download {
        registry,
        wanted,
        what: format!("blob {}", wanted.digest),
        sha256: Sha256::new(),
        len: 0,
        done: folder.done.clone(),
        blob,
    };
    match download.run(whole).await {
        Ok(()) => Ok(download.blob),
        Err(error) => {
            // Before this blob and its siblings are dropped.
            folder
                .keep
                .store(error.keeps_downloads(), Ordering::Relaxed);
            Err(error)
        }
    }
}

enum Claim {
    /// Of the right length, under a shared lock.
    Whole(Blob),
    /// Empty or begun, under the exclusive lock.
    Partial(Blob),
    /// Another process works on it.
    Busy,
}

fn claim(path: &Path, size: u64, keep: &Arc<AtomicBool>) -> io::Result<Claim> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
        .open(path)?;
    let exclusive = try_lock(&file, FlockOperation::NonBlockingLockExclusive)?;
    if !exclusive && !try_lock(&file, FlockOperation::NonBlockingLockShared)? {
        return Ok(Claim::Busy);
    }
    // The one who held it may have removed it.
    let whole = file.metadata()?.len() == size && size > 0;
    if !is_at(&file, path)? || (!exclusive && !whole) {
        return Ok(Claim::Busy);
    }
    let blob = Blob {
        file: Arc::new(file),
        path: path.to_owned(),
        keep: keep.clone(),
    };
    Ok(if exclusive {
        Claim::Partial(blob)
    } else {
        Claim::Whole(blob)
    })
}

fn try_lock(file: &File, operation: FlockOperation) -> io::Result<bool> {
    match flock(file, operation) {
        Ok(()) => Ok(true),
        Err(Errno::WOULDBLOCK) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

struct Download<'a> {
    registry: &'a Registry,
    wanted: Wanted,
    what: String,
    sha256: Sha256,
    /// How much is in the file and hashed.
    len: u64,
    done: Arc<AtomicU64>,
    blob: Blob,
}

impl Download<'_> {
    async fn run(&mut self, whole: bool) -> Result<(), PullError> {
        self.hash_what_is_there()?;
        if self.len == self.wanted.size && self.digest() == self.wanted.digest {
            return self.share();
        }
        if whole {
            // Somebody else has verified it and still has it locked, so it can't be replaced.
            return Err(self.wrong_digest());
        }
        let begun = self.len > 0;
        self.fill().await?;
        if self.digest() != self.wanted.digest && begun {
            // What was there may have been bad, and not what came now.
            log::info!("starting {} again", self.what);
            self.restart()?;
            self.fill().await?;
        }
        if self.digest() != self.wanted.digest {
            return Err(self.wrong_digest());
        }
        self.share()
    }

    /// Lets others read it too.
    fn share(&self) -> Result<(), PullError> {
        flock(&*self.blob.file, FlockOperation::LockShared)
            .map_err(|error| self.file_error(error.into()))
    }

    fn hash_what_is_there(&mut self) -> Result<(), PullError> {
        let mut buffer = vec![0; 256 << 10];
        loop {
            let got = match (&*self.blob.file).read(&mut buffer) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                got => got.map_err(|error| self.file_error(error))?,
            };
            if got == 0 {
                break;
            }
            self.count(&buffer[..got]);
        }
        if self.len > self.wanted.size {
            self.restart()?;
        }
        Ok(())
    }

    fn count(&mut self, bytes: &[u8]) {
        self.sha256.update(bytes);
        self.len += bytes.len() as u64;
        self.done.fetch_add(bytes.len() as u64, Ordering::Relaxed);
    }

    fn restart(&mut self) -> Result<(), PullError> {
        self.done.fetch_sub(self.len, Ordering::Relaxed);
        self.sha256 = Sha256::new();
        self.len = 0;
        let mut file = &*self.blob.file;
        file.set_len(0)
            .and_then(|()| file.rewind())
            .map_err(|error| self.file_error(error))
    }

    /// Asks for what is missing until nothing is. Pieces that bring nothing are counted.
    async fn fill(&mut self) -> Result<(), PullError> {
        let mut backoff = Backoff::default();
        let path = format!("blobs/{}", self.wanted.digest);
        for _ in 0..PIECES {
            if self.len == self.wanted.size {
                return Ok(());
            }
            let before = self.len;
            let response = self.registry.get(&path, &self.what, None, before).await?;
            let broke = self.take(response).await?;
            if self.len > before {
                backoff.reset();
            }
            if self.len < self.wanted.size {
                let error = || broke.map_or_else(|| self.truncated(), |error| self.short(error));
                backoff.wait(None, error).await?;
            }
        }
        Err(self.truncated())
    }

    /// Writes what a response brings. A body that breaks off is no error yet, and returned.
    async fn take(&mut self, mut response: Response) -> Result<Option<reqwest::Error>, PullError> {
        match response.status() {
            StatusCode::PARTIAL_CONTENT if starts_at(&response, self.len) => (),
            _ if self.len == 0 => (),
            // It does not do ranges, or this one is wrong: from the beginning.
            _ => {
                self.restart()?;
                if response.status() != StatusCode::OK {
                    return Ok(None);
                }
            }
        }
        loop {
            match response.chunk().await {
                Ok(Some(chunk)) => {
                    if chunk.len() as u64 > self.wanted.size - self.len {
                        return Err(PullError::TooLong {
                            host: self.registry.host().to_owned(),
                            what: self.what.clone(),
                            size: self.wanted.size,
                        });
                    }
                    (&*self.blob.file)
                        .write_all(&chunk)
                        .map_err(|error| self.file_error(error))?;
                    self.count(&chunk);
                }
                Ok(None) => return Ok(None),
                Err(error) => return Ok(Some(error)),
            }
        }
    }

    fn digest(&self) -> Digest {
        Digest::from_bytes(self.sha256.clone().finalize().into())
    }

    /// A body that ended before what was announced is the registry's; a dead network is not.
    fn short(&self, error: reqwest::Error) -> PullError {
        if error.is_timeout() {
            return self.registry.broken(error);
        }
        log::info!("{}: {error}", self.what);
        self.truncated()
    }

    fn truncated(&self) -> PullError {
        PullError::Truncated {
            host: self.registry.host().to_owned(),
            digest: self.wanted.digest,
            got: self.len,
            size: self.wanted.size,
        }
    }

    fn wrong_digest(&self) -> PullError {
        PullError::WrongDigest {
            host: self.registry.host().to_owned(),
            expected: self.wanted.digest,
            got: self.digest(),
        }
    }

    fn file_error(&self, source: io::Error) -> PullError {
        PullError::File {
            path: self.blob.path.clone(),
            source,
        }
    }
}

/// Whether a partial response is the part that was asked for.
fn starts_at(response: &Response, from: u64) -> bool {
    response
        .headers()
        .get(reqwest::header::CONTENT_RANGE)
        .and_then(|range| range.to_str().ok())
        .and_then(|range| range.strip_prefix("bytes "))
        .and_then(|range| range.split('-').next())
        .is_some_and(|first| first.trim().parse() == Ok(from))
}
