//! Files that appear whole or not at all: built beside their place, then renamed.
//!
//! What takes long is built in a [`Partial`] file, under a lock. A partial file is its own lock (flock). Programs that fill it get it as their standard input,
//! so that the lock lasts until the last of them has ended even when the monitor is killed; what
//! a killed one leaves is unlocked, and the next [`sweep`] removes it.

use std::fmt::Write as _;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write as _};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

/// More than any record needs; a longer file is not one.
const MAX_RECORD: u64 = 4 << 20;

const SUFFIX: &str = "partial";

/// A locked file that is removed on drop unless it was published.
#[derive(Debug)]
pub struct Partial {
    file: File,
    path: PathBuf,
    published: bool,
}

impl Partial {
    /// Makes or takes over `DIR/KEY.partial`, empty, and waits while another process holds it.
    ///
    /// # Errors
    /// What opening or locking it gave.
    pub fn lock(dir: &Path, key: &str) -> io::Result<Self> {
        let path = dir.join(format!("{key}.{SUFFIX}"));
        loop {
            let file = OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .mode(0o600)
                .custom_flags(libc::O_NOFOLLOW)
                .open(&path)?;
            wait_for_lock(&file)?;
            // Whoever held it before may have published or removed it.
            if is_at(&file, &path)? {
                file.set_len(0)?;
                return Ok(Self {
                    file,
                    path,
                    published: false,
                });
            }
        }
    }

