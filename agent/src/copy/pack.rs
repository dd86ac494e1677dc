//! Files into an archive.

use alloc::collections::BTreeMap;
use alloc::vec;
use alloc::vec::Vec;

use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{
    AtFlags, CWD, FileType, Mode, OFlags, RawDir, Stat, fgetxattr, flistxattr, fstat, fstatfs,
    openat, readlinkat_raw, statat,
};
use rustix::io::Errno;

use super::{BUFFER, Complain, CopyError, Output, file_error, lossy, retry};
use crate::tar::{self, Entry, Kind, MAX_EXTENSION, MAX_PATH, Time, padding};

/// So deep directories may be nested: each takes a descriptor and a part of the stack.
const MAX_DEPTH: usize = 400;

/// File systems that hold nothing but the kernel's own view of itself (linux/magic.h): proc,
/// sysfs, devpts, cgroup2, debugfs, tracefs, bpf, mqueue, securityfs.
const KERNELS_OWN: [i64; 9] = [
    0x9fa0,
    0x6265_6572,
    0x1cd1,
    0x6367_7270,
    0x6462_6720,
    0x7472_6163,
    0xcafe_4a11,
    0x1980_0202,
    0x7363_6673,
];

/// What goes into an archive.
#[derive(Debug, Clone, Copy)]
pub struct Pack<'a> {
    /// The name of what is packed; `.` if it is empty.
    pub name: &'a [u8],
    /// Whether a directory's content is packed without the directory itself.
    pub content: bool,
    /// Whether it is told whose each file is, and which extended attributes it has. Without, all
    /// is root's.
    pub owners: bool,
}

/// Packs the file or directory at `source` into `out`, and ends the archive.
///
/// A symbolic link is packed as one, unless a slash follows it. Parts that can't be read, and
/// those of the kernel's own file systems, are left out; `complain` hears of the former.
///
/// # Errors
/// [`CopyError`]: nothing can be packed at all, or the archive not be written.
pub fn pack(
    source: &[u8],
    rules: &Pack<'_>,
    out: BorrowedFd<'_>,
    complain: Complain<'_>,
) -> Result<(), CopyError> {
    let mut packer = Packer {
        out: Output::new(out),
        header: Vec::new(),
        content: vec![0; BUFFER],
        links: BTreeMap::new(),
        rules: *rules,
        complain,
    };
    let mut path = match rules.name {
        b"" => b".".to_vec(),
        name => name.to_vec(),
    };
    packer
        .node(CWD, source, &mut path, 0)
        .map_err(|error| match error {
            error if error.is_missing() => CopyError::Missing(lossy(source)),
            error => error,
        })?;
    let mut end = Vec::new();
    tar::end(&mut end);
    packer.out.put(&end)?;
    packer.out.flush()
}

struct Packer<'a> {
    out: Output<'a>,
    header: Vec<u8>,
    content: Vec<u8>,
    /// Files with several names, and the one under which they were packed.
    links: BTreeMap<(u64, u64), Vec<u8>>,
    rules: Pack<'a>,
    complain: Complain<'a>,
}

