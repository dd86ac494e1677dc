//! Files out of an archive.

use alloc::vec::Vec;

use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{
    AtFlags, CWD, FileType, Gid, Mode, OFlags, SeekFrom, Timespec, Timestamps, Uid, XattrFlags,
    chmodat, chownat, fchmod, fchown, fsetxattr, ftruncate, futimens, linkat, makedev, mkdirat,
    mknodat, openat, seek, statat, symlinkat, unlinkat, utimensat,
};
use rustix::io::Errno;

use super::{Complain, CopyError, Input, file_error, lossy, write_all};
use crate::tar::{Entry, Kind, Reader, Step, TarError, Time, padding};

/// Zeros from here on become holes.
const HOLE: usize = 4096;
/// What is read behind the archive's end, so that who wrote it need not mind.
const MAX_TAIL: u64 = 1 << 20;
/// Directories whose mode and time wait until they are filled.
const MAX_WAITING: usize = 1 << 16;
/// What is kept of them, in bytes.
const MAX_WAITING_BYTES: usize = 4 << 20;
/// What each takes, and each of its attributes, beside their bytes.
const WAITING_COST: usize = 64;

/// How the paths of an archive become paths below the directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Top<'a> {
    /// As they are.
    Keep,
    /// With this in place of their first name.
    Rename(&'a [u8]),
    /// Without their first name: the content of what was packed.
    Content,
}

/// What is taken over from an archive.
#[derive(Debug, Clone, Copy)]
pub struct Unpack<'a> {
    /// The paths.
    pub top: Top<'a>,
    /// Owners and extended attributes, which takes root. Else all belongs to the process's user.
    pub owners: bool,
    /// Set-id bits, devices and FIFOs.
    pub special: bool,
    /// The most content, in bytes.
    pub limit: u64,
}

/// Unpacks the archive that `input` holds below `directory`. What is there already is replaced,
/// but never a directory by anything else or the other way round. `complain` hears of what is left
/// out.
///
/// # Errors
/// [`CopyError`], at the first entry that can't be unpacked. Those before it are there then.
pub fn unpack(
    directory: BorrowedFd<'_>,
    input: BorrowedFd<'_>,
    rules: &Unpack<'_>,
    complain: Complain<'_>,
) -> Result<(), CopyError> {
    let mut unpacker = Unpacker {
        root: directory,
        rules,
        left: rules.limit,
        parent: None,
        waiting: Vec::new(),
        waiting_bytes: 0,
        complain,
    };
    let mut input = Input::new(input);
    let result = unpacker.all(&mut input);
    // Also of half an archive: until then they are closed to everyone else.
    let finished = unpacker.finish_directories();
    result.and(finished)
}

struct Unpacker<'a> {
    root: BorrowedFd<'a>,
    rules: &'a Unpack<'a>,
    left: u64,
    /// The directory of the last entry, for the next is mostly in it, too.
    parent: Option<(Vec<u8>, OwnedFd)>,
    waiting: Vec<Waiting>,
    waiting_bytes: usize,
    complain: Complain<'a>,
}

/// A directory that gets its owner, mode and time when it is filled.
struct Waiting {
    path: Vec<u8>,
    entry: Entry,
}

