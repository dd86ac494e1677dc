//! What an image has at a volume's mount point goes into the volume while that is empty, as with
//! Docker: a database's folder has its owner and mode from the start.
//!
//! A mark in the volume says that this has begun and not ended, so that a volume in which it was
//! cut off is not taken for one that is used.

use alloc::format;
use alloc::string::String;
use core::mem::MaybeUninit;

use casita_agent::copy::{CopyError, Pack, Top, Unpack, pack, unpack};
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{AtFlags, CWD, Mode, OFlags, RawDir, openat, syncfs, unlinkat};
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{WaitOptions, fchdir, waitpid};

use crate::failure::{Doing, Failure};
use crate::sys;

/// The mark.
const BEGUN: &[u8] = b".casita-filling";
/// What `mke2fs` makes. A program that wants an empty folder does not want it.
const LOST_FOUND: &[u8] = b"lost+found";
/// Deeper than what [`pack`] packs.
const MAX_DEPTH: usize = 410;

const DIRECTORY: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);

/// The directory that a volume is about to be mounted on; none if there is something else.
pub(crate) fn mount_point(target: &[u8]) -> Option<OwnedFd> {
    openat(CWD, target, DIRECTORY - OFlags::NOFOLLOW, Mode::empty()).ok()
}

/// Fills the volume that is mounted on `target`, if it is empty, with what `image` holds.
pub(crate) fn fill(target: &[u8], image: Option<&OwnedFd>) -> Result<(), Failure> {
    let shown = || String::from_utf8_lossy(target).into_owned();
    let look = || format!("cannot look into the volume for {:?}", shown());
    let volume = openat(CWD, target, DIRECTORY - OFlags::NOFOLLOW, Mode::empty()).doing(look)?;
    if !make_empty(&volume).doing(look)? {
        return Ok(());
    }
    let Some(image) = image else {
        return unmark(&volume).doing(look);
    };
    let mark = OFlags::WRONLY | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat(&volume, BEGUN, mark, Mode::RUSR)
        .map_err(file_error)
        .and_then(|_| copy(image, &volume))
        .and_then(|()| syncfs(&volume).map_err(file_error))
        .and_then(|()| unmark(&volume).map_err(file_error))
        .map_err(|error| {
            let hint = match error {
                CopyError::File { errno, .. } if errno == Errno::NOSPC => {
                    "; make a larger volume with casita volume create --size"
                }
                _ => "",
            };
            Failure::new(format_args!(
                "the volume for {:?} can't take over what the image has there: {error}{hint}",
                shown()
            ))
        })
}

fn file_error(errno: Errno) -> CopyError {
    CopyError::File {
        action: "prepare",
        path: String::from("the volume"),
        errno,
    }
}

/// Whether nobody has put anything into the volume. What was left half filled is removed first.
fn make_empty(volume: &OwnedFd) -> Result<bool, Errno> {
    let (mut lost_found, mut begun, mut others) = (false, false, false);
    each(volume, |name| {
        match name {
            LOST_FOUND => lost_found = true,
            BEGUN => begun = true,
            _ => others = true,
        }
        Ok(())
    })?;
    if begun {
        // The mark stays, or half of the rest could be there without it.
        remove_content(volume, 0)?;
        return Ok(true);
    }
    if others {
        return Ok(false);
    }
    if !lost_found {
        return Ok(true);
    }
    match unlinkat(volume, LOST_FOUND, AtFlags::REMOVEDIR) {
        Ok(()) => Ok(true),
        // Somebody's data.
        Err(Errno::NOTEMPTY | Errno::NOTDIR) => Ok(false),
        Err(errno) => Err(errno),
    }
}

fn unmark(volume: &OwnedFd) -> Result<(), Errno> {
    match unlinkat(volume, BEGUN, AtFlags::empty()) {
        Err(Errno::NOENT) => Ok(()),
        result => result,
    }
}

fn each(
    directory: &OwnedFd,
    mut visit: impl FnMut(&[u8]) -> Result<(), Errno>,
) -> Result<(), Errno> {
    let mut buffer = [MaybeUninit::uninit(); 2048];
    let mut entries = RawDir::new(directory, &mut buffer);
    while let Some(entry) = entries.next() {
        let entry = entry?;
        match entry.file_name().to_bytes() {
            b"." | b".." => {}
            name => visit(name)?,
        }
    }
    Ok(())
}

fn remove_content(directory: &OwnedFd, depth: usize) -> Result<(), Errno> {
    if depth > MAX_DEPTH {
        return Err(Errno::NAMETOOLONG);
    }
    // Not the one that was read for another purpose: its place is at its end.
    let directory = openat(directory, c".", DIRECTORY, Mode::empty())?;
    each(&directory, |name| {
        if depth == 0 && name == BEGUN {
            return Ok(());
        }
        match unlinkat(&directory, name, AtFlags::empty()) {
            Err(Errno::ISDIR) => {
                let child = openat(&directory, name, DIRECTORY, Mode::empty())?;
                remove_content(&child, depth + 1)?;
                unlinkat(&directory, name, AtFlags::REMOVEDIR)
            }
            result => result,
        }
    })
}

/// Copies through an archive, which a child writes.
fn copy(image: &OwnedFd, volume: &OwnedFd) -> Result<(), CopyError> {
    let (reader, writer) = pipe_with(PipeFlags::CLOEXEC).map_err(file_error)?;
    let Some(child) = sys::fork().map_err(file_error)? else {
        drop(reader);
        sys::exit(write_archive(image, &writer))
    };
    drop(writer);
    let rules = Unpack {
        top: Top::Keep,
        owners: true,
        special: true,
        // The volume has one.
        limit: u64::MAX,
    };
    let copied = unpack(volume.as_fd(), reader.as_fd(), &rules, &mut |error| {
        Failure::new(error).print();
    });
    // A child that is still writing is told that nobody reads.
    drop(reader);
    let status = waitpid(Some(child), WaitOptions::empty()).map_err(file_error)?;
    copied?;
    match status.and_then(|(_, status)| status.exit_status()) {
        Some(0) => Ok(()),
        // It has said why.
        _ => Err(CopyError::Archive("write", Errno::IO)),
    }
}

fn write_archive(image: &OwnedFd, archive: &OwnedFd) -> u8 {
    let mut complete = true;
    let rules = Pack {
        name: b".",
        content: false,
        owners: true,
    };
    // What is mounted on it meanwhile is not in the way of its own name.
    let packed = fchdir(image).map_err(file_error).and_then(|()| {
        pack(b".", &rules, archive.as_fd(), &mut |error| {
            complete = false;
            Failure::new(error).print();
        })
    });
    if let Err(error) = packed {
        complete = false;
        Failure::new(error).print();
    }
    u8::from(!complete)
}