impl Packer<'_> {
    /// Packs what is at `name` in `parent`, as `path`. Fails for good only if the archive can't be
    /// written; other errors are about this node.
    fn node(
        &mut self,
        parent: BorrowedFd<'_>,
        name: &[u8],
        path: &mut Vec<u8>,
        depth: usize,
    ) -> Result<(), CopyError> {
        let stat =
            statat(parent, name, AtFlags::SYMLINK_NOFOLLOW).map_err(file_error("look at", path))?;
        let device = |make: fn(u32, u32) -> Kind| {
            let (major, minor) = (
                rustix::fs::major(stat.st_rdev),
                rustix::fs::minor(stat.st_rdev),
            );
            make(major, minor)
        };
        let kind = match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => return self.directory(parent, name, path, depth),
            FileType::RegularFile => return self.file(parent, name, path),
            FileType::Symlink => Kind::Symlink(read_link(parent, name, path)?),
            FileType::Fifo => Kind::Fifo,
            FileType::CharacterDevice => device(|major, minor| Kind::CharDevice { major, minor }),
            FileType::BlockDevice => device(|major, minor| Kind::BlockDevice { major, minor }),
            // A socket means nothing without who listens to it.
            _ => return Ok(()),
        };
        self.entry(&stat, kind, path, Vec::new())
    }

    fn file(&mut self, parent: BorrowedFd<'_>, name: &[u8], path: &[u8]) -> Result<(), CopyError> {
        let careful = OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let file = openat(parent, name, OFlags::RDONLY | careful, Mode::empty())
            .map_err(file_error("open", path))?;
        let stat = fstat(&file).map_err(file_error("look at", path))?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            // It was replaced just now.
            return Ok(());
        }
        if stat.st_nlink > 1 {
            let first = self.links.get(&(stat.st_dev, stat.st_ino));
            if let Some(first) = first.cloned() {
                return self.entry(&stat, Kind::HardLink(first), path, Vec::new());
            }
            self.links.insert((stat.st_dev, stat.st_ino), path.to_vec());
        }
        let xattrs = self.attributes(file.as_fd(), path);
        self.entry(&stat, Kind::File, path, xattrs)?;
        let size = u64::try_from(stat.st_size).unwrap_or_default();
        self.content(file.as_fd(), size, path)?;
        self.out.zeros(padding(size) as u64)
    }

    /// Exactly `size` bytes, whatever becomes of the file meanwhile.
    fn content(&mut self, file: BorrowedFd<'_>, size: u64, path: &[u8]) -> Result<(), CopyError> {
        let mut left = size;
        while left > 0 {
            let wanted = usize::try_from(left).unwrap_or(usize::MAX).min(BUFFER);
            let space = self.content.get_mut(..wanted).unwrap_or_default();
            let got = match retry(|| rustix::io::read(file, &mut *space)) {
                Ok(0) => {
                    (self.complain)(CopyError::Shorter(lossy(path)));
                    return self.out.zeros(left);
                }
                Ok(got) => got,
                Err(errno) => {
                    (self.complain)(file_error("read", path)(errno));
                    return self.out.zeros(left);
                }
            };
            self.out.put(self.content.get(..got).unwrap_or_default())?;
            left = left.saturating_sub(got as u64);
        }
        Ok(())
    }

    fn directory(
        &mut self,
        parent: BorrowedFd<'_>,
        name: &[u8],
        path: &mut Vec<u8>,
        depth: usize,
    ) -> Result<(), CopyError> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let directory =
            openat(parent, name, flags, Mode::empty()).map_err(file_error("open", path))?;
        let stat = fstat(&directory).map_err(file_error("look at", path))?;
        if depth > 0 || !self.rules.content {
            let xattrs = self.attributes(directory.as_fd(), path);
            self.entry(&stat, Kind::Directory, path, xattrs)?;
        }
        if depth >= MAX_DEPTH {
            (self.complain)(CopyError::Deep(lossy(path)));
            return Ok(());
        }
        let own = fstatfs(&directory).is_ok_and(|found| KERNELS_OWN.contains(&found.f_type));
        if own {
            return Ok(());
        }
        self.children(&directory, path, depth)
    }

    fn children(
        &mut self,
        directory: &OwnedFd,
        path: &mut Vec<u8>,
        depth: usize,
    ) -> Result<(), CopyError> {
        // On the heap: a stack has no room for one of each level.
        let mut buffer = Vec::with_capacity(4096);
        let mut names = RawDir::new(directory, buffer.spare_capacity_mut());
        while let Some(child) = names.next() {
            let child = match child {
                Ok(child) => child,
                Err(errno) => {
                    (self.complain)(file_error("read", path)(errno));
                    return Ok(());
                }
            };
            let name = child.file_name().to_bytes();
            if matches!(name, b"." | b"..") {
                continue;
            }
            let before = path.len();
            path.push(b'/');
            path.extend_from_slice(name);
            let result = self.node(directory.as_fd(), name, path, depth + 1);
            path.truncate(before);
            match result {
                Err(error @ CopyError::Archive(..)) => return Err(error),
                // It may have been removed just now.
                Err(error) if !error.is_missing() => (self.complain)(error),
                _ => {}
            }
        }
        Ok(())
    }

    fn entry(
        &mut self,
        stat: &Stat,
        kind: Kind,
        path: &[u8],
        xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    ) -> Result<(), CopyError> {
        let size = match kind {
            Kind::File => u64::try_from(stat.st_size).unwrap_or_default(),
            _ => 0,
        };
        let (uid, gid) = if self.rules.owners {
            (stat.st_uid, stat.st_gid)
        } else {
            (0, 0)
        };
        let entry = Entry {
            path: path.to_vec(),
            kind,
            mode: stat.st_mode & 0o7777,
            uid,
            gid,
            mtime: Time {
                seconds: stat.st_mtime,
                nanoseconds: u32::try_from(stat.st_mtime_nsec).unwrap_or_default(),
            },
            size,
            xattrs,
        };
        self.header.clear();
        tar::header(&entry, &mut self.header)?;
        self.out.put(&self.header)
    }

    /// A file's extended attributes; none if its file system has none.
    fn attributes(&mut self, file: BorrowedFd<'_>, path: &[u8]) -> Vec<(Vec<u8>, Vec<u8>)> {
        let mut found = Vec::new();
        if !self.rules.owners {
            return found;
        }
        // The most that Linux has: XATTR_LIST_MAX and XATTR_SIZE_MAX.
        let Some(space) = self.content.get_mut(..64 << 10) else {
            return found;
        };
        let Ok(len @ 1..) = flistxattr(file, &mut *space) else {
            return found;
        };
        let names = space.get(..len).unwrap_or_default().to_vec();
        let mut left = MAX_EXTENSION / 2;
        for name in names
            .split(|byte| *byte == 0)
            .filter(|name| !name.is_empty())
        {
            let told = |errno| CopyError::Attribute {
                path: lossy(path),
                name: lossy(name),
                errno,
            };
            match fgetxattr(file, name, &mut *space) {
                Ok(len) if (name.len() + len) as u64 > left || name.contains(&b'=') => {
                    (self.complain)(told(Errno::TOOBIG));
                }
                Ok(len) => {
                    left -= (name.len() + len) as u64;
                    let value = space.get(..len).unwrap_or_default();
                    found.push((name.to_vec(), value.to_vec()));
                }
                Err(Errno::NODATA) => {}
                Err(errno) => (self.complain)(told(errno)),
            }
        }
        found
    }
}

fn read_link(parent: BorrowedFd<'_>, name: &[u8], path: &[u8]) -> Result<Vec<u8>, CopyError> {
    let mut target = vec![0; MAX_PATH];
    let len = readlinkat_raw(parent, name, &mut target[..]).map_err(file_error("read", path))?;
    target.truncate(len);
    Ok(target)
}