impl Unpacker<'_> {
    fn all(&mut self, input: &mut Input<'_>) -> Result<(), CopyError> {
        let mut reader = Reader::default();
        while let Some(block) = input.block()? {
            match reader.block(&block)? {
                Step::More => {}
                Step::Entry(entry) => self.entry(entry, input)?,
                Step::End => {
                    let mut tail = 0;
                    while tail < MAX_TAIL {
                        let count = input.some()?.len();
                        if count == 0 {
                            break;
                        }
                        input.took(count);
                        tail += count as u64;
                    }
                    return Ok(());
                }
            }
        }
        if reader.at_entry() {
            Ok(())
        } else {
            Err(TarError::Truncated.into())
        }
    }

    fn entry(&mut self, entry: Entry, input: &mut Input<'_>) -> Result<(), CopyError> {
        self.left = match self.left.checked_sub(entry.size) {
            Some(left) => left,
            None => return Err(CopyError::Limit(self.rules.limit)),
        };
        let path = inside(&entry.path, self.rules.top)?;
        let Some((parent, name)) = split(&path) else {
            // The directory itself. Who unpacks the content of another into it, keeps it as it is.
            return match entry.kind {
                Kind::Directory if self.rules.top == Top::Content => Ok(()),
                Kind::Directory => self.wait(path, entry),
                _ => Err(CopyError::InTheWay {
                    path: lossy(&entry.path),
                    there: "a directory",
                    wanted: "something else",
                }),
            };
        };
        let parent = self.enter(parent, true)?;
        match &entry.kind {
            Kind::Directory => {
                make_directory(parent.as_fd(), name, &path)?;
                self.put_back(&path, parent);
                return self.wait(path, entry);
            }
            Kind::File => self.file(parent.as_fd(), name, &path, &entry, input)?,
            Kind::Symlink(target) => {
                make_way(parent.as_fd(), name, &path)?;
                symlinkat(target.as_slice(), &parent, name).map_err(file_error("make", &path))?;
                self.finish_link(parent.as_fd(), name, &path, &entry)?;
            }
            Kind::HardLink(target) => {
                let target = inside(target, self.rules.top)?;
                if target != path {
                    self.hard_link(&target, parent.as_fd(), name, &path)?;
                }
            }
            Kind::CharDevice { .. } | Kind::BlockDevice { .. } | Kind::Fifo => {
                if self.rules.special {
                    self.node(parent.as_fd(), name, &path, &entry)?;
                } else {
                    (self.complain)(CopyError::Special(lossy(&path)));
                }
            }
        }
        self.put_back(&path, parent);
        Ok(())
    }

    fn put_back(&mut self, path: &[u8], parent: OwnedFd) {
        let key = split(path).map(|(parent, _)| parent).unwrap_or_default();
        self.parent = Some((key.to_vec(), parent));
    }

    /// The directory at `path`, made where it is missing if `make` is true.
    fn enter(&mut self, path: &[u8], make: bool) -> Result<OwnedFd, CopyError> {
        if let Some((key, parent)) = self.parent.take()
            && key == path
        {
            return Ok(parent);
        }
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let open = |at: BorrowedFd<'_>, name: &[u8]| openat(at, name, flags, Mode::empty());
        let mut at = open(self.root, b".").map_err(file_error("open", path))?;
        for name in path
            .split(|byte| *byte == b'/')
            .filter(|name| !name.is_empty())
        {
            let mut next = open(at.as_fd(), name);
            if make && matches!(next, Err(Errno::NOENT)) {
                mkdirat(&at, name, Mode::from_raw_mode(0o755))
                    .map_err(file_error("make a directory for", path))?;
                next = open(at.as_fd(), name);
            }
            at = next.map_err(|errno| match errno {
                Errno::NOTDIR | Errno::LOOP => CopyError::InTheWay {
                    path: lossy(path),
                    there: "not a directory, or below a symbolic link, which is not followed",
                    wanted: "a directory",
                },
                errno => file_error("enter", path)(errno),
            })?;
        }
        Ok(at)
    }

    fn file(
        &mut self,
        parent: BorrowedFd<'_>,
        name: &[u8],
        path: &[u8],
        entry: &Entry,
        input: &mut Input<'_>,
    ) -> Result<(), CopyError> {
        let file = make_file(parent, name, path)?;
        let mut hole = false;
        input.content(entry.size, &mut |bytes| {
            for part in bytes.chunks(HOLE) {
                hole = part.iter().all(|byte| *byte == 0);
                let done = if hole {
                    let over = i64::try_from(part.len()).unwrap_or_default();
                    seek(&file, SeekFrom::Current(over)).map(drop)
                } else {
                    write_all(file.as_fd(), part)
                };
                done.map_err(file_error("write", path))?;
            }
            Ok(())
        })?;
        if hole {
            ftruncate(&file, entry.size).map_err(file_error("write", path))?;
        }
        input.content(padding(entry.size) as u64, &mut |_| Ok(()))?;
        self.finish(file.as_fd(), path, entry)
    }

    fn hard_link(
        &mut self,
        target: &[u8],
        parent: BorrowedFd<'_>,
        name: &[u8],
        path: &[u8],
    ) -> Result<(), CopyError> {
        let missing = || CopyError::Outside(lossy(target));
        let (target_parent, target_name) = split(target).ok_or_else(missing)?;
        let target_parent = self.enter(target_parent, false)?;
        make_way(parent, name, path)?;
        let flags = AtFlags::empty();
        linkat(&target_parent, target_name, parent, name, flags).map_err(file_error("link", path))
    }

    fn node(
        &mut self,
        parent: BorrowedFd<'_>,
        name: &[u8],
        path: &[u8],
        entry: &Entry,
    ) -> Result<(), CopyError> {
        make_way(parent, name, path)?;
        let (kind, device) = match entry.kind {
            Kind::CharDevice { major, minor } => (FileType::CharacterDevice, makedev(major, minor)),
            Kind::BlockDevice { major, minor } => (FileType::BlockDevice, makedev(major, minor)),
            _ => (FileType::Fifo, 0),
        };
        mknodat(parent, name, kind, Mode::from_raw_mode(0o600), device)
            .map_err(file_error("make", path))?;
        self.finish_link(parent, name, path, entry)?;
        // Nobody else is at work in this directory who could have put a link there.
        chmodat(parent, name, self.mode(entry), AtFlags::empty()).map_err(file_error("make", path))
    }

    fn mode(&self, entry: &Entry) -> Mode {
        let mask = if self.rules.special { 0o7777 } else { 0o777 };
        Mode::from_raw_mode(entry.mode & mask)
    }

    /// Owner, attributes, mode and time of what is open.
    fn finish(
        &mut self,
        file: BorrowedFd<'_>,
        path: &[u8],
        entry: &Entry,
    ) -> Result<(), CopyError> {
        if self.rules.owners {
            let (user, group) = owner(entry);
            fchown(file, user, group).map_err(file_error("change the owner of", path))?;
        }
        fchmod(file, self.mode(entry)).map_err(file_error("change the mode of", path))?;
        if self.rules.owners {
            for (name, value) in &entry.xattrs {
                let set = fsetxattr(file, name.as_slice(), value, XattrFlags::empty());
                if let Err(errno) = set {
                    (self.complain)(CopyError::Attribute {
                        path: lossy(path),
                        name: lossy(name),
                        errno,
                    });
                }
            }
        }
        futimens(file, &times(entry.mtime)).map_err(file_error("change the time of", path))
    }

    /// Owner and time of what is not opened.
    fn finish_link(
        &mut self,
        parent: BorrowedFd<'_>,
        name: &[u8],
        path: &[u8],
        entry: &Entry,
    ) -> Result<(), CopyError> {
        if self.rules.owners {
            let (user, group) = owner(entry);
            chownat(parent, name, user, group, AtFlags::SYMLINK_NOFOLLOW)
                .map_err(file_error("change the owner of", path))?;
        }
        utimensat(parent, name, &times(entry.mtime), AtFlags::SYMLINK_NOFOLLOW)
            .map_err(file_error("change the time of", path))
    }

    fn wait(&mut self, path: Vec<u8>, mut entry: Entry) -> Result<(), CopyError> {
        // Kept is only what is used.
        entry.path = Vec::new();
        if !self.rules.owners {
            entry.xattrs = Vec::new();
        }
        let attributes = entry.xattrs.iter();
        let attributes = attributes.map(|(name, value)| WAITING_COST + name.len() + value.len());
        let cost = WAITING_COST + path.len() + attributes.sum::<usize>();
        let full = self.waiting_bytes.saturating_add(cost) > MAX_WAITING_BYTES;
        if full || self.waiting.len() >= MAX_WAITING {
            self.finish_directories()?;
        }
        self.waiting_bytes = self.waiting_bytes.saturating_add(cost);
        self.waiting.push(Waiting { path, entry });
        Ok(())
    }

    /// The innermost first, for a parent may lose the permission to enter it.
    fn finish_directories(&mut self) -> Result<(), CopyError> {
        self.parent = None;
        self.waiting_bytes = 0;
        while let Some(Waiting { path, entry }) = self.waiting.pop() {
            let (parent, name) = split(&path).unwrap_or((b"", b"."));
            let parent = self.enter(parent, false)?;
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let directory =
                openat(&parent, name, flags, Mode::empty()).map_err(file_error("open", &path))?;
            self.finish(directory.as_fd(), &path, &entry)?;
        }
        Ok(())
    }
}

