//! Files as disks and images are opened: never waiting, never acting on a device; locks; holes.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};
use std::path::Path;

use rustix::fs::{FlockOperation, Mode, OFlags, SeekFrom};

use super::error::DiskError;
use crate::progress::{Bytes, Progress};

/// Opens without waiting for a FIFO's other end and without acting on a device, and gives a file
/// whose status flags are plain again: io_uring would answer EAGAIN under `O_NONBLOCK`.
/// `None` when there is none.
pub(crate) fn open_regular(path: &Path, write: bool, flags: OFlags) -> io::Result<Option<File>> {
    let access = if write { OFlags::RDWR } else { OFlags::RDONLY };
    let careful = OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let file = match rustix::fs::open(path, access | careful | flags, Mode::empty()) {
        Ok(file) => File::from(file),
        Err(rustix::io::Errno::NOENT) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let status = rustix::fs::fcntl_getfl(&file)?;
    rustix::fs::fcntl_setfl(&file, status - OFlags::NONBLOCK)?;
    Ok(Some(file))
}

/// What a path is when it is no regular file.
pub(crate) fn special(kind: std::fs::FileType) -> Option<&'static str> {
    [
        (kind.is_dir(), "a directory"),
        (kind.is_symlink(), "a symbolic link"),
        (kind.is_block_device(), "a block device"),
        (kind.is_char_device(), "a character device"),
        (kind.is_fifo(), "a FIFO"),
        (kind.is_socket(), "a socket"),
    ]
    .into_iter()
    .find_map(|(is, name)| is.then_some(name))
}

/// Takes the lock, or says who has it.
pub(super) fn lock(file: &File, path: &Path) -> Result<(), DiskError> {
    lock_as(file, path, FlockOperation::NonBlockingLockExclusive)
}

/// Takes the lock together with others who only read.
pub(super) fn lock_shared(file: &File, path: &Path) -> Result<(), DiskError> {
    lock_as(file, path, FlockOperation::NonBlockingLockShared)
}

/// Gives the lock up at once. Closing the file would do so only when a process that is just being
/// started has no copy of the descriptor any more.
pub(super) fn unlock(file: &File) {
    let _ = rustix::fs::flock(file.as_fd(), FlockOperation::Unlock);
}

fn lock_as(file: &File, path: &Path, operation: FlockOperation) -> Result<(), DiskError> {
    match rustix::fs::flock(file.as_fd(), operation) {
        Ok(()) => Ok(()),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(DiskError::InUse {
            path: path.to_owned(),
            pid: file.metadata().ok().and_then(|meta| lock_holder(&meta)),
        }),
        Err(error) => Err(DiskError::io("lock", path, error)),
    }
}

/// A process that holds an flock on a file, where the system says.
pub(crate) fn lock_holder(of: &std::fs::Metadata) -> Option<u32> {
    let locks = std::fs::read_to_string("/proc/locks").ok()?;
    holder(&locks, of.dev(), of.ino())
}

/// Who holds an flock on a file, from the text of `/proc/locks` (proc_locks(5)), if still alive:
/// `1: FLOCK ADVISORY WRITE 708 fd:00:13245 0 EOF`.
pub(super) fn holder(locks: &str, device: u64, inode: u64) -> Option<u32> {
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    let place = format!("{major:02x}:{minor:02x}:{inode}");
    locks
        .lines()
        .filter_map(|line| {
            let mut words = line.split_ascii_whitespace().skip(1);
            let flock = words.next() == Some("FLOCK");
            let pid: u32 = words.nth(2)?.parse().ok()?;
            (flock && words.next() == Some(&place)).then_some(pid)
        })
        .find(|pid| Path::new("/proc").join(pid.to_string()).exists())
}

/// Whether a file holds nothing but zeros and holes. Ends at the first other byte.
pub(super) fn all_zero(file: &File, len: u64) -> io::Result<bool> {
    let _progress = Progress::with_bytes("looking for data on the disk", move || Bytes {
        done: 0,
        total: Some(len),
    });
    let mut buffer = vec![0; 256 << 10];
    for_data(file, len, &mut |begin, end| {
        let mut at = begin;
        while at < end {
            let wanted = buffer
                .len()
                .min(usize::try_from(end - at).unwrap_or(usize::MAX));
            let got = file.read_at(&mut buffer[..wanted], at)?;
            if got == 0 {
                break;
            }
            if buffer[..got].iter().any(|byte| *byte != 0) {
                return Ok(false);
            }
            at += got as u64;
        }
        Ok(true)
    })
}

/// Calls `visit` with the begin and end of each part of a file that may hold data, until it
/// answers false. Where the file system can't tell, that is all of it.
pub(super) fn for_data(
    file: &File,
    len: u64,
    visit: &mut dyn FnMut(u64, u64) -> io::Result<bool>,
) -> io::Result<bool> {
    let mut at = 0;
    while at < len {
        let begin = match rustix::fs::seek(file, SeekFrom::Data(at)) {
            Ok(begin) => begin,
            Err(rustix::io::Errno::NXIO) => break,
            Err(rustix::io::Errno::INVAL) => at,
            Err(error) => return Err(error.into()),
        };
        let end = match rustix::fs::seek(file, SeekFrom::Hole(begin)) {
            Ok(end) => end.min(len),
            Err(rustix::io::Errno::INVAL) => len,
            Err(error) => return Err(error.into()),
        };
        // A file that shrinks meanwhile can make the two meet.
        if end <= begin {
            break;
        }
        if !visit(begin, end)? {
            return Ok(false);
        }
        at = end;
    }
    Ok(true)
}
