//! Writable disks. Always raw: no format is ever guessed from what a guest could have written.
//!
//! A disk is a sparse file that holds one ext4 file system. A new one is not formatted by running
//! `mke2fs`, but by writing the few blocks that a cached [`template`] of its size has, with an
//! identity of its own. A temporary disk never has a name, so nothing is left of it however its
//! machine ends.

mod error;
mod ext4;
mod file;
mod size;
mod spec;
mod template;

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Mode, OFlags};

use crate::dirs::Dirs;
use crate::staging::is_at;
use file::{all_zero, lock, lock_shared, unlock};
use template::{Kind, Template};

pub use error::DiskError;
pub use size::{SizeError, format_size, parse_size};
pub use spec::{
    DEFAULT_SIZE, DiskSpec, MAX_SIZE, MIN_SIZE, SIZE_STEP, SpecError, check_name, check_size,
};

pub(crate) use ext4::Superblock;
pub(crate) use file::{lock_holder, open_regular, special};

/// What a machine expects on an existing disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expect {
    /// An ext4 file system, or nothing yet: casita's agent mounts it.
    Ext4,
    /// Whatever it is: the image's own init deals with it.
    Anything,
}

/// An open disk that no other machine can open until `file` is closed.
#[derive(Debug)]
pub struct Disk {
    /// Open for reading and writing, with an exclusive flock; by [`open_read_only`] for reading,
    /// with a shared one.
    pub file: File,
    /// Where it is, or where it would be if a temporary one had a name.
    pub path: PathBuf,
    /// Its length in bytes.
    pub len: u64,
    /// Whether it was formatted just now.
    pub fresh: bool,
    /// Whether its file was made just now, and has a name.
    pub created: bool,
    /// Whether it outlives the machine.
    pub kept: bool,
}

/// Opens, and where needed makes and formats, the disk that `spec` names, and locks it.
///
/// # Errors
/// [`DiskError`]. On failure no new file is left, and an existing one is as it was unless
/// formatting an all-zero one was cut off.
pub fn open(spec: &DiskSpec, expect: Expect, dirs: &Dirs) -> Result<Disk, DiskError> {
    match spec {
        DiskSpec::Temporary { size } => {
            let template = template::get(check_size(*size)?, Kind::Temporary, dirs)?;
            let folder = folder(dirs)?;
            let file = nameless(&folder)?;
            let path = folder.join("temporary");
            fill(&file, &template, *size, &path)?;
            lock(&file, &path)?;
            Ok(Disk {
                file,
                path,
                len: *size,
                fresh: true,
                created: false,
                kept: false,
            })
        }
        DiskSpec::Named { name, size } => {
            check_name(name)?;
            let path = folder(dirs)?.join(format!("{name}.raw"));
            let size_if_new = Some(size.unwrap_or(DEFAULT_SIZE));
            let found = Found {
                size: *size,
                expect,
                flags: OFlags::NOFOLLOW,
            };
            open_or_create(&path, found, size_if_new, dirs)
        }
        DiskSpec::File { path, size } => {
            let found = Found {
                size: *size,
                expect,
                flags: OFlags::empty(),
            };
            open_or_create(path, found, *size, dirs)
        }
    }
}

/// Opens an existing disk for reading, together with other machines that do the same.
///
/// # Errors
/// [`DiskError`]: also when a machine may write to it, and when it holds no ext4 file system that
/// can be read without its journal.
pub fn open_read_only(path: &Path) -> Result<Disk, DiskError> {
    let io = |error| DiskError::io("read", path, error);
    let file = open_regular(path, false, OFlags::NOFOLLOW)
        .map_err(|error| DiskError::io("open", path, error))?
        .ok_or_else(|| DiskError::Missing(path.to_owned()))?;
    refuse_special(path, file.metadata().map_err(io)?.file_type())?;
    lock_shared(&file, path)?;
    match examine_read_only(&file, path) {
        Ok(len) => Ok(Disk {
            file,
            path: path.to_owned(),
            len,
            fresh: false,
            created: false,
            kept: true,
        }),
        Err(error) => {
            unlock(&file);
            Err(error)
        }
    }
}

/// The length of a disk that is locked and can be read.
fn examine_read_only(file: &File, path: &Path) -> Result<u64, DiskError> {
    let io = |error| DiskError::io("read", path, error);
    if !is_at(file, path).map_err(io)? {
        return Err(DiskError::Missing(path.to_owned()));
    }
    let len = file.metadata().map_err(io)?.len();
    check_len(path, len, None)?;
    match content(file, len).map_err(io)? {
        Content::Ext4(superblock) if superblock.len > len => Err(DiskError::Truncated {
            path: path.to_owned(),
            len,
            fs_len: superblock.len,
        }),
        Content::Ext4(superblock) if superblock.needs_recovery => {
            Err(DiskError::NeedsRecovery(path.to_owned()))
        }
        Content::Ext4(superblock) if !superblock.journal_device => Ok(len),
        _ => Err(DiskError::Foreign(path.to_owned())),
    }
}

