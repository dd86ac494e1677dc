//! The tree of a directory on the host, with owners, modes, links and attributes as they are.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};

use rustix::buffer::spare_capacity;
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;
use sha2::{Digest as _, Sha256};

use crate::archive::{Time, Xattr};
use crate::digest::Digest;
use crate::erofs::{DataWriter, ErofsError};
use crate::layer;
use crate::tree::{Content, Data, InodeId, Meta, Place, ROOT, Tree, TreeError, device_number};

/// Linux's limit of a list of attributes, and of a value.
const MAX_XATTR: usize = 64 << 10;
/// Each level holds a descriptor.
const MAX_DEPTH: usize = 512;
const BUFFER: usize = 1 << 20;

/// Why a directory can't be packed.
#[derive(Debug, thiserror::Error)]
pub enum DirectoryError {
    /// Something in it can't be read.
    #[error("can't {action} {path:?}: {source}")]
    Read {
        /// What failed.
        action: &'static str,
        /// On which path.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Somebody writes into it.
    #[error("{0:?} has become shorter while it was read: stop what writes to it, and try again")]
    Changed(PathBuf),
    /// Deeper than any real tree.
    #[error("{0:?} is deeper than 512 directories")]
    TooDeep(PathBuf),
    /// It does not fit into the image.
    #[error("{path:?}: {cause}")]
    Tree {
        /// What does not.
        path: PathBuf,
        /// Why.
        cause: TreeError,
    },
    /// Writing the image.
    #[error(transparent)]
    Write(#[from] ErofsError),
}

/// Puts a directory's content into an empty tree; returns the digest of all that went in.
///
/// # Errors
/// If something can't be read, or the image can't be written.
pub fn pack(
    tree: &mut Tree,
    writer: &mut DataWriter,
    path: &Path,
    progress: &mut dyn FnMut(u64),
) -> Result<Digest, DirectoryError> {
    let root = rustix::fs::open(
        path,
        OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .map_err(|error| read_error("open", path, error))?;
    let stat = rustix::fs::fstat(&root).map_err(|error| read_error("look at", path, error))?;
    let mut packer = Packer {
        tree,
        writer,
        progress,
        done: 0,
        hash: Sha256::new(),
        links: HashMap::new(),
        buffer: vec![0; BUFFER],
    };
    let meta = meta(&stat, xattrs(&root, ".", path)?);
    packer.describe(b"", &stat, &meta);
    packer.put(&Place::Root, meta, packer.tree.new_directory(), path)?;
    packer.walk(Frame::open(root, path.to_owned(), ROOT)?)?;
    Ok(Digest::from_bytes(packer.hash.finalize().into()))
}

fn read_error(action: &'static str, path: &Path, error: rustix::io::Errno) -> DirectoryError {
    let source = error.into();
    DirectoryError::Read {
        action,
        path: path.to_owned(),
        source,
    }
}

/// A directory that is being walked: its names that are still to come, in order.
struct Frame {
    fd: OwnedFd,
    path: PathBuf,
    id: InodeId,
    names: std::vec::IntoIter<OsString>,
}

impl Frame {
    fn open(fd: OwnedFd, path: PathBuf, id: InodeId) -> Result<Self, DirectoryError> {
        let list = || -> Result<Vec<OsString>, rustix::io::Errno> {
            let mut names = Vec::new();
            for entry in Dir::read_from(&fd)? {
                let name = entry?.file_name().to_bytes().to_vec();
                if name != b"." && name != b".." {
                    names.push(OsString::from_vec(name));
                }
            }
            names.sort();
            Ok(names)
        };
        let names = list()
            .map_err(|error| read_error("list", &path, error))?
            .into_iter();
        Ok(Self {
            fd,
            path,
            id,
            names,
        })
    }
}

struct Packer<'a> {
    tree: &'a mut Tree,
    writer: &'a mut DataWriter,
    progress: &'a mut dyn FnMut(u64),
    /// Bytes of files that are read.
    done: u64,
    hash: Sha256,
    /// Files with several names, by device and inode.
    links: HashMap<(u64, u64), InodeId>,
    buffer: Vec<u8>,
}

impl Packer<'_> {
    fn walk(&mut self, root: Frame) -> Result<(), DirectoryError> {
        let mut stack = vec![root];
        while let Some(frame) = stack.last_mut() {
            let Some(name) = frame.names.next() else {
                stack.pop();
                continue;
            };
            let path = frame.path.join(&name);
            if let Some(below) = self.entry(frame, &name, path)? {
                if stack.len() == MAX_DEPTH {
                    return Err(DirectoryError::TooDeep(below.path));
                }
                stack.push(below);
            }
        }
        Ok(())
    }

    /// Packs one name; returns a directory that is to be walked.
    fn entry(
        &mut self,
        frame: &Frame,
        name: &OsStr,
        path: PathBuf,
    ) -> Result<Option<Frame>, DirectoryError> {
        let stat = rustix::fs::statat(&frame.fd, name, AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|error| read_error("look at", &path, error))?;
        let place = Place::Name {
            parent: frame.id,
            name: name.as_bytes(),
        };
        let kind = FileType::from_raw_mode(stat.st_mode);
        let shared = kind != FileType::Directory && stat.st_nlink > 1;
        let key = (stat.st_dev, stat.st_ino);
        if let Some(&first) = self.links.get(&key).filter(|_| shared) {
            self.describe(name.as_bytes(), &stat, &Meta::default());
            let linked = self.tree.link(&place, first);
            linked.map_err(|cause| DirectoryError::Tree { path, cause })?;
            return Ok(None);
        }
        let meta = meta(&stat, xattrs(&frame.fd, name, &path)?);
        self.describe(name.as_bytes(), &stat, &meta);
        if kind == FileType::Directory {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let fd = rustix::fs::openat(&frame.fd, name, flags, Mode::empty())
                .map_err(|error| read_error("open", &path, error))?;
            let id = self.put(&place, meta, self.tree.new_directory(), &path)?;
            return Frame::open(fd, path, id).map(Some);
        }
        let content = match kind {
            FileType::RegularFile => Content::File(self.file(frame, name, &stat, &path)?),
            FileType::Symlink => {
                let target = rustix::fs::readlinkat(&frame.fd, name, Vec::new())
                    .map_err(|error| read_error("read the link", &path, error))?;
                self.hash_part(target.to_bytes());
                Content::Symlink(target.to_bytes().into())
            }
            FileType::CharacterDevice => Content::Char(device(&stat)),
            FileType::BlockDevice => Content::Block(device(&stat)),
            FileType::Fifo => Content::Fifo,
            _ => Content::Socket,
        };
        let id = self.put(&place, meta, content, &path)?;
        if shared {
            self.links.insert(key, id);
        }
        Ok(None)
    }

    fn put(
        &mut self,
        place: &Place<'_>,
        meta: Meta,
        content: Content,
        path: &Path,
    ) -> Result<InodeId, DirectoryError> {
        let put = self.tree.put(place, meta, content);
        put.map_err(|cause| DirectoryError::Tree {
            path: path.to_owned(),
            cause,
        })
    }

    /// Copies a file's first bytes, as many as it had when it was looked at.
    fn file(
        &mut self,
        frame: &Frame,
        name: &OsStr,
        stat: &Stat,
        path: &Path,
    ) -> Result<Data, DirectoryError> {
        // It might have become a pipe, which must not make us wait.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = rustix::fs::openat(&frame.fd, name, flags, Mode::empty())
            .map_err(|error| read_error("open", path, error))?;
        let mut file = File::from(file);
        let size = stat.st_size.cast_unsigned();
        let block = self.writer.begin(size)?;
        let mut left = size;
        while left > 0 {
            let want = self
                .buffer
                .len()
                .min(usize::try_from(left).unwrap_or(usize::MAX));
            let count = match file.read(&mut self.buffer[..want]) {
                Ok(0) => return Err(DirectoryError::Changed(path.to_owned())),
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(source) => {
                    let path = path.to_owned();
                    return Err(DirectoryError::Read {
                        action: "read",
                        path,
                        source,
                    });
                }
            };
            self.hash.update(&self.buffer[..count]);
            self.writer.data(&self.buffer[..count])?;
            left -= count as u64;
        }
        self.writer.end()?;
        self.done += size;
        (self.progress)(self.done);
        Ok(Data { block, size })
    }

    /// Adds an entry to the digest, so that trees that differ in anything have different ones.
    fn describe(&mut self, name: &[u8], stat: &Stat, meta: &Meta) {
        self.hash_part(name);
        let size = if FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile {
            stat.st_size.cast_unsigned()
        } else {
            0
        };
        for number in [u64::from(stat.st_mode), size, stat.st_rdev] {
            self.hash.update(number.to_le_bytes());
        }
        self.hash.update(meta.uid.to_le_bytes());
        self.hash.update(meta.gid.to_le_bytes());
        self.hash.update(meta.mtime.seconds.to_le_bytes());
        self.hash.update(meta.mtime.nanoseconds.to_le_bytes());
        self.hash.update((meta.xattrs.len() as u64).to_le_bytes());
        for xattr in &meta.xattrs {
            self.hash_part(&xattr.name);
            self.hash_part(&xattr.value);
        }
    }

    fn hash_part(&mut self, bytes: &[u8]) {
        self.hash.update((bytes.len() as u64).to_le_bytes());
        self.hash.update(bytes);
    }
}

fn meta(stat: &Stat, xattrs: Vec<Xattr>) -> Meta {
    Meta {
        mode: (stat.st_mode & 0o7777) as u16,
        uid: stat.st_uid,
        gid: stat.st_gid,
        mtime: Time {
            seconds: stat.st_mtime,
            nanoseconds: stat.st_mtime_nsec as u32,
        },
        xattrs,
    }
}

/// The kernel's own devices have numbers that fit.
fn device(stat: &Stat) -> u32 {
    let (major, minor) = (
        rustix::fs::major(stat.st_rdev),
        rustix::fs::minor(stat.st_rdev),
    );
    device_number(major, minor).unwrap_or_default()
}

/// The attributes of a name in a directory, which may be a link, sorted.
fn xattrs(
    directory: &OwnedFd,
    name: impl AsRef<Path>,
    path: &Path,
) -> Result<Vec<Xattr>, DirectoryError> {
    let link = PathBuf::from(format!("/proc/self/fd/{}", directory.as_raw_fd())).join(name);
    let failed = |error| read_error("read the attributes of", path, error);
    let mut names = Vec::with_capacity(MAX_XATTR);
    match rustix::fs::llistxattr(&link, spare_capacity(&mut names)) {
        // A file system without any.
        Err(Errno::OPNOTSUPP) => return Ok(Vec::new()),
        result => result.map_err(failed)?,
    };
    let mut xattrs = Vec::new();
    for name in names
        .split(|&byte| byte == 0)
        .filter(|name| layer::keeps_xattr(name))
    {
        let mut value = Vec::with_capacity(MAX_XATTR);
        match rustix::fs::lgetxattr(&link, name, spare_capacity(&mut value)) {
            // Gone in between, or only for root to read.
            Err(Errno::NODATA | Errno::PERM | Errno::ACCESS) => continue,
            result => result.map_err(failed)?,
        };
        xattrs.push(Xattr {
            name: name.into(),
            value: value.into(),
        });
    }
    xattrs.sort();
    Ok(xattrs)
}