/// The path below the directory that an entry's path stands for; empty for the directory itself.
fn inside(path: &[u8], top: Top<'_>) -> Result<Vec<u8>, CopyError> {
    let outside = || CopyError::Outside(lossy(path));
    if path.first() == Some(&b'/') {
        return Err(outside());
    }
    let mut names = Vec::new();
    for name in path.split(|byte| *byte == b'/') {
        match name {
            b"" | b"." => {}
            b".." => return Err(outside()),
            name => names.push(name),
        }
    }
    // What was packed as `.` has no first name.
    let named = path.split(|byte| *byte == b'/').next() != Some(b".");
    let mut rest = names.as_slice();
    let mut result = Vec::new();
    if let Top::Rename(name) = top {
        result.extend_from_slice(name);
    }
    if named && top != Top::Keep {
        rest = rest.get(1..).unwrap_or_default();
    }
    for name in rest {
        if !result.is_empty() {
            result.push(b'/');
        }
        result.extend_from_slice(name);
    }
    Ok(result)
}

/// The directory's part of a path and the name in it; `None` for the empty path.
fn split(path: &[u8]) -> Option<(&[u8], &[u8])> {
    if path.is_empty() {
        return None;
    }
    match path.iter().rposition(|byte| *byte == b'/') {
        Some(at) => Some((path.get(..at)?, path.get(at + 1..)?)),
        None => Some((b"", path)),
    }
}