/// A disk file that was made for a machine that is not there yet: removed again unless it is kept.
#[derive(Debug)]
pub struct NewFile(Option<PathBuf>);

impl NewFile {
    /// Watches over `disk`'s file, if it was just made.
    pub fn of(disk: &Disk) -> Self {
        let made = disk.created && is_at(&disk.file, &disk.path).unwrap_or(false);
        Self(made.then(|| disk.path.clone()))
    }

    /// The machine is there: the file stays.
    pub fn keep(mut self) {
        self.0 = None;
    }
}

impl Drop for NewFile {
    fn drop(&mut self) {
        if let Some(path) = &self.0 {
            // Nobody else has it: its lock is still ours.
            let _ = std::fs::remove_file(path);
        }
    }
}

/// Where kept disks are, by the machine's name.
fn folder(dirs: &Dirs) -> Result<PathBuf, DiskError> {
    let folder = dirs.data().join("disks");
    Dirs::ensure(&folder)?;
    Ok(folder)
}

/// How a disk that is there already is opened, and what it is to be.
#[derive(Clone, Copy)]
struct Found {
    size: Option<u64>,
    expect: Expect,
    flags: OFlags,
}

fn open_or_create(
    path: &Path,
    found: Found,
    size_if_new: Option<u64>,
    dirs: &Dirs,
) -> Result<Disk, DiskError> {
    // Others may make or remove the file meanwhile; more than a few times is not chance.
    for _ in 0..8 {
        if let Some(disk) = open_existing(path, found, dirs)? {
            return Ok(disk);
        }
        let size = size_if_new.ok_or_else(|| DiskError::Missing(path.to_owned()))?;
        if let Some(disk) = create(path, check_size(size)?, dirs)? {
            return Ok(disk);
        }
    }
    Err(DiskError::DanglingLink(path.to_owned()))
}

/// `None` when there is no such file.
fn open_existing(path: &Path, found: Found, dirs: &Dirs) -> Result<Option<Disk>, DiskError> {
    let flags = found.flags;
    let looked_at = if flags.contains(OFlags::NOFOLLOW) {
        path.symlink_metadata()
    } else {
        path.metadata()
    };
    let kind = match looked_at {
        Ok(found) => found.file_type(),
        Err(none) if none.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(DiskError::io("look at", path, error)),
    };
    refuse_special(path, kind)?;
    let Some(file) =
        open_regular(path, true, flags).map_err(|error| DiskError::io("open", path, error))?
    else {
        return Ok(None);
    };
    let io = |error| DiskError::io("read", path, error);
    refuse_special(path, file.metadata().map_err(io)?.file_type())?;
    lock(&file, path)?;
    let disk = examine(&file, path, found, dirs);
    if !matches!(disk, Ok(Some(_))) {
        unlock(&file);
    }
    Ok(disk?.map(|(len, fresh)| Disk {
        file,
        path: path.to_owned(),
        len,
        fresh,
        created: false,
        kept: true,
    }))
}

/// The length of a disk that is locked, and whether it was formatted just now. `None` when its
/// file is not the one at `path` any more.
fn examine(
    file: &File,
    path: &Path,
    found: Found,
    dirs: &Dirs,
) -> Result<Option<(u64, bool)>, DiskError> {
    let io = |error| DiskError::io("read", path, error);
    if !is_at(file, path).map_err(io)? {
        return Ok(None);
    }
    // Only now: until it was locked, another machine could be making it.
    let len = file.metadata().map_err(io)?.len();
    check_len(path, len, found.size)?;
    let fresh = match content(file, len).map_err(io)? {
        _ if found.expect == Expect::Anything => false,
        Content::Ext4(superblock) if superblock.len > len => {
            return Err(DiskError::Truncated {
                path: path.to_owned(),
                len,
                fs_len: superblock.len,
            });
        }
        Content::Ext4(superblock) if superblock.journal_device => {
            return Err(DiskError::Foreign(path.to_owned()));
        }
        Content::Ext4(_) => false,
        Content::Other => return Err(DiskError::Foreign(path.to_owned())),
        Content::Zero if len < MIN_SIZE => {
            return Err(DiskError::TooSmall {
                path: path.to_owned(),
                len,
            });
        }
        Content::Zero => {
            let template = template::get(len - len % SIZE_STEP, Kind::Kept, dirs)?;
            fill(file, &template, len, path).inspect_err(|_| zero_again(file, len))?;
            true
        }
    };
    Ok(Some((len, fresh)))
}

fn check_len(path: &Path, len: u64, expected: Option<u64>) -> Result<(), DiskError> {
    if let Some(wanted) = expected.filter(|wanted| *wanted != len) {
        return Err(DiskError::OtherSize {
            path: path.to_owned(),
            found: len,
            wanted,
        });
    }
    if !len.is_multiple_of(512) {
        return Err(DiskError::Unaligned {
            path: path.to_owned(),
            len,
        });
    }
    Ok(())
}

