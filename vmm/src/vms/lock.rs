//! Who owns a VM: a lock that ends with its holder, and that others can look at and wait for
//! without ever being in a new owner's way.
//!
//! These are open file description locks (fcntl(2), `F_OFD_SETLK`): like flock(2)'s they belong to
//! an open file, go to a child with its descriptor, and end when the last descriptor is closed,
//! however that happens. Unlike those they cover ranges and can be looked at. The first byte is
//! ownership: whoever asks whether there is an owner only looks at it (`F_OFD_GETLK`), so a failed
//! attempt to lock it always means an owner. The second byte is the owner's life: those who wait
//! for its end lock that one, for a moment, and a new owner waits until they are done.

#![allow(
    unsafe_code,
    reason = "open file description locks have no safe interface"
)]

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

const OWNERSHIP: i64 = 0;
const LIFE: i64 = 1;

/// Opens the lock's file, made if `create`.
pub fn open(path: &Path, create: bool) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(create)
        .truncate(false)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW)
        .open(path)
}

/// Makes `file` the owner's; `false` if there is an owner already.
pub fn try_own(file: &File) -> io::Result<bool> {
    match set(file, libc::F_OFD_SETLK, libc::F_WRLCK, OWNERSHIP) {
        Ok(()) => {}
        Err(error) if matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EACCES)) => {
            return Ok(false);
        }
        Err(error) => return Err(error),
    }
    set(file, libc::F_OFD_SETLKW, libc::F_WRLCK, LIFE)?;
    Ok(true)
}

/// Whether an open file other than `file` owns it.
pub fn is_owned(file: &File) -> io::Result<bool> {
    let mut lock = range(libc::F_WRLCK, OWNERSHIP);
    control(file, libc::F_OFD_GETLK, &mut lock)?;
    Ok(lock.l_type != libc::F_UNLCK as libc::c_short)
}

/// Waits until nobody owns it.
pub fn wait_free(file: &File) -> io::Result<()> {
    set(file, libc::F_OFD_SETLKW, libc::F_RDLCK, LIFE)?;
    set(file, libc::F_OFD_SETLK, libc::F_UNLCK, LIFE)
}

/// Gives it up, for all who share the open file. Waiters are woken last.
pub fn release(file: &File) {
    // Neither can fail on a lock that is held.
    let _ = set(file, libc::F_OFD_SETLK, libc::F_UNLCK, OWNERSHIP);
    let _ = set(file, libc::F_OFD_SETLK, libc::F_UNLCK, LIFE);
}

fn range(kind: libc::c_int, start: i64) -> libc::flock {
    libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: start,
        l_len: 1,
        l_pid: 0,
    }
}

fn set(file: &File, how: libc::c_int, kind: libc::c_int, start: i64) -> io::Result<()> {
    control(file, how, &mut range(kind, start))
}

fn control(file: &File, how: libc::c_int, lock: &mut libc::flock) -> io::Result<()> {
    loop {
        // SAFETY: the descriptor is open as long as `file` lives, and the three commands that are
        // given here take a pointer to a `struct flock`, which `lock` is.
        if unsafe { libc::fcntl(file.as_raw_fd(), how, std::ptr::from_mut(lock)) } == 0 {
            return Ok(());
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_owns_and_looking_takes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let (first, second) = (open(&path, true).unwrap(), open(&path, true).unwrap());
        assert!(!is_owned(&second).unwrap());
        assert!(try_own(&first).unwrap());
        assert!(is_owned(&second).unwrap());
        assert!(!try_own(&second).unwrap());
        release(&first);
        assert!(!is_owned(&second).unwrap());
        assert!(try_own(&second).unwrap());
    }

    #[test]
    fn waiting_ends_with_the_owner_and_never_keeps_the_next_from_owning() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        for _ in 0..50 {
            let owner = open(&path, true).unwrap();
            assert!(try_own(&owner).unwrap());
            std::thread::scope(|scope| {
                for _ in 0..4 {
                    let waiter = open(&path, true).unwrap();
                    scope.spawn(move || wait_free(&waiter).unwrap());
                }
                release(&owner);
                let next = open(&path, true).unwrap();
                assert!(try_own(&next).unwrap(), "a waiter was in the way");
                release(&next);
            });
        }
    }

    #[test]
    fn a_child_that_has_the_file_keeps_the_lock() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let owner = open(&path, true).unwrap();
        assert!(try_own(&owner).unwrap());
        let mut child = std::process::Command::new("sleep")
            .arg("1000")
            .stdin(owner)
            .spawn()
            .unwrap();
        let other = open(&path, true).unwrap();
        assert!(is_owned(&other).unwrap());
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(!is_owned(&other).unwrap());
    }
}