fn kind_at(parent: BorrowedFd<'_>, name: &[u8]) -> Result<Option<FileType>, Errno> {
    match statat(parent, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(found) => Ok(Some(FileType::from_raw_mode(found.st_mode))),
        Err(Errno::NOENT) => Ok(None),
        Err(errno) => Err(errno),
    }
}

fn make_directory(parent: BorrowedFd<'_>, name: &[u8], path: &[u8]) -> Result<(), CopyError> {
    // Closed to others until it has its owner and mode.
    match mkdirat(parent, name, Mode::from_raw_mode(0o700)) {
        Err(Errno::EXIST) => match kind_at(parent, name).map_err(file_error("look at", path))? {
            Some(FileType::Directory) => Ok(()),
            _ => Err(CopyError::InTheWay {
                path: lossy(path),
                there: "not a directory",
                wanted: "one",
            }),
        },
        result => result.map_err(file_error("make", path)),
    }
}

/// Removes what is at `name`, unless it is a directory.
fn make_way(parent: BorrowedFd<'_>, name: &[u8], path: &[u8]) -> Result<(), CopyError> {
    match unlinkat(parent, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(Errno::ISDIR) => Err(CopyError::InTheWay {
            path: lossy(path),
            there: "a directory",
            wanted: "something else",
        }),
        Err(errno) => Err(file_error("replace", path)(errno)),
    }
}

fn make_file(parent: BorrowedFd<'_>, name: &[u8], path: &[u8]) -> Result<OwnedFd, CopyError> {
    let careful = OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::NOCTTY | OFlags::CLOEXEC;
    match make_way(parent, name, path) {
        Ok(()) => {
            let new = careful | OFlags::CREATE | OFlags::EXCL;
            let mode = Mode::from_raw_mode(0o600);
            openat(parent, name, new, mode).map_err(file_error("make", path))
        }
        // Something is mounted on it, as on /etc/hosts: then it is written to as it is.
        Err(CopyError::File {
            errno: Errno::BUSY, ..
        }) if kind_at(parent, name) == Ok(Some(FileType::RegularFile)) => {
            openat(parent, name, careful | OFlags::TRUNC, Mode::empty())
                .map_err(file_error("open", path))
        }
        Err(error) => Err(error),
    }
}

fn owner(entry: &Entry) -> (Option<Uid>, Option<Gid>) {
    // The system calls take -1 for 'as it is'; nobody has this number.
    let known = |id: u32| (id != u32::MAX).then_some(id);
    (
        known(entry.uid).map(Uid::from_raw),
        known(entry.gid).map(Gid::from_raw),
    )
}

fn times(mtime: Time) -> Timestamps {
    let time = Timespec {
        tv_sec: mtime.seconds,
        tv_nsec: mtime.nanoseconds.into(),
    };
    Timestamps {
        last_access: time,
        last_modification: time,
    }
}

/// Opens the directory that is unpacked into.
///
/// # Errors
/// [`CopyError::Missing`], and when it is no directory.
pub fn open_directory(path: &[u8]) -> Result<OwnedFd, CopyError> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    match openat(CWD, path, flags, Mode::empty()) {
        Err(Errno::NOENT) => Err(CopyError::Missing(lossy(path))),
        result => result.map_err(file_error("open", path)),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn what_waits_of_directories_is_bounded_in_bytes() {
        let place = tempfile::tempdir().unwrap();
        fs::create_dir(place.path().join("d")).unwrap();
        let root = fs::File::open(place.path()).unwrap();
        let stat = rustix::fs::fstat(&root).unwrap();
        let rules = Unpack {
            top: Top::Keep,
            owners: true,
            special: false,
            limit: 0,
        };
        let mut unpacker = Unpacker {
            root: root.as_fd(),
            rules: &rules,
            left: 0,
            parent: None,
            waiting: Vec::new(),
            waiting_bytes: 0,
            complain: &mut |_| (),
        };
        let entry = Entry {
            path: b"d".to_vec(),
            kind: Kind::Directory,
            mode: 0o755,
            uid: stat.st_uid,
            gid: stat.st_gid,
            mtime: Time {
                seconds: 0,
                nanoseconds: 0,
            },
            size: 0,
            xattrs: std::vec![(b"user.x".to_vec(), std::vec![0; 1 << 20])],
        };
        for _ in 0..20 {
            unpacker.wait(b"d".to_vec(), entry.clone()).unwrap();
            assert!(unpacker.waiting.len() <= 4);
            assert!(unpacker.waiting_bytes <= MAX_WAITING_BYTES);
        }
    }
}