/// Makes a formatted and locked file and only then gives it its name. `None` when the name was
/// taken meanwhile.
fn create(path: &Path, len: u64, dirs: &Dirs) -> Result<Option<Disk>, DiskError> {
    let template = template::get(len, Kind::Kept, dirs)?;
    let parent = match path.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    };
    let (file, temporary) = match tmpfile(parent) {
        Ok(file) => (file, None),
        Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::ISDIR) => {
            let (file, name) = exclusive(parent)?;
            (file, Some(Unlink(name)))
        }
        Err(error) => return Err(DiskError::io("make", path, error)),
    };
    lock(&file, path)?;
    fill(&file, &template, len, path)?;
    file.sync_all()
        .map_err(|error| DiskError::io("write", path, error))?;
    let linked = match &temporary {
        None => rustix::fs::linkat(
            CWD,
            format!("/proc/self/fd/{}", raw(&file)),
            CWD,
            path,
            AtFlags::SYMLINK_FOLLOW,
        ),
        Some(Unlink(name)) => rustix::fs::linkat(CWD, name, CWD, path, AtFlags::empty()),
    };
    match linked {
        Ok(()) => Ok(Some(Disk {
            file,
            path: path.to_owned(),
            len,
            fresh: true,
            created: true,
            kept: true,
        })),
        Err(rustix::io::Errno::EXIST) => Ok(None),
        Err(error) => Err(DiskError::io("make", path, error)),
    }
}

/// A file of ours that loses its name on drop.
struct Unlink(PathBuf);

impl Drop for Unlink {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// A file without a name in `folder`, which the system frees with its last descriptor.
fn nameless(folder: &Path) -> Result<File, DiskError> {
    match tmpfile(folder) {
        Ok(file) => Ok(file),
        // File systems without O_TMPFILE (NFS, 9p, older overlayfs) say one of these.
        Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::ISDIR) => {
            exclusive(folder).map(|(file, name)| {
                drop(Unlink(name));
                file
            })
        }
        Err(error) => Err(DiskError::io("make", folder, error)),
    }
}

fn tmpfile(folder: &Path) -> rustix::io::Result<File> {
    rustix::fs::open(
        folder,
        OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC,
        Mode::RUSR | Mode::WUSR,
    )
    .map(File::from)
}

fn exclusive(folder: &Path) -> Result<(File, PathBuf), DiskError> {
    let name = folder.join(format!(".casita-{:032x}", u128::from_le_bytes(random()?)));
    OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&name)
        .map(|file| (file, name))
        .map_err(|error| DiskError::io("make", folder, error))
}

fn raw(file: &File) -> i32 {
    std::os::fd::AsRawFd::as_raw_fd(file)
}

/// 16 random bytes of the kernel's.
fn random() -> Result<[u8; 16], DiskError> {
    let mut bytes = [0; 16];
    let got = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())
        .map_err(|error| DiskError::io("name", Path::new("/dev/urandom"), error))?;
    debug_assert_eq!(got, bytes.len(), "up to 256 bytes come whole");
    Ok(bytes)
}

/// Sets the length and writes the template with a new identity.
fn fill(file: &File, template: &Template, len: u64, path: &Path) -> Result<(), DiskError> {
    file.set_len(len).map_err(|error| match error.kind() {
        io::ErrorKind::FileTooLarge | io::ErrorKind::InvalidInput => DiskError::TooLargeForHost {
            path: path.to_owned(),
            len,
        },
        _ => DiskError::io("lengthen", path, error),
    })?;
    template
        .write_to(file, random()?, random()?)
        .map_err(|error| DiskError::io("format", path, error))
}

/// Best effort: a file that could not be formatted, mostly for want of space, is all holes again.
fn zero_again(file: &File, len: u64) {
    use rustix::fs::{FallocateFlags, fallocate};
    let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    let _ = fallocate(file, flags, 0, len);
}

fn refuse_special(path: &Path, kind: std::fs::FileType) -> Result<(), DiskError> {
    special(kind).map_or(Ok(()), |found| {
        Err(DiskError::NotAFile {
            path: path.to_owned(),
            found,
        })
    })
}

enum Content {
    Zero,
    Ext4(Superblock),
    Other,
}

fn content(file: &File, len: u64) -> io::Result<Content> {
    let mut block = [0; ext4::SUPERBLOCK_LEN];
    if len >= (ext4::SUPERBLOCK_OFFSET + ext4::SUPERBLOCK_LEN) as u64 {
        file.read_exact_at(&mut block, ext4::SUPERBLOCK_OFFSET as u64)?;
    }
    match Superblock::parse(&block) {
        Some(superblock) => Ok(Content::Ext4(superblock)),
        None if all_zero(file, len)? => Ok(Content::Zero),
        None => Ok(Content::Other),
    }
}

#[cfg(test)]
mod tests;
