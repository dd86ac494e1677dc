//! The store's files: replaced by rename, written whole, swept when their writer died.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::FlockOperation;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::StoreError;

/// Files under construction start so. Their writers hold a lock on them as long as they live.
const PARTIAL: &str = ".partial-";

pub(super) fn io_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StoreError {
    let path = path.to_owned();
    move |source| StoreError::Io {
        action,
        path,
        source,
    }
}

pub(super) fn make_dir(dir: &Path) -> Result<(), StoreError> {
    let made = DirBuilder::new().recursive(true).mode(0o700).create(dir);
    made.map_err(io_error("make the directory", dir))
}

/// Waits for the lock that a file stands for; it ends with the returned file.
pub(super) fn lock(path: &Path) -> io::Result<File> {
    let file = OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o600)
        .open(path)?;
    rustix::fs::flock(&file, FlockOperation::LockExclusive)?;
    Ok(file)
}

pub(super) fn names(dir: &Path) -> Result<Vec<String>, StoreError> {
    let read = || -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(dir)? {
            names.extend(entry?.file_name().into_string().ok());
        }
        Ok(names)
    };
    read().map_err(io_error("list", dir))
}

pub(super) fn remove_if_there(path: &Path) -> Result<(), StoreError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(io_error("remove", path)(error))
        }
        _ => Ok(()),
    }
}

pub(super) fn read_json<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, StoreError> {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(io_error("read", path)(error)),
    };
    serde_json::from_slice(&bytes)
        .map(Some)
        .map_err(|cause| StoreError::Damaged {
            path: path.to_owned(),
            cause,
        })
}

/// Replaces a file by this value. The store's lock is held.
pub(super) fn write_json(path: &Path, value: &impl Serialize) -> Result<(), StoreError> {
    let dir = path.parent().unwrap_or(Path::new("."));
    let mut partial = Partial::create(dir)?;
    let written = || -> io::Result<()> {
        let bytes = serde_json::to_vec(value)?;
        partial.file.write_all(&bytes)?;
        partial.file.sync_all()
    }();
    written.map_err(io_error("write", path))?;
    partial.persist(path)
}

/// A file without its name yet. It is gone when this is dropped.
#[derive(Debug)]
pub(super) struct Partial {
    pub(super) file: File,
    pub(super) path: PathBuf,
}

impl Partial {
    /// The store's lock is held, so that no sweep comes between the file and its lock.
    pub(super) fn create(dir: &Path) -> Result<Self, StoreError> {
        loop {
            let mut random = [0; 8];
            rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty())
                .map_err(io::Error::from)
                .map_err(io_error("name a file in", dir))?;
            let path = dir.join(format!("{PARTIAL}{:016x}", u64::from_ne_bytes(random)));
            let opened = OpenOptions::new()
                .read(true)
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(&path);
            let file = match opened {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => continue,
                opened => opened.map_err(io_error("create", &path))?,
            };
            let partial = Self { file, path };
            rustix::fs::flock(&partial.file, FlockOperation::NonBlockingLockExclusive)
                .map_err(io::Error::from)
                .map_err(io_error("lock", &partial.path))?;
            return Ok(partial);
        }
    }

    /// Gives the file its name, in place of one that has it.
    pub(super) fn persist(self, path: &Path) -> Result<(), StoreError> {
        fs::rename(&self.path, path).map_err(io_error("replace", path))?;
        let dir = path.parent().unwrap_or(Path::new("."));
        // The name has to be there after a power cut, too.
        File::open(dir)
            .and_then(|dir| dir.sync_all())
            .map_err(io_error("write", dir))
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        // After `persist` there is nothing of this name.
        let _ = fs::remove_file(&self.path);
    }
}

/// Removes partial files whose writers have died. The store's lock is held.
pub(super) fn sweep(dir: &Path) -> Result<(), StoreError> {
    for name in names(dir)?.iter().filter(|name| name.starts_with(PARTIAL)) {
        let path = dir.join(name);
        // A writer may finish in between; what can't be opened is no leftover.
        let Ok(file) = OpenOptions::new().read(true).write(true).open(&path) else {
            continue;
        };
        if rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok() {
            remove_if_there(&path)?;
        }
    }
    Ok(())
}