    /// The open file, which carries the lock.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Where it is until it is published.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes it through to the disk and gives it its final name, in place of what had it.
    ///
    /// # Errors
    /// What writing or renaming it gave; then it is removed.
    pub fn publish(mut self, to: &Path) -> io::Result<()> {
        self.file.sync_all()?;
        fs::rename(&self.path, to)?;
        self.published = true;
        Ok(())
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        if !self.published {
            // The lock is still held, so this removes no other process's file.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Removes what killed processes left in `dir`: partial files that nobody holds, and the staging
/// directories named `KEY.stage` that went with them.
pub fn sweep(dir: &Path) {
    let Ok(entries) = fs::read_dir(dir) else {
        return;
    };
    for path in entries.flatten().map(|entry| entry.path()) {
        if path.extension().is_some_and(|suffix| suffix == SUFFIX) {
            remove_unheld(&path);
        }
    }
}

fn remove_unheld(path: &Path) {
    let Ok(file) = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
        .open(path)
    else {
        return;
    };
    let free = flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok();
    if free && is_at(&file, path).unwrap_or(false) {
        let _ = fs::remove_dir_all(stage_beside(path));
        let _ = fs::remove_file(path);
    }
}

/// The staging directory that belongs to a partial file.
pub fn stage_beside(partial: &Path) -> PathBuf {
    partial.with_extension("stage")
}

/// A digest as it stands in a file's name.
pub fn hex(digest: &[u8]) -> String {
    digest.iter().fold(String::new(), |mut name, byte| {
        // A String takes whatever is written to it.
        let _ = write!(name, "{byte:02x}");
        name
    })
}

/// Puts `bytes` at `path`, in place of what is there. With `durable`, they are on the disk when this
/// returns. Only one process at a time writes the file, which is for the caller to see to.
///
/// # Errors
/// What writing or renaming it gave; then what was there still is.
pub fn replace(path: &Path, bytes: &[u8], durable: bool) -> io::Result<()> {
    let new = path.with_extension("new");
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW)
        .open(&new)?;
    let written = file
        .write_all(bytes)
        .and_then(|()| if durable { file.sync_data() } else { Ok(()) })
        .and_then(|()| fs::rename(&new, path));
    if written.is_err() {
        let _ = fs::remove_file(&new);
    }
    written
}

/// Where there was no room for [`replace`], because of `error`: puts `bytes` into the file that is
/// there, whose blocks it has already. Blanks behind them fill what was longer, so it is for text in
/// which they mean nothing. It is one write, which a killed process has made or not.
///
/// # Errors
/// `error`, unless it says that there is no room, or if this fails, too.
pub fn overwrite(path: &Path, bytes: &[u8], error: io::Error) -> io::Result<()> {
    let full = matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
    );
    let file = OpenOptions::new()
        .write(true)
        .custom_flags(libc::O_NOFOLLOW)
        .open(path);
    let Ok(file) = file else {
        return Err(error);
    };
    let before = file.metadata().map_or(0, |found| found.len());
    if !full || before == 0 {
        return Err(error);
    }
    let mut text = bytes.to_vec();
    let len = usize::try_from(before.min(MAX_RECORD)).unwrap_or(0);
    text.resize(bytes.len().max(len), b' ');
    match file.write_at(&text, 0) {
        Ok(count) if count == text.len() => Ok(()),
        _ => Err(error),
    }
}

/// All of a small file.
///
/// # Errors
/// What reading it gave; or it is not small.
pub fn read_record(path: &Path) -> io::Result<Vec<u8>> {
    let file = File::open(path)?;
    if file.metadata()?.len() > MAX_RECORD {
        return Err(io::Error::other("it is too long"));
    }
    let mut bytes = Vec::new();
    file.take(MAX_RECORD).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Removes a folder with all that is in it, which another process may be removing too.
///
/// # Errors
/// What removing it gave, other than that nothing is there.
pub fn remove_tree(path: &Path) -> io::Result<()> {
    match fs::remove_dir_all(path) {
        Err(gone) if gone.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// A lock on a folder (flock(2)) that is held for a moment; given up on drop.
#[derive(Debug)]
pub struct Moment(File);

impl Moment {
    /// Waits for the lock.
    ///
    /// # Errors
    /// What opening or locking the folder gave.
    pub fn lock(folder: &Path) -> io::Result<Self> {
        let file = File::open(folder)?;
        wait_for_lock(&file)?;
        Ok(Self(file))
    }
}

impl Drop for Moment {
    fn drop(&mut self) {
        // A child that was forked a moment ago may still have the descriptor: unlocked by hand.
        let _ = flock(&self.0, FlockOperation::Unlock);
    }
}

fn wait_for_lock(file: &File) -> io::Result<()> {
    loop {
        match flock(file, FlockOperation::LockExclusive) {
            Ok(()) => return Ok(()),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Whether `path` still names the open `file`.
///
/// # Errors
/// What looking at either gave, other than that nothing is there.
pub fn is_at(file: &File, path: &Path) -> io::Result<bool> {
    let open = file.metadata()?;
    match fs::metadata(path) {
        Ok(named) => Ok((named.dev(), named.ino()) == (open.dev(), open.ino())),
        Err(gone) if gone.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(dir: &Path) -> Vec<String> {
        let mut names: Vec<_> = std::fs::read_dir(dir)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn a_dropped_partial_leaves_nothing_and_a_published_one_only_its_name() {
        let dir = tempfile::tempdir().unwrap();
        drop(Partial::lock(dir.path(), "k").unwrap());
        assert!(names(dir.path()).is_empty());
        let partial = Partial::lock(dir.path(), "k").unwrap();
        partial.publish(&dir.path().join("done")).unwrap();
        assert_eq!(names(dir.path()), ["done"]);
    }

    #[test]
    fn sweeping_takes_what_nobody_holds() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("dead.partial"), "x").unwrap();
        std::fs::create_dir_all(dir.path().join("dead.stage/sub")).unwrap();
        std::fs::write(dir.path().join("kept.erofs"), "x").unwrap();
        let held = Partial::lock(dir.path(), "held").unwrap();
        sweep(dir.path());
        assert_eq!(names(dir.path()), ["held.partial", "kept.erofs"]);
        drop(held);
    }

    #[test]
    fn a_child_that_was_given_the_file_keeps_the_lock() {
        let dir = tempfile::tempdir().unwrap();
        let mut partial = Partial::lock(dir.path(), "k").unwrap();
        let mut child = std::process::Command::new("sleep")
            .arg("1000")
            .stdin(partial.file().try_clone().unwrap())
            .spawn()
            .unwrap();
        // As after a kill: closed, but not removed.
        partial.published = true;
        let path = partial.path().to_owned();
        drop(partial);
        sweep(dir.path());
        let kept = path.exists();
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(kept, "the child may still write to it");
        sweep(dir.path());
        assert!(!path.exists());
    }

    #[test]
    fn waiters_get_a_fresh_file_after_a_publish() {
        let dir = tempfile::tempdir().unwrap();
        let first = Partial::lock(dir.path(), "k").unwrap();
        std::thread::scope(|scope| {
            let waiter = scope.spawn(|| Partial::lock(dir.path(), "k").unwrap());
            std::fs::write(first.path(), "first").unwrap();
            first.publish(&dir.path().join("done")).unwrap();
            let second = waiter.join().unwrap();
            assert_eq!(second.file().metadata().unwrap().len(), 0);
        });
        assert_eq!(std::fs::read(dir.path().join("done")).unwrap(), b"first");
    }

    #[test]
    fn without_room_a_record_is_written_over_and_blanks_end_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("record");
        let full = || io::Error::from(io::ErrorKind::StorageFull);
        // There has to be a file that has its blocks.
        assert!(overwrite(&path, b"{}", full()).is_err());
        std::fs::write(&path, "").unwrap();
        assert!(overwrite(&path, b"{}", full()).is_err());
        std::fs::write(&path, "[1, 2, 3]").unwrap();
        overwrite(&path, b"{}", full()).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"{}       ");
        overwrite(&path, b"[1, 2, 3, 4, 5]", full()).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"[1, 2, 3, 4, 5]");
        // What else is wrong stays wrong.
        let other = io::Error::from(io::ErrorKind::PermissionDenied);
        let error = overwrite(&path, b"{}", other).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::PermissionDenied);
    }
}
